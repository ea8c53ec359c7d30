/* Chaos by seeds: random puts, gets, cancels, ends of generations, deaths,
 * restarts, partitions and freezes; the invariants are checked after every step
 * (sim_engine.c, sim_bulk.c, sim_world.c), and after healing everything must
 * come back to nothing.
 *
 *   KVF_SIM_SEEDS=N   how many seeds (default few, so that it takes seconds)
 *   KVF_SIM_SEED=S    only this one */
#include "sim.h"

#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SEEDS 200
#define ACTIONS 400
#define KEYS 6

static struct sim_node *any_node(struct sim *sim)
{
    return sim->node[sim_below(sim, sim->conf.nodes)];
}

static bool runs(const struct sim_node *n)
{
    return n->alive && !n->frozen && n->engine.alive;
}

static void any_key(struct sim *sim, char *out, size_t cap)
{
    snprintf(out, cap, "r%u:0_1", (unsigned)sim_below(sim, KEYS));
}

static uint64_t any_size(struct sim *sim)
{
    switch (sim_below(sim, 4)) {
    case 0:
        return 4 + sim_below(sim, 1020);
    case 1:
    case 2:
        return 1025 + sim_below(sim, 20000);
    default:
        return 20000 + sim_below(sim, 60000);
    }
}

static void do_put(struct sim *sim, struct sim_node *n)
{
    struct sim_put_opts o = {.size = any_size(sim),
                             .readers = sim_below(sim, 4),
                             .ttl_ms = 300 + sim_below(sim, 6000),
                             .segments = 1 + (unsigned)sim_below(sim, 3),
                             .checksum = sim_chance(sim, 50),
                             .reject = sim_chance(sim, 10)};
    char key[32];

    any_key(sim, key, sizeof key);
    sim_put(n, key, &o, NULL);
}

/* What the last put of that key at that node was. */
static const struct sim_put *last_put(struct sim *sim, unsigned idx,
                                      const char *key)
{
    for (struct kvf_list *l = sim->puts.prev; l != &sim->puts; l = l->prev) {
        const struct sim_put *p = kvf_container_of(l, struct sim_put, node);

        if (p->idx == idx && strcmp(p->key, key) == 0)
            return p;
    }
    return NULL;
}

static void do_get(struct sim *sim, struct sim_node *n)
{
    static const enum kvf_mode modes[] = {KVF_MODE_AUTO, KVF_MODE_COPY,
                                          KVF_MODE_VIEW, KVF_MODE_INLINE,
                                          KVF_MODE_INTO};
    struct sim_get_opts o = {.mode = modes[sim_below(sim, 5)],
                             .timeout_ms = 50 + sim_below(sim, 5000),
                             .no_wait = sim_chance(sim, 15),
                             .hold = sim_chance(sim, 10)};
    unsigned from = (unsigned)sim_below(sim, sim->conf.nodes);
    const struct sim_put *p;
    struct sim_get *g;
    char key[32];

    any_key(sim, key, sizeof key);
    p = last_put(sim, from, key);
    if (sim_chance(sim, 10))
        o.timeout_ms = 0;
    if (p != NULL && sim_chance(sim, 15))
        o.generation = p->generation;
    if (p != NULL && sim_chance(sim, 10)) {
        o.has_incarnation = true;
        o.incarnation = sim->node[from]->incarnation;
    }
    if (o.mode == KVF_MODE_INTO)
        o.into = p != NULL ? p->size : 5000;
    g = sim_get(n, from, key, &o);
    g->refuse_reply = sim_chance(sim, 4);
}

static struct sim_get *any_get(struct sim *sim)
{
    struct sim_get *pick = NULL;
    unsigned seen = 0;

    kvf_list_for_each (l, &sim->gets) {
        struct sim_get *g = kvf_container_of(l, struct sim_get, node);

        if (!g->gone && sim_below(sim, ++seen) == 0)
            pick = g;
    }
    return pick;
}

/* How the gets of all seeds ended: a chaos without successes proves nothing. */
static uint64_t ended[KVF_STATUS_COUNT], by_mode[KVF_MODE_INTO + 1], retried;

static void count(const struct sim_get *g)
{
    if (g->replies == 0 || g->gone)
        return;
    ended[g->status]++;
    if (g->status == KVF_OK) {
        by_mode[g->mode]++;
        retried += g->attempts > 1;
    }
}

static void print_counts(void)
{
    for (unsigned i = 0; i < KVF_STATUS_COUNT; i++)
        if (ended[i] != 0)
            print_message("%s=%llu ", kvf_status_name((enum kvf_status)i),
                          (unsigned long long)ended[i]);
    print_message("\nOK: copy=%llu view=%llu inline=%llu into=%llu, after "
                  "retries %llu\n",
                  (unsigned long long)by_mode[KVF_MODE_COPY],
                  (unsigned long long)by_mode[KVF_MODE_VIEW],
                  (unsigned long long)by_mode[KVF_MODE_INLINE],
                  (unsigned long long)by_mode[KVF_MODE_INTO],
                  (unsigned long long)retried);
}

/* Ends an open get, or lets go of what an answered one gave. */
static void end_get(struct sim *sim, struct sim_get *g, unsigned cancel_pct)
{
    struct sim_node *n = sim->node[g->idx], *before;

    if (g->gone || !runs(n))
        return;
    if (g->replies != 0) {
        if (g->status == KVF_OK && g->buffer != 0)
            sim_release(n, g->buffer);
        count(g);
        sim_get_drop(g);
        return;
    }
    before = sim_enter(n);
    if (g->helds != 0 && !sim_chance(sim, cancel_pct))
        kvf_get_commit(g->get);
    else if (sim_chance(sim, cancel_pct))
        kvf_get_cancel(g->get, KVF_CANCELLED, "cancelled");
    sim_leave(n, before);
}

static void do_end_key(struct sim *sim, struct sim_node *n)
{
    struct sim_node *before = sim_enter(n);
    char key[32];

    any_key(sim, key, sizeof key);
    if (sim_chance(sim, 50))
        kvf_store_fail(n->store, key, strlen(key), "broken", 6, 2000, NULL);
    else
        kvf_store_cleanup(n->store, key, 2, false, 0, 0);
    sim_leave(n, before);
}

static void do_fault(struct sim *sim, struct sim_node *n)
{
    struct sim_node *other = any_node(sim);
    unsigned what = (unsigned)sim_below(sim, 10);

    kvf_log(KVF_LOG_TRACE, "FAULT", "%u at node %u (%u)", what, n->idx,
            other->idx);
    switch (what) {
    case 0:
        if (n->alive)
            sim_node_kill(n, sim_chance(sim, 50));
        break;
    case 1:
    case 2:
        if (!n->alive)
            sim_node_start(sim, n->idx);
        break;
    case 3:
        if (n->alive)
            sim_node_freeze(n);
        break;
    case 4:
    case 5:
        sim_node_thaw(n);
        break;
    case 6:
        sim_net_cut(sim, n->idx, other->idx, true);
        break;
    case 7:
        sim_net_cut(sim, n->idx, other->idx, false);
        break;
    case 8:
        sim_net_reset(sim, n->idx, other->idx);
        break;
    default:
        if (runs(n))
            sim_engine_kill(n);
        else if (n->alive && !n->engine.alive)
            sim_engine_start(n);
        break;
    }
}

static void act(struct sim *sim)
{
    struct sim_node *n = any_node(sim);
    unsigned what = (unsigned)sim_below(sim, 100);
    struct sim_get *g;

    if (what < sim->seed % 8 * 2) {
        do_fault(sim, n);
        return;
    }
    if (!runs(n))
        return;
    if (what < 38)
        do_put(sim, n);
    else if (what < 65)
        do_get(sim, n);
    else if (what < 92 && (g = any_get(sim)) != NULL)
        end_get(sim, g, 30);
    else if (what < 97)
        do_end_key(sim, n);
    else
        sim_release_old(n);
}

/* A daemon that started anew does not know whose views its engine had before;
 * those owners hear of it when they are dialled again. */
static void dial_everybody(struct sim *sim)
{
    const struct sim_get_opts o = {.mode = KVF_MODE_COPY, .timeout_ms = 1000};

    for (unsigned i = 0; i < sim->conf.nodes; i++)
        for (unsigned k = 0; k < sim->conf.nodes; k++)
            if (i != k)
                sim_get(sim->node[i], k, "nothing", &o);
}

static void heal(struct sim *sim)
{
    sim->conf.bulk_fail_pct = sim->conf.bulk_cut_pct = 0;
    sim->conf.busy_pct = 0;
    for (unsigned i = 0; i < sim->conf.nodes; i++) {
        if (!sim->node[i]->alive)
            sim_node_start(sim, i);
        sim_node_thaw(sim->node[i]);
        if (!sim->node[i]->engine.alive)
            sim_engine_start(sim->node[i]);
        for (unsigned k = 0; k < i; k++)
            sim_net_cut(sim, i, k, false);
    }
    sim_run_ms(sim, 8000);
    for (unsigned round = 0; round < 3; round++) {
        kvf_list_for_each_safe (l, &sim->gets)
            end_get(sim, kvf_container_of(l, struct sim_get, node), 100);
        sim_run_ms(sim, 5000);
    }
    for (unsigned i = 0; i < sim->conf.nodes; i++)
        while (sim_release_old(sim->node[i]))
            ;
    dial_everybody(sim);
    sim_run_ms(sim, 20000);
    if (sim->n_gets_open != 0)
        sim_fail(sim, "%u gets were never answered", sim->n_gets_open);
    sim_check_quiet(sim);
}

static void run_seed(uint64_t seed)
{
    static const unsigned no_shm[] = {15, 1, 0, 12}; /* bits: nodes */
    struct sim_conf c = {.nodes = 2 + (unsigned)(seed % 3),
                         .pool_size = 1u << 20,
                         .inline_max = 2048,
                         .delay_ns = 50 * KVF_NS_PER_US,
                         .jitter_ns = seed % 5 == 0 ? 30 * SIM_MS : SIM_MS,
                         .tick_ns = seed % 2 == 0 ? 0 : 1000,
                         .bulk_chunk = 16384,
                         .bulk_step_ns = seed % 7 == 0 ? 20 * SIM_MS : SIM_MS,
                         .no_shm = no_shm[seed / 3 % 4],
                         .bulk_fail_pct = 8,
                         .bulk_cut_pct = 4,
                         .dup_hello_pct = 20,
                         .busy_pct = 3};
    struct sim *sim = sim_new(&c, seed);

    if (getenv("KVF_SIM_LOG") != NULL)
        kvf_log_tap(sim_tap, sim);
    for (unsigned i = 0; i < ACTIONS; i++) {
        uint64_t until = sim->now_ns;

        until += sim_chance(sim, 5) ? sim_below(sim, 3000 * SIM_MS)
                                    : sim_below(sim, 20 * SIM_MS);
        while (sim_step(sim, until))
            ;
        act(sim);
    }
    heal(sim);
    kvf_log_tap(NULL, NULL);
    sim_free(sim);
}

static void chaos(void **state)
{
    const char *n = getenv("KVF_SIM_SEEDS"), *one = getenv("KVF_SIM_SEED");
    uint64_t seeds = n != NULL ? strtoull(n, NULL, 10) : SEEDS;

    (void)state;
    if (one != NULL) {
        run_seed(strtoull(one, NULL, 10));
        print_counts();
        return;
    }
    for (uint64_t seed = 1; seed <= seeds; seed++)
        run_seed(seed);
    print_counts();
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(chaos)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
