/* For the files of this folder only: what lies under the reactor. */
#ifndef KVF_LOOP_REACTOR_BASE_H
#define KVF_LOOP_REACTOR_BASE_H

#include "loop/reactor.h"

struct event_base;

/* Callbacks on it must only mark what happened (or post a task): handlers run
 * between the waits, not inside them. */
struct event_base *kvf_reactor_base(struct kvf_reactor *r);

#endif
