/* Keys, bytes, CPU time and figures of kvferry bench. */
#include "bench.h"

#include "memory/copy.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

uint64_t bench_now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

int bench_begin(struct bench *b, struct bench_result *r)
{
    memset(r, 0, sizeof *r);
    snprintf(b->prefix, sizeof b->prefix, "bench-%" PRIx64, bench_now());
    r->latency_ns = malloc((b->count + b->warmup + 1) * sizeof *r->latency_ns);
    return r->latency_ns == NULL ? CLI_IO : 0;
}

void bench_end(const struct bench *b, struct bench_result *r, int64_t cpu0)
{
    int64_t cpu = bench_cpu(b->pids);

    r->cpu_s = cpu >= 0 && cpu0 >= 0 ? (double)(cpu - cpu0) / 1e9 : -1;
}

void bench_failed(struct bench_result *r, const char *what, int status,
                  const char *message)
{
    if (r->failed++ == 0)
        snprintf(r->error, sizeof r->error, "%s: %s: %s", what,
                 kvferry_status_name(status), message);
}

void bench_key(const struct bench *b, unsigned key, char out[64])
{
    snprintf(out, 64, "%s:%u_1", b->prefix, key);
}

int bench_publish(struct bench *b)
{
    struct kvferry_put_options o = {.readers = KVFERRY_READERS_ANY};
    void *data = malloc(b->size);
    int rc = data == NULL ? -(int)KVF_INTERNAL : 0;

    for (unsigned k = 0; rc == 0 && k < b->keys; k++) {
        char key[64];

        bench_key(b, k, key);
        bench_fill(data, b->size, k);
        rc = kvferry_put(b->from, key, data, b->size, &o, NULL);
    }
    free(data);
    return rc != 0 ? cli_failed(b->from, rc, "bench: put") : 0;
}

static uint64_t word(uint64_t seed, uint64_t i)
{
    uint64_t x = (seed + 1) * 0x9e3779b97f4a7c15ull ^ i;

    x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9ull;
    return x ^ (x >> 32);
}

void bench_fill_at(void *p, size_t n, uint64_t seed, uint64_t at)
{
    uint8_t *b = p;

    for (; n > 0 && at % 8 != 0; n--, at++)
        *b++ = (uint8_t)(word(seed, at / 8) >> (8 * (at % 8)));
    for (uint64_t i = at / 8; n > 0; i++) {
        uint64_t w = word(seed, i);
        size_t part = n < sizeof w ? n : sizeof w;

        memcpy(b, &w, part);
        b += part;
        n -= part;
    }
}

bool bench_same(const void *p, size_t n, uint64_t seed, uint64_t at)
{
    const uint8_t *b = p;

    for (; n > 0 && at % 8 != 0; n--, at++)
        if (*b++ != (uint8_t)(word(seed, at / 8) >> (8 * (at % 8))))
            return false;
    for (uint64_t i = at / 8; n > 0; i++) {
        uint64_t w = word(seed, i);
        size_t part = n < sizeof w ? n : sizeof w;

        if (memcmp(b, &w, part) != 0)
            return false;
        b += part;
        n -= part;
    }
    return true;
}

void bench_fill(void *p, size_t n, uint64_t seed)
{
    bench_fill_at(p, n, seed, 0);
}

bool bench_check(const struct kvferry_payload *p, uint64_t size, uint64_t seed)
{
    const struct kvferry_piece *piece;
    unsigned n = kvferry_payload_pieces(p, &piece);
    uint64_t at = 0;

    if (kvferry_payload_size(p) != size)
        return false;
    for (unsigned i = 0; i < n; i++) {
        if (!bench_same(piece[i].data, piece[i].length, seed, at))
            return false;
        at += piece[i].length;
    }
    return at == size;
}

uint64_t bench_read(const struct kvferry_payload *p)
{
    const struct kvferry_piece *piece;
    unsigned n = kvferry_payload_pieces(p, &piece);
    uint64_t sum = 0, w;

    for (unsigned i = 0; i < n; i++) {
        const uint8_t *b = piece[i].data;
        uint64_t k = 0;

        for (; k + 8 <= piece[i].length; k += 8) {
            memcpy(&w, b + k, 8);
            sum += w;
        }
        for (; k < piece[i].length; k++)
            sum += b[k];
    }
    return sum;
}

static int64_t process_cpu(int64_t pid)
{
    char path[300];
    struct dirent *e;
    int64_t sum = 0;
    DIR *d;

    snprintf(path, sizeof path, "/proc/%" PRId64 "/task", pid);
    d = opendir(path);
    if (d == NULL)
        return -1;
    while ((e = readdir(d)) != NULL) {
        unsigned long long ns;
        FILE *f;

        if (e->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "/proc/%" PRId64 "/task/%.20s/schedstat",
                 pid, e->d_name);
        f = fopen(path, "re");
        if (f != NULL && fscanf(f, "%llu", &ns) == 1)
            sum += (int64_t)ns;
        if (f != NULL)
            fclose(f);
    }
    closedir(d);
    return sum;
}

int64_t bench_cpu(const int64_t pids[2])
{
    int64_t sum = 0;

    for (int i = 0; i < 2; i++) {
        int64_t ns;

        if (pids[i] <= 0 || (i == 1 && pids[1] == pids[0]))
            continue;
        ns = process_cpu(pids[i]);
        if (ns < 0)
            return -1;
        sum += ns;
    }
    return pids[0] > 0 ? sum : -1;
}

static int by_value(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;

    return *x < *y ? -1 : *x > *y;
}

/* The smallest latency (us) that q of the requests did not exceed. */
static double at(const struct bench_result *r, double q)
{
    uint64_t rank = (uint64_t)(q * (double)r->n);

    if (r->n == 0)
        return 0;
    if ((double)rank < q * (double)r->n)
        rank++;
    return (double)r->latency_ns[rank > 0 ? rank - 1 : 0] / 1000;
}

void bench_header(const struct bench *b)
{
    if (!b->json)
        printf("%-8s %-6s %10s %5s %8s %9s %9s %9s %9s %9s %10s %9s %9s\n",
               "workload", "mode", "size", "depth", "count", "p50_us", "p90_us",
               "p99_us", "p99.9_us", "max_us", "req/s", "MB/s", "cpu_s/GB");
}

void bench_print(const struct bench *b, struct bench_result *r)
{
    double s = (double)r->ns / 1e9;
    double bytes = b->workload == BENCH_PING
                       ? 0
                       : (double)b->size * (double)r->n *
                             (b->workload == BENCH_MGET ? b->depth : 1);
    double rate = s > 0 ? (double)r->n / s : 0;
    double mb = s > 0 ? bytes / 1e6 / s : 0;
    double cpu = r->cpu_s >= 0 && bytes > 0 ? r->cpu_s / (bytes / 1e9) : -1;

    if (r->n > 0)
        qsort(r->latency_ns, r->n, sizeof *r->latency_ns, by_value);
    printf(b->json ? "{\"workload\":\"%s\",\"mode\":\"%s\",\"size\":%" PRIu64
                     ",\"depth\":%u,\"count\":%" PRIu64
                     ",\"p50_us\":%.1f,\"p90_us\":%.1f,\"p99_us\":%.1f,"
                     "\"p999_us\":%.1f,\"max_us\":%.1f,\"req_per_s\":%.1f,"
                     "\"MBps\":%.1f,\"cpu_s_per_GB\":%.4f"
                   : "%-8s %-6s %10" PRIu64 " %5u %8" PRIu64
                     " %9.1f %9.1f %9.1f %9.1f %9.1f %10.1f %9.1f %9.4f",
           b->workload_name, b->mode_name, b->size, b->depth, r->n, at(r, 0.5),
           at(r, 0.9), at(r, 0.99), at(r, 0.999), at(r, 1), rate, mb, cpu);
    if (b->json)
        printf(",\"failed\":%" PRIu64 "}", r->failed);
    printf("\n");
    if (r->failed > 0)
        fprintf(stderr, "kvferry bench: %" PRIu64 " failed, the first: %s\n",
                r->failed, r->error);
    fflush(stdout);
}

/* memcpy against non-temporal stores, cold: strides over a large arena. */
void bench_copy(bool json)
{
    size_t arena = 256u << 20;
    uint8_t *a = malloc(arena), *b = malloc(arena);

    if (a == NULL || b == NULL) {
        free(a);
        free(b);
        fprintf(stderr, "kvferry bench: no memory for two arenas\n");
        return;
    }
    memset(a, 1, arena);
    memset(b, 2, arena);
    if (!json)
        printf("%12s %14s %14s  (%s)\n", "size", "memcpy_MBps", "nt_MBps",
               kvf_copy_kernel());
    for (size_t size = 4096; size <= 64u << 20; size *= 4) {
        double mb[2];

        for (int nt = 0; nt < 2; nt++) {
            uint64_t t0 = bench_now();

            for (size_t o = 0; o + size <= arena; o += size)
                kvf_copy(b + o, a + o, size, nt == 1);
            mb[nt] = (double)arena / 1e6 / ((double)(bench_now() - t0) / 1e9);
        }
        printf(json ? "{\"size\":%zu,\"memcpy_MBps\":%.0f,\"nt_MBps\":%.0f}\n"
                    : "%12zu %14.0f %14.0f\n",
               size, mb[0], mb[1]);
    }
    free(a);
    free(b);
}
