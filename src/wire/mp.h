/* MessagePack at the border: bytes from outside are measured before anything is
 * allocated, then read with msgpack-c; what we send is written with msgpack-c.
 * No I/O. Nothing here trusts a length. */
#ifndef KVF_WIRE_MP_H
#define KVF_WIRE_MP_H

#include "base/bytes.h"
#include "base/why.h"

#include <msgpack.h>
#include <stdbool.h>
#include <stdint.h>

#define KVF_MP_DEPTH 16      /* deepest nesting that is read */
#define KVF_MP_ITEMS 262144u /* most elements in one message */

/* One decoded message. Strings and bins point into the bytes given to parse,
 * which must stay until kvf_mp_done. */
struct kvf_mp {
    msgpack_zone *zone;
    msgpack_object root;
};

/* Reads exactly one value that fills all of the bytes. `m` need not be
 * initialised, and must have been given to kvf_mp_done since an earlier parse;
 * call kvf_mp_done also after a failure. Does not block. Checks the whole
 * structure first (bounds, depth, item count), so that a few bytes that claim a
 * billion elements allocate nothing. -KVF_INVALID with the reason. */
int kvf_mp_parse(struct kvf_mp *m, const void *data, size_t size,
                 struct kvf_why *why);
void kvf_mp_done(struct kvf_mp *m); /* idempotent */

/* One top-level value as it stood in the bytes, head included. */
struct kvf_mp_raw {
    const char *key;  /* wanted */
    const uint8_t *p; /* NULL: not seen. The last one wins. */
    size_t len;
};

/* kvf_mp_parse for a message that has to be a map with string keys (no bytes at
 * all count as an empty map, `root` is then one). Fills `raw` in the same pass,
 * and, when the message turns out to be bad, with what was seen until then: an
 * id can so be echoed. */
int kvf_mp_parse_map(struct kvf_mp *m, const void *data, size_t size,
                     struct kvf_mp_raw *raw, unsigned n_raw,
                     struct kvf_why *why);

/* Value of a string key in a map, NULL when absent (the last one wins when a
 * key stands twice) or when `map` is not a map. nil counts as absent. */
const msgpack_object *kvf_mp_get(const msgpack_object *map, const char *key);

/* Typed fields of a map. Each returns 1 present, 0 absent (*out untouched), or
 * -KVF_INVALID with "field KEY: ..." when the type or range is wrong.
 * Integers: a non-negative int64 counts as unsigned; floats do not. */
int kvf_mp_u64(const msgpack_object *map, const char *key, uint64_t min,
               uint64_t max, uint64_t *out, struct kvf_why *why);
int kvf_mp_bool(const msgpack_object *map, const char *key, bool *out,
                struct kvf_why *why);
/* UTF-8 checked; length in bytes within [min, max]. */
int kvf_mp_str(const msgpack_object *map, const char *key, size_t min,
               size_t max, const char **out, size_t *len, struct kvf_why *why);
int kvf_mp_bin(const msgpack_object *map, const char *key, size_t min,
               size_t max, const void **out, size_t *len, struct kvf_why *why);
int kvf_mp_map(const msgpack_object *map, const char *key,
               const msgpack_object **out, struct kvf_why *why);
int kvf_mp_array(const msgpack_object *map, const char *key, size_t max,
                 const msgpack_object **out, struct kvf_why *why);
/* The text "field KEY: missing"; returns -KVF_INVALID. */
int kvf_mp_missing(struct kvf_why *why, const char *key);
/* "int", "str", "map", ... for messages. Never NULL. */
const char *kvf_mp_type_name(const msgpack_object *o);

/* Whether two encoded scalars, heads included, are the same value: 5 is 5 in
 * one byte or in nine, and so are texts; 5 and 5.0 differ, text and bin too. */
bool kvf_mp_same(const uint8_t *a, size_t a_len, const uint8_t *b,
                 size_t b_len);

/* ---- writing ------------------------------------------------------------ */

/* Growing output. A failed allocation sets `failed` and later calls do nothing;
 * check once at the end. */
struct kvf_mpw {
    msgpack_sbuffer buf;
    msgpack_packer pk;
    bool failed;
};

void kvf_mpw_init(struct kvf_mpw *w);
void kvf_mpw_fini(struct kvf_mpw *w);
void kvf_mpw_reset(struct kvf_mpw *w); /* keeps the memory */

/* Maps and arrays whose length is counted while writing: begin returns a mark
 * for end, which patches the count (map32/array32 are avoided: at most 65535
 * entries, unless begin_n is used). */
size_t kvf_mpw_map_begin(struct kvf_mpw *w);
void kvf_mpw_map_end(struct kvf_mpw *w, size_t mark, unsigned pairs);
void kvf_mpw_map(struct kvf_mpw *w, unsigned pairs);
void kvf_mpw_array(struct kvf_mpw *w, unsigned items);

void kvf_mpw_nil(struct kvf_mpw *w);
void kvf_mpw_bool(struct kvf_mpw *w, bool v);
void kvf_mpw_u64(struct kvf_mpw *w, uint64_t v);
/* Bytes that are not UTF-8 (a sentence cut within a character) become '?': a
 * reader that checks would refuse the whole message. */
void kvf_mpw_str(struct kvf_mpw *w, const char *s);
void kvf_mpw_strn(struct kvf_mpw *w, const char *s, size_t len);
void kvf_mpw_bin(struct kvf_mpw *w, const void *p, size_t len);
void kvf_mpw_raw(struct kvf_mpw *w, const void *msgpack, size_t len);
void kvf_mpw_double(struct kvf_mpw *w, double v);
/* key + value in one call */
void kvf_mpw_kv_u64(struct kvf_mpw *w, const char *key, uint64_t v);
void kvf_mpw_kv_str(struct kvf_mpw *w, const char *key, const char *s);
void kvf_mpw_kv_bin(struct kvf_mpw *w, const char *key, const void *p,
                    size_t len);
void kvf_mpw_kv_bool(struct kvf_mpw *w, const char *key, bool v);
#endif
