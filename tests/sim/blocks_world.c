#include "blocks_world.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define FRESH 0x11
#define SPOILT 0xee /* ours again after a failure: later writes show */
#define SLOT (2 * BW_BYTES)

/* ---- where a byte lies, and what it is ---------------------------------- */

static bool sends(const struct bw *w, unsigned idx)
{
    return idx < w->n_p;
}

static const struct bw_shape *shape_of(const struct bw *w, unsigned idx)
{
    return &w->shape[!sends(w, idx)];
}

static unsigned rank_of(const struct bw *w, unsigned idx)
{
    return sends(w, idx) ? idx : idx - w->n_p;
}

static unsigned heads(const struct bw_shape *s)
{
    return BW_HEADS / (unsigned)s->tp;
}

static unsigned blocks(const struct bw_shape *s) /* of a request */
{
    return BW_TOKENS / (unsigned)s->bs;
}

static size_t page(const struct bw_shape *s)
{
    return (size_t)s->bs * heads(s) * SLOT;
}

static size_t layer_size(const struct bw_shape *s)
{
    return BW_REQUESTS * blocks(s) * page(s);
}

static size_t region_size(const struct bw_shape *s)
{
    return BW_LAYERS * layer_size(s);
}

/* D has the blocks of a request the other way round. */
static unsigned id_of(const struct bw *w, unsigned idx, unsigned request,
                      unsigned i)
{
    unsigned n = blocks(shape_of(w, idx));

    return request * n + (sends(w, idx) ? i : n - 1 - i);
}

static uint8_t value(unsigned request, unsigned layer, unsigned head,
                     unsigned token, unsigned at)
{
    return (uint8_t)(request * 67 + layer * 29 + head * 101 + token * 13 + at +
                     token * head);
}

/* Calls fn for every byte of a request on a rank, with what it should be. */
static void walk(struct bw *w, unsigned idx, unsigned request,
                 void (*fn)(struct bw *w, uint8_t *at, uint8_t want))
{
    const struct bw_shape *s = shape_of(w, idx);
    unsigned rank = rank_of(w, idx), tp = (unsigned)s->tp, B = (unsigned)s->bs;
    unsigned H = heads(s), per = BW_LAYERS / (unsigned)s->pp;

    for (unsigned l = 0; l < per; l++)
        for (unsigned t = 0; t < BW_TOKENS; t++)
            for (unsigned h = 0; h < H; h++) {
                unsigned slot = s->nhd ? t % B * H + h : h * B + t % B;
                uint8_t *at = w->mem[idx].p + l * layer_size(s) +
                              id_of(w, idx, request, t / B) * page(s) +
                              slot * SLOT;

                for (unsigned b = 0; b < SLOT; b++)
                    fn(w, at + b,
                       value(request, rank / tp * per + l, rank % tp * H + h, t,
                             b));
            }
}

static void write_it(struct bw *w, uint8_t *at, uint8_t want)
{
    (void)w;
    *at = want;
}

static void check_it(struct bw *w, uint8_t *at, uint8_t want)
{
    if (*at != want)
        sim_fail(w->sim, "a byte is %02x, not %02x", *at, want);
}

static void make_fresh(struct bw *w, uint8_t *at, uint8_t want)
{
    (void)w;
    (void)want;
    *at = FRESH;
}

static void spoil(struct bw *w, uint8_t *at, uint8_t want)
{
    (void)w;
    (void)want;
    *at = SPOILT;
}

static void check_spoilt(struct bw *w, uint8_t *at, uint8_t want)
{
    (void)want;
    if (*at != SPOILT)
        sim_fail(w->sim, "%02x was written after the answer", *at);
}

static void check_fresh(struct bw *w, uint8_t *at, uint8_t want)
{
    (void)want;
    if (*at != FRESH)
        sim_fail(w->sim, "%02x was written and nobody pulled", *at);
}

/* ---- layouts ------------------------------------------------------------ */

static void fill_layer(const struct bw *w, unsigned idx, unsigned i,
                       struct kvf_layer *l)
{
    const struct bw_shape *s = shape_of(w, idx);
    unsigned per = BW_LAYERS / (unsigned)s->pp;
    unsigned stage = rank_of(w, idx) / (unsigned)s->tp;
    char name[8];

    snprintf(name, sizeof name, "l%u", i);
    l->name = strdup(name);
    l->stage = i / per;
    l->comps = calloc(2, sizeof *l->comps);
    l->n_comps = 2;
    l->comps[0] = (struct kvf_comp){strdup("k"), BW_HEADS, BW_BYTES};
    l->comps[1] = (struct kvf_comp){strdup("v"), BW_HEADS, BW_BYTES};
    if (i / per == stage)
        l->views[KVF_PART_KV] =
            (struct kvf_part_view){true, 0, (int64_t)(i % per * layer_size(s)),
                                   (int64_t)page(s), (int64_t)page(s)};
}

void bw_declare(struct bw *w, unsigned idx)
{
    const struct bw_shape *s = shape_of(w, idx);
    struct sim_node *n = w->sim->node[idx], *before = sim_enter(n);
    struct kvf_layout_decl d = {.n_regions = 1, .rank = rank_of(w, idx)};
    int fd = memfd_create("kv", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    size_t size = region_size(s);
    struct kvf_region *region;
    struct kvf_mapping *map;
    struct kvf_why why;

    if (fd < 0 || ftruncate(fd, (off_t)size) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) < 0 ||
        kvf_map_fd(n->maps, fd, size, true, &map, &why) < 0 ||
        kvf_region_add(n->bufs, map, size, n, &region, &why) < 0)
        sim_fail(w->sim, "a region: %s", why.text);
    assert_int_equal(kvf_side_init(&d.side, 1, BW_LAYERS), 0);
    d.side.tp = s->tp;
    d.side.pp = s->pp;
    d.side.ppl = 1;
    d.side.bs = s->bs;
    d.side.nblocks = BW_REQUESTS * blocks(s);
    d.side.order = s->nhd ? KVF_NHD : KVF_HND;
    d.side.kv = KVF_PACKED;
    d.side.groups[0] = (struct kvf_group){true, KVF_FULL, 0};
    for (unsigned i = 0; i < BW_LAYERS; i++)
        fill_layer(w, idx, i, &d.side.layers[i]);
    d.regions = calloc(1, sizeof *d.regions);
    if (kvf_layout_add(n->blocks, &d, &region, &n->engine.layouts,
                       &w->mem[idx].layout, &why) < 0)
        sim_fail(w->sim, "layout: %s", why.text);
    w->mem[idx].p = map->base;
    for (unsigned r = 0; r < BW_REQUESTS; r++) {
        w->mem[idx].state[r] = BW_NEVER;
        walk(w, idx, r, sends(w, idx) ? write_it : make_fresh);
    }
    sim_leave(n, before);
}

unsigned bw_nodes(const struct bw_shape *p, const struct bw_shape *d)
{
    return (unsigned)(p->tp * p->pp + d->tp * d->pp);
}

void bw_init(struct bw *w, struct sim *sim, const struct bw_shape *p,
             const struct bw_shape *d)
{
    *w = (struct bw){.sim = sim, .shape = {*p, *d}};
    w->n_p = (unsigned)(p->tp * p->pp);
    w->n_d = (unsigned)(d->tp * d->pp);
    kvf_list_init(&w->pulls);
    kvf_list_init(&w->groups);
    for (unsigned i = 0; i < w->n_p + w->n_d; i++)
        bw_declare(w, i);
}

/* ---- publishing --------------------------------------------------------- */

static void lists(const struct bw *w, unsigned idx, unsigned request,
                  struct kvf_req_blocks *b)
{
    unsigned n = blocks(shape_of(w, idx));

    b->groups = calloc(1, sizeof *b->groups);
    b->ids = calloc(n, sizeof *b->ids);
    b->n = 1;
    b->groups[0] = (struct kvf_req_group){0, 0, b->ids, n};
    for (unsigned i = 0; i < n; i++)
        b->ids[i] = (int64_t)id_of(w, idx, request, i);
}

void bw_publish(struct bw *w, unsigned idx, unsigned request, uint64_t ttl_ms,
                const struct kvf_id *tag)
{
    struct sim_node *n = w->sim->node[idx], *before = sim_enter(n);
    struct kvf_req_blocks b;
    struct kvf_publish p = {.layout = w->mem[idx].layout,
                            .n_tokens = BW_TOKENS,
                            .blocks = &b,
                            .tag = tag,
                            .ttl_ms = ttl_ms};
    char id[8];

    snprintf(id, sizeof id, "r%u", request);
    p.request_id = (struct kvf_slice_str){id, strlen(id)};
    lists(w, idx, request, &b);
    (void)kvf_publish(n->blocks, &p, NULL, NULL);
    kvf_req_blocks_done(&b);
    sim_leave(n, before);
}

void bw_publish_all(struct bw *w, unsigned request, uint64_t ttl_ms)
{
    struct kvf_id tag;

    for (unsigned i = 0; i < sizeof tag.b; i++)
        tag.b[i] = (uint8_t)sim_below(w->sim, 256);
    for (unsigned i = 0; i < w->n_p; i++)
        bw_publish(w, i, request, ttl_ms, &tag);
}

/* ---- pulling ------------------------------------------------------------ */

struct bw_group *bw_group(struct bw *w)
{
    struct bw_group *g = calloc(1, sizeof *g);

    g->size = w->n_d;
    g->disturbed = w->disturbed;
    snprintf(g->name, sizeof g->name, "g%u", w->names++);
    kvf_list_push_back(&w->groups, &g->node);
    return g;
}

static void count_group(struct bw *w, struct bw_group *g, bool ok)
{
    if (ok)
        g->ok++;
    else
        g->failed++;
    w->together_ok += ok;
    if (g->ok != 0 && g->failed != 0 && g->disturbed == w->disturbed)
        sim_fail(w->sim, "the ranks of %s were told different ends", g->name);
}

static int on_reply(void *arg, const struct kvf_pull_result *res)
{
    struct bw_pull *p = arg;
    struct bw *w = p->w;
    bool ok = res->status == KVF_OK;

    if (p->replies++ != 0)
        sim_fail(w->sim, "a second reply");
    p->pull = NULL;
    p->status = res->status;
    w->mem[p->idx].state[p->request] = ok ? BW_OK : BW_FAILED;
    if (ok) {
        w->ok++;
        walk(w, p->idx, p->request, check_it);
    } else {
        w->failed++;
        walk(w, p->idx, p->request, spoil);
    }
    if (p->group != NULL)
        count_group(w, p->group, ok);
    return sim_chance(w->sim, w->refuse_pct) ? -(int)KVF_PEER_UNREACHABLE : 0;
}

static const struct kvf_pull_ops ops = {.reply = on_reply};

struct bw_pull *bw_pull(struct bw *w, unsigned idx, unsigned request,
                        uint64_t ms, struct bw_group *group)
{
    struct sim_node *n = w->sim->node[idx], *before;
    struct kvf_req_pull req = {.from = {.stage = 0}};
    struct bw_pull *p;
    struct kvf_why why;
    char id[8];

    if (w->mem[idx].state[request] == BW_ASKED)
        return NULL; /* two would write the same bytes */
    p = calloc(1, sizeof *p);
    p->w = w;
    p->idx = idx;
    p->request = request;
    p->group = group;
    kvf_list_push_back(&w->pulls, &p->node);
    snprintf(id, sizeof id, "r%u", request);
    req.request_id = (struct kvf_slice_str){id, strlen(id)};
    if (group != NULL) {
        req.together = (struct kvf_slice_str){group->name, strlen(group->name)};
        req.together_size = group->size;
    }
    lists(w, idx, request, &req.blocks);
    before = sim_enter(n);
    walk(w, idx, request, make_fresh);
    w->mem[idx].state[request] = BW_ASKED;
    if (kvf_pull_start(n->pulls, w->mem[idx].layout, &req, ms, &ops, p,
                       &p->pull, &why) < 0)
        sim_fail(w->sim, "pull: %s", why.text);
    sim_leave(n, before);
    return p;
}

void bw_cancel(struct bw *w, struct bw_pull *p)
{
    struct sim_node *n = w->sim->node[p->idx], *before;

    if (p->pull == NULL || !n->alive || n->frozen)
        return;
    before = sim_enter(n);
    kvf_pull_cancel(p->pull, KVF_CANCELLED, "cancelled");
    sim_leave(n, before);
}

/* ---- the end ------------------------------------------------------------ */

static void check_node(struct bw *w, unsigned idx)
{
    struct sim_node *n = w->sim->node[idx];
    struct kvf_store_gauges s;
    struct kvf_peers_gauges g;

    kvf_store_gauges(kvf_blocks_store(n->blocks), &s);
    kvf_peers_gauges(n->peers, &g);
    if (s.claims + s.parked + s.live + s.draining + g.asks + g.grants +
            g.unacked + g.guest_asks + g.guest_claims !=
        0)
        sim_fail(w->sim,
                 "node %u: left: claims %llu parked %llu live %llu draining "
                 "%llu asks %u grants %u unacked %u guest asks %u claims %u",
                 idx, (unsigned long long)s.claims,
                 (unsigned long long)s.parked, (unsigned long long)s.live,
                 (unsigned long long)s.draining, g.asks, g.grants, g.unacked,
                 g.guest_asks, g.guest_claims);
    for (unsigned r = 0; r < BW_REQUESTS; r++) {
        enum bw_state st = w->mem[idx].state[r];

        walk(w, idx, r,
             sends(w, idx) || st == BW_OK ? check_it
             : st == BW_FAILED            ? check_spoilt
                                          : check_fresh);
    }
}

void bw_finish(struct bw *w)
{
    struct kvf_list *i;

    while ((i = kvf_list_pop(&w->pulls)) != NULL) {
        struct bw_pull *p = kvf_container_of(i, struct bw_pull, node);

        if (p->replies != 1)
            sim_fail(w->sim, "a pull with %u replies", p->replies);
        free(p);
    }
    while ((i = kvf_list_pop(&w->groups)) != NULL)
        free(kvf_container_of(i, struct bw_group, node));
    for (unsigned n = 0; n < w->n_p + w->n_d; n++)
        check_node(w, n);
}
