/* RDMA parts of peer messages: both ends of an RC connection, and where the
 * bytes of a grant are registered (docs/PROTOCOL-PEER.md).
 *
 * Failure modes: -KVF_INVALID and nothing else. Numbers are only bounded here;
 * whether they fit each other is the handshake's to say. */
#include "wire/peer_msg_rdma.h"

#include <stdlib.h>
#include <string.h>

/* ---- writing ------------------------------------------------------------ */

static void put_key(struct kvf_mpw *w, const struct kvf_rdma_key *k)
{
    kvf_mpw_array(w, 3);
    kvf_mpw_u64(w, k->addr);
    kvf_mpw_u64(w, k->length);
    kvf_mpw_u64(w, k->rkey);
}

/* Nothing is []. */
static void put_keys(struct kvf_mpw *w, const struct kvf_rdma_keys *k)
{
    kvf_mpw_array(w, k != NULL ? k->n + 1 : 0);
    if (k != NULL)
        kvf_mpw_u64(w, k->first);
    for (unsigned j = 0; k != NULL && j < k->n; j++)
        put_key(w, &k->key[j]);
}

static void put_end(struct kvf_mpw *w, const struct kvf_rdma_end *e)
{
    kvf_mpw_kv_u64(w, "qpn", e->qpn);
    kvf_mpw_kv_u64(w, "psn", e->psn);
    kvf_mpw_kv_u64(w, "link_layer", e->link_layer);
    kvf_mpw_kv_u64(w, "lid", e->lid);
    kvf_mpw_kv_u64(w, "mtu", e->mtu);
    kvf_mpw_kv_u64(w, "rd_atomic", e->rd_atomic);
    kvf_mpw_str(w, "gids");
    kvf_mpw_array(w, e->n_gid);
    for (unsigned i = 0; i < e->n_gid; i++) {
        kvf_mpw_array(w, 2);
        kvf_mpw_bin(w, e->gid[i].raw, sizeof e->gid[i].raw);
        kvf_mpw_u64(w, e->gid[i].type);
    }
}

#define END_FIELDS 7u

static void put_accept(struct kvf_mpw *w, const struct kvf_rdma_accept *a)
{
    kvf_mpw_map(w, END_FIELDS + 3);
    kvf_mpw_kv_u64(w, "id", a->id);
    put_end(w, &a->end);
    kvf_mpw_kv_u64(w, "your_gid", a->your_gid);
    kvf_mpw_str(w, "pool");
    kvf_mpw_array(w, a->n_pool);
    for (unsigned i = 0; i < a->n_pool; i++)
        put_key(w, &a->pool[i]);
}

void kvf_peer_rdma_put(struct kvf_mpw *w, const struct kvf_peer_msg *m)
{
    const struct kvf_rdma_word *word = &m->u.rdma_word;

    if (m->head.type == KVF_PEER_RDMA_CONNECT) {
        kvf_mpw_map(w, END_FIELDS + 1);
        kvf_mpw_kv_u64(w, "id", m->u.rdma_connect.id);
        put_end(w, &m->u.rdma_connect.end);
    } else if (m->head.type == KVF_PEER_RDMA_ACCEPT) {
        put_accept(w, &m->u.rdma_accept);
    } else if (m->head.type == KVF_PEER_RDMA_KEYS) {
        kvf_mpw_map(w, 3);
        kvf_mpw_kv_u64(w, "layout", m->u.rdma_keys.layout);
        kvf_mpw_kv_u64(w, "region", m->u.rdma_keys.region);
        kvf_mpw_str(w, "keys");
        put_keys(w, m->u.rdma_keys.keys);
    } else {
        size_t len = strnlen(word->text, sizeof word->text - 1);

        for (unsigned i = 0;
             i < 3 && !kvf_utf8_valid(word->text, len) && len > 0; i++)
            len--;
        kvf_mpw_map(w, 3);
        kvf_mpw_kv_u64(w, "id", word->id);
        kvf_mpw_kv_u64(w, "status", word->status);
        kvf_mpw_str(w, "text");
        kvf_mpw_strn(w, word->text, len);
    }
}

unsigned kvf_peer_rdma_put_grant(struct kvf_mpw *w,
                                 const struct kvf_peer_grant *g)
{
    unsigned fields = g->rdma ? 1 + (g->keys != NULL) : g->rdma_soon;

    if (w == NULL || fields == 0)
        return fields;
    kvf_mpw_kv_bool(w, g->rdma ? "rdma" : "rdma_soon", true);
    if (!g->rdma || g->keys == NULL)
        return fields;
    kvf_mpw_str(w, "keys");
    kvf_mpw_array(w, g->n_spaces);
    for (unsigned i = 0; i < g->n_spaces; i++) {
        put_keys(w, g->keys[i]);
    }
    return fields;
}

/* ---- reading ------------------------------------------------------------ */

static int u64(const msgpack_object *map, const char *key, uint64_t max,
               uint64_t *out, struct kvf_why *why)
{
    int rc = kvf_mp_u64(map, key, 0, max, out, why);

    return rc > 0 ? 0 : rc < 0 ? rc : kvf_mp_missing(why, key);
}

static int malformed(const char *key, unsigned i, struct kvf_why *why)
{
    return kvf_fail(why, KVF_INVALID, "field %s[%u]: malformed", key, i);
}

static bool item_u64(const msgpack_object *o, uint64_t max, uint64_t *out)
{
    if (o->type != MSGPACK_OBJECT_POSITIVE_INTEGER || o->via.u64 > max)
        return false;
    *out = o->via.u64;
    return true;
}

static bool read_key(const msgpack_object *o, struct kvf_rdma_key *k)
{
    const msgpack_object *v = o->via.array.ptr;
    uint64_t rkey;

    if (o->type != MSGPACK_OBJECT_ARRAY || o->via.array.size != 3 ||
        !item_u64(&v[0], UINT64_MAX, &k->addr) ||
        !item_u64(&v[1], INT64_MAX, &k->length) || k->length == 0 ||
        !item_u64(&v[2], UINT32_MAX, &rkey) || k->addr > UINT64_MAX - k->length)
        return false;
    k->rkey = (uint32_t)rkey;
    return true;
}

static int read_gids(const msgpack_object *map, struct kvf_rdma_end *e,
                     struct kvf_why *why)
{
    const msgpack_object *o;
    int rc = kvf_mp_array(map, "gids", KVF_RDMA_GIDS, &o, why);

    if (rc <= 0)
        return rc < 0 ? rc : kvf_mp_missing(why, "gids");
    for (unsigned i = 0; i < o->via.array.size; i++) {
        const msgpack_object *g = &o->via.array.ptr[i];
        const msgpack_object *v = g->via.array.ptr;
        uint64_t type;

        if (g->type != MSGPACK_OBJECT_ARRAY || g->via.array.size != 2 ||
            v[0].type != MSGPACK_OBJECT_BIN || v[0].via.bin.size != 16 ||
            !item_u64(&v[1], KVF_RDMA_GID_ROCE_V2, &type))
            return malformed("gids", i, why);
        memcpy(e->gid[i].raw, v[0].via.bin.ptr, 16);
        e->gid[i].type = (uint8_t)type;
    }
    e->n_gid = o->via.array.size;
    return 0;
}

static int read_end(const msgpack_object *map, struct kvf_rdma_end *e,
                    struct kvf_why *why)
{
    uint64_t qpn = 0, psn = 0, layer = 0, lid = 0, mtu = 0, rd = 0;
    int rc = u64(map, "qpn", 0xffffff, &qpn, why);

    if (rc == 0)
        rc = u64(map, "psn", 0xffffff, &psn, why);
    if (rc == 0)
        rc = u64(map, "link_layer", UINT8_MAX, &layer, why);
    if (rc == 0)
        rc = u64(map, "lid", UINT16_MAX, &lid, why);
    if (rc == 0)
        rc = u64(map, "mtu", 65536, &mtu, why);
    if (rc == 0)
        rc = u64(map, "rd_atomic", UINT8_MAX, &rd, why);
    e->qpn = (uint32_t)qpn;
    e->psn = (uint32_t)psn;
    e->link_layer = (uint8_t)layer;
    e->lid = (uint16_t)lid;
    e->mtu = (uint32_t)mtu;
    e->rd_atomic = (uint32_t)rd;
    return rc == 0 ? read_gids(map, e, why) : rc;
}

static int read_pool(const msgpack_object *map, struct kvf_rdma_accept *a,
                     struct kvf_why *why)
{
    uint64_t sum = 0;
    const msgpack_object *o;
    int rc = kvf_mp_array(map, "pool", KVF_RDMA_MRS, &o, why);

    if (rc <= 0)
        return rc < 0 ? rc : kvf_mp_missing(why, "pool");
    a->pool = calloc(o->via.array.size + 1u, sizeof *a->pool);
    if (a->pool == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    for (unsigned i = 0; i < o->via.array.size; i++) {
        if (!read_key(&o->via.array.ptr[i], &a->pool[i]) ||
            a->pool[i].length > INT64_MAX - sum)
            return malformed("pool", i, why);
        sum += a->pool[i].length;
    }
    a->n_pool = o->via.array.size;
    return 0;
}

static int read_accept(const msgpack_object *map, struct kvf_rdma_accept *a,
                       struct kvf_why *why)
{
    uint64_t gid = 0;
    int rc = u64(map, "id", UINT64_MAX, &a->id, why);

    if (rc == 0)
        rc = read_end(map, &a->end, why);
    if (rc == 0)
        rc = u64(map, "your_gid", KVF_RDMA_GIDS, &gid, why);
    a->your_gid = (uint32_t)gid;
    return rc == 0 ? read_pool(map, a, why) : rc;
}

/* For people: cut, and without what cannot be printed. */
static void read_text(const msgpack_object *map, char *out, size_t cap)
{
    const msgpack_object *o = kvf_mp_get(map, "text");
    size_t n;

    out[0] = '\0';
    if (o == NULL || o->type != MSGPACK_OBJECT_STR)
        return;
    n = o->via.str.size < cap - 1 ? o->via.str.size : cap - 1;
    for (size_t i = 0; i < n; i++) {
        char c = o->via.str.ptr[i];

        out[i] = c >= ' ' && c < 0x7f ? c : '?';
    }
    out[n] = '\0';
}

static int read_word(const msgpack_object *map, struct kvf_rdma_word *word,
                     struct kvf_why *why)
{
    uint64_t status = 0;
    int rc = u64(map, "id", UINT64_MAX, &word->id, why);

    if (rc == 0)
        rc = u64(map, "status", KVF_STATUS_COUNT - 1, &status, why);
    word->status = (uint32_t)status;
    read_text(map, word->text, sizeof word->text);
    return rc;
}

/* [first, key, ...]: pieces of something of `size` bytes; [] is nothing. */
static int read_keys(const msgpack_object *o, unsigned i, uint64_t size,
                     struct kvf_rdma_keys **out, struct kvf_why *why)
{
    const msgpack_object *v = o->via.array.ptr;
    uint64_t at;
    unsigned n;

    if (o->type != MSGPACK_OBJECT_ARRAY)
        return malformed("keys", i, why);
    n = o->via.array.size;
    if (n == 0)
        return 0; /* not registered */
    if (n - 1 > KVF_RDMA_SPACE_MRS || n < 2 || !item_u64(&v[0], size, &at))
        return malformed("keys", i, why);
    *out = calloc(1, sizeof **out + (n - 1) * sizeof(*out)->key[0]);
    if (*out == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    (*out)->first = at;
    (*out)->n = n - 1;
    for (unsigned k = 0; k < n - 1; k++) {
        struct kvf_rdma_key *key = &(*out)->key[k];

        if (!read_key(&v[k + 1], key) || key->length > (uint64_t)INT64_MAX - at)
            return malformed("keys", i, why);
        at += key->length;
    }
    return 0;
}

static int read_region(const msgpack_object *map, struct kvf_peer_msg *m,
                       struct kvf_why *why)
{
    const msgpack_object *o;
    int rc = u64(map, "layout", UINT64_MAX, &m->u.rdma_keys.layout, why);

    if (rc == 0)
        rc = u64(map, "region", UINT32_MAX, &m->u.rdma_keys.region, why);
    if (rc == 0) {
        rc = kvf_mp_array(map, "keys", KVF_RDMA_SPACE_MRS + 1, &o, why);
        rc = rc > 0 ? 0 : rc < 0 ? rc : kvf_mp_missing(why, "keys");
    }
    if (rc == 0)
        rc = read_keys(o, 0, INT64_MAX, &m->u.rdma_keys.keys, why);
    if (rc == 0 && m->u.rdma_keys.keys == NULL)
        rc = malformed("keys", 0, why);
    return rc;
}

int kvf_peer_rdma_read(const msgpack_object *map, struct kvf_peer_msg *m,
                       struct kvf_why *why)
{
    struct kvf_rdma_connect *c = &m->u.rdma_connect;
    int rc;

    if (m->head.type == KVF_PEER_RDMA_ACCEPT)
        return read_accept(map, &m->u.rdma_accept, why);
    if (m->head.type == KVF_PEER_RDMA_KEYS)
        return read_region(map, m, why);
    if (m->head.type != KVF_PEER_RDMA_CONNECT)
        return read_word(map, &m->u.rdma_word, why);
    rc = u64(map, "id", UINT64_MAX, &c->id, why);
    return rc == 0 ? read_end(map, &c->end, why) : rc;
}

void kvf_peer_rdma_done(struct kvf_peer_msg *m)
{
    if (m->head.type == KVF_PEER_RDMA_ACCEPT) {
        free(m->u.rdma_accept.pool);
        m->u.rdma_accept.pool = NULL;
    } else if (m->head.type == KVF_PEER_RDMA_KEYS) {
        free(m->u.rdma_keys.keys);
        m->u.rdma_keys.keys = NULL;
    }
}

/* ---- grants ------------------------------------------------------------- */

/* Every segment in a region lies within the pieces named for it? */
static bool covered(const struct kvf_peer_grant *g)
{
    for (unsigned i = 0; i < g->n_segs; i++) {
        const struct kvf_peer_seg *s = &g->segs[i];
        const struct kvf_rdma_keys *k;
        uint64_t end;

        if (s->space == 0)
            continue;
        k = g->keys != NULL ? g->keys[s->space - 1] : NULL;
        if (k == NULL || s->offset < k->first)
            return false;
        end = k->first;
        for (unsigned j = 0; j < k->n; j++)
            end += k->key[j].length;
        if (s->offset + s->length > end)
            return false;
    }
    return g->n_segs > 0;
}

int kvf_peer_rdma_read_grant(const msgpack_object *map,
                             struct kvf_peer_grant *g, struct kvf_why *why)
{
    const msgpack_object *o;
    int rc = kvf_mp_bool(map, "rdma_soon", &g->rdma_soon, why);

    if (rc >= 0)
        rc = kvf_mp_bool(map, "rdma", &g->rdma, why);
    if (rc < 0 || !g->rdma)
        return rc < 0 ? rc : 0;
    rc = kvf_mp_array(map, "keys", KVF_PEER_SPACES, &o, why);
    if (rc < 0)
        return rc;
    if (rc > 0) {
        if (o->via.array.size != g->n_spaces)
            return kvf_fail(why, KVF_INVALID, "field keys: not one a space");
        g->keys = calloc(g->n_spaces + 1u, sizeof *g->keys);
        if (g->keys == NULL)
            return kvf_fail(why, KVF_INTERNAL, "out of memory");
        for (unsigned i = 0; i < g->n_spaces; i++) {
            rc = read_keys(&o->via.array.ptr[i], i, g->spaces[i].size,
                           &g->keys[i], why);
            if (rc < 0)
                return rc;
        }
    }
    if (!covered(g))
        return kvf_fail(why, KVF_INVALID,
                        "a grant of rdma without keys for its segs");
    return 0;
}

void kvf_peer_rdma_grant_done(struct kvf_peer_grant *g)
{
    for (unsigned i = 0; g->keys != NULL && i < g->n_spaces; i++)
        free(g->keys[i]);
    free(g->keys);
    g->keys = NULL;
}
