/* Bulk frames: round trips, fixed bytes, and what is refused. */
#include "wire/frame.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static void test_preface(void **state)
{
    struct kvf_preface p = {.version = KVF_FRAME_VERSION, .stream = 3}, q;
    uint8_t b[KVF_PREFACE_LEN];

    (void)state;
    memset(p.secret, 0xab, sizeof p.secret);
    kvf_preface_encode(&p, b);
    assert_memory_equal(b, "KVFB\0\1\0\3\xab", 9);
    assert_int_equal(kvf_preface_decode(&q, b, NULL), 0);
    assert_int_equal(q.stream, 3);
    assert_memory_equal(q.secret, p.secret, sizeof p.secret);
    b[5] = 2;
    assert_int_equal(kvf_preface_decode(&q, b, NULL), -KVF_MISMATCH);
    b[0] = 'x';
    assert_int_equal(kvf_preface_decode(&q, b, NULL), -KVF_INVALID);
}

static void test_request(void **state)
{
    struct kvf_frame_req f = {.op = KVF_FRAME_WRITE,
                              .tag = 1,
                              .claim = 0x0102030405060708,
                              .offset = 5,
                              .length = KVF_FRAME_MAX_LENGTH},
                         g;
    uint8_t b[KVF_FRAME_REQ_LEN];

    (void)state;
    memset(f.token.b, 7, sizeof f.token.b);
    kvf_frame_req_encode(&f, b);
    assert_memory_equal(b, "KQ\0\2\0\0\0\0\0\0\0\0\0\0\0\1\1\2\3\4\5\6\7\x8\7",
                        25);
    assert_int_equal(kvf_frame_req_decode(&g, b, NULL), 0);
    assert_int_equal(g.op, KVF_FRAME_WRITE);
    assert_int_equal(g.claim, f.claim);
    assert_int_equal(g.offset, 5);
    assert_int_equal(g.length, KVF_FRAME_MAX_LENGTH);
    assert_true(kvf_id_equal(&g.token, &f.token));
    kvf_put_u64(b + 48, 0);
    assert_int_equal(kvf_frame_req_decode(&g, b, NULL), -KVF_INVALID);
    kvf_put_u64(b + 48, KVF_FRAME_MAX_LENGTH + 1);
    assert_int_equal(kvf_frame_req_decode(&g, b, NULL), -KVF_INVALID);
    kvf_put_u64(b + 48, 8);
    kvf_put_u64(b + 40, UINT64_MAX - 3);
    assert_int_equal(kvf_frame_req_decode(&g, b, NULL), -KVF_INVALID);
    kvf_put_u64(b + 40, 0);
    b[3] = 5;
    assert_int_equal(kvf_frame_req_decode(&g, b, NULL), -KVF_INVALID);
    b[3] = 1;
    assert_int_equal(kvf_frame_req_decode(&g, b, NULL), 0);
    b[0] ^= 1;
    assert_int_equal(kvf_frame_req_decode(&g, b, NULL), -KVF_INVALID);
}

/* Decoded in place, as the owner does it. */
static int decode_runs(const struct kvf_frame_req *f, const uint8_t *table,
                       struct kvf_range *v)
{
    uint32_t bytes = f->n_runs * KVF_FRAME_RUN_LEN;
    uint8_t *end = (uint8_t *)(v + f->n_runs) - bytes;

    memcpy(end, table, bytes);
    return kvf_frame_runs_decode(f, end, v, NULL);
}

static void test_runs(void **state)
{
    struct kvf_frame_req f = {.op = KVF_FRAME_READ_RUNS,
                              .tag = 1,
                              .length = 60,
                              .n_runs = 3},
                         g;
    struct kvf_range r[3] = {{0x0102030405060708, 10}, {0, 20}, {7, 30}}, v[3];
    uint8_t b[KVF_FRAME_REQ_LEN], t[3 * KVF_FRAME_RUN_LEN];

    (void)state;
    kvf_frame_req_encode(&f, b);
    assert_memory_equal(b + 2, "\0\3", 2);
    assert_memory_equal(b + 40, "\0\0\0\0\0\0\0\3\0\0\0\0\0\0\0\x3c", 16);
    assert_int_equal(kvf_frame_req_decode(&g, b, NULL), 0);
    assert_int_equal(g.n_runs, 3);
    assert_int_equal(g.offset, 0);
    assert_false(kvf_frame_is_write(&g));
    for (unsigned i = 0; i < 3; i++)
        kvf_frame_run_encode(&r[i], t + i * KVF_FRAME_RUN_LEN);
    assert_memory_equal(t, "\1\2\3\4\5\6\7\x8\0\0\0\xa", 12);
    assert_int_equal(decode_runs(&g, t, v), 0);
    assert_memory_equal(v, r, sizeof r);
    t[11]++; /* another sum */
    assert_int_equal(decode_runs(&g, t, v), -KVF_INVALID);
    t[11] = 0;
    t[23] = 30;
    assert_int_equal(decode_runs(&g, t, v), -KVF_INVALID); /* empty run */
    t[11] = 10;
    t[23] = 20;
    kvf_put_u64(t + 12, (uint64_t)INT64_MAX - 19);
    assert_int_equal(decode_runs(&g, t, v), -KVF_INVALID);
    kvf_put_u64(t + 12, (uint64_t)INT64_MAX - 20);
    assert_int_equal(decode_runs(&g, t, v), 0);

    f.op = KVF_FRAME_WRITE_RUNS;
    kvf_frame_req_encode(&f, b);
    assert_int_equal(kvf_frame_req_decode(&g, b, NULL), 0);
    assert_true(kvf_frame_is_write(&g));
    kvf_put_u64(b + 40, 0);
    assert_int_equal(kvf_frame_req_decode(&g, b, NULL), -KVF_INVALID);
    kvf_put_u64(b + 40, 61); /* more runs than bytes */
    assert_int_equal(kvf_frame_req_decode(&g, b, NULL), -KVF_INVALID);
    kvf_put_u64(b + 48, 1 << 20);
    kvf_put_u64(b + 40, KVF_FRAME_MAX_RUNS + 1);
    assert_int_equal(kvf_frame_req_decode(&g, b, NULL), -KVF_INVALID);
    kvf_put_u64(b + 40, KVF_FRAME_MAX_RUNS);
    assert_int_equal(kvf_frame_req_decode(&g, b, NULL), 0);
}

static void test_response(void **state)
{
    struct kvf_frame_rsp f = {.status = KVF_OK, .tag = 9, .length = 4096}, g;
    uint8_t b[KVF_FRAME_RSP_LEN];

    (void)state;
    kvf_frame_rsp_encode(&f, b);
    assert_memory_equal(b, "KR\0\0\0\0\0\0\0\0\0\0\0\0\0\x9\0\0\0\0\0\0\x10\0",
                        KVF_FRAME_RSP_LEN);
    assert_int_equal(kvf_frame_rsp_decode(&g, b, NULL), 0);
    assert_int_equal(g.tag, 9);
    assert_int_equal(g.length, 4096);
    kvf_put_u32(b + 4, KVF_STALE); /* failed, and yet bytes */
    assert_int_equal(kvf_frame_rsp_decode(&g, b, NULL), -KVF_INVALID);
    kvf_put_u64(b + 16, 0);
    assert_int_equal(kvf_frame_rsp_decode(&g, b, NULL), 0);
    kvf_put_u32(b + 4, KVF_STATUS_COUNT);
    assert_int_equal(kvf_frame_rsp_decode(&g, b, NULL), -KVF_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_preface),
        cmocka_unit_test(test_request),
        cmocka_unit_test(test_runs),
        cmocka_unit_test(test_response),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
