/* Transports: how the bytes of a claim move. One small vtable, one completion
 * object, the same conformance suite for all (tests/conformance).
 *
 * Words. The *owner* has the payload; the *getter* pulls it (READ) or the
 * initiator pushes into it (WRITE). A *link* is the getter's way to one owner;
 * a *remote* is one claim at that owner; an *op* is one posted read or write:
 * of a contiguous piece of the payload, or of many runs of it.
 *
 * Rules.
 *  - Nothing blocks, and `done` is never called from inside `post`.
 *  - An op that was posted (post returned 0) completes exactly once, also after
 *    cancel and close: only then may its memory be reused. Completion of a READ
 *    means the bytes are in place; of a WRITE that they are applied at the
 *    other side.
 *  - "No room now" (-KVF_BUSY) always promises link->on_room.
 *  - Transports do not retry, do not know deadlines and do not log above debug:
 *    they report the first cause and the request decides.
 * One thread. */
#ifndef KVF_TRANSPORT_TRANSPORT_H
#define KVF_TRANSPORT_TRANSPORT_H

#include "base/bytes.h"
#include "base/list.h"
#include "base/range.h"
#include "base/sched.h"
#include "base/stats.h"
#include "base/why.h"
#include "memory/segment.h"

#include <sys/uio.h>

#define KVF_CAP_READ 1u
#define KVF_CAP_WRITE 2u
#define KVF_CAP_SAME_HOST 4u /* needs mappings of the owner's memory */
#define KVF_CAP_RUNS 8u      /* takes ops of many runs */

struct kvf_transport;
struct kvf_link;

/* ---- what a getter knows of a claim ------------------------------------- */

struct kvf_rdma_keys; /* transport/rdma/handshake.h */

struct kvf_remote_seg {
    struct kvf_mapping *map; /* SAME_HOST transports: where the bytes are
                                mapped here; NULL otherwise */
    uint64_t offset, length; /* in that file */
    /* rdma: where that file is registered at the owner; NULL: it is the owner's
     * pool, which the link knows. */
    const struct kvf_rdma_keys *keys;
};

struct kvf_remote {
    uint64_t claim;
    struct kvf_id token;
    uint64_t size; /* of the payload = sum of the segments */
    unsigned n_segs;
    struct kvf_remote_seg *segs; /* may be NULL for tcp; n_segs 0 then */
};

/* ---- one posted piece --------------------------------------------------- */

#define KVF_OP_IOV 64    /* local pieces of one op */
#define KVF_OP_RUNS 4096 /* runs of one scattered op */

/* A piece that is contiguous on both sides. */
struct kvf_run {
    uint64_t offset, length; /* in the remote's payload; length > 0 */
    void *local;
};

struct kvf_transfer_op {
    struct kvf_list node; /* the transport's while posted */
    struct kvf_link *link;
    const struct kvf_remote *remote; /* must outlive the op */
    bool write;
    bool cancelled;
    uint64_t offset, length;      /* in the payload; length > 0 */
    struct iovec iov[KVF_OP_IOV]; /* local memory, `length` bytes in all */
    unsigned n_iov;
    /* n_runs > 0: a scattered op. `length` is the sum of its runs; offset, iov
     * and n_iov mean nothing. The runs are the caller's and stay as they are
     * until done. They may come in any order; local memory must not overlap in
     * a READ, nor the payload in a WRITE. */
    const struct kvf_run *runs;
    unsigned n_runs;
    uint64_t total; /* bytes of the transfer that the op belongs to, for choices
                       such as how many streams; 0: remote->size */
    /* status 0 or negative; why (may be NULL) is valid during the call. The op
     * belongs to its owner again and may be freed or posted anew. */
    void (*done)(struct kvf_transfer_op *op, int status,
                 const struct kvf_why *why);
    /* private to the transport while posted */
    uint64_t moved, tag;
    void *priv;
    unsigned cur_iov, cur_seg, last_seg; /* where `moved` stands; cur_iov
                                            counts runs if there are any */
    uint64_t cur_iov_off, cur_seg_off;
    /* private to kvf_op_finish */
    int status;
    struct kvf_why why;
};

/* ---- the owner's side --------------------------------------------------- */

/* How a transport that serves bytes asks its owner's daemon whether a request
 * may touch them. `session` is the one that was admitted (kvf_tcp_admit) or
 * whose handshake succeeded (rdma). */
struct kvf_serve_ops {
    /* Checks claim, token, session, range; fills at most *n_iov pieces (on
     * return: how many; they cover a prefix of [offset, offset+length) when
     * *n_iov was too small) and pins the memory until unpin(*pin), *pin not
     * NULL. Neither may call back into the transport.
     *   -KVF_STALE    no such live claim      -KVF_DENIED  wrong token/session
     *   -KVF_INVALID  outside the payload */
    int (*resolve)(void *arg, void *session, uint64_t claim,
                   const struct kvf_id *token, bool write, uint64_t offset,
                   uint64_t length, struct iovec *iov, unsigned *n_iov,
                   void **pin, struct kvf_why *why);
    void (*unpin)(void *arg, void *pin);
    /* False: what was pinned has been taken back, no more bytes may be put
     * there. Asked whenever the loop goes on with them. NULL: it never is. */
    bool (*live)(void *arg, void *pin);
    /* The same for many ranges at once: the pieces cover a prefix of
     * ranges[0][skip..], ranges[1], ... one after the other; a piece never
     * spans two ranges. At least one piece is filled on success. Every range
     * that was touched has been checked; the others will be when their turn
     * comes. Called again and again for one request: cost per range matters.
     * NULL: requests of many runs are answered UNSUPPORTED. */
    int (*resolve_runs)(void *arg, void *session, uint64_t claim,
                        const struct kvf_id *token, bool write,
                        const struct kvf_range *ranges, unsigned n_ranges,
                        uint64_t skip, struct iovec *iov, unsigned *n_iov,
                        void **pin, struct kvf_why *why);
};

/* ---- links -------------------------------------------------------------- */

enum kvf_link_state {
    KVF_LINK_IDLE,
    KVF_LINK_CONNECTING,
    KVF_LINK_UP,
    KVF_LINK_DOWN
};

/* Embedded in its owner (a peer); filled by kvf_link_open. */
struct kvf_link {
    struct kvf_transport *transport;
    enum kvf_link_state state;
    void *owner;
    /* All optional, called from the loop, never from inside a call into the
     * link. on_down: the link is unusable (first cause in why); ops posted on
     * it complete with an error. */
    void (*on_up)(struct kvf_link *link);
    void (*on_down)(struct kvf_link *link, const struct kvf_why *why);
    void (*on_room)(struct kvf_link *link);
    /* Before on_down: not a failure of the other side's. We ended it
     * ourselves, along with what that side could touch here. */
    bool own_will;
    unsigned inflight;       /* ops posted, not completed */
    struct kvf_list waiting; /* struct kvf_room_wait, in order of arrival */
    void *impl;              /* the transport's */
};

/* Somebody whose post was answered -KVF_BUSY. `fn` is called when the link has
 * room (or is down: then its post fails); it posts what it can and returns
 * false if it was told BUSY again, having queued itself anew. */
struct kvf_room_wait {
    struct kvf_list node;
    bool (*fn)(struct kvf_room_wait *w);
};

/* Where a link goes: what the owner said in its WELCOME. */
struct kvf_link_addr {
    char host[64]; /* numeric; tcp */
    uint16_t port;
    uint8_t secret[32];
    struct kvf_id who; /* the daemon there; zeros: not known; rdma */
};

struct kvf_transport_ops {
    const char *name; /* the log's word: "shm", "tcp", "rdma" */
    unsigned caps;
    void (*destroy)(struct kvf_transport *t);
    /* Starts; on_up or on_down follow. Ops may be posted at once and wait. */
    int (*link_open)(struct kvf_transport *t, struct kvf_link *link,
                     const struct kvf_link_addr *addr, struct kvf_why *why);
    /* 0 posted | -KVF_BUSY and on_room follows | another error, not posted */
    int (*post)(struct kvf_link *link, struct kvf_transfer_op *op,
                struct kvf_why *why);
    /* The op will complete with -KVF_CANCELLED (or as it was) as soon as
     * nothing can touch its memory any more; always later, never inside. What
     * was sent of a WRITE may still be applied at the owner while its claim
     * lives, also after the answer to another op: who writes to that place
     * again gives the claim back first and asks for a new one. */
    void (*cancel)(struct kvf_link *link, struct kvf_transfer_op *op);
    /* All posted ops complete with an error, later; link->impl is gone when
     * the call returns and no callback of the link is called again (ops' `done`
     * are, with op->link NULL, so that the link itself may be freed). An op
     * that cannot be finished at once gets op->link = NULL here. */
    void (*link_close)(struct kvf_link *link);
    /* Bytes one op should move at most, and how many ops in flight keep this
     * link busy. */
    uint64_t (*chunk)(const struct kvf_link *link);
    unsigned (*depth)(const struct kvf_link *link, uint64_t transfer_size);
};

struct kvf_transport {
    const struct kvf_transport_ops *ops;
    struct kvf_sched *sched;
    struct kvf_stats *stats;
    struct kvf_list completed; /* ops whose done is due */
    unsigned n_completed;
    struct kvf_task deliver;
};

/* ---- what everybody calls ----------------------------------------------- */

/* Initialises *link but for owner and the callbacks. */
int kvf_link_open(struct kvf_transport *t, struct kvf_link *link,
                  const struct kvf_link_addr *addr, struct kvf_why *why);
/* Also checks what the transport can do, and that the pieces of iov or the runs
 * add up and lie in the payload: -KVF_UNSUPPORTED, -KVF_INVALID; a link that is
 * down: -KVF_PEER_UNREACHABLE.
 */
int kvf_link_post(struct kvf_link *link, struct kvf_transfer_op *op,
                  struct kvf_why *why);
/* Nothing happens when the op is already on its way back. */
void kvf_link_cancel(struct kvf_link *link, struct kvf_transfer_op *op);
/* Idempotent; a link that was zeroed and never opened is fine. */
void kvf_link_close(struct kvf_link *link);
/* Every link closed and every op completed before. NULL is fine. */
void kvf_transport_destroy(struct kvf_transport *t);

/* ---- what transports call ----------------------------------------------- */

void kvf_transport_init(struct kvf_transport *t,
                        const struct kvf_transport_ops *ops,
                        struct kvf_sched *sched, struct kvf_stats *stats);
/* Delivers what is due and forgets the task: in ops->destroy. */
void kvf_transport_fini(struct kvf_transport *t);
/* Nothing touches the op's memory any more: `done` follows from a posted task.
 * The op must be in no list of the transport. */
void kvf_op_finish(struct kvf_transport *t, struct kvf_transfer_op *op,
                   int status, const struct kvf_why *why);
/* Bytes of the transfer that the op is part of. */
static inline uint64_t kvf_op_total(const struct kvf_transfer_op *op)
{
    return op->total != 0 ? op->total : op->remote->size;
}
/* Calls done now; only from the loop, with nothing of the transport's on the
 * stack that the callback could free. */
void kvf_op_complete(struct kvf_transfer_op *op, int status,
                     const struct kvf_why *why);
/* There is room, or the link went down: wakes those who wait, in turn, then
 * on_room. From a task or a drain; never inside post. */
void kvf_link_room(struct kvf_link *link);
#endif
