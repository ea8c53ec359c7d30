/* Timers, tasks and slices under a clock of the test. */
#include "base/rng.h"
#include "base/sched.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

#define MS KVF_NS_PER_MS

static uint64_t now;
static struct kvf_sched sched;
static uint64_t seed;

static uint64_t test_clock(void *arg)
{
    (void)arg;
    return now;
}

static int setup(void **state)
{
    (void)state;
    now = 1000 * MS;
    kvf_sched_init(&sched, test_clock, NULL);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    kvf_sched_fini(&sched);
    return 0;
}

struct probe {
    struct kvf_timer timer;
    struct kvf_task task;
    struct kvf_slice slice;
    struct probe *victim; /* cancelled when this one runs */
    uint64_t again_ns;    /* arms itself this much later */
    uint64_t takes_ns;    /* what a piece of its slice takes */
    unsigned runs, left;
    unsigned order;
};

static unsigned order;

static void on_timer(struct kvf_timer *t)
{
    struct probe *p = kvf_container_of(t, struct probe, timer);

    assert_false(kvf_timer_armed(t));
    p->runs++;
    p->order = ++order;
    if (p->victim != NULL)
        kvf_timer_cancel(&sched, &p->victim->timer);
    if (p->again_ns != KVF_NEVER)
        kvf_timer_set(&sched, t, sched.now_ns + p->again_ns);
}

static void on_task(struct kvf_task *t)
{
    struct probe *p = kvf_container_of(t, struct probe, task);

    p->runs++;
    p->order = ++order;
    if (p->victim != NULL)
        kvf_task_cancel(&p->victim->task);
    if (p->left != 0) {
        p->left--;
        kvf_task_post(&sched, t);
    }
}

static bool on_slice(struct kvf_slice *sl, uint64_t budget_ns)
{
    struct probe *p = kvf_container_of(sl, struct probe, slice);

    assert_true(budget_ns > 0 && budget_ns <= sched.slice_budget_ns);
    p->runs++;
    now += p->takes_ns;
    return --p->left != 0;
}

static void probe_init(struct probe *p)
{
    *p = (struct probe){.again_ns = KVF_NEVER};
    kvf_timer_init(&p->timer, on_timer);
    kvf_task_init(&p->task, on_task);
    kvf_slice_init(&p->slice, on_slice);
}

static void test_timers(void **state)
{
    struct probe a, b, c;

    (void)state;
    probe_init(&a);
    probe_init(&b);
    probe_init(&c);
    assert_true(kvf_sched_next_due(&sched) == KVF_NEVER);
    kvf_timer_set(&sched, &b.timer, now + 5 * MS);
    kvf_timer_set(&sched, &a.timer, now + 5 * MS);
    kvf_timer_set(&sched, &c.timer, now + 3 * MS);
    assert_true(kvf_sched_next_due(&sched) == now + 3 * MS);
    assert_false(kvf_sched_turn(&sched));
    assert_int_equal(a.runs + b.runs + c.runs, 0);
    now += 4 * MS;
    kvf_sched_turn(&sched);
    assert_int_equal(c.runs, 1);
    assert_int_equal(a.runs + b.runs, 0);
    /* Equal times run in the order of arming; re-arming goes to the end. */
    kvf_timer_set(&sched, &b.timer, now + MS);
    now += MS;
    kvf_sched_turn(&sched);
    assert_int_equal(a.runs + b.runs, 2);
    assert_true(a.order < b.order);
    /* In the past is the next turn, now is due, never is not armed. */
    kvf_timer_set(&sched, &a.timer, 1);
    assert_true(a.timer.due_ns == sched.now_ns);
    kvf_timer_set(&sched, &b.timer, now);
    kvf_timer_set(&sched, &b.timer, KVF_NEVER);
    assert_false(kvf_timer_armed(&b.timer));
    kvf_timer_cancel(&sched, &b.timer); /* twice is fine */
    kvf_sched_turn(&sched);
    assert_int_equal(a.runs, 2);
    assert_int_equal(b.runs, 1);
}

static void test_timer_cancels_another_in_its_turn(void **state)
{
    struct probe a, b;

    (void)state;
    probe_init(&a);
    probe_init(&b);
    a.victim = &b;
    kvf_timer_set(&sched, &a.timer, now + MS);
    kvf_timer_set(&sched, &b.timer, now + MS);
    now += MS;
    kvf_sched_turn(&sched);
    assert_int_equal(a.runs, 1);
    assert_int_equal(b.runs, 0);
    assert_true(kvf_sched_next_due(&sched) == KVF_NEVER);
}

static void test_self_rearming_timer_ends_its_turn(void **state)
{
    struct probe a;

    (void)state;
    probe_init(&a);
    a.again_ns = 0;
    kvf_timer_set(&sched, &a.timer, now);
    for (unsigned i = 1; i <= 5; i++) {
        kvf_sched_turn(&sched);
        assert_int_equal(a.runs, i);
    }
}

static void test_stalled(void **state)
{
    struct probe a;

    (void)state;
    probe_init(&a);
    kvf_timer_set(&sched, &a.timer, now + MS);
    now += MS + KVF_STALL_NS;
    kvf_sched_turn(&sched);
    assert_false(sched.stalled);
    kvf_timer_set(&sched, &a.timer, now + MS);
    now += MS + KVF_STALL_NS + 1;
    kvf_sched_turn(&sched);
    assert_true(sched.stalled);
    kvf_sched_turn(&sched);
    assert_false(sched.stalled); /* of one turn only */
    kvf_timer_set(&sched, &a.timer, 1);
    kvf_sched_turn(&sched);
    assert_false(sched.stalled); /* armed late is not run late */
    now -= 5 * MS;               /* a clock that goes back is not believed */
    kvf_sched_turn(&sched);
    assert_true(sched.now_ns > now);
}

#define N_TIMERS 10000

struct model_timer {
    struct kvf_timer timer;
    uint64_t due, armed_at; /* due 0: not armed */
};
static struct model_timer *model;
static uint64_t model_now, last_due, last_arm, arm_seq, ran;

static void on_model(struct kvf_timer *t)
{
    struct model_timer *m = kvf_container_of(t, struct model_timer, timer);

    assert_true(m->due != 0 && m->due <= model_now);
    assert_true(m->due > last_due ||
                (m->due == last_due && m->armed_at > last_arm));
    last_due = m->due;
    last_arm = m->armed_at;
    m->due = 0;
    ran++;
}

static void arm_model(struct model_timer *m, struct kvf_rng *r)
{
    m->due = now + kvf_rng_below(r, 2000) * MS / 10;
    m->armed_at = ++arm_seq;
    kvf_timer_set(&sched, &m->timer, m->due);
}

/* Random arming, re-arming and cancelling; after each turn exactly the armed
 * timers that are not due remain, and they ran in order. */
static void test_random_timers(void **state)
{
    struct kvf_rng r;

    (void)state;
    kvf_rng_seed(&r, seed);
    model = calloc(N_TIMERS, sizeof *model);
    assert_non_null(model);
    for (unsigned i = 0; i < N_TIMERS; i++) {
        kvf_timer_init(&model[i].timer, on_model);
        arm_model(&model[i], &r);
    }
    for (unsigned round = 0; round < 60; round++) {
        uint64_t first = KVF_NEVER;

        for (unsigned k = 0; k < 500; k++) {
            struct model_timer *m = &model[kvf_rng_below(&r, N_TIMERS)];

            if (kvf_rng_below(&r, 4) != 0) {
                arm_model(m, &r);
            } else {
                m->due = 0;
                kvf_timer_cancel(&sched, &m->timer);
            }
        }
        now += kvf_rng_below(&r, 100) * MS / 10;
        model_now = now;
        last_due = last_arm = 0;
        kvf_sched_turn(&sched);
        for (unsigned i = 0; i < N_TIMERS; i++) {
            assert_true(model[i].due == 0 || model[i].due > now);
            assert_int_equal(kvf_timer_armed(&model[i].timer),
                             model[i].due != 0);
            if (model[i].due != 0 && model[i].due < first)
                first = model[i].due;
        }
        assert_true(kvf_sched_next_due(&sched) == first);
    }
    assert_true(ran > 1000 && ran == sched.timers_run);
    kvf_sched_fini(&sched);
    assert_false(kvf_timer_armed(&model[0].timer));
    free(model);
}

static void test_tasks(void **state)
{
    struct probe a, b, c;

    (void)state;
    probe_init(&a);
    probe_init(&b);
    probe_init(&c);
    a.left = 1;
    b.victim = &c;
    kvf_task_post(&sched, &a.task);
    kvf_task_post(&sched, &b.task);
    kvf_task_post(&sched, &c.task);
    kvf_task_post(&sched, &a.task); /* is there already */
    assert_true(kvf_sched_turn(&sched));
    assert_int_equal(a.runs, 1); /* what it posted waits for the next turn */
    assert_int_equal(b.runs, 1);
    assert_int_equal(c.runs, 0); /* cancelled by b in the same turn */
    assert_true(a.order < b.order);
    assert_false(kvf_sched_turn(&sched));
    assert_int_equal(a.runs, 2);
}

static void test_slices(void **state)
{
    struct probe a, b;

    (void)state;
    probe_init(&a);
    probe_init(&b);
    a.left = 100;
    b.left = 3;
    a.takes_ns = b.takes_ns = sched.slice_budget_ns / 4;
    kvf_slice_start(&sched, &a.slice);
    kvf_slice_start(&sched, &b.slice);
    kvf_slice_start(&sched, &b.slice); /* is there already */
    /* Four pieces fit, in turns. */
    assert_true(kvf_sched_turn(&sched));
    assert_int_equal(a.runs, 2);
    assert_int_equal(b.runs, 2);
    assert_true(kvf_sched_turn(&sched));
    assert_int_equal(b.runs, 3); /* done */
    assert_int_equal(a.runs, 5);
    /* One piece that takes too long ends the turn. */
    a.takes_ns = sched.slice_budget_ns * 3;
    assert_true(kvf_sched_turn(&sched));
    assert_int_equal(a.runs, 6);
    /* A clock that stands still does not keep the turn for ever. */
    a.takes_ns = 0;
    a.left = UINT32_MAX;
    assert_true(kvf_sched_turn(&sched));
    kvf_slice_stop(&a.slice);
    kvf_slice_stop(&a.slice);
    assert_false(kvf_sched_turn(&sched));
}

#define SCHED_TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        SCHED_TEST(test_timers),
        SCHED_TEST(test_timer_cancels_another_in_its_turn),
        SCHED_TEST(test_self_rearming_timer_ends_its_turn),
        SCHED_TEST(test_stalled),
        SCHED_TEST(test_random_timers),
        SCHED_TEST(test_tasks),
        SCHED_TEST(test_slices),
    };
    const char *env = getenv("KVF_SEED");

    seed = env != NULL ? strtoull(env, NULL, 0) : (uint64_t)time(NULL);
    printf("KVF_SEED=%llu\n", (unsigned long long)seed);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
