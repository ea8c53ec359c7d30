/* The engines' ROUTER.
 *
 * Happy path: envelope -> client -> kvf_req_decode -> handler -> one reply.
 * Failure modes: a message that cannot be read is answered INVALID; a client
 * over its limit is answered BUSY, past twice that its messages are dropped; a
 * reply whose client is gone is undone. */
#include "daemon/engine.h"

#include <string.h>

#define FLOOD_WINDOW_NS KVF_NS_PER_S

typedef void op_fn(struct kvf_call *call);

static op_fn *const handlers[KVF_OP_COUNT] = {
    [KVF_OP_HELLO] = kvf_op_hello,
    [KVF_OP_BYE] = kvf_op_bye,
    [KVF_OP_EXPOSE] = kvf_op_expose,
    [KVF_OP_UNEXPOSE] = kvf_op_unexpose,
    [KVF_OP_PUSH] = kvf_op_push,
    [KVF_OP_WRITE] = kvf_op_write,
    [KVF_OP_READ] = kvf_op_read,
    [KVF_OP_PING] = kvf_op_ping,
    [KVF_OP_ALLOC] = kvf_op_alloc,
    [KVF_OP_FREE] = kvf_op_free,
    [KVF_OP_REGISTER] = kvf_op_register,
    [KVF_OP_UNREGISTER] = kvf_op_unregister,
    [KVF_OP_PUT] = kvf_op_put,
    [KVF_OP_GET] = kvf_op_get,
    [KVF_OP_RELEASE] = kvf_op_release,
    [KVF_OP_MGET] = kvf_op_mget,
    [KVF_OP_CANCEL] = kvf_op_cancel,
    [KVF_OP_FAIL] = kvf_op_fail,
    [KVF_OP_CLEANUP] = kvf_op_cleanup,
    [KVF_OP_LIST] = kvf_op_list,
    [KVF_OP_PEER] = kvf_op_peer,
    [KVF_OP_STATS] = kvf_op_stats,
    [KVF_OP_HEALTH] = kvf_op_health,
    [KVF_OP_DRAIN] = kvf_op_drain,
    [KVF_OP_LAYOUT] = kvf_op_layout,
    [KVF_OP_PUBLISH] = kvf_op_publish,
    [KVF_OP_PULL] = kvf_op_pull,
};

void kvf_call_reply(struct kvf_call *call, enum kvf_status status,
                    const char *message)
{
    (void)kvf_reply_status(call->s, &call->to, status, message);
}

void kvf_call_ok(struct kvf_call *call)
{
    kvf_call_reply(call, KVF_OK, NULL);
}

void kvf_call_why(struct kvf_call *call, const struct kvf_why *why)
{
    (void)kvf_reply_why(call->s, &call->to, why);
}

bool kvf_call_no_events(struct kvf_call *call, bool notify)
{
    if (!notify || !call->to.delimiter)
        return false;
    kvf_call_reply(call, KVF_INVALID,
                   "notify needs a DEALER socket: a REQ would take the event "
                   "for its reply");
    return true;
}

struct kvf_session *kvf_call_session(struct kvf_call *call)
{
    if (call->client->session == NULL)
        kvf_call_reply(call, KVF_STALE,
                       "no session of this start of the daemon: say hello "
                       "first");
    return call->client->session;
}

struct kvf_session *kvf_call_memory(struct kvf_call *call)
{
    struct kvf_session *ss = kvf_call_session(call);

    if (ss == NULL || ss->can_map)
        return ss;
    kvf_call_reply(call, KVF_UNSUPPORTED,
                   "this session cannot map memory (tcp, or a process that "
                   "the daemon cannot see): use payload put and inline get");
    return NULL;
}

/* ---- envelope ----------------------------------------------------------- */

struct envelope {
    bool delimiter, extra;
    struct kvf_frame header, payload;
    bool has_payload;
};

/* part[0] is the routing id. An empty frame with something after it is the
 * delimiter; alone it is an empty header. */
static void open_envelope(const struct kvf_zmsg *msg, struct envelope *e)
{
    unsigned at = 1;

    memset(e, 0, sizeof *e);
    e->header.data = "";
    if (msg->n > 2 && msg->part[1].size == 0) {
        e->delimiter = true;
        at = 2;
    }
    if (at < msg->n)
        e->header = msg->part[at++];
    if (at < msg->n) {
        e->payload = msg->part[at++];
        e->has_payload = true;
        if (e->payload.data == NULL)
            e->payload.data = "";
    }
    e->extra = at < msg->n || msg->overlong;
}

static void malformed(struct kvf_call *call, const struct kvf_why *why)
{
    struct kvf_server *s = call->s;

    s->stats.malformed++;
    kvf_log_limited(&s->limit_malformed, s->sched->now_ns, KVF_LOG_WARN,
                    "ENGINE", "bad message pid=%ld: %s",
                    (long)call->client->pid, why->text);
    kvf_call_why(call, why);
}

/* ---- admission ---------------------------------------------------------- */

static uint64_t unread(const struct kvf_client *c)
{
    return kvf_zsock_queued_to(c->server->engine, c->rid, c->rid_len);
}

/* Requests without an answer, replies that wait for room, and what was
 * answered BUSY within the last second. */
static bool flooding(struct kvf_client *c)
{
    struct kvf_server *s = c->server;
    uint64_t now = s->sched->now_ns;
    uint64_t waiting = unread(c);

    if (now - c->busy_since_ns > FLOOD_WINDOW_NS) {
        c->busy_since_ns = now;
        c->busy_recent = 0;
    }
    /* BUSY answers may be among those that wait: not counted twice. */
    if (waiting < c->busy_recent)
        waiting = c->busy_recent;
    if (c->outstanding + waiting < 2ull * s->conf->max_outstanding)
        return false;
    s->stats.flood_discarded++;
    kvf_log_limited(&s->limit_flood, now, KVF_LOG_WARN, "ENGINE",
                    "pid=%ld has more than twice max_outstanding=%u requests "
                    "open: messages are discarded",
                    (long)c->pid, s->conf->max_outstanding);
    return true;
}

static bool over_limit(const struct kvf_client *c)
{
    return c->outstanding + unread(c) >= c->server->conf->max_outstanding;
}

static void handle(struct kvf_call *call, const struct envelope *e)
{
    struct kvf_req *req = call->req;
    struct kvf_why why;
    int rc =
        kvf_req_decode(req, e->header.data, e->header.size, e->payload.data,
                       e->payload.size, e->has_payload && !e->extra, &why);

    if (req->has_id) {
        call->to.id = req->id;
        call->to.id_len = req->id_len;
    }
    if (e->extra)
        rc = kvf_fail(&why, KVF_INVALID,
                      "extra frames: a message is a header and at most one "
                      "payload");
    if (rc < 0) {
        malformed(call, &why);
    } else if (req->op != KVF_OP_CANCEL && over_limit(call->client)) {
        call->client->busy_recent++;
        kvf_call_reply(call, KVF_BUSY,
                       "too many requests without an answer "
                       "(limits.max_outstanding): wait for replies");
    } else {
        handlers[req->op](call);
    }
    kvf_req_done(req);
}

/* Answers it and remembers nothing of it. */
static void refuse(struct kvf_server *s, const struct kvf_zmsg *msg,
                   const struct envelope *e, enum kvf_status status,
                   const char *text)
{
    struct kvf_to to = {.rid = msg->part[0].data,
                        .rid_len = msg->part[0].size,
                        .delimiter = e->delimiter};
    struct kvf_req req;

    (void)kvf_req_decode(&req, e->header.data, e->header.size, e->payload.data,
                         e->payload.size, e->has_payload && !e->extra, NULL);
    if (req.has_id) {
        to.id = req.id;
        to.id_len = req.id_len;
    }
    (void)kvf_reply_status(s, &to, status, text);
    kvf_req_done(&req);
}

static void on_message(void *arg, const struct kvf_zmsg *msg)
{
    struct kvf_server *s = arg;
    struct envelope e;
    struct kvf_client *c;
    struct kvf_req req;
    struct kvf_call call = {.s = s, .req = &req};

    if (msg->n == 0)
        return;
    s->stats.requests++;
    open_envelope(msg, &e);
    if (s->leaving) {
        refuse(s, msg, &e, KVF_SHUTTING_DOWN, "the daemon is shutting down");
        return;
    }
    c = kvf_client_of(s, msg->part[0].data, msg->part[0].size,
                      msg->peer_address != NULL ? msg->peer_address : "");
    if (c == NULL) {
        refuse(s, msg, &e, KVF_BUSY, "too many clients at once");
        return;
    }
    c->dealer = !e.delimiter;
    if (c->session != NULL)
        kvf_session_touch(c->session);
    if (flooding(c))
        return;
    call.client = c;
    call.to = (struct kvf_to){
        .rid = c->rid, .rid_len = c->rid_len, .delimiter = e.delimiter};
    handle(&call, &e);
}

static void on_undeliverable(void *arg, uint64_t cookie)
{
    struct kvf_server *s = arg;

    s->stats.replies_undone++;
    kvf_undo(s, cookie);
}

static void on_taken(void *arg, uint64_t cookie)
{
    kvf_undo_forget(arg, cookie);
}

const struct kvf_zsock_ops kvf_engine_ops = {.on_message = on_message,
                                             .on_undeliverable =
                                                 on_undeliverable,
                                             .on_taken = on_taken};
