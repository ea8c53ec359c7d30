/* The figures of kvferry bench --mode initiator. */
#include "pair.h"

#include "bench.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

bool pair_result_add(struct pair_result *r, uint64_t ns)
{
    if (r->n == r->room) {
        uint64_t room = r->room == 0 ? 4096 : r->room * 2;
        uint64_t *p = realloc(r->latency_ns, room * sizeof *p);

        if (p == NULL)
            return false;
        r->latency_ns = p;
        r->room = room;
    }
    r->latency_ns[r->n++] = ns;
    return true;
}

double pair_unit(const char *name)
{
    static const struct {
        const char *name;
        double bytes;
    } units[] = {{"GB", 1e9}, {"GiB", 1073741824.0}, {"Gb", 1e9 / 8},
                 {"MB", 1e6}, {"MiB", 1048576.0},    {"Mb", 1e6 / 8},
                 {"KB", 1e3}, {"KiB", 1024.0},       {"Kb", 1e3 / 8}};

    for (unsigned i = 0; i < sizeof units / sizeof units[0]; i++)
        if (strcmp(units[i].name, name) == 0)
            return units[i].bytes;
    return 0;
}

static double bytes_of(const struct pair *p, const struct pair_result *r)
{
    return (double)r->blocks * (double)p->block;
}

void pair_progress(const struct pair *p, const struct pair_result *r,
                   uint64_t running_ns, bool last)
{
    static uint64_t next, started, n;
    uint64_t now = bench_now();
    double s;

    if (started == 0) {
        started = now;
        next = now + 1000000000ull;
    }
    if (last || now < next)
        return;
    next = now + 1000000000ull;
    s = (double)(r->ns + running_ns) / 1e9;
    fprintf(stderr,
            "%4.0f s  %.*f %s/s  %" PRIu64 " requests (+%" PRIu64 ")  %" PRIu64
            " failed\n",
            (double)(now - started) / 1e9, (int)p->precision,
            s > 0 ? bytes_of(p, r) / pair_unit(p->unit) / s : 0, p->unit, r->n,
            r->n - n, r->failed);
    n = r->n;
}

static int by_value(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;

    return *x < *y ? -1 : *x > *y;
}

/* A figure that is not known is null, not a number. */
static void json_figure(const char *name, double v)
{
    if (v >= 0)
        printf(",\"%s\":%.6g", name, v);
    else
        printf(",\"%s\":null", name);
}

static double mean(uint64_t sum, uint64_t n)
{
    return n > 0 ? (double)sum / (double)n : -1;
}

static void print_json(const struct pair *p, const struct pair_result *r,
                       double s, const double us[5], const double cpu[2])
{
    double bytes = bytes_of(p, r);

    printf("{\"operation\":\"%s\",\"transport\":\"%s\",\"block_size\":%" PRIu64
           ",\"batch_size\":%u,\"depth\":%u,\"seconds\":%.6f,\"requests\":"
           "%" PRIu64 ",\"blocks\":%" PRIu64 ",\"bytes\":%.0f",
           p->write ? "write" : "read", r->transport, p->block, p->batch,
           p->depth, s, r->n, r->blocks, bytes);
    printf(",\"GBps\":%.6g,\"ops_per_s\":%.6g,\"req_per_s\":%.6g",
           s > 0 ? bytes / 1e9 / s : 0, s > 0 ? (double)r->blocks / s : 0,
           s > 0 ? (double)r->n / s : 0);
    printf(",\"p50_us\":%.1f,\"p90_us\":%.1f,\"p99_us\":%.1f,\"p999_us\":%.1f,"
           "\"max_us\":%.1f",
           us[0], us[1], us[2], us[3], us[4]);
    json_figure("ask_us", mean(r->ask_us, r->requests));
    json_figure("transfer_us", mean(r->transfer_us, r->requests));
    json_figure("daemon_us", mean(r->daemon_us, r->requests));
    json_figure("initiator_cpu_s_per_GB", cpu[0]);
    json_figure("target_cpu_s_per_GB", cpu[1]);
    printf(",\"retries\":%" PRIu64 ",\"failed_blocks\":%" PRIu64
           ",\"verified_blocks\":%" PRIu64 ",\"wrong_blocks\":%" PRIu64 "}\n",
           r->retries, r->failed_blocks, r->verified, r->wrong);
}

static void print_cpu(const char *who, double v)
{
    if (v >= 0)
        printf(" %s %.4f", who, v);
    else
        printf(" %s -", who);
}

static void print_text(const struct pair *p, const struct pair_result *r,
                       double s, const double us[5], const double cpu[2])
{
    double rate = s > 0 ? bytes_of(p, r) / s : 0;

    printf("%s over %s, blocks of %" PRIu64 " in batches of %u, depth %u\n",
           p->write ? "write" : "read", r->transport, p->block, p->batch,
           p->depth);
    printf("GB/s %.3f  operations/s %.1f  requests/s %.1f\n", rate / 1e9,
           s > 0 ? (double)r->blocks / s : 0, s > 0 ? (double)r->n / s : 0);
    printf("request us: p50 %.1f  p90 %.1f  p99 %.1f  p99.9 %.1f  max %.1f\n",
           us[0], us[1], us[2], us[3], us[4]);
    if (r->requests > 0)
        printf("in the daemon, mean us: asking %.1f  transfer %.1f  all %.1f\n",
               mean(r->ask_us, r->requests), mean(r->transfer_us, r->requests),
               mean(r->daemon_us, r->requests));
    printf("CPU s/GB:");
    print_cpu("initiator", cpu[0]);
    print_cpu(" target", cpu[1]);
    printf("\nretries %" PRIu64 "  failed blocks %" PRIu64 "  ", r->retries,
           r->failed_blocks);
    if (p->verify)
        printf("verified blocks %" PRIu64 "  wrong blocks %" PRIu64 "\n",
               r->verified, r->wrong);
    else
        printf("not verified\n");
    printf("Test completed: duration %.2f, batch count %" PRIu64
           ", throughput %.*f %s/s\n",
           s, r->n, (int)p->precision, rate / pair_unit(p->unit), p->unit);
}

void pair_print(const struct pair *p, struct pair_result *r)
{
    static const double q[5] = {0.5, 0.9, 0.99, 0.999, 1};
    double s = (double)r->ns / 1e9, gb = bytes_of(p, r) / 1e9, us[5] = {0};
    double cpu[2] = {r->initiator_cpu_s, r->target_cpu_s};

    if (r->n > 0)
        qsort(r->latency_ns, r->n, sizeof *r->latency_ns, by_value);
    for (unsigned i = 0; i < 5 && r->n > 0; i++) {
        uint64_t rank = (uint64_t)(q[i] * (double)r->n);

        rank += (double)rank < q[i] * (double)r->n;
        us[i] = (double)r->latency_ns[rank > 0 ? rank - 1 : 0] / 1000;
    }
    for (unsigned i = 0; i < 2; i++)
        cpu[i] = cpu[i] >= 0 && gb > 0 ? cpu[i] / gb : -1;
    if (p->json)
        print_json(p, r, s, us, cpu);
    else
        print_text(p, r, s, us, cpu);
    fflush(stdout);
    if (r->failed > 0 || r->wrong > 0)
        fprintf(stderr,
                "kvferry bench: %" PRIu64 " requests failed, %" PRIu64
                " blocks are wrong; the first: %s\n",
                r->failed, r->wrong, r->error);
}
