/* Memory and the small operations: each one request, one reply. */
#include "client.h"

#include <stdlib.h>
#include <string.h>

/* ---- memory ------------------------------------------------------------- */

static bool alloc_reply(struct kvferry *h, struct kvfc_call *c,
                        struct kvfc_reply *r, struct kvferry_result *out)
{
    struct kvferry_buffer *b = &out->buffer;

    if (r->status != 0)
        return true;
    if (!kvfc_u64(r->map, "size", &b->size))
        kvfc_unreadable(out, "the daemon's reply to alloc has no size");
    else if (!kvfc_buffer_reply(h, c, r->map, b, out) &&
             out->status == -(int)KVF_UNSUPPORTED)
        kvfc_forget(h, "free", b->id);
    return true;
}

KVFC_EXPORT int kvferry_alloc_async(struct kvferry *h, uint64_t size,
                                    kvferry_done_fn fn, void *user,
                                    uint64_t *ticket)
{
    struct kvfc_req q;

    kvfc_req_begin(&q, h, "alloc", alloc_reply, fn, user);
    kvfc_req_u64(&q, "size", size);
    return kvfc_req_send(&q, 0, ticket);
}

KVFC_EXPORT int kvferry_alloc(struct kvferry *h, uint64_t size,
                              struct kvferry_buffer *out)
{
    struct kvfc_waiter w;
    unsigned attempt = 0;
    int rc;

    do {
        w.done = false;
        rc = kvferry_alloc_async(h, size, kvfc_waiter_done, &w, NULL);
        rc = kvfc_wait(h, rc, &w);
    } while (kvfc_again(h, rc, &attempt));
    if (rc == 0)
        *out = w.r.buffer;
    return rc;
}

static int one_number(struct kvferry *h, const char *op, const char *field,
                      uint64_t value)
{
    struct kvfc_waiter w;
    struct kvfc_req q;

    kvfc_req_ask(&q, h, op, kvfc_plain_reply, &w);
    kvfc_req_u64(&q, field, value);
    return kvfc_req_wait(&q, 0, &w);
}

KVFC_EXPORT int kvferry_free(struct kvferry *h, uint64_t buffer)
{
    return one_number(h, "free", "buffer", buffer);
}

static bool register_reply(struct kvferry *h, struct kvfc_call *c,
                           struct kvfc_reply *r, struct kvferry_result *out)
{
    struct kvfc_region *region;

    if (r->status != 0)
        return true;
    if (!kvfc_u64(r->map, "region", &out->number)) {
        kvfc_unreadable(out, "the daemon's reply to register has no region");
        return true;
    }
    region = calloc(1, sizeof *region);
    if (region == NULL || c->abandoned) {
        free(region);
        return true;
    }
    region->id = out->number;
    region->size = c->size;
    region->addr = c->extra;
    region->next = h->regions;
    h->regions = region;
    return true;
}

static int register_once(struct kvferry *h, int fd, uint64_t size, void *addr,
                         uint64_t *region)
{
    struct kvfc_waiter w;
    struct kvfc_req q;
    int rc;

    if (kvfc_req_ask(&q, h, "register", register_reply, &w)) {
        q.c->size = size;
        q.c->extra = addr;
    }
    kvfc_req_u64(&q, "fd", (uint64_t)fd);
    kvfc_req_u64(&q, "size", size);
    rc = kvfc_req_wait(&q, 0, &w);
    if (rc == 0)
        *region = w.r.number;
    return rc;
}

KVFC_EXPORT int kvferry_register(struct kvferry *h, int fd, uint64_t size,
                                 void *addr, uint64_t *region)
{
    unsigned attempt = 0;
    int rc;

    if (fd < 0)
        return kvfc_error(h, -KVF_INVALID, "a negative fd");
    do
        rc = register_once(h, fd, size, addr, region);
    while (kvfc_again(h, rc, &attempt));
    return rc;
}

KVFC_EXPORT int kvferry_unregister(struct kvferry *h, uint64_t region)
{
    int rc = one_number(h, "unregister", "region", region);

    if (rc != 0)
        return rc;
    for (struct kvfc_region **at = &h->regions; *at != NULL; at = &(*at)->next)
        if ((*at)->id == region) {
            struct kvfc_region *r = *at;

            *at = r->next;
            free(r);
            break;
        }
    return 0;
}

/* ---- keys and peers ----------------------------------------------------- */

KVFC_EXPORT int kvferry_ping_async(struct kvferry *h, kvferry_done_fn fn,
                                   void *user, uint64_t *ticket)
{
    struct kvfc_req q;

    kvfc_req_begin(&q, h, "ping", kvfc_plain_reply, fn, user);
    return kvfc_req_send(&q, 0, ticket);
}

KVFC_EXPORT int kvferry_ping(struct kvferry *h)
{
    struct kvfc_waiter w = {.done = false};

    return kvfc_wait(h, kvferry_ping_async(h, kvfc_waiter_done, &w, NULL), &w);
}

KVFC_EXPORT int kvferry_fail(struct kvferry *h, const char *key,
                             const char *reason)
{
    struct kvfc_waiter w;
    struct kvfc_req q;

    kvfc_req_ask(&q, h, "fail", kvfc_plain_reply, &w);
    kvfc_req_str(&q, "key", key);
    if (reason != NULL)
        kvfc_req_str(&q, "reason", reason);
    return kvfc_req_wait(&q, 0, &w);
}

static bool count_reply(struct kvferry *h, struct kvfc_call *c,
                        struct kvfc_reply *r, struct kvferry_result *out)
{
    (void)h;
    (void)c;
    if (r->status == 0)
        kvfc_u64(r->map, "count", &out->number);
    return true;
}

KVFC_EXPORT int kvferry_cleanup(struct kvferry *h, const char *request_id,
                                int from, int to, uint64_t *count)
{
    struct kvfc_waiter w;
    struct kvfc_req q;
    int rc;

    kvfc_req_ask(&q, h, "cleanup", count_reply, &w);
    kvfc_req_str(&q, "request_id", request_id);
    if (from >= 0)
        kvfc_req_u64(&q, "from", (uint64_t)from);
    if (to >= 0)
        kvfc_req_u64(&q, "to", (uint64_t)to);
    rc = kvfc_req_wait(&q, 0, &w);
    if (rc == 0 && count != NULL)
        *count = w.r.number;
    return rc;
}

KVFC_EXPORT int kvferry_peer(struct kvferry *h, uint32_t stage, uint32_t rank,
                             uint32_t replica, const char *host, uint16_t port)
{
    struct kvfc_waiter w;
    struct kvfc_req q;

    kvfc_req_ask(&q, h, "peer", kvfc_plain_reply, &w);
    kvfc_req_u64(&q, "stage", stage);
    kvfc_req_u64(&q, "rank", rank);
    kvfc_req_u64(&q, "replica", replica);
    kvfc_req_str(&q, "host", host);
    kvfc_req_u64(&q, "port", port);
    return kvfc_req_wait(&q, 0, &w);
}

KVFC_EXPORT int kvferry_drain(struct kvferry *h, uint64_t timeout_ms)
{
    struct kvfc_waiter w;
    struct kvfc_req q;

    kvfc_req_ask(&q, h, "drain", kvfc_plain_reply, &w);
    if (timeout_ms != 0)
        kvfc_req_u64(&q, "timeout_ms", timeout_ms);
    return kvfc_req_wait(&q, timeout_ms, &w);
}

/* Sent at once and not waited for: the target's own completion tells. It may be
 * called from inside a reply, so nobody looks after the session here. */
KVFC_EXPORT int kvferry_cancel(struct kvferry *h, uint64_t ticket)
{
    struct kvfc_call *c;
    size_t mark;

    if (kvfc_call_find(h, ticket) == NULL)
        return kvfc_error(h, -KVF_NOT_FOUND, "no such request is outstanding");
    c = kvfc_call_new(h, kvfc_plain_reply, NULL, NULL);
    if (c == NULL)
        return kvfc_refused(h);
    mark = kvfc_begin(h, "cancel", c->id);
    kvf_mpw_kv_u64(&h->w, "target", ticket);
    return kvfc_end(h, c, mark, 1, 0);
}

/* ---- replies as text ---------------------------------------------------- */

static bool text_reply(struct kvferry *h, struct kvfc_call *c,
                       struct kvfc_reply *r, struct kvferry_result *out)
{
    const msgpack_object *keys = r->map;

    (void)h;
    if (r->status != 0)
        return true;
    if (c->number) /* list: the array alone */
        keys = kvf_mp_get(r->map, "keys");
    out->json = keys != NULL ? kvfc_json(keys, true) : NULL;
    if (out->json == NULL)
        kvfc_unreadable(out, "the daemon's reply cannot be read");
    return true;
}

static int text(struct kvfc_req *q, struct kvfc_waiter *w, char **json)
{
    int rc = kvfc_req_wait(q, 0, w);

    *json = NULL;
    if (rc == 0 && w->r.json == NULL)
        return kvfc_error(q->h, -KVF_INTERNAL, "out of memory");
    if (rc == 0)
        *json = w->r.json;
    return rc;
}

KVFC_EXPORT int kvferry_list(struct kvferry *h, const char *prefix,
                             uint64_t limit, char **json)
{
    struct kvfc_waiter w;
    struct kvfc_req q;

    if (kvfc_req_ask(&q, h, "list", text_reply, &w))
        q.c->number = 1;
    if (prefix != NULL && prefix[0] != '\0')
        kvfc_req_str(&q, "prefix", prefix);
    if (limit != 0)
        kvfc_req_u64(&q, "limit", limit);
    return text(&q, &w, json);
}

static int plain_text(struct kvferry *h, const char *op, char **json)
{
    struct kvfc_waiter w;
    struct kvfc_req q;

    kvfc_req_ask(&q, h, op, text_reply, &w);
    return text(&q, &w, json);
}

KVFC_EXPORT int kvferry_stats(struct kvferry *h, char **json)
{
    return plain_text(h, "stats", json);
}

KVFC_EXPORT int kvferry_health(struct kvferry *h, char **json)
{
    return plain_text(h, "health", json);
}
