/* The questions that the daemon puts to the fd broker (proc.h). Neither call
 * waits: the broker's socket turns readable when an answer, or its end, is
 * there. */
#ifndef KVF_MEMORY_BROKER_H
#define KVF_MEMORY_BROKER_H

#include <stdint.h>
#include <sys/types.h>

/* One SOCK_SEQPACKET message each way between two halves of one program. */
struct kvf_broker_request {
    uint64_t tag; /* comes back: a reply that came too late is recognised */
    int32_t pid, fd;
};
struct kvf_broker_reply {
    uint64_t tag;
    int32_t err; /* errno, or 0 and an O_PATH fd by SCM_RIGHTS */
    int32_t pad;
};

/* Asks for /proc/<pid>/fd/<fd>. 0, or a negative errno: nothing was asked
 * (-EAGAIN: it has not read what was asked before; -EPIPE, -ECONNRESET: it is
 * gone). */
int kvf_broker_ask(int broker, uint64_t tag, pid_t pid, int fd);
/* Takes one answer. 0: the question with *tag has the answer *link, an O_PATH
 * fd (close-on-exec, the caller's from now on) or a negative errno. Otherwise a
 * negative errno: -EAGAIN, there is none now; another one, the broker is
 * gone. */
int kvf_broker_answer(int broker, uint64_t *tag, int *link);
#endif
