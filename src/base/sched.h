/* Virtual heart of the loop: time, timers, posted tasks and slices of bulk
 * work. It knows no file descriptor, so a test drives it with a clock of its
 * own; in the daemon the reactor drives it between two waits for I/O.
 *
 * One thread owns a sched and everything that hangs on it. Nothing blocks. */
#ifndef KVF_BASE_SCHED_H
#define KVF_BASE_SCHED_H

#include "base/list.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KVF_NS_PER_US 1000ull
#define KVF_NS_PER_MS 1000000ull
#define KVF_NS_PER_S 1000000000ull
#define KVF_NEVER UINT64_MAX

/* Microseconds between two times in ns; 0 when the first was never taken. */
static inline uint64_t kvf_us_between(uint64_t from_ns, uint64_t to_ns)
{
    return from_ns != 0 && to_ns > from_ns ? (to_ns - from_ns) / KVF_NS_PER_US
                                           : 0;
}

/* A one-shot timer, embedded in its owner and initialised before use. */
struct kvf_timer {
    uint64_t due_ns;
    uint64_t seq; /* order of arming; breaks ties and ends a turn */
    size_t slot;  /* place in the heap + 1; 0 = not armed */
    void (*fn)(struct kvf_timer *t);
};

/* A posted call. Runs once, after the handler that posted it has returned:
 * handlers post, they do not call up. */
struct kvf_task {
    struct kvf_list node;
    void (*fn)(struct kvf_task *t);
};

/* Bulk work cut into pieces (a copy, a checksum). `run` does one piece of at
 * most `budget_ns` and returns true while more is left. Slices take turns.
 * `run` must not free its own slice: post a task for that. */
struct kvf_slice {
    struct kvf_list node;
    bool (*run)(struct kvf_slice *s, uint64_t budget_ns);
};

struct kvf_sched {
    uint64_t now_ns; /* monotonic; stamped once per turn. Read it freely. */
    uint64_t (*clock)(void *arg); /* ns, monotonic; NULL = CLOCK_MONOTONIC */
    void *clock_arg;
    bool stalled; /* this turn began so late (> KVF_STALL_NS after the
                     first timer was due) that silence of a peer proves
                     nothing: we may have been stopped ourselves */
    uint64_t slice_budget_ns; /* for all slices of one turn together */
    struct kvf_timer **heap;
    size_t heap_len, heap_cap;
    uint64_t timer_seq;
    struct kvf_list tasks, slices;
    uint64_t turns, timers_run, tasks_run, slices_run;
};

#define KVF_STALL_NS (500 * KVF_NS_PER_MS)

/* `clock` NULL takes the real monotonic clock. */
void kvf_sched_init(struct kvf_sched *s, uint64_t (*clock)(void *arg),
                    void *clock_arg);
/* Forgets all timers, tasks and slices without running them. */
void kvf_sched_fini(struct kvf_sched *s);

/* Reads the clock now (ns) without stamping the turn. */
uint64_t kvf_sched_clock(const struct kvf_sched *s);

/* One turn: stamps now_ns, runs due timers, then the tasks posted so far, then
 * slices in turn until their common budget is used. Returns true if work is
 * left, so that the caller must not sleep. */
bool kvf_sched_turn(struct kvf_sched *s);

/* Stamps now_ns only; the reactor calls it after waking up, before draining. */
void kvf_sched_stamp(struct kvf_sched *s);

/* When the first timer is due, or KVF_NEVER. O(1). */
uint64_t kvf_sched_next_due(const struct kvf_sched *s);

void kvf_timer_init(struct kvf_timer *t, void (*fn)(struct kvf_timer *t));
/* Arms or re-arms; due in the past means the next turn (due_ns then becomes
 * now_ns). Timers due at the same time run in the order of arming. KVF_NEVER
 * cancels.
 * O(log n). Aborts only when memory for the heap is gone. */
void kvf_timer_set(struct kvf_sched *s, struct kvf_timer *t, uint64_t due_ns);
void kvf_timer_cancel(struct kvf_sched *s, struct kvf_timer *t);
static inline bool kvf_timer_armed(const struct kvf_timer *t)
{
    return t->slot != 0;
}

void kvf_task_init(struct kvf_task *t, void (*fn)(struct kvf_task *t));
/* Posting a task that is already posted does nothing. */
void kvf_task_post(struct kvf_sched *s, struct kvf_task *t);
void kvf_task_cancel(struct kvf_task *t);

void kvf_slice_init(struct kvf_slice *sl,
                    bool (*run)(struct kvf_slice *s, uint64_t budget_ns));
void kvf_slice_start(struct kvf_sched *s, struct kvf_slice *sl);
void kvf_slice_stop(struct kvf_slice *sl);

#endif
