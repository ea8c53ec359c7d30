/* kvferry bench: one run is one workload at one size.
 *
 *   cmd_bench.c   options, the list of sizes
 *   bench_run.c   the requests, many at once, on both daemons from one thread
 *   bench_mget.c  the workload mget
 *   bench_util.c  keys, bytes that can be verified, CPU time, the figures */
#ifndef KVF_CLI_BENCH_H
#define KVF_CLI_BENCH_H

#include "cli.h"

enum bench_workload {
    BENCH_GET,
    BENCH_PUT,
    BENCH_PUTGET,
    BENCH_PARKED,
    BENCH_PING,
    BENCH_MGET
};

struct bench {
    struct kvferry *from, *to; /* may be the same handle */
    enum bench_workload workload;
    const char *workload_name, *mode_name;
    struct kvferry_get_options get;
    bool into, verify, view_read, json;
    unsigned depth, keys, warmup;
    uint64_t count, duration_ms, size;
    int64_t pids[2];
    char prefix[40]; /* of this run's keys: their request id */
};

struct bench_result {
    uint64_t n, failed;   /* measured requests; failures, also of the warm-up */
    uint64_t ns;          /* in which at least one was being timed */
    uint64_t *latency_ns; /* n of them */
    double cpu_s;         /* of the daemons; negative: not known */
    uint64_t sum;         /* of the bytes read by --view-read */
    char error[200];      /* the first failure */
};

/* Runs it. 0, or an exit status after a message. Frees nothing of `r` but what
 * it allocated before failing. */
int bench_run(struct bench *b, struct bench_result *r);
int bench_mget(struct bench *b, struct bench_result *r);

/* Room for the latencies and a prefix for the keys: 0, or an exit status. */
int bench_begin(struct bench *b, struct bench_result *r);
/* Takes the daemons' CPU time since `cpu0`. */
void bench_end(const struct bench *b, struct bench_result *r, int64_t cpu0);
/* Counts a failure and keeps the first one's words. */
void bench_failed(struct bench_result *r, const char *what, int status,
                  const char *message);
void bench_key(const struct bench *b, unsigned key, char out[64]);
/* Puts all keys, for any number of readers: 0, or an exit status. */
int bench_publish(struct bench *b);

uint64_t bench_now(void);
/* The byte pattern: 8-byte words that depend on seed and offset. */
void bench_fill(void *p, size_t n, uint64_t seed);
/* The part of that pattern that begins at `at`. */
void bench_fill_at(void *p, size_t n, uint64_t seed, uint64_t at);
bool bench_same(const void *p, size_t n, uint64_t seed, uint64_t at);
bool bench_check(const struct kvferry_payload *p, uint64_t size, uint64_t seed);
uint64_t bench_read(const struct kvferry_payload *p);
/* Nanoseconds of CPU of all threads; negative when they cannot be read. */
int64_t bench_cpu(const int64_t pids[2]);
void bench_header(const struct bench *b);
void bench_print(const struct bench *b, struct bench_result *r);
void bench_copy(bool json);
#endif
