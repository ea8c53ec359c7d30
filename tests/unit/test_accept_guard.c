/* accept4 when no descriptor is left: the connection is closed, the caller told
 * ECONNABORTED, and all is as before once there is room. */
#include "loop/accept_guard.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#define LIMIT 80
#define CLIENTS 8

static int listener, client[CLIENTS], hog[LIMIT], n_hogs;
static struct sockaddr_un addr = {.sun_family = AF_UNIX};
static socklen_t addr_len;

static int setup(void **state)
{
    struct rlimit r = {LIMIT, LIMIT};

    (void)state;
    addr_len = sizeof addr.sun_family; /* an abstract name of the kernel's */
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (bind(listener, (struct sockaddr *)&addr, addr_len) != 0)
        return -1;
    addr_len = sizeof addr;
    return getsockname(listener, (struct sockaddr *)&addr, &addr_len) |
           listen(listener, 100) | setrlimit(RLIMIT_NOFILE, &r) |
           kvf_accept_guard_init();
}

static void dial(int i)
{
    client[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(client[i] >= 0);
    assert_int_equal(connect(client[i], (struct sockaddr *)&addr, addr_len), 0);
}

static void take_all(void)
{
    int fd;

    for (n_hogs = 0; (fd = open("/dev/null", O_RDONLY)) >= 0; n_hogs++)
        hog[n_hogs] = fd;
    assert_int_equal(errno, EMFILE);
}

static void give_back(void)
{
    while (n_hogs > 0)
        close(hog[--n_hogs]);
}

static int take(void)
{
    return accept4(listener, NULL, NULL, SOCK_CLOEXEC);
}

static void test_refuses_and_recovers(void **state)
{
    uint64_t before = kvf_accept_guard_refused();
    char c;
    int fd;

    (void)state;
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < CLIENTS; i++)
            dial(i);
        take_all();
        for (int i = 0; i < CLIENTS; i++) {
            assert_int_equal(take(), -1);
            assert_int_equal(errno, ECONNABORTED);
            assert_int_equal(read(client[i], &c, 1), 0); /* closed */
        }
        before += CLIENTS;
        assert_int_equal(kvf_accept_guard_refused(), before);
        /* Nothing waits: that is told as ever. */
        assert_int_equal(take(), -1);
        assert_int_not_equal(errno, EMFILE);
        give_back();
        for (int i = 0; i < CLIENTS; i++)
            close(client[i]);
        dial(0);
        fd = take();
        assert_true(fd >= 0);
        close(fd);
        close(client[0]);
    }
    assert_int_equal(take(), -1);
    assert_int_equal(errno, EAGAIN);
}

static void *refuse_many(void *arg)
{
    for (int i = 0; i < 200; i++)
        if (take() >= 0)
            *(int *)arg = 1;
    return NULL;
}

static void test_two_threads(void **state)
{
    pthread_t other;
    int accepted = 0, rc;

    (void)state;
    for (int i = 0; i < CLIENTS; i++)
        dial(i);
    take_all();
    rc = pthread_create(&other, NULL, refuse_many, &accepted);
    assert_int_equal(rc, 0);
    refuse_many(&accepted);
    pthread_join(other, NULL);
    give_back();
    assert_int_equal(accepted, 0);
    for (int i = 0; i < CLIENTS; i++)
        close(client[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refuses_and_recovers),
        cmocka_unit_test(test_two_threads),
    };

    return cmocka_run_group_tests(tests, setup, NULL);
}
