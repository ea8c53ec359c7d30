/* Completions: one channel for all links, a source of the loop.
 *
 * drain: empty the channel, count the events by queue, poll the queues of all
 * links that have something in flight, complete their ops.
 * arm: ask each of those queues for an event, then poll it once more: what came
 * in between would give no event. That is kept for the next drain, since arming
 * runs no handlers.
 *
 * Events are acknowledged by count, many at once; a queue is destroyed when all
 * of its own are. */
#include "transport/rdma/rdma_priv.h"

#define ACK_AT 256u
#define POLLS 4u /* of one link in one drain */

static struct kvf_rdma_link *link_of(struct kvf_list *n)
{
    return kvf_container_of(n, struct kvf_rdma_link, node);
}

static bool busy(const struct kvf_rdma_link *l)
{
    return l->c != NULL && l->posted != l->done;
}

static void take_events(struct kvf_rdma *r)
{
    struct ibv_cq *cq;
    void *context;

    while (r->v->get_cq_event(r->channel, &cq, &context) == 0) {
        struct kvf_rdma_conn *c = context;

        c->armed = false;
        if (++c->events >= ACK_AT) {
            r->v->ack_cq_events(c->cq, c->events);
            c->events = 0;
        }
    }
}

static void failed(struct kvf_rdma_link *l, const struct ibv_wc *wc)
{
    struct kvf_why why;
    const char *hint = "";

    switch ((unsigned)wc->status) {
    case IBV_WC_RETRY_EXC_ERR:
        hint = ": the other side does not answer (dead, or no way to its GID)";
        break;
    case IBV_WC_REM_ACCESS_ERR:
        hint = ": the other side does not let us touch that memory (any more)";
        break;
    case IBV_WC_LOC_PROT_ERR:
        hint = ": memory here was deregistered";
        break;
    default:
        break;
    }
    kvf_fail(&why, KVF_TRANSPORT, "rdma to %s: %s%s", l->host,
             ibv_wc_status_str(wc->status), hint);
    kvf_rdma_link_abort(l, &why);
}

static void handle(struct kvf_rdma_link *l, const struct ibv_wc *wc)
{
    struct kvf_rdma *r = l->r;
    uint64_t seq =
        l->done + (uint32_t)((uint32_t)wc->wr_id - (uint32_t)l->done);

    r->t.stats->rdma_completions++;
    if (wc->wr_id >> 32 != l->gen || seq == l->done || seq > l->posted) {
        r->t.stats->unexpected++; /* not one of ours: nothing is done by it */
        return;
    }
    l->done = seq;
    l->last_progress = r->last_completion = r->t.sched->now_ns;
    if (wc->status != IBV_WC_SUCCESS) {
        if (l->state != KVF_RDMA_DYING)
            failed(l, wc);
    } else if (l->state == KVF_RDMA_PROBING) {
        kvf_rdma_link_probed(l);
    } else if (l->state == KVF_RDMA_UP || l->n_flushed == 0) {
        kvf_rdma_complete(l);
    }
    if (wc->status != IBV_WC_SUCCESS)
        l->n_flushed++;
}

/* Returns true when more may be there. */
static bool poll_link(struct kvf_rdma_link *l)
{
    struct ibv_wc wc[KVF_RDMA_POLL];
    struct kvf_rdma_conn *c = l->c;
    unsigned stash = c->n_stash;
    struct kvf_why why;
    int n = KVF_RDMA_POLL;

    c->n_stash = 0;
    for (unsigned i = 0; i < stash; i++)
        handle(l, &c->stash[i]);
    for (unsigned i = 0; i < POLLS && n == KVF_RDMA_POLL && busy(l); i++) {
        n = l->r->v->poll_cq(c->cq, KVF_RDMA_POLL, wc);
        if (n < 0) {
            kvf_rdma_advise(l->r, &why, "ibv_poll_cq", -n);
            kvf_rdma_link_abort(l, &why);
            return false;
        }
        for (int j = 0; j < n; j++)
            handle(l, &wc[j]);
    }
    if (l->state == KVF_RDMA_DYING && l->posted == l->done)
        kvf_rdma_conn_drained(c);
    else if (l->state == KVF_RDMA_UP && !kvf_list_empty(&l->queued))
        kvf_task_post(l->r->t.sched, &l->ring);
    return busy(l) && n == KVF_RDMA_POLL;
}

static void drain(struct kvf_source *src, unsigned ready, unsigned budget)
{
    struct kvf_rdma *r = kvf_container_of(src, struct kvf_rdma, cq_src);
    bool more = false;

    (void)budget;
    if (ready != 0)
        take_events(r);
    kvf_list_for_each_safe (n, &r->links)
        if (busy(link_of(n)))
            more |= poll_link(link_of(n));
    if (more)
        kvf_source_kick(src);
}

static bool spins(const struct kvf_rdma *r)
{
    return kvf_reactor_may_spin(r->reactor) &&
           r->t.sched->now_ns - r->last_completion <
               r->conf.spin_us * KVF_NS_PER_US;
}

/* Asks for an event and looks once more. */
static bool arm_link(struct kvf_rdma_link *l)
{
    struct kvf_rdma_conn *c = l->c;
    struct kvf_rdma *r = l->r;
    struct kvf_why why;
    int n, err;

    if (c->armed)
        return c->n_stash > 0;
    err = r->v->req_notify_cq(c->cq);
    if (err != 0) {
        kvf_rdma_advise(r, &why, "ibv_req_notify_cq", err);
        kvf_rdma_link_abort(l, &why);
        return false;
    }
    c->armed = true;
    n = r->v->poll_cq(c->cq, (int)(KVF_RDMA_POLL - c->n_stash),
                      &c->stash[c->n_stash]);
    if (n > 0)
        c->n_stash += (unsigned)n;
    return c->n_stash > 0;
}

static enum kvf_arm arm(struct kvf_source *src)
{
    struct kvf_rdma *r = kvf_container_of(src, struct kvf_rdma, cq_src);
    bool any = false, work = false;

    kvf_list_for_each (n, &r->links)
        any |= busy(link_of(n));
    if (!any)
        return KVF_ARM_QUIET;
    if (spins(r))
        return KVF_ARM_SPIN;
    kvf_list_for_each_safe (n, &r->links)
        if (busy(link_of(n)))
            work |= arm_link(link_of(n));
    return work ? KVF_ARM_BUSY : KVF_ARM_QUIET;
}

const struct kvf_source_ops kvf_rdma_cq_ops = {.drain = drain, .arm = arm};

int kvf_rdma_cq_destroy(struct kvf_rdma_conn *c)
{
    struct kvf_rdma *r = c->r;
    int err;

    if (c->cq == NULL)
        return 0;
    if (c->events > 0)
        r->v->ack_cq_events(c->cq, c->events);
    c->events = c->n_stash = 0;
    err = r->v->destroy_cq(c->cq);
    if (err != 0)
        return err;
    c->cq = NULL;
    r->n_cqs--;
    return 0;
}
