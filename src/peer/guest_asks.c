/* What getters ask of this owner: lookups that may park, and the claims that
 * answer them.
 *
 * Happy path: the store has the key, or the lookup waits for it; then a GRANT
 * says how the bytes can be had, or brings them. Failure modes: DENY, with the
 * store's reason or ours; a lookup that is taken back is not answered. */
#include "peer/access.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- granting ----------------------------------------------------------- */

void kvf_guest_say_no(struct kvf_guest *g, uint64_t ask, enum kvf_status status,
                      const char *text)
{
    struct kvf_peer_msg m;

    kvf_peers_head(g->ps, &m, KVF_PEER_DENY, &g->incarnation);
    m.u.deny.ask = ask;
    /* To the getter this is an owner that goes: SHUTTING_DOWN would be said of
     * its own daemon. */
    m.u.deny.status =
        status == KVF_SHUTTING_DOWN ? KVF_PEER_UNREACHABLE : status;
    snprintf(m.u.deny.text, sizeof m.u.deny.text, "%.199s", text);
    kvf_guest_answer(g, &m, NULL, 0);
}

/* The places of a payload, for getters that map our memory. */
static bool describe(const struct kvf_gen *gen, struct kvf_peer_grant *m)
{
    m->segs = calloc(gen->n_segs, sizeof *m->segs);
    m->spaces = calloc(gen->n_segs, sizeof *m->spaces);
    if (m->segs == NULL || m->spaces == NULL)
        return false;
    for (unsigned i = 0; i < gen->n_segs; i++) {
        const struct kvf_seg *s = &gen->segs[i];
        uint32_t space = 0;

        if (s->region != NULL) {
            const struct kvf_mapping *map = s->region->map;
            struct kvf_peer_space *sp;

            while (space < m->n_spaces && (m->spaces[space].ino != map->ino ||
                                           m->spaces[space].dev != map->dev))
                space++;
            if (space == m->n_spaces) {
                if (m->n_spaces == KVF_PEER_SPACES)
                    return false;
                sp = &m->spaces[m->n_spaces++];
                snprintf(sp->path, sizeof sp->path, "%s", s->region->path);
                sp->dev = map->dev;
                sp->ino = map->ino;
                sp->size = map->size;
            }
            space++; /* 0 is the pool */
        }
        m->segs[i].space = space;
        m->segs[i].offset = s->offset;
        m->segs[i].length = s->length;
    }
    m->n_segs = gen->n_segs;
    return true;
}

/* A getter that does not read leaves what it was sent in libzmq's queue: past
 * this, bytes go the way of large payloads, where the reader sets the pace. */
#define EAGER_OUT_MAX (64u << 20)
/* `meta` has no other way. What is granted past this is told to come later. */
#define META_OUT_MAX (128u << 20)

static bool room_for_eager(const struct kvf_guest *g,
                           const struct kvf_guest_ask *a, uint64_t size)
{
    bool other_way = g->admitted || (g->shm_ok && a->want_shm);

    return !other_way || g->eager_bytes == 0 ||
           g->eager_bytes + size <= EAGER_OUT_MAX;
}

/* False: it was answered already. */
static bool take_meta_room(struct kvf_guest *g, const struct kvf_guest_ask *a,
                           struct kvf_claim *c)
{
    g->meta_bytes += c->gen->meta_len;
    if (g->meta_bytes == c->gen->meta_len || g->meta_bytes <= META_OUT_MAX)
        return true;
    kvf_guest_claim_end(c, false);
    kvf_guest_say_no(g, a->id, KVF_BUSY,
                     "the `meta` of what you hold here fills 128 MiB: end some "
                     "of your claims first");
    return false;
}

/* Which way the bytes may go. False: it was answered already. */
static bool choose_way(struct kvf_guest *g, const struct kvf_guest_ask *a,
                       struct kvf_claim *c)
{
    bool maps = a->mode == KVF_MODE_VIEW || a->mode == KVF_MODE_AUTO;

    c->eager = a->mode != KVF_MODE_VIEW && c->gen->size <= a->eager_max &&
               room_for_eager(g, a, c->gen->size);
    if (c->eager)
        g->eager_bytes += c->gen->size;
    c->shm = !c->eager && g->shm_ok && a->want_shm;
    if (c->shm && maps && a->view_pid != 0) {
        struct kvf_engine_watch *e =
            kvf_guest_hold_engine(g, a->view_pid, a->view_start);

        c->holder_data = e;
        c->shm = e != NULL;
    }
    c->rdma = !c->eager && !c->shm && g->rdma && g->ps->env.rdma != NULL;
    if (a->mode == KVF_MODE_VIEW && !c->shm) {
        kvf_guest_claim_end(c, false);
        kvf_guest_say_no(
            g, a->id, KVF_UNSUPPORTED,
            "a view needs shared memory, and the owner cannot see the "
            "processes that would map it; use mode copy");
        return false;
    }
    return true;
}

static void grant(struct kvf_guest *g, const struct kvf_guest_ask *a,
                  struct kvf_claim *c)
{
    struct kvf_peers *ps = g->ps;
    const struct kvf_gen *gen = c->gen;
    const void *payload = NULL;
    void *scratch = NULL;
    struct kvf_peer_msg m;

    c->holder = g;
    c->holder_data = NULL;
    kvf_list_push_back(&g->claims, &c->holder_node);
    if (!take_meta_room(g, a, c) || !choose_way(g, a, c))
        return;
    kvf_peers_head(ps, &m, KVF_PEER_GRANT, &g->incarnation);
    m.u.grant.ask = a->id;
    m.u.grant.claim = c->id;
    m.u.grant.token = c->token;
    m.u.grant.generation = gen->generation;
    m.u.grant.size = gen->size;
    m.u.grant.meta = gen->meta;
    m.u.grant.meta_len = gen->meta_len;
    m.u.grant.has_checksum = gen->has_checksum;
    m.u.grant.checksum = gen->checksum;
    m.u.grant.eager = c->eager;
    if (c->eager)
        payload = kvf_gen_bytes(gen, &scratch);
    else if ((c->shm || c->rdma) && !describe(gen, &m.u.grant))
        c->shm = c->rdma = false, m.u.grant.n_segs = m.u.grant.n_spaces = 0;
    if (c->rdma)
        kvf_guest_rdma_describe(g, gen, &m.u.grant);
    c->rdma = m.u.grant.rdma;
    m.u.grant.shm = c->shm;
    if (c->eager && payload == NULL) {
        kvf_guest_claim_end(c, false);
        kvf_guest_say_no(g, a->id, KVF_NO_SPACE, "out of memory at the owner");
    } else {
        kvf_guest_answer(g, &m, payload, payload != NULL ? gen->size : 0);
    }
    kvf_guest_rdma_described(&m.u.grant);
    free(m.u.grant.segs);
    free(m.u.grant.spaces);
    free(scratch);
}

/* ---- asking ------------------------------------------------------------- */

void kvf_guest_ask_free(struct kvf_guest_ask *a)
{
    HASH_DEL(a->guest->asks, a);
    if (a->far != NULL)
        kvf_far_release(a->far);
    free(a);
}

struct kvf_guest_ask *kvf_guest_ask_new(struct kvf_guest *g, uint64_t id)
{
    struct kvf_guest_ask *a;

    HASH_FIND(hh, g->asks, &id, sizeof id, a);
    if (a != NULL) {
        g->ps->env.stats->peer_malformed++; /* this id is in use */
        return NULL;
    }
    if (HASH_COUNT(g->asks) >= g->ps->env.conf->max_parked) {
        kvf_guest_say_no(g, id, KVF_BUSY,
                         "too many of your lookups wait here ([limits] "
                         "max_parked)");
        return NULL;
    }
    a = calloc(1, sizeof *a);
    if (a == NULL) {
        kvf_guest_say_no(g, id, KVF_BUSY, "out of memory at the owner");
        return NULL;
    }
    a->guest = g;
    a->id = id;
    kvf_list_init(&a->waiter.node);
    kvf_list_init(&a->waiter.asker_node);
    kvf_list_init(&a->layout_wait.node);
    HASH_ADD(hh, g->asks, id, sizeof a->id, a);
    return a;
}

/* Nobody waits for it any more. */
static void ask_take_back(struct kvf_guest_ask *a)
{
    const struct kvf_peers_env *env = &a->guest->ps->env;

    kvf_list_unlink(&a->layout_wait.node);
    if (!a->layout)
        kvf_store_unask(a->blocks ? kvf_blocks_store(env->blocks) : env->store,
                        &a->waiter);
    kvf_guest_ask_free(a);
}

static void on_answer(struct kvf_waiter *w, struct kvf_claim *claim,
                      enum kvf_status status, const char *text)
{
    struct kvf_guest_ask *a = kvf_container_of(w, struct kvf_guest_ask, waiter);

    if (claim != NULL)
        grant(a->guest, a, claim);
    else
        kvf_guest_say_no(a->guest, a->id, status, text);
    kvf_guest_ask_free(a);
}

void kvf_guest_on_ask(struct kvf_guest *g, const struct kvf_peer_ask *ask)
{
    struct kvf_peers *ps = g->ps;
    struct kvf_guest_ask *a;
    struct kvf_claim *claim;
    struct kvf_why why;
    int ret;

    if (ask->has_incarnation &&
        !kvf_id_equal(&ask->incarnation, &ps->env.incarnation)) {
        kvf_guest_say_no(g, ask->ask, KVF_STALE,
                         "the metadata is of an earlier start of this owner: "
                         "what it had is gone");
        return;
    }
    a = kvf_guest_ask_new(g, ask->ask);
    if (a == NULL)
        return;
    a->mode = ask->mode;
    a->eager_max = ask->eager_max;
    a->want_shm = ask->want_shm;
    a->view_pid = ask->view_pid;
    a->view_start = ask->view_start;
    a->waiter.has_generation = ask->has_generation;
    a->waiter.generation = ask->generation;
    a->waiter.answer = on_answer;
    ret = kvf_store_ask(ps->env.store, ask->key.p, ask->key.len, &a->waiter,
                        ask->wait, &claim, &why);
    if (ret == KVF_STORE_PARKED)
        return;
    if (ret == 0)
        grant(g, a, claim);
    else
        kvf_guest_say_no(g, a->id, why.status, why.text);
    kvf_guest_ask_free(a);
}

void kvf_guest_on_unask(struct kvf_guest *g, uint64_t id)
{
    struct kvf_guest_ask *a;

    HASH_FIND(hh, g->asks, &id, sizeof id, a);
    if (a == NULL &&
        (kvf_guest_unask_room(g, id) || kvf_guest_leave_together(g, id)))
        return;
    if (a == NULL)
        return; /* answered meanwhile: the getter aborts the grant */
    ask_take_back(a);
}

void kvf_guest_drop_asks(struct kvf_guest *g)
{
    struct kvf_guest_ask *a, *next;

    kvf_guest_drop_together(g);

    HASH_ITER (hh, g->asks, a, next) {
        ask_take_back(a);
    }
    kvf_guest_drop_rooms(g);
}
