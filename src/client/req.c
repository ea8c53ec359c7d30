/* One request from its first byte to its answer: what every call of the API
 * does the same way.
 *
 * Happy path: begin, fields, send (or wait, for the blocking face). Failure
 * modes: a request that cannot be begun swallows its fields, and its refusal
 * comes out of send or wait, so that callers check once. */
#include "client.h"

#include <stdlib.h>
#include <string.h>

/* ---- writing ------------------------------------------------------------ */

bool kvfc_req_begin(struct kvfc_req *q, struct kvferry *h, const char *op,
                    kvfc_reply_fn reply, kvferry_done_fn done, void *user)
{
    kvfc_ready(h);
    q->h = h;
    q->pairs = 0;
    q->c = kvfc_call_new(h, reply, done, user);
    q->mark = kvfc_begin(h, op, q->c != NULL ? q->c->id : 0);
    return q->c != NULL;
}

bool kvfc_req_ask(struct kvfc_req *q, struct kvferry *h, const char *op,
                  kvfc_reply_fn reply, struct kvfc_waiter *w)
{
    w->done = false;
    return kvfc_req_begin(q, h, op, reply, kvfc_waiter_done, w);
}

void kvfc_req_u64(struct kvfc_req *q, const char *name, uint64_t v)
{
    kvf_mpw_kv_u64(&q->h->w, name, v);
    q->pairs++;
}

void kvfc_req_str(struct kvfc_req *q, const char *name, const char *s)
{
    kvf_mpw_kv_str(&q->h->w, name, s);
    q->pairs++;
}

void kvfc_req_bool(struct kvfc_req *q, const char *name, bool v)
{
    kvf_mpw_kv_bool(&q->h->w, name, v);
    q->pairs++;
}

void kvfc_req_bin(struct kvfc_req *q, const char *name, const void *p,
                  size_t len)
{
    kvf_mpw_kv_bin(&q->h->w, name, p, len);
    q->pairs++;
}

void kvfc_req_timeout(struct kvfc_req *q, uint64_t timeout_ms)
{
    if (timeout_ms != 0)
        kvfc_req_u64(q, "timeout_ms",
                     timeout_ms == KVFERRY_NO_TIMEOUT ? 0 : timeout_ms);
}

uint64_t kvfc_bound(uint64_t timeout_ms)
{
    return timeout_ms == 0 ? KVFERRY_NO_TIMEOUT : timeout_ms;
}

void kvfc_req_segments(struct kvfc_req *q, const char *name,
                       const struct kvferry_segment *s, unsigned n)
{
    struct kvf_mpw *w = &q->h->w;

    q->pairs++;
    kvf_mpw_str(w, name);
    kvf_mpw_array(w, n);
    for (unsigned i = 0; i < n; i++) {
        kvf_mpw_map(w, 2 + (s[i].length != 0));
        kvf_mpw_kv_u64(w, s[i].is_region ? "region" : "buffer", s[i].id);
        kvf_mpw_kv_u64(w, "offset", s[i].offset);
        if (s[i].length != 0)
            kvf_mpw_kv_u64(w, "length", s[i].length);
    }
}

void kvfc_req_worker(struct kvfc_req *q, const char *name, unsigned fields,
                     uint32_t stage, uint32_t rank, uint32_t replica)
{
    struct kvf_mpw *w = &q->h->w;

    q->pairs++;
    kvf_mpw_str(w, name);
    kvf_mpw_map(w, fields > 3 ? 3 : fields);
    kvf_mpw_kv_u64(w, "stage", stage);
    if (fields > 1)
        kvf_mpw_kv_u64(w, "rank", rank);
    if (fields > 2)
        kvf_mpw_kv_u64(w, "replica", replica);
}

void kvfc_req_place(struct kvfc_req *q, const char *name, const char *host,
                    uint16_t port)
{
    struct kvf_mpw *w = &q->h->w;

    q->pairs++;
    kvf_mpw_str(w, name);
    kvf_mpw_map(w, 2);
    kvf_mpw_kv_str(w, "host", host);
    kvf_mpw_kv_u64(w, "port", port);
}

int kvfc_req_send_with(struct kvfc_req *q, const void *payload, size_t len,
                       uint64_t timeout_ms, uint64_t *ticket)
{
    struct kvferry *h = q->h;
    uint64_t id;
    int rc;

    if (q->c == NULL)
        return kvfc_refused(h);
    id = q->c->id;
    kvf_mpw_map_end(&h->w, q->mark, q->pairs + 2);
    rc = kvfc_call_send(h, q->c, payload, len);
    if (rc != 0) {
        kvfc_call_drop(h, q->c);
        return rc;
    }
    kvfc_call_clock(h, q->c, timeout_ms);
    if (ticket != NULL)
        *ticket = id;
    return 0;
}

int kvfc_req_send(struct kvfc_req *q, uint64_t timeout_ms, uint64_t *ticket)
{
    return kvfc_req_send_with(q, NULL, 0, timeout_ms, ticket);
}

void kvfc_req_target(struct kvfc_req *q, const struct kvferry_target *to)
{
    if (to->to_fields != 0)
        kvfc_req_worker(q, "to", to->to_fields, to->stage, to->rank,
                        to->replica);
    else if (to->host != NULL)
        kvfc_req_place(q, "target", to->host, to->port);
}

/* ---- waiting ------------------------------------------------------------ */

void kvfc_waiter_done(struct kvferry *h, void *user,
                      const struct kvferry_result *r)
{
    struct kvfc_waiter *w = user;

    (void)h;
    w->r = *r;
    w->r.message = "";
    if (r->json != NULL)
        w->r.json = strdup(r->json);
    w->done = true;
}

int kvfc_wait(struct kvferry *h, int rc, struct kvfc_waiter *w)
{
    if (rc != 0)
        return rc;
    while (!w->done)
        if (kvferry_wait(h, -1) < 0)
            break;
    return w->r.status;
}

int kvfc_req_wait(struct kvfc_req *q, uint64_t timeout_ms,
                  struct kvfc_waiter *w)
{
    return kvfc_wait(q->h, kvfc_req_send(q, timeout_ms, NULL), w);
}

bool kvfc_again(struct kvferry *h, int rc, unsigned *attempt)
{
    return rc == -(int)KVF_STALE && h->rehello && (*attempt)++ == 0;
}

/* ---- reading ------------------------------------------------------------ */

bool kvfc_plain_reply(struct kvferry *h, struct kvfc_call *c,
                      struct kvfc_reply *r, struct kvferry_result *out)
{
    (void)h;
    (void)c;
    (void)r;
    (void)out;
    return true;
}

bool kvfc_u64(const msgpack_object *map, const char *name, uint64_t *out)
{
    return kvf_mp_u64(map, name, 0, UINT64_MAX, out, NULL) == 1;
}

void kvfc_text(const msgpack_object *map, const char *name, char *out,
               size_t cap)
{
    const char *s;
    size_t len;

    if (kvf_mp_str(map, name, 0, cap - 1, &s, &len, NULL) == 1) {
        memcpy(out, s, len);
        out[len] = '\0';
    }
}

void kvfc_timing(const msgpack_object *map, struct kvferry_timing *out)
{
    const msgpack_object *t;

    if (kvf_mp_map(map, "timing", &t, NULL) != 1)
        return;
    kvfc_u64(t, "lookup_us", &out->lookup_us);
    kvfc_u64(t, "wait_us", &out->wait_us);
    kvfc_u64(t, "transfer_us", &out->transfer_us);
    kvfc_u64(t, "total_us", &out->total_us);
}

void kvfc_unreadable(struct kvferry_result *out, const char *message)
{
    out->status = -(int)KVF_INTERNAL;
    out->message = message;
}

/* A buffer that cannot be used is given back, whoever may listen. */
bool kvfc_buffer_reply(struct kvferry *h, const struct kvfc_call *c,
                       const msgpack_object *map, struct kvferry_buffer *b,
                       struct kvferry_result *out)
{
    uint64_t offset;

    if (!kvfc_u64(map, "buffer", &b->id) || !kvfc_u64(map, "offset", &offset)) {
        kvfc_unreadable(out, "the daemon's reply names no buffer");
        return false;
    }
    if (c->abandoned || h->s.pool == NULL || offset > h->s.pool->size ||
        b->size > h->s.pool->size - offset) {
        out->status = -(int)KVF_UNSUPPORTED;
        out->message = "this session cannot map the daemon's pool";
        return false;
    }
    b->data = h->s.pool->base + offset;
    return true;
}
