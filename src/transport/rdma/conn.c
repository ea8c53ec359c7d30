/* The own end of an RC connection: made step by step, taken down in one way.
 *
 * Happy path: a link or a guest makes it, the other one may join it, and when
 * neither needs it any more it goes. Failure modes: whatever breaks the QP, or
 * takes away what may be done through it, ends it for both users: QP to ERR at
 * once, which stops all access; wait for all that was posted (or one second);
 * destroy QP and CQ, a little later if the other side may have been in the
 * middle of something; only then is the memory of both quiet for certain. A
 * device that refuses is asked again. */
#include "transport/rdma/rdma_priv.h"

#include "base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

static void set_timer(struct kvf_rdma_conn *c, uint64_t after_ns)
{
    struct kvf_sched *s = c->r->t.sched;

    kvf_timer_set(s, &c->timer, s->now_ns + after_ns);
}

static uint32_t queue_of(const struct kvf_rdma *r)
{
    uint32_t q = r->conf.queue, max = (uint32_t)r->attr.max_qp_wr;

    if (max > (uint32_t)r->attr.max_cqe)
        max = (uint32_t)r->attr.max_cqe;
    if (q > KVF_RDMA_QUEUE_MAX)
        q = KVF_RDMA_QUEUE_MAX;
    if (q > max)
        q = max;
    return q < 8 ? 8 : q;
}

/* ---- the way down ------------------------------------------------------- */

static void conn_free(struct kvf_rdma_conn *c)
{
    kvf_rdma_job_stop(&c->job);
    kvf_timer_cancel(c->r->t.sched, &c->timer);
    kvf_list_unlink(&c->node);
    free(c);
}

/* Everything has come back or time is up: the QP goes, and what it still held
 * with it. */
static bool reap(struct kvf_rdma_job *job)
{
    struct kvf_rdma_conn *c = kvf_container_of(job, struct kvf_rdma_conn, job);
    struct kvf_rdma_link *l = c->link;
    struct kvf_rdma_guest *g = c->guest;

    if (kvf_rdma_qp_destroy(c->r, &c->qp) != 0 || kvf_rdma_cq_destroy(c) != 0) {
        kvf_log(KVF_LOG_DEBUG, "RDMA", "%s: the device keeps a QP", c->r->name);
        set_timer(c, KVF_RDMA_AGAIN_NS);
        return false;
    }
    conn_free(c);
    if (l != NULL)
        kvf_rdma_link_dead(l);
    if (g != NULL)
        kvf_rdma_guest_gone(g);
    return false;
}

void kvf_rdma_conn_drained(struct kvf_rdma_conn *c)
{
    if (c->link != NULL && c->in_err && c->link->posted == c->link->done)
        kvf_rdma_link_quiet(c->link);
    if (c->linger) {
        c->linger = false;
        set_timer(c, KVF_RDMA_LINGER_NS);
        return;
    }
    kvf_timer_cancel(c->r->t.sched, &c->timer);
    kvf_rdma_job_start(c->r, &c->job);
}

/* The drain is given up, the linger is over, or the device asked again. */
static void timer(struct kvf_timer *t)
{
    struct kvf_rdma_conn *c = kvf_container_of(t, struct kvf_rdma_conn, timer);

    c->linger = false;
    kvf_rdma_conn_drained(c);
}

void kvf_rdma_conn_down(struct kvf_rdma_conn *c, const struct kvf_why *why)
{
    struct kvf_rdma *r = c->r;
    struct kvf_rdma_link *l;
    bool flight;

    if (c->down)
        return;
    c->down = true;
    /* First of all: from here on nothing begins any more. If even that fails,
     * destroying the QP is what ends it. */
    c->in_err = kvf_rdma_qp_err(r, &c->qp) == 0;
    if (c->link != NULL)
        kvf_rdma_link_lost(c->link, why);
    if (c->guest != NULL)
        kvf_rdma_guest_lost(c->guest, why);
    l = c->link;
    flight = l != NULL && l->posted != l->done;
    c->linger = c->in_err && (flight || c->served);
    if (!flight || !c->in_err) {
        kvf_rdma_conn_drained(c);
        return;
    }
    kvf_rdma_post_last(l);
    set_timer(c, KVF_RDMA_DRAIN_NS);
    kvf_source_kick(&r->cq_src);
}

void kvf_rdma_conn_leave(struct kvf_rdma_conn *c, const struct kvf_why *why)
{
    if (c->link == NULL && c->guest == NULL)
        kvf_rdma_conn_down(c, why);
}

void kvf_rdma_conns_destroy(struct kvf_rdma *r)
{
    kvf_list_for_each_safe (n, &r->conns) {
        struct kvf_rdma_conn *c =
            kvf_container_of(n, struct kvf_rdma_conn, node);

        (void)kvf_rdma_qp_err(r, &c->qp);
        (void)kvf_rdma_qp_destroy(r, &c->qp);
        (void)kvf_rdma_cq_destroy(c);
        if (c->link != NULL)
            c->link->c = NULL;
        conn_free(c);
    }
}

/* ---- the way up --------------------------------------------------------- */

struct kvf_rdma_conn *kvf_rdma_conn_new(struct kvf_rdma *r)
{
    struct kvf_rdma_conn *c = calloc(1, sizeof *c);

    if (c == NULL)
        return NULL;
    c->r = r;
    c->queue = 1;
    c->job.step = reap;
    kvf_list_init(&c->job.node);
    kvf_timer_init(&c->timer, timer);
    kvf_list_init(&c->node);
    kvf_list_push_back(&r->conns, &c->node);
    return c;
}

int kvf_rdma_conn_cq(struct kvf_rdma_conn *c, struct kvf_why *why)
{
    struct kvf_rdma *r = c->r;

    errno = 0;
    c->queue = queue_of(r);
    c->cq = r->v->create_cq(r->ctx, (int)c->queue, c, r->channel);
    if (c->cq == NULL)
        return kvf_rdma_advise(r, why, "ibv_create_cq", errno);
    r->n_cqs++;
    return 0;
}

int kvf_rdma_conn_qp(struct kvf_rdma_conn *c, struct kvf_why *why)
{
    return kvf_rdma_qp_create(
        c->r, &c->qp, c->cq != NULL ? c->cq : c->r->idle_cq, c->queue, c, why);
}

int kvf_rdma_conn_rts(struct kvf_rdma_conn *c, struct kvf_why *why)
{
    int rc = kvf_rdma_qp_rts(c->r, &c->qp, &c->path, why);

    c->joined = rc == 0;
    return rc;
}
