/* The pool allocator against a naive first fit: same places, hence the same
 * fragmentation; refusals; accounting; and how the work grows. */
#include "base/rng.h"
#include "memory/pool.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define PAGE KVF_POOL_ALIGN
#define PAGES 2048u
#define LIVE_MAX 512
#define SEEDS 20
#define START (3 * PAGE)

/* The model: one byte a page, scanned from the front. */
struct model {
    uint8_t used[PAGES];
};

static long model_alloc(struct model *m, unsigned pages)
{
    unsigned run = 0;

    for (unsigned i = 0; i < PAGES; i++) {
        run = m->used[i] ? 0 : run + 1;
        if (run == pages) {
            memset(m->used + i + 1 - pages, 1, pages);
            return (long)(i + 1 - pages);
        }
    }
    return -1;
}

static void model_measure(const struct model *m, uint64_t *free_pages,
                          uint64_t *largest, uint64_t *extents)
{
    uint64_t run = 0;

    *free_pages = *largest = *extents = 0;
    for (unsigned i = 0; i < PAGES; i++) {
        if (m->used[i]) {
            run = 0;
            continue;
        }
        ++*free_pages;
        if (run++ == 0)
            ++*extents;
        if (run > *largest)
            *largest = run;
    }
}

struct piece {
    uint64_t offset, size;
};

static void assert_sound(const struct kvf_pool *p)
{
    struct kvf_why why = {0};

    if (kvf_pool_check(p, &why) != 0)
        fail_msg("%s", why.text);
}

static void assert_same(const struct kvf_pool *p, const struct model *m)
{
    uint64_t free_pages, largest, extents;

    model_measure(m, &free_pages, &largest, &extents);
    assert_int_equal(kvf_pool_bytes_free(p), free_pages * PAGE);
    assert_int_equal(kvf_pool_largest_free(p), largest * PAGE);
    assert_int_equal(kvf_pool_extents(p), extents);
    assert_sound(p);
}

static void try_alloc(struct kvf_pool *p, struct model *m, struct kvf_rng *rng,
                      struct piece *live, unsigned *n)
{
    unsigned big = kvf_rng_below(rng, 8) == 0;
    uint64_t size = 1 + kvf_rng_below(rng, (big ? 200 : 12) * PAGE);
    unsigned pages = (unsigned)((size + PAGE - 1) / PAGE);
    long want = model_alloc(m, pages);
    uint64_t offset = 0;
    int rc = kvf_pool_alloc(p, size, &offset, NULL);

    if (want < 0) {
        assert_int_equal(rc, -KVF_NO_SPACE);
        return;
    }
    assert_int_equal(rc, 0);
    assert_int_equal(offset, START + (uint64_t)want * PAGE);
    live[*n] = (struct piece){offset, size};
    ++*n;
}

static void do_free(struct kvf_pool *p, struct model *m, struct piece *live,
                    unsigned *n, unsigned i)
{
    assert_int_equal(kvf_pool_free(p, live[i].offset, live[i].size), 0);
    memset(m->used + (live[i].offset - START) / PAGE, 0,
           (live[i].size + PAGE - 1) / PAGE);
    live[i] = live[--*n];
}

static int by_value(const void *a, const void *b)
{
    const unsigned *x = a, *y = b;

    return (*x > *y) - (*x < *y);
}

/* One random trace; the medians over it of largest_free / free, permille. */
static void run_trace(uint64_t seed, unsigned *ours, unsigned *model_s)
{
    enum { STEPS = 3000, EVERY = 7 };
    static unsigned a[STEPS / EVERY + 1], b[STEPS / EVERY + 1];
    struct piece live[LIVE_MAX];
    struct model m = {0};
    struct kvf_rng rng;
    unsigned n = 0, samples = 0;
    struct kvf_pool *p = kvf_pool_create(START, START + PAGES * PAGE, NULL);

    assert_non_null(p);
    kvf_rng_seed(&rng, seed);
    for (int i = 0; i < STEPS; i++) {
        if (n < LIVE_MAX && (n == 0 || kvf_rng_below(&rng, 100) < 53))
            try_alloc(p, &m, &rng, live, &n);
        else
            do_free(p, &m, live, &n, (unsigned)kvf_rng_below(&rng, n));
        if (i % EVERY == 0) {
            uint64_t f, l, e;

            assert_same(p, &m);
            model_measure(&m, &f, &l, &e);
            if (f > 0) {
                a[samples] = (unsigned)(kvf_pool_largest_free(p) * 1000 /
                                        kvf_pool_bytes_free(p));
                b[samples++] = (unsigned)(l * 1000 / f);
            }
        }
    }
    qsort(a, samples, sizeof a[0], by_value);
    qsort(b, samples, sizeof b[0], by_value);
    *ours = a[samples / 2];
    *model_s = b[samples / 2];
    while (n > 0)
        do_free(p, &m, live, &n, (unsigned)kvf_rng_below(&rng, n));
    assert_same(p, &m);
    assert_int_equal(kvf_pool_bytes_free(p), PAGES * PAGE);
    assert_int_equal(kvf_pool_extents(p), 1);
    kvf_pool_destroy(p);
}

static void same_as_first_fit(void **state)
{
    unsigned a[SEEDS], b[SEEDS];

    (void)state;
    for (unsigned i = 0; i < SEEDS; i++)
        run_trace(1000 + i, &a[i], &b[i]);
    qsort(a, SEEDS, sizeof a[0], by_value);
    qsort(b, SEEDS, sizeof b[0], by_value);
    printf("seeds 1000..%u: median largest_free/free: pool %u, naive first fit "
           "%u permille\n",
           1000 + SEEDS - 1, a[SEEDS / 2], b[SEEDS / 2]);
    assert_int_equal(a[SEEDS / 2], b[SEEDS / 2]);
}

static void refuses_what_is_free(void **state)
{
    struct kvf_pool *p = kvf_pool_create(0, 64 * PAGE, NULL);
    uint64_t a, b, c;

    (void)state;
    assert_int_equal(kvf_pool_alloc(p, 4 * PAGE, &a, NULL), 0);
    assert_int_equal(kvf_pool_alloc(p, 4 * PAGE, &b, NULL), 0);
    assert_int_equal(kvf_pool_alloc(p, 4 * PAGE, &c, NULL), 0);
    assert_int_equal(kvf_pool_free(p, b, 4 * PAGE), 0);
    assert_int_equal(kvf_pool_free(p, b, 4 * PAGE), -KVF_INTERNAL);
    assert_int_equal(kvf_pool_free(p, b + PAGE, PAGE), -KVF_INTERNAL);
    assert_int_equal(kvf_pool_free(p, a, 5 * PAGE), -KVF_INTERNAL);
    assert_int_equal(kvf_pool_free(p, b + 3 * PAGE, 5 * PAGE), -KVF_INTERNAL);
    assert_int_equal(kvf_pool_free(p, c, 5 * PAGE), -KVF_INTERNAL);
    assert_int_equal(kvf_pool_free(p, a + 1, PAGE), -KVF_INTERNAL);
    assert_int_equal(kvf_pool_free(p, a, 0), -KVF_INTERNAL);
    assert_int_equal(kvf_pool_free(p, 64 * PAGE, PAGE), -KVF_INTERNAL);
    assert_int_equal(kvf_pool_free(p, a, UINT64_MAX), -KVF_INTERNAL);
    assert_int_equal(kvf_pool_bytes_free(p), 56 * PAGE);
    assert_sound(p);
    assert_int_equal(kvf_pool_free(p, a, 4 * PAGE), 0);
    assert_int_equal(kvf_pool_free(p, c, 4 * PAGE), 0);
    assert_int_equal(kvf_pool_extents(p), 1);
    assert_sound(p);
    kvf_pool_destroy(p);
}

static void names_the_reason(void **state)
{
    struct kvf_pool *p = kvf_pool_create(1, 16 * PAGE + 5, NULL);
    struct kvf_why why = {0};
    uint64_t off = 77;

    (void)state;
    assert_int_equal(kvf_pool_size(p), 15 * PAGE); /* rounded inwards */
    assert_int_equal(kvf_pool_alloc(p, 0, &off, &why), -KVF_INVALID);
    assert_int_equal(kvf_pool_alloc(p, 16 * PAGE, &off, &why), -KVF_TOO_LARGE);
    assert_int_equal(kvf_pool_alloc(p, UINT64_MAX, &off, &why), -KVF_TOO_LARGE);
    assert_int_equal(off, 77);
    assert_int_equal(kvf_pool_alloc(p, 15 * PAGE - 1, &off, &why), 0);
    assert_int_equal(off, PAGE);
    assert_int_equal(kvf_pool_largest_free(p), 0);
    assert_int_equal(kvf_pool_alloc(p, 1, &off, &why), -KVF_NO_SPACE);
    assert_non_null(strstr(why.text, "needed=4096"));
    assert_non_null(strstr(why.text, "free=0"));
    assert_non_null(strstr(why.text, "largest_free=0"));
    kvf_pool_destroy(p);
    assert_null(kvf_pool_create(PAGE + 1, 2 * PAGE, &why));
    assert_int_equal(why.status, KVF_INVALID);
    assert_null(kvf_pool_create(UINT64_MAX, UINT64_MAX, &why));
}

/* Nodes visited by one alloc and one free in a pool of `holes` free holes. */
static uint64_t steps_with_holes(unsigned holes)
{
    struct kvf_pool *p = kvf_pool_create(0, (2 * holes + 8) * PAGE, NULL);
    uint64_t off, before;

    for (unsigned i = 0; i < 2 * holes; i++)
        assert_int_equal(kvf_pool_alloc(p, PAGE, &off, NULL), 0);
    for (unsigned i = 0; i < holes; i++)
        assert_int_equal(kvf_pool_free(p, (2 * i) * PAGE, PAGE), 0);
    assert_sound(p);
    before = kvf_pool_steps(p);
    assert_int_equal(kvf_pool_alloc(p, 2 * PAGE, &off, NULL), 0);
    assert_int_equal(kvf_pool_free(p, off, 2 * PAGE), 0);
    before = kvf_pool_steps(p) - before;
    kvf_pool_destroy(p);
    return before;
}

static void grows_with_the_logarithm(void **state)
{
    uint64_t small = steps_with_holes(64), large = steps_with_holes(65536);

    (void)state;
    printf(
        "steps of an alloc and a free: %llu with 64 holes, %llu with 65536\n",
        (unsigned long long)small, (unsigned long long)large);
    assert_true(large <= 4 * 30); /* 4 walks, AVL height <= 1.45 log2 */
    assert_true(large <= 4 * small);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_as_first_fit),
        cmocka_unit_test(refuses_what_is_free),
        cmocka_unit_test(names_the_reason),
        cmocka_unit_test(grows_with_the_logarithm),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
