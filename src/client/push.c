/* push: a put whose place is another worker's daemon.
 *
 * Happy path: as put.c (inline when small, else alloc, copy, push); the buffer
 * that was taken inside is given back when the answer is there, whatever it is.
 * Failure modes: the daemon's word, which may be the receiver's. */
#include "client.h"

void kvfc_transfer(const struct kvfc_reply *r, struct kvferry_transfer *out)
{
    uint64_t attempts = 0;

    if (r->map == NULL)
        return;
    kvf_mp_u64(r->map, "attempts", 0, UINT32_MAX, &attempts, NULL);
    out->attempts = (unsigned)attempts;
    if (r->status != 0)
        return;
    kvfc_u64(r->map, "size", &out->size);
    kvfc_u64(r->map, "generation", &out->generation);
    kvfc_text(r->map, "transport", out->transport, sizeof out->transport);
    kvfc_timing(r->map, &out->timing);
}

static bool push_reply(struct kvferry *h, struct kvfc_call *c,
                       struct kvfc_reply *r, struct kvferry_result *out)
{
    kvfc_transfer(r, &out->transfer);
    if (c->number != 0 && r->map != NULL && c->epoch == h->s.epoch)
        kvfc_forget(h, "free", c->number);
    return true;
}

static struct kvfc_publish as_put(const char *key,
                                  const struct kvferry_push_options *o)
{
    return (struct kvfc_publish){.op = "push",
                                 .reply = push_reply,
                                 .key = key,
                                 .put = &o->put,
                                 .to = &o->to,
                                 .timeout_ms = o->timeout_ms};
}

KVFC_EXPORT int kvferry_push_async(struct kvferry *h, const char *key,
                                   const void *data, size_t size,
                                   const struct kvferry_push_options *o,
                                   kvferry_done_fn fn, void *user,
                                   uint64_t *ticket)
{
    struct kvfc_publish p = as_put(key, o);

    return kvfc_publish(h, &p, data, size, fn, user, ticket);
}

KVFC_EXPORT int
kvferry_push_segments_async(struct kvferry *h, const char *key,
                            const struct kvferry_segment *segments, unsigned n,
                            const struct kvferry_push_options *o,
                            kvferry_done_fn fn, void *user, uint64_t *ticket)
{
    struct kvfc_publish p = as_put(key, o);

    return kvfc_publish_segments(h, &p, segments, n, fn, user, ticket);
}

KVFC_EXPORT int kvferry_push_segments(struct kvferry *h, const char *key,
                                      const struct kvferry_segment *segments,
                                      unsigned n,
                                      const struct kvferry_push_options *o,
                                      struct kvferry_transfer *r)
{
    struct kvfc_waiter w = {.done = false};
    int rc = kvferry_push_segments_async(h, key, segments, n, o,
                                         kvfc_waiter_done, &w, NULL);

    rc = kvfc_wait(h, rc, &w);
    if (w.done && r != NULL)
        *r = w.r.transfer;
    return rc;
}

KVFC_EXPORT int kvferry_push(struct kvferry *h, const char *key,
                             const void *data, size_t size,
                             const struct kvferry_push_options *o,
                             struct kvferry_transfer *r)
{
    struct kvfc_waiter w;
    unsigned attempt = 0;
    int rc;

    do {
        w.done = false;
        rc = kvferry_push_async(h, key, data, size, o, kvfc_waiter_done, &w,
                                NULL);
        rc = kvfc_wait(h, rc, &w);
    } while (kvfc_again(h, rc, &attempt));
    if (w.done && r != NULL)
        *r = w.r.transfer;
    return rc;
}
