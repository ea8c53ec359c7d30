/* What every transport must do, run against each of them. */
#include "rig.h"

#include <string.h>

static void pull_all(struct rig *r, struct pull *p)
{
    pull_start(p, &r->link);
    rig_until(r, &p->calls, 20000);
    assert_int_equal(p->status, 0);
    assert_memory_equal(p->mem, r->payload, r->size);
}

static void sizes(enum rig_kind kind)
{
    static const uint64_t all[] = {1, 4095, 4096, 4097, MIB + 1, 64 * MIB};
    uint64_t most = rig_most(kind, UINT64_MAX, UINT64_MAX, 8 * MIB);

    for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
        struct rig r;
        struct pull p;

        if (all[i] > most)
            continue;
        rig_open(&r, kind, all[i]);
        pull_init(&p, &r, false);
        pull_all(&r, &p);
        assert_int_equal(r.ups, 1);
        assert_int_equal(r.downs, 0);
        pull_end(&p);
        rig_close(&r);
    }
}

static void scattered(enum rig_kind kind)
{
    struct kvf_rng rng;
    uint64_t seed = 11;

    print_message("%s: seed %llu\n", rig_names[kind], (unsigned long long)seed);
    kvf_rng_seed(&rng, seed);
    for (uint64_t max = 300; max < 2 * MIB; max *= 20) {
        struct rig r;
        struct pull p;

        rig_open(&r, kind, 3 * MIB + 11);
        pull_init_scattered(&p, &r, &rng, max);
        pull_all(&r, &p);
        pull_end(&p);
        rig_close(&r);
    }
}

/* Many at once: all end, and none runs far ahead of the others. */
static void concurrent(enum rig_kind kind)
{
    struct rig r;
    struct pull p[8];
    unsigned first = 0;
    uint64_t ahead;

    rig_open(&r, kind, rig_most(kind, 24 * MIB, 24 * MIB, 12 * MIB));
    for (unsigned i = 0; i < 8; i++) {
        pull_init(&p[i], &r, false);
        pull_start(&p[i], &r.link);
    }
    while (first == 0) {
        rig_turns(&r, 1);
        for (unsigned i = 0; i < 8; i++)
            first |= p[i].calls;
    }
    /* One may be ahead by what it has posted, and a part of that. */
    ahead = 2 * r.t->ops->depth(&r.link, r.size) * r.t->ops->chunk(&r.link);
    for (unsigned i = 0; i < 8; i++)
        if (p[i].x.bytes_done + ahead < r.size)
            fail_msg("%s: number %u has only %llu bytes", rig_names[kind], i,
                     (unsigned long long)p[i].x.bytes_done);
    for (unsigned i = 0; i < 8; i++) {
        rig_until(&r, &p[i].calls, 20000);
        assert_int_equal(p[i].status, 0);
        assert_memory_equal(p[i].mem, r.payload, r.size);
        pull_end(&p[i]);
    }
    rig_close(&r);
}

static void assert_untouched(struct rig *r, struct pull *p)
{
    uint8_t *copy = malloc(r->size);

    for (uint64_t i = 0; i < r->size; i += 512)
        p->mem[i] ^= 0xff; /* ours again */
    memcpy(copy, p->mem, r->size);
    rig_turns(r, 50);
    assert_memory_equal(copy, p->mem, r->size);
    free(copy);
}

/* Ends a transfer at some moment, by cancel or by closing the link. */
static void ended(enum rig_kind kind, bool close)
{
    struct kvf_rng rng;

    kvf_rng_seed(&rng, 5);
    for (unsigned round = 0; round < rig_most(kind, 12, 6, 12); round++) {
        struct rig r;
        struct pull p, other;

        rig_open(&r, kind, 6 * MIB + 3);
        pull_init(&p, &r, false);
        pull_init(&other, &r, false);
        pull_start(&other, &r.link);
        pull_start(&p, &r.link);
        rig_turns(&r, (unsigned)kvf_rng_below(&rng, 30));
        r.inside = true;
        if (close)
            kvf_link_close(&r.link);
        else
            kvf_xfer_cancel(&p.x);
        r.inside = false;
        rig_until(&r, &p.calls, 1000);
        assert_int_equal(p.calls, 1);
        assert_true(p.status <= 0);
        assert_untouched(&r, &p);
        rig_until(&r, &other.calls, 20000);
        assert_true(close || other.status == 0);
        if (close)
            assert_int_equal(rig_link(&r, &r.link), 0);
        /* Resumes on a second link or the same; what was moved stays. */
        if (other.status != 0)
            pull_all(&r, &other);
        pull_end(&p);
        pull_end(&other);
        rig_close(&r);
    }
}

static void cancelled(enum rig_kind kind)
{
    ended(kind, false);
}

static void closed(enum rig_kind kind)
{
    ended(kind, true);
}

static void resumed(enum rig_kind kind)
{
    struct rig r;
    struct pull p;
    uint64_t had;

    rig_open(&r, kind, rig_most(kind, 48 * MIB, 16 * MIB, 8 * MIB));
    pull_init(&p, &r, false);
    pull_start(&p, &r.link);
    while (p.x.bytes_done == 0)
        rig_turns(&r, 1);
    kvf_link_close(&r.link);
    rig_until(&r, &p.calls, 1000);
    assert_true(p.status < 0);
    had = p.x.bytes_done;
    assert_true(had > 0);
    assert_int_equal(rig_link(&r, &r.link), 0);
    pull_all(&r, &p);
    /* Chunks of which only a part came are moved again. */
    assert_int_equal(p.x.bytes_moved_now, r.size - had);
    pull_end(&p);
    rig_close(&r);
}

static void written(enum rig_kind kind)
{
    struct rig r;
    struct pull p, back;

    rig_open(&r, kind, 5 * MIB + 7);
    pull_init(&p, &r, true);
    for (uint64_t i = 0; i < r.size; i++)
        p.mem[i] = (uint8_t)(i * 13 + 5);
    pull_init(&back, &r, false);
    pull_start(&p, &r.link);
    rig_until(&r, &p.calls, 20000);
    assert_int_equal(p.status, 0);
    assert_memory_equal(p.mem, r.payload, r.size);
    pull_all(&r, &back);
    pull_end(&p);
    pull_end(&back);
    rig_close(&r);
}

/* A write that is cancelled at some moment ends, and the link goes on. What was
 * sent of it may come late, but not over a write with a claim asked for since.
 */
static void write_cancelled(enum rig_kind kind)
{
    for (unsigned turns = 0; turns < 16; turns++) {
        struct rig r;
        struct pull p, next;

        rig_open(&r, kind, 3 * MIB + 1);
        pull_init(&p, &r, true);
        pull_init(&next, &r, true);
        memset(p.mem, 0x11, r.size);
        memset(next.mem, 0x22, r.size);
        rig_until(&r, &r.ups, 1000);
        pull_start(&p, &r.link);
        rig_turns(&r, turns);
        r.inside = true;
        kvf_xfer_cancel(&p.x);
        r.inside = false;
        rig_until(&r, &p.calls, 3000);
        assert_true(p.status == 0 || p.status == -KVF_CANCELLED);
        memset(p.mem, 0x33, r.size); /* ours again: must not arrive */
        rig_claim_again(&r);
        pull_start(&next, &r.link);
        rig_until(&r, &next.calls, 3000);
        assert_int_equal(next.status, 0);
        assert_memory_equal(next.mem, r.payload, r.size);
        assert_int_equal(r.downs, 0);
        pull_end(&p);
        pull_end(&next);
        rig_close(&r);
    }
}

struct post {
    struct kvf_transfer_op op;
    unsigned calls;
    uint8_t byte;
};

static void post_done(struct kvf_transfer_op *op, int status,
                      const struct kvf_why *why)
{
    struct post *p = kvf_container_of(op, struct post, op);

    (void)status;
    (void)why;
    p->calls++;
}

/* BUSY promises on_room, and every op that was taken comes back. */
static void no_room(enum rig_kind kind)
{
    struct post *p = calloc(4096, sizeof *p);
    struct rig r;
    unsigned n = 0;
    int rc = 0;

    rig_open(&r, kind, 4096);
    rig_register(&r, p, 4096 * sizeof *p);
    r.sim.room = 10;
    for (; n < 4096 && rc == 0; n++) {
        p[n].op = (struct kvf_transfer_op){.remote = &r.remote,
                                           .offset = n,
                                           .length = 1,
                                           .iov = {{&p[n].byte, 1}},
                                           .n_iov = 1,
                                           .done = post_done};
        r.inside = true;
        rc = kvf_link_post(&r.link, &p[n].op, NULL);
        r.inside = false;
    }
    assert_int_equal(rc, -KVF_BUSY);
    n--;
    rig_until(&r, &r.rooms, 5000);
    for (unsigned i = 0; i < n; i++) {
        rig_until(&r, &p[i].calls, 5000);
        assert_int_equal(p[i].calls, 1);
        assert_int_equal(p[i].byte, r.payload[i]);
    }
    p[0].op.offset = 4096; /* outside */
    assert_int_equal(kvf_link_post(&r.link, &p[0].op, NULL), -KVF_INVALID);
    rig_unregister(&r, p);
    free(p);
    rig_close(&r);
}

static void run(void **state, void (*fn)(enum rig_kind))
{
    (void)state;
    for (unsigned k = 0; k < RIG_KINDS; k++)
        if (rig_has((enum rig_kind)k))
            fn((enum rig_kind)k);
}

#define CASE(name)                                                             \
    static void test_##name(void **state)                                      \
    {                                                                          \
        run(state, name);                                                      \
    }
CASE(sizes)
CASE(scattered)
CASE(concurrent)
CASE(cancelled)
CASE(closed)
CASE(resumed)
CASE(written)
CASE(write_cancelled)
CASE(no_room)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_scattered),
        cmocka_unit_test(test_concurrent),
        cmocka_unit_test(test_cancelled),
        cmocka_unit_test(test_closed),
        cmocka_unit_test(test_resumed),
        cmocka_unit_test(test_written),
        cmocka_unit_test(test_write_cancelled),
        cmocka_unit_test(test_no_room),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
