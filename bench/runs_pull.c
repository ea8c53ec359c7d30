/* Pulls many runs that lie in random order on both sides, over the shm or the
 * tcp transport, and in the same round what it is held against: over shm the
 * faster of memcpy and non-temporal copies of the same runs, over tcp a
 * contiguous read of the same size. One JSON line a round.
 *
 *   runs_pull shm|tcp RUN_BYTES N_RUNS ROUNDS [nhd]
 *
 * nhd: blocks in random order, cut as an NHD page whose two heads go to two
 * ranks: every other run of a block of 16 tokens. Beside it what staging would
 * do: whole pages in one piece, and the runs picked out of them. Over shm in
 * one pass (a few pages copied, then their runs); over tcp a contiguous read of
 * the pages alone, which is the least that it could cost.
 *
 * tcp: both processes run the daemon's loop, each on a core of its own. Every
 * byte is checked after the first round. Failure modes: anything that fails
 * ends the program with a sentence. */
#include "base/rng.h"
#include "common.h"
#include "loop/reactor.h"
#include "memory/copy.h"
#include "transport/scatter.h"
#include "transport/shm.h"
#include "transport/tcp/tcp.h"
#include "transport/xfer.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define TOKENS 16u /* of a block, with nhd */
#define STAGE (64u << 10)

struct bench {
    bool tcp;
    uint64_t run, n;
    uint64_t heads, group; /* a run of `heads`; runs that lie together */
    uint32_t *from, *to;   /* permutations of the blocks */
    size_t at;             /* of the source */
    struct kvf_reactor *reactor;
    struct kvf_stats stats;
    struct kvf_transport *t;
    struct kvf_link link;
    struct kvf_mapping *map;
    struct kvf_remote_seg seg;
    struct kvf_remote remote;
    struct kvf_scatter scatter;
    struct kvf_xfer xfer;
    uint8_t *far, *near;
};

static const uint8_t secret[32] = "bench";

static void die(const char *what, const struct kvf_why *why)
{
    bench_die("%s: %s", what, why->text);
}

static uint32_t *permutation(struct kvf_rng *rng, uint64_t n)
{
    uint32_t *v = bench_memory(n * sizeof *v, false);

    for (uint64_t i = 0; i < n; i++)
        v[i] = (uint32_t)i;
    for (uint64_t i = n; i > 1; i--) {
        uint64_t k = kvf_rng_below(rng, i);
        uint32_t t = v[k];

        v[k] = v[i - 1];
        v[i - 1] = t;
    }
    return v;
}

static uint64_t far_at(const struct bench *b, uint64_t i)
{
    return (b->from[i / b->group] * b->group + i % b->group) * b->heads *
           b->run;
}

static uint64_t near_at(const struct bench *b, uint64_t i)
{
    return (b->to[i / b->group] * b->group + i % b->group) * b->run;
}

static size_t next(void *arg, struct kvf_run *out, size_t cap)
{
    struct bench *b = arg;
    size_t n = 0;

    for (; n < cap && b->at < b->n; n++, b->at++)
        out[n] = (struct kvf_run){far_at(b, b->at), b->run,
                                  b->near + near_at(b, b->at)};
    return n;
}

static void rewind_source(void *arg)
{
    struct bench *b = arg;

    b->at = 0;
}

/* ---- the owner of the tcp case ------------------------------------------ */

static int resolve(void *arg, void *session, uint64_t claim,
                   const struct kvf_id *token, bool write, uint64_t offset,
                   uint64_t length, struct iovec *iov, unsigned *n_iov,
                   void **pin, struct kvf_why *why)
{
    struct bench *b = arg;

    (void)session;
    (void)claim;
    (void)token;
    (void)write;
    if (offset > b->remote.size || length > b->remote.size - offset)
        return kvf_fail(why, KVF_INVALID, "outside");
    iov[0] = (struct iovec){b->far + offset, length};
    *n_iov = 1;
    *pin = b;
    return 0;
}

static int resolve_runs(void *arg, void *session, uint64_t claim,
                        const struct kvf_id *token, bool write,
                        const struct kvf_range *ranges, unsigned n_ranges,
                        uint64_t skip, struct iovec *iov, unsigned *n_iov,
                        void **pin, struct kvf_why *why)
{
    unsigned n = 0, one;

    for (; n < n_ranges && n < *n_iov; n++, skip = 0) {
        int rc =
            resolve(arg, session, claim, token, write, ranges[n].offset + skip,
                    ranges[n].length - skip, &iov[n], &one, pin, why);

        if (rc != 0)
            return rc;
    }
    *n_iov = n;
    return 0;
}

static void unpin(void *arg, void *pin)
{
    (void)arg;
    (void)pin;
}

static const struct kvf_serve_ops serve = {
    .resolve = resolve, .resolve_runs = resolve_runs, .unpin = unpin};

static void create(struct bench *b)
{
    struct kvf_tcp_conf conf = {.streams = 2,
                                .stream_min = 64ull << 20,
                                .chunk = 1ull << 20,
                                .spin_us = 100,
                                .connect_ms = 2000,
                                .stall_ms = 2000,
                                .max_conns = 64};
    struct kvf_why why;

    b->reactor = kvf_reactor_create(&b->stats, &why);
    if (b->reactor == NULL)
        die("reactor", &why);
    if (b->tcp ? kvf_tcp_create(b->reactor, &conf, &serve, b, &b->stats, &b->t,
                                &why)
               : kvf_shm_create(kvf_reactor_sched(b->reactor), &b->stats, &b->t,
                                &why))
        die("transport", &why);
}

static void owner(struct bench *b, int report)
{
    struct kvf_why why;
    uint16_t port;

    bench_pin(0);
    b->far = bench_memory(b->remote.size, false);
    bench_fill(b->far, b->remote.size, 1, 0);
    create(b);
    if (kvf_tcp_admit(b->t, secret, b, &why) != 0 ||
        kvf_tcp_listen(b->t, "127.0.0.1", 0, &port, &why) != 0)
        die("listen", &why);
    if (write(report, &port, sizeof port) != sizeof port)
        exit(1);
    if (kvf_reactor_run(b->reactor, &why) != 0)
        die("loop", &why);
}

static pid_t start_owner(struct bench *b, uint16_t *port)
{
    int report[2];
    pid_t kid;

    if (pipe(report) != 0)
        bench_die("no pipe");
    kid = fork();
    if (kid == 0) {
        owner(b, report[1]);
        exit(0);
    }
    if (kid < 0 || read(report[0], port, sizeof *port) != sizeof *port)
        bench_die("the owner did not start");
    return kid;
}

/* ---- rounds ------------------------------------------------------------- */

static void scatter_done(struct kvf_scatter *x, int status,
                         const struct kvf_why *why)
{
    struct bench *b = kvf_container_of(x, struct bench, scatter);

    if (status != 0)
        die("pull", why);
    kvf_reactor_stop(b->reactor);
}

static void xfer_done(struct kvf_xfer *x, int status, const struct kvf_why *why)
{
    struct bench *b = kvf_container_of(x, struct bench, xfer);

    if (status != 0)
        die("read", why);
    kvf_reactor_stop(b->reactor);
}

static uint64_t runs_round(struct bench *b)
{
    uint64_t t0 = bench_now();
    struct kvf_why why;

    kvf_scatter_reset(&b->scatter);
    kvf_scatter_start(&b->scatter, &b->link, &b->remote);
    if (kvf_reactor_run(b->reactor, &why) != 0)
        die("loop", &why);
    return bench_now() - t0;
}

static uint64_t contiguous_round(struct bench *b)
{
    uint64_t t0 = bench_now();
    struct kvf_why why;

    kvf_xfer_reset(&b->xfer);
    kvf_xfer_start(&b->xfer, &b->link, &b->remote);
    if (kvf_reactor_run(b->reactor, &why) != 0)
        die("loop", &why);
    return bench_now() - t0;
}

static uint64_t copy_round(struct bench *b, bool nt)
{
    uint64_t t0 = bench_now();

    for (uint64_t i = 0; i < b->n; i++) {
        uint8_t *to = b->near + near_at(b, i);
        const uint8_t *from = b->far + far_at(b, i);

        if (nt)
            bench_copy_nt(to, from, b->run);
        else
            memcpy(to, from, b->run);
    }
    return bench_now() - t0;
}

/* Whole pages into a stage that stays in the cache, their runs out of it. */
static uint64_t staged_round(struct bench *b)
{
    static uint8_t stage[STAGE];
    uint64_t page = b->group * b->heads * b->run, per = STAGE / page, n;
    uint64_t t0 = bench_now();

    for (uint64_t i = 0; i < b->n; i += n * b->group) {
        n = (b->n - i) / b->group < per ? (b->n - i) / b->group : per;
        for (uint64_t k = 0; k < n; k++)
            memcpy(stage + k * page, b->far + far_at(b, i + k * b->group),
                   page);
        for (uint64_t k = 0; k < n * b->group; k++)
            memcpy(b->near + near_at(b, i + k), stage + k * b->heads * b->run,
                   b->run);
    }
    return bench_now() - t0;
}

static uint64_t beside_round(struct bench *b)
{
    uint64_t plain, nt;

    if (b->tcp)
        return contiguous_round(b);
    if (b->heads > 1)
        return staged_round(b);
    plain = copy_round(b, false);
    nt = copy_round(b, true);
    return nt < plain ? nt : plain;
}

static void check(const struct bench *b)
{
    for (uint64_t i = 0; i < b->n; i++)
        if (bench_check(b->near + near_at(b, i), b->run, 1, far_at(b, i)) !=
            UINT64_MAX)
            bench_die("wrong bytes in run %llu", (unsigned long long)i);
}

static void setup(struct bench *b, uint16_t port)
{
    struct kvf_run_source source = {next, rewind_source, b};
    struct kvf_link_addr addr = {.host = "127.0.0.1", .port = port};
    struct kvf_map_cache *maps = kvf_map_cache_create(0);
    struct kvf_sched *sched;
    struct kvf_why why;
    struct iovec v;
    int fd;

    memcpy(addr.secret, secret, sizeof secret);
    b->near = bench_memory(b->remote.size, true);
    create(b);
    sched = kvf_reactor_sched(b->reactor);
    if (!b->tcp) {
        fd = memfd_create("runs", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        if (maps == NULL || fd < 0 ||
            ftruncate(fd, (off_t)b->remote.size) != 0 ||
            kvf_map_fd(maps, fd, b->remote.size, true, &b->map, NULL) != 0)
            bench_die("no memory");
        b->far = b->map->base;
        bench_fill(b->far, b->remote.size, 1, 0);
        b->seg =
            (struct kvf_remote_seg){.map = b->map, .length = b->remote.size};
        b->remote.segs = &b->seg;
        b->remote.n_segs = 1;
    }
    if (kvf_link_open(b->t, &b->link, &addr, &why) != 0)
        die("link", &why);
    kvf_scatter_init(&b->scatter, sched, false, &source, b->n * b->run,
                     scatter_done);
    v = (struct iovec){b->near, b->remote.size};
    if (kvf_xfer_init(&b->xfer, sched, false, b->remote.size, &v, 1, xfer_done,
                      &why) != 0)
        die("transfer", &why);
}

static void measure(struct bench *b, int rounds)
{
    double bytes = (double)(b->n * b->run);

    runs_round(b);
    check(b);
    for (int i = 0; i < rounds; i++) {
        uint64_t beside = beside_round(b), ns = runs_round(b);

        printf("{\"run\":%llu,\"runs\":%llu,\"GBps\":%.2f,\"beside_GBps\":%.2f,"
               "\"ratio\":%.3f,\"ns_per_run\":%.1f,\"us\":%.1f}\n",
               (unsigned long long)b->run, (unsigned long long)b->n,
               bytes / (double)ns, bytes / (double)beside,
               (double)beside / (double)ns, (double)ns / (double)b->n,
               (double)ns / 1000);
        fflush(stdout);
    }
}

int main(int argc, char **argv)
{
    static struct bench b;
    struct kvf_rng rng;
    uint16_t port = 0;
    pid_t kid = 0;

    if (argc < 5 || argc > 6 || (argc == 6 && strcmp(argv[5], "nhd") != 0) ||
        (strcmp(argv[1], "shm") != 0 && strcmp(argv[1], "tcp") != 0))
        bench_die("usage: runs_pull shm|tcp RUN_BYTES N_RUNS ROUNDS [nhd]");
    b.tcp = strcmp(argv[1], "tcp") == 0;
    b.run = bench_size(argv[2]);
    b.n = strtoull(argv[3], NULL, 10);
    if (b.run == 0 || b.run % 8 != 0 || b.n == 0 || b.n > UINT32_MAX / 2 ||
        b.run > (64 * GIB) / b.n)
        bench_die("runs of 8 bytes or more, a multiple of 8; 64 GiB in all");
    b.heads = argc == 6 ? 2 : 1;
    b.group = argc == 6 ? TOKENS : 1;
    if (argc == 6 && (b.n % TOKENS != 0 || b.run > STAGE / TOKENS / 2))
        bench_die("nhd: whole blocks of %u runs, of 2 KiB at most", TOKENS);
    b.remote.size = b.run * b.n * b.heads;
    kvf_rng_seed(&rng, 42);
    b.from = permutation(&rng, b.n / b.group);
    b.to = permutation(&rng, b.n / b.group);
    if (b.tcp)
        kid = start_owner(&b, &port);
    bench_pin(1);
    setup(&b, port);
    measure(&b, atoi(argv[4]));
    if (kid != 0) {
        kill(kid, SIGKILL);
        waitpid(kid, NULL, 0);
    }
    return 0;
}
