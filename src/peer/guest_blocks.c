/* What getters ask of this owner about blocks.
 *
 * Happy path: LAYOUT (once), LAYOUT_ASK -> which of ours fits, BLOCKS_ASK ->
 * parked until the request is published on that rank, compared, granted. DONE,
 * ABORT and the loss of a session are those of any claim (guest_claims.c).
 * Failure modes: layouts that do not fit (MISMATCH, logged here too); another
 * tag or incarnation (STALE); whatever ended the publication. */
#include "peer/peers_private.h"

#include "base/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void kvf_guest_on_layout(struct kvf_guest *g, struct kvf_peer_msg *m)
{
    int ret = kvf_far_add(&g->fars, m, g->ps->env.stats);

    /* Lookups that name it are told. */
    if (ret == -(int)KVF_BUSY)
        kvf_log_limited(&g->ps->log_refused, g->ps->env.sched->now_ns,
                        KVF_LOG_WARN, "KVF LAYOUT",
                        "%s receiver refused: %u layouts of it are in use",
                        g->name, KVF_FARS_MAX);
}

static void tell_layout(struct kvf_guest *g, const struct kvf_layout *l)
{
    struct kvf_peer_msg m;

    if (!kvf_told_new(&g->told, l->number))
        return;
    kvf_peers_head(g->ps, &m, KVF_PEER_LAYOUT, &g->incarnation);
    if (kvf_layout_msg(&m, l, g->shm_ok) < 0) {
        kvf_told_drop(&g->told, l->number);
        return;
    }
    kvf_guest_answer(g, &m, NULL, 0);
    kvf_layout_msg_free(&m);
}

/* The lookup may go on: its layout is known and its incarnation ours. */
static struct kvf_guest_ask *admit(struct kvf_guest *g, uint64_t id,
                                   uint64_t layout, bool bound,
                                   const struct kvf_id *incarnation)
{
    struct kvf_far *far = kvf_far_use(&g->fars, layout);
    struct kvf_guest_ask *a;

    if (bound && !kvf_id_equal(incarnation, &g->ps->env.incarnation)) {
        kvf_guest_say_no(
            g, id, KVF_STALE,
            "the handle is of an earlier start of this owner: what "
            "it had is gone");
        return NULL;
    }
    if (far == NULL && kvf_fars_full(g->fars)) {
        kvf_guest_say_no(g, id, KVF_BUSY,
                         "the owner knows as many layouts of the receiver as "
                         "it may (256), and all of them are in use");
        return NULL;
    }
    if (far == NULL) { /* it was not told, or dropped: told again, it is */
        kvf_guest_say_no(g, id, KVF_NOT_FOUND,
                         "the owner does not know the layout of the receiver");
        return NULL;
    }
    a = kvf_guest_ask_new(g, id);
    if (a != NULL)
        a->far = kvf_far_hold(far);
    return a;
}

static void deny_pair(struct kvf_guest *g, uint64_t id,
                      const struct kvf_pair *p)
{
    char text[200];

    if (p == NULL) {
        kvf_guest_say_no(g, id, KVF_NO_SPACE, "out of memory at the owner");
        return;
    }
    snprintf(text, sizeof text, "%s: %.180s", kvf_refuse_name(p->no.kind),
             p->no.text);
    kvf_guest_say_no(g, id, KVF_MISMATCH, text);
}

/* ---- LAYOUT_ASK --------------------------------------------------------- */

static void on_declared(struct kvf_layout_wait *w);

/* The newest that fits; those of ended sessions, of which only publications are
 * left, come last. *first: one that does not. */
static struct kvf_layout *fitting(const struct kvf_guest_ask *a,
                                  struct kvf_pair **first)
{
    struct kvf_blocks *b = a->guest->ps->env.blocks;
    struct kvf_pair *p;

    for (int ended = 0; ended < 2; ended++)
        for (struct kvf_layout *l = kvf_layout_next(b, NULL); l != NULL;
             l = kvf_layout_next(b, l)) {
            if (l->ended != (ended == 1))
                continue;
            p = kvf_pair_of(a->far, l, false, a->guest->name);
            if (p != NULL && p->rc == 0)
                return l;
            if (*first == NULL)
                *first = p;
        }
    return NULL;
}

static void look_for_layout(struct kvf_guest_ask *a)
{
    struct kvf_guest *g = a->guest;
    struct kvf_blocks *b = g->ps->env.blocks;
    struct kvf_pair *first = NULL;
    struct kvf_layout *l;
    struct kvf_peer_msg m;

    if (kvf_layout_next(b, NULL) == NULL) {
        a->layout_wait.fn = on_declared;
        kvf_layout_wait(b, &a->layout_wait);
        return;
    }
    l = fitting(a, &first);
    if (l != NULL) {
        tell_layout(g, l);
        kvf_peers_head(g->ps, &m, KVF_PEER_LAYOUT_IS, &g->incarnation);
        m.u.layout_is.ask = a->id;
        m.u.layout_is.layout = l->number;
        kvf_guest_answer(g, &m, NULL, 0);
    } else {
        if (first != NULL)
            tell_layout(g, first->own);
        deny_pair(g, a->id, first);
    }
    kvf_guest_ask_free(a);
}

static void on_declared(struct kvf_layout_wait *w)
{
    look_for_layout(kvf_container_of(w, struct kvf_guest_ask, layout_wait));
}

void kvf_guest_on_layout_ask(struct kvf_guest *g,
                             const struct kvf_peer_layout_ask *ask)
{
    struct kvf_guest_ask *a = admit(g, ask->ask, ask->layout,
                                    ask->has_incarnation, &ask->incarnation);

    if (a == NULL)
        return;
    a->layout = true;
    look_for_layout(a);
}

/* ---- BLOCKS_ASK --------------------------------------------------------- */

/* Whose readers the ranks of that getter are: its worker's stage and replica,
 * and how it is cut. */
static uint64_t kind_of(const struct kvf_guest_ask *a)
{
    const struct kvf_side *d = &a->far->side;
    const struct kvf_worker *w = &a->guest->worker;

    return ((uint64_t)w->stage << 56) | ((uint64_t)w->replica << 48) |
           ((uint64_t)d->tp << 24) | (uint64_t)d->pp;
}

static bool acceptable(const struct kvf_guest_ask *a,
                       const struct kvf_publication *p, struct kvf_pair **pair)
{
    struct kvf_guest *g = a->guest;

    *pair = NULL;
    if (a->has_tag && !kvf_secret_equal(&a->tag, &p->tag, sizeof p->tag)) {
        kvf_guest_say_no(g, a->id, KVF_STALE,
                         "published with another tag than that of the handle: "
                         "give the same tag on all ranks of a request");
        return false;
    }
    *pair = kvf_pair_of(a->far, p->layout, false, g->name);
    if (*pair != NULL && (*pair)->rc == 0)
        return true;
    if (*pair != NULL)
        tell_layout(g, p->layout);
    deny_pair(g, a->id, *pair);
    return false;
}

static void grant(struct kvf_guest_ask *a, struct kvf_claim *c)
{
    struct kvf_guest *g = a->guest;
    const struct kvf_publication *p = c->gen->user;
    const struct kvf_side *side = &p->layout->decl.side;
    struct kvf_pair *pair;
    struct kvf_peer_msg m;

    c->holder = g;
    c->holder_data = NULL;
    kvf_list_push_back(&g->claims, &c->holder_node);
    if (!acceptable(a, p, &pair)) {
        kvf_guest_claim_end(c, false);
        return;
    }
    c->shm = g->shm_ok && a->want_shm;
    kvf_claim_consumer(
        c, kind_of(a), (uint32_t)a->far->rank,
        (uint64_t)kvf_consumers(side, &a->far->side, p->layout->decl.rank));
    tell_layout(g, p->layout);
    c->rdma = !c->shm && kvf_guest_rdma_tell(g, p->layout);
    kvf_peers_head(g->ps, &m, KVF_PEER_BLOCKS_GRANT, &g->incarnation);
    m.u.blocks = (struct kvf_peer_blocks){
        .ask = a->id,
        .claim = c->id,
        .generation = c->gen->generation,
        .layout = p->layout->number,
        .n_tokens = (uint64_t)p->n_tokens,
        .token = c->token,
        .tag = p->tag,
        .minted = p->minted,
        .shm = c->shm,
        .rdma = c->rdma,
        .rdma_soon = !c->shm && !c->rdma && kvf_guest_rdma_soon(g, p->layout),
        .n_groups = side->n_groups,
        .ids = p->ids,
    };
    kvf_guest_answer(g, &m, NULL, 0);
}

static void on_answer(struct kvf_waiter *w, struct kvf_claim *claim,
                      enum kvf_status status, const char *text)
{
    struct kvf_guest_ask *a = kvf_container_of(w, struct kvf_guest_ask, waiter);

    if (claim != NULL)
        grant(a, claim);
    else
        kvf_guest_say_no(a->guest, a->id, status, text);
    kvf_guest_ask_free(a);
}

void kvf_guest_on_blocks_ask(struct kvf_guest *g,
                             const struct kvf_peer_blocks_ask *ask)
{
    struct kvf_guest_ask *a = admit(g, ask->ask, ask->layout,
                                    ask->has_incarnation, &ask->incarnation);
    char key[KVF_MAX_KEY];
    struct kvf_claim *claim;
    struct kvf_why why;
    size_t len;
    int ret;

    if (a == NULL)
        return;
    a->blocks = true;
    a->want_shm = ask->want_shm;
    a->has_tag = ask->has_tag;
    a->tag = ask->tag;
    a->waiter.answer = on_answer;
    len = kvf_blocks_key(key, &ask->request_id, (int64_t)ask->rank);
    ret = kvf_store_ask(kvf_blocks_store(g->ps->env.blocks), key, len,
                        &a->waiter, true, &claim, &why);
    if (ret == KVF_STORE_PARKED)
        return;
    if (ret == 0)
        grant(a, claim);
    else
        kvf_guest_say_no(g, a->id, why.status, why.text);
    kvf_guest_ask_free(a);
}
