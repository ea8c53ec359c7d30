/* put. Happy path: segments of the session (or a payload that is copied into
 * the pool), the checksum when asked for, in slices of the loop, then the store
 * takes over and the reply goes out.
 * Failure modes: whatever is not OK leaves the memory with the client. */
#include "daemon/engine.h"

#include "memory/checksum.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* A put that waits for its checksum; its memory is pinned. */
struct pending_put {
    struct kvf_pending pending;
    struct kvf_server *server;
    struct kvf_checksum sum;
    struct kvf_put put; /* key, segs and meta lie behind the struct */
    uint64_t next;
    struct kvf_buffer *own; /* of a payload put */
};

static void reply_put(struct kvf_server *s, const struct kvf_to *to,
                      const struct kvf_put *put, uint64_t size,
                      uint64_t generation)
{
    struct kvf_mpw *w;

    kvf_reply_begin(s, to, KVF_OK, NULL);
    kvf_reply_u64(s, "size", size);
    kvf_reply_u64(s, "generation", generation);
    w = kvf_reply_key(s, "metadata");
    kvf_mpw_map(w, 6);
    kvf_mpw_kv_str(w, "source_host", s->host);
    kvf_mpw_kv_u64(w, "source_port", s->peer_port);
    kvf_mpw_kv_u64(w, "data_size", size);
    kvf_mpw_str(w, "key");
    kvf_mpw_strn(w, put->key, put->key_len);
    kvf_mpw_kv_u64(w, "generation", generation);
    kvf_mpw_kv_bin(w, "incarnation", s->incarnation.b, KVF_ID_LEN);
}

/* Into the store; the reply is begun but not sent. */
static int publish(struct kvf_server *s, struct kvf_client *c,
                   const struct kvf_put *put, const struct kvf_to *to,
                   struct kvf_why *why)
{
    const struct kvf_gen *g;
    uint64_t size, generation;
    int rc;

    if (s->drain.active)
        return kvf_fail(why, KVF_SHUTTING_DOWN,
                        "the daemon is draining and takes no puts");
    rc = kvf_store_put(s->store, put, &g, why);
    if (rc < 0)
        return rc;
    if (put->notify)
        c->notify++;
    kvf_gen_log_put(g);
    size = g->size;
    generation = g->generation;
    /* Gets that waited for it come first: somebody stands still for them. The
     * last reader may be among them, and g gone with it. */
    kvf_store_settle(s->store);
    reply_put(s, to, put, size, generation);
    return 0;
}

/* ---- with a checksum ---------------------------------------------------- */

static void pin(struct pending_put *p)
{
    for (unsigned i = 0; i < p->put.n_segs; i++)
        kvf_seg_pin(&p->put.segs[i]);
}

static void unpin(struct pending_put *p)
{
    for (unsigned i = 0; i < p->put.n_segs; i++)
        kvf_seg_unpin(&p->put.segs[i]);
}

static void finish_failed(struct pending_put *p, enum kvf_status status,
                          const char *text)
{
    struct kvf_to to;

    if (p->own != NULL)
        kvf_buffer_retire(p->own);
    kvf_pending_to(&p->pending, &to);
    kvf_reply_begin(p->server, &to, status, text);
    (void)kvf_pending_send(&p->pending, NULL, 0, 0);
    kvf_pending_end(&p->pending);
    free(p);
}

static void on_checksum(struct kvf_checksum *sum, uint64_t value)
{
    struct pending_put *p = kvf_container_of(sum, struct pending_put, sum);
    struct kvf_why why;
    struct kvf_to to;

    kvf_checksum_stop(&p->sum);
    unpin(p);
    p->put.checksum = value;
    kvf_pending_to(&p->pending, &to);
    if (publish(p->server, p->pending.client, &p->put, &to, &why) < 0) {
        finish_failed(p, why.status, why.text);
        return;
    }
    /* Published stays published, also when nobody reads this. */
    kvf_pending_give(&p->pending,
                     kvf_reply_next(p->server, p->pending.session, p->next));
    kvf_pending_end(&p->pending);
    free(p);
}

static void cancel_put(struct kvf_pending *pending, enum kvf_status status,
                       const char *text)
{
    struct pending_put *p =
        kvf_container_of(pending, struct pending_put, pending);

    kvf_checksum_stop(&p->sum);
    unpin(p);
    finish_failed(p, status, text);
}

bool kvf_put_reads(const struct kvf_session *ss, const struct kvf_buffer *b)
{
    if (b->pins == 0)
        return false;
    kvf_list_for_each (it, &ss->clients) {
        const struct kvf_client *c =
            kvf_container_of(it, struct kvf_client, session_node);

        kvf_list_for_each (at, &c->pending) {
            struct kvf_pending *q =
                kvf_container_of(at, struct kvf_pending, node);
            struct pending_put *p =
                kvf_container_of(q, struct pending_put, pending);

            if (q->cancel != cancel_put)
                continue;
            for (unsigned i = 0; i < p->put.n_segs; i++)
                if (p->put.segs[i].buffer == b)
                    return true;
        }
    }
    return false;
}

/* Copies everything that the request points to. */
static struct pending_put *keep_put(const struct kvf_put *put)
{
    size_t segs = put->n_segs * sizeof *put->segs;
    struct pending_put *p =
        calloc(1, sizeof *p + segs + put->key_len + put->meta_len);
    char *at;

    if (p == NULL)
        return NULL;
    at = (char *)(p + 1);
    p->put = *put;
    p->put.segs = memcpy(at, put->segs, segs);
    p->put.key = memcpy(at + segs, put->key, put->key_len);
    if (put->meta_len > 0)
        p->put.meta =
            memcpy(at + segs + put->key_len, put->meta, put->meta_len);
    return p;
}

static int start_checksum(struct kvf_call *call, const struct kvf_put *put,
                          struct kvf_buffer *own, struct kvf_why *why)
{
    struct kvf_server *s = call->s;
    struct iovec iov[KVF_MAX_SEGMENTS];
    struct pending_put *p = keep_put(put);
    int rc;

    if (p == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    p->server = s;
    p->next = call->req->u.put.next;
    for (unsigned i = 0; i < put->n_segs; i++)
        iov[i] =
            (struct iovec){kvf_seg_ptr(&put->segs[i]), put->segs[i].length};
    rc = kvf_pending_begin(&p->pending, call, cancel_put, why);
    if (rc < 0) {
        free(p);
        return rc;
    }
    rc = kvf_checksum_start(&p->sum, s->sched, iov, put->n_segs, on_checksum,
                            why);
    if (rc < 0) {
        kvf_pending_end(&p->pending);
        free(p);
        return rc;
    }
    pin(p);
    p->own = own;
    return 0;
}

/* ---- the operation ------------------------------------------------------ */

static int payload_buffer(struct kvf_call *call, struct kvf_buffer **out,
                          struct kvf_why *why)
{
    struct kvf_server *s = call->s;
    size_t len = call->req->payload_len;
    int rc;

    if (len > s->conf->inline_max)
        return kvf_fail(why, KVF_TOO_LARGE,
                        "payload of %zu bytes, inline_max is %" PRIu64
                        ": use alloc and segments",
                        len, s->conf->inline_max);
    rc = kvf_buffer_alloc(s->buffers, len, KVF_BUF_FILLING, s, out, why);
    if (rc < 0)
        return rc;
    memcpy(kvf_buffer_ptr(*out), call->req->payload, len);
    s->segs[0] = (struct kvf_seg){
        .buffer = *out, .offset = (*out)->offset, .length = len};
    return 0;
}

static void fill_put(const struct kvf_call *call, unsigned n_segs,
                     struct kvf_put *put)
{
    const struct kvf_req_put *r = &call->req->u.put;

    *put = (struct kvf_put){
        .key = r->key.p,
        .key_len = r->key.len,
        .segs = call->s->segs,
        .n_segs = n_segs,
        .meta = r->meta,
        .meta_len = r->meta_len,
        .ttl_ms = r->has_ttl ? r->ttl_ms : call->s->conf->put_ttl_ms,
        .readers = r->readers,
        .reject_duplicate = r->on_duplicate == KVF_DUP_REJECT,
        .has_checksum = r->checksum,
        .notify = r->notify,
        .publisher = kvf_event_address(call),
    };
}

static void put_failed(struct kvf_call *call, const struct kvf_why *why)
{
    kvf_reply_begin(call->s, &call->to, why->status, why->text);
    if (why->status == KVF_NO_SPACE)
        kvf_reply_space(call->s, call->req->payload_len);
    (void)kvf_reply_send(call->s, &call->to, NULL, 0, 0);
}

static void do_put(struct kvf_call *call, unsigned n_segs,
                   struct kvf_buffer *own)
{
    struct kvf_put put;
    struct kvf_why why;
    int rc;

    fill_put(call, n_segs, &put);
    if (put.has_checksum) {
        rc = start_checksum(call, &put, own, &why);
    } else {
        rc = publish(call->s, call->client, &put, &call->to, &why);
        if (rc == 0)
            kvf_reply_give(call->s, &call->to,
                           kvf_reply_next(call->s, call->client->session,
                                          call->req->u.put.next));
    }
    if (rc < 0) {
        if (own != NULL)
            kvf_buffer_retire(own);
        put_failed(call, &why);
    }
}

static bool put_refused(struct kvf_call *call)
{
    if (call->s->drain.active)
        kvf_call_reply(call, KVF_SHUTTING_DOWN,
                       "the daemon is draining and takes no puts");
    else
        return kvf_call_no_events(call, call->req->u.put.notify);
    return true;
}

void kvf_op_put(struct kvf_call *call)
{
    const struct kvf_req_put *r = &call->req->u.put;
    struct kvf_buffer *own = NULL;
    struct kvf_session *ss;
    struct kvf_why why;
    uint64_t total;
    int rc;

    if (put_refused(call))
        return;
    if (r->segments == NULL) {
        rc = payload_buffer(call, &own, &why);
    } else {
        ss = kvf_call_memory(call);
        if (ss == NULL)
            return;
        rc = kvf_segments_resolve(call->s, ss, r->segments, r->n_segments,
                                  KVF_SEG_PUT, &total, &why);
    }
    if (rc < 0)
        put_failed(call, &why);
    else
        do_put(call, own != NULL ? 1 : r->n_segments, own);
    kvf_event_pool(call->s);
}
