/* A simulated daemon: the real store, buffers, peers and gets over the
 * simulated network and bulk transport, with a real pool (a memfd) so that
 * mappings are real too. Killing it says nothing to anybody: its memory goes,
 * its connections break, who watched its process is told. */
#include "sim.h"

#include "transport/shm.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- processes ---------------------------------------------------------- */

struct kvf_proc_watch {
    struct kvf_list node;
    struct kvf_timer timer; /* of the world: the news */
    struct sim_node *n;
    uint64_t pid;
    void (*gone)(void *arg);
    void *arg;
};

uint64_t sim_proc_new(struct sim *sim)
{
    struct sim_proc *p = &sim->proc[sim->n_procs];

    if (sim->n_procs == SIM_PROCS)
        sim_fail(sim, "too many processes");
    p->pid = 100 + sim->n_procs++;
    p->alive = true;
    return p->pid;
}

bool sim_proc_alive(const struct sim *sim, uint64_t pid)
{
    return pid >= 100 && pid < 100 + sim->n_procs && sim->proc[pid - 100].alive;
}

static void proc_news(struct kvf_timer *t)
{
    struct kvf_proc_watch *w =
        kvf_container_of(t, struct kvf_proc_watch, timer);
    struct sim_node *n = w->n, *before;

    if (n->frozen) {
        kvf_timer_set(&n->sim->world, t, n->sim->now_ns + 20 * SIM_MS);
        return;
    }
    before = sim_enter(n);
    w->gone(w->arg); /* may unwatch */
    sim_leave(n, before);
}

void sim_proc_end(struct sim *sim, uint64_t pid)
{
    sim->proc[pid - 100].alive = false;
    for (unsigned i = 0; i < sim->conf.nodes; i++) {
        if (sim->node[i] == NULL || !sim->node[i]->alive)
            continue;
        kvf_list_for_each (l, &sim->node[i]->watchers) {
            struct kvf_proc_watch *w =
                kvf_container_of(l, struct kvf_proc_watch, node);

            if (w->pid == pid)
                kvf_timer_set(&sim->world, &w->timer, sim->now_ns + SIM_MS);
        }
    }
}

static int proc_watch(void *ctx, uint64_t pid, uint64_t start,
                      void (*gone)(void *arg), void *arg,
                      struct kvf_proc_watch **out, struct kvf_why *why)
{
    struct sim_node *n = ctx;
    struct kvf_proc_watch *w;

    (void)start;
    if (!sim_proc_alive(n->sim, pid))
        return kvf_fail(why, KVF_NOT_FOUND, "no such process");
    w = calloc(1, sizeof *w);
    if (w == NULL)
        abort();
    w->n = n;
    w->pid = pid;
    w->gone = gone;
    w->arg = arg;
    kvf_timer_init(&w->timer, proc_news);
    kvf_list_push_back(&n->watchers, &w->node);
    *out = w;
    return 0;
}

static void proc_unwatch(void *ctx, struct kvf_proc_watch *w)
{
    struct sim_node *n = ctx;

    if (w == NULL)
        return;
    kvf_timer_cancel(&n->sim->world, &w->timer);
    kvf_list_unlink(&w->node);
    free(w);
}

static bool proc_alive(void *ctx, const struct kvf_proc_watch *w)
{
    const struct sim_node *n = ctx;

    return sim_proc_alive(n->sim, w->pid);
}

/* ---- entering a node ---------------------------------------------------- */

struct sim_node *sim_enter(struct sim_node *n)
{
    struct sim_node *before = n->sim->current;

    if (before != n)
        kvf_sched_stamp(&n->sched);
    n->sim->current = n;
    return before;
}

void sim_leave(struct sim_node *n, struct sim_node *before)
{
    n->sim->current = before;
}

/* ---- life --------------------------------------------------------------- */

struct kvf_worker sim_worker(const struct sim *sim, unsigned idx)
{
    unsigned p = sim->conf.senders;

    if (p == 0)
        return (struct kvf_worker){.stage = idx};
    return (struct kvf_worker){.stage = idx >= p,
                               .rank = idx >= p ? idx - p : idx};
}

static uint64_t node_clock(void *arg)
{
    struct sim_node *n = arg;

    return (n->sim->now_ns += n->sim->conf.tick_ns) + n->dying_ns;
}

static void on_push_end(void *arg, const struct kvf_push_end *e)
{
    struct sim_node *n = arg;

    if (n->sim->push_end != NULL)
        n->sim->push_end(n, e);
}

static void on_retired(void *arg, const struct kvf_gen *gen,
                       enum kvf_retire reason)
{
    struct sim_node *n = arg;
    struct kvf_push_end e = {.key = gen->key,
                             .key_len = gen->key_len,
                             .generation = gen->generation,
                             .readers_done = gen->readers_done,
                             .reason = reason,
                             .publisher = gen->publisher};

    if (gen->notify && n->alive && !kvf_peers_retired(n->peers, gen, reason))
        on_push_end(n, &e);
}

static void make_conf(struct sim_node *n)
{
    struct kvf_conf *c = n->conf = malloc(sizeof *c);

    if (c == NULL)
        abort();
    kvf_conf_defaults(c);
    snprintf(c->cluster, sizeof c->cluster, "sim");
    c->self = n->worker;
    c->inline_max = n->sim->conf.inline_max;
    c->protocol[0] = KVF_PROTO_SHM;
    c->protocol[1] = KVF_PROTO_TCP;
    c->n_protocol = 2;
    c->log_level = KVF_LOG_TRACE;
}

static void make_memory(struct sim_node *n)
{
    struct kvf_why why = {0};

    if (kvf_segment_create(&n->seg, n->sim->conf.pool_size, &n->incarnation,
                           &why) < 0)
        sim_fail(n->sim, "pool: %s", why.text);
    n->pool = kvf_pool_create(KVF_SEGMENT_HEADER, n->seg.size, &why);
    n->bufs = kvf_buffers_create(
        &n->seg, n->pool, (uint64_t)n->boots << 40 | (uint64_t)n->idx << 32 | 1,
        &why);
    n->maps = kvf_map_cache_create(2);
    if (kvf_map_fd(n->maps, fcntl(n->seg.fd, F_DUPFD_CLOEXEC, 3), n->seg.size,
                   true, &n->own_map, &why) < 0)
        sim_fail(n->sim, "own map: %s", why.text);
}

static void on_written(void *arg, const struct kvf_window *w, bool write,
                       const void *data, size_t len)
{
    struct sim_node *n = arg;

    if (n->sim->written != NULL)
        n->sim->written(n, w, write, data, len);
}

static void make_peers(struct sim_node *n)
{
    struct sim *sim = n->sim;
    struct kvf_peers_env env = {.sched = &n->sched,
                                .stats = &n->stats,
                                .rng = &n->rng,
                                .conf = n->conf,
                                .incarnation = n->incarnation,
                                .store = n->store,
                                .buffers = n->bufs,
                                .blocks = n->blocks,
                                .maps = n->maps,
                                .own_map = n->own_map,
                                .channel = {&sim_channel_ops, n},
                                .proc = {proc_watch, proc_unwatch, proc_alive},
                                .proc_ctx = n,
                                .shm = n->shm,
                                .tcp = n->tcp,
                                .pool = {.size = n->seg.size, .pid = n->pid},
                                .bulk_port = (uint16_t)(6000 + n->idx),
                                .port = (uint16_t)(5000 + n->idx),
                                .admit = sim_bulk_admit,
                                .expel = sim_bulk_expel,
                                .admit_ctx = n,
                                .on_peer_arg = n,
                                .on_written = on_written,
                                .on_push_end = on_push_end};
    struct kvf_why why;

    if ((sim->conf.no_shm & 1u << n->idx) == 0)
        snprintf(env.pool.path, sizeof env.pool.path, "%s", n->seg.path);
    snprintf(env.bulk_host, sizeof env.bulk_host, "10.0.0.%u", n->idx);
    snprintf(env.host, sizeof env.host, "10.0.0.%u", n->idx);
    if (kvf_peers_create(&env, &n->peers, &why) < 0)
        sim_fail(sim, "peers: %s", why.text);
    for (unsigned i = 0; i < sim->conf.nodes; i++) {
        struct kvf_worker w = sim_worker(sim, i);
        char host[32];

        snprintf(host, sizeof host, "10.0.0.%u", i);
        if (i != n->idx)
            kvf_directory_set(n->peers, &w, host, (uint16_t)(5000 + i), NULL);
    }
}

static void make_gets(struct sim_node *n)
{
    struct kvf_gets_env env = {.sched = &n->sched,
                               .stats = &n->stats,
                               .rng = &n->rng,
                               .conf = n->conf,
                               .incarnation = n->incarnation,
                               .store = n->store,
                               .buffers = n->bufs,
                               .segment = &n->seg,
                               .peers = n->peers,
                               .shm = n->shm};
    struct kvf_why why;

    struct kvf_moves_env moves = {.sched = &n->sched,
                                  .stats = &n->stats,
                                  .rng = &n->rng,
                                  .conf = n->conf,
                                  .store = n->store,
                                  .buffers = n->bufs,
                                  .peers = n->peers,
                                  .own_map = n->own_map,
                                  .shm = n->shm,
                                  .on_written = on_written,
                                  .arg = n};

    struct kvf_pulls_env pulls = {.sched = &n->sched,
                                  .stats = &n->stats,
                                  .rng = &n->rng,
                                  .conf = n->conf,
                                  .peers = n->peers};

    if (kvf_gets_create(&env, &n->gets, &why) < 0 ||
        kvf_pulls_create(&pulls, &n->pulls, &why) < 0 ||
        kvf_moves_create(&moves, &n->moves, &why) < 0)
        sim_fail(n->sim, "gets: %s", why.text);
}

void sim_engine_start(struct sim_node *n)
{
    n->engine.pid = sim_proc_new(n->sim);
    n->engine.n_old = 0;
    n->engine.alive = true;
}

void sim_node_start(struct sim *sim, unsigned idx)
{
    const struct kvf_store_ops ops = {.on_retired = on_retired};
    struct kvf_store_conf conf = {.max_keys = 64,
                                  .max_tombstones = 32,
                                  .max_parked = 256,
                                  .max_claims = 256};
    struct sim_node *n = sim->node[idx];
    struct kvf_why why;

    if (n == NULL) {
        n = sim->node[idx] = calloc(1, sizeof *n);
        if (n == NULL)
            abort();
        n->sim = sim;
        n->idx = idx;
        n->worker = sim_worker(sim, idx);
        kvf_list_init(&n->inbox);
        kvf_list_init(&n->watchers);
        kvf_list_init(&n->admitted);
        kvf_list_init(&n->engine.buffers);
        kvf_list_init(&n->engine.views);
    }
    kvf_list_init(&n->engine.windows);
    kvf_list_init(&n->engine.layouts);
    n->boots++;
    n->alive = true;
    n->frozen = false;
    n->dying_ns = 0;
    n->thawed_ns = sim->now_ns;
    n->pid = sim_proc_new(sim);
    if (!n->engine.alive)
        sim_engine_start(n);
    memset(&n->stats, 0, sizeof n->stats);
    memset(&n->incarnation, 0, sizeof n->incarnation);
    n->incarnation.b[0] = (uint8_t)(idx + 1);
    n->incarnation.b[1] = (uint8_t)n->boots;
    kvf_rng_seed(&n->rng, sim->seed * 64 + idx * 8 + n->boots);
    kvf_sched_init(&n->sched, node_clock, n);
    make_conf(n);
    make_memory(n);
    sim->next_generation += 1u << 20;
    n->store = kvf_store_create(&n->sched, &n->stats, &conf, &ops, n,
                                sim->next_generation, &why);
    if (n->store == NULL ||
        kvf_shm_create(&n->sched, &n->stats, &n->shm, &why) < 0 ||
        sim_bulk_create(n, &n->tcp, &why) < 0)
        sim_fail(sim, "start: %s", why.text);
    if (kvf_blocks_create(
            &(struct kvf_blocks_env){.sched = &n->sched,
                                     .buffers = n->bufs,
                                     .store = &conf,
                                     .first_generation = sim->next_generation,
                                     .on_retired = on_retired,
                                     .arg = n},
            &n->blocks, &why) < 0)
        sim_fail(sim, "blocks: %s", why.text);
    make_peers(n);
    make_gets(n);
}

void sim_node_kill(struct sim_node *n, bool engine_too)
{
    struct sim *sim = n->sim;
    struct sim_node *before;
    unsigned turns = 0;

    n->alive = n->frozen = false;
    sim_engines_node_gone(n);
    before = sim_enter(n);
    sim_bulk_node_gone(n);
    sim_net_node_gone(n);
    /* What dies with a process is undone here by hand. */
    kvf_gets_cancel_all(n->gets, KVF_SHUTTING_DOWN, "killed");
    kvf_moves_cancel_all(n->moves, KVF_SHUTTING_DOWN, "killed");
    kvf_pulls_cancel_all(n->pulls, KVF_SHUTTING_DOWN, "killed");
    while (kvf_gets_running(n->gets) + kvf_moves_running(n->moves) +
               kvf_pulls_running(n->pulls) !=
           0) {
        kvf_sched_turn(&n->sched);
        /* What waits for the word of another daemon takes its silence. */
        if (++turns > 100)
            n->dying_ns += 50 * SIM_MS;
        if (turns > 1000)
            sim_fail(sim, "node %u: a get does not end", n->idx);
    }
    kvf_pulls_destroy(n->pulls);
    kvf_moves_destroy(n->moves);
    kvf_gets_destroy(n->gets);
    kvf_peers_destroy(n->peers);
    for (unsigned i = 0; i < 3; i++)
        kvf_sched_turn(&n->sched);
    kvf_transport_destroy(n->tcp);
    kvf_transport_destroy(n->shm);
    kvf_layouts_end(&n->engine.layouts);
    kvf_store_destroy(n->store);
    kvf_blocks_destroy(n->blocks);
    kvf_buffers_destroy(n->bufs); /* with the regions, which are mapped */
    kvf_map_release(n->own_map);
    kvf_map_cache_destroy(n->maps);
    kvf_pool_destroy(n->pool);
    kvf_segment_destroy(&n->seg);
    kvf_sched_fini(&n->sched);
    free(n->conf);
    sim_leave(n, before);
    kvf_list_init(&n->engine.buffers);
    kvf_list_init(&n->engine.views);
    sim_proc_end(sim, n->pid);
    if (n->engine.n_old == SIM_OLD)
        sim_fail(sim, "too many starts under one engine");
    n->engine.old[n->engine.n_old++] = n->incarnation;
    if (engine_too && n->engine.alive) {
        n->engine.alive = false;
        sim_proc_end(sim, n->engine.pid);
    }
}

void sim_node_freeze(struct sim_node *n)
{
    n->frozen = true;
}

void sim_node_thaw(struct sim_node *n)
{
    if (!n->frozen)
        return;
    n->frozen = false;
    n->thawed_ns = n->sim->now_ns;
    sim_net_thaw(n);
}
