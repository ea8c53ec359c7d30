/* When transfers try again, and over what: the policy alone; the choice of a
 * link with a peer that is faked; who waits for a peer's rdma link. */
#include "peer/peers_private.h"
#include "request/retry.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MS KVF_NS_PER_MS

/* ---- a faked peer ------------------------------------------------------- */

static const struct kvf_transport_ops shm_ops = {"shm", .caps = KVF_CAP_READ};
static const struct kvf_transport_ops rdma_ops = {"rdma", .caps = KVF_CAP_READ |
                                                                  KVF_CAP_RUNS};
static const struct kvf_transport_ops tcp_ops = {"tcp", .caps = KVF_CAP_READ |
                                                                KVF_CAP_RUNS};
static struct kvf_transport shm = {.ops = &shm_ops}, rdma = {.ops = &rdma_ops},
                            tcp = {.ops = &tcp_ops};
static struct kvf_link shm_link = {.transport = &shm},
                       rdma_link = {.transport = &rdma},
                       tcp_link = {.transport = &tcp};
static bool has_link[3]; /* by enum kvf_protocol */
static unsigned given_back, again;
static struct kvf_conf conf;

struct kvf_link *kvf_peer_link(struct kvf_peer *p, enum kvf_protocol proto,
                               struct kvf_why *why)
{
    (void)p;
    if (proto == KVF_PROTO_SHM && has_link[0])
        return &shm_link;
    if (proto == KVF_PROTO_RDMA && has_link[1])
        return &rdma_link;
    if (proto == KVF_PROTO_TCP && has_link[2])
        return &tcp_link;
    kvf_fail(why, KVF_TRANSPORT, "no such link");
    return NULL;
}

const char *kvf_peer_name(const struct kvf_peer *p)
{
    return p->name;
}

void kvf_grant_give_back(struct kvf_grant *g)
{
    g->lost = true;
    given_back++;
}

void kvf_peer_rdma_again(struct kvf_peer *p)
{
    p->rdma.state = KVF_LINK_CONNECTING;
    again++;
}

static void protocols(const char *names)
{
    memset(&conf, 0, sizeof conf);
    conf.attempts = 5;
    conf.backoff_ms = 20;
    conf.backoff_max_ms = 2000;
    conf.peer_timeout_ms = 2000;
    for (; *names != '\0'; names++)
        conf.protocol[conf.n_protocol++] = *names == 's'   ? KVF_PROTO_SHM
                                           : *names == 'r' ? KVF_PROTO_RDMA
                                                           : KVF_PROTO_TCP;
    memset(has_link, 0, sizeof has_link);
    given_back = again = 0;
}

/* ---- the policy --------------------------------------------------------- */

static struct kvf_retry_facts facts(unsigned attempts)
{
    return (struct kvf_retry_facts){.attempts = attempts,
                                    .max = 5,
                                    .remote = true,
                                    .up = true,
                                    .heard_ns = 2000 * MS,
                                    .now_ns = 1000 * MS};
}

static void test_the_next_transport_follows_and_tcp_stays(void **state)
{
    struct kvf_retry r = {0};
    struct kvf_retry_facts f = facts(1);
    uint64_t fallbacks = 0;

    (void)state;
    protocols("srt");
    assert_int_equal(kvf_retry_failed(&r, &conf, &f, &fallbacks), 1);
    assert_int_equal(r.proto_at, 1);
    assert_int_equal(kvf_retry_failed(&r, &conf, &f, &fallbacks), 1);
    assert_int_equal(r.proto_at, 2);
    assert_int_equal(kvf_retry_failed(&r, &conf, &f, &fallbacks), 1);
    assert_int_equal(r.proto_at, 2);
    assert_int_equal(fallbacks, 2);
    r.proto_at = 3; /* none was left: all over again */
    kvf_retry_failed(&r, &conf, &f, &fallbacks);
    assert_int_equal(r.proto_at, 0);
    assert_int_equal(fallbacks, 2);
    protocols("r"); /* the same once more is no fallback */
    kvf_retry_failed(&r, &conf, &f, &fallbacks);
    assert_int_equal(r.proto_at, 0);
    assert_int_equal(fallbacks, 2);
}

static void test_the_last_attempt_is_the_last(void **state)
{
    struct kvf_retry r = {0};
    struct kvf_retry_facts f = facts(5);
    uint64_t fallbacks = 0;

    (void)state;
    protocols("st");
    assert_int_equal(kvf_retry_failed(&r, &conf, &f, &fallbacks), 5);
    assert_int_equal(r.proto_at, 0);
    assert_int_equal(fallbacks, 0);
    f = facts(1);
    f.up = false; /* dead: no attempt can help */
    assert_int_equal(kvf_retry_failed(&r, &conf, &f, &fallbacks), 5);
}

static void test_the_verdict_on_a_silent_peer_is_awaited(void **state)
{
    struct kvf_retry r = {0};
    struct kvf_retry_facts f = facts(5);
    struct kvf_rng rng;
    uint64_t fallbacks = 0, ns;

    (void)state;
    protocols("t");
    kvf_rng_seed(&rng, 1);
    f.heard_ns = 900 * MS;
    assert_int_equal(kvf_retry_failed(&r, &conf, &f, &fallbacks), 4);
    assert_true(r.t_out == 1000 * MS);
    ns = kvf_retry_pause_ns(&r, &conf, &rng, 4);
    assert_in_range(ns, 500 * MS, 1000 * MS);
    f.now_ns = 1500 * MS; /* still not heard of since */
    assert_int_equal(kvf_retry_failed(&r, &conf, &f, &fallbacks), 4);
    f.heard_ns = 1600 * MS; /* it lives: the attempts were used up */
    assert_int_equal(kvf_retry_failed(&r, &conf, &f, &fallbacks), 5);
    r.t_out = 0;
    f.heard_ns = 0;
    f.attempts = f.max = 1; /* one attempt is one */
    assert_int_equal(kvf_retry_failed(&r, &conf, &f, &fallbacks), 1);
    f = facts(5);
    f.remote = f.up = false;
    f.heard_ns = 0;
    assert_int_equal(kvf_retry_failed(&r, &conf, &f, &fallbacks), 5);
}

static void test_pauses_double_and_are_bounded(void **state)
{
    static const uint64_t want[] = {20, 20, 40, 80, 160, 320, 640, 1280, 2000};
    struct kvf_retry r = {0};
    struct kvf_rng rng;

    (void)state;
    protocols("t");
    kvf_rng_seed(&rng, 7);
    for (unsigned i = 0; i < 1000; i++) {
        unsigned n = i % 60;
        uint64_t ms = n < 9 ? want[n] : 2000;
        uint64_t ns = kvf_retry_pause_ns(&r, &conf, &rng, n);

        assert_in_range(ns, ms * MS / 2, ms * MS);
    }
    r.pause = KVF_PAUSE_OWNER; /* by how often the owner was asked */
    r.unready = 3;
    assert_in_range(kvf_retry_pause_ns(&r, &conf, &rng, 0), 40 * MS, 80 * MS);
}

/* ---- the way ------------------------------------------------------------ */

struct way {
    struct kvf_peer peer;
    struct kvf_grant grant;
    struct kvf_retry r;
    struct kvf_link *link;
    struct kvf_why why;
    unsigned calls;
};

static void on_again(struct kvf_retry *r)
{
    kvf_container_of(r, struct way, r)->calls++;
}

static struct kvf_peers peers;
static struct kvf_sched sched;
static uint64_t now_ns;

static uint64_t clock_of_test(void *arg)
{
    return *(uint64_t *)arg;
}

static void way_init(struct way *w, const char *names)
{
    memset(w, 0, sizeof *w);
    kvf_sched_fini(&sched);
    now_ns = 0;
    kvf_sched_init(&sched, clock_of_test, &now_ns);
    peers.env.sched = &sched;
    protocols(names);
    w->peer.ps = &peers;
    w->peer.state = KVF_PEER_UP;
    w->peer.has_rdma = true;
    w->peer.rdma.state = KVF_LINK_CONNECTING;
    snprintf(w->peer.name, sizeof w->peer.name, "0.1");
    kvf_peer_await_init(&w->peer);
    kvf_retry_init(&w->r, on_again);
}

static enum kvf_way find(struct way *w, unsigned caps)
{
    w->link = NULL;
    return kvf_way_find(&w->r, &conf, &w->peer, &w->grant, caps, &w->link,
                        &w->why);
}

static void turn(uint64_t ns)
{
    now_ns += ns;
    (void)kvf_sched_turn(&sched);
}

static void test_the_first_that_can_is_taken(void **state)
{
    struct way w;

    (void)state;
    way_init(&w, "srt");
    has_link[0] = has_link[1] = has_link[2] = true;
    w.grant.shm = true;
    assert_int_equal(find(&w, 0), KVF_WAY_LINK);
    assert_ptr_equal(w.link, &shm_link);
    assert_string_equal(w.r.transport, "shm");
    /* no scattered transfers there: the next */
    w.grant.rdma = true;
    assert_int_equal(find(&w, KVF_CAP_RUNS), KVF_WAY_LINK);
    assert_ptr_equal(w.link, &rdma_link);
    assert_int_equal(w.r.proto_at, 1);
    w.grant.rdma = false;
    assert_int_equal(find(&w, 0), KVF_WAY_LINK);
    assert_ptr_equal(w.link, &tcp_link);
    has_link[2] = false;
    assert_int_equal(find(&w, 0), KVF_WAY_NONE);
    assert_int_equal(w.why.status, KVF_TRANSPORT);
}

static void test_with_tcp_nobody_waits_for_rdma(void **state)
{
    struct way w;

    (void)state;
    way_init(&w, "srt");
    has_link[2] = true;
    w.grant.rdma_soon = true;
    assert_int_equal(find(&w, 0), KVF_WAY_LINK);
    assert_ptr_equal(w.link, &tcp_link);
}

static void test_a_link_that_comes_up_is_waited_for(void **state)
{
    struct way w;

    (void)state;
    way_init(&w, "r");
    w.grant.rdma_soon = true;
    assert_int_equal(find(&w, 0), KVF_WAY_WAIT);
    assert_int_equal(w.r.pause, KVF_PAUSE_LINK);
    assert_string_equal(kvf_way_awaited(&w.r), "");
    assert_true(kvf_way_wait(&w.r, &w.peer));
    assert_non_null(strstr(kvf_way_awaited(&w.r), "coming up"));
    turn(3000 * MS);
    assert_int_equal(w.calls, 0);
    w.peer.rdma.state = KVF_LINK_UP;
    kvf_peer_await_tell(&w.peer, true);
    assert_int_equal(w.calls, 0); /* never from inside */
    turn(0);
    assert_int_equal(w.calls, 1);
    assert_string_equal(kvf_way_awaited(&w.r), "");
    /* What was granted before has no keys: given back and asked for again. */
    assert_int_equal(find(&w, 0), KVF_WAY_WAIT);
    assert_int_equal(w.r.pause, KVF_PAUSE_OWNER);
    assert_int_equal(given_back, 1);
    assert_true(w.grant.lost);
    w.grant = (struct kvf_grant){.rdma = true};
    has_link[1] = true;
    assert_int_equal(find(&w, 0), KVF_WAY_LINK);
    assert_int_equal(w.r.unready, 0);
    kvf_peer_await_end(&w.peer);
}

static void test_a_link_that_fails_is_an_attempt(void **state)
{
    struct way w;

    (void)state;
    way_init(&w, "r");
    w.grant.rdma_soon = true;
    assert_int_equal(find(&w, 0), KVF_WAY_WAIT);
    assert_true(kvf_way_wait(&w.r, &w.peer));
    w.peer.rdma.state = KVF_LINK_DOWN;
    kvf_fail(&w.peer.rdma_why, KVF_TRANSPORT, "refused");
    kvf_peer_await_tell(&w.peer, false);
    turn(0);
    assert_int_equal(w.calls, 1);
    assert_int_equal(find(&w, 0), KVF_WAY_NONE);
    assert_string_equal(w.why.text, "refused");
    /* The next one waits for the next try. */
    assert_int_equal(find(&w, 0), KVF_WAY_WAIT);
    kvf_peer_await_end(&w.peer);
}

static void test_its_pause_is_waited_for_too(void **state)
{
    struct way w;

    (void)state;
    way_init(&w, "sr");
    w.peer.rdma.state = KVF_LINK_DOWN;
    w.peer.rdma_again_ns = 800 * MS;
    w.grant.rdma = true;
    assert_int_equal(find(&w, 0), KVF_WAY_WAIT);
    assert_true(kvf_way_wait(&w.r, &w.peer));
    turn(700 * MS);
    assert_int_equal(again, 0);
    turn(200 * MS);
    assert_int_equal(again, 1);
    assert_int_equal(w.calls, 0); /* it is on its way */
    kvf_way_leave(&w.r);
    kvf_peer_await_tell(&w.peer, true);
    turn(MS);
    assert_int_equal(w.calls, 0);
    kvf_peer_await_end(&w.peer);
}

/* Several wait; one leaves from inside another's callback, one comes back. */
static struct way *leaver, *stayer;
static void leave_other(struct kvf_retry *r)
{
    on_again(r);
    kvf_way_leave(&leaver->r);
    kvf_way_wait(&stayer->r, &stayer->peer);
}

static void test_those_who_leave_hear_nothing(void **state)
{
    static struct way a, b;

    (void)state;
    way_init(&b, "r");
    way_init(&a, "r");
    a.r.again = leave_other;
    leaver = &b;
    stayer = &a;
    assert_true(kvf_way_wait(&a.r, &a.peer));
    assert_true(kvf_way_wait(&b.r, &a.peer));
    kvf_peer_await_tell(&a.peer, false);
    turn(0);
    assert_int_equal(a.calls, 1);
    assert_int_equal(b.calls, 0);
    a.r.again = on_again;
    kvf_peer_await_tell(&a.peer, false);
    turn(0);
    assert_int_equal(a.calls, 2);
    kvf_peer_await_end(&a.peer);
}

static void test_what_cannot_come_is_not_waited_for(void **state)
{
    struct way w;

    (void)state;
    way_init(&w, "r");
    assert_int_equal(find(&w, 0), KVF_WAY_NONE); /* the owner says: never */
    w.grant.rdma_soon = true;
    w.peer.has_rdma = false;
    assert_int_equal(find(&w, 0), KVF_WAY_NONE);
    assert_false(kvf_way_wait(&w.r, &w.peer));
    w.peer.has_rdma = true;
    w.peer.state = KVF_PEER_DOWN;
    assert_int_equal(find(&w, 0), KVF_WAY_NONE);
    w.peer.state = KVF_PEER_UP;
    w.grant.shm = true; /* it was granted over shm: the owner need not know */
    assert_int_equal(find(&w, 0), KVF_WAY_NONE);
    protocols("t");
    w.grant.shm = false;
    assert_int_equal(find(&w, 0), KVF_WAY_NONE);
    w.peer.rdma.state = KVF_LINK_UP;
    protocols("r");
    w.grant.rdma = true; /* its link was tried and is not to be had */
    assert_int_equal(find(&w, 0), KVF_WAY_NONE);
    assert_int_equal(given_back, 0);
}

static int begin(void **state)
{
    (void)state;
    kvf_sched_init(&sched, clock_of_test, &now_ns);
    return 0;
}

static int end(void **state)
{
    (void)state;
    kvf_sched_fini(&sched);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_next_transport_follows_and_tcp_stays),
        cmocka_unit_test(test_the_last_attempt_is_the_last),
        cmocka_unit_test(test_the_verdict_on_a_silent_peer_is_awaited),
        cmocka_unit_test(test_pauses_double_and_are_bounded),
        cmocka_unit_test(test_the_first_that_can_is_taken),
        cmocka_unit_test(test_with_tcp_nobody_waits_for_rdma),
        cmocka_unit_test(test_a_link_that_comes_up_is_waited_for),
        cmocka_unit_test(test_a_link_that_fails_is_an_attempt),
        cmocka_unit_test(test_its_pause_is_waited_for_too),
        cmocka_unit_test(test_those_who_leave_hear_nothing),
        cmocka_unit_test(test_what_cannot_come_is_not_waited_for),
    };

    return cmocka_run_group_tests(tests, begin, end);
}
