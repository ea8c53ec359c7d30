/* The rules of the store, one by one. test_store_model.c tries them all
 * together. */
#include "store_fixture.h"

#include <sys/mman.h>
#include <unistd.h>

static const struct kvf_store_conf conf = {.max_keys = 20000,
                                           .max_tombstones = 20000,
                                           .max_parked = 20000,
                                           .max_claims = 20000};

struct asker {
    struct kvf_waiter w;
    struct kvf_claim *claim;
    enum kvf_status status;
    unsigned answers, order;
    char text[256];
};

static unsigned answer_order;

static void answered(struct kvf_waiter *w, struct kvf_claim *claim,
                     enum kvf_status status, const char *text)
{
    struct asker *a = kvf_container_of(w, struct asker, w);

    assert_null(w->key);
    a->claim = claim;
    a->status = status;
    a->answers++;
    a->order = ++answer_order;
    snprintf(a->text, sizeof a->text, "%s", text);
}

static int ask(struct fx *f, const char *key, struct asker *a,
               uint64_t generation, bool wait, struct kvf_why *why)
{
    *a = (struct asker){.w = {.answer = answered,
                              .has_generation = generation != 0,
                              .generation = generation}};
    return kvf_store_ask(f->st, key, strlen(key), &a->w, wait, &a->claim, why);
}

static struct kvf_claim *claim(struct fx *f, const char *key)
{
    struct asker a;

    assert_int_equal(ask(f, key, &a, 0, false, NULL), 0);
    return a.claim;
}

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

static char retire_line[512];

static void tap(void *arg, const char *line)
{
    (void)arg;
    if (strstr(line, "[KVF RETIRE]") != NULL)
        snprintf(retire_line, sizeof retire_line, "%s", line);
}

static void readers_consume(void **state)
{
    struct fx *f = *state;
    const struct kvf_gen *g = fx_put(f, "a", 2, 500);
    struct kvf_claim *c1 = claim(f, "a"), *c2 = claim(f, "a");
    struct kvf_why why;
    struct asker a;

    assert_int_equal(g->generation, 100);
    assert_true(c2->id > c1->id);
    assert_int_not_equal(memcmp(&c1->token, &c2->token, KVF_ID_LEN), 0);
    assert_int_equal(ask(f, "a", &a, 0, false, &why), -KVF_BUSY);
    kvf_claim_done(c1);
    assert_int_equal(ask(f, "a", &a, 0, false, &why), -KVF_BUSY);
    assert_ptr_equal(kvf_store_live(f->st, "a", 1), g);
    kvf_log_tap(tap, NULL);
    f->now_ns += 35 * KVF_NS_PER_MS;
    kvf_sched_stamp(&f->sched);
    kvf_claim_done(c2);
    kvf_log_tap(NULL, NULL);
    assert_non_null(strstr(retire_line, "[KVF RETIRE] key=a gen=100 "
                                        "reason=consumed readers_done=2 "
                                        "age_ms=35"));
    assert_int_equal(f->retired[KVF_RETIRE_CONSUMED], 0); /* not from inside */
    fx_all_free(f);
    fx_pass(f, 7);
    assert_int_equal(f->retired[KVF_RETIRE_CONSUMED], 1);
    assert_int_equal(f->last_readers_done, 2);
    assert_int_equal(ask(f, "a", &a, 0, true, &why), -KVF_CONSUMED);
    assert_string_equal(why.text, "consumed by all 2 readers 7 ms ago");
    fx_pass(f, 499);
    assert_int_equal(ask(f, "a", &a, 0, false, &why), -KVF_NOT_FOUND);
}

static void parked_in_order_and_no_overtaking(void **state)
{
    struct fx *f = *state;
    struct asker a[4], late;
    const struct kvf_gen *g;

    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(ask(f, "k", &a[i], 0, true, NULL), KVF_STORE_PARKED);
    g = fx_put(f, "k", 2, 1000);
    assert_int_equal(g->n_claims, 2); /* reserved, not told yet */
    assert_int_equal(a[0].answers, 0);
    assert_int_equal(ask(f, "k", &late, 0, false, NULL), -KVF_BUSY);
    /* The second gives up before it was told: the third gets its reader. */
    kvf_store_unask(f->st, &a[1].w);
    kvf_store_unask(f->st, &a[1].w);
    fx_settle(f);
    assert_int_equal(a[1].answers, 0);
    assert_int_equal(a[0].answers, 1);
    assert_int_equal(a[2].answers, 1);
    assert_true(a[0].order < a[2].order);
    assert_non_null(a[0].claim);
    kvf_claim_abort(a[0].claim);
    fx_settle(f);
    assert_int_equal(a[3].answers, 1);
    assert_ptr_equal(a[3].claim->gen, g);
    assert_int_equal(ask(f, "k", &late, 0, true, NULL), KVF_STORE_PARKED);
    kvf_claim_done(a[2].claim);
    kvf_claim_done(a[3].claim);
    fx_settle(f);
    assert_int_equal(late.status, KVF_CONSUMED);
    assert_null(late.claim);
    fx_all_free(f);
}

static void generations(void **state)
{
    struct fx *f = *state;
    struct asker a, b, c;
    struct kvf_claim *old;
    struct kvf_why why;

    fx_put(f, "g", 0, 1000);
    assert_int_equal(ask(f, "g", &a, 99, true, &why), -KVF_STALE);
    assert_int_equal(ask(f, "g", &a, 101, false, &why), -KVF_NOT_FOUND);
    assert_int_equal(ask(f, "g", &a, 101, true, &why), KVF_STORE_PARKED);
    assert_int_equal(ask(f, "g", &b, 102, true, &why), KVF_STORE_PARKED);
    old = claim(f, "g");
    fx_put(f, "other", 1, 1000); /* takes generation 101 */
    fx_put(f, "g", 0, 1000);
    fx_settle(f);
    assert_int_equal(a.status, KVF_STALE);
    assert_int_equal(b.answers, 1);
    assert_int_equal(b.claim->gen->generation, 102);
    /* The old generation is read to its end, then reported. */
    assert_int_equal(f->retired[KVF_RETIRE_REPLACED], 0);
    assert_int_equal(old->gen->generation, 100);
    kvf_claim_done(old);
    fx_settle(f);
    assert_int_equal(f->retired[KVF_RETIRE_REPLACED], 1);
    assert_int_equal(f->last_generation, 100);
    kvf_claim_done(b.claim);
    fx_pass(f, 1000);
    assert_int_equal(f->retired[KVF_RETIRE_EXPIRED], 2);
    assert_int_equal(ask(f, "g", &c, 102, true, &why), -KVF_EXPIRED);
    assert_string_equal(why.text, "expired 0 ms ago (ttl 1000 ms)");
    assert_int_equal(ask(f, "g", &c, 103, true, &why), KVF_STORE_PARKED);
    kvf_store_unask(f->st, &c.w);
}

static void memory_waits_for_io(void **state)
{
    struct fx *f = *state;
    struct kvf_buffer_gauges g;
    struct kvf_claim *c;

    fx_put(f, "m", 1, 10);
    kvf_buffers_gauges(f->bufs, &g);
    assert_int_equal(g.published, 4096);
    c = claim(f, "m");
    kvf_buffers_gauges(f->bufs, &g);
    assert_int_equal(g.claimed, 4096);
    kvf_claim_io_begin(c);
    kvf_claim_io_begin(c);
    kvf_claim_done(c);
    assert_null(kvf_claim_find(f->st, c->id));
    kvf_claim_done(c);  /* again: nothing */
    kvf_claim_abort(c); /* nor that */
    fx_pass(f, 100);
    kvf_buffers_gauges(f->bufs, &g);
    assert_int_equal(g.draining, 4096);
    assert_int_equal(f->retired[KVF_RETIRE_CONSUMED], 0);
    kvf_claim_io_end(c);
    fx_settle(f);
    kvf_buffers_gauges(f->bufs, &g);
    assert_int_equal(g.draining, 4096);
    kvf_claim_io_end(c);
    fx_all_free(f);
    fx_settle(f);
    assert_int_equal(f->retired[KVF_RETIRE_CONSUMED], 1);
}

static void fail_marks_and_put_lifts(void **state)
{
    struct fx *f = *state;
    struct kvf_store_gauges g;
    struct asker a, b;
    struct kvf_why why;
    char reason[400];

    assert_int_equal(ask(f, "f", &a, 0, true, &why), KVF_STORE_PARKED);
    assert_int_equal(ask(f, "f", &b, 100, true, &why), KVF_STORE_PARKED);
    assert_int_equal(kvf_store_fail(f->st, "f", 1, "no luck", 7, 50, &why), 0);
    fx_settle(f);
    assert_int_equal(a.status, KVF_FAILED);
    assert_string_equal(a.text, "no luck");
    assert_int_equal(b.answers, 0); /* wants one that is still to come */
    fx_put(f, "f", 1, 1000);
    fx_settle(f);
    assert_int_equal(b.answers, 1);
    memset(reason, 'x', sizeof reason);
    memcpy(reason + 199, "\xc3\xa9", 2); /* must not be cut in half */
    assert_int_equal(
        kvf_store_fail(f->st, "f", 1, reason, sizeof reason, 50, &why), 0);
    assert_int_equal(ask(f, "f", &a, 0, true, &why), -KVF_FAILED);
    assert_int_equal(strlen(why.text), 199);
    kvf_claim_done(b.claim);
    fx_settle(f);
    assert_int_equal(f->retired[KVF_RETIRE_FAILED], 1);
    fx_pass(f, 50);
    kvf_store_gauges(f->st, &g);
    assert_int_equal(g.tombstones, 0);
    assert_int_equal(g.keys, 0);
}

static void late_done_counts_once(void **state)
{
    struct fx *f = *state;
    struct kvf_claim *c;
    uint64_t first, id;

    fx_put(f, "l", 2, 1000);
    c = claim(f, "l");
    first = c->id;
    kvf_claim_abort(c);
    for (unsigned i = 0; i < 4095; i++)
        kvf_claim_abort(claim(f, "l"));
    kvf_store_late_done(f->st, first);
    kvf_store_late_done(f->st, first);
    kvf_store_late_done(f->st, first + 1000000);
    assert_int_equal(kvf_store_live(f->st, "l", 1)->readers_done, 1);
    for (unsigned i = 0; i < 4096; i++)
        kvf_claim_abort(claim(f, "l"));
    kvf_store_late_done(f->st, first + 4095); /* pushed out of the ring */
    assert_int_equal(kvf_store_live(f->st, "l", 1)->readers_done, 1);
    c = claim(f, "l");
    id = first + 4096;
    kvf_store_late_done(f->st, id); /* the last reader is claimed */
    assert_int_equal(kvf_store_live(f->st, "l", 1)->readers_done, 1);
    kvf_claim_abort(c);
    kvf_store_late_done(f->st, id + 1);
    assert_null(kvf_store_live(f->st, "l", 1));
    fx_settle(f);
    assert_int_equal(f->retired[KVF_RETIRE_CONSUMED], 1);
}

struct rows {
    unsigned n, stop;
    char text[256];
};

static bool row(void *arg, const struct kvf_key_info *info)
{
    struct rows *r = arg;
    size_t at = strlen(r->text);

    snprintf(r->text + at, sizeof r->text - at, "%.*s=%s ", (int)info->key_len,
             info->key, info->state);
    return ++r->n != r->stop;
}

static void cleanup_and_list(void **state)
{
    struct fx *f = *state;
    struct rows r = {0}, one = {.stop = 1};
    struct kvf_claim *c;
    struct asker a, b;

    fx_put(f, "r1:1_2", 1, 1000);
    fx_put(f, "r1:0_1", 1, 1000);
    fx_put(f, "r10:0_1", 1, 1000);
    fx_put(f, "r", 1, 1000);
    kvf_store_fail(f->st, "r1:2_3", 6, "x", 1, 1000, NULL);
    assert_int_equal(ask(f, "r1:7_8", &a, 0, true, NULL), KVF_STORE_PARKED);
    assert_int_equal(ask(f, "r1:7_9", &b, 999, true, NULL), KVF_STORE_PARKED);
    c = claim(f, "r1:0_1");
    kvf_store_list(f->st, "r1:", 3, row, &r);
    assert_string_equal(r.text,
                        "r1:0_1=published r1:1_2=published r1:2_3=failed ");
    kvf_store_list(f->st, "", 0, row, &one);
    assert_string_equal(one.text, "r=published ");
    assert_int_equal(kvf_store_cleanup(f->st, "r1", 2, true, 7, 8), 0);
    assert_int_equal(kvf_store_cleanup(f->st, "r1", 2, true, 1, 2), 1);
    fx_settle(f);
    assert_int_equal(a.status, KVF_CANCELLED);
    assert_int_equal(b.answers, 0);
    assert_int_equal(kvf_store_cleanup(f->st, "r1", 2, false, 0, 0), 1);
    fx_settle(f);
    assert_int_equal(b.status, KVF_CANCELLED);
    r = (struct rows){0};
    kvf_store_list(f->st, "r1", 2, row, &r);
    assert_string_equal(r.text, "r10:0_1=published r1:0_1=draining ");
    kvf_claim_done(c);
    fx_settle(f);
    assert_int_equal(f->retired[KVF_RETIRE_CLEANUP], 2);
}

static void segments_and_regions(void **state)
{
    struct fx *f = *state;
    struct kvf_buffer *b = fx_buffer(f, 8192);
    int fd = memfd_create("test", MFD_CLOEXEC);
    struct kvf_map_cache *mc = kvf_map_cache_create(0);
    struct kvf_mapping *m;
    struct kvf_region *r;
    struct kvf_seg segs[3];
    struct kvf_put put = {.key = "s",
                          .key_len = 1,
                          .segs = segs,
                          .n_segs = 3,
                          .meta = "hello",
                          .meta_len = 5,
                          .readers = 1,
                          .ttl_ms = 100};
    struct iovec iov[3];
    struct kvf_claim *c;
    const struct kvf_gen *g;
    unsigned n = 3;

    assert_int_equal(ftruncate(fd, 4096), 0);
    assert_int_equal(kvf_map_fd(mc, fd, 4096, true, &m, NULL), 0);
    assert_int_equal(kvf_region_add(f->bufs, m, 4096, f, &r, NULL), 0);
    segs[0] = (struct kvf_seg){.buffer = b, .offset = b->offset, .length = 10};
    segs[1] = (struct kvf_seg){.region = r, .offset = 50, .length = 20};
    segs[2] =
        (struct kvf_seg){.buffer = b, .offset = b->offset + 4096, .length = 30};
    assert_int_equal(kvf_store_put(f->st, &put, &g, NULL), 0);
    assert_int_equal(g->size, 60);
    assert_memory_equal(g->meta, "hello", 5);
    assert_int_equal(r->pins, 1);
    assert_null(b->owner);
    assert_int_equal(kvf_store_put(f->st, &put, &g, NULL), -KVF_INVALID);
    c = claim(f, "s");
    assert_int_equal(r->pins, 2);
    assert_int_equal(b->pins, 1);
    assert_int_equal(kvf_claim_iov(c, 5, 30, iov, &n, NULL), 0);
    assert_int_equal(n, 3);
    assert_ptr_equal(iov[0].iov_base, kvf_buffer_ptr(b) + 5);
    assert_int_equal(iov[0].iov_len, 5);
    assert_ptr_equal(iov[1].iov_base, m->base + 50);
    assert_int_equal(iov[1].iov_len, 20);
    assert_ptr_equal(iov[2].iov_base, kvf_buffer_ptr(b) + 4096);
    assert_int_equal(iov[2].iov_len, 5);
    n = 1;
    assert_int_equal(kvf_claim_iov(c, 30, 30, iov, &n, NULL), 0);
    assert_int_equal(n, 1);
    assert_int_equal(iov[0].iov_len, 30);
    n = 1;
    assert_int_equal(kvf_claim_iov(c, 60, 0, iov, &n, NULL), 0);
    assert_int_equal(n, 0);
    assert_int_equal(kvf_claim_iov(c, 31, 30, iov, &n, NULL), -KVF_INVALID);
    assert_int_equal(kvf_claim_iov(c, 1, UINT64_MAX, iov, &n, NULL),
                     -KVF_INVALID);
    kvf_claim_done(c);
    assert_int_equal(r->pins, 0);
    fx_settle(f);
    kvf_region_retire(r);
    kvf_map_cache_destroy(mc);
}

static void bounds(void **state)
{
    struct fx *f = *state;
    const struct kvf_store_conf small = {
        .max_keys = 1, .max_tombstones = 2, .max_parked = 1, .max_claims = 1};
    struct kvf_buffer *b = fx_buffer(f, 100);
    struct kvf_seg seg = {.buffer = b, .offset = b->offset, .length = 100};
    struct kvf_put put = {.key = "y",
                          .key_len = 1,
                          .segs = &seg,
                          .n_segs = 1,
                          .ttl_ms = UINT64_MAX};
    struct asker a, p;

    kvf_store_configure(f->st, &small);
    fx_put(f, "x", 0, UINT64_MAX);
    assert_int_equal(kvf_store_put(f->st, &put, NULL, NULL), -KVF_BUSY);
    assert_int_equal(b->state, KVF_BUF_FILLING);
    put.key = "x";
    put.reject_duplicate = true;
    assert_int_equal(kvf_store_put(f->st, &put, NULL, NULL), -KVF_EXISTS);
    put.reject_duplicate = false;
    assert_int_equal(kvf_store_put(f->st, &put, NULL, NULL), 0);
    claim(f, "x");
    assert_int_equal(ask(f, "x", &a, 0, true, NULL), -KVF_BUSY);
    assert_int_equal(ask(f, "z", &p, 0, true, NULL), KVF_STORE_PARKED);
    assert_int_equal(ask(f, "z", &a, 0, true, NULL), -KVF_BUSY);
    kvf_store_unask(f->st, &p.w);
    for (const char *k = "123"; *k != '\0'; k++)
        assert_int_equal(kvf_store_fail(f->st, k, 1, "x", 1, 9, NULL), 0);
    assert_int_equal(ask(f, "1", &a, 0, false, NULL), -KVF_NOT_FOUND);
    assert_int_equal(ask(f, "2", &a, 0, false, NULL), -KVF_FAILED);
    assert_int_equal(ask(f, "3", &a, 0, false, NULL), -KVF_FAILED);
    fx_check(f);
    /* Teardown destroys the store with a live generation and a claim. */
}

#define MANY 10000u

static void many_waiters(void **state)
{
    struct fx *f = *state;
    struct asker *a = calloc(MANY, sizeof *a);
    struct kvf_store_gauges g;
    char key[32];

    for (unsigned i = 0; i < MANY; i++)
        assert_int_equal(ask(f, "one", &a[i], 0, true, NULL), KVF_STORE_PARKED);
    fx_put(f, "one", 0, 1000);
    kvf_sched_turn(&f->sched); /* bounded work in one turn */
    assert_int_equal(a[MANY - 1].answers, 0);
    fx_settle(f);
    for (unsigned i = 0; i < MANY; i++) {
        assert_int_equal(a[i].answers, 1);
        assert_true(i == 0 || a[i].order == a[i - 1].order + 1);
        kvf_claim_done(a[i].claim);
    }
    for (unsigned i = 0; i < MANY; i++) {
        snprintf(key, sizeof key, "many:%u_1", i);
        assert_int_equal(ask(f, key, &a[i], 0, true, NULL), KVF_STORE_PARKED);
    }
    fx_check(f);
    assert_int_equal(kvf_sched_next_due(&f->sched),
                     f->now_ns + 1000 * KVF_NS_PER_MS); /* no timer of theirs */
    assert_int_equal(kvf_store_cleanup(f->st, "many", 4, false, 0, 0), 0);
    while (kvf_sched_turn(&f->sched))
        ;
    for (unsigned i = 0; i < MANY; i++)
        assert_int_equal(a[i].status, KVF_CANCELLED);
    kvf_store_gauges(f->st, &g);
    assert_int_equal(g.keys, 1);
    free(a);
}

/* A drain: who waits for a put is told, who waits for a reader waits on. */
static void closed_for_puts(void **state)
{
    struct fx *f = *state;
    struct asker none, reader, newer, late;
    struct kvf_claim *c;
    struct kvf_why why;

    fx_put(f, "k", 1, 1000);
    c = claim(f, "k");
    assert_int_equal(ask(f, "none", &none, 0, true, &why), KVF_STORE_PARKED);
    assert_int_equal(ask(f, "k", &reader, 0, true, &why), KVF_STORE_PARKED);
    assert_int_equal(ask(f, "k", &newer, 101, true, &why), KVF_STORE_PARKED);
    kvf_store_close(f->st);
    assert_int_equal(none.answers, 0); /* not from inside */
    fx_settle(f);
    assert_int_equal(none.status, KVF_SHUTTING_DOWN);
    assert_int_equal(newer.status, KVF_SHUTTING_DOWN);
    assert_int_equal(reader.answers, 0);
    assert_int_equal(ask(f, "none", &late, 0, true, &why), -KVF_SHUTTING_DOWN);
    assert_int_equal(ask(f, "none", &late, 0, false, &why), -KVF_NOT_FOUND);
    kvf_claim_abort(c);
    fx_settle(f);
    assert_non_null(reader.claim);
    kvf_claim_done(reader.claim);
    assert_int_equal(ask(f, "k", &late, 0, true, &why), -KVF_CONSUMED);
    assert_int_equal(ask(f, "k", &late, 101, true, &why), -KVF_SHUTTING_DOWN);
    fx_settle(f);
    fx_all_free(f);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(readers_consume),
        T(parked_in_order_and_no_overtaking),
        T(generations),
        T(memory_waits_for_io),
        T(fail_marks_and_put_lifts),
        T(late_done_counts_once),
        T(cleanup_and_list),
        T(segments_and_regions),
        T(bounds),
        T(many_waiters),
        T(closed_for_puts),
    };

    return cmocka_run_group_tests_name("store", tests, NULL, NULL);
}
