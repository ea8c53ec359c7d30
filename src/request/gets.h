/* Gets: from an engine's request to its one reply.
 *
 * get_machine.[ch] is the pure state machine; get.c performs what it says over
 * store, peers, transports and buffers. One thread, nothing blocks. */
#ifndef KVF_REQUEST_GETS_H
#define KVF_REQUEST_GETS_H

#include "memory/buffer.h"
#include "peer/peers.h"
#include "store/store.h"
#include "wire/engine_msg.h"

struct kvf_gets;
struct kvf_get;
struct kvf_view;

struct kvf_gets_env {
    struct kvf_sched *sched;
    struct kvf_stats *stats;
    struct kvf_rng *rng;
    const struct kvf_conf *conf; /* may change at reload */
    struct kvf_id incarnation;
    struct kvf_store *store;
    struct kvf_buffers *buffers;
    struct kvf_segment *segment;
    struct kvf_peers *peers;
    struct kvf_transport *shm; /* also copies local payloads; never NULL */
};
int kvf_gets_create(const struct kvf_gets_env *env, struct kvf_gets **out,
                    struct kvf_why *why);
/* Every get must have been answered (kvf_gets_cancel_all and run the loop). */
void kvf_gets_destroy(struct kvf_gets *gs);

struct kvf_get_params {
    const struct kvf_req_get *req; /* read during the call only */
    uint64_t timeout_ms;           /* resolved default; 0 = no timeout */
    /* `into`, resolved by the caller: checked to be the session's, in range and
     * not overlapping. Pinned here while the get runs. */
    const struct kvf_seg *into;
    unsigned n_into;
    /* The engine may map memory (session with a pid): view is possible. */
    bool can_map;
    /* The engine has a session at all: buffers may be handed out. Without it
     * only inline is possible (UNSUPPORTED otherwise). */
    bool has_session;
    uint64_t pid, start;
    const void *owner; /* of the received buffer: the session, opaque */
    struct kvf_list *owner_list; /* its list of buffers; gets the new one */
    struct kvf_list *view_list;  /* its list of views; gets the new one */
    bool hold; /* member of an all-or-nothing mget: stop before DONE and call
                  on_held; then kvf_get_commit or kvf_get_cancel */
};

struct kvf_result_seg {
    const char *path; /* NULL: the own pool, or the region below */
    bool is_region;
    uint64_t region; /* id, when the engine's own region was written (into) */
    uint64_t offset, length;
};

struct kvf_get_result { /* valid during the reply call */
    enum kvf_status status;
    const char *text; /* message, when status is not OK */
    uint64_t size, generation;
    bool has_size, has_generation; /* MISMATCH, TOO_LARGE... carry the size */
    const void *meta;
    size_t meta_len;
    enum kvf_mode mode;    /* copy view inline into */
    const char *transport; /* shm tcp rdma local eager */
    uint64_t buffer;       /* id to release; 0 = none (inline, into) */
    const struct kvf_result_seg *segs;
    unsigned n_segs;
    bool has_checksum;
    uint64_t checksum;
    unsigned attempts;
    uint64_t lookup_us, wait_us, transfer_us, total_us;
    const void *payload; /* inline */
    size_t payload_len;
    bool has_space; /* NO_SPACE: the three figures below */
    uint64_t free, largest_free, needed;
};

struct kvf_get_ops {
    /* The one answer. Returns 0 when the socket took it (or queued it), else
     * the client is gone: what the reply gave is undone, and an unfinished
     * claim aborted. The get is over when it returns. Never called from inside
     * kvf_get_start. */
    int (*reply)(void *arg, struct kvf_get *get,
                 const struct kvf_get_result *res);
    /* params.hold: every byte is in place and the claim still live. */
    void (*on_held)(void *arg, struct kvf_get *get);
};

/* Accepts the request unless what it says is impossible (-KVF_INVALID,
 * -KVF_UNSUPPORTED, -KVF_STALE) or memory is short (-KVF_BUSY, -KVF_NO_SPACE);
 * then nothing is started. */
int kvf_get_start(struct kvf_gets *gs, const struct kvf_get_params *params,
                  const struct kvf_get_ops *ops, void *arg,
                  struct kvf_get **out, struct kvf_why *why);
/* Answers with `status` (CANCELLED, SHUTTING_DOWN, ...) once nothing can touch
 * its memory any more; always later. A get that is past its last byte may still
 * be answered OK. */
void kvf_get_cancel(struct kvf_get *get, enum kvf_status status,
                    const char *text);
/* Held gets only: DONE goes out and the reply follows. */
void kvf_get_commit(struct kvf_get *get);
/* What a held get will bring as payload: its size when inline, else 0. */
uint64_t kvf_get_inline_bytes(const struct kvf_get *get);
/* Cancels every get of an owner without a reply (its session ended). */
void kvf_gets_drop_owner(struct kvf_gets *gs, const void *owner);
void kvf_gets_cancel_all(struct kvf_gets *gs, enum kvf_status status,
                         const char *text);
unsigned kvf_gets_running(const struct kvf_gets *gs);

/* A zero-copy view that an engine holds; its id is a buffer id. */
struct kvf_view {
    uint64_t id;
    const void *owner;
    struct kvf_list owner_node; /* in params.view_list */
    struct kvf_gets *gets;
    struct kvf_grant *grant;
    UT_hash_handle hh; /* by id */
};
struct kvf_view *kvf_view_find(const struct kvf_gets *gs, uint64_t id);
/* The engine has let go: the reader counts as done. v is gone. */
void kvf_view_release(struct kvf_view *v);
/* The engine never saw it, or died before releasing: the reader is given back
 * (abort). v is gone. */
void kvf_view_abort(struct kvf_view *v);
/* This daemon ends and the engine lives on, with the bytes before its eyes:
 * the owner keeps them until that process ends or says `unmapped`. v is gone.
 */
void kvf_view_leave(struct kvf_view *v);
/* Views of memory of other owners. */
unsigned kvf_views_elsewhere(const struct kvf_gets *gs);

struct kvf_gets_gauges {
    unsigned running, waiting, pulling, draining, queued, views;
    uint64_t pull_bytes; /* claimed, unfinished */
};
void kvf_gets_gauges(const struct kvf_gets *gs, struct kvf_gets_gauges *g);
#endif
