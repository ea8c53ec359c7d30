/* Virtual time. A step goes to the earliest timer of the world or of a node
 * that runs, then turns everybody until nobody has work left. */
#include "sim.h"

#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t world_clock(void *arg)
{
    return ((struct sim *)arg)->now_ns;
}

struct sim *sim_new(const struct sim_conf *conf, uint64_t seed)
{
    struct sim *sim = calloc(1, sizeof *sim);

    if (sim == NULL)
        abort();
    /* Built lines still reach taps; nobody reads them here. */
    assert_int_equal(kvf_log_open("/dev/null", KVF_LOG_TRACE, NULL), 0);
    sim->conf = *conf;
    sim->seed = seed;
    sim->now_ns = 1000 * KVF_NS_PER_S;
    sim->next_generation = 1000;
    kvf_rng_seed(&sim->rng, seed);
    kvf_sched_init(&sim->world, world_clock, sim);
    kvf_list_init(&sim->dials);
    kvf_list_init(&sim->messages);
    kvf_list_init(&sim->serves);
    kvf_list_init(&sim->puts);
    kvf_list_init(&sim->gets);
    kvf_list_init(&sim->views);
    for (unsigned i = 0; i < conf->nodes; i++)
        sim_node_start(sim, i);
    return sim;
}

void sim_free(struct sim *sim)
{
    for (unsigned i = 0; i < sim->conf.nodes; i++)
        if (sim->node[i]->alive)
            sim_node_kill(sim->node[i], true);
    sim_bulk_free(sim);
    sim_net_free(sim);
    sim_engines_free(sim);
    for (unsigned i = 0; i < sim->conf.nodes; i++)
        free(sim->node[i]);
    kvf_sched_fini(&sim->world);
    kvf_log_close();
    free(sim);
}

uint64_t sim_below(struct sim *sim, uint64_t n)
{
    return kvf_rng_below(&sim->rng, n);
}

bool sim_chance(struct sim *sim, unsigned percent)
{
    return percent != 0 && sim_below(sim, 100) < percent;
}

void sim_fail(struct sim *sim, const char *fmt, ...)
{
    char text[512];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    fail_msg("seed %llu at %llu us: %s", (unsigned long long)sim->seed,
             (unsigned long long)(sim->now_ns / KVF_NS_PER_US), text);
    abort(); /* fail_msg has left already */
}

static uint64_t next_due(const struct sim *sim)
{
    uint64_t due = kvf_sched_next_due(&sim->world);

    for (unsigned i = 0; i < sim->conf.nodes; i++) {
        const struct sim_node *n = sim->node[i];
        uint64_t d;

        if (!n->alive || n->frozen)
            continue;
        d = kvf_sched_next_due(&n->sched);
        if (d < due)
            due = d;
        if (!kvf_list_empty(&n->sched.tasks) ||
            !kvf_list_empty(&n->sched.slices))
            due = sim->now_ns;
    }
    return due;
}

static bool turn_all(struct sim *sim)
{
    bool more = kvf_sched_turn(&sim->world);

    for (unsigned i = 0; i < sim->conf.nodes; i++) {
        struct sim_node *n = sim->node[i];

        if (!n->alive || n->frozen)
            continue;
        sim->current = n;
        more |= kvf_sched_turn(&n->sched);
        sim->current = NULL;
    }
    return more;
}

static void check(struct sim *sim)
{
    struct kvf_why why;

    for (unsigned i = 0; i < sim->conf.nodes; i++) {
        struct sim_node *n = sim->node[i];

        if (n->alive && kvf_store_check(n->store, &why) < 0)
            sim_fail(sim, "store of node %u: %s", i, why.text);
        if (n->alive && kvf_pool_check(n->pool, &why) < 0)
            sim_fail(sim, "pool of node %u: %s", i, why.text);
        if (n->alive && n->stats.unexpected != 0)
            sim_fail(sim, "node %u: an event that a get did not expect", i);
        if (n->alive && n->stats.checksum_failed != 0)
            sim_fail(sim, "node %u: a checksum did not match", i);
    }
    sim_bulk_check(sim);
    sim_engines_check(sim);
}

bool sim_step(struct sim *sim, uint64_t limit_ns)
{
    uint64_t due = next_due(sim);
    unsigned turns = 0;

    if (due > limit_ns) {
        if (sim->now_ns < limit_ns)
            sim->now_ns = limit_ns;
        return false;
    }
    if (due > sim->now_ns)
        sim->now_ns = due;
    while (turn_all(sim))
        if (++turns > 10000)
            sim_fail(sim, "somebody never has enough");
    check(sim);
    return true;
}

void sim_run_ms(struct sim *sim, uint64_t ms)
{
    uint64_t limit = sim->now_ns + ms * SIM_MS;

    while (sim->now_ns < limit && sim_step(sim, limit))
        ;
}

void sim_tap(void *arg, const char *line)
{
    const struct sim *sim = arg;

    fprintf(stderr, "%10llu n%d %s",
            (unsigned long long)(sim->now_ns / KVF_NS_PER_US - 1000000000u),
            sim->current != NULL ? (int)sim->current->idx : -1, line);
    if (strchr(line, '\n') == NULL)
        fputc('\n', stderr);
}
