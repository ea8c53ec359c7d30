/* libkvferry's push, windows, write and read against a fake daemon: what they
 * say, what they make of the answers, and what goes wrong. */
#include "fake_daemon.h"
#include "kvferry/kvferry.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

static char endpoint[100];
static struct fake fake;

struct seen {
    int n, status;
    char name[16], json[256];
    struct kvferry_transfer transfer;
};

static void on_event(struct kvferry *h, void *user, const char *name,
                     const char *json)
{
    struct seen *s = user;

    (void)h;
    s->n++;
    snprintf(s->name, sizeof s->name, "%s", name);
    snprintf(s->json, sizeof s->json, "%s", json);
}

static void on_done(struct kvferry *h, void *user,
                    const struct kvferry_result *r)
{
    struct seen *s = user;

    (void)h;
    s->n++;
    s->status = r->status;
    s->transfer = r->transfer;
}

static struct kvferry *opened(uint32_t timeout_ms, struct seen *events)
{
    struct kvferry_open_options o = {.endpoint = endpoint,
                                     .timeout_ms = timeout_ms,
                                     .on_event = on_event,
                                     .user = events};
    struct kvferry *h;
    char err[256] = "";

    if (events == NULL)
        o.on_event = NULL;
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

/* What the daemon was told, by name: a number, or -1 when it is absent. */
static int64_t said(const char *map_name, const char *name)
{
    const msgpack_object *map;
    uint64_t v = 0;
    struct kvf_mp mp;
    int64_t got = -1;

    assert_int_equal(kvf_mp_parse(&mp, fake.last, fake.last_len, NULL), 0);
    map = &mp.root;
    if (map_name != NULL)
        map = kvf_mp_get(&mp.root, map_name);
    if (map != NULL && kvf_mp_u64(map, name, 0, INT64_MAX, &v, NULL) == 1)
        got = (int64_t)v;
    kvf_mp_done(&mp);
    return got;
}

static bool said_str(const char *map_name, const char *name, const char *want)
{
    const msgpack_object *map;
    const char *s;
    struct kvf_mp mp;
    size_t len;
    bool same;

    assert_int_equal(kvf_mp_parse(&mp, fake.last, fake.last_len, NULL), 0);
    map = map_name != NULL ? kvf_mp_get(&mp.root, map_name) : &mp.root;
    same = map != NULL && kvf_mp_str(map, name, 0, 256, &s, &len, NULL) == 1 &&
           len == strlen(want) && memcmp(s, want, len) == 0;
    kvf_mp_done(&mp);
    return same;
}

static void is_transfer(const struct kvferry_transfer *t, uint64_t size)
{
    assert_int_equal(t->size, size);
    assert_int_equal(t->generation, 11);
    assert_string_equal(t->transport, "tcp");
    assert_int_equal(t->attempts, 2);
    assert_int_equal(t->timing.total_us, 77);
}

/* ---- push --------------------------------------------------------------- */

static void test_push_small_travels_inline(void **state)
{
    struct kvferry *h = opened(0, NULL);
    struct kvferry_push_options o = {
        .put = {.ttl_ms = 900, .readers = KVFERRY_READERS_ANY},
        .to = {.to_fields = 2, .stage = 1, .rank = 3, .replica = 9},
        .timeout_ms = 1234};
    struct kvferry_transfer r;

    (void)state;
    assert_int_equal(kvferry_push(h, "k", "hello", 5, &o, &r), 0);
    is_transfer(&r, 5);
    assert_true(said_str(NULL, "key", "k"));
    assert_int_equal(said("to", "stage"), 1);
    assert_int_equal(said("to", "rank"), 3);
    assert_int_equal(said("to", "replica"), -1);
    assert_int_equal(said(NULL, "ttl_ms"), 900);
    assert_int_equal(said(NULL, "readers"), 0);
    assert_int_equal(said(NULL, "timeout_ms"), 1234);
    assert_int_equal(kvferry_ping(h), 0);
    assert_int_equal(fake.frees, 0);
    assert_int_equal(kvferry_push(h, "k", "", 0, &o, &r), -KVF_INVALID);
    kvferry_close(h);
}

static void test_push_large_gives_its_buffer_back(void **state)
{
    struct kvferry *h = opened(0, NULL);
    struct kvferry_push_options o = {.to = {.host = "10.1.2.3", .port = 7777},
                                     .timeout_ms = KVFERRY_NO_TIMEOUT};
    struct kvferry_transfer r;
    size_t size = 100000;
    uint8_t *data = malloc(size);

    (void)state;
    memset(data, 0xa5, size);
    assert_int_equal(kvferry_push(h, "k", data, size, &o, &r), 0);
    is_transfer(&r, size);
    assert_memory_equal(fake.pool + fake.stored_at, data, size);
    assert_true(said_str("target", "host", "10.1.2.3"));
    assert_int_equal(said("target", "port"), 7777);
    assert_int_equal(said(NULL, "timeout_ms"), 0);
    assert_int_equal(kvferry_ping(h), 0);
    assert_int_equal(fake.frees, 1);
    kvferry_close(h);
    free(data);
}

static void test_push_that_fails_gives_its_buffer_back(void **state)
{
    struct kvferry *h = opened(0, NULL);
    struct kvferry_push_options o = {.to = {.to_fields = 1, .stage = 1}};
    uint8_t data[5000] = {1};

    (void)state;
    fake.next_status = KVF_NO_SPACE;
    assert_int_equal(kvferry_push(h, "k", data, 5, &o, NULL), -KVF_NO_SPACE);
    assert_string_equal(kvferry_error(h), "as told");
    fake.next_status = KVF_NO_SPACE; /* to its alloc */
    assert_int_equal(kvferry_push(h, "k", data, 5000, &o, NULL), -KVF_NO_SPACE);
    fake.push_status = KVF_TIMEOUT;
    assert_int_equal(kvferry_push(h, "k", data, 5000, &o, NULL), -KVF_TIMEOUT);
    assert_int_equal(kvferry_ping(h), 0);
    assert_int_equal(fake.frees, 1);
    kvferry_close(h);
}

static void test_push_of_segments_keeps_them(void **state)
{
    struct kvferry *h = opened(0, NULL);
    struct kvferry_push_options o = {.to = {.to_fields = 1, .stage = 1}};
    struct kvferry_buffer b;
    struct kvferry_segment seg;
    struct kvferry_transfer r;

    (void)state;
    assert_int_equal(kvferry_alloc(h, 6000, &b), 0);
    seg = (struct kvferry_segment){.id = b.id};
    assert_int_equal(kvferry_push_segments(h, "k", &seg, 1, &o, &r), 0);
    is_transfer(&r, 6000);
    assert_int_equal(said(NULL, "timeout_ms"), -1);
    assert_int_equal(kvferry_ping(h), 0);
    assert_int_equal(fake.frees, 0);
    kvferry_close(h);
}

/* Past its own deadline it is the daemon that is late, not the push. */
static void test_push_waits_for_its_deadline(void **state)
{
    struct kvferry *h = opened(300, NULL);
    struct kvferry_push_options o = {.to = {.to_fields = 1, .stage = 1},
                                     .timeout_ms = 60};

    (void)state;
    fake.silent = true;
    assert_int_equal(kvferry_push(h, "k", "abc", 3, &o, NULL),
                     -KVF_PEER_UNREACHABLE);
    assert_string_equal(kvferry_error(h), "the daemon does not answer");
    fake.silent = false;
    assert_int_equal(kvferry_ping(h), 0);
    kvferry_close(h);
}

/* ---- windows ------------------------------------------------------------ */

static void test_window_written_and_read(void **state)
{
    struct seen events = {0};
    struct kvferry *h = opened(0, &events);
    struct kvferry_window_options o = {.to = {.to_fields = 1, .stage = 2},
                                       .notify = "\x01\xff",
                                       .notify_len = 2};
    struct kvferry_transfer r;
    struct kvferry_window win;
    struct kvferry_segment seg[2];
    struct kvferry_buffer b;

    (void)state;
    assert_int_equal(kvferry_expose(h, "w", 8192, true, &win), 0);
    assert_int_equal(win.id, 5);
    assert_int_equal(win.size, 8192);
    assert_int_equal(win.memory, 44);
    assert_int_equal(win.offset, fake.window_at);
    assert_true(said_str(NULL, "name", "w"));
    memset(win.data, 9, win.size);
    assert_int_equal(fake.pool[fake.window_at + 8191], 9);
    assert_int_equal(kvferry_alloc(h, 3000, &b), 0);
    for (int i = 0; i < 3000; i++)
        ((uint8_t *)b.data)[i] = (uint8_t)i;
    seg[0] = (struct kvferry_segment){.id = b.id, .offset = 7, .length = 5};
    seg[1] = (struct kvferry_segment){.id = b.id, .offset = 2, .length = 3};
    assert_int_equal(kvferry_write(h, "w", 100, seg, 2, &o, &r), 0);
    is_transfer(&r, 8);
    assert_int_equal(said(NULL, "target_offset"), 100);
    assert_memory_equal((uint8_t *)win.data + 99, "\t\7\10\t\n\13\2\3\4\t", 10);
    while (events.n == 0)
        assert_true(kvferry_wait(h, 5000) >= 0);
    assert_string_equal(events.name, "written");
    assert_non_null(strstr(events.json, "\"window\":5"));
    assert_non_null(strstr(events.json, "01ff"));
    o.notify = NULL;
    seg[0] = (struct kvferry_segment){.id = b.id, .offset = 50, .length = 8};
    assert_int_equal(kvferry_read(h, "w", 100, seg, 1, &o, &r), 0);
    assert_memory_equal((uint8_t *)b.data + 49, "\61\7\10\t\n\13\2\3\4\72", 10);
    assert_int_equal(events.n, 1);
    assert_int_equal(kvferry_unexpose(h, win.id), 0);
    assert_int_equal(fake.unexposes, 1);
    kvferry_close(h);
}

static void test_region_as_a_window(void **state)
{
    struct kvferry *h = opened(0, NULL);
    uint8_t mem[8];
    struct kvferry_window win;
    uint64_t region;

    (void)state;
    fake.region = 3;
    assert_int_equal(kvferry_register(h, 0, 4096, mem, &region), 0);
    assert_int_equal(kvferry_expose_region(h, "r", region, false, &win), 0);
    assert_int_equal(win.memory, region);
    assert_int_equal(win.size, 4096);
    assert_ptr_equal(win.data, mem);
    kvferry_close(h);
}

static void test_window_failures(void **state)
{
    struct kvferry *h = opened(0, NULL);
    struct kvferry_window_options o = {.to = {.to_fields = 1, .stage = 2}};
    struct kvferry_segment seg = {.id = 1, .length = 1};
    struct kvferry_transfer r = {.attempts = 0};
    struct kvferry_window win;
    static const int codes[] = {KVF_DENIED, KVF_INVALID, KVF_NOT_FOUND};

    (void)state;
    fake.next_status = KVF_EXISTS;
    assert_int_equal(kvferry_expose(h, "w", 10, true, &win), -KVF_EXISTS);
    for (unsigned i = 0; i < 3; i++) {
        fake.next_status = (unsigned)codes[i];
        assert_int_equal(kvferry_write(h, "w", 0, &seg, 1, &o, &r), -codes[i]);
        assert_string_equal(kvferry_error(h), "as told");
    }
    /* A window outside of the pool is not believed, and given back. */
    fake.window_lie = 2u << 20;
    assert_int_equal(kvferry_expose(h, "w", 10, true, &win), -KVF_UNSUPPORTED);
    assert_int_equal(kvferry_ping(h), 0);
    assert_int_equal(fake.unexposes, 1);
    kvferry_close(h);
}

/* Exposed by a daemon that answers too late: nobody would ever unexpose it. */
static void test_late_window_is_given_back(void **state)
{
    struct kvferry *h = opened(300, NULL);
    struct kvferry_window win = {.id = 77};

    (void)state;
    fake.hold_expose = true;
    assert_int_equal(kvferry_expose(h, "w", 100, true, &win),
                     -KVF_PEER_UNREACHABLE);
    fake.hold_expose = false;
    while (fake.unexposes == 0) {
        kvferry_ping(h);
        kvferry_wait(h, 10);
    }
    assert_int_equal(win.id, 77);
    assert_int_equal(kvferry_outstanding(h), 0);
    kvferry_close(h);
}

static void test_many_writes_at_once_and_close(void **state)
{
    struct kvferry *h = opened(0, NULL);
    struct kvferry_window_options o = {.to = {.to_fields = 1, .stage = 2}};
    struct kvferry_segment seg = {.length = 16};
    struct seen done = {0}, cut = {0};
    struct kvferry_window win;
    struct kvferry_buffer b;

    (void)state;
    assert_int_equal(kvferry_expose(h, "w", 16384, true, &win), 0);
    assert_int_equal(kvferry_alloc(h, 16384, &b), 0);
    for (unsigned i = 0; i < 16384; i++)
        ((uint8_t *)b.data)[i] = (uint8_t)(i * 31 >> 3);
    seg.id = b.id;
    for (unsigned i = 0; i < 1024; i++) {
        seg.offset = i * 16;
        assert_int_equal(kvferry_write_async(h, "w", (1023 - i) * 16, &seg, 1,
                                             &o, on_done, &done, NULL),
                         0);
    }
    while (done.n < 1024)
        assert_true(kvferry_wait(h, 5000) >= 0);
    for (unsigned i = 0; i < 1024; i++)
        assert_memory_equal((uint8_t *)win.data + (1023 - i) * 16,
                            (uint8_t *)b.data + i * 16, 16);
    fake.silent = true;
    assert_int_equal(
        kvferry_read_async(h, "w", 0, &seg, 1, &o, on_done, &cut, NULL), 0);
    kvferry_close(h);
    assert_int_equal(cut.n, 1);
    assert_int_equal(cut.status, -KVF_CANCELLED);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_push_small_travels_inline),
        T(test_push_large_gives_its_buffer_back),
        T(test_push_that_fails_gives_its_buffer_back),
        T(test_push_of_segments_keeps_them),
        T(test_push_waits_for_its_deadline),
        T(test_window_written_and_read),
        T(test_region_as_a_window),
        T(test_window_failures),
        T(test_late_window_is_given_back),
        T(test_many_writes_at_once_and_close),
    };
    int rc;

    snprintf(endpoint, sizeof endpoint, "ipc:///tmp/kvf-test-push-%d",
             (int)getpid());
    rc = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(endpoint + 6);
    return rc;
}
