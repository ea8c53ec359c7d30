/* A ZMQ socket as a source of the loop. The only file that calls zmq_send and
 * zmq_recv, because any of them may swallow the edge of ZMQ_FD.
 *
 * One thread (libzmq has its own I/O thread behind it). Nothing blocks. */
#ifndef KVF_LOOP_ZSOCK_H
#define KVF_LOOP_ZSOCK_H

#include "loop/reactor.h"

struct kvf_zctx;  /* one libzmq context */
struct kvf_zsock; /* one socket */

struct kvf_frame {
    const void *data;
    size_t size;
};

#define KVF_ZMSG_PARTS 8

/* A received message; frames are valid during the callback only. */
struct kvf_zmsg {
    unsigned n;    /* parts present, at most KVF_ZMSG_PARTS */
    bool overlong; /* there were more parts; the rest was dropped */
    struct kvf_frame part[KVF_ZMSG_PARTS];
    const char *peer_address; /* libzmq's "Peer-Address" ("" when unknown): a
                                 numeric IP, or ":uid:gid:pid" on ipc */
};

struct kvf_zsock_ops {
    void (*on_message)(void *arg, const struct kvf_zmsg *msg);
    /* A message accepted by kvf_zsock_send earlier (cookie != 0) turned out to
     * be undeliverable: its routing id is gone. May be NULL. */
    void (*on_undeliverable)(void *arg, uint64_t cookie);
    /* The socket can send again after -KVF_BUSY, or (DEALER) its connection was
     * made. May be NULL. */
    void (*on_writable)(void *arg);
    /* libzmq has taken a message with a cookie: on_undeliverable will not come
     * for it. Called from inside kvf_zsock_send too; it must not use the
     * socket. May be NULL. */
    void (*on_taken)(void *arg, uint64_t cookie);
};

struct kvf_zsock_opts {
    size_t max_frame; /* ZMQ_MAXMSGSIZE; 0 = unlimited */
    int hwm;          /* send and receive high-water mark, messages */
    bool mandatory;   /* ROUTER: unknown routing id is an error */
    bool handover;    /* ROUTER: a newcomer takes over a routing id */
    bool immediate;   /* DEALER: queue only to finished connections */
    unsigned reconnect_ms, reconnect_max_ms;
    bool ipv6;
    unsigned crowd; /* so many messages at once are a crowd, see
                       kvf_reactor_crowd; 0 = never */
};

enum kvf_zsock_type { KVF_ZSOCK_ROUTER, KVF_ZSOCK_DEALER };

struct kvf_zctx *kvf_zctx_create(struct kvf_why *why);
/* All its sockets must be closed. Lingers at most linger_ms for what was sent,
 * set per socket at close. */
void kvf_zctx_destroy(struct kvf_zctx *z);

int kvf_zsock_open(struct kvf_zctx *z, struct kvf_reactor *r,
                   enum kvf_zsock_type type, const char *name,
                   const struct kvf_zsock_opts *opts,
                   const struct kvf_zsock_ops *ops, void *arg,
                   struct kvf_zsock **out, struct kvf_why *why);
/* Drops what is queued here; libzmq keeps sending what it took for linger_ms.
 * Never blocks. May be called from its own callback (the rest of the drain is
 * skipped). Freed memory only after the callback returned. NULL is fine. */
void kvf_zsock_close(struct kvf_zsock *s, int linger_ms);

/* Binds; `actual` (may be NULL, cap bytes) gets the bound endpoint
 * (ZMQ_LAST_ENDPOINT), which tells the port of "tcp://127.0.0.1:*". */
int kvf_zsock_bind(struct kvf_zsock *s, const char *endpoint, char *actual,
                   size_t cap, struct kvf_why *why);
/* Numeric addresses and ipc paths only: libzmq resolves names inside its one
 * I/O thread. Begins; never waits. */
int kvf_zsock_connect(struct kvf_zsock *s, const char *endpoint,
                      struct kvf_why *why);

/* Sends the frames as one message (bytes are copied). On a ROUTER the first
 * frame is the routing id.
 *   0             handed to libzmq, or queued here until there is room
 *   -KVF_PEER_UNREACHABLE  ROUTER with mandatory: nobody has that routing id
 *   -KVF_BUSY     DEALER only: no room or not connected; on_writable follows
 * ROUTER messages that find no room are queued here and retried; if their
 * client goes away meanwhile on_undeliverable(cookie) is called. */
int kvf_zsock_send(struct kvf_zsock *s, const struct kvf_frame *frames,
                   unsigned n, uint64_t cookie);

/* ROUTER: messages queued for this routing id are given up
 * (on_undeliverable follows): somebody else has taken it over. */
void kvf_zsock_give_up(struct kvf_zsock *s, const void *rid, size_t rid_len);

/* Messages queued here, waiting for room. */
size_t kvf_zsock_queued(const struct kvf_zsock *s);
/* ROUTER: those of one routing id. */
size_t kvf_zsock_queued_to(const struct kvf_zsock *s, const void *rid,
                           size_t rid_len);
#endif
