/* Messages between daemons: bytes -> struct, every field checked.
 *
 * Happy path: head, then the body of that type; those of the session and of
 * gets are here, the others in files of their family (wire/peer_body.h).
 * Failure modes: -KVF_MISMATCH for another version, -KVF_INTERNAL out of
 * memory, otherwise -KVF_INVALID; texts of a peer never fail a message, they
 * are made printable (they end in logs and replies). */
#include "wire/peer_body.h"

#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

#define HEAD_ITEMS 9u
#define A_FAILURE (KVF_OK + 1) /* the least status that is one */

static void pool(struct kvf_body *b, struct kvf_peer_pool *p)
{
    struct kvf_body in = kvf_body_nested(b, "pool");

    kvf_body_name(&in, "path", 0, p->path, sizeof p->path);
    kvf_body_u64_in(&in, "size", 0, INT64_MAX, &p->size);
    kvf_body_u64_in(&in, "pid", 0, INT32_MAX, &p->pid);
    kvf_body_u64(&in, "start", &p->start);
    b->rc = in.rc;
}

static void claims(struct kvf_body *b, const char *key, uint64_t **out,
                   unsigned *n)
{
    const msgpack_object_array *a = kvf_body_array_opt(b, key, KVF_PEER_CLAIMS);

    if (a == NULL ||
        (*out = kvf_body_elements(b, a->size, sizeof **out)) == NULL)
        return;
    for (unsigned i = 0; i < a->size; i++) {
        if (a->ptr[i].type != MSGPACK_OBJECT_POSITIVE_INTEGER) {
            kvf_body_bad_element(b, key, i);
            return;
        }
        (*out)[i] = a->ptr[i].via.u64;
    }
    *n = a->size;
}

static void gone_list(struct kvf_body *b, struct kvf_peer_gone **out,
                      unsigned *n)
{
    const msgpack_object_array *a =
        kvf_body_array_opt(b, "gone", KVF_PEER_CLAIMS);

    if (a == NULL ||
        (*out = kvf_body_elements(b, a->size, sizeof **out)) == NULL)
        return;
    for (unsigned i = 0; i < a->size; i++) {
        const msgpack_object *o = &a->ptr[i];
        struct kvf_peer_gone *g = &(*out)[i];
        uint8_t bytes[KVF_ID_LEN + 16];

        if (o->type != MSGPACK_OBJECT_BIN || o->via.bin.size != sizeof bytes) {
            kvf_body_bad_element(b, "gone", i);
            return;
        }
        memcpy(bytes, o->via.bin.ptr, sizeof bytes);
        memcpy(g->incarnation.b, bytes, KVF_ID_LEN);
        g->pid = kvf_get_u64(bytes + KVF_ID_LEN);
        g->start = kvf_get_u64(bytes + KVF_ID_LEN + 8);
    }
    *n = a->size;
}

static void read_hello(struct kvf_body *b, struct kvf_peer_msg *m)
{
    pool(b, &m->u.hello.pool);
    kvf_body_u64_in(b, "peer_timeout_ms", 0, KVF_MAX_MS,
                    &m->u.hello.peer_timeout_ms);
    claims(b, "live", &m->u.hello.live, &m->u.hello.n_live);
    gone_list(b, &m->u.hello.gone, &m->u.hello.n_gone);
    kvf_body_flag_opt(b, "rdma", &m->u.hello.rdma);
    kvf_body_u64_opt(b, "link", 0, UINT64_MAX, &m->u.hello.link);
}

/* An address, with a scope at most: nothing here may start a look-up. */
static bool numeric(const char *host)
{
    size_t len = strlen(host);

    if (strchr(host, ':') == NULL)
        return strspn(host, "0123456789.") == len;
    return strspn(host, "0123456789abcdefghijklmnopqrstuvwxyzABCDEF.:%_-") ==
           len;
}

static void read_welcome(struct kvf_body *b, struct kvf_peer_msg *m)
{
    uint64_t port = 0;

    pool(b, &m->u.welcome.pool);
    kvf_body_flag(b, "shm", &m->u.welcome.shm);
    kvf_body_text(b, "shm_why", m->u.welcome.shm_why,
                  sizeof m->u.welcome.shm_why);
    kvf_body_flag(b, "tcp", &m->u.welcome.tcp);
    claims(b, "dead", &m->u.welcome.dead, &m->u.welcome.n_dead);
    kvf_body_flag_opt(b, "rdma", &m->u.welcome.rdma);
    kvf_body_u64_opt(b, "peer_timeout_ms", 0, KVF_MAX_MS,
                     &m->u.welcome.peer_timeout_ms);
    if (b->rc < 0 || !m->u.welcome.tcp)
        return;
    kvf_body_name(b, "tcp_host", 1, m->u.welcome.tcp_host,
                  sizeof m->u.welcome.tcp_host);
    kvf_body_u64_in(b, "tcp_port", 1, UINT16_MAX, &port);
    kvf_body_bytes(b, "secret", m->u.welcome.secret, KVF_SECRET_LEN);
    m->u.welcome.tcp_port = (uint16_t)port;
    if (b->rc == 0 && !numeric(m->u.welcome.tcp_host))
        b->rc = kvf_fail(b->why, KVF_INVALID,
                         "field tcp_host: not a numeric address");
}

static void read_ask(struct kvf_body *b, struct kvf_peer_ask *a)
{
    char mode[8];
    unsigned i = KVF_MODE_AUTO;

    kvf_body_u64(b, "ask", &a->ask);
    kvf_body_str(b, "key", KVF_MAX_KEY, &a->key);
    kvf_body_flag(b, "wait", &a->wait);
    kvf_body_u64_in(b, "wait_ms", 0, KVF_MAX_MS, &a->wait_ms);
    kvf_body_flag(b, "shm", &a->want_shm);
    kvf_body_name(b, "mode", 1, mode, sizeof mode);
    kvf_body_u64_in(b, "eager_max", 0, INT64_MAX, &a->eager_max);
    kvf_body_u64_in(b, "view_pid", 0, INT32_MAX, &a->view_pid);
    kvf_body_u64(b, "view_start", &a->view_start);
    a->has_generation =
        kvf_body_u64_opt(b, "generation", 0, UINT64_MAX, &a->generation);
    a->has_incarnation = kvf_body_id_opt(b, "incarnation", &a->incarnation);
    if (b->rc < 0)
        return;
    while (i <= KVF_MODE_INTO &&
           strcmp(mode, kvf_mode_name((enum kvf_mode)i)) != 0)
        i++;
    if (i > KVF_MODE_INTO)
        b->rc = kvf_fail(b->why, KVF_INVALID, "field mode: unknown");
    else
        a->mode = (enum kvf_mode)i;
}

static void read_deny(struct kvf_body *b, struct kvf_peer_msg *m)
{
    kvf_body_u64(b, "ask", &m->u.deny.ask);
    kvf_body_status(b, A_FAILURE, &m->u.deny.status);
    kvf_body_u64(b, "generation", &m->u.deny.generation);
    kvf_body_u64(b, "size", &m->u.deny.size);
    kvf_body_u64_opt(b, "free", 0, UINT64_MAX, &m->u.deny.free);
    kvf_body_u64_opt(b, "largest_free", 0, UINT64_MAX, &m->u.deny.largest_free);
    kvf_body_u64_opt(b, "needed", 0, UINT64_MAX, &m->u.deny.needed);
    kvf_body_text(b, "text", m->u.deny.text, sizeof m->u.deny.text);
}

static void read_gone(struct kvf_body *b, struct kvf_peer_gone *g)
{
    kvf_body_id(b, "incarnation", &g->incarnation);
    kvf_body_u64_in(b, "pid", 1, INT32_MAX, &g->pid);
    kvf_body_u64(b, "start", &g->start);
}

static void read_body(struct kvf_body *b, struct kvf_peer_msg *m)
{
    switch (m->head.type) {
    case KVF_PEER_HELLO:
        read_hello(b, m);
        break;
    case KVF_PEER_WELCOME:
        read_welcome(b, m);
        break;
    case KVF_PEER_REFUSE:
        kvf_body_status(b, A_FAILURE, &m->u.refuse.status);
        kvf_body_text(b, "text", m->u.refuse.text, sizeof m->u.refuse.text);
        break;
    case KVF_PEER_PING:
    case KVF_PEER_PONG:
        kvf_body_u64(b, "seq", &m->u.ping.seq);
        break;
    case KVF_PEER_ASK:
        read_ask(b, &m->u.ask);
        break;
    case KVF_PEER_UNASK:
        kvf_body_u64(b, "ask", &m->u.unask.ask);
        break;
    case KVF_PEER_GRANT:
        kvf_peer_grant_read(b, m);
        break;
    case KVF_PEER_DENY:
        read_deny(b, m);
        break;
    case KVF_PEER_DONE:
    case KVF_PEER_ABORT:
        kvf_body_u64(b, "claim", &m->u.end.claim);
        kvf_body_id(b, "token", &m->u.end.token);
        break;
    case KVF_PEER_ENDED:
        kvf_body_u64(b, "claim", &m->u.ended.claim);
        claims(b, "more", &m->u.ended.more, &m->u.ended.n_more);
        break;
    case KVF_PEER_REVOKED:
        kvf_body_u64(b, "claim", &m->u.revoked.claim);
        kvf_body_text(b, "text", m->u.revoked.text, sizeof m->u.revoked.text);
        break;
    case KVF_PEER_UNMAPPED:
        read_gone(b, &m->u.unmapped);
        break;
    case KVF_PEER_BYE:
        kvf_body_text(b, "text", m->u.bye.text, sizeof m->u.bye.text);
        break;
    case KVF_PEER_LAYOUT:
    case KVF_PEER_LAYOUT_GONE:
    case KVF_PEER_LAYOUT_ASK:
    case KVF_PEER_LAYOUT_IS:
        kvf_peer_layout_read(b, m);
        break;
    case KVF_PEER_BLOCKS_ASK:
    case KVF_PEER_BLOCKS_GRANT:
    case KVF_PEER_TOGETHER:
    case KVF_PEER_VERDICT:
        kvf_peer_blocks_read(b, m);
        break;
    case KVF_PEER_RDMA_CONNECT:
    case KVF_PEER_RDMA_ACCEPT:
    case KVF_PEER_RDMA_REFUSE:
    case KVF_PEER_RDMA_CLOSE:
    case KVF_PEER_RDMA_KEYS:
        kvf_peer_rdma_read(b, m);
        break;
    case KVF_PEER_WINDOW_ASK:
    case KVF_PEER_ROOM_ASK:
    case KVF_PEER_COMMIT:
    case KVF_PEER_NOTIFY:
    case KVF_PEER_APPLIED:
    case KVF_PEER_RETIRED:
    case KVF_PEER_RETIRED_SEEN:
        kvf_peer_push_read(b, m);
        break;
    case KVF_PEER_TYPE_END:
    default:
        b->rc = kvf_fail(b->why, KVF_INVALID, "unknown type");
    }
}

static bool head_u32(const msgpack_object *o, uint64_t max, uint32_t *out)
{
    if (o->type != MSGPACK_OBJECT_POSITIVE_INTEGER || o->via.u64 > max)
        return false;
    *out = (uint32_t)o->via.u64;
    return true;
}

static bool head_id(const msgpack_object *o, struct kvf_id *out)
{
    if (o->type != MSGPACK_OBJECT_BIN || o->via.bin.size != KVF_ID_LEN)
        return false;
    memcpy(out->b, o->via.bin.ptr, KVF_ID_LEN);
    return true;
}

static bool head_cluster(const msgpack_object *o, char *out, size_t cap)
{
    if (o->type != MSGPACK_OBJECT_STR || o->via.str.size == 0 ||
        o->via.str.size >= cap ||
        !kvf_utf8_valid(o->via.str.ptr, o->via.str.size))
        return false;
    for (uint32_t i = 0; i < o->via.str.size; i++)
        if ((unsigned char)o->via.str.ptr[i] < ' ' || o->via.str.ptr[i] == 0x7f)
            return false;
    memcpy(out, o->via.str.ptr, o->via.str.size);
    out[o->via.str.size] = '\0';
    return true;
}

/* All fields are tried, so that a message of another version still says who
 * sent it. */
static bool read_head(struct kvf_peer_head *h, const msgpack_object *v,
                      uint32_t n)
{
    uint32_t type = 0;
    bool ok = n == HEAD_ITEMS;

    ok &= n > 1 && head_u32(&v[1], KVF_PEER_TYPE_END - 1, &type) && type > 0;
    ok &= n > 2 && head_cluster(&v[2], h->cluster, sizeof h->cluster);
    ok &= n > 3 && head_u32(&v[3], KVF_STAGE_MAX, &h->worker.stage);
    ok &= n > 4 && head_u32(&v[4], KVF_RANK_MAX, &h->worker.rank);
    ok &= n > 5 && head_u32(&v[5], KVF_REPLICA_MAX, &h->worker.replica);
    ok &= n > 6 && head_id(&v[6], &h->from);
    ok &= n > 7 && head_id(&v[7], &h->to);
    h->type = (enum kvf_peer_type)type;
    return ok && v[8].type == MSGPACK_OBJECT_MAP;
}

int kvf_peer_decode(struct kvf_peer_msg *m, const void *data, size_t len,
                    const void *payload, size_t payload_len,
                    struct kvf_why *why)
{
    const msgpack_object_array *a;
    struct kvf_body b = {.why = why};
    bool head;
    int rc;

    memset(m, 0, sizeof *m);
    m->decoded = true;
    m->payload = payload;
    m->payload_len = payload_len;
    rc = kvf_mp_parse(&m->mp, data, len, why);
    if (rc < 0)
        return rc;
    a = &m->mp.root.via.array;
    if (m->mp.root.type != MSGPACK_OBJECT_ARRAY || a->size == 0 ||
        !head_u32(&a->ptr[0], UINT32_MAX, &m->head.version))
        return kvf_fail(why, KVF_INVALID, "not a peer message");
    head = read_head(&m->head, a->ptr, a->size);
    if (m->head.version != KVF_PEER_VERSION)
        return kvf_fail(why, KVF_MISMATCH,
                        "peer protocol version %u, this daemon speaks %u",
                        m->head.version, KVF_PEER_VERSION);
    if (!head)
        return kvf_fail(why, KVF_INVALID, "malformed head of a peer message");
    if (payload != NULL && m->head.type != KVF_PEER_GRANT)
        return kvf_fail(why, KVF_INVALID, "%s takes no second frame",
                        kvf_peer_type_name(m->head.type));
    b.map = &a->ptr[8];
    read_body(&b, m);
    if (b.rc < 0)
        kvf_fail_prefix(why, "%s", kvf_peer_type_name(m->head.type));
    return b.rc;
}

void kvf_peer_done(struct kvf_peer_msg *m)
{
    if (!m->decoded)
        return;
    if (m->head.type == KVF_PEER_HELLO) {
        free(m->u.hello.live);
        free(m->u.hello.gone);
    } else if (m->head.type == KVF_PEER_WELCOME) {
        free(m->u.welcome.dead);
    } else if (m->head.type == KVF_PEER_ENDED) {
        free(m->u.ended.more);
    } else if (m->head.type == KVF_PEER_GRANT) {
        kvf_peer_grant_done(&m->u.grant);
    } else if (m->head.type == KVF_PEER_LAYOUT) {
        kvf_peer_layout_done(&m->u.layout);
    } else if (m->head.type == KVF_PEER_BLOCKS_GRANT) {
        kvf_peer_blocks_done(&m->u.blocks);
    } else {
        kvf_peer_rdma_done(m);
    }
    kvf_mp_done(&m->mp);
    m->decoded = false;
}
