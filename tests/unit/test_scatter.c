/* kvf_scatter over the sim transport, in virtual time. */
#include "../lib/run_source.h"
#include "../lib/sim_transport.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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
    bool inside; /* a call into the transfer is on the stack */
} rig;

struct pull {
    struct kvf_scatter x;
    struct run_source s;
    unsigned calls;
    int status;
};

static uint64_t clock_fn(void *arg)
{
    return *(uint64_t *)arg;
}

static void on_done(struct kvf_scatter *x, int status,
                    const struct kvf_why *why)
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
}

/* Runs until nothing is due any more, or `turns` turns. */
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

static void init(struct pull *p, struct kvf_rng *r, uint64_t max, bool write)
{
    *p = (struct pull){0};
    run_source_init(&p->s, r, rig.plan.size, max);
    kvf_scatter_init(&p->x, &rig.sched, write, &p->s.src, p->s.bytes, on_done);
}

static void start(struct pull *p)
{
    p->calls = 0;
    rig.inside = true;
    kvf_scatter_start(&p->x, &rig.link, &rig.remote);
    rig.inside = false;
}

static void end(struct pull *p)
{
    kvf_scatter_fini(&p->x);
    kvf_scatter_fini(&p->x);
    run_source_free(&p->s);
}

static void assert_all(struct pull *p)
{
    assert_int_equal(p->calls, 1);
    assert_int_equal(p->status, 0);
    assert_int_equal(p->x.bytes_done, p->s.bytes);
    assert_int_equal(p->x.runs_done, p->s.n_real);
    run_source_check(&p->s, rig.plan.payload);
}

static void sizes(void **state)
{
    static const uint64_t all[] = {1,         300,     4097,
                                   256 * KIB, MIB + 1, 17 * MIB + 5};
    struct kvf_rng r;

    (void)state;
    kvf_rng_seed(&r, 3);
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
        for (uint64_t max = 50; max < 100 * MIB; max *= 60) {
            struct pull p;

            rig_open(all[i]);
            init(&p, &r, max, false);
            start(&p);
            settle(100000);
            assert_all(&p);
            assert_int_equal(rig.plan.bytes, p.s.bytes);
            /* Everything is in place: done(0) again, no byte moved. */
            start(&p);
            settle(100);
            assert_all(&p);
            assert_int_equal(rig.plan.bytes, p.s.bytes);
            assert_int_equal(p.x.bytes_moved_now, 0);
            kvf_scatter_reset(&p.x);
            start(&p);
            settle(100000);
            assert_all(&p);
            assert_int_equal(rig.plan.bytes, 2 * p.s.bytes);
            end(&p);
            rig_close();
        }
}

/* Runs far larger than a batch, and batches that end by the number of runs. */
static void batches(void **state)
{
    struct kvf_run one = {0, 5 * MIB + 1, NULL};
    struct pull p = {0};
    unsigned tiny = 3 * KVF_OP_RUNS + 1;

    (void)state;
    rig_open(5 * MIB + 1);
    p.s.local = malloc(5 * MIB + 1);
    one.local = p.s.local;
    p.s.v = malloc(tiny * sizeof one);
    p.s.v[0] = one;
    p.s.n = 1;
    kvf_rng_seed(&p.s.rng, 1);
    {
        struct run_source any;
        struct kvf_rng r;

        kvf_rng_seed(&r, 1);
        run_source_init(&any, &r, 10, 10);
        p.s.src = any.src;
        p.s.src.arg = &p.s;
        run_source_free(&any);
    }
    kvf_scatter_init(&p.x, &rig.sched, false, &p.s.src, 0, on_done);
    start(&p);
    settle(100000);
    assert_int_equal(p.status, 0);
    assert_int_equal(p.x.posts, 6);
    assert_int_equal(p.x.runs_done, 1);
    assert_memory_equal(p.s.local, rig.plan.payload, 5 * MIB + 1);
    kvf_scatter_fini(&p.x);

    for (unsigned i = 0; i < tiny; i++)
        p.s.v[i] = (struct kvf_run){i * 7, 3, p.s.local + i * 5};
    p.s.n = tiny;
    kvf_scatter_init(&p.x, &rig.sched, false, &p.s.src, 0, on_done);
    start(&p);
    settle(100000);
    assert_int_equal(p.status, 0);
    assert_int_equal(p.x.posts, 4);
    assert_int_equal(p.x.runs_done, tiny);
    end(&p);
    rig_close();
}

static void nothing_to_move(void **state)
{
    struct pull p = {0};
    struct kvf_rng r;

    (void)state;
    rig_open(1000);
    kvf_rng_seed(&r, 1);
    init(&p, &r, 100, false);
    for (size_t i = 0; i < p.s.n; i++)
        p.s.v[i].length = 0;
    start(&p);
    assert_int_equal(p.calls, 0);
    settle(100);
    assert_int_equal(p.calls, 1);
    assert_int_equal(p.status, 0);
    p.s.n = 0;
    start(&p);
    settle(100);
    assert_int_equal(p.calls, 1);
    assert_int_equal(p.status, 0);
    assert_int_equal(rig.plan.posted, 0);
    end(&p);
    rig_close();
}

/* Every attempt fails somewhere; the last one does not. */
static void faults(void **state)
{
    uint64_t seed = 17;
    struct kvf_rng r;

    (void)state;
    print_message("seed %llu\n", (unsigned long long)seed);
    kvf_rng_seed(&r, seed);
    for (unsigned round = 0; round < 60; round++) {
        unsigned attempts = 0;
        uint64_t before = 0;
        struct pull p;

        rig_open(500 * KIB + kvf_rng_below(&r, 3 * MIB));
        init(&p, &r, 1 + kvf_rng_below(&r, round % 2 != 0 ? 900 : 40000),
             false);
        rig.plan.depth = 1 + (unsigned)kvf_rng_below(&r, 5);
        rig.plan.room = (unsigned)kvf_rng_below(&r, 4);
        do {
            unsigned n = rig.plan.posted + 1 + (unsigned)kvf_rng_below(&r, 6);

            rig.plan.fail_nth = round % 3 == 0 && attempts < 40 ? n : 0;
            rig.plan.cut_nth = round % 3 == 1 && attempts < 40 ? n : 0;
            rig.plan.refuse_nth = round % 3 == 2 && attempts < 40 ? n : 0;
            start(&p);
            settle(100000);
            assert_int_equal(p.calls, 1);
            assert_true(p.x.bytes_done >= before);
            before = p.x.bytes_done;
            if (rig.link.state == KVF_LINK_DOWN) {
                kvf_link_close(&rig.link);
                assert_int_equal(kvf_link_open(rig.t, &rig.link, NULL, NULL),
                                 0);
            }
        } while (p.status != 0 && ++attempts < 50);
        assert_all(&p);
        end(&p);
        rig_close();
    }
}

static void resume_moves_only_what_is_missing(void **state)
{
    struct kvf_rng r;
    struct pull p;
    uint64_t had, first;

    (void)state;
    rig_open(20 * MIB);
    kvf_rng_seed(&r, 9);
    init(&p, &r, 16 * KIB, false);
    assert_true(p.s.bytes > 16 * MIB); /* batches are large ones */
    rig.plan.depth = 1;
    rig.plan.cut_nth = 12;
    start(&p);
    settle(100000);
    assert_int_equal(p.status, -KVF_TRANSPORT);
    had = p.x.bytes_done;
    assert_int_equal(had, 11 * MIB);
    kvf_link_close(&rig.link);
    first = rig.plan.bytes;
    assert_int_equal(kvf_link_open(rig.t, &rig.link, NULL, NULL), 0);
    start(&p);
    settle(100000);
    assert_all(&p);
    assert_int_equal(rig.plan.bytes - first, p.s.bytes - had);
    assert_int_equal(p.x.bytes_moved_now, p.s.bytes - had);
    end(&p);
    rig_close();
}

static void cancel_or_close_at_any_moment(void **state)
{
    struct kvf_rng r;

    (void)state;
    kvf_rng_seed(&r, 2);
    for (unsigned turns = 0; turns < 120; turns++) {
        struct pull p;

        rig_open(4 * MIB);
        init(&p, &r, 8 * KIB, false);
        rig.plan.room = turns % 3;
        start(&p);
        settle(turns / 2);
        if (p.calls == 0) {
            rig.inside = true;
            if (turns % 2 != 0)
                kvf_scatter_cancel(&p.x);
            else
                kvf_link_close(&rig.link);
            rig.inside = false;
        }
        settle(1000);
        assert_int_equal(p.calls, 1);
        assert_true(p.status <= 0);
        if (p.status == 0)
            assert_all(&p);
        if (rig.link.impl == NULL)
            assert_int_equal(kvf_link_open(rig.t, &rig.link, NULL, NULL), 0);
        start(&p);
        settle(1000);
        assert_all(&p);
        end(&p);
        rig_close();
    }
}

static void stuck_op_ends_by_cancel_and_close(void **state)
{
    struct kvf_rng r;

    (void)state;
    kvf_rng_seed(&r, 2);
    for (unsigned close = 0; close < 2; close++) {
        struct pull p;

        rig_open(8 * MIB);
        init(&p, &r, 100 * KIB, false);
        rig.plan.stuck_nth = 3;
        start(&p);
        settle(1000);
        assert_int_equal(p.calls, 0);
        rig.inside = true;
        if (close)
            kvf_link_close(&rig.link);
        else
            kvf_scatter_cancel(&p.x);
        rig.inside = false;
        settle(1000);
        assert_int_equal(p.calls, 1);
        assert_true(p.status < 0);
        end(&p);
        rig_close();
    }
}

static void no_room_takes_turns(void **state)
{
    uint64_t least, most;
    struct kvf_rng r;
    struct pull p[5];

    (void)state;
    rig_open(4 * MIB);
    kvf_rng_seed(&r, 4);
    rig.plan.room = 1;
    for (unsigned i = 0; i < 5; i++) {
        init(&p[i], &r, 16 * KIB, false);
        start(&p[i]);
    }
    do {
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
    } while (least < 3 * MIB);
    settle(10000);
    for (unsigned i = 0; i < 5; i++) {
        assert_all(&p[i]);
        end(&p[i]);
    }
    rig_close();
}

static void outside_is_refused(void **state)
{
    struct kvf_rng r;
    struct pull p;

    (void)state;
    rig_open(MIB);
    kvf_rng_seed(&r, 4);
    init(&p, &r, 16 * KIB, false);
    p.s.v[p.s.n / 2] = (struct kvf_run){MIB - 1, 2, p.s.local};
    start(&p);
    settle(1000);
    assert_int_equal(p.status, -KVF_INVALID);
    p.s.v[p.s.n / 2].offset = UINT64_MAX;
    start(&p);
    settle(1000);
    assert_int_equal(p.status, -KVF_INVALID);
    end(&p);
    rig_close();
}

static void writes(void **state)
{
    struct kvf_rng r;
    uint8_t *before;
    struct pull p;

    (void)state;
    rig_open(3 * MIB + 3);
    kvf_rng_seed(&r, 5);
    before = malloc(rig.plan.size);
    memcpy(before, rig.plan.payload, rig.plan.size);
    init(&p, &r, 5000, true);
    run_source_fill(&p.s);
    start(&p);
    settle(1000);
    assert_int_equal(p.status, 0);
    run_source_check_written(&p.s, rig.plan.payload, before);
    end(&p);
    free(before);
    rig_close();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes),
        cmocka_unit_test(batches),
        cmocka_unit_test(nothing_to_move),
        cmocka_unit_test(faults),
        cmocka_unit_test(resume_moves_only_what_is_missing),
        cmocka_unit_test(cancel_or_close_at_any_moment),
        cmocka_unit_test(stuck_op_ends_by_cancel_and_close),
        cmocka_unit_test(no_room_takes_turns),
        cmocka_unit_test(outside_is_refused),
        cmocka_unit_test(writes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
