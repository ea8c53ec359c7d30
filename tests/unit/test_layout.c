/* The planner's parts alone: shares, refusals, merging, batches. Whole plans
 * are judged byte by byte by tests/layout. */
#include "layout/case.h"
#include "kvferry/status.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

/* HND, packed, 4 heads of 2 + 2 bytes, blocks of 4 tokens, P tp 1, D tp 2. */
static const char small[] =
    "KVCASE 1\nid t\nn_tokens 6\n"
    "side P tp 1 pp 1 bs 4 ppl 1 nblocks 8 order HND kv packed shared 0 "
    "ngroups 1 nlayers 1\n"
    "group P 0 full 0\nlayer P 0 l0 0 0 attn 2 k 4 2 v 4 2\n"
    "region P 0 0 512\nview P 0 0 kv 0 0 64 64\n"
    "side D tp 2 pp 1 bs 4 ppl 1 nblocks 8 order HND kv packed shared 0 "
    "ngroups 1 nlayers 1\n"
    "group D 0 full 0\nlayer D 0 l0 0 0 attn 2 k 4 2 v 4 2\n"
    "region D 0 0 256\nview D 0 0 kv 0 0 32 32\n"
    "blocks P 0 0 2 3 1\nblocks D 0 0 2 2 5\nend\n";

/* `small` with one text in place of another, read. */
static int read_with(const char *from, const char *to, struct kvf_case *c,
                     struct kvf_refusal *no)
{
    char text[1024];
    const char *at = strstr(small, from);

    assert_non_null(at);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - small), small, to,
             at + strlen(from));
    return kvf_case_parse(text, strlen(text), c, no);
}

/* The kind of the refusal, KVF_E_NONE when there is a plan. */
static enum kvf_refuse kind_with(const char *from, const char *to)
{
    struct kvf_refusal no = {0};
    struct kvf_case c;
    int rc = read_with(from, to, &c, &no);

    if (rc < 0)
        return no.kind;
    rc = kvf_case_check(&c, &no);
    kvf_case_free(&c);
    assert_int_equal(rc < 0, no.kind != KVF_E_NONE);
    return no.kind;
}

static void test_shares(void **state)
{
    struct kvf_span s;
    int64_t p;

    (void)state;
    s = kvf_own(8, 4, 1);
    assert_true(s.lo == 2 && s.hi == 4);
    s = kvf_own(2, 8, 5);
    assert_true(s.lo == 1 && s.hi == 2);
    s = kvf_window(2, 3, 1);
    assert_true(s.lo == 0 && s.hi == 2);
    assert_true(kvf_own_legal(6, 3) && kvf_own_legal(1, 7));
    assert_false(kvf_own_legal(6, 4));
    assert_false(kvf_own_legal(4, 6));
    /* 6 heads, 2 P ranks, D rank 1 of 3 has 2 and 3: one from each */
    s = kvf_own_source(6, 2, kvf_window(2, 3, 1), kvf_own(6, 3, 1), 2, &p);
    assert_true(s.lo == 2 && s.hi == 3 && p == 0);
    s = kvf_own_source(6, 2, kvf_window(2, 3, 1), kvf_own(6, 3, 1), 3, &p);
    assert_true(s.lo == 3 && s.hi == 4 && p == 1);
}

/* The window always holds an owner: the lemma, tp 1 to 24 on both sides. */
static void test_window_suffices(void **state)
{
    (void)state;
    for (int64_t a = 1; a <= 24; a++)
        for (int64_t b = 1; b <= 24; b++)
            for (int64_t u = 1; u <= 48; u++) {
                if (!kvf_own_legal(u, a) || !kvf_own_legal(u, b))
                    continue;
                for (int64_t d = 0; d < b; d++) {
                    struct kvf_span win = kvf_window(a, b, d);
                    struct kvf_span own = kvf_own(u, b, d);

                    for (int64_t h = own.lo; h < own.hi; h++) {
                        struct kvf_span has;
                        int64_t p;

                        kvf_own_source(u, a, win, own, h, &p);
                        has = kvf_own(u, a, p);
                        assert_true(p >= win.lo && p < win.hi);
                        assert_true(has.lo <= h && h < has.hi);
                    }
                }
            }
}

struct row {
    const char *from, *to;
    enum kvf_refuse kind;
};

static void rows_hold(const struct row *v, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        enum kvf_refuse got = kind_with(v[i].from, v[i].to);

        if (got != v[i].kind)
            fail_msg("%s: %s instead of %s", v[i].to, kvf_refuse_name(got),
                     kvf_refuse_name(v[i].kind));
    }
}

#define ROWS_HOLD(rows) rows_hold(rows, sizeof(rows) / sizeof *(rows))

static void test_refusals(void **state)
{
    static const struct row rows[] = {
        {"id t", "id u", KVF_E_NONE},
        {"P tp 1", "P tp 0", KVF_E_TP},
        {"order HND", "order ABC", KVF_E_LAYOUT},
        {"KVCASE 1", "KVCASE 2", KVF_E_LAYOUT},
        {"\nend", "\n", KVF_E_LAYOUT},
        {"layer D 0 l0", "layer D 0 l1", KVF_E_LAYERS},
        {"layer D 0 l0 0", "layer D 0 l0 1", KVF_E_LAYERS},
        {"group D 0 full", "group D 0 swa", KVF_E_GROUPS},
        {"view D 0 0 kv 0 0 32 32", "view D 0 0 kv 0 0 32 31", KVF_E_GEOMETRY},
        {"view D 0 0 kv 0 0 32 32", "view D 0 0 k 0 0 32 32", KVF_E_GEOMETRY},
        {"D tp 2", "D tp 3", KVF_E_HEADS},
        {"D tp 2 pp 1 bs 4", "D tp 2 pp 1 bs 3", KVF_E_BLOCK_SIZE},
        {"kv 0 0 32 32", "kv 0 0 31 32", KVF_E_STRIDE},
        {"kv 0 0 32 32", "kv 0 9223372036854775800 32 32", KVF_E_OVERFLOW},
        {"kv 0 0 32 32", "kv 0 99999999999999999999999 32 32", KVF_E_OVERFLOW},
        {"kv 0 0 32 32", "kv 0 1 32 32", KVF_E_REGION},
        {"kv 0 0 32 32", "kv 1 0 32 32", KVF_E_REGION},
        {"2 5\nend", "2 8\nend", KVF_E_BLOCK_RANGE},
        {"2 5\nend", "2 -1\nend", KVF_E_BLOCK_RANGE},
        {"2 5\nend", "2 2\nend", KVF_E_BLOCK_DUP},
        {"D 0 0 2 2 5", "D 0 0 1 2", KVF_E_LOCAL_SHORT},
        {"P 0 0 2 3 1", "P 0 0 1 3", KVF_E_BLOCKS_SHORT},
        {"P 0 0 2 3 1", "P 0 1 2 3 1", KVF_E_BLOCKS_SHORT},
        {"P 0 0 2 3 1", "P 0 0 3 3 1 2", KVF_E_NONE},
        {"P 0 0 2 3 1", "P 0 9223372036854775807 2 3 1", KVF_E_OVERFLOW},
    };

    (void)state;
    ROWS_HOLD(rows);
}

/* The same descriptors whatever the size of the batches. */
static void test_batches(void **state)
{
    struct kvf_desc all[64], one[64];
    struct kvf_plan_iter it;
    struct kvf_plan plan = {0};
    struct kvf_template *t;
    struct kvf_request r;
    struct kvf_case c;
    size_t n, k;

    (void)state;
    /* NHD on D: a run per token and head; ids ascend, so runs touch */
    assert_int_equal(read_with("bs 4 ppl 1 nblocks 8 order HND kv packed "
                               "shared 0 ngroups 1 nlayers 1\ngroup D",
                               "bs 4 ppl 1 nblocks 8 order NHD kv packed "
                               "shared 0 ngroups 1 nlayers 1\ngroup D",
                               &c, NULL),
                     0);
    r = (struct kvf_request){c.n_tokens, {c.ids[0], c.ids[1]}};
    assert_int_equal(kvf_template_make(&c.side[0], &c.side[1], 1, &t, NULL), 0);
    assert_int_equal(kvf_plan_make(&plan, t, &r, NULL), 0);
    kvf_plan_begin(&it, &plan);
    n = kvf_plan_next(&it, all, 64);
    assert_int_equal(n, 16);
    for (size_t cap = 1; cap < 8; cap++) {
        kvf_plan_begin(&it, &plan);
        for (k = 0; k < n;) {
            size_t got = kvf_plan_next(&it, one + k, cap);

            assert_in_range(got, 1, cap);
            k += got;
        }
        assert_int_equal(kvf_plan_next(&it, one, cap), 0);
        assert_memory_equal(one, all, n * sizeof *all);
    }
    kvf_plan_free(&plan);
    kvf_template_free(t);
    kvf_case_free(&c);
}

static void test_coalesce(void **state)
{
    struct kvf_desc v[] = {
        {0, 0, 40, 0, 20, 10}, {1, 0, 30, 0, 30, 10}, {0, 0, 20, 0, 0, 10},
        {0, 0, 30, 0, 10, 10}, {0, 0, 60, 0, 30, 10}, {0, 0, 70, 1, 40, 10},
    };

    (void)state;
    assert_int_equal(kvf_desc_coalesce(v, 6), 4);
    assert_true(v[0].p_off == 20 && v[0].d_off == 0 && v[0].len == 30);
    assert_true(v[1].p_off == 60 && v[1].d_off == 30 && v[1].len == 10);
    assert_true(v[2].d_region == 1 && v[3].p_rank == 1);
}

/* What a line has and what the sides have: the first in the order, wherever it
 * is in the text. */
static void test_order_of_lines(void **state)
{
    static const struct row v[] = {
        {"view P 0 0 kv 0 0", "view P 0 0 no 0 0", KVF_E_GEOMETRY},
        {"view P 0 0 kv 0 0", "view P 0 9 kv 0 0", KVF_E_LAYERS},
        {"view P 0 0 kv 0 0", "view P 1 0 kv 0 0", KVF_E_GEOMETRY},
        {"group P 0 full 0", "group P 7 full 0", KVF_E_GROUPS},
        {"blocks P 0", "blocks P 3", KVF_E_GROUPS},
        {"blocks P 0", "blocks P -1", KVF_E_GROUPS},
        {"layer P 0 l0", "layer P 1 l0", KVF_E_LAYERS},
        /* two at once */
        {"side P tp 1", "side P tp 0", KVF_E_TP},
        {"order HND kv packed shared 0 ngroups 1 nlayers 1\ngroup P 0",
         "order XXX kv packed shared 0 ngroups 1 nlayers 1\ngroup P 5",
         KVF_E_LAYOUT},
        {"0 0 attn 2 k 4 2 v 4 2\nregion P 0 0 512\nview P 0 0 kv 0 0",
         "0 4 attn 2 k 4 2 v 4 2\nregion P 0 0 512\nview P 0 0 no 0 0",
         KVF_E_GROUPS},
        {"blocks P 0 0 2 3 1", "blocks P 0 99999999999999999999 2 3 99",
         KVF_E_OVERFLOW},
        {"blocks P 0 0 2 3 1", "blocks P 0 0 2 3 99999999999999999999",
         KVF_E_BLOCK_RANGE},
        /* what is no case at all */
        {"side P tp 1", "side P tp 1 tp 1", KVF_E_LAYOUT},
        {"kv packed shared", "kv packed kv packed shared", KVF_E_LAYOUT},
        {"n_tokens 6\n", "n_tokens 6\nn_tokens 6\n", KVF_E_LAYOUT},
        {"n_tokens 6\n", "n_tokens 6 6\n", KVF_E_LAYOUT},
        {"n_tokens 6\n", "", KVF_E_LAYOUT},
        {"n_tokens 6\n", "n_tokens six\n", KVF_E_LAYOUT},
        {"blocks P 0 0 2 3 1", "blocks P 0 0 2 3", KVF_E_LAYOUT},
        {"blocks P 0 0 2 3 1", "blocks P 0 0 2 3 1 1", KVF_E_LAYOUT},
        /* none */
        {"n_tokens 6\n", "n_tokens 6\r\n\t \r\n", KVF_E_NONE},
        {"blocks D 0 0 2 2 5\nend\n", "blocks D 0 0 2 2 5\nend", KVF_E_NONE},
        {"blocks D 0 0 2 2 5", "blocks D 0 0 0", KVF_E_NONE},
    };

    (void)state;
    ROWS_HOLD(v);
}

/* The last byte that 63 bits can name may be used; the one behind it not. */
static void test_borders(void **state)
{
    static const struct row v[] = {
        {"region D 0 0 256\nview D 0 0 kv 0 0 32 32",
         "region D 0 0 9223372036854775807\n"
         "view D 0 0 kv 0 9223372036854775551 32 32",
         KVF_E_NONE},
        {"region D 0 0 256\nview D 0 0 kv 0 0 32 32",
         "region D 0 0 9223372036854775807\n"
         "view D 0 0 kv 0 9223372036854775552 32 32",
         KVF_E_OVERFLOW},
        {"region D 0 0 256", "region D 0 0 9223372036854775808",
         KVF_E_OVERFLOW},
        {"blocks D 0 0 2 2 5", "blocks D 0 2305843009213693949 2 2 5",
         KVF_E_NONE},
        {"blocks D 0 0 2 2 5", "blocks D 0 2305843009213693951 2 2 5",
         KVF_E_OVERFLOW},
        {"n_tokens 6\n", "n_tokens 9223372036854775807\n", KVF_E_LOCAL_SHORT},
        {"n_tokens 6\n", "n_tokens 9223372036854775808\n", KVF_E_OVERFLOW},
        {"nblocks 8 order HND kv packed shared 0 ngroups 1 nlayers 1\n"
         "group D",
         "nblocks 9223372036854775807 order HND kv packed shared 0 ngroups 1 "
         "nlayers 1\ngroup D",
         KVF_E_OVERFLOW},
    };

    (void)state;
    ROWS_HOLD(v);
}

/* Two layers on the same bytes of D: one would write over the other. */
static void test_overlap(void **state)
{
    char text[1024];
    struct kvf_refusal no = {0};
    struct kvf_case c;

    (void)state;
    for (int step = 0; step <= 32; step++) {
        int n = 0;

        n += snprintf(text, sizeof text, "KVCASE 1\nn_tokens 1\n");
        for (int s = 0; s < 2; s++)
            n += snprintf(text + n, sizeof text - (size_t)n,
                          "side %c tp 1 pp 1 bs 4 ppl 1 nblocks 3 order HND "
                          "kv packed shared 0 ngroups 1 nlayers 2\n"
                          "group %c 0 full 0\nlayer %c 0 a 0 0 mla 1 k 1 4\n"
                          "layer %c 1 b 0 0 mla 1 k 1 4\nregion %c 0 0 999\n"
                          "view %c 0 0 lat 0 0 48 16\n"
                          "view %c 0 1 lat 0 %d 48 16\n",
                          "PD"[s], "PD"[s], "PD"[s], "PD"[s], "PD"[s], "PD"[s],
                          "PD"[s], step);
        snprintf(text + n, sizeof text - (size_t)n, "end\n");
        assert_int_equal(kvf_case_parse(text, strlen(text), &c, &no), 0);
        assert_int_equal(kvf_pair_check(&c.side[0], &c.side[1], &no),
                         step < 16 ? -KVF_MISMATCH : 0);
        kvf_case_free(&c);
    }
}

/* Every prefix of a case is refused, none is a crash. */
static void test_prefixes(void **state)
{
    struct kvf_refusal no;
    struct kvf_case c;

    (void)state;
    for (size_t n = 0; n + 2 < sizeof small; n++)
        assert_true(kvf_case_parse(small, n > 4 ? n - 4 : 0, &c, &no) < 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shares),   cmocka_unit_test(test_window_suffices),
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_batches),
        cmocka_unit_test(test_coalesce), cmocka_unit_test(test_overlap),
        cmocka_unit_test(test_prefixes), cmocka_unit_test(test_order_of_lines),
        cmocka_unit_test(test_borders),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
