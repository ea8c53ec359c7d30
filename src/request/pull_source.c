/* One source of a pull: a rank of the sender, its daemon, and a claim there.
 *
 * Happy path: its daemon is reached, asked for the blocks (which may park us),
 * and grants; with the last claim the whole is planned. Failure modes: as for a
 * get; the first rank that says no ends the pull. */
#include "request/pulls_private.h"

#include <inttypes.h>
#include <string.h>

/* ---- its claim ---------------------------------------------------------- */

static struct kvf_pull_source *source_of(struct kvf_ask *a)
{
    return kvf_container_of(a, struct kvf_pull_source, ask);
}

static void on_source_deny(struct kvf_ask *a, const struct kvf_why *why,
                           uint64_t generation, uint64_t size)
{
    struct kvf_pull_source *s = source_of(a);
    struct kvf_why mine;

    (void)generation;
    (void)size;
    kvf_pull_explain(s->peer, s->pull, why);
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

/* ---- its daemon --------------------------------------------------------- */

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

static void on_source_pause(struct kvf_timer *t)
{
    struct kvf_pull_source *s =
        kvf_container_of(t, struct kvf_pull_source, pause);

    if (s->state == KVF_SOURCE_CONNECTING) /* it did not come back */
        kvf_pull_fail(s->pull, kvf_peer_why(s->peer));
    else
        kvf_source_resume(s);
}

/* ---- the beginning ------------------------------------------------------ */

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

int kvf_source_begin(struct kvf_pull *p, struct kvf_pull_source *s,
                     int64_t rank, struct kvf_why *why)
{
    int ret = place_source(p, s, rank, why);

    if (ret == 0)
        ret = kvf_peer_at(p->ps->env.peers, s->host, s->port, &s->peer, why);
    if (ret < 0)
        return ret;
    s->user.on_up = on_source_up;
    s->user.on_down = on_source_down;
    kvf_peer_join(s->peer, &s->user);
    return kvf_peer_state(s->peer) == KVF_PEER_UP
               ? 0
               : kvf_pull_wait_up(p, s->peer, &s->pause, why);
}
