/* The owners that we know, by address: found or made, evicted, asked about.
 *
 * Happy path: kvf_peer_at makes one and peer.c dials it; users join and leave.
 *
 * Failure modes: too many (one that nobody uses goes, else BUSY); no memory; a
 * link that went down is opened again when somebody next asks for it. */
#include "peer/peers_private.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void kvf_peer_bye(struct kvf_peer *p, const char *text)
{
    struct kvf_peer_msg m;

    if (p->state != KVF_PEER_UP || !kvf_list_empty(&p->outq))
        return;
    kvf_peers_head(p->ps, &m, KVF_PEER_BYE, &p->incarnation);
    snprintf(m.u.bye.text, sizeof m.u.bye.text, "%s", text);
    kvf_peer_send(p, &m);
}

void kvf_peer_free(struct kvf_peer *p)
{
    struct kvf_peers *ps = p->ps;
    struct kvf_why why;

    kvf_fail(&why, KVF_SHUTTING_DOWN, "this daemon is shutting down");
    kvf_peer_fail_asks(p, &why);
    kvf_peer_lose_grants(p, true, &why);
    kvf_peer_drop_ends(p);
    kvf_peer_drop_watches(p);
    kvf_peer_bye(p, "shutting down");
    kvf_peer_end(p);
    kvf_peer_await_end(p);
    kvf_list_for_each_safe (n, &p->users) {
        struct kvf_peer_user *u =
            kvf_container_of(n, struct kvf_peer_user, node);

        kvf_list_unlink(n);
        u->peer = NULL;
    }
    HASH_DEL(ps->peers, p);
    free(p);
}

/* Room for one more: a peer that nobody uses goes. */
static bool evict_one(struct kvf_peers *ps)
{
    struct kvf_peer *p, *next;

    HASH_ITER (hh, ps->peers, p, next) {
        if (kvf_list_empty(&p->users) && p->asks == NULL && p->grants == NULL &&
            p->ends == NULL && kvf_list_empty(&p->watches)) {
            kvf_peer_free(p);
            return true;
        }
    }
    return false;
}

static void on_link_down(struct kvf_link *link, const struct kvf_why *why)
{
    /* Transfers on it end by themselves; the next one opens it again. */
    (void)why;
    kvf_link_close(link);
}

int kvf_peer_at(struct kvf_peers *ps, const char *host, uint16_t port,
                struct kvf_peer **out, struct kvf_why *why)
{
    char addr[KVF_ADDR_TEXT];
    struct kvf_peer *p;

    if (strlen(host) >= KVF_CONF_TEXT)
        return kvf_fail(why, KVF_INVALID, "host name is too long");
    snprintf(addr, sizeof addr, "%s:%u", host, port);
    HASH_FIND_STR(ps->peers, addr, p);
    if (p != NULL) {
        *out = p;
        return 0;
    }
    if (HASH_COUNT(ps->peers) >= ps->env.conf->max_peers && !evict_one(ps))
        return kvf_fail(why, KVF_BUSY, "%u peers are in use already",
                        ps->env.conf->max_peers);
    p = calloc(1, sizeof *p);
    if (p == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    p->ps = ps;
    p->link = ps->next_link++;
    memcpy(p->addr, addr, sizeof p->addr);
    snprintf(p->host, sizeof p->host, "%s", host);
    p->port = port;
    kvf_fail(&p->why, KVF_PEER_UNREACHABLE, "no answer from %s so far", addr);
    kvf_list_init(&p->users);
    kvf_list_init(&p->watches);
    kvf_list_init(&p->outq);
    p->tcp.on_down = on_link_down;
    p->shm.on_down = on_link_down;
    kvf_peer_rdma_init(p);
    p->down_since_ns = p->last_rx_ns = ps->env.sched->now_ns;
    HASH_ADD_STR(ps->peers, addr, p);
    kvf_peer_begin(p);
    *out = p;
    return 0;
}

bool kvf_peer_is_self(const struct kvf_peers *ps, const char *host,
                      uint16_t port)
{
    return port == ps->env.port && strcmp(host, ps->env.host) == 0;
}

void kvf_peer_join(struct kvf_peer *p, struct kvf_peer_user *u)
{
    u->peer = p;
    kvf_list_push_back(&p->users, &u->node);
}

void kvf_peer_leave(struct kvf_peer_user *u)
{
    if (u->peer == NULL)
        return;
    kvf_list_unlink(&u->node);
    u->peer = NULL;
}

enum kvf_peer_state kvf_peer_state(const struct kvf_peer *p)
{
    return p->state;
}

bool kvf_peer_was_up(const struct kvf_peer *p)
{
    return p->was_up;
}

const struct kvf_worker *kvf_peer_worker(const struct kvf_peer *p)
{
    return p->known ? &p->worker : NULL;
}

int kvf_peer_check_worker(const struct kvf_peer *p,
                          const struct kvf_worker *expect, struct kvf_why *why)
{
    if (!p->known || kvf_worker_equal(&p->worker, expect))
        return 0;
    return kvf_fail(
        why, KVF_MISMATCH,
        "the daemon at %s is worker " KVF_WORKER_FMT ", not " KVF_WORKER_FMT
        ": check the port rule, [peer] sections and op `peer`",
        p->addr, KVF_WORKER_ARG(&p->worker), KVF_WORKER_ARG(expect));
}

const struct kvf_id *kvf_peer_incarnation(const struct kvf_peer *p)
{
    return p->known ? &p->incarnation : NULL;
}

const char *kvf_peer_name(const struct kvf_peer *p)
{
    return p->name;
}

const struct kvf_why *kvf_peer_why(const struct kvf_peer *p)
{
    return &p->why;
}

uint64_t kvf_peer_heard_ns(const struct kvf_peer *p)
{
    return p->last_rx_ns;
}

bool kvf_peer_has_shm(const struct kvf_peer *p)
{
    return p->shm_ok;
}

const char *kvf_peer_shm_why(const struct kvf_peer *p)
{
    return p->shm_why;
}

struct kvf_link *kvf_peer_link(struct kvf_peer *p, enum kvf_protocol proto,
                               struct kvf_why *why)
{
    int ret;

    if (proto == KVF_PROTO_SHM && p->shm_ok)
        return &p->shm;
    if (proto == KVF_PROTO_SHM) {
        kvf_fail(why, KVF_UNSUPPORTED, "shm to %s: %s", p->name, p->shm_why);
        return NULL;
    }
    if (proto == KVF_PROTO_RDMA)
        return kvf_peer_rdma_link(p, why);
    if (proto != KVF_PROTO_TCP || !p->has_tcp || p->state != KVF_PEER_UP) {
        kvf_fail(why, KVF_TRANSPORT, "%s offers no such transport now",
                 p->name);
        return NULL;
    }
    if (p->tcp.state == KVF_LINK_IDLE || p->tcp.state == KVF_LINK_DOWN) {
        kvf_link_close(&p->tcp);
        ret = kvf_link_open(p->ps->env.tcp, &p->tcp, &p->tcp_addr, why);
        if (ret < 0)
            return NULL;
    }
    return &p->tcp;
}
