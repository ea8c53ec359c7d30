/* The body of a GRANT, both ways: a claim, where its bytes are, or the bytes
 * themselves.
 *
 * Failure modes: -KVF_INVALID, -KVF_INTERNAL out of memory. Segments must lie
 * within their space and add up to the size; what the way that was granted
 * needs must be there. */
#include "wire/peer_body.h"

#include <inttypes.h>
#include <stdlib.h>

void kvf_peer_grant_put(struct kvf_mpw *w, const struct kvf_peer_grant *g)
{
    kvf_mpw_map(w, 10u + g->has_checksum + kvf_peer_rdma_put_grant(NULL, g));
    kvf_peer_rdma_put_grant(w, g);
    kvf_mpw_kv_u64(w, "ask", g->ask);
    kvf_mpw_kv_u64(w, "claim", g->claim);
    kvf_mpw_kv_u64(w, "generation", g->generation);
    kvf_mpw_kv_u64(w, "size", g->size);
    kvf_mpw_kv_bin(w, "token", g->token.b, KVF_ID_LEN);
    kvf_mpw_kv_bin(w, "meta", g->meta, g->meta_len);
    kvf_mpw_kv_bool(w, "eager", g->eager);
    kvf_mpw_kv_bool(w, "shm", g->shm);
    if (g->has_checksum)
        kvf_mpw_kv_u64(w, "checksum", g->checksum);
    kvf_mpw_str(w, "segs");
    kvf_mpw_array(w, g->n_segs);
    for (unsigned i = 0; i < g->n_segs; i++) {
        kvf_mpw_array(w, 3);
        kvf_mpw_u64(w, g->segs[i].space);
        kvf_mpw_u64(w, g->segs[i].offset);
        kvf_mpw_u64(w, g->segs[i].length);
    }
    kvf_body_put_spaces(w, g->spaces, g->n_spaces);
}

static void read_spaces(struct kvf_body *b, struct kvf_peer_grant *g)
{
    const msgpack_object_array *a =
        kvf_body_array_opt(b, "spaces", KVF_PEER_SPACES);

    if (a == NULL ||
        (g->spaces = kvf_body_elements(b, a->size, sizeof *g->spaces)) == NULL)
        return;
    for (unsigned i = 0; i < a->size && b->rc == 0; i++) {
        struct kvf_body in = {.map = &a->ptr[i], .why = b->why};

        kvf_body_space(&in, &g->spaces[i]);
        b->rc = in.rc;
    }
    g->n_spaces = a->size;
}

static bool read_seg(const msgpack_object *o, const struct kvf_peer_grant *g,
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

static void read_segs(struct kvf_body *b, struct kvf_peer_grant *g)
{
    const msgpack_object_array *a =
        kvf_body_array_opt(b, "segs", KVF_MAX_SEGMENTS);
    uint64_t rest = g->size;

    if (a == NULL ||
        (g->segs = kvf_body_elements(b, a->size, sizeof *g->segs)) == NULL)
        return;
    for (unsigned i = 0; i < a->size; i++) {
        if (!read_seg(&a->ptr[i], g, &g->segs[i]) || g->segs[i].length > rest) {
            kvf_body_bad_element(b, "segs", i);
            return;
        }
        rest -= g->segs[i].length;
    }
    g->n_segs = a->size;
    if (rest != 0)
        b->rc = kvf_fail(b->why, KVF_INVALID,
                         "field segs: %" PRIu64 " bytes short of size", rest);
}

void kvf_peer_grant_read(struct kvf_body *b, struct kvf_peer_msg *m)
{
    struct kvf_peer_grant *g = &m->u.grant;

    kvf_body_u64(b, "ask", &g->ask);
    kvf_body_u64(b, "claim", &g->claim);
    kvf_body_u64(b, "generation", &g->generation);
    kvf_body_u64_in(b, "size", 1, INT64_MAX, &g->size);
    kvf_body_id(b, "token", &g->token);
    kvf_body_flag(b, "eager", &g->eager);
    kvf_body_flag(b, "shm", &g->shm);
    g->has_checksum =
        kvf_body_u64_opt(b, "checksum", 0, UINT64_MAX, &g->checksum);
    kvf_body_bin_opt(b, "meta", 0, KVF_MAX_META, &g->meta, &g->meta_len);
    read_spaces(b, g);
    read_segs(b, g);
    kvf_peer_rdma_read_grant(b, g);
    if (b->rc < 0)
        return;
    if (g->eager != (m->payload != NULL) ||
        (g->eager && m->payload_len != g->size))
        b->rc = kvf_fail(b->why, KVF_INVALID,
                         "the eager bytes are not what the grant says");
    else if (g->shm && !g->eager && g->n_segs == 0)
        b->rc = kvf_fail(b->why, KVF_INVALID, "a grant of shm without segs");
}

void kvf_peer_grant_done(struct kvf_peer_grant *g)
{
    kvf_peer_rdma_grant_done(g);
    free(g->segs);
    free(g->spaces);
}
