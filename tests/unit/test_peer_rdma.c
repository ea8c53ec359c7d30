/* When a peer's rdma link is tried again after it failed, its session ended or
 * its daemon was restarted: the real policy over a link that is faked. */
#include "peer/peers_private.h"
#include "transport/rdma/rdma_priv.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define S KVF_NS_PER_S

struct world {
    struct kvf_sched sched;
    struct kvf_stats stats;
    struct kvf_conf conf;
    struct kvf_rng rng;
    struct kvf_rdma rdma;
    struct kvf_peers ps;
    struct kvf_peer peer;
    uint64_t now;
};

static unsigned opened;

static int link_open(struct kvf_transport *t, struct kvf_link *link,
                     const struct kvf_link_addr *addr, struct kvf_why *why)
{
    (void)t;
    (void)addr;
    (void)why;
    link->impl = &opened;
    opened++;
    return 0;
}

static void link_close(struct kvf_link *link)
{
    link->impl = NULL;
}

static const struct kvf_transport_ops ops = {.name = "rdma",
                                             .caps = KVF_CAP_READ,
                                             .link_open = link_open,
                                             .link_close = link_close};

static uint64_t clock_of(void *arg)
{
    return ((struct world *)arg)->now;
}

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof *w);
    struct kvf_peer *p = &w->peer;

    w->now = S;
    kvf_sched_init(&w->sched, clock_of, w);
    kvf_rng_seed(&w->rng, 1);
    kvf_transport_init(&w->rdma.t, &ops, &w->sched, &w->stats);
    w->conf.n_protocol = 2;
    w->conf.protocol[0] = KVF_PROTO_RDMA;
    w->conf.protocol[1] = KVF_PROTO_TCP;
    w->ps.env.sched = &w->sched;
    w->ps.env.stats = &w->stats;
    w->ps.env.conf = &w->conf;
    w->ps.env.rng = &w->rng;
    w->ps.env.rdma = &w->rdma.t;
    p->ps = &w->ps;
    p->state = KVF_PEER_UP;
    kvf_peer_rdma_init(p);
    opened = 0;
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    struct world *w = *state;

    kvf_peer_rdma_stop(&w->peer);
    kvf_sched_fini(&w->sched);
    free(w);
    return 0;
}

static void pass(struct world *w, uint64_t ns)
{
    w->now += ns;
    w->sched.now_ns = w->now;
}

static void comes_up(struct world *w)
{
    w->peer.rdma.state = KVF_LINK_UP;
    w->peer.rdma.on_up(&w->peer.rdma);
}

/* Returns for how long nothing is tried. */
static uint64_t fails(struct world *w)
{
    struct kvf_why why;

    kvf_fail(&why, KVF_TRANSPORT, "the owner does not answer");
    w->peer.rdma.state = KVF_LINK_DOWN;
    w->peer.rdma.on_down(&w->peer.rdma, &why);
    return w->peer.rdma_again_ns - w->now;
}

/* Goes down along with what its daemon could touch here. */
static void taken_along(struct world *w)
{
    struct kvf_why why;

    kvf_fail(&why, KVF_TRANSPORT, "taken back");
    w->peer.rdma.state = KVF_LINK_DOWN;
    w->peer.rdma.own_will = true;
    w->peer.rdma.on_down(&w->peer.rdma, &why);
}

/* Four failures at once: pauses of up to 1, 2, 4, 8 s. */
static void fails_often(struct world *w)
{
    struct kvf_why why;
    uint64_t pause = 0;

    kvf_peer_rdma_start(&w->peer, true);
    for (int i = 0; i < 4; i++) {
        pass(w, pause);
        kvf_peer_rdma_link(&w->peer, &why);
        assert_int_equal(w->peer.rdma.state, KVF_LINK_CONNECTING);
        pause = fails(w);
    }
    assert_in_range(pause, 6 * S, 8 * S);
}

/* After many failures the link came up, and stayed so for ns. */
static void worked_for(struct world *w, uint64_t ns)
{
    struct kvf_why why;

    fails_often(w);
    pass(w, 8 * S);
    kvf_peer_rdma_link(&w->peer, &why);
    comes_up(w);
    pass(w, ns);
}

static void pauses_grow_and_end(void **state)
{
    struct world *w = *state;
    struct kvf_why why;

    fails_often(w);
    assert_null(kvf_peer_rdma_link(&w->peer, &why));
    pass(w, 8 * S);
    /* In the background: nobody is made to wait for it. */
    assert_null(kvf_peer_rdma_link(&w->peer, &why));
    assert_int_equal(w->peer.rdma.state, KVF_LINK_CONNECTING);
    comes_up(w);
    assert_ptr_equal(kvf_peer_rdma_link(&w->peer, &why), &w->peer.rdma);
}

static void a_link_that_worked_starts_over(void **state)
{
    struct world *w = *state;

    worked_for(w, 10 * S);
    assert_in_range(fails(w), S / 2, S);
}

/* The session may end before the link does: a daemon that is killed. */
static void so_does_one_that_ended_with_its_session(void **state)
{
    struct world *w = *state;

    worked_for(w, 10 * S);
    kvf_peer_rdma_stop(&w->peer);
    kvf_peer_rdma_start(&w->peer, true);
    assert_in_range(fails(w), S / 2, S);
}

static void one_that_hardly_worked_does_not(void **state)
{
    struct world *w = *state;

    worked_for(w, 9 * S);
    kvf_peer_rdma_stop(&w->peer);
    kvf_peer_rdma_start(&w->peer, true);
    assert_in_range(fails(w), 12 * S, 16 * S);
}

/* Killed again and again, each time soon after its link came up. */
static void a_restarted_daemon_begins_anew(void **state)
{
    struct world *w = *state;
    struct kvf_why why;

    fails_often(w);
    for (int i = 0; i < 5; i++) {
        unsigned before = opened;

        kvf_peer_rdma_forget(&w->peer);
        kvf_peer_rdma_start(&w->peer, true);
        assert_int_equal(opened, before + 1); /* at once */
        /* A get waits for it, as for the first one ever. */
        assert_ptr_equal(kvf_peer_rdma_link(&w->peer, &why), &w->peer.rdma);
        comes_up(w);
        pass(w, S);
        assert_in_range(fails(w), S / 2, S);
    }
}

struct waiter {
    struct kvf_link_wait wait;
    unsigned told, up;
};

static void on_news(struct kvf_link_wait *wait, bool up)
{
    struct waiter *x = kvf_container_of(wait, struct waiter, wait);

    x->told++;
    x->up += up;
}

/* Our own doing says nothing about the owner: no pause, and who waits for the
 * link goes on waiting. */
static void what_we_took_down_is_made_anew_at_once(void **state)
{
    struct world *w = *state;
    struct waiter x = {.wait.fn = on_news};
    struct kvf_why why;

    kvf_list_init(&x.wait.node);
    kvf_peer_rdma_start(&w->peer, true);
    for (unsigned i = 1; i <= 8; i++) {
        assert_int_equal(opened, i);
        assert_ptr_equal(kvf_peer_rdma_link(&w->peer, &why), &w->peer.rdma);
        assert_int_equal(w->peer.rdma.state, KVF_LINK_CONNECTING);
        if (i == 5) /* also before it is up */
            assert_true(kvf_peer_await_rdma(&w->peer, &x.wait));
        else
            comes_up(w);
        kvf_sched_turn(&w->sched);
        assert_int_equal(x.told, i > 5);
        taken_along(w);
    }
    assert_int_equal(x.up, 1);
    /* What comes after it is a failure like any first one. */
    assert_in_range(fails(w), S / 2, S);
}

static void tell_key(struct world *w, uint32_t rkey)
{
    struct kvf_rdma_keys *k = calloc(1, sizeof *k + sizeof k->key[0]);
    struct kvf_peer_msg m = {.head.type = KVF_PEER_RDMA_KEYS};

    k->n = 1;
    k->key[0] = (struct kvf_rdma_key){.length = 4096, .rkey = rkey};
    m.u.rdma_keys.layout = 7;
    m.u.rdma_keys.keys = k;
    kvf_peer_rdma_message(&w->peer, &m);
    free(k);
}

/* An owner whose device was opened anew tells other keys: what points to those
 * of before finds them. */
static void new_keys_take_the_place_of_old_ones(void **state)
{
    struct world *w = *state;
    uint64_t length = 4096;
    struct kvf_far f = {.number = 7, .n_regions = 1, .length = &length};
    const struct kvf_rdma_keys *k;

    HASH_ADD(hh, w->peer.fars, number, sizeof f.number, &f);
    tell_key(w, 11);
    k = f.keys[0];
    assert_int_equal(k->key[0].rkey, 11);
    tell_key(w, 12);
    assert_ptr_equal(f.keys[0], k);
    assert_int_equal(k->key[0].rkey, 12);
    assert_int_equal(f.n_keys, 1);
    HASH_DEL(w->peer.fars, &f);
    free(f.keys[0]);
    free(f.keys);
}

static void keys_are_told_again(void **state)
{
    struct world *w = *state;
    struct kvf_guest g = {.link = 1};

    HASH_ADD(hh, w->ps.guests, link, sizeof g.link, &g);
    assert_true(kvf_told_new(&g.told_keys, 7));
    assert_false(kvf_told_new(&g.told_keys, 7));
    kvf_peers_rdma_renewed(&w->ps);
    assert_true(kvf_told_new(&g.told_keys, 7));
    kvf_told_clear(&g.told_keys);
    HASH_DEL(w->ps.guests, &g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(pauses_grow_and_end, setup, teardown),
        cmocka_unit_test_setup_teardown(a_link_that_worked_starts_over, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(so_does_one_that_ended_with_its_session,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(one_that_hardly_worked_does_not, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_restarted_daemon_begins_anew, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(what_we_took_down_is_made_anew_at_once,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(new_keys_take_the_place_of_old_ones,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(keys_are_told_again, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
