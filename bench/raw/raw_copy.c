/* How fast this machine copies and reads: the limit of shm.
 *
 *   raw_copy SIZE memcpy|nt|read hot|cold [ROUNDS]
 *
 * From one shared mapping to another, as between two pools; `read` only sums
 * what is mapped. hot: the same block again and again; cold: blocks of an arena
 * of at least 1 GiB in turn. One JSON line a round. */
#include "../common.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t sum;

static void move(char kind, void *dst, const void *src, uint64_t n)
{
    if (kind == 'm')
        memcpy(dst, src, n);
    else if (kind == 'n')
        bench_copy_nt(dst, src, n);
    else
        sum += bench_sum(src, n);
    __asm__ volatile("" : : "r"(dst) : "memory");
}

int main(int argc, char **argv)
{
    uint64_t size, arena, turns, at = 0;
    int rounds = argc > 4 ? atoi(argv[4]) : 1;
    char *src, *dst = NULL;
    char kind;

    if (argc < 4)
        bench_die("usage: raw_copy SIZE memcpy|nt|read hot|cold [ROUNDS]");
    size = bench_size(argv[1]);
    kind = argv[2][0];
    arena = argv[3][0] == 'c' ? (GIB + size - 1) / size * size : size;
    turns = bench_turns(size, 2 * GIB);
    src = bench_memory(arena, true);
    bench_fill(src, arena, 7, 0);
    if (kind != 'r')
        dst = bench_memory(arena, true);
    for (int r = -1; r < rounds; r++) {
        uint64_t n = r < 0 ? turns / 4 + 1 : turns;
        uint64_t cpu = bench_cpu(0), t0 = bench_now(), ns;
        double gb;

        for (uint64_t i = 0; i < n; i++) {
            move(kind, dst + (kind != 'r' ? at : 0), src + at, size);
            at = at + 2 * size <= arena ? at + size : 0;
        }
        ns = bench_now() - t0;
        cpu = bench_cpu(0) - cpu;
        gb = (double)(n * size) / 1e9;
        if (r >= 0)
            printf("{\"bench\":\"copy\",\"how\":\"%s %s\",\"size\":%llu,"
                   "\"GBps\":%.3f,\"us\":%.2f,\"cpu_s_per_GB\":%.4f}\n",
                   argv[2], argv[3], (unsigned long long)size,
                   gb * 1e9 / (double)ns, (double)ns / 1e3 / (double)n,
                   (double)cpu / 1e9 / gb);
    }
    if (dst != NULL && bench_check(dst, size, 7, 0) != UINT64_MAX)
        bench_die("the copy differs");
    return sum == 1;
}
