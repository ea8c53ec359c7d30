/* Timers in a binary heap, tasks and slices in lists. A turn runs what was
 * there when it began: what its handlers add waits for the next turn, so that
 * none of them can starve the sockets. */
#include "base/sched.h"

#include <stdlib.h>
#include <time.h>

#define SLICE_BUDGET_NS (200 * KVF_NS_PER_US)
/* Ends a turn even if the clock stands still, as a test's may. */
#define SLICES_PER_TURN 1024

static uint64_t monotonic_ns(void *arg)
{
    struct timespec ts;

    (void)arg;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * KVF_NS_PER_S + (uint64_t)ts.tv_nsec;
}

void kvf_sched_init(struct kvf_sched *s, uint64_t (*clock)(void *arg),
                    void *clock_arg)
{
    *s = (struct kvf_sched){.clock = clock != NULL ? clock : monotonic_ns,
                            .clock_arg = clock_arg,
                            .slice_budget_ns = SLICE_BUDGET_NS};
    kvf_list_init(&s->tasks);
    kvf_list_init(&s->slices);
    s->now_ns = kvf_sched_clock(s);
}

void kvf_sched_fini(struct kvf_sched *s)
{
    for (size_t i = 0; i < s->heap_len; i++)
        s->heap[i]->slot = 0;
    free(s->heap);
    s->heap = NULL;
    s->heap_len = s->heap_cap = 0;
    while (kvf_list_pop(&s->tasks) != NULL)
        ;
    while (kvf_list_pop(&s->slices) != NULL)
        ;
}

uint64_t kvf_sched_clock(const struct kvf_sched *s)
{
    return s->clock(s->clock_arg);
}

void kvf_sched_stamp(struct kvf_sched *s)
{
    uint64_t now = kvf_sched_clock(s);

    if (now > s->now_ns)
        s->now_ns = now;
}

uint64_t kvf_sched_next_due(const struct kvf_sched *s)
{
    return s->heap_len != 0 ? s->heap[0]->due_ns : KVF_NEVER;
}

/* Binary min-heap on due_ns; timers know their slot, so that cancelling needs
 * no search. */
static void heap_place(struct kvf_sched *s, size_t i, struct kvf_timer *t)
{
    s->heap[i] = t;
    t->slot = i + 1;
}

static bool before(const struct kvf_timer *a, const struct kvf_timer *b)
{
    return a->due_ns < b->due_ns || (a->due_ns == b->due_ns && a->seq < b->seq);
}

static void heap_up(struct kvf_sched *s, size_t i, struct kvf_timer *t)
{
    while (i > 0 && before(t, s->heap[(i - 1) / 2])) {
        heap_place(s, i, s->heap[(i - 1) / 2]);
        i = (i - 1) / 2;
    }
    heap_place(s, i, t);
}

static void heap_down(struct kvf_sched *s, size_t i, struct kvf_timer *t)
{
    for (;;) {
        size_t kid = 2 * i + 1;

        if (kid >= s->heap_len)
            break;
        if (kid + 1 < s->heap_len && before(s->heap[kid + 1], s->heap[kid]))
            kid++;
        if (!before(s->heap[kid], t))
            break;
        heap_place(s, i, s->heap[kid]);
        i = kid;
    }
    heap_place(s, i, t);
}

void kvf_timer_init(struct kvf_timer *t, void (*fn)(struct kvf_timer *t))
{
    *t = (struct kvf_timer){.due_ns = KVF_NEVER, .fn = fn};
}

void kvf_timer_cancel(struct kvf_sched *s, struct kvf_timer *t)
{
    size_t i = t->slot;
    struct kvf_timer *last;

    if (i-- == 0)
        return;
    t->slot = 0;
    last = s->heap[--s->heap_len];
    if (last == t)
        return;
    heap_up(s, i, last);
    heap_down(s, last->slot - 1, last);
}

void kvf_timer_set(struct kvf_sched *s, struct kvf_timer *t, uint64_t due_ns)
{
    if (due_ns == KVF_NEVER) {
        kvf_timer_cancel(s, t);
        return;
    }
    /* A due time in the past must neither look like a stall nor overtake the
     * timers that were due before. */
    if (due_ns < s->now_ns)
        due_ns = s->now_ns;
    t->seq = ++s->timer_seq;
    if (t->slot != 0) {
        t->due_ns = due_ns;
        heap_up(s, t->slot - 1, t);
        heap_down(s, t->slot - 1, t);
        return;
    }
    if (s->heap_len == s->heap_cap) {
        size_t cap = s->heap_cap != 0 ? s->heap_cap * 2 : 64;
        struct kvf_timer **heap = realloc(s->heap, cap * sizeof *heap);

        if (heap == NULL)
            abort(); /* a lost timer would be a hang: better a restart */
        s->heap = heap;
        s->heap_cap = cap;
    }
    t->due_ns = due_ns;
    heap_up(s, s->heap_len++, t);
}

void kvf_task_init(struct kvf_task *t, void (*fn)(struct kvf_task *t))
{
    kvf_list_init(&t->node);
    t->fn = fn;
}

void kvf_task_post(struct kvf_sched *s, struct kvf_task *t)
{
    if (kvf_list_empty(&t->node))
        kvf_list_push_back(&s->tasks, &t->node);
}

void kvf_task_cancel(struct kvf_task *t)
{
    kvf_list_unlink(&t->node);
}

void kvf_slice_init(struct kvf_slice *sl,
                    bool (*run)(struct kvf_slice *s, uint64_t budget_ns))
{
    kvf_list_init(&sl->node);
    sl->run = run;
}

void kvf_slice_start(struct kvf_sched *s, struct kvf_slice *sl)
{
    if (kvf_list_empty(&sl->node))
        kvf_list_push_back(&s->slices, &sl->node);
}

void kvf_slice_stop(struct kvf_slice *sl)
{
    kvf_list_unlink(&sl->node);
}

static void run_timers(struct kvf_sched *s)
{
    uint64_t now = s->now_ns, last = s->timer_seq;

    s->stalled = s->heap_len != 0 && now > s->heap[0]->due_ns &&
                 now - s->heap[0]->due_ns > KVF_STALL_NS;
    while (s->heap_len != 0 && s->heap[0]->due_ns <= now &&
           s->heap[0]->seq <= last) {
        struct kvf_timer *t = s->heap[0];

        kvf_timer_cancel(s, t);
        s->timers_run++;
        t->fn(t);
    }
}

static void run_tasks(struct kvf_sched *s)
{
    struct kvf_list batch;
    struct kvf_list *n;

    /* Only what was posted before: a task that posts itself must not starve
     * the sockets. */
    kvf_list_init(&batch);
    kvf_list_splice(&batch, &s->tasks);
    while ((n = kvf_list_pop(&batch)) != NULL) {
        struct kvf_task *t = kvf_container_of(n, struct kvf_task, node);

        s->tasks_run++;
        t->fn(t);
    }
}

static void run_slices(struct kvf_sched *s)
{
    uint64_t start = kvf_sched_clock(s), used = 0;
    struct kvf_list *n;

    for (unsigned i = 0; i < SLICES_PER_TURN && used < s->slice_budget_ns;
         i++) {
        struct kvf_slice *sl;

        n = kvf_list_pop(&s->slices);
        if (n == NULL)
            break;
        sl = kvf_container_of(n, struct kvf_slice, node);
        /* Queued again before it runs, so that it may stop itself. */
        kvf_list_push_back(&s->slices, &sl->node);
        s->slices_run++;
        if (!sl->run(sl, s->slice_budget_ns - used))
            kvf_list_unlink(&sl->node);
        used = kvf_sched_clock(s) - start;
    }
}

bool kvf_sched_turn(struct kvf_sched *s)
{
    s->turns++;
    kvf_sched_stamp(s);
    run_timers(s);
    run_tasks(s);
    if (!kvf_list_empty(&s->slices))
        run_slices(s);
    return !kvf_list_empty(&s->tasks) || !kvf_list_empty(&s->slices);
}
