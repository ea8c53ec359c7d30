/* What getters send us, sorted by session and type.
 *
 * Happy path: HELLO opens a session, everything else belongs to one. Failure
 * modes: another version or cluster, or no session: REFUSE; unreadable, or a
 * type that only owners send: counted, logged, dropped. */
#include "peer/access.h"

#include "base/log.h"

#include <stdio.h>

static void refuse(struct kvf_peers *ps, const void *rid, size_t rid_len,
                   const struct kvf_peer_head *h, const struct kvf_why *why)
{
    struct kvf_peer_msg m;

    kvf_peers_head(ps, &m, KVF_PEER_REFUSE, &h->from);
    m.u.refuse.status = why->status;
    snprintf(m.u.refuse.text, sizeof m.u.refuse.text, "%.199s", why->text);
    if (kvf_peer_encode(&ps->w, &m) == 0)
        ps->env.channel.ops->answer(ps->env.channel.ctx, rid, rid_len,
                                    ps->w.buf.data, ps->w.buf.size, NULL, 0);
}

static void on_session_message(struct kvf_guest *g, struct kvf_peer_msg *m)
{
    struct kvf_peer_msg answer;

    g->last_rx_ns = g->ps->env.sched->now_ns;
    /* No default: a new type must be placed here. */
    switch (m->head.type) {
    case KVF_PEER_PING:
        kvf_peers_head(g->ps, &answer, KVF_PEER_PONG, &g->incarnation);
        answer.u.ping.seq = m->u.ping.seq;
        kvf_guest_answer(g, &answer, NULL, 0);
        break;
    case KVF_PEER_ASK:
        kvf_guest_on_ask(g, &m->u.ask);
        break;
    case KVF_PEER_UNASK:
        kvf_guest_on_unask(g, m->u.unask.ask);
        break;
    case KVF_PEER_DONE:
    case KVF_PEER_ABORT:
        kvf_guest_on_end(g, m->u.end.claim, &m->u.end.token,
                         m->head.type == KVF_PEER_DONE);
        break;
    case KVF_PEER_UNMAPPED:
        kvf_guest_unmapped(g->ps, &m->u.unmapped);
        break;
    case KVF_PEER_RDMA_CONNECT:
    case KVF_PEER_RDMA_CLOSE:
        kvf_guest_rdma_message(g, m);
        break;
    case KVF_PEER_BYE:
        kvf_guest_down(g, m->u.bye.text);
        kvf_guest_settle(g);
        break;
    case KVF_PEER_WINDOW_ASK:
        kvf_guest_on_window_ask(g, &m->u.window_ask);
        break;
    case KVF_PEER_ROOM_ASK:
        kvf_guest_on_room_ask(g, &m->u.room_ask);
        break;
    case KVF_PEER_COMMIT:
        kvf_guest_on_commit(g, &m->u.commit);
        break;
    case KVF_PEER_NOTIFY:
        kvf_guest_on_notify(g, &m->u.notify);
        break;
    case KVF_PEER_RETIRED_SEEN:
        kvf_guest_on_retired_seen(g, &m->u.retired);
        break;
    case KVF_PEER_LAYOUT:
        kvf_guest_on_layout(g, m);
        break;
    case KVF_PEER_LAYOUT_GONE:
        kvf_far_drop(&g->fars, m->u.layout_gone.number);
        break;
    case KVF_PEER_LAYOUT_ASK:
        kvf_guest_on_layout_ask(g, &m->u.layout_ask);
        break;
    case KVF_PEER_BLOCKS_ASK:
        kvf_guest_on_blocks_ask(g, &m->u.blocks_ask);
        break;
    case KVF_PEER_TOGETHER:
        kvf_guest_on_together(g, &m->u.together);
        break;
    case KVF_PEER_LAYOUT_IS:
    case KVF_PEER_BLOCKS_GRANT:
    case KVF_PEER_VERDICT:
    case KVF_PEER_HELLO:
    case KVF_PEER_WELCOME:
    case KVF_PEER_REFUSE:
    case KVF_PEER_PONG:
    case KVF_PEER_GRANT:
    case KVF_PEER_DENY:
    case KVF_PEER_ENDED:
    case KVF_PEER_REVOKED:
    case KVF_PEER_APPLIED:
    case KVF_PEER_RETIRED:
    case KVF_PEER_RDMA_ACCEPT:
    case KVF_PEER_RDMA_REFUSE:
    case KVF_PEER_RDMA_KEYS:
    case KVF_PEER_TYPE_END:
        g->ps->env.stats->peer_malformed++;
        break;
    }
}

void kvf_peers_on_message(struct kvf_peers *ps, const void *rid, size_t rid_len,
                          const void *data, size_t len)
{
    struct kvf_peer_msg m;
    struct kvf_why why;
    struct kvf_guest *g;
    int ret;

    if (ps->closing || rid_len == 0 || rid_len > KVF_RID_MAX)
        return;
    ret = kvf_peer_decode(&m, data, len, NULL, 0, &why);
    if (ret == 0)
        ret = kvf_peers_check_head(ps, &m.head, &why);
    if (ret == -(int)KVF_MISMATCH) {
        ps->env.stats->peer_refused++;
        kvf_log_limited(&ps->log_refused, ps->env.sched->now_ns, KVF_LOG_WARN,
                        "PEER", KVF_WORKER_FMT " refused: %s",
                        KVF_WORKER_ARG(&m.head.worker), why.text);
        refuse(ps, rid, rid_len, &m.head, &why);
    } else if (ret < 0) {
        ps->env.stats->peer_malformed++;
        kvf_log_limited(&ps->log_bad, ps->env.sched->now_ns, KVF_LOG_WARN,
                        "PEER", "unreadable message of %zu bytes: %s", len,
                        why.text);
    } else if (ps->leaving && m.head.type != KVF_PEER_BYE) {
        /* A new session would end without a word. */
    } else if (m.head.type == KVF_PEER_HELLO) {
        kvf_guest_hello(ps, rid, rid_len, &m);
    } else {
        g = kvf_guest_by_rid(ps, rid, rid_len);
        if (g != NULL && g->up && kvf_id_equal(&m.head.from, &g->incarnation) &&
            kvf_id_equal(&m.head.to, &ps->env.incarnation)) {
            on_session_message(g, &m);
        } else {
            /* It talks to an earlier start of ours, or from one of its own. */
            ps->env.stats->peer_stale++;
            kvf_fail(&why, KVF_STALE, "no session: say HELLO");
            refuse(ps, rid, rid_len, &m.head, &why);
        }
    }
    kvf_peer_done(&m);
}

void kvf_peers_overrun(struct kvf_peers *ps, const void *rid, size_t rid_len)
{
    struct kvf_guest *g;

    g = rid_len <= KVF_RID_MAX ? kvf_guest_by_rid(ps, rid, rid_len) : NULL;
    if (ps->closing || g == NULL)
        return;
    kvf_guest_down(g, "it does not read what it is answered");
    kvf_guest_settle(g);
}
