/* Getter's side: how a link comes up.
 *
 *   CREATING -> ASKING -> JOINING -> PROBING -> UP -> DYING -> DEAD
 *
 * Happy path: a job makes a connection (CQ, QP, INIT), or takes the one that
 * the same daemon's guest has here; the owner is asked; with its answer a job
 * brings the QP to RTR and RTS, if it is not there yet; a READ of one page of
 * its pool proves the way (packets of full size, the right key, the right
 * daemon); the link is up.
 *
 * Failure modes: what it took from a guest goes while the owner is asked (it
 * begins again with a connection of its own); all others: link_end.c. */
#include "transport/rdma/rdma_priv.h"

#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct kvf_rdma_link *link_of_job(struct kvf_rdma_job *job)
{
    return kvf_container_of(job, struct kvf_rdma_link, job);
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

/* ---- asking the owner --------------------------------------------------- */

static int ask(struct kvf_rdma_link *l, struct kvf_why *why)
{
    struct kvf_rdma *r = l->r;
    bool both = kvf_rdma_both(r, &l->who);
    struct kvf_rdma_connect c;

    kvf_rdma_device_end(r, &l->own);
    l->own.qpn = l->c->qp.qp->qp_num;
    l->own.psn = l->c->qp.psn;
    l->own.rd_atomic = kvf_rdma_reads(r->attr.max_qp_init_rd_atom);
    if (both)
        l->own.rd_atomic = kvf_rdma_reads_both(r);
    c = (struct kvf_rdma_connect){
        .id = l->id, .end = l->own, .both = both, .joined = l->c->joined};
    l->state = KVF_RDMA_ASKING;
    l->asked = true;
    kvf_rdma_guests_wake(r);
    return r->hooks->connect(r->hooks_arg, l->link, &c, why);
}

/* The connection of that daemon's guest, if there is one that carries both
 * ways; else one of our own. */
static int begin(struct kvf_rdma_link *l, struct kvf_why *why)
{
    struct kvf_rdma *r = l->r;
    bool soon = false;
    int rc = usable(r, why);

    if (rc != 0)
        return rc;
    if (kvf_rdma_both(r, &l->who))
        l->c = kvf_rdma_guest_conn(r, &l->who, &soon);
    l->parked = l->c == NULL && soon;
    if (l->parked)
        return 0;
    if (l->c == NULL) {
        l->c = kvf_rdma_conn_new(r);
        if (l->c == NULL)
            return kvf_fail(why, KVF_NO_SPACE, "no memory for a link");
        rc = kvf_rdma_conn_cq(l->c, why);
    }
    l->c->link = l;
    l->queue = l->c->queue;
    return rc;
}

enum { BEGIN, CREATE, INIT, ASK };

static bool create_step(struct kvf_rdma_job *job)
{
    struct kvf_rdma_link *l = link_of_job(job);
    struct kvf_why why;
    int rc = 0;

    switch (l->step++) {
    case BEGIN:
        rc = begin(l, &why);
        if (l->parked) {
            l->step = BEGIN;
            return false;
        }
        if (rc == 0 && l->c->joined)
            l->step = ASK;
        break;
    case CREATE:
        rc = kvf_rdma_conn_qp(l->c, &why);
        break;
    case INIT: /* nobody may touch anything through this side's QP (yet) */
        rc = kvf_rdma_qp_init(l->r, &l->c->qp, 0, &why);
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

void kvf_rdma_links_wake(struct kvf_rdma *r)
{
    kvf_list_for_each (n, &r->links) {
        struct kvf_rdma_link *l =
            kvf_container_of(n, struct kvf_rdma_link, node);

        if (!l->parked)
            continue;
        l->parked = false;
        kvf_rdma_job_start(r, &l->job);
    }
}

/* The connection that it took from a guest is of no use: another one. */
static void start_over(struct kvf_rdma_link *l, const char *text)
{
    struct kvf_rdma *r = l->r;
    struct kvf_rdma_conn *c = l->c;
    struct kvf_why why;

    kvf_log(KVF_LOG_DEBUG, "RDMA", "%s: not over the guest's QP: %s", l->host,
            text);
    kvf_fail(&why, KVF_TRANSPORT, "%s", text);
    if (l->asked && l->link != NULL)
        r->hooks->disconnect(r->hooks_arg, l->link, l->id, text);
    l->asked = false;
    l->id = r->next_id++;
    l->c = NULL;
    c->link = NULL;
    c->refused = true; /* not the same again */
    l->state = KVF_RDMA_CREATING;
    l->step = BEGIN;
    l->job.step = create_step;
    kvf_rdma_job_start(r, &l->job);
    kvf_rdma_conn_leave(c, &why);
    kvf_rdma_guests_wake(r);
}

/* Asking over a connection that a guest made, or joins? */
static bool borrows(const struct kvf_rdma_link *l)
{
    return l->state == KVF_RDMA_ASKING && (l->c->joined || l->c->guest != NULL);
}

void kvf_rdma_link_lost(struct kvf_rdma_link *l, const struct kvf_why *why)
{
    if (borrows(l))
        start_over(l, why->text);
    else
        kvf_rdma_link_abort(l, why);
}

/* ---- joining ------------------------------------------------------------ */

static bool join_step(struct kvf_rdma_job *job)
{
    struct kvf_rdma_link *l = link_of_job(job);
    struct kvf_why why;
    int rc = 0;

    switch (l->step++) {
    case 0:
        rc = kvf_rdma_conn_rtr(l->c, &why);
        break;
    case 1:
        rc = kvf_rdma_conn_rts(l->c, &why);
        kvf_rdma_guests_wake(l->r);
        break;
    default:
        if (!kvf_rdma_scratch_take(l))
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

    kvf_rdma_scratch_give(l);
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
    l->id = r->next_id++;
    l->gen = r->next_gen++;
    l->scratch = -1;
    if (addr != NULL) {
        snprintf(l->host, sizeof l->host, "%.63s", addr->host);
        l->who = addr->who;
    }
    kvf_list_init(&l->job.node);
    kvf_list_init(&l->queued);
    kvf_list_init(&l->flying);
    kvf_task_init(&l->event, kvf_rdma_link_event);
    kvf_task_init(&l->room, kvf_rdma_link_roomy);
    kvf_task_init(&l->ring, kvf_rdma_ring);
    kvf_timer_init(&l->timer, kvf_rdma_link_timer);
    l->job.step = create_step;
    kvf_list_init(&l->node);
    kvf_list_push_back(&r->links, &l->node);
    link->impl = l;
    kvf_timer_set(t->sched, &l->timer,
                  t->sched->now_ns + r->conf.connect_ms * KVF_NS_PER_MS);
    kvf_rdma_job_start(r, &l->job);
    return 0;
}

/* ---- what came from the owner ------------------------------------------- */

static struct kvf_rdma_link *waiting(struct kvf_link *link, uint64_t id)
{
    struct kvf_rdma_link *l = link->impl;

    return l != NULL && l->id == id && l->state == KVF_RDMA_ASKING ? l : NULL;
}

static int take_pool(struct kvf_rdma_link *l, const struct kvf_rdma_accept *a,
                     struct kvf_why *why)
{
    if (a->n_pool == 0 || a->pool[0].length == 0)
        return kvf_fail(why, KVF_MISMATCH, "rdma: the owner offers no memory");
    l->pool = calloc(a->n_pool, sizeof *l->pool);
    if (l->pool == NULL)
        return kvf_fail(why, KVF_NO_SPACE, "no memory for a link");
    memcpy(l->pool, a->pool, a->n_pool * sizeof *l->pool);
    l->n_pool = a->n_pool;
    return 0;
}

void kvf_rdma_on_accept(struct kvf_link *link, const struct kvf_rdma_accept *a,
                        const struct kvf_id *expect)
{
    struct kvf_rdma_link *l = waiting(link, a->id);
    bool joined;
    struct kvf_why why;
    int rc = 0;

    if (l == NULL)
        return;
    joined = l->c->joined;
    if (borrows(l) && !kvf_rdma_conn_leads_to(l->c, &a->end)) {
        start_over(l, "the owner answers with another QP");
        return;
    }
    if (!joined)
        rc = kvf_rdma_conclude(&l->own, a, &l->c->path, &why);
    if (rc == 0)
        rc = take_pool(l, a, &why);
    if (rc != 0) {
        kvf_rdma_link_abort(l, &why);
        return;
    }
    l->has_expect = expect != NULL;
    if (expect != NULL)
        l->expect = *expect;
    l->state = KVF_RDMA_JOINING;
    l->step = joined ? 2 : 0;
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
    if (borrows(l))
        start_over(l, why.text);
    else
        kvf_rdma_link_leave(l, &why);
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
