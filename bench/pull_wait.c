/* pull_bench: latencies, and what it costs to wait. */
#include "pull_bench.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define PARK_NS 300000 /* a get is parked at its owner after that */

static void tell(const char *name, const char *how, uint64_t size, uint64_t *v,
                 uint64_t n)
{
    double p50 = (double)bench_quantile(v, n, .5) / 1e3;

    printf("{\"bench\":\"%s\",\"how\":\"%s\",\"size\":%llu,\"count\":%llu,"
           "\"p50_us\":%.2f,\"p90_us\":%.2f,\"p99_us\":%.2f,"
           "\"max_us\":%.2f}\n",
           name, how, (unsigned long long)size, (unsigned long long)n, p50,
           (double)bench_quantile(v, n, .9) / 1e3,
           (double)bench_quantile(v, n, .99) / 1e3, (double)v[n - 1] / 1e3);
    fflush(stdout);
}

static uint64_t *values(uint64_t n)
{
    uint64_t *v = calloc(n, sizeof *v);

    if (v == NULL)
        bench_die("out of memory");
    return v;
}

/* Inline answers with the bytes; copy leaves them in a buffer, which must be
 * released: one more message, beside the next get. */
static void one_by_one(struct pb *b, enum kvferry_mode mode, const char *how,
                       uint64_t size, uint64_t n)
{
    uint64_t *took = values(n);
    struct kvferry_get_options o = pb_from(b);
    struct kvferry_payload *p;
    char key[64];

    o.mode = mode;
    pb_key(key, "latency", 1);
    for (uint64_t i = 0; i < n + n / 8; i++) {
        uint64_t t0 = bench_now();

        pb_need(b->to, kvferry_get(b->to, key, &o, &p), "get");
        took[i % n] = bench_now() - t0; /* the first n / 8 warm up */
        pb_check(p, size, 1);
        kvferry_release(&p);
    }
    tell("latency", how, size, took, n);
    free(took);
}

void pb_latency(struct pb *b, int argc, char **argv)
{
    uint64_t size = bench_size(argv[0]), n = bench_size(argv[1]);

    (void)argc;
    pb_open(b);
    pb_put(b, "latency", 1, size);
    one_by_one(b, KVFERRY_INLINE, "get inline", size, n);
    one_by_one(b, KVFERRY_COPY, "get copy", size, n);
    pb_close(b);
}

struct parked {
    uint64_t done, end_ns, bad, size;
};

static void answered(struct kvferry *h, void *user,
                     const struct kvferry_result *r)
{
    struct parked *w = user;
    struct kvferry_payload *p = r->payload;

    (void)h;
    w->end_ns = bench_now();
    if (r->status != 0)
        bench_die("a parked get: %s: %s", kvferry_status_name(r->status),
                  r->message);
    pb_check(p, w->size, 1);
    kvferry_release(&p);
    w->done++;
}

static void put_done(struct kvferry *h, void *user,
                     const struct kvferry_result *r)
{
    (void)h;
    if (r->status != 0)
        bench_die("put: %s: %s", kvferry_status_name(r->status), r->message);
    ++*(uint64_t *)user;
}

static void pause_ns(uint64_t ns)
{
    for (uint64_t t0 = bench_now(); bench_now() - t0 < ns;)
        continue;
}

static uint64_t get_once(struct pb *b, const char *key,
                         const struct kvferry_get_options *o, uint64_t size)
{
    uint64_t t0 = bench_now(), took;
    struct kvferry_payload *p;

    pb_need(b->to, kvferry_get(b->to, key, o, &p), "get");
    took = bench_now() - t0;
    pb_check(p, size, 1);
    kvferry_release(&p);
    return took;
}

/* The put's answer is fetched after the get's: that is not what is measured.
 * After each a get of what is there, at the same pace: gets one after the other
 * find everybody awake and cannot be compared with what came after a pause. */
void pb_parked(struct pb *b, int argc, char **argv)
{
    uint64_t n = bench_size(argv[1]), *took = values(n), puts = 0;
    uint64_t *paced = values(n);
    struct kvferry_put_options twice = {.readers = 2};
    struct parked w = {.size = bench_size(argv[0])};
    struct kvferry_get_options o;
    void *data = bench_memory(w.size, false);
    char key[64];

    (void)argc;
    pb_open(b);
    o = pb_from(b);
    o.mode = KVFERRY_INLINE;
    bench_fill(data, w.size, 1, 0);
    for (uint64_t i = 0; i < n + n / 8; i++) {
        uint64_t t0;

        pb_key(key, "parked", i);
        pb_need(b->to, kvferry_get_async(b->to, key, &o, answered, &w, NULL),
                "get");
        pb_need(b->to, kvferry_ping(b->to), "ping");
        pause_ns(PARK_NS);
        t0 = bench_now();
        pb_need(b->from,
                kvferry_put_async(b->from, key, data, w.size, &twice, put_done,
                                  &puts, NULL),
                "put");
        pb_wait(b->to, &w.done, i + 1);
        took[i % n] = w.end_ns - t0;
        pb_wait(b->from, &puts, i + 1);
        pb_need(b->to, kvferry_ping(b->to), "ping"); /* as before the pause */
        pause_ns(PARK_NS);
        paced[i % n] = get_once(b, key, &o, w.size);
    }
    tell("parked", "put to get", w.size, took, n);
    tell("parked", "get at that pace", w.size, paced, n);
    pb_close(b);
    free(paced);
    free(took);
}

/* ---- pings while something large moves ---------------------------------- */

static void move_for_ever(struct pb *b, uint64_t size, int ready)
{
    struct kvferry_get_options o;
    struct kvferry_payload *p;
    char key[64];

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    pb_open(b);
    o = pb_from(b);
    pb_put(b, "ping", 1, size);
    pb_key(key, "ping", 1);
    for (uint64_t i = 0;; i++) {
        pb_need(b->to, kvferry_get(b->to, key, &o, &p), "get");
        if (i == 0) {
            pb_check(p, size, 1);
            if (write(ready, "r", 1) != 1)
                exit(1);
        }
        kvferry_release(&p);
    }
}

void pb_ping(struct pb *b, int argc, char **argv)
{
    uint64_t n = bench_size(argv[1]), *took = values(n);
    uint64_t size = argc > 2 ? bench_size(argv[2]) : 0;
    struct kvferry *h;
    pid_t kid = 0;
    int ready[2];
    char c;

    if (size != 0) {
        if (pipe(ready) != 0 || (kid = fork()) < 0)
            bench_die("cannot fork");
        if (kid == 0)
            move_for_ever(b, size, ready[1]);
        close(ready[1]);
        if (read(ready[0], &c, 1) != 1)
            bench_die("nothing is moving");
    }
    pb_open(b);
    h = argv[0][0] == 's' ? b->from : b->to;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t t0 = bench_now();

        pb_need(h, kvferry_ping(h), "ping");
        took[i] = bench_now() - t0;
        usleep(500); /* an engine does not ping back to back */
    }
    if (kid > 0 && waitpid(kid, NULL, WNOHANG) != 0)
        bench_die("the transfers ended before the pings");
    tell("ping", argv[0], size, took, n);
    if (kid > 0) {
        kill(kid, SIGKILL);
        waitpid(kid, NULL, 0);
    }
    pb_close(b);
    free(took);
}

/* ---- many parked gets --------------------------------------------------- */

static uint64_t private_bytes(pid_t pid)
{
    char path[64], line[128];
    unsigned long long kib = 0;
    FILE *f;

    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    f = fopen(path, "r");
    while (f != NULL && fgets(line, sizeof line, f) != NULL)
        if (sscanf(line, "RssAnon: %llu", &kib) == 1)
            break;
    if (f != NULL)
        fclose(f);
    return kib * 1024;
}

struct cost {
    uint64_t bytes[2], cpu[2], answer_ns; /* of both daemons */
};

static void ask(struct pb *b, const char *name, uint64_t n, struct parked *w)
{
    struct kvferry_get_options o = pb_from(b);
    char key[64];

    o.timeout_ms = 120000;
    for (uint64_t i = 0; i < n; i++) {
        pb_key(key, name, i);
        pb_need(b->to, kvferry_get_async(b->to, key, &o, answered, w, NULL),
                "get");
    }
    pb_need(b->to, kvferry_ping(b->to), "ping");
}

static void answer(struct pb *b, const char *name, uint64_t n, struct parked *w)
{
    char key[64], data[64];

    bench_fill(data, sizeof data, 1, 0);
    for (uint64_t i = 0; i < n; i++) {
        pb_key(key, name, i);
        pb_need(b->from,
                kvferry_put(b->from, key, data, sizeof data, NULL, NULL),
                "put");
        kvferry_process(b->to);
    }
    pb_wait(b->to, &w->done, n);
}

/* Until the owner has all of them. */
static void wait_parked(struct pb *b, uint64_t n)
{
    uint64_t end = bench_now() + 60000000000ull, parked = 0;

    while (parked < n) {
        char *json = NULL, *at;

        pb_need(b->from, kvferry_stats(b->from, &json), "stats");
        at = strstr(json, "\"guest_asks\"");
        at = at != NULL ? strchr(at, ':') : NULL;
        parked = at != NULL ? strtoull(at + 1, NULL, 10) : 0;
        free(json);
        if (parked < n && bench_now() > end)
            bench_die("only %llu of %llu gets are parked",
                      (unsigned long long)parked, (unsigned long long)n);
        usleep(10000);
    }
}

static void crowd_pass(struct pb *b, const char *name, uint64_t n,
                       unsigned seconds, struct cost *c)
{
    struct parked w = {.size = 64};
    uint64_t t0;

    for (unsigned i = 0; i < 2; i++)
        c->bytes[i] = private_bytes(b->pid[i]);
    ask(b, name, n, &w);
    wait_parked(b, n);
    for (unsigned i = 0; i < 2; i++) {
        uint64_t now = private_bytes(b->pid[i]);

        c->bytes[i] = now > c->bytes[i] ? now - c->bytes[i] : 0;
        c->cpu[i] = bench_cpu(b->pid[i]);
    }
    sleep(seconds); /* that nothing happens now is what is measured */
    for (unsigned i = 0; i < 2; i++)
        c->cpu[i] = bench_cpu(b->pid[i]) - c->cpu[i];
    if (w.done != 0)
        bench_die("a get was answered before its put");
    t0 = bench_now();
    answer(b, name, n, &w);
    c->answer_ns = bench_now() - t0;
}

void pb_crowd(struct pb *b, int argc, char **argv)
{
    const unsigned seconds = 3;
    uint64_t n = bench_size(argv[0]);
    struct cost c;

    (void)argc;
    pb_open(b);
    /* A small pass before, so that what is made only once is not counted. */
    crowd_pass(b, "few", 100, 0, &c);
    crowd_pass(b, "crowd", n, seconds, &c);
    printf("{\"bench\":\"crowd\",\"count\":%llu,\"owner_bytes\":%.1f,"
           "\"getter_bytes\":%.1f,\"owner_cpu_percent\":%.4f,"
           "\"getter_cpu_percent\":%.4f,\"answered\":%llu,"
           "\"answer_s\":%.3f}\n",
           (unsigned long long)n, (double)c.bytes[0] / (double)n,
           (double)c.bytes[1] / (double)n, (double)c.cpu[0] / 1e7 / seconds,
           (double)c.cpu[1] / 1e7 / seconds, (unsigned long long)n,
           (double)c.answer_ns / 1e9);
    pb_close(b);
}
