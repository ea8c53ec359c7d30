/* Simulated engines. Every put's bytes follow from a number of its own, so that
 * a reply that says OK can be checked byte by byte against the generation that
 * it names. The invariants of a get and of what engines hold are here. */
#include "sim.h"

#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define GRACE_NS (500 * SIM_MS)

static uint8_t byte_of(uint64_t seed, uint64_t i)
{
    return (uint8_t)(seed * 131 + (seed >> 8) * 17 + i * 7 + (i >> 8) * 13);
}

/* First byte that is wrong, or -1. */
static int64_t wrong_byte(const uint8_t *p, uint64_t n, uint64_t seed,
                          uint64_t at)
{
    for (uint64_t i = 0; i < n; i++)
        if (p[i] != byte_of(seed, at + i))
            return (int64_t)(at + i);
    return -1;
}

static void check_bytes(struct sim *sim, const uint8_t *p, uint64_t n,
                        const struct sim_put *put, uint64_t at,
                        const char *what)
{
    int64_t bad = wrong_byte(p, n, put->seed, at);

    if (bad >= 0)
        sim_fail(sim, "%s of %s gen %llu: byte %lld is wrong", what, put->key,
                 (unsigned long long)put->generation, (long long)bad);
}

const struct sim_put *sim_put_of(const struct sim *sim, uint64_t generation)
{
    kvf_list_for_each (n, &sim->puts) {
        const struct sim_put *p = kvf_container_of(n, struct sim_put, node);

        if (p->generation == generation)
            return p;
    }
    return NULL;
}

/* ---- put ---------------------------------------------------------------- */

static bool fill(struct sim_node *n, struct sim_put *p, struct kvf_seg *segs,
                 struct kvf_buffer **bufs, unsigned *n_bufs)
{
    uint64_t at = 0;

    for (unsigned i = 0; i < p->n_segs; i++) {
        uint64_t len = i + 1 < p->n_segs ? p->size / p->n_segs : p->size - at;
        struct kvf_buffer *b;

        if (kvf_buffer_alloc(n->bufs, len, KVF_BUF_FILLING, &n->engine, &b,
                             NULL) < 0)
            return false;
        bufs[(*n_bufs)++] = b;
        for (uint64_t k = 0; k < len; k++)
            kvf_buffer_ptr(b)[k] = byte_of(p->seed, at + k);
        segs[i] =
            (struct kvf_seg){.buffer = b, .offset = b->offset, .length = len};
        p->buffer[i] = b->id;
        p->offset[i] = b->offset;
        p->length[i] = len;
        at += len;
    }
    return true;
}

static uint64_t hash_of(uint64_t seed, uint64_t size)
{
    uint8_t *p = malloc(size);
    uint64_t h;

    if (p == NULL)
        abort();
    for (uint64_t i = 0; i < size; i++)
        p[i] = byte_of(seed, i);
    h = XXH3_64bits(p, size);
    free(p);
    return h;
}

static uint64_t put_now(struct sim_node *n, struct sim_put *p,
                        const struct sim_put_opts *o, enum kvf_status *status)
{
    struct kvf_seg segs[4];
    struct kvf_buffer *bufs[4];
    unsigned n_bufs = 0;
    struct kvf_put put = {.key = p->key,
                          .key_len = strlen(p->key),
                          .segs = segs,
                          .n_segs = p->n_segs,
                          .ttl_ms = o->ttl_ms != 0 ? o->ttl_ms : 60000,
                          .readers = o->readers,
                          .reject_duplicate = o->reject,
                          .has_checksum = o->checksum};
    const struct kvf_gen *gen;
    struct kvf_why why = {.status = KVF_NO_SPACE};

    if (o->checksum)
        put.checksum = hash_of(p->seed, p->size);
    if (fill(n, p, segs, bufs, &n_bufs) &&
        kvf_store_put(n->store, &put, &gen, &why) == 0) {
        p->generation = gen->generation;
        *status = KVF_OK;
        return p->generation;
    }
    while (n_bufs != 0)
        kvf_buffer_retire(bufs[--n_bufs]);
    *status = why.status;
    return 0;
}

uint64_t sim_put(struct sim_node *n, const char *key,
                 const struct sim_put_opts *o, enum kvf_status *status)
{
    struct sim_put *p = calloc(1, sizeof *p);
    struct sim_node *before;
    enum kvf_status st;
    uint64_t gen;

    if (p == NULL)
        abort();
    snprintf(p->key, sizeof p->key, "%s", key);
    p->idx = n->idx;
    p->boot = n->boots;
    p->size = o->size;
    p->seed = ++n->sim->next_seed;
    p->n_segs = o->segments != 0 ? o->segments : 1;
    before = sim_enter(n);
    gen = put_now(n, p, o, &st);
    sim_leave(n, before);
    if (gen == 0)
        free(p);
    else
        kvf_list_push_back(&n->sim->puts, &p->node);
    if (status != NULL)
        *status = st;
    return gen;
}

/* ---- get ---------------------------------------------------------------- */

static void check_own(struct sim_get *g, struct sim_node *n,
                      const struct kvf_get_result *r, const struct sim_put *p)
{
    uint64_t at = 0;

    if (g->mode == KVF_MODE_INLINE) {
        if (r->payload_len != p->size)
            sim_fail(g->sim, "inline length");
        check_bytes(g->sim, r->payload, r->payload_len, p, 0, "inline");
        return;
    }
    for (unsigned i = 0; i < r->n_segs; i++) {
        if (r->segs[i].path != NULL || r->segs[i].is_region)
            sim_fail(g->sim, "bytes are not in the own pool");
        check_bytes(g->sim, n->seg.base + r->segs[i].offset, r->segs[i].length,
                    p, at, kvf_mode_name(g->mode));
        at += r->segs[i].length;
    }
    if (at != p->size)
        sim_fail(g->sim, "%llu bytes of %llu", (unsigned long long)at,
                 (unsigned long long)p->size);
}

static void take_view(struct sim_get *g, struct sim_node *n,
                      const struct kvf_get_result *r, const struct sim_put *p)
{
    struct sim_view *v = calloc(1, sizeof *v);

    if (v == NULL)
        abort();
    if (r->n_segs != p->n_segs)
        sim_fail(g->sim, "view of %u segments, put had %u", r->n_segs,
                 p->n_segs);
    for (unsigned i = 0; i < r->n_segs; i++)
        if (r->segs[i].offset != p->offset[i] ||
            r->segs[i].length != p->length[i] ||
            (r->segs[i].path == NULL) != (p->idx == n->idx))
            sim_fail(g->sim, "a view's place is wrong");
    v->idx = n->idx;
    v->boot = n->boots;
    v->incarnation = n->incarnation;
    v->pid = n->engine.pid;
    v->id = r->buffer;
    v->generation = r->generation;
    kvf_list_push_back(&g->sim->views, &v->node);
}

static void check_ok(struct sim_get *g, struct sim_node *n,
                     const struct kvf_get_result *r)
{
    const struct sim_put *p = sim_put_of(g->sim, r->generation);

    if (p == NULL || strcmp(p->key, g->key) != 0)
        sim_fail(g->sim, "get of %s: a generation that was never put", g->key);
    if (r->size != p->size)
        sim_fail(g->sim, "get of %s: size", g->key);
    if (g->generation != 0 && r->generation != g->generation)
        sim_fail(g->sim, "get of %s: not the generation it named", g->key);
    if (p->idx != g->idx && p->idx != g->from)
        sim_fail(g->sim, "get of %s: from somebody else", g->key);
    if (r->mode == KVF_MODE_VIEW)
        take_view(g, n, r, p);
    else
        check_own(g, n, r, p);
}

static int on_reply(void *arg, struct kvf_get *get,
                    const struct kvf_get_result *r)
{
    struct sim_get *g = arg;
    struct sim_node *n = g->sim->node[g->idx];

    (void)get;
    if (++g->replies != 1)
        sim_fail(g->sim, "get of %s is answered twice", g->key);
    g->get = NULL;
    g->sim->n_gets_open--;
    if (!n->alive || n->boots != g->boot || g->gone)
        return -1;
    kvf_log(KVF_LOG_TRACE, "REPLY",
            "key=%s status=%s size=%llu mode=%s transport=%s attempts=%u",
            g->key, kvf_status_name(r->status), (unsigned long long)r->size,
            kvf_mode_name(r->mode), r->transport, r->attempts);
    g->reply_ns = n->sched.now_ns;
    g->status = r->status;
    g->mode = r->mode;
    g->attempts = r->attempts;
    g->size = r->size;
    snprintf(g->text, sizeof g->text, "%s", r->text);
    snprintf(g->transport, sizeof g->transport, "%s",
             r->transport != NULL ? r->transport : "");
    if (r->status == KVF_OK && g->refuse_reply)
        return -1;
    if (r->status == KVF_OK) {
        g->got_generation = r->generation;
        g->buffer = r->buffer;
        check_ok(g, n, r);
    }
    return 0;
}

static void on_held(void *arg, struct kvf_get *get)
{
    struct sim_get *g = arg;

    (void)get;
    g->helds++;
}

static const struct kvf_get_ops get_ops = {.reply = on_reply,
                                           .on_held = on_held};

static unsigned into_segs(struct sim_node *n, struct sim_get *g, uint64_t size,
                          struct kvf_seg *segs)
{
    struct kvf_buffer *b;

    if (size == 0 || kvf_buffer_alloc(n->bufs, size, KVF_BUF_FILLING,
                                      &n->engine, &b, NULL) < 0)
        return 0;
    g->into = b;
    g->into_id = b->id;
    kvf_list_push_back(&n->engine.buffers, &b->owner_node);
    segs[0] =
        (struct kvf_seg){.buffer = b, .offset = b->offset, .length = size / 2};
    segs[1] = (struct kvf_seg){
        .buffer = b, .offset = b->offset + size / 2, .length = size - size / 2};
    return 2;
}

struct sim_get *sim_get(struct sim_node *n, unsigned from, const char *key,
                        const struct sim_get_opts *o)
{
    struct sim_get *g = calloc(1, sizeof *g);
    struct kvf_req_get req = {.key = {key, strlen(key)},
                              .has_from = true,
                              .from = {.has_rank = true, .stage = from},
                              .wait = !o->no_wait,
                              .mode = o->mode,
                              .has_generation = o->generation != 0,
                              .generation = o->generation,
                              .has_incarnation = o->has_incarnation,
                              .incarnation = o->incarnation};
    struct kvf_seg segs[2];
    struct kvf_get_params p = {.req = &req,
                               .timeout_ms = o->timeout_ms,
                               .into = segs,
                               .can_map = true,
                               .has_session = true,
                               .pid = n->engine.pid,
                               .start = 1,
                               .owner = &n->engine,
                               .owner_list = &n->engine.buffers,
                               .view_list = &n->engine.views,
                               .hold = o->hold};
    struct sim_node *before;
    struct kvf_why why;

    if (g == NULL)
        abort();
    g->sim = n->sim;
    g->idx = n->idx;
    g->boot = n->boots;
    g->from = from;
    snprintf(g->key, sizeof g->key, "%s", key);
    g->generation = o->generation;
    before = sim_enter(n);
    p.n_into = o->mode == KVF_MODE_INTO ? into_segs(n, g, o->into, segs) : 0;
    g->start_ns = n->sched.now_ns;
    g->deadline_ns =
        o->timeout_ms == 0 ? KVF_NEVER : g->start_ns + o->timeout_ms * SIM_MS;
    if ((o->mode == KVF_MODE_INTO && p.n_into == 0) ||
        kvf_get_start(n->gets, &p, &get_ops, g, &g->get, &why) < 0) {
        g->status = o->mode == KVF_MODE_INTO ? KVF_NO_SPACE : why.status;
        g->replies = 1;
        g->get = NULL;
    } else {
        n->sim->n_gets_open++;
    }
    sim_leave(n, before);
    kvf_list_push_back(&n->sim->gets, &g->node);
    return g;
}

void sim_get_drop(struct sim_get *g)
{
    struct sim_node *n = g->sim->node[g->idx], *before;

    if (g->into != NULL && n->alive && n->boots == g->boot && !g->gone) {
        before = sim_enter(n);
        kvf_buffer_retire(g->into);
        /* A terminal reply means that nothing touches it any more. */
        if (kvf_buffer_find(n->bufs, g->into_id) != NULL)
            sim_fail(g->sim, "`into` of %s is pinned after the reply", g->key);
        sim_leave(n, before);
    }
    kvf_list_unlink(&g->node);
    free(g);
}

/* ---- what engines hold -------------------------------------------------- */

static void check_view(struct sim *sim, const struct sim_view *v, bool bytes)
{
    const struct sim_put *p = sim_put_of(sim, v->generation);
    struct sim_node *o = sim->node[p->idx];
    uint64_t at = 0;

    if (!o->alive || o->boots != p->boot || !sim_proc_alive(sim, v->pid))
        return;
    for (unsigned i = 0; i < p->n_segs; i++) {
        if (kvf_buffer_find(o->bufs, p->buffer[i]) == NULL)
            sim_fail(sim,
                     "node %u freed %s gen %llu, which an engine of node "
                     "%u maps",
                     o->idx, p->key, (unsigned long long)p->generation, v->idx);
        if (bytes)
            check_bytes(sim, o->seg.base + p->offset[i], p->length[i], p, at,
                        "view");
        at += p->length[i];
    }
}

static void view_free(struct sim_view *v)
{
    kvf_list_unlink(&v->node);
    free(v);
}

void sim_release(struct sim_node *n, uint64_t buffer)
{
    struct sim_node *before = sim_enter(n);
    struct kvf_buffer *b = kvf_buffer_find(n->bufs, buffer);
    struct kvf_view *kv = kvf_view_find(n->gets, buffer);

    kvf_list_for_each_safe (l, &n->sim->views) {
        struct sim_view *v = kvf_container_of(l, struct sim_view, node);

        if (v->id == buffer && v->idx == n->idx && v->boot == n->boots) {
            check_view(n->sim, v, true);
            view_free(v);
        }
    }
    if (b != NULL)
        kvf_buffer_retire(b);
    else if (kv != NULL)
        kvf_view_release(kv);
    sim_leave(n, before);
}

bool sim_release_old(struct sim_node *n)
{
    struct sim_engine *e = &n->engine;
    struct kvf_peer_gone gone = {.pid = e->pid, .start = 1};
    struct sim_node *before;

    if (e->n_old == 0)
        return false;
    gone.incarnation = e->old[--e->n_old];
    kvf_list_for_each_safe (l, &n->sim->views) {
        struct sim_view *v = kvf_container_of(l, struct sim_view, node);

        if (v->pid != gone.pid ||
            !kvf_id_equal(&v->incarnation, &gone.incarnation))
            continue;
        check_view(n->sim, v, true);
        view_free(v);
    }
    before = sim_enter(n);
    kvf_peers_unmapped(n->peers, &gone);
    sim_leave(n, before);
    return true;
}

static void mark_gone(struct sim_node *n)
{
    kvf_list_for_each (l, &n->sim->gets) {
        struct sim_get *g = kvf_container_of(l, struct sim_get, node);

        if (g->idx == n->idx && g->boot == n->boots)
            g->gone = true;
    }
}

void sim_engines_node_gone(struct sim_node *n)
{
    mark_gone(n);
}

/* What a session does when its process has ended: gets first, then memory. */
void sim_engine_kill(struct sim_node *n)
{
    struct sim_node *before = sim_enter(n);
    struct sim *sim = n->sim;

    mark_gone(n);
    kvf_list_for_each (l, &sim->gets) {
        struct sim_get *g = kvf_container_of(l, struct sim_get, node);

        if (g->idx == n->idx && g->boot == n->boots && g->get != NULL) {
            g->get = NULL; /* silent from here on */
            sim->n_gets_open--;
        }
    }
    sim_proc_end(sim, n->engine.pid);
    n->engine.alive = false;
    kvf_gets_drop_owner(n->gets, &n->engine);
    kvf_moves_cancel_all(n->moves, KVF_CANCELLED, "its session has ended");
    for (struct kvf_list *l; (l = kvf_list_first(&n->engine.windows)) != NULL;)
        kvf_window_close(kvf_container_of(l, struct kvf_window, owner_node),
                         "its session has ended");
    for (struct kvf_list *l; (l = kvf_list_first(&n->engine.buffers)) != NULL;)
        kvf_buffer_retire(kvf_container_of(l, struct kvf_buffer, owner_node));
    for (struct kvf_list *l; (l = kvf_list_first(&n->engine.views)) != NULL;)
        kvf_view_abort(kvf_container_of(l, struct kvf_view, owner_node));
    sim_leave(n, before);
}

/* ---- invariants --------------------------------------------------------- */

void sim_engines_check(struct sim *sim)
{
    kvf_list_for_each_safe (l, &sim->views) {
        struct sim_view *v = kvf_container_of(l, struct sim_view, node);

        if (sim_proc_alive(sim, v->pid))
            check_view(sim, v, false);
        else
            view_free(v);
    }
    kvf_list_for_each (l, &sim->gets) {
        const struct sim_get *g = kvf_container_of(l, struct sim_get, node);
        const struct sim_node *n = sim->node[g->idx];
        uint64_t due = g->deadline_ns;

        if (g->replies != 0 || g->gone || n->frozen || due == KVF_NEVER)
            continue;
        if (due < n->thawed_ns)
            due = n->thawed_ns;
        if (sim->now_ns > due + GRACE_NS)
            sim_fail(sim, "get of %s is not answered in time", g->key);
    }
}

static void check_node_quiet(struct sim *sim, struct sim_node *n)
{
    struct kvf_buffer_gauges b;
    struct kvf_store_gauges s;
    struct kvf_peers_gauges p;
    struct kvf_gets_gauges g;

    kvf_buffers_gauges(n->bufs, &b);
    kvf_store_gauges(n->store, &s);
    kvf_peers_gauges(n->peers, &p);
    kvf_gets_gauges(n->gets, &g);
    if (g.running + g.views + g.queued != 0 || g.pull_bytes != 0)
        sim_fail(sim, "node %u: %u gets, %u views are left", n->idx, g.running,
                 g.views);
    if (p.windows + p.accesses + p.rooms + p.watches != 0)
        sim_fail(sim,
                 "node %u: %u windows, %u accesses, %u rooms, %u watches are "
                 "left",
                 n->idx, p.windows, p.accesses, p.rooms, p.watches);
    if (p.asks + p.grants + p.unacked + p.guest_asks + p.guest_claims != 0)
        sim_fail(sim,
                 "node %u: left are %u asks, %u grants, %u unacknowledged "
                 "ends, %u asks and %u claims of guests",
                 n->idx, p.asks, p.grants, p.unacked, p.guest_asks,
                 p.guest_claims);
    if (s.keys + s.live + s.draining + s.tombstones + s.parked + s.claims +
            s.bytes !=
        0)
        sim_fail(sim,
                 "node %u: the store has %llu keys, %llu live, %llu draining, "
                 "%llu tombstones, %llu parked, %llu claims",
                 n->idx, (unsigned long long)s.keys, (unsigned long long)s.live,
                 (unsigned long long)s.draining,
                 (unsigned long long)s.tombstones, (unsigned long long)s.parked,
                 (unsigned long long)s.claims);
    if (b.buffers != 0 || b.free != b.size)
        sim_fail(sim, "node %u: %llu buffers are left", n->idx,
                 (unsigned long long)b.buffers);
    if (n->sched.heap_len != p.peers + p.guests)
        sim_fail(sim, "node %u: %zu timers for %u peers and %u guests", n->idx,
                 n->sched.heap_len, p.peers, p.guests);
    if (p.guests != p.guests_up)
        sim_fail(sim, "node %u: %u guests, %u are up", n->idx, p.guests,
                 p.guests_up);
}

void sim_check_quiet(struct sim *sim)
{
    for (unsigned i = 0; i < sim->conf.nodes; i++)
        if (sim->node[i]->alive)
            check_node_quiet(sim, sim->node[i]);
    if (!kvf_list_empty(&sim->serves))
        sim_fail(sim, "a send is left");
}

void sim_engines_free(struct sim *sim)
{
    for (struct kvf_list *l; (l = kvf_list_first(&sim->views)) != NULL;)
        view_free(kvf_container_of(l, struct sim_view, node));
    for (struct kvf_list *l; (l = kvf_list_first(&sim->gets)) != NULL;)
        sim_get_drop(kvf_container_of(l, struct sim_get, node));
    for (struct kvf_list *l; (l = kvf_list_pop(&sim->puts)) != NULL;)
        free(kvf_container_of(l, struct sim_put, node));
}
