/* libkvferry against a fake daemon: both faces, and what goes wrong. */
#include "fake_daemon.h"
#include "kvferry/kvferry.h"

#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

static char endpoint[100];
static struct fake fake;

static struct kvferry *opened(uint32_t timeout_ms)
{
    struct kvferry_open_options o = {.endpoint = endpoint,
                                     .timeout_ms = timeout_ms};
    struct kvferry *h;
    char err[256] = "";
    int rc = -KVF_PEER_UNREACHABLE;

    /* On a busy machine the fake's thread may take longer than timeout_ms to
     * answer the first time, which is not what is tested. */
    for (unsigned i = 0; i < 20 && rc == -KVF_PEER_UNREACHABLE; i++)
        rc = kvferry_open(&h, &o, err, sizeof err);
    if (rc != 0)
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

static void put_get(size_t size)
{
    struct kvferry *h = opened(0);
    struct kvferry_put_result r;
    struct kvferry_payload *p;
    uint8_t *data = malloc(size), *back = malloc(size);

    for (size_t i = 0; i < size; i++)
        data[i] = (uint8_t)(i * 7 + i / 251);
    assert_int_equal(kvferry_put(h, "k", data, size, NULL, &r), 0);
    assert_int_equal(r.size, size);
    assert_int_equal(r.generation, 7);
    assert_int_equal(kvferry_get(h, "k", NULL, &p), 0);
    assert_int_equal(kvferry_payload_size(p), size);
    assert_int_equal(kvferry_payload_copy(p, 0, back, size), size);
    assert_memory_equal(data, back, size);
    assert_int_equal(kvferry_payload_copy(p, size - 3, back, size), 3);
    assert_memory_equal(data + size - 3, back, 3);
    assert_string_equal(kvferry_payload_transport(p), "shm");
    kvferry_release(&p);
    assert_null(p);
    kvferry_release(&p);
    assert_int_equal(kvferry_ping(h), 0);
    assert_int_equal(fake.releases, size > 1024 ? 1 : 0);
    kvferry_close(h);
    assert_int_equal(fake.byes, 1);
    free(data);
    free(back);
}

static void test_small_put_travels_inline(void **state)
{
    (void)state;
    put_get(1000);
}

static void test_large_put_goes_through_the_pool(void **state)
{
    (void)state;
    put_get(300000);
}

static void test_nobody_answers(void **state)
{
    struct kvferry_open_options o = {.endpoint = "ipc:///tmp/kvf-none",
                                     .timeout_ms = 30};
    struct kvferry *h;
    char err[256];

    (void)state;
    assert_int_equal(kvferry_open(&h, &o, err, sizeof err),
                     -KVF_PEER_UNREACHABLE);
    assert_null(h);
    assert_non_null(strstr(err, "no daemon answers"));
}

static void test_status_and_text_of_a_failure(void **state)
{
    struct kvferry *h = opened(0);

    (void)state;
    fake.next_status = KVF_NO_SPACE;
    assert_int_equal(kvferry_put(h, "k", "abc", 3, NULL, NULL), -KVF_NO_SPACE);
    assert_string_equal(kvferry_error(h), "as told");
    kvferry_close(h);
}

static void test_silent_daemon_is_reported_and_tidied(void **state)
{
    struct kvferry *h = opened(300);

    (void)state;
    fake.silent = true;
    assert_int_equal(kvferry_ping(h), -KVF_PEER_UNREACHABLE);
    assert_string_equal(kvferry_error(h), "the daemon does not answer");
    fake.silent = false;
    assert_int_equal(kvferry_ping(h), 0);
    assert_int_equal(kvferry_outstanding(h), 0);
    kvferry_close(h);
}

static void test_get_without_deadline_is_guarded(void **state)
{
    struct kvferry_get_options o = {.timeout_ms = KVFERRY_NO_TIMEOUT};
    struct kvferry *h = opened(300);
    struct kvferry_payload *p;

    (void)state;
    fake.silent = true;
    assert_int_equal(kvferry_get(h, "never", &o, &p), -KVF_PEER_UNREACHABLE);
    kvferry_close(h);
}

struct seen {
    int n, status;
    size_t size;
};

static void on_done(struct kvferry *h, void *user,
                    const struct kvferry_result *r)
{
    struct seen *s = user;
    struct kvferry_payload *p = r->payload;

    (void)h;
    s->n++;
    s->status = r->status;
    if (p != NULL) {
        s->size = kvferry_payload_size(p);
        kvferry_release(&p);
    }
}

static void pump(struct kvferry *h, const int *n, int want)
{
    struct pollfd pf = {.fd = kvferry_fd(h), .events = POLLIN};

    kvferry_process(h);
    while (*n < want) {
        assert_true(poll(&pf, 1, 5000) > 0);
        kvferry_process(h);
    }
}

static void test_async_parked_get_and_many_pings(void **state)
{
    struct kvferry *h = opened(0);
    struct seen get = {0}, put = {0}, ping = {0};

    (void)state;
    assert_int_equal(kvferry_get_async(h, "k", NULL, on_done, &get, NULL), 0);
    for (int i = 0; i < 500; i++)
        assert_int_equal(kvferry_ping_async(h, on_done, &ping, NULL), 0);
    assert_int_equal(kvferry_outstanding(h), 501);
    pump(h, &ping.n, 500);
    assert_int_equal(get.n, 0);
    assert_int_equal(
        kvferry_put_async(h, "k", "hello", 5, NULL, on_done, &put, NULL), 0);
    pump(h, &get.n, 1);
    assert_int_equal(put.n, 1);
    assert_int_equal(get.status, 0);
    assert_int_equal(get.size, 5);
    assert_int_equal(kvferry_outstanding(h), 0);
    kvferry_close(h);
}

static void test_close_completes_what_is_open(void **state)
{
    struct kvferry *h = opened(0);
    struct seen get = {0};

    (void)state;
    kvferry_get_async(h, "k", NULL, on_done, &get, NULL);
    kvferry_close(h);
    assert_int_equal(get.n, 1);
    assert_int_equal(get.status, -KVF_CANCELLED);
}

static void on_done_again(struct kvferry *h, void *user,
                          const struct kvferry_result *r)
{
    struct seen *s = user;
    struct seen never = {0};

    s->n++;
    s->status = r->status;
    assert_int_equal(kvferry_ping_async(h, on_done, &never, NULL),
                     -KVF_CANCELLED);
    assert_int_equal(kvferry_ping(h), -KVF_CANCELLED);
}

static void test_closing_refuses_what_callbacks_start(void **state)
{
    struct kvferry *h = opened(0);
    struct seen get[3] = {0}, put = {0};
    uint8_t data[5000] = {1};

    (void)state;
    for (int i = 0; i < 3; i++)
        kvferry_get_async(h, "k", NULL, on_done_again, &get[i], NULL);
    kvferry_put_async(h, "p", data, sizeof data, NULL, on_done_again, &put,
                      NULL);
    kvferry_close(h);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(get[i].n, 1);
        assert_int_equal(get[i].status, -KVF_CANCELLED);
    }
    assert_int_equal(put.n, 1);
    assert_int_equal(put.status, -KVF_CANCELLED);
    assert_int_equal(fake.byes, 1);
}

/* What is started while the hello is under way waits for its answer: sent at
 * once, the alloc would have taken the STALE that is meant for the hello. */
static void test_requests_wait_for_the_new_session(void **state)
{
    struct kvferry *h = opened(2000);
    struct seen lost = {0}, put = {0}, inlined = {0}, ping = {0};
    uint8_t data[5000] = {1};
    uint64_t ticket;

    (void)state;
    fake.stored_key[0] = '\0';
    kvferry_get_async(h, "later", NULL, on_done, &lost, NULL);
    assert_int_equal(kvferry_ping(h), 0);
    fake_stop(&fake);
    pump(h, &lost.n, 1);
    fake_start(&fake, endpoint, 2);
    fake.next_status = KVF_STALE; /* to the hello */
    kvferry_put_async(h, "k", data, sizeof data, NULL, on_done, &put, &ticket);
    kvferry_put_async(h, "i", data, 10, NULL, on_done, &inlined, NULL);
    kvferry_ping_async(h, on_done, &ping, NULL);
    assert_int_equal(kvferry_cancel(h, ticket), 0);
    assert_int_equal(kvferry_outstanding(h), 3);
    pump(h, &ping.n, 1);
    pump(h, &put.n, 1);
    assert_int_equal(put.status, 0);
    assert_int_equal(inlined.status, 0);
    assert_int_equal(ping.status, 0);
    assert_int_equal(inlined.n, 1);
    assert_int_equal(fake.hellos, 2);
    assert_int_equal(fake.unmapped, 1); /* by the second */
    assert_int_equal(fake.cancels, 1);
    assert_int_equal(kvferry_outstanding(h), 0);
    kvferry_close(h);
}

static void test_what_waits_is_cancelled_by_close(void **state)
{
    struct kvferry *h = opened(1000);
    struct seen lost = {0}, ping = {0}, late = {0};

    (void)state;
    fake.stored_key[0] = '\0';
    kvferry_get_async(h, "later", NULL, on_done, &lost, NULL);
    assert_int_equal(kvferry_ping(h), 0);
    fake_stop(&fake);
    pump(h, &lost.n, 1);
    assert_int_equal(kvferry_ping_async(h, on_done, &ping, NULL), 0);
    pump(h, &ping.n, 1); /* the hello is not answered */
    assert_int_equal(ping.status, -KVF_PEER_UNREACHABLE);
    assert_int_equal(kvferry_ping_async(h, on_done, &late, NULL), 0);
    kvferry_close(h);
    assert_int_equal(late.n, 1);
    assert_int_equal(late.status, -KVF_CANCELLED);
    fake_start(&fake, endpoint, 2);
}

/* A daemon that dies and comes back: what was open fails, a view stays
 * readable, the old incarnation is named once the view is gone. */
static void test_restart(void **state)
{
    struct kvferry *h = opened(2000);
    struct kvferry_payload *p;
    struct seen get = {0};
    uint8_t data[5000], back[5000];

    (void)state;
    memset(data, 0x5a, sizeof data);
    assert_int_equal(kvferry_put(h, "k", data, sizeof data, NULL, NULL), 0);
    assert_int_equal(kvferry_get(h, "k", NULL, &p), 0);
    assert_int_equal(kvferry_ping(h), 0);
    fake.stored_key[0] = '\0';
    kvferry_get_async(h, "later", NULL, on_done, &get, NULL);
    assert_int_equal(kvferry_ping(h), 0); /* the get has arrived */
    fake_stop(&fake);
    pump(h, &get.n, 1);
    assert_int_equal(get.status, -KVF_PEER_UNREACHABLE);
    fake_start(&fake, endpoint, 2);
    fake.next_status = KVF_STALE; /* it does not know the session */
    assert_int_equal(kvferry_put(h, "k", data, sizeof data, NULL, NULL), 0);
    assert_int_equal(fake.hellos, 1);
    assert_int_equal(fake.unmapped, 0);
    assert_int_equal(kvferry_payload_copy(p, 0, back, sizeof back), 5000);
    assert_memory_equal(data, back, sizeof data);
    kvferry_release(&p);
    assert_int_equal(kvferry_ping(h), 0);
    assert_int_equal(fake.unmapped, 1);
    assert_int_equal(fake.releases, 0); /* void in the new session */
    kvferry_close(h);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_small_put_travels_inline),
        T(test_large_put_goes_through_the_pool),
        cmocka_unit_test(test_nobody_answers),
        T(test_status_and_text_of_a_failure),
        T(test_silent_daemon_is_reported_and_tidied),
        T(test_get_without_deadline_is_guarded),
        T(test_async_parked_get_and_many_pings),
        T(test_close_completes_what_is_open),
        T(test_closing_refuses_what_callbacks_start),
        T(test_requests_wait_for_the_new_session),
        T(test_what_waits_is_cancelled_by_close),
        T(test_restart),
    };
    int rc;

    snprintf(endpoint, sizeof endpoint, "ipc:///tmp/kvf-test-client-%d",
             (int)getpid());
    rc = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(endpoint + 6);
    return rc;
}
