/* One request of an engine: frames -> struct kvf_req.
 *
 * Happy path: one map with string keys; `op` picks the reader from the table of
 * operations; each reader takes the fields it knows and ignores the rest.
 * Failure modes: all -KVF_INVALID with a sentence that names the field, and the
 * id filled in when it was seen; nothing is left allocated after
 * kvf_req_done. */
#include "wire/engine_field.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const op_names[] = {
#define OP_NAME(name, text) [KVF_OP_##name] = text,
    KVF_OPS(OP_NAME)
#undef OP_NAME
};

const char *kvf_op_name(enum kvf_op op)
{
    return (unsigned)op < KVF_OP_COUNT ? op_names[op] : "unknown";
}

static int read_nothing(struct kvf_req *r, struct kvf_why *why)
{
    (void)r;
    (void)why;
    return 0;
}

static int read_hello(struct kvf_req *r, struct kvf_why *why)
{
    const msgpack_object *map = &r->mp.root;
    struct kvf_req_hello *h = &r->u.hello;
    int rc =
        kvf_field_need_u64(map, "version", 0, UINT64_MAX, &h->version, why);

    if (rc < 0)
        return rc;
    rc = kvf_field_str(map, "client", 0, UINT32_MAX, &h->client, why);
    if (rc < 0)
        return rc;
    rc = kvf_mp_u64(map, "pid", 0, UINT64_MAX, &h->pid, why);
    if (rc < 0)
        return rc;
    h->has_pid = rc > 0;
    rc = kvf_mp_bool(map, "events", &h->events, why);
    if (rc < 0)
        return rc;
    rc = kvf_field_id(map, "session", &h->session, why);
    if (rc < 0)
        return rc;
    h->has_session = rc > 0;
    rc = kvf_field_id(map, "unmapped", &h->unmapped, why);
    h->has_unmapped = rc > 0;
    return rc;
}

static int read_alloc(struct kvf_req *r, struct kvf_why *why)
{
    int rc = kvf_field_need_u64(&r->mp.root, "size", 1, UINT64_MAX,
                                &r->u.alloc.size, why);

    /* Never fits either way; a signed bound spares every later sum. */
    if (rc > 0 && r->u.alloc.size > INT64_MAX)
        r->u.alloc.size = INT64_MAX;
    return rc;
}

static int read_buffer(struct kvf_req *r, struct kvf_why *why)
{
    int rc = kvf_field_need_u64(&r->mp.root, "buffer", 0, UINT64_MAX,
                                &r->u.handle.id, why);

    return rc < 0 ? rc
                  : kvf_mp_bool(&r->mp.root, "quiet", &r->u.handle.quiet, why);
}

static int read_region(struct kvf_req *r, struct kvf_why *why)
{
    return kvf_field_need_u64(&r->mp.root, "region", 0, UINT64_MAX,
                              &r->u.handle.id, why);
}

static int read_register(struct kvf_req *r, struct kvf_why *why)
{
    int rc =
        kvf_field_need_u64(&r->mp.root, "fd", 0, INT32_MAX, &r->u.reg.fd, why);

    return rc < 0 ? rc
                  : kvf_field_need_u64(&r->mp.root, "size", 1, INT64_MAX,
                                       &r->u.reg.size, why);
}

static int read_get(struct kvf_req *r, struct kvf_why *why)
{
    return kvf_get_fields(&r->mp.root, r->mp.zone, &r->u.get, why);
}

static int read_mget(struct kvf_req *r, struct kvf_why *why)
{
    const msgpack_object *map = &r->mp.root;
    int rc = kvf_mp_array(map, "gets", KVF_MAX_MGET, &r->u.mget.gets, why);

    if (rc <= 0)
        return rc < 0 ? rc : kvf_mp_missing(why, "gets");
    r->u.mget.n = r->u.mget.gets->via.array.size;
    if (r->u.mget.n == 0)
        return kvf_fail(why, KVF_INVALID, "field gets: empty");
    rc = kvf_field_timeout(map, &r->u.mget.has_timeout, &r->u.mget.timeout_ms,
                           why);
    return rc < 0 ? rc
                  : kvf_mp_bool(map, "all_or_nothing",
                                &r->u.mget.all_or_nothing, why);
}

static int read_fail(struct kvf_req *r, struct kvf_why *why)
{
    int rc = kvf_field_key(&r->mp.root, r->mp.zone, &r->u.fail.key,
                           &r->u.fail.composed, &r->u.fail.from, why);

    if (rc > 0 && r->u.fail.composed)
        rc = kvf_field_str(&r->mp.root, "request_id", 1, KVF_MAX_KEY_REQUEST_ID,
                           &r->u.fail.request_id, why);
    return rc < 0 ? rc
                  : kvf_field_str(&r->mp.root, "reason", 0, UINT32_MAX,
                                  &r->u.fail.reason, why);
}

static int read_cleanup(struct kvf_req *r, struct kvf_why *why)
{
    const msgpack_object *map = &r->mp.root;
    struct kvf_req_cleanup *c = &r->u.cleanup;
    int rc = kvf_field_str(map, "request_id", 1, KVF_MAX_KEY_REQUEST_ID,
                           &c->request_id, why);

    if (rc <= 0)
        return rc < 0 ? rc : kvf_mp_missing(why, "request_id");
    rc = kvf_mp_u64(map, "from", 0, KVF_STAGE_MAX, &c->from, why);
    if (rc < 0)
        return rc;
    c->has_from = rc > 0;
    rc = kvf_mp_u64(map, "to", 0, KVF_STAGE_MAX, &c->to, why);
    c->has_to = rc > 0;
    return rc;
}

/* A prefix longer than any key is one that no key has. */
static int read_list(struct kvf_req *r, struct kvf_why *why)
{
    int rc = kvf_field_str(&r->mp.root, "prefix", 0, UINT32_MAX,
                           &r->u.list.prefix, why);

    r->u.list.limit = 1000;
    if (rc >= 0)
        rc = kvf_mp_u64(&r->mp.root, "limit", 0, UINT64_MAX, &r->u.list.limit,
                        why);
    if (r->u.list.limit > KVF_MAX_LIST)
        r->u.list.limit = KVF_MAX_LIST;
    return rc;
}

static int read_peer(struct kvf_req *r, struct kvf_why *why)
{
    const msgpack_object *map = &r->mp.root;
    uint64_t stage = 0, rank = 0, replica = 0;
    int rc = kvf_field_need_u64(map, "stage", 0, KVF_STAGE_MAX, &stage, why);

    if (rc < 0)
        return rc;
    rc = kvf_field_need_u64(map, "rank", 0, KVF_RANK_MAX, &rank, why);
    if (rc < 0)
        return rc;
    rc = kvf_mp_u64(map, "replica", 0, KVF_REPLICA_MAX, &replica, why);
    if (rc < 0)
        return rc;
    r->u.peer.has_replica = rc > 0;
    r->u.peer.worker =
        (struct kvf_worker){(uint32_t)stage, (uint32_t)rank, (uint32_t)replica};
    return kvf_field_endpoint(map, "host", "port", &r->u.peer.at, why);
}

static int read_drain(struct kvf_req *r, struct kvf_why *why)
{
    return kvf_field_timeout(&r->mp.root, &r->u.drain.has_timeout,
                             &r->u.drain.timeout_ms, why);
}

/* `cancel` is not here: its target is taken from the bytes. */
static int (*const readers[KVF_OP_COUNT])(struct kvf_req *r,
                                          struct kvf_why *why) = {
    [KVF_OP_HELLO] = read_hello,
    [KVF_OP_BYE] = read_nothing,
    [KVF_OP_PING] = read_nothing,
    [KVF_OP_ALLOC] = read_alloc,
    [KVF_OP_FREE] = read_buffer,
    [KVF_OP_REGISTER] = read_register,
    [KVF_OP_UNREGISTER] = read_region,
    [KVF_OP_PUT] = kvf_put_read,
    [KVF_OP_GET] = read_get,
    [KVF_OP_RELEASE] = read_buffer,
    [KVF_OP_MGET] = read_mget,
    [KVF_OP_FAIL] = read_fail,
    [KVF_OP_CLEANUP] = read_cleanup,
    [KVF_OP_LIST] = read_list,
    [KVF_OP_PEER] = read_peer,
    [KVF_OP_STATS] = read_nothing,
    [KVF_OP_HEALTH] = read_nothing,
    [KVF_OP_DRAIN] = read_drain,
    [KVF_OP_PUSH] = kvf_push_read,
    [KVF_OP_EXPOSE] = kvf_expose_read,
    [KVF_OP_WRITE] = kvf_rma_read,
    [KVF_OP_READ] = kvf_rma_read,
    [KVF_OP_UNEXPOSE] = kvf_unexpose_read,
    [KVF_OP_LAYOUT] = kvf_read_layout,
    [KVF_OP_PUBLISH] = kvf_read_publish,
    [KVF_OP_PULL] = kvf_read_pull,
};

/* An id as it may be echoed: a scalar of bounded length. */
static bool usable_id(const struct kvf_mp_raw *raw)
{
    uint8_t head;

    if (raw->p == NULL || raw->len == 0 || raw->len > KVF_MAX_ID)
        return false;
    head = raw->p[0];
    if (head < 0xc0) /* fixint and fixstr, but not fixmap, fixarray */
        return head < 0x80 || head >= 0xa0;
    if (head >= 0xdc) /* negative fixint, but not array, map */
        return head >= 0xe0;
    return !(head >= 0xc7 && head <= 0xc9) && /* ext */
           !(head >= 0xd4 && head <= 0xd8);   /* fixext */
}

static int unknown_op(const struct kvf_slice_str *op, struct kvf_why *why)
{
    char text[33];
    size_t n = op->len < sizeof text - 1 ? op->len : sizeof text - 1;

    /* Goes into a reply: plain ASCII whatever came in. */
    for (size_t i = 0; i < n; i++)
        text[i] = op->p[i] >= ' ' && op->p[i] <= '~' ? op->p[i] : '?';
    text[n] = '\0';
    return kvf_fail(why, KVF_INVALID, "unknown op %s", text);
}

static int read_op(struct kvf_req *req, struct kvf_why *why)
{
    struct kvf_slice_str op;
    int rc = kvf_field_str(&req->mp.root, "op", 0, UINT32_MAX, &op, why);

    if (rc <= 0)
        return rc < 0 ? rc : kvf_mp_missing(why, "op");
    for (unsigned i = 0; i < KVF_OP_COUNT; i++)
        if (strlen(op_names[i]) == op.len &&
            memcmp(op_names[i], op.p, op.len) == 0) {
            req->op = (enum kvf_op)i;
            return 0;
        }
    return unknown_op(&op, why);
}

static int read_fields(struct kvf_req *req, const struct kvf_mp_raw *target,
                       struct kvf_why *why)
{
    int rc;

    if (req->has_payload && req->op != KVF_OP_PUT && req->op != KVF_OP_PUSH)
        return kvf_fail(why, KVF_INVALID, "extra frames: %s takes no payload",
                        kvf_op_name(req->op));
    if (req->op == KVF_OP_CANCEL) {
        if (target->p == NULL)
            return kvf_mp_missing(why, "target");
        if (!usable_id(target))
            return kvf_fail(why, KVF_INVALID,
                            "field target: must be a scalar of at most %u "
                            "bytes",
                            KVF_MAX_ID);
        req->u.cancel.target = target->p;
        req->u.cancel.target_len = target->len;
        return 0;
    }
    rc = readers[req->op](req, why);
    return rc < 0 ? rc : 0;
}

int kvf_req_decode(struct kvf_req *req, const void *header, size_t header_len,
                   const void *payload, size_t payload_len, bool has_payload,
                   struct kvf_why *why)
{
    struct kvf_mp_raw raw[2] = {{.key = "id"}, {.key = "target"}};
    int rc;

    memset(req, 0, sizeof *req);
    req->op = KVF_OP_COUNT;
    req->has_payload = has_payload;
    req->payload = has_payload ? payload : NULL;
    req->payload_len = has_payload ? payload_len : 0;
    rc = kvf_mp_parse_map(&req->mp, header, header_len, raw, 2, why);
    if (usable_id(&raw[0])) {
        req->has_id = true;
        req->id = raw[0].p;
        req->id_len = raw[0].len;
    }
    if (rc < 0)
        return rc;
    if (raw[0].p != NULL && !req->has_id)
        return kvf_fail(why, KVF_INVALID,
                        "field id: must be a scalar of at most %u bytes",
                        KVF_MAX_ID);
    rc = read_op(req, why);
    return rc < 0 ? rc : read_fields(req, &raw[1], why);
}

void kvf_req_done(struct kvf_req *req)
{
    if (req->op == KVF_OP_PUT) {
        free(req->u.put.segments);
        req->u.put.segments = NULL;
    } else if (req->op == KVF_OP_GET) {
        kvf_req_get_done(&req->u.get);
    } else if (req->op == KVF_OP_PUSH) {
        free(req->u.push.put.segments);
        req->u.push.put.segments = NULL;
    } else if (req->op == KVF_OP_WRITE || req->op == KVF_OP_READ) {
        free(req->u.rma.segments);
        req->u.rma.segments = NULL;
    } else if (req->op == KVF_OP_LAYOUT && req->u.layout != NULL) {
        kvf_layout_done(req->u.layout);
        free(req->u.layout);
        req->u.layout = NULL;
    } else if (req->op == KVF_OP_PUBLISH) {
        kvf_req_blocks_done(&req->u.publish.blocks);
    } else if (req->op == KVF_OP_PULL) {
        kvf_req_blocks_done(&req->u.pull.blocks);
    }
    kvf_mp_done(&req->mp);
}
