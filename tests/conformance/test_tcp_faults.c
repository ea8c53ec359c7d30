/* What only tcp can go through: owners that refuse or go away, and callers that
 * are nobody's. */
#include "rig.h"

#include "wire/frame.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

static void fail_with(struct rig *r, struct pull *p, int status)
{
    pull_start(p, &r->link);
    rig_until(r, &p->calls, 3000);
    assert_int_equal(p->status, status);
}

static void refused(void **state)
{
    struct rig r;
    struct pull p;

    (void)state;
    rig_open(&r, RIG_TCP, 4 * MIB);
    pull_init(&p, &r, false);
    r.remote.token.b[0] ^= 1;
    fail_with(&r, &p, -KVF_DENIED);
    assert_non_null(strstr(p.why.text, "owner"));
    r.remote.token.b[0] ^= 1;
    r.remote.claim++;
    fail_with(&r, &p, -KVF_STALE);
    r.remote.claim--;
    /* A refusal is an answer: the connection goes on. */
    pull_start(&p, &r.link);
    rig_until(&r, &p.calls, 3000);
    assert_int_equal(p.status, 0);
    assert_int_equal(r.downs, 0);
    assert_int_equal(r.stats.tcp_accepts, 1);
    pull_end(&p);

    /* A refused WRITE is drained, and the next one works. */
    pull_init(&p, &r, true);
    memset(p.mem, 7, r.size);
    r.remote.claim++;
    fail_with(&r, &p, -KVF_STALE);
    r.remote.claim--;
    pull_start(&p, &r.link);
    rig_until(&r, &p.calls, 3000);
    assert_int_equal(p.status, 0);
    assert_int_equal(r.stats.tcp_accepts, 1);
    assert_memory_equal(p.mem, r.payload, r.size);
    pull_end(&p);
    rig_close(&r);
}

/* The claim ends between two parts of one answer: no mix, but a failure. */
static void claim_ends_in_the_middle(void **state)
{
    struct rig r;
    struct pull p;

    (void)state;
    for (int after = 0; after < 8; after++) {
        rig_open(&r, RIG_TCP, 3 * MIB);
        r.piece = 2000; /* several parts an answer */
        pull_init(&p, &r, false);
        r.refuse_after = after;
        pull_start(&p, &r.link);
        rig_until(&r, &p.calls, 3000);
        assert_true(p.status < 0);
        pull_end(&p);
        rig_close(&r);
    }
}

static void wrong_secret(void **state)
{
    struct rig r;
    struct pull p;

    (void)state;
    rig_open(&r, RIG_TCP, MIB);
    kvf_link_close(&r.link);
    r.addr.secret[31] ^= 1;
    assert_int_equal(rig_link(&r, &r.link), 0);
    pull_init(&p, &r, false);
    fail_with(&r, &p, -KVF_TRANSPORT);
    assert_non_null(strstr(p.why.text, "127.0.0.1:"));
    rig_until(&r, &r.downs, 1000);
    assert_int_equal(r.stats.tcp_rejected, 1);
    assert_int_equal(r.resolves, 0);
    pull_end(&p);
    rig_close(&r);
}

/* Within a host neither side paces what it sends. */
static void same_host(void **state)
{
    struct rig r;
    struct pull p;
    unsigned ends = 0;

    (void)state;
    rig_open(&r, RIG_TCP, MIB);
    pull_init(&p, &r, false);
    pull_start(&p, &r.link);
    rig_until(&r, &p.calls, 3000);
    for (int fd = 3; fd < 256; fd++) {
        struct sockaddr_storage sa;
        socklen_t len = sizeof sa, name_len = 16;
        char name[16] = "";

        if (getpeername(fd, (struct sockaddr *)&sa, &len) != 0 ||
            sa.ss_family != AF_INET)
            continue;
        ends++;
        assert_int_equal(
            getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &name_len), 0);
        assert_string_equal(name, "reno");
    }
    assert_int_equal(ends, 2);
    pull_end(&p);
    rig_close(&r);
}

static void nobody_listens(void **state)
{
    struct rig r;
    struct pull p;

    (void)state;
    rig_open(&r, RIG_TCP, MIB);
    kvf_link_close(&r.link);
    kvf_tcp_unlisten(r.owner);
    assert_int_equal(rig_link(&r, &r.link), 0);
    pull_init(&p, &r, false);
    fail_with(&r, &p, -KVF_PEER_UNREACHABLE);
    assert_non_null(strstr(p.why.text, "refused"));
    rig_until(&r, &r.downs, 1000);
    assert_int_equal(r.downs, 1);
    assert_int_equal(r.ups, 0);
    fail_with(&r, &p, -KVF_PEER_UNREACHABLE); /* the link stays down */
    kvf_link_close(&r.link);
    strcpy(r.addr.host, "localhost");
    assert_int_equal(rig_link(&r, &r.link), -KVF_INVALID);
    pull_end(&p);
    rig_close(&r);
}

static void expelled(void **state)
{
    unsigned failed = 0;

    (void)state;
    for (unsigned turns = 0; turns < 24; turns += 2) {
        struct rig r;
        struct pull p;

        rig_open(&r, RIG_TCP_STREAMS, 24 * MIB);
        pull_init(&p, &r, false);
        pull_start(&p, &r.link);
        rig_turns(&r, turns);
        kvf_tcp_expel(r.owner, &r);
        assert_int_equal(r.pins, 0);
        assert_int_equal(kvf_tcp_serving(r.owner, &r), 0);
        rig_until(&r, &p.calls, 3000);
        /* All of it may have been in the sockets already. */
        if (p.status == 0)
            assert_memory_equal(p.mem, r.payload, r.size);
        assert_true(p.status == 0 || p.status == -KVF_TRANSPORT);
        failed += p.status != 0;
        assert_int_equal(r.pins, 0);
        /* Admitted again, a new link brings what is missing. */
        kvf_link_close(&r.link);
        assert_int_equal(kvf_tcp_admit(r.owner, r.addr.secret, &r, NULL), 0);
        assert_int_equal(rig_link(&r, &r.link), 0);
        pull_start(&p, &r.link);
        rig_until(&r, &p.calls, 3000);
        if (p.status != 0)
            fail_msg("after %u turns: %s", turns, p.why.text);
        assert_memory_equal(p.mem, r.payload, r.size);
        pull_end(&p);
        rig_close(&r);
    }
    assert_true(failed >= 3);
}

/* ---- callers that are nobody's ------------------------------------------ */

static int call(struct rig *r)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons(r->addr.port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

/* The other side has hung up. */
static void assert_closed(struct rig *r, int fd)
{
    ssize_t n = -1;
    char c;

    for (unsigned i = 0; i < 5000 && n < 0; i++) {
        assert_int_equal(kvf_reactor_once(r->reactor, KVF_NS_PER_MS, NULL), 0);
        n = recv(fd, &c, 1, MSG_DONTWAIT);
    }
    assert_int_equal(n, 0);
    close(fd);
}

static void strangers(void **state)
{
    struct kvf_tcp_gauges g;
    struct rig r;
    struct kvf_preface p = {.version = KVF_FRAME_VERSION};
    uint8_t buf[KVF_PREFACE_LEN + KVF_FRAME_REQ_LEN];
    int silent, fd;

    (void)state;
    rig_open(&r, RIG_TCP, 4096);
    silent = call(&r); /* says nothing: closed after connect_ms */
    fd = call(&r);
    assert_int_equal(send(fd, "GET / HTTP/1.1\r\nHost: somewhere else\r\n\r\n",
                          KVF_PREFACE_LEN, 0),
                     KVF_PREFACE_LEN);
    assert_closed(&r, fd);
    assert_closed(&r, silent);
    assert_int_equal(r.stats.tcp_rejected, 2);

    /* A known peer that sends rubbish. */
    fd = call(&r);
    memcpy(p.secret, r.addr.secret, sizeof p.secret);
    kvf_preface_encode(&p, buf);
    memset(buf + KVF_PREFACE_LEN, 0xab, KVF_FRAME_REQ_LEN);
    assert_int_equal(send(fd, buf, sizeof buf, 0), sizeof buf);
    assert_closed(&r, fd);
    assert_int_equal(r.stats.tcp_errors, 1);
    assert_int_equal(r.resolves, 0);
    kvf_tcp_gauges(r.owner, &g);
    assert_int_equal(g.in_conns, 1); /* the rig's own link */
    rig_close(&r);
}

static void turns_until(struct rig *r, const uint8_t *p, uint8_t value)
{
    for (unsigned i = 0; i < 5000 && *p != value; i++)
        assert_int_equal(kvf_reactor_once(r->reactor, KVF_NS_PER_MS, NULL), 0);
    assert_int_equal(*p, value);
}

/* An access ends while the bytes of a WRITE come: none of them is put there any
 * more, the memory is let go at once, and the WRITE is answered. */
static void taken_back_in_the_middle(void **state)
{
    enum { SIZE = 65536, HALF = 20000 };
    struct rig r;
    struct kvf_preface p = {.version = KVF_FRAME_VERSION};
    struct kvf_frame_req q = {.op = KVF_FRAME_WRITE,
                              .tag = 7,
                              .claim = CLAIM,
                              .token = {{1, 2, 3}},
                              .length = SIZE};
    struct kvf_frame_rsp a;
    uint8_t head[KVF_PREFACE_LEN + KVF_FRAME_REQ_LEN], rsp[KVF_FRAME_RSP_LEN];
    static uint8_t bytes[SIZE];
    ssize_t n = -1;
    int fd;

    (void)state;
    rig_open(&r, RIG_TCP, SIZE);
    r.piece = SIZE;
    memset(r.payload, 1, SIZE);
    memset(bytes, 2, SIZE);
    memcpy(p.secret, r.addr.secret, sizeof p.secret);
    kvf_preface_encode(&p, head);
    kvf_frame_req_encode(&q, head + KVF_PREFACE_LEN);
    fd = call(&r);
    assert_int_equal(send(fd, head, sizeof head, 0), sizeof head);
    assert_int_equal(send(fd, bytes, HALF, 0), HALF);
    turns_until(&r, r.payload + HALF - 1, 2);
    assert_int_equal(r.pins, 1);

    r.taken_back = true;
    memset(r.payload, 3, SIZE); /* somebody else's by now */
    assert_int_equal(send(fd, bytes, SIZE - HALF, 0), SIZE - HALF);
    for (unsigned i = 0; i < 5000 && n < 0; i++) {
        assert_int_equal(kvf_reactor_once(r.reactor, KVF_NS_PER_MS, NULL), 0);
        n = recv(fd, rsp, sizeof rsp, MSG_DONTWAIT);
    }
    assert_int_equal(n, sizeof rsp);
    assert_int_equal(kvf_frame_rsp_decode(&a, rsp, NULL), 0);
    assert_int_equal(a.tag, 7);
    assert_int_equal(a.status, KVF_STALE);
    assert_int_equal(r.pins, 0);
    for (unsigned i = 0; i < SIZE; i++)
        assert_int_equal(r.payload[i], 3);
    close(fd);
    rig_close(&r);
}

/* More requests than the owner reads ahead, at once, by a caller of its own
 * kind: all are answered. */
static void many_requests_at_once(void **state)
{
    enum { N = 1000 };
    struct rig r;
    struct kvf_preface p = {.version = KVF_FRAME_VERSION};
    struct kvf_frame_req q = {.op = KVF_FRAME_READ,
                              .claim = CLAIM,
                              .token = {{1, 2, 3}},
                              .length = 1};
    size_t len = KVF_PREFACE_LEN + N * KVF_FRAME_REQ_LEN, got = 0;
    uint8_t *buf = malloc(len), *in = malloc(N * (KVF_FRAME_RSP_LEN + 1));
    int fd;

    (void)state;
    rig_open(&r, RIG_TCP, 4096);
    memcpy(p.secret, r.addr.secret, sizeof p.secret);
    kvf_preface_encode(&p, buf);
    for (unsigned i = 0; i < N; i++) {
        q.tag = q.offset = i;
        kvf_frame_req_encode(&q, buf + KVF_PREFACE_LEN + i * KVF_FRAME_REQ_LEN);
    }
    fd = call(&r);
    assert_int_equal(send(fd, buf, len, 0), len);
    for (unsigned i = 0; i < 2000 && got < N * (KVF_FRAME_RSP_LEN + 1u); i++) {
        ssize_t n;

        assert_int_equal(kvf_reactor_once(r.reactor, KVF_NS_PER_MS, NULL), 0);
        n = recv(fd, in + got, N * (KVF_FRAME_RSP_LEN + 1u) - got,
                 MSG_DONTWAIT);
        got += n > 0 ? (size_t)n : 0;
    }
    assert_int_equal(got, N * (KVF_FRAME_RSP_LEN + 1u));
    for (unsigned i = 0; i < N; i++)
        assert_int_equal(in[i * (KVF_FRAME_RSP_LEN + 1) + KVF_FRAME_RSP_LEN],
                         r.payload[i]);
    close(fd);
    free(buf);
    free(in);
    rig_close(&r);
}

/* No descriptor to accept with: the loop does not spin, and when there is one
 * again the caller is served. */
static void no_descriptors(void **state)
{
    struct rlimit was, now;
    struct rig r;
    struct pull p;
    uint64_t drains;

    (void)state;
    rig_open(&r, RIG_TCP, MIB);
    pull_init(&p, &r, false);
    rig_until(&r, &r.ups, 1000);
    kvf_link_close(&r.link);
    rig_turns(&r, 5);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &was), 0);
    now = was;
    assert_int_equal(rig_link(&r, &r.link), 0);
    now.rlim_cur = 3; /* nothing above standard error */
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &now), 0);
    pull_start(&p, &r.link);
    drains = r.sched->turns;
    for (unsigned i = 0; i < 5; i++)
        kvf_reactor_once(r.reactor, 20 * KVF_NS_PER_MS, NULL);
    assert_true(r.sched->turns - drains <= 5);
    assert_int_equal(p.calls, 0);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &was), 0);
    rig_until(&r, &p.calls, 2000);
    assert_int_equal(p.status, 0);
    pull_end(&p);
    rig_close(&r);
}

/* Between transfers nobody polls: three waits are three turns of full length.
 */
static void idle_is_quiet(void **state)
{
    struct rig r;
    struct pull p;
    uint64_t turns, t0, calm = 0;

    (void)state;
    rig_open(&r, RIG_TCP_STREAMS, 4 * MIB);
    pull_init(&p, &r, false);
    pull_start(&p, &r.link);
    rig_until(&r, &p.calls, 3000);
    /* Past the spin and the stall timers, which find nothing to do. */
    for (unsigned i = 0; i < 200 && calm < 1200 * KVF_NS_PER_MS; i++) {
        t0 = kvf_sched_clock(r.sched);
        kvf_reactor_once(r.reactor, 50 * KVF_NS_PER_MS, NULL);
        calm += kvf_sched_clock(r.sched) - t0;
    }
    turns = r.sched->turns;
    t0 = kvf_sched_clock(r.sched);
    for (unsigned i = 0; i < 3; i++)
        kvf_reactor_once(r.reactor, 30 * KVF_NS_PER_MS, NULL);
    assert_true(kvf_sched_clock(r.sched) - t0 >= 85 * KVF_NS_PER_MS);
    assert_true(r.sched->turns - turns <= 6);
    pull_end(&p);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refused),
        cmocka_unit_test(claim_ends_in_the_middle),
        cmocka_unit_test(wrong_secret),
        cmocka_unit_test(same_host),
        cmocka_unit_test(nobody_listens),
        cmocka_unit_test(expelled),
        cmocka_unit_test(strangers),
        cmocka_unit_test(taken_back_in_the_middle),
        cmocka_unit_test(many_requests_at_once),
        cmocka_unit_test(no_descriptors),
        cmocka_unit_test(idle_is_quiet),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
