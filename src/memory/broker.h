/* The question that proc.c puts to the fd broker (inside this folder only). */
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

/* The loop stands still for so long at worst. On a machine with four busy
 * programs 200 were once too few. */
#define KVF_BROKER_WAIT_MS 500

/* O_PATH fd (close-on-exec) of /proc/<pid>/fd/<fd>, or a negative errno
 * (-ETIMEDOUT when the broker is silent, -EPIPE or
 * -ECONNRESET when it is gone). Waits at most
 * KVF_BROKER_WAIT_MS. */
int kvf_broker_open(int broker, pid_t pid, int fd);
#endif
