/* Scenarios: connections that break, messages that are lost, gets that are
 * cancelled, generations that end under a reader, and admission. */
#include "golden.h"

#include <string.h>

void s_renewed_parked(void)
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

void s_renewed_pulling(void)
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

void lose_dones(unsigned n)
{
    lose_done = n;
    sim->pass = drop_done;
}

void s_done_lost(void)
{
    connect_first();
    lose_dones(2);
    put("k", 100, 1);
    get("k", &patient);
    run(5000);
}

void s_late_grant(void)
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

void s_cancel(void)
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

void s_hold(void)
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

void s_replace_during_read(void)
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

void s_ttl_during_read(void)
{
    struct sim_put_opts o = {.size = 200000, .readers = 1, .ttl_ms = 5};

    connect_first();
    sim_put(sim->node[1], "k", &o, NULL);
    get("k", &patient);
    run(100);
}

void s_retry_resumes(void)
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

void s_attempts_run_out(void)
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

void s_claim_lost(void)
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
void s_claim_lost_replaced(void)
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
void s_claim_lost_same(void)
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
void s_view_outlives_daemon(void)
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

void s_no_wait(void)
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

void s_generation(void)
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
    o.has_incarnation = true;
    get("k", &o);
    run(10);
}

void s_tombstones(void)
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

void s_max_inflight(void)
{
    connect_first();
    edge(-1, 1);
    put("a", 100000, 1);
    put("b", 100000, 1);
    get("a", &patient);
    get("b", &patient);
    run(200);
}

void s_window(void)
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

void s_one_reader_two_gets(void)
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
