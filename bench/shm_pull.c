/* Pulls blocks over the shm transport and, in the same round, copies them with
 * a plain loop over kvf_copy; prints both, and their ratio, as one JSON line.
 *
 *   shm_pull SIZE_MIB ROUNDS
 *
 * The block is read out of a mapped memfd of 512 MiB or more, in strides, as KV
 * blocks are. Failure modes: anything that fails ends the program. */
#include "loop/reactor.h"
#include "memory/copy.h"
#include "transport/shm.h"
#include "transport/xfer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define ROUND_BYTES (2ull << 30)
#define ARENA (512ull << 20)

struct bench {
    struct kvf_reactor *reactor;
    struct kvf_stats stats;
    struct kvf_transport *t;
    struct kvf_mapping *map;
    struct kvf_link link;
    struct kvf_remote_seg seg;
    struct kvf_remote remote;
    struct kvf_xfer x;
    uint8_t *mem;
    uint64_t left;
};

static void die(const char *what)
{
    fprintf(stderr, "shm_pull: %s failed\n", what);
    exit(1);
}

static void next_block(struct bench *b)
{
    b->seg.offset += b->remote.size;
    if (b->seg.offset + b->remote.size > b->map->size)
        b->seg.offset = 0;
}

static void done(struct kvf_xfer *x, int status, const struct kvf_why *why)
{
    struct bench *b = kvf_container_of(x, struct bench, x);

    (void)why;
    if (status != 0)
        die("the pull");
    if (--b->left == 0) {
        kvf_reactor_stop(b->reactor);
        return;
    }
    next_block(b);
    kvf_xfer_reset(x);
    kvf_xfer_start(x, &b->link, &b->remote);
}

static double pull_round(struct bench *b, uint64_t blocks)
{
    struct kvf_sched *s = kvf_reactor_sched(b->reactor);
    uint64_t t0 = kvf_sched_clock(s);

    b->left = blocks;
    kvf_xfer_reset(&b->x);
    kvf_xfer_start(&b->x, &b->link, &b->remote);
    if (kvf_reactor_run(b->reactor, NULL) != 0)
        die("the loop");
    return (double)(blocks * b->remote.size) /
           (double)(kvf_sched_clock(s) - t0);
}

static double plain_round(struct bench *b, uint64_t blocks)
{
    struct kvf_sched *s = kvf_reactor_sched(b->reactor);
    uint64_t t0 = kvf_sched_clock(s), size = b->remote.size;

    for (uint64_t i = 0; i < blocks; i++) {
        kvf_copy(b->mem, b->map->base + b->seg.offset, size,
                 size >= kvf_copy_nt_min);
        next_block(b);
    }
    return (double)(blocks * size) / (double)(kvf_sched_clock(s) - t0);
}

static void setup(struct bench *b, uint64_t size)
{
    uint64_t arena = size > ARENA ? size : ARENA;
    struct kvf_map_cache *maps = kvf_map_cache_create(0);
    int fd = memfd_create("bench", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    struct iovec v;

    if (maps == NULL || fd < 0 || ftruncate(fd, (off_t)arena) != 0 ||
        kvf_map_fd(maps, fd, arena, true, &b->map, NULL) != 0)
        die("the arena");
    memset(b->map->base, 0x5a, arena);
    b->mem = mmap(NULL, size, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(b->mem, 1, size);
    b->reactor = kvf_reactor_create(&b->stats, NULL);
    if (b->reactor == NULL ||
        kvf_shm_create(kvf_reactor_sched(b->reactor), &b->stats, &b->t, NULL) !=
            0 ||
        kvf_link_open(b->t, &b->link, NULL, NULL) != 0)
        die("the transport");
    b->seg =
        (struct kvf_remote_seg){.map = b->map, .offset = 0, .length = size};
    b->remote = (struct kvf_remote){.size = size, .n_segs = 1, .segs = &b->seg};
    v = (struct iovec){b->mem, size};
    if (kvf_xfer_init(&b->x, kvf_reactor_sched(b->reactor), false, size, &v, 1,
                      done, NULL) != 0)
        die("the transfer");
}

int main(int argc, char **argv)
{
    static struct bench b;
    uint64_t size = argc > 1 ? strtoull(argv[1], NULL, 10) << 20 : 0;
    int rounds = argc > 2 ? atoi(argv[2]) : 0;
    uint64_t blocks = size != 0 ? ROUND_BYTES / size + 1 : 0;

    if (size == 0 || rounds <= 0) {
        fprintf(stderr, "usage: shm_pull SIZE_MIB ROUNDS\n");
        return 2;
    }
    setup(&b, size);
    pull_round(&b, 2);
    for (int i = 0; i < rounds; i++) {
        double plain = plain_round(&b, blocks), pull = pull_round(&b, blocks);

        printf("{\"size\":%llu,\"GBps\":%.2f,\"plain_GBps\":%.2f,"
               "\"ratio\":%.3f}\n",
               (unsigned long long)size, pull, plain, pull / plain);
    }
    return 0;
}
