/* The rdma transport and its device: creation, registration, what a transfer
 * costs in work requests, doorbells and completions, and a device that breaks
 * and is opened again. */
#include "rig.h"

#include <errno.h>
#include <string.h>

#define SIZE (6 * MIB + 5)

/* Whatever fails: creation says so and leaves nothing, or it was not needed. */
static void test_creation(void **state)
{
    struct rig r = {.kind = RIG_RDMA};

    (void)state;
    for (unsigned c = 0; c < FAKE_CALL_COUNT; c++)
        for (unsigned at = 1; at < 6; at++) {
            struct kvf_transport *t = NULL;
            struct kvf_why why = {.text = ""};
            uint8_t *pool = calloc(1, MIB);
            int rc;

            fake_reset();
            r.reactor = kvf_reactor_create(&r.stats, NULL);
            r.sched = kvf_reactor_sched(r.reactor);
            fake.fail_at[c] = at;
            fake.fail_errno = ENOMEM;
            rc = rig_rdma_create(&r, &t, &why);
            if (rc == 0)
                rc = kvf_rdma_add_pool(t, pool, MIB, &why);
            if (rc != 0 && fake.n_devices > 0)
                assert_true(why.text[0] != '\0');
            if (c == FAKE_reg_mr && at == 1)
                assert_non_null(strstr(why.text, "ulimit -l"));
            fake.fail_at[c] = 0;
            kvf_transport_destroy(t);
            assert_int_equal(fake_objects() + fake.misuses, 0);
            kvf_reactor_destroy(r.reactor);
            free(pool);
        }
}

static void test_no_device(void **state)
{
    struct rig r = {.kind = RIG_RDMA};
    struct kvf_transport *t = NULL;
    struct kvf_why why;

    (void)state;
    r.reactor = kvf_reactor_create(&r.stats, NULL);
    r.sched = kvf_reactor_sched(r.reactor);
    fake_reset();
    fake.n_devices = 0;
    assert_int_equal(rig_rdma_create(&r, &t, &why), -KVF_NOT_FOUND);
    fake.n_devices = 2;
    fake.port.state = IBV_PORT_DOWN;
    assert_int_equal(rig_rdma_create(&r, &t, &why), -KVF_UNSUPPORTED);
    fake.port.state = IBV_PORT_ACTIVE;
    fake.n_gid = 0;
    assert_int_equal(rig_rdma_create(&r, &t, &why), -KVF_UNSUPPORTED);
    assert_non_null(strstr(why.text, "GID"));
    assert_int_equal(fake_objects(), 0);
    kvf_reactor_destroy(r.reactor);
}

/* ---- costs -------------------------------------------------------------- */

/* Many chunks a signalled completion, few work requests, none when idle. */
static void test_costs(void **state)
{
    struct rig r;
    struct pull p;
    uint64_t turns;

    (void)state;
    rig_open(&r, RIG_RDMA, 64 * MIB);
    pull_init(&p, &r, false);
    rig_until(&r, &r.ups, 10000);
    fake.signalled = fake.posted = fake.doorbells = 0;
    rig_rdma_pull(&r, &p);
    /* 64 chunks of 1 MiB; a piece is 4 KiB longer than that, and segments end
     * within chunks: some work requests more than chunks. */
    assert_in_range(fake.posted, 64, 64 + 64 + 64 + 3);
    assert_in_range(fake.signalled, 1, 64 / 2);
    assert_in_range(fake.doorbells, 1, 130);
    turns = r.sched->turns;
    for (int i = 0; i < 3; i++)
        kvf_reactor_once(r.reactor, 30 * KVF_NS_PER_MS, NULL);
    assert_in_range(r.sched->turns - turns, 1, 4);
    pull_end(&p);
    rig_close(&r);
}

/* A device that moves the bytes inside post_send: no turn of the loop posts
 * more than some milliseconds take, not even the first; and few of them once
 * somebody has asked something while bytes moved. */
static void test_slow_posts(void **state)
{
    const uint64_t ms = MIB / 20; /* what moves in one */
    struct rig r;
    struct pull p;

    (void)state;
    rig_open(&r, RIG_RDMA, 4 * MIB);
    pull_init(&p, &r, false);
    rig_until(&r, &r.ups, 10000);
    fake.post_mib_ns = 20 * KVF_NS_PER_MS;
    rig_rdma_pull(&r, &p);
    assert_in_range(fake.max_doorbell, 2 * ms + 1, 16 * ms);
    kvf_xfer_reset(&p.x);
    r.stats.requests++; /* what wants the bytes */
    fake.max_doorbell = 0;
    pull_start(&p, &r.link);
    while (fake.max_doorbell == 0)
        rig_turns(&r, 1);
    assert_in_range(fake.max_doorbell, 2 * ms + 1, 16 * ms);
    r.stats.requests++; /* another */
    fake.max_doorbell = 0;
    rig_until(&r, &p.calls, 10000);
    assert_in_range(fake.max_doorbell, 1, 2 * ms);
    kvf_xfer_reset(&p.x);
    rig_rdma_pull(&r, &p); /* not yet forgotten */
    assert_in_range(fake.max_doorbell, 1, 2 * ms);
    fake.post_mib_ns = 0;
    kvf_xfer_reset(&p.x);
    fake.max_doorbell = 0;
    rig_rdma_pull(&r, &p);
    assert_int_equal(fake.max_doorbell, MIB); /* grown again */
    pull_end(&p);
    rig_close(&r);
}

/* What is scattered here and contiguous there is one work request of many
 * pieces. */
static void test_scatter_gather(void **state)
{
    struct kvf_rng rng;
    struct rig r;
    struct pull p;

    (void)state;
    kvf_rng_seed(&rng, 4);
    rig_open(&r, RIG_RDMA, 2 * MIB);
    pull_init_scattered(&p, &r, &rng, 6000);
    rig_until(&r, &r.ups, 10000);
    fake.posted = fake.sges = 0;
    rig_rdma_pull(&r, &p);
    /* The pieces lie one behind the other here: one for each work request. */
    assert_true(fake.posted <= p.x.n_iov / 8 + 64);
    assert_true(fake.sges <= fake.posted + 8);
    pull_end(&p);
    rig_close(&r);
}

/* A device that registers little at once: many pieces, every byte right. */
static void test_small_registrations(void **state)
{
    struct rig r;
    struct pull p;

    (void)state;
    rig_open(&r, RIG_RDMA, SIZE);
    kvf_link_close(&r.link);
    rig_turns(&r, 5);
    rig_rdma_close(&r);
    kvf_transport_destroy(r.t);
    kvf_transport_destroy(r.owner);
    fake.attr.max_mr_size = 256 * KIB;
    assert_int_equal(rig_rdma_create(&r, &r.owner, NULL), 0);
    assert_int_equal(rig_rdma_create(&r, &r.t, NULL), 0);
    assert_int_equal(kvf_rdma_add_pool(r.owner, r.payload, r.size, NULL), 0);
    assert_true(fake.mrs > 24);
    r.ups = 0;
    assert_int_equal(rig_link(&r, &r.link), 0);
    pull_init(&p, &r, false);
    rig_rdma_pull(&r, &p);
    pull_end(&p);
    rig_close(&r);
}

/* An engine unregisters memory and registers it again at once: the old pieces
 * go while the new ones come. */
static void test_registered_again(void **state)
{
    struct rig r;
    struct pull p;
    struct rig_local *l = &r.rdma.local[0];

    (void)state;
    rig_open(&r, RIG_RDMA, SIZE);
    pull_init(&p, &r, false);
    rig_until(&r, &r.ups, 1000);
    for (unsigned i = 0; i < 3; i++) {
        kvf_rdma_memory_drop(l->m);
        l->m = kvf_rdma_memory_add(r.t, &l->map);
    }
    while (l->m->registered < SIZE || l->map.refs > 2)
        rig_turns(&r, 1);
    rig_rdma_pull(&r, &p);
    rig_unregister(&r, p.mem);
    assert_int_equal(kvf_rdma_of(r.t)->n_local, 0); /* nothing that is gone */
    fake.posted = 0;
    kvf_xfer_reset(&p.x);
    pull_start(&p, &r.link);
    rig_until(&r, &p.calls, 1000);
    assert_int_equal(p.status, -KVF_UNSUPPORTED);
    assert_int_equal(fake.posted + fake.misuses, 0);
    pull_end(&p);
    rig_close(&r);
}

/* ---- a device that breaks ------------------------------------------------ */

static bool broken(struct rig *r)
{
    struct kvf_rdma_gauges t, o;

    kvf_rdma_gauges(r->t, &t);
    kvf_rdma_gauges(r->owner, &o);
    return t.fatal || o.fatal;
}

/* Both ends have noticed when it returns. */
static void break_device(struct rig *r)
{
    fake_port_event(IBV_EVENT_DEVICE_FATAL);
    rig_turns(r, 3);
}

static void until_healed(struct rig *r, unsigned ms)
{
    uint64_t end = kvf_sched_clock(r->sched) + ms * KVF_NS_PER_MS;

    while (broken(r) && kvf_sched_clock(r->sched) < end)
        kvf_reactor_once(r->reactor, 20 * KVF_NS_PER_MS, NULL);
    assert_false(broken(r));
}

/* The device breaks in the middle of a transfer. Everything goes down by the
 * one way; then it is opened again, also if that takes some tries, all memory
 * is registered anew, and a new link moves the rest. */
static void test_device_fatal(void **state)
{
    static const enum fake_call calls[] = {FAKE_CALL_COUNT, FAKE_dereg_mr,
                                           FAKE_open_device, FAKE_reg_mr};

    (void)state;
    for (unsigned i = 0; i < sizeof calls / sizeof calls[0]; i++) {
        struct kvf_rdma_gauges before, g;
        struct rig r;
        struct pull p;

        rig_open(&r, RIG_RDMA, SIZE);
        pull_init(&p, &r, false);
        kvf_rdma_gauges(r.t, &before);
        fake.hold = true;
        rig_turns(&r, 20);
        pull_start(&p, &r.link);
        rig_turns(&r, 5);
        fake_port_event(IBV_EVENT_DEVICE_FATAL);
        rig_until(&r, &p.calls, 10000);
        assert_true(p.status < 0);
        assert_int_equal(r.rdma.broke, 2);
        kvf_link_close(&r.link);
        assert_int_equal(rig_link(&r, &r.link), -KVF_TRANSPORT);
        fake.hold = false;
        if (calls[i] != FAKE_CALL_COUNT)
            fake.fail_at[calls[i]] = 1;
        until_healed(&r, 30000);
        assert_int_equal(r.rdma.healed, 2);
        kvf_rdma_gauges(r.t, &g);
        assert_int_equal(g.qps + g.links + g.wrs_in_flight, 0);
        assert_int_equal(g.mr_bytes, before.mr_bytes);
        kvf_rdma_gauges(r.owner, &g);
        assert_int_equal(g.qps + g.guests, 0);
        assert_int_equal(rig_link(&r, &r.link), 0);
        rig_rdma_pull(&r, &p);
        pull_end(&p);
        rig_close(&r);
    }
}

/* It does not take the pool at once, breaks again before all is back, and ends
 * while it is broken. */
static void test_device_fatal_again(void **state)
{
    struct rig r;

    (void)state;
    rig_open(&r, RIG_RDMA, SIZE);
    rig_until(&r, &r.ups, 10000);
    break_device(&r);
    fake.fail_at[FAKE_reg_mr] = 3; /* after the pages for probes of both */
    until_healed(&r, 30000);
    assert_int_equal(r.rdma.healed, 2);
    assert_int_equal(fake.fail_at[FAKE_reg_mr], 0);
    break_device(&r);
    assert_true(broken(&r));
    break_device(&r);
    rig_close(&r);
}

static bool in_use(struct rig *r)
{
    struct kvf_rdma_gauges t, o;

    kvf_rdma_gauges(r->t, &t);
    kvf_rdma_gauges(r->owner, &o);
    return t.cqs + o.cqs > 2; /* more than those that devices begin with */
}

/* A broken device refuses to destroy what it began with: that goes with it, and
 * does not count as in use when the next one breaks. */
static void test_device_fatal_keeps(void **state)
{
    struct rig r;

    (void)state;
    rig_open(&r, RIG_RDMA, SIZE);
    rig_until(&r, &r.ups, 10000);
    break_device(&r);
    kvf_link_close(&r.link);
    for (unsigned i = 0; i < 500 && in_use(&r); i++)
        rig_turns(&r, 1);
    assert_false(in_use(&r));
    fake.fail_at[FAKE_destroy_cq] = 1;
    fake.fail_n[FAKE_destroy_cq] = 2;
    until_healed(&r, 30000);
    assert_int_equal(fake_reap_cqs(), 2);
    assert_false(in_use(&r));
    break_device(&r);
    until_healed(&r, 30000);
    assert_int_equal(r.rdma.healed, 4);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_creation),
        cmocka_unit_test(test_no_device),
        cmocka_unit_test(test_costs),
        cmocka_unit_test(test_slow_posts),
        cmocka_unit_test(test_scatter_gather),
        cmocka_unit_test(test_small_registrations),
        cmocka_unit_test(test_registered_again),
        cmocka_unit_test(test_device_fatal),
        cmocka_unit_test(test_device_fatal_again),
        cmocka_unit_test(test_device_fatal_keeps),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
