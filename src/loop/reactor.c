/* The loop. An iteration: arm all touched sources, wait in libevent, stamp the
 * time, deliver signals, drain the ready sources, one turn of the sched. (The
 * wait stands before the handlers, so that kvf_reactor_once returns as soon as
 * they have run; round the loop the order is the same.)
 *
 * libevent's callbacks only mark, so that every handler runs between two waits
 * and may remove any source, its own included. A source is put on the touched
 * list before its drain and is not looked at after it, because it may be gone.
 *
 * Fails only when libevent or the kernel does (out of memory, a descriptor that
 * cannot be polled). */
#include "loop/reactor.h"
#include "loop/reactor_base.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <event2/event.h>

#include "base/log.h"

#define DRAIN_BUDGET 64
#define MAX_SIGNALS 8

struct signal_slot {
    struct kvf_reactor *reactor;
    struct event *event;
    bool pending;
    int signo;
    void (*fn)(void *arg, int signo);
    void *arg;
};

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
/* A loop that has work for longer than this gives way once. A thread that was
 * woken meanwhile would else wait for the end of our slice, 3 ms and more: on
 * two cores a ping beside 1 GiB by tcp took that long (p99; now about one). */
#define GIVE_WAY_NS (100 * KVF_NS_PER_US)

struct kvf_reactor {
    struct event_base *base;
    struct event *timer;
    int timer_fd;
    uint64_t timer_due; /* what `timer` is set for; KVF_NEVER = not set */
    struct kvf_sched sched;
    struct kvf_stats *stats;
    struct kvf_list ready, touched;
    uint64_t woke_ns; /* end of the last wait; 0 = none yet */
    bool stop;
    bool work; /* something said BUSY, not only SPIN */
    uint64_t spin_from_ns;
    uint64_t gave_way_ns; /* when we last slept or let others run */
    uint64_t linger_ns;   /* see kvf_reactor_linger */
    uint64_t linger_from_ns;
    unsigned soon;  /* how many waits in a row ended sooner than that */
    bool signalled; /* some slot is pending */
    unsigned n_signals;
    struct signal_slot signal[MAX_SIGNALS];
};

/* Reading and writing are two events on one fd: libevent folds them into one
 * registration, so that a change of one costs one epoll_ctl(2). */
struct source_io {
    struct event *read, *write;
};

struct event_base *kvf_reactor_base(struct kvf_reactor *r)
{
    return r->base;
}

struct kvf_sched *kvf_reactor_sched(struct kvf_reactor *r)
{
    return &r->sched;
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    struct kvf_reactor *r = arg;
    uint64_t ticks;

    (void)what;
    if (read(fd, &ticks, sizeof ticks) == (ssize_t)sizeof ticks)
        r->timer_due = KVF_NEVER;
}

/* A timerfd instead of libevent's timers: it takes absolute nanoseconds and
 * costs a system call only when the time changes. */
static int open_timer(struct kvf_reactor *r)
{
    r->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (r->timer_fd < 0)
        return -1;
    r->timer =
        event_new(r->base, r->timer_fd, EV_READ | EV_PERSIST, on_timer, r);
    return r->timer != NULL ? event_add(r->timer, NULL) : -1;
}

static struct event_base *new_base(void)
{
    struct event_config *cfg = event_config_new();
    struct event_base *base = NULL;

    if (cfg == NULL)
        return NULL;
    if (event_config_set_flag(cfg, EVENT_BASE_FLAG_NOLOCK) == 0 &&
        event_config_set_flag(cfg, EVENT_BASE_FLAG_IGNORE_ENV) == 0)
        base = event_base_new_with_config(cfg);
    event_config_free(cfg);
    return base;
}

struct kvf_reactor *kvf_reactor_create(struct kvf_stats *stats,
                                       struct kvf_why *why)
{
    struct kvf_reactor *r = calloc(1, sizeof *r);

    if (r == NULL) {
        kvf_fail(why, KVF_NO_SPACE, "no memory for the loop");
        return NULL;
    }
    r->stats = stats;
    r->timer_due = KVF_NEVER;
    kvf_list_init(&r->ready);
    kvf_list_init(&r->touched);
    kvf_sched_init(&r->sched, NULL, NULL);
    r->base = new_base();
    r->timer_fd = -1;
    if (r->base == NULL || open_timer(r) != 0) {
        kvf_fail(why, KVF_INTERNAL, "libevent cannot be set up: %s",
                 strerror(errno));
        kvf_reactor_destroy(r);
        return NULL;
    }
    return r;
}

void kvf_reactor_destroy(struct kvf_reactor *r)
{
    if (r == NULL)
        return;
    for (unsigned i = 0; i < r->n_signals; i++)
        event_free(r->signal[i].event);
    if (r->timer != NULL)
        event_free(r->timer);
    if (r->timer_fd >= 0)
        close(r->timer_fd);
    if (r->base != NULL)
        event_base_free(r->base);
    kvf_sched_fini(&r->sched);
    free(r);
}

static void on_ready(evutil_socket_t fd, short what, void *arg)
{
    struct kvf_source *src = arg;

    (void)fd;
    src->wakeups++;
    if ((what & EV_READ) != 0)
        src->ready |= KVF_WANT_READ;
    if ((what & EV_WRITE) != 0)
        src->ready |= KVF_WANT_WRITE;
    kvf_source_kick(src);
}

/* Turns one of the two events on or off; it is made when first needed. */
static int watch(struct kvf_source *src, struct event **ev, short what, bool on)
{
    if (!on) {
        if (*ev != NULL)
            event_del(*ev);
        return 0;
    }
    if (*ev == NULL)
        *ev = event_new(src->reactor->base, src->fd, (short)(what | EV_PERSIST),
                        on_ready, src);
    return *ev != NULL ? event_add(*ev, NULL) : -1;
}

static int set_want(struct kvf_source *src, unsigned want)
{
    struct source_io *io = src->event;
    unsigned changed = src->want ^ want;
    int rc = 0;

    if ((changed & KVF_WANT_READ) != 0)
        rc |= watch(src, &io->read, EV_READ, (want & KVF_WANT_READ) != 0);
    if ((changed & KVF_WANT_WRITE) != 0)
        rc |= watch(src, &io->write, EV_WRITE, (want & KVF_WANT_WRITE) != 0);
    src->want = want;
    /* What is no longer wanted must not be reported late. */
    src->ready &= want;
    return rc;
}

int kvf_source_add(struct kvf_reactor *r, struct kvf_source *src,
                   const char *name, const struct kvf_source_ops *ops, int fd,
                   unsigned want, struct kvf_why *why)
{
    struct source_io *io = calloc(1, sizeof *io);

    if (io == NULL)
        return kvf_fail(why, KVF_NO_SPACE, "no memory to watch %s", name);
    *src = (struct kvf_source){
        .ops = ops, .name = name, .reactor = r, .fd = fd, .event = io};
    kvf_list_init(&src->ready_node);
    kvf_list_init(&src->touched_node);
    if (set_want(src, want) != 0) {
        int e = errno;

        kvf_source_remove(src);
        return kvf_fail(why, KVF_INTERNAL, "cannot watch %s (fd %d): %s", name,
                        fd, strerror(e));
    }
    kvf_source_touch(src);
    return 0;
}

void kvf_source_remove(struct kvf_source *src)
{
    struct source_io *io = src->event;

    if (src->reactor == NULL)
        return;
    if (io->read != NULL)
        event_free(io->read);
    if (io->write != NULL)
        event_free(io->write);
    free(io);
    src->event = NULL;
    kvf_list_unlink(&src->ready_node);
    kvf_list_unlink(&src->touched_node);
    src->reactor = NULL;
    src->want = src->ready = 0;
}

void kvf_source_want(struct kvf_source *src, unsigned want)
{
    if (src->reactor == NULL || src->want == want)
        return;
    if (set_want(src, want) != 0)
        kvf_log(KVF_LOG_ERROR, "LOOP", "cannot watch %s fd=%d: %s", src->name,
                src->fd, strerror(errno));
}

void kvf_source_touch(struct kvf_source *src)
{
    if (src->reactor != NULL && kvf_list_empty(&src->touched_node))
        kvf_list_push_back(&src->reactor->touched, &src->touched_node);
}

void kvf_source_kick(struct kvf_source *src)
{
    if (src->reactor != NULL && kvf_list_empty(&src->ready_node))
        kvf_list_push_back(&src->reactor->ready, &src->ready_node);
}

static void on_signal(evutil_socket_t signo, short what, void *arg)
{
    struct signal_slot *slot = arg;

    (void)signo;
    (void)what;
    slot->pending = true;
    slot->reactor->signalled = true;
}

int kvf_reactor_signal(struct kvf_reactor *r, int signo,
                       void (*fn)(void *arg, int signo), void *arg,
                       struct kvf_why *why)
{
    struct signal_slot *slot;

    if (r->n_signals == MAX_SIGNALS)
        return kvf_fail(why, KVF_INTERNAL, "more than %d signal handlers",
                        MAX_SIGNALS);
    slot = &r->signal[r->n_signals];
    *slot = (struct signal_slot){
        .reactor = r, .signo = signo, .fn = fn, .arg = arg};
    slot->event = evsignal_new(r->base, signo, on_signal, slot);
    if (slot->event == NULL || event_add(slot->event, NULL) != 0) {
        if (slot->event != NULL)
            event_free(slot->event);
        return kvf_fail(why, KVF_INTERNAL, "cannot catch signal %d (%s)", signo,
                        strsignal(signo));
    }
    r->n_signals++;
    return 0;
}

static void deliver_signals(struct kvf_reactor *r)
{
    r->signalled = false;
    for (unsigned i = 0; i < r->n_signals; i++) {
        struct signal_slot *slot = &r->signal[i];

        if (slot->pending) {
            slot->pending = false;
            slot->fn(slot->arg, slot->signo);
        }
    }
}

static void drain_ready(struct kvf_reactor *r)
{
    struct kvf_list batch, *n;

    /* Kicks that come meanwhile wait for the next pass. */
    kvf_list_init(&batch);
    kvf_list_splice(&batch, &r->ready);
    while ((n = kvf_list_pop(&batch)) != NULL) {
        struct kvf_source *src =
            kvf_container_of(n, struct kvf_source, ready_node);
        unsigned ready = src->ready;

        src->ready = 0;
        src->drains++;
        kvf_source_touch(src);
        src->ops->drain(src, ready, DRAIN_BUDGET);
    }
}

static void arm_touched(struct kvf_reactor *r)
{
    struct kvf_list batch, *n;

    kvf_list_init(&batch);
    kvf_list_splice(&batch, &r->touched);
    while ((n = kvf_list_pop(&batch)) != NULL) {
        struct kvf_source *src =
            kvf_container_of(n, struct kvf_source, touched_node);

        enum kvf_arm how =
            src->ops->arm != NULL ? src->ops->arm(src) : KVF_ARM_QUIET;

        if (how == KVF_ARM_QUIET)
            continue;
        r->work |= how == KVF_ARM_BUSY;
        kvf_source_kick(src);
    }
}

/* True when nothing but sources that spin keeps the loop awake. */
static bool only_spins(const struct kvf_reactor *r)
{
    if (r->work || !kvf_list_empty(&r->sched.tasks) ||
        !kvf_list_empty(&r->sched.slices))
        return false;
    kvf_list_for_each (n, &r->ready)
        if (kvf_container_of(n, struct kvf_source, ready_node)->ready != 0)
            return false;
    return true;
}

/* Whoever shares this processor may be the one that the bytes, or an engine,
 * wait for. Returns how long it was away, ns. */
static uint64_t let_others_run(struct kvf_reactor *r)
{
    uint64_t before = kvf_sched_clock(&r->sched);

    sched_yield();
    r->gave_way_ns = kvf_sched_clock(&r->sched);
    return r->gave_way_ns - before;
}

/* If that was long others are busy here. */
static void give_way(struct kvf_reactor *r)
{
    if (let_others_run(r) > CROWDED_NS)
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
    while (kvf_sched_clock(&r->sched) < end) {
        if (event_base_loop(r->base, EVLOOP_ONCE | EVLOOP_NONBLOCK |
                                         EVLOOP_NO_EXIT_ON_EMPTY) < 0)
            return false; /* and the wait that follows says so */
        if (!kvf_list_empty(&r->ready) || r->signalled)
            return true;
        if (let_others_run(r) > HOGGED_NS) {
            r->linger_from_ns = r->gave_way_ns + NO_SPIN_NS;
            return false;
        }
    }
    return false;
}

static int wait_for_events(struct kvf_reactor *r, bool busy, uint64_t until,
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

int kvf_reactor_once(struct kvf_reactor *r, uint64_t timeout_ns,
                     struct kvf_why *why)
{
    uint64_t until = KVF_NEVER, now = kvf_sched_clock(&r->sched);
    bool busy;
    int rc;

    if (timeout_ns < KVF_NEVER - now)
        until = now + timeout_ns;
    /* What was kicked by hand counts as work; what arm() keeps awake is told
     * apart from it. */
    r->work = !kvf_list_empty(&r->ready);
    /* Second pass of the iteration before: all its handlers have run. */
    arm_touched(r);
    busy = !kvf_list_empty(&r->ready) || !kvf_list_empty(&r->touched) ||
           !kvf_list_empty(&r->sched.tasks) ||
           !kvf_list_empty(&r->sched.slices);
    rc = wait_for_events(r, busy, until, why);
    if ((busy && only_spins(r)) || r->woke_ns - r->gave_way_ns > GIVE_WAY_NS)
        give_way(r);
    kvf_sched_stamp(&r->sched);
    if (r->signalled)
        deliver_signals(r);
    drain_ready(r);
    kvf_sched_turn(&r->sched);
    return rc;
}

int kvf_reactor_run(struct kvf_reactor *r, struct kvf_why *why)
{
    int rc = 0;

    r->woke_ns = 0;
    while (rc == 0 && !r->stop)
        rc = kvf_reactor_once(r, KVF_NEVER, why);
    r->stop = false;
    return rc;
}

void kvf_reactor_stop(struct kvf_reactor *r)
{
    r->stop = true;
}
