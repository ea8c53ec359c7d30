/* The table of other daemons: creation, teardown, what is told to all of them,
 * gauges. */
#include "peer/access.h"

#include <stdlib.h>
#include <string.h>

int kvf_peers_create(const struct kvf_peers_env *env, struct kvf_peers **out,
                     struct kvf_why *why)
{
    struct kvf_peers *ps = calloc(1, sizeof *ps);

    if (ps == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    ps->env = *env;
    ps->windows_ended = KVF_WINDOWS_FIRST;
    kvf_mpw_init(&ps->w);
    for (unsigned i = 0; i < KVF_STAGES; i++)
        kvf_edge_init(&ps->edge[i], i);
    kvf_list_init(&ps->pushed_over);
    ps->next_ask = 1;
    for (unsigned i = 0; i < env->conf->n_peers; i++) {
        const struct kvf_conf_peer *p = &env->conf->peer[i];
        int ret = kvf_directory_set(ps, &p->worker, p->host, p->port, why);

        if (ret < 0) {
            kvf_peers_destroy(ps);
            return ret;
        }
    }
    if (env->blocks != NULL)
        kvf_blocks_on_end(env->blocks, kvf_peers_layout_end, ps);
    *out = ps;
    return 0;
}

void kvf_peers_leave(struct kvf_peers *ps)
{
    struct kvf_guest *g, *next;

    if (ps->leaving)
        return;
    ps->leaving = true;
    HASH_ITER (hh, ps->guests, g, next)
        kvf_guest_bye(g, "shutting down");
}

unsigned kvf_peers_unheard(const struct kvf_peers *ps)
{
    unsigned n = 0;

    for (const struct kvf_guest *g = ps->guests; g != NULL; g = g->hh.next)
        n += g->up;
    return n;
}

void kvf_peers_destroy(struct kvf_peers *ps)
{
    struct kvf_place *pl, *pl_next;
    struct kvf_guest *g, *g_next;
    struct kvf_peer *p, *p_next;

    if (ps == NULL)
        return;
    ps->closing = true;
    kvf_windows_destroy(ps);
    if (ps->env.blocks != NULL)
        kvf_blocks_on_end(ps->env.blocks, NULL, NULL);
    HASH_ITER (hh, ps->guests, g, g_next)
        kvf_guest_free(g, "shutting down");
    HASH_ITER (hh, ps->peers, p, p_next)
        kvf_peer_free(p);
    kvf_together_free_all(ps);
    HASH_ITER (hh, ps->places, pl, pl_next) {
        HASH_DEL(ps->places, pl);
        free(pl);
    }
    kvf_rooms_destroy(ps); /* with their COMMIT, and without a guest */
    kvf_pushed_destroy(ps);
    kvf_memo_free(&ps->pushes);
    kvf_memo_free(&ps->notices);
    kvf_mpw_fini(&ps->w);
    free(ps);
}

struct kvf_edge *kvf_peers_edge(struct kvf_peers *ps, uint32_t from)
{
    return &ps->edge[from % KVF_STAGES];
}

void kvf_peers_head(const struct kvf_peers *ps, struct kvf_peer_msg *m,
                    enum kvf_peer_type type, const struct kvf_id *to)
{
    memset(m, 0, sizeof *m);
    m->head.version = KVF_PEER_VERSION;
    m->head.type = type;
    memcpy(m->head.cluster, ps->env.conf->cluster, sizeof m->head.cluster);
    m->head.worker = ps->env.conf->self;
    m->head.from = ps->env.incarnation;
    if (to != NULL)
        m->head.to = *to;
}

uint64_t kvf_peers_silence_ns(const struct kvf_peers *ps)
{
    return ps->env.conf->peer_timeout_ms * KVF_NS_PER_MS / 16 * 15;
}

/* An owner that asks for more pings than its configuration may is not
 * believed. */
#define TIMEOUT_MIN_MS 100

uint64_t kvf_peer_ping_ns(const struct kvf_peer *p)
{
    uint64_t ms = p->ps->env.conf->peer_timeout_ms;

    if (p->timeout_ms >= TIMEOUT_MIN_MS && p->timeout_ms < ms)
        ms = p->timeout_ms;
    return ms * KVF_NS_PER_MS / 4;
}

int kvf_peers_check_head(const struct kvf_peers *ps,
                         const struct kvf_peer_head *h, struct kvf_why *why)
{
    if (h->version != KVF_PEER_VERSION)
        return kvf_fail(why, KVF_MISMATCH,
                        "peer protocol version %u, ours is %u: run the same "
                        "kvferry on both sides",
                        h->version, KVF_PEER_VERSION);
    if (strcmp(h->cluster, ps->env.conf->cluster) != 0)
        return kvf_fail(why, KVF_MISMATCH,
                        "cluster \"%s\", ours is \"%s\": set [worker] cluster "
                        "alike",
                        h->cluster, ps->env.conf->cluster);
    return 0;
}

/* The owners of the old views are not known any more: those that the
 * configuration names are dialled, so that their HELLO carries the notice. */
static void dial_likely_owners(struct kvf_peers *ps)
{
    struct kvf_worker w;
    char host[KVF_CONF_TEXT];
    struct kvf_peer *p;
    uint16_t port;

    for (const struct kvf_place *pl = ps->places; pl != NULL; pl = pl->hh.next)
        if (!kvf_worker_equal(&pl->worker, &ps->env.conf->self))
            kvf_peer_at(ps, pl->host, pl->port, &p, NULL);
    if (kvf_directory_map(ps, false, 0, false, 0, false, 0, &w, NULL) == 0 &&
        kvf_directory_find(ps, &w, host, sizeof host, &port, NULL) == 0)
        kvf_peer_at(ps, host, port, &p, NULL);
}

void kvf_peers_unmapped(struct kvf_peers *ps, const struct kvf_peer_gone *gone)
{
    struct kvf_peer *p, *next;
    struct kvf_peer_msg m;

    kvf_guest_unmapped(ps, gone);
    /* Owners that are not connected now learn it from our next HELLO. */
    dial_likely_owners(ps);
    if (ps->n_gone == KVF_GONE_MAX)
        memmove(ps->gone, ps->gone + 1, --ps->n_gone * sizeof *ps->gone);
    ps->gone[ps->n_gone++] = *gone;
    HASH_ITER (hh, ps->peers, p, next) {
        if (p->state != KVF_PEER_UP)
            continue;
        kvf_peers_head(ps, &m, KVF_PEER_UNMAPPED, &p->incarnation);
        m.u.unmapped = *gone;
        kvf_peer_send(p, &m);
    }
}

void kvf_peers_drain(struct kvf_peers *ps)
{
    ps->draining = true;
}

void kvf_peers_configure(struct kvf_peers *ps)
{
    struct kvf_sched *s = ps->env.sched;
    struct kvf_peer *p, *next_peer;
    struct kvf_guest *g, *next_guest;

    HASH_ITER (hh, ps->peers, p, next_peer) {
        if (p->state == KVF_PEER_UP)
            kvf_timer_set(s, &p->tick, s->now_ns);
    }
    HASH_ITER (hh, ps->guests, g, next_guest) {
        if (g->up)
            kvf_timer_set(s, &g->tick, s->now_ns);
    }
}

void kvf_peers_gauges(const struct kvf_peers *ps, struct kvf_peers_gauges *out)
{
    struct kvf_peers_gauges g = {0};
    const struct kvf_peer *p;
    const struct kvf_guest *guest;

    for (p = ps->peers; p != NULL; p = p->hh.next) {
        g.peers++;
        g.peers_up += p->state == KVF_PEER_UP;
        g.asks += HASH_COUNT(p->asks);
        g.grants += HASH_COUNT(p->grants);
        g.unacked += HASH_COUNT(p->ends);
    }
    for (guest = ps->guests; guest != NULL; guest = guest->hh.next) {
        g.guests++;
        g.guests_up += guest->up;
        g.guest_asks += HASH_COUNT(guest->asks);
        kvf_list_for_each (n, &guest->claims)
            g.guest_claims++;
    }
    g.windows = HASH_COUNT(ps->windows);
    g.accesses = HASH_COUNT(ps->accesses);
    g.rooms = kvf_rooms_count(ps);
    kvf_retired_gauges(ps, &g);
    *out = g;
}

static const char *peer_state_name(enum kvf_peer_state s)
{
    static const char *const names[] = {"dialing", "up", "down", "refused"};

    return names[s];
}

void kvf_peers_list(const struct kvf_peers *ps,
                    void (*fn)(void *arg, const struct kvf_peer_info *info),
                    void *arg)
{
    uint64_t now = ps->env.sched->now_ns;

    for (const struct kvf_peer *p = ps->peers; p != NULL; p = p->hh.next) {
        struct kvf_peer_info i = {
            .name = p->name,
            .host = p->host,
            .port = p->port,
            .state = peer_state_name(p->state),
            .transport = p->shm_ok                      ? "shm"
                         : p->rdma.state == KVF_LINK_UP ? "rdma"
                         : p->has_tcp                   ? "tcp"
                                                        : "none",
            .why = p->state == KVF_PEER_UP ? p->shm_why : p->why.text,
            .asks = HASH_COUNT(p->asks),
            .claims = HASH_COUNT(p->grants),
            .silent_ms = (now - p->last_rx_ns) / KVF_NS_PER_MS};

        fn(arg, &i);
    }
    for (const struct kvf_guest *g = ps->guests; g != NULL; g = g->hh.next) {
        struct kvf_peer_info i = {.guest = true,
                                  .name = g->name,
                                  .host = "",
                                  .state = g->up ? "up" : "down",
                                  .transport = g->shm_ok ? "shm" : "tcp",
                                  .why = g->shm_why,
                                  .asks = HASH_COUNT(g->asks),
                                  .silent_ms =
                                      (now - g->last_rx_ns) / KVF_NS_PER_MS};

        kvf_list_for_each (n, &g->claims)
            i.claims++;
        fn(arg, &i);
    }
}
