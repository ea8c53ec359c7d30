/* The fields of a put, alone and inside a push. */
#include "wire/engine_field.h"

#include <string.h>

static int read_on_duplicate(struct kvf_req *r, struct kvf_req_put *p,
                             struct kvf_why *why)
{
    struct kvf_slice_str s;
    int rc = kvf_field_str(&r->mp.root, "on_duplicate", 0, 64, &s, why);

    if (rc <= 0)
        return rc;
    if (s.len == 7 && memcmp(s.p, "replace", 7) == 0)
        p->on_duplicate = KVF_DUP_REPLACE;
    else if (s.len == 6 && memcmp(s.p, "reject", 6) == 0)
        p->on_duplicate = KVF_DUP_REJECT;
    else
        return kvf_fail(why, KVF_INVALID,
                        "field on_duplicate: must be replace or reject");
    return 1;
}

static int read_put_bytes(struct kvf_req *r, struct kvf_req_put *p,
                          struct kvf_why *why)
{
    int rc = kvf_field_segments(&r->mp.root, "segments", &p->segments,
                                &p->n_segments, why);

    if (rc < 0)
        return rc;
    if (rc > 0 && r->has_payload)
        return kvf_fail(why, KVF_INVALID,
                        "give segments or a payload frame, not both");
    if (rc == 0 && !r->has_payload)
        return kvf_fail(why, KVF_INVALID, "give segments or a payload frame");
    if (rc == 0 && r->payload_len == 0)
        return kvf_fail(why, KVF_INVALID, "the payload frame is empty");
    return 0;
}

int kvf_put_fields(struct kvf_req *r, struct kvf_req_put *p, bool *composed,
                   struct kvf_why *why)
{
    const msgpack_object *map = &r->mp.root;
    uint64_t from;
    int rc = kvf_field_key(map, r->mp.zone, &p->key, composed, &from, why);

    p->readers = 1;
    if (rc >= 0)
        rc = kvf_mp_bin(map, "meta", 0, KVF_MAX_META, &p->meta, &p->meta_len,
                        why);
    if (rc >= 0)
        rc = kvf_field_ttl(map, &p->has_ttl, &p->ttl_ms, why);
    if (rc >= 0)
        rc = kvf_mp_u64(map, "readers", 0, UINT64_MAX, &p->readers, why);
    if (rc >= 0)
        rc = read_on_duplicate(r, p, why);
    if (rc >= 0)
        rc = kvf_mp_bool(map, "checksum", &p->checksum, why);
    if (rc >= 0)
        rc = kvf_mp_bool(map, "notify", &p->notify, why);
    return rc < 0 ? rc : read_put_bytes(r, p, why);
}

int kvf_put_read(struct kvf_req *r, struct kvf_why *why)
{
    struct kvf_req_put *p = &r->u.put;
    bool composed;
    int rc = kvf_put_fields(r, p, &composed, why);

    if (rc == 0)
        rc = kvf_mp_u64(&r->mp.root, "next", 1, INT64_MAX, &p->next, why);
    if (rc > 0)
        rc = 0;
    for (unsigned i = 0; rc == 0 && i < p->n_segments; i++)
        if (p->segments[i].is_region && !p->notify)
            rc =
                kvf_fail(why, KVF_INVALID, "a put of a region must set notify");
    return rc;
}
