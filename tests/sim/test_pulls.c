/* Pulls of blocks by seeds, in virtual time: two ranks that send and two that
 * receive (or one and one more), cut in different ways, over shm or tcp, alone
 * and together. Publications on all ranks or some, cancels, messages that are
 * lost and that come twice, broken and cut connections, deaths and restarts of
 * everybody. Every pull is answered exactly once, an OK has the right bytes and
 * touched nothing else, ranks that are tied do not diverge while nothing is
 * disturbed, and after healing nothing is left anywhere.
 *
 *   KVF_SIM_SEEDS=N, KVF_SIM_SEED=S   as for test_chaos.c */
#include "blocks_world.h"

#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>

#define ACTIONS 250
#define SEEDS 150

static const struct {
    struct bw_shape p, d;
} shapes[] = {
    {{2, 1, 4, false}, {2, 1, 4, false}}, /* each D rank has one P rank */
    {{2, 1, 4, true}, {1, 2, 4, true}},   /* two heads and two: both ranks */
    {{1, 2, 4, false}, {2, 1, 8, false}}, /* one layer each; larger blocks */
    {{1, 2, 8, true}, {1, 2, 2, false}},  /* smaller ones, another order */
    {{2, 1, 2, false}, {1, 1, 4, true}},  /* one receiver */
    {{1, 1, 4, false}, {2, 1, 4, true}},  /* one sender, two consumers */
};
#define SHAPES (sizeof shapes / sizeof shapes[0])

static struct bw w;
static unsigned lose_pct;

/* A message is lost only with its connection; here it may be any, and the
 * connection breaks later, or the session ends. */
static bool pass(struct sim *sim, unsigned from, unsigned to,
                 enum kvf_peer_type type)
{
    (void)from;
    (void)to;
    (void)type;
    if (!sim_chance(sim, lose_pct))
        return true;
    w.disturbed++;
    return false;
}

static unsigned any_p(void)
{
    return (unsigned)sim_below(w.sim, w.n_p);
}

static unsigned any_d(void)
{
    return w.n_p + (unsigned)sim_below(w.sim, w.n_d);
}

static void cancel_one(void)
{
    kvf_list_for_each (l, &w.pulls) {
        struct bw_pull *p = kvf_container_of(l, struct bw_pull, node);

        if (p->pull == NULL || !sim_chance(w.sim, 40))
            continue;
        bw_cancel(&w, p);
        return;
    }
}

static void restart(unsigned idx)
{
    w.disturbed++;
    sim_node_kill(w.sim->node[idx], false);
    sim_run_ms(w.sim, 1 + sim_below(w.sim, 2000));
    sim_node_start(w.sim, idx);
    if (idx < w.n_p && sim_chance(w.sim, 50))
        sim_run_ms(w.sim, sim_below(w.sim, 500)); /* pulls wait for it */
    bw_declare(&w, idx);
}

/* The engine of a sender starts anew: its publications stay. */
static void declare_anew(unsigned idx)
{
    struct sim_node *n = w.sim->node[idx], *before = sim_enter(n);

    kvf_layouts_end(&n->engine.layouts);
    sim_leave(n, before);
    bw_declare(&w, idx);
}

static void freeze(void)
{
    struct sim_node *n = w.sim->node[sim_below(w.sim, w.n_p + w.n_d)];

    w.disturbed++;
    if (!n->frozen)
        sim_node_freeze(n);
    sim_run_ms(w.sim, sim_below(w.sim, 3000));
    sim_node_thaw(n);
    w.disturbed++;
}

static void publish(void)
{
    unsigned r = (unsigned)sim_below(w.sim, BW_REQUESTS);
    uint64_t ttl = 300 + sim_below(w.sim, 5000);

    if (sim_chance(w.sim, 80))
        bw_publish_all(&w, r, ttl);
    else /* one rank only, or late, or another start of the request */
        bw_publish(&w, any_p(), r, ttl, NULL);
}

static void pull_together(void)
{
    unsigned r = (unsigned)sim_below(w.sim, BW_REQUESTS);
    uint64_t ms = 200 + sim_below(w.sim, 4000);
    struct bw_group *g;

    for (unsigned i = 0; i < w.n_d; i++)
        if (w.mem[w.n_p + i].state[r] == BW_ASKED)
            return;
    g = bw_group(&w);
    for (unsigned i = 0; i < w.n_d; i++) {
        bw_pull(&w, w.n_p + i, r, ms, g);
        if (sim_chance(w.sim, 50))
            sim_run_ms(w.sim, sim_below(w.sim, 30));
    }
}

static void net(void)
{
    unsigned p = any_p(), d = any_d();

    w.disturbed++;
    switch (sim_below(w.sim, 5)) {
    case 0:
        sim_net_cut(w.sim, p, d, true);
        break;
    case 1:
    case 2:
        sim_net_cut(w.sim, p, d, false);
        break;
    default:
        sim_net_reset(w.sim, p, d);
    }
}

static void act(bool calm)
{
    unsigned what = (unsigned)sim_below(w.sim, 40);

    if (calm && what < 9)
        what += 9;
    if (what == 0)
        restart((unsigned)sim_below(w.sim, w.n_p + w.n_d));
    else if (what < 6)
        net();
    else if (what == 6)
        declare_anew(any_p());
    else if (what < 9)
        freeze();
    else if (what < 11)
        cancel_one();
    else if (what < 19)
        publish();
    else if (what < 24)
        pull_together();
    else
        (void)bw_pull(&w, any_d(), (unsigned)sim_below(w.sim, BW_REQUESTS),
                      200 + sim_below(w.sim, 4000), NULL);
}

static void heal(void)
{
    lose_pct = 0;
    w.sim->conf.dup_pct = 0;
    for (unsigned p = 0; p < w.n_p; p++)
        for (unsigned d = w.n_p; d < w.n_p + w.n_d; d++) {
            sim_net_cut(w.sim, p, d, false);
            sim_net_reset(w.sim, p, d); /* what was lost is noticed */
        }
    w.disturbed++;
    sim_run_ms(w.sim, 20000);
}

static void run_seed(uint64_t seed, unsigned *ok, unsigned *failed,
                     unsigned *together)
{
    size_t s = seed % SHAPES;
    bool calm = seed % 5 == 0, tcp = seed % 4 < 2, lossy = seed % 3 == 0;
    const struct sim_conf conf = {
        .nodes = bw_nodes(&shapes[s].p, &shapes[s].d),
        .senders = (unsigned)(shapes[s].p.tp * shapes[s].p.pp),
        .pool_size = 1 << 20,
        .inline_max = 1024,
        .delay_ns = SIM_MS / 20,
        .jitter_ns = SIM_MS / 2,
        .tick_ns = 100,
        .bulk_chunk = 4096,
        .bulk_step_ns = SIM_MS / 10,
        .no_shm = tcp ? ~0u : 0,
        .bulk_fail_pct = 3,
        .bulk_cut_pct = calm ? 0 : 1,
        .dup_pct = lossy ? 3 : 0};

    lose_pct = lossy && !calm ? 1 : 0;
    bw_init(&w, sim_new(&conf, seed), &shapes[s].p, &shapes[s].d);
    w.refuse_pct = 5;
    w.sim->pass = pass;
    if (getenv("KVF_SIM_SEED") != NULL)
        kvf_log_tap(sim_tap, w.sim);
    for (unsigned i = 0; i < ACTIONS; i++) {
        act(calm);
        sim_run_ms(w.sim, sim_below(w.sim, 60));
    }
    heal();
    bw_finish(&w);
    *ok += w.ok;
    *failed += w.failed;
    *together += w.together_ok;
    kvf_log_tap(NULL, NULL);
    sim_free(w.sim);
}

static void test_seeds(void **state)
{
    const char *one = getenv("KVF_SIM_SEED"), *many = getenv("KVF_SIM_SEEDS");
    unsigned n = many != NULL ? (unsigned)atoi(many) : SEEDS, ok = 0,
             failed = 0, together = 0;

    (void)state;
    if (one != NULL) {
        run_seed(strtoull(one, NULL, 10), &ok, &failed, &together);
        return;
    }
    for (unsigned i = 1; i <= n; i++)
        run_seed(i, &ok, &failed, &together);
    printf("%u pulls OK (%u together), %u not\n", ok, together, failed);
    assert_true(ok > 20 * n); /* chaos, but not only that */
    assert_true(together > n);
    assert_true(failed > n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_seeds)};

    if (kvf_log_open("/dev/null", KVF_LOG_ERROR, NULL) < 0)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
