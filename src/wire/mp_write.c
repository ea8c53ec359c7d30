/* Writing MessagePack into one growing buffer. The only failure is a lack of
 * memory (or a map of more pairs than its head can say), which sticks in
 * `failed` and is looked at once, at the end. */
#include "wire/mp.h"

#include <string.h>

#include "base/utf8.h"

#define MAP16_HEAD 3u

static void note(struct kvf_mpw *w, int rc)
{
    if (rc != 0)
        w->failed = true;
}

void kvf_mpw_init(struct kvf_mpw *w)
{
    msgpack_sbuffer_init(&w->buf);
    msgpack_packer_init(&w->pk, &w->buf, msgpack_sbuffer_write);
    w->failed = false;
}

void kvf_mpw_fini(struct kvf_mpw *w)
{
    msgpack_sbuffer_destroy(&w->buf);
    msgpack_sbuffer_init(&w->buf);
}

void kvf_mpw_reset(struct kvf_mpw *w)
{
    msgpack_sbuffer_clear(&w->buf);
    w->pk.data = &w->buf; /* the struct may have been moved */
    w->failed = false;
}

void kvf_mpw_raw(struct kvf_mpw *w, const void *msgpack, size_t len)
{
    if (!w->failed)
        note(w, msgpack_sbuffer_write(&w->buf, msgpack, len));
}

size_t kvf_mpw_map_begin(struct kvf_mpw *w)
{
    static const char head[MAP16_HEAD] = {(char)0xde, 0, 0};
    size_t mark = w->buf.size;

    kvf_mpw_raw(w, head, sizeof head);
    return mark;
}

void kvf_mpw_map_end(struct kvf_mpw *w, size_t mark, unsigned pairs)
{
    if (pairs > UINT16_MAX)
        w->failed = true;
    if (w->failed)
        return;
    kvf_put_u16((uint8_t *)w->buf.data + mark + 1, (uint16_t)pairs);
}

void kvf_mpw_map(struct kvf_mpw *w, unsigned pairs)
{
    if (!w->failed)
        note(w, msgpack_pack_map(&w->pk, pairs));
}

void kvf_mpw_array(struct kvf_mpw *w, unsigned items)
{
    if (!w->failed)
        note(w, msgpack_pack_array(&w->pk, items));
}

void kvf_mpw_nil(struct kvf_mpw *w)
{
    if (!w->failed)
        note(w, msgpack_pack_nil(&w->pk));
}

void kvf_mpw_bool(struct kvf_mpw *w, bool v)
{
    if (!w->failed)
        note(w, v ? msgpack_pack_true(&w->pk) : msgpack_pack_false(&w->pk));
}

void kvf_mpw_u64(struct kvf_mpw *w, uint64_t v)
{
    if (!w->failed)
        note(w, msgpack_pack_uint64(&w->pk, v));
}

void kvf_mpw_double(struct kvf_mpw *w, double v)
{
    if (!w->failed)
        note(w, msgpack_pack_double(&w->pk, v));
}

void kvf_mpw_strn(struct kvf_mpw *w, const char *s, size_t len)
{
    if (!w->failed)
        note(w, msgpack_pack_str(&w->pk, len));
    kvf_mpw_raw(w, s, len);
}

void kvf_mpw_str(struct kvf_mpw *w, const char *s)
{
    size_t len = strlen(s);
    size_t good = kvf_utf8_prefix(s, len);

    if (!w->failed)
        note(w, msgpack_pack_str(&w->pk, len));
    for (;;) {
        kvf_mpw_raw(w, s, good);
        if (good == len)
            return;
        kvf_mpw_raw(w, "?", 1);
        s += good + 1;
        len -= good + 1;
        good = kvf_utf8_prefix(s, len);
    }
}

void kvf_mpw_bin(struct kvf_mpw *w, const void *p, size_t len)
{
    if (!w->failed)
        note(w, msgpack_pack_bin(&w->pk, len));
    kvf_mpw_raw(w, p, len);
}

void kvf_mpw_kv_u64(struct kvf_mpw *w, const char *key, uint64_t v)
{
    kvf_mpw_str(w, key);
    kvf_mpw_u64(w, v);
}

void kvf_mpw_kv_str(struct kvf_mpw *w, const char *key, const char *s)
{
    kvf_mpw_str(w, key);
    kvf_mpw_str(w, s);
}

void kvf_mpw_kv_bin(struct kvf_mpw *w, const char *key, const void *p,
                    size_t len)
{
    kvf_mpw_str(w, key);
    kvf_mpw_bin(w, p, len);
}

void kvf_mpw_kv_bool(struct kvf_mpw *w, const char *key, bool v)
{
    kvf_mpw_str(w, key);
    kvf_mpw_bool(w, v);
}
