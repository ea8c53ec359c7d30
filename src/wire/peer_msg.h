/* Messages between daemons (the metadata channel), version 1.
 *
 * The side that connected (DEALER, the getter) and the side that bound (ROUTER,
 * the owner) play different parts; two daemons that pull from each other have
 * one channel each way. Frame 1 is a MessagePack array
 *   [version, type, cluster, stage, rank, replica, from_incarnation,
 *    to_incarnation, body]
 * with a map as body; GRANT may carry the payload as frame 2 (eager bytes).
 * Durations travel as what remains, never as times. */
#ifndef KVF_WIRE_PEER_MSG_H
#define KVF_WIRE_PEER_MSG_H

#include "base/worker.h"
#include "layout/plan.h"
#include "wire/engine_msg.h"
#include "wire/mp.h"
#include "wire/rdma_msg.h"

#define KVF_PEER_VERSION 1u
#define KVF_SECRET_LEN 32

/* X(NAME, number, sent by the connecting side?) */
#define KVF_PEER_TYPES(X)                                                      \
    X(HELLO, 1, true)    /* opens or renews the session */                     \
    X(WELCOME, 2, false) /* session is up; how to fetch bytes */               \
    X(REFUSE, 3, false)  /* version, cluster, limits: with the reason */       \
    X(PING, 4, true)                                                           \
    X(PONG, 5, false)                                                          \
    X(ASK, 6, true)          /* who has key; parks at the owner */             \
    X(UNASK, 7, true)        /* no longer interested */                        \
    X(GRANT, 8, false)       /* a claim (and eager bytes) */                   \
    X(DENY, 9, false)        /* final answer to an ASK */                      \
    X(DONE, 10, true)        /* claim read: counts as a reader */              \
    X(ABORT, 11, true)       /* claim given back */                            \
    X(ENDED, 12, false)      /* acknowledges DONE, ABORT */                    \
    X(REVOKED, 13, false)    /* owner ended the claim */                       \
    X(UNMAPPED, 14, true)    /* a client unmapped the views of an old start */ \
    X(BYE, 15, true)         /* either side: going away in order */            \
    X(LAYOUT, 16, true)      /* either side: a layout of its engine */         \
    X(LAYOUT_GONE, 17, true) /* either side: its session has ended */          \
    X(LAYOUT_ASK, 18, true)  /* is there a layout that fits ours? */           \
    X(LAYOUT_IS, 19, false)  /* this one */                                    \
    X(BLOCKS_ASK, 20, true)  /* the blocks of a request; parks */              \
    X(BLOCKS_GRANT, 21, false) /* a claim on them */                           \
    X(TOGETHER, 22, true)      /* how a pull of a group stands */              \
    X(VERDICT, 23, false)      /* what becomes of the group */                 \
    X(WINDOW_ASK, 24, true)    /* access to a window: GRANT or DENY follows */ \
    X(ROOM_ASK, 25, true)      /* room for a push: GRANT, DENY, or APPLIED */  \
    X(COMMIT, 26, true)        /* all of a push is there: APPLIED or DENY */   \
    X(NOTIFY, 27, true)        /* for a window's owner: APPLIED or DENY */     \
    X(APPLIED, 28, false)      /* ROOM_ASK with bytes, COMMIT, NOTIFY: done */ \
    X(RETIRED, 29, false)      /* what a push brought has been retired */      \
    X(RETIRED_SEEN, 30, true)  /* that is known: need not be told again */     \
    X(RDMA_CONNECT, 32, true)  /* getter's end of an RC connection */          \
    X(RDMA_ACCEPT, 33, false)  /* owner's end of it */                         \
    X(RDMA_REFUSE, 34, false)  /* no such connection: with the reason */       \
    X(RDMA_CLOSE, 35, true)    /* either side: its end is gone */              \
    X(RDMA_KEYS, 36, false)    /* where a region of a layout is registered */

enum kvf_peer_type {
#define KVF_PEER_ENUM(name, number, client) KVF_PEER_##name = number,
    KVF_PEER_TYPES(KVF_PEER_ENUM)
#undef KVF_PEER_ENUM
        KVF_PEER_TYPE_END
};
const char *kvf_peer_type_name(enum kvf_peer_type type);

#define KVF_PEER_PATH 64       /* "/proc/<pid>/fd/<n>" with its NUL */
#define KVF_PEER_SPACES 64u    /* most regions named in a GRANT */
#define KVF_PEER_CLAIMS 65536u /* most claims listed in a HELLO */

struct kvf_peer_head {
    uint32_t version;
    enum kvf_peer_type type;
    char cluster[64];
    struct kvf_worker worker; /* sender */
    struct kvf_id from;       /* sender's incarnation */
    struct kvf_id to;         /* receiver's as the sender knows it; zeros in a
                                 first HELLO */
};

struct kvf_peer_pool { /* how to open a daemon's pool on the same host */
    char path[KVF_PEER_PATH];
    uint64_t size, pid, start;
};

struct kvf_peer_gone { /* views of an earlier start of the getter's daemon that
                          process `pid` has unmapped */
    struct kvf_id incarnation;
    uint64_t pid, start;
};

struct kvf_peer_seg {
    uint32_t space; /* 0 = the owner's pool, else spaces[space-1] */
    uint64_t offset, length;
};

struct kvf_peer_space { /* a region, mappable on the same host */
    char path[KVF_PEER_PATH];
    uint64_t dev, ino, size;
};

struct kvf_peer_ask {
    uint64_t ask; /* chosen by the asker, unique within its session */
    struct kvf_slice_str key;
    bool has_generation, has_incarnation, wait, want_shm;
    uint64_t generation;
    struct kvf_id incarnation;
    uint64_t wait_ms; /* what remains; 0 = no limit */
    enum kvf_mode mode;
    uint64_t eager_max;            /* bytes welcome in the GRANT; 0 = none */
    uint64_t view_pid, view_start; /* engine that will map (mode view) */
};

struct kvf_peer_grant {
    uint64_t ask, claim, generation, size;
    struct kvf_id token;
    const void *meta;
    size_t meta_len;
    bool has_checksum, eager, shm;
    uint64_t checksum;
    unsigned n_segs, n_spaces;
    struct kvf_peer_seg *segs; /* decoded: malloced, freed by _done */
    struct kvf_peer_space *spaces;
    /* The payload may be read by RDMA at segs. keys (may be NULL): for each
     * space where it is registered, or NULL. */
    bool rdma;
    bool rdma_soon; /* not yet, but asked again later: the handshake, or the
                       registration of a region, is under way */
    struct kvf_rdma_keys **keys;
};

struct kvf_peer_window_ask {
    uint64_t ask;
    struct kvf_slice_str name;
    bool write, want_shm;
    uint64_t offset, length; /* what is wanted first: checked at once */
};

struct kvf_peer_room_ask {
    uint64_t ask;
    struct kvf_id push; /* random: the same push is never published twice */
    struct kvf_slice_str key;
    uint64_t size;
    const void *meta;
    size_t meta_len;
    bool has_ttl, reject_duplicate, want_shm, has_checksum;
    bool notify; /* RETIRED is wanted */
    uint64_t ttl_ms, readers, checksum;
    const void *bytes; /* the payload itself, when it is small; else NULL */
    size_t bytes_len;
};

struct kvf_peer_commit {
    uint64_t ask;
    struct kvf_id push;
    uint64_t claim; /* the room's */
    struct kvf_id token;
    bool has_checksum;
    uint64_t checksum;
};

struct kvf_peer_notify {
    uint64_t ask;
    struct kvf_id id; /* random: told once however often it comes */
    uint64_t claim;   /* the window's */
    struct kvf_id token;
    bool write;
    const void *data;
    size_t len;
};

/* Why, on the wire: consumed, expired, cleanup, replaced, failed. */
#define KVF_PEER_REASONS 5u
struct kvf_peer_retired { /* RETIRED_SEEN has the first two */
    struct kvf_id push;
    uint64_t generation, reason, readers_done;
};

/* ---- KV blocks ---------------------------------------------------------- */

struct kvf_peer_layout {
    uint64_t number;             /* the sender's; never repeats */
    const struct kvf_side *side; /* decoded: that of decl */
    int64_t rank;
    unsigned n_regions, n_spaces;
    uint64_t *length; /* of region i; decoded: malloced */
    /* Where region i can be mapped on the same host; n_spaces is 0 when the
     * sender does not tell. */
    struct kvf_peer_space *spaces;
    struct kvf_layout_decl decl; /* decoded; freed by _done unless emptied */
};

struct kvf_peer_layout_ask {
    uint64_t ask, layout; /* the asker's layout */
    bool has_incarnation;
    struct kvf_id incarnation;
};

struct kvf_peer_blocks_ask {
    uint64_t ask, layout, rank; /* rank: P's, in its layout */
    struct kvf_slice_str request_id;
    bool want_shm, has_tag, has_incarnation;
    struct kvf_id tag, incarnation;
};

struct kvf_peer_blocks {
    uint64_t ask, claim, generation, layout, n_tokens;
    struct kvf_id token, tag;
    bool minted, shm;
    bool rdma;      /* RDMA_KEYS told where all regions of the layout are */
    bool rdma_soon; /* as in a grant */
    unsigned n_groups;
    struct kvf_ids *ids; /* by group; decoded: malloced */
    int64_t *arena;      /* decoded: what they point into */
};

/* JOIN, then READY or FAILED. */
enum kvf_together {
    KVF_TOGETHER_JOIN,
    KVF_TOGETHER_READY,
    KVF_TOGETHER_FAILED
};

struct kvf_peer_together {
    uint64_t ask, member, size; /* member: rank in the asker's layout */
    struct kvf_slice_str request_id, name;
    enum kvf_together phase;
    uint32_t status; /* FAILED: why */
    char text[200];
};

struct kvf_peer_msg {
    struct kvf_peer_head head;
    union {
        struct {
            struct kvf_peer_pool pool;
            uint64_t peer_timeout_ms;
            uint64_t *live; /* claims this side believes live */
            unsigned n_live;
            struct kvf_peer_gone *gone;
            unsigned n_gone;
            bool rdma;     /* has a verbs device */
            uint64_t link; /* which of the sender's connections to this owner */
        } hello;
        struct {
            struct kvf_peer_pool pool;
            bool shm;          /* owner could open the getter's pool */
            char shm_why[160]; /* if not: why */
            bool tcp;
            char tcp_host[64]; /* numeric */
            uint16_t tcp_port;
            uint8_t secret[KVF_SECRET_LEN];
            uint64_t *dead; /* of hello.live: not live any more */
            unsigned n_dead;
            bool rdma;                /* RDMA_CONNECT is welcome */
            uint64_t peer_timeout_ms; /* 0: not told */
        } welcome;
        struct {
            uint32_t status;
            char text[200];
        } refuse;
        struct {
            uint64_t seq;
        } ping; /* PING, PONG */
        struct kvf_peer_ask ask;
        struct {
            uint64_t ask;
        } unask;
        struct kvf_peer_grant grant;
        struct {
            uint64_t ask;
            uint32_t status;
            uint64_t generation, size;
            uint64_t free, largest_free, needed; /* of a NO_SPACE; else 0 */
            char text[200];
        } deny;
        struct {
            uint64_t claim;
            struct kvf_id token;
        } end; /* DONE, ABORT */
        struct {
            uint64_t claim;
            uint64_t *more; /* further ones */
            unsigned n_more;
        } ended;
        struct {
            uint64_t claim;
            char text[200];
        } revoked;
        struct kvf_peer_gone unmapped;
        struct kvf_peer_window_ask window_ask;
        struct kvf_peer_room_ask room_ask;
        struct kvf_peer_commit commit;
        struct kvf_peer_notify notify;
        struct {
            uint64_t ask, generation; /* generation 0: of a NOTIFY */
        } applied;
        struct kvf_peer_retired retired; /* also RETIRED_SEEN */
        struct {
            char text[200];
        } bye;
        struct kvf_rdma_connect rdma_connect;
        struct kvf_rdma_accept rdma_accept; /* pool: malloced, as above */
        struct kvf_rdma_word rdma_word;     /* RDMA_REFUSE, RDMA_CLOSE */
        struct {
            uint64_t layout, region;    /* region: its place in the layout */
            struct kvf_rdma_keys *keys; /* decoded: malloced, freed by _done
                                           unless taken out */
        } rdma_keys;
        struct kvf_peer_layout layout;
        struct {
            uint64_t number;
        } layout_gone;
        struct kvf_peer_layout_ask layout_ask;
        struct {
            uint64_t ask, layout;
        } layout_is;
        struct kvf_peer_blocks_ask blocks_ask;
        struct kvf_peer_blocks blocks;
        struct kvf_peer_together together;
        struct {
            uint64_t ask;
            uint32_t status; /* KVF_OK: all are ready */
            char text[200];
        } verdict;
    } u;
    const void *payload; /* frame 2 of a GRANT with eager bytes */
    size_t payload_len;
    struct kvf_mp mp; /* private */
    bool decoded;     /* private: arrays belong to the message */
};

/* Encodes head and body into `w` (reset first). The payload is not copied: it
 * is sent as a frame of its own. -KVF_INTERNAL when out of memory. */
int kvf_peer_encode(struct kvf_mpw *w, const struct kvf_peer_msg *m);

/* Decodes and checks every field; strings point into `data`. A version other
 * than ours: -KVF_MISMATCH with head filled as far as it could be read.
 * Otherwise -KVF_INVALID. kvf_peer_done in every case. */
int kvf_peer_decode(struct kvf_peer_msg *m, const void *data, size_t len,
                    const void *payload, size_t payload_len,
                    struct kvf_why *why);
void kvf_peer_done(struct kvf_peer_msg *m);
#endif
