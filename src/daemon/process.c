/* What the daemon makes of its process before anything else exists: limits, the
 * heap, the lock, the broker, the pool, and no capabilities.
 *
 * Failure modes: each names what could not be had; limits that cannot be raised
 * are left as they are. */
#include "daemon/server.h"

#include "loop/accept_guard.h"

#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define HEAP_KEPT (256 << 20) /* bytes */
#define HEAP_STEP (8 << 20)

static void raise_fd_limit(void)
{
    struct rlimit r;

    if (getrlimit(RLIMIT_NOFILE, &r) == 0 && r.rlim_cur < r.rlim_max) {
        r.rlim_cur = r.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &r);
    }
}

/* A verbs device locks the pool once more, in its own count, and that needs the
 * limit once capabilities are gone. Refused: ibv_reg_mr will say so. */
static void raise_lock_limit(void)
{
    struct rlimit r = {RLIM_INFINITY, RLIM_INFINITY};

    if (setrlimit(RLIMIT_MEMLOCK, &r) == 0)
        return;
    if (getrlimit(RLIMIT_MEMLOCK, &r) == 0 && r.rlim_cur < r.rlim_max) {
        r.rlim_cur = r.rlim_max;
        (void)setrlimit(RLIMIT_MEMLOCK, &r);
    }
}

/* Eager payloads pass through the heap as messages. Without this, a burst of
 * them grows the heap and gives it back each time, and every page of it is
 * faulted in again: more than the copies cost. */
static void keep_heap(void)
{
    mallopt(M_TRIM_THRESHOLD, HEAP_KEPT);
    mallopt(M_TOP_PAD, HEAP_STEP);
    mallopt(M_MMAP_THRESHOLD, HEAP_STEP);
}

/* The pool is made before capabilities go (mlock may need them), the broker
 * keeps them, and no thread exists yet: capabilities belong to threads. */
int kvf_server_build_process(struct kvf_server *s, struct kvf_why *why)
{
    int rc;

    signal(SIGPIPE, SIG_IGN);
    raise_fd_limit();
    if (kvf_server_speaks(s, KVF_PROTO_RDMA))
        raise_lock_limit();
    keep_heap();
    if (kvf_accept_guard_init() != 0)
        return kvf_fail(why, KVF_INTERNAL, "no file descriptors: %s",
                        strerror(errno));
    rc = kvf_place_find(s, why);
    /* First, so that it never holds the lock or the pool: a helper that has not
     * had the processor yet would keep them beyond a daemon that is killed. */
    if (rc == 0)
        rc = kvf_broker_start(&s->broker, &s->broker_pid, why);
    if (rc == 0 && s->engine_ipc)
        rc = kvf_lockfile_take(&s->lock, s->engine_endpoint + 6, why);
    if (rc == 0)
        rc = kvf_segment_create(&s->segment, s->conf->memory_pool_size,
                                &s->incarnation, why);
    if (rc < 0)
        return rc;
    s->has_segment = true;
    rc = kvf_drop_capabilities(why);
    if (rc == 0)
        rc = kvf_proc_start(getpid(), &s->proc_start, why);
    return rc;
}
