/* What two ends of an RC connection make of each other: pure. */
#include "transport/rdma/handshake.h"
#include "wire/peer_msg.h"

#include <string.h>

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static const uint8_t V4[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

static struct kvf_rdma_gid v4(uint8_t net, uint8_t host, uint8_t type,
                              uint32_t index)
{
    struct kvf_rdma_gid g = {.type = type, .index = index};

    memcpy(g.raw, V4, sizeof V4);
    g.raw[12] = 10;
    g.raw[14] = net;
    g.raw[15] = host;
    return g;
}

static struct kvf_rdma_gid local6(uint8_t host, uint32_t index)
{
    struct kvf_rdma_gid g = {
        .raw = {0xfe, 0x80}, .type = KVF_RDMA_GID_ROCE_V2, .index = index};

    g.raw[15] = host;
    return g;
}

static struct kvf_rdma_end ethernet(uint32_t mtu, uint32_t rd)
{
    return (struct kvf_rdma_end){.qpn = 17,
                                 .psn = 5,
                                 .link_layer = KVF_RDMA_ETHERNET,
                                 .mtu = mtu,
                                 .rd_atomic = rd};
}

/* Routes to 10.x.N.y leave from 10.0.N.1. */
static bool same_net(void *arg, const uint8_t dst[16], uint8_t src[16])
{
    struct kvf_rdma_gid g = v4(dst[14], 1, 0, 0);

    (*(unsigned *)arg)++;
    if (!kvf_rdma_gid_is_v4(dst))
        return false;
    memcpy(src, g.raw, 16);
    return true;
}

/* Runs both sides; 0, or the first error. */
static int both(const struct kvf_rdma_end *getter,
                const struct kvf_rdma_end *owner,
                const struct kvf_rdma_route *route, struct kvf_rdma_path *down,
                struct kvf_rdma_path *up, struct kvf_why *why)
{
    struct kvf_rdma_accept a;
    int rc = kvf_rdma_answer(owner, getter, route, &a, down, why);

    return rc != 0 ? rc : kvf_rdma_conclude(getter, &a, up, why);
}

static void test_minima(void **state)
{
    struct kvf_rdma_end g = ethernet(4096, 16), o = ethernet(1024, 128);
    struct kvf_rdma_path down, up;

    (void)state;
    g.n_gid = o.n_gid = 1;
    g.gid[0] = v4(0, 2, KVF_RDMA_GID_ROCE_V2, 3);
    o.gid[0] = v4(0, 1, KVF_RDMA_GID_ROCE_V2, 5);
    o.qpn = 99;
    o.psn = 7;
    assert_int_equal(both(&g, &o, NULL, &down, &up, NULL), 0);
    assert_int_equal(down.mtu, 1024);
    assert_int_equal(up.mtu, 1024);
    assert_int_equal(down.rd_atomic, 16);
    assert_int_equal(up.rd_atomic, 16);
    /* Each has the other's numbers and its own place in its own table. */
    assert_int_equal(down.qpn, 17);
    assert_int_equal(down.psn, 5);
    assert_int_equal(up.qpn, 99);
    assert_int_equal(up.psn, 7);
    assert_int_equal(down.sgid_index, 5);
    assert_int_equal(up.sgid_index, 3);
    assert_memory_equal(down.dgid, g.gid[0].raw, 16);
    assert_memory_equal(up.dgid, o.gid[0].raw, 16);
    assert_true(down.global && up.global);
}

/* Several networks: the pair between which there is a way, not the first. */
static void test_route_decides(void **state)
{
    struct kvf_rdma_end g = ethernet(1024, 4), o = ethernet(1024, 4);
    struct kvf_rdma_path down, up;
    unsigned asked = 0;
    struct kvf_rdma_route route = {same_net, &asked};

    (void)state;
    g.n_gid = 3;
    g.gid[0] = local6(2, 0);
    g.gid[1] = v4(8, 2, KVF_RDMA_GID_ROCE_V2, 1); /* unknown there */
    g.gid[2] = v4(7, 2, KVF_RDMA_GID_ROCE_V2, 2);
    o.n_gid = 3;
    o.gid[0] = v4(6, 1, KVF_RDMA_GID_ROCE_V2, 10);
    o.gid[1] = v4(7, 1, KVF_RDMA_GID_ROCE_V1, 11); /* the right one as v1 */
    o.gid[2] = v4(7, 1, KVF_RDMA_GID_ROCE_V2, 12);
    assert_int_equal(both(&g, &o, &route, &down, &up, NULL), 0);
    assert_int_equal(asked, 3);
    assert_int_equal(down.sgid_index, 12);
    assert_int_equal(up.sgid_index, 2);
    assert_memory_equal(up.dgid, o.gid[2].raw, 16);
    /* No route: the pair of one kind that has most in common. */
    assert_int_equal(both(&g, &o, NULL, &down, &up, NULL), 0);
    assert_int_equal(down.sgid_index, 12);
    assert_int_equal(up.sgid_index, 2);
}

static void test_infiniband(void **state)
{
    struct kvf_rdma_end g = ethernet(2048, 4), o = ethernet(2048, 4);
    struct kvf_rdma_path down, up;

    (void)state;
    g.link_layer = o.link_layer = KVF_RDMA_IB;
    g.lid = 3;
    o.lid = 4;
    assert_int_equal(both(&g, &o, NULL, &down, &up, NULL), 0);
    assert_false(down.global || up.global);
    assert_int_equal(down.lid, 3);
    assert_int_equal(up.lid, 4);
    g.n_gid = o.n_gid = 1; /* one subnet: still by LID */
    g.gid[0] = (struct kvf_rdma_gid){.raw = {0xfe, 0x80, [15] = 1}};
    o.gid[0] = (struct kvf_rdma_gid){.raw = {0xfe, 0x80, [15] = 2}};
    assert_int_equal(both(&g, &o, NULL, &down, &up, NULL), 0);
    assert_false(down.global || up.global);
    o.gid[0].raw[7] = 9; /* another subnet: by GID */
    assert_int_equal(both(&g, &o, NULL, &down, &up, NULL), 0);
    assert_true(down.global && up.global);
}

static void mismatch(const struct kvf_rdma_end *g, const struct kvf_rdma_end *o,
                     const char *word)
{
    struct kvf_rdma_path down, up;
    struct kvf_why why;

    assert_int_equal(both(g, o, NULL, &down, &up, &why), -KVF_MISMATCH);
    if (strstr(why.text, word) == NULL)
        fail_msg("\"%s\" does not say %s", why.text, word);
}

static void test_mismatches(void **state)
{
    struct kvf_rdma_end g = ethernet(1024, 4), o = ethernet(1024, 4), x;

    (void)state;
    g.n_gid = o.n_gid = 1;
    g.gid[0] = v4(0, 2, KVF_RDMA_GID_ROCE_V2, 0);
    o.gid[0] = v4(0, 1, KVF_RDMA_GID_ROCE_V2, 0);
    x = g;
    x.link_layer = KVF_RDMA_IB;
    mismatch(&x, &o, "InfiniBand");
    x = g;
    x.mtu = 1500;
    mismatch(&x, &o, "1500");
    x = g;
    x.qpn = 0;
    mismatch(&x, &o, "QP number");
    x = g;
    x.rd_atomic = 0;
    mismatch(&x, &o, "READ");
    x = g;
    x.gid[0].type = KVF_RDMA_GID_ROCE_V1;
    mismatch(&x, &o, "RoCE v1");
    x = g;
    x.n_gid = 0;
    mismatch(&x, &o, "no GID");
}

/* An owner that answers something else than it was asked. */
static void test_lying_owner(void **state)
{
    struct kvf_rdma_end g = ethernet(1024, 4), o = ethernet(4096, 16);
    struct kvf_rdma_accept a, x;
    struct kvf_rdma_path path;

    (void)state;
    g.n_gid = o.n_gid = 1;
    g.gid[0] = v4(0, 2, KVF_RDMA_GID_ROCE_V2, 0);
    o.gid[0] = v4(0, 1, KVF_RDMA_GID_ROCE_V2, 0);
    assert_int_equal(kvf_rdma_answer(&o, &g, NULL, &a, &path, NULL), 0);
    x = a;
    x.end.mtu = 4096;
    assert_int_equal(kvf_rdma_conclude(&g, &x, &path, NULL), -KVF_MISMATCH);
    x = a;
    x.end.rd_atomic = 5;
    assert_int_equal(kvf_rdma_conclude(&g, &x, &path, NULL), -KVF_MISMATCH);
    x = a;
    x.your_gid = 1;
    assert_int_equal(kvf_rdma_conclude(&g, &x, &path, NULL), -KVF_MISMATCH);
    x = a;
    x.end.n_gid = 0;
    assert_int_equal(kvf_rdma_conclude(&g, &x, &path, NULL), -KVF_MISMATCH);
    x = a;
    x.end.gid[0].type = KVF_RDMA_GID_IB;
    assert_int_equal(kvf_rdma_conclude(&g, &x, &path, NULL), -KVF_MISMATCH);
    assert_int_equal(kvf_rdma_conclude(&g, &a, &path, NULL), 0);
}

/* The question says whether its QP carries both ways, and is joined already;
 * that of a daemon of before says neither (test_peer_msg's golden bytes). */
static void test_connect_says_both(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 4; i++) {
        struct kvf_peer_msg m = {.head = {.version = KVF_PEER_VERSION,
                                          .type = KVF_PEER_RDMA_CONNECT,
                                          .cluster = "c1"},
                                 .u.rdma_connect = {.id = 9,
                                                    .end = ethernet(4096, 16),
                                                    .both = i % 2 != 0,
                                                    .joined = i / 2 != 0}};
        struct kvf_peer_msg back;
        struct kvf_mpw w;

        kvf_mpw_init(&w);
        assert_int_equal(kvf_peer_encode(&w, &m), 0);
        assert_int_equal(
            kvf_peer_decode(&back, w.buf.data, w.buf.size, NULL, 0, NULL), 0);
        assert_int_equal(back.u.rdma_connect.both, i % 2);
        assert_int_equal(back.u.rdma_connect.joined, i / 2);
        kvf_peer_done(&back);
        kvf_mpw_fini(&w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_minima),
        cmocka_unit_test(test_route_decides),
        cmocka_unit_test(test_infiniband),
        cmocka_unit_test(test_mismatches),
        cmocka_unit_test(test_lying_owner),
        cmocka_unit_test(test_connect_says_both),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
