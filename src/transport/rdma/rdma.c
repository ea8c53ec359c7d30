/* The rdma transport as a whole: creation, what the vtable asks, teardown in
 * exact reverse. */
#include "transport/rdma/rdma_priv.h"

#include <stdlib.h>
#include <string.h>

static uint64_t chunk(const struct kvf_link *link)
{
    return kvf_rdma_const(link->transport)->conf.chunk;
}

static unsigned depth(const struct kvf_link *link, uint64_t size)
{
    (void)size;
    return kvf_rdma_const(link->transport)->conf.depth;
}

static void destroy(struct kvf_transport *t)
{
    struct kvf_rdma *r = kvf_rdma_of(t);

    kvf_rdma_heal_end(r);
    kvf_rdma_conns_destroy(r);
    kvf_rdma_links_destroy(r);
    kvf_rdma_guests_destroy(r);
    kvf_transport_fini(t);
    kvf_slice_stop(&r->slice);
    kvf_rdma_memory_close(r);
    kvf_rdma_device_close(r);
    free(r);
}

static const struct kvf_transport_ops rdma_ops = {
    .name = "rdma",
    .caps = KVF_CAP_READ | KVF_CAP_WRITE | KVF_CAP_RUNS,
    .destroy = destroy,
    .link_open = kvf_rdma_link_open,
    .post = kvf_rdma_post,
    .cancel = kvf_rdma_cancel,
    .link_close = kvf_rdma_link_close,
    .chunk = chunk,
    .depth = depth,
};

void kvf_rdma_configure(struct kvf_transport *t,
                        const struct kvf_rdma_conf *conf)
{
    struct kvf_rdma_conf *c = &kvf_rdma_of(t)->conf;

    *c = *conf;
    if (c->chunk == 0)
        c->chunk = 1ull << 20;
    if (c->chunk > 1ull << 30)
        c->chunk = 1ull << 30;
    if (c->burst < 4096)
        c->burst = 4096;
    kvf_rdma_of(t)->burst =
        c->burst < KVF_RDMA_BURST_FIRST ? c->burst : KVF_RDMA_BURST_FIRST;
    kvf_rdma_of(t)->burst_known = false;
    if (c->depth == 0)
        c->depth = 1;
    if (c->signal_every == 0)
        c->signal_every = 1;
    /* Every op in flight must be able to come back before the queue is full. */
    if (c->signal_every > c->depth)
        c->signal_every = c->depth;
}

uint64_t kvf_rdma_budget_ns(const struct kvf_rdma_conf *conf)
{
    return (4096ull << conf->timeout) * (conf->retry + 1);
}

const char *kvf_rdma_describe(const struct kvf_transport *t)
{
    return kvf_rdma_const(t)->text;
}

int kvf_rdma_create(struct kvf_reactor *reactor, const struct kvf_verbs *v,
                    const struct kvf_rdma_conf *conf,
                    const struct kvf_rdma_hooks *hooks, void *hooks_arg,
                    struct kvf_stats *stats, struct kvf_transport **out,
                    struct kvf_why *why)
{
    struct kvf_rdma *r = calloc(1, sizeof *r);
    int rc;

    if (r == NULL)
        return kvf_fail(why, KVF_NO_SPACE, "no memory for a transport");
    kvf_transport_init(&r->t, &rdma_ops, kvf_reactor_sched(reactor), stats);
    r->reactor = reactor;
    r->v = v;
    r->hooks = hooks;
    r->hooks_arg = hooks_arg;
    r->next_id = r->next_gen = 1;
    kvf_list_init(&r->memories);
    kvf_list_init(&r->jobs);
    kvf_list_init(&r->links);
    kvf_list_init(&r->guests);
    kvf_list_init(&r->conns);
    kvf_slice_init(&r->slice, kvf_rdma_jobs_run);
    kvf_rdma_heal_init(r);
    kvf_rdma_configure(&r->t, conf);
    rc = kvf_rdma_device_open(r, why);
    if (rc == 0)
        rc = kvf_rdma_scratch_open(r, why);
    if (rc != 0) {
        destroy(&r->t);
        return rc;
    }
    *out = &r->t;
    return 0;
}

void kvf_rdma_gauges(const struct kvf_transport *t, struct kvf_rdma_gauges *g)
{
    const struct kvf_rdma *r = kvf_rdma_const(t);

    *g = (struct kvf_rdma_gauges){.qps = r->n_qps,
                                  .cqs = r->n_cqs,
                                  .mrs = r->n_mrs,
                                  .mr_bytes = r->mr_bytes,
                                  .port_up = r->port_up,
                                  .fatal = r->fatal};
    kvf_rdma_guests_count(r, g);
    kvf_list_for_each (n, &r->links) {
        const struct kvf_rdma_link *l =
            kvf_container_of(n, struct kvf_rdma_link, node);

        g->links++;
        g->links_up += l->state == KVF_RDMA_UP;
        g->dying += l->state == KVF_RDMA_DYING;
        g->wrs_in_flight += l->posted - l->done;
    }
}
