/* Ends of processes, as events of the loop: one pidfd a process, shared by all
 * who watch it (sessions, claims of peers). */
#ifndef KVF_DAEMON_PROCWATCH_H
#define KVF_DAEMON_PROCWATCH_H

#include "loop/reactor.h"
#include "peer/peers.h"

#include <sys/types.h>

struct kvf_procwatch;

int kvf_procwatch_create(struct kvf_reactor *r, struct kvf_procwatch **out,
                         struct kvf_why *why);
void kvf_procwatch_destroy(struct kvf_procwatch *pw); /* NULL is fine */

/* For struct kvf_peers_env; ctx is the kvf_procwatch. A watch stays valid after
 * gone() until it is unwatched. */
extern const struct kvf_proc_ops kvf_procwatch_ops;

/* The pidfd of a watched process (the watch's); -1: it has ended. */
int kvf_procwatch_fd(const struct kvf_proc_watch *w);
unsigned kvf_procwatch_count(const struct kvf_procwatch *pw); /* pidfds */
#endif
