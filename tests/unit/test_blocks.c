/* Which bytes of a publication may be read, against brute force; the template
 * of one pair of ranks, against that of the whole; readers that count once. */
#include "base/rng.h"
#include "layout/pair.h"
#include "peer/blocks.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define REGIONS 3
#define SIZE 700
#define LAYERS 6

static uint64_t seed;

/* Random views of blocks in regions; they may overlap, as groups of a pool
 * do. Returns which bytes of which region are in a published block. */
static void random_views(struct kvf_rng *r, struct kvf_layer *layers,
                         struct kvf_side *s, const struct kvf_ids *sorted,
                         bool may[REGIONS][SIZE])
{
    memset(may, 0, REGIONS * SIZE * sizeof(bool));
    for (unsigned l = 0; l < LAYERS; l++) {
        struct kvf_layer *y = &layers[l];
        int64_t page = 1 + (int64_t)kvf_rng_below(r, 20);
        int64_t stride = page + (int64_t)kvf_rng_below(r, 12);
        int64_t per = kvf_rng_below(r, 4) == 0 ? 1 : s->ppl;
        int64_t n = s->nblocks * per;
        int64_t room = SIZE - ((n - 1) * stride + page);
        struct kvf_part_view v = {.given = true,
                                  .region = (int64_t)kvf_rng_below(r, REGIONS),
                                  .stride = stride,
                                  .page = page};

        memset(y, 0, sizeof *y);
        y->kind = per == s->ppl && s->ppl != 1 ? KVF_ATTN : KVF_SSM;
        if (s->ppl == 1)
            y->kind = KVF_ATTN;
        y->group = (int64_t)kvf_rng_below(r, 2);
        if (room < 0)
            continue;
        v.off0 = (int64_t)kvf_rng_below(r, (uint64_t)room + 1);
        y->views[KVF_PART_KV] = v;
        for (size_t i = 0; i < sorted[y->group].n; i++)
            for (int64_t k = 0; k < per; k++)
                for (int64_t b = 0; b < page; b++)
                    may[v.region][v.off0 +
                                  (sorted[y->group].ids[i] * per + k) * stride +
                                  b] = true;
    }
}

static void test_reach(void **state)
{
    struct kvf_rng r;

    (void)state;
    kvf_rng_seed(&r, seed);
    for (int round = 0; round < 400; round++) {
        struct kvf_layer layers[LAYERS];
        struct kvf_layout l = {.decl = {.n_regions = REGIONS}};
        bool may[REGIONS][SIZE];
        int64_t ids[2][8];
        struct kvf_ids sorted[2];
        struct kvf_columns *c;

        l.decl.side.layers = layers;
        l.decl.side.n_layers = LAYERS;
        l.decl.side.nblocks = 8;
        l.decl.side.ppl = 1 + (int64_t)kvf_rng_below(&r, 2);
        for (int g = 0; g < 2; g++) {
            size_t n = 0;

            for (int64_t i = 0; i < 8; i++)
                if (kvf_rng_below(&r, 2) == 0)
                    ids[g][n++] = i;
            sorted[g] = (struct kvf_ids){0, n, ids[g]};
        }
        random_views(&r, layers, &l.decl.side, sorted, may);
        assert_int_equal(kvf_columns_make(&l, &c), 0);
        for (unsigned k = 0; k < REGIONS; k++)
            for (uint64_t at = 0; at < SIZE; at++) {
                uint64_t end = kvf_columns_reach(c, k, at, sorted);

                if ((end > at) != may[k][at])
                    fail_msg("seed %llu round %d: region %u byte %llu",
                             (unsigned long long)seed, round, k,
                             (unsigned long long)at);
                for (uint64_t b = at; b < end; b++)
                    assert_true(may[k][b]);
            }
        kvf_columns_free(c);
    }
}

static char *name_of(int i)
{
    static char names[4][3] = {"l0", "l1", "l2", "l3"};

    return names[i];
}

/* A dense model of four layers, one view each, packed. */
static void dense(struct kvf_side *s, struct kvf_layer *layers,
                  struct kvf_comp *comps, struct kvf_group *group, int64_t tp,
                  int64_t pp)
{
    int64_t page = 8 / tp * 4 * 4;

    *group = (struct kvf_group){true, KVF_FULL, 0};
    comps[0] = (struct kvf_comp){name_of(0), 8, 2};
    comps[1] = (struct kvf_comp){name_of(1), 8, 2};
    *s = (struct kvf_side){.tp = tp,
                           .pp = pp,
                           .bs = 4,
                           .ppl = 1,
                           .nblocks = 4,
                           .kv = KVF_PACKED,
                           .groups = group,
                           .n_groups = 1,
                           .layers = layers,
                           .n_layers = 4};
    for (int i = 0; i < 4; i++) {
        layers[i] = (struct kvf_layer){
            .name = name_of(i), .kind = KVF_ATTN, .n_comps = 2, .comps = comps};
        layers[i].stage = i * pp / 4;
        layers[i].views[KVF_PART_KV] =
            (struct kvf_part_view){true, 0, i * page * 4, page, page};
    }
    assert_int_equal(kvf_side_add_region(s, 0, 0, page * 16), 0);
}

/* Together the ranks of the window give exactly D's pages, each byte once. */
static void test_pairs(void **state)
{
    static const int64_t tps[] = {1, 2, 4, 8};

    (void)state;
    for (unsigned a = 0; a < 4; a++)
        for (unsigned b = 0; b < 4; b++)
            for (int64_t pp = 1; pp <= 2; pp++) {
                struct kvf_layer layers[2][4];
                struct kvf_comp comps[2][2];
                struct kvf_group groups[2];
                struct kvf_side p, d;
                struct kvf_match m;
                int64_t *ranks, bytes = 0, all;
                size_t n;

                dense(&p, layers[0], comps[0], &groups[0], tps[a], pp);
                dense(&d, layers[1], comps[1], &groups[1], tps[b], 1);
                all = 4 * 8 / tps[b] * 4 * 4;
                assert_int_equal(
                    kvf_window_ranks(4, p.tp, p.pp, &d, 0, &ranks, &n), 0);
                for (size_t i = 0; i < n; i++) {
                    struct kvf_refusal no = {0};

                    assert_int_equal(
                        kvf_match_make(&p, ranks[i], &d, 0, &m, &no), 0);
                    assert_non_null(m.t);
                    assert_int_equal(kvf_consumers(&p, &d, ranks[i]) > 0, 1);
                    for (size_t k = 0; k < m.t->n_pieces; k++) {
                        const struct kvf_piece *x = &m.t->pieces[k];

                        assert_int_equal(x->p_rank, ranks[i] % p.tp);
                        bytes += x->run * x->n[0] * x->n[1];
                    }
                    kvf_match_free(&m);
                }
                assert_int_equal(bytes, all);
                free(ranks);
                free(p.regions);
                free(d.regions);
            }
}

static void count_line(void *arg, const char *text)
{
    assert_non_null(strstr(text, "on P"));
    ++*(unsigned *)arg;
}

static void test_differences(void **state)
{
    struct kvf_layer layers[2][4];
    struct kvf_comp comps[2][2];
    struct kvf_group groups[2];
    struct kvf_side p, d;
    struct kvf_refusal no = {0};
    struct kvf_match m;
    unsigned lines = 0;

    (void)state;
    dense(&p, layers[0], comps[0], &groups[0], 2, 1);
    dense(&d, layers[1], comps[1], &groups[1], 2, 1);
    assert_int_equal(kvf_side_diff(&p, &d, 9, count_line, &lines), 0);
    comps[1][1].bytes = 3;
    layers[1][2].name = name_of(3);
    groups[1] = (struct kvf_group){true, KVF_SWA, 9};
    assert_int_equal(kvf_side_diff(&p, &d, 2, count_line, &lines), 6);
    assert_int_equal(lines, 2);
    assert_true(kvf_match_make(&p, 0, &d, 0, &m, &no) < 0);
    assert_int_equal(no.kind, KVF_E_LAYERS);
    kvf_match_free(&m);
    free(p.regions);
    free(d.regions);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reach),
        cmocka_unit_test(test_pairs),
        cmocka_unit_test(test_differences),
    };

    kvf_random_bytes(&seed, sizeof seed);
    if (argc > 1)
        seed = strtoull(argv[1], NULL, 10);
    printf("seed %llu\n", (unsigned long long)seed);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
