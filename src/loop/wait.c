/* How the loop waits: asleep in libevent, or awake while messages come close
 * together; and when it lets others have the processor. Measured, see
 * docs/internals/loop.md. */
#include "loop/reactor_private.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/timerfd.h>

/* A yield that takes longer than this let somebody else run, and a wait that
 * does slept: without either the calls take some microseconds. */
#define CROWDED_NS (30 * KVF_NS_PER_US)
#define NO_SPIN_NS (5 * KVF_NS_PER_MS)
/* One message that follows another at once is a question and its answer
 * (keepalive); only the next one says that there is traffic. */
#define DENSE 2
/* Libzmq's thread and an engine that takes a reply are done sooner; a program
 * that computes takes its whole slice, some milliseconds. */
#define HOGGED_NS (500 * KVF_NS_PER_US)
/* Who computed here that long was an engine, and what it waits for now are
 * libzmq's threads. A loop that goes on waiting awake keeps the processor from
 * them, yield or not: the scheduler owes it as long as it was away. */
#define AWAY_NS (100 * KVF_NS_PER_US)
/* A loop that has work for longer than this gives way once. A thread that was
 * woken meanwhile would else wait for the end of our slice, 3 ms and more: on
 * two cores a ping beside 1 GiB by tcp took that long (p99; now about one). */
#define GIVE_WAY_NS (100 * KVF_NS_PER_US)

/* Whoever shares this processor may be the one that the bytes, or an engine,
 * wait for. Returns how long it was away, ns. */
static uint64_t let_others_run(struct kvf_reactor *r)
{
    uint64_t before = kvf_sched_clock(&r->sched);

    sched_yield();
    r->gave_way_ns = kvf_sched_clock(&r->sched);
    return r->gave_way_ns - before;
}

void kvf_reactor_give_way(struct kvf_reactor *r, bool spun)
{
    if (!spun && r->woke_ns - r->gave_way_ns <= GIVE_WAY_NS)
        return;
    if (let_others_run(r) > CROWDED_NS) /* others are busy here */
        r->spin_from_ns = r->gave_way_ns + NO_SPIN_NS;
}

bool kvf_reactor_may_spin(const struct kvf_reactor *r)
{
    return r->sched.now_ns >= r->spin_from_ns;
}

void kvf_reactor_linger(struct kvf_reactor *r, uint64_t ns)
{
    r->linger_ns = ns;
    r->soon = 0;
}

void kvf_reactor_crowd(struct kvf_reactor *r)
{
    r->linger_from_ns = r->sched.now_ns + NO_SPIN_NS;
}

/* Sets the timer for `due`, if it is not set for that already. */
static int set_timer(struct kvf_reactor *r, uint64_t due)
{
    struct itimerspec at = {.it_value = {0, 0}}; /* all zero disarms it */

    if (due == r->timer_due)
        return 0;
    r->timer_due = due;
    if (due != KVF_NEVER) {
        at.it_value.tv_sec = (time_t)(due / KVF_NS_PER_S);
        at.it_value.tv_nsec = (long)(due % KVF_NS_PER_S);
    }
    return timerfd_settime(r->timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
}

static void record_lag(struct kvf_reactor *r, uint64_t now)
{
    uint64_t lag = (now - r->woke_ns) / KVF_NS_PER_US;

    kvf_hist_add(&r->stats->loop_lag_us, lag);
    kvf_hist_recent_add(&r->stats->loop_lag_recent_us, lag, now);
}

/* Waits awake until `end`, or until others have work for this processor. True
 * when something came. */
static bool linger(struct kvf_reactor *r, uint64_t end)
{
    uint64_t away;

    while (kvf_sched_clock(&r->sched) < end) {
        if (event_base_loop(r->base, EVLOOP_ONCE | EVLOOP_NONBLOCK |
                                         EVLOOP_NO_EXIT_ON_EMPTY) < 0)
            return false; /* and the wait that follows says so */
        if (!kvf_list_empty(&r->ready) || r->signalled)
            return true;
        away = let_others_run(r);
        if (away > HOGGED_NS)
            r->linger_from_ns = r->gave_way_ns + NO_SPIN_NS;
        if (away > AWAY_NS)
            return false;
    }
    return false;
}

int kvf_reactor_wait(struct kvf_reactor *r, bool busy, uint64_t until,
                     struct kvf_why *why)
{
    uint64_t now = kvf_sched_clock(&r->sched);
    uint64_t due = kvf_sched_next_due(&r->sched);
    int flags = EVLOOP_ONCE | EVLOOP_NO_EXIT_ON_EMPTY;

    if (r->stats != NULL && r->woke_ns != 0)
        record_lag(r, now);
    if (until < due)
        due = until;
    if (busy || r->stop || due <= now ||
        (r->soon >= DENSE && now >= r->linger_from_ns &&
         linger(r, due - now < r->linger_ns ? due : now + r->linger_ns)))
        flags |= EVLOOP_NONBLOCK;
    else if (set_timer(r, due) != 0)
        return kvf_fail(why, KVF_INTERNAL, "cannot set the loop's timer");
    if (event_base_loop(r->base, flags) < 0)
        return kvf_fail(why, KVF_INTERNAL, "libevent failed: %s",
                        strerror(errno));
    r->woke_ns = kvf_sched_clock(&r->sched);
    if (!busy && !kvf_list_empty(&r->ready) && r->woke_ns - now < r->linger_ns)
        r->soon += r->soon < DENSE;
    else if (!busy)
        r->soon = 0;
    if (r->woke_ns - now > CROWDED_NS)
        r->gave_way_ns = r->woke_ns; /* it slept */
    return 0;
}
