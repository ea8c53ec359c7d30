/* Claims that we hold at owners, and the DONE or ABORT that ends each. */
#include "peer/peers_private.h"

#include <stdlib.h>
#include <string.h>

static void grant_free(struct kvf_grant *g)
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

void kvf_grant_drop(struct kvf_grant *g)
{
    grant_free(g);
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
    grant_free(g);
}

void kvf_grant_done(struct kvf_grant *g)
{
    grant_end(g, true);
}

void kvf_grant_abort(struct kvf_grant *g)
{
    grant_end(g, false);
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

/* ---- receiving ---------------------------------------------------------- */

static void on_owner_gone(void *arg)
{
    struct kvf_peer *p = arg;

    p->gone = true;
}

/* Who writes into mapped memory must know whether its owner lives. */
static bool watch_owner(struct kvf_peer *p)
{
    const struct kvf_peers_env *env = &p->ps->env;

    if (p->watch != NULL)
        return true;
    p->gone = false;
    if (env->proc.watch(env->proc_ctx, p->pid, p->start, on_owner_gone, p,
                        &p->watch, NULL) < 0)
        p->watch = NULL;
    return p->watch != NULL;
}

bool kvf_peer_alive(const struct kvf_peer *p)
{
    const struct kvf_peers_env *env = &p->ps->env;

    return p->watch != NULL && !p->gone &&
           env->proc.alive(env->proc_ctx, p->watch);
}

uint64_t kvf_peer_windows(const struct kvf_peer *p)
{
    return p->pool_map != NULL && p->shm_ok ? kvf_pool_windows(p->pool_map) : 0;
}

/* The owner's pool, for writing if the grant is for that. */
static struct kvf_mapping *pool_of(struct kvf_peer *p, bool write)
{
    struct kvf_map_expect expect = {.size = p->pool_map->size,
                                    .has_header = true,
                                    .incarnation = p->incarnation,
                                    .write = true};

    if (write && p->pool_rw == NULL &&
        kvf_map_open(p->ps->env.maps, p->pool_path, &expect, &p->pool_rw,
                     NULL) < 0)
        p->pool_rw = NULL;
    return write ? p->pool_rw : p->pool_map;
}

/* Finds the owner's memory of each segment here. A segment that cannot be
 * mapped, or lies outside, costs shm, not the get. */
static bool map_segments(struct kvf_peer *p, const struct kvf_peer_grant *m,
                         struct kvf_grant *g)
{
    const struct kvf_map_expect none = {.write = g->write};

    for (unsigned i = 0; i < m->n_segs; i++) {
        const struct kvf_peer_seg *s = &m->segs[i];
        struct kvf_remote_seg *r = &g->remote.segs[i];
        uint64_t least = s->space == 0 ? KVF_SEGMENT_HEADER : 0;

        if (s->space == 0) {
            r->map = pool_of(p, g->write);
            if (r->map == NULL)
                return false;
            kvf_map_hold(r->map);
            memcpy(g->paths[i], "", 1);
        } else {
            const struct kvf_peer_space *sp;
            struct kvf_map_expect e = none;

            if (s->space > m->n_spaces)
                return false;
            sp = &m->spaces[s->space - 1];
            e.size = sp->size;
            e.has_inode = true;
            e.dev = sp->dev;
            e.ino = sp->ino;
            if (kvf_map_open(p->ps->env.maps, sp->path, &e, &r->map, NULL) < 0)
                return false;
            memcpy(g->paths[i], sp->path, sizeof sp->path);
            g->region = true;
        }
        r->offset = s->offset;
        r->length = s->length;
        if (s->offset < least || s->offset > r->map->size ||
            s->length > r->map->size - s->offset)
            return false;
    }
    return true;
}

/* The path of the owner's pool, for engines that map it themselves. */
static void fill_pool_paths(struct kvf_peer *p, const struct kvf_peer_grant *m,
                            struct kvf_grant *g)
{
    for (unsigned i = 0; i < m->n_segs; i++)
        if (m->segs[i].space == 0)
            memcpy(g->paths[i], p->pool_path, sizeof p->pool_path);
}

/* Where each segment is registered at the owner. What cannot be told costs
 * rdma, not the get. */
static bool register_segments(const struct kvf_peer_grant *m,
                              struct kvf_grant *g)
{
    g->keys = calloc(m->n_spaces + 1u, sizeof *g->keys);
    if (g->keys == NULL)
        return false;
    g->n_keys = m->n_spaces;
    for (unsigned i = 0; m->keys != NULL && i < m->n_spaces; i++) {
        const struct kvf_rdma_keys *k = m->keys[i];
        size_t size = k == NULL ? 0 : sizeof *k + k->n * sizeof k->key[0];

        if (k == NULL)
            continue;
        g->keys[i] = malloc(size);
        if (g->keys[i] == NULL)
            return false;
        memcpy(g->keys[i], k, size);
    }
    for (unsigned i = 0; i < m->n_segs; i++) {
        const struct kvf_peer_seg *s = &m->segs[i];

        /* The decoder has checked that keys are there for every region. */
        g->remote.segs[i] = (struct kvf_remote_seg){
            .offset = s->offset,
            .length = s->length,
            .keys = s->space > 0 ? g->keys[s->space - 1] : NULL};
    }
    return true;
}

static struct kvf_grant *grant_new(struct kvf_peer *p, bool write,
                                   const struct kvf_peer_grant *m)
{
    struct kvf_grant *g = calloc(1, sizeof *g);
    struct kvf_grant_private *gp = calloc(1, sizeof *gp);

    if (g == NULL || gp == NULL) {
        free(g);
        free(gp);
        return NULL;
    }
    g->peer = p;
    g->write = write;
    g->generation = m->generation;
    g->size = m->size;
    g->has_checksum = m->has_checksum;
    g->checksum = m->checksum;
    g->remote.claim = m->claim;
    g->remote.token = m->token;
    g->remote.size = m->size;
    g->meta = malloc(m->meta_len + 1);
    if (g->meta != NULL && m->meta_len != 0)
        memcpy(g->meta, m->meta, m->meta_len);
    g->meta_len = m->meta_len;
    if (m->shm && p->shm_ok && m->n_segs != 0 &&
        ((m->claim & KVF_ACCESS_BIT) == 0 || watch_owner(p))) {
        g->remote.segs = calloc(m->n_segs, sizeof *g->remote.segs);
        g->paths = calloc(m->n_segs, sizeof *g->paths);
        g->remote.n_segs = m->n_segs;
        if (g->remote.segs == NULL || g->paths == NULL)
            g->remote.n_segs = 0;
        g->shm = g->remote.n_segs != 0 && map_segments(p, m, g);
        if (g->shm)
            fill_pool_paths(p, m, g);
    }
    if (m->rdma && !g->shm && g->remote.segs == NULL && p->has_rdma) {
        g->remote.segs = calloc(m->n_segs, sizeof *g->remote.segs);
        g->remote.n_segs = g->remote.segs != NULL ? m->n_segs : 0;
        g->rdma = g->remote.segs != NULL && register_segments(m, g);
    }
    g->rdma_soon = m->rdma_soon && !g->shm && p->has_rdma;
    gp->g = g;
    gp->peer = p;
    gp->claim = m->claim;
    HASH_ADD(hh, p->grants, claim, sizeof gp->claim, gp);
    g->priv = gp;
    if (g->meta == NULL) {
        grant_free(g);
        return NULL;
    }
    return g;
}

void kvf_peer_on_grant(struct kvf_peer *p, struct kvf_peer_msg *m)
{
    const struct kvf_peer_grant *mg = &m->u.grant;
    struct kvf_ask *a = kvf_peer_find_ask(p, mg->ask);
    struct kvf_grant_private *twin;
    struct kvf_grant *g;

    HASH_FIND(hh, p->grants, &mg->claim, sizeof mg->claim, twin);
    if (twin != NULL) {
        p->ps->env.stats->peer_malformed++; /* one claim, granted twice */
        return;
    }
    if (a == NULL) {
        p->ps->env.stats->late_grants++;
        end_claim(p, mg->claim, &mg->token, false);
        return;
    }
    if (a->on_grant == NULL || a->blocks) {
        p->ps->env.stats->peer_malformed++;
        return;
    }
    g = grant_new(p, a->write, mg);
    kvf_peer_ask_over(a);
    if (g == NULL) {
        struct kvf_why why;

        end_claim(p, mg->claim, &mg->token, false);
        kvf_fail(&why, KVF_NO_SPACE, "out of memory for a claim");
        a->on_deny(a, &why, 0, 0);
        return;
    }
    if (mg->eager)
        g->eager = m->payload;
    a->on_grant(a, g);
}

/* ---- claims of the own store -------------------------------------------- */

struct kvf_grant *kvf_grant_local(struct kvf_peers *ps, struct kvf_claim *claim,
                                  struct kvf_why *why)
{
    const struct kvf_gen *gen = claim->gen;
    struct kvf_grant *g = calloc(1, sizeof *g);

    (void)ps;
    if (g != NULL) {
        g->meta = malloc(gen->meta_len + 1);
        g->remote.segs = calloc(gen->n_segs, sizeof *g->remote.segs);
        g->paths = calloc(gen->n_segs, sizeof *g->paths);
    }
    if (g == NULL || g->meta == NULL || g->remote.segs == NULL ||
        g->paths == NULL) {
        kvf_claim_abort(claim);
        if (g != NULL)
            grant_free(g);
        kvf_fail(why, KVF_NO_SPACE, "out of memory for a claim");
        return NULL;
    }
    g->local = claim;
    g->generation = gen->generation;
    g->size = g->remote.size = gen->size;
    g->has_checksum = gen->has_checksum;
    g->checksum = gen->checksum;
    if (gen->meta_len != 0)
        memcpy(g->meta, gen->meta, gen->meta_len);
    g->meta_len = gen->meta_len;
    g->shm = true;
    g->remote.claim = claim->id;
    g->remote.token = claim->token;
    g->remote.n_segs = gen->n_segs;
    for (unsigned i = 0; i < gen->n_segs; i++) {
        const struct kvf_seg *s = &gen->segs[i];

        /* The own pool has no kvf_mapping of its own: env.pool_map is one made
         * for this purpose; a region brings its own. */
        g->remote.segs[i].map =
            s->region != NULL ? s->region->map : ps->env.own_map;
        kvf_map_hold(g->remote.segs[i].map);
        g->remote.segs[i].offset = s->offset;
        g->remote.segs[i].length = s->length;
        if (s->region != NULL)
            memcpy(g->paths[i], s->region->path, sizeof s->region->path);
    }
    return g;
}
