/* The daemon's verbs device: opened, the pool registered, regions of engines
 * registered as they come.
 *
 * Failure modes: no device (auto goes on with tcp and says so once; a
 * configuration that names rdma does not start); a device that refuses the pool
 * (the same, with the advice); a device that breaks later (logged; it is opened
 * again when it can be). */
#include "daemon/server.h"

#include "transport/rdma/verbs.h"

#include <inttypes.h>
#include <stdio.h>

/* Until a link is up: queue pairs on both sides, and the first READ, which a
 * device repeats for up to some seconds. */
#define CONNECT_MS 5000

static void fill_conf(const struct kvf_server *s, struct kvf_rdma_conf *c)
{
    const struct kvf_conf *k = s->conf;

    *c = (struct kvf_rdma_conf){
        .gid_index = k->rdma_gid_index,
        .mtu = k->rdma_mtu,
        .timeout = k->rdma_timeout,
        .retry = k->rdma_retry,
        .rnr_retry = k->rdma_rnr_retry,
        .chunk = k->rdma_chunk,
        .burst = k->rdma_burst,
        .depth = k->rdma_depth,
        .queue = k->rdma_queue,
        .signal_every = k->rdma_signal_every,
        .spin_us = k->rdma_spin_us,
        .connect_ms = CONNECT_MS,
        .stall_ms = k->peer_timeout_ms,
        .self = s->incarnation,
    };
    snprintf(c->device, sizeof c->device, "%s", k->device_name);
    snprintf(c->prefer, sizeof c->prefer, "%s", s->bind_host);
}

static void warn_budget(const struct kvf_server *s,
                        const struct kvf_rdma_conf *c)
{
    uint64_t ms = kvf_rdma_budget_ns(c) / KVF_NS_PER_MS;
    uint64_t get = s->conf->get_sub_timeout_ms;

    if (get != 0 && get < ms)
        kvf_log(KVF_LOG_WARN, "RDMA",
                "[rdma] timeout and retry let the device try for %" PRIu64
                " ms, longer than get_sub_timeout_ms = %" PRIu64
                ": a get may fail before it can change to tcp",
                ms, get);
}

static void region_added(void *arg, struct kvf_region *r)
{
    struct kvf_server *s = arg;

    r->registered = kvf_rdma_memory_add(s->rdma, r->map);
}

static void region_gone(void *arg, struct kvf_region *r)
{
    (void)arg;
    kvf_rdma_memory_drop(r->registered);
    r->registered = NULL;
}

static void device_changed(void *arg, bool up, const char *text)
{
    struct kvf_server *s = arg;

    if (up)
        kvf_log(KVF_LOG_INFO, "RDMA", "device=%s is back", text);
    else
        kvf_log(KVF_LOG_WARN, "RDMA", "%s", text);
    if (up && s->peers != NULL)
        kvf_peers_rdma_renewed(s->peers);
}

static int build(struct kvf_server *s, struct kvf_why *why)
{
    struct kvf_rdma_conf c;
    int rc;

    fill_conf(s, &c);
    s->rdma_hooks = kvf_peers_rdma_hooks;
    s->rdma_hooks.device = device_changed;
    rc = kvf_rdma_create(s->reactor, &kvf_verbs_real, &c, &s->rdma_hooks, s,
                         &s->stats, &s->rdma, why);
    if (rc != 0)
        return rc;
    rc = kvf_rdma_add_pool(s->rdma, s->segment.base, s->segment.size, why);
    if (rc != 0) {
        kvf_transport_destroy(s->rdma);
        s->rdma = NULL;
        return rc;
    }
    kvf_regions_on_change(s->buffers, region_added, region_gone, s);
    kvf_log(KVF_LOG_INFO, "RDMA", "device=%s pool=%" PRIu64,
            kvf_rdma_describe(s->rdma), s->segment.size);
    warn_budget(s, &c);
    return 0;
}

int kvf_server_build_rdma(struct kvf_server *s, struct kvf_why *why)
{
    int rc = build(s, why);

    if (rc == 0)
        return 0;
    if (!s->conf->protocol_auto) {
        kvf_fail_prefix(why, "[connector] protocol names rdma");
        return rc;
    }
    /* Where there is no such device nobody has to be told twice. */
    kvf_log(rc == -(int)KVF_NOT_FOUND ? KVF_LOG_INFO : KVF_LOG_WARN, "RDMA",
            "off: %s", why->text);
    return 0;
}

void kvf_server_configure_rdma(struct kvf_server *s)
{
    struct kvf_rdma_conf c;

    if (s->rdma == NULL)
        return;
    fill_conf(s, &c);
    kvf_rdma_configure(s->rdma, &c);
}
