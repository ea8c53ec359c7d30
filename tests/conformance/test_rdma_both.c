/* Two daemons that read from each other over one connection: both ends at once
 * in every order, messages lost, calls failing, access taken back while both
 * ways have transfers under way, daemons of before. */
#include "pair.h"

#include <errno.h>
#include <string.h>

#define SMALL (64 * KIB)
#define LARGE (24 * MIB)

/* ---- every order -------------------------------------------------------- */

/* What may come next: an end begins to connect, or a message arrives. */
enum { BEGIN_0, BEGIN_1, FIRST_QUEUE, EVENTS = FIRST_QUEUE + PAIR_QUEUES };
#define DEPTH 32u

struct order {
    unsigned choice[DEPTH], of[DEPTH]; /* the choice-th of so many */
    unsigned depth;
};

static unsigned possible(const struct pair *p, unsigned out[EVENTS])
{
    unsigned n = 0;

    for (unsigned i = 0; i < 2; i++)
        if (!p->n[i].open && p->n[i].ups + p->n[i].downs == 0)
            out[n++] = BEGIN_0 + i;
    for (unsigned q = 0; q < PAIR_QUEUES; q++)
        if (!kvf_list_empty(&p->queue[q]))
            out[n++] = FIRST_QUEUE + q;
    return n;
}

/* One way through; choices beyond those given are the first. */
static void play(struct pair *p, struct order *o, unsigned turns)
{
    unsigned ev[EVENTS], n;

    o->depth = 0;
    for (;;) {
        pair_turns(p, turns);
        n = possible(p, ev);
        for (unsigned i = 0; n == 0 && i < 30; i++) {
            pair_turns(p, 1); /* a slow one may still say something */
            n = possible(p, ev);
        }
        if (n == 0 || o->depth == DEPTH) /* enough: the rest as it comes */
            return;
        o->of[o->depth] = n;
        n = ev[o->choice[o->depth++] % n];
        if (n < FIRST_QUEUE)
            pair_link(&p->n[n]);
        else
            pair_deliver(p, n - FIRST_QUEUE);
    }
}

/* False: that was the last order. */
static bool next_order(struct order *o)
{
    while (o->depth > 0) {
        unsigned i = o->depth - 1;

        if (++o->choice[i] < o->of[i]) {
            memset(&o->choice[o->depth], 0,
                   (DEPTH - o->depth) * sizeof o->choice[0]);
            return true;
        }
        o->choice[i] = 0;
        o->depth--;
    }
    return false;
}

static void test_every_order(void **state)
{
    static const unsigned turns[] = {30, 3, 2, 1, 0};
    unsigned runs = 0;

    (void)state;
    for (unsigned t = 0; t < sizeof turns / sizeof *turns; t++) {
        struct order o = {.depth = 0};

        do {
            struct pair p;

            pair_open(&p, SMALL, 3000, false);
            play(&p, &o, turns[t]);
            pair_settle(&p);
            assert_int_equal(p.n[0].downs + p.n[1].downs, 0);
            pair_assert_qps(&p, 1);
            pair_both_ways(&p);
            pair_close(&p);
            runs++;
        } while (next_order(&o));
    }
    print_message("%u orders\n", runs);
    assert_true(runs > 40);
}

/* Ends that lost a message try again, both at once, until there is one. */
static void test_lost_messages(void **state)
{
    unsigned runs = 0;

    (void)state;
    for (unsigned turns = 1; turns <= 30; turns += 29) {
        struct order o = {.depth = 0};
        bool more;

        do {
            for (unsigned lose = 1;; lose++) {
                struct order same = o;
                struct pair p;
                unsigned sent;

                pair_open(&p, SMALL, 50, false);
                p.lose = lose;
                play(&p, &same, turns);
                sent = p.n_mail;
                pair_settle_one(&p, runs % 8 == 0);
                pair_both_ways(&p);
                pair_close(&p);
                runs++;
                if (lose >= sent)
                    break;
            }
            {
                struct pair p;

                pair_open(&p, SMALL, 3000, false);
                play(&p, &o, turns);
                pair_close(&p);
            }
            more = next_order(&o);
        } while (more);
    }
    print_message("%u runs\n", runs);
}

/* ---- what fails --------------------------------------------------------- */

/* Every call of the set-up and of the end fails once, at every place. */
static void test_every_call(void **state)
{
    (void)state;
    for (unsigned c = FAKE_dereg_mr; c < FAKE_CALL_COUNT; c++)
        for (unsigned at = 1; at < 40; at++) {
            struct pair p;
            bool met;

            pair_open(&p, SMALL, 3000, false);
            fake.fail_at[c] = at;
            fake.fail_errno = EINVAL;
            pair_link(&p.n[0]);
            pair_turns(&p, at % 4);
            pair_link(&p.n[1]);
            pair_settle_one(&p, false);
            pair_pull(&p.n[0]);
            pair_pull(&p.n[1]);
            pair_until(&p, &p.n[0].calls);
            pair_until(&p, &p.n[1].calls);
            pair_settle_one(&p, at % 4 == 0);
            met = fake.fail_at[c] == 0;
            fake.fail_at[c] = 0;
            pair_both_ways(&p);
            pair_close(&p);
            if (!met)
                break;
        }
}

/* The only one there. */
static struct kvf_rdma_conn *conn_of(const struct pair_node *n)
{
    struct kvf_list *first = kvf_list_first(&kvf_rdma_of(n->t)->conns);

    if (first == NULL)
        abort();
    return kvf_container_of(first, struct kvf_rdma_conn, node);
}

static void under_way(struct pair *p, bool late)
{
    pair_open(p, LARGE, 3000, false);
    pair_link(&p->n[0]);
    pair_link(&p->n[1]);
    pair_settle(p);
    pair_assert_qps(p, 1);
    fake.late = late ? 4 : 0;
    for (unsigned i = 0; i < 2; i++)
        pair_pull(&p->n[i]);
    while (p->n[0].x.bytes_done == 0 || p->n[1].x.bytes_done == 0)
        pair_turns(p, 1);
}

/* Both transfers go on over the next connection, with what is missing. */
static void resumed(struct pair *p)
{
    uint64_t had[2];

    for (unsigned i = 0; i < 2; i++) {
        pair_until(p, &p->n[i].calls);
        had[i] = p->n[i].x.bytes_done;
    }
    pair_settle(p);
    for (unsigned i = 0; i < 2; i++) {
        if (p->n[i].status == 0)
            continue;
        assert_true(had[i] > 0 && had[i] < p->size);
        pair_pull(&p->n[i]);
        pair_until(p, &p->n[i].calls);
        assert_int_equal(p->n[i].status, 0);
        assert_int_equal(p->n[i].x.bytes_moved_now, p->size - had[i]);
    }
    for (unsigned i = 0; i < 2; i++)
        assert_memory_equal(p->n[i].mem, p->n[1 - i].pool, p->size);
    pair_assert_qps(p, 1);
}

/* A silent reader: from the moment expel returns nothing of its owner's is
 * read, and the owner's own transfer over that QP goes on over the next. */
static void test_expel_both_under_way(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        struct pair p;
        uint64_t reads;

        under_way(&p, true);
        assert_false(kvf_rdma_expel(p.n[i].t, &p.n[i]));
        reads = fake.reads;
        pair_turns(&p, 3);
        assert_int_equal(fake.reads, reads);
        assert_int_equal(p.n[i].expelled, 0);
        pair_until(&p, &p.n[i].expelled);
        resumed(&p);
        assert_int_equal(p.n[0].downs + p.n[1].downs, 2);
        assert_int_equal(p.n[i].own_will, 1);
        assert_int_equal(p.n[1 - i].own_will, 0);
        pair_close(&p);
    }
}

/* ... whose transfer's completions do not even come when it is flushed. */
static void test_expel_without_flush(void **state)
{
    struct pair p;

    (void)state;
    under_way(&p, true);
    fake.hold = fake.hold_flush = true;
    assert_false(kvf_rdma_expel(p.n[0].t, &p.n[0]));
    pair_turns(&p, 30);
    assert_int_equal(p.n[0].calls, 0); /* its memory is not ours yet */
    pair_until(&p, &p.n[0].expelled);
    fake.hold = fake.hold_flush = false;
    resumed(&p);
    pair_close(&p);
}

/* What breaks one end's QP breaks both ways, once. */
static void test_qp_fatal(void **state)
{
    struct pair p;

    (void)state;
    under_way(&p, true);
    assert_int_equal(fake_qp_event(IBV_EVENT_QP_FATAL, true), 2);
    resumed(&p);
    assert_int_equal(p.n[0].own_will + p.n[1].own_will, 0);
    pair_close(&p);
}

static void test_completion_error(void **state)
{
    struct pair p;

    (void)state;
    under_way(&p, true);
    fake.status = IBV_WC_GENERAL_ERR;
    fake.status_at = fake.executed + 3;
    resumed(&p);
    assert_int_equal(p.n[0].downs + p.n[1].downs, 2);
    pair_close(&p);
}

/* ---- one end does without ----------------------------------------------- */

/* A link that is closed with nothing under way leaves the connection to the
 * other end, whose transfer does not notice; opened again it takes the same. */
static void test_close_leaves_it(void **state)
{
    for (unsigned i = 0; i < 2; i++) {
        struct pair_node *mine, *yours;
        struct pair p;

        (void)state;
        pair_open(&p, LARGE, 3000, false);
        mine = &p.n[i];
        yours = &p.n[1 - i];
        pair_link(&p.n[0]);
        pair_link(&p.n[1]);
        pair_settle(&p);
        fake.late = 4;
        pair_pull(yours);
        while (yours->x.bytes_done == 0)
            pair_turns(&p, 1);
        kvf_link_close(&mine->link);
        mine->open = false;
        for (unsigned q = 0; q < PAIR_QUEUES; q++)
            while (pair_deliver(&p, q))
                continue;
        assert_int_equal(pair_gauges(mine).qps, 1);
        assert_int_equal(pair_gauges(mine).links, 0);
        assert_int_equal(pair_gauges(yours).guests, 0);
        pair_turns(&p, 5);
        pair_link(mine);
        pair_until(&p, &yours->calls);
        assert_int_equal(yours->status, 0);
        assert_int_equal(yours->downs, 0);
        assert_memory_equal(yours->mem, mine->pool, p.size);
        pair_settle(&p);
        pair_assert_qps(&p, 1);
        pair_both_ways(&p);
        pair_close(&p);
    }
}

/* Until it asks the other end may touch nothing here, and not after it said
 * that it does without. */
static void test_access_is_asked_for(void **state)
{
    struct kvf_rdma_conn *c;
    struct pair p;

    (void)state;
    pair_open(&p, SMALL, 3000, false);
    pair_link(&p.n[0]);
    while (p.n[0].ups == 0) {
        for (unsigned q = 0; q < PAIR_QUEUES; q++)
            pair_deliver(&p, q);
        pair_turns(&p, 1);
    }
    c = conn_of(&p.n[0]);
    assert_int_equal(fake_qp_access(c->qp.qp), 0);
    pair_link(&p.n[1]);
    pair_settle(&p);
    assert_int_equal(fake_qp_access(c->qp.qp), IBV_ACCESS_REMOTE_READ);
    assert_true(kvf_rdma_allow_write(p.n[0].t, &p.n[0], true));
    assert_int_equal(fake_qp_access(c->qp.qp),
                     IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE);
    assert_true(kvf_rdma_allow_write(p.n[0].t, &p.n[0], false));
    kvf_link_close(&p.n[1].link);
    p.n[1].open = false;
    for (unsigned q = 0; q < PAIR_QUEUES; q++)
        while (pair_deliver(&p, q))
            continue;
    assert_int_equal(fake_qp_access(c->qp.qp), 0);
    assert_int_equal(p.n[0].downs, 0);
    pair_link(&p.n[1]);
    pair_settle(&p);
    pair_assert_qps(&p, 1);
    pair_close(&p);
}

/* Of one that may write a packet may still be on its way: not on its word. */
static void test_writer_takes_it_along(void **state)
{
    struct pair p;

    (void)state;
    pair_open(&p, SMALL, 3000, false);
    pair_link(&p.n[0]);
    pair_link(&p.n[1]);
    pair_settle(&p);
    assert_true(kvf_rdma_allow_write(p.n[0].t, &p.n[0], true));
    kvf_link_close(&p.n[1].link);
    p.n[1].open = false;
    pair_until(&p, &p.n[0].downs);
    assert_int_equal(p.n[0].own_will, 1);
    pair_link(&p.n[1]);
    pair_settle(&p);
    pair_assert_qps(&p, 1);
    pair_both_ways(&p);
    pair_close(&p);
}

/* ---- others ------------------------------------------------------------- */

/* A daemon of before has one QP for each way. */
static void test_old_peer(void **state)
{
    struct order o = {.depth = 0};

    (void)state;
    do {
        struct pair p;

        pair_open(&p, SMALL, 3000, true);
        play(&p, &o, 30);
        pair_settle(&p);
        assert_int_equal(p.n[0].downs + p.n[1].downs, 0);
        for (unsigned i = 0; i < 2; i++)
            assert_int_equal(pair_gauges(&p.n[i]).qps, 2);
        pair_both_ways(&p);
        pair_close(&p);
    } while (next_order(&o));
}

/* What both start and serve is the least of all four numbers. */
static void test_reads_at_once(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        struct kvf_rdma_conn *c;
        struct pair p;

        pair_open(&p, SMALL, 3000, false);
        kvf_rdma_of(p.n[0].t)->attr.max_qp_rd_atom = 3;
        kvf_rdma_of(p.n[1].t)->attr.max_qp_init_rd_atom = 5;
        pair_link(&p.n[i]);
        pair_turns(&p, 10);
        pair_link(&p.n[1 - i]);
        pair_settle(&p);
        c = conn_of(&p.n[0]);
        assert_int_equal(c->path.rd_atomic, 3);
        pair_assert_qps(&p, 1);
        pair_both_ways(&p);
        pair_close(&p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_order),
        cmocka_unit_test(test_lost_messages),
        cmocka_unit_test(test_every_call),
        cmocka_unit_test(test_expel_both_under_way),
        cmocka_unit_test(test_expel_without_flush),
        cmocka_unit_test(test_qp_fatal),
        cmocka_unit_test(test_completion_error),
        cmocka_unit_test(test_close_leaves_it),
        cmocka_unit_test(test_access_is_asked_for),
        cmocka_unit_test(test_writer_takes_it_along),
        cmocka_unit_test(test_old_peer),
        cmocka_unit_test(test_reads_at_once),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
