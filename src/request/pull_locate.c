/* A pull looks for its sender: which daemon, and which ranks of its stage.
 *
 * Happy path: the daemon that the handle or `from` names tells a layout that
 * fits ours (or has told one before); its tp and pp give the window; every rank
 * of that becomes a source (pull_source.c). Failure modes: as for a get. */
#include "request/pulls_private.h"

#include <inttypes.h>
#include <stdlib.h>

/* ---- what both levels do ------------------------------------------------ */

void kvf_pull_explain(struct kvf_peer *peer, const struct kvf_pull *p,
                      const struct kvf_why *why)
{
    if (why->status == KVF_MISMATCH)
        (void)kvf_peer_known_layout(peer, p->layout);
}

int kvf_pull_wait_up(struct kvf_pull *p, struct kvf_peer *peer,
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

/* ---- the window --------------------------------------------------------- */

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
        ret = kvf_source_begin(p, &p->sources[i], ranks[i], why);
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
    kvf_pull_explain(p->peer, p, why);
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
        ret = kvf_pull_wait_up(p, p->peer, &p->pause, &why);
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
