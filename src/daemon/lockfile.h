/* One daemon per ipc endpoint: libzmq lets a second bind steal a live path. */
#ifndef KVF_DAEMON_LOCKFILE_H
#define KVF_DAEMON_LOCKFILE_H

#include "base/why.h"

struct kvf_lockfile {
    int fd; /* -1 = not held */
    char path[128];
    char socket[112];
};

/* Locks `<socket>.lock` (flock; the kernel ends it with the process), writes
 * our pid into it and removes the socket file of a dead daemon. -KVF_BUSY
 * names the pid of the one that lives. Does not block. */
int kvf_lockfile_take(struct kvf_lockfile *l, const char *socket,
                      struct kvf_why *why);
/* Removes socket and lock file. Idempotent. */
void kvf_lockfile_drop(struct kvf_lockfile *l);
#endif
