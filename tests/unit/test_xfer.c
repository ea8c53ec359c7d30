/* kvf_xfer over the sim transport, in virtual time. */
#include "../lib/sim_transport.h"
#include "base/rng.h"
#include "transport/xfer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#define KIB 1024ull
#define MIB (1024 * KIB)

static struct rig {
    struct kvf_sched sched;
    struct kvf_stats stats;
    struct kvf_sim_plan plan;
    struct kvf_transport *t;
    struct kvf_link link;
    struct kvf_remote remote;
    uint64_t now;
    uint8_t *local;
    bool inside; /* a call into the transfer is on the stack */
} rig;

struct pull {
    struct kvf_xfer x;
    unsigned calls;
    int status;
};

static uint64_t clock_fn(void *arg)
{
    return *(uint64_t *)arg;
}

static void on_done(struct kvf_xfer *x, int status, const struct kvf_why *why)
{
    struct pull *p = kvf_container_of(x, struct pull, x);

    assert_false(rig.inside);
    assert_int_equal(x->pending, 0);
    assert_int_equal(status != 0, why != NULL);
    p->calls++;
    p->status = status;
}

static void rig_open(uint64_t size)
{
    rig = (struct rig){.plan = {.size = size, .delay_ns = 1000}};
    kvf_sched_init(&rig.sched, clock_fn, &rig.now);
    rig.plan.payload = malloc(size);
    rig.local = calloc(1, size);
    for (uint64_t i = 0; i < size; i++)
        rig.plan.payload[i] = (uint8_t)(i * 31 + (i >> 11) + 1);
    assert_int_equal(
        kvf_sim_create(&rig.sched, &rig.stats, &rig.plan, &rig.t, NULL), 0);
    assert_int_equal(kvf_link_open(rig.t, &rig.link, NULL, NULL), 0);
    rig.remote.size = size;
}

static void rig_close(void)
{
    kvf_link_close(&rig.link);
    while (kvf_sched_turn(&rig.sched))
        ;
    kvf_transport_destroy(rig.t);
    kvf_sched_fini(&rig.sched);
    free(rig.plan.payload);
    free(rig.local);
}

/* Runs until nothing is due any more, or `until` turns. */
static void settle(unsigned turns)
{
    for (unsigned i = 0; i < turns; i++) {
        bool more = kvf_sched_turn(&rig.sched);
        uint64_t due = kvf_sched_next_due(&rig.sched);

        if (!more && due == KVF_NEVER)
            return;
        if (!more && due > rig.now)
            rig.now = due;
    }
}

static void start(struct pull *p)
{
    p->calls = 0;
    rig.inside = true;
    kvf_xfer_start(&p->x, &rig.link, &rig.remote);
    rig.inside = false;
}

static void init(struct pull *p, bool write)
{
    struct iovec v = {rig.local, rig.plan.size};

    assert_int_equal(kvf_xfer_init(&p->x, &rig.sched, write, rig.plan.size, &v,
                                   1, on_done, NULL),
                     0);
}

static void assert_same(void)
{
    assert_memory_equal(rig.local, rig.plan.payload, rig.plan.size);
}

static void sizes(void **state)
{
    static const uint64_t all[] = {
        1, 4095, 4097, 256 * KIB, MIB + 1, 16 * MIB - 1, 17 * MIB + 5};
    (void)state;
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
        struct pull p;

        rig_open(all[i]);
        init(&p, false);
        start(&p);
        settle(100000);
        assert_int_equal(p.calls, 1);
        assert_int_equal(p.status, 0);
        assert_int_equal(rig.plan.bytes, all[i]);
        assert_same();
        /* Everything is in place: done(0) again, no byte moved. */
        start(&p);
        settle(100);
        assert_int_equal(p.calls, 1);
        assert_int_equal(rig.plan.bytes, all[i]);
        kvf_xfer_fini(&p.x);
        kvf_xfer_fini(&p.x);
        rig_close();
    }
}

/* Local memory in pieces of 1 to `max` bytes. */
static unsigned scatter(struct kvf_rng *r, uint64_t size, uint64_t max,
                        struct iovec **out)
{
    struct iovec *v = calloc(size + 1, sizeof *v);
    unsigned n = 0;

    for (uint64_t at = 0; at < size; n++) {
        uint64_t len = kvf_rng_below(r, max + 1); /* 0 too */

        if (len > size - at)
            len = size - at;
        v[n] = (struct iovec){rig.local + at, len};
        at += len;
    }
    *out = v;
    return n;
}

static void scattered_with_errors(void **state)
{
    uint64_t seed = 7;
    struct kvf_rng r;

    (void)state;
    print_message("seed %llu\n", (unsigned long long)seed);
    kvf_rng_seed(&r, seed);
    for (unsigned round = 0; round < 20; round++) {
        struct iovec *v;
        struct pull p;
        unsigned n, attempts = 0;

        rig_open(600 * KIB + kvf_rng_below(&r, 300 * KIB));
        n = scatter(&r, rig.plan.size, 8000, &v);
        rig.plan.chunk = 1 + kvf_rng_below(&r, 300 * KIB);
        rig.plan.depth = 1 + (unsigned)kvf_rng_below(&r, 5);
        assert_int_equal(kvf_xfer_init(&p.x, &rig.sched, false, rig.plan.size,
                                       v, n, on_done, NULL),
                         0);
        do {
            rig.plan.fail_nth =
                rig.plan.posted + 1 + (unsigned)kvf_rng_below(&r, 12);
            if (attempts > 40)
                rig.plan.fail_nth = 0;
            start(&p);
            settle(100000);
            assert_int_equal(p.calls, 1);
        } while (p.status != 0 && ++attempts < 50);
        assert_int_equal(p.status, 0);
        assert_same();
        kvf_xfer_fini(&p.x);
        free(v);
        rig_close();
    }
}

static void resume_moves_only_what_is_missing(void **state)
{
    struct pull p;
    uint64_t first;

    (void)state;
    rig_open(20 * MIB);
    rig.plan.depth = 1;
    rig.plan.cut_nth = 12;
    init(&p, false);
    start(&p);
    settle(100000);
    assert_int_equal(p.status, -KVF_TRANSPORT);
    assert_int_equal(p.x.bytes_done, 11 * MIB);
    kvf_link_close(&rig.link);
    first = rig.plan.bytes;
    assert_int_equal(kvf_link_open(rig.t, &rig.link, NULL, NULL), 0);
    start(&p);
    settle(100000);
    assert_int_equal(p.status, 0);
    assert_int_equal(rig.plan.bytes - first, 9 * MIB);
    assert_int_equal(p.x.bytes_moved_now, 9 * MIB);
    assert_same();
    kvf_xfer_fini(&p.x);
    rig_close();
}

static void cancel_at_any_moment(void **state)
{
    (void)state;
    for (unsigned turns = 0; turns < 60; turns++) {
        struct pull p;

        rig_open(2 * MIB);
        rig.plan.chunk = 512 * KIB;
        init(&p, false);
        start(&p);
        settle(turns);
        if (p.calls == 0) {
            rig.inside = true;
            kvf_xfer_cancel(&p.x);
            rig.inside = false;
        }
        settle(1000);
        assert_int_equal(p.calls, 1);
        assert_true(p.status == -KVF_CANCELLED || p.status == 0);
        if (p.status == 0)
            assert_same();
        kvf_xfer_fini(&p.x);
        rig_close();
    }
}

static void stuck_op_ends_by_cancel_and_close(void **state)
{
    (void)state;
    for (unsigned close = 0; close < 2; close++) {
        struct pull p;

        rig_open(8 * MIB);
        rig.plan.stuck_nth = 3;
        init(&p, false);
        start(&p);
        settle(1000);
        assert_int_equal(p.calls, 0);
        rig.inside = true;
        if (close)
            kvf_link_close(&rig.link);
        else
            kvf_xfer_cancel(&p.x);
        rig.inside = false;
        settle(1000);
        assert_int_equal(p.calls, 1);
        assert_true(p.status < 0);
        kvf_xfer_fini(&p.x);
        rig_close();
    }
}

static void refused_post_fails_the_attempt(void **state)
{
    struct pull p;

    (void)state;
    rig_open(8 * MIB);
    rig.plan.refuse_nth = 2;
    init(&p, false);
    start(&p);
    settle(1000);
    assert_int_equal(p.calls, 1);
    assert_int_equal(p.status, -KVF_MISMATCH);
    rig.remote.size--;
    start(&p);
    settle(1000);
    assert_int_equal(p.status, -KVF_MISMATCH);
    kvf_xfer_fini(&p.x);
    rig_close();
}

static void no_room_takes_turns(void **state)
{
    struct pull p[5];
    uint64_t least, most;

    (void)state;
    rig_open(4 * MIB);
    rig.plan.room = 1;
    rig.plan.chunk = 256 * KIB;
    for (unsigned i = 0; i < 5; i++) {
        init(&p[i], false);
        start(&p[i]);
    }
    for (unsigned n = 0; n < 400; n++) {
        settle(1);
        least = UINT64_MAX;
        most = 0;
        for (unsigned i = 0; i < 5; i++) {
            if (p[i].x.bytes_done < least)
                least = p[i].x.bytes_done;
            if (p[i].x.bytes_done > most)
                most = p[i].x.bytes_done;
        }
        assert_true(most - least <= 512 * KIB);
    }
    settle(10000);
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(p[i].calls, 1);
        assert_int_equal(p[i].status, 0);
        kvf_xfer_fini(&p[i].x);
    }
    assert_same();
    rig_close();
}

static void waiting_for_room_ends_with_the_link(void **state)
{
    struct pull p[3];

    (void)state;
    rig_open(4 * MIB);
    rig.plan.room = 1;
    rig.plan.stuck_nth = 1;
    for (unsigned i = 0; i < 3; i++) {
        init(&p[i], false);
        start(&p[i]);
    }
    settle(100);
    rig.inside = true;
    kvf_xfer_cancel(&p[2].x);
    rig.inside = false;
    settle(100);
    assert_int_equal(p[2].calls, 1);
    assert_int_equal(p[1].calls, 0);
    rig.inside = true;
    kvf_link_close(&rig.link);
    rig.inside = false;
    settle(100);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(p[i].calls, 1);
        assert_true(p[i].status < 0);
        kvf_xfer_fini(&p[i].x);
    }
    rig_close();
}

static void writes(void **state)
{
    struct pull p;

    (void)state;
    rig_open(3 * MIB + 3);
    for (uint64_t i = 0; i < rig.plan.size; i++)
        rig.local[i] = (uint8_t)(i * 7);
    init(&p, true);
    start(&p);
    settle(1000);
    assert_int_equal(p.status, 0);
    assert_same();
    kvf_xfer_fini(&p.x);
    rig_close();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes),
        cmocka_unit_test(scattered_with_errors),
        cmocka_unit_test(resume_moves_only_what_is_missing),
        cmocka_unit_test(cancel_at_any_moment),
        cmocka_unit_test(stuck_op_ends_by_cancel_and_close),
        cmocka_unit_test(refused_post_fails_the_attempt),
        cmocka_unit_test(no_room_takes_turns),
        cmocka_unit_test(waiting_for_room_ends_with_the_link),
        cmocka_unit_test(writes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
