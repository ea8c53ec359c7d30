/* A transfer: one payload moving into (or out of) local memory in chunks, over
 * one link at a time, resumable on another.
 *
 *   init -> start(link, remote) -> done(0)
 *                               -> done(error) -> start(other link) -> ...
 *
 * What is in place is counted by chunk and survives an error: a later start
 * moves only chunks that are not complete. (Counts, not bits, because local
 * memory of many small pieces needs several ops for one chunk.) done is called
 * once per start, always later, and only when no posted op is left: then the
 * memory may be reused. */
#ifndef KVF_TRANSPORT_XFER_H
#define KVF_TRANSPORT_XFER_H

#include "transport/transport.h"

/* Bytes of one chunk, the unit of resuming: the small one for payloads of up to
 * 16 chunks. */
#define KVF_XFER_CHUNK (1ull << 20)
#define KVF_XFER_CHUNK_SMALL (256ull << 10)

struct kvf_xfer {
    struct kvf_sched *sched;
    struct kvf_link *link;
    const struct kvf_remote *remote;
    bool write, running, cancelling;
    /* Set after init, before a start: the payload is `size` bytes at `base` of
     * a remote that may have more (a window), not all of it. */
    bool part;
    uint64_t base;
    uint64_t size, chunk;     /* chunk: bytes of one entry of `left` */
    uint64_t bytes_done;      /* in place, over all attempts */
    uint64_t bytes_moved_now; /* by the attempt under way */
    struct iovec *iov;        /* the whole local memory in payload order */
    unsigned n_iov;
    uint32_t *left; /* by chunk: bytes not in place; 0 = complete */
    uint64_t n_chunks;
    uint64_t next;     /* first byte that this attempt has not posted */
    unsigned next_iov; /* where `next` stands in local memory */
    uint64_t next_iov_off;
    unsigned pending;
    struct kvf_list free_ops;  /* recycled ops */
    struct kvf_room_wait room; /* waiting for room on link */
    int status;
    struct kvf_why why; /* first error of this attempt */
    struct kvf_task finish;
    struct kvf_list active; /* posted ops */
    void (*done)(struct kvf_xfer *x, int status, const struct kvf_why *why);
};

/* iov is copied. Sum of iov = size > 0. -KVF_NO_SPACE when out of memory. */
int kvf_xfer_init(struct kvf_xfer *x, struct kvf_sched *sched, bool write,
                  uint64_t size, const struct iovec *iov, unsigned n_iov,
                  void (*done)(struct kvf_xfer *x, int status,
                               const struct kvf_why *why),
                  struct kvf_why *why);
/* Begins an attempt. remote must stay until done. If everything is in place
 * already, done(0) follows. */
void kvf_xfer_start(struct kvf_xfer *x, struct kvf_link *link,
                    const struct kvf_remote *remote);
/* done(-KVF_CANCELLED) follows (or the result, if it was finished). */
void kvf_xfer_cancel(struct kvf_xfer *x);
/* Forgets what is in place (another generation is pulled now). Not running. */
void kvf_xfer_reset(struct kvf_xfer *x);
/* Not running. Idempotent. */
void kvf_xfer_fini(struct kvf_xfer *x);

#endif
