/* Owner's side: the QP of each session that connected.
 *
 * Happy path: asked, it picks GIDs and limits, a job brings a new QP to RTS,
 * one call a slice, and the session is told. Nothing is ever posted to it; the
 * device serves by itself, so silence of the other side means nothing, and the
 * only way to end its access is to take the QP down: to ERR at once, which
 * stops it, and destroyed a little later, because Soft-RoCE waits in
 * ibv_destroy_qp for packets that are still in the queue of the network card.
 * Until it is destroyed its memory counts as being read. Failure modes: nothing
 * in common with the getter, or a call that fails (refused, with the reason); a
 * fatal event (closed, and told). */
#include "transport/rdma/rdma_priv.h"

#include <stdlib.h>
#include <string.h>

struct guest {
    struct kvf_list node; /* rdma.guests */
    struct kvf_rdma_owner owner;
    struct kvf_rdma *r;
    struct kvf_rdma_job job;
    unsigned step;
    void *session;
    uint64_t id;
    bool accepted;
    bool ending;   /* in ERR; `timer` destroys it */
    bool expelled; /* somebody waits for that */
    struct kvf_timer timer;
    struct kvf_rdma_qp qp;
    struct kvf_rdma_path path;
    struct kvf_rdma_accept accept; /* pool: of this struct */
};

static struct guest *guest_of(struct kvf_list *n)
{
    return kvf_container_of(n, struct guest, node);
}

static unsigned writer_at(const struct kvf_rdma *r, const void *session)
{
    unsigned i = 0;

    while (i < r->n_writers && r->writers[i] != session)
        i++;
    return i;
}

static int access_of(const struct kvf_rdma *r, const void *session)
{
    return IBV_ACCESS_REMOTE_READ |
           (writer_at(r, session) < r->n_writers ? IBV_ACCESS_REMOTE_WRITE : 0);
}

/* Is a QP of the session left whose end is waited for? */
static bool expelling(const struct kvf_rdma *r, const void *session)
{
    kvf_list_for_each (n, &r->guests)
        if (guest_of(n)->session == session && guest_of(n)->expelled)
            return true;
    return false;
}

static void guest_free(struct guest *g)
{
    kvf_rdma_job_stop(&g->job);
    kvf_timer_cancel(g->r->t.sched, &g->timer);
    kvf_list_unlink(&g->node);
    free(g->accept.pool);
    free(g);
}

/* A device that refuses is asked again. */
static void destroy_later(struct kvf_timer *t)
{
    struct guest *g = kvf_container_of(t, struct guest, timer);
    struct kvf_rdma *r = g->r;
    void *session = g->session;
    bool waited = g->expelled;

    if (kvf_rdma_qp_destroy(r, &g->qp) != 0) {
        kvf_timer_set(r->t.sched, t, r->t.sched->now_ns + KVF_RDMA_AGAIN_NS);
        return;
    }
    guest_free(g);
    if (waited && !expelling(r, session))
        r->hooks->expelled(r->hooks_arg, session);
}

/* Stops it and sees to its end. True: there was no QP. */
static bool end(struct guest *g)
{
    struct kvf_sched *s = g->r->t.sched;
    uint64_t due = s->now_ns;

    if (g->ending)
        return false;
    kvf_rdma_job_stop(&g->job);
    g->accepted = false;
    if (g->qp.qp == NULL) {
        guest_free(g);
        return true;
    }
    g->ending = true;
    if (kvf_rdma_qp_err(g->r, &g->qp) == 0) /* else only that stops it */
        due += KVF_RDMA_LINGER_NS;
    kvf_timer_set(s, &g->timer, due);
    return false;
}

static void fail(struct guest *g, const struct kvf_why *why)
{
    struct kvf_rdma *r = g->r;
    void *session = g->session;
    uint64_t id = g->id;
    bool accepted = g->accepted;

    (void)end(g);
    if (accepted)
        r->hooks->closed(r->hooks_arg, session, id, why);
    else
        r->hooks->refuse(r->hooks_arg, session, id, why);
}

static void on_fatal(struct kvf_rdma_owner *o, const struct kvf_why *why)
{
    struct guest *g = kvf_container_of(o, struct guest, owner);

    if (g->accepted)
        fail(g, why);
}

static int fill_pool(struct guest *g, struct kvf_why *why)
{
    struct kvf_rdma *r = g->r;
    const struct kvf_rdma_memory *m = r->pool;

    if (m == NULL || m->registered != m->size)
        return kvf_fail(why, KVF_UNSUPPORTED, "the pool is not registered");
    g->accept.pool = calloc(m->n_mr, sizeof *g->accept.pool);
    if (g->accept.pool == NULL)
        return kvf_fail(why, KVF_NO_SPACE, "no memory for a link");
    for (unsigned i = 0; i < m->n_mr; i++)
        g->accept.pool[i] = (struct kvf_rdma_key){
            (uintptr_t)m->mr[i].base, m->mr[i].length, m->mr[i].mr->rkey};
    g->accept.n_pool = m->n_mr;
    return 0;
}

static bool step(struct kvf_rdma_job *job)
{
    struct guest *g = kvf_container_of(job, struct guest, job);
    struct kvf_rdma *r = g->r;
    struct kvf_why why;
    int rc = 0;

    switch (g->step++) {
    case 0:
        rc = kvf_rdma_qp_create(r, &g->qp, r->idle_cq, 1, &g->owner, &why);
        break;
    case 1:
        rc = kvf_rdma_qp_init(r, &g->qp, access_of(r, g->session), &why);
        break;
    case 2:
        rc = kvf_rdma_qp_rtr(r, &g->qp, &g->path, &why);
        break;
    case 3:
        rc = kvf_rdma_qp_rts(r, &g->qp, &g->path, &why);
        break;
    default:
        g->accept.end.qpn = g->qp.qp->qp_num;
        g->accept.end.psn = g->qp.psn;
        g->accepted = true;
        r->t.stats->rdma_accepts++;
        r->hooks->accept(r->hooks_arg, g->session, &g->accept);
        return false;
    }
    if (rc == 0)
        return true;
    fail(g, &why);
    return false;
}

static int check(struct kvf_rdma *r, struct kvf_why *why)
{
    if (r->fatal || !r->port_up)
        return kvf_fail(why, KVF_TRANSPORT, "%s: port %u is not active",
                        r->name, r->port);
    return 0;
}

static int begin(struct guest *g, const struct kvf_rdma_connect *c,
                 struct kvf_why *why)
{
    static const struct kvf_rdma_route route = {.source =
                                                    kvf_rdma_route_source};
    struct kvf_rdma *r = g->r;
    struct kvf_rdma_end own;
    int rc = check(r, why);

    if (rc != 0)
        return rc;
    kvf_rdma_device_end(r, &own);
    own.rd_atomic = kvf_rdma_reads(r->attr.max_qp_rd_atom);
    rc = kvf_rdma_answer(&own, &c->end, &route, &g->accept, &g->path, why);
    g->accept.id = c->id;
    return rc == 0 ? fill_pool(g, why) : rc;
}

void kvf_rdma_on_connect(struct kvf_transport *t, void *session,
                         const struct kvf_rdma_connect *c)
{
    struct kvf_rdma *r = kvf_rdma_of(t);
    struct guest *g;
    struct kvf_why why;

    /* One that serves at most; those of before are on their way out. */
    kvf_list_for_each_safe (n, &r->guests)
        if (guest_of(n)->session == session)
            (void)end(guest_of(n));
    g = calloc(1, sizeof *g);
    if (g == NULL) {
        kvf_fail(&why, KVF_NO_SPACE, "no memory for a link");
        r->hooks->refuse(r->hooks_arg, session, c->id, &why);
        return;
    }
    g->r = r;
    g->session = session;
    g->id = c->id;
    g->owner.on_fatal = on_fatal;
    g->job.step = step;
    kvf_timer_init(&g->timer, destroy_later);
    kvf_list_init(&g->job.node);
    kvf_list_init(&g->node);
    kvf_list_push_back(&r->guests, &g->node);
    if (begin(g, c, &why) != 0)
        fail(g, &why);
    else
        kvf_rdma_job_start(r, &g->job);
}

void kvf_rdma_on_getter_closed(struct kvf_transport *t, void *session,
                               uint64_t id)
{
    struct kvf_rdma *r = kvf_rdma_of(t);

    kvf_list_for_each_safe (n, &r->guests)
        if (guest_of(n)->session == session && guest_of(n)->id == id)
            (void)end(guest_of(n));
}

bool kvf_rdma_expel(struct kvf_transport *t, void *session)
{
    struct kvf_rdma *r = kvf_rdma_of(t);

    kvf_list_for_each_safe (n, &r->guests) {
        struct guest *g = guest_of(n);

        if (g->session == session && !end(g))
            g->expelled = true;
    }
    return !expelling(r, session);
}

bool kvf_rdma_accepted(const struct kvf_transport *t, const void *session)
{
    const struct kvf_rdma *r = kvf_rdma_const(t);

    kvf_list_for_each (n, &r->guests)
        if (guest_of(n)->session == session && guest_of(n)->accepted)
            return true;
    return false;
}

bool kvf_rdma_allow_write(struct kvf_transport *t, void *session, bool on)
{
    struct kvf_rdma *r = kvf_rdma_of(t);
    unsigned i = writer_at(r, session);
    bool ok = true;

    if (on == (i < r->n_writers))
        return true;
    if (on && r->n_writers == r->cap_writers) {
        unsigned cap = r->cap_writers != 0 ? r->cap_writers * 2 : 16;
        void **p = reallocarray(r->writers, cap, sizeof *p);

        if (p == NULL)
            return false;
        r->writers = p;
        r->cap_writers = cap;
    }
    if (on)
        r->writers[r->n_writers++] = session;
    else
        r->writers[i] = r->writers[--r->n_writers];
    kvf_list_for_each (n, &r->guests) {
        struct guest *g = guest_of(n);

        /* A QP that is being set up takes it when it comes to INIT; one that
         * ends needs none. */
        if (g->session == session && g->step > 1 && !g->ending)
            ok &= kvf_rdma_qp_access(r, &g->qp, access_of(r, session)) == 0;
    }
    if (on && !ok) /* the caller does without: nor may its next QP */
        r->writers[writer_at(r, session)] = r->writers[--r->n_writers];
    return ok;
}

void kvf_rdma_guests_fail(struct kvf_rdma *r, const struct kvf_why *why)
{
    kvf_list_for_each_safe (n, &r->guests)
        if (!guest_of(n)->ending)
            fail(guest_of(n), why);
}

void kvf_rdma_guests_destroy(struct kvf_rdma *r)
{
    kvf_list_for_each_safe (n, &r->guests) {
        (void)kvf_rdma_qp_err(r, &guest_of(n)->qp);
        (void)kvf_rdma_qp_destroy(r, &guest_of(n)->qp);
        guest_free(guest_of(n));
    }
    free(r->writers);
    r->writers = NULL;
    r->n_writers = 0;
}

void kvf_rdma_guests_count(const struct kvf_rdma *r, struct kvf_rdma_gauges *g)
{
    kvf_list_for_each (n, &r->guests) {
        g->guests++;
        g->dying += guest_of(n)->ending;
    }
}
