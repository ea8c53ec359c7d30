/* Lookups at an owner: ASK, and the DENY that may answer it. */
#include "peer/peers_private.h"

#include <string.h>

struct kvf_ask *kvf_peer_find_ask(struct kvf_peer *p, uint64_t id)
{
    struct kvf_ask *a;

    HASH_FIND(hh, p->asks, &id, sizeof id, a);
    return a;
}

void kvf_peer_ask_over(struct kvf_ask *a)
{
    a->active = false;
    HASH_DEL(a->peer->asks, a);
}

int kvf_peer_ask(struct kvf_peer *p, struct kvf_ask *a,
                 const struct kvf_peer_ask *body, struct kvf_why *why)
{
    struct kvf_peers *ps = p->ps;
    struct kvf_peer_msg m;
    int ret;

    if (p->state != KVF_PEER_UP)
        return kvf_fail(why, KVF_PEER_UNREACHABLE, "%s is not up: %s", p->name,
                        p->why.text);
    kvf_peers_head(ps, &m, KVF_PEER_ASK, &p->incarnation);
    m.u.ask = *body;
    m.u.ask.ask = ps->next_ask;
    /* While the session is renewed nothing may be asked: a claim granted in
     * between would be missing in a HELLO that is sent again. */
    ret = p->renewing ? 0 : kvf_peer_send(p, &m);
    if (ret < 0)
        return kvf_fail(why, KVF_NO_SPACE, "out of memory for a lookup");
    a->id = ps->next_ask++;
    a->peer = p;
    a->active = true;
    HASH_ADD(hh, p->asks, id, sizeof a->id, a);
    return 0;
}

void kvf_peer_unask(struct kvf_ask *a)
{
    struct kvf_peer_msg m;

    if (!a->active)
        return;
    kvf_peer_ask_over(a);
    if (a->peer->state != KVF_PEER_UP)
        return;
    kvf_peers_head(a->peer->ps, &m, KVF_PEER_UNASK, &a->peer->incarnation);
    m.u.unask.ask = a->id;
    kvf_peer_send(a->peer, &m);
}

void kvf_peer_on_deny(struct kvf_peer *p, const struct kvf_peer_msg *m)
{
    struct kvf_ask *a = kvf_peer_find_ask(p, m->u.deny.ask);
    struct kvf_why why;

    if (a == NULL)
        return; /* taken back meanwhile */
    kvf_peer_ask_over(a);
    kvf_fail(&why, (enum kvf_status)m->u.deny.status, "%s", m->u.deny.text);
    a->on_deny(a, &why, m->u.deny.generation, m->u.deny.size);
}

void kvf_peer_repeat_asks(struct kvf_peer *p)
{
    uint64_t first_new = p->ps->next_ask;

    /* The table is in the order of asking, and each comes back with an id of
     * its own at the end. */
    while (p->asks != NULL && p->asks->id < first_new) {
        struct kvf_ask *a = p->asks;

        kvf_peer_ask_over(a);
        a->on_again(a);
    }
}

void kvf_peer_fail_asks(struct kvf_peer *p, const struct kvf_why *why)
{
    while (p->asks != NULL) {
        struct kvf_ask *a = p->asks;

        kvf_peer_ask_over(a);
        a->on_deny(a, why, 0, 0);
    }
}
