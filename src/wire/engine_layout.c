/* layout, publish, pull: bytes -> structs.
 *
 * Happy path: a layout is read by layout_msg.c; blocks are lists of ids by
 * group, kept in one piece of memory. Failure modes: -KVF_INVALID with the
 * field; the number of ids is bounded by the message. */
#include "wire/engine_field.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

int kvf_read_layout(struct kvf_req *r, struct kvf_why *why)
{
    r->u.layout = calloc(1, sizeof *r->u.layout);
    if (r->u.layout == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    return kvf_layout_read(&r->mp.root, r->u.layout, why);
}

/* ---- blocks ------------------------------------------------------------- */

static int count_ids(const msgpack_object *a, size_t *total,
                     struct kvf_why *why)
{
    for (unsigned i = 0; i < a->via.array.size; i++) {
        const msgpack_object *o = &a->via.array.ptr[i], *ids;
        int rc;

        if (o->type != MSGPACK_OBJECT_MAP)
            return kvf_fail(why, KVF_INVALID, "must be a map, not %s",
                            kvf_mp_type_name(o));
        rc = kvf_mp_array(o, "ids", KVF_MP_ITEMS, &ids, why);
        if (rc <= 0)
            return rc < 0 ? rc : kvf_mp_missing(why, "ids");
        *total += ids->via.array.size;
    }
    return 0;
}

static int read_group(const msgpack_object *o, struct kvf_req_group *g,
                      int64_t *ids, struct kvf_why *why)
{
    const msgpack_object *a;
    uint64_t first = 0, group = 0;
    int rc = kvf_field_need_u64(o, "group", 0, KVF_GROUPS_MAX - 1, &group, why);

    if (rc > 0)
        rc = kvf_field_need_u64(o, "first", 0, INT64_MAX, &first, why);
    if (rc > 0)
        rc = kvf_mp_array(o, "ids", KVF_MP_ITEMS, &a, why);
    if (rc < 0)
        return rc;
    *g = (struct kvf_req_group){(unsigned)group, (int64_t)first, ids,
                                a->via.array.size};
    for (unsigned i = 0; i < a->via.array.size; i++) {
        const msgpack_object *v = &a->via.array.ptr[i];

        if (v->type != MSGPACK_OBJECT_POSITIVE_INTEGER ||
            v->via.u64 > (uint64_t)INT64_MAX)
            return kvf_fail(why, KVF_INVALID, "ids[%u]: must be a block number",
                            i);
        ids[i] = (int64_t)v->via.u64;
    }
    return 0;
}

static int read_blocks(const msgpack_object *map, struct kvf_req_blocks *b,
                       struct kvf_why *why)
{
    bool seen[KVF_GROUPS_MAX] = {false};
    const msgpack_object *a;
    size_t total = 0, at = 0;
    int rc = kvf_mp_array(map, "blocks", KVF_GROUPS_MAX, &a, why);

    if (rc <= 0)
        return rc < 0 ? rc : kvf_mp_missing(why, "blocks");
    rc = count_ids(a, &total, why);
    if (rc < 0)
        return kvf_fail_prefix(why, "field blocks");
    b->groups = calloc(a->via.array.size + 1u, sizeof *b->groups);
    b->ids = malloc((total + 1) * sizeof *b->ids);
    if (b->groups == NULL || b->ids == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    for (unsigned i = 0; i < a->via.array.size; i++) {
        struct kvf_req_group *g = &b->groups[i];

        rc = read_group(&a->via.array.ptr[i], g, b->ids + at, why);
        if (rc == 0 && seen[g->group])
            rc =
                kvf_fail(why, KVF_INVALID, "group %u is given twice", g->group);
        if (rc < 0)
            return kvf_fail_prefix(why, "field blocks[%u]", i);
        seen[g->group] = true;
        at += g->n;
    }
    b->n = a->via.array.size;
    return 0;
}

void kvf_req_blocks_done(struct kvf_req_blocks *b)
{
    free(b->groups);
    free(b->ids);
    memset(b, 0, sizeof *b);
}

/* ---- publish, pull ------------------------------------------------------ */

static int need_request_id(const msgpack_object *map, struct kvf_slice_str *out,
                           struct kvf_why *why)
{
    int rc = kvf_field_str(map, "request_id", 1, KVF_MAX_REQUEST_ID, out, why);

    return rc != 0 ? rc : kvf_mp_missing(why, "request_id");
}

int kvf_read_publish(struct kvf_req *r, struct kvf_why *why)
{
    const msgpack_object *map = &r->mp.root;
    struct kvf_req_publish *p = &r->u.publish;
    int rc = kvf_field_need_u64(map, "layout", 0, UINT64_MAX, &p->layout, why);

    if (rc > 0)
        rc = need_request_id(map, &p->request_id, why);
    if (rc > 0) {
        rc = kvf_field_id(map, "tag", &p->tag, why);
        p->has_tag = rc > 0;
    }
    if (rc >= 0)
        rc = kvf_field_need_u64(map, "n_tokens", 0, INT64_MAX / 4, &p->n_tokens,
                                why);
    if (rc >= 0)
        rc = kvf_field_ttl(map, &p->has_ttl, &p->ttl_ms, why);
    if (rc >= 0)
        rc = kvf_mp_bool(map, "notify", &p->notify, why);
    return rc < 0 ? rc : read_blocks(map, &p->blocks, why);
}

static int need_id(const msgpack_object *map, const char *key,
                   struct kvf_id *out, struct kvf_why *why)
{
    int rc = kvf_field_id(map, key, out, why);

    return rc != 0 ? rc : kvf_mp_missing(why, key);
}

static int read_handle(const msgpack_object *h, struct kvf_req_pull *p,
                       struct kvf_why *why)
{
    int rc = need_request_id(h, &p->request_id, why);

    if (rc > 0)
        rc = need_id(h, "tag", &p->tag, why);
    if (rc > 0)
        rc = need_id(h, "incarnation", &p->incarnation, why);
    if (rc > 0)
        rc = kvf_field_endpoint(h, "source_host", "source_port", &p->source,
                                why);
    p->has_handle = true;
    return rc < 0 ? kvf_fail_prefix(why, "field handle") : 1;
}

static int read_sender(const msgpack_object *map, struct kvf_req_pull *p,
                       struct kvf_why *why)
{
    const msgpack_object *handle;
    int rc = kvf_mp_map(map, "handle", &handle, why);

    if (rc < 0)
        return rc;
    if (rc > 0 && (kvf_mp_get(map, "request_id") != NULL ||
                   kvf_mp_get(map, "from") != NULL))
        return kvf_fail(why, KVF_INVALID,
                        "give handle, or request_id and from, not both");
    if (rc > 0)
        return read_handle(handle, p, why);
    rc = kvf_field_str(map, "request_id", 1, KVF_MAX_REQUEST_ID, &p->request_id,
                       why);
    if (rc == 0)
        return kvf_fail(why, KVF_INVALID,
                        "give handle, or request_id and from");
    if (rc > 0)
        rc = kvf_field_worker(map, "from", &p->from, why);
    return rc != 0 ? rc : kvf_mp_missing(why, "from");
}

static int read_together(const msgpack_object *map, struct kvf_req_pull *p,
                         struct kvf_why *why)
{
    const msgpack_object *t;
    int rc = kvf_mp_map(map, "together", &t, why);

    if (rc <= 0)
        return rc;
    rc = kvf_field_str(t, "name", 1, KVF_TOGETHER_NAME, &p->together, why);
    if (rc == 0)
        rc = kvf_mp_missing(why, "name");
    if (rc > 0)
        rc = kvf_field_need_u64(t, "size", 1, KVF_TOGETHER_MAX,
                                &p->together_size, why);
    return rc < 0 ? kvf_fail_prefix(why, "field together") : 1;
}

int kvf_read_pull(struct kvf_req *r, struct kvf_why *why)
{
    const msgpack_object *map = &r->mp.root;
    struct kvf_req_pull *p = &r->u.pull;
    int rc = kvf_field_need_u64(map, "layout", 0, UINT64_MAX, &p->layout, why);

    if (rc >= 0)
        rc = read_sender(map, p, why);
    if (rc >= 0)
        rc = kvf_field_timeout(map, &p->has_timeout, &p->timeout_ms, why);
    if (rc >= 0)
        rc = read_together(map, p, why);
    return rc < 0 ? rc : read_blocks(map, &p->blocks, why);
}
