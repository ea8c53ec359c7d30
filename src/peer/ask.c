/* What is asked of an owner (lookups, windows, room for pushes, commits), and
 * the DENY or APPLIED that may answer it. */
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

/* What waits here, or went into a connection that nobody has answered on, may
 * be for an incarnation that is no more: the one that comes never heard it. */
void kvf_peer_doubt(struct kvf_peer *p, uint64_t first)
{
    if (first < p->doubt_from)
        p->doubt_from = first;
}

/* It has heard what went ahead of our last PING. */
void kvf_peer_on_pong(struct kvf_peer *p)
{
    if (kvf_list_empty(&p->outq))
        p->doubt_from = UINT64_MAX;
    else if (p->doubt_from < p->pinged_ask)
        p->doubt_from = p->pinged_ask;
}

/* m: a lookup with the id that is next. */
int kvf_ask_send(struct kvf_peer *p, struct kvf_ask *a, struct kvf_peer_msg *m,
                 struct kvf_why *why)
{
    struct kvf_peers *ps = p->ps;
    int ret;

    if (p->state != KVF_PEER_UP)
        return kvf_fail(why, KVF_PEER_UNREACHABLE, "%s is not up: %s", p->name,
                        p->why.text);
    /* While the session is renewed nothing may be asked: a claim granted in
     * between would be missing in a HELLO that is sent again. */
    ret = p->renewing ? 0 : kvf_peer_send(p, m);
    if (ret < 0)
        return kvf_fail(why, KVF_NO_SPACE, "out of memory for a lookup");
    a->id = ps->next_ask++;
    a->peer = p;
    a->active = true;
    a->unheard = false;
    a->free = a->largest_free = a->needed = 0;
    if (p->renewing || !kvf_list_empty(&p->outq))
        kvf_peer_doubt(p, a->id);
    HASH_ADD(hh, p->asks, id, sizeof a->id, a);
    return 0;
}

int kvf_peer_ask(struct kvf_peer *p, struct kvf_ask *a,
                 const struct kvf_peer_ask *body, struct kvf_why *why)
{
    struct kvf_peer_msg m;

    kvf_peers_head(p->ps, &m, KVF_PEER_ASK, &p->incarnation);
    m.u.ask = *body;
    m.u.ask.ask = p->ps->next_ask;
    return kvf_ask_send(p, a, &m, why);
}

int kvf_peer_ask_window(struct kvf_peer *p, struct kvf_ask *a,
                        const struct kvf_peer_window_ask *body,
                        struct kvf_why *why)
{
    struct kvf_peer_msg m;

    kvf_peers_head(p->ps, &m, KVF_PEER_WINDOW_ASK, &p->incarnation);
    m.u.window_ask = *body;
    m.u.window_ask.ask = p->ps->next_ask;
    return kvf_ask_send(p, a, &m, why);
}

int kvf_peer_ask_room(struct kvf_peer *p, struct kvf_ask *a,
                      const struct kvf_peer_room_ask *body, struct kvf_why *why)
{
    struct kvf_peer_msg m;

    kvf_peers_head(p->ps, &m, KVF_PEER_ROOM_ASK, &p->incarnation);
    m.u.room_ask = *body;
    m.u.room_ask.ask = p->ps->next_ask;
    return kvf_ask_send(p, a, &m, why);
}

int kvf_peer_commit(struct kvf_peer *p, struct kvf_ask *a,
                    const struct kvf_peer_commit *body, struct kvf_why *why)
{
    struct kvf_peer_msg m;

    kvf_peers_head(p->ps, &m, KVF_PEER_COMMIT, &p->incarnation);
    m.u.commit = *body;
    m.u.commit.ask = p->ps->next_ask;
    return kvf_ask_send(p, a, &m, why);
}

int kvf_peer_notify(struct kvf_peer *p, struct kvf_ask *a,
                    const struct kvf_peer_notify *body, struct kvf_why *why)
{
    struct kvf_peer_msg m;

    kvf_peers_head(p->ps, &m, KVF_PEER_NOTIFY, &p->incarnation);
    m.u.notify = *body;
    m.u.notify.ask = p->ps->next_ask;
    return kvf_ask_send(p, a, &m, why);
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
    if (m->u.deny.status == KVF_NOT_FOUND && a->layout != 0 && !a->retold) {
        /* It had to drop our layout for newer ones: once more, with it. */
        a->retold = true;
        kvf_told_drop(&p->told, a->layout);
        a->on_again(a);
        return;
    }
    a->free = m->u.deny.free;
    a->largest_free = m->u.deny.largest_free;
    a->needed = m->u.deny.needed;
    kvf_fail(&why, (enum kvf_status)m->u.deny.status, "%s", m->u.deny.text);
    a->on_deny(a, &why, m->u.deny.generation, m->u.deny.size);
}

void kvf_peer_on_applied(struct kvf_peer *p, const struct kvf_peer_msg *m)
{
    struct kvf_ask *a = kvf_peer_find_ask(p, m->u.applied.ask);

    if (a == NULL)
        return; /* taken back meanwhile */
    if (a->on_applied == NULL) {
        p->ps->env.stats->peer_malformed++;
        return;
    }
    kvf_peer_ask_over(a);
    a->on_applied(a, m->u.applied.generation);
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
        a->unheard = a->id >= p->doubt_from;
        a->on_deny(a, why, 0, 0);
    }
}
