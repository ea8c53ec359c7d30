/* Connections, and who uses them: links and guests. Included by rdma_priv.h,
 * and needs what stands before it there. */
#ifndef KVF_TRANSPORT_RDMA_CONN_H
#define KVF_TRANSPORT_RDMA_CONN_H

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
    bool own_will;                /* goes down only because we want that */
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

/* pieces.c */
struct kvf_rdma_piece { /* contiguous here and in the payload */
    uint8_t *local;
    uint64_t length, pos;
};
/* What is next of the op; false when all of it is posted. */
bool kvf_rdma_piece_next(struct kvf_transfer_op *op, struct kvf_rdma_piece *p);
/* n bytes of it are posted. */
void kvf_rdma_piece_take(struct kvf_transfer_op *op, uint64_t n);
/* Is every byte of it registered here? */
int kvf_rdma_check_local(const struct kvf_rdma *r,
                         const struct kvf_transfer_op *op, struct kvf_why *why);
/* Address and key of payload position pos, and for how many bytes they hold. */
int kvf_rdma_resolve(const struct kvf_rdma_link *l, struct kvf_transfer_op *op,
                     uint64_t pos, struct kvf_rdma_key *out,
                     struct kvf_why *why);

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
/* Stops it and sees to its end. why: of a failure; NULL: we take back what it
 * may do. True: there was no QP. */
bool kvf_rdma_guest_end(struct kvf_rdma_guest *g, const struct kvf_why *why);
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
