/* An owner that we pull from: dialling, session, keepalive. What we send it is
 * peer_send.c's, the ways to its memory are peer_ways.c's.
 *
 * DIALING -HELLO-> (WELCOME) UP -silence, BYE, new incarnation-> DOWN -> UP ...
 *
 * Failure modes: never answers (stays DIALING; gets run into their deadlines);
 * refuses us (version, cluster: REFUSED, gets are told at once, tried again
 * later); goes silent (DOWN after peer_timeout_ms: asks fail, claims whose
 * bytes come by a socket are lost); restarts (another incarnation: everything
 * learnt from the old one ends). */
#include "peer/peers_private.h"

#include "base/log.h"

#include <stdio.h>

#define HELLO_AGAIN_NS (1000 * KVF_NS_PER_MS)
#define REFUSED_AGAIN_NS (3 * KVF_NS_PER_S)
/* A DONE or ABORT is sent again when it was not acknowledged for so long. */
#define END_AGAIN_NS (1000 * KVF_NS_PER_MS)
/* An owner gone for so long has dropped our claims: stop reminding it. */
#define ENDS_KEPT_NS (600 * KVF_NS_PER_S)

static void peer_tick(struct kvf_timer *t);
static void dial(struct kvf_peer *p);

void kvf_peer_renew(struct kvf_peer *p)
{
    if (p->state != KVF_PEER_UP || p->renewing)
        return;
    p->renewing = true;
    kvf_peer_send_hello(p);
}

static void on_writable(void *arg)
{
    struct kvf_peer *p = arg;

    if (p->renewing) {
        kvf_peer_send_hello(p);
    } else if (p->state == KVF_PEER_UP) {
        kvf_peer_doubt(p, p->ps->next_ask);
        kvf_peer_flush_queue(p);
        /* A new connection has to be renewed: found out now. */
        kvf_peer_send_ping(p);
    } else if (p->state != KVF_PEER_REFUSED) {
        kvf_peer_send_hello(p);
    }
}

/* ---- state -------------------------------------------------------------- */

static void set_name(struct kvf_peer *p)
{
    if (p->known)
        snprintf(p->name, sizeof p->name, KVF_WORKER_FMT,
                 KVF_WORKER_ARG(&p->worker));
    else
        snprintf(p->name, sizeof p->name, "%s", p->addr);
}

static void tell_users(struct kvf_peer *p, bool up)
{
    struct kvf_list batch;
    struct kvf_list *n;

    /* Users may leave (or others of the batch) from inside their callbacks. */
    kvf_list_init(&batch);
    kvf_list_splice(&batch, &p->users);
    while ((n = kvf_list_pop(&batch)) != NULL) {
        struct kvf_peer_user *u =
            kvf_container_of(n, struct kvf_peer_user, node);

        kvf_list_push_back(&p->users, n);
        if (up && u->on_up != NULL)
            u->on_up(u);
        else if (!up && u->on_down != NULL)
            u->on_down(u, &p->why);
    }
}

#define LAST_WORDS_MS 100

static void hang_up(struct kvf_peer *p, unsigned flush_ms)
{
    const struct kvf_channel *ch = &p->ps->env.channel;

    if (p->dial != NULL)
        ch->ops->hangup(ch->ctx, p->dial, flush_ms);
    p->dial = NULL;
    kvf_peer_drop_queue(p);
}

/* Everything that hangs on the session ends; the users are told. */
static void go_down(struct kvf_peer *p, enum kvf_peer_state next)
{
    struct kvf_peers *ps = p->ps;
    bool was_up = p->state == KVF_PEER_UP;

    p->state = next;
    p->renewing = false;
    p->down_since_ns = ps->env.sched->now_ns;
    hang_up(p, 0);
    kvf_peer_forget_layouts(p);
    if (was_up) {
        ps->env.stats->peer_down++;
        kvf_log_limited(&p->log_down, ps->env.sched->now_ns, KVF_LOG_WARN,
                        "KVF PEER", "%s down addr=%s: %s", p->name, p->addr,
                        p->why.text);
    }
    kvf_peer_close_tcp(p);
    kvf_peer_rdma_stop(p);
    kvf_peer_fail_asks(p, &p->why);
    kvf_peer_lose_grants(p, false, &p->why);
    tell_users(p, false);
    if (was_up && ps->env.on_peer != NULL)
        ps->env.on_peer(ps->env.on_peer_arg, &p->worker, false, p->why.text);
    if (next == KVF_PEER_REFUSED) {
        kvf_timer_set(ps->env.sched, &p->tick,
                      ps->env.sched->now_ns + REFUSED_AGAIN_NS);
        return;
    }
    dial(p);
}

static void forget_incarnation(struct kvf_peer *p)
{
    struct kvf_why why;

    kvf_fail(&why, KVF_PEER_UNREACHABLE,
             "%s has restarted since: what it had is gone", p->name);
    kvf_peer_lose_grants(p, true, &why);
    kvf_peer_gone(p);
    kvf_peer_close_tcp(p);
    kvf_peer_rdma_forget(p);
    kvf_peer_close_shm(p);
    p->known = false;
}

static const struct kvf_dial_ops dial_ops;

static void dial(struct kvf_peer *p)
{
    const struct kvf_channel *ch = &p->ps->env.channel;
    struct kvf_sched *s = p->ps->env.sched;
    struct kvf_why why;

    if (ch->ops->dial(ch->ctx, p->host, p->port, &dial_ops, p, &p->dial, &why) <
        0) {
        /* Out of sockets or memory here: the tick tries again. */
        p->dial = NULL;
        kvf_fail(&p->why, KVF_PEER_UNREACHABLE, "cannot dial %s: %s", p->addr,
                 why.text);
    }
    kvf_timer_set(s, &p->tick,
                  s->now_ns + HELLO_AGAIN_NS / 2 +
                      kvf_rng_below(p->ps->env.rng, HELLO_AGAIN_NS / 2));
}

/* ---- receiving ---------------------------------------------------------- */

/* Both sides have told which claims they know: what only one knows ends. */
static void settle_claims(struct kvf_peer *p, const struct kvf_peer_msg *m)
{
    for (unsigned i = 0; i < m->u.welcome.n_dead; i++) {
        kvf_peer_on_ended(p, m->u.welcome.dead[i]);
        kvf_peer_on_revoked(p, m->u.welcome.dead[i],
                            "the owner ended it while we were apart");
    }
    kvf_peer_send_ends(p, KVF_NEVER);
}

/* The connection was made anew within the session: claims live on, lookups are
 * sent again. */
static void renewed(struct kvf_peer *p, const struct kvf_peer_msg *m)
{
    p->renewing = false;
    p->doubt_from = UINT64_MAX;
    kvf_log_limited(&p->log_renewed, p->ps->env.sched->now_ns, KVF_LOG_INFO,
                    "KVF PEER", "%s reconnect addr=%s: session renewed",
                    p->name, p->addr);
    kvf_peer_take_terms(p, m);
    kvf_peer_drop_queue(p);
    kvf_peer_forget_layouts(p);
    kvf_peer_rdma_start(p, m->u.welcome.rdma);
    settle_claims(p, m);
    kvf_peer_repeat_asks(p);
}

static void on_welcome(struct kvf_peer *p, struct kvf_peer_msg *m)
{
    struct kvf_peers *ps = p->ps;
    bool again = p->was_up;

    if (p->state == KVF_PEER_UP) {
        /* Else the answer to a HELLO that was sent twice. */
        if (p->renewing && kvf_id_equal(&p->incarnation, &m->head.from)) {
            renewed(p, m);
        } else if (p->renewing) {
            /* It restarted before it heard that we came back. */
            kvf_fail(&p->why, KVF_PEER_UNREACHABLE, "%s has restarted",
                     p->name);
            go_down(p, KVF_PEER_DOWN);
        }
        return;
    }
    if (p->known && !kvf_id_equal(&p->incarnation, &m->head.from))
        forget_incarnation(p);
    p->known = true;
    p->incarnation = m->head.from;
    p->worker = m->head.worker;
    set_name(p);
    if (!p->shm_ok)
        kvf_peer_open_shm(p, m);
    kvf_peer_take_terms(p, m);
    p->state = KVF_PEER_UP;
    p->was_up = true;
    p->doubt_from = UINT64_MAX;
    kvf_peer_rdma_start(p, m->u.welcome.rdma);
    ps->env.stats->peer_up++;
    kvf_log_limited(&p->log_up, ps->env.sched->now_ns, KVF_LOG_INFO, "KVF PEER",
                    "%s %s addr=%s transport=%s: %s", p->name,
                    again ? "reconnect" : "up", p->addr,
                    p->shm_ok     ? "shm"
                    : p->has_rdma ? "rdma"
                    : p->has_tcp  ? "tcp"
                                  : "none",
                    p->shm_why);
    settle_claims(p, m);
    kvf_timer_set(ps->env.sched, &p->tick,
                  ps->env.sched->now_ns + kvf_peer_ping_ns(p));
    tell_users(p, true);
    if (ps->env.on_peer != NULL)
        ps->env.on_peer(ps->env.on_peer_arg, &p->worker, true, "");
}

static void on_refuse(struct kvf_peer *p, const struct kvf_peer_msg *m)
{
    enum kvf_status status = (enum kvf_status)m->u.refuse.status;

    if (status == KVF_STALE && p->state == KVF_PEER_UP &&
        kvf_id_equal(&m->head.from, &p->incarnation)) {
        /* The same start of it: only the connection is new to it, or it could
         * not hear us for a while. What both still know goes on. */
        kvf_peer_renew(p);
        return;
    }
    if (status == KVF_STALE) {
        /* It has no session for us because it restarted. */
        kvf_fail(&p->why, KVF_PEER_UNREACHABLE, "%s has restarted", p->name);
        if (p->state == KVF_PEER_UP)
            go_down(p, KVF_PEER_DOWN);
        return;
    }
    kvf_fail(&p->why, status == KVF_BUSY ? KVF_BUSY : KVF_MISMATCH,
             "%s refuses us: %s", p->name, m->u.refuse.text);
    kvf_log(KVF_LOG_WARN, "PEER", "%s refused addr=%s: %s", p->name, p->addr,
            m->u.refuse.text);
    go_down(p, KVF_PEER_REFUSED);
}

static bool believable(struct kvf_peer *p, const struct kvf_peer_msg *m)
{
    const struct kvf_peers *ps = p->ps;

    if (!kvf_id_equal(&m->head.to, &ps->env.incarnation))
        return false;
    if (m->head.type == KVF_PEER_WELCOME || m->head.type == KVF_PEER_REFUSE)
        return true;
    return p->state == KVF_PEER_UP &&
           kvf_id_equal(&m->head.from, &p->incarnation);
}

static void dispatch(struct kvf_peer *p, struct kvf_peer_msg *m)
{
    switch (m->head.type) {
    case KVF_PEER_WELCOME:
        on_welcome(p, m);
        break;
    case KVF_PEER_REFUSE:
        on_refuse(p, m);
        break;
    case KVF_PEER_GRANT:
        kvf_peer_on_grant(p, m);
        break;
    case KVF_PEER_DENY:
        kvf_peer_on_deny(p, m);
        break;
    case KVF_PEER_ENDED:
        kvf_peer_ended_message(p, m);
        break;
    case KVF_PEER_REVOKED:
        kvf_peer_on_revoked(p, m->u.revoked.claim, m->u.revoked.text);
        break;
    case KVF_PEER_APPLIED:
        kvf_peer_on_applied(p, m);
        break;
    case KVF_PEER_RETIRED:
        kvf_peer_on_retired(p, &m->u.retired);
        break;
    case KVF_PEER_PONG:
        kvf_peer_on_pong(p);
        break;
    case KVF_PEER_BYE:
        kvf_fail(&p->why, KVF_PEER_UNREACHABLE, "%s went away: %s", p->name,
                 m->u.bye.text);
        kvf_peer_bye(p, "heard"); /* it keeps the connection so long */
        hang_up(p, LAST_WORDS_MS);
        kvf_peer_gone(p);
        go_down(p, KVF_PEER_DOWN);
        break;
    case KVF_PEER_RDMA_ACCEPT:
    case KVF_PEER_RDMA_REFUSE:
    case KVF_PEER_RDMA_CLOSE:
    case KVF_PEER_RDMA_KEYS:
        kvf_peer_rdma_message(p, m);
        break;
    case KVF_PEER_LAYOUT:
    case KVF_PEER_LAYOUT_GONE:
    case KVF_PEER_LAYOUT_IS:
    case KVF_PEER_BLOCKS_GRANT:
    case KVF_PEER_VERDICT:
        kvf_peer_blocks_message(p, m);
        break;
    case KVF_PEER_RDMA_CONNECT:
    case KVF_PEER_LAYOUT_ASK:
    case KVF_PEER_BLOCKS_ASK:
    case KVF_PEER_TOGETHER:
    case KVF_PEER_HELLO:
    case KVF_PEER_PING:
    case KVF_PEER_ASK:
    case KVF_PEER_UNASK:
    case KVF_PEER_DONE:
    case KVF_PEER_ABORT:
    case KVF_PEER_UNMAPPED:
    case KVF_PEER_WINDOW_ASK:
    case KVF_PEER_ROOM_ASK:
    case KVF_PEER_COMMIT:
    case KVF_PEER_NOTIFY:
    case KVF_PEER_RETIRED_SEEN:
    case KVF_PEER_TYPE_END:
        p->ps->env.stats->peer_malformed++;
        break;
    }
}

static void on_message(void *arg, const void *data, size_t len,
                       const void *payload, size_t payload_len)
{
    struct kvf_peer *p = arg;
    struct kvf_peers *ps = p->ps;
    struct kvf_peer_msg m;
    struct kvf_why why;
    int ret = kvf_peer_decode(&m, data, len, payload, payload_len, &why);

    if (ret == 0)
        ret = kvf_peers_check_head(ps, &m.head, &why);
    if (ret == -(int)KVF_MISMATCH && p->state != KVF_PEER_REFUSED) {
        p->why = why;
        ps->env.stats->peer_refused++;
        kvf_log(KVF_LOG_WARN, "PEER", "%s refused addr=%s: %s", p->name,
                p->addr, why.text);
        go_down(p, KVF_PEER_REFUSED);
    } else if (ret < 0) {
        ps->env.stats->peer_malformed++;
        kvf_log_limited(&ps->log_bad, ps->env.sched->now_ns, KVF_LOG_WARN,
                        "PEER", "%s sent an unreadable message: %s", p->name,
                        why.text);
    } else if (!believable(p, &m)) {
        ps->env.stats->peer_stale++;
    } else {
        p->last_rx_ns = ps->env.sched->now_ns;
        dispatch(p, &m);
    }
    kvf_peer_done(&m);
}

static const struct kvf_dial_ops dial_ops = {.on_message = on_message,
                                             .on_writable = on_writable};

/* ---- keepalive ---------------------------------------------------------- */

static void tick_up(struct kvf_peer *p)
{
    struct kvf_sched *s = p->ps->env.sched;
    uint64_t limit = kvf_peers_silence_ns(p->ps), ping = kvf_peer_ping_ns(p);
    uint64_t due;

    if (s->stalled && s->now_ns - p->last_rx_ns > limit / 2)
        p->last_rx_ns = s->now_ns - limit / 2; /* we slept ourselves: ask */
    if (s->now_ns - p->last_rx_ns >= limit) {
        kvf_fail(
            &p->why, KVF_PEER_UNREACHABLE, "no sign of life for %llu ms",
            (unsigned long long)((s->now_ns - p->last_rx_ns) / KVF_NS_PER_MS));
        go_down(p, KVF_PEER_DOWN);
        return;
    }
    if (p->renewing)
        kvf_peer_send_hello(p);
    else if (s->now_ns - p->last_rx_ns >= ping / 2)
        kvf_peer_send_ping(p);
    if (p->ends != NULL && s->now_ns > END_AGAIN_NS)
        kvf_peer_send_ends(p, s->now_ns - END_AGAIN_NS);
    due = s->now_ns + ping;
    if (due > p->last_rx_ns + limit)
        due = p->last_rx_ns + limit;
    kvf_timer_set(s, &p->tick, due);
}

static void peer_tick(struct kvf_timer *t)
{
    struct kvf_peer *p = kvf_container_of(t, struct kvf_peer, tick);
    struct kvf_sched *s = p->ps->env.sched;

    switch (p->state) {
    case KVF_PEER_UP:
        tick_up(p);
        return;
    case KVF_PEER_REFUSED:
        p->state = p->was_up ? KVF_PEER_DOWN : KVF_PEER_DIALING;
        dial(p);
        return;
    case KVF_PEER_DIALING:
    case KVF_PEER_DOWN:
        if (s->now_ns - p->down_since_ns > ENDS_KEPT_NS)
            kvf_peer_gone(p);
        if (p->dial == NULL) {
            dial(p);
            return;
        }
        kvf_peer_send_hello(p);
        kvf_timer_set(s, t,
                      s->now_ns + HELLO_AGAIN_NS +
                          kvf_rng_below(p->ps->env.rng, HELLO_AGAIN_NS / 4));
        return;
    }
}

/* ---- first and last ----------------------------------------------------- */

void kvf_peer_begin(struct kvf_peer *p)
{
    set_name(p);
    kvf_timer_init(&p->tick, peer_tick);
    dial(p);
}

void kvf_peer_end(struct kvf_peer *p)
{
    hang_up(p, LAST_WORDS_MS);
    kvf_peer_forget_layouts(p);
    kvf_peer_close_tcp(p);
    kvf_peer_rdma_stop(p);
    kvf_peer_close_shm(p);
    kvf_timer_cancel(p->ps->env.sched, &p->tick);
}
