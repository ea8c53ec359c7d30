/* Chaos for pushes and windows, by seeds: pushes, writes and reads between
 * daemons that die, restart, freeze, lose connections and whose bulk transfers
 * break. Checked after every step:
 *
 *   - a key that a push brought is visible whole, and a push is published at
 *     most once in the life of a receiver (its serial travels as metadata);
 *   - a push, write or read that is answered OK is in place at that moment;
 *   - a notification comes at most once, and before the OK of its write;
 *   - `retired` of a push with notify comes once, after its OK;
 *   - memory that is being written to is not free (sim_bulk.c);
 * and at the end that nothing is left.
 *
 *   KVF_SIM_SEEDS=N   how many seeds (default few, so that it takes seconds)
 *   KVF_SIM_SEED=S    only this one */
#include "moves_job.h"

#include "base/log.h"

#include <stdlib.h>
#include <string.h>

#define SEEDS 120
#define ACTIONS 300

/* ---- actions ------------------------------------------------------------ */

static bool runs(const struct sim_node *n)
{
    return n->alive && !n->frozen && n->engine.alive;
}

static bool busy(unsigned from, unsigned to)
{
    kvf_list_for_each (l, &jobs) {
        const struct job *j = kvf_container_of(l, struct job, node);

        if (j->move != NULL && j->kind != KVF_MOVE_PUSH && j->from == from &&
            j->to == to)
            return true;
    }
    return false;
}

static void do_move(struct sim *sim, struct sim_node *n)
{
    struct job *j = calloc(1, sizeof *j);
    struct sim_node *before, *to;
    struct kvf_window *w;

    if (j == NULL)
        abort();
    j->sim = sim;
    j->kind = (enum kvf_move_kind)sim_below(sim, 3);
    j->from = n->idx;
    j->from_boot = n->boots;
    j->to = (unsigned)sim_below(sim, sim->conf.nodes);
    to = sim->node[j->to];
    j->to_boot = to->boots;
    j->serial = ++jobs_serial;
    j->size = sim_chance(sim, 30) ? 1 + sim_below(sim, 2000)
                                  : 2001 + sim_below(sim, SHARE - 2001);
    j->notify = sim_chance(sim, 50);
    snprintf(j->key, sizeof j->key, "p%u:0_1", (unsigned)sim_below(sim, KEYS));
    w = job_window(to);
    j->window = w != NULL ? w->id : 0;
    if ((j->kind != KVF_MOVE_PUSH && busy(j->from, j->to)) ||
        kvf_buffer_alloc(n->bufs, j->size, KVF_BUF_FILLING, &n->engine, &j->buf,
                         NULL) < 0) {
        free(j);
        return;
    }
    if (j->kind != KVF_MOVE_READ)
        job_fill(j, kvf_buffer_ptr(j->buf));
    else if (w != NULL)
        job_fill(j, kvf_seg_ptr(&w->seg) + j->from * SHARE);
    kvf_list_init(&j->node);
    kvf_list_push_back(&jobs, &j->node);
    before = sim_enter(n);
    job_launch(sim, n, j);
    sim_leave(n, before);
}

static void do_cancel(struct sim *sim, struct sim_node *n)
{
    struct job *pick = NULL;
    unsigned seen = 0;
    struct sim_node *before;

    kvf_list_for_each (l, &jobs) {
        struct job *j = kvf_container_of(l, struct job, node);

        if (j->move != NULL && j->from == n->idx && sim_below(sim, ++seen) == 0)
            pick = j;
    }
    if (pick == NULL)
        return;
    before = sim_enter(n);
    kvf_move_cancel(pick->move, KVF_CANCELLED, "cancelled");
    sim_leave(n, before);
}

static void do_window(struct sim *sim, struct sim_node *n)
{
    if (job_window(n) == NULL)
        job_expose(sim, n);
    else if (sim_chance(sim, 30))
        job_unexpose(n);
}

static void do_fault(struct sim *sim, struct sim_node *n)
{
    struct sim_node *other = sim->node[sim_below(sim, sim->conf.nodes)];

    switch (sim_below(sim, 10)) {
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
        else if (n->alive && !n->frozen && !n->engine.alive)
            sim_engine_start(n);
        break;
    }
}

static void act(struct sim *sim)
{
    struct sim_node *n = sim->node[sim_below(sim, sim->conf.nodes)];
    unsigned what = (unsigned)sim_below(sim, 100);

    if (what < sim->seed % 8 * 2)
        do_fault(sim, n);
    else if (!runs(n))
        return;
    else if (what < 75)
        do_move(sim, n);
    else if (what < 85)
        do_cancel(sim, n);
    else
        do_window(sim, n);
}

/* ---- a seed ------------------------------------------------------------- */

static void run_until(struct sim *sim, uint64_t until)
{
    while (sim_step(sim, until))
        jobs_check(sim);
}

static void heal(struct sim *sim)
{
    sim->conf.bulk_fail_pct = sim->conf.bulk_cut_pct = 0;
    sim->conf.busy_pct = 0;
    for (unsigned i = 0; i < sim->conf.nodes; i++) {
        if (!sim->node[i]->alive)
            sim_node_start(sim, i);
        sim_node_thaw(sim->node[i]);
        for (unsigned k = 0; k < i; k++)
            sim_net_cut(sim, i, k, false);
    }
    run_until(sim, sim->now_ns + 10000 * SIM_MS);
    kvf_list_for_each (l, &jobs) {
        const struct job *j = kvf_container_of(l, struct job, node);

        if (j->move != NULL)
            sim_fail(sim, "%s %llu was never answered",
                     kvf_move_kind_name(j->kind),
                     (unsigned long long)j->serial);
    }
    for (unsigned i = 0; i < sim->conf.nodes; i++)
        if (sim->node[i]->engine.alive)
            sim_engine_kill(sim->node[i]);
    run_until(sim, sim->now_ns + 30000 * SIM_MS);
    sim_check_quiet(sim);
    kvf_list_for_each (l, &jobs) {
        const struct job *j = kvf_container_of(l, struct job, node);

        if (j->kind == KVF_MOVE_PUSH && j->notify && j->status == KVF_OK &&
            j->from_boot == sim->node[j->from]->boots && j->ends != 1)
            sim_fail(sim, "push %llu was never told to have ended",
                     (unsigned long long)j->serial);
    }
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

    sim->written = job_written;
    sim->push_end = job_ended;
    kvf_list_init(&jobs);
    if (getenv("KVF_SIM_LOG") != NULL)
        kvf_log_tap(sim_tap, sim);
    for (unsigned i = 0; i < ACTIONS; i++) {
        run_until(sim, sim->now_ns + (sim_chance(sim, 5)
                                          ? sim_below(sim, 3000 * SIM_MS)
                                          : sim_below(sim, 30 * SIM_MS)));
        act(sim);
    }
    heal(sim);
    kvf_log_tap(NULL, NULL);
    sim_free(sim);
    for (struct kvf_list *l; (l = kvf_list_pop(&jobs)) != NULL;)
        free(kvf_container_of(l, struct job, node));
}

static void chaos(void **state)
{
    const char *n = getenv("KVF_SIM_SEEDS"), *one = getenv("KVF_SIM_SEED");
    uint64_t seeds = n != NULL ? strtoull(n, NULL, 10) : SEEDS;

    (void)state;
    for (uint64_t seed = 1; one == NULL && seed <= seeds; seed++)
        run_seed(seed);
    if (one != NULL)
        run_seed(strtoull(one, NULL, 10));
    for (unsigned k = 0; k < 3; k++) {
        print_message("%s:", kvf_move_kind_name((enum kvf_move_kind)k));
        for (unsigned i = 0; i < KVF_STATUS_COUNT; i++)
            if (jobs_status[k][i] != 0)
                print_message(" %s=%llu", kvf_status_name((enum kvf_status)i),
                              (unsigned long long)jobs_status[k][i]);
        print_message("\n");
        /* A chaos without successes proves nothing. */
        assert_true(one != NULL || jobs_status[k][KVF_OK] > 10 * seeds);
    }
    print_message("OK after retries %llu, notifications %llu, ends:",
                  (unsigned long long)jobs_retried,
                  (unsigned long long)jobs_notices);
    for (unsigned i = 0; i < KVF_RETIRE_REASONS; i++)
        print_message(" %s=%llu", kvf_retire_name((enum kvf_retire)i),
                      (unsigned long long)jobs_ends[i]);
    print_message("\n");
}

/* ---- one lost message --------------------------------------------------- */

static enum kvf_peer_type lose;
static unsigned lost;

static bool pass(struct sim *sim, unsigned from, unsigned to,
                 enum kvf_peer_type type)
{
    (void)sim;
    (void)from;
    (void)to;
    if (type != lose || lost != 0)
        return true;
    lost++;
    return false;
}

/* A message of each kind is lost with its connection: what was asked is in
 * place when it is answered, and was done once. */
static void lose_one(enum kvf_move_kind kind, enum kvf_peer_type type,
                     uint64_t size, unsigned no_shm)
{
    struct sim *sim = job_sim(no_shm);
    struct job j = {.sim = sim,
                    .kind = kind,
                    .from = 1,
                    .from_boot = 1,
                    .to_boot = 1,
                    .serial = ++jobs_serial,
                    .size = size,
                    .notify = true,
                    .key = "p0:0_1"};
    uint64_t ok = jobs_status[kind][KVF_OK];
    struct kvf_window *w;

    sim->push_end = job_ended;
    sim->pass = pass;
    lose = type;
    lost = 0;
    kvf_list_init(&j.node);
    kvf_list_push_back(&jobs, &j.node);
    job_expose(sim, sim->node[0]);
    w = job_window(sim->node[0]);
    j.window = w != NULL ? w->id : 0;
    kvf_buffer_alloc(sim->node[1]->bufs, size, KVF_BUF_FILLING,
                     &sim->node[1]->engine, &j.buf, NULL);
    job_fill(&j, kvf_buffer_ptr(j.buf));
    job_launch(sim, sim->node[1], &j);
    j.deadline_ns = KVF_NEVER - GRACE_NS;
    for (unsigned i = 0; i < 6000 && lost == 0; i++)
        run_until(sim, sim->now_ns + SIM_MS);
    assert_int_equal(lost, 1);
    sim_net_reset(sim, 0, 1);
    run_until(sim, sim->now_ns + 8000 * SIM_MS);
    if (j.move != NULL || j.status != KVF_OK ||
        jobs_status[kind][KVF_OK] != ok + 1 ||
        j.published != (kind == KVF_MOVE_PUSH))
        sim_fail(sim, "%s after a lost %s: %s, published %u",
                 kvf_move_kind_name(kind), kvf_peer_type_name(type),
                 j.move != NULL ? "no answer" : kvf_status_name(j.status),
                 j.published);
    if (kind == KVF_MOVE_PUSH && sim->node[0]->stats.pushed != 1)
        sim_fail(sim, "published %llu times",
                 (unsigned long long)sim->node[0]->stats.pushed);
    heal(sim);
    sim_free(sim);
}

static void one_lost_message(void **state)
{
    static const enum kvf_peer_type push[] = {
        KVF_PEER_ROOM_ASK, KVF_PEER_GRANT,       KVF_PEER_COMMIT,
        KVF_PEER_APPLIED,  KVF_PEER_DONE,        KVF_PEER_ENDED,
        KVF_PEER_RETIRED,  KVF_PEER_RETIRED_SEEN};
    static const enum kvf_peer_type write[] = {
        KVF_PEER_WINDOW_ASK, KVF_PEER_GRANT, KVF_PEER_NOTIFY, KVF_PEER_APPLIED};

    (void)state;
    for (unsigned no_shm = 0; no_shm < 4; no_shm += 3) {
        for (unsigned i = 0; i < 8; i++)
            lose_one(KVF_MOVE_PUSH, push[i], 20000, no_shm);
        lose_one(KVF_MOVE_PUSH, KVF_PEER_ROOM_ASK, 1000, no_shm); /* eager */
        lose_one(KVF_MOVE_PUSH, KVF_PEER_APPLIED, 1000, no_shm);
        for (unsigned i = 0; i < 4; i++)
            lose_one(KVF_MOVE_WRITE, write[i], 20000, no_shm);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(one_lost_message),
                                       cmocka_unit_test(chaos)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
