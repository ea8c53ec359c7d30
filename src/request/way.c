/* Over which link the bytes of a grant move.
 *
 * Happy path: the first transport of the configuration that the grant allows
 * and the peer has. Failure modes: none is left; or only rdma is, and its link
 * (or the registration of the owner's memory) is still on its way: that is
 * waited for, bounded by the request's deadline and by the peer's death, and
 * counts as an attempt only when it fails. */
#include "request/retry.h"

#include "base/log.h"

static bool allowed(const struct kvf_grant *g, enum kvf_protocol proto)
{
    return (proto != KVF_PROTO_SHM || g->shm) &&
           (proto != KVF_PROTO_RDMA || g->rdma);
}

static struct kvf_link *
first_link(struct kvf_retry *r, const struct kvf_conf *c, struct kvf_peer *peer,
           const struct kvf_grant *g, unsigned caps, struct kvf_why *why)
{
    for (; r->proto_at < c->n_protocol; r->proto_at++) {
        enum kvf_protocol proto = c->protocol[r->proto_at];
        struct kvf_link *link =
            allowed(g, proto) ? kvf_peer_link(peer, proto, why) : NULL;

        if (link != NULL && (link->transport->ops->caps & caps) == caps)
            return link;
        if (link != NULL)
            kvf_fail(why, KVF_TRANSPORT, "%s moves no scattered blocks",
                     link->transport->ops->name);
    }
    return NULL;
}

static bool listed(const struct kvf_conf *c, enum kvf_protocol proto)
{
    for (unsigned i = 0; i < c->n_protocol; i++)
        if (c->protocol[i] == proto)
            return true;
    return false;
}

/* Nothing can be used now. Can rdma, soon? */
static enum kvf_way soon(struct kvf_retry *r, const struct kvf_conf *c,
                         struct kvf_peer *peer, struct kvf_grant *g)
{
    if (g->shm || !listed(c, KVF_PROTO_RDMA) || (!g->rdma && !g->rdma_soon))
        return KVF_WAY_NONE;
    switch (kvf_peer_rdma_state(peer)) {
    case KVF_PEER_RDMA_OFF:
        return KVF_WAY_NONE;
    case KVF_PEER_RDMA_UP:
        if (g->rdma)
            return KVF_WAY_NONE; /* it was tried, and is not its turn */
        /* Granted before the link was up, or before all memory there was
         * registered. Given back first: a key may have this one reader only. */
        kvf_grant_give_back(g);
        r->pause = KVF_PAUSE_OWNER;
        r->unready++;
        break;
    case KVF_PEER_RDMA_COMING:
        r->pause = KVF_PAUSE_LINK;
        break;
    }
    r->proto_at = 0;
    kvf_log(KVF_LOG_DEBUG, "KVF RDMA", "%s: a transfer waits for %s",
            kvf_peer_name(peer),
            r->pause == KVF_PAUSE_LINK ? "the link" : "the owner's memory");
    return KVF_WAY_WAIT;
}

enum kvf_way kvf_way_find(struct kvf_retry *r, const struct kvf_conf *c,
                          struct kvf_peer *peer, struct kvf_grant *g,
                          unsigned caps, struct kvf_link **link,
                          struct kvf_why *why)
{
    r->pause = KVF_PAUSE_BACKOFF;
    if (r->link_failed) {
        r->link_failed = false;
        *why = *kvf_peer_rdma_why(peer);
        return KVF_WAY_NONE;
    }
    kvf_fail(why, KVF_TRANSPORT, "no transport to %s is left",
             kvf_peer_name(peer));
    *link = first_link(r, c, peer, g, caps, why);
    if (*link == NULL)
        return soon(r, c, peer, g);
    r->unready = 0;
    r->transport = (*link)->transport->ops->name;
    return KVF_WAY_LINK;
}

static void on_link(struct kvf_link_wait *w, bool up)
{
    struct kvf_retry *r = kvf_container_of(w, struct kvf_retry, wait);

    r->link_failed = !up;
    r->again(r);
}

bool kvf_way_wait(struct kvf_retry *r, struct kvf_peer *peer)
{
    r->wait.fn = on_link;
    return kvf_peer_await_rdma(peer, &r->wait);
}

bool kvf_way_pause(struct kvf_retry *r, const struct kvf_conf *c,
                   struct kvf_rng *rng, struct kvf_peer *peer,
                   unsigned attempts, uint64_t *ns)
{
    *ns = 0;
    if (r->pause == KVF_PAUSE_LINK)
        return !kvf_way_wait(r, peer);
    *ns = kvf_retry_pause_ns(r, c, rng, attempts);
    return true;
}

const char *kvf_way_awaited(const struct kvf_retry *r)
{
    return kvf_list_empty(&r->wait.node)
               ? ""
               : ": the rdma link, the only way left, was still coming up";
}

void kvf_way_leave(struct kvf_retry *r)
{
    kvf_list_unlink(&r->wait.node);
}
