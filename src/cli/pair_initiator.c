/* kvferry bench --mode initiator: `depth` slots, each one batch of blocks
 * (pair_batch.c) after the other.
 *
 * Latency is a batch's own; throughput is over the time in which at least one
 * is under way. With --verify the slots go in rounds: all start together, and
 * bytes are filled and checked between rounds, in no batch's time.
 *
 * Failure modes: a request that fails is counted and the run goes on; its slot
 * pauses, longer each time, so that a dead target is not hammered. */
#include "pair.h"

#include "bench.h"

#include <stdlib.h>
#include <string.h>

#define SEC 1000000000ull

/* ---- many --------------------------------------------------------------- */

static bool over(const struct pair_run *run)
{
    return pair_interrupted() || run->broken || run->started >= run->limit ||
           bench_now() >= run->end_ns;
}

/* Until when nothing is to be done, ms, 200 at most. */
static int idle_ms(const struct pair_run *run)
{
    uint64_t now = bench_now(), next = now + SEC / 5;

    for (unsigned i = 0; i < run->p->depth; i++)
        if (!run->slots[i].busy && run->slots[i].not_before < next)
            next = run->slots[i].not_before;
    return next <= now ? 0 : (int)((next - now) / 1000000) + 1;
}

static void wait_some(struct pair_run *run)
{
    bool round = run->p->verify;
    int ms = round && run->busy > 0 ? 200 : idle_ms(run);

    kvferry_wait(run->h, run->busy == run->p->depth ? 200 : ms);
    if (run->into != NULL)
        pair_progress(run->p, run->into,
                      run->busy > 0 ? bench_now() - run->busy_since : 0, false);
}

static void start_idle(struct pair_run *run)
{
    for (unsigned i = 0; i < run->p->depth && !over(run); i++) {
        struct pair_slot *s = &run->slots[i];

        if (s->busy || bench_now() < s->not_before)
            continue;
        pair_batch_lay_out(s);
        pair_batch_start(s);
    }
}

static void verified_round(struct pair_run *run)
{
    unsigned n = 0;

    for (unsigned i = 0; i < run->p->depth; i++) {
        struct pair_slot *s = &run->slots[i];

        pair_batch_lay_out(s);
        pair_batch_fill(s);
    }
    for (unsigned i = 0; i < run->p->depth && !over(run); i++)
        if (bench_now() >= run->slots[i].not_before) {
            pair_batch_start(&run->slots[i]);
            n++;
        }
    if (n == 0)
        wait_some(run);
    while (run->busy > 0)
        wait_some(run);
    for (unsigned i = 0; i < run->p->depth; i++)
        pair_batch_check(&run->slots[i]);
}

static void phase(struct pair_run *run, uint64_t count)
{
    run->started = 0;
    run->limit = count;
    while (!over(run)) {
        if (run->p->verify) {
            verified_round(run);
        } else {
            start_idle(run);
            wait_some(run);
        }
    }
    while (run->busy > 0) /* each ends by its own deadline */
        wait_some(run);
}

/* ---- a run -------------------------------------------------------------- */

static double cpu_s(int64_t from, int64_t to)
{
    return from >= 0 && to >= 0 ? (double)(to - from) / 1e9 : -1;
}

static double both(double a, double b)
{
    return a >= 0 && b >= 0 ? a + b : -1;
}

static void measure(struct pair_run *run)
{
    struct pair_status before = {.daemon_cpu_ns = -1}, after;
    struct pair_order report = {.what = PAIR_REPORT, .block = 1};
    int64_t daemon, engine;
    int rc;

    run->into = NULL;
    run->end_ns = UINT64_MAX;
    phase(run, run->p->warmup);
    rc = pair_order_do(&run->link, report, &before, NULL);
    daemon = pair_daemon_cpu(&run->info);
    engine = pair_own_cpu();
    run->into = &run->r;
    run->end_ns = bench_now() + run->p->duration_ms * 1000000;
    phase(run, run->p->count > 0 ? run->p->count : UINT64_MAX);
    run->r.initiator_cpu_s = both(cpu_s(daemon, pair_daemon_cpu(&run->info)),
                                  cpu_s(engine, pair_own_cpu()));
    run->r.target_cpu_s = -1;
    if (run->p->verify) /* filling and checking is not what is measured */
        run->r.initiator_cpu_s = -1;
    else if (rc == 0 && !run->broken &&
             pair_order_do(&run->link, report, &after, NULL) == 0)
        run->r.target_cpu_s =
            both(cpu_s(before.daemon_cpu_ns, after.daemon_cpu_ns),
                 cpu_s(before.engine_cpu_ns, after.engine_cpu_ns));
}

/* Meets the target, and fills what will be read. */
static int meet(struct pair_run *run)
{
    struct pair *p = run->p;
    struct pair_order fill_it = {
        .what = PAIR_FILL, .length = p->buffer, .block = 1, .seed = run->seed};
    struct pair_order report = {.what = PAIR_REPORT, .block = 1};
    struct pair_status status;
    int rc = pair_order_do(&run->link, report, &status, NULL);

    if (rc != 0)
        return cli_failed(run->h, rc, "target %s:%u", p->peer_host,
                          p->peer_port);
    if (status.window_size < p->buffer && p->cold)
        p->buffer = status.window_size;
    if (status.window_size < pair_batch_bytes(p) * p->depth) {
        fprintf(stderr,
                "kvferry bench: the target's window has %llu bytes, the blocks "
                "need %llu: give it --buffer-size\n",
                (unsigned long long)status.window_size,
                (unsigned long long)(pair_batch_bytes(p) * p->depth));
        return KVF_INVALID;
    }
    if (p->buffer > status.window_size)
        p->buffer = status.window_size;
    fill_it.length = p->buffer;
    if (p->verify && !p->write) {
        rc = pair_order_do(&run->link, fill_it, &status, NULL);
        if (rc != 0)
            return cli_failed(run->h, rc, "filling the window");
    }
    return 0;
}

static int make_slots(struct pair_run *run)
{
    struct pair *p = run->p;
    uint64_t most, at_once;

    kvferry_info(run->h, &run->info);
    most = run->info.max_segments;
    p->part = most != 0 && most < p->batch ? (unsigned)most : p->batch;
    at_once = (uint64_t)pair_batch_parts(p) * p->depth;
    if (run->info.max_outstanding != 0 && at_once > run->info.max_outstanding)
        return cli_usage(p->c,
                         "these batches are %llu requests at once, the daemon "
                         "takes %llu (limits.max_outstanding)",
                         (unsigned long long)at_once,
                         (unsigned long long)run->info.max_outstanding);
    run->slots = calloc(p->depth, sizeof *run->slots);
    if (run->slots == NULL)
        return CLI_IO;
    for (unsigned i = 0; i < p->depth; i++)
        if (!pair_batch_init(&run->slots[i], run, i))
            return CLI_IO;
    return 0;
}

static int prepare(struct pair_run *run)
{
    struct pair *p = run->p;
    uint64_t room = p->cold ? p->buffer : pair_batch_bytes(p) * p->depth;
    int rc;

    rc = make_slots(run);
    if (rc != 0)
        return rc;
    rc = kvferry_alloc(run->h, room, &run->local);
    if (rc == 0) {
        memset(run->local.data, 1, room);
        rc = pair_link_open(&run->link, run->h, p);
    }
    return rc != 0 ? cli_failed(run->h, rc, "alloc") : meet(run);
}

static void clean_up(struct pair_run *run)
{
    kvferry_close(run->h);
    pair_daemon_stop(&run->daemon);
    for (unsigned i = 0; run->slots != NULL && i < run->p->depth; i++)
        pair_batch_free(&run->slots[i]);
    free(run->slots);
    free(run->r.latency_ns);
}

int pair_initiator(struct pair *p)
{
    struct pair_run run = {.p = p, .seed = bench_now()};
    uint64_t room = p->cold ? p->buffer : pair_batch_bytes(p) * p->depth;
    int rc;

    pair_catch_signals();
    rc = pair_daemon_start(p, room + PAIR_CTL_SIZE, &run.daemon);
    if (rc != 0)
        return rc;
    p->c->endpoint = run.daemon.endpoint;
    rc = cli_open(p->c, 0, &run.h);
    if (rc == 0)
        rc = prepare(&run);
    if (rc == 0) {
        measure(&run);
        pair_print(p, &run.r);
        rc = run.r.wrong > 0 ? KVF_CORRUPT : run.r.failed > 0 ? KVF_FAILED : 0;
    }
    clean_up(&run);
    return rc;
}
