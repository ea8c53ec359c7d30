/* A loop that always has something to do lets others run now and then. The
 * clock ticks with every look at it, and sched_yield(2) is counted. */
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

/* Instead of libc's. */
int sched_yield(void)
{
    yields++;
    return 0;
}

static uint64_t ticking(void *arg)
{
    return *(uint64_t *)arg += TICK_NS;
}

static void drain(struct kvf_source *src, unsigned ready, unsigned budget)
{
    (void)src;
    (void)ready;
    (void)budget;
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_work_gives_way),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
