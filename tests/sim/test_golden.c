/* Golden traces: what a get goes through, step by step, in virtual time.
 *
 * Each scenario's trace (transitions, replies, retries and peer sessions, with
 * the time in ms and the node) is compared with tests/sim/golden/<name>.txt.
 * KVF_SIM_WRITE=1 writes the files instead: read the difference before it is
 * committed. Node 0 gets, node 1 owns; 100 us a message, 1 ms a step of bulk.
 */
#include "sim.h"

#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct sim *sim;
static uint64_t t0;
static char trace[65536];
static size_t trace_len;

static const char *const shown[] = {"[GET] ",        "[REPLY] ",
                                    "[KVF RETRY] ",  "[KVF TIMEOUT] ",
                                    "[KVF RETIRE] ", "[TEST] "};

static void put_line(const char *text)
{
    uint64_t us = (sim->now_ns - t0) / KVF_NS_PER_US;
    size_t len = strcspn(text, "\n");
    const char *cause = strstr(text, ": "); /* words may change */

    if (cause != NULL && (size_t)(cause - text) < len)
        len = (size_t)(cause - text);
    trace_len += (size_t)snprintf(
        trace + trace_len, sizeof trace - trace_len, "%llu.%03llu n%c %.*s\n",
        (unsigned long long)(us / 1000), (unsigned long long)(us % 1000),
        sim->current != NULL ? (char)('0' + sim->current->idx) : '-', (int)len,
        text);
    if (trace_len > sizeof trace - 512)
        fail_msg("the trace is too long");
}

static void tap(void *arg, const char *line)
{
    (void)arg;
    for (unsigned i = 0; i < sizeof shown / sizeof *shown; i++) {
        const char *at = strstr(line, shown[i]);

        if (at != NULL) {
            put_line(at);
            return;
        }
    }
}

static void note(const char *text)
{
    kvf_log(KVF_LOG_TRACE, "TEST", "%s", text);
}

/* ---- scenarios --------------------------------------------------------------
 */

static const struct sim_conf base = {.nodes = 2,
                                     .pool_size = 4u << 20,
                                     .inline_max = 1024,
                                     .delay_ns = 100 * KVF_NS_PER_US,
                                     .bulk_chunk = 65536,
                                     .bulk_step_ns = SIM_MS,
                                     .no_shm = 3};

static const struct sim_get_opts patient = {.mode = KVF_MODE_COPY,
                                            .timeout_ms = 10000};

static struct sim_get *get(const char *key, const struct sim_get_opts *o)
{
    return sim_get(sim->node[0], 1, key, o);
}

static uint64_t put(const char *key, uint64_t size, uint64_t readers)
{
    struct sim_put_opts o = {
        .size = size, .readers = readers, .checksum = size % 2 == 1};
    enum kvf_status status;
    uint64_t gen = sim_put(sim->node[1], key, &o, &status);

    assert_int_equal(status, KVF_OK);
    return gen;
}

static void run(uint64_t ms)
{
    sim_run_ms(sim, ms);
}

/* A session first, so that the trace begins with the get. */
static void connect_first(void)
{
    const struct sim_get_opts o = {.mode = KVF_MODE_COPY, .timeout_ms = 100};

    kvf_log_tap(NULL, NULL);
    get("nothing", &o);
    run(1000);
    t0 = sim->now_ns;
    kvf_log_tap(tap, NULL);
}

static void finish_gets(void)
{
    kvf_list_for_each_safe (n, &sim->gets) {
        struct sim_get *g = kvf_container_of(n, struct sim_get, node);

        if (g->replies != 0 && !g->gone && g->buffer != 0)
            sim_release(sim->node[g->idx], g->buffer);
        if (g->replies != 0 && !g->gone)
            sim_get_drop(g);
    }
}

static void s_eager(void)
{
    put("k", 100, 1);
    get("k", &patient);
    run(200);
}

static void s_pull(void)
{
    connect_first();
    put("k", 200001, 1);
    get("k", &patient);
    run(200);
}

static void s_into(void)
{
    struct sim_get_opts o = patient;

    connect_first();
    put("k", 70000, 1);
    o.mode = KVF_MODE_INTO;
    o.into = 69999;
    get("k", &o);
    run(50);
    note("the right size");
    o.into = 70000;
    get("k", &o);
    run(200);
}

static void s_view(void)
{
    connect_first();
    put("k", 70000, 1);
    get("k", &(struct sim_get_opts){.mode = KVF_MODE_AUTO, .timeout_ms = 1000});
    run(50);
    note("release");
    finish_gets();
    run(50);
}

static void s_view_refused(void)
{
    connect_first();
    put("k", 70000, 1);
    get("k", &(struct sim_get_opts){.mode = KVF_MODE_VIEW, .timeout_ms = 1000});
    run(50);
}

static void s_get_before_put(void)
{
    connect_first();
    get("k", &patient);
    run(300);
    note("put");
    put("k", 100, 1);
    run(50);
}

static void s_owner_late(void)
{
    sim_node_kill(sim->node[1], true);
    get("k", &patient);
    run(700);
    note("owner starts");
    sim_node_start(sim, 1);
    run(800);
    note("put");
    put("k", 100, 1);
    run(50);
}

static void s_deadline_connect(void)
{
    sim_node_kill(sim->node[1], true);
    get("k", &(struct sim_get_opts){.mode = KVF_MODE_COPY, .timeout_ms = 1000});
    run(1500);
    sim_node_start(sim, 1);
}

static void s_deadline_wait(void)
{
    connect_first();
    get("k", &(struct sim_get_opts){.mode = KVF_MODE_COPY, .timeout_ms = 1000});
    run(1500);
    put("k", 100, 1);
}

static void s_deadline_transfer(void)
{
    connect_first();
    put("k", 200000, 1);
    get("k", &(struct sim_get_opts){.mode = KVF_MODE_COPY, .timeout_ms = 1000});
    run(5);
    note("owner stops");
    sim_node_freeze(sim->node[1]);
    run(1500);
    note("owner goes on");
    sim_node_thaw(sim->node[1]);
    run(500);
}

static void s_owner_dies_parked(void)
{
    connect_first();
    get("k", &patient);
    run(300);
    note("owner dies");
    sim_node_kill(sim->node[1], true);
    run(3000);
    sim_node_start(sim, 1);
}

static void s_owner_dies_pulling(void)
{
    connect_first();
    put("k", 200000, 1);
    get("k", &patient);
    run(5);
    note("owner dies");
    sim_node_kill(sim->node[1], true);
    run(5000);
    sim_node_start(sim, 1);
}

static void s_owner_restarts(void)
{
    connect_first();
    get("k", &patient);
    run(300);
    note("owner restarts");
    sim_node_kill(sim->node[1], true);
    sim_node_start(sim, 1);
    run(3000);
    note("a new get");
    put("k", 100, 1);
    get("k", &patient);
    run(50);
}

static void s_renewed_parked(void)
{
    connect_first();
    get("k", &patient);
    run(300);
    note("connections break");
    sim_net_reset(sim, 0, 1);
    run(1500);
    note("put");
    put("k", 100, 1);
    run(50);
}

static void s_renewed_pulling(void)
{
    connect_first();
    sim->conf.bulk_step_ns = 100 * SIM_MS;
    put("k", 200000, 1);
    get("k", &patient);
    run(250);
    note("connections break");
    sim_net_reset(sim, 0, 1);
    run(9000);
}

static unsigned lose_done;

static bool drop_done(struct sim *s, unsigned from, unsigned to,
                      enum kvf_peer_type type)
{
    (void)s;
    (void)from;
    (void)to;
    if (type != KVF_PEER_DONE || lose_done == 0)
        return true;
    lose_done--;
    note("DONE is lost");
    return false;
}

static void s_done_lost(void)
{
    connect_first();
    lose_done = 2;
    sim->pass = drop_done;
    put("k", 100, 1);
    get("k", &patient);
    run(5000);
}

static void s_late_grant(void)
{
    struct sim_get *g;
    struct sim_node *before;

    connect_first();
    sim->conf.delay_ns = 50 * SIM_MS;
    put("k", 100, 1);
    g = get("k", &patient);
    run(75);
    note("cancel, while the grant is on its way");
    before = sim_enter(sim->node[0]);
    kvf_get_cancel(g->get, KVF_CANCELLED, "no longer wanted");
    sim_leave(sim->node[0], before);
    run(500);
    assert_int_equal(sim->node[0]->stats.late_grants, 1);
    note("its reader is free again");
    get("k", &patient);
    run(500);
}

static void cancel(struct sim_get *g)
{
    struct sim_node *before = sim_enter(sim->node[0]);

    note("cancel");
    kvf_get_cancel(g->get, KVF_CANCELLED, "no longer wanted");
    sim_leave(sim->node[0], before);
    run(50);
}

static void s_cancel(void)
{
    struct sim_get_opts o = patient;
    struct sim_get *g;

    sim_net_cut(sim, 0, 1, true);
    cancel(get("accepted", &patient));
    g = get("connecting", &patient);
    run(10);
    cancel(g);
    sim_net_cut(sim, 0, 1, false);
    connect_first();
    g = get("asking", &patient);
    run(10);
    cancel(g);
    put("pulling", 200000, 1);
    g = get("pulling", &patient);
    run(3);
    cancel(g);
    put("held", 100, 1);
    o.hold = true;
    g = get("held", &o);
    run(10);
    cancel(g);
}

static void s_hold(void)
{
    struct sim_get_opts o = patient;
    struct sim_get *g;
    struct sim_node *before;

    connect_first();
    put("k", 200001, 1);
    o.hold = true;
    g = get("k", &o);
    run(100);
    assert_int_equal(g->helds, 1);
    note("commit");
    before = sim_enter(sim->node[0]);
    kvf_get_commit(g->get);
    sim_leave(sim->node[0], before);
    run(100);
}

static void s_replace_during_read(void)
{
    struct sim_get *g;
    uint64_t old;

    connect_first();
    old = put("k", 200000, 1);
    g = get("k", &patient);
    run(5);
    note("replace");
    put("k", 200002, 1);
    run(100);
    assert_int_equal(g->got_generation, old);
}

static void s_ttl_during_read(void)
{
    struct sim_put_opts o = {.size = 200000, .readers = 1, .ttl_ms = 5};

    connect_first();
    sim_put(sim->node[1], "k", &o, NULL);
    get("k", &patient);
    run(100);
}

static void s_retry_resumes(void)
{
    uint64_t bytes;

    connect_first();
    put("k", 1000000, 1);
    sim->fail_op = 14; /* of 16 */
    get("k", &patient);
    run(1000);
    bytes = sim->bulk_bytes;
    /* At most two chunks of 256 KiB are moved twice. */
    assert_true(bytes > 1000000 && bytes < 1000000 + 2 * 262144);
}

static void s_attempts_run_out(void)
{
    connect_first();
    put("k", 5000, 1);
    sim->conf.bulk_cut_pct = 100;
    get("k", &patient);
    run(9000);
}

/* The owner does not hear us and gives us up, and we do not notice. */
static void lose_claim(uint64_t after_ms)
{
    run(after_ms);
    note("cut");
    sim->node[1]->conf->peer_timeout_ms = 200;
    sim_net_cut(sim, 0, 1, true);
    run(1200);
}

static void s_claim_lost(void)
{
    connect_first();
    put("k", 200000, 0);
    get("k", &patient);
    lose_claim(5);
    note("healed");
    sim_net_cut(sim, 0, 1, false);
    run(4000);
}

/* What was in place of the old generation must not be kept. */
static void s_claim_lost_replaced(void)
{
    struct sim_get *g;
    uint64_t gen;

    connect_first();
    put("k", 1000001, 0);
    g = get("k", &patient);
    lose_claim(60);
    note("replaced and healed");
    gen = put("k", 1000001, 0);
    sim_net_cut(sim, 0, 1, false);
    run(4000);
    assert_int_equal(g->got_generation, gen);
}

/* The same generation again: what is in place is kept. */
static void s_claim_lost_same(void)
{
    connect_first();
    put("k", 1000001, 0);
    get("k", &patient);
    lose_claim(60);
    note("healed");
    sim_net_cut(sim, 0, 1, false);
    run(4000);
    assert_true(sim->bulk_bytes < 1000001 + 3 * 262144);
}

/* Peers mapped our memory when they died: only the engine's exit frees it. */
static void s_view_outlives_daemon(void)
{
    struct sim_node *getter = sim->node[0];
    struct kvf_store_gauges g;

    connect_first();
    put("k", 70000, 1);
    get("k", &(struct sim_get_opts){.mode = KVF_MODE_VIEW, .timeout_ms = 1000});
    run(50);
    note("the getter's daemon dies, its engine does not");
    sim_node_kill(getter, false);
    run(60000);
    kvf_store_gauges(sim->node[1]->store, &g);
    assert_int_equal(g.claims, 1);
    note("the engine dies");
    sim_proc_end(sim, getter->engine.pid);
    getter->engine.alive = false;
    run(100);
    kvf_store_gauges(sim->node[1]->store, &g);
    assert_int_equal(g.claims, 0);
    sim_node_start(sim, 0);
}

static void s_no_wait(void)
{
    struct sim_get_opts o = patient;

    o.no_wait = true;
    note("no session yet");
    get("k", &o);
    run(1000);
    note("no key");
    get("k", &o);
    run(10);
    put("k", 200000, 1);
    get("k", &patient);
    run(3);
    note("its one reader is claimed");
    get("k", &o);
    run(100);
    note("consumed");
    get("k", &o);
    run(10);
    sim_node_kill(sim->node[1], true);
    run(3000);
    note("down");
    get("k", &o);
    run(10);
    sim_node_start(sim, 1);
}

static void s_generation(void)
{
    struct sim_get_opts o = patient;
    uint64_t gen;

    connect_first();
    gen = put("k", 100, 0);
    o.generation = gen;
    note("the current one");
    get("k", &o);
    run(10);
    note("an older one");
    o.generation = gen - 1;
    get("k", &o);
    run(10);
    note("a newer one");
    o.generation = gen + 1;
    get("k", &o);
    run(10);
    put("k", 120, 0);
    run(10);
    note("of an earlier start");
    o = patient;
    o.any_generation_of = true;
    get("k", &o);
    run(10);
}

static void s_tombstones(void)
{
    struct sim_node *n = sim->node[1], *before;

    connect_first();
    get("k", &patient);
    run(10);
    note("fail");
    before = sim_enter(n);
    kvf_store_fail(n->store, "k", 1, "broken", 6, 1000, NULL);
    sim_leave(n, before);
    run(10);
    note("a later get");
    get("k", &patient);
    run(10);
    get("r:0_1", &patient);
    run(10);
    note("cleanup");
    before = sim_enter(n);
    kvf_store_cleanup(n->store, "r", 1, false, 0, 0);
    sim_leave(n, before);
    run(10);
}

static void edge(int64_t window, uint32_t inflight)
{
    struct kvf_conf *c = sim->node[0]->conf;

    c->n_edges = 1;
    c->edge[0] = (struct kvf_conf_edge){.from = 1,
                                        .to = 0,
                                        .from_tp = 1,
                                        .to_tp = 1,
                                        .window_size = window,
                                        .max_inflight = inflight};
}

static void s_max_inflight(void)
{
    connect_first();
    edge(-1, 1);
    put("a", 100000, 1);
    put("b", 100000, 1);
    get("a", &patient);
    get("b", &patient);
    run(200);
}

static void s_window(void)
{
    connect_first();
    edge(150000, 64);
    put("a", 100000, 1);
    put("b", 100000, 1);
    put("c", 50000, 1);
    get("a", &patient);
    get("b", &patient);
    get("c", &patient);
    run(200);
}

static void s_one_reader_two_gets(void)
{
    struct sim_get *g;

    connect_first();
    put("k", 200000, 1);
    g = get("k", &patient);
    get("k", &(struct sim_get_opts){.mode = KVF_MODE_COPY, .timeout_ms = 2000});
    run(3);
    cancel(g);
    run(100);
}

/* ---- comparing
 * ---------------------------------------------------------------
 */

struct scenario {
    const char *name;
    void (*fn)(void);
    bool shm;
};

#define PLAIN(name)                                                            \
    {                                                                          \
#name, s_##name, false                                                 \
    }
#define OVER_SHM(name)                                                         \
    {                                                                          \
#name, s_##name, true                                                  \
    }

static const struct scenario scenarios[] = {
    PLAIN(eager),
    PLAIN(pull),
    PLAIN(into),
    OVER_SHM(view),
    PLAIN(view_refused),
    PLAIN(get_before_put),
    PLAIN(owner_late),
    PLAIN(deadline_connect),
    PLAIN(deadline_wait),
    PLAIN(deadline_transfer),
    PLAIN(owner_dies_parked),
    PLAIN(owner_dies_pulling),
    PLAIN(owner_restarts),
    PLAIN(renewed_parked),
    PLAIN(renewed_pulling),
    PLAIN(done_lost),
    PLAIN(late_grant),
    PLAIN(cancel),
    PLAIN(hold),
    PLAIN(replace_during_read),
    PLAIN(ttl_during_read),
    PLAIN(retry_resumes),
    PLAIN(attempts_run_out),
    PLAIN(claim_lost),
    PLAIN(claim_lost_replaced),
    PLAIN(claim_lost_same),
    OVER_SHM(view_outlives_daemon),
    PLAIN(no_wait),
    PLAIN(generation),
    PLAIN(tombstones),
    PLAIN(max_inflight),
    PLAIN(window),
    PLAIN(one_reader_two_gets),
};

static void compare(const char *name)
{
    char path[512], expected[sizeof trace];
    bool writes = getenv("KVF_SIM_WRITE") != NULL;
    size_t n;
    FILE *f;

    snprintf(path, sizeof path, "%s/%s.txt", KVF_GOLDEN_DIR, name);
    f = fopen(path, writes ? "w" : "r");
    if (f == NULL)
        fail_msg("%s: cannot be opened", path);
    if (writes) {
        fwrite(trace, 1, trace_len, f);
        fclose(f);
        return;
    }
    n = fread(expected, 1, sizeof expected - 1, f);
    fclose(f);
    expected[n] = '\0';
    if (strcmp(expected, trace) != 0)
        fail_msg("%s differs.\n--- expected\n%s--- now\n%s", name, expected,
                 trace);
}

static void golden(void **state)
{
    const struct scenario *sc = *state;
    struct sim_conf c = base;

    if (sc->shm)
        c.no_shm = 0;
    sim = sim_new(&c, 7);
    t0 = sim->now_ns;
    trace_len = 0;
    trace[0] = '\0';
    kvf_log_tap(tap, NULL);
    sc->fn();
    kvf_log_tap(NULL, NULL);
    compare(sc->name);
    /* Whatever happened, nothing stays behind. */
    sim->conf.bulk_cut_pct = 0;
    run(12000);
    finish_gets();
    run(140000); /* a payload and then its tombstone live 60 s each */
    sim_check_quiet(sim);
    sim_free(sim);
}

int main(void)
{
    enum { N = sizeof scenarios / sizeof *scenarios };
    struct CMUnitTest tests[N];
    struct scenario copy[N];

    memcpy(copy, scenarios, sizeof copy);
    for (unsigned i = 0; i < N; i++)
        tests[i] = (struct CMUnitTest){.name = copy[i].name,
                                       .test_func = golden,
                                       .initial_state = &copy[i]};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
