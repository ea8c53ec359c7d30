/* The one loop of the daemon: libevent underneath, two passes above.
 *
 * An iteration is: stamp the time; drain every ready source (budgeted); run the
 * sched (timers, posted tasks, one turn of slices); then ARM every source that
 * was touched, all of them after all handlers have run; then wait in libevent,
 * without sleeping if anything said BUSY. Arming one source before the handlers
 * of the next have run loses edges (ZMQ_FD, verbs completion channels).
 *
 * One thread. Nothing here blocks but kvf_reactor_run. */
#ifndef KVF_LOOP_REACTOR_H
#define KVF_LOOP_REACTOR_H

#include "base/sched.h"
#include "base/stats.h"
#include "base/why.h"

struct kvf_reactor;
struct kvf_source;

enum kvf_arm {
    KVF_ARM_QUIET, /* quiet now; the descriptor will turn ready on new work */
    KVF_ARM_BUSY,  /* work is already here: the loop must not sleep */
    KVF_ARM_SPIN   /* nothing is here, but it is expected within microseconds:
                      the loop does not sleep. Only while kvf_reactor_may_spin */
};

/* What the descriptor is watched for; also what `drain` is told is ready. */
#define KVF_WANT_READ 1u
#define KVF_WANT_WRITE 2u

struct kvf_source_ops {
    /* Handles at most about `budget` items; called when the descriptor turned
     * ready, when the last arm() said BUSY, or after kvf_source_kick(). `ready`
     * is the set of KVF_WANT_* bits libevent reported (0 after BUSY or kick).
     * May close its own source and others. */
    void (*drain)(struct kvf_source *src, unsigned ready, unsigned budget);
    /* Called in the second pass for every source that was drained or touched
     * (kvf_source_touch) in this iteration. Runs no handlers. NULL =
     * KVF_ARM_QUIET. */
    enum kvf_arm (*arm)(struct kvf_source *src);
};

/* Embedded in its owner. */
struct kvf_source {
    const struct kvf_source_ops *ops;
    const char *name; /* "zmq:engine", "tcp:in", ...: static storage */
    struct kvf_reactor *reactor; /* NULL when not added */
    int fd;
    unsigned want;  /* KVF_WANT_* being watched */
    unsigned ready; /* reported, not yet drained */
    struct kvf_list ready_node, touched_node;
    void *event; /* libevent's, private to source.c */
    uint64_t wakeups, drains;
};

struct kvf_reactor *kvf_reactor_create(struct kvf_stats *stats,
                                       struct kvf_why *why);
/* Sources must have been removed before. NULL is fine. */
void kvf_reactor_destroy(struct kvf_reactor *r);

struct kvf_sched *kvf_reactor_sched(struct kvf_reactor *r);

/* Runs until kvf_reactor_stop. Records the loop lag (time from the end of one
 * wait to the next wait) in stats->loop_lag_us. */
int kvf_reactor_run(struct kvf_reactor *r, struct kvf_why *why);
void kvf_reactor_stop(struct kvf_reactor *r);
/* False for some milliseconds after the loop saw, while it was spinning, that
 * others want this processor: a loop that sleeps gets it back sooner than one
 * that gave it away. Asked by arm() before it answers KVF_ARM_SPIN. */
bool kvf_reactor_may_spin(const struct kvf_reactor *r);
/* From now on the loop stays awake for `ns` after it has run out of work, when
 * the last two things came within as long each: a request is several messages,
 * and most find a loop that need not be woken. A lone message, a question and
 * its answer, a timer, and a loop that waits in vain do not keep it awake, so
 * that idle stays idle; so does, for some milliseconds, a program that computes
 * on this processor. 0, as at the start: never. */
void kvf_reactor_linger(struct kvf_reactor *r, uint64_t ns);
/* Several requests are under way here: for some milliseconds the loop does not
 * stay awake in vain. Messages come in batches then, which one wake-up serves,
 * and who brings them needs the processor more. */
void kvf_reactor_crowd(struct kvf_reactor *r);
/* One iteration: arm, wait at most timeout_ns (KVF_NEVER = until something
 * happens), handle what came. Returns right after the handlers. For tests and
 * for programs with a loop of their own. */
int kvf_reactor_once(struct kvf_reactor *r, uint64_t timeout_ns,
                     struct kvf_why *why);

/* Starts watching fd (level-triggered) for `want`. The fd stays the owner's: it
 * must be removed before it is closed. A source starts touched, so that arm()
 * is asked at least once. */
int kvf_source_add(struct kvf_reactor *r, struct kvf_source *src,
                   const char *name, const struct kvf_source_ops *ops, int fd,
                   unsigned want, struct kvf_why *why);
void kvf_source_remove(struct kvf_source *src); /* idempotent */
/* Changes what is watched; no system call when nothing changes. */
void kvf_source_want(struct kvf_source *src, unsigned want);
/* Asks for arm() in this iteration's second pass: after any use of the
 * descriptor outside drain (a zmq_send swallows edges). */
void kvf_source_touch(struct kvf_source *src);
/* Asks for drain() in the next first pass, whatever the descriptor says. */
void kvf_source_kick(struct kvf_source *src);

/* Delivers a signal in the loop (not in signal context). At most 8. */
int kvf_reactor_signal(struct kvf_reactor *r, int signo,
                       void (*fn)(void *arg, int signo), void *arg,
                       struct kvf_why *why);
#endif
