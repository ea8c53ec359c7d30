/* Messages between daemons: struct -> bytes (docs/PROTOCOL-PEER.md). The
 * sender is trusted to keep its own bounds; the only failure is a lack of
 * memory. */
#include "wire/peer_body.h"

#include <string.h>

#define HEAD_ITEMS 9u

const char *kvf_peer_type_name(enum kvf_peer_type type)
{
    switch (type) {
#define TYPE_NAME(name, number, client)                                        \
    case KVF_PEER_##name:                                                      \
        return #name;
        KVF_PEER_TYPES(TYPE_NAME)
#undef TYPE_NAME
    case KVF_PEER_TYPE_END:
    default:
        return "unknown";
    }
}

static void put_pool(struct kvf_mpw *w, const struct kvf_peer_pool *p)
{
    kvf_mpw_str(w, "pool");
    kvf_mpw_map(w, 4);
    kvf_body_put_text(w, "path", p->path, sizeof p->path);
    kvf_mpw_kv_u64(w, "size", p->size);
    kvf_mpw_kv_u64(w, "pid", p->pid);
    kvf_mpw_kv_u64(w, "start", p->start);
}

static void put_claims(struct kvf_mpw *w, const char *key,
                       const uint64_t *claims, unsigned n)
{
    kvf_mpw_str(w, key);
    kvf_mpw_array(w, n);
    for (unsigned i = 0; i < n; i++)
        kvf_mpw_u64(w, claims[i]);
}

/* Only where there is one: daemons without send what they always sent. */
static void put_rdma(struct kvf_mpw *w, bool rdma)
{
    if (rdma)
        kvf_mpw_kv_bool(w, "rdma", true);
}

static void put_hello(struct kvf_mpw *w, const struct kvf_peer_msg *m)
{
    kvf_mpw_map(w, 4u + m->u.hello.rdma + (m->u.hello.link != 0));
    put_rdma(w, m->u.hello.rdma);
    put_pool(w, &m->u.hello.pool);
    kvf_mpw_kv_u64(w, "peer_timeout_ms", m->u.hello.peer_timeout_ms);
    if (m->u.hello.link != 0)
        kvf_mpw_kv_u64(w, "link", m->u.hello.link);
    put_claims(w, "live", m->u.hello.live, m->u.hello.n_live);
    kvf_mpw_str(w, "gone");
    kvf_mpw_array(w, m->u.hello.n_gone);
    for (unsigned i = 0; i < m->u.hello.n_gone; i++) {
        const struct kvf_peer_gone *g = &m->u.hello.gone[i];
        uint8_t bytes[KVF_ID_LEN + 16];

        memcpy(bytes, g->incarnation.b, KVF_ID_LEN);
        kvf_put_u64(bytes + KVF_ID_LEN, g->pid);
        kvf_put_u64(bytes + KVF_ID_LEN + 8, g->start);
        kvf_mpw_bin(w, bytes, sizeof bytes);
    }
}

static void put_welcome(struct kvf_mpw *w, const struct kvf_peer_msg *m)
{
    kvf_mpw_map(w, (m->u.welcome.tcp ? 8u : 5u) + m->u.welcome.rdma +
                       (m->u.welcome.peer_timeout_ms != 0));
    put_rdma(w, m->u.welcome.rdma);
    put_pool(w, &m->u.welcome.pool);
    if (m->u.welcome.peer_timeout_ms != 0)
        kvf_mpw_kv_u64(w, "peer_timeout_ms", m->u.welcome.peer_timeout_ms);
    kvf_mpw_kv_bool(w, "shm", m->u.welcome.shm);
    kvf_body_put_text(w, "shm_why", m->u.welcome.shm_why,
                      sizeof m->u.welcome.shm_why);
    kvf_mpw_kv_bool(w, "tcp", m->u.welcome.tcp);
    if (m->u.welcome.tcp) {
        kvf_body_put_text(w, "tcp_host", m->u.welcome.tcp_host,
                          sizeof m->u.welcome.tcp_host);
        kvf_mpw_kv_u64(w, "tcp_port", m->u.welcome.tcp_port);
        kvf_mpw_kv_bin(w, "secret", m->u.welcome.secret, KVF_SECRET_LEN);
    }
    put_claims(w, "dead", m->u.welcome.dead, m->u.welcome.n_dead);
}

static void put_ask(struct kvf_mpw *w, const struct kvf_peer_ask *a)
{
    kvf_mpw_map(w, 9u + a->has_generation + a->has_incarnation);
    kvf_mpw_kv_u64(w, "ask", a->ask);
    kvf_body_put_str(w, "key", &a->key);
    kvf_mpw_kv_bool(w, "wait", a->wait);
    kvf_mpw_kv_u64(w, "wait_ms", a->wait_ms);
    kvf_mpw_kv_bool(w, "shm", a->want_shm);
    kvf_mpw_kv_str(w, "mode", kvf_mode_name(a->mode));
    kvf_mpw_kv_u64(w, "eager_max", a->eager_max);
    kvf_mpw_kv_u64(w, "view_pid", a->view_pid);
    kvf_mpw_kv_u64(w, "view_start", a->view_start);
    if (a->has_generation)
        kvf_mpw_kv_u64(w, "generation", a->generation);
    if (a->has_incarnation)
        kvf_mpw_kv_bin(w, "incarnation", a->incarnation.b, KVF_ID_LEN);
}

static void put_deny(struct kvf_mpw *w, const struct kvf_peer_msg *m)
{
    bool space = m->u.deny.needed != 0;

    kvf_mpw_map(w, space ? 8 : 5);
    kvf_mpw_kv_u64(w, "ask", m->u.deny.ask);
    kvf_mpw_kv_u64(w, "status", m->u.deny.status);
    kvf_mpw_kv_u64(w, "generation", m->u.deny.generation);
    kvf_mpw_kv_u64(w, "size", m->u.deny.size);
    kvf_body_put_text(w, "text", m->u.deny.text, sizeof m->u.deny.text);
    if (space) {
        kvf_mpw_kv_u64(w, "free", m->u.deny.free);
        kvf_mpw_kv_u64(w, "largest_free", m->u.deny.largest_free);
        kvf_mpw_kv_u64(w, "needed", m->u.deny.needed);
    }
}

static void put_end(struct kvf_mpw *w, const struct kvf_peer_msg *m)
{
    kvf_mpw_map(w, 2);
    kvf_mpw_kv_u64(w, "claim", m->u.end.claim);
    kvf_mpw_kv_bin(w, "token", m->u.end.token.b, KVF_ID_LEN);
}

static void put_unmapped(struct kvf_mpw *w, const struct kvf_peer_gone *g)
{
    kvf_mpw_map(w, 3);
    kvf_mpw_kv_bin(w, "incarnation", g->incarnation.b, KVF_ID_LEN);
    kvf_mpw_kv_u64(w, "pid", g->pid);
    kvf_mpw_kv_u64(w, "start", g->start);
}

static bool put_body(struct kvf_mpw *w, const struct kvf_peer_msg *m)
{
    switch (m->head.type) {
    case KVF_PEER_HELLO:
        put_hello(w, m);
        return true;
    case KVF_PEER_WELCOME:
        put_welcome(w, m);
        return true;
    case KVF_PEER_REFUSE:
        kvf_mpw_map(w, 2);
        kvf_mpw_kv_u64(w, "status", m->u.refuse.status);
        kvf_body_put_text(w, "text", m->u.refuse.text, sizeof m->u.refuse.text);
        return true;
    case KVF_PEER_PING:
    case KVF_PEER_PONG:
        kvf_mpw_map(w, 1);
        kvf_mpw_kv_u64(w, "seq", m->u.ping.seq);
        return true;
    case KVF_PEER_ASK:
        put_ask(w, &m->u.ask);
        return true;
    case KVF_PEER_UNASK:
        kvf_mpw_map(w, 1);
        kvf_mpw_kv_u64(w, "ask", m->u.unask.ask);
        return true;
    case KVF_PEER_GRANT:
        kvf_peer_grant_put(w, &m->u.grant);
        return true;
    case KVF_PEER_DENY:
        put_deny(w, m);
        return true;
    case KVF_PEER_DONE:
    case KVF_PEER_ABORT:
        put_end(w, m);
        return true;
    case KVF_PEER_ENDED:
        kvf_mpw_map(w, m->u.ended.n_more != 0 ? 2 : 1);
        kvf_mpw_kv_u64(w, "claim", m->u.ended.claim);
        if (m->u.ended.n_more != 0)
            put_claims(w, "more", m->u.ended.more, m->u.ended.n_more);
        return true;
    case KVF_PEER_REVOKED:
        kvf_mpw_map(w, 2);
        kvf_mpw_kv_u64(w, "claim", m->u.revoked.claim);
        kvf_body_put_text(w, "text", m->u.revoked.text,
                          sizeof m->u.revoked.text);
        return true;
    case KVF_PEER_UNMAPPED:
        put_unmapped(w, &m->u.unmapped);
        return true;
    case KVF_PEER_BYE:
        kvf_mpw_map(w, 1);
        kvf_body_put_text(w, "text", m->u.bye.text, sizeof m->u.bye.text);
        return true;
    case KVF_PEER_LAYOUT:
    case KVF_PEER_LAYOUT_GONE:
    case KVF_PEER_LAYOUT_ASK:
    case KVF_PEER_LAYOUT_IS:
        kvf_peer_layout_put(w, m);
        return true;
    case KVF_PEER_BLOCKS_ASK:
    case KVF_PEER_BLOCKS_GRANT:
    case KVF_PEER_TOGETHER:
    case KVF_PEER_VERDICT:
        kvf_peer_blocks_put(w, m);
        return true;
    case KVF_PEER_RDMA_CONNECT:
    case KVF_PEER_RDMA_ACCEPT:
    case KVF_PEER_RDMA_REFUSE:
    case KVF_PEER_RDMA_CLOSE:
    case KVF_PEER_RDMA_KEYS:
        kvf_peer_rdma_put(w, m);
        return true;
    case KVF_PEER_WINDOW_ASK:
    case KVF_PEER_ROOM_ASK:
    case KVF_PEER_COMMIT:
    case KVF_PEER_NOTIFY:
    case KVF_PEER_APPLIED:
    case KVF_PEER_RETIRED:
    case KVF_PEER_RETIRED_SEEN:
        kvf_peer_push_put(w, m);
        return true;
    case KVF_PEER_TYPE_END:
    default:
        return false;
    }
}

int kvf_peer_encode(struct kvf_mpw *w, const struct kvf_peer_msg *m)
{
    kvf_mpw_reset(w);
    kvf_mpw_array(w, HEAD_ITEMS);
    kvf_mpw_u64(w, m->head.version);
    kvf_mpw_u64(w, (uint64_t)m->head.type);
    kvf_mpw_strn(w, m->head.cluster,
                 strnlen(m->head.cluster, sizeof m->head.cluster));
    kvf_mpw_u64(w, m->head.worker.stage);
    kvf_mpw_u64(w, m->head.worker.rank);
    kvf_mpw_u64(w, m->head.worker.replica);
    kvf_mpw_bin(w, m->head.from.b, KVF_ID_LEN);
    kvf_mpw_bin(w, m->head.to.b, KVF_ID_LEN);
    if (!put_body(w, m) || w->failed)
        return -(int)KVF_INTERNAL;
    return 0;
}
