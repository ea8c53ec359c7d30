/* Asynchronous events of the device: what each means for links and guests.
 *
 * Happy path: none come. Failure modes: port down or another GID (links and
 * guests end, the next try takes what is there then), a QP or completion queue
 * that failed (its connection ends), device fatal (all end; heal.c). */
#include "transport/rdma/rdma_priv.h"

#include <string.h>

static void abort_links(struct kvf_rdma *r, const struct kvf_why *why)
{
    kvf_list_for_each_safe (n, &r->links)
        kvf_rdma_link_abort(kvf_container_of(n, struct kvf_rdma_link, node),
                            why);
}

static void port_event(struct kvf_rdma *r, const char *what)
{
    struct kvf_why why;
    struct kvf_rdma_gid before[KVF_RDMA_GIDS];
    unsigned n_before = r->n_gid;
    uint16_t lid = r->port_attr.lid;
    bool was_up = r->port_up;

    memcpy(before, r->gid, sizeof before);
    if (kvf_rdma_device_refresh(r, &why) != 0) {
        kvf_fail_prefix(&why, "%s", what);
        abort_links(r, &why);
        return;
    }
    if (was_up && n_before == r->n_gid && lid == r->port_attr.lid &&
        memcmp(before, r->gid, n_before * sizeof before[0]) == 0)
        return;
    if (!was_up)
        return; /* links are gone already */
    kvf_fail(&why, KVF_TRANSPORT, "%s:%u: %s", r->name, r->port, what);
    abort_links(r, &why);
    kvf_rdma_guests_fail(r, &why);
}

static void device_fatal(struct kvf_rdma *r)
{
    struct kvf_why why;

    kvf_rdma_heal_begin(r);
    r->fatal = true;
    r->port_up = false;
    kvf_fail(&why, KVF_TRANSPORT,
             "%s: the device reported a fatal error: rdma is off until it can "
             "be opened again",
             r->name);
    abort_links(r, &why);
    kvf_rdma_guests_fail(r, &why);
    if (r->hooks->device != NULL)
        r->hooks->device(r->hooks_arg, false, why.text);
}

static void conn_fatal(struct kvf_rdma *r, struct kvf_rdma_conn *c,
                       const char *what)
{
    struct kvf_why why;

    kvf_fail(&why, KVF_TRANSPORT, "%s: %s", r->name, what);
    if (c != NULL)
        kvf_rdma_conn_down(c, &why);
}

/* What an event is about, and so what it is told with. */
enum about { NOTHING, DEVICE, PORT, QP, CQ };

struct kind {
    enum ibv_event_type type;
    enum about about;
    const char *what; /* QP, CQ */
};

/* The rest (COMM_EST, SQ_DRAINED, PATH_MIG, ...) ask for nothing. */
static const struct kind kinds[] = {
    {IBV_EVENT_DEVICE_FATAL, DEVICE, NULL},
    {IBV_EVENT_PORT_ERR, PORT, NULL},
    {IBV_EVENT_PORT_ACTIVE, PORT, NULL},
    {IBV_EVENT_LID_CHANGE, PORT, NULL},
    {IBV_EVENT_PKEY_CHANGE, PORT, NULL},
    {IBV_EVENT_GID_CHANGE, PORT, NULL},
    {IBV_EVENT_QP_FATAL, QP, "the QP failed"},
    {IBV_EVENT_QP_REQ_ERR, QP, "the QP was asked for something invalid"},
    {IBV_EVENT_QP_ACCESS_ERR, QP,
     "the other side reached for memory that is not its"},
    {IBV_EVENT_PATH_MIG_ERR, QP, "path migration failed"},
    {IBV_EVENT_CQ_ERR, CQ, "the completion queue failed"},
};

static struct kind kind_of(enum ibv_event_type type)
{
    for (unsigned i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (kinds[i].type == type)
            return kinds[i];
    return (struct kind){.type = type, .about = NOTHING};
}

static void async_drain(struct kvf_source *src, unsigned ready, unsigned budget)
{
    struct kvf_rdma *r = kvf_container_of(src, struct kvf_rdma, async_src);
    struct ibv_async_event ev;

    (void)ready;
    for (unsigned i = 0; i < budget; i++) {
        struct kvf_rdma_conn *c = NULL;
        struct kind k;
        bool ours;

        if (r->v->get_async_event(r->ctx, &ev) != 0)
            return;
        r->t.stats->rdma_events++;
        k = kind_of(ev.event_type);
        if (k.about == QP)
            c = ev.element.qp->qp_context;
        else if (k.about == CQ)
            c = ev.element.cq->cq_context;
        ours = k.about == PORT && ev.element.port_num == r->port;
        /* First: an object is not destroyed before its events are
         * acknowledged, and acting may destroy it. */
        r->v->ack_async_event(&ev);
        if (k.about == DEVICE)
            device_fatal(r);
        else if (ours)
            port_event(r, ibv_event_type_str(k.type));
        else if (k.about == QP || k.about == CQ)
            conn_fatal(r, c, k.what);
    }
    kvf_source_kick(src);
}

const struct kvf_source_ops kvf_rdma_async_ops = {.drain = async_drain};
