/* put: of bytes (inline when small, else alloc, copy, put) and of memory in
 * place.
 *
 * Failure modes: the daemon's word. A buffer that was taken inside for a put
 * that then failed is given back here; the caller's own buffers stay his. */
#include "client.h"

#include <stdlib.h>
#include <string.h>

static unsigned put_fields(struct kvferry *h, const char *key,
                           const struct kvferry_put_options *o)
{
    struct kvf_mpw *w = &h->w;
    unsigned n = 1;

    kvf_mpw_kv_str(w, "key", key);
    if (o == NULL)
        return n;
    if (o->ttl_ms != 0)
        kvf_mpw_kv_u64(w, "ttl_ms", o->ttl_ms), n++;
    if (o->readers != 0)
        kvf_mpw_kv_u64(w, "readers",
                       o->readers == KVFERRY_READERS_ANY ? 0 : o->readers),
            n++;
    if (o->reject_duplicate)
        kvf_mpw_kv_str(w, "on_duplicate", "reject"), n++;
    if (o->checksum)
        kvf_mpw_kv_bool(w, "checksum", true), n++;
    if (o->notify)
        kvf_mpw_kv_bool(w, "notify", true), n++;
    if (o->meta_len != 0)
        kvf_mpw_kv_bin(w, "meta", o->meta, o->meta_len), n++;
    return n;
}

static void read_put(const msgpack_object *map, struct kvferry_put_result *r)
{
    const msgpack_object *m;
    const void *inc;
    const char *s;
    uint64_t port = 0;
    size_t len;

    kvf_mp_u64(map, "size", 0, UINT64_MAX, &r->size, NULL);
    kvf_mp_u64(map, "generation", 0, UINT64_MAX, &r->generation, NULL);
    if (kvf_mp_map(map, "metadata", &m, NULL) != 1)
        return;
    if (kvf_mp_str(m, "source_host", 0, sizeof r->metadata.source_host - 1, &s,
                   &len, NULL) == 1)
        memcpy(r->metadata.source_host, s, len);
    kvf_mp_u64(m, "source_port", 0, UINT16_MAX, &port, NULL);
    r->metadata.source_port = (uint16_t)port;
    r->metadata.data_size = r->size;
    r->metadata.generation = r->generation;
    if (kvf_mp_bin(m, "incarnation", 16, 16, &inc, &len, NULL) == 1) {
        memcpy(r->metadata.incarnation, inc, 16);
        r->metadata.has_incarnation = true;
    }
}

static bool put_reply(struct kvferry *h, struct kvfc_call *c,
                      struct kvfc_reply *r, struct kvferry_result *out)
{
    if (r->status == 0)
        read_put(r->map, &out->put);
    else if (c->number != 0 && r->map != NULL && c->epoch == h->s.epoch)
        kvfc_forget(h, "free", c->number);
    return true;
}

/* The buffer is there: copy, and publish it under the same id. */
static bool put_alloc_reply(struct kvferry *h, struct kvfc_call *c,
                            struct kvfc_reply *r, struct kvferry_result *out)
{
    uint64_t buffer, offset;
    size_t mark;

    if (r->status != 0)
        return true;
    if (kvf_mp_u64(r->map, "buffer", 0, UINT64_MAX, &buffer, NULL) != 1 ||
        kvf_mp_u64(r->map, "offset", 0, UINT64_MAX, &offset, NULL) != 1) {
        out->status = -(int)KVF_INTERNAL;
        out->message = "the daemon's reply to alloc cannot be read";
        return true;
    }
    if (c->abandoned || h->s.pool == NULL || offset > h->s.pool->size ||
        c->size > h->s.pool->size - offset) {
        kvfc_forget(h, "free", buffer);
        out->status = -(int)KVF_UNSUPPORTED;
        out->message = "this session cannot map the daemon's pool";
        return true;
    }
    memcpy(h->s.pool->base + offset, c->data, c->size);
    c->number = buffer;
    c->epoch = h->s.epoch;
    c->reply = put_reply;
    mark = kvfc_begin(h, "put", c->id);
    kvf_mpw_raw(&h->w, c->body, c->body_len);
    kvfc_write_segments(&h->w, "segments",
                        &(struct kvferry_segment){.id = buffer}, 1);
    kvf_mpw_map_end(&h->w, mark, c->body_pairs + 3);
    out->status = kvfc_call_send(h, c, NULL, 0);
    if (out->status != 0) {
        out->message = h->error;
        return true;
    }
    kvfc_call_clock(h, c, 0);
    return false;
}

static int start_inline(struct kvferry *h, struct kvfc_call *c, const char *key,
                        const void *data, size_t size,
                        const struct kvferry_put_options *o)
{
    size_t mark = kvfc_begin(h, "put", c->id);
    unsigned n = put_fields(h, key, o);
    int rc;

    kvf_mpw_map_end(&h->w, mark, n + 2);
    rc = kvfc_call_send(h, c, data, size);
    if (rc != 0) {
        kvfc_call_drop(h, c);
        return rc;
    }
    kvfc_call_clock(h, c, 0);
    return 0;
}

static int start_large(struct kvferry *h, struct kvfc_call *c, const char *key,
                       const void *data, size_t size,
                       const struct kvferry_put_options *o)
{
    size_t mark;

    kvf_mpw_reset(&h->w);
    c->body_pairs = put_fields(h, key, o);
    c->body_len = h->w.buf.size;
    c->body = h->w.failed ? NULL : malloc(c->body_len);
    if (c->body == NULL) {
        kvfc_call_drop(h, c);
        return kvfc_error(h, -KVF_INTERNAL, "out of memory");
    }
    memcpy(c->body, h->w.buf.data, c->body_len);
    c->data = data;
    c->size = size;
    c->reply = put_alloc_reply;
    mark = kvfc_begin(h, "alloc", c->id);
    kvf_mpw_kv_u64(&h->w, "size", size);
    return kvfc_end(h, c, mark, 1, 0);
}

KVFC_EXPORT int kvferry_put_async(struct kvferry *h, const char *key,
                                  const void *data, size_t size,
                                  const struct kvferry_put_options *o,
                                  kvferry_done_fn fn, void *user,
                                  uint64_t *ticket)
{
    struct kvfc_call *c;
    uint64_t id;
    int rc;

    if (size == 0)
        return kvfc_error(h, -KVF_INVALID, "nothing to put: size 0");
    kvfc_ready(h);
    c = kvfc_call_new(h, put_reply, fn, user);
    if (c == NULL)
        return kvfc_refused(h);
    id = c->id;
    rc = size <= h->info.inline_max || !h->s.open
             ? start_inline(h, c, key, data, size, o)
             : start_large(h, c, key, data, size, o);
    if (rc == 0 && ticket != NULL)
        *ticket = id;
    return rc;
}

KVFC_EXPORT int
kvferry_put_segments_async(struct kvferry *h, const char *key,
                           const struct kvferry_segment *segments, unsigned n,
                           const struct kvferry_put_options *o,
                           kvferry_done_fn fn, void *user, uint64_t *ticket)
{
    struct kvfc_call *c;
    size_t mark;
    uint64_t id;
    int rc;

    kvfc_ready(h);
    c = kvfc_call_new(h, put_reply, fn, user);
    if (c == NULL)
        return kvfc_refused(h);
    id = c->id;
    mark = kvfc_begin(h, "put", c->id);
    rc = (int)put_fields(h, key, o);
    kvfc_write_segments(&h->w, "segments", segments, n);
    rc = kvfc_end(h, c, mark, (unsigned)rc + 1, 0);
    if (rc == 0 && ticket != NULL)
        *ticket = id;
    return rc;
}

KVFC_EXPORT int kvferry_put_segments(struct kvferry *h, const char *key,
                                     const struct kvferry_segment *segments,
                                     unsigned n,
                                     const struct kvferry_put_options *o,
                                     struct kvferry_put_result *r)
{
    struct kvfc_waiter w = {.done = false};
    int rc = kvferry_put_segments_async(h, key, segments, n, o,
                                        kvfc_waiter_done, &w, NULL);

    rc = kvfc_wait(h, rc, &w);
    if (rc == 0 && r != NULL)
        *r = w.r.put;
    return rc;
}

KVFC_EXPORT int kvferry_put(struct kvferry *h, const char *key,
                            const void *data, size_t size,
                            const struct kvferry_put_options *o,
                            struct kvferry_put_result *r)
{
    int rc = 0;

    /* STALE: the daemon was restarted while we were away. Nothing was
     * published, and the second attempt begins with a new session. */
    for (int attempt = 0; attempt < 2; attempt++) {
        struct kvfc_waiter w = {.done = false};

        rc = kvferry_put_async(h, key, data, size, o, kvfc_waiter_done, &w,
                               NULL);
        rc = kvfc_wait(h, rc, &w);
        if (rc == 0 && r != NULL)
            *r = w.r.put;
        if (rc != -(int)KVF_STALE)
            break;
    }
    return rc;
}
