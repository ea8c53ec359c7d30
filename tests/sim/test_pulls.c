/* Pulls of blocks by seeds, in virtual time, over shm: publications, pulls,
 * cancels, broken and cut connections, deaths and restarts of both sides. Every
 * pull is answered exactly once, an OK has the right bytes and touched nothing
 * else, and after healing nothing is left anywhere.
 *
 *   KVF_SIM_SEEDS=N, KVF_SIM_SEED=S   as for test_chaos.c */
#include "sim.h"

#include "base/log.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define NODES 3 /* 0 sends, the others receive */
#define REQUESTS 4
#define BLOCKS 4 /* of a request */
#define PAGE 512 /* 2 heads, 4 tokens, k and v of 32 bytes */
#define REGION (REQUESTS * BLOCKS * PAGE)
#define ACTIONS 250
#define SEEDS 150

struct mem {
    struct kvf_layout *layout;
    uint8_t *p;
};

struct pull {
    struct kvf_list node;
    struct world *w;
    struct kvf_pull *pull; /* NULL when over */
    unsigned idx, boot, request;
    uint64_t deadline_ns;
    unsigned replies;
};

struct world {
    struct sim *sim;
    struct mem mem[NODES];
    struct kvf_list pulls;
    unsigned ok, failed;
};

static uint8_t byte_of(unsigned request, unsigned at)
{
    return (uint8_t)(request * 67 + at * 13 + at / 251);
}

/* The whole region of one layer: D's blocks are those of P, in reverse. */
static void declare(struct world *w, unsigned idx)
{
    struct sim_node *n = w->sim->node[idx], *before = sim_enter(n);
    struct kvf_layout_decl d = {.n_regions = 1};
    int fd = memfd_create("kv", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    struct kvf_region *region;
    struct kvf_mapping *map;
    struct kvf_layer *l;
    struct kvf_why why;

    if (fd < 0 || ftruncate(fd, REGION) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) < 0 ||
        kvf_map_fd(n->maps, fd, REGION, true, &map, &why) < 0 ||
        kvf_region_add(n->bufs, map, REGION, n, &region, &why) < 0)
        sim_fail(w->sim, "a region: %s", why.text);
    assert_int_equal(kvf_side_init(&d.side, 1, 1), 0);
    d.side.tp = d.side.pp = d.side.ppl = 1;
    d.side.bs = 4;
    d.side.nblocks = REQUESTS * BLOCKS;
    d.side.order = KVF_HND;
    d.side.kv = KVF_PACKED;
    d.side.groups[0] = (struct kvf_group){true, KVF_FULL, 0};
    l = &d.side.layers[0];
    l->name = strdup("l0");
    l->comps = calloc(2, sizeof *l->comps);
    l->n_comps = 2;
    l->comps[0] = (struct kvf_comp){strdup("k"), 2, 32};
    l->comps[1] = (struct kvf_comp){strdup("v"), 2, 32};
    l->views[KVF_PART_KV] = (struct kvf_part_view){true, 0, 0, PAGE, PAGE};
    d.regions = calloc(1, sizeof *d.regions);
    if (kvf_layout_add(n->blocks, &d, &region, &n->engine.layouts,
                       &w->mem[idx].layout, &why) < 0)
        sim_fail(w->sim, "layout: %s", why.text);
    w->mem[idx].p = map->base;
    if (idx == 0)
        for (unsigned i = 0; i < REGION; i++)
            map->base[i] = byte_of(i / (BLOCKS * PAGE), i % (BLOCKS * PAGE));
    sim_leave(n, before);
}

static void lists(unsigned request, bool reverse, struct kvf_req_blocks *b)
{
    b->groups = calloc(1, sizeof *b->groups);
    b->ids = calloc(BLOCKS, sizeof *b->ids);
    b->n = 1;
    b->groups[0] = (struct kvf_req_group){0, 0, b->ids, BLOCKS};
    for (unsigned i = 0; i < BLOCKS; i++)
        b->ids[i] =
            (int64_t)(request * BLOCKS + (reverse ? BLOCKS - 1 - i : i));
}

static void publish(struct world *w)
{
    struct sim_node *n = w->sim->node[0], *before = sim_enter(n);
    unsigned r = (unsigned)sim_below(w->sim, REQUESTS);
    struct kvf_req_blocks b;
    struct kvf_publish p = {.layout = w->mem[0].layout,
                            .n_tokens = BLOCKS * 4,
                            .blocks = &b,
                            .ttl_ms = 300 + sim_below(w->sim, 5000)};
    char id[8];

    snprintf(id, sizeof id, "r%u", r);
    p.request_id = (struct kvf_slice_str){id, strlen(id)};
    lists(r, false, &b);
    (void)kvf_publish(n->blocks, &p, NULL, NULL);
    kvf_req_blocks_done(&b);
    sim_leave(n, before);
}

static void check_bytes(struct pull *p)
{
    const uint8_t *at = p->w->mem[p->idx].p + p->request * BLOCKS * PAGE;

    for (unsigned i = 0; i < BLOCKS * PAGE; i++) {
        unsigned block = BLOCKS - 1 - i / PAGE;

        if (at[i] != byte_of(p->request, block * PAGE + i % PAGE))
            sim_fail(p->w->sim, "request %u: byte %u", p->request, i);
    }
}

static int on_reply(void *arg, const struct kvf_pull_result *res)
{
    struct pull *p = arg;

    if (p->replies++ != 0)
        sim_fail(p->w->sim, "a second reply");
    p->pull = NULL;
    if (res->status == KVF_OK) {
        p->w->ok++;
        assert_int_equal(res->bytes, BLOCKS * PAGE);
        check_bytes(p);
    } else {
        p->w->failed++;
        /* Its blocks are ours again: what is written from now on shows. */
        memset(p->w->mem[p->idx].p + p->request * BLOCKS * PAGE, 0xee,
               BLOCKS * PAGE);
    }
    return sim_chance(p->w->sim, 5) ? -(int)KVF_PEER_UNREACHABLE : 0;
}

static const struct kvf_pull_ops ops = {.reply = on_reply};

static bool busy(const struct world *w, unsigned idx, unsigned request)
{
    kvf_list_for_each (l, &w->pulls) {
        const struct pull *p = kvf_container_of(l, struct pull, node);

        if (p->pull != NULL && p->idx == idx && p->request == request)
            return true;
    }
    return false;
}

static void pull(struct world *w, unsigned idx)
{
    struct sim_node *n = w->sim->node[idx], *before;
    unsigned r = (unsigned)sim_below(w->sim, REQUESTS);
    uint64_t ms = 200 + sim_below(w->sim, 4000);
    struct kvf_req_pull req = {.from = {.stage = 0}};
    struct pull *p;
    struct kvf_why why;
    char id[8];

    if (busy(w, idx, r)) /* two would write the same bytes */
        return;
    p = calloc(1, sizeof *p);
    p->w = w;
    p->idx = idx;
    p->boot = n->boots;
    p->request = r;
    p->deadline_ns = w->sim->now_ns + (ms + 100) * SIM_MS;
    kvf_list_push_back(&w->pulls, &p->node);
    snprintf(id, sizeof id, "r%u", r);
    req.request_id = (struct kvf_slice_str){id, strlen(id)};
    lists(r, true, &req.blocks);
    before = sim_enter(n);
    memset(w->mem[idx].p + r * BLOCKS * PAGE, 0x11, BLOCKS * PAGE);
    if (kvf_pull_start(n->pulls, w->mem[idx].layout, &req, ms, &ops, p,
                       &p->pull, &why) < 0)
        sim_fail(w->sim, "pull: %s", why.text);
    sim_leave(n, before);
}

static void cancel_one(struct world *w)
{
    kvf_list_for_each (l, &w->pulls) {
        struct pull *p = kvf_container_of(l, struct pull, node);
        struct sim_node *n = w->sim->node[p->idx], *before;

        if (p->pull == NULL || !n->alive || n->frozen ||
            !sim_chance(w->sim, 40))
            continue;
        before = sim_enter(n);
        kvf_pull_cancel(p->pull, KVF_CANCELLED, "cancelled");
        sim_leave(n, before);
        return;
    }
}

static void restart(struct world *w, unsigned idx)
{
    sim_node_kill(w->sim->node[idx], false);
    sim_run_ms(w->sim, 1 + sim_below(w->sim, 2000));
    sim_node_start(w->sim, idx);
    if (idx == 0 && sim_chance(w->sim, 50))
        sim_run_ms(w->sim, sim_below(w->sim, 500)); /* pulls wait for it */
    declare(w, idx);
}

/* The engine of the sender starts anew: its publications stay. */
static void declare_anew(struct world *w)
{
    struct sim_node *n = w->sim->node[0], *before = sim_enter(n);

    kvf_layouts_end(&n->engine.layouts);
    sim_leave(n, before);
    declare(w, 0);
}

static void act(struct world *w)
{
    struct sim *sim = w->sim;
    unsigned d = 1 + (unsigned)sim_below(sim, NODES - 1);
    struct sim_node *n;

    switch (sim_below(sim, 40)) {
    case 0:
        restart(w, (unsigned)sim_below(sim, NODES));
        break;
    case 1:
        sim_net_cut(sim, 0, d, true);
        break;
    case 2:
    case 3:
        sim_net_cut(sim, 0, d, false);
        break;
    case 4:
    case 5:
        sim_net_reset(sim, 0, d);
        break;
    case 6:
        declare_anew(w);
        break;
    case 7:
        n = sim->node[sim_below(sim, NODES)];
        if (!n->frozen)
            sim_node_freeze(n);
        sim_run_ms(sim, sim_below(sim, 3000));
        sim_node_thaw(n);
        break;
    case 8:
    case 9:
        cancel_one(w);
        break;
    case 10:
    case 11:
    case 12:
    case 13:
    case 14:
    case 15:
    case 16:
        publish(w);
        break;
    default:
        pull(w, d);
    }
}

static void check_done(struct world *w)
{
    kvf_list_for_each_safe (l, &w->pulls) {
        struct pull *p = kvf_container_of(l, struct pull, node);

        if (p->replies != 1)
            sim_fail(w->sim, "a pull with %u replies", p->replies);
        kvf_list_unlink(l);
        free(p);
    }
    for (unsigned i = 0; i < NODES; i++) {
        struct sim_node *n = w->sim->node[i];
        struct kvf_store_gauges s;
        struct kvf_peers_gauges g;

        kvf_store_gauges(kvf_blocks_store(n->blocks), &s);
        kvf_peers_gauges(n->peers, &g);
        if (s.claims + s.parked + s.live + s.draining + g.asks + g.grants +
                g.unacked + g.guest_asks + g.guest_claims !=
            0)
            sim_fail(w->sim,
                     "node %u: left: claims %llu parked %llu live %llu asks "
                     "%u grants %u unacked %u guest asks %u claims %u",
                     i, (unsigned long long)s.claims,
                     (unsigned long long)s.parked, (unsigned long long)s.live,
                     g.asks, g.grants, g.unacked, g.guest_asks, g.guest_claims);
    }
}

static void run_seed(uint64_t seed, unsigned *ok, unsigned *failed)
{
    const struct sim_conf conf = {.nodes = NODES,
                                  .pool_size = 1 << 20,
                                  .inline_max = 1024,
                                  .delay_ns = SIM_MS / 20,
                                  .jitter_ns = SIM_MS / 2,
                                  .tick_ns = 100,
                                  .bulk_chunk = 4096,
                                  .bulk_step_ns = SIM_MS / 10};
    struct world w = {.sim = sim_new(&conf, seed)};

    kvf_list_init(&w.pulls);
    if (getenv("KVF_SIM_SEED") != NULL)
        kvf_log_tap(sim_tap, w.sim);
    for (unsigned i = 0; i < NODES; i++)
        declare(&w, i);
    for (unsigned i = 0; i < ACTIONS; i++) {
        act(&w);
        sim_run_ms(w.sim, sim_below(w.sim, 60));
    }
    for (unsigned i = 1; i < NODES; i++)
        sim_net_cut(w.sim, 0, i, false);
    sim_run_ms(w.sim, 20000);
    check_done(&w);
    *ok += w.ok;
    *failed += w.failed;
    kvf_log_tap(NULL, NULL);
    sim_free(w.sim);
}

static void test_seeds(void **state)
{
    const char *one = getenv("KVF_SIM_SEED"), *many = getenv("KVF_SIM_SEEDS");
    unsigned n = many != NULL ? (unsigned)atoi(many) : SEEDS, ok = 0,
             failed = 0;

    (void)state;
    if (one != NULL) {
        run_seed(strtoull(one, NULL, 10), &ok, &failed);
        return;
    }
    for (unsigned i = 1; i <= n; i++)
        run_seed(i, &ok, &failed);
    printf("%u pulls OK, %u not\n", ok, failed);
    assert_true(ok > 20 * n); /* chaos, but not only that */
    assert_true(failed > n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_seeds)};

    if (kvf_log_open("/dev/null", KVF_LOG_ERROR, NULL) < 0)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
