/* pull_bench: throughput of gets. DEPTH slots, each with one get under way; the
 * clock runs from the first request to the last answer. */
#include "pull_bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SLOTS 64
#define COLD GIB

struct gets;
struct slot {
    struct gets *g;
    uint64_t key;
};

struct gets {
    struct pb *b;
    struct kvferry_get_options o;
    const char *name;
    struct kvferry_segment *into; /* one a key; NULL unless `into` */
    char **into_data;
    uint64_t size, n_keys, started, done, total, sum, transfer_us;
    bool read, check;
    struct slot slot[SLOTS];
};

static void next(struct slot *s);

static void got(struct kvferry *h, void *user, const struct kvferry_result *r)
{
    struct slot *s = user;
    struct gets *g = s->g;
    struct kvferry_payload *p = r->payload;
    const struct kvferry_piece *piece;
    struct kvferry_timing t;

    (void)h;
    if (r->status != 0)
        bench_die("get: %s: %s", kvferry_status_name(r->status), r->message);
    kvferry_payload_timing(p, &t);
    g->transfer_us += t.transfer_us;
    if (g->read)
        for (unsigned i = 0, n = kvferry_payload_pieces(p, &piece); i < n; i++)
            g->sum += bench_sum(piece[i].data, piece[i].length);
    if (g->check && g->into == NULL)
        pb_check(p, g->size, s->key);
    else if (g->check && bench_check(g->into_data[s->key], g->size, s->key,
                                     0) != UINT64_MAX)
        bench_die("WRONG BYTES came");
    kvferry_release(&p);
    g->done++;
    next(s);
}

static void next(struct slot *s)
{
    struct gets *g = s->g;
    struct kvferry_get_options o = g->o;
    char key[64];

    if (g->started == g->total)
        return;
    s->key = g->started++ % g->n_keys;
    pb_key(key, g->name, s->key);
    if (g->into != NULL) {
        o.into = &g->into[s->key];
        o.n_into = 1;
    }
    pb_need(g->b->to, kvferry_get_async(g->b->to, key, &o, got, s, NULL),
            "get");
}

static void run(struct gets *g, uint64_t total, unsigned depth, bool check)
{
    g->started = g->done = g->transfer_us = 0;
    g->total = total;
    g->check = check;
    for (unsigned i = 0; i < depth; i++) {
        g->slot[i].g = g;
        next(&g->slot[i]);
    }
    pb_wait(g->b->to, &g->done, total);
}

static void make_into(struct gets *g)
{
    struct kvferry_buffer buf;

    g->into = calloc(g->n_keys, sizeof *g->into);
    g->into_data = calloc(g->n_keys, sizeof *g->into_data);
    if (g->into == NULL || g->into_data == NULL)
        bench_die("out of memory");
    for (uint64_t i = 0; i < g->n_keys; i++) {
        pb_need(g->b->to, kvferry_alloc(g->b->to, g->size, &buf), "alloc");
        g->into[i].id = buf.id;
        g->into[i].length = g->size;
        g->into_data[i] = buf.data;
    }
}

static void measure(struct gets *g, uint64_t turns, unsigned depth, char **argv)
{
    uint64_t cpu = pb_cpu(g->b), t0 = bench_now(), ns;
    double gb = (double)(turns * g->size) / 1e9;

    run(g, turns, depth, false);
    ns = bench_now() - t0;
    cpu = pb_cpu(g->b) - cpu;
    printf("{\"bench\":\"get\",\"how\":\"%s %s depth %u\",\"size\":%llu,"
           "\"GBps\":%.5f,\"us\":%.2f,\"move_GBps\":%.5f,"
           "\"cpu_s_per_GB\":%.4f}\n",
           argv[1], argv[2], depth, (unsigned long long)g->size,
           gb * 1e9 / (double)ns, (double)ns / 1e3 / (double)turns,
           g->transfer_us > 0 ? gb * 1e6 / (double)g->transfer_us : 0.0,
           (double)cpu / 1e9 / gb);
    fflush(stdout);
}

void pb_get(struct pb *b, int argc, char **argv)
{
    struct gets g = {.b = b, .name = "get", .size = bench_size(argv[0])};
    unsigned depth = (unsigned)bench_size(argv[3]);
    uint64_t turns = bench_turns(g.size, GIB);

    (void)argc;
    if (depth > SLOTS)
        bench_die("a depth of at most %u", SLOTS);
    pb_open(b);
    g.o = pb_from(b);
    g.n_keys = argv[2][0] == 'c' ? COLD / g.size : depth;
    if (g.n_keys < depth)
        g.n_keys = depth;
    for (uint64_t i = 0; i < g.n_keys; i++)
        pb_put(b, g.name, i, g.size);
    if (argv[1][0] == 'i')
        make_into(&g);
    if (argv[1][0] == 'v')
        g.o.mode = KVFERRY_VIEW;
    run(&g, g.n_keys, depth, true);
    g.read = g.o.mode == KVFERRY_VIEW;
    run(&g, turns < 4 ? turns : turns / 4, depth, false);
    for (unsigned r = 0; bench_step(r, 1); r++)
        measure(&g, turns, depth, argv);
    run(&g, depth, depth, true);
    for (uint64_t i = 0; g.into != NULL && i < g.n_keys; i++)
        kvferry_free(b->to, g.into[i].id);
    pb_close(b);
}

static void tell(const char *how, uint64_t size, uint64_t n, uint64_t ns)
{
    printf("{\"bench\":\"many\",\"how\":\"%s\",\"size\":%llu,\"count\":%llu,"
           "\"per_s\":%.1f,\"GBps\":%.3f}\n",
           how, (unsigned long long)size, (unsigned long long)n,
           (double)n * 1e9 / (double)ns, (double)(n * size) / (double)ns);
}

/* All in one request; the time is taken before anything is checked. */
static uint64_t one_mget(struct pb *b, struct kvferry_mget_item *items,
                         uint64_t n, uint64_t size)
{
    uint64_t t0 = bench_now(), ns;

    pb_need(b->to, kvferry_mget(b->to, items, (unsigned)n, 60000, false),
            "mget");
    ns = bench_now() - t0;
    for (uint64_t i = 0; i < n; i++) {
        if (items[i].status != 0)
            bench_die("mget: %s: %s", kvferry_status_name(items[i].status),
                      items[i].message);
        pb_check(items[i].payload, size, i);
        kvferry_release(&items[i].payload);
    }
    return ns;
}

void pb_many(struct pb *b, int argc, char **argv)
{
    struct gets g = {.b = b, .name = "many", .size = bench_size(argv[0])};
    uint64_t n = bench_size(argv[1]), t0;
    struct kvferry_mget_item *items = calloc(n, sizeof *items);
    char(*keys)[64] = calloc(n, sizeof *keys);

    (void)argc;
    if (items == NULL || keys == NULL)
        bench_die("out of memory");
    pb_open(b);
    g.o = pb_from(b);
    g.n_keys = n;
    for (uint64_t i = 0; i < n; i++) {
        pb_put(b, g.name, i, g.size);
        pb_key(keys[i], g.name, i);
        items[i].key = keys[i];
        items[i].options = g.o;
    }
    run(&g, n, 1, true);
    t0 = bench_now();
    run(&g, n, 1, false);
    tell("sequential", g.size, n, bench_now() - t0);
    one_mget(b, items, n, g.size);
    tell("mget", g.size, n, one_mget(b, items, n, g.size));
    t0 = bench_now();
    run(&g, n, SLOTS, false);
    tell("pipelined", g.size, n, bench_now() - t0);
    pb_close(b);
    free(items);
    free(keys);
}
