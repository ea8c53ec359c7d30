/* Messages between daemons: bytes -> struct, every field checked.
 *
 * Happy path: head, then the body of that type. A reader keeps the first
 * failure and turns the rest into no-ops, so a body reads as a list of its
 * fields. Failure modes: -KVF_MISMATCH for another version, otherwise
 * -KVF_INVALID; texts of a peer never fail a message, they are made printable
 * (they end in logs and replies). */
#include "wire/peer_msg.h"

#include "wire/peer_msg_layout.h"
#include "wire/peer_msg_rdma.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define HEAD_ITEMS 9u

struct reader {
    const msgpack_object *map;
    struct kvf_why *why;
    int rc; /* first failure */
};

static void missing(struct reader *r, const char *key)
{
    r->rc = kvf_mp_missing(r->why, key);
}

static bool u64_opt(struct reader *r, const char *key, uint64_t max,
                    uint64_t *out)
{
    int rc = r->rc < 0 ? 0 : kvf_mp_u64(r->map, key, 0, max, out, r->why);

    if (rc < 0)
        r->rc = rc;
    return rc > 0;
}

static void u64(struct reader *r, const char *key, uint64_t min, uint64_t max,
                uint64_t *out)
{
    int rc = r->rc < 0 ? 1 : kvf_mp_u64(r->map, key, min, max, out, r->why);

    if (rc < 0)
        r->rc = rc;
    else if (rc == 0)
        missing(r, key);
}

static void flag(struct reader *r, const char *key, bool *out)
{
    int rc = r->rc < 0 ? 1 : kvf_mp_bool(r->map, key, out, r->why);

    if (rc < 0)
        r->rc = rc;
    else if (rc == 0)
        missing(r, key);
}

/* Absent is false. */
static void flag_opt(struct reader *r, const char *key, bool *out)
{
    int rc = r->rc < 0 ? 0 : kvf_mp_bool(r->map, key, out, r->why);

    if (rc < 0)
        r->rc = rc;
}

static bool bytes_opt(struct reader *r, const char *key, void *out, size_t len)
{
    const void *p;
    size_t n;
    int rc = r->rc < 0 ? 0 : kvf_mp_bin(r->map, key, len, len, &p, &n, r->why);

    if (rc < 0)
        r->rc = rc;
    if (rc > 0)
        memcpy(out, p, len);
    return rc > 0;
}

static void bytes(struct reader *r, const char *key, void *out, size_t len)
{
    if (!bytes_opt(r, key, out, len) && r->rc == 0)
        missing(r, key);
}

/* For people only: absent is empty, too long is cut, odd bytes become '?'. */
static void text(struct reader *r, const char *key, char *out, size_t cap)
{
    const msgpack_object *o = r->rc < 0 ? NULL : kvf_mp_get(r->map, key);
    bool utf8;
    size_t n;

    out[0] = '\0';
    if (o == NULL || o->type != MSGPACK_OBJECT_STR)
        return;
    n = o->via.str.size < cap - 1 ? o->via.str.size : cap - 1;
    utf8 = kvf_utf8_valid(o->via.str.ptr, n);
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)o->via.str.ptr[i];
        bool odd = c < ' ' || c == 0x7f || (c >= 0x80 && !utf8);

        out[i] = odd ? '?' : (char)c;
    }
    out[n] = '\0';
}

/* A name that is used: copied whole, without control bytes, or refused. */
static void name(struct reader *r, const char *key, size_t min, char *out,
                 size_t cap)
{
    const char *p = NULL;
    size_t n = 0;
    int rc;

    if (r->rc < 0)
        return;
    rc = kvf_mp_str(r->map, key, min, cap - 1, &p, &n, r->why);
    if (rc <= 0) {
        r->rc = rc < 0 ? rc : kvf_mp_missing(r->why, key);
        return;
    }
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)p[i] < ' ' || p[i] == 0x7f) {
            r->rc = kvf_fail(r->why, KVF_INVALID,
                             "field %s: has a control byte", key);
            return;
        }
    memcpy(out, p, n);
    out[n] = '\0';
}

static struct reader nested(struct reader *r, const char *key)
{
    struct reader in = {.why = r->why, .rc = r->rc};
    int rc = r->rc < 0 ? 1 : kvf_mp_map(r->map, key, &in.map, r->why);

    if (rc <= 0)
        in.rc = rc < 0 ? rc : kvf_mp_missing(r->why, key);
    return in;
}

/* An array field of at most max elements; NULL: absent or failed. */
static const msgpack_object_array *array(struct reader *r, const char *key,
                                         size_t max)
{
    const msgpack_object *o;
    int rc = r->rc < 0 ? 0 : kvf_mp_array(r->map, key, max, &o, r->why);

    if (rc < 0)
        r->rc = rc;
    return rc > 0 && o->via.array.size > 0 ? &o->via.array : NULL;
}

static void *elements(struct reader *r, size_t n, size_t size)
{
    void *p = calloc(n, size);

    if (p == NULL)
        r->rc = kvf_fail(r->why, KVF_INTERNAL, "out of memory");
    return p;
}

static void bad_element(struct reader *r, const char *key, unsigned i)
{
    r->rc = kvf_fail(r->why, KVF_INVALID, "field %s[%u]: malformed", key, i);
}

static void pool(struct reader *r, struct kvf_peer_pool *p)
{
    struct reader in = nested(r, "pool");

    name(&in, "path", 0, p->path, sizeof p->path);
    u64(&in, "size", 0, INT64_MAX, &p->size);
    u64(&in, "pid", 0, INT32_MAX, &p->pid);
    u64(&in, "start", 0, UINT64_MAX, &p->start);
    r->rc = in.rc;
}

static void claims(struct reader *r, const char *key, uint64_t **out,
                   unsigned *n)
{
    const msgpack_object_array *a = array(r, key, KVF_PEER_CLAIMS);

    if (a == NULL || (*out = elements(r, a->size, sizeof **out)) == NULL)
        return;
    for (unsigned i = 0; i < a->size; i++) {
        if (a->ptr[i].type != MSGPACK_OBJECT_POSITIVE_INTEGER) {
            bad_element(r, key, i);
            return;
        }
        (*out)[i] = a->ptr[i].via.u64;
    }
    *n = a->size;
}

static void gone_list(struct reader *r, struct kvf_peer_gone **out, unsigned *n)
{
    const msgpack_object_array *a = array(r, "gone", KVF_PEER_CLAIMS);

    if (a == NULL || (*out = elements(r, a->size, sizeof **out)) == NULL)
        return;
    for (unsigned i = 0; i < a->size; i++) {
        const msgpack_object *o = &a->ptr[i];
        struct kvf_peer_gone *g = &(*out)[i];
        uint8_t b[KVF_ID_LEN + 16];

        if (o->type != MSGPACK_OBJECT_BIN || o->via.bin.size != sizeof b) {
            bad_element(r, "gone", i);
            return;
        }
        memcpy(b, o->via.bin.ptr, sizeof b);
        memcpy(g->incarnation.b, b, KVF_ID_LEN);
        g->pid = kvf_get_u64(b + KVF_ID_LEN);
        g->start = kvf_get_u64(b + KVF_ID_LEN + 8);
    }
    *n = a->size;
}

static void read_welcome(struct reader *r, struct kvf_peer_msg *m)
{
    uint64_t port = 0;

    pool(r, &m->u.welcome.pool);
    flag(r, "shm", &m->u.welcome.shm);
    text(r, "shm_why", m->u.welcome.shm_why, sizeof m->u.welcome.shm_why);
    flag(r, "tcp", &m->u.welcome.tcp);
    claims(r, "dead", &m->u.welcome.dead, &m->u.welcome.n_dead);
    flag_opt(r, "rdma", &m->u.welcome.rdma);
    (void)u64_opt(r, "peer_timeout_ms", KVF_MAX_MS,
                  &m->u.welcome.peer_timeout_ms);
    if (r->rc < 0 || !m->u.welcome.tcp)
        return;
    name(r, "tcp_host", 1, m->u.welcome.tcp_host, sizeof m->u.welcome.tcp_host);
    u64(r, "tcp_port", 1, UINT16_MAX, &port);
    bytes(r, "secret", m->u.welcome.secret, KVF_SECRET_LEN);
    m->u.welcome.tcp_port = (uint16_t)port;
    /* Numeric, with a scope at most: nothing here may start a look-up. */
    if (r->rc == 0 &&
        (strspn(m->u.welcome.tcp_host,
                "0123456789abcdefghijklmnopqrstuvwxyzABCDEF.:%_-") !=
             strlen(m->u.welcome.tcp_host) ||
         (strchr(m->u.welcome.tcp_host, ':') == NULL &&
          strspn(m->u.welcome.tcp_host, "0123456789.") !=
              strlen(m->u.welcome.tcp_host))))
        r->rc = kvf_fail(r->why, KVF_INVALID,
                         "field tcp_host: not a numeric address");
}

static void read_ask(struct reader *r, struct kvf_peer_ask *a)
{
    char mode[8];
    unsigned i = KVF_MODE_AUTO;

    u64(r, "ask", 0, UINT64_MAX, &a->ask);
    if (r->rc == 0) {
        int rc = kvf_mp_str(r->map, "key", 1, KVF_MAX_KEY, &a->key.p,
                            &a->key.len, r->why);

        r->rc = rc > 0 ? 0 : rc < 0 ? rc : kvf_mp_missing(r->why, "key");
    }
    flag(r, "wait", &a->wait);
    u64(r, "wait_ms", 0, KVF_MAX_MS, &a->wait_ms);
    flag(r, "shm", &a->want_shm);
    name(r, "mode", 1, mode, sizeof mode);
    u64(r, "eager_max", 0, INT64_MAX, &a->eager_max);
    u64(r, "view_pid", 0, INT32_MAX, &a->view_pid);
    u64(r, "view_start", 0, UINT64_MAX, &a->view_start);
    a->has_generation = u64_opt(r, "generation", UINT64_MAX, &a->generation);
    a->has_incarnation =
        bytes_opt(r, "incarnation", a->incarnation.b, KVF_ID_LEN);
    if (r->rc < 0)
        return;
    while (i <= KVF_MODE_INTO &&
           strcmp(mode, kvf_mode_name((enum kvf_mode)i)) != 0)
        i++;
    if (i > KVF_MODE_INTO)
        r->rc = kvf_fail(r->why, KVF_INVALID, "field mode: unknown");
    else
        a->mode = (enum kvf_mode)i;
}

static void grant_spaces(struct reader *r, struct kvf_peer_grant *g)
{
    const msgpack_object_array *a = array(r, "spaces", KVF_PEER_SPACES);

    if (a == NULL ||
        (g->spaces = elements(r, a->size, sizeof *g->spaces)) == NULL)
        return;
    for (unsigned i = 0; i < a->size && r->rc == 0; i++) {
        struct kvf_peer_space *s = &g->spaces[i];
        struct reader in = {.map = &a->ptr[i], .why = r->why};

        name(&in, "path", 1, s->path, sizeof s->path);
        u64(&in, "dev", 0, UINT64_MAX, &s->dev);
        u64(&in, "ino", 0, UINT64_MAX, &s->ino);
        u64(&in, "size", 1, INT64_MAX, &s->size);
        r->rc = in.rc;
    }
    g->n_spaces = a->size;
}

static bool grant_seg(const msgpack_object *o, const struct kvf_peer_grant *g,
                      struct kvf_peer_seg *s)
{
    uint64_t v[3], end;

    if (o->type != MSGPACK_OBJECT_ARRAY || o->via.array.size != 3)
        return false;
    for (unsigned i = 0; i < 3; i++) {
        if (o->via.array.ptr[i].type != MSGPACK_OBJECT_POSITIVE_INTEGER)
            return false;
        v[i] = o->via.array.ptr[i].via.u64;
    }
    if (v[0] > g->n_spaces || v[2] == 0 || v[2] > INT64_MAX ||
        v[1] > (uint64_t)INT64_MAX - v[2])
        return false;
    end = v[1] + v[2];
    if (v[0] > 0 && end > g->spaces[v[0] - 1].size)
        return false;
    *s = (struct kvf_peer_seg){(uint32_t)v[0], v[1], v[2]};
    return true;
}

static void grant_segs(struct reader *r, struct kvf_peer_grant *g)
{
    const msgpack_object_array *a = array(r, "segs", KVF_MAX_SEGMENTS);
    uint64_t rest = g->size;

    if (a == NULL || (g->segs = elements(r, a->size, sizeof *g->segs)) == NULL)
        return;
    for (unsigned i = 0; i < a->size; i++) {
        if (!grant_seg(&a->ptr[i], g, &g->segs[i]) ||
            g->segs[i].length > rest) {
            bad_element(r, "segs", i);
            return;
        }
        rest -= g->segs[i].length;
    }
    g->n_segs = a->size;
    if (rest != 0)
        r->rc = kvf_fail(r->why, KVF_INVALID,
                         "field segs: %" PRIu64 " bytes short of size", rest);
}

static void read_grant(struct reader *r, struct kvf_peer_msg *m)
{
    struct kvf_peer_grant *g = &m->u.grant;

    u64(r, "ask", 0, UINT64_MAX, &g->ask);
    u64(r, "claim", 0, UINT64_MAX, &g->claim);
    u64(r, "generation", 0, UINT64_MAX, &g->generation);
    u64(r, "size", 1, INT64_MAX, &g->size);
    bytes(r, "token", g->token.b, KVF_ID_LEN);
    flag(r, "eager", &g->eager);
    flag(r, "shm", &g->shm);
    g->has_checksum = u64_opt(r, "checksum", UINT64_MAX, &g->checksum);
    if (r->rc == 0) {
        int rc = kvf_mp_bin(r->map, "meta", 0, KVF_MAX_META, &g->meta,
                            &g->meta_len, r->why);

        r->rc = rc < 0 ? rc : 0;
    }
    grant_spaces(r, g);
    grant_segs(r, g);
    if (r->rc == 0)
        r->rc = kvf_peer_rdma_read_grant(r->map, g, r->why);
    if (r->rc < 0)
        return;
    if (g->eager != (m->payload != NULL) ||
        (g->eager && m->payload_len != g->size))
        r->rc = kvf_fail(r->why, KVF_INVALID,
                         "the eager bytes are not what the grant says");
    else if (g->shm && !g->eager && g->n_segs == 0)
        r->rc = kvf_fail(r->why, KVF_INVALID, "a grant of shm without segs");
}

static void status(struct reader *r, uint32_t *out)
{
    uint64_t v = 0;

    u64(r, "status", 1, KVF_STATUS_COUNT - 1, &v); /* OK denies nothing */
    *out = (uint32_t)v;
}

static void read_gone(struct reader *r, struct kvf_peer_gone *g)
{
    bytes(r, "incarnation", g->incarnation.b, KVF_ID_LEN);
    u64(r, "pid", 1, INT32_MAX, &g->pid);
    u64(r, "start", 0, UINT64_MAX, &g->start);
}

static void read_body(struct reader *r, struct kvf_peer_msg *m)
{
    switch (m->head.type) {
    case KVF_PEER_HELLO:
        pool(r, &m->u.hello.pool);
        u64(r, "peer_timeout_ms", 0, KVF_MAX_MS, &m->u.hello.peer_timeout_ms);
        claims(r, "live", &m->u.hello.live, &m->u.hello.n_live);
        gone_list(r, &m->u.hello.gone, &m->u.hello.n_gone);
        flag_opt(r, "rdma", &m->u.hello.rdma);
        (void)u64_opt(r, "link", UINT64_MAX, &m->u.hello.link);
        break;
    case KVF_PEER_WELCOME:
        read_welcome(r, m);
        break;
    case KVF_PEER_REFUSE:
        status(r, &m->u.refuse.status);
        text(r, "text", m->u.refuse.text, sizeof m->u.refuse.text);
        break;
    case KVF_PEER_PING:
    case KVF_PEER_PONG:
        u64(r, "seq", 0, UINT64_MAX, &m->u.ping.seq);
        break;
    case KVF_PEER_ASK:
        read_ask(r, &m->u.ask);
        break;
    case KVF_PEER_UNASK:
        u64(r, "ask", 0, UINT64_MAX, &m->u.unask.ask);
        break;
    case KVF_PEER_GRANT:
        read_grant(r, m);
        break;
    case KVF_PEER_DENY:
        u64(r, "ask", 0, UINT64_MAX, &m->u.deny.ask);
        status(r, &m->u.deny.status);
        u64(r, "generation", 0, UINT64_MAX, &m->u.deny.generation);
        u64(r, "size", 0, UINT64_MAX, &m->u.deny.size);
        (void)u64_opt(r, "free", UINT64_MAX, &m->u.deny.free);
        (void)u64_opt(r, "largest_free", UINT64_MAX, &m->u.deny.largest_free);
        (void)u64_opt(r, "needed", UINT64_MAX, &m->u.deny.needed);
        text(r, "text", m->u.deny.text, sizeof m->u.deny.text);
        break;
    case KVF_PEER_DONE:
    case KVF_PEER_ABORT:
        u64(r, "claim", 0, UINT64_MAX, &m->u.end.claim);
        bytes(r, "token", m->u.end.token.b, KVF_ID_LEN);
        break;
    case KVF_PEER_ENDED:
        u64(r, "claim", 0, UINT64_MAX, &m->u.ended.claim);
        claims(r, "more", &m->u.ended.more, &m->u.ended.n_more);
        break;
    case KVF_PEER_REVOKED:
        u64(r, "claim", 0, UINT64_MAX, &m->u.revoked.claim);
        text(r, "text", m->u.revoked.text, sizeof m->u.revoked.text);
        break;
    case KVF_PEER_UNMAPPED:
        read_gone(r, &m->u.unmapped);
        break;
    case KVF_PEER_BYE:
        text(r, "text", m->u.bye.text, sizeof m->u.bye.text);
        break;
    case KVF_PEER_LAYOUT:
    case KVF_PEER_LAYOUT_GONE:
    case KVF_PEER_LAYOUT_ASK:
    case KVF_PEER_LAYOUT_IS:
    case KVF_PEER_BLOCKS_ASK:
    case KVF_PEER_BLOCKS_GRANT:
    case KVF_PEER_TOGETHER:
    case KVF_PEER_VERDICT:
        r->rc = kvf_peer_layout_read(r->map, m, r->why);
        break;
    case KVF_PEER_RDMA_CONNECT:
    case KVF_PEER_RDMA_ACCEPT:
    case KVF_PEER_RDMA_REFUSE:
    case KVF_PEER_RDMA_CLOSE:
    case KVF_PEER_RDMA_KEYS:
        r->rc = kvf_peer_rdma_read(r->map, m, r->why);
        break;
    case KVF_PEER_WINDOW_ASK:
    case KVF_PEER_ROOM_ASK:
    case KVF_PEER_COMMIT:
    case KVF_PEER_NOTIFY:
    case KVF_PEER_APPLIED:
    case KVF_PEER_RETIRED:
    case KVF_PEER_RETIRED_SEEN:
        r->rc = kvf_peer_push_read(r->map, m, r->why);
        break;
    case KVF_PEER_TYPE_END:
    default:
        r->rc = kvf_fail(r->why, KVF_INVALID, "unknown type");
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
    struct reader r = {.why = why};
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
    r.map = &a->ptr[8];
    read_body(&r, m);
    if (r.rc < 0)
        kvf_fail_prefix(why, "%s", kvf_peer_type_name(m->head.type));
    return r.rc;
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
        kvf_peer_rdma_grant_done(&m->u.grant);
        free(m->u.grant.segs);
        free(m->u.grant.spaces);
    }
    kvf_peer_layout_done(m);
    kvf_peer_rdma_done(m);
    kvf_mp_done(&m->mp);
    m->decoded = false;
}
