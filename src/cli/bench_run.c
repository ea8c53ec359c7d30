/* The requests of kvferry bench: `depth` slots, each doing one request after
 * the other, both handles in one poll loop.
 *
 * A slot owns one key at a time (`keys` are taken in turn). Latency is a slot's
 * own; throughput is over the time in which at least one slot is timed. With
 * --verify the slots wait for each other before bytes are filled or checked, so
 * that this is part of no time. Failures are counted and the first is told; a
 * run in which everything fails ends early. */
#include "bench.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

struct run;
struct slot {
    struct run *run;
    unsigned key, round;
    bool timed, ok, put_done, get_done;
    uint64_t t0, t1; /* of the request that is counted */
    uint64_t ticket; /* of its get */
    struct kvferry_segment into;
    struct kvferry_buffer buffer;    /* parked: to be published */
    void *source;                    /* what it puts */
    struct kvferry_payload *payload; /* until it is checked */
    void (*then)(struct slot *s);    /* when all slots are there */
};

struct run {
    struct bench *b;
    struct bench_result *r;
    struct slot *slots;
    uint64_t started, completed, end_ns, total;
    uint64_t clock_ns; /* since when somebody is timed */
    int64_t cpu0;
    unsigned active, timed, gathered;
    bool over, rounds;
};

static void begin(struct slot *s);
static void turn(struct slot *s);

static void fail(struct run *run, const char *what, int status,
                 const char *message)
{
    bench_failed(run->r, what, status, message);
    if (run->r->failed > 100)
        run->over = true;
}

/* ---- time --------------------------------------------------------------- */

static void clock_start(struct slot *s)
{
    s->timed = true;
    s->t0 = bench_now();
    if (s->run->timed++ == 0)
        s->run->clock_ns = s->t0;
}

static void clock_stop(struct slot *s)
{
    if (!s->timed)
        return;
    s->timed = false;
    s->t1 = bench_now();
    if (--s->run->timed == 0)
        s->run->r->ns += s->t1 - s->run->clock_ns;
}

/* The warm-up is over. */
static void clock_zero(struct run *run)
{
    run->cpu0 = bench_cpu(run->b->pids);
    run->clock_ns = bench_now();
    run->r->ns = 0;
}

/* ---- rounds ------------------------------------------------------------- */

static void sweep(struct run *run)
{
    if (run->active == 0 || run->gathered < run->active)
        return;
    run->gathered = 0;
    for (unsigned i = 0; i < run->b->depth; i++) {
        void (*then)(struct slot *) = run->slots[i].then;

        run->slots[i].then = NULL;
        if (then != NULL)
            then(&run->slots[i]);
    }
}

/* Goes on with `then`: at once, or when every other slot is idle too. */
static void gather(struct slot *s, void (*then)(struct slot *))
{
    if (!s->run->rounds) {
        then(s);
        return;
    }
    s->then = then;
    s->run->gathered++;
    sweep(s->run);
}

static void finished(struct slot *s)
{
    struct run *run = s->run;
    struct bench *b = run->b;

    if (s->payload != NULL && b->verify &&
        !bench_check(s->payload, b->size, s->key)) {
        fail(run, "verify", -KVF_CORRUPT, "wrong bytes");
        s->ok = false;
    }
    kvferry_release(&s->payload);
    run->completed++;
    if (run->completed == b->warmup)
        clock_zero(run);
    else if (s->ok && run->completed > b->warmup)
        run->r->latency_ns[run->r->n++] = s->t1 - s->t0;
    if (bench_now() > run->end_ns)
        run->over = true;
    turn(s);
}

static void failed(struct slot *s, const char *what, int status,
                   const char *message)
{
    s->ok = false;
    fail(s->run, what, status, message);
}

/* ---- requests ----------------------------------------------------------- */

static void get_done(struct kvferry *h, void *user,
                     const struct kvferry_result *r)
{
    struct slot *s = user;
    struct bench *b = s->run->b;

    (void)h;
    s->get_done = true;
    s->payload = r->payload;
    if (r->status == 0 && b->view_read)
        s->run->r->sum += bench_read(s->payload);
    clock_stop(s);
    if (r->status != 0 && s->ok)
        failed(s, "get", r->status, r->message);
    if (b->workload != BENCH_PARKED || s->put_done)
        gather(s, finished); /* else its put is still to be answered */
}

static bool start_get(struct slot *s)
{
    struct kvferry_get_options o = s->run->b->get;
    char key[64];
    int rc;

    bench_key(s->run->b, s->key, key);
    if (s->run->b->into) {
        o.into = &s->into;
        o.n_into = 1;
    }
    rc = kvferry_get_async(s->run->b->to, key, &o, get_done, s, &s->ticket);
    if (rc == 0)
        return true;
    clock_stop(s);
    failed(s, "get", rc, kvferry_error(s->run->b->to));
    return false;
}

static void put_done(struct kvferry *h, void *user,
                     const struct kvferry_result *r)
{
    struct slot *s = user;
    enum bench_workload w = s->run->b->workload;

    (void)h;
    s->put_done = true;
    if (w == BENCH_PUT)
        clock_stop(s);
    if (r->status != 0)
        failed(s, "put", r->status, r->message);
    /* The buffer of a put that failed goes back with the session. */
    if (w == BENCH_PARKED && r->status != 0 && !s->get_done) {
        kvferry_cancel(s->run->b->to, s->ticket);
        return; /* get_done goes on */
    }
    if (w == BENCH_PUTGET && s->ok && start_get(s))
        return;
    if (w == BENCH_PARKED && !s->get_done)
        return;
    clock_stop(s);
    gather(s, finished);
}

static void start_put(struct slot *s)
{
    struct bench *b = s->run->b;
    struct kvferry_put_options o = {.readers = 1};
    char key[64];
    int rc;

    bench_key(b, s->key, key);
    clock_start(s);
    rc = kvferry_put_async(b->from, key, s->source, b->size, &o, put_done, s,
                           NULL);
    if (rc == 0)
        return;
    clock_stop(s);
    failed(s, "put", rc, kvferry_error(b->from));
    gather(s, finished);
}

/* ---- parked: get, ping, alloc, fill; timed from the put on -------------- */

static void publish_parked(struct slot *s)
{
    struct bench *b = s->run->b;
    struct kvferry_put_options o = {.readers = 1};
    struct kvferry_segment seg = {.id = s->buffer.id};
    struct kvferry_result r = {.message = ""};
    char key[64];

    bench_key(b, s->key, key);
    if (!s->get_done)
        clock_start(s);
    r.status = kvferry_put_segments_async(b->from, key, &seg, 1, &o, put_done,
                                          s, NULL);
    if (r.status != 0)
        put_done(b->from, s, &r);
}

static void fill_parked(struct slot *s)
{
    if (s->run->b->verify)
        bench_fill(s->buffer.data, s->run->b->size, s->key);
    gather(s, publish_parked);
}

static void give_up_parked(struct slot *s)
{
    s->put_done = true;
    if (s->get_done)
        gather(s, finished);
    else
        kvferry_cancel(s->run->b->to, s->ticket);
}

static void alloc_done(struct kvferry *h, void *user,
                       const struct kvferry_result *r)
{
    struct slot *s = user;

    (void)h;
    s->buffer = r->buffer;
    if (r->status == 0) {
        gather(s, fill_parked);
        return;
    }
    failed(s, "alloc", r->status, r->message);
    give_up_parked(s);
}

static void ping_done(struct kvferry *h, void *user,
                      const struct kvferry_result *r)
{
    struct slot *s = user;
    struct bench *b = s->run->b;
    int rc = r->status;

    (void)h;
    if (b->workload == BENCH_PING)
        clock_stop(s);
    if (rc != 0)
        failed(s, "ping", rc, r->message);
    if (b->workload == BENCH_PING) {
        gather(s, finished);
        return;
    }
    /* The receiver's daemon has taken the get by now. */
    if (rc == 0) {
        rc = kvferry_alloc_async(b->from, b->size, alloc_done, s, NULL);
        if (rc != 0)
            failed(s, "alloc", rc, kvferry_error(b->from));
    }
    if (rc != 0)
        give_up_parked(s);
}

static void start_ping(struct slot *s)
{
    int rc = kvferry_ping_async(s->run->b->to, ping_done, s, NULL);
    struct kvferry_result r = {.status = rc, .message = "not sent"};

    if (rc != 0)
        ping_done(s->run->b->to, s, &r);
}

/* ---- a slot's turn ------------------------------------------------------ */

static void begin(struct slot *s)
{
    switch (s->run->b->workload) {
    case BENCH_PUT:
    case BENCH_PUTGET:
        start_put(s);
        return;
    case BENCH_PARKED:
        if (start_get(s))
            start_ping(s);
        else
            gather(s, finished);
        return;
    case BENCH_PING:
        clock_start(s);
        start_ping(s);
        return;
    case BENCH_GET:
    case BENCH_MGET:
    default:
        clock_start(s);
        if (!start_get(s))
            gather(s, finished);
        return;
    }
}

/* The slot's next request, or its end. */
static void turn(struct slot *s)
{
    struct run *run = s->run;
    struct bench *b = run->b;
    unsigned nth = (unsigned)(s - run->slots);

    if (run->over || run->started >= run->total) {
        run->active--;
        sweep(run);
        return;
    }
    run->started++;
    /* Every slot has keys of its own (keys >= depth), so that no two use one
     * key at the same time. A get that is to be parked needs a fresh key: one
     * that was read before would meet its tombstone. */
    s->round++;
    s->key = b->workload == BENCH_PARKED
                 ? nth + b->depth * s->round
                 : nth + b->depth * (s->round % (b->keys / b->depth));
    s->ok = true;
    s->put_done = s->get_done = false;
    s->ticket = 0;
    if (b->workload == BENCH_PUTGET && b->verify)
        bench_fill(s->source, b->size, s->key);
    gather(s, begin);
}

/* ---- a run -------------------------------------------------------------- */

static int prepare(struct run *run)
{
    struct bench *b = run->b;

    for (unsigned i = 0; i < b->depth; i++) {
        struct slot *s = &run->slots[i];
        struct kvferry_buffer buf;
        int rc;

        s->run = run;
        if (b->workload == BENCH_PUT || b->workload == BENCH_PUTGET) {
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
    return b->workload == BENCH_GET ? bench_publish(b) : 0;
}

static void loop(struct run *run)
{
    struct kvferry *h[2] = {run->b->from, run->b->to};
    unsigned n = h[0] == h[1] ? 1 : 2;

    run->active = run->b->depth;
    for (unsigned i = 0; i < run->b->depth; i++)
        turn(&run->slots[i]);
    while (run->active > 0) {
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

    kvferry_cleanup(b->from, b->prefix, -1, -1, NULL);
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
    int rc;

    rc = bench_begin(b, r);
    if (rc != 0)
        return rc;
    run.total = b->count + b->warmup;
    run.rounds = b->verify && b->workload != BENCH_PUT;
    run.slots = calloc(b->depth, sizeof *run.slots);
    if (run.slots == NULL)
        return CLI_IO;
    rc = prepare(&run);
    if (rc == 0) {
        run.end_ns = bench_now() + b->duration_ms * 1000000;
        clock_zero(&run);
        loop(&run);
        bench_end(b, r, run.cpu0);
    }
    clean_up(&run);
    return rc;
}
