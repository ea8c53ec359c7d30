/* A get looks for its owner, asks it, and waits. */
#include "request/gets_private.h"

#include <string.h>

/* ---- the owner is another daemon ---------------------------------------- */

static void check_worker_and_ask(struct kvf_get *g)
{
    struct kvf_why why;

    kvf_timer_cancel(g->gs->env.sched, &g->pause);
    if (g->has_expect && kvf_peer_check_worker(g->peer, &g->expect, &why) < 0) {
        kvf_get_stop(g, &why);
        return;
    }
    if (g->mode == KVF_MODE_VIEW && !kvf_peer_has_shm(g->peer)) {
        kvf_get_because(g, KVF_UNSUPPORTED,
                        "a view of a key of %s is not possible: %s",
                        kvf_peer_name(g->peer), kvf_peer_shm_why(g->peer));
        kvf_get_feed(g, KVF_GET_EV_STOP);
        return;
    }
    kvf_get_feed(g, KVF_GET_EV_ASK);
}

static void on_peer_up(struct kvf_peer_user *u)
{
    struct kvf_get *g = kvf_container_of(u, struct kvf_get, user);

    if (g->m.state == KVF_GET_CONNECTING)
        check_worker_and_ask(g);
}

static void on_peer_down(struct kvf_peer_user *u, const struct kvf_why *why)
{
    struct kvf_get *g = kvf_container_of(u, struct kvf_get, user);

    /* Only a refusal is final while we wait for a session. */
    if (g->m.state == KVF_GET_CONNECTING &&
        kvf_peer_state(g->peer) == KVF_PEER_REFUSED)
        kvf_get_stop(g, why);
}

/* An owner that was there before gets a moment to come back. */
static void await_peer(struct kvf_get *g)
{
    g->user.on_up = on_peer_up;
    g->user.on_down = on_peer_down;
    if (kvf_peer_was_up(g->peer))
        kvf_timer_set(g->gs->env.sched, &g->pause,
                      g->t_start +
                          g->gs->env.conf->peer_timeout_ms * KVF_NS_PER_MS);
    kvf_get_feed(g, KVF_GET_EV_WAIT_PEER);
}

static void wait_for_peer(struct kvf_get *g)
{
    enum kvf_peer_state state = kvf_peer_state(g->peer);

    if (state == KVF_PEER_REFUSED) {
        kvf_get_stop(g, kvf_peer_why(g->peer));
        return;
    }
    if (!g->wait) {
        if (kvf_peer_was_up(g->peer))
            kvf_get_stop(g, kvf_peer_why(g->peer));
        else {
            kvf_get_because(g, KVF_NOT_FOUND,
                            "no session with %s yet (one is begun), and the "
                            "get does not wait",
                            kvf_peer_name(g->peer));
            kvf_get_feed(g, KVF_GET_EV_STOP);
        }
        return;
    }
    kvf_peer_join(g->peer, &g->user);
    await_peer(g);
}

void kvf_get_begin(struct kvf_get *g)
{
    struct kvf_why why;

    if (g->self) {
        kvf_get_feed(g, KVF_GET_EV_ASK);
        return;
    }
    if (kvf_peer_at(g->gs->env.peers, g->host, g->port, &g->peer, &why) < 0) {
        kvf_get_stop(g, &why);
        return;
    }
    if (kvf_peer_state(g->peer) != KVF_PEER_UP) {
        wait_for_peer(g);
        return;
    }
    /* Joined only to keep the peer from being evicted. */
    kvf_peer_join(g->peer, &g->user);
    check_worker_and_ask(g);
}

static void on_grant(struct kvf_ask *a, struct kvf_grant *grant)
{
    kvf_get_on_grant(kvf_container_of(a, struct kvf_get, ask), grant);
}

static void on_deny(struct kvf_ask *a, const struct kvf_why *why,
                    uint64_t generation, uint64_t size)
{
    struct kvf_get *g = kvf_container_of(a, struct kvf_get, ask);

    (void)generation;
    (void)size;
    /* An owner that was lost before it heard of this get was down already when
     * the get came: its next start may have the key. */
    if (a->unheard && g->wait && kvf_peer_state(g->peer) != KVF_PEER_REFUSED)
        await_peer(g);
    else
        kvf_get_stop(g, why);
}

static void ask_peer(struct kvf_get *g);

static void on_again(struct kvf_ask *a)
{
    ask_peer(kvf_container_of(a, struct kvf_get, ask));
}

/* Where the peer's pool is mapped a copy costs less than bytes that go through
 * ZeroMQ, but from this size on only: it takes a turn of the loop more. */
#define SHM_EAGER_MAX (16u << 10)

static uint64_t eager_max(const struct kvf_get *g)
{
    uint64_t max = g->gs->env.conf->inline_max;

    if (g->mode == KVF_MODE_VIEW)
        return 0;
    return kvf_peer_has_shm(g->peer) && max > SHM_EAGER_MAX ? SHM_EAGER_MAX
                                                            : max;
}

static void ask_peer(struct kvf_get *g)
{
    uint64_t now = g->gs->env.sched->now_ns;
    struct kvf_why why;
    struct kvf_peer_ask body = {
        .key = {g->key, g->key_len},
        .has_generation = g->has_generation,
        .generation = g->generation,
        .has_incarnation = g->has_incarnation,
        .incarnation = g->incarnation,
        .wait = g->wait,
        .want_shm = kvf_peer_has_shm(g->peer),
        .mode = g->mode,
        .eager_max = eager_max(g),
    };

    if (g->deadline_ns != KVF_NEVER)
        body.wait_ms = g->deadline_ns > now
                           ? (g->deadline_ns - now) / KVF_NS_PER_MS + 1
                           : 1;
    if (g->can_map && (g->mode == KVF_MODE_VIEW || g->mode == KVF_MODE_AUTO)) {
        body.view_pid = g->pid;
        body.view_start = g->start;
    }
    g->ask.on_grant = on_grant;
    g->ask.on_deny = on_deny;
    g->ask.on_again = on_again;
    if (kvf_peer_ask(g->peer, &g->ask, &body, &why) < 0)
        kvf_get_stop(g, &why);
}

/* ---- the owner is this daemon ------------------------------------------- */

static void take_local(struct kvf_get *g, struct kvf_claim *claim)
{
    struct kvf_why why;
    struct kvf_grant *grant = kvf_grant_local(g->gs->env.peers, claim, &why);

    if (grant == NULL)
        kvf_get_stop(g, &why);
    else
        kvf_get_on_grant(g, grant);
}

static void on_local_answer(struct kvf_waiter *w, struct kvf_claim *claim,
                            enum kvf_status status, const char *text)
{
    struct kvf_get *g = kvf_container_of(w, struct kvf_get, waiter);

    if (claim != NULL) {
        take_local(g, claim);
        return;
    }
    kvf_get_because(g, status, "%s", text);
    kvf_get_feed(g, KVF_GET_EV_STOP);
}

static void ask_self(struct kvf_get *g)
{
    struct kvf_claim *claim;
    struct kvf_why why;
    int ret;

    if (g->has_incarnation &&
        !kvf_id_equal(&g->incarnation, &g->gs->env.incarnation)) {
        kvf_get_because(g, KVF_STALE,
                        "the metadata is of an earlier start of this daemon: "
                        "what it had is gone");
        kvf_get_feed(g, KVF_GET_EV_STOP);
        return;
    }
    g->waiter.has_generation = g->has_generation;
    g->waiter.generation = g->generation;
    g->waiter.answer = on_local_answer;
    ret = kvf_store_ask(g->gs->env.store, g->key, g->key_len, &g->waiter,
                        g->wait, &claim, &why);
    if (ret == 0)
        take_local(g, claim);
    else if (ret < 0)
        kvf_get_stop(g, &why);
}

void kvf_get_ask(struct kvf_get *g)
{
    g->t_asked = kvf_sched_clock(g->gs->env.sched);
    if (g->self)
        ask_self(g);
    else
        ask_peer(g);
}

void kvf_get_unask(struct kvf_get *g)
{
    if (g->self)
        kvf_store_unask(g->gs->env.store, &g->waiter);
    else
        kvf_peer_unask(&g->ask);
}
