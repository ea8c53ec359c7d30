/* The loop with real sockets: the two-pass rule, bursts over ZMQ, sends from a
 * timer, queueing beyond the high-water mark, signals and the resolver. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "loop/resolver.h"
#include "loop/zsock.h"
#include "free_endpoint.h"

/* Turns the loop until cond holds; fails after ten seconds of real time. */
static void stalled(const char *cond)
{
    /* Not fail_msg: ending a ZMQ context with open sockets would hang. */
    fprintf(stderr, "stalled: %s\n", cond);
    _Exit(1);
}

#define RUN_UNTIL(r, cond)                                                     \
    do {                                                                       \
        struct kvf_sched *rs_ = kvf_reactor_sched(r);                          \
        uint64_t end_ = kvf_sched_clock(rs_) + 10 * KVF_NS_PER_S;              \
        while (!(cond)) {                                                      \
            if (kvf_sched_clock(rs_) > end_)                                   \
                stalled(#cond);                                                \
            assert_int_equal(kvf_reactor_once(r, 5 * KVF_NS_PER_S, NULL), 0);  \
        }                                                                      \
    } while (0)

static struct kvf_reactor *r;
static struct kvf_stats stats;

static int setup(void **state)
{
    (void)state;
    memset(&stats, 0, sizeof stats);
    r = kvf_reactor_create(&stats, NULL);
    return r == NULL;
}

static int teardown(void **state)
{
    (void)state;
    kvf_reactor_destroy(r);
    return 0;
}

struct probe {
    struct kvf_source src;
    unsigned drains, arms, busy, order, ready;
    struct kvf_source *victim;
};

static unsigned clock_of_calls;
static unsigned last_drain, first_arm;

static void probe_drain(struct kvf_source *src, unsigned ready, unsigned budget)
{
    struct probe *p = kvf_container_of(src, struct probe, src);
    char c[16];

    assert_true(budget > 0);
    p->drains++;
    p->ready = ready;
    last_drain = ++clock_of_calls;
    if ((ready & KVF_WANT_READ) != 0)
        assert_true(read(src->fd, c, sizeof c) > 0);
    if (p->victim != NULL)
        kvf_source_remove(p->victim);
}

static enum kvf_arm probe_arm(struct kvf_source *src)
{
    struct probe *p = kvf_container_of(src, struct probe, src);

    p->arms++;
    clock_of_calls++;
    if (first_arm == 0)
        first_arm = clock_of_calls;
    return p->busy != 0 && p->busy-- != 0 ? KVF_ARM_BUSY : KVF_ARM_QUIET;
}

static const struct kvf_source_ops probe_ops = {probe_drain, probe_arm};

static void pair(int fd[2])
{
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fd),
                     0);
}

static void test_two_passes(void **state)
{
    int a[2], b[2];
    struct probe pa = {.busy = 0}, pb = {.busy = 0};

    (void)state;
    pair(a);
    pair(b);
    assert_int_equal(
        kvf_source_add(r, &pa.src, "a", &probe_ops, a[0], KVF_WANT_READ, NULL),
        0);
    assert_int_equal(
        kvf_source_add(r, &pb.src, "b", &probe_ops, b[0], KVF_WANT_READ, NULL),
        0);
    kvf_reactor_once(r, 0, NULL);
    assert_int_equal(pa.arms, 1); /* a source starts touched */
    assert_int_equal(pa.drains, 0);

    assert_int_equal(write(a[1], "x", 1), 1);
    assert_int_equal(write(b[1], "x", 1), 1);
    clock_of_calls = first_arm = last_drain = 0;
    kvf_reactor_once(r, KVF_NS_PER_S, NULL); /* drains both */
    assert_int_equal(pa.drains, 1);
    assert_int_equal(pb.drains, 1);
    kvf_reactor_once(r, 0, NULL); /* arms both */
    assert_true(first_arm > last_drain);

    /* BUSY: drained again without the descriptor, with ready = 0. */
    pa.busy = 3;
    pa.drains = 0;
    kvf_source_touch(&pa.src);
    for (int i = 0; i < 6; i++)
        kvf_reactor_once(r, 0, NULL);
    assert_int_equal(pa.drains, 3);
    assert_int_equal(pa.ready, 0);

    /* Writable, then no longer of interest. */
    kvf_source_want(&pb.src, KVF_WANT_READ | KVF_WANT_WRITE);
    pb.drains = 0;
    RUN_UNTIL(r, pb.drains == 2);
    assert_int_equal(pb.ready, KVF_WANT_WRITE);
    kvf_source_want(&pb.src, 0);
    pb.drains = 0;
    for (int i = 0; i < 4; i++)
        kvf_reactor_once(r, 0, NULL);
    assert_true(pb.drains <= 1); /* the last report, if any, with ready = 0 */
    assert_int_equal(pb.drains != 0 ? pb.ready : 0, 0);

    kvf_source_remove(&pa.src);
    kvf_source_remove(&pb.src);
    kvf_source_remove(&pb.src);
    close(a[0]);
    close(a[1]);
    close(b[0]);
    close(b[1]);
}

/* Each wants to remove the other while both are ready: one must win. */
static void test_remove_in_drain(void **state)
{
    int a[2], b[2];
    struct probe pa = {.busy = 0}, pb = {.busy = 0}, self = {.busy = 0};

    (void)state;
    pair(a);
    pair(b);
    kvf_source_add(r, &pa.src, "a", &probe_ops, a[0], KVF_WANT_READ, NULL);
    kvf_source_add(r, &pb.src, "b", &probe_ops, b[0], KVF_WANT_READ, NULL);
    pa.victim = &pb.src;
    pb.victim = &pa.src;
    kvf_source_kick(&pa.src);
    kvf_source_kick(&pb.src);
    kvf_reactor_once(r, 0, NULL);
    assert_int_equal(pa.drains + pb.drains, 1);
    kvf_source_remove(&pa.src);
    kvf_source_remove(&pb.src);

    kvf_source_add(r, &self.src, "self", &probe_ops, a[0], KVF_WANT_READ, NULL);
    self.victim = &self.src;
    kvf_source_kick(&self.src);
    kvf_reactor_once(r, 0, NULL);
    kvf_reactor_once(r, 0, NULL);
    assert_int_equal(self.drains, 1);
    assert_null(self.src.reactor);
    close(a[0]);
    close(a[1]);
    close(b[0]);
    close(b[1]);
}

static unsigned fired;
static int got_signal;

static void on_fire(struct kvf_timer *t)
{
    (void)t;
    fired++;
}

static void on_usr(void *arg, int signo)
{
    got_signal = signo;
    kvf_reactor_stop(arg);
}

static void test_timer_and_idle(void **state)
{
    struct kvf_sched *s = kvf_reactor_sched(r);
    struct kvf_timer t;
    uint64_t start = kvf_sched_clock(s), turns = s->turns;

    (void)state;
    fired = 0;
    kvf_timer_init(&t, on_fire);
    kvf_timer_set(s, &t, start + 300 * KVF_NS_PER_US);
    RUN_UNTIL(r, fired == 1);
    assert_true(kvf_sched_clock(s) - start >= 300 * KVF_NS_PER_US);
    kvf_timer_set(s, &t, kvf_sched_clock(s) + 30 * KVF_NS_PER_MS);
    RUN_UNTIL(r, fired == 2);
    /* It slept: no polling while it waited. */
    assert_true(s->turns - turns <= 10);
    assert_true(stats.loop_lag_us.count > 0);
}

static void test_signal(void **state)
{
    (void)state;
    got_signal = 0;
    assert_int_equal(kvf_reactor_signal(r, SIGUSR2, on_usr, r, NULL), 0);
    raise(SIGUSR2);
    assert_int_equal(got_signal, 0); /* not in signal context */
    assert_int_equal(kvf_reactor_run(r, NULL), 0);
    assert_int_equal(got_signal, SIGUSR2);
}

#define IDLEN 16

struct side {
    struct kvf_zsock *s;
    unsigned got, wrote, undeliverable, overlong;
    uint64_t last_cookie;
    bool echo, delayed, close_at_first;
    struct kvf_timer timer;
    unsigned owed;
    size_t last_parts, last_size;
    char id[IDLEN];
    size_t id_len;
    char address[64];
};

static struct kvf_zctx *z;
static char endpoint[128];

static int z_setup(void **state)
{
    z = kvf_zctx_create(NULL);
    return z == NULL || setup(state) != 0;
}

static int z_teardown(void **state)
{
    kvf_zctx_destroy(z);
    return teardown(state);
}

static void reply(struct side *m)
{
    struct kvf_frame f[2] = {{m->id, m->id_len}, {"pong", 4}};

    assert_int_equal(kvf_zsock_send(m->s, f, 2, 1), 0);
}

static void side_timer(struct kvf_timer *t)
{
    struct side *m = kvf_container_of(t, struct side, timer);
    struct kvf_sched *s = kvf_reactor_sched(r);
    uint64_t until = kvf_sched_clock(s) + 200 * KVF_NS_PER_US;

    /* Work first, so that new messages arrive before the send. */
    while (kvf_sched_clock(s) < until)
        ;
    for (; m->owed != 0; m->owed--)
        reply(m);
}

static void side_message(void *arg, const struct kvf_zmsg *msg)
{
    struct side *m = arg;
    struct kvf_sched *s = kvf_reactor_sched(r);

    m->got++;
    m->last_parts = msg->n;
    m->last_size = msg->part[msg->n - 1].size;
    m->overlong += msg->overlong;
    snprintf(m->address, sizeof m->address, "%s", msg->peer_address);
    if (m->close_at_first) {
        kvf_zsock_close(m->s, 0);
        m->s = NULL;
        return;
    }
    if (!m->echo && !m->delayed)
        return;
    assert_true(msg->part[0].size <= IDLEN);
    memcpy(m->id, msg->part[0].data, msg->part[0].size);
    m->id_len = msg->part[0].size;
    if (m->echo) {
        reply(m);
        return;
    }
    m->owed++;
    if (!kvf_timer_armed(&m->timer))
        kvf_timer_set(s, &m->timer, s->now_ns + 300 * KVF_NS_PER_US);
}

static void side_undeliverable(void *arg, uint64_t cookie)
{
    struct side *m = arg;

    m->undeliverable++;
    m->last_cookie = cookie;
}

static void side_writable(void *arg)
{
    ((struct side *)arg)->wrote++;
}

static const struct kvf_zsock_ops side_ops = {side_message, side_undeliverable,
                                              side_writable, NULL};

static void open_side(struct side *m, enum kvf_zsock_type type, int hwm,
                      bool immediate)
{
    struct kvf_zsock_opts o = {.hwm = hwm,
                               .mandatory = true,
                               .handover = true,
                               .immediate = immediate,
                               .max_frame = 1 << 20,
                               .reconnect_ms = 5,
                               .reconnect_max_ms = 20};

    memset(m, 0, sizeof *m);
    kvf_timer_init(&m->timer, side_timer);
    assert_int_equal(
        kvf_zsock_open(z, r, type, "test", &o, &side_ops, m, &m->s, NULL), 0);
}

static void open_both(struct side *router, struct side *dealer, int hwm)
{
    open_side(router, KVF_ZSOCK_ROUTER, hwm, false);
    assert_int_equal(kvf_zsock_bind(router->s, "tcp://127.0.0.1:*", endpoint,
                                    sizeof endpoint, NULL),
                     0);
    open_side(dealer, KVF_ZSOCK_DEALER, 0, true);
    assert_int_equal(kvf_zsock_connect(dealer->s, endpoint, NULL), 0);
    RUN_UNTIL(r, dealer->wrote == 1); /* the connection was made */
}

static void ping(struct side *d, unsigned n)
{
    struct kvf_frame f = {"ping", 4};

    for (unsigned i = 0; i < n; i++)
        assert_int_equal(kvf_zsock_send(d->s, &f, 1, 0), 0);
}

static void test_bursts(void **state)
{
    struct side ro, de;
    unsigned sent = 0;

    (void)state;
    open_both(&ro, &de, 0);
    ro.echo = true;
    for (unsigned burst = 1; burst <= 60; burst++) {
        ping(&de, burst * 3);
        sent += burst * 3;
        RUN_UNTIL(r, de.got == sent);
    }
    assert_int_equal(ro.got, sent);
    assert_string_equal(ro.address, "127.0.0.1");
    kvf_zsock_close(ro.s, 0);
    kvf_zsock_close(de.s, 0);
}

static void test_send_from_timer(void **state)
{
    struct side ro, de;
    unsigned sent = 0;

    (void)state;
    open_both(&ro, &de, 0);
    ro.delayed = true;
    for (unsigned i = 0; i < 200; i++) {
        ping(&de, 2);
        sent += 2;
        RUN_UNTIL(r, de.got + 4 > sent); /* two or so stay open */
    }
    RUN_UNTIL(r, de.got == sent);
    kvf_zsock_close(ro.s, 0);
    kvf_zsock_close(de.s, 0);
}

static void test_parts(void **state)
{
    struct side ro, de;
    struct kvf_frame f[12];

    (void)state;
    open_both(&ro, &de, 0);
    for (unsigned i = 0; i < 12; i++)
        f[i] = (struct kvf_frame){"abcdefghijkl", i};
    assert_int_equal(kvf_zsock_send(de.s, f, 12, 0), 0);
    RUN_UNTIL(r, ro.got == 1);
    assert_int_equal(ro.overlong, 1);
    assert_int_equal(ro.last_parts, KVF_ZMSG_PARTS);
    /* The rest was dropped, not taken for another message. */
    assert_int_equal(kvf_zsock_send(de.s, f, 7, 0), 0);
    RUN_UNTIL(r, ro.got == 2);
    assert_int_equal(ro.overlong, 1);
    assert_int_equal(ro.last_parts, 8);
    assert_int_equal(ro.last_size, 6);
    kvf_zsock_close(ro.s, 0);
    kvf_zsock_close(de.s, 0);
}

static void test_unknown_id(void **state)
{
    struct side ro;
    struct kvf_frame f[2] = {{"nobody", 6}, {"x", 1}};

    (void)state;
    open_side(&ro, KVF_ZSOCK_ROUTER, 0, false);
    assert_int_equal(kvf_zsock_send(ro.s, f, 2, 7), -KVF_PEER_UNREACHABLE);
    assert_int_equal(ro.undeliverable, 0);
    kvf_zsock_close(ro.s, 0);
}

static void fill(struct side *ro, unsigned n)
{
    static char big[60000];
    struct kvf_frame f[2] = {{ro->id, ro->id_len}, {big, sizeof big}};

    for (unsigned i = 0; i < n; i++)
        assert_int_equal(kvf_zsock_send(ro->s, f, 2, 1000 + i), 0);
}

static void meet(struct side *ro, struct side *de)
{
    open_both(ro, de, 2);
    ro->echo = true;
    ping(de, 1);
    RUN_UNTIL(r, de->got == 1);
    ro->echo = false;
    de->got = 0;
}

static void test_queue(void **state)
{
    struct side ro, de;

    (void)state;
    meet(&ro, &de);
    fill(&ro, 1000);
    assert_true(kvf_zsock_queued(ro.s) > 0);
    RUN_UNTIL(r, de.got == 1000);
    assert_int_equal(kvf_zsock_queued(ro.s), 0);
    assert_int_equal(ro.undeliverable, 0);
    kvf_zsock_close(ro.s, 0);
    kvf_zsock_close(de.s, 0);
}

static void test_undeliverable(void **state)
{
    struct side ro, de;
    size_t queued;

    (void)state;
    meet(&ro, &de);
    fill(&ro, 1000);
    queued = kvf_zsock_queued(ro.s);
    assert_true(queued > 0);
    kvf_zsock_close(de.s, 0);
    assert_int_equal(ro.undeliverable, 0);
    RUN_UNTIL(r, kvf_zsock_queued(ro.s) == 0);
    assert_true(ro.undeliverable > 0 && ro.undeliverable <= queued);
    assert_int_equal(ro.last_cookie, 1999);
    kvf_zsock_close(ro.s, 0);
}

static void test_dealer_busy(void **state)
{
    struct side ro, de;
    struct kvf_frame f = {"x", 1};
    unsigned got;

    (void)state;
    free_endpoint(endpoint, sizeof endpoint);
    open_side(&de, KVF_ZSOCK_DEALER, 4, true);
    assert_int_equal(kvf_zsock_connect(de.s, endpoint, NULL), 0);
    assert_int_equal(kvf_zsock_send(de.s, &f, 1, 0), -KVF_BUSY);
    kvf_reactor_once(r, 0, NULL);
    assert_int_equal(de.wrote, 0);
    open_side(&ro, KVF_ZSOCK_ROUTER, 0, false);
    RUN_UNTIL(r, kvf_zsock_bind(ro.s, endpoint, NULL, 0, NULL) == 0);
    RUN_UNTIL(r, de.wrote == 1);
    got = ro.got;
    assert_int_equal(kvf_zsock_send(de.s, &f, 1, 0), 0);
    RUN_UNTIL(r, ro.got == got + 1);
    kvf_zsock_close(ro.s, 0);
    kvf_zsock_close(de.s, 0);
}

static void test_close_in_callback(void **state)
{
    struct side ro, de;

    (void)state;
    open_both(&ro, &de, 0);
    ro.close_at_first = true;
    ping(&de, 10);
    RUN_UNTIL(r, ro.got == 1);
    assert_null(ro.s);
    kvf_reactor_once(r, KVF_NS_PER_MS, NULL);
    assert_int_equal(ro.got, 1);
    kvf_zsock_close(de.s, 0);
}

struct answer {
    unsigned n;
    char addr[64];
};

static void on_addr(void *arg, const char *addr, const struct kvf_why *why)
{
    struct answer *a = arg;

    a->n++;
    snprintf(a->addr, sizeof a->addr, "%s", addr != NULL ? addr : "");
    if (addr == NULL)
        assert_int_not_equal(why->status, KVF_OK);
}

static void test_resolver(void **state)
{
    struct kvf_resolver *rs;
    struct answer a = {0}, b = {0}, c = {0}, d = {0};
    char here[64], longname[400];

    (void)state;
    assert_int_equal(kvf_resolver_create(r, &rs, NULL), 0);
    memset(longname, 'a', sizeof longname);
    longname[sizeof longname - 1] = '\0';
    kvf_resolve_start(rs, "10.1.2.3", on_addr, &a);
    kvf_resolve_start(rs, "localhost", on_addr, &b);
    kvf_resolve_start(rs, longname, on_addr, &c);
    kvf_resolve_cancel(kvf_resolve_start(rs, "::1", on_addr, &d));
    /* With evdns when the resolver goes away: no call, no leak. */
    kvf_resolve_start(rs, "name.invalid", on_addr, &d);
    assert_int_equal(a.n + b.n + c.n, 0);
    RUN_UNTIL(r, a.n == 1 && b.n == 1 && c.n == 1);
    assert_string_equal(a.addr, "10.1.2.3");
    assert_string_equal(b.addr, "127.0.0.1");
    assert_string_equal(c.addr, "");
    d.n = 0;
    kvf_resolver_destroy(rs);
    kvf_reactor_once(r, 0, NULL);
    assert_int_equal(d.n, 0);

    assert_true(kvf_addr_is_numeric("fe80::1%eth0"));
    assert_true(kvf_addr_is_numeric("1.2.3.4"));
    assert_false(kvf_addr_is_numeric("1.2.3"));
    assert_false(kvf_addr_is_numeric("host"));
    kvf_addr_of_this_host(here, sizeof here);
    assert_true(kvf_addr_is_numeric(here));
}

#define PLAIN(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
#define ZMQ(f) cmocka_unit_test_setup_teardown(f, z_setup, z_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        PLAIN(test_two_passes),
        PLAIN(test_remove_in_drain),
        PLAIN(test_timer_and_idle),
        PLAIN(test_signal),
        ZMQ(test_bursts),
        ZMQ(test_send_from_timer),
        ZMQ(test_parts),
        ZMQ(test_unknown_id),
        ZMQ(test_queue),
        ZMQ(test_undeliverable),
        ZMQ(test_dealer_busy),
        ZMQ(test_close_in_callback),
        PLAIN(test_resolver),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
