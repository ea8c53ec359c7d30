/* A pull looks for its sender: which ranks, where, and a claim at each.
 *
 * Happy path: the daemon that the handle or `from` names tells a layout that
 * fits ours (or has told one before); its tp and pp give the window; every rank
 * of that is asked and may park us. Failure modes: as for a get, at the first
 * rank that says no. */
#include "request/pulls_private.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct kvf_pull_source *source_of(struct kvf_ask *a)
{
    return kvf_container_of(a, struct kvf_pull_source, ask);
}

/* ---- one source --------------------------------------------------------- */

/* Layouts that do not fit are compared here too: what differs is logged on both
 * sides. The sender's came before its refusal. */
static void explain(struct kvf_peer *peer, const struct kvf_pull *p,
                    const struct kvf_why *why)
{
    if (why->status == KVF_MISMATCH)
        (void)kvf_peer_known_layout(peer, p->layout);
}

static void on_source_deny(struct kvf_ask *a, const struct kvf_why *why,
                           uint64_t generation, uint64_t size)
{
    struct kvf_pull_source *s = source_of(a);
    struct kvf_why mine;

    (void)generation;
    (void)size;
    explain(s->peer, s->pull, why);
    kvf_fail(&mine, why->status, "rank %" PRId64 " of the sender (%s): %.200s",
             s->rank, kvf_peer_name(s->peer), why->text);
    kvf_pull_fail(s->pull, &mine);
}

/* The sender's engine was started anew, cut otherwise? Then the window is
 * wrong. */
static int check_layout(const struct kvf_pull_source *s,
                        const struct kvf_grant *g, struct kvf_why *why)
{
    const struct kvf_pull *p = s->pull;
    const struct kvf_far *f = g->far;

    if (f->side.tp != p->tp || f->side.pp != p->pp || f->rank != s->rank)
        return kvf_fail(why, KVF_MISMATCH,
                        "rank %" PRId64 " of the sender declares rank %" PRId64
                        " of tp %" PRId64 ", pp %" PRId64
                        "; its stage was tp %" PRId64 ", pp %" PRId64,
                        s->rank, f->rank, f->side.tp, f->side.pp, p->tp, p->pp);
    if (s->grant != NULL &&
        (s->grant->generation != g->generation ||
         s->grant->far->number != f->number || s->grant->far->size != f->size))
        return kvf_fail(why, KVF_STALE,
                        "rank %" PRId64
                        " of the sender published the request anew meanwhile",
                        s->rank);
    return 0;
}

static bool all_granted(const struct kvf_pull *p)
{
    for (unsigned i = 0; i < p->n_sources; i++)
        if (p->sources[i].state < KVF_SOURCE_GRANTED)
            return false;
    return true;
}

static void on_source_grant(struct kvf_ask *a, struct kvf_grant *g)
{
    struct kvf_pull_source *s = source_of(a);
    struct kvf_pull *p = s->pull;
    struct kvf_why why;
    int ret = check_layout(s, g, &why);

    if (ret < 0) {
        kvf_grant_abort(g);
        kvf_pull_fail(p, &why);
        return;
    }
    if (s->grant != NULL)
        kvf_grant_abort(s->grant);
    s->grant = g;
    g->user = s;
    g->on_lost = kvf_source_on_lost;
    s->state = KVF_SOURCE_GRANTED;
    if (p->admitted)
        kvf_source_move(s);
    else if (!p->planned && all_granted(p))
        kvf_pull_plan(p);
}

static void on_source_again(struct kvf_ask *a)
{
    kvf_source_ask(source_of(a));
}

void kvf_source_ask(struct kvf_pull_source *s)
{
    struct kvf_pull *p = s->pull;
    struct kvf_peer_blocks_ask body = {
        .rank = (uint64_t)s->rank,
        .request_id = {p->request_id, p->request_len},
        .want_shm = kvf_peer_has_shm(s->peer),
        .has_tag = p->has_handle,
        .tag = p->tag,
    };
    struct kvf_why why;

    kvf_timer_cancel(p->ps->env.sched, &s->pause);
    if (kvf_peer_check_worker(s->peer, &s->worker, &why) < 0) {
        kvf_pull_fail(p, &why);
        return;
    }
    s->state = KVF_SOURCE_ASKING;
    s->ask.on_grant = on_source_grant;
    s->ask.on_deny = on_source_deny;
    s->ask.on_again = on_source_again;
    if (kvf_peer_ask_blocks(s->peer, &s->ask, p->layout, &body, &why) < 0)
        kvf_pull_fail(p, &why);
}

static void on_source_up(struct kvf_peer_user *u)
{
    struct kvf_pull_source *s =
        kvf_container_of(u, struct kvf_pull_source, user);

    if (s->state == KVF_SOURCE_CONNECTING && s->pull->state < KVF_PULL_DRAINING)
        kvf_source_ask(s);
}

/* The engine's blocks there are safe only as long as its daemon minds them:
 * without it the claim is worth nothing, whatever the transport. */
static void on_source_down(struct kvf_peer_user *u, const struct kvf_why *why)
{
    struct kvf_pull_source *s =
        kvf_container_of(u, struct kvf_pull_source, user);

    if (s->pull->state >= KVF_PULL_DRAINING)
        return;
    if (s->state == KVF_SOURCE_CONNECTING &&
        kvf_peer_state(s->peer) != KVF_PEER_REFUSED)
        return;
    if (s->state != KVF_SOURCE_COMPLETE)
        kvf_pull_fail(s->pull, why);
}

/* As for a get: who was never there is awaited, who was there has a moment to
 * come back. */
static int wait_up(struct kvf_pull *p, struct kvf_peer *peer,
                   struct kvf_timer *pause, struct kvf_why *why)
{
    const struct kvf_pulls_env *env = &p->ps->env;

    if (kvf_peer_state(peer) == KVF_PEER_REFUSED) {
        *why = *kvf_peer_why(peer);
        return -(int)why->status;
    }
    if (kvf_peer_was_up(peer))
        kvf_timer_set(env->sched, pause,
                      p->t_start + env->conf->peer_timeout_ms * KVF_NS_PER_MS);
    return 0;
}

static int source_begin(struct kvf_pull_source *s, struct kvf_why *why)
{
    struct kvf_pull *p = s->pull;
    int ret = kvf_peer_at(p->ps->env.peers, s->host, s->port, &s->peer, why);

    if (ret < 0)
        return ret;
    s->user.on_up = on_source_up;
    s->user.on_down = on_source_down;
    kvf_peer_join(s->peer, &s->user);
    return kvf_peer_state(s->peer) == KVF_PEER_UP
               ? 0
               : wait_up(p, s->peer, &s->pause, why);
}

static void on_source_pause(struct kvf_timer *t)
{
    struct kvf_pull_source *s =
        kvf_container_of(t, struct kvf_pull_source, pause);

    if (s->state == KVF_SOURCE_CONNECTING) /* it did not come back */
        kvf_pull_fail(s->pull, kvf_peer_why(s->peer));
    else
        kvf_source_resume(s);
}

/* ---- the window --------------------------------------------------------- */

static int place_source(struct kvf_pull *p, struct kvf_pull_source *s,
                        int64_t rank, struct kvf_why *why)
{
    const struct kvf_worker *w = kvf_peer_worker(p->peer);

    s->pull = p;
    s->rank = rank;
    kvf_list_init(&s->user.node);
    kvf_timer_init(&s->pause, on_source_pause);
    kvf_retry_init(&s->retry, kvf_source_on_link);
    if (w == NULL || rank > KVF_RANK_MAX)
        return kvf_fail(why, KVF_INVALID,
                        "rank %" PRId64 " of the sender can be no worker: "
                        "ranks go up to %u",
                        rank, KVF_RANK_MAX);
    s->worker = (struct kvf_worker){w->stage, (uint32_t)rank, w->replica};
    if (kvf_worker_equal(&s->worker, w)) {
        memcpy(s->host, p->host, sizeof s->host);
        s->port = p->port;
        return 0;
    }
    return kvf_directory_near(p->ps->env.peers, &s->worker, p->host, s->host,
                              sizeof s->host, &s->port, why);
}

static int make_sources(struct kvf_pull *p, const struct kvf_far *far,
                        struct kvf_why *why)
{
    const struct kvf_side *own = &p->layout->decl.side;
    int64_t *ranks;
    size_t n;
    int ret = kvf_window_ranks(own->n_layers, far->side.tp, far->side.pp, own,
                               p->layout->decl.rank, &ranks, &n);

    if (ret < 0)
        return kvf_fail(why, KVF_NO_SPACE, "out of memory for a pull");
    p->tp = far->side.tp;
    p->pp = far->side.pp;
    p->sources = calloc(n + 1, sizeof *p->sources);
    if (p->sources == NULL)
        ret = kvf_fail(why, KVF_NO_SPACE, "out of memory for a pull");
    for (size_t i = 0; ret == 0 && i < n; i++) {
        /* Counted before it can fail: it is taken down with the rest. */
        p->n_sources++;
        ret = place_source(p, &p->sources[i], ranks[i], why);
        if (ret == 0)
            ret = source_begin(&p->sources[i], why);
    }
    free(ranks);
    return ret;
}

static void open_window(struct kvf_pull *p, const struct kvf_far *far)
{
    struct kvf_why why;
    int ret;

    p->state = KVF_PULL_ASKING;
    ret = make_sources(p, far, &why);
    if (ret < 0) {
        kvf_pull_fail(p, &why);
        return;
    }
    if (p->n_sources == 0) { /* no layer of the model is on our stage */
        kvf_pull_plan(p);
        return;
    }
    for (unsigned i = 0; i < p->n_sources; i++) {
        struct kvf_pull_source *s = &p->sources[i];

        if (kvf_peer_state(s->peer) != KVF_PEER_UP)
            continue;
        kvf_source_ask(s);
        if (p->state >= KVF_PULL_DRAINING)
            return; /* it failed; the pull lives until its task runs */
    }
}

/* ---- the first daemon --------------------------------------------------- */

static void on_layout(struct kvf_ask *a, struct kvf_far *far)
{
    struct kvf_pull *p = kvf_container_of(a, struct kvf_pull, ask);
    const struct kvf_pair *pair =
        kvf_pair_of(far, p->layout, true, kvf_peer_name(p->peer));
    struct kvf_why why;

    if (pair == NULL || pair->rc < 0) {
        kvf_fail(&why, pair == NULL ? KVF_NO_SPACE : KVF_MISMATCH, "%s: %s",
                 pair == NULL ? "memory" : kvf_refuse_name(pair->no.kind),
                 pair == NULL ? "out of memory for a layout" : pair->no.text);
        kvf_pull_fail(p, &why);
        return;
    }
    open_window(p, far);
}

static void on_deny(struct kvf_ask *a, const struct kvf_why *why,
                    uint64_t generation, uint64_t size)
{
    struct kvf_pull *p = kvf_container_of(a, struct kvf_pull, ask);

    (void)generation;
    (void)size;
    explain(p->peer, p, why);
    kvf_pull_fail(p, why);
}

static void ask_layout(struct kvf_pull *p);

static void on_again(struct kvf_ask *a)
{
    ask_layout(kvf_container_of(a, struct kvf_pull, ask));
}

static void ask_layout(struct kvf_pull *p)
{
    struct kvf_why why;

    p->ask.on_layout = on_layout;
    p->ask.on_deny = on_deny;
    p->ask.on_again = on_again;
    if (kvf_peer_ask_layout(p->peer, &p->ask, p->layout,
                            p->has_handle ? &p->incarnation : NULL, &why) < 0)
        kvf_pull_fail(p, &why);
}

static void entry_up(struct kvf_pull *p)
{
    const struct kvf_id *now = kvf_peer_incarnation(p->peer);
    struct kvf_far *far;
    struct kvf_why why;

    kvf_timer_cancel(p->ps->env.sched, &p->pause);
    if (p->has_expect && kvf_peer_check_worker(p->peer, &p->expect, &why) < 0) {
        kvf_pull_fail(p, &why);
        return;
    }
    if (p->has_handle && now != NULL && !kvf_id_equal(now, &p->incarnation)) {
        kvf_fail(&why, KVF_STALE,
                 "the handle is of an earlier start of %s: what it had is gone",
                 kvf_peer_name(p->peer));
        kvf_pull_fail(p, &why);
        return;
    }
    if (kvf_pull_join(p, &why) < 0) {
        kvf_pull_fail(p, &why);
        return;
    }
    if (p->state != KVF_PULL_LOCATING)
        return;
    far = kvf_peer_known_layout(p->peer, p->layout);
    if (far != NULL)
        open_window(p, far);
    else
        ask_layout(p);
}

static void on_entry_up(struct kvf_peer_user *u)
{
    struct kvf_pull *p = kvf_container_of(u, struct kvf_pull, user);

    if (p->state == KVF_PULL_LOCATING && !p->ask.active)
        entry_up(p);
}

static void on_entry_down(struct kvf_peer_user *u, const struct kvf_why *why)
{
    struct kvf_pull *p = kvf_container_of(u, struct kvf_pull, user);

    if (p->state == KVF_PULL_LOCATING &&
        kvf_peer_state(p->peer) == KVF_PEER_REFUSED)
        kvf_pull_fail(p, why);
}

static void on_entry_pause(struct kvf_timer *t)
{
    struct kvf_pull *p = kvf_container_of(t, struct kvf_pull, pause);

    if (p->state == KVF_PULL_LOCATING)
        kvf_pull_fail(p, kvf_peer_why(p->peer));
}

void kvf_pull_begin(struct kvf_pull *p)
{
    struct kvf_why why;
    int ret;

    kvf_timer_init(&p->pause, on_entry_pause);
    ret = kvf_peer_at(p->ps->env.peers, p->host, p->port, &p->peer, &why);
    if (ret == 0) {
        p->user.on_up = on_entry_up;
        p->user.on_down = on_entry_down;
        kvf_peer_join(p->peer, &p->user);
        if (kvf_peer_state(p->peer) == KVF_PEER_UP) {
            entry_up(p);
            return;
        }
        ret = wait_up(p, p->peer, &p->pause, &why);
    }
    if (ret < 0)
        kvf_pull_fail(p, &why);
}

void kvf_pull_why_waiting(const struct kvf_pull *p, unsigned long long ms,
                          struct kvf_why *why)
{
    if (p->state == KVF_PULL_LOCATING && !p->ask.active) {
        kvf_fail(why, KVF_PEER_UNREACHABLE,
                 "the sender at %s:%u was not reached within %llu ms: %.120s",
                 p->host, p->port, ms,
                 p->peer != NULL ? kvf_peer_why(p->peer)->text
                                 : "not connected");
        return;
    }
    for (unsigned i = 0; i < p->n_sources; i++) {
        const struct kvf_pull_source *s = &p->sources[i];

        if (s->state != KVF_SOURCE_CONNECTING)
            continue;
        kvf_fail(why, KVF_PEER_UNREACHABLE,
                 "rank %" PRId64 " of the sender (%s:%u) was not reached "
                 "within %llu ms: %.120s",
                 s->rank, s->host, s->port, ms,
                 s->peer != NULL ? kvf_peer_why(s->peer)->text
                                 : "not connected");
        return;
    }
    for (unsigned i = 0; i < p->n_sources; i++)
        if (p->sources[i].state == KVF_SOURCE_ASKING) {
            kvf_fail(why, KVF_TIMEOUT,
                     "waited %llu ms; rank %" PRId64
                     " of the sender lives, the request was not published "
                     "there",
                     ms, p->sources[i].rank);
            return;
        }
    kvf_fail(why, KVF_TIMEOUT,
             "waited %llu ms; the sender lives and has declared no layout", ms);
}
