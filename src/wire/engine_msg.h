/* Requests of engines: bytes -> structs, every field checked for type and range
 * here and nowhere else (docs/PROTOCOL.md). No I/O, no state. */
#ifndef KVF_WIRE_ENGINE_MSG_H
#define KVF_WIRE_ENGINE_MSG_H

#include "base/worker.h"
#include "wire/layout_msg.h"
#include "wire/mp.h"

#define KVF_PROTOCOL_VERSION 1u
#define KVF_MAX_KEY 1024u
#define KVF_MAX_META 65536u
#define KVF_MAX_SEGMENTS 1024u
#define KVF_MAX_ID 4096u /* bytes of an encoded id */
#define KVF_MAX_MGET 16384u
#define KVF_MAX_LIST 100000u /* keys of one answer */
#define KVF_MAX_MS                                                             \
    (1000ull * 3600 * 24 * 365) /* one year: longest duration                  \
                                 */

#define KVF_OPS(X)                                                             \
    X(HELLO, "hello")                                                          \
    X(BYE, "bye")                                                              \
    X(PING, "ping")                                                            \
    X(ALLOC, "alloc")                                                          \
    X(FREE, "free")                                                            \
    X(REGISTER, "register")                                                    \
    X(UNREGISTER, "unregister")                                                \
    X(PUT, "put")                                                              \
    X(GET, "get")                                                              \
    X(RELEASE, "release")                                                      \
    X(MGET, "mget")                                                            \
    X(CANCEL, "cancel")                                                        \
    X(FAIL, "fail")                                                            \
    X(CLEANUP, "cleanup")                                                      \
    X(LIST, "list")                                                            \
    X(PEER, "peer")                                                            \
    X(STATS, "stats")                                                          \
    X(HEALTH, "health")                                                        \
    X(DRAIN, "drain")                                                          \
    X(PUSH, "push")                                                            \
    X(EXPOSE, "expose")                                                        \
    X(UNEXPOSE, "unexpose")                                                    \
    X(WRITE, "write")                                                          \
    X(READ, "read")                                                            \
    X(LAYOUT, "layout")                                                        \
    X(PUBLISH, "publish")                                                      \
    X(PULL, "pull")

enum kvf_op {
#define KVF_OP_ENUM(name, text) KVF_OP_##name,
    KVF_OPS(KVF_OP_ENUM)
#undef KVF_OP_ENUM
        KVF_OP_COUNT
};
const char *kvf_op_name(enum kvf_op op);

/* Bytes inside the message (or inside the request's own arena). */
struct kvf_slice_str {
    const char *p;
    size_t len;
};

struct kvf_segment_ref { /* {buffer, offset?, length?} or {region, ...} */
    bool is_region;
    bool has_length; /* absent: the whole (from offset) */
    uint64_t id, offset, length;
};

enum kvf_mode {
    KVF_MODE_AUTO,
    KVF_MODE_COPY,
    KVF_MODE_VIEW,
    KVF_MODE_INLINE,
    KVF_MODE_INTO /* `into` was given */
};
const char *kvf_mode_name(enum kvf_mode mode);

enum kvf_on_duplicate { KVF_DUP_REPLACE, KVF_DUP_REJECT };

struct kvf_req_hello {
    uint64_t version;
    struct kvf_slice_str client;
    bool has_pid, events, has_session, has_unmapped;
    uint64_t pid;
    struct kvf_id session;  /* exactly 16 bytes, else INVALID */
    struct kvf_id unmapped; /* an incarnation */
};

struct kvf_req_put {
    struct kvf_slice_str key;
    struct kvf_segment_ref *segments; /* NULL: a payload frame is expected */
    unsigned n_segments;
    const void *meta;
    size_t meta_len;
    bool has_ttl, checksum, notify;
    uint64_t ttl_ms;  /* > 0 */
    uint64_t readers; /* default 1; 0 = any number */
    uint64_t next;    /* bytes of a buffer to come along; 0: none. Not in a push
                       */
    enum kvf_on_duplicate on_duplicate;
};

struct kvf_from { /* get.from */
    bool has_rank, has_replica;
    uint64_t stage, rank, replica;
};

struct kvf_endpoint { /* a metadata endpoint */
    char host[256];
    uint16_t port;
};

struct kvf_req_get {
    struct kvf_slice_str key;
    bool has_from, has_source, has_generation, has_timeout, has_incarnation;
    bool wait; /* default true */
    struct kvf_from from;
    struct kvf_endpoint source;
    /* metadata, as far as it was usable: an endpoint, and what binds. */
    bool has_meta_endpoint, has_meta_generation;
    struct kvf_endpoint meta_endpoint;
    uint64_t meta_generation;
    struct kvf_id incarnation; /* of metadata */
    uint64_t generation, timeout_ms;
    enum kvf_mode mode;
    struct kvf_segment_ref *into;
    unsigned n_into;
};

struct kvf_dest { /* whom push, write and read are for: `to`, else `target` */
    bool has_to;
    struct kvf_from to;
    struct kvf_endpoint target; /* without `to` */
};

struct kvf_req_push {
    struct kvf_req_put put;
    struct kvf_dest dest;
    bool has_timeout;
    uint64_t timeout_ms;
};

struct kvf_req_expose {
    struct kvf_slice_str name;
    bool is_region, writable;
    uint64_t size, region; /* the one that is_region says */
};

struct kvf_req_rma { /* write, read */
    struct kvf_dest dest;
    struct kvf_slice_str window;
    uint64_t target_offset; /* with the known lengths below INT64_MAX */
    struct kvf_segment_ref *segments;
    unsigned n_segments;
    bool has_timeout, has_notify;
    uint64_t timeout_ms;
    const void *notify;
    size_t notify_len;
};

struct kvf_req_cleanup {
    struct kvf_slice_str request_id;
    bool has_from, has_to;
    uint64_t from, to;
};

/* ---- KV blocks: layout, publish, pull ----------------------------------- */

#define KVF_TOGETHER_NAME 255u
#define KVF_TOGETHER_MAX 65536u

struct kvf_req_group { /* {group, first, ids} */
    unsigned group;
    int64_t first; /* logical position of ids[0] */
    int64_t *ids;  /* in the arena of kvf_req_blocks */
    unsigned n;
};

struct kvf_req_blocks {           /* malloced; freed by kvf_req_done */
    struct kvf_req_group *groups; /* each group at most once */
    unsigned n;
    int64_t *ids;
};
/* Idempotent; a zeroed one is fine. */
void kvf_req_blocks_done(struct kvf_req_blocks *b);

struct kvf_req_publish {
    uint64_t layout;
    struct kvf_slice_str request_id;
    bool has_tag, has_ttl, notify;
    struct kvf_id tag;
    uint64_t n_tokens, ttl_ms;
    struct kvf_req_blocks blocks;
};

struct kvf_req_pull {
    uint64_t layout;
    struct kvf_slice_str request_id; /* of the handle, or beside `from` */
    bool has_handle, has_timeout;
    struct kvf_id tag, incarnation; /* of the handle */
    struct kvf_endpoint source;     /* likewise */
    struct kvf_from from;           /* without a handle */
    struct kvf_req_blocks blocks;
    uint64_t timeout_ms;
    struct kvf_slice_str together; /* p NULL: alone */
    uint64_t together_size;
};

struct kvf_req {
    enum kvf_op op;
    bool has_id;
    const uint8_t *id; /* encoded, as it stood in the message */
    size_t id_len;
    const void *payload; /* second frame, NULL when there was none */
    size_t payload_len;
    bool has_payload;
    union {
        struct kvf_req_hello hello;
        struct {
            uint64_t size; /* >= 1; clamped to INT64_MAX */
        } alloc;
        struct {
            uint64_t id;
            bool quiet; /* free, release: OK needs no reply */
        } handle;       /* free, release: buffer;
                           unregister: region; unexpose: window */
        struct {
            uint64_t fd, size;
        } reg;
        struct kvf_req_put put;
        struct kvf_req_get get;
        struct kvf_req_push push;
        struct kvf_req_expose expose;
        struct kvf_req_rma rma;
        struct {
            const msgpack_object *gets; /* array; see kvf_req_mget_item */
            unsigned n;
            bool has_timeout, all_or_nothing;
            uint64_t timeout_ms;
        } mget;
        struct {
            const uint8_t *target;
            size_t target_len;
        } cancel;
        struct {
            struct kvf_slice_str key, reason;
            bool composed; /* of request_id, from, to: then these too */
            struct kvf_slice_str request_id;
            uint64_t from;
        } fail;
        struct kvf_req_cleanup cleanup;
        struct {
            struct kvf_slice_str prefix;
            uint64_t limit;
        } list;
        struct {
            struct kvf_worker worker;
            bool has_replica; /* absent: the daemon's own */
            struct kvf_endpoint at;
        } peer;
        struct {
            bool has_timeout;
            uint64_t timeout_ms;
        } drain;
        struct kvf_layout_decl *layout; /* malloced; who takes it over sets it
                                           to NULL */
        struct kvf_req_publish publish;
        struct kvf_req_pull pull;
    } u;
    struct kvf_mp mp; /* private: what the pointers above point into */
};

/* Decodes header (one frame) and optional payload frame. On -KVF_INVALID
 * (why filled) req->has_id/id are set when the id could be read, and
 * kvf_req_done must be called in every case. Rules that need state (sessions,
 * buffers, inline_max) are not checked here. A payload frame is accepted for
 * `put` and `push` only. Composes `request_id:from_to` keys, and for a get sets
 * from.stage. Metadata that cannot be used counts as absent (never an error),
 * except that a usable generation or incarnation in it binds.  */
/* Blocks never; `req` need not be initialised. Strings, payload, id and target
 * point into the caller's frames, which must stay until kvf_req_done. Where two
 * lengths of `into` are known, overlaps are refused here; the rest is for whom
 * knows the sizes. -KVF_INTERNAL: out of memory. */
int kvf_req_decode(struct kvf_req *req, const void *header, size_t header_len,
                   const void *payload, size_t payload_len, bool has_payload,
                   struct kvf_why *why);
/* Get number i of an mget; owned by req until kvf_req_done, except the
 * `into` array, which kvf_req_get_done frees. (That of a plain get belongs to
 * req; who takes it over sets req->u.get.into to NULL.) i < u.mget.n. After a
 * failure *out holds nothing and the other items are still good. */
int kvf_req_mget_item(struct kvf_req *req, unsigned i, struct kvf_req_get *out,
                      struct kvf_why *why);
void kvf_req_get_done(struct kvf_req_get *get);
void kvf_req_done(struct kvf_req *req);
#endif
