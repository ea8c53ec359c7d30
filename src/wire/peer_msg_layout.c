/* Peer messages of KV blocks: layouts, lookups, claims on blocks, groups of
 * pulls (docs/PROTOCOL-PEER.md).
 *
 * Failure modes: -KVF_INVALID, -KVF_INTERNAL out of memory. Whether a layout
 * makes sense is kvf_match_make's to say; here every number is bounded and
 * every region named exists. */
#include "wire/peer_msg_layout.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- writing ------------------------------------------------------------ */

static void put_text(struct kvf_mpw *w, const char *text, size_t cap)
{
    size_t len = strnlen(text, cap - 1);

    for (unsigned i = 0; i < 3 && len > 0 && !kvf_utf8_valid(text, len); i++)
        len--;
    kvf_mpw_str(w, "text");
    kvf_mpw_strn(w, text, len);
}

static void put_slice(struct kvf_mpw *w, const char *key,
                      const struct kvf_slice_str *s)
{
    kvf_mpw_str(w, key);
    kvf_mpw_strn(w, s->p, s->len);
}

static void put_layout(struct kvf_mpw *w, const struct kvf_peer_layout *l)
{
    kvf_mpw_map(w, KVF_LAYOUT_PAIRS + 3);
    kvf_mpw_kv_u64(w, "number", l->number);
    kvf_layout_write(w, l->side, l->rank);
    kvf_mpw_str(w, "regions");
    kvf_mpw_array(w, l->n_regions);
    for (unsigned i = 0; i < l->n_regions; i++)
        kvf_mpw_u64(w, l->length[i]);
    kvf_mpw_str(w, "spaces");
    kvf_mpw_array(w, l->n_spaces);
    for (unsigned i = 0; i < l->n_spaces; i++) {
        kvf_mpw_map(w, 4);
        kvf_mpw_kv_str(w, "path", l->spaces[i].path);
        kvf_mpw_kv_u64(w, "dev", l->spaces[i].dev);
        kvf_mpw_kv_u64(w, "ino", l->spaces[i].ino);
        kvf_mpw_kv_u64(w, "size", l->spaces[i].size);
    }
}

static void put_blocks_ask(struct kvf_mpw *w,
                           const struct kvf_peer_blocks_ask *a)
{
    kvf_mpw_map(w, 5u + a->has_tag + a->has_incarnation);
    kvf_mpw_kv_u64(w, "ask", a->ask);
    kvf_mpw_kv_u64(w, "layout", a->layout);
    kvf_mpw_kv_u64(w, "rank", a->rank);
    put_slice(w, "request_id", &a->request_id);
    kvf_mpw_kv_bool(w, "shm", a->want_shm);
    if (a->has_tag)
        kvf_mpw_kv_bin(w, "tag", a->tag.b, KVF_ID_LEN);
    if (a->has_incarnation)
        kvf_mpw_kv_bin(w, "incarnation", a->incarnation.b, KVF_ID_LEN);
}

static void put_blocks(struct kvf_mpw *w, const struct kvf_peer_blocks *b)
{
    kvf_mpw_map(w, 10u + b->rdma + b->rdma_soon);
    if (b->rdma) /* absent is false */
        kvf_mpw_kv_bool(w, "rdma", true);
    if (b->rdma_soon)
        kvf_mpw_kv_bool(w, "rdma_soon", true);
    kvf_mpw_kv_u64(w, "ask", b->ask);
    kvf_mpw_kv_u64(w, "claim", b->claim);
    kvf_mpw_kv_u64(w, "generation", b->generation);
    kvf_mpw_kv_u64(w, "layout", b->layout);
    kvf_mpw_kv_u64(w, "n_tokens", b->n_tokens);
    kvf_mpw_kv_bin(w, "token", b->token.b, KVF_ID_LEN);
    kvf_mpw_kv_bin(w, "tag", b->tag.b, KVF_ID_LEN);
    kvf_mpw_kv_bool(w, "minted", b->minted);
    kvf_mpw_kv_bool(w, "shm", b->shm);
    kvf_mpw_str(w, "blocks"); /* by group: [first, id, id, ...] */
    kvf_mpw_array(w, b->n_groups);
    for (unsigned g = 0; g < b->n_groups; g++) {
        kvf_mpw_array(w, (unsigned)b->ids[g].n + 1);
        kvf_mpw_u64(w, (uint64_t)b->ids[g].first);
        for (size_t i = 0; i < b->ids[g].n; i++)
            kvf_mpw_u64(w, (uint64_t)b->ids[g].ids[i]);
    }
}

static void put_together(struct kvf_mpw *w, const struct kvf_peer_together *t)
{
    kvf_mpw_map(w, 8);
    kvf_mpw_kv_u64(w, "ask", t->ask);
    kvf_mpw_kv_u64(w, "member", t->member);
    kvf_mpw_kv_u64(w, "size", t->size);
    put_slice(w, "request_id", &t->request_id);
    put_slice(w, "name", &t->name);
    kvf_mpw_kv_u64(w, "phase", (uint64_t)t->phase);
    kvf_mpw_kv_u64(w, "status", t->status);
    put_text(w, t->text, sizeof t->text);
}

void kvf_peer_layout_put(struct kvf_mpw *w, const struct kvf_peer_msg *m)
{
    switch ((unsigned)m->head.type) {
    case KVF_PEER_LAYOUT:
        put_layout(w, &m->u.layout);
        break;
    case KVF_PEER_LAYOUT_GONE:
        kvf_mpw_map(w, 1);
        kvf_mpw_kv_u64(w, "number", m->u.layout_gone.number);
        break;
    case KVF_PEER_LAYOUT_ASK:
        kvf_mpw_map(w, 2u + m->u.layout_ask.has_incarnation);
        kvf_mpw_kv_u64(w, "ask", m->u.layout_ask.ask);
        kvf_mpw_kv_u64(w, "layout", m->u.layout_ask.layout);
        if (m->u.layout_ask.has_incarnation)
            kvf_mpw_kv_bin(w, "incarnation", m->u.layout_ask.incarnation.b,
                           KVF_ID_LEN);
        break;
    case KVF_PEER_LAYOUT_IS:
        kvf_mpw_map(w, 2);
        kvf_mpw_kv_u64(w, "ask", m->u.layout_is.ask);
        kvf_mpw_kv_u64(w, "layout", m->u.layout_is.layout);
        break;
    case KVF_PEER_BLOCKS_ASK:
        put_blocks_ask(w, &m->u.blocks_ask);
        break;
    case KVF_PEER_BLOCKS_GRANT:
        put_blocks(w, &m->u.blocks);
        break;
    case KVF_PEER_TOGETHER:
        put_together(w, &m->u.together);
        break;
    default: /* VERDICT */
        kvf_mpw_map(w, 3);
        kvf_mpw_kv_u64(w, "ask", m->u.verdict.ask);
        kvf_mpw_kv_u64(w, "status", m->u.verdict.status);
        put_text(w, m->u.verdict.text, sizeof m->u.verdict.text);
    }
}

/* ---- reading ------------------------------------------------------------ */

static int u64(const msgpack_object *map, const char *key, uint64_t max,
               uint64_t *out, struct kvf_why *why)
{
    int rc = kvf_mp_u64(map, key, 0, max, out, why);

    return rc > 0 ? 0 : rc < 0 ? rc : kvf_mp_missing(why, key);
}

static int flag(const msgpack_object *map, const char *key, bool *out,
                struct kvf_why *why)
{
    int rc = kvf_mp_bool(map, key, out, why);

    return rc > 0 ? 0 : rc < 0 ? rc : kvf_mp_missing(why, key);
}

/* 1 there, 0 absent. */
static int id_opt(const msgpack_object *map, const char *key,
                  struct kvf_id *out, struct kvf_why *why)
{
    const void *p;
    size_t len;
    int rc = kvf_mp_bin(map, key, KVF_ID_LEN, KVF_ID_LEN, &p, &len, why);

    if (rc > 0)
        memcpy(out->b, p, KVF_ID_LEN);
    return rc;
}

static int id(const msgpack_object *map, const char *key, struct kvf_id *out,
              struct kvf_why *why)
{
    int rc = id_opt(map, key, out, why);

    return rc > 0 ? 0 : rc < 0 ? rc : kvf_mp_missing(why, key);
}

static int str(const msgpack_object *map, const char *key, size_t max,
               struct kvf_slice_str *out, struct kvf_why *why)
{
    int rc = kvf_mp_str(map, key, 1, max, &out->p, &out->len, why);

    return rc > 0 ? 0 : rc < 0 ? rc : kvf_mp_missing(why, key);
}

static int array(const msgpack_object *map, const char *key, size_t max,
                 const msgpack_object_array **out, struct kvf_why *why)
{
    const msgpack_object *o;
    int rc = kvf_mp_array(map, key, max, &o, why);

    if (rc <= 0)
        return rc < 0 ? rc : kvf_mp_missing(why, key);
    *out = &o->via.array;
    return 0;
}

static int no_memory(struct kvf_why *why)
{
    return kvf_fail(why, KVF_INTERNAL, "out of memory");
}

static void text(const msgpack_object *map, char *out, size_t cap)
{
    const msgpack_object *o = kvf_mp_get(map, "text");
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

static int read_space(const msgpack_object *o, struct kvf_peer_space *s,
                      struct kvf_why *why)
{
    struct kvf_slice_str path;
    int rc = str(o, "path", sizeof s->path - 1, &path, why);

    if (rc == 0 && memchr(path.p, 0, path.len) != NULL)
        rc = kvf_fail(why, KVF_INVALID, "field path: has a NUL byte");
    if (rc == 0)
        rc = u64(o, "dev", UINT64_MAX, &s->dev, why);
    if (rc == 0)
        rc = u64(o, "ino", UINT64_MAX, &s->ino, why);
    if (rc == 0)
        rc = u64(o, "size", INT64_MAX, &s->size, why);
    if (rc < 0)
        return rc;
    memcpy(s->path, path.p, path.len);
    s->path[path.len] = '\0';
    return 0;
}

/* Region i must be called i, so that the index says it all. */
static int check_regions(const struct kvf_peer_layout *l, struct kvf_why *why)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < l->decl.n_regions; i++)
        if (l->decl.regions[i] != i)
            return kvf_fail(why, KVF_INVALID,
                            "field views: region %" PRIu64 " is out of turn",
                            l->decl.regions[i]);
    if (l->decl.n_regions != l->n_regions ||
        (l->n_spaces != 0 && l->n_spaces != l->n_regions))
        return kvf_fail(why, KVF_INVALID,
                        "field regions: %u, but %u are used and %u placed",
                        l->n_regions, l->decl.n_regions, l->n_spaces);
    for (unsigned i = 0; i < l->n_regions; i++) {
        if (l->length[i] == 0 || l->length[i] > INT64_MAX - sum ||
            (l->n_spaces != 0 && l->length[i] > l->spaces[i].size))
            return kvf_fail(why, KVF_INVALID, "field regions[%u]: malformed",
                            i);
        sum += l->length[i];
    }
    return 0;
}

static int add_regions(struct kvf_peer_layout *l, struct kvf_why *why)
{
    for (unsigned i = 0; i < l->n_regions; i++)
        if (kvf_side_add_region(&l->decl.side, 0, i, (int64_t)l->length[i]) < 0)
            return no_memory(why);
    return 0;
}

static int read_places(const msgpack_object *map, struct kvf_peer_layout *l,
                       struct kvf_why *why)
{
    const msgpack_object_array *regions = NULL, *spaces = NULL;
    int rc = array(map, "regions", KVF_LAYOUT_REGIONS, &regions, why);

    if (rc == 0)
        rc = array(map, "spaces", KVF_LAYOUT_REGIONS, &spaces, why);
    if (rc < 0 || regions == NULL || spaces == NULL)
        return rc;
    l->length = calloc(regions->size + 1u, sizeof *l->length);
    l->spaces = calloc(spaces->size + 1u, sizeof *l->spaces);
    if (l->length == NULL || l->spaces == NULL)
        return no_memory(why);
    for (unsigned i = 0; i < regions->size; i++) {
        if (regions->ptr[i].type != MSGPACK_OBJECT_POSITIVE_INTEGER)
            return kvf_fail(why, KVF_INVALID, "field regions[%u]: malformed",
                            i);
        l->length[i] = regions->ptr[i].via.u64;
    }
    l->n_regions = regions->size;
    for (unsigned i = 0; i < spaces->size; i++) {
        rc = read_space(&spaces->ptr[i], &l->spaces[i], why);
        if (rc < 0)
            return kvf_fail_prefix(why, "field spaces[%u]", i);
    }
    l->n_spaces = spaces->size;
    return 0;
}

static int read_layout(const msgpack_object *map, struct kvf_peer_layout *l,
                       struct kvf_why *why)
{
    const struct kvf_side *s = &l->decl.side;
    int rc = kvf_layout_read(map, &l->decl, why);

    if (rc == 0)
        rc = u64(map, "number", UINT64_MAX, &l->number, why);
    if (rc == 0)
        rc = read_places(map, l, why);
    if (rc == 0)
        rc = check_regions(l, why);
    if (rc < 0)
        return rc;
    /* A sender has had its layout checked: odd words are not its engine's. */
    if (s->order < 0 || s->kv < 0)
        return kvf_fail(why, KVF_INVALID, "unknown page order or arrangement");
    for (unsigned g = 0; g < s->n_groups; g++)
        if (s->groups[g].kind < 0)
            return kvf_fail(why, KVF_INVALID, "unknown kind of group %u", g);
    for (unsigned y = 0; y < s->n_layers; y++)
        if (s->layers[y].kind < 0)
            return kvf_fail(why, KVF_INVALID, "unknown kind of layer %u", y);
    l->side = &l->decl.side;
    l->rank = l->decl.rank;
    return add_regions(l, why);
}

static int read_group(const msgpack_object *o, struct kvf_ids *g, int64_t *at,
                      struct kvf_why *why)
{
    for (unsigned i = 0; i < o->via.array.size; i++) {
        const msgpack_object *v = &o->via.array.ptr[i];

        if (v->type != MSGPACK_OBJECT_POSITIVE_INTEGER ||
            v->via.u64 > (uint64_t)INT64_MAX)
            return kvf_fail(why, KVF_INVALID, "must be block numbers");
        if (i == 0)
            g->first = (int64_t)v->via.u64;
        else
            at[i - 1] = (int64_t)v->via.u64;
    }
    g->ids = at;
    g->n = o->via.array.size - 1;
    return 0;
}

static int read_ids(const msgpack_object *map, struct kvf_peer_blocks *b,
                    struct kvf_why *why)
{
    const msgpack_object_array *a = NULL;
    size_t total = 0, at = 0;
    int rc = array(map, "blocks", KVF_GROUPS_MAX, &a, why);

    if (rc < 0 || a == NULL)
        return rc;
    for (unsigned g = 0; g < a->size; g++) {
        if (a->ptr[g].type != MSGPACK_OBJECT_ARRAY ||
            a->ptr[g].via.array.size == 0)
            return kvf_fail(why, KVF_INVALID, "field blocks[%u]: malformed", g);
        total += a->ptr[g].via.array.size - 1;
    }
    b->ids = calloc(a->size + 1u, sizeof *b->ids);
    b->arena = malloc((total + 1) * sizeof *b->arena);
    if (b->ids == NULL || b->arena == NULL)
        return no_memory(why);
    for (unsigned g = 0; g < a->size; g++) {
        rc = read_group(&a->ptr[g], &b->ids[g], b->arena + at, why);
        if (rc < 0)
            return kvf_fail_prefix(why, "field blocks[%u]", g);
        at += b->ids[g].n;
    }
    b->n_groups = a->size;
    return 0;
}

static int read_blocks(const msgpack_object *map, struct kvf_peer_blocks *b,
                       struct kvf_why *why)
{
    int rc = u64(map, "ask", UINT64_MAX, &b->ask, why);

    if (rc == 0)
        rc = u64(map, "claim", UINT64_MAX, &b->claim, why);
    if (rc == 0)
        rc = u64(map, "generation", UINT64_MAX, &b->generation, why);
    if (rc == 0)
        rc = u64(map, "layout", UINT64_MAX, &b->layout, why);
    if (rc == 0)
        rc = u64(map, "n_tokens", INT64_MAX / 4, &b->n_tokens, why);
    if (rc == 0)
        rc = id(map, "token", &b->token, why);
    if (rc == 0)
        rc = id(map, "tag", &b->tag, why);
    if (rc == 0)
        rc = flag(map, "minted", &b->minted, why);
    if (rc == 0)
        rc = flag(map, "shm", &b->shm, why);
    if (rc == 0)
        rc = kvf_mp_bool(map, "rdma", &b->rdma, why);
    if (rc >= 0)
        rc = kvf_mp_bool(map, "rdma_soon", &b->rdma_soon, why);
    return rc < 0 ? rc : read_ids(map, b, why);
}

static int read_blocks_ask(const msgpack_object *map,
                           struct kvf_peer_blocks_ask *a, struct kvf_why *why)
{
    int rc = u64(map, "ask", UINT64_MAX, &a->ask, why);

    if (rc == 0)
        rc = u64(map, "layout", UINT64_MAX, &a->layout, why);
    if (rc == 0)
        rc = u64(map, "rank", KVF_RANKS_MAX, &a->rank, why);
    if (rc == 0)
        rc = str(map, "request_id", 1000, &a->request_id, why);
    if (rc == 0)
        rc = flag(map, "shm", &a->want_shm, why);
    if (rc == 0) {
        rc = id_opt(map, "tag", &a->tag, why);
        a->has_tag = rc > 0;
    }
    if (rc >= 0) {
        rc = id_opt(map, "incarnation", &a->incarnation, why);
        a->has_incarnation = rc > 0;
    }
    return rc < 0 ? rc : 0;
}

static int read_layout_ask(const msgpack_object *map,
                           struct kvf_peer_layout_ask *a, struct kvf_why *why)
{
    int rc = u64(map, "ask", UINT64_MAX, &a->ask, why);

    if (rc == 0)
        rc = u64(map, "layout", UINT64_MAX, &a->layout, why);
    if (rc == 0) {
        rc = id_opt(map, "incarnation", &a->incarnation, why);
        a->has_incarnation = rc > 0;
    }
    return rc < 0 ? rc : 0;
}

static int read_status(const msgpack_object *map, uint32_t *out,
                       struct kvf_why *why)
{
    uint64_t v = 0;
    int rc = u64(map, "status", KVF_STATUS_COUNT - 1, &v, why);

    *out = (uint32_t)v;
    return rc;
}

static int read_together(const msgpack_object *map, struct kvf_peer_together *t,
                         struct kvf_why *why)
{
    uint64_t phase = 0;
    int rc = u64(map, "ask", UINT64_MAX, &t->ask, why);

    if (rc == 0)
        rc = u64(map, "member", KVF_RANKS_MAX, &t->member, why);
    if (rc == 0)
        rc = u64(map, "size", KVF_TOGETHER_MAX, &t->size, why);
    if (rc == 0)
        rc = str(map, "request_id", 1000, &t->request_id, why);
    if (rc == 0)
        rc = str(map, "name", KVF_TOGETHER_NAME, &t->name, why);
    if (rc == 0)
        rc = u64(map, "phase", KVF_TOGETHER_FAILED, &phase, why);
    if (rc == 0)
        rc = read_status(map, &t->status, why);
    t->phase = (enum kvf_together)phase;
    text(map, t->text, sizeof t->text);
    return rc;
}

int kvf_peer_layout_read(const msgpack_object *map, struct kvf_peer_msg *m,
                         struct kvf_why *why)
{
    int rc;

    switch ((unsigned)m->head.type) {
    case KVF_PEER_LAYOUT:
        return read_layout(map, &m->u.layout, why);
    case KVF_PEER_LAYOUT_GONE:
        return u64(map, "number", UINT64_MAX, &m->u.layout_gone.number, why);
    case KVF_PEER_LAYOUT_ASK:
        return read_layout_ask(map, &m->u.layout_ask, why);
    case KVF_PEER_LAYOUT_IS:
        rc = u64(map, "ask", UINT64_MAX, &m->u.layout_is.ask, why);
        return rc < 0 ? rc
                      : u64(map, "layout", UINT64_MAX, &m->u.layout_is.layout,
                            why);
    case KVF_PEER_BLOCKS_ASK:
        return read_blocks_ask(map, &m->u.blocks_ask, why);
    case KVF_PEER_BLOCKS_GRANT:
        return read_blocks(map, &m->u.blocks, why);
    case KVF_PEER_TOGETHER:
        return read_together(map, &m->u.together, why);
    default: /* VERDICT */
        text(map, m->u.verdict.text, sizeof m->u.verdict.text);
        rc = u64(map, "ask", UINT64_MAX, &m->u.verdict.ask, why);
        return rc < 0 ? rc : read_status(map, &m->u.verdict.status, why);
    }
}

void kvf_peer_layout_done(struct kvf_peer_msg *m)
{
    if (m->head.type == KVF_PEER_LAYOUT) {
        kvf_layout_done(&m->u.layout.decl);
        free(m->u.layout.length);
        free(m->u.layout.spaces);
    } else if (m->head.type == KVF_PEER_BLOCKS_GRANT) {
        free(m->u.blocks.ids);
        free(m->u.blocks.arena);
    }
}
