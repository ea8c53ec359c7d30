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
#include "loop/reactor_private.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/log.h"

#define DRAIN_BUDGET 64
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
    rc = kvf_reactor_wait(r, busy, until, why);
    kvf_reactor_give_way(r, busy && only_spins(r));
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
