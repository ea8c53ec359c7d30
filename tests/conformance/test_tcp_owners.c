/* Owners that only tcp can meet: liars, and such as hang or stand still. */
#include "rig.h"

#include "transport/tcp/tcp_priv.h"

#include "wire/frame.h"

#include <arpa/inet.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- a liar ------------------------------------------------------------- */

enum lie { TAG, LENGTH, STATUS, GARBAGE, CLOSES, HANGS, MORE, SHORT, LIES };

struct liar {
    struct kvf_source src, conn;
    struct kvf_reactor *reactor;
    int fd, conn_fd;
    uint16_t port;
    enum lie lie;
    uint8_t in[4096];
    unsigned have;
    bool told;
};

static void tell(struct liar *l)
{
    static uint8_t out[KVF_FRAME_RSP_LEN + 4096];
    struct kvf_frame_req q;
    struct kvf_frame_rsp a = {0};
    size_t len = sizeof out;

    assert_int_equal(kvf_frame_req_decode(&q, l->in + KVF_PREFACE_LEN, NULL),
                     0);
    assert_int_equal(q.length, 4096);
    a.tag = q.tag + (l->lie == TAG);
    a.length = q.length + (l->lie == LENGTH);
    a.status = l->lie == STATUS ? 9999 : 0;
    kvf_frame_rsp_encode(&a, out);
    if (l->lie == GARBAGE)
        memset(out, 0xee, sizeof out);
    if (l->lie == SHORT)
        len -= 100;
    if (l->lie != HANGS && l->lie != CLOSES)
        assert_int_equal(send(l->conn_fd, out, len, MSG_NOSIGNAL), len);
    if (l->lie == MORE) {
        send(l->conn_fd, out, sizeof out, MSG_NOSIGNAL);
        return;
    }
    if (l->lie == SHORT || l->lie == CLOSES) {
        kvf_source_remove(&l->conn);
        close(l->conn_fd);
        l->conn_fd = -1;
    }
}

static void liar_reads(struct kvf_source *src, unsigned ready, unsigned budget)
{
    struct liar *l = kvf_container_of(src, struct liar, conn);
    ssize_t n =
        recv(l->conn_fd, l->in + l->have, sizeof l->in - l->have, MSG_DONTWAIT);

    (void)ready;
    (void)budget;
    if (n == 0)
        kvf_source_want(src, 0);
    if (n <= 0)
        return;
    l->have += (unsigned)n;
    if (l->have >= KVF_PREFACE_LEN + KVF_FRAME_REQ_LEN && !l->told) {
        l->told = true;
        tell(l);
    }
}

static const struct kvf_source_ops liar_conn_ops = {.drain = liar_reads};

static void liar_accepts(struct kvf_source *src, unsigned ready,
                         unsigned budget)
{
    struct liar *l = kvf_container_of(src, struct liar, src);

    (void)ready;
    (void)budget;
    if (l->conn_fd >= 0)
        return;
    l->conn_fd = accept(l->fd, NULL, NULL);
    assert_int_equal(kvf_source_add(l->reactor, &l->conn, "liar",
                                    &liar_conn_ops, l->conn_fd, KVF_WANT_READ,
                                    NULL),
                     0);
}

static const struct kvf_source_ops liar_ops = {.drain = liar_accepts};

static int listen_somewhere(uint16_t *port)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    assert_int_equal(bind(fd, (struct sockaddr *)&a, len), 0);
    assert_int_equal(listen(fd, 4), 0);
    getsockname(fd, (struct sockaddr *)&a, &len);
    *port = ntohs(a.sin_port);
    return fd;
}

static void liar_open(struct liar *l, struct kvf_reactor *reactor, enum lie lie)
{
    *l = (struct liar){.lie = lie, .conn_fd = -1, .reactor = reactor};
    l->fd = listen_somewhere(&l->port);
    assert_int_equal(kvf_source_add(reactor, &l->src, "liar", &liar_ops, l->fd,
                                    KVF_WANT_READ, NULL),
                     0);
}

static void liar_close(struct liar *l)
{
    kvf_source_remove(&l->src);
    close(l->fd);
    if (l->conn_fd >= 0) {
        kvf_source_remove(&l->conn);
        close(l->conn_fd);
    }
}

static void liars(void **state)
{
    (void)state;
    for (unsigned lie = 0; lie < LIES; lie++) {
        struct rig r;
        struct liar l;
        struct pull p;

        rig_open(&r, RIG_TCP, 4096);
        kvf_link_close(&r.link);
        liar_open(&l, r.reactor, (enum lie)lie);
        r.addr.port = l.port;
        assert_int_equal(rig_link(&r, &r.link), 0);
        pull_init(&p, &r, false);
        pull_start(&p, &r.link);
        rig_until(&r, &p.calls, 3000);
        assert_int_equal(p.status, lie == MORE ? 0 : -KVF_TRANSPORT);
        rig_until(&r, &r.downs, 3000);
        if (lie == HANGS)
            assert_non_null(strstr(p.why.text, "no byte for 1000 ms"));
        pull_end(&p);
        liar_close(&l);
        rig_close(&r);
    }
}

/* ---- an owner that stands still ----------------------------------------- */

/* Reads on until there is nothing more for a while. */
static uint64_t read_all(struct rig *r, int fd, uint8_t *to, uint64_t cap)
{
    uint64_t have = 0;

    for (unsigned calm = 0; calm < 100;) {
        ssize_t n = recv(fd, to + have, cap - have, MSG_DONTWAIT);

        assert_int_not_equal(n, 0);
        calm = n > 0 ? 0 : calm + 1;
        have += n > 0 ? (uint64_t)n : 0;
        assert_int_equal(kvf_reactor_once(r->reactor, KVF_NS_PER_MS, NULL), 0);
    }
    return have;
}

/* A WRITE toward it is cancelled: it ends at once. What is sent of it later, so
 * that the owner finds the next request, is what it was then. */
static void cancelled_in_silence(void **state)
{
    enum { FRAME = KVF_FRAME_REQ_LEN + (int)MIB };
    struct kvf_tcp_conf conf = {
        .streams = 1, .chunk = MIB, .connect_ms = 60000, .stall_ms = 60000};
    uint64_t have, cap = 16 * MIB;
    uint8_t *got = malloc(cap);
    struct pull p;
    struct rig r;
    int fd, conn;

    (void)state;
    rig_open(&r, RIG_TCP, 12 * MIB);
    kvf_tcp_configure(r.t, &conf);
    kvf_link_close(&r.link);
    fd = listen_somewhere(&r.addr.port);
    assert_int_equal(rig_link(&r, &r.link), 0);
    pull_init(&p, &r, true);
    memset(p.mem, 0x11, r.size);
    pull_start(&p, &r.link);
    rig_until(&r, &r.ups, 3000);
    conn = accept(fd, NULL, NULL);
    rig_turns(&r, 200); /* both sockets are full by then */
    assert_int_equal(p.calls, 0);
    kvf_xfer_cancel(&p.x);
    rig_until(&r, &p.calls, 1000);
    assert_int_equal(p.status, -KVF_CANCELLED);
    memset(p.mem, 0x33, r.size); /* ours again */

    have = read_all(&r, conn, got, cap);
    assert_true(have > KVF_PREFACE_LEN + FRAME);
    assert_true(have < r.size);
    assert_int_equal((have - KVF_PREFACE_LEN) % FRAME, 0);
    for (uint64_t at = KVF_PREFACE_LEN; at < have; at += FRAME) {
        assert_int_equal(
            kvf_frame_req_decode(&(struct kvf_frame_req){0}, got + at, NULL),
            0);
        for (uint64_t i = KVF_FRAME_REQ_LEN; i < FRAME; i++)
            assert_int_equal(got[at + i], 0x11);
    }
    assert_int_equal(r.downs, 0);
    close(conn);
    close(fd);
    free(got);
    pull_end(&p);
    rig_close(&r);
}

/* What has been answered is not under way, also if it was just as much as a
 * turn of the loop sends: else the next to send alone would have short turns.
 */
static void nothing_under_way(void **state)
{
    struct rig r;

    (void)state;
    rig_open(&r, RIG_TCP, KVF_TCP_BUDGET - KVF_FRAME_REQ_LEN);
    /* Turns are short, and begin with the request. */
    kvf_container_of(r.owner, struct kvf_tcp, t)->turn.until_ns = KVF_NEVER;
    for (unsigned i = 0; i < 50; i++) {
        struct pull p;

        pull_init(&p, &r, false);
        pull_start(&p, &r.link);
        rig_until(&r, &p.calls, 3000);
        assert_int_equal(p.status, 0);
        pull_end(&p);
        rig_turns(&r, 2);
        assert_int_equal(kvf_container_of(r.owner, struct kvf_tcp, t)->n_amid,
                         0);
    }
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(liars),
        cmocka_unit_test(cancelled_in_silence),
        cmocka_unit_test(nothing_under_way),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
