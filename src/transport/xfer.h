/* A transfer: one payload moving into (or out of) local memory in chunks, over
 * one link at a time, resumable on another.
 *
 *   init -> start(link, remote) -> done(0)
 *                               -> done(error) -> start(other link) -> ...
 *
 * The bitmap of chunks in place survives an error: a later start moves only
 * what is missing. done is called once per start, always later, and only when
 * no posted op is left: then the memory may be reused. */
#ifndef KVF_TRANSPORT_XFER_H
#define KVF_TRANSPORT_XFER_H

#include "transport/transport.h"

#define KVF_XFER_CHUNK (1ull << 20) /* bytes; unit of the bitmap */

struct kvf_xfer {
    struct kvf_sched *sched;
    struct kvf_link *link;
    const struct kvf_remote *remote;
    bool write, running, cancelling;
    uint64_t size, chunk;     /* chunk: bytes of one bitmap bit */
    uint64_t bytes_done;      /* in place, over all attempts */
    uint64_t bytes_moved_now; /* by the attempt under way */
    struct iovec *iov;        /* the whole local memory in payload order */
    unsigned n_iov;
    uint64_t *bitmap;
    uint64_t n_chunks, next_chunk;
    unsigned pending;
    struct kvf_list free_ops;  /* recycled ops */
    struct kvf_list room_node; /* waiting for room on link */
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

/* To be called from the link owner's on_room: lets waiting transfers of that
 * link post again, in turn. `waiting` is a list head kept beside the link. */
void kvf_xfer_room(struct kvf_list *waiting);
/* Where transfers on this link wait; set by the link's owner in link->owner's
 * structure before the first start. */
struct kvf_list *kvf_xfer_waiting_list(struct kvf_link *link);
#endif
