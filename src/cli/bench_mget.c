/* kvferry bench --workload mget: `depth` keys in one blocking request. */
#include "bench.h"

#include <stdlib.h>

struct run {
    struct bench *b;
    struct bench_result *r;
    struct kvferry_mget_item *items;
    char (*names)[64];
    int64_t cpu0;
};

/* Counts what failed, checks and gives back. */
static bool settle(struct run *run, uint64_t first_key)
{
    struct bench *b = run->b;
    bool ok = true;

    for (unsigned k = 0; k < b->depth; k++) {
        struct kvferry_mget_item *it = &run->items[k];

        if (it->status != 0) {
            bench_failed(run->r, "mget", it->status, it->message);
            ok = false;
        } else if (b->verify && !bench_check(it->payload, b->size,
                                             (first_key + k) % b->keys)) {
            bench_failed(run->r, "verify", -KVF_CORRUPT, "wrong bytes");
            ok = false;
        }
        kvferry_release(&it->payload);
    }
    return ok;
}

static int once(struct run *run, uint64_t i)
{
    struct bench *b = run->b;
    uint64_t first_key = i * b->depth, t0, t1;
    bool ok;
    int rc;

    for (unsigned k = 0; k < b->depth; k++) {
        bench_key(b, (unsigned)((first_key + k) % b->keys), run->names[k]);
        run->items[k].key = run->names[k];
        run->items[k].options = b->get;
    }
    if (i == b->warmup)
        run->cpu0 = bench_cpu(b->pids);
    t0 = bench_now();
    rc = kvferry_mget(b->to, run->items, b->depth, 0, false);
    if (rc != 0)
        return cli_failed(b->to, rc, "bench: mget");
    for (unsigned k = 0; b->view_read && k < b->depth; k++)
        if (run->items[k].status == 0)
            run->r->sum += bench_read(run->items[k].payload);
    t1 = bench_now();
    ok = settle(run, first_key);
    if (i < b->warmup)
        return 0;
    run->r->ns += t1 - t0;
    if (ok)
        run->r->latency_ns[run->r->n++] = t1 - t0;
    return 0;
}

int bench_mget(struct bench *b, struct bench_result *r)
{
    struct run run = {.b = b, .r = r};
    uint64_t end_ns;
    int rc = bench_begin(b, r);

    if (rc != 0)
        return rc;
    run.items = calloc(b->depth, sizeof *run.items);
    run.names = calloc(b->depth, sizeof *run.names);
    rc = run.items == NULL || run.names == NULL ? CLI_IO : bench_publish(b);
    if (rc == 0) {
        end_ns = bench_now() + b->duration_ms * 1000000;
        run.cpu0 = bench_cpu(b->pids);
        for (uint64_t i = 0; rc == 0 && i < b->count + b->warmup &&
                             bench_now() < end_ns && r->failed <= 100;
             i++)
            rc = once(&run, i);
        bench_end(b, r, run.cpu0);
    }
    kvferry_cleanup(b->from, b->prefix, -1, -1, NULL);
    free(run.items);
    free(run.names);
    return rc;
}
