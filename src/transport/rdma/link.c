/* Getter's side: a link from the first question to the last completion.
 *
 *   CREATING -> ASKING -> JOINING -> PROBING -> UP -> DYING -> DEAD
 *
 * Happy path: a job makes CQ and QP and brings it to INIT; the owner is asked;
 * with its answer a job brings the QP to RTR and RTS; a READ of one page of its
 * pool proves the way (packets of full size, the right key, the right daemon);
 * the link is up.
 *
 * There is one way down for every failure, a cancelled transfer that does not
 * end, and link_close: QP to ERR, wait for all that was posted (or one second),
 * destroy QP and CQ, and only then give the ops back. Callbacks are made from
 * tasks, never from here. */
#include "transport/rdma/rdma_priv.h"

#include "base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct kvf_rdma_link *link_of_job(struct kvf_rdma_job *job)
{
    return kvf_container_of(job, struct kvf_rdma_link, job);
}

static void set_timer(struct kvf_rdma_link *l, uint64_t after_ns)
{
    struct kvf_sched *s = l->r->t.sched;

    kvf_timer_set(s, &l->timer, s->now_ns + after_ns);
}

/* ---- telling the owner of the link -------------------------------------- */

static bool gone(const struct kvf_rdma_link *l)
{
    return l->state == KVF_RDMA_DYING || l->state == KVF_RDMA_DEAD;
}

static void event(struct kvf_task *t)
{
    struct kvf_rdma_link *l = kvf_container_of(t, struct kvf_rdma_link, event);
    struct kvf_link *link = l->link;

    if (link == NULL)
        return;
    if (l->was_up && !l->told_up) {
        l->told_up = true;
        if (gone(l))
            kvf_task_post(l->r->t.sched, &l->event);
        if (link->on_up != NULL)
            link->on_up(link); /* may close the link */
        return;
    }
    if (gone(l) && link->state != KVF_LINK_DOWN) {
        struct kvf_why why = l->why;

        link->state = KVF_LINK_DOWN;
        if (link->on_down != NULL)
            link->on_down(link, &why); /* may close the link */
    }
}

static void room(struct kvf_task *t)
{
    struct kvf_rdma_link *l = kvf_container_of(t, struct kvf_rdma_link, room);

    if (l->link != NULL)
        kvf_link_room(l->link);
}

/* ---- the way down ------------------------------------------------------- */

static void scratch_give(struct kvf_rdma_link *l)
{
    struct kvf_rdma *r = l->r;

    if (l->scratch < 0)
        return;
    r->scratch_used &= ~(1ull << l->scratch);
    l->scratch = -1;
    kvf_list_for_each (n, &r->links) {
        struct kvf_rdma_link *next =
            kvf_container_of(n, struct kvf_rdma_link, node);

        if (next->state != KVF_RDMA_JOINING || !next->wants_page)
            continue;
        kvf_rdma_job_start(r, &next->job);
        return;
    }
}

static void link_free(struct kvf_rdma_link *l)
{
    kvf_rdma_job_stop(&l->job);
    kvf_timer_cancel(l->r->t.sched, &l->timer);
    kvf_task_cancel(&l->event);
    kvf_task_cancel(&l->room);
    kvf_task_cancel(&l->ring);
    kvf_list_unlink(&l->node);
    free(l->pool);
    free(l);
}

/* Nothing touches their memory any more. */
static void give_back(struct kvf_rdma_link *l)
{
    struct kvf_list *n;

    while ((n = kvf_list_pop(&l->flying)) != NULL ||
           (n = kvf_list_pop(&l->queued)) != NULL)
        kvf_rdma_op_end(l, kvf_container_of(n, struct kvf_transfer_op, node),
                        -(int)l->why.status, &l->why);
    l->n_cancelled = 0;
}

/* Everything has come back (then the ops are given back already) or time is up:
 * the QP goes, and what it still held with it. A device that refuses is asked
 * again. */
static bool reap(struct kvf_rdma_job *job)
{
    struct kvf_rdma_link *l = link_of_job(job);

    if (kvf_rdma_qp_destroy(l->r, &l->qp) != 0 || kvf_rdma_cq_destroy(l) != 0) {
        kvf_log(KVF_LOG_DEBUG, "RDMA", "%s: the device keeps a QP", l->host);
        set_timer(l, KVF_RDMA_AGAIN_NS);
        return false;
    }
    kvf_log(KVF_LOG_DEBUG, "RDMA", "%s: QP gone wrs=%" PRIu64, l->host,
            l->done);
    kvf_timer_cancel(l->r->t.sched, &l->timer);
    l->state = KVF_RDMA_DEAD;
    l->posted = l->done;
    scratch_give(l);
    give_back(l);
    if (l->link == NULL)
        link_free(l);
    return false;
}

void kvf_rdma_link_drained(struct kvf_rdma_link *l)
{
    /* Every work request is accounted for and a QP in ERR starts none: their
     * memory is quiet, however long the device takes to let the QP go. */
    if (l->posted == l->done && l->in_err)
        give_back(l);
    if (l->linger) {
        l->linger = false;
        set_timer(l, KVF_RDMA_LINGER_NS);
        return;
    }
    l->job.step = reap;
    kvf_rdma_job_start(l->r, &l->job);
}

/* Ops of which no work request was posted can go at once. */
static void give_back_unposted(struct kvf_rdma_link *l)
{
    kvf_list_for_each_safe (n, &l->queued) {
        struct kvf_transfer_op *op =
            kvf_container_of(n, struct kvf_transfer_op, node);

        if (op->tag != 0)
            continue;
        kvf_list_unlink(n);
        kvf_rdma_op_end(l, op, -(int)l->why.status, &l->why);
    }
}

void kvf_rdma_link_abort(struct kvf_rdma_link *l, const struct kvf_why *why)
{
    struct kvf_rdma *r = l->r;

    if (l->state == KVF_RDMA_DYING || l->state == KVF_RDMA_DEAD)
        return;
    l->why = *why;
    kvf_rdma_job_stop(&l->job);
    kvf_task_cancel(&l->ring);
    if (l->was_up && l->link != NULL)
        r->t.stats->rdma_errors++;
    if (l->asked && l->link != NULL)
        r->hooks->disconnect(r->hooks_arg, l->link, l->id, l->why.text);
    l->state = KVF_RDMA_DYING;
    if (l->link != NULL) {
        kvf_task_post(r->t.sched, &l->event);
        kvf_task_post(r->t.sched, &l->room);
    }
    give_back_unposted(l);
    kvf_log(KVF_LOG_DEBUG, "RDMA",
            "%s: link ends wrs_in_flight=%" PRIu64 " ops=%u: %s", l->host,
            l->posted - l->done, l->n_ops, why->text);
    /* If even that fails, destroying the QP is what ends it. */
    l->in_err = kvf_rdma_qp_err(r, &l->qp) == 0;
    l->linger = l->in_err && l->posted != l->done;
    if (l->linger) {
        kvf_rdma_post_last(l);
        set_timer(l, KVF_RDMA_DRAIN_NS);
        kvf_source_kick(&r->cq_src);
        return;
    }
    kvf_timer_cancel(r->t.sched, &l->timer);
    kvf_rdma_link_drained(l);
}

static void on_fatal(struct kvf_rdma_owner *o, const struct kvf_why *why)
{
    kvf_rdma_link_abort(kvf_container_of(o, struct kvf_rdma_link, owner), why);
}

/* Connecting: the deadline. Up: no completion while work requests are in
 * flight. Dying: the drain is given up, or the QP asked to go again. */
static void timer(struct kvf_timer *t)
{
    struct kvf_rdma_link *l = kvf_container_of(t, struct kvf_rdma_link, timer);
    struct kvf_sched *s = l->r->t.sched;
    uint64_t limit = kvf_rdma_stall_ns(l);
    struct kvf_why why;

    if (l->state == KVF_RDMA_DYING) {
        l->linger = false; /* either way its time is over */
        kvf_rdma_link_drained(l);
        return;
    }
    if (l->state != KVF_RDMA_UP) {
        kvf_fail(&why, KVF_PEER_UNREACHABLE,
                 "rdma to %s: not up within %llu ms", l->host,
                 (unsigned long long)l->r->conf.connect_ms);
        kvf_rdma_link_abort(l, &why);
        return;
    }
    if (l->posted == l->done)
        return;
    if (s->stalled) /* we were stopped, not the device */
        l->last_progress = s->now_ns;
    if (s->now_ns - l->last_progress < limit) {
        kvf_timer_set(s, t, l->last_progress + limit);
        return;
    }
    kvf_fail(&why, KVF_TRANSPORT, "rdma to %s: no completion for %llu ms",
             l->host, (unsigned long long)(limit / KVF_NS_PER_MS));
    kvf_rdma_link_abort(l, &why);
}

/* ---- the way up --------------------------------------------------------- */

static int ask(struct kvf_rdma_link *l, struct kvf_why *why)
{
    struct kvf_rdma *r = l->r;
    struct kvf_rdma_connect c;

    kvf_rdma_device_end(r, &l->own);
    l->own.qpn = l->qp.qp->qp_num;
    l->own.psn = l->qp.psn;
    l->own.rd_atomic = kvf_rdma_reads(r->attr.max_qp_init_rd_atom);
    c = (struct kvf_rdma_connect){.id = l->id, .end = l->own};
    l->state = KVF_RDMA_ASKING;
    l->asked = true;
    return r->hooks->connect(r->hooks_arg, l->link, &c, why);
}

static int create_cq(struct kvf_rdma_link *l, struct kvf_why *why)
{
    struct kvf_rdma *r = l->r;

    errno = 0;
    l->cq = r->v->create_cq(r->ctx, (int)l->queue, &l->owner, r->channel);
    if (l->cq == NULL)
        return kvf_rdma_advise(r, why, "ibv_create_cq", errno);
    r->n_cqs++;
    return 0;
}

static bool create_step(struct kvf_rdma_job *job)
{
    struct kvf_rdma_link *l = link_of_job(job);
    struct kvf_why why;
    int rc = 0;

    switch (l->step++) {
    case 0:
        rc = create_cq(l, &why);
        break;
    case 1:
        rc = kvf_rdma_qp_create(l->r, &l->qp, l->cq, l->queue, &l->owner, &why);
        break;
    case 2: /* nobody may touch anything through this side's QP */
        rc = kvf_rdma_qp_init(l->r, &l->qp, 0, &why);
        break;
    default:
        rc = ask(l, &why);
        if (rc == 0)
            return false;
        break;
    }
    if (rc == 0)
        return true;
    kvf_rdma_link_abort(l, &why);
    return false;
}

/* A page for the probe. False: others have them all; the job is started again
 * when one is given back. */
static bool scratch_take(struct kvf_rdma_link *l)
{
    struct kvf_rdma *r = l->r;

    l->wants_page = r->scratch_used == UINT64_MAX;
    if (l->wants_page)
        return false;
    l->scratch = __builtin_ctzll(~r->scratch_used);
    r->scratch_used |= 1ull << l->scratch;
    memset(r->scratch + (size_t)l->scratch * KVF_RDMA_PROBE, 0, KVF_RDMA_PROBE);
    return true;
}

static bool join_step(struct kvf_rdma_job *job)
{
    struct kvf_rdma_link *l = link_of_job(job);
    struct kvf_why why;
    int rc = 0;

    switch (l->step++) {
    case 0:
        rc = kvf_rdma_qp_rtr(l->r, &l->qp, &l->path, &why);
        break;
    case 1:
        rc = kvf_rdma_qp_rts(l->r, &l->qp, &l->path, &why);
        break;
    default:
        if (!scratch_take(l))
            return false;
        l->state = KVF_RDMA_PROBING;
        kvf_rdma_post_probe(l);
        return false;
    }
    if (rc == 0)
        return true;
    kvf_rdma_link_abort(l, &why);
    return false;
}

/* The pool of the daemon that we mean begins with its header page. */
static bool header_fits(const struct kvf_rdma_link *l)
{
    struct kvf_segment_header h;

    if (!l->has_expect)
        return true;
    memcpy(&h, l->r->scratch + (size_t)l->scratch * KVF_RDMA_PROBE, sizeof h);
    return memcmp(h.magic, KVF_SEGMENT_MAGIC, sizeof h.magic) == 0 &&
           memcmp(h.incarnation, l->expect.b, KVF_ID_LEN) == 0;
}

void kvf_rdma_link_probed(struct kvf_rdma_link *l)
{
    bool fits = header_fits(l);
    struct kvf_why why;

    scratch_give(l);
    if (!fits) {
        kvf_fail(&why, KVF_MISMATCH,
                 "rdma to %s: what was read is not the header of its pool: the "
                 "GID or key leads to somebody else",
                 l->host);
        kvf_rdma_link_abort(l, &why);
        return;
    }
    l->state = KVF_RDMA_UP;
    l->was_up = true;
    l->r->t.stats->rdma_connects++;
    l->link->state = KVF_LINK_UP;
    kvf_timer_cancel(l->r->t.sched, &l->timer);
    kvf_task_post(l->r->t.sched, &l->event);
    kvf_task_post(l->r->t.sched, &l->ring);
}

static int usable(const struct kvf_rdma *r, struct kvf_why *why)
{
    if (r->fatal)
        return kvf_fail(why, KVF_TRANSPORT,
                        "%s: the device failed: rdma is off until it can be "
                        "opened again",
                        r->name);
    if (!r->port_up)
        return kvf_fail(why, KVF_TRANSPORT, "%s: port %u is not active",
                        r->name, r->port);
    return 0;
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

int kvf_rdma_link_open(struct kvf_transport *t, struct kvf_link *link,
                       const struct kvf_link_addr *addr, struct kvf_why *why)
{
    struct kvf_rdma *r = kvf_rdma_of(t);
    struct kvf_rdma_link *l;
    int rc = usable(r, why);

    if (rc != 0)
        return rc;
    l = calloc(1, sizeof *l);
    if (l == NULL)
        return kvf_fail(why, KVF_NO_SPACE, "no memory for a link");
    l->r = r;
    l->link = link;
    l->owner.on_fatal = on_fatal;
    l->id = r->next_id++;
    l->gen = r->next_gen++;
    l->queue = queue_of(r);
    l->scratch = -1;
    if (addr != NULL)
        snprintf(l->host, sizeof l->host, "%.63s", addr->host);
    kvf_list_init(&l->job.node);
    kvf_list_init(&l->queued);
    kvf_list_init(&l->flying);
    kvf_task_init(&l->event, event);
    kvf_task_init(&l->room, room);
    kvf_task_init(&l->ring, kvf_rdma_ring);
    kvf_timer_init(&l->timer, timer);
    l->job.step = create_step;
    kvf_list_init(&l->node);
    kvf_list_push_back(&r->links, &l->node);
    link->impl = l;
    set_timer(l, r->conf.connect_ms * KVF_NS_PER_MS);
    kvf_rdma_job_start(r, &l->job);
    return 0;
}

void kvf_rdma_link_close(struct kvf_link *link)
{
    struct kvf_rdma_link *l = link->impl;
    struct kvf_why why;

    kvf_fail(&why, KVF_TRANSPORT, "rdma to %s: the link was closed", l->host);
    kvf_list_for_each (n, &l->flying)
        kvf_container_of(n, struct kvf_transfer_op, node)->link = NULL;
    kvf_list_for_each (n, &l->queued)
        kvf_container_of(n, struct kvf_transfer_op, node)->link = NULL;
    if (l->asked && l->state != KVF_RDMA_DYING && l->state != KVF_RDMA_DEAD)
        l->r->hooks->disconnect(l->r->hooks_arg, link, l->id, why.text);
    l->link = NULL;
    kvf_rdma_link_abort(l, &why);
    kvf_task_cancel(&l->event);
    kvf_task_cancel(&l->room);
    if (l->state == KVF_RDMA_DEAD)
        link_free(l);
}

void kvf_rdma_links_destroy(struct kvf_rdma *r)
{
    struct kvf_list *n;

    while ((n = kvf_list_first(&r->links)) != NULL) {
        struct kvf_rdma_link *l =
            kvf_container_of(n, struct kvf_rdma_link, node);

        l->link = NULL;
        kvf_fail(&l->why, KVF_SHUTTING_DOWN, "the transport was closed");
        (void)kvf_rdma_qp_err(r, &l->qp);
        (void)kvf_rdma_qp_destroy(r, &l->qp);
        (void)kvf_rdma_cq_destroy(l);
        give_back(l);
        link_free(l);
    }
}

/* ---- what came from the owner ------------------------------------------- */

static struct kvf_rdma_link *waiting(struct kvf_link *link, uint64_t id)
{
    struct kvf_rdma_link *l = link->impl;

    return l != NULL && l->id == id && l->state == KVF_RDMA_ASKING ? l : NULL;
}

void kvf_rdma_on_accept(struct kvf_link *link, const struct kvf_rdma_accept *a,
                        const struct kvf_id *expect)
{
    struct kvf_rdma_link *l = waiting(link, a->id);
    struct kvf_why why;
    int rc;

    if (l == NULL)
        return;
    rc = kvf_rdma_conclude(&l->own, a, &l->path, &why);
    if (rc == 0 && (a->n_pool == 0 || a->pool[0].length == 0))
        rc = kvf_fail(&why, KVF_MISMATCH, "rdma: the owner offers no memory");
    if (rc == 0) {
        l->pool = calloc(a->n_pool, sizeof *l->pool);
        if (l->pool == NULL)
            rc = kvf_fail(&why, KVF_NO_SPACE, "no memory for a link");
    }
    if (rc != 0) {
        kvf_rdma_link_abort(l, &why);
        return;
    }
    memcpy(l->pool, a->pool, a->n_pool * sizeof *l->pool);
    l->n_pool = a->n_pool;
    l->has_expect = expect != NULL;
    if (expect != NULL)
        l->expect = *expect;
    l->state = KVF_RDMA_JOINING;
    l->step = 0;
    l->job.step = join_step;
    kvf_rdma_job_start(l->r, &l->job);
}

void kvf_rdma_on_refuse(struct kvf_link *link, uint64_t id,
                        enum kvf_status status, const char *text)
{
    struct kvf_rdma_link *l = waiting(link, id);
    struct kvf_why why;

    if (l == NULL)
        return;
    kvf_fail(&why, status != KVF_OK ? status : KVF_TRANSPORT,
             "the owner refuses rdma: %s", text);
    l->asked = false; /* it has nothing to forget */
    kvf_rdma_link_abort(l, &why);
}

void kvf_rdma_on_owner_closed(struct kvf_link *link, uint64_t id,
                              const char *text)
{
    struct kvf_rdma_link *l = link->impl;
    struct kvf_why why;

    if (l == NULL || l->id != id)
        return;
    kvf_fail(&why, KVF_TRANSPORT, "the owner closed its end: %s", text);
    l->asked = false;
    kvf_rdma_link_abort(l, &why);
}
