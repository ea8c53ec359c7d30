/* Processes that may touch our memory: identified by pid and start time,
 * watched through a pidfd, and asked for their descriptors.
 *
 * The daemon drops all capabilities so that any process of the same uid may
 * open /proc/<daemon>/fd/<n> (the kernel compares capability sets). The price:
 * a daemon without capabilities may not look into a process that has some,
 * such as an engine run by root. For that the daemon forks, before it drops
 * them, a small helper (the fd broker) which keeps the capabilities, does
 * nothing but open /proc/<pid>/fd/<n> with O_PATH on request, and ends with the
 * daemon (EOF on its socket). It is started only when there are capabilities to
 * drop. */
#ifndef KVF_MEMORY_PROC_H
#define KVF_MEMORY_PROC_H

#include "base/why.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* A process, beyond the reuse of its pid. */
struct kvf_proc_id {
    pid_t pid;
    uint64_t start; /* field 22 of /proc/<pid>/stat, clock ticks since boot */
};

/* Start time of pid, or -KVF_NOT_FOUND if no such process is visible here. */
int kvf_proc_start(pid_t pid, uint64_t *start, struct kvf_why *why);

/* pidfd (close-on-exec, readable when the process has ended) of exactly that
 * process. id->start 0 = not checked. *uid: its effective uid (the owner of
 * /proc/<pid>). -KVF_NOT_FOUND  gone, or another process has that pid now
 *   -KVF_UNSUPPORTED  not visible here (other PID namespace) */
int kvf_proc_open(const struct kvf_proc_id *id, int *pidfd, uid_t *uid,
                  struct kvf_why *why);
/* True once the process of the pidfd has ended. */
bool kvf_proc_gone(int pidfd);

/* The fd broker. Started before kvf_drop_capabilities; *broker = -1 when there
 * is nothing to keep. Sets FD_CLOEXEC. The helper names itself "kvferryd-fd" in
 * its command line and process name, ignores SIGINT, SIGTERM, SIGHUP (it ends
 * with the daemon) and closes every fd but its socket. Start it before the pool
 * is made and before any thread; the caller reaps *pid. */
int kvf_broker_start(int *broker, pid_t *pid, struct kvf_why *why);
/* Empties permitted, effective, inheritable and ambient sets and the bounding
 * set where possible, then makes the process dumpable again. */
int kvf_drop_capabilities(struct kvf_why *why);

/* Memory that an engine registers: descriptor `fd` of process `pid`. */
struct kvf_proc_memory {
    pid_t pid;
    int pidfd; /* of the process: whether it still lives */
    int fd;
    uid_t uid; /* who must own the memory */
    uint64_t size;
};

/* O_PATH fd (close-on-exec) of /proc/<pid>/fd/<fd>, or a negative errno.
 * -EACCES and -EPERM: the process has capabilities that this one dropped; the
 * broker may look (broker.h). */
int kvf_proc_link(pid_t pid, int fd);
/* Makes *out, a descriptor for reading and writing, from `link`: that O_PATH
 * fd, which is closed in every case, or the negative errno that is the reason
 * why there is none. Checks that it is a regular file of `uid`, F_SEAL_SHRINK
 * and size >= `size`, then that the process still lives. Every refusal is
 * -KVF_DENIED with the reason. */
int kvf_proc_open_memory(int link, const struct kvf_proc_memory *m, int *out,
                         struct kvf_why *why);
#endif
