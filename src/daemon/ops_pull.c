/* pull: the blocks of a request into the blocks of an engine.
 *
 * Happy path: the layout is the session's, the pull is started
 * (request/pulls.h), its one answer becomes the reply. Failure modes: refused
 * at once with the reason; a client that is gone or a session that has ended
 * makes the pull give its claims back. */
#include "daemon/engine.h"

#include <stdlib.h>
#include <string.h>

struct pending_pull {
    struct kvf_pending pending;
    struct kvf_server *server;
    struct kvf_pull *pull;
};

static void write_worker(struct kvf_mpw *w, const struct kvf_server *s,
                         const struct kvf_worker *worker)
{
    char name[48];

    if (worker->replica == s->conf->self.replica)
        snprintf(name, sizeof name, "%u.%u", worker->stage, worker->rank);
    else
        snprintf(name, sizeof name, KVF_WORKER_FMT, KVF_WORKER_ARG(worker));
    kvf_mpw_str(w, name);
}

static void write_ok(struct kvf_server *s, const struct kvf_pull_result *res)
{
    struct kvf_mpw *w;

    kvf_reply_u64(s, "bytes", res->bytes);
    kvf_reply_u64(s, "reads", res->reads);
    kvf_reply_str(s, "transport", res->transport);
    w = kvf_reply_key(s, "sources");
    kvf_mpw_array(w, res->n_sources);
    for (unsigned i = 0; i < res->n_sources; i++)
        write_worker(w, s, &res->sources[i]);
    w = kvf_reply_key(s, "filled");
    kvf_mpw_array(w, res->n_filled);
    for (unsigned i = 0; i < res->n_filled; i++) {
        kvf_mpw_map(w, 3);
        kvf_mpw_kv_u64(w, "group", res->filled[i].group);
        kvf_mpw_kv_u64(w, "first_token", (uint64_t)res->filled[i].first_token);
        kvf_mpw_kv_u64(w, "tokens", (uint64_t)res->filled[i].tokens);
    }
    w = kvf_reply_key(s, "timing");
    kvf_mpw_map(w, 4);
    kvf_mpw_kv_u64(w, "lookup_us", res->lookup_us);
    kvf_mpw_kv_u64(w, "plan_us", res->plan_us);
    kvf_mpw_kv_u64(w, "transfer_us", res->transfer_us);
    kvf_mpw_kv_u64(w, "total_us", res->total_us);
}

static int send_result(struct pending_pull *p,
                       const struct kvf_pull_result *res)
{
    struct kvf_server *s = p->server;
    struct kvf_to to;

    kvf_pending_to(&p->pending, &to);
    if (res->status == KVF_OK && kvf_pending_orphan(&p->pending)) {
        kvf_reply_begin(s, &to, KVF_CANCELLED, "the session has ended");
        (void)kvf_pending_send(&p->pending, NULL, 0, 0);
        return -KVF_PEER_UNREACHABLE;
    }
    kvf_reply_begin(s, &to, res->status, res->text);
    if (res->status == KVF_OK)
        write_ok(s, res);
    kvf_reply_u64(s, "attempts", res->attempts);
    return kvf_pending_send(&p->pending, NULL, 0, 0);
}

static int on_reply(void *arg, const struct kvf_pull_result *res)
{
    struct pending_pull *p = arg;
    int rc = send_result(p, res);

    kvf_pending_end(&p->pending);
    free(p);
    return rc;
}

static const struct kvf_pull_ops pull_ops = {.reply = on_reply};

static void cancel_pull(struct kvf_pending *pending, enum kvf_status status,
                        const char *text)
{
    struct pending_pull *p =
        kvf_container_of(pending, struct pending_pull, pending);

    if (p->pull != NULL)
        kvf_pull_cancel(p->pull, status, text);
}

static int start_pull(struct kvf_call *call, struct kvf_session *ss,
                      struct kvf_why *why)
{
    struct kvf_server *s = call->s;
    struct kvf_req_pull *req = &call->req->u.pull;
    struct kvf_layout *l = kvf_session_layout(ss, req->layout, why);
    struct pending_pull *p;
    int rc;

    if (l == NULL)
        return -KVF_INVALID;
    p = calloc(1, sizeof *p);
    if (p == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    p->server = s;
    rc = kvf_pending_begin(&p->pending, call, cancel_pull, why);
    if (rc == 0) {
        rc = kvf_pull_start(s->pulls, l, req,
                            req->has_timeout ? req->timeout_ms
                                             : s->conf->get_sub_timeout_ms,
                            &pull_ops, p, &p->pull, why);
        if (rc < 0)
            kvf_pending_end(&p->pending);
    }
    if (rc < 0)
        free(p);
    return rc;
}

void kvf_op_pull(struct kvf_call *call)
{
    struct kvf_session *ss;
    struct kvf_why why;

    if (call->s->drain.active) {
        kvf_call_reply(call, KVF_SHUTTING_DOWN, "the daemon is draining");
        return;
    }
    ss = kvf_call_memory(call);
    if (ss == NULL)
        return;
    if (start_pull(call, ss, &why) < 0)
        kvf_call_why(call, &why);
}
