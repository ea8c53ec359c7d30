/* Windows: memory that other workers address, and the transfers into and out of
 * theirs.
 *
 * Happy path: one request, one reply each. Failure modes: the daemon's word, or
 * a window whose memory this session cannot map: it is unexposed at once. */
#include "client.h"

#include <string.h>

/* The region's own mapping, if the caller named one. */
static void place_region(struct kvferry *h, uint64_t region,
                         struct kvferry_window *win)
{
    win->memory = region;
    for (struct kvfc_region *r = h->regions; r != NULL; r = r->next)
        if (r->id == region)
            win->data = r->addr;
}

static bool expose_reply(struct kvferry *h, struct kvfc_call *c,
                         struct kvfc_reply *r, struct kvferry_result *out)
{
    struct kvferry_window win = {.id = 0};
    struct kvferry_buffer b;
    uint64_t region;
    bool good = true;

    if (r->status != 0)
        return true;
    if (!kvfc_u64(r->map, "window", &win.id) ||
        !kvfc_u64(r->map, "size", &win.size)) {
        kvfc_unreadable(out, "the daemon's reply to expose has no window");
        return true;
    }
    if (kvfc_u64(r->map, "region", &region)) {
        place_region(h, region, &win);
    } else {
        b.size = win.size;
        good = kvfc_buffer_reply(h, c, r->map, &b, out);
        win.data = good ? b.data : NULL;
        win.memory = good ? b.id : 0;
        kvfc_u64(r->map, "offset", &win.offset);
    }
    if (c->abandoned || !good)
        kvfc_forget(h, "unexpose", win.id);
    else
        *(struct kvferry_window *)c->extra = win;
    return true;
}

static int expose(struct kvferry *h, const char *name, const char *what,
                  uint64_t number, bool writable, struct kvferry_window *out)
{
    struct kvfc_waiter w;
    struct kvfc_req q;

    if (kvfc_req_ask(&q, h, "expose", expose_reply, &w))
        q.c->extra = out;
    kvfc_req_str(&q, "name", name);
    kvfc_req_u64(&q, what, number);
    kvfc_req_bool(&q, "writable", writable);
    return kvfc_req_wait(&q, 0, &w);
}

KVFC_EXPORT int kvferry_expose(struct kvferry *h, const char *name,
                               uint64_t size, bool writable,
                               struct kvferry_window *out)
{
    unsigned attempt = 0;
    int rc;

    do
        rc = expose(h, name, "size", size, writable, out);
    while (kvfc_again(h, rc, &attempt));
    return rc;
}

KVFC_EXPORT int kvferry_expose_region(struct kvferry *h, const char *name,
                                      uint64_t region, bool writable,
                                      struct kvferry_window *out)
{
    return expose(h, name, "region", region, writable, out);
}

KVFC_EXPORT int kvferry_unexpose(struct kvferry *h, uint64_t window)
{
    struct kvfc_waiter w;
    struct kvfc_req q;

    kvfc_req_ask(&q, h, "unexpose", kvfc_plain_reply, &w);
    kvfc_req_u64(&q, "window", window);
    return kvfc_req_wait(&q, 0, &w);
}

/* ---- write, read -------------------------------------------------------- */

static bool transfer_reply(struct kvferry *h, struct kvfc_call *c,
                           struct kvfc_reply *r, struct kvferry_result *out)
{
    (void)h;
    (void)c;
    kvfc_transfer(r, &out->transfer);
    return true;
}

/* One of the two, with everything the caller said. */
struct access {
    const char *op, *window;
    uint64_t offset;
    const struct kvferry_segment *segments;
    unsigned n;
    const struct kvferry_window_options *o;
};

static int start(struct kvferry *h, const struct access *a, kvferry_done_fn fn,
                 void *user, uint64_t *ticket)
{
    struct kvfc_req q;

    kvfc_req_begin(&q, h, a->op, transfer_reply, fn, user);
    kvfc_req_target(&q, &a->o->to);
    kvfc_req_str(&q, "window", a->window);
    kvfc_req_u64(&q, "target_offset", a->offset);
    kvfc_req_segments(&q, "segments", a->segments, a->n);
    kvfc_req_timeout(&q, a->o->timeout_ms);
    if (a->o->notify != NULL)
        kvfc_req_bin(&q, "notify", a->o->notify, a->o->notify_len);
    return kvfc_req_send(&q, kvfc_bound(a->o->timeout_ms), ticket);
}

static int wait_for(struct kvferry *h, const struct access *a,
                    struct kvferry_transfer *r)
{
    struct kvfc_waiter w = {.done = false};
    int rc = start(h, a, kvfc_waiter_done, &w, NULL);

    rc = kvfc_wait(h, rc, &w);
    if (w.done && r != NULL)
        *r = w.r.transfer;
    return rc;
}

KVFC_EXPORT int kvferry_write_async(struct kvferry *h, const char *window,
                                    uint64_t target_offset,
                                    const struct kvferry_segment *segments,
                                    unsigned n,
                                    const struct kvferry_window_options *o,
                                    kvferry_done_fn fn, void *user,
                                    uint64_t *ticket)
{
    struct access a = {"write", window, target_offset, segments, n, o};

    return start(h, &a, fn, user, ticket);
}

KVFC_EXPORT int kvferry_read_async(struct kvferry *h, const char *window,
                                   uint64_t target_offset,
                                   const struct kvferry_segment *segments,
                                   unsigned n,
                                   const struct kvferry_window_options *o,
                                   kvferry_done_fn fn, void *user,
                                   uint64_t *ticket)
{
    struct access a = {"read", window, target_offset, segments, n, o};

    return start(h, &a, fn, user, ticket);
}

KVFC_EXPORT int kvferry_write(struct kvferry *h, const char *window,
                              uint64_t target_offset,
                              const struct kvferry_segment *segments,
                              unsigned n,
                              const struct kvferry_window_options *o,
                              struct kvferry_transfer *r)
{
    struct access a = {"write", window, target_offset, segments, n, o};

    return wait_for(h, &a, r);
}

KVFC_EXPORT int kvferry_read(struct kvferry *h, const char *window,
                             uint64_t target_offset,
                             const struct kvferry_segment *segments, unsigned n,
                             const struct kvferry_window_options *o,
                             struct kvferry_transfer *r)
{
    struct access a = {"read", window, target_offset, segments, n, o};

    return wait_for(h, &a, r);
}
