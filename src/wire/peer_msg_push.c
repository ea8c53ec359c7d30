/* Messages of windows and pushes (docs/PROTOCOL-PEER.md), both ways.
 *
 * Happy path: a body is a list of its fields. Failure modes: -KVF_INVALID with
 * the field; absent optional fields are zero. */
#include "wire/peer_body.h"

/* ---- writing ------------------------------------------------------------ */

static void put_window_ask(struct kvf_mpw *w,
                           const struct kvf_peer_window_ask *a)
{
    kvf_mpw_map(w, 6);
    kvf_mpw_kv_u64(w, "ask", a->ask);
    kvf_body_put_str(w, "name", &a->name);
    kvf_mpw_kv_bool(w, "write", a->write);
    kvf_mpw_kv_bool(w, "shm", a->want_shm);
    kvf_mpw_kv_u64(w, "offset", a->offset);
    kvf_mpw_kv_u64(w, "length", a->length);
}

static void put_room_ask(struct kvf_mpw *w, const struct kvf_peer_room_ask *a)
{
    kvf_mpw_map(w, 8u + a->has_ttl + a->has_checksum + (a->bytes != NULL) +
                       a->notify);
    kvf_mpw_kv_u64(w, "ask", a->ask);
    kvf_mpw_kv_bin(w, "push", a->push.b, KVF_ID_LEN);
    kvf_body_put_str(w, "key", &a->key);
    kvf_mpw_kv_u64(w, "size", a->size);
    kvf_mpw_kv_bin(w, "meta", a->meta, a->meta_len);
    kvf_mpw_kv_u64(w, "readers", a->readers);
    kvf_mpw_kv_bool(w, "reject", a->reject_duplicate);
    kvf_mpw_kv_bool(w, "shm", a->want_shm);
    if (a->has_ttl)
        kvf_mpw_kv_u64(w, "ttl_ms", a->ttl_ms);
    if (a->has_checksum)
        kvf_mpw_kv_u64(w, "checksum", a->checksum);
    if (a->bytes != NULL)
        kvf_mpw_kv_bin(w, "bytes", a->bytes, a->bytes_len);
    if (a->notify)
        kvf_mpw_kv_bool(w, "notify", true);
}

static void put_commit(struct kvf_mpw *w, const struct kvf_peer_commit *c)
{
    kvf_mpw_map(w, 4u + c->has_checksum);
    kvf_mpw_kv_u64(w, "ask", c->ask);
    kvf_mpw_kv_bin(w, "push", c->push.b, KVF_ID_LEN);
    kvf_mpw_kv_u64(w, "claim", c->claim);
    kvf_mpw_kv_bin(w, "token", c->token.b, KVF_ID_LEN);
    if (c->has_checksum)
        kvf_mpw_kv_u64(w, "checksum", c->checksum);
}

static void put_notify(struct kvf_mpw *w, const struct kvf_peer_notify *n)
{
    kvf_mpw_map(w, 6);
    kvf_mpw_kv_u64(w, "ask", n->ask);
    kvf_mpw_kv_bin(w, "notice", n->id.b, KVF_ID_LEN);
    kvf_mpw_kv_u64(w, "claim", n->claim);
    kvf_mpw_kv_bin(w, "token", n->token.b, KVF_ID_LEN);
    kvf_mpw_kv_bool(w, "write", n->write);
    kvf_mpw_kv_bin(w, "data", n->data, n->len);
}

static void put_retired(struct kvf_mpw *w, const struct kvf_peer_retired *r,
                        bool seen)
{
    kvf_mpw_map(w, seen ? 2 : 4);
    kvf_mpw_kv_bin(w, "push", r->push.b, KVF_ID_LEN);
    kvf_mpw_kv_u64(w, "generation", r->generation);
    if (seen)
        return;
    kvf_mpw_kv_u64(w, "reason", r->reason);
    kvf_mpw_kv_u64(w, "readers_done", r->readers_done);
}

void kvf_peer_push_put(struct kvf_mpw *w, const struct kvf_peer_msg *m)
{
    switch ((unsigned)m->head.type) {
    case KVF_PEER_WINDOW_ASK:
        put_window_ask(w, &m->u.window_ask);
        break;
    case KVF_PEER_ROOM_ASK:
        put_room_ask(w, &m->u.room_ask);
        break;
    case KVF_PEER_COMMIT:
        put_commit(w, &m->u.commit);
        break;
    case KVF_PEER_NOTIFY:
        put_notify(w, &m->u.notify);
        break;
    case KVF_PEER_APPLIED:
        kvf_mpw_map(w, 2);
        kvf_mpw_kv_u64(w, "ask", m->u.applied.ask);
        kvf_mpw_kv_u64(w, "generation", m->u.applied.generation);
        break;
    default: /* RETIRED, RETIRED_SEEN */
        put_retired(w, &m->u.retired, m->head.type == KVF_PEER_RETIRED_SEEN);
    }
}

/* ---- reading ------------------------------------------------------------ */

static void read_window_ask(struct kvf_body *b, struct kvf_peer_window_ask *a)
{
    kvf_body_u64(b, "ask", &a->ask);
    kvf_body_str(b, "name", KVF_MAX_KEY, &a->name);
    kvf_body_flag(b, "write", &a->write);
    kvf_body_flag(b, "shm", &a->want_shm);
    kvf_body_u64_in(b, "offset", 0, INT64_MAX, &a->offset);
    kvf_body_u64_in(b, "length", 1, INT64_MAX, &a->length);
}

static void read_room_ask(struct kvf_body *b, struct kvf_peer_room_ask *a)
{
    kvf_body_u64(b, "ask", &a->ask);
    kvf_body_id(b, "push", &a->push);
    kvf_body_str(b, "key", KVF_MAX_KEY, &a->key);
    kvf_body_u64_in(b, "size", 1, INT64_MAX, &a->size);
    kvf_body_u64(b, "readers", &a->readers);
    kvf_body_flag(b, "reject", &a->reject_duplicate);
    kvf_body_flag(b, "shm", &a->want_shm);
    kvf_body_bin_opt(b, "meta", 0, KVF_MAX_META, &a->meta, &a->meta_len);
    a->has_ttl = kvf_body_u64_opt(b, "ttl_ms", 1, KVF_MAX_MS, &a->ttl_ms);
    a->has_checksum =
        kvf_body_u64_opt(b, "checksum", 0, UINT64_MAX, &a->checksum);
    kvf_body_bin_opt(b, "bytes", 1, UINT32_MAX, &a->bytes, &a->bytes_len);
    kvf_body_flag_opt(b, "notify", &a->notify);
    if (b->rc == 0 && a->bytes != NULL && a->bytes_len != a->size)
        b->rc = kvf_fail(b->why, KVF_INVALID, "field bytes: not of that size");
}

static void read_commit(struct kvf_body *b, struct kvf_peer_commit *c)
{
    kvf_body_u64(b, "ask", &c->ask);
    kvf_body_id(b, "push", &c->push);
    kvf_body_u64(b, "claim", &c->claim);
    kvf_body_id(b, "token", &c->token);
    c->has_checksum =
        kvf_body_u64_opt(b, "checksum", 0, UINT64_MAX, &c->checksum);
}

static void read_notify(struct kvf_body *b, struct kvf_peer_notify *n)
{
    kvf_body_u64(b, "ask", &n->ask);
    kvf_body_id(b, "notice", &n->id);
    kvf_body_u64(b, "claim", &n->claim);
    kvf_body_id(b, "token", &n->token);
    kvf_body_flag(b, "write", &n->write);
    kvf_body_bin_opt(b, "data", 0, KVF_MAX_META, &n->data, &n->len);
}

static void read_retired(struct kvf_body *b, struct kvf_peer_retired *r,
                         bool seen)
{
    kvf_body_id(b, "push", &r->push);
    kvf_body_u64(b, "generation", &r->generation);
    if (seen)
        return;
    kvf_body_u64_in(b, "reason", 0, KVF_PEER_REASONS - 1, &r->reason);
    kvf_body_u64(b, "readers_done", &r->readers_done);
}

void kvf_peer_push_read(struct kvf_body *b, struct kvf_peer_msg *m)
{
    switch ((unsigned)m->head.type) {
    case KVF_PEER_WINDOW_ASK:
        read_window_ask(b, &m->u.window_ask);
        break;
    case KVF_PEER_ROOM_ASK:
        read_room_ask(b, &m->u.room_ask);
        break;
    case KVF_PEER_COMMIT:
        read_commit(b, &m->u.commit);
        break;
    case KVF_PEER_NOTIFY:
        read_notify(b, &m->u.notify);
        break;
    case KVF_PEER_APPLIED:
        kvf_body_u64(b, "ask", &m->u.applied.ask);
        kvf_body_u64(b, "generation", &m->u.applied.generation);
        break;
    default: /* RETIRED, RETIRED_SEEN */
        read_retired(b, &m->u.retired, m->head.type == KVF_PEER_RETIRED_SEEN);
    }
}
