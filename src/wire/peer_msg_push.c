/* Messages of windows and pushes (docs/PROTOCOL-PEER.md), both ways.
 *
 * Happy path: a body is a list of its fields. Failure modes: -KVF_INVALID with
 * the field; absent optional fields are zero. */
#include "wire/peer_msg.h"

#include <string.h>

/* ---- writing ------------------------------------------------------------ */

static void put_window_ask(struct kvf_mpw *w,
                           const struct kvf_peer_window_ask *a)
{
    kvf_mpw_map(w, 6);
    kvf_mpw_kv_u64(w, "ask", a->ask);
    kvf_mpw_str(w, "name");
    kvf_mpw_strn(w, a->name.p, a->name.len);
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
    kvf_mpw_str(w, "key");
    kvf_mpw_strn(w, a->key.p, a->key.len);
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

bool kvf_peer_push_write(struct kvf_mpw *w, const struct kvf_peer_msg *m)
{
    switch ((unsigned)m->head.type) {
    case KVF_PEER_WINDOW_ASK:
        put_window_ask(w, &m->u.window_ask);
        return true;
    case KVF_PEER_ROOM_ASK:
        put_room_ask(w, &m->u.room_ask);
        return true;
    case KVF_PEER_COMMIT:
        put_commit(w, &m->u.commit);
        return true;
    case KVF_PEER_NOTIFY:
        put_notify(w, &m->u.notify);
        return true;
    case KVF_PEER_APPLIED:
        kvf_mpw_map(w, 2);
        kvf_mpw_kv_u64(w, "ask", m->u.applied.ask);
        kvf_mpw_kv_u64(w, "generation", m->u.applied.generation);
        return true;
    case KVF_PEER_RETIRED:
    case KVF_PEER_RETIRED_SEEN:
        put_retired(w, &m->u.retired, m->head.type == KVF_PEER_RETIRED_SEEN);
        return true;
    default:
        return false;
    }
}

/* ---- reading ------------------------------------------------------------ */

static int need_u64(const msgpack_object *map, const char *key, uint64_t min,
                    uint64_t max, uint64_t *out, struct kvf_why *why)
{
    int rc = kvf_mp_u64(map, key, min, max, out, why);

    return rc != 0 ? rc : kvf_mp_missing(why, key);
}

static int need_flag(const msgpack_object *map, const char *key, bool *out,
                     struct kvf_why *why)
{
    int rc = kvf_mp_bool(map, key, out, why);

    return rc != 0 ? rc : kvf_mp_missing(why, key);
}

static int need_id(const msgpack_object *map, const char *key,
                   struct kvf_id *out, struct kvf_why *why)
{
    const void *p;
    size_t n;
    int rc = kvf_mp_bin(map, key, KVF_ID_LEN, KVF_ID_LEN, &p, &n, why);

    if (rc > 0)
        memcpy(out->b, p, KVF_ID_LEN);
    return rc != 0 ? rc : kvf_mp_missing(why, key);
}

static int need_name(const msgpack_object *map, const char *key,
                     struct kvf_slice_str *out, struct kvf_why *why)
{
    int rc = kvf_mp_str(map, key, 1, KVF_MAX_KEY, &out->p, &out->len, why);

    return rc != 0 ? rc : kvf_mp_missing(why, key);
}

static int read_window_ask(const msgpack_object *map,
                           struct kvf_peer_window_ask *a, struct kvf_why *why)
{
    int rc = need_u64(map, "ask", 0, UINT64_MAX, &a->ask, why);

    if (rc > 0)
        rc = need_name(map, "name", &a->name, why);
    if (rc > 0)
        rc = need_flag(map, "write", &a->write, why);
    if (rc > 0)
        rc = need_flag(map, "shm", &a->want_shm, why);
    if (rc > 0)
        rc = need_u64(map, "offset", 0, INT64_MAX, &a->offset, why);
    if (rc > 0)
        rc = need_u64(map, "length", 1, INT64_MAX, &a->length, why);
    return rc < 0 ? rc : 0;
}

static int read_room_rest(const msgpack_object *map,
                          struct kvf_peer_room_ask *a, struct kvf_why *why)
{
    int rc =
        kvf_mp_bin(map, "meta", 0, KVF_MAX_META, &a->meta, &a->meta_len, why);

    if (rc >= 0) {
        rc = kvf_mp_u64(map, "ttl_ms", 1, KVF_MAX_MS, &a->ttl_ms, why);
        a->has_ttl = rc > 0;
    }
    if (rc >= 0) {
        rc = kvf_mp_u64(map, "checksum", 0, UINT64_MAX, &a->checksum, why);
        a->has_checksum = rc > 0;
    }
    if (rc >= 0)
        rc = kvf_mp_bin(map, "bytes", 1, UINT32_MAX, &a->bytes, &a->bytes_len,
                        why);
    if (rc >= 0)
        rc = kvf_mp_bool(map, "notify", &a->notify, why);
    if (rc < 0)
        return rc;
    if (a->bytes != NULL && a->bytes_len != a->size)
        return kvf_fail(why, KVF_INVALID, "field bytes: not of that size");
    return 0;
}

static int read_room_ask(const msgpack_object *map, struct kvf_peer_room_ask *a,
                         struct kvf_why *why)
{
    int rc = need_u64(map, "ask", 0, UINT64_MAX, &a->ask, why);

    if (rc > 0)
        rc = need_id(map, "push", &a->push, why);
    if (rc > 0)
        rc = need_name(map, "key", &a->key, why);
    if (rc > 0)
        rc = need_u64(map, "size", 1, INT64_MAX, &a->size, why);
    if (rc > 0)
        rc = need_u64(map, "readers", 0, KVF_MAX_READERS, &a->readers, why);
    if (rc > 0)
        rc = need_flag(map, "reject", &a->reject_duplicate, why);
    if (rc > 0)
        rc = need_flag(map, "shm", &a->want_shm, why);
    return rc < 0 ? rc : read_room_rest(map, a, why);
}

static int read_commit(const msgpack_object *map, struct kvf_peer_commit *c,
                       struct kvf_why *why)
{
    int rc = need_u64(map, "ask", 0, UINT64_MAX, &c->ask, why);

    if (rc > 0)
        rc = need_id(map, "push", &c->push, why);
    if (rc > 0)
        rc = need_u64(map, "claim", 0, UINT64_MAX, &c->claim, why);
    if (rc > 0)
        rc = need_id(map, "token", &c->token, why);
    if (rc > 0) {
        rc = kvf_mp_u64(map, "checksum", 0, UINT64_MAX, &c->checksum, why);
        c->has_checksum = rc > 0;
    }
    return rc < 0 ? rc : 0;
}

static int read_notify(const msgpack_object *map, struct kvf_peer_notify *n,
                       struct kvf_why *why)
{
    int rc = need_u64(map, "ask", 0, UINT64_MAX, &n->ask, why);

    if (rc > 0)
        rc = need_id(map, "notice", &n->id, why);
    if (rc > 0)
        rc = need_u64(map, "claim", 0, UINT64_MAX, &n->claim, why);
    if (rc > 0)
        rc = need_id(map, "token", &n->token, why);
    if (rc > 0)
        rc = need_flag(map, "write", &n->write, why);
    if (rc > 0)
        rc = kvf_mp_bin(map, "data", 0, KVF_MAX_META, &n->data, &n->len, why);
    return rc < 0 ? rc : 0;
}

static int read_retired(const msgpack_object *map, struct kvf_peer_retired *r,
                        bool seen, struct kvf_why *why)
{
    int rc = need_id(map, "push", &r->push, why);

    if (rc > 0)
        rc = need_u64(map, "generation", 0, UINT64_MAX, &r->generation, why);
    if (rc > 0 && !seen)
        rc = need_u64(map, "reason", 0, KVF_PEER_REASONS - 1, &r->reason, why);
    if (rc > 0 && !seen)
        rc =
            need_u64(map, "readers_done", 0, UINT64_MAX, &r->readers_done, why);
    return rc < 0 ? rc : 0;
}

int kvf_peer_push_read(const msgpack_object *map, struct kvf_peer_msg *m,
                       struct kvf_why *why)
{
    int rc;

    switch ((unsigned)m->head.type) {
    case KVF_PEER_WINDOW_ASK:
        return read_window_ask(map, &m->u.window_ask, why);
    case KVF_PEER_ROOM_ASK:
        return read_room_ask(map, &m->u.room_ask, why);
    case KVF_PEER_COMMIT:
        return read_commit(map, &m->u.commit, why);
    case KVF_PEER_NOTIFY:
        return read_notify(map, &m->u.notify, why);
    case KVF_PEER_APPLIED:
        rc = need_u64(map, "ask", 0, UINT64_MAX, &m->u.applied.ask, why);
        if (rc > 0)
            rc = need_u64(map, "generation", 0, UINT64_MAX,
                          &m->u.applied.generation, why);
        return rc < 0 ? rc : 0;
    case KVF_PEER_RETIRED:
    case KVF_PEER_RETIRED_SEEN:
        return read_retired(map, &m->u.retired,
                            m->head.type == KVF_PEER_RETIRED_SEEN, why);
    default:
        return kvf_fail(why, KVF_INVALID, "unknown type");
    }
}
