/* Claims of getters on what this owner has, and how each ends.
 *
 * Happy path: DONE or ABORT, acknowledged with others in one message. Failure
 * modes: the session ends (those over shm stay until every process that maps
 * them is gone); what only one side believes live ends at the next HELLO. */
#include "peer/access.h"

#include <stdlib.h>
#include <string.h>

/* How long an acknowledgement waits for others to travel with in one message.
 * The getter reminds us after a second (peer.c, END_AGAIN_NS). */
#define ENDED_WAIT_NS (100 * KVF_NS_PER_MS)

struct kvf_claim *kvf_peers_claim(const struct kvf_peers *ps, uint64_t id)
{
    return kvf_claim_find(id < KVF_BLOCK_CLAIMS
                              ? ps->env.store
                              : kvf_blocks_store(ps->env.blocks),
                          id);
}

/* ---- engines of views --------------------------------------------------- */

static void on_engine_gone(void *arg)
{
    struct kvf_engine_watch *e = arg;
    struct kvf_guest *g = e->guest;

    e->gone = true;
    /* While its daemon lives, that one tells us what is over; it cannot be
     * wrong about its own engine. */
    if (g->daemon_gone) {
        kvf_guest_reap(g);
        kvf_guest_settle(g);
    }
}

struct kvf_engine_watch *kvf_guest_hold_engine(struct kvf_guest *g,
                                               uint64_t pid, uint64_t start)
{
    const struct kvf_peers_env *env = &g->ps->env;
    struct kvf_engine_watch *e;

    kvf_list_for_each (n, &g->engines) {
        e = kvf_container_of(n, struct kvf_engine_watch, node);
        if (e->pid == pid && e->start == start && !e->gone) {
            e->claims++;
            e->unmapped = false;
            return e;
        }
    }
    e = calloc(1, sizeof *e);
    if (e == NULL)
        return NULL;
    kvf_list_init(&e->node);
    e->guest = g;
    e->pid = pid;
    e->start = start;
    if (env->proc.watch(env->proc_ctx, pid, start, on_engine_gone, e, &e->watch,
                        NULL) < 0) {
        free(e);
        return NULL;
    }
    e->claims = 1;
    kvf_list_push_back(&g->engines, &e->node);
    return e;
}

static void engine_release(struct kvf_engine_watch *e)
{
    const struct kvf_peers_env *env = &e->guest->ps->env;

    if (--e->claims != 0)
        return;
    env->proc.unwatch(env->proc_ctx, e->watch);
    kvf_list_unlink(&e->node);
    free(e);
}

/* ---- ending claims ------------------------------------------------------ */

void kvf_guest_claim_end(struct kvf_claim *c, bool done)
{
    struct kvf_engine_watch *e = c->holder_data;
    struct kvf_guest *g = c->holder;

    if (c->eager)
        g->eager_bytes -= c->gen->size;
    g->meta_bytes -= c->gen->meta_len; /* publications have none */
    c->holder_data = NULL;
    kvf_list_unlink(&c->holder_node);
    if (done)
        kvf_claim_done(c);
    else
        kvf_claim_abort(c);
    if (e != NULL)
        engine_release(e);
}

void kvf_guest_abort_claims(struct kvf_guest *g, bool shm_too)
{
    kvf_list_for_each_safe (n, &g->claims) {
        struct kvf_claim *c =
            kvf_container_of(n, struct kvf_claim, holder_node);

        if ((!c->shm || shm_too) && !(c->rdma && g->rdma_stuck))
            kvf_guest_claim_end(c, false);
    }
}

void kvf_guest_reap(struct kvf_guest *g)
{
    if (!g->daemon_gone)
        return;
    kvf_list_for_each_safe (n, &g->claims) {
        struct kvf_claim *c =
            kvf_container_of(n, struct kvf_claim, holder_node);
        const struct kvf_engine_watch *e = c->holder_data;

        if (e == NULL || e->gone || e->unmapped)
            kvf_guest_claim_end(c, e != NULL && e->unmapped);
    }
    kvf_guest_end_accesses(g, true); /* only its daemon has mapped those */
}

/* Anybody may say this of any process, and the notice may come before the
 * news that the daemon has ended: nothing ends before that. */
void kvf_guest_unmapped(struct kvf_peers *ps, const struct kvf_peer_gone *gone)
{
    struct kvf_guest *g, *next;

    HASH_ITER (hh, ps->guests, g, next) {
        if (!kvf_id_equal(&g->incarnation, &gone->incarnation))
            continue;
        kvf_list_for_each (n, &g->engines) {
            struct kvf_engine_watch *e =
                kvf_container_of(n, struct kvf_engine_watch, node);

            if (e->pid == gone->pid && e->start == gone->start)
                e->unmapped = true;
        }
        kvf_guest_reap(g);
        kvf_guest_settle(g);
    }
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x, y;

    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

static bool holds(const struct kvf_guest *g, uint64_t id)
{
    const struct kvf_access *a;
    const struct kvf_claim *c;

    if ((id & KVF_ACCESS_BIT) != 0) {
        a = kvf_access_find(g->ps, id);
        return a != NULL && a->guest == g;
    }
    c = kvf_peers_claim(g->ps, id);
    return c != NULL && c->holder == g;
}

unsigned kvf_guest_reconcile(struct kvf_guest *g, const uint64_t *live,
                             unsigned n_live, uint64_t *dead)
{
    uint64_t *sorted = dead; /* scratch first, the answer afterwards */
    unsigned n_dead = 0;

    if (n_live != 0)
        memcpy(sorted, live, n_live * sizeof *sorted);
    qsort(sorted, n_live, sizeof *sorted, compare_u64);
    kvf_list_for_each_safe (n, &g->claims) {
        struct kvf_claim *c =
            kvf_container_of(n, struct kvf_claim, holder_node);

        if (bsearch(&c->id, sorted, n_live, sizeof *sorted, compare_u64) ==
            NULL)
            kvf_guest_claim_end(c, false);
    }
    kvf_list_for_each_safe (n, &g->accesses) {
        struct kvf_access *a =
            kvf_container_of(n, struct kvf_access, guest_node);

        if (bsearch(&a->id, sorted, n_live, sizeof *sorted, compare_u64) ==
            NULL)
            kvf_access_end(a);
    }
    for (unsigned i = 0; i < n_live; i++)
        if (!holds(g, live[i]))
            dead[n_dead++] = live[i];
    return n_dead;
}

void kvf_guest_flush_ended(struct kvf_guest *g)
{
    struct kvf_peer_msg m;

    if (g->n_ended == 0)
        return;
    kvf_peers_head(g->ps, &m, KVF_PEER_ENDED, &g->incarnation);
    m.u.ended.claim = g->ended[0];
    m.u.ended.more = g->ended + 1;
    m.u.ended.n_more = g->n_ended - 1;
    g->n_ended = 0;
    kvf_timer_cancel(g->ps->env.sched, &g->ended_timer);
    kvf_guest_answer(g, &m, NULL, 0);
}

void kvf_guest_on_end(struct kvf_guest *g, uint64_t claim,
                      const struct kvf_id *token, bool done)
{
    struct kvf_peers *ps = g->ps;
    struct kvf_claim *c = NULL;
    struct kvf_access *a = NULL;
    bool first = false;

    if ((claim & KVF_ACCESS_BIT) != 0)
        a = kvf_access_find(ps, claim);
    else
        c = kvf_peers_claim(ps, claim);
    if (a != NULL && a->guest == g &&
        kvf_secret_equal(&a->token, token, sizeof *token)) {
        kvf_access_end(a);
        first = true;
    } else if (a != NULL) {
        ps->env.stats->peer_malformed++;
    } else if (c != NULL && c->holder == g &&
               kvf_secret_equal(&c->token, token, sizeof *token)) {
        kvf_guest_claim_end(c, done);
        first = true;
    } else if (c == NULL && done && (claim & KVF_ACCESS_BIT) == 0)
        kvf_store_late_done(claim < KVF_BLOCK_CLAIMS
                                ? ps->env.store
                                : kvf_blocks_store(ps->env.blocks),
                            claim);
    else if (c != NULL)
        ps->env.stats->peer_malformed++; /* somebody else's claim */
    g->ended[g->n_ended++] = claim;
    /* Nobody waits for an acknowledgement: alone it would wake the getter for
     * nothing, and with the next GRANT it would delay that. So many go in one
     * message. One that is asked for again goes at once. */
    if (!first || g->n_ended == KVF_ENDED_BATCH)
        kvf_guest_flush_ended(g);
    else if (!kvf_timer_armed(&g->ended_timer))
        kvf_timer_set(ps->env.sched, &g->ended_timer,
                      ps->env.sched->now_ns + ENDED_WAIT_NS);
}
