/* The fake's queue pairs: what is posted, how it is executed, how it fails. */
#include "fake_priv.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static uint32_t next_qpn = 17;

bool fake_ready(const struct fake_qp *q)
{
    if (q->qp.state == IBV_QPS_ERR)
        return !kvf_list_empty(&q->wrs) && !fake.hold_flush;
    return !kvf_list_empty(&q->wrs) && !fake.hold;
}

/* ---- queue pairs -------------------------------------------------------- */

struct ibv_qp *fake_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *attr)
{
    struct fake_qp *q;

    FAIL_PTR(create_qp);
    if (attr->cap.max_send_wr > (uint32_t)fake.attr.max_qp_wr ||
        attr->cap.max_send_sge > (uint32_t)fake.attr.max_sge ||
        fake.qps >= (unsigned)fake.attr.max_qp) {
        errno = EINVAL;
        return NULL;
    }
    q = calloc(1, sizeof *q);
    q->qp.context = pd->context;
    q->qp.pd = pd;
    q->qp.qp_context = attr->qp_context;
    q->qp.qp_num = next_qpn++;
    q->qp.state = IBV_QPS_RESET;
    q->qp.qp_type = attr->qp_type;
    q->max_wr = attr->cap.max_send_wr;
    q->max_sge = attr->cap.max_send_sge;
    q->scq = kvf_container_of(attr->send_cq, struct fake_cq, cq);
    q->scq->qps++;
    kvf_list_init(&q->wrs);
    kvf_list_init(&q->node);
    kvf_list_push_back(&fake_qps, &q->node);
    fake.qps++;
    return &q->qp;
}

static struct fake_qp *qp_of(uint32_t qpn)
{
    kvf_list_for_each (n, &fake_qps) {
        struct fake_qp *q = kvf_container_of(n, struct fake_qp, node);

        if (q->qp.qp_num == qpn)
            return q;
    }
    return NULL;
}

int fake_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *attr, int mask)
{
    struct fake_qp *q = kvf_container_of(qp, struct fake_qp, qp);
    enum ibv_qp_state to = attr->qp_state;
    bool ok;

    FAIL_INT(modify_qp);
    if ((mask & IBV_QP_ACCESS_FLAGS) != 0)
        q->access = (int)attr->qp_access_flags;
    if ((mask & IBV_QP_STATE) == 0)
        return 0;
    ok = (q->qp.state == IBV_QPS_RESET && to == IBV_QPS_INIT) ||
         (q->qp.state == IBV_QPS_INIT && to == IBV_QPS_RTR) ||
         (q->qp.state == IBV_QPS_RTR && to == IBV_QPS_RTS) || to == IBV_QPS_ERR;
    if (q->qp.state == IBV_QPS_ERR && to == IBV_QPS_RESET)
        fake_misuse("ERR to RESET: completions are lost");
    if (!ok)
        return EINVAL;
    if ((mask & IBV_QP_DEST_QPN) != 0)
        q->dest = attr->dest_qp_num;
    if ((mask & IBV_QP_RQ_PSN) != 0)
        q->rq_psn = attr->rq_psn;
    if ((mask & IBV_QP_SQ_PSN) != 0)
        q->sq_psn = attr->sq_psn;
    if ((mask & IBV_QP_MAX_DEST_RD_ATOMIC) != 0)
        q->rd_serves = attr->max_dest_rd_atomic;
    if ((mask & IBV_QP_MAX_QP_RD_ATOMIC) != 0)
        q->rd_starts = attr->max_rd_atomic;
    q->qp.state = to;
    fake_tell(q);
    return 0;
}

/* Events of it that nobody got are discarded. */
static void drop_async(struct fake_qp *q)
{
    struct fake_context *c =
        kvf_container_of(q->qp.context, struct fake_context, ctx);
    uint64_t one;

    kvf_list_for_each_safe (n, &c->events) {
        struct fake_async *a = kvf_container_of(n, struct fake_async, node);

        if (a->ev.element.qp != &q->qp)
            continue;
        kvf_list_unlink(n);
        free(a);
        if (read(c->ctx.async_fd, &one, sizeof one) != sizeof one)
            fake_misuse("event without its count");
    }
}

int fake_destroy_qp(struct ibv_qp *qp)
{
    struct fake_qp *q = kvf_container_of(qp, struct fake_qp, qp);
    struct kvf_list *n;

    FAIL_INT(destroy_qp);
    drop_async(q);
    while ((n = kvf_list_pop(&q->wrs)) != NULL)
        free(kvf_container_of(n, struct fake_wr, node));
    q->scq->qps--;
    kvf_list_unlink(&q->node);
    free(q);
    fake.qps--;
    return 0;
}

static int post_one(struct fake_qp *q, const struct ibv_send_wr *wr)
{
    struct fake_wr *w;

    if (q->qp.state != IBV_QPS_RTS && q->qp.state != IBV_QPS_ERR)
        return EINVAL;
    if ((wr->num_sge < 1 && q->qp.state != IBV_QPS_ERR) ||
        (unsigned)wr->num_sge > q->max_sge)
        return EINVAL;
    if (q->n_slots == q->max_wr) {
        fake_misuse("send queue overrun");
        return ENOMEM;
    }
    w = calloc(1, sizeof *w + (size_t)wr->num_sge * sizeof w->sge[0]);
    w->id = wr->wr_id;
    w->write = wr->opcode == IBV_WR_RDMA_WRITE;
    w->signaled = (wr->send_flags & IBV_SEND_SIGNALED) != 0;
    w->age = fake.late > 0 ? (unsigned)kvf_rng_below(&fake.rng, fake.late) : 0;
    w->raddr = wr->wr.rdma.remote_addr;
    w->rkey = wr->wr.rdma.rkey;
    w->n_sge = wr->num_sge;
    if (wr->num_sge > 0)
        memcpy(w->sge, wr->sg_list, (size_t)wr->num_sge * sizeof w->sge[0]);
    kvf_list_init(&w->node);
    kvf_list_push_back(&q->wrs, &w->node);
    q->n_slots++;
    fake.posted++;
    fake.sges += (unsigned)wr->num_sge;
    return 0;
}

/* As devices do that move the bytes themselves. */
static void work_for(uint64_t bytes)
{
    struct timespec at;
    uint64_t until = 0, now;

    if (bytes > fake.max_doorbell)
        fake.max_doorbell = bytes;
    do {
        clock_gettime(CLOCK_MONOTONIC, &at);
        now = (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
        if (until == 0)
            until = now + ((bytes * fake.post_mib_ns) >> 20);
    } while (now < until);
}

static uint64_t bytes_of(const struct ibv_send_wr *wr)
{
    uint64_t n = 0;

    for (int i = 0; i < wr->num_sge; i++)
        n += wr->sg_list[i].length;
    return n;
}

int fake_post_send(struct ibv_qp *qp, struct ibv_send_wr *wr,
                   struct ibv_send_wr **bad)
{
    struct fake_qp *q = kvf_container_of(qp, struct fake_qp, qp);
    uint64_t chain = 0, bytes = 0;
    int rc = fake_fails(FAKE_post_send) ? errno : 0;

    fake.doorbells++;
    for (; wr != NULL; wr = wr->next, chain++) {
        /* A failing call takes the first half. */
        if (rc != 0 && (chain % 2 == 1 || wr->next == NULL)) {
            *bad = wr;
            fake_tell(q);
            return rc;
        }
        if (post_one(q, wr) != 0) {
            *bad = wr;
            fake_tell(q);
            return EINVAL;
        }
        bytes += bytes_of(wr);
    }
    work_for(bytes);
    if (chain > fake.max_chain)
        fake.max_chain = chain;
    fake_tell(q);
    return 0;
}

/* ---- execution ---------------------------------------------------------- */

static struct fake_mr *mr_of(uint32_t key)
{
    kvf_list_for_each (n, &fake_mrs) {
        struct fake_mr *m = kvf_container_of(n, struct fake_mr, node);

        if (m->mr.lkey == key)
            return m;
    }
    return NULL;
}

static bool within(const struct fake_mr *m, uint64_t addr, uint64_t len)
{
    uint64_t base = (uintptr_t)m->mr.addr;

    return addr >= base && len <= m->mr.length &&
           addr - base <= m->mr.length - len;
}

static void raise_qp(struct fake_qp *q, enum ibv_event_type type)
{
    struct fake_context *c =
        kvf_container_of(q->qp.context, struct fake_context, ctx);
    struct fake_async *a = calloc(1, sizeof *a);
    uint64_t one = 1;

    a->ev.event_type = type;
    a->ev.element.qp = &q->qp;
    kvf_list_init(&a->node);
    kvf_list_push_back(&c->events, &a->node);
    if (write(c->ctx.async_fd, &one, sizeof one) != sizeof one)
        fake_misuse("eventfd");
}

static enum ibv_wc_status execute(struct fake_qp *q, const struct fake_wr *w)
{
    struct fake_qp *d = qp_of(q->dest);
    struct fake_mr *rm = mr_of(w->rkey), *lm;
    int need = w->write ? IBV_ACCESS_REMOTE_WRITE : IBV_ACCESS_REMOTE_READ;
    uint64_t total = 0, at = w->raddr;

    fake.executed++;
    if (fake.status_at != 0 && fake.executed == fake.status_at)
        return fake.status;
    for (int i = 0; i < w->n_sge; i++) {
        lm = mr_of(w->sge[i].lkey);
        if (lm == NULL || lm->mr.pd != q->qp.pd ||
            !within(lm, w->sge[i].addr, w->sge[i].length) ||
            (!w->write && (lm->access & IBV_ACCESS_LOCAL_WRITE) == 0))
            return IBV_WC_LOC_PROT_ERR;
        total += w->sge[i].length;
    }
    if (d == NULL || d->dest != q->qp.qp_num ||
        (d->qp.state != IBV_QPS_RTR && d->qp.state != IBV_QPS_RTS))
        return IBV_WC_RETRY_EXC_ERR;
    if (q->sq_psn != d->rq_psn)
        return IBV_WC_RETRY_EXC_ERR;
    if (q->rd_starts > d->rd_serves)
        return IBV_WC_REM_INV_REQ_ERR;
    if (rm == NULL || rm->mr.pd != d->qp.pd || !within(rm, at, total) ||
        (rm->access & need) == 0 || (d->access & need) == 0) {
        d->qp.state = IBV_QPS_ERR;
        raise_qp(d, IBV_EVENT_QP_ACCESS_ERR);
        return IBV_WC_REM_ACCESS_ERR;
    }
    for (int i = 0; i < w->n_sge; i++) {
        void *local = (void *)(uintptr_t)w->sge[i].addr;
        void *remote = (void *)(uintptr_t)at;

        memcpy(w->write ? remote : local, w->write ? local : remote,
               w->sge[i].length);
        at += w->sge[i].length;
    }
    *(w->write ? &fake.writes : &fake.reads) += 1;
    return IBV_WC_SUCCESS;
}

/* One completion, if there is one. */
static bool poll_one(struct fake_qp *q, struct ibv_wc *wc)
{
    struct kvf_list *n;

    while (fake_ready(q) && (n = kvf_list_first(&q->wrs)) != NULL) {
        struct fake_wr *w = kvf_container_of(n, struct fake_wr, node);
        bool flush = q->qp.state == IBV_QPS_ERR, signaled;

        if (!flush && w->age > 0) {
            w->age--;
            return false;
        }
        *wc = (struct ibv_wc){.wr_id = w->id, .qp_num = q->qp.qp_num};
        wc->status = flush ? IBV_WC_WR_FLUSH_ERR : execute(q, w);
        fake.flushed += flush;
        signaled = w->signaled || wc->status != IBV_WC_SUCCESS;
        if (wc->status != IBV_WC_SUCCESS)
            q->qp.state = IBV_QPS_ERR;
        kvf_list_unlink(n);
        free(w);
        q->n_silent++;
        if (!signaled)
            continue; /* its place is free when a later one is polled */
        q->n_slots -= q->n_silent;
        q->n_silent = 0;
        fake.signalled++;
        return true;
    }
    return false;
}

int fake_poll_cq(struct ibv_cq *cq, int n, struct ibv_wc *wc)
{
    struct fake_cq *c = kvf_container_of(cq, struct fake_cq, cq);
    int got = 0;

    if (fake_fails(FAKE_poll_cq))
        return -errno;
    kvf_list_for_each (l, &fake_qps) {
        struct fake_qp *q = kvf_container_of(l, struct fake_qp, node);

        while (q->scq == c && got < n && poll_one(q, &wc[got])) {
            got++;
            if (fake.dup_wc != 0 && got < n &&
                fake.signalled % fake.dup_wc == 0) {
                wc[got] = wc[got - 1]; /* once more */
                wc[got].status = IBV_WC_SUCCESS;
                got++;
            }
        }
        /* What is not ready yet will tell. */
        if (q->scq == c)
            fake_tell(q);
    }
    return got;
}

/* ---- asynchronous events ------------------------------------------------ */

int fake_get_async_event(struct ibv_context *ctx, struct ibv_async_event *ev)
{
    struct fake_context *c = kvf_container_of(ctx, struct fake_context, ctx);
    struct kvf_list *n = kvf_list_pop(&c->events);
    struct fake_async *a;
    uint64_t one;

    if (n == NULL)
        return EAGAIN;
    a = kvf_container_of(n, struct fake_async, node);
    *ev = a->ev;
    free(a);
    if (read(ctx->async_fd, &one, sizeof one) != sizeof one)
        fake_misuse("event without its count");
    return 0;
}

void fake_ack_async_event(struct ibv_async_event *ev)
{
    (void)ev;
}

void fake_port_event(enum ibv_event_type type)
{
    uint64_t one = 1;

    kvf_list_for_each (n, &fake_contexts) {
        struct fake_context *c = kvf_container_of(n, struct fake_context, node);
        struct fake_async *a = calloc(1, sizeof *a);

        a->ev.event_type = type;
        a->ev.element.port_num = 1;
        kvf_list_init(&a->node);
        kvf_list_push_back(&c->events, &a->node);
        if (write(c->ctx.async_fd, &one, sizeof one) != sizeof one)
            fake_misuse("eventfd");
    }
}

unsigned fake_qp_event(enum ibv_event_type type, bool posted)
{
    unsigned count = 0;

    kvf_list_for_each (n, &fake_qps) {
        struct fake_qp *q = kvf_container_of(n, struct fake_qp, node);

        if (kvf_list_empty(&q->wrs) == posted)
            continue;
        q->qp.state = IBV_QPS_ERR;
        raise_qp(q, type);
        fake_tell(q);
        count++;
    }
    return count;
}

int fake_qp_access(const struct ibv_qp *qp)
{
    kvf_list_for_each (n, &fake_qps) {
        const struct fake_qp *q = kvf_container_of(n, struct fake_qp, node);

        if (&q->qp == qp)
            return q->access;
    }
    return -1;
}

unsigned fake_qps_in(enum ibv_qp_state state)
{
    unsigned count = 0;

    kvf_list_for_each (n, &fake_qps)
        count += kvf_container_of(n, struct fake_qp, node)->qp.state == state;
    return count;
}
