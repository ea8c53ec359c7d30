/* How a guest ends, and what a session may do through its QP.
 *
 * The device serves by itself, so silence of the other side means nothing, and
 * the only way to end its access for certain is to take its connection down
 * (conn.c): a link of ours that shares it goes down with it, and its transfers
 * go on over the next one. Only on the getter's own word, which says that it
 * reads no more, a link of ours keeps the connection. Failure modes: the
 * device refuses (asked again; until then the memory counts as being read). */
#include "transport/rdma/rdma_priv.h"

#include <stdlib.h>

/* ---- access ------------------------------------------------------------- */

static unsigned writer_at(const struct kvf_rdma *r, const void *session)
{
    unsigned i = 0;

    while (i < r->n_writers && r->writers[i] != session)
        i++;
    return i;
}

int kvf_rdma_access_of(const struct kvf_rdma *r, const void *session)
{
    return IBV_ACCESS_REMOTE_READ |
           (writer_at(r, session) < r->n_writers ? IBV_ACCESS_REMOTE_WRITE : 0);
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
        struct kvf_rdma_guest *g = kvf_rdma_guest_of(n);

        /* A QP that is being set up takes it when it lets the session in; one
         * that ends needs none. */
        if (g->session == session && g->allowed && !g->ending)
            ok &= kvf_rdma_qp_access(r, &g->c->qp,
                                     kvf_rdma_access_of(r, session)) == 0;
    }
    if (on && !ok) /* the caller does without: nor may its next QP */
        r->writers[writer_at(r, session)] = r->writers[--r->n_writers];
    return ok;
}

/* Is a QP of the session left whose end is waited for? */
static bool expelling(const struct kvf_rdma *r, const void *session)
{
    kvf_list_for_each (n, &r->guests)
        if (kvf_rdma_guest_of(n)->session == session &&
            kvf_rdma_guest_of(n)->expelled)
            return true;
    return false;
}

/* ---- the way down ------------------------------------------------------- */

static void guest_free(struct kvf_rdma_guest *g)
{
    kvf_rdma_job_stop(&g->job);
    kvf_list_unlink(&g->node);
    free(g->accept.pool);
    free(g);
}

void kvf_rdma_guest_gone(struct kvf_rdma_guest *g)
{
    struct kvf_rdma *r = g->r;
    void *session = g->session;
    bool waited = g->expelled;

    guest_free(g);
    if (waited && !expelling(r, session))
        r->hooks->expelled(r->hooks_arg, session);
}

bool kvf_rdma_guest_end(struct kvf_rdma_guest *g, const struct kvf_why *why)
{
    struct kvf_rdma *r = g->r;
    struct kvf_why taken;
    bool none = g->c == NULL;

    if (g->ending)
        return false;
    kvf_rdma_job_stop(&g->job);
    g->accepted = false;
    g->ending = true;
    if (none) {
        guest_free(g);
    } else {
        kvf_fail(&taken, KVF_TRANSPORT,
                 "rdma: what the other side may read here was taken back");
        if (!g->c->down)
            g->c->own_will = why == NULL;
        kvf_rdma_conn_down(g->c, why != NULL ? why : &taken);
    }
    kvf_rdma_links_wake(r);
    return none;
}

void kvf_rdma_guest_leave(struct kvf_rdma_guest *g)
{
    struct kvf_rdma_conn *c = g->c;

    if (g->ending)
        return;
    /* Not in the middle of RTR and RTS; and of a WRITE a packet may still
     * come. */
    if (c == NULL || c->link == NULL || c->down || !c->joined ||
        writer_at(g->r, g->session) < g->r->n_writers ||
        (g->allowed && kvf_rdma_qp_access(g->r, &c->qp, 0) != 0)) {
        (void)kvf_rdma_guest_end(g, NULL);
        return;
    }
    c->guest = NULL;
    guest_free(g);
}

static void tell(struct kvf_rdma *r, void *session, uint64_t id, bool accepted,
                 const struct kvf_why *why)
{
    if (accepted)
        r->hooks->closed(r->hooks_arg, session, id, why);
    else
        r->hooks->refuse(r->hooks_arg, session, id, why);
}

void kvf_rdma_guest_fail(struct kvf_rdma_guest *g, const struct kvf_why *why)
{
    struct kvf_rdma *r = g->r;
    void *session = g->session;
    uint64_t id = g->ask.id;
    bool accepted = g->accepted;

    (void)kvf_rdma_guest_end(g, why);
    tell(r, session, id, accepted, why);
}

void kvf_rdma_guest_lost(struct kvf_rdma_guest *g, const struct kvf_why *why)
{
    if (g->ending)
        return;
    g->ending = true;
    kvf_rdma_job_stop(&g->job);
    tell(g->r, g->session, g->ask.id, g->accepted, why);
    g->accepted = false;
    kvf_rdma_links_wake(g->r);
}

/* ---- what came from the getter, and from its session -------------------- */

void kvf_rdma_on_getter_closed(struct kvf_transport *t, void *session,
                               uint64_t id)
{
    struct kvf_rdma *r = kvf_rdma_of(t);

    kvf_list_for_each_safe (n, &r->guests)
        if (kvf_rdma_guest_of(n)->session == session &&
            kvf_rdma_guest_of(n)->ask.id == id)
            kvf_rdma_guest_leave(kvf_rdma_guest_of(n));
}

bool kvf_rdma_expel(struct kvf_transport *t, void *session)
{
    struct kvf_rdma *r = kvf_rdma_of(t);

    kvf_list_for_each_safe (n, &r->guests) {
        struct kvf_rdma_guest *g = kvf_rdma_guest_of(n);

        if (g->session == session && !kvf_rdma_guest_end(g, NULL))
            g->expelled = true;
    }
    return !expelling(r, session);
}

bool kvf_rdma_accepted(const struct kvf_transport *t, const void *session)
{
    const struct kvf_rdma *r = kvf_rdma_const(t);

    kvf_list_for_each (n, &r->guests)
        if (kvf_rdma_guest_of(n)->session == session &&
            kvf_rdma_guest_of(n)->accepted)
            return true;
    return false;
}

void kvf_rdma_guests_fail(struct kvf_rdma *r, const struct kvf_why *why)
{
    kvf_list_for_each_safe (n, &r->guests)
        if (!kvf_rdma_guest_of(n)->ending)
            kvf_rdma_guest_fail(kvf_rdma_guest_of(n), why);
}

void kvf_rdma_guests_destroy(struct kvf_rdma *r)
{
    kvf_list_for_each_safe (n, &r->guests)
        guest_free(kvf_rdma_guest_of(n));
    free(r->writers);
    r->writers = NULL;
    r->n_writers = 0;
}

void kvf_rdma_guests_count(const struct kvf_rdma *r, struct kvf_rdma_gauges *g)
{
    kvf_list_for_each (n, &r->guests) {
        g->guests++;
        g->dying += kvf_rdma_guest_of(n)->ending;
    }
}
