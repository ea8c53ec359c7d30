/* The fields of the body of a peer message, both ways.
 *
 * Happy path: a field is looked up, its type and range checked by wire/mp.h,
 * its value stored. Failure modes: -KVF_INVALID with the field's name;
 * -KVF_INTERNAL when out of memory. The first one stays. */
#include "wire/peer_field.h"

#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

/* ---- reading ------------------------------------------------------------ */

/* What a reader of wire/mp.h returned for a field that must be there. */
static bool required(struct kvf_body *b, const char *key, int rc)
{
    if (rc <= 0)
        b->rc = rc < 0 ? rc : kvf_mp_missing(b->why, key);
    return rc > 0;
}

/* The same for one that may be absent. */
static bool optional(struct kvf_body *b, int rc)
{
    if (rc < 0)
        b->rc = rc;
    return rc > 0;
}

void kvf_body_u64_in(struct kvf_body *b, const char *key, uint64_t min,
                     uint64_t max, uint64_t *out)
{
    if (b->rc == 0)
        required(b, key, kvf_mp_u64(b->map, key, min, max, out, b->why));
}

void kvf_body_u64(struct kvf_body *b, const char *key, uint64_t *out)
{
    kvf_body_u64_in(b, key, 0, UINT64_MAX, out);
}

bool kvf_body_u64_opt(struct kvf_body *b, const char *key, uint64_t min,
                      uint64_t max, uint64_t *out)
{
    return b->rc == 0 &&
           optional(b, kvf_mp_u64(b->map, key, min, max, out, b->why));
}

void kvf_body_flag(struct kvf_body *b, const char *key, bool *out)
{
    if (b->rc == 0)
        required(b, key, kvf_mp_bool(b->map, key, out, b->why));
}

bool kvf_body_flag_opt(struct kvf_body *b, const char *key, bool *out)
{
    return b->rc == 0 && optional(b, kvf_mp_bool(b->map, key, out, b->why));
}

void kvf_body_bytes(struct kvf_body *b, const char *key, void *out, size_t len)
{
    const void *p;
    size_t n;

    if (b->rc == 0 &&
        required(b, key, kvf_mp_bin(b->map, key, len, len, &p, &n, b->why)))
        memcpy(out, p, len);
}

void kvf_body_id(struct kvf_body *b, const char *key, struct kvf_id *out)
{
    kvf_body_bytes(b, key, out->b, KVF_ID_LEN);
}

bool kvf_body_bin_opt(struct kvf_body *b, const char *key, size_t min,
                      size_t max, const void **out, size_t *len)
{
    return b->rc == 0 &&
           optional(b, kvf_mp_bin(b->map, key, min, max, out, len, b->why));
}

bool kvf_body_id_opt(struct kvf_body *b, const char *key, struct kvf_id *out)
{
    const void *p;
    size_t n;

    if (!kvf_body_bin_opt(b, key, KVF_ID_LEN, KVF_ID_LEN, &p, &n))
        return false;
    memcpy(out->b, p, KVF_ID_LEN);
    return true;
}

void kvf_body_str(struct kvf_body *b, const char *key, size_t max,
                  struct kvf_slice_str *out)
{
    if (b->rc == 0)
        required(b, key,
                 kvf_mp_str(b->map, key, 1, max, &out->p, &out->len, b->why));
}

void kvf_body_name(struct kvf_body *b, const char *key, size_t min, char *out,
                   size_t cap)
{
    const char *p = NULL;
    size_t n = 0;

    if (b->rc < 0 ||
        !required(b, key,
                  kvf_mp_str(b->map, key, min, cap - 1, &p, &n, b->why)))
        return;
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)p[i] < ' ' || p[i] == 0x7f) {
            b->rc = kvf_fail(b->why, KVF_INVALID,
                             "field %s: has a control byte", key);
            return;
        }
    memcpy(out, p, n);
    out[n] = '\0';
}

void kvf_body_text(struct kvf_body *b, const char *key, char *out, size_t cap)
{
    const msgpack_object *o = b->rc < 0 ? NULL : kvf_mp_get(b->map, key);
    bool utf8;
    size_t n;

    out[0] = '\0';
    if (o == NULL || o->type != MSGPACK_OBJECT_STR)
        return;
    n = o->via.str.size < cap - 1 ? o->via.str.size : cap - 1;
    utf8 = kvf_utf8_valid(o->via.str.ptr, n);
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)o->via.str.ptr[i];
        bool odd = c < ' ' || c == 0x7f || (c >= 0x80 && !utf8);

        out[i] = odd ? '?' : (char)c;
    }
    out[n] = '\0';
}

void kvf_body_status(struct kvf_body *b, enum kvf_status min, uint32_t *out)
{
    uint64_t v = 0;

    kvf_body_u64_in(b, "status", (uint64_t)min, KVF_STATUS_COUNT - 1, &v);
    *out = (uint32_t)v;
}

struct kvf_body kvf_body_nested(struct kvf_body *b, const char *key)
{
    struct kvf_body in = {.why = b->why, .rc = b->rc};

    if (b->rc == 0)
        required(&in, key, kvf_mp_map(b->map, key, &in.map, b->why));
    return in;
}

const msgpack_object_array *kvf_body_array(struct kvf_body *b, const char *key,
                                           size_t max)
{
    const msgpack_object *o;

    return b->rc == 0 &&
                   required(b, key, kvf_mp_array(b->map, key, max, &o, b->why))
               ? &o->via.array
               : NULL;
}

const msgpack_object_array *kvf_body_array_opt(struct kvf_body *b,
                                               const char *key, size_t max)
{
    const msgpack_object *o;

    return b->rc == 0 &&
                   optional(b, kvf_mp_array(b->map, key, max, &o, b->why)) &&
                   o->via.array.size > 0
               ? &o->via.array
               : NULL;
}

void *kvf_body_elements(struct kvf_body *b, size_t n, size_t size)
{
    void *p = calloc(n > 0 ? n : 1, size);

    if (p == NULL)
        b->rc = kvf_fail(b->why, KVF_INTERNAL, "out of memory");
    return p;
}

void kvf_body_bad_element(struct kvf_body *b, const char *key, unsigned i)
{
    b->rc = kvf_fail(b->why, KVF_INVALID, "field %s[%u]: malformed", key, i);
}

void kvf_body_space(struct kvf_body *b, struct kvf_peer_space *s)
{
    kvf_body_name(b, "path", 1, s->path, sizeof s->path);
    kvf_body_u64(b, "dev", &s->dev);
    kvf_body_u64(b, "ino", &s->ino);
    kvf_body_u64_in(b, "size", 1, INT64_MAX, &s->size);
}

/* ---- writing ------------------------------------------------------------ */

void kvf_body_put_text(struct kvf_mpw *w, const char *key, const char *text,
                       size_t cap)
{
    size_t len = strnlen(text, cap);

    for (unsigned i = 0; i < 3 && len > 0 && !kvf_utf8_valid(text, len); i++)
        len--;
    kvf_mpw_str(w, key);
    kvf_mpw_strn(w, text, len);
}

void kvf_body_put_str(struct kvf_mpw *w, const char *key,
                      const struct kvf_slice_str *s)
{
    kvf_mpw_str(w, key);
    kvf_mpw_strn(w, s->p, s->len);
}

void kvf_body_put_spaces(struct kvf_mpw *w, const struct kvf_peer_space *s,
                         unsigned n)
{
    kvf_mpw_str(w, "spaces");
    kvf_mpw_array(w, n);
    for (unsigned i = 0; i < n; i++) {
        kvf_mpw_map(w, 4);
        kvf_body_put_text(w, "path", s[i].path, sizeof s[i].path);
        kvf_mpw_kv_u64(w, "dev", s[i].dev);
        kvf_mpw_kv_u64(w, "ino", s[i].ino);
        kvf_mpw_kv_u64(w, "size", s[i].size);
    }
}
