/* Fields of push, expose, unexpose, write and read.
 *
 * Happy path: the fields of a put and whom it is for; a name and memory; a
 * window, a place in it and segments. Failure modes: all -KVF_INVALID. */
#include "wire/engine_field.h"

#include <string.h>

static int read_target(const msgpack_object *map, struct kvf_endpoint *out,
                       struct kvf_why *why)
{
    const msgpack_object *target;
    int rc = kvf_mp_map(map, "target", &target, why);

    if (rc <= 0)
        return rc;
    rc = kvf_field_endpoint(target, "host", "port", out, why);
    if (rc < 0)
        kvf_fail_prefix(why, "field target");
    return rc;
}

/* `stage_only`: the key was composed, so that `to` is a plain stage number. */
static int read_dest(const msgpack_object *map, bool stage_only,
                     struct kvf_dest *d, struct kvf_why *why)
{
    int has_target = read_target(map, &d->target, why);
    int rc;

    if (has_target < 0)
        return has_target;
    rc = stage_only ? kvf_field_need_u64(map, "to", 0, KVF_STAGE_MAX,
                                         &d->to.stage, why)
                    : kvf_field_worker(map, "to", &d->to, why);
    if (rc < 0)
        return rc;
    d->has_to = rc > 0;
    return d->has_to || has_target
               ? 0
               : kvf_fail(why, KVF_INVALID,
                          "give `to` or `target`: whom it is for");
}

int kvf_push_read(struct kvf_req *r, struct kvf_why *why)
{
    struct kvf_req_push *p = &r->u.push;
    bool composed = false;
    int rc = kvf_put_fields(r, &p->put, &composed, why);

    if (rc == 0)
        rc = read_dest(&r->mp.root, composed, &p->dest, why);
    return rc < 0 ? rc
                  : kvf_field_timeout(&r->mp.root, &p->has_timeout,
                                      &p->timeout_ms, why);
}

int kvf_expose_read(struct kvf_req *r, struct kvf_why *why)
{
    const msgpack_object *map = &r->mp.root;
    struct kvf_req_expose *e = &r->u.expose;
    int has_size, rc;

    rc = kvf_field_str(map, "name", 1, KVF_MAX_KEY, &e->name, why);
    if (rc <= 0)
        return rc < 0 ? rc : kvf_mp_missing(why, "name");
    rc = kvf_mp_bool(map, "writable", &e->writable, why);
    if (rc <= 0)
        return rc < 0 ? rc : kvf_mp_missing(why, "writable");
    has_size = kvf_mp_u64(map, "size", 1, UINT64_MAX, &e->size, why);
    if (has_size < 0)
        return has_size;
    rc = kvf_mp_u64(map, "region", 0, UINT64_MAX, &e->region, why);
    if (rc < 0)
        return rc;
    if (has_size == rc)
        return kvf_fail(why, KVF_INVALID, "give size or region, one of them");
    e->is_region = rc > 0;
    if (e->size > INT64_MAX) /* never fits either way */
        e->size = INT64_MAX;
    return 0;
}

int kvf_unexpose_read(struct kvf_req *r, struct kvf_why *why)
{
    return kvf_field_need_u64(&r->mp.root, "window", 0, UINT64_MAX,
                              &r->u.handle.id, why);
}

static int read_rma_segments(struct kvf_req *r, struct kvf_why *why)
{
    struct kvf_req_rma *m = &r->u.rma;
    uint64_t total = 0;
    int rc = kvf_field_segments(&r->mp.root, "segments", &m->segments,
                                &m->n_segments, why);

    if (rc <= 0)
        return rc < 0 ? rc : kvf_mp_missing(why, "segments");
    for (unsigned i = 0; i < m->n_segments; i++)
        total += m->segments[i].length; /* below INT64_MAX in all */
    if (total > (uint64_t)INT64_MAX - m->target_offset)
        return kvf_fail(why, KVF_INVALID,
                        "target_offset + length is out of range");
    rc = r->op == KVF_OP_READ
             ? kvf_segments_check_distinct(m->segments, m->n_segments, why)
             : 0;
    if (rc < 0)
        kvf_fail_prefix(why, "field segments");
    return rc;
}

int kvf_rma_read(struct kvf_req *r, struct kvf_why *why)
{
    const msgpack_object *map = &r->mp.root;
    struct kvf_req_rma *m = &r->u.rma;
    int rc = read_dest(map, false, &m->dest, why);

    if (rc < 0)
        return rc;
    rc = kvf_field_str(map, "window", 1, KVF_MAX_KEY, &m->window, why);
    if (rc <= 0)
        return rc < 0 ? rc : kvf_mp_missing(why, "window");
    rc = kvf_mp_u64(map, "target_offset", 0, INT64_MAX, &m->target_offset, why);
    if (rc >= 0)
        rc = kvf_field_timeout(map, &m->has_timeout, &m->timeout_ms, why);
    if (rc >= 0) {
        rc = kvf_mp_bin(map, "notify", 0, KVF_MAX_META, &m->notify,
                        &m->notify_len, why);
        m->has_notify = rc > 0;
    }
    return rc < 0 ? rc : read_rma_segments(r, why);
}
