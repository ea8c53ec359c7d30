/* kvferry bench: options and the list of sizes. */
#include "bench.h"
#include "pair.h"

#include <stdlib.h>
#include <string.h>

struct args {
    struct bench b;
    const char *from, *to, *sizes;
    bool copy;
};

enum {
    B_WORKLOAD = 1,
    B_SIZE,
    B_MODE,
    B_DEPTH,
    B_KEYS,
    B_COUNT,
    B_DURATION,
    B_WARMUP,
    B_VERIFY,
    B_READ,
    B_FROM,
    B_TO,
    B_PIDS,
    B_COPY,
    B_JSON
};

static const struct option options[] = {
    {"workload", required_argument, NULL, B_WORKLOAD},
    {"size", required_argument, NULL, B_SIZE},
    {"mode", required_argument, NULL, B_MODE},
    {"depth", required_argument, NULL, B_DEPTH},
    {"keys", required_argument, NULL, B_KEYS},
    {"count", required_argument, NULL, B_COUNT},
    {"duration", required_argument, NULL, B_DURATION},
    {"warmup", required_argument, NULL, B_WARMUP},
    {"verify", no_argument, NULL, B_VERIFY},
    {"view-read", no_argument, NULL, B_READ},
    {"from-endpoint", required_argument, NULL, B_FROM},
    {"to-endpoint", required_argument, NULL, B_TO},
    {"pids", required_argument, NULL, B_PIDS},
    {"copy", no_argument, NULL, B_COPY},
    {"json", no_argument, NULL, B_JSON},
    {0},
};

static bool pick(const char *text, const char *const *names, int *out)
{
    for (int i = 0; names[i] != NULL; i++)
        if (strcmp(text, names[i]) == 0) {
            *out = i;
            return true;
        }
    return false;
}

static bool number(unsigned *out, unsigned max)
{
    uint64_t v;

    if (!cli_u64(optarg, max, &v))
        return false;
    *out = (unsigned)v;
    return true;
}

static bool option(int code, struct args *a)
{
    static const char *const workloads[] = {"get",  "put",  "put+get", "parked",
                                            "ping", "mget", NULL};
    static const char *const modes[] = {"auto",   "view", "copy",
                                        "inline", "into", NULL};
    long long p = 0, q = 0;
    int i = 0;

    switch (code) {
    case B_WORKLOAD:
        a->b.workload_name = optarg;
        if (!pick(optarg, workloads, &i))
            return false;
        a->b.workload = (enum bench_workload)i;
        return true;
    case B_MODE:
        a->b.mode_name = optarg;
        if (!pick(optarg, modes, &i))
            return false;
        a->b.into = i == 4;
        a->b.get.mode = i == 4 ? KVFERRY_AUTO : (enum kvferry_mode)i;
        return true;
    case B_SIZE:
        a->sizes = optarg;
        return true;
    case B_DEPTH:
        return number(&a->b.depth, 16384) && a->b.depth > 0;
    case B_KEYS:
        return number(&a->b.keys, 1000000) && a->b.keys > 0;
    case B_COUNT:
        return cli_u64(optarg, 100000000, &a->b.count) && a->b.count > 0;
    case B_DURATION:
        return cli_ms(optarg, &a->b.duration_ms);
    case B_WARMUP:
        return number(&a->b.warmup, 1000000);
    case B_PIDS:
        if (sscanf(optarg, "%lld,%lld", &p, &q) < 1)
            return false;
        a->b.pids[0] = p;
        a->b.pids[1] = q;
        return true;
    case B_FROM:
        a->from = optarg;
        return true;
    case B_TO:
        a->to = optarg;
        return true;
    case B_VERIFY:
        return a->b.verify = true;
    case B_READ:
        return a->b.view_read = true;
    case B_COPY:
        return a->copy = true;
    case B_JSON:
        return a->b.json = true;
    default:
        return false;
    }
}

static int open_both(struct cli *c, struct args *a)
{
    struct bench *b = &a->b;
    struct kvferry_info from, to;
    int rc;

    if (a->from != NULL)
        c->endpoint = a->from;
    rc = cli_open(c, 0, &b->from);
    if (rc != 0)
        return rc;
    b->to = b->from;
    if (a->to != NULL) {
        c->endpoint = a->to;
        rc = cli_open(c, 0, &b->to);
        if (rc != 0) {
            b->to = b->from;
            return rc;
        }
    }
    kvferry_info(b->from, &from);
    kvferry_info(b->to, &to);
    b->get.from_fields = 3;
    b->get.from_stage = from.stage;
    b->get.from_rank = from.rank;
    b->get.from_replica = from.replica;
    if (b->pids[0] == 0) {
        b->pids[0] = from.daemon_pid;
        b->pids[1] = to.daemon_pid;
    }
    return 0;
}

static int all_sizes(struct args *a)
{
    char *list = strdup(a->sizes), *at = list, *text;
    struct bench_result r;
    int rc = 0;

    bench_header(&a->b);
    while (rc == 0 && (text = strsep(&at, ",")) != NULL) {
        if (!cli_size(text, &a->b.size) || a->b.size == 0) {
            fprintf(stderr, "kvferry bench: bad size %s\n", text);
            rc = CLI_USAGE;
            break;
        }
        rc = a->b.workload == BENCH_MGET ? bench_mget(&a->b, &r)
                                         : bench_run(&a->b, &r);
        if (rc == 0)
            bench_print(&a->b, &r);
        if (rc == 0 && r.failed > 0)
            rc = KVF_FAILED;
        free(r.latency_ns);
        if (a->b.workload == BENCH_PING)
            break;
    }
    free(list);
    return rc;
}

int cli_bench(struct cli *c, int argc, char **argv)
{
    struct args a = {.sizes = "4KiB,1MiB,16MiB"};
    int code, rc;

    if (pair_wanted(argc, argv))
        return pair_main(c, argc, argv);
    a.b.workload_name = "get";
    a.b.mode_name = "auto";
    a.b.depth = 1;
    a.b.keys = 16;
    a.b.warmup = 20;
    a.b.count = 1000;
    a.b.duration_ms = 10000;
    while ((code = cli_getopt(c, argc, argv, "", options)) != -1)
        if (code == '?' || !option(code, &a))
            return cli_bad_option(c, code, argv);
    if (argc != optind)
        return cli_usage(c, "takes no argument");
    if (a.b.into && a.b.workload == BENCH_MGET)
        return cli_usage(c, "mget has no mode into");
    if (a.copy) {
        bench_copy(a.b.json);
        return 0;
    }
    if (a.b.workload == BENCH_PING || a.b.workload == BENCH_PUT)
        a.b.verify = a.b.view_read = false; /* nothing comes back */
    if (a.b.keys < a.b.depth)
        a.b.keys = a.b.depth;
    rc = open_both(c, &a);
    if (rc == 0)
        rc = all_sizes(&a);
    if (a.b.to != a.b.from)
        kvferry_close(a.b.to);
    kvferry_close(a.b.from);
    return rc;
}
