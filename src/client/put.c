/* put: of bytes (inline when small, else alloc, copy, put) and of memory in
 * place. push.c sends its own request the same ways.
 *
 * Failure modes: the daemon's word. A buffer that was taken inside for a put
 * that then failed is given back here; the caller's own buffers stay his. */
#include "client.h"

#include <stdlib.h>
#include <string.h>

static void fields(struct kvfc_req *q, const struct kvfc_publish *p)
{
    const struct kvferry_put_options *o = p->put;

    kvfc_req_str(q, "key", p->key);
    if (p->to != NULL)
        kvfc_req_target(q, p->to);
    kvfc_req_timeout(q, p->timeout_ms);
    if (o == NULL)
        return;
    if (o->ttl_ms != 0)
        kvfc_req_u64(q, "ttl_ms", o->ttl_ms);
    if (o->readers != 0)
        kvfc_req_u64(q, "readers",
                     o->readers == KVFERRY_READERS_ANY ? 0 : o->readers);
    if (o->reject_duplicate)
        kvfc_req_str(q, "on_duplicate", "reject");
    if (o->checksum)
        kvfc_req_bool(q, "checksum", true);
    if (o->notify)
        kvfc_req_bool(q, "notify", true);
    if (o->meta_len != 0)
        kvfc_req_bin(q, "meta", o->meta, o->meta_len);
}

static void read_put(const msgpack_object *map, struct kvferry_put_result *r)
{
    const msgpack_object *m;
    const void *inc;
    uint64_t port = 0;
    size_t len;

    kvfc_u64(map, "size", &r->size);
    kvfc_u64(map, "generation", &r->generation);
    if (kvf_mp_map(map, "metadata", &m, NULL) != 1)
        return;
    kvfc_text(m, "source_host", r->metadata.source_host,
              sizeof r->metadata.source_host);
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
    struct kvferry_buffer b = {.size = c->size};
    struct kvfc_req q = {.h = h, .c = c, .pairs = c->body_pairs};

    if (r->status != 0)
        return true;
    if (!kvfc_buffer_reply(h, c, r->map, &b, out)) {
        if (out->status == -(int)KVF_UNSUPPORTED)
            kvfc_forget(h, "free", b.id);
        return true;
    }
    memcpy(b.data, c->data, c->size);
    c->number = b.id;
    c->epoch = h->s.epoch;
    c->reply = c->then;
    q.mark = kvfc_begin(h, c->op, c->id);
    kvf_mpw_raw(&h->w, c->body, c->body_len);
    kvfc_req_segments(&q, "segments", &(struct kvferry_segment){.id = b.id}, 1);
    kvf_mpw_map_end(&h->w, q.mark, q.pairs + 2);
    out->status = kvfc_call_send(h, c, NULL, 0);
    if (out->status != 0) {
        kvfc_forget(h, "free", b.id);
        out->message = h->error;
        return true;
    }
    kvfc_call_clock(h, c, c->timeout_ms);
    return false;
}

/* The fields are written first, and kept until the buffer is there: they may
 * point to what is the caller's only until we return. */
static bool keep_fields(struct kvfc_req *q, const struct kvfc_publish *p)
{
    struct kvf_mpw *w = &q->h->w;
    struct kvfc_call *c = q->c;

    kvf_mpw_reset(w);
    fields(q, p);
    c->body_pairs = q->pairs;
    c->body_len = w->buf.size;
    c->body = w->failed ? NULL : malloc(c->body_len);
    if (c->body == NULL)
        return false;
    memcpy(c->body, w->buf.data, c->body_len);
    return true;
}

/* A put is answered at once; a push when its own timeout is over, or the one of
 * the daemon, which we do not know. */
static uint64_t clock_of(const struct kvfc_publish *p)
{
    return p->to == NULL ? 0 : kvfc_bound(p->timeout_ms);
}

static int through_the_pool(struct kvferry *h, const struct kvfc_publish *p,
                            const void *data, size_t size, kvferry_done_fn fn,
                            void *user, uint64_t *ticket)
{
    struct kvfc_req q;

    if (!kvfc_req_begin(&q, h, p->op, put_alloc_reply, fn, user))
        return kvfc_refused(h);
    q.c->data = data;
    q.c->size = size;
    q.c->op = p->op;
    q.c->then = p->reply;
    q.c->timeout_ms = clock_of(p);
    if (!keep_fields(&q, p)) {
        kvfc_call_drop(h, q.c);
        return kvfc_error(h, -KVF_INTERNAL, "out of memory");
    }
    q.mark = kvfc_begin(h, "alloc", q.c->id);
    q.pairs = 0;
    kvfc_req_u64(&q, "size", size);
    return kvfc_req_send(&q, 0, ticket);
}

int kvfc_publish(struct kvferry *h, const struct kvfc_publish *p,
                 const void *data, size_t size, kvferry_done_fn fn, void *user,
                 uint64_t *ticket)
{
    struct kvfc_req q;

    if (size == 0)
        return kvfc_error(h, -KVF_INVALID, "nothing to %s: size 0", p->op);
    kvfc_ready(h);
    if (size > h->info.inline_max && h->s.open)
        return through_the_pool(h, p, data, size, fn, user, ticket);
    kvfc_req_begin(&q, h, p->op, p->reply, fn, user);
    fields(&q, p);
    return kvfc_req_send_with(&q, data, size, clock_of(p), ticket);
}

int kvfc_publish_segments(struct kvferry *h, const struct kvfc_publish *p,
                          const struct kvferry_segment *segments, unsigned n,
                          kvferry_done_fn fn, void *user, uint64_t *ticket)
{
    struct kvfc_req q;

    kvfc_req_begin(&q, h, p->op, p->reply, fn, user);
    fields(&q, p);
    kvfc_req_segments(&q, "segments", segments, n);
    return kvfc_req_send(&q, clock_of(p), ticket);
}

KVFC_EXPORT int kvferry_put_async(struct kvferry *h, const char *key,
                                  const void *data, size_t size,
                                  const struct kvferry_put_options *o,
                                  kvferry_done_fn fn, void *user,
                                  uint64_t *ticket)
{
    struct kvfc_publish p = {
        .op = "put", .reply = put_reply, .key = key, .put = o};

    return kvfc_publish(h, &p, data, size, fn, user, ticket);
}

KVFC_EXPORT int
kvferry_put_segments_async(struct kvferry *h, const char *key,
                           const struct kvferry_segment *segments, unsigned n,
                           const struct kvferry_put_options *o,
                           kvferry_done_fn fn, void *user, uint64_t *ticket)
{
    struct kvfc_publish p = {
        .op = "put", .reply = put_reply, .key = key, .put = o};

    return kvfc_publish_segments(h, &p, segments, n, fn, user, ticket);
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
    struct kvfc_waiter w;
    int rc = 0;

    /* STALE: the daemon was restarted while we were away. Nothing was
     * published, and the second attempt begins with a new session. */
    for (int attempt = 0; attempt < 2; attempt++) {
        w.done = false;
        rc = kvferry_put_async(h, key, data, size, o, kvfc_waiter_done, &w,
                               NULL);
        rc = kvfc_wait(h, rc, &w);
        if (rc != -(int)KVF_STALE)
            break;
    }
    if (rc == 0 && r != NULL)
        *r = w.r.put;
    return rc;
}
