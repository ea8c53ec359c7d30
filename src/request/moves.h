/* Moves: push, write and read, from an engine's request to its one reply.
 *
 * A push asks the receiver for room, writes the payload into it and commits; a
 * write or read asks for access to a window and moves bytes into or out of it.
 * move_machine.[ch] is the pure state machine; the other files perform what it
 * says over peers and transports. One thread, nothing blocks. */
#ifndef KVF_REQUEST_MOVES_H
#define KVF_REQUEST_MOVES_H

#include "memory/buffer.h"
#include "peer/peers.h"
#include "store/store.h"
#include "wire/engine_msg.h"

struct kvf_moves;
struct kvf_move;

enum kvf_move_kind { KVF_MOVE_PUSH, KVF_MOVE_WRITE, KVF_MOVE_READ };
const char *kvf_move_kind_name(enum kvf_move_kind kind);

struct kvf_moves_env {
    struct kvf_sched *sched;
    struct kvf_stats *stats;
    struct kvf_rng *rng;
    const struct kvf_conf *conf; /* may change at reload */
    struct kvf_store *store;
    struct kvf_buffers *buffers;
    struct kvf_peers *peers;
    struct kvf_mapping *own_map; /* the own pool, writable */
    struct kvf_transport *shm;   /* also moves within this daemon; never NULL */
    /* A write or read of our own engine into a window of this daemon, with
     * notify (kvf_peers_env.on_written). May be NULL. */
    void (*on_written)(void *arg, const struct kvf_window *w, bool write,
                       const void *data, size_t len);
    void *arg;
};
int kvf_moves_create(const struct kvf_moves_env *env, struct kvf_moves **out,
                     struct kvf_why *why);
/* Every move must have been answered (kvf_moves_cancel_all and run the loop).
 */
void kvf_moves_destroy(struct kvf_moves *ms); /* NULL is fine */

struct kvf_move_params { /* read during the call only */
    enum kvf_move_kind kind;
    const struct kvf_dest *dest;
    uint64_t timeout_ms; /* 0 = no timeout */
    /* Local memory, resolved and checked by the caller; pinned here while the
     * move runs. Or a payload, which is copied. */
    const struct kvf_seg *segs;
    unsigned n_segs;
    const void *payload;
    size_t payload_len;
    /* push */
    const struct kvf_req_put *put;
    struct kvf_id publisher; /* put->notify: whom its end is told */
    /* write, read */
    struct kvf_slice_str window;
    uint64_t target_offset;
    bool has_notify;
    const void *notify;
    size_t notify_len;
};

struct kvf_move_result { /* valid during the reply call */
    enum kvf_move_kind kind;
    enum kvf_status status;
    const char *text; /* message, when status is not OK */
    uint64_t size, generation;
    const char *transport; /* shm tcp rdma local eager */
    unsigned attempts;
    uint64_t lookup_us, wait_us, transfer_us, total_us;
    bool has_space; /* NO_SPACE: the receiver's figures */
    uint64_t free, largest_free, needed;
};

/* The one answer; the move is over when it returns, and nothing touches its
 * memory any more. Never called from inside kvf_move_start. */
typedef void kvf_move_reply(void *arg, const struct kvf_move_result *res);

/* -KVF_INVALID, -KVF_BUSY, with nothing started. */
int kvf_move_start(struct kvf_moves *ms, const struct kvf_move_params *params,
                   kvf_move_reply *reply, void *arg, struct kvf_move **out,
                   struct kvf_why *why);
/* Answers with `status` once nothing can touch its memory any more; always
 * later. A push that is past its COMMIT may be published all the same. */
void kvf_move_cancel(struct kvf_move *m, enum kvf_status status,
                     const char *text);
void kvf_moves_cancel_all(struct kvf_moves *ms, enum kvf_status status,
                          const char *text);
unsigned kvf_moves_running(const struct kvf_moves *ms);

struct kvf_moves_gauges {
    unsigned running, waiting, moving, confirming, draining, idle_grants;
    uint64_t bytes; /* of those that run */
};
void kvf_moves_gauges(const struct kvf_moves *ms, struct kvf_moves_gauges *g);
#endif
