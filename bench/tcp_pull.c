/* Pulls blocks over the tcp transport from a second process and prints one JSON
 * line a round: {"size":, "GBps":, "cpu_s_per_GB":}.
 *
 *   tcp_pull SIZE_MIB ROUNDS [STREAMS [CHUNK_KIB [SPIN_US]]]
 *
 * Both processes run the daemon's loop, each on a core of its own; blocks are
 * pulled one at a time, as a receiver does, at least 1 GiB a round. Failure
 * modes: anything that fails ends the program with a sentence. */
#include "loop/reactor.h"
#include "transport/tcp/tcp.h"
#include "transport/xfer.h"

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ROUND_BYTES (1ull << 30)

struct bench {
    struct kvf_reactor *reactor;
    struct kvf_stats stats;
    struct kvf_tcp_conf conf;
    struct kvf_transport *t;
    struct kvf_link link;
    struct kvf_remote remote;
    struct kvf_xfer x;
    uint8_t *mem;
    uint64_t left; /* blocks of this round */
    bool warm;
};

static const uint8_t secret[32] = "bench";

static void die(const char *what, const struct kvf_why *why)
{
    fprintf(stderr, "tcp_pull: %s: %s\n", what, why->text);
    exit(1);
}

static uint64_t now(clockid_t id)
{
    struct timespec ts;

    clock_gettime(id, &ts);
    return (uint64_t)ts.tv_sec * KVF_NS_PER_S + (uint64_t)ts.tv_nsec;
}

static void pin_to(unsigned cpu)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof set, &set); /* one core is fine, too */
}

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
        return kvf_fail(why, KVF_INVALID, "outside the block");
    iov[0] = (struct iovec){b->mem + offset, length};
    *n_iov = 1;
    *pin = b;
    return 0;
}

static void unpin(void *arg, void *pin)
{
    (void)arg;
    (void)pin;
}

static const struct kvf_serve_ops serve = {.resolve = resolve, .unpin = unpin};

static void setup(struct bench *b)
{
    struct kvf_why why;

    b->mem = mmap(NULL, b->remote.size, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(b->mem, 0x5a, b->remote.size);
    b->reactor = kvf_reactor_create(&b->stats, &why);
    if (b->reactor == NULL)
        die("reactor", &why);
    if (kvf_tcp_create(b->reactor, &b->conf, &serve, b, &b->stats, &b->t,
                       &why) != 0)
        die("tcp", &why);
}

static void owner(struct bench *b, int report)
{
    struct kvf_why why;
    uint16_t port;

    pin_to(0);
    setup(b);
    if (kvf_tcp_admit(b->t, secret, b, &why) != 0 ||
        kvf_tcp_listen(b->t, "127.0.0.1", 0, &port, &why) != 0)
        die("listen", &why);
    if (write(report, &port, sizeof port) != sizeof port)
        exit(1);
    if (kvf_reactor_run(b->reactor, &why) != 0)
        die("loop", &why);
}

static void done(struct kvf_xfer *x, int status, const struct kvf_why *why)
{
    struct bench *b = kvf_container_of(x, struct bench, x);

    if (status != 0)
        die("pull", why);
    if (--b->left == 0) {
        kvf_reactor_stop(b->reactor);
        return;
    }
    kvf_xfer_reset(x);
    kvf_xfer_start(x, &b->link, &b->remote);
}

static void round_of(struct bench *b, uint64_t blocks)
{
    struct kvf_why why;

    b->left = blocks;
    kvf_xfer_reset(&b->x);
    kvf_xfer_start(&b->x, &b->link, &b->remote);
    if (kvf_reactor_run(b->reactor, &why) != 0)
        die("loop", &why);
}

static void getter(struct bench *b, uint16_t port, clockid_t kid, int rounds)
{
    struct kvf_link_addr addr = {.host = "127.0.0.1", .port = port};
    uint64_t blocks = ROUND_BYTES / b->remote.size;
    struct kvf_why why;
    struct iovec v;

    pin_to(1);
    setup(b);
    memcpy(addr.secret, secret, sizeof secret);
    v = (struct iovec){b->mem, b->remote.size};
    if (kvf_link_open(b->t, &b->link, &addr, &why) != 0)
        die("link", &why);
    if (kvf_xfer_init(&b->x, kvf_reactor_sched(b->reactor), false,
                      b->remote.size, &v, 1, done, &why) != 0)
        die("transfer", &why);
    if (blocks == 0)
        blocks = 1;
    round_of(b, 2);
    for (int i = 0; i < rounds; i++) {
        uint64_t cpu = now(CLOCK_PROCESS_CPUTIME_ID) + now(kid);
        uint64_t t0 = now(CLOCK_MONOTONIC);
        double bytes = (double)(blocks * b->remote.size), ns;

        round_of(b, blocks);
        ns = (double)(now(CLOCK_MONOTONIC) - t0);
        cpu = now(CLOCK_PROCESS_CPUTIME_ID) + now(kid) - cpu;
        printf("{\"size\":%llu,\"GBps\":%.2f,\"cpu_s_per_GB\":%.3f}\n",
               (unsigned long long)b->remote.size, bytes / ns,
               (double)cpu / bytes);
        fflush(stdout);
    }
    kvf_link_close(&b->link);
    kvf_xfer_fini(&b->x);
    kvf_transport_destroy(b->t);
    kvf_reactor_destroy(b->reactor);
}

int main(int argc, char **argv)
{
    static struct bench b;
    int report[2];
    clockid_t kid_clock;
    uint16_t port;
    pid_t kid;

    if (argc < 3) {
        fprintf(stderr, "usage: tcp_pull SIZE_MIB ROUNDS "
                        "[STREAMS [CHUNK_KIB [SPIN_US]]]\n");
        return 2;
    }
    b.remote.size = strtoull(argv[1], NULL, 10) << 20;
    b.conf = (struct kvf_tcp_conf){
        .streams = argc > 3 ? (uint32_t)atoi(argv[3]) : 1,
        .stream_min = 8ull << 20,
        .chunk = argc > 4 ? strtoull(argv[4], NULL, 10) << 10 : 1ull << 20,
        .spin_us = argc > 5 ? (uint32_t)atoi(argv[5]) : 100,
        .connect_ms = 2000,
        .stall_ms = 2000,
        .max_conns = 64,
    };
    if (b.remote.size == 0 || pipe(report) != 0)
        return 2;
    kid = fork();
    if (kid == 0) {
        owner(&b, report[1]);
        return 0;
    }
    if (kid < 0 || read(report[0], &port, sizeof port) != sizeof port ||
        clock_getcpuclockid(kid, &kid_clock) != 0)
        return 1;
    getter(&b, port, kid_clock, atoi(argv[2]));
    kill(kid, SIGKILL);
    waitpid(kid, NULL, 0);
    return 0;
}
