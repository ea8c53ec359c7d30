/* How the bytes of a claim can be reached: in memory mapped here, by rdma, or
 * (when neither) by tcp. Claims of owners, and of the own store.
 *
 * Happy path: a GRANT for an ask of ours becomes a kvf_grant, handed to who
 * asked. Failure modes: what cannot be mapped or registered costs that way, not
 * the claim; a GRANT that nobody waits for is given back. */
#include "peer/peers_private.h"

#include <stdlib.h>
#include <string.h>

/* ---- the owner's process ------------------------------------------------ */

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

/* ---- its memory --------------------------------------------------------- */

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

/* ---- the claim ---------------------------------------------------------- */

static void open_shm(struct kvf_peer *p, const struct kvf_peer_grant *m,
                     struct kvf_grant *g)
{
    g->remote.segs = calloc(m->n_segs, sizeof *g->remote.segs);
    g->paths = calloc(m->n_segs, sizeof *g->paths);
    g->remote.n_segs = m->n_segs;
    if (g->remote.segs == NULL || g->paths == NULL)
        g->remote.n_segs = 0;
    g->shm = g->remote.n_segs != 0 && map_segments(p, m, g);
    if (g->shm)
        fill_pool_paths(p, m, g);
}

static void open_rdma(const struct kvf_peer_grant *m, struct kvf_grant *g)
{
    g->remote.segs = calloc(m->n_segs, sizeof *g->remote.segs);
    g->remote.n_segs = g->remote.segs != NULL ? m->n_segs : 0;
    g->rdma = g->remote.segs != NULL && register_segments(m, g);
}

static struct kvf_grant *grant_new(struct kvf_peer *p, bool write,
                                   const struct kvf_peer_grant *m)
{
    struct kvf_grant *g = calloc(1, sizeof *g);

    if (g == NULL)
        return NULL;
    g->write = write;
    g->generation = m->generation;
    g->size = m->size;
    g->has_checksum = m->has_checksum;
    g->checksum = m->checksum;
    g->remote.claim = m->claim;
    g->remote.token = m->token;
    g->remote.size = m->size;
    g->meta = malloc(m->meta_len + 1);
    if (g->meta == NULL || !kvf_grant_enter(g, p, m->claim)) {
        kvf_grant_drop(g);
        return NULL;
    }
    if (m->meta_len != 0)
        memcpy(g->meta, m->meta, m->meta_len);
    g->meta_len = m->meta_len;
    if (m->shm && p->shm_ok && m->n_segs != 0 &&
        ((m->claim & KVF_ACCESS_BIT) == 0 || watch_owner(p)))
        open_shm(p, m, g);
    if (m->rdma && !g->shm && g->remote.segs == NULL && p->has_rdma)
        open_rdma(m, g);
    g->rdma_soon = m->rdma_soon && !g->shm && p->has_rdma;
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
        kvf_peer_refuse_claim(p, mg->claim, &mg->token);
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

        kvf_peer_refuse_claim(p, mg->claim, &mg->token);
        kvf_fail(&why, KVF_NO_SPACE, "out of memory for a claim");
        a->on_deny(a, &why, 0, 0);
        return;
    }
    if (mg->eager)
        g->eager = m->payload;
    a->on_grant(a, g);
}

struct kvf_grant *kvf_grant_local(struct kvf_peers *ps, struct kvf_claim *claim,
                                  struct kvf_why *why)
{
    const struct kvf_gen *gen = claim->gen;
    struct kvf_grant *g = calloc(1, sizeof *g);

    if (g != NULL) {
        g->meta = malloc(gen->meta_len + 1);
        g->remote.segs = calloc(gen->n_segs, sizeof *g->remote.segs);
        g->paths = calloc(gen->n_segs, sizeof *g->paths);
    }
    if (g == NULL || g->meta == NULL || g->remote.segs == NULL ||
        g->paths == NULL) {
        kvf_claim_abort(claim);
        if (g != NULL)
            kvf_grant_drop(g);
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

        /* The own pool is mapped once more for this; a region brings its
         * own mapping. */
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
