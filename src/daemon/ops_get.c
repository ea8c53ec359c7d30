/* get, release, cancel.
 *
 * Happy path: what the session may ask for is checked, the get is started
 * (request/gets.h) and its one answer becomes the reply.
 * Failure modes: refused at once with the reason; a client that is gone or a
 * session that has ended makes the get undo itself. */
#include "daemon/engine.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct pending_get {
    struct kvf_pending pending;
    struct kvf_server *server;
    struct kvf_get *get;
};

int kvf_get_allowed(const struct kvf_session *ss, const struct kvf_req_get *req,
                    struct kvf_why *why)
{
    if (req->mode == KVF_MODE_INLINE)
        return 0;
    if (ss == NULL)
        return kvf_fail(why, KVF_STALE,
                        "no session of this start of the daemon: say hello "
                        "first, or use mode inline");
    if (!ss->can_map)
        return kvf_fail(why, KVF_UNSUPPORTED,
                        "this session cannot map memory (tcp, or a process "
                        "that the daemon cannot see): use mode inline");
    return 0;
}

int kvf_get_launch(struct kvf_server *s, struct kvf_session *ss,
                   const struct kvf_req_get *req, uint64_t timeout_ms,
                   bool hold, const struct kvf_get_ops *ops, void *arg,
                   struct kvf_get **out, struct kvf_why *why)
{
    struct kvf_get_params params = {
        .req = req,
        .timeout_ms = timeout_ms,
        .owner = s,
        .owner_list = &s->nobody_buffers,
        .view_list = &s->nobody_views,
        .hold = hold,
    };
    uint64_t total;
    int rc = kvf_get_allowed(ss, req, why);

    if (rc == 0 && req->mode == KVF_MODE_INTO) {
        rc = kvf_segments_resolve(s, ss, req->into, req->n_into, KVF_SEG_INTO,
                                  &total, why);
        params.into = s->segs;
        params.n_into = req->n_into;
    }
    if (rc < 0)
        return rc;
    if (ss != NULL) {
        params.can_map = ss->can_map;
        params.has_session = ss->can_map;
        params.pid = (uint64_t)ss->pid;
        params.start = ss->start;
        params.owner = ss;
        params.owner_list = &ss->buffers;
        params.view_list = &ss->views;
    }
    return kvf_get_start(s->gets, &params, ops, arg, out, why);
}

/* ---- results ------------------------------------------------------------ */

static void write_segments(struct kvf_mpw *w, const struct kvf_get_result *res)
{
    kvf_mpw_str(w, "segments");
    kvf_mpw_array(w, res->n_segs);
    for (unsigned i = 0; i < res->n_segs; i++) {
        const struct kvf_result_seg *g = &res->segs[i];

        kvf_mpw_map(w, 2u + (g->path != NULL) + g->is_region);
        if (g->path != NULL)
            kvf_mpw_kv_str(w, "path", g->path);
        if (g->is_region)
            kvf_mpw_kv_u64(w, "region", g->region);
        kvf_mpw_kv_u64(w, "offset", g->offset);
        kvf_mpw_kv_u64(w, "length", g->length);
    }
}

static void write_timing(struct kvf_mpw *w, const struct kvf_get_result *res)
{
    kvf_mpw_str(w, "timing");
    kvf_mpw_map(w, 4);
    kvf_mpw_kv_u64(w, "lookup_us", res->lookup_us);
    kvf_mpw_kv_u64(w, "wait_us", res->wait_us);
    kvf_mpw_kv_u64(w, "transfer_us", res->transfer_us);
    kvf_mpw_kv_u64(w, "total_us", res->total_us);
}

static unsigned write_failure(struct kvf_mpw *w,
                              const struct kvf_get_result *res)
{
    unsigned pairs = 0;

    if (res->has_size) {
        kvf_mpw_kv_u64(w, "size", res->size);
        pairs++;
    }
    if (res->has_generation) {
        kvf_mpw_kv_u64(w, "generation", res->generation);
        pairs++;
    }
    if (res->has_space) {
        kvf_mpw_kv_u64(w, "free", res->free);
        kvf_mpw_kv_u64(w, "largest_free", res->largest_free);
        kvf_mpw_kv_u64(w, "needed", res->needed);
        pairs += 3;
    }
    kvf_mpw_kv_u64(w, "attempts", res->attempts);
    return pairs + 1;
}

unsigned kvf_get_fields_write(struct kvf_mpw *w,
                              const struct kvf_get_result *res)
{
    unsigned pairs = 7;

    if (res->status != KVF_OK)
        return write_failure(w, res);
    kvf_mpw_kv_u64(w, "size", res->size);
    kvf_mpw_kv_u64(w, "generation", res->generation);
    kvf_mpw_kv_bin(w, "meta", res->meta != NULL ? res->meta : "",
                   res->meta_len);
    kvf_mpw_kv_str(w, "mode", kvf_mode_name(res->mode));
    kvf_mpw_kv_str(w, "transport", res->transport);
    kvf_mpw_kv_u64(w, "attempts", res->attempts);
    write_timing(w, res);
    if (res->buffer != 0) {
        kvf_mpw_kv_u64(w, "buffer", res->buffer);
        pairs++;
    }
    if (res->mode != KVF_MODE_INLINE) {
        write_segments(w, res);
        pairs++;
    }
    if (res->has_checksum) {
        kvf_mpw_kv_u64(w, "checksum", res->checksum);
        pairs++;
    }
    return pairs;
}

/* ---- get ---------------------------------------------------------------- */

static int send_result(struct pending_get *p, const struct kvf_get_result *res)
{
    struct kvf_server *s = p->server;
    const void *payload = NULL;
    struct kvf_to to;

    kvf_pending_to(&p->pending, &to);
    if (res->status == KVF_OK && kvf_pending_orphan(&p->pending)) {
        kvf_reply_begin(s, &to, KVF_CANCELLED, "the session has ended");
        (void)kvf_pending_send(&p->pending, NULL, 0, 0);
        return -KVF_PEER_UNREACHABLE;
    }
    kvf_reply_begin(s, &to, res->status, res->text);
    s->reply.pairs += kvf_get_fields_write(&s->reply.w, res);
    if (res->status == KVF_OK && res->mode == KVF_MODE_INLINE)
        payload = res->payload != NULL ? res->payload : "";
    return kvf_pending_send(&p->pending, payload, res->payload_len,
                            res->status == KVF_OK ? res->buffer : 0);
}

static int on_reply(void *arg, struct kvf_get *get,
                    const struct kvf_get_result *res)
{
    struct pending_get *p = arg;
    struct kvf_server *s = p->server;
    int rc = send_result(p, res);

    (void)get;
    kvf_pending_end(&p->pending);
    free(p);
    kvf_event_pool(s);
    return rc;
}

static const struct kvf_get_ops get_ops = {.reply = on_reply};

static void cancel_get(struct kvf_pending *pending, enum kvf_status status,
                       const char *text)
{
    struct pending_get *p =
        kvf_container_of(pending, struct pending_get, pending);

    /* NULL: cancelled from within its own start, which cannot be. */
    if (p->get != NULL)
        kvf_get_cancel(p->get, status, text);
}

static int start_get(struct kvf_call *call, struct kvf_why *why)
{
    struct kvf_server *s = call->s;
    const struct kvf_req_get *req = &call->req->u.get;
    struct pending_get *p = calloc(1, sizeof *p);
    int rc;

    if (p == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    p->server = s;
    rc = kvf_pending_begin(&p->pending, call, cancel_get, why);
    if (rc == 0) {
        rc = kvf_get_launch(s, call->client->session, req,
                            req->has_timeout ? req->timeout_ms
                                             : s->conf->get_sub_timeout_ms,
                            false, &get_ops, p, &p->get, why);
        if (rc < 0)
            kvf_pending_end(&p->pending);
    }
    if (rc < 0)
        free(p);
    return rc;
}

void kvf_op_get(struct kvf_call *call)
{
    struct kvf_why why;

    if (call->s->drain.active)
        kvf_call_reply(call, KVF_SHUTTING_DOWN, "the daemon is draining");
    else if (start_get(call, &why) < 0)
        kvf_call_why(call, &why);
}

/* ---- release, cancel ---------------------------------------------------- */

void kvf_op_release(struct kvf_call *call)
{
    struct kvf_server *s = call->s;
    uint64_t id = call->req->u.handle.id;
    struct kvf_session *ss = kvf_call_session(call);
    struct kvf_buffer *b;
    struct kvf_view *v;
    bool released = false;

    if (ss == NULL)
        return;
    b = kvf_buffer_find(s->buffers, id);
    v = b == NULL ? kvf_view_find(s->gets, id) : NULL;
    if (b != NULL && b->owner == ss && b->state == KVF_BUF_FILLING) {
        kvf_call_reply(call, KVF_INVALID,
                       "that buffer was allocated: use free");
        return;
    }
    if (b != NULL && b->owner == ss && b->state == KVF_BUF_HELD) {
        kvf_buffer_retire(b);
        released = true;
    } else if (v != NULL && v->owner == ss) {
        kvf_view_release(v);
        released = true;
    }
    if (!call->req->u.handle.quiet) {
        kvf_reply_begin(s, &call->to, KVF_OK, NULL);
        kvf_reply_bool(s, "released", released);
        (void)kvf_reply_send(s, &call->to, NULL, 0, 0);
    }
    kvf_event_pool(s);
}

void kvf_op_cancel(struct kvf_call *call)
{
    struct kvf_server *s = call->s;
    const uint8_t *id = call->req->u.cancel.target;
    size_t len = call->req->u.cancel.target_len;
    struct kvf_session *ss = call->client->session;
    unsigned count = 0;

    /* Those of the session, and what this socket asked before it joined. */
    if (ss != NULL)
        count = kvf_session_cancel(ss, id, len, KVF_CANCELLED, "cancelled");
    count += kvf_client_cancel(call->client, ss, id, len, KVF_CANCELLED,
                               "cancelled");
    kvf_reply_begin(s, &call->to, KVF_OK, NULL);
    kvf_reply_u64(s, "cancelled", count);
    (void)kvf_reply_send(s, &call->to, NULL, 0, 0);
}
