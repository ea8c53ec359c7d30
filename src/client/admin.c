/* Memory and the small operations: each one request, one reply. */
#include "client.h"

#include <stdlib.h>
#include <string.h>

static struct kvfc_call *start(struct kvferry *h, kvfc_reply_fn reply,
                               struct kvfc_waiter *w)
{
    w->done = false;
    kvfc_ready(h);
    return kvfc_call_new(h, reply, kvfc_waiter_done, w);
}

/* ---- memory ------------------------------------------------------------- */

static bool alloc_reply(struct kvferry *h, struct kvfc_call *c,
                        struct kvfc_reply *r, struct kvferry_result *out)
{
    uint64_t offset;
    struct kvferry_buffer *b = &out->buffer;

    if (r->status != 0)
        return true;
    if (kvf_mp_u64(r->map, "buffer", 0, UINT64_MAX, &b->id, NULL) != 1 ||
        kvf_mp_u64(r->map, "offset", 0, UINT64_MAX, &offset, NULL) != 1 ||
        kvf_mp_u64(r->map, "size", 0, UINT64_MAX, &b->size, NULL) != 1) {
        out->status = -(int)KVF_INTERNAL;
        out->message = "the daemon's reply to alloc cannot be read";
    } else if (c->abandoned || h->s.pool == NULL || offset > h->s.pool->size ||
               b->size > h->s.pool->size - offset) {
        kvfc_forget(h, "free", b->id);
        out->status = -(int)KVF_UNSUPPORTED;
        out->message = "this session cannot map the daemon's pool";
    } else {
        b->data = h->s.pool->base + offset;
    }
    return true;
}

KVFC_EXPORT int kvferry_alloc_async(struct kvferry *h, uint64_t size,
                                    kvferry_done_fn fn, void *user,
                                    uint64_t *ticket)
{
    struct kvfc_call *c;
    size_t mark;
    uint64_t id;
    int rc;

    kvfc_ready(h);
    c = kvfc_call_new(h, alloc_reply, fn, user);
    if (c == NULL)
        return kvfc_refused(h);
    id = c->id;
    mark = kvfc_begin(h, "alloc", c->id);
    kvf_mpw_kv_u64(&h->w, "size", size);
    rc = kvfc_end(h, c, mark, 1, 0);
    if (rc == 0 && ticket != NULL)
        *ticket = id;
    return rc;
}

KVFC_EXPORT int kvferry_alloc(struct kvferry *h, uint64_t size,
                              struct kvferry_buffer *out)
{
    int rc = 0;

    /* STALE: the daemon was restarted between our look and its reply. */
    for (int attempt = 0; attempt < 2; attempt++) {
        struct kvfc_waiter w = {.done = false};

        rc = kvferry_alloc_async(h, size, kvfc_waiter_done, &w, NULL);
        rc = kvfc_wait(h, rc, &w);
        if (rc == 0)
            *out = w.r.buffer;
        if (rc != -(int)KVF_STALE || !h->rehello)
            break;
    }
    return rc;
}

static int one_number(struct kvferry *h, const char *op, const char *field,
                      uint64_t value)
{
    struct kvfc_waiter w;
    struct kvfc_call *c = start(h, kvfc_plain_reply, &w);
    size_t mark;

    if (c == NULL)
        return kvfc_refused(h);
    mark = kvfc_begin(h, op, c->id);
    kvf_mpw_kv_u64(&h->w, field, value);
    return kvfc_wait(h, kvfc_end(h, c, mark, 1, 0), &w);
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
    if (kvf_mp_u64(r->map, "region", 0, UINT64_MAX, &out->number, NULL) != 1) {
        out->status = -(int)KVF_INTERNAL;
        out->message = "the daemon's reply to register cannot be read";
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
    struct kvfc_call *c;
    size_t mark;
    int rc;

    c = start(h, register_reply, &w);
    if (c == NULL)
        return kvfc_refused(h);
    c->size = size;
    c->extra = addr;
    mark = kvfc_begin(h, "register", c->id);
    kvf_mpw_kv_u64(&h->w, "fd", (uint64_t)fd);
    kvf_mpw_kv_u64(&h->w, "size", size);
    rc = kvfc_wait(h, kvfc_end(h, c, mark, 2, 0), &w);
    if (rc == 0)
        *region = w.r.number;
    return rc;
}

KVFC_EXPORT int kvferry_register(struct kvferry *h, int fd, uint64_t size,
                                 void *addr, uint64_t *region)
{
    int rc;

    if (fd < 0)
        return kvfc_error(h, -KVF_INVALID, "a negative fd");
    rc = register_once(h, fd, size, addr, region);
    if (rc == -(int)KVF_STALE && h->rehello) /* as kvferry_alloc */
        rc = register_once(h, fd, size, addr, region);
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
    struct kvfc_call *c;
    uint64_t id;
    int rc;

    kvfc_ready(h);
    c = kvfc_call_new(h, kvfc_plain_reply, fn, user);
    if (c == NULL)
        return kvfc_refused(h);
    id = c->id;
    rc = kvfc_end(h, c, kvfc_begin(h, "ping", c->id), 0, 0);
    if (rc == 0 && ticket != NULL)
        *ticket = id;
    return rc;
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
    struct kvfc_call *c = start(h, kvfc_plain_reply, &w);
    size_t mark;

    if (c == NULL)
        return kvfc_refused(h);
    mark = kvfc_begin(h, "fail", c->id);
    kvf_mpw_kv_str(&h->w, "key", key);
    if (reason != NULL)
        kvf_mpw_kv_str(&h->w, "reason", reason);
    return kvfc_wait(h, kvfc_end(h, c, mark, 1 + (reason != NULL), 0), &w);
}

static bool count_reply(struct kvferry *h, struct kvfc_call *c,
                        struct kvfc_reply *r, struct kvferry_result *out)
{
    (void)h;
    (void)c;
    if (r->status == 0)
        kvf_mp_u64(r->map, "count", 0, UINT64_MAX, &out->number, NULL);
    return true;
}

KVFC_EXPORT int kvferry_cleanup(struct kvferry *h, const char *request_id,
                                int from, int to, uint64_t *count)
{
    struct kvfc_waiter w;
    struct kvfc_call *c = start(h, count_reply, &w);
    unsigned n = 1;
    size_t mark;
    int rc;

    if (c == NULL)
        return kvfc_refused(h);
    mark = kvfc_begin(h, "cleanup", c->id);
    kvf_mpw_kv_str(&h->w, "request_id", request_id);
    if (from >= 0)
        kvf_mpw_kv_u64(&h->w, "from", (uint64_t)from), n++;
    if (to >= 0)
        kvf_mpw_kv_u64(&h->w, "to", (uint64_t)to), n++;
    rc = kvfc_wait(h, kvfc_end(h, c, mark, n, 0), &w);
    if (rc == 0 && count != NULL)
        *count = w.r.number;
    return rc;
}

KVFC_EXPORT int kvferry_peer(struct kvferry *h, uint32_t stage, uint32_t rank,
                             uint32_t replica, const char *host, uint16_t port)
{
    struct kvfc_waiter w;
    struct kvfc_call *c = start(h, kvfc_plain_reply, &w);
    size_t mark;

    if (c == NULL)
        return kvfc_refused(h);
    mark = kvfc_begin(h, "peer", c->id);
    kvf_mpw_kv_u64(&h->w, "stage", stage);
    kvf_mpw_kv_u64(&h->w, "rank", rank);
    kvf_mpw_kv_u64(&h->w, "replica", replica);
    kvf_mpw_kv_str(&h->w, "host", host);
    kvf_mpw_kv_u64(&h->w, "port", port);
    return kvfc_wait(h, kvfc_end(h, c, mark, 5, 0), &w);
}

KVFC_EXPORT int kvferry_drain(struct kvferry *h, uint64_t timeout_ms)
{
    struct kvfc_waiter w;
    struct kvfc_call *c = start(h, kvfc_plain_reply, &w);
    size_t mark;

    if (c == NULL)
        return kvfc_refused(h);
    mark = kvfc_begin(h, "drain", c->id);
    if (timeout_ms != 0)
        kvf_mpw_kv_u64(&h->w, "timeout_ms", timeout_ms);
    return kvfc_wait(h, kvfc_end(h, c, mark, timeout_ms != 0, timeout_ms), &w);
}

/* Sent at once and not waited for: the target's own completion tells. */
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
    if (out->json == NULL) {
        out->status = -(int)KVF_INTERNAL;
        out->message = "the daemon's reply cannot be read";
    }
    return true;
}

static int text(struct kvferry *h, struct kvfc_waiter *w, int rc, char **json)
{
    rc = kvfc_wait(h, rc, w);
    *json = NULL;
    if (rc == 0 && w->r.json == NULL)
        return kvfc_error(h, -KVF_INTERNAL, "out of memory");
    if (rc == 0)
        *json = w->r.json;
    return rc;
}

KVFC_EXPORT int kvferry_list(struct kvferry *h, const char *prefix,
                             uint64_t limit, char **json)
{
    struct kvfc_waiter w;
    struct kvfc_call *c = start(h, text_reply, &w);
    unsigned n = 0;
    size_t mark;

    if (c == NULL)
        return kvfc_refused(h);
    c->number = 1;
    mark = kvfc_begin(h, "list", c->id);
    if (prefix != NULL && prefix[0] != '\0')
        kvf_mpw_kv_str(&h->w, "prefix", prefix), n++;
    if (limit != 0)
        kvf_mpw_kv_u64(&h->w, "limit", limit), n++;
    return text(h, &w, kvfc_end(h, c, mark, n, 0), json);
}

static int plain_text(struct kvferry *h, const char *op, char **json)
{
    struct kvfc_waiter w;
    struct kvfc_call *c = start(h, text_reply, &w);

    if (c == NULL)
        return kvfc_refused(h);
    return text(h, &w, kvfc_end(h, c, kvfc_begin(h, op, c->id), 0, 0), json);
}

KVFC_EXPORT int kvferry_stats(struct kvferry *h, char **json)
{
    return plain_text(h, "stats", json);
}

KVFC_EXPORT int kvferry_health(struct kvferry *h, char **json)
{
    return plain_text(h, "health", json);
}
