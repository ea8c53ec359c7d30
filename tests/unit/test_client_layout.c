/* libkvferry's layout, publish and pull against a fake daemon: every field they
 * say, and what they make of the answers. */
#include "client/client.h"
#include "fake_daemon.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char endpoint[100];
static struct fake fake;

static struct kvferry *opened(void)
{
    struct kvferry_open_options o = {.endpoint = endpoint};
    struct kvferry *h;
    char err[256] = "";

    if (kvferry_open(&h, &o, err, sizeof err) != 0)
        fail_msg("open: %s", err);
    return h;
}

static int setup(void **state)
{
    (void)state;
    fake_start(&fake, endpoint, 1);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    fake_stop(&fake);
    return 0;
}

/* The whole last request, but for its id and op. */
static void assert_said(const char *want)
{
    struct kvf_mp mp;
    char *json;

    assert_int_equal(kvf_mp_parse(&mp, fake.last, fake.last_len, NULL), 0);
    json = kvfc_json(&mp.root, true);
    assert_non_null(json);
    assert_non_null(strchr(json, ','));
    assert_string_equal(json, want);
    free(json);
    kvf_mp_done(&mp);
}

static void test_layout(void **state)
{
    static const struct kvferry_layout_group groups[] = {{"full", 0},
                                                         {"swa", 128}};
    static const struct kvferry_layout_comp comps[] = {{"k", 8, 256},
                                                       {"v", 8, 128}};
    static const struct kvferry_layout_layer layers[] = {
        {"a", 0, "attn", comps, 2}, {"b", 1, "mla", comps, 1}};
    static const struct kvferry_layout_view views[] = {
        {0, "k", 9, 4096, 65536, 32768}};
    struct kvferry_layout l = {.tp = 4,
                               .pp = 1,
                               .rank = 2,
                               .bs = 16,
                               .ppl = 1,
                               .nblocks = 100,
                               .order = "HND",
                               .kv = "split",
                               .groups = groups,
                               .n_groups = 2,
                               .layers = layers,
                               .n_layers = 2,
                               .views = views,
                               .n_views = 1};
    struct kvferry *h = opened();
    uint64_t id = 0;

    (void)state;
    assert_int_equal(kvferry_layout(h, &l, &id), 0);
    assert_int_equal(id, 21);
    assert_said(
        "{\"op\":\"layout\",\"tp\":4,\"pp\":1,\"rank\":2,\"bs\":16,\"ppl\":1,"
        "\"nblocks\":100,\"order\":\"HND\",\"kv\":\"split\",\"shared\":false,"
        "\"groups\":[{\"kind\":\"full\"},{\"kind\":\"swa\",\"window\":128}],"
        "\"layers\":[{\"name\":\"a\",\"group\":0,\"kind\":\"attn\","
        "\"comps\":[[\"k\",8,256],[\"v\",8,128]]},"
        "{\"name\":\"b\",\"group\":1,\"kind\":\"mla\","
        "\"comps\":[[\"k\",8,256]]}],"
        "\"views\":[{\"layer\":0,\"part\":\"k\",\"region\":9,\"off0\":4096,"
        "\"stride\":65536,\"page\":32768}]}");
    id = 0;
    fake.next_status = KVF_MISMATCH;
    assert_int_equal(kvferry_layout(h, &l, &id), -KVF_MISMATCH);
    assert_int_equal(id, 0);
    kvferry_close(h);
}

static const uint64_t ids[] = {7, 3, 300};
static const struct kvferry_blocks blocks[] = {{0, 2, ids, 3}, {1, 0, ids, 0}};
#define BLOCKS                                                                 \
    "\"blocks\":[{\"group\":0,\"first\":2,\"ids\":[7,3,300]},"                 \
    "{\"group\":1,\"first\":0,\"ids\":[]}]"

static void test_publish(void **state)
{
    static const uint8_t tag[16] = {1, 2, 3, [15] = 255};
    struct kvferry_publish_options o = {.n_tokens = 70};
    struct kvferry *h = opened();
    struct kvferry_handle handle;

    (void)state;
    assert_int_equal(kvferry_publish(h, 21, "req-1", blocks, 2, &o, &handle),
                     0);
    assert_said("{\"op\":\"publish\",\"layout\":21,\"request_id\":\"req-1\","
                "\"n_tokens\":70," BLOCKS "}");
    assert_string_equal(handle.request_id, "req-1");
    assert_string_equal(handle.source_host, "10.0.0.7");
    assert_int_equal(handle.source_port, 50001);
    assert_memory_equal(handle.tag, "0123456789abcdef", 16);
    assert_memory_equal(handle.incarnation, fake.incarnation, 16);
    o = (struct kvferry_publish_options){
        .n_tokens = 1, .tag = tag, .ttl_ms = 5000, .notify = true};
    assert_int_equal(kvferry_publish(h, 21, "x", blocks, 0, &o, NULL), 0);
    assert_said("{\"op\":\"publish\",\"layout\":21,\"request_id\":\"x\","
                "\"tag\":\"010203000000000000000000000000ff\",\"n_tokens\":1,"
                "\"blocks\":[],\"ttl_ms\":5000,\"notify\":true}");
    fake.next_status = KVF_BUSY;
    assert_int_equal(kvferry_publish(h, 21, "x", blocks, 0, &o, &handle),
                     -KVF_BUSY);
    kvferry_close(h);
}

static void is_result(const struct kvferry_pull_result *r)
{
    assert_int_equal(r->bytes, 8192);
    assert_int_equal(r->reads, 3);
    assert_string_equal(r->transport, "tcp");
    assert_int_equal(r->attempts, 2);
    assert_string_equal(r->sources, "0.2 0.3");
    assert_int_equal(r->n_filled, 1);
    assert_int_equal(r->filled[0].group, 1);
    assert_int_equal(r->filled[0].first_token, 32);
    assert_int_equal(r->filled[0].tokens, 17);
    assert_int_equal(r->timing.total_us, 77);
}

static void test_pull(void **state)
{
    struct kvferry_publish_options po = {.n_tokens = 70};
    struct kvferry_pull_options o = {.request_id = "req-1",
                                     .from_fields = 1,
                                     .from_stage = 3,
                                     .timeout_ms = KVFERRY_NO_TIMEOUT,
                                     .together = "step 9",
                                     .together_size = 2};
    struct kvferry *h = opened();
    struct kvferry_pull_result r;
    struct kvferry_handle handle;

    (void)state;
    assert_int_equal(kvferry_pull(h, 21, blocks, 2, &o, &r), 0);
    is_result(&r);
    assert_said("{\"op\":\"pull\",\"layout\":21,\"request_id\":\"req-1\","
                "\"from\":{\"stage\":3}," BLOCKS ",\"timeout_ms\":0,"
                "\"together\":{\"name\":\"step 9\",\"size\":2}}");
    assert_int_equal(kvferry_publish(h, 21, "req-1", blocks, 2, &po, &handle),
                     0);
    o = (struct kvferry_pull_options){.handle = &handle, .timeout_ms = 900};
    assert_int_equal(kvferry_pull(h, 21, blocks, 2, &o, NULL), 0);
    assert_said("{\"op\":\"pull\",\"layout\":21,\"handle\":{\"request_id\":"
                "\"req-1\",\"tag\":\"30313233343536373839616263646566\","
                "\"source_host\":\"10.0.0.7\",\"source_port\":50001,"
                "\"incarnation\":\"01010101010101010101010101010101\"}," BLOCKS
                ",\"timeout_ms\":900}");
    memset(&r, 0xff, sizeof r);
    fake.next_status = KVF_STALE;
    assert_int_equal(kvferry_pull(h, 21, blocks, 2, &o, &r), -KVF_STALE);
    assert_int_equal(r.bytes, 0);
    assert_int_equal(r.n_filled, 0);
    kvferry_close(h);
}

struct seen {
    unsigned n;
    struct kvferry_pull_result pull;
    struct kvferry_handle handle;
};

static void on_done(struct kvferry *h, void *user,
                    const struct kvferry_result *r)
{
    struct seen *s = user;

    (void)h;
    assert_int_equal(r->status, 0);
    s->n++;
    if (r->pull != NULL)
        s->pull = *r->pull;
    if (r->handle != NULL)
        s->handle = *r->handle;
}

static void test_async(void **state)
{
    struct kvferry_publish_options po = {.n_tokens = 70};
    struct kvferry_pull_options o = {.request_id = "req-1", .from_fields = 1};
    struct kvferry *h = opened();
    struct seen s = {.n = 0};

    (void)state;
    assert_int_equal(
        kvferry_publish_async(h, 21, "r", blocks, 2, &po, on_done, &s, NULL),
        0);
    assert_int_equal(
        kvferry_pull_async(h, 21, blocks, 2, &o, on_done, &s, NULL), 0);
    assert_int_equal(s.n, 0);
    while (s.n < 2)
        assert_true(kvferry_wait(h, 5000) >= 0);
    is_result(&s.pull);
    assert_string_equal(s.handle.request_id, "req-1");
    kvferry_close(h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_layout, setup, teardown),
        cmocka_unit_test_setup_teardown(test_publish, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pull, setup, teardown),
        cmocka_unit_test_setup_teardown(test_async, setup, teardown),
    };
    int rc;

    snprintf(endpoint, sizeof endpoint, "ipc:///tmp/kvf-test-layout-%d",
             (int)getpid());
    rc = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(endpoint + 6);
    return rc;
}
