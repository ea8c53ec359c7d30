/* Typed access to the fields of a decoded map, with messages that name the
 * field. Happy path: present, right type, in range: 1. Absent or nil: 0. All
 * else: -KVF_INVALID. */
#include "wire/mp.h"

#include <inttypes.h>
#include <string.h>

#include "base/utf8.h"

const char *kvf_mp_type_name(const msgpack_object *o)
{
    switch (o->type) {
    case MSGPACK_OBJECT_NIL:
        return "nil";
    case MSGPACK_OBJECT_BOOLEAN:
        return "a bool";
    case MSGPACK_OBJECT_POSITIVE_INTEGER:
        return "an int";
    case MSGPACK_OBJECT_NEGATIVE_INTEGER:
        return "a negative int";
    case MSGPACK_OBJECT_FLOAT32:
    case MSGPACK_OBJECT_FLOAT64:
        return "a float";
    case MSGPACK_OBJECT_STR:
        return "a str";
    case MSGPACK_OBJECT_ARRAY:
        return "an array";
    case MSGPACK_OBJECT_MAP:
        return "a map";
    case MSGPACK_OBJECT_BIN:
        return "a bin";
    case MSGPACK_OBJECT_EXT:
    default:
        return "an ext";
    }
}

int kvf_mp_missing(struct kvf_why *why, const char *key)
{
    return kvf_fail(why, KVF_INVALID, "field %s: missing", key);
}

static int wrong_type(struct kvf_why *why, const char *key, const char *want,
                      const msgpack_object *o)
{
    return kvf_fail(why, KVF_INVALID, "field %s: must be %s, not %s", key, want,
                    kvf_mp_type_name(o));
}

const msgpack_object *kvf_mp_get(const msgpack_object *map, const char *key)
{
    size_t len = strlen(key);

    if (map == NULL || map->type != MSGPACK_OBJECT_MAP)
        return NULL;
    for (uint32_t i = map->via.map.size; i-- > 0;) {
        const msgpack_object_kv *kv = &map->via.map.ptr[i];

        /* Most keys differ in their length or first byte: no call for those. */
        if (kv->key.type == MSGPACK_OBJECT_STR && kv->key.via.str.size == len &&
            (len == 0 || kv->key.via.str.ptr[0] == key[0]) &&
            memcmp(kv->key.via.str.ptr, key, len) == 0)
            return kv->val.type == MSGPACK_OBJECT_NIL ? NULL : &kv->val;
    }
    return NULL;
}

int kvf_mp_u64(const msgpack_object *map, const char *key, uint64_t min,
               uint64_t max, uint64_t *out, struct kvf_why *why)
{
    const msgpack_object *o = kvf_mp_get(map, key);

    if (o == NULL)
        return 0;
    if (o->type != MSGPACK_OBJECT_POSITIVE_INTEGER)
        return wrong_type(why, key, "an unsigned int", o);
    if (o->via.u64 < min || o->via.u64 > max)
        return kvf_fail(why, KVF_INVALID,
                        "field %s: %" PRIu64 " is not within %" PRIu64
                        "..%" PRIu64,
                        key, o->via.u64, min, max);
    *out = o->via.u64;
    return 1;
}

int kvf_mp_bool(const msgpack_object *map, const char *key, bool *out,
                struct kvf_why *why)
{
    const msgpack_object *o = kvf_mp_get(map, key);

    if (o == NULL)
        return 0;
    if (o->type != MSGPACK_OBJECT_BOOLEAN)
        return wrong_type(why, key, "a bool", o);
    *out = o->via.boolean;
    return 1;
}

static int wrong_length(struct kvf_why *why, const char *key, size_t len,
                        size_t min, size_t max)
{
    if (min == max)
        return kvf_fail(why, KVF_INVALID, "field %s: %zu bytes, must be %zu",
                        key, len, min);
    return kvf_fail(why, KVF_INVALID,
                    "field %s: %zu bytes is not within %zu..%zu", key, len, min,
                    max);
}

int kvf_mp_str(const msgpack_object *map, const char *key, size_t min,
               size_t max, const char **out, size_t *len, struct kvf_why *why)
{
    const msgpack_object *o = kvf_mp_get(map, key);

    if (o == NULL)
        return 0;
    if (o->type != MSGPACK_OBJECT_STR)
        return wrong_type(why, key, "a str", o);
    if (o->via.str.size < min || o->via.str.size > max)
        return wrong_length(why, key, o->via.str.size, min, max);
    if (!kvf_utf8_valid(o->via.str.ptr, o->via.str.size))
        return kvf_fail(why, KVF_INVALID, "field %s: not valid UTF-8", key);
    *out = o->via.str.ptr;
    *len = o->via.str.size;
    return 1;
}

int kvf_mp_bin(const msgpack_object *map, const char *key, size_t min,
               size_t max, const void **out, size_t *len, struct kvf_why *why)
{
    const msgpack_object *o = kvf_mp_get(map, key);

    if (o == NULL)
        return 0;
    if (o->type != MSGPACK_OBJECT_BIN)
        return wrong_type(why, key, "a bin", o);
    if (o->via.bin.size < min || o->via.bin.size > max)
        return wrong_length(why, key, o->via.bin.size, min, max);
    *out = o->via.bin.ptr;
    *len = o->via.bin.size;
    return 1;
}

int kvf_mp_map(const msgpack_object *map, const char *key,
               const msgpack_object **out, struct kvf_why *why)
{
    const msgpack_object *o = kvf_mp_get(map, key);

    if (o == NULL)
        return 0;
    if (o->type != MSGPACK_OBJECT_MAP)
        return wrong_type(why, key, "a map", o);
    *out = o;
    return 1;
}

int kvf_mp_array(const msgpack_object *map, const char *key, size_t max,
                 const msgpack_object **out, struct kvf_why *why)
{
    const msgpack_object *o = kvf_mp_get(map, key);

    if (o == NULL)
        return 0;
    if (o->type != MSGPACK_OBJECT_ARRAY)
        return wrong_type(why, key, "an array", o);
    if (o->via.array.size > max)
        return kvf_fail(why, KVF_INVALID,
                        "field %s: %u elements, at most %zu are allowed", key,
                        o->via.array.size, max);
    *out = o;
    return 1;
}
