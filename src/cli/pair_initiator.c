/* kvferry bench --mode initiator: `depth` slots, each one request (a batch of
 * blocks) after the other.
 *
 * Latency is a request's own; throughput is over the time in which at least one
 * is under way. With --verify the slots go in rounds: all start together, and
 * bytes are filled and checked between rounds, in no request's time.
 *
 * Failure modes: a request that fails is counted and the run goes on; its slot
 * pauses, longer each time, so that a dead target is not hammered. */
#include "pair.h"

#include "bench.h"

#include <stdlib.h>
#include <string.h>

#define SEC 1000000000ull

struct run;
struct slot {
    struct run *run;
    unsigned nth, failures; /* in a row */
    bool busy, done;        /* done: in this round, and well */
    uint64_t t0, offset, not_before, seed;
    struct kvferry_segment *seg;
};

struct run {
    struct pair *p;
    struct kvferry *h;
    struct kvferry_info info;
    struct kvferry_buffer local;
    struct pair_link link;
    struct pair_daemon daemon;
    struct pair_result r, *into; /* into: NULL while warming up */
    struct slot *slots;
    uint64_t started, limit, end_ns, busy_since, seed, moved;
    unsigned busy;
    bool broken; /* orders are not answered any more */
};

static uint64_t batch_bytes(const struct pair *p)
{
    return p->block * p->batch;
}

static void note(struct run *run, const char *what, int status,
                 const char *message)
{
    if (run->r.failed + run->r.wrong == 0)
        snprintf(run->r.error, sizeof run->r.error, "%s: %s: %s", what,
                 kvferry_status_name(status), message);
}

/* ---- one request -------------------------------------------------------- */

static void failed(struct slot *s, int status, const char *message)
{
    uint64_t ms = 10ull << (s->failures < 7 ? s->failures : 7);

    note(s->run, s->run->p->write ? "write" : "read", status, message);
    s->run->r.failed++;
    s->failures++;
    s->not_before = bench_now() + ms * 1000000;
}

static void done(struct kvferry *h, void *user, const struct kvferry_result *r)
{
    struct slot *s = user;
    struct run *run = s->run;
    uint64_t now = bench_now();

    (void)h;
    s->busy = false;
    if (--run->busy == 0 && run->into != NULL)
        run->into->ns += now - run->busy_since;
    if (r->transfer.attempts > 1)
        run->r.retries += r->transfer.attempts - 1;
    if (r->status != 0) {
        failed(s, r->status, r->message);
        return;
    }
    s->failures = 0;
    s->done = true;
    memcpy(run->r.transport, r->transfer.transport, sizeof run->r.transport);
    if (run->into != NULL && !pair_result_add(run->into, now - s->t0))
        failed(s, -KVF_INTERNAL, "out of memory");
}

/* A slot's blocks lie apart here, those of all slots between each other, as in
 * Mooncake's bench; at the target they are one range. With --cold both walk
 * through the whole memory. */
static void lay_out(struct slot *s)
{
    const struct pair *p = s->run->p;
    uint64_t bytes = batch_bytes(p);

    s->offset = s->nth * bytes;
    if (p->cold)
        s->offset = s->run->moved++ % (p->buffer / bytes) * bytes;
    for (unsigned i = 0; i < p->batch; i++) {
        s->seg[i].id = s->run->local.id;
        s->seg[i].length = p->block;
        s->seg[i].offset = p->cold
                               ? s->offset + i * p->block
                               : ((uint64_t)i * p->depth + s->nth) * p->block;
    }
}

static uint8_t *block_at(const struct slot *s, unsigned i)
{
    return (uint8_t *)s->run->local.data + s->seg[i].offset;
}

static void fill(struct slot *s)
{
    const struct pair *p = s->run->p;

    s->seed = p->write ? ++s->run->seed : s->run->seed;
    for (unsigned i = 0; i < p->batch; i++) {
        if (p->write)
            bench_fill_at(block_at(s, i), p->block, s->seed,
                          s->offset + i * p->block);
        else
            memset(block_at(s, i), 0xee, p->block); /* not what was there */
    }
}

static void start(struct slot *s)
{
    struct run *run = s->run;
    struct pair *p = run->p;
    struct kvferry_window_options o = {.timeout_ms = p->timeout_ms};
    int rc;

    pair_target_of(p, &o.to);
    s->busy = true;
    run->started++;
    s->t0 = bench_now();
    if (run->busy++ == 0)
        run->busy_since = s->t0;
    rc = (p->write ? kvferry_write_async : kvferry_read_async)(
        run->h, p->window, s->offset, s->seg, p->batch, &o, done, s, NULL);
    if (rc != 0) {
        struct kvferry_result r = {.status = rc,
                                   .message = kvferry_error(run->h)};

        done(run->h, s, &r);
    }
}

/* ---- many --------------------------------------------------------------- */

static bool over(const struct run *run)
{
    return pair_interrupted() || run->broken || run->started >= run->limit ||
           bench_now() >= run->end_ns;
}

/* Until when nothing is to be done, ms, 200 at most. */
static int idle_ms(const struct run *run)
{
    uint64_t now = bench_now(), next = now + SEC / 5;

    for (unsigned i = 0; i < run->p->depth; i++)
        if (!run->slots[i].busy && run->slots[i].not_before < next)
            next = run->slots[i].not_before;
    return next <= now ? 0 : (int)((next - now) / 1000000) + 1;
}

static void wait_some(struct run *run)
{
    bool round = run->p->verify;
    int ms = round && run->busy > 0 ? 200 : idle_ms(run);

    kvferry_wait(run->h, run->busy == run->p->depth ? 200 : ms);
    if (run->into != NULL)
        pair_progress(run->p, run->into,
                      run->busy > 0 ? bench_now() - run->busy_since : 0, false);
}

static void start_idle(struct run *run)
{
    for (unsigned i = 0; i < run->p->depth && !over(run); i++) {
        struct slot *s = &run->slots[i];

        if (s->busy || bench_now() < s->not_before)
            continue;
        lay_out(s);
        start(s);
    }
}

static void check_slot(struct run *run, struct slot *s)
{
    struct pair *p = run->p;
    struct pair_order o = {.what = PAIR_CHECK,
                           .offset = s->offset,
                           .length = batch_bytes(p),
                           .block = p->block,
                           .seed = s->seed};
    struct pair_status status;
    uint64_t wrong = 0;
    int rc;

    if (p->write) {
        rc = pair_order_do(&run->link, o, &status, &wrong);
        if (rc != 0) {
            note(run, "check", rc, "the target does not answer");
            run->r.failed++;
            run->broken = rc == -(int)KVF_TIMEOUT;
            return;
        }
    } else {
        for (unsigned i = 0; i < p->batch; i++)
            wrong += !bench_same(block_at(s, i), p->block, s->seed,
                                 s->offset + i * p->block);
    }
    if (wrong > 0)
        note(run, "verify", -KVF_CORRUPT, "wrong bytes");
    run->r.wrong += wrong;
    run->r.verified += p->batch;
}

static void verified_round(struct run *run)
{
    unsigned n = 0;

    for (unsigned i = 0; i < run->p->depth; i++) {
        struct slot *s = &run->slots[i];

        s->done = false;
        lay_out(s);
        fill(s);
    }
    for (unsigned i = 0; i < run->p->depth && !over(run); i++)
        if (bench_now() >= run->slots[i].not_before) {
            start(&run->slots[i]);
            n++;
        }
    if (n == 0)
        wait_some(run);
    while (run->busy > 0)
        wait_some(run);
    for (unsigned i = 0; i < run->p->depth; i++)
        if (run->slots[i].done)
            check_slot(run, &run->slots[i]);
}

static void phase(struct run *run, uint64_t count)
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

static void measure(struct run *run)
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
static int meet(struct run *run)
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
    if (status.window_size < batch_bytes(p) * p->depth) {
        fprintf(stderr,
                "kvferry bench: the target's window has %llu bytes, the blocks "
                "need %llu: give it --buffer-size\n",
                (unsigned long long)status.window_size,
                (unsigned long long)(batch_bytes(p) * p->depth));
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

static int prepare(struct run *run)
{
    struct pair *p = run->p;
    uint64_t room = p->cold ? p->buffer : batch_bytes(p) * p->depth;
    int rc;

    kvferry_info(run->h, &run->info);
    if (run->info.max_segments != 0 && p->batch > run->info.max_segments)
        return cli_usage(p->c, "--batch-size: one request takes %llu at most",
                         (unsigned long long)run->info.max_segments);
    run->slots = calloc(p->depth, sizeof *run->slots);
    if (run->slots == NULL)
        return CLI_IO;
    for (unsigned i = 0; i < p->depth; i++) {
        run->slots[i].run = run;
        run->slots[i].nth = i;
        run->slots[i].seg = calloc(p->batch, sizeof(struct kvferry_segment));
        if (run->slots[i].seg == NULL)
            return CLI_IO;
    }
    rc = kvferry_alloc(run->h, room, &run->local);
    if (rc == 0) {
        memset(run->local.data, 1, room);
        rc = pair_link_open(&run->link, run->h, p);
    }
    return rc != 0 ? cli_failed(run->h, rc, "alloc") : meet(run);
}

static void clean_up(struct run *run)
{
    kvferry_close(run->h);
    pair_daemon_stop(&run->daemon);
    for (unsigned i = 0; run->slots != NULL && i < run->p->depth; i++)
        free(run->slots[i].seg);
    free(run->slots);
    free(run->r.latency_ns);
}

int pair_initiator(struct pair *p)
{
    struct run run = {.p = p, .seed = bench_now()};
    uint64_t room = p->cold ? p->buffer : batch_bytes(p) * p->depth;
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
