/* Blocks that we pull: telling an owner our layout, asking it for its own and
 * for claims.
 *
 * Happy path: LAYOUT before the first lookup of a connection; LAYOUT_IS or
 * BLOCKS_GRANT answers it. Failure modes: DENY, as for any lookup; a grant that
 * nobody waits for, or that names a layout that did not come, is given back. */
#include "peer/peers_private.h"

#include "base/log.h"

#include <stdlib.h>
#include <string.h>

static int tell_layout(struct kvf_peer *p, const struct kvf_layout *l,
                       struct kvf_why *why)
{
    struct kvf_peer_msg m;
    int ret;

    if (p->state != KVF_PEER_UP || p->renewing ||
        !kvf_told_new(&p->told, l->number))
        return 0;
    kvf_peers_head(p->ps, &m, KVF_PEER_LAYOUT, &p->incarnation);
    ret = kvf_layout_msg(&m, l, false);
    if (ret == 0)
        ret = kvf_peer_send(p, &m);
    kvf_layout_msg_free(&m);
    if (ret < 0) {
        kvf_told_drop(&p->told, l->number);
        return kvf_fail(why, KVF_NO_SPACE, "out of memory for a lookup");
    }
    return 0;
}

int kvf_peer_ask_layout(struct kvf_peer *p, struct kvf_ask *a,
                        struct kvf_layout *own,
                        const struct kvf_id *incarnation, struct kvf_why *why)
{
    struct kvf_peer_msg m;
    int ret = tell_layout(p, own, why);

    if (ret < 0)
        return ret;
    kvf_peers_head(p->ps, &m, KVF_PEER_LAYOUT_ASK, &p->incarnation);
    m.u.layout_ask.ask = p->ps->next_ask;
    m.u.layout_ask.layout = a->layout = own->number;
    m.u.layout_ask.has_incarnation = incarnation != NULL;
    if (incarnation != NULL)
        m.u.layout_ask.incarnation = *incarnation;
    return kvf_ask_send(p, a, &m, why);
}

int kvf_peer_ask_blocks(struct kvf_peer *p, struct kvf_ask *a,
                        struct kvf_layout *own,
                        const struct kvf_peer_blocks_ask *body,
                        struct kvf_why *why)
{
    struct kvf_peer_msg m;
    int ret = tell_layout(p, own, why);

    if (ret < 0)
        return ret;
    kvf_peers_head(p->ps, &m, KVF_PEER_BLOCKS_ASK, &p->incarnation);
    m.u.blocks_ask = *body;
    m.u.blocks_ask.ask = p->ps->next_ask;
    m.u.blocks_ask.layout = a->layout = own->number;
    a->blocks = true;
    return kvf_ask_send(p, a, &m, why);
}

/* Also when the session is only renewed: the owner may have dropped ours with
 * it, and we have missed the end of one of its own. Both are told again. */
void kvf_peer_forget_layouts(struct kvf_peer *p)
{
    kvf_told_clear(&p->told);
    kvf_far_drop_all(&p->fars);
    p->far_evicted = false;
}

struct kvf_far *kvf_peer_known_layout(struct kvf_peer *p,
                                      struct kvf_layout *own)
{
    struct kvf_far *f, *next, *best = NULL;

    HASH_ITER (hh, p->fars, f, next) {
        const struct kvf_pair *pair = kvf_pair_of(f, own, true, p->name);

        if (pair != NULL && pair->rc == 0 &&
            (best == NULL || f->number > best->number))
            best = f;
    }
    return best;
}

int kvf_peer_together(struct kvf_peer *p, struct kvf_ask *a,
                      const struct kvf_peer_together *body, struct kvf_why *why)
{
    struct kvf_peer_msg m;

    kvf_peers_head(p->ps, &m, KVF_PEER_TOGETHER, &p->incarnation);
    m.u.together = *body;
    if (body->phase == KVF_TOGETHER_JOIN) {
        m.u.together.ask = p->ps->next_ask;
        return kvf_ask_send(p, a, &m, why);
    }
    if (!a->active)
        return 0;
    m.u.together.ask = a->id;
    return p->state == KVF_PEER_UP ? kvf_peer_send(p, &m) : 0;
}

static void on_verdict(struct kvf_peer *p, const struct kvf_peer_msg *m)
{
    struct kvf_ask *a = kvf_peer_find_ask(p, m->u.verdict.ask);

    if (a == NULL || a->on_verdict == NULL)
        return;
    kvf_peer_ask_over(a);
    a->on_verdict(a, (enum kvf_status)m->u.verdict.status, m->u.verdict.text);
}

static void on_layout(struct kvf_peer *p, struct kvf_peer_msg *m)
{
    uint64_t before = p->ps->env.stats->layouts_evicted;
    int ret = kvf_far_add(&p->fars, m, p->ps->env.stats);

    p->far_evicted |= p->ps->env.stats->layouts_evicted != before;
    /* Answers that name it end their lookups. */
    if (ret == -(int)KVF_BUSY)
        kvf_log_limited(&p->ps->log_refused, p->ps->env.sched->now_ns,
                        KVF_LOG_WARN, "KVF LAYOUT",
                        "%s sender refused: %u layouts of it are in use",
                        p->name, KVF_FARS_MAX);
}

/* The owner named a layout that is not known here. True: because it was dropped
 * for newer ones; it is told again, and the lookup asked again. */
static bool tell_again(struct kvf_peer *p, struct kvf_why *why)
{
    if (kvf_fars_full(p->fars)) {
        kvf_fail(why, KVF_BUSY,
                 "as many layouts of %s as may be known (%u) are in use here",
                 p->name, KVF_FARS_MAX);
        return false;
    }
    if (p->far_evicted) {
        kvf_peer_renew(p);
        return true;
    }
    kvf_fail(why, KVF_STALE, "%s named a layout that it did not send", p->name);
    return false;
}

static void on_layout_is(struct kvf_peer *p, const struct kvf_peer_msg *m)
{
    struct kvf_ask *a = kvf_peer_find_ask(p, m->u.layout_is.ask);
    struct kvf_far *far = kvf_far_use(&p->fars, m->u.layout_is.layout);
    struct kvf_why why;

    if (a == NULL || a->on_layout == NULL)
        return; /* taken back meanwhile */
    if (far == NULL && tell_again(p, &why))
        return;
    kvf_peer_ask_over(a);
    a->retold = false;
    if (far != NULL)
        a->on_layout(a, far);
    else
        a->on_deny(a, &why, 0, 0);
}

/* The regions of the layout as the segments of the claim. */
static bool map_regions(struct kvf_peer *p, struct kvf_grant *g)
{
    struct kvf_far *f = g->far;

    if (!p->shm_ok || !kvf_far_map(f, p->ps->env.maps))
        return false;
    g->remote.segs = calloc(f->n_regions + 1u, sizeof *g->remote.segs);
    if (g->remote.segs == NULL)
        return false;
    g->remote.n_segs = f->n_regions;
    for (unsigned i = 0; i < f->n_regions; i++) {
        kvf_map_hold(f->maps[i]);
        g->remote.segs[i].map = f->maps[i];
        g->remote.segs[i].offset = 0;
        g->remote.segs[i].length = f->length[i];
    }
    return true;
}

static struct kvf_grant *grant_new(struct kvf_peer *p,
                                   struct kvf_peer_blocks *b)
{
    struct kvf_far *far = kvf_far_use(&p->fars, b->layout);
    struct kvf_grant *g;

    if (far == NULL || far->side.n_groups != b->n_groups)
        return NULL;
    g = calloc(1, sizeof *g);
    if (g == NULL)
        return NULL;
    if (!kvf_grant_enter(g, p, b->claim)) {
        free(g);
        return NULL;
    }
    g->far = kvf_far_hold(far);
    g->generation = b->generation;
    g->size = g->remote.size = far->size;
    g->tag = b->tag;
    g->minted = b->minted;
    g->n_tokens = (int64_t)b->n_tokens;
    g->ids = b->ids;
    g->ids_arena = b->arena;
    b->ids = NULL;
    b->arena = NULL;
    g->remote.claim = b->claim;
    g->remote.token = b->token;
    g->shm = b->shm && map_regions(p, g);
    g->rdma = !g->shm && b->rdma && kvf_peer_rdma_regions(p, g);
    g->rdma_soon = !g->shm && b->rdma_soon && p->has_rdma;
    return g;
}

static void on_blocks(struct kvf_peer *p, struct kvf_peer_msg *m)
{
    struct kvf_peer_blocks *b = &m->u.blocks;
    struct kvf_ask *a = kvf_peer_find_ask(p, b->ask);
    struct kvf_grant_private *twin;
    struct kvf_grant *g;
    struct kvf_why why;

    HASH_FIND(hh, p->grants, &b->claim, sizeof b->claim, twin);
    if (twin != NULL) {
        p->ps->env.stats->peer_malformed++; /* one claim, granted twice */
        return;
    }
    if (a != NULL && (a->on_grant == NULL || !a->blocks)) {
        p->ps->env.stats->peer_malformed++;
        return;
    }
    if (a == NULL) {
        p->ps->env.stats->late_grants++;
        kvf_peer_refuse_claim(p, b->claim, &b->token);
        return;
    }
    g = grant_new(p, b);
    if (g == NULL) {
        kvf_peer_refuse_claim(p, b->claim, &b->token);
        if (kvf_far_find(p->fars, b->layout) != NULL)
            kvf_fail(&why, KVF_NO_SPACE, "out of memory for a claim");
        else if (tell_again(p, &why))
            return;
        kvf_peer_ask_over(a);
        a->on_deny(a, &why, 0, 0);
        return;
    }
    kvf_peer_ask_over(a);
    a->retold = false;
    a->on_grant(a, g);
}

void kvf_peer_blocks_message(struct kvf_peer *p, struct kvf_peer_msg *m)
{
    switch ((unsigned)m->head.type) {
    case KVF_PEER_LAYOUT:
        on_layout(p, m);
        break;
    case KVF_PEER_LAYOUT_GONE:
        kvf_far_drop(&p->fars, m->u.layout_gone.number);
        break;
    case KVF_PEER_LAYOUT_IS:
        on_layout_is(p, m);
        break;
    case KVF_PEER_BLOCKS_GRANT:
        on_blocks(p, m);
        break;
    default:
        on_verdict(p, m);
    }
}
