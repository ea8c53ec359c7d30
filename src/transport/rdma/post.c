/* Ops become work requests.
 *
 * Happy path: post checks and queues; a task of the same turn builds a chain of
 * all that there are credits for and rings one doorbell. What is contiguous at
 * the owner is one work request, whatever the pieces here (up to the device's
 * number of SGEs). The last of a chain is always signalled, and in it one in
 * so many ops; a completion completes everything before it.
 *
 * WRITE: an RC WRITE's own completion says that the other device has the bytes,
 * not that they are in memory. So a WRITE is never signalled; a READ of one
 * byte behind it is: a READ is served after the WRITEs before it are in place.
 *
 * Failure modes: memory that is not registered here (refused by post), a range
 * that the owner has not registered (the op fails, nothing is posted for it),
 * ibv_post_send (the link is aborted). */
#include "transport/rdma/rdma_priv.h"

/* ---- a chain ------------------------------------------------------------ */

struct chain {
    unsigned n, n_sge;
    uint64_t bytes; /* that may still be posted in this turn */
};

static struct ibv_send_wr *wr_new(struct kvf_rdma_link *l, struct chain *c,
                                  const struct kvf_rdma_key *key, bool write)
{
    struct kvf_rdma *r = l->r;
    struct ibv_send_wr *wr = &r->wr[c->n];

    *wr = (struct ibv_send_wr){
        .wr_id = kvf_rdma_wr_id(l, l->posted + c->n + 1),
        .sg_list = &r->sge[c->n_sge],
        .opcode = write ? IBV_WR_RDMA_WRITE : IBV_WR_RDMA_READ,
        .wr.rdma = {.remote_addr = key->addr, .rkey = key->rkey},
    };
    if (c->n > 0)
        r->wr[c->n - 1].next = wr;
    c->n++;
    l->silent.wrs++;
    l->silent.written |= write;
    return wr;
}

/* Appends a READ that comes back when the WRITEs before it are in place. */
static void add_flush(struct kvf_rdma_link *l, struct chain *c)
{
    struct kvf_rdma *r = l->r;
    const struct ibv_send_wr *last = &r->wr[c->n - 1];
    struct kvf_rdma_key key = {last->wr.rdma.remote_addr, 1,
                               last->wr.rdma.rkey};
    struct ibv_send_wr *wr = wr_new(l, c, &key, false);

    r->sge[c->n_sge++] =
        (struct ibv_sge){(uintptr_t)r->scratch, 1, r->scratch_mr->lkey};
    wr->num_sge = 1;
}

/* What was to follow was cancelled: a READ of one byte of the pool comes back
 * behind what was posted without a signal. */
static void add_marker(struct kvf_rdma_link *l, struct chain *c)
{
    struct kvf_rdma *r = l->r;
    struct ibv_send_wr *wr = wr_new(l, c, &l->pool[0], false);

    r->sge[c->n_sge++] =
        (struct ibv_sge){(uintptr_t)r->scratch, 1, r->scratch_mr->lkey};
    wr->num_sge = 1;
    wr->send_flags = IBV_SEND_SIGNALED;
    l->silent.ops = l->silent.wrs = 0;
    l->silent.written = false;
}

static void signal_here(struct kvf_rdma_link *l, struct chain *c)
{
    if (l->silent.written)
        add_flush(l, c);
    l->r->wr[c->n - 1].send_flags = IBV_SEND_SIGNALED;
    l->silent.ops = l->silent.wrs = 0;
    l->silent.written = false;
}

/* One work request out of op. 0, or why the op cannot go on. */
static int add_wr(struct kvf_rdma_link *l, struct chain *c,
                  struct kvf_transfer_op *op, struct kvf_why *why)
{
    struct kvf_rdma *r = l->r;
    unsigned max = r->attr.max_sge < (int)KVF_RDMA_SGE
                       ? (unsigned)r->attr.max_sge
                       : KVF_RDMA_SGE;
    struct kvf_rdma_key key = {0, 0, 0};
    struct ibv_send_wr *wr;
    struct kvf_rdma_piece p;
    uint64_t pos;
    int rc;

    if (!kvf_rdma_piece_next(op, &p))
        return 0;
    rc = kvf_rdma_resolve(l, op, p.pos, &key, why);
    if (rc != 0)
        return rc;
    if (key.length > r->port_attr.max_msg_sz)
        key.length = r->port_attr.max_msg_sz;
    if (key.length > c->bytes)
        key.length = c->bytes;
    wr = wr_new(l, c, &key, op->write);
    pos = p.pos;
    do {
        struct ibv_sge *last = c->n_sge > 0 ? &r->sge[c->n_sge - 1] : r->sge;
        uint64_t rest, n = p.length < key.length ? p.length : key.length;
        const struct kvf_rdma_mr *mr = kvf_rdma_local(r, p.local, &rest);

        if (mr == NULL) /* was registered when it was posted */
            return kvf_fail(why, KVF_INTERNAL, "rdma: memory was deregistered");
        if (n > rest)
            n = rest;
        if (wr->num_sge > 0 && last->lkey == mr->mr->lkey &&
            last->addr + last->length == (uintptr_t)p.local)
            last->length += (uint32_t)n;
        else if ((unsigned)wr->num_sge == max)
            break;
        else {
            r->sge[c->n_sge++] =
                (struct ibv_sge){(uintptr_t)p.local, (uint32_t)n, mr->mr->lkey};
            wr->num_sge++;
        }
        kvf_rdma_piece_take(op, n);
        pos += n;
        key.length -= n;
        c->bytes -= n;
    } while (key.length > 0 && kvf_rdma_piece_next(op, &p) && p.pos == pos);
    op->tag = l->posted + c->n;
    return 0;
}

/* An op that cannot go on: ends now, or when what is posted of it is back. */
static void op_broken(struct kvf_rdma_link *l, struct kvf_transfer_op *op,
                      int status, const struct kvf_why *why)
{
    kvf_list_unlink(&op->node);
    if (op->tag == 0) {
        kvf_rdma_op_end(l, op, status, why);
        return;
    }
    op->status = status;
    op->why = *why;
    kvf_list_push_back(&l->flying, &op->node);
}

static bool op_all_posted(struct kvf_transfer_op *op)
{
    struct kvf_rdma_piece p;

    return !kvf_rdma_piece_next(op, &p);
}

static bool has_credits(const struct kvf_rdma_link *l)
{
    return l->queue - (l->posted - l->done) >= 3;
}

/* The chain ends only because the turn has had its bytes: the next turn posts
 * more, and that will be signalled. */
static bool goes_on(const struct kvf_rdma_link *l, const struct chain *c)
{
    return c->bytes == 0 && !kvf_list_empty(&l->queued) &&
           l->queue - (l->posted + c->n - l->done) >= 3;
}

static void build(struct kvf_rdma_link *l, struct chain *c)
{
    /* One credit and one place stay free for the READ behind WRITEs, and a
     * credit for the last one of all. */
    uint64_t credits = l->queue - (l->posted - l->done);
    unsigned every = l->r->conf.signal_every;
    struct kvf_list *n;

    while (c->bytes > 0 && c->n + 2 <= KVF_RDMA_CHAIN && c->n + 3 <= credits &&
           (n = kvf_list_first(&l->queued)) != NULL) {
        struct kvf_transfer_op *op =
            kvf_container_of(n, struct kvf_transfer_op, node);
        unsigned before = c->n, sges = c->n_sge, wrs = l->silent.wrs;
        struct kvf_why why;
        int rc = add_wr(l, c, op, &why);

        if (rc != 0) {
            c->n = before;
            c->n_sge = sges;
            l->silent.wrs = wrs;
            if (before > 0)
                l->r->wr[before - 1].next = NULL;
            op_broken(l, op, rc, &why);
            continue;
        }
        if (op_all_posted(op)) {
            kvf_list_unlink(n);
            kvf_list_push_back(&l->flying, &op->node);
            l->silent.ops++;
        }
        if (l->silent.ops >= every || l->silent.wrs >= l->queue / 4)
            signal_here(l, c);
    }
    if (c->n > 0 && l->silent.wrs > 0 && !goes_on(l, c))
        signal_here(l, c);
}

static void post_chain(struct kvf_rdma_link *l, const struct chain *c,
                       uint64_t bytes)
{
    struct kvf_rdma *r = l->r;
    struct ibv_send_wr *bad = NULL;
    struct kvf_why why;
    unsigned taken = c->n;
    uint64_t began = kvf_sched_clock(r->t.sched);
    int err = r->v->post_send(l->c->qp.qp, &r->wr[0], &bad);

    kvf_rdma_learn_burst(r, bytes, kvf_sched_clock(r->t.sched) - began);
    if (err != 0) {
        taken = 0;
        while (bad != NULL && taken < c->n && &r->wr[taken] != bad)
            taken++;
        if (bad == NULL)
            taken = 0;
    }
    if (l->posted == l->done) /* was idle */
        l->last_progress = r->t.sched->now_ns;
    l->posted += taken;
    r->t.stats->rdma_doorbells++;
    r->t.stats->rdma_wrs += taken;
    kvf_source_touch(&r->cq_src);
    if (err != 0) {
        kvf_rdma_advise(r, &why, "ibv_post_send", err);
        kvf_rdma_link_abort(l, &why);
        return;
    }
    if (!kvf_timer_armed(&l->timer))
        kvf_timer_set(r->t.sched, &l->timer,
                      l->last_progress + r->conf.stall_ms * KVF_NS_PER_MS);
}

void kvf_rdma_ring(struct kvf_task *t)
{
    struct kvf_rdma_link *l = kvf_container_of(t, struct kvf_rdma_link, ring);
    uint64_t bytes = kvf_rdma_turn_bytes(l);

    while (l->state == KVF_RDMA_UP) {
        struct chain c = {.bytes = bytes};

        build(l, &c);
        if (c.n == 0 && l->silent.wrs > 0 && kvf_list_empty(&l->queued))
            add_marker(l, &c);
        if (c.n > 0)
            post_chain(l, &c, bytes - c.bytes);
        else if (bytes == 0 && !kvf_list_empty(&l->queued) && has_credits(l))
            kvf_task_post(l->r->t.sched, &l->ring); /* the next turn */
        if (c.n == 0)
            return;
        bytes = c.bytes;
    }
}

/* What succeeded without being signalled leaves no trace: one more, which a QP
 * in ERR flushes, comes back behind it. */
void kvf_rdma_post_last(struct kvf_rdma_link *l)
{
    struct ibv_send_wr wr = {
        .wr_id = kvf_rdma_wr_id(l, l->posted + 1),
        .opcode = IBV_WR_RDMA_WRITE,
        .send_flags = IBV_SEND_SIGNALED,
    };
    struct ibv_send_wr *bad;

    if (l->silent.wrs == 0 || l->posted - l->done >= l->queue)
        return;
    l->silent.wrs = 0;
    if (l->r->v->post_send(l->c->qp.qp, &wr, &bad) == 0)
        l->posted++;
}

void kvf_rdma_post_probe(struct kvf_rdma_link *l)
{
    struct kvf_rdma *r = l->r;
    uint64_t len =
        l->pool[0].length < KVF_RDMA_PROBE ? l->pool[0].length : KVF_RDMA_PROBE;
    uint8_t *page = r->scratch + (size_t)l->scratch * KVF_RDMA_PROBE;
    struct chain c = {0};
    struct ibv_send_wr *wr = wr_new(l, &c, &l->pool[0], false);

    r->sge[c.n_sge++] =
        (struct ibv_sge){(uintptr_t)page, (uint32_t)len, r->scratch_mr->lkey};
    wr->num_sge = 1;
    signal_here(l, &c);
    post_chain(l, &c, 0);
}

/* ---- ops ---------------------------------------------------------------- */

int kvf_rdma_post(struct kvf_link *link, struct kvf_transfer_op *op,
                  struct kvf_why *why)
{
    struct kvf_rdma_link *l = link->impl;
    int rc;

    if (l->state == KVF_RDMA_DYING || l->state == KVF_RDMA_DEAD)
        return kvf_fail(why, l->why.status, "%s", l->why.text);
    rc = kvf_rdma_check_local(l->r, op, why);
    if (rc != 0)
        return rc;
    if (l->n_ops >= KVF_RDMA_OPS_MAX) {
        l->starved = true;
        return -(int)KVF_BUSY;
    }
    op->tag = 0;
    l->n_ops++;
    kvf_list_push_back(&l->queued, &op->node);
    if (l->state == KVF_RDMA_UP)
        kvf_task_post(l->r->t.sched, &l->ring);
    return 0;
}

void kvf_rdma_op_end(struct kvf_rdma_link *l, struct kvf_transfer_op *op,
                     int status, const struct kvf_why *why)
{
    struct kvf_rdma *r = l->r;

    l->n_ops--;
    if (op->cancelled && l->n_cancelled > 0 && op->tag != 0)
        l->n_cancelled--;
    if (status == 0 && !op->write)
        r->t.stats->rdma_bytes += op->length;
    else if (status == 0)
        r->t.stats->rdma_written_bytes += op->length;
    kvf_op_finish(&r->t, op, status, why);
    if (l->starved && l->link != NULL) {
        l->starved = false;
        kvf_task_post(r->t.sched, &l->room);
    }
}

void kvf_rdma_complete(struct kvf_rdma_link *l)
{
    struct kvf_list *n;

    while ((n = kvf_list_first(&l->flying)) != NULL) {
        struct kvf_transfer_op *op =
            kvf_container_of(n, struct kvf_transfer_op, node);

        if (op->tag > l->done)
            return;
        kvf_list_unlink(n);
        if (op->status != 0) {
            struct kvf_why why = op->why;

            kvf_rdma_op_end(l, op, op->status, &why);
        } else if (op->moved < op->length) {
            kvf_rdma_op_end(l, op, -KVF_CANCELLED, NULL);
        } else {
            kvf_rdma_op_end(l, op, 0, NULL);
        }
    }
}

/* What is posted cannot be taken back: the op ends with its last work request,
 * which is already on its way. */
void kvf_rdma_cancel(struct kvf_link *link, struct kvf_transfer_op *op)
{
    struct kvf_rdma_link *l = link->impl;
    struct kvf_rdma *r = l->r;
    uint64_t due;

    if (l->silent.wrs > 0)
        kvf_task_post(r->t.sched, &l->ring);
    if (op->tag == 0) {
        kvf_list_unlink(&op->node);
        kvf_rdma_op_end(l, op, -KVF_CANCELLED, NULL);
        return;
    }
    l->n_cancelled++;
    if (op->moved < op->length && op->status == 0) { /* partly posted */
        kvf_list_unlink(&op->node);
        kvf_list_push_back(&l->flying, &op->node);
    }
    due = l->last_progress + kvf_rdma_stall_ns(l);
    if (l->state == KVF_RDMA_UP && l->timer.due_ns > due)
        kvf_timer_set(r->t.sched, &l->timer, due);
}
