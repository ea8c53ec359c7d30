/* accept4 when no descriptor is left: the connection is closed, the caller told
 * ECONNABORTED, and all is as before once there is room. */
#include "loop/accept_guard.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
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

/* Between the moment one thread gives the reserve up and its accept, the
 * other's accept may take the descriptor: that connection is accepted, which is
 * no harm. Each is either accepted or refused, once, and the reserve comes back
 * with the descriptor. */
static void *refuse_many(void *arg)
{
    int fd;

    for (int i = 0; i < 200; i++) {
        fd = take();
        if (fd < 0)
            continue;
        close(fd);
        atomic_fetch_add((atomic_int *)arg, 1);
    }
    return NULL;
}

static void test_two_threads(void **state)
{
    uint64_t before = kvf_accept_guard_refused();
    atomic_int accepted = 0;
    pthread_t other;
    int rc, fd;

    (void)state;
    for (int i = 0; i < CLIENTS; i++)
        dial(i);
    take_all();
    rc = pthread_create(&other, NULL, refuse_many, &accepted);
    assert_int_equal(rc, 0);
    refuse_many(&accepted);
    pthread_join(other, NULL);
    assert_int_equal(kvf_accept_guard_refused() - before + accepted, CLIENTS);
    for (int i = 0; i < CLIENTS; i++)
        close(client[i]);
    give_back();
    dial(0); /* if the reserve was lost, accepting brings it back */
    fd = take();
    assert_true(fd >= 0);
    close(fd);
    close(client[0]);
    before = kvf_accept_guard_refused();
    dial(0);
    take_all();
    assert_int_equal(take(), -1);
    assert_int_equal(errno, ECONNABORTED);
    assert_int_equal(kvf_accept_guard_refused(), before + 1);
    give_back();
    close(client[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refuses_and_recovers),
        cmocka_unit_test(test_two_threads),
    };

    return cmocka_run_group_tests(tests, setup, NULL);
}
