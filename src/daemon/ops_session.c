/* hello, bye, ping. Failure modes of hello: another version (MISMATCH), another
 * user or process (DENIED), an unknown session (STALE). */
#include "daemon/engine.h"

#include <inttypes.h>
#include <unistd.h>

/* Protocol section 2: on ipc the kernel says who the client is. */
static int check_identity(const struct kvf_client *c,
                          const struct kvf_req_hello *h, struct kvf_why *why)
{
    if (!c->has_cred)
        return 0;
    if (c->uid != geteuid())
        return kvf_fail(why, KVF_DENIED,
                        "this daemon serves uid %ld, you are uid %ld",
                        (long)geteuid(), (long)c->uid);
    if (h->has_pid && c->pid != 0 && h->pid != (uint64_t)c->pid)
        return kvf_fail(why, KVF_DENIED,
                        "pid %" PRIu64 " is not yours: the kernel says %ld",
                        h->pid, (long)c->pid);
    return 0;
}

static int named_session(struct kvf_server *s, const struct kvf_client *c,
                         const struct kvf_id *id, struct kvf_session **out,
                         struct kvf_why *why)
{
    struct kvf_session *ss = kvf_session_find(s, id);

    if (ss == NULL)
        return kvf_fail(why, KVF_STALE,
                        "no such session at this start of the daemon: say "
                        "hello without it");
    if (ss->pid != c->pid)
        return kvf_fail(why, KVF_DENIED,
                        "that session belongs to another process");
    *out = ss;
    return 0;
}

static void write_pool(struct kvf_server *s)
{
    struct kvf_mpw *w = kvf_reply_key(s, "pool");

    kvf_mpw_map(w, 4);
    kvf_mpw_kv_str(w, "path", s->segment.path);
    kvf_mpw_kv_u64(w, "size", s->segment.size);
    kvf_mpw_kv_u64(w, "alignment", KVF_POOL_ALIGN);
    kvf_mpw_kv_str(w, "device", "cpu");
}

static void write_transports(struct kvf_server *s)
{
    struct kvf_mpw *w = kvf_reply_key(s, "transports");

    kvf_mpw_array(w, s->shm_on + (s->rdma != NULL) + (s->tcp != NULL));
    if (s->shm_on)
        kvf_mpw_str(w, "shm");
    if (s->rdma != NULL)
        kvf_mpw_str(w, "rdma");
    if (s->tcp != NULL)
        kvf_mpw_str(w, "tcp");
}

static void write_limits(struct kvf_server *s)
{
    struct kvf_mpw *w = kvf_reply_key(s, "limits");

    kvf_mpw_map(w, 6);
    kvf_mpw_kv_u64(w, "max_key", KVF_MAX_KEY);
    kvf_mpw_kv_u64(w, "max_meta", KVF_MAX_META);
    kvf_mpw_kv_u64(w, "max_segments", KVF_MAX_SEGMENTS);
    kvf_mpw_kv_u64(w, "max_frame", s->conf->max_frame);
    kvf_mpw_kv_u64(w, "max_outstanding", s->conf->max_outstanding);
    kvf_mpw_kv_u64(w, "inline_max", s->conf->inline_max);
}

/* `opened`: the session is new and ends when the reply reaches nobody. */
static void welcome(struct kvf_call *call, struct kvf_session *ss, bool opened)
{
    struct kvf_server *s = call->s;
    uint64_t cookie = opened ? KVF_COOKIE_SESSION | ss->serial : 0;

    kvf_reply_begin(s, &call->to, KVF_OK, NULL);
    kvf_reply_u64(s, "version", KVF_PROTOCOL_VERSION);
    kvf_reply_str(s, "server", "kvferryd " KVF_VERSION);
    kvf_reply_str(s, "cluster", s->conf->cluster);
    kvf_reply_u64(s, "stage", s->conf->self.stage);
    kvf_reply_u64(s, "rank", s->conf->self.rank);
    kvf_reply_u64(s, "replica", s->conf->self.replica);
    kvf_reply_bin(s, "incarnation", s->incarnation.b, KVF_ID_LEN);
    kvf_reply_bin(s, "session", ss->id.b, KVF_ID_LEN);
    write_pool(s);
    write_transports(s);
    write_limits(s);
    kvf_reply_give(s, &call->to, cookie);
}

static void tell_unmapped(struct kvf_server *s, const struct kvf_session *ss,
                          const struct kvf_req_hello *h)
{
    struct kvf_peer_gone gone = {.incarnation = h->unmapped,
                                 .pid = (uint64_t)ss->pid,
                                 .start = ss->start};

    if (h->has_unmapped && ss->can_map)
        kvf_peers_unmapped(s->peers, &gone);
}

static void wrong_version(struct kvf_call *call)
{
    kvf_reply_begin(call->s, &call->to, KVF_MISMATCH,
                    "this daemon speaks version 1 of the protocol");
    kvf_reply_u64(call->s, "version", KVF_PROTOCOL_VERSION);
    (void)kvf_reply_send(call->s, &call->to, NULL, 0, 0);
}

void kvf_op_hello(struct kvf_call *call)
{
    const struct kvf_req_hello *h = &call->req->u.hello;
    struct kvf_client *c = call->client;
    struct kvf_session *ss = c->session;
    struct kvf_why why;
    bool opened = false;
    int rc;

    if (h->version != KVF_PROTOCOL_VERSION) {
        wrong_version(call);
        return;
    }
    if (h->events && call->to.delimiter) {
        kvf_call_reply(call, KVF_INVALID,
                       "events need a DEALER socket: a REQ would take them "
                       "for its reply");
        return;
    }
    rc = check_identity(c, h, &why);
    if (rc == 0 && h->has_session)
        rc = named_session(call->s, c, &h->session, &ss, &why);
    if (rc == 0 && ss == NULL) {
        rc = kvf_session_open(c, h->client.p != NULL ? h->client.p : "",
                              h->client.len, &ss, &why);
        opened = rc == 0;
    }
    if (rc < 0) {
        kvf_call_why(call, &why);
        return;
    }
    if (ss != c->session)
        kvf_session_join(ss, c);
    kvf_session_touch(ss);
    if (h->events)
        kvf_client_set_events(c, true);
    tell_unmapped(call->s, ss, h);
    welcome(call, ss, opened);
}

void kvf_op_bye(struct kvf_call *call)
{
    struct kvf_client *c = call->client;

    if (c->session != NULL)
        kvf_session_end(c->session, false, "bye");
    kvf_client_set_events(c, false);
    kvf_call_ok(call);
}

void kvf_op_ping(struct kvf_call *call)
{
    kvf_call_ok(call);
}
