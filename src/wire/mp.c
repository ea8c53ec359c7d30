/* Reading MessagePack from outside.
 *
 * Happy path: one pass over the bytes checks the structure and adds up what
 * the decoded form needs, then msgpack-c decodes into one block of exactly that
 * size. Nothing is allocated before the first pass is through.
 *
 * Failure modes: cut short, a count larger than the bytes that are left, deeper
 * than KVF_MP_DEPTH, more than KVF_MP_ITEMS elements, the reserved byte 0xc1,
 * bytes after the value: all -KVF_INVALID. No memory: -KVF_INTERNAL. */
#include "wire/mp.h"

#include <string.h>

#define ZONE_MIN 64u   /* smallest block asked of the zone */
#define ZONE_SLACK 15u /* alignment of a container's elements */

struct scan {
    const uint8_t *p, *end;
    uint64_t items;
    size_t memory; /* what msgpack-c will take from the zone */
    const char *error;
};

static bool scan_fail(struct scan *s, const char *error)
{
    s->error = error;
    return false;
}

static size_t left(const struct scan *s)
{
    return (size_t)(s->end - s->p);
}

/* Reads a big-endian length of `width` bytes. */
static bool scan_length(struct scan *s, unsigned width, uint64_t *out)
{
    if (left(s) < width)
        return scan_fail(s, "cut short");
    *out = width == 1   ? s->p[0]
           : width == 2 ? kvf_get_u16(s->p)
                        : kvf_get_u32(s->p);
    s->p += width;
    return true;
}

static bool scan_body(struct scan *s, uint64_t len)
{
    if (left(s) < len)
        return scan_fail(s, "cut short");
    s->p += len;
    return true;
}

/* Counts the elements of a container against every bound. */
static bool scan_container(struct scan *s, uint64_t n, bool map,
                           uint64_t *children)
{
    uint64_t values = map ? 2 * n : n;

    if (values > left(s))
        return scan_fail(s, "cut short, or a count that is too large");
    s->items += values;
    if (s->items > KVF_MP_ITEMS)
        return scan_fail(s, "too many elements");
    s->memory +=
        (size_t)n * (map ? sizeof(msgpack_object_kv) : sizeof(msgpack_object)) +
        ZONE_SLACK;
    *children = values;
    return true;
}

static bool scan_long(struct scan *s, uint8_t head, uint64_t *children)
{
    uint64_t n = 0;

    switch (head) {
    case 0xc0: /* nil */
    case 0xc2: /* false */
    case 0xc3: /* true */
        return true;
    case 0xc4: /* bin 8, 16, 32 */
    case 0xc5:
    case 0xc6:
        return scan_length(s, 1u << (head - 0xc4), &n) && scan_body(s, n);
    case 0xc7: /* ext 8, 16, 32: length, type, body */
    case 0xc8:
    case 0xc9:
        return scan_length(s, 1u << (head - 0xc7), &n) && scan_body(s, n + 1);
    case 0xca: /* float 32, 64 */
    case 0xcb:
        return scan_body(s, head == 0xca ? 4 : 8);
    case 0xcc: /* uint 8 to 64 */
    case 0xcd:
    case 0xce:
    case 0xcf:
        return scan_body(s, 1u << (head - 0xcc));
    case 0xd0: /* int 8 to 64 */
    case 0xd1:
    case 0xd2:
    case 0xd3:
        return scan_body(s, 1u << (head - 0xd0));
    case 0xd4: /* fixext 1 to 16 */
    case 0xd5:
    case 0xd6:
    case 0xd7:
    case 0xd8:
        return scan_body(s, (1u << (head - 0xd4)) + 1);
    case 0xd9: /* str 8, 16, 32 */
    case 0xda:
    case 0xdb:
        return scan_length(s, 1u << (head - 0xd9), &n) && scan_body(s, n);
    case 0xdc: /* array 16, 32 */
    case 0xdd:
        return scan_length(s, head == 0xdc ? 2 : 4, &n) &&
               scan_container(s, n, false, children);
    case 0xde: /* map 16, 32 */
    case 0xdf:
        return scan_length(s, head == 0xde ? 2 : 4, &n) &&
               scan_container(s, n, true, children);
    default:
        return scan_fail(s, "a byte that MessagePack does not use");
    }
}

/* Takes one head and, for a scalar, its body. *children: values that follow. */
static bool scan_head(struct scan *s, uint64_t *children)
{
    uint8_t head;

    *children = 0;
    if (s->p == s->end)
        return scan_fail(s, "cut short");
    head = *s->p++;
    if (head < 0x80 || head >= 0xe0) /* fixint */
        return true;
    if (head < 0x90)
        return scan_container(s, head & 0x0f, true, children);
    if (head < 0xa0)
        return scan_container(s, head & 0x0f, false, children);
    if (head < 0xc0)
        return scan_body(s, head & 0x1f);
    return scan_long(s, head, children);
}

/* Takes one whole value, at most `depth` containers deep. */
static bool scan_value(struct scan *s, unsigned depth)
{
    uint64_t open[KVF_MP_DEPTH];
    unsigned d = 0;

    do {
        uint64_t children;

        if (!scan_head(s, &children))
            return false;
        if (children > 0) {
            if (d == depth)
                return scan_fail(s, "nested too deeply");
            open[d++] = children;
            continue;
        }
        while (d > 0 && --open[d - 1] == 0)
            d--;
    } while (d > 0);
    return true;
}

static bool is_str_head(uint8_t head)
{
    return (head >= 0xa0 && head < 0xc0) || (head >= 0xd9 && head <= 0xdb);
}

static void note_raw(const uint8_t *key, size_t key_len, const uint8_t *value,
                     const uint8_t *end, struct kvf_mp_raw *raw, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        size_t want = strlen(raw[i].key);

        /* The body of a str is the tail of its encoding. */
        if (key_len > want && key_len - want <= 5 &&
            memcmp(key + key_len - want, raw[i].key, want) == 0) {
            size_t head = key[0] < 0xc0    ? 1
                          : key[0] == 0xd9 ? 2
                          : key[0] == 0xda ? 3
                                           : 5;

            if (key_len == head + want) {
                raw[i].p = value;
                raw[i].len = (size_t)(end - value);
            }
        }
    }
}

/* The top level of a request: pairs whose keys are strings. */
static bool scan_map(struct scan *s, struct kvf_mp_raw *raw, unsigned n_raw)
{
    uint64_t children;
    bool map = s->p < s->end &&
               ((*s->p & 0xf0) == 0x80 || *s->p == 0xde || *s->p == 0xdf);
    bool strings = true;

    if (!map)
        return scan_fail(s, "not a map");
    if (!scan_head(s, &children))
        return false;
    for (; children > 0; children -= 2) {
        const uint8_t *key = s->p;
        const uint8_t *value;

        if (!scan_value(s, KVF_MP_DEPTH - 1))
            return false;
        value = s->p;
        if (!scan_value(s, KVF_MP_DEPTH - 1))
            return false;
        if (!is_str_head(*key))
            strings = false; /* go on: the id may stand behind it */
        else
            note_raw(key, (size_t)(value - key), value, s->p, raw, n_raw);
    }
    return strings || scan_fail(s, "a key that is not a string");
}

static int decode(struct kvf_mp *m, const struct scan *s, const void *data,
                  size_t size, struct kvf_why *why)
{
    size_t off = 0;
    size_t chunk = s->memory > ZONE_MIN ? s->memory : ZONE_MIN;

    m->zone = msgpack_zone_new(chunk);
    if (m->zone == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    switch (msgpack_unpack(data, size, &off, m->zone, &m->root)) {
    case MSGPACK_UNPACK_SUCCESS:
        return 0;
    case MSGPACK_UNPACK_NOMEM_ERROR:
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    case MSGPACK_UNPACK_EXTRA_BYTES:
    case MSGPACK_UNPACK_CONTINUE:
    case MSGPACK_UNPACK_PARSE_ERROR:
    default: /* the scan was through, so this is not expected */
        return kvf_fail(why, KVF_INVALID, "not MessagePack");
    }
}

static int finish(struct kvf_mp *m, const struct scan *s, bool ok,
                  const void *data, size_t size, struct kvf_why *why)
{
    if (!ok)
        return kvf_fail(why, KVF_INVALID, "not a MessagePack message: %s",
                        s->error);
    if (s->p != s->end)
        return kvf_fail(why, KVF_INVALID, "%zu bytes after the message",
                        left(s));
    return decode(m, s, data, size, why);
}

int kvf_mp_parse(struct kvf_mp *m, const void *data, size_t size,
                 struct kvf_why *why)
{
    struct scan s = {.p = data};

    memset(m, 0, sizeof *m);
    if (size == 0)
        return kvf_fail(why, KVF_INVALID, "an empty message");
    s.end = s.p + size;
    return finish(m, &s, scan_value(&s, KVF_MP_DEPTH), data, size, why);
}

int kvf_mp_parse_map(struct kvf_mp *m, const void *data, size_t size,
                     struct kvf_mp_raw *raw, unsigned n_raw,
                     struct kvf_why *why)
{
    static const uint8_t empty_map[1] = {0x80};
    struct scan s = {.p = data};

    memset(m, 0, sizeof *m);
    for (unsigned i = 0; i < n_raw; i++) {
        raw[i].p = NULL;
        raw[i].len = 0;
    }
    if (size == 0) {
        data = s.p = empty_map;
        size = sizeof empty_map;
    }
    s.end = s.p + size;
    return finish(m, &s, scan_map(&s, raw, n_raw), data, size, why);
}

void kvf_mp_done(struct kvf_mp *m)
{
    if (m->zone != NULL)
        msgpack_zone_free(m->zone);
    memset(m, 0, sizeof *m);
}
