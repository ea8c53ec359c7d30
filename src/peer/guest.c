/* A getter that dialled us: its session at this owner.
 *
 * HELLO -> up -silence or BYE-> down -HELLO-> up ... -nothing held-> gone
 *
 * When a session goes down, its parked gets are dropped and the claims whose
 * bytes go out through sockets end at once, because closing the sockets makes
 * them quiet. Claims over shm stay: silence proves nothing about a process that
 * maps our memory. They end by DONE, ABORT, or the exit of every process that
 * may have the mapping (pidfd). */
#include "peer/access.h"

#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A guest that is down and holds claims over shm is looked at this often. */
#define SETTLE_NS (5 * KVF_NS_PER_S)

struct kvf_guest *kvf_guest_by_rid(struct kvf_peers *ps, const void *rid,
                                   size_t len)
{
    struct kvf_guest *g;

    HASH_FIND(hh_rid, ps->guests_by_rid, rid, len, g);
    return g;
}

static void bind_rid(struct kvf_guest *g, const void *rid, size_t len)
{
    struct kvf_guest *other = kvf_guest_by_rid(g->ps, rid, len);

    if (other == g)
        return;
    if (other != NULL) /* a routing id that libzmq gave out again */
        kvf_guest_down(other, "its connection belongs to somebody else now");
    if (g->rid_len != 0)
        HASH_DELETE(hh_rid, g->ps->guests_by_rid, g);
    memcpy(g->rid, rid, len);
    g->rid_len = len;
    HASH_ADD(hh_rid, g->ps->guests_by_rid, rid, len, g);
}

static void unbind_rid(struct kvf_guest *g)
{
    if (g->rid_len != 0)
        HASH_DELETE(hh_rid, g->ps->guests_by_rid, g);
    g->rid_len = 0;
}

void kvf_guest_answer(struct kvf_guest *g, struct kvf_peer_msg *m,
                      const void *payload, size_t payload_len)
{
    struct kvf_peers *ps = g->ps;

    if (g->rid_len == 0 || kvf_peer_encode(&ps->w, m) < 0)
        return;
    ps->env.channel.ops->answer(ps->env.channel.ctx, g->rid, g->rid_len,
                                ps->w.buf.data, ps->w.buf.size, payload,
                                payload_len);
}

struct kvf_guest *kvf_guest_up(const struct kvf_peers *ps,
                               const struct kvf_id *incarnation)
{
    struct kvf_guest *g;

    for (g = ps->guests; g != NULL; g = g->hh.next)
        if (g->up && kvf_id_equal(&g->incarnation, incarnation))
            return g;
    return NULL;
}

/* ---- life --------------------------------------------------------------- */

static void guest_tick(struct kvf_timer *t)
{
    struct kvf_guest *g = kvf_container_of(t, struct kvf_guest, tick);
    struct kvf_sched *s = g->ps->env.sched;
    uint64_t limit = kvf_peers_silence_ns(g->ps);

    if (g->up) {
        if (s->stalled && s->now_ns - g->last_rx_ns > limit / 2)
            g->last_rx_ns = s->now_ns - limit / 2;
        if (s->now_ns - g->last_rx_ns < limit) {
            kvf_timer_set(s, t, g->last_rx_ns + limit);
            return;
        }
        kvf_guest_down(g, "no sign of life");
    }
    kvf_guest_reap(g);
    kvf_guest_settle(g);
}

static void on_ended_timer(struct kvf_timer *t)
{
    kvf_guest_flush_ended(kvf_container_of(t, struct kvf_guest, ended_timer));
}

static void on_daemon_gone(void *arg)
{
    struct kvf_guest *g = arg;

    g->daemon_gone = true;
    kvf_guest_down(g, "its process has ended");
    kvf_guest_reap(g);
    kvf_guest_settle(g);
}

/* By worker, so that one who comes and goes without end fills no log, and
 * others' lines are there all the same. A guest lives no longer than that. */
static struct kvf_guest_limits *limits_of(const struct kvf_guest *g)
{
    const struct kvf_worker *w = &g->worker;

    return &g->ps->guest_limits[(w->stage * 31 + w->rank * 7 + w->replica) %
                                KVF_GUEST_LIMITS];
}

static void expel(struct kvf_guest *g)
{
    if (g->admitted && g->ps->env.expel != NULL)
        g->ps->env.expel(g->ps->env.admit_ctx, g);
    g->admitted = false;
}

void kvf_guest_down(struct kvf_guest *g, const char *reason)
{
    struct kvf_peers *ps = g->ps;

    if (!g->up)
        return;
    g->up = false;
    g->n_ended = 0;
    unbind_rid(g);
    ps->env.stats->peer_down++;
    kvf_log_limited(&limits_of(g)->down, ps->env.sched->now_ns,
                    ps->leaving ? KVF_LOG_INFO : KVF_LOG_WARN, "KVF PEER",
                    "%s down (getter): %s", g->name, reason);
    kvf_guest_drop_asks(g);
    kvf_told_clear(&g->told);
    kvf_told_clear(&g->told_keys);
    kvf_far_drop_all(&g->fars);
    expel(g); /* sockets closed: what they were sending is quiet */
    g->rdma_stuck = !kvf_guest_rdma_expel(g); /* and no QP reads any more */
    kvf_guest_abort_claims(g, false);
    kvf_guest_end_accesses(g, false);
    kvf_timer_set(ps->env.sched, &g->tick, ps->env.sched->now_ns + SETTLE_NS);
}

static void guest_delete(struct kvf_guest *g)
{
    struct kvf_peers *ps = g->ps;

    kvf_list_for_each_safe (n, &g->engines) {
        struct kvf_engine_watch *e =
            kvf_container_of(n, struct kvf_engine_watch, node);

        ps->env.proc.unwatch(ps->env.proc_ctx, e->watch);
        kvf_list_unlink(n);
        free(e);
    }
    if (g->watch != NULL)
        ps->env.proc.unwatch(ps->env.proc_ctx, g->watch);
    if (g->pool_map != NULL)
        kvf_map_release(g->pool_map);
    kvf_timer_cancel(ps->env.sched, &g->tick);
    kvf_timer_cancel(ps->env.sched, &g->ended_timer);
    kvf_guest_leave_rooms(g);
    HASH_DEL(ps->guests, g);
    free(g);
}

/* What was kept for the QP's sake goes. A guest that is back by now has said
 * which of its claims it still uses. */
void kvf_guest_expelled(struct kvf_guest *g)
{
    g->rdma_stuck = false;
    if (g->up)
        return;
    kvf_guest_abort_claims(g, false);
    kvf_guest_end_accesses(g, false);
    kvf_guest_settle(g);
}

void kvf_guest_settle(struct kvf_guest *g)
{
    if (g->up)
        return;
    if (kvf_list_empty(&g->claims) && kvf_list_empty(&g->accesses) &&
        !g->rdma_stuck)
        guest_delete(g);
    else
        kvf_timer_set(g->ps->env.sched, &g->tick,
                      g->ps->env.sched->now_ns + SETTLE_NS);
}

void kvf_guest_bye(struct kvf_guest *g, const char *reason)
{
    struct kvf_peer_msg m;

    if (!g->up)
        return;
    kvf_peers_head(g->ps, &m, KVF_PEER_BYE, &g->incarnation);
    snprintf(m.u.bye.text, sizeof m.u.bye.text, "%s", reason);
    kvf_guest_answer(g, &m, NULL, 0);
}

void kvf_guest_free(struct kvf_guest *g, const char *reason)
{
    kvf_guest_drop_asks(g);
    if (!g->ps->leaving)
        kvf_guest_bye(g, reason);
    expel(g);
    /* Should it fail: the transport goes before the memory does. */
    (void)kvf_guest_rdma_expel(g);
    g->rdma_stuck = false;
    unbind_rid(g);
    kvf_guest_abort_claims(g, true);
    kvf_guest_end_accesses(g, true);
    kvf_told_clear(&g->told);
    kvf_told_clear(&g->told_keys);
    kvf_far_drop_all(&g->fars);
    guest_delete(g);
}

/* ---- HELLO -------------------------------------------------------------- */

static void refuse_shm(struct kvf_guest *g, const char *text)
{
    snprintf(g->shm_why, sizeof g->shm_why, "%.159s", text);
    g->shm_ok = false;
}

/* Shm is for getters whose pool we can open: that proves that we share their
 * PID namespace, so that the pids they name mean what they say, and can be
 * watched. */
static void try_shm(struct kvf_guest *g, const struct kvf_peer_msg *m)
{
    const struct kvf_peers_env *env = &g->ps->env;
    const struct kvf_peer_pool *pool = &m->u.hello.pool;
    struct kvf_map_expect expect = {
        .size = pool->size, .has_header = true, .incarnation = m->head.from};
    struct kvf_why why;

    if (g->shm_ok)
        return;
    if (env->shm == NULL || env->pool.path[0] == '\0') {
        refuse_shm(g, "shm is off at the owner");
        return;
    }
    if (pool->path[0] == '\0') {
        refuse_shm(g, "shm is off at the getter");
        return;
    }
    if (g->pool_map == NULL &&
        kvf_map_open(env->maps, pool->path, &expect, &g->pool_map, &why) < 0) {
        g->pool_map = NULL;
        refuse_shm(g, why.text);
        return;
    }
    if (g->watch == NULL &&
        env->proc.watch(env->proc_ctx, pool->pid, pool->start, on_daemon_gone,
                        g, &g->watch, &why) < 0) {
        g->watch = NULL;
        refuse_shm(g, why.text);
        return;
    }
    g->shm_ok = true;
    snprintf(g->shm_why, sizeof g->shm_why, "pools are mapped both ways");
}

static void welcome(struct kvf_guest *g, const struct kvf_peer_msg *hello)
{
    struct kvf_peers *ps = g->ps;
    const struct kvf_peers_env *env = &ps->env;
    struct kvf_peer_msg m;
    uint64_t *dead;

    dead = calloc((size_t)hello->u.hello.n_live + 1, sizeof *dead);
    if (dead == NULL)
        return; /* it asks again */
    kvf_peers_head(ps, &m, KVF_PEER_WELCOME, &g->incarnation);
    m.u.welcome.pool = env->pool;
    m.u.welcome.peer_timeout_ms = env->conf->peer_timeout_ms;
    m.u.welcome.shm = g->shm_ok;
    memcpy(m.u.welcome.shm_why, g->shm_why, sizeof m.u.welcome.shm_why);
    if (env->bulk_port != 0 && env->admit != NULL && !g->admitted) {
        kvf_random_bytes(g->secret, sizeof g->secret);
        g->admitted = env->admit(env->admit_ctx, g->secret, g, NULL) == 0;
    }
    m.u.welcome.tcp = g->admitted;
    snprintf(m.u.welcome.tcp_host, sizeof m.u.welcome.tcp_host, "%s",
             env->bulk_host);
    m.u.welcome.tcp_port = env->bulk_port;
    memcpy(m.u.welcome.secret, g->secret, sizeof g->secret);
    m.u.welcome.rdma = env->rdma != NULL;
    m.u.welcome.dead = dead;
    m.u.welcome.n_dead = kvf_guest_reconcile(g, hello->u.hello.live,
                                             hello->u.hello.n_live, dead);
    kvf_guest_writes_again(g);
    kvf_guest_answer(g, &m, NULL, 0);
    free(dead);
    kvf_guest_revoke_again(g);
    kvf_guest_retired_again(g);
}

/* The key: link and, right behind it, incarnation. */
#define GUEST_KEY_LEN (sizeof(struct kvf_id) + sizeof(uint64_t))
static_assert(offsetof(struct kvf_guest, incarnation) ==
                  offsetof(struct kvf_guest, link) + sizeof(uint64_t),
              "the key has no gap");

static struct kvf_guest *guest_of(const struct kvf_peers *ps,
                                  const struct kvf_id *incarnation,
                                  uint64_t link)
{
    uint8_t key[GUEST_KEY_LEN];
    struct kvf_guest *g;

    memcpy(key, &link, sizeof link);
    memcpy(key + sizeof link, incarnation, sizeof *incarnation);
    HASH_FIND(hh, ps->guests, key, sizeof key, g);
    return g;
}

static struct kvf_guest *
guest_new(struct kvf_peers *ps, const struct kvf_peer_head *head, uint64_t link)
{
    struct kvf_guest *g;

    if (HASH_COUNT(ps->guests) >= ps->env.conf->max_peers)
        return NULL;
    g = calloc(1, sizeof *g);
    if (g == NULL)
        return NULL;
    g->ps = ps;
    g->worker = head->worker;
    g->incarnation = head->from;
    g->link = link;
    snprintf(g->name, sizeof g->name, KVF_WORKER_FMT,
             KVF_WORKER_ARG(&g->worker));
    kvf_timer_init(&g->tick, guest_tick);
    kvf_timer_init(&g->ended_timer, on_ended_timer);
    kvf_list_init(&g->claims);
    kvf_list_init(&g->together);
    kvf_list_init(&g->accesses);
    kvf_list_init(&g->rooms);
    kvf_list_init(&g->engines);
    HASH_ADD(hh, ps->guests, link, GUEST_KEY_LEN, g);
    return g;
}

static void refuse_full(struct kvf_peers *ps, const void *rid, size_t rid_len,
                        const struct kvf_peer_msg *hello)
{
    struct kvf_peer_msg m;

    ps->env.stats->peer_refused++;
    kvf_peers_head(ps, &m, KVF_PEER_REFUSE, &hello->head.from);
    m.u.refuse.status = KVF_BUSY;
    snprintf(m.u.refuse.text, sizeof m.u.refuse.text,
             "%u peers are connected already ([limits] max_peers)",
             ps->env.conf->max_peers);
    if (kvf_peer_encode(&ps->w, &m) == 0)
        ps->env.channel.ops->answer(ps->env.channel.ctx, rid, rid_len,
                                    ps->w.buf.data, ps->w.buf.size, NULL, 0);
}

void kvf_guest_hello(struct kvf_peers *ps, const void *rid, size_t rid_len,
                     struct kvf_peer_msg *m)
{
    struct kvf_guest *g;
    bool fresh;

    g = guest_of(ps, &m->head.from, m->u.hello.link);
    if (g != NULL && !kvf_worker_equal(&g->worker, &m->head.worker)) {
        ps->env.stats->peer_malformed++;
        return; /* an incarnation is one worker's */
    }
    if (g == NULL)
        g = guest_new(ps, &m->head, m->u.hello.link);
    if (g == NULL) {
        refuse_full(ps, rid, rid_len, m);
        return;
    }
    fresh = !g->up;
    /* Lookups of the old connection: the getter asks again for what it still
     * wants. */
    if (g->rid_len != 0 &&
        (g->rid_len != rid_len || memcmp(g->rid, rid, rid_len) != 0))
        kvf_guest_drop_asks(g);
    bind_rid(g, rid, rid_len);
    kvf_told_clear(&g->told);
    kvf_told_clear(&g->told_keys); /* it may have missed what was under way */
    g->up = true;
    g->last_rx_ns = ps->env.sched->now_ns;
    g->rdma = m->u.hello.rdma;
    try_shm(g, m);
    if (fresh) {
        ps->env.stats->peer_up++;
        kvf_log_limited(&limits_of(g)->up, ps->env.sched->now_ns, KVF_LOG_INFO,
                        "KVF PEER", "%s up (getter) shm=%s: %s", g->name,
                        g->shm_ok ? "yes" : "no", g->shm_why);
    }
    kvf_timer_set(ps->env.sched, &g->tick,
                  g->last_rx_ns + kvf_peers_silence_ns(ps));
    for (unsigned i = 0; i < m->u.hello.n_gone; i++)
        kvf_guest_unmapped(ps, &m->u.hello.gone[i]);
    welcome(g, m);
}
