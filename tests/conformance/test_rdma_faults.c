/* What only the rdma transport can go through, on devices inside the process:
 * every call failing at every step, completions that are errors, late, doubled
 * or never come, asynchronous events, revocation.
 *
 * After each fault: the transfer ended once, nothing writes into its memory any
 * more, a new link moves only what is missing, and no object is left. */
#include "rig.h"

#include <errno.h>
#include <string.h>

#define SIZE (6 * MIB + 5)

static void assert_quiet(struct rig *r, struct pull *p)
{
    uint8_t *copy = malloc(r->size);

    memset(p->mem, 0xa5, r->size); /* ours again */
    memcpy(copy, p->mem, r->size);
    rig_turns(r, 50);
    assert_memory_equal(copy, p->mem, r->size);
    free(copy);
}

static void relink(struct rig *r)
{
    kvf_link_close(&r->link);
    assert_int_equal(rig_link(r, &r->link), 0);
}

/* The pull has failed: on a new link it takes the missing rest and no more. */
static void resume(struct rig *r, struct pull *p)
{
    uint64_t had = p->x.bytes_done;

    assert_true(p->status < 0);
    relink(r);
    rig_rdma_pull(r, p);
    assert_int_equal(p->x.bytes_moved_now, r->size - had);
}

static void until_down(struct rig *r)
{
    rig_until(r, &r->downs, 10000);
    assert_int_equal(r->downs, 1);
}

/* ---- calls that fail ---------------------------------------------------- */

/* Every call of link, transfer and end fails once, at every place it is made.
 */
static void test_every_call(void **state)
{
    static const int codes[] = {EINVAL, ENOMEM};

    (void)state;
    for (unsigned c = FAKE_dereg_mr; c < FAKE_CALL_COUNT; c++)
        for (unsigned at = 1; at < 14; at++) {
            struct rig r;
            struct pull p;
            bool met;

            rig_open(&r, RIG_RDMA, SIZE);
            pull_init(&p, &r, at % 2 == 0);
            memset(p.mem, 0x3c, r.size);
            fake.fail_at[c] = at;
            fake.fail_errno = codes[at % 2];
            pull_start(&p, &r.link);
            rig_until(&r, &p.calls, 10000);
            if (p.status == 0)
                assert_memory_equal(p.mem, r.payload, r.size);
            assert_quiet(&r, &p);
            kvf_link_close(&r.link); /* fails there if not before */
            rig_turns(&r, 60);
            met = fake.fail_at[c] == 0;
            fake.fail_at[c] = 0;
            relink(&r);
            kvf_xfer_reset(&p.x);
            rig_rdma_pull(&r, &p);
            pull_end(&p);
            rig_close(&r);
            if (!met)
                break; /* it is not made that often */
        }
}

/* A QP that neither flushes nor goes keeps the memory of its ops. */
static void test_destroy_is_repeated(void **state)
{
    struct rig r;
    struct pull p;

    (void)state;
    rig_open(&r, RIG_RDMA, SIZE);
    pull_init(&p, &r, false);
    rig_until(&r, &r.ups, 10000);
    fake.hold = fake.hold_flush = true;
    pull_start(&p, &r.link);
    rig_turns(&r, 10);
    fake.fail_at[FAKE_destroy_qp] = 1;
    fake.fail_n[FAKE_destroy_qp] = 3;
    kvf_link_close(&r.link);
    rig_turns(&r, 30);
    assert_int_equal(p.calls, 0);
    rig_until(&r, &p.calls, 10000);
    assert_int_equal(fake.fail_at[FAKE_destroy_qp], 0);
    fake.hold = fake.hold_flush = false;
    resume(&r, &p);
    pull_end(&p);
    rig_close(&r);
}

/* ---- completions -------------------------------------------------------- */

static void test_error_completions(void **state)
{
    static const enum ibv_wc_status all[] = {
        IBV_WC_RETRY_EXC_ERR, IBV_WC_REM_ACCESS_ERR, IBV_WC_LOC_PROT_ERR,
        IBV_WC_GENERAL_ERR};

    (void)state;
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
        for (unsigned at = 1; at < 12; at++) {
            struct rig r;
            struct pull p;

            rig_open(&r, at % 3 == 0 ? RIG_RDMA_LATE : RIG_RDMA, 24 * MIB);
            pull_init(&p, &r, false);
            fake.status = all[i];
            fake.status_at = at;
            pull_start(&p, &r.link);
            rig_until(&r, &p.calls, 10000);
            if (p.status != -KVF_TRANSPORT)
                fail_msg("status %u at %u: %s", i, at, p.why.text);
            assert_int_equal(r.downs, 1);
            /* The cause is the first error, not what was flushed by it. */
            assert_non_null(strstr(r.down_why.text, ibv_wc_status_str(all[i])));
            fake.status_at = 0;
            resume(&r, &p);
            pull_end(&p);
            rig_close(&r);
        }
}

/* Nothing comes back: the stall is noticed, and what is flushed ends it. Nor is
 * anything flushed: destroying the QP does. */
static void test_silence(void **state)
{
    (void)state;
    for (int flush = 0; flush < 2; flush++) {
        struct rig r;
        struct pull p;

        rig_open(&r, RIG_RDMA, SIZE);
        pull_init(&p, &r, false);
        rig_until(&r, &r.ups, 10000);
        fake.hold = true;
        fake.hold_flush = flush == 0;
        pull_start(&p, &r.link);
        until_down(&r);
        rig_until(&r, &p.calls, 10000);
        assert_non_null(strstr(p.why.text, "no completion"));
        assert_true(flush == 0 || fake.flushed > 0);
        assert_quiet(&r, &p);
        fake.hold = fake.hold_flush = false;
        resume(&r, &p);
        pull_end(&p);
        rig_close(&r);
    }
}

/* A cancelled transfer whose work requests never end takes its link down. */
static void test_cancel_in_silence(void **state)
{
    struct rig r;
    struct pull p;

    (void)state;
    rig_open(&r, RIG_RDMA, SIZE);
    pull_init(&p, &r, false);
    rig_until(&r, &r.ups, 10000);
    fake.hold = true;
    pull_start(&p, &r.link);
    rig_turns(&r, 5);
    r.inside = true;
    kvf_xfer_cancel(&p.x);
    r.inside = false;
    rig_turns(&r, 5);
    assert_int_equal(p.calls, 0); /* not before it is quiet */
    rig_until(&r, &p.calls, 10000);
    assert_int_equal(p.status, -KVF_CANCELLED);
    assert_quiet(&r, &p);
    fake.hold = false;
    resume(&r, &p);
    pull_end(&p);
    rig_close(&r);
}

/* Completions that nobody asked for change nothing. */
static void test_doubled_completions(void **state)
{
    struct rig r;
    struct pull p;

    (void)state;
    rig_open(&r, RIG_RDMA_LATE, 24 * MIB);
    pull_init(&p, &r, false);
    fake.dup_wc = 2;
    rig_rdma_pull(&r, &p);
    assert_true(r.stats.unexpected > 0);
    assert_int_equal(r.downs, 0);
    pull_end(&p);
    rig_close(&r);
}

/* ---- access ------------------------------------------------------------- */

/* From the moment expel returns, nothing of the owner's is read; no call that
 * may take long is made in it. */
static void test_expel(void **state)
{
    (void)state;
    for (unsigned turns = 0; turns < 6; turns++) {
        struct rig r;
        struct pull p;
        uint64_t reads;
        unsigned destroyed;

        rig_open(&r, RIG_RDMA_LATE, 24 * MIB);
        pull_init(&p, &r, false);
        rig_until(&r, &r.ups, 10000);
        pull_start(&p, &r.link);
        rig_turns(&r, 3 * turns);
        destroyed = fake.calls[FAKE_destroy_qp];
        assert_false(kvf_rdma_expel(r.owner, &r));
        assert_int_equal(fake.calls[FAKE_destroy_qp], destroyed);
        reads = fake.reads;
        rig_until(&r, &p.calls, 10000);
        assert_int_equal(fake.reads, reads);
        rig_until(&r, &r.rdma.expelled, 10000);
        assert_int_equal(r.rdma.expelled, 1);
        assert_true(kvf_rdma_expel(r.owner, &r));
        if (p.status != 0)
            resume(&r, &p);
        pull_end(&p);
        rig_close(&r);
    }
}

/* The device refuses: asked again, and nobody is told before it agreed. The
 * session connects again meanwhile. */
static void test_expel_refused(void **state)
{
    struct kvf_rdma_gauges g;
    struct rig r;

    (void)state;
    rig_open(&r, RIG_RDMA, MIB);
    rig_until(&r, &r.ups, 10000);
    fake.fail_at[FAKE_destroy_qp] = 1;
    fake.fail_n[FAKE_destroy_qp] = 2;
    assert_false(kvf_rdma_expel(r.owner, &r));
    kvf_rdma_gauges(r.owner, &g);
    assert_int_equal(g.dying, 1);
    relink(&r);
    r.ups = 0;
    rig_until(&r, &r.ups, 10000);
    assert_true(kvf_rdma_allow_write(r.owner, &r, false)); /* the new one */
    rig_until(&r, &r.rdma.expelled, 10000);
    assert_int_equal(fake.fail_at[FAKE_destroy_qp], 0);
    kvf_rdma_gauges(r.owner, &g);
    assert_int_equal(g.guests - g.dying, 1); /* which stays */
    rig_close(&r);
}

static void test_write_needs_leave(void **state)
{
    uint8_t *before = malloc(SIZE);
    struct rig r;
    struct pull p, w;

    (void)state;
    rig_open(&r, RIG_RDMA, SIZE);
    memcpy(before, r.payload, SIZE);
    assert_true(kvf_rdma_allow_write(r.owner, &r, false));
    pull_init(&p, &r, false);
    pull_init(&w, &r, true);
    memset(w.mem, 0x99, SIZE);
    rig_rdma_pull(&r, &p);
    pull_start(&w, &r.link);
    rig_until(&r, &w.calls, 10000);
    assert_true(w.status < 0);
    assert_memory_equal(r.payload, before, SIZE);
    rig_turns(&r, 20);
    assert_int_equal(r.rdma.closed, 1); /* the owner's device told it */
    r.ups = 0;
    relink(&r);
    rig_until(&r, &r.ups, 10000);
    fake.fail_at[FAKE_modify_qp] = 1;
    fake.fail_errno = EIO;
    assert_false(kvf_rdma_allow_write(r.owner, &r, true));
    assert_int_equal(kvf_rdma_of(r.owner)->n_writers, 0);
    fake.fail_at[FAKE_modify_qp] = 0;
    assert_true(kvf_rdma_allow_write(r.owner, &r, true)); /* a living QP */
    pull_start(&w, &r.link);
    rig_until(&r, &w.calls, 10000);
    assert_int_equal(w.status, 0);
    assert_memory_equal(r.payload, w.mem, SIZE);
    pull_end(&p);
    pull_end(&w);
    rig_close(&r);
    free(before);
}

/* Memory that is not registered here, or not there: refused, nothing posted. */
static void test_unregistered(void **state)
{
    struct rig r;
    struct pull p;

    (void)state;
    rig_open(&r, RIG_RDMA, SIZE);
    pull_init(&p, &r, false);
    rig_until(&r, &r.ups, 10000);
    rig_unregister(&r, p.mem);
    fake.posted = 0;
    pull_start(&p, &r.link);
    rig_until(&r, &p.calls, 10000);
    assert_int_equal(p.status, -KVF_UNSUPPORTED);
    assert_int_equal(fake.posted, 0);
    rig_register(&r, p.mem, r.size);
    r.segs[1].offset = r.size; /* behind the owner's pool */
    pull_start(&p, &r.link);
    rig_until(&r, &p.calls, 10000);
    assert_int_equal(p.status, -KVF_UNSUPPORTED);
    assert_int_equal(r.downs, 0);
    r.segs[1].offset = r.size / 3;
    rig_rdma_pull(&r, &p);
    pull_end(&p);
    rig_close(&r);
}

/* ---- handshake and events ----------------------------------------------- */

static void test_no_answer(void **state)
{
    struct rig r;
    struct pull p;

    (void)state;
    rig_open(&r, RIG_RDMA, MIB);
    r.rdma.lose_mail = true;
    pull_init(&p, &r, false);
    pull_start(&p, &r.link);
    rig_until(&r, &p.calls, 10000);
    assert_int_equal(p.status, -KVF_PEER_UNREACHABLE);
    assert_int_equal(r.ups, 0);
    r.rdma.lose_mail = false;
    resume(&r, &p);
    pull_end(&p);
    rig_close(&r);
}

/* The owner cannot: named on both sides. */
static void test_refused(void **state)
{
    struct rig r;
    struct pull p;

    (void)state;
    rig_open(&r, RIG_RDMA, MIB);
    pull_init(&p, &r, false);
    kvf_rdma_of(r.owner)->n_gid = 0;
    pull_start(&p, &r.link);
    rig_until(&r, &p.calls, 10000);
    assert_int_equal(p.status, -KVF_MISMATCH);
    assert_non_null(strstr(p.why.text, "no GID of the same kind"));
    assert_int_equal(r.rdma.refusals, 1);
    assert_non_null(strstr(r.rdma.refused.text, "no GID of the same kind"));
    kvf_rdma_of(r.owner)->n_gid = 1;
    resume(&r, &p);
    pull_end(&p);
    rig_close(&r);
}

/* More links at once than there are pages for their first READ: they wait. */
static void test_probes_take_turns(void **state)
{
    struct kvf_link other = {0};
    struct rig r;

    (void)state;
    rig_open(&r, RIG_RDMA, MIB);
    kvf_rdma_of(r.t)->scratch_used = ~1ull;
    fake.hold = true;
    rig_turns(&r, 30);
    assert_true(kvf_rdma_of(r.t)->scratch_used == UINT64_MAX);
    assert_int_equal(rig_link(&r, &other), 0);
    rig_turns(&r, 30);
    assert_int_equal(r.ups, 0);
    fake.hold = false;
    kvf_link_close(&r.link);
    rig_until(&r, &r.ups, 10000);
    assert_int_equal(other.state, KVF_LINK_UP);
    assert_true(kvf_rdma_of(r.t)->scratch_used == ~1ull);
    kvf_link_close(&other);
    rig_close(&r);
}

static void test_port_down_and_up(void **state)
{
    struct rig r;
    struct pull p;

    (void)state;
    rig_open(&r, RIG_RDMA_LATE, 24 * MIB);
    pull_init(&p, &r, false);
    pull_start(&p, &r.link);
    while (p.x.bytes_done == 0)
        rig_turns(&r, 1);
    fake.port.state = IBV_PORT_DOWN;
    fake_port_event(IBV_EVENT_PORT_ERR);
    rig_until(&r, &p.calls, 10000);
    assert_true(p.status < 0);
    assert_int_equal(r.downs, 1);
    kvf_link_close(&r.link);
    assert_int_equal(rig_link(&r, &r.link), -KVF_TRANSPORT);
    fake.port.state = IBV_PORT_ACTIVE;
    fake_port_event(IBV_EVENT_PORT_ACTIVE);
    rig_turns(&r, 5);
    resume(&r, &p);
    pull_end(&p);
    rig_close(&r);
}

static void test_gid_change(void **state)
{
    struct rig r;
    struct pull p;

    (void)state;
    rig_open(&r, RIG_RDMA, SIZE);
    pull_init(&p, &r, false);
    rig_until(&r, &r.ups, 10000);
    fake_port_event(IBV_EVENT_GID_CHANGE); /* of others */
    rig_turns(&r, 5);
    assert_int_equal(r.downs, 0);
    fake.gid[0].gid.raw[15] = 9;
    fake_port_event(IBV_EVENT_GID_CHANGE);
    until_down(&r);
    relink(&r);
    rig_rdma_pull(&r, &p);
    pull_end(&p);
    rig_close(&r);
}

static void test_qp_fatal(void **state)
{
    (void)state;
    for (int posted = 0; posted < 2; posted++) {
        struct rig r;
        struct pull p;

        rig_open(&r, RIG_RDMA_LATE, 24 * MIB);
        fake.late = 40;
        pull_init(&p, &r, false);
        pull_start(&p, &r.link);
        while (p.x.bytes_done == 0)
            rig_turns(&r, 1);
        assert_true(fake_qp_event(IBV_EVENT_QP_FATAL, posted != 0) > 0);
        rig_until(&r, &p.calls, 10000);
        assert_true(p.status < 0);
        assert_int_equal(r.rdma.closed, posted == 0);
        fake.late = 0;
        resume(&r, &p);
        pull_end(&p);
        rig_close(&r);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_call),
        cmocka_unit_test(test_destroy_is_repeated),
        cmocka_unit_test(test_error_completions),
        cmocka_unit_test(test_silence),
        cmocka_unit_test(test_cancel_in_silence),
        cmocka_unit_test(test_doubled_completions),
        cmocka_unit_test(test_expel),
        cmocka_unit_test(test_expel_refused),
        cmocka_unit_test(test_write_needs_leave),
        cmocka_unit_test(test_unregistered),
        cmocka_unit_test(test_no_answer),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_probes_take_turns),
        cmocka_unit_test(test_port_down_and_up),
        cmocka_unit_test(test_gid_change),
        cmocka_unit_test(test_qp_fatal),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
