/* What the files of a move share; nobody else includes it. */
#ifndef KVF_REQUEST_MOVES_PRIVATE_H
#define KVF_REQUEST_MOVES_PRIVATE_H

#include "memory/checksum.h"
#include "peer/window.h"
#include "request/move_machine.h"
#include "request/moves.h"
#include "request/retry.h"
#include "transport/xfer.h"

#define KVF_IDLE_GRANTS 64u /* accesses to windows that are kept at most */

struct kvf_moves {
    struct kvf_moves_env env;
    struct kvf_list all; /* kvf_move.node */
    unsigned running;
    struct kvf_link local_link; /* moves within this daemon */
    struct kvf_list idle;       /* struct kvf_idle, oldest first */
    unsigned n_idle;
    /* Writes over tcp that broke. What was sent of one may come late: only an
     * access that was asked for since is used after it (kvf_idle). */
    uint64_t cuts;
};

/* An access to a window that the next write or read can use without asking. */
struct kvf_idle {
    struct kvf_list node;
    struct kvf_moves *ms;
    struct kvf_grant *grant;
    struct kvf_timer timer;
    bool write;
    uint64_t windows; /* kvf_peer_windows before it was asked for */
    uint64_t cuts;    /* kvf_moves.cuts then */
    size_t name_len;
    char name[];
};

struct kvf_move {
    struct kvf_list node;
    struct kvf_moves *ms;
    struct kvf_move_machine m;
    enum kvf_move_kind kind;
    kvf_move_reply *reply;
    void *arg;
    bool stopping;

    /* the request */
    struct kvf_seg *segs;
    unsigned n_segs;
    uint64_t size;
    uint8_t *bytes; /* the payload, or a small one gathered; may be NULL */
    char *name;     /* key or window */
    size_t name_len;
    void *extra; /* meta or notify */
    size_t extra_len;
    bool has_notify;
    uint64_t target_offset;
    struct kvf_id id; /* of the push or the notification: random */
    bool has_ttl, reject_duplicate, checksum;
    bool wants_end; /* of a push */
    struct kvf_id publisher;
    struct kvf_watch *watch; /* at the peer, while it runs */
    uint64_t ttl_ms, readers;

    /* where */
    bool self, has_expect;
    struct kvf_worker expect;
    char *host;
    uint16_t port;
    struct kvf_peer *peer;
    struct kvf_peer_user user;
    struct kvf_ask ask;

    /* what came */
    struct kvf_grant *grant;
    bool eager, eager_refused;
    bool from_idle;      /* the grant was kept from before */
    uint64_t windows;    /* kvf_peer_windows before it was asked for */
    uint64_t cuts;       /* kvf_moves.cuts then */
    bool confirm_waits;  /* CONFIRMING, but the peer is down just now */
    uint64_t window_id;  /* self: looked for again at the end */
    struct kvf_seg room; /* self: what is written or read; pinned */
    bool has_room;
    struct kvf_remote_seg room_seg;
    struct kvf_remote local;
    uint64_t generation;

    /* the transfer */
    struct kvf_xfer xfer;
    struct iovec *iov;
    unsigned n_iov;
    bool has_xfer;
    bool over_shm; /* the attempt under way */
    struct kvf_checksum sum;
    bool summing, summed;
    uint64_t sum_value;
    const char *transport;
    struct kvf_retry retry;
    char *cause; /* of the last broken attempt */

    /* time */
    struct kvf_timer deadline, pause;
    struct kvf_task task;
    uint64_t t_start, t_asked, t_granted;

    /* how it ends */
    enum kvf_status status;
    bool has_space;
    uint64_t free, largest_free, needed;
    char *text;
};

/* moves.c */
void kvf_move_feed(struct kvf_move *m, enum kvf_move_event e);
void kvf_move_because(struct kvf_move *m, enum kvf_status status,
                      const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void kvf_move_stop(struct kvf_move *m, const struct kvf_why *why);
const char *kvf_move_peer_name(const struct kvf_move *m);
/* Deadline, pause and task: what the machine hears when they run. */
void kvf_move_init_time(struct kvf_move *m);
/* move_start.c */
/* Frees m before its reply. */
void kvf_move_release(struct kvf_move *m);
/* move_ask.c */
void kvf_move_begin(struct kvf_move *m);
void kvf_move_ask(struct kvf_move *m);
void kvf_move_confirm(struct kvf_move *m);
/* move_idle.c */
/* Takes the grant of a move that ends, if the next can use it. */
void kvf_idle_keep(struct kvf_move *m);
/* One that covers what the move wants, or NULL; it is the caller's then. Sets
 * m->windows. */
struct kvf_grant *kvf_idle_find(struct kvf_move *m);
void kvf_idle_drop_all(struct kvf_moves *ms);
/* move_self.c */
void kvf_move_ask_self(struct kvf_move *m);
void kvf_move_confirm_self(struct kvf_move *m);
void kvf_move_leave_self(struct kvf_move *m);
/* move_run.c */
void kvf_move_run(struct kvf_move *m);
void kvf_move_backoff(struct kvf_move *m);
/* The link that was waited for is up, or has failed. */
void kvf_move_on_link(struct kvf_retry *r);
void kvf_move_on_lost(struct kvf_grant *g, const struct kvf_why *why);
void kvf_move_xfer_free(struct kvf_move *m);
/* move_reply.c */
void kvf_move_finish(struct kvf_move *m);
void kvf_move_fail(struct kvf_move *m);
#endif
