/* For the files of the loop itself. */
#ifndef KVF_LOOP_REACTOR_PRIVATE_H
#define KVF_LOOP_REACTOR_PRIVATE_H

#include "loop/reactor.h"
#include "loop/reactor_base.h"

#include <event2/event.h>

#define MAX_SIGNALS 8

struct signal_slot {
    struct kvf_reactor *reactor;
    struct event *event;
    bool pending;
    int signo;
    void (*fn)(void *arg, int signo);
    void *arg;
};

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

/* wait.c */
/* Waits for events until `until` at most, not at all when busy, awake or
 * asleep. -status when libevent or the timer fails. */
int kvf_reactor_wait(struct kvf_reactor *r, bool busy, uint64_t until,
                     struct kvf_why *why);
/* Lets others run: when this turn only spun, or when the loop has worked for
 * long. */
void kvf_reactor_give_way(struct kvf_reactor *r, bool spun);

#endif
