/* What we send to an owner.
 *
 * Happy path: straight into the channel. Failure modes: no room there: messages
 * wait in order until it is writable; HELLO and PING, which are repeated, do
 * not. No memory: the caller hears of it. */
#include "peer/peers_private.h"

#include <stdlib.h>
#include <string.h>

void kvf_peer_flush_queue(struct kvf_peer *p)
{
    const struct kvf_channel *ch = &p->ps->env.channel;
    struct kvf_list *n;

    while (p->dial != NULL && (n = kvf_list_first(&p->outq)) != NULL) {
        struct kvf_queued *q = kvf_container_of(n, struct kvf_queued, node);

        if (ch->ops->send(ch->ctx, p->dial, q->data, q->len) < 0)
            return;
        kvf_list_unlink(n);
        free(q);
    }
}

void kvf_peer_drop_queue(struct kvf_peer *p)
{
    struct kvf_list *n;

    while ((n = kvf_list_pop(&p->outq)) != NULL)
        free(kvf_container_of(n, struct kvf_queued, node));
}

int kvf_peer_send(struct kvf_peer *p, struct kvf_peer_msg *m)
{
    const struct kvf_channel *ch = &p->ps->env.channel;
    struct kvf_mpw *w = &p->ps->w;
    struct kvf_queued *q;

    if (kvf_peer_encode(w, m) < 0)
        return -(int)KVF_NO_SPACE;
    if (p->dial != NULL && kvf_list_empty(&p->outq) &&
        ch->ops->send(ch->ctx, p->dial, w->buf.data, w->buf.size) == 0)
        return 0;
    q = malloc(sizeof *q + w->buf.size);
    if (q == NULL)
        return -(int)KVF_NO_SPACE;
    kvf_list_init(&q->node);
    q->len = w->buf.size;
    memcpy(q->data, w->buf.data, w->buf.size);
    kvf_list_push_back(&p->outq, &q->node);
    return 0;
}

void kvf_peer_send_hello(struct kvf_peer *p)
{
    const struct kvf_channel *ch = &p->ps->env.channel;
    struct kvf_peers *ps = p->ps;
    struct kvf_peer_msg m;
    uint64_t *live;
    size_t n = HASH_COUNT(p->grants) + HASH_COUNT(p->ends);

    live = malloc((n + 1) * sizeof *live);
    if (live == NULL)
        return; /* the tick tries again */
    kvf_peers_head(ps, &m, KVF_PEER_HELLO, p->known ? &p->incarnation : NULL);
    m.u.hello.pool = ps->env.pool;
    m.u.hello.peer_timeout_ms = ps->env.conf->peer_timeout_ms;
    m.u.hello.live = live;
    m.u.hello.n_live = kvf_peer_live_claims(p, live);
    m.u.hello.gone = ps->gone;
    m.u.hello.n_gone = ps->n_gone;
    m.u.hello.rdma = ps->env.rdma != NULL;
    m.u.hello.link = p->link;
    if (p->dial != NULL && kvf_peer_encode(&ps->w, &m) == 0 &&
        ch->ops->send(ch->ctx, p->dial, ps->w.buf.data, ps->w.buf.size) == 0)
        p->last_hello_ns = ps->env.sched->now_ns;
    free(live);
}

void kvf_peer_send_ping(struct kvf_peer *p)
{
    struct kvf_peer_msg m;

    if (!kvf_list_empty(&p->outq))
        return;
    kvf_peers_head(p->ps, &m, KVF_PEER_PING, &p->incarnation);
    m.u.ping.seq = ++p->ping_seq;
    p->pinged_ask = p->ps->next_ask;
    kvf_peer_send(p, &m);
}
