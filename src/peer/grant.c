/* Claims that we hold at owners: the DONE or ABORT that ends each, and how they
 * are lost. How they come in: grant_open.c. */
#include "peer/peers_private.h"

#include <stdlib.h>
#include <string.h>

void kvf_grant_drop(struct kvf_grant *g)
{
    if (g->priv != NULL) {
        HASH_DEL(g->priv->peer->grants, g->priv);
        free(g->priv);
    }
    for (unsigned i = 0; i < g->remote.n_segs; i++)
        if (g->remote.segs[i].map != NULL)
            kvf_map_release(g->remote.segs[i].map);
    for (unsigned i = 0; i < g->n_keys; i++)
        free(g->keys[i]);
    free(g->keys);
    if (g->far != NULL)
        kvf_far_release(g->far);
    free(g->ids);
    free(g->ids_arena);
    free(g->remote.segs);
    free(g->paths);
    free(g->meta);
    free(g);
}

/* ---- ending ------------------------------------------------------------- */

static void send_end(struct kvf_peer *p, struct kvf_end *e)
{
    struct kvf_peer_msg m;

    kvf_peers_head(p->ps, &m, e->done ? KVF_PEER_DONE : KVF_PEER_ABORT,
                   &p->incarnation);
    m.u.end.claim = e->claim;
    m.u.end.token = e->token;
    e->sent_ns = p->ps->env.sched->now_ns;
    kvf_peer_send(p, &m);
}

/* Remembers the end until it is acknowledged; sends it if possible. */
static void end_claim(struct kvf_peer *p, uint64_t claim,
                      const struct kvf_id *token, bool done)
{
    struct kvf_end *e;

    HASH_FIND(hh, p->ends, &claim, sizeof claim, e);
    if (e == NULL) {
        e = calloc(1, sizeof *e);
        if (e == NULL)
            return; /* the owner notices at the next HELLO */
        e->claim = claim;
        e->token = *token;
        e->done = done;
        HASH_ADD(hh, p->ends, claim, sizeof e->claim, e);
    }
    if (p->state == KVF_PEER_UP)
        send_end(p, e);
}

void kvf_peer_refuse_claim(struct kvf_peer *p, uint64_t claim,
                           const struct kvf_id *token)
{
    end_claim(p, claim, token, false);
}

bool kvf_grant_enter(struct kvf_grant *g, struct kvf_peer *p, uint64_t claim)
{
    struct kvf_grant_private *gp = calloc(1, sizeof *gp);

    if (gp == NULL)
        return false;
    gp->g = g;
    gp->peer = p;
    gp->claim = claim;
    HASH_ADD(hh, p->grants, claim, sizeof gp->claim, gp);
    g->priv = gp;
    g->peer = p;
    return true;
}

void kvf_peer_send_ends(struct kvf_peer *p, uint64_t not_before_ns)
{
    struct kvf_end *e, *next;

    HASH_ITER (hh, p->ends, e, next)
        if (e->sent_ns <= not_before_ns)
            send_end(p, e);
}

unsigned kvf_peer_live_claims(const struct kvf_peer *p, uint64_t *out)
{
    unsigned n = 0;

    /* Ends that were not acknowledged count as live: the owner must not take
     * them for claims that we lost, and give a DONE's reader away again. */
    for (const struct kvf_grant_private *g = p->grants;
         g != NULL && n < KVF_PEER_CLAIMS; g = g->hh.next)
        out[n++] = g->claim;
    for (const struct kvf_end *e = p->ends; e != NULL && n < KVF_PEER_CLAIMS;
         e = e->hh.next)
        out[n++] = e->claim;
    return n;
}

void kvf_peer_drop_ends(struct kvf_peer *p)
{
    struct kvf_end *e, *next;

    HASH_ITER (hh, p->ends, e, next) {
        HASH_DEL(p->ends, e);
        free(e);
    }
}

void kvf_peer_on_ended(struct kvf_peer *p, uint64_t claim)
{
    struct kvf_end *e;

    HASH_FIND(hh, p->ends, &claim, sizeof claim, e);
    if (e == NULL)
        return;
    HASH_DEL(p->ends, e);
    free(e);
}

void kvf_peer_ended_message(struct kvf_peer *p, const struct kvf_peer_msg *m)
{
    kvf_peer_on_ended(p, m->u.ended.claim);
    for (unsigned i = 0; i < m->u.ended.n_more; i++)
        kvf_peer_on_ended(p, m->u.ended.more[i]);
}

static void grant_end(struct kvf_grant *g, bool done)
{
    if (g->local != NULL && done)
        kvf_claim_done(g->local);
    else if (g->local != NULL)
        kvf_claim_abort(g->local);
    else if (g->priv != NULL)
        /* A lost claim is ended all the same: the owner may still have it, and
         * a reader that has the bytes counts. */
        end_claim(g->peer, g->remote.claim, &g->remote.token, done);
    kvf_grant_drop(g);
}

void kvf_grant_done(struct kvf_grant *g)
{
    grant_end(g, true);
}

void kvf_grant_abort(struct kvf_grant *g)
{
    grant_end(g, false);
}

void kvf_grant_forget(struct kvf_grant *g)
{
    if (g->local != NULL)
        kvf_claim_abort(g->local);
    kvf_grant_drop(g);
}

void kvf_grant_give_back(struct kvf_grant *g)
{
    g->lost = true;
    if (g->priv == NULL)
        return;
    end_claim(g->peer, g->remote.claim, &g->remote.token, false);
    HASH_DEL(g->priv->peer->grants, g->priv);
    free(g->priv);
    g->priv = NULL;
}

/* ---- losing ------------------------------------------------------------- */

static void lose(struct kvf_grant *g, const struct kvf_why *why)
{
    if (g->lost)
        return;
    g->lost = true;
    if (g->on_lost != NULL)
        g->on_lost(g, why);
}

/* on_lost may end the grant (and so free it) from inside, or others: what is to
 * be lost is listed first and looked up one by one. */
void kvf_peer_lose_grants(struct kvf_peer *p, bool shm_too,
                          const struct kvf_why *why)
{
    size_t n = 0, max = HASH_COUNT(p->grants);
    uint64_t *ids = malloc((max + 1) * sizeof *ids);
    struct kvf_grant_private *gp, *next;

    if (ids == NULL)
        abort(); /* gets that nobody tells would wait for ever */
    for (gp = p->grants; gp != NULL; gp = gp->hh.next)
        ids[n++] = gp->claim;
    for (size_t i = 0; i < n; i++) {
        HASH_FIND(hh, p->grants, &ids[i], sizeof ids[i], gp);
        if (gp != NULL && (shm_too || !gp->g->shm))
            lose(gp->g, why);
    }
    free(ids);
    if (!shm_too)
        return;
    /* The owner of these is no more: nothing can be told to it. */
    HASH_ITER (hh, p->grants, gp, next) {
        HASH_DEL(p->grants, gp);
        gp->g->priv = NULL;
        free(gp);
    }
}

void kvf_peer_on_revoked(struct kvf_peer *p, uint64_t claim, const char *text)
{
    struct kvf_grant_private *gp;
    struct kvf_why why;

    HASH_FIND(hh, p->grants, &claim, sizeof claim, gp);
    if (gp == NULL)
        return;
    kvf_fail(&why, KVF_STALE, "claim ended by %s: %s", p->name, text);
    gp->g->revoked = true;
    lose(gp->g, &why);
}
