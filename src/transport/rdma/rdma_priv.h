/* What the files of the rdma transport share. */
#ifndef KVF_TRANSPORT_RDMA_PRIV_H
#define KVF_TRANSPORT_RDMA_PRIV_H

#include "transport/rdma/rdma.h"
#include "transport/rdma/verbs.h"
#include "transport/turn.h"

#define KVF_RDMA_OPS_MAX 256u /* posted on one link */
#define KVF_RDMA_CHAIN 64u    /* work requests of one doorbell */
#define KVF_RDMA_SGE 16u      /* pieces of one work request */
#define KVF_RDMA_POLL 16u     /* completions polled at once */
#define KVF_RDMA_QUEUE_MAX 4096u
#define KVF_RDMA_PROBE 4096u /* bytes: a full packet of any MTU */
#define KVF_RDMA_SCRATCH 64u /* pages of that size: links probed at once */
#define KVF_RDMA_BURST_FIRST                                                   \
    (128ull << 10) /* bytes; until it is known how long posting takes */
/* Flushed work requests that do not come back by then are given up: destroying
 * the QP makes them quiet. */
#define KVF_RDMA_DRAIN_NS (1000 * KVF_NS_PER_MS)
#define KVF_RDMA_AGAIN_NS (100 * KVF_NS_PER_MS)
/* A QP that was drained in the middle of something is destroyed so much later:
 * Soft-RoCE waits in ibv_destroy_qp for packets that are still in the queue of
 * the network card, and requests must not wait for that. */
#define KVF_RDMA_LINGER_NS (500 * KVF_NS_PER_MS)
/* A cancelled op waits for its work requests. While there is one, a link
 * without a completion for this part of stall_ms is aborted: whoever cancelled
 * wants its memory back, but a short loss that the device repairs must not cost
 * others their link. */
#define KVF_RDMA_CANCEL_PART 2

/* Work that is done one verbs call at a time, in slices of the loop. */
struct kvf_rdma_job {
    struct kvf_list node;
    /* One step; false: over (the job may be gone). */
    bool (*step)(struct kvf_rdma_job *job);
};

struct kvf_rdma_mr {
    struct ibv_mr *mr;
    uint8_t *base;
    uint64_t length;
};

struct kvf_rdma_memory {
    struct kvf_list node;
    struct kvf_rdma *r;
    struct kvf_rdma_job job;
    struct kvf_mapping *map; /* held; NULL for the pool */
    uint8_t *base;
    uint64_t size, registered;
    unsigned refs;
    bool failed;
    struct kvf_rdma_mr *mr;
    unsigned n_mr, cap_mr;
};

struct kvf_rdma_heal {
    struct kvf_timer timer;
    struct kvf_rdma_job job;
    uint64_t pause; /* ns, to the next try */
    bool opened;    /* the new device; memory is being registered */
};

struct kvf_rdma {
    struct kvf_transport t;
    struct kvf_reactor *reactor;
    const struct kvf_verbs *v;
    struct kvf_rdma_conf conf;
    const struct kvf_rdma_hooks *hooks;
    void *hooks_arg;
    /* device.c */
    struct ibv_context *ctx;
    char name[64];
    uint8_t port;
    struct ibv_device_attr attr;
    struct ibv_port_attr port_attr;
    bool port_up, fatal;
    struct kvf_rdma_gid gid[KVF_RDMA_GIDS];
    unsigned n_gid;
    char text[200];
    struct kvf_source async_src;
    bool has_async;
    struct kvf_rdma_heal heal;
    /* objects */
    struct ibv_pd *pd;
    struct ibv_comp_channel *channel;
    struct ibv_cq *idle_cq; /* of QPs that nobody posts to */
    struct kvf_source cq_src;
    bool has_cq_src;
    unsigned n_qps, n_cqs, n_mrs;
    uint64_t mr_bytes;
    /* mr.c */
    struct kvf_list memories;
    struct kvf_rdma_memory *pool;
    struct kvf_rdma_mr *local; /* every MR, by address */
    unsigned n_local, cap_local;
    uint8_t *scratch;
    struct ibv_mr *scratch_mr;
    uint64_t scratch_used; /* bit by page */
    /* jobs.c */
    struct kvf_list jobs;
    struct kvf_slice slice;
    /* link.c */
    struct kvf_list links;
    struct kvf_list conns;
    uint64_t next_id;
    uint32_t next_gen;
    uint64_t last_completion;
    /* burst.c */
    uint64_t burst;       /* bytes of a short turn: conf.burst, or fewer */
    bool burst_known;     /* learnt from a turn, not the first guess */
    struct kvf_turn turn; /* is one short now? */
    /* guest.c */
    struct kvf_list guests;
    void **writers; /* sessions that may write */
    unsigned n_writers, cap_writers;
    /* post.c: one chain at a time */
    struct ibv_send_wr wr[KVF_RDMA_CHAIN];
    struct ibv_sge sge[KVF_RDMA_CHAIN * KVF_RDMA_SGE];
};

static inline struct kvf_rdma *kvf_rdma_of(struct kvf_transport *t)
{
    return kvf_container_of(t, struct kvf_rdma, t);
}

static inline const struct kvf_rdma *
kvf_rdma_const(const struct kvf_transport *t)
{
    return (const void *)((const char *)t - offsetof(struct kvf_rdma, t));
}

/* jobs.c */
void kvf_rdma_job_start(struct kvf_rdma *r, struct kvf_rdma_job *job);
static inline void kvf_rdma_job_stop(struct kvf_rdma_job *job)
{
    kvf_list_unlink(&job->node);
}
bool kvf_rdma_jobs_run(struct kvf_slice *s, uint64_t budget_ns);

/* device.c */
int kvf_rdma_device_open(struct kvf_rdma *r, struct kvf_why *why);
void kvf_rdma_device_close(struct kvf_rdma *r);
/* Reads port and GID table again. 0, or why it cannot be used now. */
int kvf_rdma_device_refresh(struct kvf_rdma *r, struct kvf_why *why);
/* What the own end is, but for QP number and PSN. */
/* READs at once: what the device can, and a byte can hold. */
static inline uint32_t kvf_rdma_reads(int device)
{
    return device < 128 ? (uint32_t)device : 128;
}
void kvf_rdma_device_end(const struct kvf_rdma *r, struct kvf_rdma_end *end);
bool kvf_rdma_route_source(void *arg, const uint8_t dst[16], uint8_t src[16]);
extern const struct kvf_source_ops kvf_rdma_async_ops;
/* "what: errno in words" and what to do about it. Returns -status. */
int kvf_rdma_advise(const struct kvf_rdma *r, struct kvf_why *why,
                    const char *what, int err);

/* heal.c */
void kvf_rdma_heal_init(struct kvf_rdma *r);
/* The device is broken: opens it anew when that can be done. Before `fatal` is
 * set. */
void kvf_rdma_heal_begin(struct kvf_rdma *r);
void kvf_rdma_heal_end(struct kvf_rdma *r); /* not any more */

/* mr.c */
int kvf_rdma_scratch_open(struct kvf_rdma *r, struct kvf_why *why);
void kvf_rdma_memory_close(struct kvf_rdma *r);
/* Nothing is registered from now on, as far as others can see; one call to
 * deregister (false: the device refused); and all of it anew, in jobs. */
void kvf_rdma_memory_suspend(struct kvf_rdma *r);
bool kvf_rdma_memory_drop_one(struct kvf_rdma *r);
void kvf_rdma_memory_resume(struct kvf_rdma *r);
/* The MR that holds `p`, and in *rest how many bytes from p on are in it. NULL:
 * not registered. */
const struct kvf_rdma_mr *kvf_rdma_local(const struct kvf_rdma *r,
                                         const void *p, uint64_t *rest);

/* ---- qp.c --------------------------------------------------------------- */

struct kvf_rdma_qp {
    struct ibv_qp *qp; /* NULL: none */
    uint32_t psn;
};
int kvf_rdma_qp_create(struct kvf_rdma *r, struct kvf_rdma_qp *q,
                       struct ibv_cq *cq, uint32_t queue, void *context,
                       struct kvf_why *why);
int kvf_rdma_qp_init(struct kvf_rdma *r, struct kvf_rdma_qp *q, int access,
                     struct kvf_why *why);
int kvf_rdma_qp_rtr(struct kvf_rdma *r, struct kvf_rdma_qp *q,
                    const struct kvf_rdma_path *path, struct kvf_why *why);
int kvf_rdma_qp_rts(struct kvf_rdma *r, struct kvf_rdma_qp *q,
                    const struct kvf_rdma_path *path, struct kvf_why *why);
int kvf_rdma_qp_access(struct kvf_rdma *r, struct kvf_rdma_qp *q, int access);
/* 0 or an errno; nothing to do counts as done. */
int kvf_rdma_qp_err(struct kvf_rdma *r, struct kvf_rdma_qp *q);
int kvf_rdma_qp_destroy(struct kvf_rdma *r, struct kvf_rdma_qp *q);

/* ---- connections -------------------------------------------------------- */

struct kvf_rdma_link;
struct kvf_rdma_guest;

/* The own end of an RC connection: a QP and what completes on it. It has up to
 * two users, the link that posts READs and WRITEs of ours and the guest whose
 * READs and WRITEs the device serves, both of the same other daemon. The QP is
 * the unit that fails: it goes down for both. */
struct kvf_rdma_conn {
    struct kvf_list node; /* rdma.conns */
    struct kvf_rdma *r;
    struct kvf_rdma_qp qp;
    struct kvf_rdma_path path;    /* once joined */
    bool joined;                  /* RTS: path is the way to the other end */
    bool served;                  /* a guest was told of it */
    bool refused;                 /* a link of ours could not share it */
    bool down;                    /* in ERR, or to be: waits for its end */
    bool in_err, linger;          /* then */
    struct kvf_rdma_link *link;   /* NULL: nobody posts */
    struct kvf_rdma_guest *guest; /* NULL: nobody is served */
    struct kvf_rdma_job job;      /* destroys it */
    struct kvf_timer timer;       /* drain, linger, again */
    /* completion queue; NULL: the one of QPs that nobody posts to */
    struct ibv_cq *cq;
    uint32_t queue;  /* work requests in flight at most */
    unsigned events; /* got, not acknowledged */
    bool armed;
    struct ibv_wc stash[KVF_RDMA_POLL]; /* polled by arm() */
    unsigned n_stash;
};

/* conn.c */
/* Nothing is made yet. NULL: no memory. */
struct kvf_rdma_conn *kvf_rdma_conn_new(struct kvf_rdma *r);
/* The steps of the set-up, one verbs call each. */
int kvf_rdma_conn_cq(struct kvf_rdma_conn *c, struct kvf_why *why);
int kvf_rdma_conn_qp(struct kvf_rdma_conn *c, struct kvf_why *why);
/* RTR and RTS: along c->path. */
static inline int kvf_rdma_conn_rtr(struct kvf_rdma_conn *c,
                                    struct kvf_why *why)
{
    return kvf_rdma_qp_rtr(c->r, &c->qp, &c->path, why);
}
int kvf_rdma_conn_rts(struct kvf_rdma_conn *c, struct kvf_why *why);
/* Is the other end that one? */
static inline bool kvf_rdma_conn_leads_to(const struct kvf_rdma_conn *c,
                                          const struct kvf_rdma_end *end)
{
    return c->joined && !c->down && c->path.qpn == end->qpn &&
           c->path.psn == end->psn;
}
/* Starts the one way down, for both users: QP to ERR, drain, destroy. */
void kvf_rdma_conn_down(struct kvf_rdma_conn *c, const struct kvf_why *why);
/* Everything that was posted has come back, or time is up. */
void kvf_rdma_conn_drained(struct kvf_rdma_conn *c);
/* One of the users does without it; without any it ends. */
void kvf_rdma_conn_leave(struct kvf_rdma_conn *c, const struct kvf_why *why);
/* For kvf_rdma destroy: at once. */
void kvf_rdma_conns_destroy(struct kvf_rdma *r);

/* What queue pairs and completion queues have as context is their connection.
 */

/* ---- links -------------------------------------------------------------- */

enum kvf_rdma_state {
    KVF_RDMA_CREATING, /* CQ, QP, INIT: a job works on it */
    KVF_RDMA_ASKING,   /* the owner was asked */
    KVF_RDMA_JOINING,  /* RTR, RTS: a job works on it */
    KVF_RDMA_PROBING,  /* the first READ is under way */
    KVF_RDMA_UP,
    KVF_RDMA_DYING, /* QP in ERR: waits for its flushed work requests */
    KVF_RDMA_DEAD   /* no QP; waits for link_close */
};

struct kvf_rdma_link {
    struct kvf_list node; /* rdma.links */
    struct kvf_rdma *r;
    struct kvf_link *link; /* NULL: closed */
    enum kvf_rdma_state state;
    struct kvf_rdma_job job;
    unsigned step;
    char host[64];
    struct kvf_id who; /* the other daemon; zeros: not known */
    uint64_t id;       /* of the handshake */
    uint32_t gen;
    bool asked, told_up, was_up, starved;
    bool parked;               /* CREATING: waits for a guest's connection */
    struct kvf_rdma_conn *c;   /* NULL: none (yet, or any more) */
    struct kvf_rdma_end own;   /* what we told */
    struct kvf_rdma_key *pool; /* the owner's */
    unsigned n_pool;
    bool has_expect;
    struct kvf_id expect;
    int scratch; /* page of the probe; -1 = none */
    bool wants_page;
    uint32_t queue; /* credits: work requests in flight at most */
    /* work requests, counted from 1 */
    uint64_t posted, done;
    struct { /* posted since the last signalled one */
        unsigned wrs, ops;
        bool written;
    } silent;
    struct kvf_list queued; /* ops not (or, the first, partly) posted */
    struct kvf_list flying; /* ops all of whose work requests are posted; tag =
                               the last of them */
    unsigned n_ops, n_cancelled;
    unsigned n_flushed; /* completions with an error: none after it counts */
    struct kvf_timer timer; /* connecting, stall */
    uint64_t last_progress;
    struct kvf_task event, room, ring;
    struct kvf_why why; /* of going down */
};

/* link.c */
int kvf_rdma_link_open(struct kvf_transport *t, struct kvf_link *link,
                       const struct kvf_link_addr *addr, struct kvf_why *why);
void kvf_rdma_link_close(struct kvf_link *link);
/* Ends it and takes its connection down. First cause counts. */
void kvf_rdma_link_abort(struct kvf_rdma_link *l, const struct kvf_why *why);
/* Ends it; a connection that serves a guest stays if nothing is in flight. */
void kvf_rdma_link_leave(struct kvf_rdma_link *l, const struct kvf_why *why);
/* Its connection goes down by another cause. */
void kvf_rdma_link_lost(struct kvf_rdma_link *l, const struct kvf_why *why);
/* A QP in ERR starts nothing: what was posted has come back, or cannot. */
void kvf_rdma_link_quiet(struct kvf_rdma_link *l);
/* Its connection is destroyed. */
void kvf_rdma_link_dead(struct kvf_rdma_link *l);
/* A guest's connection is there, or will not be: links that wait go on. */
void kvf_rdma_links_wake(struct kvf_rdma *r);
/* Page of the probe. False: others have them all; the job is started again
 * when one is given back. */
bool kvf_rdma_scratch_take(struct kvf_rdma_link *l);
void kvf_rdma_scratch_give(struct kvf_rdma_link *l);
void kvf_rdma_link_free(struct kvf_rdma_link *l);
/* Handlers of its tasks and its timer. */
void kvf_rdma_link_event(struct kvf_task *t);
void kvf_rdma_link_roomy(struct kvf_task *t);
void kvf_rdma_link_timer(struct kvf_timer *t);
static inline uint64_t kvf_rdma_stall_ns(const struct kvf_rdma_link *l)
{
    uint64_t ns = l->r->conf.stall_ms * KVF_NS_PER_MS;

    return l->n_cancelled > 0 ? ns / KVF_RDMA_CANCEL_PART : ns;
}

/* The probe came back. */
void kvf_rdma_link_probed(struct kvf_rdma_link *l);
/* For kvf_rdma destroy: at once. */
void kvf_rdma_links_destroy(struct kvf_rdma *r);

/* burst.c */
/* What a turn may post that begins now; notices whether somebody asked. */
uint64_t kvf_rdma_turn_bytes(struct kvf_rdma_link *l);
/* Posting `bytes` took `ns`. Grows fast and shrinks slowly: a post that takes
 * long may only have been interrupted. */
void kvf_rdma_learn_burst(struct kvf_rdma *r, uint64_t bytes, uint64_t ns);

/* post.c */
int kvf_rdma_post(struct kvf_link *link, struct kvf_transfer_op *op,
                  struct kvf_why *why);
void kvf_rdma_cancel(struct kvf_link *link, struct kvf_transfer_op *op);
/* Posts what there are credits for (the task `ring`). */
void kvf_rdma_ring(struct kvf_task *t);
void kvf_rdma_post_probe(struct kvf_rdma_link *l);
/* The QP is in ERR: makes sure that a completion comes behind all others. */
void kvf_rdma_post_last(struct kvf_rdma_link *l);
/* Gives an op back. */
void kvf_rdma_op_end(struct kvf_rdma_link *l, struct kvf_transfer_op *op,
                     int status, const struct kvf_why *why);
/* Ops whose work requests are all done. */
void kvf_rdma_complete(struct kvf_rdma_link *l);
static inline uint64_t kvf_rdma_wr_id(const struct kvf_rdma_link *l,
                                      uint64_t seq)
{
    return (uint64_t)l->gen << 32 | (uint32_t)seq;
}

/* cq.c */
extern const struct kvf_source_ops kvf_rdma_cq_ops;
/* Forgets what is polled and not handled, acknowledges, destroys. */
int kvf_rdma_cq_destroy(struct kvf_rdma_conn *c);

/* ---- guests ------------------------------------------------------------- */

struct kvf_rdma_guest {
    struct kvf_list node; /* rdma.guests */
    struct kvf_rdma *r;
    struct kvf_rdma_job job;
    unsigned step;
    bool held; /* DECIDE: until a link of ours has come further */
    void *session;
    struct kvf_id who; /* zeros: not known */
    struct kvf_rdma_connect ask;
    bool both; /* may carry READs of ours too */
    bool accepted;
    bool allowed;            /* its QP lets it in */
    bool ending;             /* its connection goes down */
    bool expelled;           /* somebody waits for that */
    struct kvf_rdma_conn *c; /* NULL: none yet */
    struct kvf_rdma_path path;
    struct kvf_rdma_accept accept; /* pool: of this struct */
};

static inline struct kvf_rdma_guest *kvf_rdma_guest_of(struct kvf_list *n)
{
    return kvf_container_of(n, struct kvf_rdma_guest, node);
}

/* guest.c */
/* May one connection with that daemon carry both ways? */
bool kvf_rdma_both(const struct kvf_rdma *r, const struct kvf_id *who);
/* READs at once of such a connection: started and served. */
uint32_t kvf_rdma_reads_both(const struct kvf_rdma *r);
/* The connection of one that comes from `who` and may carry READs of ours too.
 * NULL: none; *soon: one is being set up. */
struct kvf_rdma_conn *kvf_rdma_guest_conn(const struct kvf_rdma *r,
                                          const struct kvf_id *who, bool *soon);
/* A link to somebody has come further, or ended: guests that wait for one look
 * again. */
void kvf_rdma_guests_wake(struct kvf_rdma *r);
/* guest_end.c */
/* Its connection goes down, or is destroyed. */
void kvf_rdma_guest_lost(struct kvf_rdma_guest *g, const struct kvf_why *why);
void kvf_rdma_guest_gone(struct kvf_rdma_guest *g);
/* Stops it and sees to its end. True: there was no QP. */
bool kvf_rdma_guest_end(struct kvf_rdma_guest *g);
/* Ends it but for its connection, if a link of ours goes on with that: nothing
 * may be touched through it any more, by the getter's own word. */
void kvf_rdma_guest_leave(struct kvf_rdma_guest *g);
/* Ends it, and tells. */
void kvf_rdma_guest_fail(struct kvf_rdma_guest *g, const struct kvf_why *why);
/* What the session may do through its QP. */
int kvf_rdma_access_of(const struct kvf_rdma *r, const void *session);
void kvf_rdma_guests_fail(struct kvf_rdma *r, const struct kvf_why *why);
void kvf_rdma_guests_destroy(struct kvf_rdma *r);
/* Adds them to the gauges. */
void kvf_rdma_guests_count(const struct kvf_rdma *r, struct kvf_rdma_gauges *g);
#endif
