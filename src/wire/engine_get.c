/* The fields of a get, alone or inside an mget. Happy path: a key, where to
 * look, how long, into what. Only `metadata` is forgiving: what cannot be used
 * there counts as absent. */
#include "wire/engine_field.h"

#include <stdlib.h>
#include <string.h>

static int read_source(const msgpack_object *map, struct kvf_req_get *g,
                       struct kvf_why *why)
{
    const msgpack_object *source;
    int rc = kvf_mp_map(map, "source", &source, why);

    if (rc <= 0)
        return rc;
    rc = kvf_field_endpoint(source, "host", "port", &g->source, why);
    if (rc < 0) {
        kvf_fail_prefix(why, "field source");
        return rc;
    }
    g->has_source = true;
    return 1;
}

/* Hints of a put: never an error, because they may come from an older or a
 * foreign sender. */
static void read_metadata(const msgpack_object *map, struct kvf_req_get *g)
{
    const msgpack_object *meta = kvf_mp_get(map, "metadata");

    if (meta == NULL || meta->type != MSGPACK_OBJECT_MAP)
        return;
    g->has_meta_endpoint =
        kvf_field_endpoint(meta, "source_host", "source_port",
                           &g->meta_endpoint, NULL) > 0;
    g->has_meta_generation = kvf_mp_u64(meta, "generation", 0, UINT64_MAX,
                                        &g->meta_generation, NULL) > 0;
    g->has_incarnation =
        kvf_field_id(meta, "incarnation", &g->incarnation, NULL) > 0;
}

const char *kvf_mode_name(enum kvf_mode mode)
{
    switch (mode) {
    case KVF_MODE_COPY:
        return "copy";
    case KVF_MODE_VIEW:
        return "view";
    case KVF_MODE_INLINE:
        return "inline";
    case KVF_MODE_INTO:
        return "into";
    case KVF_MODE_AUTO:
    default:
        return "auto";
    }
}

static int read_mode(const msgpack_object *map, struct kvf_req_get *g,
                     struct kvf_why *why)
{
    static const enum kvf_mode modes[] = {KVF_MODE_AUTO, KVF_MODE_COPY,
                                          KVF_MODE_VIEW, KVF_MODE_INLINE};
    struct kvf_slice_str s;
    int rc = kvf_field_str(map, "mode", 0, 64, &s, why);

    g->mode = KVF_MODE_AUTO;
    if (rc <= 0)
        return rc;
    for (unsigned i = 0; i < sizeof modes / sizeof modes[0]; i++) {
        const char *name = kvf_mode_name(modes[i]);

        if (s.len == strlen(name) && memcmp(s.p, name, s.len) == 0) {
            g->mode = modes[i];
            return 1;
        }
    }
    return kvf_fail(why, KVF_INVALID,
                    "field mode: must be auto, copy, view or inline");
}

static int read_into(const msgpack_object *map, struct kvf_req_get *g,
                     struct kvf_why *why)
{
    int rc = kvf_field_segments(map, "into", &g->into, &g->n_into, why);

    if (rc <= 0)
        return rc;
    if (g->mode != KVF_MODE_AUTO && g->mode != KVF_MODE_COPY)
        return kvf_fail(why, KVF_INVALID, "into does not go with mode %s",
                        kvf_mode_name(g->mode));
    g->mode = KVF_MODE_INTO;
    rc = kvf_segments_check_distinct(g->into, g->n_into, why);
    if (rc < 0)
        kvf_fail_prefix(why, "field into");
    return rc;
}

static int read_rest(const msgpack_object *map, struct kvf_req_get *g,
                     struct kvf_why *why)
{
    int rc;

    rc = read_source(map, g, why);
    if (rc < 0)
        return rc;
    read_metadata(map, g);
    rc = kvf_mp_u64(map, "generation", 0, UINT64_MAX, &g->generation, why);
    if (rc < 0)
        return rc;
    g->has_generation = rc > 0;
    rc = kvf_field_timeout(map, &g->has_timeout, &g->timeout_ms, why);
    if (rc < 0)
        return rc;
    rc = kvf_mp_bool(map, "wait", &g->wait, why);
    if (rc < 0)
        return rc;
    rc = read_mode(map, g, why);
    return rc < 0 ? rc : read_into(map, g, why);
}

int kvf_get_fields(const msgpack_object *map, msgpack_zone *zone,
                   struct kvf_req_get *out, struct kvf_why *why)
{
    bool composed = false;
    int rc;

    memset(out, 0, sizeof *out);
    out->wait = true;
    rc = kvf_field_key(map, zone, &out->key, &composed, &out->from.stage, why);
    if (rc >= 0) {
        if (composed) {
            out->has_from = true;
        } else {
            rc = kvf_field_worker(map, "from", &out->from, why);
            out->has_from = rc > 0;
        }
    }
    if (rc >= 0)
        rc = read_rest(map, out, why);
    if (rc < 0)
        kvf_req_get_done(out);
    return rc < 0 ? rc : 0;
}

int kvf_req_mget_item(struct kvf_req *req, unsigned i, struct kvf_req_get *out,
                      struct kvf_why *why)
{
    const msgpack_object *o;

    memset(out, 0, sizeof *out);
    if (req->op != KVF_OP_MGET || req->u.mget.gets == NULL ||
        i >= req->u.mget.n)
        return kvf_fail(why, KVF_INTERNAL, "no get %u in this mget", i);
    o = &req->u.mget.gets->via.array.ptr[i];
    if (o->type != MSGPACK_OBJECT_MAP)
        return kvf_fail(why, KVF_INVALID, "must be a map, not %s",
                        kvf_mp_type_name(o));
    return kvf_get_fields(o, req->mp.zone, out, why);
}

void kvf_req_get_done(struct kvf_req_get *get)
{
    free(get->into);
    get->into = NULL;
    get->n_into = 0;
}
