/* What the benchmark programs share: time, CPU time, sizes, bytes that can be
 * checked, and copies. Nothing here allocates but bench_memory. */
#ifndef KVF_BENCH_COMMON_H
#define KVF_BENCH_COMMON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define MIB (1ull << 20)
#define GIB (1ull << 30)

/* Prints "PROGRAM: ..." and exits with 1. */
void bench_die(const char *fmt, ...)
    __attribute__((noreturn, format(printf, 1, 2)));

/* Monotonic nanoseconds. */
uint64_t bench_now(void);
/* Nanoseconds of CPU that all threads of `pid` used (0: this process); 0 when
 * the process is gone. */
uint64_t bench_cpu(pid_t pid);
/* Keeps this thread on the nth core it may use, where there are several. */
void bench_pin(unsigned nth);
/* "64k", "16m", "1g" or a number of bytes; ends the program when it is
 * neither. */
uint64_t bench_size(const char *text);
/* "64 KiB" and the like; static storage, four results live at once. */
const char *bench_size_text(uint64_t size);
/* Iterations that move about `bytes`, or about KVF_BENCH_BYTES of the
 * environment if that is less; at least 2. */
uint64_t bench_turns(uint64_t size, uint64_t bytes);
/* Asked before the nth measurement (from 0): true `rounds` times. With
 * KVF_BENCH_STEP in the environment a line of stdin starts each instead, until
 * its end, so that programs which are compared can take turns within a second:
 * the speed of a shared machine does not stay the same for longer. */
bool bench_step(unsigned nth, unsigned rounds);

/* `size` bytes, each page touched. `shared`: of a memfd mapped shared, as a
 * pool is. Ends the program when there is no memory. Never freed. */
void *bench_memory(uint64_t size, bool shared);

/* The pattern: 8-byte words, a counter that starts at a hash of the seed. A
 * shift, a hole, a repeat or another payload's bytes all differ from it. `at`
 * is the offset of `p` in the payload. Check returns the offset (in the
 * payload) of the first wrong byte, or UINT64_MAX. */
void bench_fill(void *p, uint64_t n, uint64_t seed, uint64_t at);
uint64_t bench_check(const void *p, uint64_t n, uint64_t seed, uint64_t at);
/* Reads every byte. */
uint64_t bench_sum(const void *p, uint64_t n);
/* Copies with non-temporal stores; the best kernel this processor has. */
void bench_copy_nt(void *dst, const void *src, uint64_t n);

/* Sorts and returns the q-quantile, 0 <= q <= 1, of n > 0 values. */
uint64_t bench_quantile(uint64_t *v, uint64_t n, double q);
#endif
