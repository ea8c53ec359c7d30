/* Scattered ops: what every transport that takes them must do, run against each
 * of them. */
#include "../lib/run_source.h"
#include "rig.h"

#include <string.h>

struct scat {
    struct kvf_scatter x;
    struct run_source s;
    struct rig *rig;
    unsigned calls;
    int status;
    struct kvf_why why;
};

static void on_done(struct kvf_scatter *x, int status,
                    const struct kvf_why *why)
{
    struct scat *p = kvf_container_of(x, struct scat, x);

    assert_false(p->rig->inside);
    assert_int_equal(x->pending, 0);
    p->calls++;
    p->status = status;
    if (why != NULL)
        p->why = *why;
}

static void init(struct scat *p, struct rig *r, struct kvf_rng *rng,
                 uint64_t max, bool write)
{
    *p = (struct scat){.rig = r};
    run_source_init(&p->s, rng, r->size, max);
    rig_register(r, p->s.local, p->s.local_size);
    kvf_scatter_init(&p->x, r->sched, write, &p->s.src, p->s.bytes, on_done);
}

static void start(struct scat *p)
{
    p->calls = 0;
    p->rig->inside = true;
    kvf_scatter_start(&p->x, &p->rig->link, &p->rig->remote);
    p->rig->inside = false;
}

static void end(struct scat *p)
{
    kvf_scatter_fini(&p->x);
    rig_unregister(p->rig, p->s.local);
    run_source_free(&p->s);
}

static void pull_all(struct scat *p)
{
    start(p);
    rig_until(p->rig, &p->calls, 20000);
    if (p->status != 0)
        fail_msg("%s", p->why.text);
    assert_int_equal(p->x.bytes_done, p->s.bytes);
    run_source_check(&p->s, p->rig->payload);
}

static void sizes(enum rig_kind kind)
{
    static const uint64_t all[] = {1, 4097, 300 * KIB + 7, 12 * MIB + 3,
                                   40 * MIB + 3};
    uint64_t most = rig_most(kind, UINT64_MAX, 16 * MIB, 8 * MIB);
    struct kvf_rng rng;

    kvf_rng_seed(&rng, 21);
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
        struct rig r;

        if (all[i] > most)
            continue;
        rig_open(&r, kind, all[i]);
        for (uint64_t max = 200; max < 8 * MIB; max *= 9) {
            struct scat p;

            init(&p, &r, &rng, max, false);
            pull_all(&p);
            end(&p);
        }
        assert_int_equal(r.downs, 0);
        rig_close(&r);
    }
}

/* Contiguous and scattered transfers share a link. */
static void mixed(enum rig_kind kind)
{
    struct kvf_rng rng;
    struct scat p[4];
    struct pull q[2];
    struct rig r;

    kvf_rng_seed(&rng, 22);
    rig_open(&r, kind, 6 * MIB + 1);
    for (unsigned i = 0; i < 4; i++) {
        init(&p[i], &r, &rng, i % 2 != 0 ? 900 : 50000, false);
        start(&p[i]);
        if (i < 2) {
            pull_init(&q[i], &r, false);
            pull_start(&q[i], &r.link);
        }
    }
    for (unsigned i = 0; i < 4; i++) {
        rig_until(&r, &p[i].calls, 20000);
        assert_int_equal(p[i].status, 0);
        run_source_check(&p[i].s, r.payload);
        end(&p[i]);
    }
    for (unsigned i = 0; i < 2; i++) {
        rig_until(&r, &q[i].calls, 20000);
        assert_int_equal(q[i].status, 0);
        assert_memory_equal(q[i].mem, r.payload, r.size);
        pull_end(&q[i]);
    }
    rig_close(&r);
}

/* Ends a transfer at some moment; from then on its memory is ours. Then it is
 * resumed, beside another that was never disturbed. */
static void ended(enum rig_kind kind, bool close)
{
    struct kvf_rng rng;

    kvf_rng_seed(&rng, 23);
    for (unsigned round = 0; round < rig_most(kind, 16, 6, 16); round++) {
        struct scat p, other;
        struct rig r;
        uint8_t *copy;

        rig_open(&r, kind, 5 * MIB + 3);
        init(&p, &r, &rng, round % 2 != 0 ? 600 : 30000, false);
        init(&other, &r, &rng, 20000, false);
        start(&other);
        start(&p);
        rig_turns(&r, (unsigned)kvf_rng_below(&rng, 40));
        r.inside = true;
        if (close)
            kvf_link_close(&r.link);
        else
            kvf_scatter_cancel(&p.x);
        r.inside = false;
        rig_until(&r, &p.calls, 1000);
        assert_int_equal(p.calls, 1);
        assert_true(p.status <= 0);
        copy = malloc(p.s.local_size);
        memcpy(copy, p.s.local, p.s.local_size);
        rig_turns(&r, 50);
        assert_memory_equal(copy, p.s.local, p.s.local_size);
        free(copy);
        rig_until(&r, &other.calls, 20000);
        assert_true(close || other.status == 0);
        if (close)
            assert_int_equal(rig_link(&r, &r.link), 0);
        pull_all(&p);
        pull_all(&other);
        end(&p);
        end(&other);
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
    struct kvf_rng rng;
    struct scat p;
    struct rig r;
    uint64_t had;

    kvf_rng_seed(&rng, 24);
    rig_open(&r, kind, rig_most(kind, 48 * MIB, 16 * MIB, 8 * MIB));
    init(&p, &r, &rng, 16 * KIB, false);
    start(&p);
    while (p.x.bytes_done == 0 && p.calls == 0)
        rig_turns(&r, 1);
    kvf_link_close(&r.link);
    rig_until(&r, &p.calls, 1000);
    assert_true(p.status < 0);
    had = p.x.bytes_done;
    assert_true(had > 0);
    assert_int_equal(rig_link(&r, &r.link), 0);
    pull_all(&p);
    assert_int_equal(p.x.bytes_moved_now, p.s.bytes - had);
    end(&p);
    rig_close(&r);
}

static void written(enum rig_kind kind)
{
    struct kvf_rng rng;

    kvf_rng_seed(&rng, 25);
    for (uint64_t max = 300; max < 4 * MIB; max *= 20) {
        uint8_t *before;
        struct scat p;
        struct rig r;

        rig_open(&r, kind, 5 * MIB + 7);
        before = malloc(r.size);
        memcpy(before, r.payload, r.size);
        init(&p, &r, &rng, max, true);
        run_source_fill(&p.s);
        start(&p);
        rig_until(&r, &p.calls, 20000);
        assert_int_equal(p.status, 0);
        run_source_check_written(&p.s, r.payload, before);
        free(before);
        end(&p);
        rig_close(&r);
    }
}

/* A write that is cancelled at some moment ends, and the link goes on. */
static void write_cancelled(enum rig_kind kind)
{
    struct kvf_rng rng;

    kvf_rng_seed(&rng, 26);
    for (unsigned turns = 0; turns < 16; turns++) {
        struct scat p, back;
        struct rig r;

        rig_open(&r, kind, 3 * MIB + 1);
        init(&p, &r, &rng, 9000, true);
        init(&back, &r, &rng, 9000, false);
        run_source_fill(&p.s);
        rig_until(&r, &r.ups, 1000);
        start(&p);
        rig_turns(&r, turns);
        r.inside = true;
        kvf_scatter_cancel(&p.x);
        r.inside = false;
        rig_until(&r, &p.calls, 3000);
        assert_true(p.status == 0 || p.status == -KVF_CANCELLED);
        rig_turns(&r, 20); /* what was on its way is applied */
        pull_all(&back);
        assert_int_equal(r.downs, 0);
        end(&p);
        end(&back);
        rig_close(&r);
    }
}

/* The owner refuses in the middle: the attempt fails, and the next one is
 * answered. shm and sim ask nobody. */
static void refused(enum rig_kind kind)
{
    if (kind == RIG_SIM || kind == RIG_SHM || rig_rdma_kind(kind))
        return;
    for (int write = 0; write < 2; write++)
        for (int after = 0; after < 18; after += 3) {
            struct kvf_rng rng;
            struct scat p;
            struct rig r;

            kvf_rng_seed(&rng, 27);
            rig_open(&r, kind, 3 * MIB);
            init(&p, &r, &rng, 5000, write != 0);
            r.piece = 600; /* several parts an answer */
            r.refuse_after = after;
            start(&p);
            rig_until(&r, &p.calls, 5000);
            if (p.status != -KVF_STALE)
                assert_int_equal(p.status, -KVF_TRANSPORT);
            r.refuse_after = -1;
            if (r.link.state == KVF_LINK_DOWN) {
                kvf_link_close(&r.link);
                assert_int_equal(rig_link(&r, &r.link), 0);
            }
            start(&p);
            rig_until(&r, &p.calls, 20000);
            assert_int_equal(p.status, 0);
            if (write == 0)
                run_source_check(&p.s, r.payload);
            end(&p);
            rig_close(&r);
        }
}

/* Posts that must not be taken. */
static void unfit(enum rig_kind kind)
{
    struct kvf_run v[2] = {{0, 10, NULL}, {20, 10, NULL}};
    uint8_t mem[20];
    struct kvf_transfer_op op;
    struct rig r;

    rig_open(&r, kind, 4096);
    v[0].local = mem;
    v[1].local = mem + 10;
    op = (struct kvf_transfer_op){
        .remote = &r.remote, .length = 20, .runs = v, .n_runs = 2};
    op.length = 19;
    assert_int_equal(kvf_link_post(&r.link, &op, NULL), -KVF_INVALID);
    op.length = 21;
    assert_int_equal(kvf_link_post(&r.link, &op, NULL), -KVF_INVALID);
    op.length = 20;
    v[1].length = 0;
    assert_int_equal(kvf_link_post(&r.link, &op, NULL), -KVF_INVALID);
    v[1].length = 10;
    v[1].offset = 4087;
    assert_int_equal(kvf_link_post(&r.link, &op, NULL), -KVF_INVALID);
    v[1].offset = UINT64_MAX - 3;
    assert_int_equal(kvf_link_post(&r.link, &op, NULL), -KVF_INVALID);
    v[1].offset = 20;
    op.n_runs = KVF_OP_RUNS + 1;
    assert_int_equal(kvf_link_post(&r.link, &op, NULL), -KVF_INVALID);
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
CASE(mixed)
CASE(cancelled)
CASE(closed)
CASE(resumed)
CASE(written)
CASE(write_cancelled)
CASE(refused)
CASE(unfit)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes),           cmocka_unit_test(test_mixed),
        cmocka_unit_test(test_cancelled),       cmocka_unit_test(test_closed),
        cmocka_unit_test(test_resumed),         cmocka_unit_test(test_written),
        cmocka_unit_test(test_write_cancelled), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_unfit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
