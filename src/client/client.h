/* Inside of libkvferry: one handle, its outstanding calls, its session.
 *
 *   put.c get.c push.c window.c layout.c admin.c
 *                                what a request says, what a reply means
 *   req.c                        what all requests and replies share
 *   session.c                    hello, the pool, lost sessions
 *   hold.c                       requests that wait for a session
 *   call.c                       ids, deadlines, exactly one completion
 *   conn.c                       the DEALER, its edges, the fd
 *   map.c payload.c json.c       mappings, what a get brought, replies as text
 *
 * Everything is async inside; a blocking call starts one and turns the loop of
 * conn.c until it completed (kvfc_wait). */
#ifndef KVF_CLIENT_CLIENT_H
#define KVF_CLIENT_CLIENT_H

#include "kvferry/kvferry.h"
#include "wire/mp.h"

#include <sys/types.h>
#include <zmq.h>

#define KVFC_NEVER UINT64_MAX
#define KVFC_MS 1000000ull
#define KVFC_EXPORT __attribute__((visibility("default")))

struct kvfc_map { /* one mapped file, found again by device and inode */
    struct kvfc_map *next;
    uint8_t *base;
    uint64_t size;
    dev_t dev;
    ino_t ino;
    unsigned refs;
    bool write;
};

struct kvfc_region {
    struct kvfc_region *next;
    uint64_t id, size;
    uint8_t *addr;
};

struct kvfc_session {
    bool open;
    struct kvf_id id, incarnation;
    struct kvfc_map *pool;
    uint64_t epoch; /* counts sessions, to tell old payloads from new ones */
};

/* A reply while it is handled. */
struct kvfc_reply {
    const msgpack_object *map; /* NULL when the call ends without a reply */
    int status;                /* 0 or negative */
    char message[248];
    zmq_msg_t *frame; /* payload frame, or NULL */
};

struct kvfc_call;
/* Handles a reply. Returns false when the call goes on (another request was
 * sent for it); otherwise *out was filled and the call is over. */
typedef bool (*kvfc_reply_fn)(struct kvferry *h, struct kvfc_call *c,
                              struct kvfc_reply *r, struct kvferry_result *out);

struct kvfc_call {
    uint64_t id;          /* slot | sequence << 20; 0 = the slot is free */
    uint64_t deadline_ns; /* the client's own; KVFC_NEVER */
    kvfc_reply_fn reply;
    kvferry_done_fn done; /* NULL: nobody listens */
    void *user;
    bool abandoned; /* completed without a reply: tidy up what comes late */
    bool keep;      /* release, free: sent again after a reconnection */
    bool external;  /* counts as outstanding */
    bool urgent;    /* hello, bye: sent before those that are held */
    bool held;      /* written, waits for the session */
    uint64_t number, epoch; /* buffer or region it is about; its session */
    const char *op;         /* what is sent again (keep), or follows an alloc */
    /* put, push: the fields that follow once the buffer is there */
    void *body;
    size_t body_len;
    unsigned body_pairs;
    kvfc_reply_fn then;
    uint64_t timeout_ms;
    const void *data;
    size_t size;
    /* get */
    bool verify;
    /* register: where it is mapped; mget: the items */
    void *extra;
};

struct kvferry {
    void *ctx, *sock, *mon;
    int epfd, timerfd, sock_fd, mon_fd;
    bool quiet; /* the last call on sock found nothing: its fd will tell */
    uint64_t armed_ns, last_rx_ns, ping_ns, timeout_ms;
    unsigned flags;
    char client[64];
    kvferry_event_fn on_event;
    void *event_user;

    struct kvfc_call **slots;
    unsigned n_slots, *free_slots, n_free, n_live, n_external;
    uint64_t seq;
    int completed; /* callbacks run in this kvferry_process */
    unsigned depth;
    bool ending;  /* kvferry_close began: nothing new is taken */
    bool closing; /* no daemon any more */

    struct kvfc_session s;
    bool rehello;       /* a hello is due before the next request */
    bool hello_pending; /* it is under way */
    bool hold;          /* and requests wait for its answer */
    struct kvfc_held *held, *held_last;
    bool has_old;        /* a lost incarnation whose views are not gone yet */
    struct kvf_id old;   /* that incarnation */
    unsigned old_views;  /* payloads of former sessions that map something */
    unsigned live_views; /* payloads of this session that do */
    struct kvfc_map *maps;
    struct kvfc_region *regions;
    struct kvferry_payload *payloads;
    struct kvferry_info info;
    struct kvf_mpw w; /* the request being written */
    char error[256];
    /* what publish or pull brought, while the reply is handled */
    struct kvferry_handle handle;
    struct kvferry_pull_result pull;
};

/* ---- conn.c ------------------------------------------------------------- */
int kvfc_conn_open(struct kvferry *h, const char *endpoint,
                   struct kvf_why *why);
void kvfc_conn_close(struct kvferry *h);
/* Sends a header (NULL: there was no memory to write it), with a payload frame
 * unless `payload` is NULL. Does not block. */
int kvfc_send(struct kvferry *h, const void *head, size_t head_len,
              const void *payload, size_t len);
/* Before a request of the caller: a daemon that went away while he was idle is
 * noticed now. Runs no callbacks; looks only when nothing is outstanding. */
void kvfc_conn_look(struct kvferry *h);
void kvfc_arm(struct kvferry *h, uint64_t due_ns);
uint64_t kvfc_now(void);
void kvfc_drain(struct kvferry *h);

/* ---- call.c ------------------------------------------------------------- */
/* NULL: kvfc_refused says why. */
struct kvfc_call *kvfc_call_new(struct kvferry *h, kvfc_reply_fn reply,
                                kvferry_done_fn done, void *user);
int kvfc_refused(struct kvferry *h);
/* Undoes kvfc_call_new when nothing was sent. */
void kvfc_call_drop(struct kvferry *h, struct kvfc_call *c);
/* Starts its clock: timeout_ms is what the daemon was given (KVFERRY_NO_TIMEOUT
 * when that is not known). */
void kvfc_call_clock(struct kvferry *h, struct kvfc_call *c,
                     uint64_t timeout_ms);
void kvfc_call_reply(struct kvferry *h, struct kvfc_call *c,
                     struct kvfc_reply *r);
struct kvfc_call *kvfc_call_find(struct kvferry *h, uint64_t id);
enum kvfc_which { KVFC_ALL, KVFC_EXTERNAL, KVFC_HELD };
/* Ends them with `status`; not what callbacks start meanwhile. */
void kvfc_calls_fail(struct kvferry *h, enum kvfc_which which, int status,
                     const char *message);
void kvfc_calls_resend(struct kvferry *h, bool same_session);
void kvfc_calls_timers(struct kvferry *h, uint64_t now);
void kvfc_calls_free(struct kvferry *h);
/* Puts `{id, op` into h->w; the map is ended by kvfc_end with the number of
 * further pairs. */
size_t kvfc_begin(struct kvferry *h, const char *op, uint64_t id);
/* Ends the map and sends it, for what the library itself asks (hello, ping,
 * release). On failure the call is dropped. */
int kvfc_end(struct kvferry *h, struct kvfc_call *c, size_t mark,
             unsigned pairs, uint64_t timeout_ms);
/* A request about one buffer (release, free) or window (unexpose) that nobody
 * waits for. `op` is kept. */
void kvfc_forget(struct kvferry *h, const char *op, uint64_t id);

/* ---- hold.c ------------------------------------------------------------- */
/* Sends h->w for `c`, or keeps it until the hello is answered. */
int kvfc_call_send(struct kvferry *h, struct kvfc_call *c, const void *payload,
                   size_t len);
void kvfc_held_drop(struct kvferry *h, struct kvfc_call *c);
/* The hello was answered: sends what was held (0), or fails it. May run
 * callbacks. */
void kvfc_held_settle(struct kvferry *h, int status, const char *message);

int kvfc_error(struct kvferry *h, int status, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* ---- req.c -------------------------------------------------------------- */
struct kvfc_req { /* one request of the caller while it is written */
    struct kvferry *h;
    struct kvfc_call *c; /* NULL: refused; send and wait tell */
    size_t mark;
    unsigned pairs; /* beside op and id; add what you write yourself */
};
struct kvfc_waiter { /* what a blocking call waits for */
    bool done;
    struct kvferry_result r;
};
/* Looks after the session and begins `op`. False when it is refused: everything
 * may go on as if it was not, but q->c is NULL. */
bool kvfc_req_begin(struct kvfc_req *q, struct kvferry *h, const char *op,
                    kvfc_reply_fn reply, kvferry_done_fn done, void *user);
/* The same for kvfc_req_wait. */
bool kvfc_req_ask(struct kvfc_req *q, struct kvferry *h, const char *op,
                  kvfc_reply_fn reply, struct kvfc_waiter *w);
void kvfc_req_u64(struct kvfc_req *q, const char *name, uint64_t v);
void kvfc_req_str(struct kvfc_req *q, const char *name, const char *s);
void kvfc_req_bool(struct kvfc_req *q, const char *name, bool v);
void kvfc_req_bin(struct kvfc_req *q, const char *name, const void *p,
                  size_t len);
/* timeout_ms as the API has it: 0 is absent, KVFERRY_NO_TIMEOUT is 0. */
void kvfc_req_timeout(struct kvfc_req *q, uint64_t timeout_ms);
void kvfc_req_segments(struct kvfc_req *q, const char *name,
                       const struct kvferry_segment *s, unsigned n);
/* {stage, rank?, replica?}: the first `fields` of them. */
void kvfc_req_worker(struct kvfc_req *q, const char *name, unsigned fields,
                     uint32_t stage, uint32_t rank, uint32_t replica);
void kvfc_req_place(struct kvfc_req *q, const char *name, const char *host,
                    uint16_t port);
/* Sends it: 0, then its callback will come; or a negative status, then not.
 * timeout_ms as kvfc_call_clock. `ticket` may be NULL. */
int kvfc_req_send(struct kvfc_req *q, uint64_t timeout_ms, uint64_t *ticket);
int kvfc_req_send_with(struct kvfc_req *q, const void *payload, size_t len,
                       uint64_t timeout_ms, uint64_t *ticket);
/* Sends it and turns the loop until it is answered: its status. */
int kvfc_req_wait(struct kvfc_req *q, uint64_t timeout_ms,
                  struct kvfc_waiter *w);
/* The same in two steps: pass kvfc_waiter_done and &w to an async call, then
 * its return value here. */
void kvfc_waiter_done(struct kvferry *h, void *user,
                      const struct kvferry_result *r);
int kvfc_wait(struct kvferry *h, int rc, struct kvfc_waiter *w);
/* STALE, because the daemon was restarted between our look and its reply, and
 * this was the first attempt: once more, with the new session. */
bool kvfc_again(struct kvferry *h, int rc, unsigned *attempt);

/* Replies whose status says all. */
bool kvfc_plain_reply(struct kvferry *h, struct kvfc_call *c,
                      struct kvfc_reply *r, struct kvferry_result *out);
bool kvfc_u64(const msgpack_object *map, const char *name, uint64_t *out);
/* Untouched when it is absent, no string, or does not fit. */
void kvfc_text(const msgpack_object *map, const char *name, char *out,
               size_t cap);
/* For kvfc_call_clock: no timeout of one's own is the daemon's, not known. */
uint64_t kvfc_bound(uint64_t timeout_ms);
void kvfc_timing(const msgpack_object *map, struct kvferry_timing *out);
void kvfc_unreadable(struct kvferry_result *out, const char *message);
/* `buffer` and `offset` of a reply as memory; b->size is the caller's. False:
 * *out says why, and b->id is set unless the reply names none. */
bool kvfc_buffer_reply(struct kvferry *h, const struct kvfc_call *c,
                       const msgpack_object *map, struct kvferry_buffer *b,
                       struct kvferry_result *out);

/* ---- session.c ---------------------------------------------------------- */
int kvfc_hello(struct kvferry *h, kvferry_done_fn done, void *user);
/* Before every request of the caller: says hello again when the session was
 * lost; the request is held back until that is answered. */
void kvfc_ready(struct kvferry *h);
/* The same without looking whether it was lost (safe inside a reply). */
void kvfc_session_renew(struct kvferry *h);
void kvfc_session_suspect(struct kvferry *h);
void kvfc_view_gone(struct kvferry *h, uint64_t epoch);

/* ---- map.c -------------------------------------------------------------- */
/* Maps a pool by path, or finds the mapping; checks what must be checked.
 * `incarnation` and `size` may be NULL and 0 (not known). */
int kvfc_map_open(struct kvferry *h, const char *path, bool write,
                  const struct kvf_id *incarnation, uint64_t size,
                  struct kvfc_map **out, struct kvf_why *why);
void kvfc_map_put(struct kvferry *h, struct kvfc_map *m);
void kvfc_map_trim(struct kvferry *h, unsigned keep_idle);

/* ---- payload.c ---------------------------------------------------------- */
int kvfc_payload_make(struct kvferry *h, const msgpack_object *map,
                      zmq_msg_t *frame, uint64_t frame_at,
                      struct kvferry_payload **out, struct kvf_why *why);
void kvfc_payloads_orphan(struct kvferry *h);

/* ---- put.c -------------------------------------------------------------- */
/* What put and push share. */
struct kvfc_publish {
    const char *op; /* a literal */
    kvfc_reply_fn reply;
    const char *key;
    const struct kvferry_put_options *put; /* may be NULL */
    const struct kvferry_target *to;       /* NULL: a put */
    uint64_t timeout_ms;                   /* of the request; a put: 0 */
};
int kvfc_publish(struct kvferry *h, const struct kvfc_publish *p,
                 const void *data, size_t size, kvferry_done_fn fn, void *user,
                 uint64_t *ticket);
int kvfc_publish_segments(struct kvferry *h, const struct kvfc_publish *p,
                          const struct kvferry_segment *segments, unsigned n,
                          kvferry_done_fn fn, void *user, uint64_t *ticket);

/* ---- push.c ------------------------------------------------------------- */
void kvfc_req_target(struct kvfc_req *q, const struct kvferry_target *to);
void kvfc_transfer(const struct kvfc_reply *r, struct kvferry_transfer *out);

/* ---- json.c ------------------------------------------------------------- */
/* JSON text of a MessagePack value, to be freed; NULL without memory. Bytes are
 * hex, invalid UTF-8 becomes U+FFFD. `skip_envelope`: leaves id and status out
 * of the top map. */
char *kvfc_json(const msgpack_object *o, bool skip_envelope);
#endif
