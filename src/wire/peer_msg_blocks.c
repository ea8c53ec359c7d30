/* The bodies of the messages about KV blocks, both ways: claims on the blocks
 * of a request, and how a group of pulls stands (docs/PROTOCOL-PEER.md).
 *
 * Failure modes: -KVF_INVALID, -KVF_INTERNAL out of memory. Whether a layout
 * has such blocks is for the peers to say; here every number is bounded. */
#include "wire/peer_body.h"

#include "wire/engine_field.h"

#include <stdlib.h>

/* ---- writing ------------------------------------------------------------ */

static void put_blocks_ask(struct kvf_mpw *w,
                           const struct kvf_peer_blocks_ask *a)
{
    kvf_mpw_map(w, 5u + a->has_tag + a->has_incarnation);
    kvf_mpw_kv_u64(w, "ask", a->ask);
    kvf_mpw_kv_u64(w, "layout", a->layout);
    kvf_mpw_kv_u64(w, "rank", a->rank);
    kvf_body_put_str(w, "request_id", &a->request_id);
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
    kvf_body_put_str(w, "request_id", &t->request_id);
    kvf_body_put_str(w, "name", &t->name);
    kvf_mpw_kv_u64(w, "phase", (uint64_t)t->phase);
    kvf_mpw_kv_u64(w, "status", t->status);
    kvf_body_put_text(w, "text", t->text, sizeof t->text);
}

void kvf_peer_blocks_put(struct kvf_mpw *w, const struct kvf_peer_msg *m)
{
    switch ((unsigned)m->head.type) {
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
        kvf_body_put_text(w, "text", m->u.verdict.text,
                          sizeof m->u.verdict.text);
    }
}

/* ---- reading ------------------------------------------------------------ */

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

static void read_ids(struct kvf_body *b, struct kvf_peer_blocks *blocks)
{
    const msgpack_object_array *a = kvf_body_array(b, "blocks", KVF_GROUPS_MAX);
    size_t total = 0, at = 0;

    if (a == NULL)
        return;
    for (unsigned g = 0; g < a->size; g++) {
        if (a->ptr[g].type != MSGPACK_OBJECT_ARRAY ||
            a->ptr[g].via.array.size == 0) {
            kvf_body_bad_element(b, "blocks", g);
            return;
        }
        total += a->ptr[g].via.array.size - 1;
    }
    blocks->ids = kvf_body_elements(b, a->size, sizeof *blocks->ids);
    blocks->arena = malloc((total + 1) * sizeof *blocks->arena);
    if (blocks->ids == NULL || blocks->arena == NULL) {
        b->rc = kvf_fail(b->why, KVF_INTERNAL, "out of memory");
        return;
    }
    for (unsigned g = 0; g < a->size; g++) {
        if (read_group(&a->ptr[g], &blocks->ids[g], blocks->arena + at,
                       b->why) < 0) {
            b->rc = kvf_fail_prefix(b->why, "field blocks[%u]", g);
            return;
        }
        at += blocks->ids[g].n;
    }
    blocks->n_groups = a->size;
}

static void read_blocks(struct kvf_body *b, struct kvf_peer_blocks *blocks)
{
    kvf_body_u64(b, "ask", &blocks->ask);
    kvf_body_u64(b, "claim", &blocks->claim);
    kvf_body_u64(b, "generation", &blocks->generation);
    kvf_body_u64(b, "layout", &blocks->layout);
    kvf_body_u64_in(b, "n_tokens", 0, INT64_MAX / 4, &blocks->n_tokens);
    kvf_body_id(b, "token", &blocks->token);
    kvf_body_id(b, "tag", &blocks->tag);
    kvf_body_flag(b, "minted", &blocks->minted);
    kvf_body_flag(b, "shm", &blocks->shm);
    kvf_body_flag_opt(b, "rdma", &blocks->rdma);
    kvf_body_flag_opt(b, "rdma_soon", &blocks->rdma_soon);
    read_ids(b, blocks);
}

static void read_blocks_ask(struct kvf_body *b, struct kvf_peer_blocks_ask *a)
{
    kvf_body_u64(b, "ask", &a->ask);
    kvf_body_u64(b, "layout", &a->layout);
    kvf_body_u64_in(b, "rank", 0, KVF_RANKS_MAX, &a->rank);
    kvf_body_str(b, "request_id", KVF_MAX_REQUEST_ID, &a->request_id);
    kvf_body_flag(b, "shm", &a->want_shm);
    a->has_tag = kvf_body_id_opt(b, "tag", &a->tag);
    a->has_incarnation = kvf_body_id_opt(b, "incarnation", &a->incarnation);
}

static void read_together(struct kvf_body *b, struct kvf_peer_together *t)
{
    uint64_t phase = 0;

    kvf_body_u64(b, "ask", &t->ask);
    kvf_body_u64_in(b, "member", 0, KVF_RANKS_MAX, &t->member);
    kvf_body_u64_in(b, "size", 0, KVF_TOGETHER_MAX, &t->size);
    kvf_body_str(b, "request_id", KVF_MAX_REQUEST_ID, &t->request_id);
    kvf_body_str(b, "name", KVF_TOGETHER_NAME, &t->name);
    kvf_body_u64_in(b, "phase", 0, KVF_TOGETHER_FAILED, &phase);
    kvf_body_status(b, KVF_OK, &t->status);
    t->phase = (enum kvf_together)phase;
    kvf_body_text(b, "text", t->text, sizeof t->text);
}

void kvf_peer_blocks_read(struct kvf_body *b, struct kvf_peer_msg *m)
{
    switch ((unsigned)m->head.type) {
    case KVF_PEER_BLOCKS_ASK:
        read_blocks_ask(b, &m->u.blocks_ask);
        break;
    case KVF_PEER_BLOCKS_GRANT:
        read_blocks(b, &m->u.blocks);
        break;
    case KVF_PEER_TOGETHER:
        read_together(b, &m->u.together);
        break;
    default: /* VERDICT */
        kvf_body_u64(b, "ask", &m->u.verdict.ask);
        kvf_body_status(b, KVF_OK, &m->u.verdict.status);
        kvf_body_text(b, "text", m->u.verdict.text, sizeof m->u.verdict.text);
    }
}

void kvf_peer_blocks_done(struct kvf_peer_blocks *blocks)
{
    free(blocks->ids);
    free(blocks->arena);
}
