/* fail, cleanup, list, peer, drain, health, stats. None needs a session. */
#include "daemon/engine.h"

#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#define HEALTH_REASONS 16
#define LAG_LIMIT_US 50000

void kvf_op_fail(struct kvf_call *call)
{
    struct kvf_server *s = call->s;
    const struct kvf_slice_str *key = &call->req->u.fail.key;
    const struct kvf_slice_str *reason = &call->req->u.fail.reason;
    struct kvf_why why;

    const char *text = reason->p != NULL ? reason->p : "";

    if (kvf_store_fail(s->store, key->p, key->len, text, reason->len,
                       s->conf->put_ttl_ms, &why) < 0) {
        kvf_call_why(call, &why);
        return;
    }
    /* Blocks of the request that are published here, or waited for. */
    if (call->req->u.fail.composed &&
        call->req->u.fail.from == s->conf->self.stage)
        (void)kvf_blocks_fail(s->blocks, &call->req->u.fail.request_id,
                              s->conf->self.rank, text, reason->len,
                              s->conf->put_ttl_ms);
    kvf_call_ok(call);
}

void kvf_op_cleanup(struct kvf_call *call)
{
    struct kvf_server *s = call->s;
    const struct kvf_req_cleanup *c = &call->req->u.cleanup;
    uint64_t count;

    if (c->has_from != c->has_to) {
        kvf_call_reply(call, KVF_INVALID,
                       "give from and to together, or neither");
        return;
    }
    count = kvf_store_cleanup(s->store, c->request_id.p, c->request_id.len,
                              c->has_from, c->from, c->to);
    if (!c->has_from)
        count += kvf_store_cleanup(kvf_blocks_store(s->blocks), c->request_id.p,
                                   c->request_id.len, false, 0, 0);
    kvf_reply_begin(s, &call->to, KVF_OK, NULL);
    kvf_reply_u64(s, "count", count);
    (void)kvf_reply_send(s, &call->to, NULL, 0, 0);
}

/* ---- list: counted first, because an array's length goes ahead of it ---- */

struct listing {
    struct kvf_mpw *w; /* NULL while counting */
    uint64_t n, limit;
};

static bool list_key(void *arg, const struct kvf_key_info *k)
{
    struct listing *l = arg;

    if (l->n == l->limit)
        return false;
    l->n++;
    if (l->w == NULL)
        return true;
    kvf_mpw_map(l->w, 8);
    kvf_mpw_str(l->w, "key");
    kvf_mpw_strn(l->w, k->key, k->key_len);
    kvf_mpw_kv_str(l->w, "state", k->state);
    kvf_mpw_kv_u64(l->w, "size", k->size);
    kvf_mpw_kv_u64(l->w, "generation", k->generation);
    kvf_mpw_kv_u64(l->w, "readers", k->readers);
    kvf_mpw_kv_u64(l->w, "claims", k->claims);
    kvf_mpw_kv_u64(l->w, "age_ms", k->age_ms);
    kvf_mpw_kv_u64(l->w, "ttl_ms", k->ttl_ms);
    return true;
}

void kvf_op_list(struct kvf_call *call)
{
    struct kvf_server *s = call->s;
    const struct kvf_slice_str *p = &call->req->u.list.prefix;
    const char *prefix = p->p != NULL ? p->p : "";
    struct listing l = {.limit = call->req->u.list.limit};

    kvf_store_list(s->store, prefix, p->len, list_key, &l);
    kvf_reply_begin(s, &call->to, KVF_OK, NULL);
    l.w = kvf_reply_key(s, "keys");
    kvf_mpw_array(l.w, (unsigned)l.n);
    l.limit = l.n;
    l.n = 0;
    kvf_store_list(s->store, prefix, p->len, list_key, &l);
    (void)kvf_reply_send(s, &call->to, NULL, 0, 0);
}

void kvf_op_peer(struct kvf_call *call)
{
    struct kvf_server *s = call->s;
    struct kvf_worker worker = call->req->u.peer.worker;
    struct kvf_why why;

    if (!call->req->u.peer.has_replica)
        worker.replica = s->conf->self.replica;
    if (kvf_directory_set(s->peers, &worker, call->req->u.peer.at.host,
                          call->req->u.peer.at.port, &why) < 0)
        kvf_call_why(call, &why);
    else
        kvf_call_ok(call);
}

void kvf_op_drain(struct kvf_call *call)
{
    struct kvf_server *s = call->s;

    kvf_call_ok(call);
    kvf_drain_begin(s,
                    call->req->u.drain.has_timeout
                        ? call->req->u.drain.timeout_ms
                        : s->conf->drain_ms,
                    "requested by an engine");
}

void kvf_op_stats(struct kvf_call *call)
{
    kvf_reply_begin(call->s, &call->to, KVF_OK, NULL);
    kvf_stats_write(call->s);
    (void)kvf_reply_send(call->s, &call->to, NULL, 0, 0);
}

/* ---- health ------------------------------------------------------------- */

struct health {
    char text[HEALTH_REASONS][200];
    unsigned n;
    bool unhealthy;
};

static char *reason(struct health *h)
{
    return h->n < HEALTH_REASONS ? h->text[h->n++] : NULL;
}

static void check_peer(void *arg, const struct kvf_peer_info *p)
{
    struct health *h = arg;
    char *text;

    if (p->guest || strcmp(p->state, "down") != 0)
        return;
    text = reason(h);
    if (text != NULL)
        snprintf(text, sizeof h->text[0], "peer %s is down: %s", p->name,
                 p->why != NULL ? p->why : "");
}

static void check_device(struct kvf_server *s, struct health *h)
{
    struct kvf_rdma_gauges g;
    char *text;

    if (s->rdma == NULL)
        return;
    kvf_rdma_gauges(s->rdma, &g);
    if (g.fatal && (text = reason(h)) != NULL)
        snprintf(text, sizeof h->text[0],
                 "rdma is off: the device reported a fatal error and cannot be "
                 "opened again yet");
}

static void check_own(struct kvf_server *s, struct health *h)
{
    uint64_t free_bytes = kvf_pool_bytes_free(s->pool);
    uint64_t lag = kvf_hist_recent_quantile(&s->stats.loop_lag_recent_us, 0.99,
                                            s->sched->now_ns);
    struct rlimit fds;
    unsigned used = kvf_count_fds();
    char *text;

    if (free_bytes < s->segment.size / 50 && (text = reason(h)) != NULL)
        snprintf(text, sizeof h->text[0],
                 "the pool is nearly full: %llu of %llu bytes free",
                 (unsigned long long)free_bytes,
                 (unsigned long long)s->segment.size);
    if (lag > LAG_LIMIT_US && (text = reason(h)) != NULL)
        snprintf(text, sizeof h->text[0],
                 "the loop lags: p99 %llu us (is the machine overloaded?)",
                 (unsigned long long)lag);
    if (getrlimit(RLIMIT_NOFILE, &fds) == 0 && used > fds.rlim_cur / 10 * 9 &&
        (text = reason(h)) != NULL)
        snprintf(text, sizeof h->text[0],
                 "%u of %llu file descriptors are open (ulimit -n)", used,
                 (unsigned long long)fds.rlim_cur);
}

void kvf_op_health(struct kvf_call *call)
{
    struct kvf_server *s = call->s;
    struct health h = {.n = 0};
    struct kvf_mpw *w;

    if (s->drain.active) {
        h.unhealthy = true;
        snprintf(reason(&h), sizeof h.text[0], "draining");
    }
    check_own(s, &h);
    check_device(s, &h);
    kvf_peers_list(s->peers, check_peer, &h);
    kvf_reply_begin(s, &call->to, KVF_OK, NULL);
    kvf_reply_str(s, "health",
                  h.unhealthy ? "unhealthy"
                  : h.n > 0   ? "degraded"
                              : "healthy");
    w = kvf_reply_key(s, "reasons");
    kvf_mpw_array(w, h.n);
    for (unsigned i = 0; i < h.n; i++)
        kvf_mpw_str(w, h.text[i]);
    (void)kvf_reply_send(s, &call->to, NULL, 0, 0);
}
