/* The requests of kvferry bench: `depth` slots, each doing one request after
 * the other, both handles in one poll loop.
 *
 * A slot owns one key at a time (`keys` are taken in turn). Failures are
 * counted and the first is told; a run in which everything fails ends early. */
#include "bench.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

struct run;
struct slot {
    struct run *run;
    unsigned key, round;
    uint64_t t0, t1; /* of the request that is counted */
    struct kvferry_segment into;
    void *source; /* what it puts */
    bool put_done, get_done;
};

struct run {
    struct bench *b;
    struct bench_result *r;
    struct slot *slots;
    uint64_t started, completed, skip, end_ns, begin_ns, total;
    int64_t cpu0;
    unsigned active;
    bool over;
    char prefix[40];
};

static void key_name(const struct run *run, unsigned key, char out[64])
{
    snprintf(out, 64, "%s-%u:0_1", run->prefix, key);
}

static void next(struct slot *s);

static void fail(struct run *run, const char *what, int status,
                 const char *message)
{
    if (run->r->failed++ == 0)
        snprintf(run->r->error, sizeof run->r->error, "%s: %s: %s", what,
                 kvferry_status_name(status), message);
    if (run->r->failed > 100)
        run->over = true;
}

static void finished(struct slot *s, bool ok)
{
    struct run *run = s->run;
    uint64_t now = bench_now();

    run->active--;
    run->completed++;
    if (run->completed == run->skip) {
        run->begin_ns = now;
        run->cpu0 = bench_cpu(run->b->pids);
    } else if (ok && run->completed > run->skip) {
        run->r->latency_ns[run->r->n++] = s->t1 - s->t0;
    }
    run->r->ns = now - run->begin_ns;
    if (now > run->end_ns)
        run->over = true;
    next(s);
}

static void start_put(struct slot *s);

static void get_done(struct kvferry *h, void *user,
                     const struct kvferry_result *r)
{
    struct slot *s = user;
    struct bench *b = s->run->b;
    struct kvferry_payload *p = r->payload;
    bool ok = r->status == 0;

    (void)h;
    s->get_done = true;
    s->t1 = bench_now();
    if (!ok) {
        fail(s->run, "get", r->status, r->message);
    } else {
        if (b->view_read) {
            s->run->r->sum += bench_read(p);
            s->t1 = bench_now(); /* reading counts, checking does not */
        }
        if (b->verify && !bench_check(p, b->size, s->key)) {
            fail(s->run, "verify", -KVF_CORRUPT, "wrong bytes");
            ok = false;
        }
        kvferry_release(&p);
    }
    if (b->workload == BENCH_PARKED && !s->put_done)
        return; /* its put is still to be answered */
    finished(s, ok);
}

static void start_get(struct slot *s)
{
    struct kvferry_get_options o = s->run->b->get;
    char key[64];
    int rc;

    key_name(s->run, s->key, key);
    if (s->run->b->into) {
        o.into = &s->into;
        o.n_into = 1;
    }
    s->get_done = false;
    rc = kvferry_get_async(s->run->b->to, key, &o, get_done, s, NULL);
    if (rc != 0) {
        fail(s->run, "get", rc, kvferry_error(s->run->b->to));
        s->run->active--;
    }
}

static void put_done(struct kvferry *h, void *user,
                     const struct kvferry_result *r)
{
    struct slot *s = user;
    enum bench_workload w = s->run->b->workload;

    (void)h;
    s->put_done = true;
    if (w == BENCH_PUT)
        s->t1 = bench_now();
    if (r->status != 0)
        fail(s->run, "put", r->status, r->message);
    if (w == BENCH_PUTGET && r->status == 0)
        start_get(s);
    else if (w != BENCH_PARKED || s->get_done)
        finished(s, r->status == 0);
    else if (r->status != 0)
        s->run->over = true; /* its get would wait for ever */
}

static void start_put(struct slot *s)
{
    struct bench *b = s->run->b;
    struct kvferry_put_options o = {.readers = 1};
    char key[64];
    int rc;

    key_name(s->run, s->key, key);
    s->put_done = false;
    if (b->verify)
        bench_fill(s->source, b->size, s->key);
    s->t0 = bench_now();
    rc = kvferry_put_async(b->from, key, s->source, b->size, &o, put_done, s,
                           NULL);
    if (rc != 0) {
        fail(s->run, "put", rc, kvferry_error(b->from));
        s->run->active--;
    }
}

static void ping_done(struct kvferry *h, void *user,
                      const struct kvferry_result *r)
{
    struct slot *s = user;

    (void)h;
    if (r->status != 0)
        fail(s->run, "ping", r->status, r->message);
    if (s->run->b->workload == BENCH_PARKED) {
        start_put(s); /* the daemon has taken the get by now */
    } else {
        s->t1 = bench_now();
        finished(s, r->status == 0);
    }
}

static void next(struct slot *s)
{
    struct run *run = s->run;

    if (run->over || run->started >= run->total)
        return;
    run->started++;
    run->active++;
    /* Every slot has keys of its own (keys >= depth), so that no two use one
     * key at the same time. */
    s->key = (unsigned)(s - run->slots) +
             run->b->depth * (s->round++ % (run->b->keys / run->b->depth));
    /* A get of a key that was read before would meet its tombstone. */
    if (run->b->workload == BENCH_PARKED)
        s->key = (unsigned)(s - run->slots) + run->b->depth * s->round;
    s->t0 = bench_now();
    switch (run->b->workload) {
    case BENCH_PUT:
    case BENCH_PUTGET:
        start_put(s);
        return;
    case BENCH_PARKED:
        start_get(s);
        kvferry_ping_async(run->b->to, ping_done, s, NULL);
        return;
    case BENCH_PING:
        kvferry_ping_async(run->b->to, ping_done, s, NULL);
        return;
    case BENCH_GET:
    case BENCH_MGET:
    default:
        start_get(s);
        return;
    }
}

static int publish(struct run *run)
{
    struct bench *b = run->b;
    struct kvferry_put_options o = {.readers = KVFERRY_READERS_ANY};
    void *data = malloc(b->size);
    int rc = data == NULL ? -(int)KVF_INTERNAL : 0;

    for (unsigned k = 0; rc == 0 && k < b->keys; k++) {
        char key[64];

        key_name(run, k, key);
        bench_fill(data, b->size, k);
        rc = kvferry_put(b->from, key, data, b->size, &o, NULL);
    }
    free(data);
    return rc != 0 ? cli_failed(b->from, rc, "bench: put") : 0;
}

static int prepare(struct run *run)
{
    struct bench *b = run->b;

    for (unsigned i = 0; i < b->depth; i++) {
        struct slot *s = &run->slots[i];
        struct kvferry_buffer buf;
        int rc;

        s->run = run;
        if (b->workload != BENCH_GET && b->workload != BENCH_PING) {
            s->source = malloc(b->size);
            if (s->source == NULL)
                return CLI_IO;
            bench_fill(s->source, b->size, i);
        }
        if (!b->into)
            continue;
        rc = kvferry_alloc(b->to, b->size, &buf);
        if (rc != 0)
            return cli_failed(b->to, rc, "bench: alloc");
        s->into.id = buf.id;
        s->into.length = b->size;
    }
    return b->workload == BENCH_GET ? publish(run) : 0;
}

static void loop(struct run *run)
{
    struct kvferry *h[2] = {run->b->from, run->b->to};
    unsigned n = h[0] == h[1] ? 1 : 2;

    for (unsigned i = 0; i < run->b->depth; i++)
        next(&run->slots[i]);
    while (run->active > 0 && !(run->over && run->r->failed > 100)) {
        struct pollfd pf[2];
        int did = 0;

        for (unsigned i = 0; i < n; i++) {
            did += kvferry_process(h[i]);
            pf[i].fd = kvferry_fd(h[i]);
            pf[i].events = POLLIN;
        }
        if (did == 0 && run->active > 0)
            poll(pf, n, 1000);
    }
}

static void clean_up(struct run *run)
{
    struct bench *b = run->b;

    for (unsigned k = 0; k < b->keys && b->workload != BENCH_PING; k++) {
        char request[64];

        key_name(run, k, request);
        *strrchr(request, ':') = '\0';
        kvferry_cleanup(b->from, request, -1, -1, NULL);
    }
    for (unsigned i = 0; i < b->depth; i++) {
        if (run->slots[i].into.id != 0)
            kvferry_free(b->to, run->slots[i].into.id);
        free(run->slots[i].source);
    }
    free(run->slots);
}

int bench_run(struct bench *b, struct bench_result *r)
{
    struct run run = {.b = b, .r = r};
    int64_t cpu;
    int rc;

    memset(r, 0, sizeof *r);
    run.skip = b->warmup;
    run.total = b->count + b->warmup;
    snprintf(run.prefix, sizeof run.prefix, "bench-%llx",
             (unsigned long long)bench_now());
    run.slots = calloc(b->depth, sizeof *run.slots);
    r->latency_ns = malloc((run.total + 1) * sizeof *r->latency_ns);
    if (run.slots == NULL || r->latency_ns == NULL) {
        free(run.slots);
        return CLI_IO;
    }
    rc = prepare(&run);
    if (rc == 0) {
        run.begin_ns = bench_now();
        run.end_ns = run.begin_ns + b->duration_ms * 1000000;
        run.cpu0 = bench_cpu(b->pids);
        loop(&run);
        cpu = bench_cpu(b->pids);
        r->cpu_s =
            cpu >= 0 && run.cpu0 >= 0 ? (double)(cpu - run.cpu0) / 1e9 : -1;
    }
    clean_up(&run);
    return rc;
}

/* ---- mget: `depth` keys in one blocking request -------------------------- */

static int mget_loop(struct run *run, struct kvferry_mget_item *items,
                     char (*names)[64])
{
    struct bench *b = run->b;

    for (uint64_t i = 0; i < run->total && bench_now() < run->end_ns; i++) {
        uint64_t t0 = bench_now();
        int rc;

        if (i == run->skip) {
            run->begin_ns = t0;
            run->cpu0 = bench_cpu(b->pids);
        }
        for (unsigned k = 0; k < b->depth; k++) {
            key_name(run, (unsigned)((i * b->depth + k) % b->keys), names[k]);
            items[k].key = names[k];
            items[k].options = b->get;
        }
        rc = kvferry_mget(b->to, items, b->depth, 0, false);
        if (rc != 0)
            return cli_failed(b->to, rc, "bench: mget");
        for (unsigned k = 0; k < b->depth; k++) {
            if (items[k].status != 0)
                fail(run, "mget", items[k].status, items[k].message);
            else if (b->verify && !bench_check(items[k].payload, b->size,
                                               (i * b->depth + k) % b->keys))
                fail(run, "verify", -KVF_CORRUPT, "wrong bytes");
            kvferry_release(&items[k].payload);
        }
        if (i >= run->skip)
            run->r->latency_ns[run->r->n++] = bench_now() - t0;
    }
    run->r->ns = bench_now() - run->begin_ns;
    return 0;
}

int bench_mget(struct bench *b, struct bench_result *r)
{
    struct run run = {.b = b, .r = r};
    struct kvferry_mget_item *items = calloc(b->depth, sizeof *items);
    char(*names)[64] = calloc(b->depth, 64);
    int64_t cpu;
    int rc = CLI_IO;

    memset(r, 0, sizeof *r);
    run.skip = b->warmup;
    run.total = b->count + b->warmup;
    run.slots = calloc(b->depth, sizeof *run.slots);
    snprintf(run.prefix, sizeof run.prefix, "bench-%llx",
             (unsigned long long)bench_now());
    r->latency_ns = malloc((run.total + 1) * sizeof *r->latency_ns);
    if (items != NULL && names != NULL && run.slots != NULL &&
        r->latency_ns != NULL && (rc = publish(&run)) == 0) {
        run.begin_ns = bench_now();
        run.end_ns = run.begin_ns + b->duration_ms * 1000000;
        rc = mget_loop(&run, items, names);
        cpu = bench_cpu(b->pids);
        r->cpu_s =
            cpu >= 0 && run.cpu0 >= 0 ? (double)(cpu - run.cpu0) / 1e9 : -1;
        clean_up(&run);
    } else {
        free(run.slots);
    }
    free(items);
    free(names);
    return rc;
}
