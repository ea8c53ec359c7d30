/* A loop that always has something to do lets others run now and then, and one
 * whose messages come close together waits for the next one awake. The clock
 * ticks with every look at it, and sched_yield(2) is counted. */
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "loop/reactor.h"

#define TICK_NS (20 * KVF_NS_PER_US) /* less than what counts as sleep */
#define EVERY_NS (100 * KVF_NS_PER_US)

static unsigned yields;
static uint64_t crowd_ns; /* how long a yield takes, beside the tick */
static uint64_t away_ns;

/* Instead of libc's. */
int sched_yield(void)
{
    yields++;
    away_ns += crowd_ns;
    return 0;
}

static uint64_t ticking(void *arg)
{
    uint64_t *now = arg;

    *now += TICK_NS + away_ns;
    away_ns = 0;
    return *now;
}

static void drain(struct kvf_source *src, unsigned ready, unsigned budget)
{
    char c;

    (void)budget;
    if ((ready & KVF_WANT_READ) != 0)
        assert_int_equal(read(src->fd, &c, 1), 1);
}

static enum kvf_arm busy(struct kvf_source *src)
{
    (void)src;
    return KVF_ARM_BUSY;
}

static const struct kvf_source_ops ops = {drain, busy};

static void test_work_gives_way(void **state)
{
    struct kvf_reactor *r = kvf_reactor_create(NULL, NULL);
    struct kvf_sched *s = kvf_reactor_sched(r);
    uint64_t now = kvf_sched_clock(s), began;
    struct kvf_source src;
    unsigned turns = 200;
    int fd[2];

    (void)state;
    s->clock = ticking;
    s->clock_arg = &now;
    assert_int_equal(pipe(fd), 0);
    assert_int_equal(kvf_source_add(r, &src, "busy", &ops, fd[0], 0, NULL), 0);
    kvf_reactor_once(r, 0, NULL);
    yields = 0;
    began = now;
    for (unsigned i = 0; i < turns; i++)
        kvf_reactor_once(r, 0, NULL);
    /* In the first turn that ends later than EVERY_NS after the last one. */
    assert_in_range(yields, 1 + turns / 4, (now - began) / EVERY_NS);

    kvf_source_remove(&src);
    close(fd[0]);
    close(fd[1]);
    kvf_reactor_destroy(r);
}

/* One message that is there when the loop looks for it. */
static void message(struct kvf_reactor *r, int fd)
{
    assert_int_equal(write(fd, "x", 1), 1);
    kvf_reactor_once(r, KVF_NS_PER_S, NULL);
}

/* Yields while the loop waits in vain for 1 ms of its clock or less. */
static unsigned yields_in_vain(struct kvf_reactor *r)
{
    yields = 0;
    kvf_reactor_once(r, KVF_NS_PER_MS, NULL);
    kvf_reactor_once(r, 0, NULL);
    return yields;
}

static void test_linger(void **state)
{
    static const struct kvf_source_ops quiet = {drain, NULL};
    struct kvf_reactor *r = kvf_reactor_create(NULL, NULL);
    struct kvf_sched *s = kvf_reactor_sched(r);
    uint64_t now = kvf_sched_clock(s);
    struct kvf_source src;
    int fd[2];

    (void)state;
    s->clock = ticking;
    s->clock_arg = &now;
    assert_int_equal(pipe(fd), 0);
    assert_int_equal(
        kvf_source_add(r, &src, "pipe", &quiet, fd[0], KVF_WANT_READ, NULL), 0);
    kvf_reactor_once(r, 0, NULL);

    message(r, fd[1]);
    assert_in_range(yields_in_vain(r), 0, 1); /* never, unless it is told to */

    kvf_reactor_linger(r, 20 * TICK_NS);
    message(r, fd[1]);
    assert_in_range(yields_in_vain(r), 0, 1); /* an answer, then silence */
    message(r, fd[1]);
    message(r, fd[1]);
    assert_in_range(yields_in_vain(r), 3, 10); /* three looks a round */
    assert_in_range(yields_in_vain(r), 0, 1);  /* it was in vain */

    now += KVF_NS_PER_MS;
    message(r, fd[1]);
    message(r, fd[1]);
    assert_in_range(yields_in_vain(r), 3, 10);

    /* Who was kept away sleeps this once. */
    message(r, fd[1]);
    message(r, fd[1]);
    crowd_ns = 110 * KVF_NS_PER_US;
    assert_in_range(yields_in_vain(r), 1, 1);
    crowd_ns = 0;
    message(r, fd[1]);
    message(r, fd[1]);
    assert_in_range(yields_in_vain(r), 3, 10);

    /* Who finds others at work here sleeps for a while. */
    message(r, fd[1]);
    message(r, fd[1]);
    crowd_ns = KVF_NS_PER_MS;
    assert_in_range(yields_in_vain(r), 1, 2);
    crowd_ns = 0;
    message(r, fd[1]);
    message(r, fd[1]);
    assert_in_range(yields_in_vain(r), 0, 1);

    /* Nor does who is told of a crowd, until it must be over. */
    now += 10 * KVF_NS_PER_MS;
    message(r, fd[1]);
    message(r, fd[1]);
    kvf_reactor_crowd(r);
    assert_in_range(yields_in_vain(r), 0, 1);
    now += 10 * KVF_NS_PER_MS;
    message(r, fd[1]);
    message(r, fd[1]);
    assert_in_range(yields_in_vain(r), 3, 10);

    kvf_source_remove(&src);
    close(fd[0]);
    close(fd[1]);
    kvf_reactor_destroy(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_work_gives_way),
        cmocka_unit_test(test_linger),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
