/* Fields that several operations share: keys, segments, endpoints. Failure
 * modes: wrong type, out of range, two ways of saying the same thing at once;
 * all -KVF_INVALID. */
#include "wire/engine_field.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int kvf_field_str(const msgpack_object *map, const char *name, size_t min,
                  size_t max, struct kvf_slice_str *out, struct kvf_why *why)
{
    return kvf_mp_str(map, name, min, max, &out->p, &out->len, why);
}

int kvf_field_need_u64(const msgpack_object *map, const char *name,
                       uint64_t min, uint64_t max, uint64_t *out,
                       struct kvf_why *why)
{
    int rc = kvf_mp_u64(map, name, min, max, out, why);

    return rc != 0 ? rc : kvf_mp_missing(why, name);
}

/* "For ever" is often said with the largest number there is: a year will do. */
static int read_ms(const msgpack_object *map, const char *name, uint64_t min,
                   bool *has, uint64_t *ms, struct kvf_why *why)
{
    int rc = kvf_mp_u64(map, name, min, UINT64_MAX, ms, why);

    *has = rc > 0;
    if (*has && *ms > KVF_MAX_MS)
        *ms = KVF_MAX_MS;
    return rc;
}

int kvf_field_timeout(const msgpack_object *map, bool *has, uint64_t *ms,
                      struct kvf_why *why)
{
    return read_ms(map, "timeout_ms", 0, has, ms, why);
}

int kvf_field_ttl(const msgpack_object *map, bool *has, uint64_t *ms,
                  struct kvf_why *why)
{
    return read_ms(map, "ttl_ms", 1, has, ms, why);
}

int kvf_field_id(const msgpack_object *map, const char *name,
                 struct kvf_id *out, struct kvf_why *why)
{
    const void *p;
    size_t len;
    int rc = kvf_mp_bin(map, name, KVF_ID_LEN, KVF_ID_LEN, &p, &len, why);

    if (rc > 0)
        memcpy(out->b, p, KVF_ID_LEN);
    return rc;
}

static int compose_key(const msgpack_object *map, msgpack_zone *zone,
                       const struct kvf_slice_str *id,
                       struct kvf_slice_str *key, uint64_t *from,
                       struct kvf_why *why)
{
    size_t cap = id->len + sizeof ":15_15";
    uint64_t to = 0;
    char *text;
    int rc, n;

    rc = kvf_field_need_u64(map, "from", 0, KVF_STAGE_MAX, from, why);
    if (rc < 0)
        return rc;
    rc = kvf_field_need_u64(map, "to", 0, KVF_STAGE_MAX, &to, why);
    if (rc < 0)
        return rc;
    text = msgpack_zone_malloc_no_align(zone, cap);
    if (text == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    memcpy(text, id->p, id->len);
    n = snprintf(text + id->len, cap - id->len, ":%" PRIu64 "_%" PRIu64, *from,
                 to);
    key->p = text;
    key->len = id->len + (size_t)n;
    if (key->len > KVF_MAX_KEY)
        return kvf_fail(why, KVF_INVALID,
                        "request_id:from_to has %zu bytes, a key at most %u",
                        key->len, KVF_MAX_KEY);
    return 1;
}

int kvf_field_key(const msgpack_object *map, msgpack_zone *zone,
                  struct kvf_slice_str *key, bool *composed, uint64_t *from,
                  struct kvf_why *why)
{
    struct kvf_slice_str id;
    int has_key = kvf_field_str(map, "key", 1, KVF_MAX_KEY, key, why);
    int has_id;

    if (has_key < 0)
        return has_key;
    has_id =
        kvf_field_str(map, "request_id", 1, KVF_MAX_KEY_REQUEST_ID, &id, why);
    if (has_id < 0)
        return has_id;
    if (has_key && has_id)
        return kvf_fail(why, KVF_INVALID,
                        "give key or request_id, from and to, not both");
    *composed = has_id > 0;
    if (has_id)
        return compose_key(map, zone, &id, key, from, why);
    return has_key ? 1 : kvf_mp_missing(why, "key");
}

int kvf_field_endpoint(const msgpack_object *map, const char *host,
                       const char *port, struct kvf_endpoint *out,
                       struct kvf_why *why)
{
    const char *p;
    size_t len;
    uint64_t number = 0;
    int rc = kvf_mp_str(map, host, 1, sizeof out->host - 1, &p, &len, why);

    if (rc <= 0)
        return rc < 0 ? rc : kvf_mp_missing(why, host);
    if (memchr(p, 0, len) != NULL)
        return kvf_fail(why, KVF_INVALID, "field %s: has a NUL byte", host);
    rc = kvf_field_need_u64(map, port, 1, UINT16_MAX, &number, why);
    if (rc < 0)
        return rc;
    memcpy(out->host, p, len);
    out->host[len] = '\0';
    out->port = (uint16_t)number;
    return 1;
}

int kvf_field_worker(const msgpack_object *map, const char *name,
                     struct kvf_from *out, struct kvf_why *why)
{
    const msgpack_object *w;
    int rc = kvf_mp_map(map, name, &w, why);

    if (rc <= 0)
        return rc;
    rc = kvf_field_need_u64(w, "stage", 0, KVF_STAGE_MAX, &out->stage, why);
    if (rc >= 0) {
        rc = kvf_mp_u64(w, "rank", 0, KVF_RANK_MAX, &out->rank, why);
        out->has_rank = rc > 0;
    }
    if (rc >= 0) {
        rc = kvf_mp_u64(w, "replica", 0, KVF_REPLICA_MAX, &out->replica, why);
        out->has_replica = rc > 0;
    }
    if (rc < 0) {
        kvf_fail_prefix(why, "field %s", name);
        return rc;
    }
    return 1;
}

static int read_segment(const msgpack_object *o, struct kvf_segment_ref *s,
                        struct kvf_why *why)
{
    uint64_t region = 0;
    int has_buffer, has_region, has_offset, has_length;

    if (o->type != MSGPACK_OBJECT_MAP)
        return kvf_fail(why, KVF_INVALID, "must be a map, not %s",
                        kvf_mp_type_name(o));
    memset(s, 0, sizeof *s);
    has_buffer = kvf_mp_u64(o, "buffer", 0, UINT64_MAX, &s->id, why);
    if (has_buffer < 0)
        return has_buffer;
    has_region = kvf_mp_u64(o, "region", 0, UINT64_MAX, &region, why);
    if (has_region < 0)
        return has_region;
    if (has_buffer == has_region)
        return kvf_fail(why, KVF_INVALID, "give buffer or region, one of them");
    has_offset = kvf_mp_u64(o, "offset", 0, INT64_MAX, &s->offset, why);
    if (has_offset < 0)
        return has_offset;
    has_length = kvf_mp_u64(o, "length", 1, INT64_MAX, &s->length, why);
    if (has_length < 0)
        return has_length;
    if (s->length > (uint64_t)INT64_MAX - s->offset)
        return kvf_fail(why, KVF_INVALID, "offset + length is out of range");
    if (has_region) {
        if (!has_offset || !has_length)
            return kvf_fail(why, KVF_INVALID,
                            "a region needs offset and length");
        s->is_region = true;
        s->id = region;
    }
    s->has_length = has_length > 0;
    return 0;
}

int kvf_field_segments(const msgpack_object *map, const char *name,
                       struct kvf_segment_ref **out, unsigned *n,
                       struct kvf_why *why)
{
    const msgpack_object *array;
    struct kvf_segment_ref *seg;
    uint64_t total = 0;
    int rc = kvf_mp_array(map, name, KVF_MAX_SEGMENTS, &array, why);

    if (rc <= 0)
        return rc;
    if (array->via.array.size == 0)
        return kvf_fail(why, KVF_INVALID, "field %s: empty", name);
    seg = malloc(array->via.array.size * sizeof *seg);
    if (seg == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    for (unsigned i = 0; i < array->via.array.size; i++) {
        rc = read_segment(&array->via.array.ptr[i], &seg[i], why);
        if (rc == 0 && seg[i].length > (uint64_t)INT64_MAX - total)
            rc = kvf_fail(why, KVF_INVALID, "the total length is out of range");
        if (rc < 0) {
            kvf_fail_prefix(why, "field %s[%u]", name, i);
            free(seg);
            return rc;
        }
        total += seg[i].length;
    }
    *out = seg;
    *n = array->via.array.size;
    return 1;
}

static int compare_segments(const void *a, const void *b)
{
    const struct kvf_segment_ref *x = a;
    const struct kvf_segment_ref *y = b;

    if (x->is_region != y->is_region)
        return x->is_region ? 1 : -1;
    if (x->id != y->id)
        return x->id < y->id ? -1 : 1;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* As most senders have them: each one behind the one before. */
static bool in_order(const struct kvf_segment_ref *seg, unsigned n)
{
    for (unsigned i = 1; i < n; i++) {
        const struct kvf_segment_ref *a = &seg[i - 1], *b = &seg[i];

        if (!a->has_length || !b->has_length || a->is_region != b->is_region ||
            a->id != b->id || b->offset < a->offset + a->length)
            return false;
    }
    return true;
}

int kvf_segments_check_distinct(const struct kvf_segment_ref *seg, unsigned n,
                                struct kvf_why *why)
{
    struct kvf_segment_ref *sorted;
    unsigned known = 0;
    int rc = 0;

    if (in_order(seg, n))
        return 0;
    sorted = malloc(n * sizeof *sorted);
    if (sorted == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    for (unsigned i = 0; i < n; i++)
        if (seg[i].has_length)
            sorted[known++] = seg[i];
    qsort(sorted, known, sizeof *sorted, compare_segments);
    for (unsigned i = 1; i < known && rc == 0; i++) {
        const struct kvf_segment_ref *a = &sorted[i - 1];
        const struct kvf_segment_ref *b = &sorted[i];

        if (a->is_region == b->is_region && a->id == b->id &&
            b->offset < a->offset + a->length)
            rc = kvf_fail(why, KVF_INVALID,
                          "a byte is named twice: offset %" PRIu64
                          " of %s %" PRIu64,
                          b->offset, b->is_region ? "region" : "buffer", b->id);
    }
    free(sorted);
    return rc;
}
