/* Owner's side: the connection of each session that connected.
 *
 * Happy path: asked, it picks GIDs and limits, a job brings a new QP to RTS,
 * one call a slice, and the session is told. The device serves by itself, so
 * silence of the other side means nothing (guest_end.c).
 *
 * Where both ends can, one connection carries both ways. A daemon that is
 * connected to and wants to read, too, asks over the QP that it serves
 * (connect.joined), and then the link of the other one and its guest share a
 * connection here. When both ask at once, neither knows of the other's QP yet:
 * the daemon with the smaller id has its question answered with the other's
 * new QP, and holds the other's question until its own link has joined that.
 *
 * Failure modes: nothing in common with the getter, a call that fails, a
 * connection to share that is gone (refused, with the reason); a fatal event
 * (closed, and told). */
#include "transport/rdma/rdma_priv.h"

#include <stdlib.h>
#include <string.h>

enum { DECIDE, CREATE, INIT, RTR, RTS, ACCESS, ACCEPT };

bool kvf_rdma_both(const struct kvf_rdma *r, const struct kvf_id *who)
{
    static const struct kvf_id none;
    const struct kvf_id *self = &r->conf.self;

    return !kvf_id_equal(self, &none) && !kvf_id_equal(who, &none) &&
           !kvf_id_equal(self, who);
}

uint32_t kvf_rdma_reads_both(const struct kvf_rdma *r)
{
    uint32_t starts = kvf_rdma_reads(r->attr.max_qp_init_rd_atom);
    uint32_t serves = kvf_rdma_reads(r->attr.max_qp_rd_atom);

    return starts < serves ? starts : serves;
}

/* ---- the way up --------------------------------------------------------- */

static int fill_pool(struct kvf_rdma_guest *g, struct kvf_why *why)
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

/* The link of ours to the daemon that it comes from. */
static struct kvf_rdma_link *link_to(const struct kvf_rdma_guest *g)
{
    kvf_list_for_each (n, &g->r->links) {
        struct kvf_rdma_link *l =
            kvf_container_of(n, struct kvf_rdma_link, node);

        if (l->link != NULL && l->state < KVF_RDMA_DYING && !l->parked &&
            kvf_id_equal(&l->who, &g->who))
            return l;
    }
    return NULL;
}

static void take(struct kvf_rdma_guest *g, struct kvf_rdma_conn *c,
                 unsigned step)
{
    g->c = c;
    g->step = step;
    c->guest = g;
}

/* Which connection is it? An error refuses it. */
static int decide(struct kvf_rdma_guest *g, struct kvf_why *why)
{
    struct kvf_rdma *r = g->r;
    struct kvf_rdma_link *l = g->both ? link_to(g) : NULL;
    struct kvf_rdma_conn *c;
    bool waits;

    g->held = false;
    if (l != NULL && l->c != NULL && l->c->guest == NULL &&
        kvf_rdma_conn_leads_to(l->c, &g->ask.end)) {
        take(g, l->c, ACCESS); /* they are joined already */
        return 0;
    }
    waits = l != NULL && (l->state == KVF_RDMA_CREATING ||
                          (l->state <= KVF_RDMA_JOINING && !l->c->joined));
    /* Both asked at once. */
    if (waits && !g->ask.joined && l->state == KVF_RDMA_ASKING &&
        memcmp(r->conf.self.b, g->who.b, KVF_ID_LEN) > 0) {
        l->c->path = g->path;
        take(g, l->c, RTR);
        return 0;
    }
    g->held = waits;
    if (waits)
        return 0;
    if (g->ask.joined)
        return kvf_fail(why, KVF_TRANSPORT, "the connection to share is gone");
    c = kvf_rdma_conn_new(r);
    if (c == NULL)
        return kvf_fail(why, KVF_NO_SPACE, "no memory for a link");
    c->path = g->path;
    take(g, c, CREATE);
    return g->both ? kvf_rdma_conn_cq(c, why) : 0;
}

static void accept(struct kvf_rdma_guest *g)
{
    struct kvf_rdma *r = g->r;

    g->accept.end.qpn = g->c->qp.qp->qp_num;
    g->accept.end.psn = g->c->qp.psn;
    g->accepted = g->c->served = true;
    r->t.stats->rdma_accepts++;
    r->hooks->accept(r->hooks_arg, g->session, &g->accept);
    kvf_rdma_links_wake(r);
}

static int let_in(struct kvf_rdma_guest *g, struct kvf_why *why)
{
    int err = kvf_rdma_qp_access(g->r, &g->c->qp,
                                 kvf_rdma_access_of(g->r, g->session));

    g->allowed = true;
    return err == 0 ? 0 : kvf_rdma_advise(g->r, why, "QP's access", err);
}

static bool step(struct kvf_rdma_job *job)
{
    struct kvf_rdma_guest *g =
        kvf_container_of(job, struct kvf_rdma_guest, job);
    struct kvf_rdma *r = g->r;
    struct kvf_why why;
    int rc = 0;

    switch (g->step++) {
    case DECIDE:
        g->step = DECIDE;
        rc = decide(g, &why);
        if (rc == 0 && g->held)
            return false;
        break;
    case CREATE:
        rc = kvf_rdma_conn_qp(g->c, &why);
        break;
    case INIT:
        g->allowed = true;
        rc = kvf_rdma_qp_init(r, &g->c->qp, kvf_rdma_access_of(r, g->session),
                              &why);
        break;
    case RTR:
        rc = kvf_rdma_conn_rtr(g->c, &why);
        break;
    case RTS:
        rc = kvf_rdma_conn_rts(g->c, &why);
        if (rc == 0 && g->allowed)
            g->step = ACCEPT;
        break;
    case ACCESS:
        rc = let_in(g, &why);
        break;
    default:
        accept(g);
        return false;
    }
    if (rc == 0)
        return true;
    kvf_rdma_guest_fail(g, &why);
    return false;
}

void kvf_rdma_guests_wake(struct kvf_rdma *r)
{
    kvf_list_for_each (n, &r->guests)
        if (kvf_rdma_guest_of(n)->held && !kvf_rdma_guest_of(n)->ending)
            kvf_rdma_job_start(r, &kvf_rdma_guest_of(n)->job);
}

struct kvf_rdma_conn *kvf_rdma_guest_conn(const struct kvf_rdma *r,
                                          const struct kvf_id *who, bool *soon)
{
    kvf_list_for_each (n, &r->guests) {
        const struct kvf_rdma_guest *g = kvf_rdma_guest_of(n);

        if (!g->both || g->ending || g->c == NULL || g->c->link != NULL ||
            g->c->refused || !kvf_id_equal(&g->who, who))
            continue;
        if (g->accepted)
            return g->c;
        *soon = true;
    }
    return NULL;
}

static int check(struct kvf_rdma *r, struct kvf_why *why)
{
    if (r->fatal || !r->port_up)
        return kvf_fail(why, KVF_TRANSPORT, "%s: port %u is not active",
                        r->name, r->port);
    return 0;
}

static int begin(struct kvf_rdma_guest *g, struct kvf_why *why)
{
    static const struct kvf_rdma_route route = {.source =
                                                    kvf_rdma_route_source};
    struct kvf_rdma *r = g->r;
    struct kvf_rdma_end own;
    int rc = check(r, why);

    if (rc != 0)
        return rc;
    kvf_rdma_device_end(r, &own);
    own.rd_atomic = g->both ? kvf_rdma_reads_both(r)
                            : kvf_rdma_reads(r->attr.max_qp_rd_atom);
    rc = kvf_rdma_answer(&own, &g->ask.end, &route, &g->accept, &g->path, why);
    g->accept.id = g->ask.id;
    return rc == 0 ? fill_pool(g, why) : rc;
}

void kvf_rdma_on_connect(struct kvf_transport *t, void *session,
                         const struct kvf_id *who,
                         const struct kvf_rdma_connect *c)
{
    struct kvf_rdma *r = kvf_rdma_of(t);
    struct kvf_rdma_guest *g;
    struct kvf_why why;

    /* One that serves at most; those of before are on their way out. */
    kvf_list_for_each_safe (n, &r->guests)
        if (kvf_rdma_guest_of(n)->session == session)
            kvf_rdma_guest_leave(kvf_rdma_guest_of(n));
    g = calloc(1, sizeof *g);
    if (g == NULL) {
        kvf_fail(&why, KVF_NO_SPACE, "no memory for a link");
        r->hooks->refuse(r->hooks_arg, session, c->id, &why);
        return;
    }
    g->r = r;
    g->session = session;
    g->ask = *c;
    if (who != NULL)
        g->who = *who;
    g->both = c->both && kvf_rdma_both(r, &g->who);
    g->job.step = step;
    kvf_list_init(&g->job.node);
    kvf_list_init(&g->node);
    kvf_list_push_back(&r->guests, &g->node);
    if (begin(g, &why) != 0)
        kvf_rdma_guest_fail(g, &why);
    else
        kvf_rdma_job_start(r, &g->job);
}
