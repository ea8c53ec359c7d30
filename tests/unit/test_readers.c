/* Readers that are known by name, as those of published blocks are. */
#include "store_fixture.h"

static const struct kvf_store_conf conf = {
    .max_keys = 10, .max_tombstones = 10, .max_parked = 10, .max_claims = 100};

static int setup(void **state)
{
    struct fx *f = malloc(sizeof *f);

    fx_open(f, &conf);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    fx_close(*state);
    free(*state);
    return 0;
}

static struct kvf_claim *claim_as(struct fx *f, uint64_t kind, uint32_t who,
                                  uint64_t of)
{
    struct kvf_waiter w = {0};
    struct kvf_claim *c;

    assert_int_equal(kvf_store_ask(f->st, "b", 1, &w, false, &c, NULL), 0);
    kvf_claim_consumer(c, kind, who, of);
    return c;
}

static const struct kvf_gen *put_by_name(struct fx *f)
{
    struct kvf_buffer *b = fx_buffer(f, 100);
    struct kvf_seg seg = {.buffer = b, .offset = b->offset, .length = 100};
    struct kvf_put put = {.key = "b",
                          .key_len = 1,
                          .segs = &seg,
                          .n_segs = 1,
                          .ttl_ms = 1000,
                          .by_consumer = true};
    const struct kvf_gen *g;

    assert_int_equal(kvf_store_put(f->st, &put, &g, NULL), 0);
    return g;
}

/* Readers known by name: each counts once, however often it reads and however
 * late its DONE comes; no claim keeps another from being granted. */
static void readers_by_name(void **state)
{
    struct fx *f = *state;
    struct kvf_claim *c, *twin;
    const struct kvf_gen *g = put_by_name(f);
    uint64_t id;

    kvf_store_claims_from(f->st, 1ull << 62);
    /* Another kind of which nobody has read is none. */
    kvf_claim_abort(claim_as(f, 9, 0, 1));
    assert_int_equal(g->readers, 0);
    c = claim_as(f, 1, 0, 3);
    assert_true(c->id >= 1ull << 62);
    twin = claim_as(f, 1, 0, 3);
    fx_check(f);
    kvf_claim_done(c);
    kvf_claim_done(twin);
    kvf_claim_done(claim_as(f, 1, 0, 3));
    assert_int_equal(g->readers_done, 1);
    /* Aborted when its session was lost, and its DONE comes late, and twice. */
    c = claim_as(f, 1, 1, 3);
    id = c->id;
    kvf_claim_abort(c);
    kvf_store_late_done(f->st, id);
    kvf_store_late_done(f->st, id);
    assert_int_equal(g->readers_done, 2);
    c = claim_as(f, 1, 1, 3);
    id = c->id;
    kvf_claim_abort(c);
    kvf_store_late_done(f->st, id); /* rank 1 has been counted */
    assert_int_equal(g->readers_done, 2);
    fx_check(f);
    kvf_claim_done(claim_as(f, 1, 2, 3));
    fx_settle(f);
    assert_int_equal(f->retired[KVF_RETIRE_CONSUMED], 1);
    assert_int_equal(f->last_readers_done, 3);
    fx_all_free(f);
}

/* Two kinds of readers with the same names: neither counts for the other, in
 * whatever order their claims come and end. */
static void kinds_of_readers(void **state)
{
    struct fx *f = *state;
    const struct kvf_gen *g = put_by_name(f);
    struct kvf_claim *a0 = claim_as(f, 1, 0, 2), *b0 = claim_as(f, 2, 0, 4);
    struct kvf_claim *b1;

    assert_int_equal(g->readers, 6);
    kvf_claim_done(a0); /* claimed before the other kind came */
    assert_int_equal(g->readers_done, 1);
    kvf_claim_done(b0); /* the same name, and another reader */
    assert_int_equal(g->readers_done, 2);
    kvf_claim_done(claim_as(f, 1, 1, 2));
    assert_int_equal(g->readers_done, 3);
    assert_false(g->retired); /* the four are not done */
    b1 = claim_as(f, 2, 1, 4);
    kvf_claim_done(claim_as(f, 2, 2, 4));
    kvf_claim_done(claim_as(f, 2, 3, 4));
    assert_false(g->retired);
    fx_check(f);
    kvf_claim_done(b1);
    fx_settle(f);
    assert_int_equal(f->retired[KVF_RETIRE_CONSUMED], 1);
    assert_int_equal(f->last_readers_done, 6);
    fx_all_free(f);
}

/* A kind that only tried holds nothing up once its claims are given back. */
static void a_kind_that_gives_up(void **state)
{
    struct fx *f = *state;
    const struct kvf_gen *g = put_by_name(f);
    struct kvf_claim *other = claim_as(f, 2, 0, 8);

    kvf_claim_done(claim_as(f, 1, 0, 1));
    assert_false(g->retired);
    assert_int_equal(g->readers, 9);
    fx_check(f);
    kvf_claim_abort(other);
    fx_settle(f);
    assert_int_equal(f->retired[KVF_RETIRE_CONSUMED], 1);
    assert_int_equal(f->last_readers_done, 1);
    fx_all_free(f);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(readers_by_name),
        T(kinds_of_readers),
        T(a_kind_that_gives_up),
    };

    return cmocka_run_group_tests_name("readers", tests, NULL, NULL);
}
