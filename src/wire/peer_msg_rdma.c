/* RDMA parts of peer messages: both ends of an RC connection, and where the
 * bytes of a grant are registered (docs/PROTOCOL-PEER.md).
 *
 * Failure modes: -KVF_INVALID and nothing else. Numbers are only bounded here;
 * whether they fit each other is the handshake's to say. */
#include "wire/peer_body.h"

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

static void put_connect(struct kvf_mpw *w, const struct kvf_rdma_connect *c)
{
    kvf_mpw_map(w, END_FIELDS + 1 + c->both + c->joined);
    kvf_mpw_kv_u64(w, "id", c->id);
    put_end(w, &c->end);
    if (c->both)
        kvf_mpw_kv_bool(w, "both", true);
    if (c->joined)
        kvf_mpw_kv_bool(w, "joined", true);
}

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
        put_connect(w, &m->u.rdma_connect);
    } else if (m->head.type == KVF_PEER_RDMA_ACCEPT) {
        put_accept(w, &m->u.rdma_accept);
    } else if (m->head.type == KVF_PEER_RDMA_KEYS) {
        kvf_mpw_map(w, 3);
        kvf_mpw_kv_u64(w, "layout", m->u.rdma_keys.layout);
        kvf_mpw_kv_u64(w, "region", m->u.rdma_keys.region);
        kvf_mpw_str(w, "keys");
        put_keys(w, m->u.rdma_keys.keys);
    } else { /* RDMA_REFUSE, RDMA_CLOSE */
        kvf_mpw_map(w, 3);
        kvf_mpw_kv_u64(w, "id", word->id);
        kvf_mpw_kv_u64(w, "status", word->status);
        kvf_body_put_text(w, "text", word->text, sizeof word->text);
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

static void read_gids(struct kvf_body *b, struct kvf_rdma_end *e)
{
    const msgpack_object_array *a = kvf_body_array(b, "gids", KVF_RDMA_GIDS);

    for (unsigned i = 0; a != NULL && i < a->size; i++) {
        const msgpack_object *g = &a->ptr[i];
        const msgpack_object *v = g->via.array.ptr;
        uint64_t type;

        if (g->type != MSGPACK_OBJECT_ARRAY || g->via.array.size != 2 ||
            v[0].type != MSGPACK_OBJECT_BIN || v[0].via.bin.size != 16 ||
            !item_u64(&v[1], KVF_RDMA_GID_ROCE_V2, &type)) {
            kvf_body_bad_element(b, "gids", i);
            return;
        }
        memcpy(e->gid[i].raw, v[0].via.bin.ptr, 16);
        e->gid[i].type = (uint8_t)type;
    }
    if (a != NULL)
        e->n_gid = a->size;
}

static void read_end(struct kvf_body *b, struct kvf_rdma_end *e)
{
    uint64_t qpn = 0, psn = 0, layer = 0, lid = 0, mtu = 0, rd = 0;

    kvf_body_u64_in(b, "qpn", 0, 0xffffff, &qpn);
    kvf_body_u64_in(b, "psn", 0, 0xffffff, &psn);
    kvf_body_u64_in(b, "link_layer", 0, UINT8_MAX, &layer);
    kvf_body_u64_in(b, "lid", 0, UINT16_MAX, &lid);
    kvf_body_u64_in(b, "mtu", 0, 65536, &mtu);
    kvf_body_u64_in(b, "rd_atomic", 0, UINT8_MAX, &rd);
    e->qpn = (uint32_t)qpn;
    e->psn = (uint32_t)psn;
    e->link_layer = (uint8_t)layer;
    e->lid = (uint16_t)lid;
    e->mtu = (uint32_t)mtu;
    e->rd_atomic = (uint32_t)rd;
    read_gids(b, e);
}

static void read_pool(struct kvf_body *b, struct kvf_rdma_accept *a)
{
    const msgpack_object_array *keys = kvf_body_array(b, "pool", KVF_RDMA_MRS);
    uint64_t sum = 0;

    if (keys == NULL ||
        (a->pool = kvf_body_elements(b, keys->size, sizeof *a->pool)) == NULL)
        return;
    for (unsigned i = 0; i < keys->size; i++) {
        if (!read_key(&keys->ptr[i], &a->pool[i]) ||
            a->pool[i].length > INT64_MAX - sum) {
            kvf_body_bad_element(b, "pool", i);
            return;
        }
        sum += a->pool[i].length;
    }
    a->n_pool = keys->size;
}

static void read_accept(struct kvf_body *b, struct kvf_rdma_accept *a)
{
    uint64_t gid = 0;

    kvf_body_u64(b, "id", &a->id);
    read_end(b, &a->end);
    kvf_body_u64_in(b, "your_gid", 0, KVF_RDMA_GIDS, &gid);
    a->your_gid = (uint32_t)gid;
    read_pool(b, a);
}

/* [first, key, ...]: pieces of something of `size` bytes; [] is nothing, and
 * NULL. `i`: for a message about the failure. */
static struct kvf_rdma_keys *read_keys(struct kvf_body *b,
                                       const msgpack_object_array *a,
                                       unsigned i, uint64_t size)
{
    struct kvf_rdma_keys *keys;
    unsigned n = a->size;
    uint64_t at;

    if (n == 0)
        return NULL; /* not registered */
    if (n - 1 > KVF_RDMA_SPACE_MRS || n < 2 ||
        !item_u64(&a->ptr[0], size, &at)) {
        kvf_body_bad_element(b, "keys", i);
        return NULL;
    }
    keys =
        kvf_body_elements(b, 1, sizeof *keys + (n - 1) * sizeof keys->key[0]);
    if (keys == NULL)
        return NULL;
    keys->first = at;
    keys->n = n - 1;
    for (unsigned k = 0; k < n - 1; k++) {
        struct kvf_rdma_key *key = &keys->key[k];

        if (!read_key(&a->ptr[k + 1], key) ||
            key->length > (uint64_t)INT64_MAX - at) {
            kvf_body_bad_element(b, "keys", i);
            break;
        }
        at += key->length;
    }
    return keys;
}

static void read_region(struct kvf_body *b, struct kvf_peer_msg *m)
{
    const msgpack_object_array *a;

    kvf_body_u64(b, "layout", &m->u.rdma_keys.layout);
    kvf_body_u64_in(b, "region", 0, UINT32_MAX, &m->u.rdma_keys.region);
    a = kvf_body_array(b, "keys", KVF_RDMA_SPACE_MRS + 1);
    if (a == NULL)
        return;
    m->u.rdma_keys.keys = read_keys(b, a, 0, INT64_MAX);
    if (b->rc == 0 && m->u.rdma_keys.keys == NULL)
        kvf_body_bad_element(b, "keys", 0);
}

void kvf_peer_rdma_read(struct kvf_body *b, struct kvf_peer_msg *m)
{
    struct kvf_rdma_word *word = &m->u.rdma_word;

    if (m->head.type == KVF_PEER_RDMA_CONNECT) {
        kvf_body_u64(b, "id", &m->u.rdma_connect.id);
        read_end(b, &m->u.rdma_connect.end);
        kvf_body_flag_opt(b, "both", &m->u.rdma_connect.both);
        kvf_body_flag_opt(b, "joined", &m->u.rdma_connect.joined);
    } else if (m->head.type == KVF_PEER_RDMA_ACCEPT) {
        read_accept(b, &m->u.rdma_accept);
    } else if (m->head.type == KVF_PEER_RDMA_KEYS) {
        read_region(b, m);
    } else { /* RDMA_REFUSE, RDMA_CLOSE */
        kvf_body_u64(b, "id", &word->id);
        kvf_body_status(b, KVF_OK, &word->status);
        kvf_body_text(b, "text", word->text, sizeof word->text);
    }
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

/* One element a space. */
static void read_grant_keys(struct kvf_body *b, struct kvf_peer_grant *g)
{
    const msgpack_object_array *a = kvf_body_array(b, "keys", KVF_PEER_SPACES);

    if (a == NULL)
        return;
    if (a->size != g->n_spaces) {
        b->rc = kvf_fail(b->why, KVF_INVALID, "field keys: not one a space");
        return;
    }
    g->keys = kvf_body_elements(b, a->size, sizeof *g->keys);
    for (unsigned i = 0; b->rc == 0 && i < a->size; i++) {
        if (a->ptr[i].type == MSGPACK_OBJECT_ARRAY)
            g->keys[i] =
                read_keys(b, &a->ptr[i].via.array, i, g->spaces[i].size);
        else
            kvf_body_bad_element(b, "keys", i);
    }
}

void kvf_peer_rdma_read_grant(struct kvf_body *b, struct kvf_peer_grant *g)
{
    kvf_body_flag_opt(b, "rdma_soon", &g->rdma_soon);
    kvf_body_flag_opt(b, "rdma", &g->rdma);
    if (b->rc < 0 || !g->rdma)
        return;
    if (kvf_mp_get(b->map, "keys") != NULL)
        read_grant_keys(b, g);
    if (b->rc == 0 && !covered(g))
        b->rc = kvf_fail(b->why, KVF_INVALID,
                         "a grant of rdma without keys for its segs");
}

void kvf_peer_rdma_grant_done(struct kvf_peer_grant *g)
{
    for (unsigned i = 0; g->keys != NULL && i < g->n_spaces; i++)
        free(g->keys[i]);
    free(g->keys);
    g->keys = NULL;
}
