/* push, write, read.
 *
 * Happy path: segments of the session are resolved (or a payload is taken), the
 * move is started (request/moves.h), and its one answer becomes the reply.
 * Failure modes: refused at once with the reason; a client that is gone cancels
 * its moves. */
#include "daemon/engine.h"

#include <stdlib.h>

struct pending_move {
    struct kvf_pending pending;
    struct kvf_server *server;
    struct kvf_move *move;
    bool notify; /* a push whose `retired` will be due */
};

static void write_timing(struct kvf_server *s, const struct kvf_move_result *r)
{
    struct kvf_mpw *w = kvf_reply_key(s, "timing");

    kvf_mpw_map(w, 4);
    kvf_mpw_kv_u64(w, "lookup_us", r->lookup_us);
    kvf_mpw_kv_u64(w, "wait_us", r->wait_us);
    kvf_mpw_kv_u64(w, "transfer_us", r->transfer_us);
    kvf_mpw_kv_u64(w, "total_us", r->total_us);
}

static void on_reply(void *arg, const struct kvf_move_result *r)
{
    struct pending_move *p = arg;
    struct kvf_server *s = p->server;
    struct kvf_to to;

    kvf_pending_to(&p->pending, &to);
    kvf_reply_begin(s, &to, r->status, r->text);
    if (r->status == KVF_OK) {
        p->pending.client->notify += p->notify;
        kvf_reply_u64(s, "size", r->size);
        if (r->kind == KVF_MOVE_PUSH)
            kvf_reply_u64(s, "generation", r->generation);
        kvf_reply_str(s, "transport", r->transport);
        write_timing(s, r);
    } else if (r->has_space) {
        kvf_reply_u64(s, "free", r->free);
        kvf_reply_u64(s, "largest_free", r->largest_free);
        kvf_reply_u64(s, "needed", r->needed);
    }
    kvf_reply_u64(s, "attempts", r->attempts);
    /* What was moved stays moved, also when nobody reads this. */
    (void)kvf_pending_send(&p->pending, NULL, 0, 0);
    kvf_pending_end(&p->pending);
    free(p);
    kvf_event_pool(s);
}

static void cancel_move(struct kvf_pending *pending, enum kvf_status status,
                        const char *text)
{
    struct pending_move *p =
        kvf_container_of(pending, struct pending_move, pending);

    if (p->move != NULL)
        kvf_move_cancel(p->move, status, text);
}

static int start(struct kvf_call *call, const struct kvf_move_params *params,
                 struct kvf_why *why)
{
    struct kvf_server *s = call->s;
    struct pending_move *p = calloc(1, sizeof *p);
    int rc;

    if (p == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    p->server = s;
    p->notify = params->kind == KVF_MOVE_PUSH && params->put->notify;
    rc = kvf_pending_begin(&p->pending, call, cancel_move, why);
    if (rc == 0) {
        rc = kvf_move_start(s->moves, params, on_reply, p, &p->move, why);
        if (rc < 0)
            kvf_pending_end(&p->pending);
    }
    if (rc < 0)
        free(p);
    return rc;
}

/* False: it was answered. */
static bool resolve(struct kvf_call *call, const struct kvf_segment_ref *refs,
                    unsigned n, enum kvf_seg_use use)
{
    struct kvf_session *ss = kvf_call_memory(call);
    struct kvf_why why;
    uint64_t total;

    if (ss == NULL)
        return false;
    if (kvf_segments_resolve(call->s, ss, refs, n, use, &total, &why) == 0)
        return true;
    kvf_call_why(call, &why);
    return false;
}

static uint64_t timeout_of(const struct kvf_call *call, bool has, uint64_t ms)
{
    return has ? ms : call->s->conf->get_sub_timeout_ms;
}

void kvf_op_push(struct kvf_call *call)
{
    const struct kvf_req_push *r = &call->req->u.push;
    struct kvf_move_params params = {
        .kind = KVF_MOVE_PUSH,
        .dest = &r->dest,
        .timeout_ms = timeout_of(call, r->has_timeout, r->timeout_ms),
        .segs = call->s->segs,
        .n_segs = r->put.n_segments,
        .put = &r->put,
        .publisher = kvf_event_address(call),
    };
    struct kvf_why why;

    if (call->s->drain.active) {
        kvf_call_reply(call, KVF_SHUTTING_DOWN, "the daemon is draining");
        return;
    }
    if (kvf_call_no_events(call, r->put.notify))
        return;
    if (r->put.segments == NULL) {
        if (call->req->payload_len > call->s->conf->inline_max) {
            kvf_call_reply(call, KVF_TOO_LARGE,
                           "the payload is above inline_max: use alloc and "
                           "segments");
            return;
        }
        params.payload = call->req->payload;
        params.payload_len = call->req->payload_len;
        params.segs = NULL;
    } else if (!resolve(call, r->put.segments, r->put.n_segments,
                        KVF_SEG_SOURCE)) {
        return;
    }
    if (start(call, &params, &why) < 0)
        kvf_call_why(call, &why);
}

static void write_or_read(struct kvf_call *call, enum kvf_move_kind kind)
{
    const struct kvf_req_rma *r = &call->req->u.rma;
    struct kvf_move_params params = {
        .kind = kind,
        .dest = &r->dest,
        .timeout_ms = timeout_of(call, r->has_timeout, r->timeout_ms),
        .segs = call->s->segs,
        .n_segs = r->n_segments,
        .window = r->window,
        .target_offset = r->target_offset,
        .has_notify = r->has_notify,
        .notify = r->notify,
        .notify_len = r->notify_len,
    };
    struct kvf_why why;

    if (call->s->drain.active)
        kvf_call_reply(call, KVF_SHUTTING_DOWN, "the daemon is draining");
    else if (resolve(call, r->segments, r->n_segments,
                     kind == KVF_MOVE_WRITE ? KVF_SEG_SOURCE : KVF_SEG_INTO) &&
             start(call, &params, &why) < 0)
        kvf_call_why(call, &why);
}

void kvf_op_write(struct kvf_call *call)
{
    write_or_read(call, KVF_MOVE_WRITE);
}

void kvf_op_read(struct kvf_call *call)
{
    write_or_read(call, KVF_MOVE_READ);
}
