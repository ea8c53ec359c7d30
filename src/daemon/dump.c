/* What SIGUSR1 writes into the log: who is connected, and how full everything
 * is. */
#include "daemon/engine.h"

#include <inttypes.h>

static void dump_peer(void *arg, const struct kvf_peer_info *p)
{
    (void)arg;
    kvf_log(KVF_LOG_INFO, "DUMP",
            "peer=%s guest=%d addr=%s:%u state=%s transport=%s asks=%" PRIu64
            " claims=%" PRIu64 " silent_ms=%" PRIu64 " why=%s",
            p->name, p->guest, p->host, p->port, p->state,
            p->transport != NULL ? p->transport : "-", p->asks, p->claims,
            p->silent_ms, p->why != NULL ? p->why : "");
}

static void dump_gauges(struct kvf_server *s)
{
    struct kvf_buffer_gauges k;
    struct kvf_store_gauges p;
    struct kvf_gets_gauges g;
    struct kvf_pulls_gauges u;

    kvf_buffers_gauges(s->buffers, &k);
    kvf_store_gauges(s->store, &p);
    kvf_gets_gauges(s->gets, &g);
    kvf_log(KVF_LOG_INFO, "DUMP",
            "pool free=%" PRIu64 " filling=%" PRIu64 " published=%" PRIu64
            " claimed=%" PRIu64 " draining=%" PRIu64 " receiving=%" PRIu64
            " held=%" PRIu64,
            k.free, k.filling, k.published, k.claimed, k.draining, k.receiving,
            k.held);
    kvf_log(KVF_LOG_INFO, "DUMP",
            "keys=%" PRIu64 " live=%" PRIu64 " tombstones=%" PRIu64
            " parked=%" PRIu64 " claims=%" PRIu64
            " gets=%u waiting=%u pulling=%u views=%u",
            p.keys, p.live, p.tombstones, p.parked, p.claims, g.running,
            g.waiting, g.pulling, g.views);
    kvf_store_gauges(kvf_blocks_store(s->blocks), &p);
    kvf_pulls_gauges(s->pulls, &u);
    kvf_log(KVF_LOG_INFO, "DUMP",
            "layouts=%u published=%" PRIu64 " parked=%" PRIu64
            " claims=%" PRIu64 " pulls=%u waiting=%u moving=%u draining=%u",
            kvf_layout_count(s->blocks), p.live, p.parked, p.claims, u.running,
            u.waiting, u.moving, u.draining);
}

void kvf_server_dump(struct kvf_server *s)
{
    struct kvf_session *ss, *next_session;
    struct kvf_client *c, *next_client;

    kvf_log(KVF_LOG_INFO, "DUMP",
            "clients=%u sessions=%u pending=%u replies_waiting=%zu fds=%u",
            s->n_clients, s->n_sessions, s->n_pending,
            kvf_zsock_queued(s->engine), kvf_count_fds());
    HASH_ITER (hh, s->sessions_by_id, ss, next_session) {
        kvf_log(KVF_LOG_INFO, "DUMP",
                "session=%" PRIu64 " pid=%ld memory=%d pending=%u client=%s",
                ss->serial, (long)ss->pid, ss->can_map, ss->n_pending,
                ss->client_name);
    }
    HASH_ITER (hh, s->clients_by_rid, c, next_client) {
        if (c->outstanding > 0)
            kvf_log(KVF_LOG_INFO, "DUMP",
                    "client=%" PRIu64 " pid=%ld outstanding=%u", c->serial,
                    (long)c->pid, c->outstanding);
    }
    kvf_peers_list(s->peers, dump_peer, NULL);
    dump_gauges(s);
}
