/* Pulls the KV blocks of a request between two running daemons, as engines do,
 * and in the same round what that is held against: copies of the same runs
 * (memcpy, non-temporal) and a contiguous get of as many bytes.
 *
 *   pull_blocks SENDER RECEIVER RUN_BYTES LAYERS BLOCKS ROUNDS [USED]
 *
 * (The first two are endpoints.) USED of the blocks are the request's, all by
 * default; fewer compare plans of different sizes over the same memory, cold in
 * the same way.
 *
 * One rank a side; a run is what one block has of one layer; the ids are random
 * and fresh each round on both sides, so nothing merges. Every byte is checked
 * after each round's pull. ns_per_read is from the moment when all ranks had
 * answered to the last byte, planning included. Each line of output is a JSON
 * object. */
#include "common.h"
#include "kvferry/kvferry.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define TOKENS 16u /* of a block */

struct end {
    struct kvferry *h;
    uint8_t *mem;
    uint64_t region, layout, *ids;
};

struct bench {
    struct end from, to;
    uint64_t run, layers, blocks, used, size;
};

static void need(struct kvferry *h, int rc, const char *what)
{
    if (rc != 0)
        bench_die("%s: %s: %s", what, kvferry_status_name(rc),
                  kvferry_error(h));
}

static void declare(const struct bench *b, struct end *e)
{
    struct kvferry_layout_group group = {.kind = "full"};
    struct kvferry_layout_comp comps[2] = {{"k", 1, b->run / TOKENS / 2},
                                           {"v", 1, b->run / TOKENS / 2}};
    struct kvferry_layout_layer *layers = calloc(b->layers, sizeof *layers);
    struct kvferry_layout_view *views = calloc(b->layers, sizeof *views);
    char(*names)[16] = calloc(b->layers, sizeof *names);
    struct kvferry_layout l = {.tp = 1,
                               .pp = 1,
                               .bs = TOKENS,
                               .ppl = 1,
                               .nblocks = b->blocks,
                               .order = "HND",
                               .kv = "packed",
                               .groups = &group,
                               .n_groups = 1,
                               .layers = layers,
                               .n_layers = (unsigned)b->layers,
                               .views = views,
                               .n_views = (unsigned)b->layers};

    if (layers == NULL || views == NULL || names == NULL)
        bench_die("no memory");
    for (uint64_t i = 0; i < b->layers; i++) {
        snprintf(names[i], sizeof *names, "layer%u", (unsigned)i);
        layers[i] =
            (struct kvferry_layout_layer){names[i], 0, "attn", comps, 2};
        views[i] = (struct kvferry_layout_view){.layer = i,
                                                .part = "kv",
                                                .region = e->region,
                                                .off0 = i * b->blocks * b->run,
                                                .stride = b->run,
                                                .page = b->run};
    }
    need(e->h, kvferry_layout(e->h, &l, &e->layout), "layout");
    free(names);
    free(layers);
    free(views);
}

static void open_end(const struct bench *b, struct end *e, const char *endpoint)
{
    struct kvferry_open_options o = {
        .endpoint = endpoint, .client = "pull_blocks", .timeout_ms = 20000};
    int fd = memfd_create("kv", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    char err[256] = "";

    if (kvferry_open(&e->h, &o, err, sizeof err) != 0)
        bench_die("no daemon at %s: %s", endpoint, err);
    if (fd < 0 || ftruncate(fd, (off_t)b->size) != 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) != 0)
        bench_die("no memory");
    e->mem = mmap(NULL, b->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (e->mem == MAP_FAILED)
        bench_die("no memory");
    memset(e->mem, 1, b->size);
    need(e->h, kvferry_register(e->h, fd, b->size, e->mem, &e->region),
         "register");
    e->ids = calloc(b->blocks, sizeof *e->ids);
    if (e->ids == NULL)
        bench_die("no memory");
    for (uint64_t i = 0; i < b->blocks; i++)
        e->ids[i] = i;
    declare(b, e);
}

static void shuffle(uint64_t *v, uint64_t n)
{
    for (uint64_t i = n; i > 1; i--) {
        uint64_t k = (uint64_t)random() % i, t = v[k];

        v[k] = v[i - 1];
        v[i - 1] = t;
    }
}

static uint64_t at(const struct bench *b, const struct end *e, uint64_t layer,
                   uint64_t i)
{
    return (layer * b->blocks + e->ids[i]) * b->run;
}

static uint64_t copy_round(struct bench *b, bool nt)
{
    uint64_t t0 = bench_now();

    for (uint64_t l = 0; l < b->layers; l++)
        for (uint64_t i = 0; i < b->used; i++) {
            uint8_t *to = b->to.mem + at(b, &b->to, l, i);
            const uint8_t *from = b->from.mem + at(b, &b->from, l, i);

            if (nt)
                bench_copy_nt(to, from, b->run);
            else
                memcpy(to, from, b->run);
        }
    return bench_now() - t0;
}

static uint64_t get_round(struct bench *b)
{
    struct kvferry_put_options po = {.notify = true};
    struct kvferry_segment from = {b->from.region, true, 0, b->size},
                           to = {b->to.region, true, 0, b->size};
    struct kvferry_get_options go = {
        .into = &to, .n_into = 1, .from_fields = 1, .timeout_ms = 60000};
    struct kvferry_payload *p;
    uint64_t t0;

    need(b->from.h,
         kvferry_put_segments(b->from.h, "bench:kv", &from, 1, &po, NULL),
         "put");
    t0 = bench_now();
    need(b->to.h, kvferry_get(b->to.h, "bench:kv", &go, &p), "get");
    t0 = bench_now() - t0;
    kvferry_release(&p);
    return t0;
}

static uint64_t pull_round(struct bench *b, struct kvferry_pull_result *r)
{
    struct kvferry_publish_options po = {.n_tokens = b->used * TOKENS};
    struct kvferry_pull_options o = {
        .request_id = "bench", .from_fields = 1, .timeout_ms = 60000};
    struct kvferry_blocks from = {0, 0, b->from.ids, b->used},
                          to = {0, 0, b->to.ids, b->used};
    uint64_t t0;

    need(b->from.h,
         kvferry_publish(b->from.h, b->from.layout, "bench", &from, 1, &po,
                         NULL),
         "publish");
    t0 = bench_now();
    need(b->to.h, kvferry_pull(b->to.h, b->to.layout, &to, 1, &o, r), "pull");
    t0 = bench_now() - t0;
    if (r->bytes != b->run * b->layers * b->used)
        bench_die("pulled %llu bytes", (unsigned long long)r->bytes);
    for (uint64_t l = 0; l < b->layers; l++)
        for (uint64_t i = 0; i < b->used; i++)
            if (memcmp(b->to.mem + at(b, &b->to, l, i),
                       b->from.mem + at(b, &b->from, l, i), b->run) != 0)
                bench_die("wrong bytes in layer %llu", (unsigned long long)l);
    return t0;
}

static void measure(struct bench *b, bool warm)
{
    double bytes = (double)(b->run * b->layers * b->used);
    struct kvferry_pull_result r;
    uint64_t plain, nt, get = 0, ns;

    shuffle(b->from.ids, b->blocks);
    shuffle(b->to.ids, b->blocks);
    plain = copy_round(b, false);
    nt = copy_round(b, true);
    if (b->used == b->blocks)
        get = get_round(b);
    memset(b->to.mem, 0, b->size);
    ns = pull_round(b, &r);
    if (warm)
        return;
    printf("{\"run\":%llu,\"reads\":%llu,\"bytes\":%llu,\"transport\":\"%s\","
           "\"GBps\":%.3f,\"move_GBps\":%.3f,\"memcpy_GBps\":%.3f,"
           "\"nt_GBps\":%.3f,\"get_GBps\":%.3f,\"us\":%.1f,"
           "\"ns_per_read\":%.1f}\n",
           (unsigned long long)b->run, (unsigned long long)r.reads,
           (unsigned long long)r.bytes, r.transport, bytes / (double)ns,
           bytes / 1e3 / (double)(r.timing.transfer_us + 1),
           bytes / (double)plain, bytes / (double)nt,
           get != 0 ? bytes / (double)get : 0, (double)ns / 1000,
           1e3 * (double)(r.timing.total_us - r.timing.lookup_us) /
               (double)r.reads);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    static struct bench b;

    if (argc != 7 && argc != 8)
        bench_die("usage: pull_blocks SENDER_ENDPOINT RECEIVER_ENDPOINT "
                  "RUN_BYTES LAYERS BLOCKS ROUNDS [USED]");
    b.run = bench_size(argv[3]);
    b.layers = strtoull(argv[4], NULL, 10);
    b.blocks = strtoull(argv[5], NULL, 10);
    if (b.run == 0 || b.run % (2 * TOKENS) != 0 || b.run > MIB ||
        b.layers == 0 || b.layers > 1024 || b.blocks == 0 ||
        b.blocks > (1 << 20))
        bench_die("RUN_BYTES: a multiple of 32 up to 1 MiB; 1 to 1024 layers, "
                  "1 to 2^20 blocks");
    b.size = b.run * b.layers * b.blocks;
    open_end(&b, &b.from, argv[1]);
    open_end(&b, &b.to, argv[2]);
    bench_fill(b.from.mem, b.size, 7, 0);
    b.used = b.blocks;
    measure(&b, true);
    if (argc == 8)
        b.used = strtoull(argv[7], NULL, 10);
    if (b.used == 0 || b.used > b.blocks)
        bench_die("USED: 1 to BLOCKS");
    for (int i = 0; i < atoi(argv[6]); i++)
        measure(&b, false);
    kvferry_close(b.to.h);
    kvferry_close(b.from.h);
    return 0;
}
