/* A scattered transfer: runs that a source gives, moved in batches over one
 * link at a time, resumable on another.
 *
 *   init -> start(link, remote) -> done(0)
 *                               -> done(error) -> start(other link) -> ...
 *
 * A batch is the unit of posting and of resuming: the next `batch` bytes of the
 * source (its last run is cut there), or fewer when they are KVF_OP_RUNS runs.
 * Where batches end depends on the source alone, so what is in place is known
 * by the batch's number: a later start asks the source again from its beginning
 * and posts only batches that are not complete. done is called once per start,
 * always later, and only when no posted op is left: then the memory may be
 * reused. Time and memory are proportional to the runs and to what is posted,
 * never to the payload. One thread. */
#ifndef KVF_TRANSPORT_SCATTER_H
#define KVF_TRANSPORT_SCATTER_H

#include "transport/transport.h"

#define KVF_SCATTER_BATCH (1ull << 20)
/* For transfers of up to 16 large batches. */
#define KVF_SCATTER_BATCH_SMALL (256ull << 10)
#define KVF_SCATTER_AHEAD 64 /* runs asked from the source at once */

/* Gives the same runs in the same order after each rewind. */
struct kvf_run_source {
    /* The next runs, at most cap (>= 1); 0 at the end. Runs of length 0 are
     * skipped. Offsets are checked when they are posted. */
    size_t (*next)(void *arg, struct kvf_run *out, size_t cap);
    void (*rewind)(void *arg);
    void *arg;
};

struct kvf_scatter_op;

struct kvf_scatter {
    struct kvf_sched *sched;
    struct kvf_link *link;
    const struct kvf_remote *remote;
    struct kvf_run_source source;
    bool write, running, cancelling, complete;
    uint64_t total, batch;
    uint64_t bytes_done;      /* in place, over all attempts */
    uint64_t runs_done;       /* runs of the source in place, as it gave them */
    uint64_t bytes_moved_now; /* by the attempt under way */
    uint64_t posts;           /* ops, over all attempts */
    /* where this attempt stands in the source */
    struct kvf_run ahead[KVF_SCATTER_AHEAD];
    unsigned ahead_at, ahead_n;
    bool ended;          /* the source has no more */
    uint64_t next_batch; /* number of the batch that is cut next */
    uint64_t *in_place;  /* bit by batch */
    uint64_t cap_words;
    struct kvf_scatter_op *held; /* cut, but told BUSY */
    unsigned pending;
    struct kvf_list free_ops;  /* recycled ops */
    struct kvf_list active;    /* posted ops */
    struct kvf_room_wait room; /* waiting for room on link */
    int status;
    struct kvf_why why; /* first error of this attempt */
    struct kvf_task finish;
    void (*done)(struct kvf_scatter *x, int status, const struct kvf_why *why);
};

/* total: bytes that the source gives in all, as far as known (0 = unknown);
 * only choices depend on it (size of a batch, streams, kind of copy). */
void kvf_scatter_init(struct kvf_scatter *x, struct kvf_sched *sched,
                      bool write, const struct kvf_run_source *source,
                      uint64_t total,
                      void (*done)(struct kvf_scatter *x, int status,
                                   const struct kvf_why *why));
/* Begins an attempt. remote must stay until done. If everything is in place
 * already (or the source is empty), done(0) follows. A transport without
 * KVF_CAP_RUNS: done(-KVF_UNSUPPORTED). */
void kvf_scatter_start(struct kvf_scatter *x, struct kvf_link *link,
                       const struct kvf_remote *remote);
/* done(-KVF_CANCELLED) follows (or the result, if it was finished). */
void kvf_scatter_cancel(struct kvf_scatter *x);
/* Forgets what is in place (another generation is pulled now). Not running. */
void kvf_scatter_reset(struct kvf_scatter *x);
/* Not running. Idempotent; one that was zeroed and never initialised is fine.
 */
void kvf_scatter_fini(struct kvf_scatter *x);

#endif
