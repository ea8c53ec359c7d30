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
/* "what: errno in words" and what to do about it. Returns -status. */
int kvf_rdma_advise(const struct kvf_rdma *r, struct kvf_why *why,
                    const char *what, int err);

/* events.c */
extern const struct kvf_source_ops kvf_rdma_async_ops;

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

#include "transport/rdma/conn.h"

#endif
