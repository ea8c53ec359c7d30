/* libkvferry: the C client of kvferryd, the KV-cache transfer daemon.
 *
 * A handle is one connection to the daemon of this worker. It has two faces on
 * one engine: blocking calls, and the *_async calls with kvferry_fd() and
 * kvferry_process() for programs that have an event loop. They can be mixed:
 * while a blocking call waits, the callbacks of finished async requests run.
 *
 * Threads: a handle belongs to one thread at a time, payloads of it included.
 * Use one handle per thread.
 *
 * Errors: functions return 0 or a negative `enum kvf_status`
 * (kvferry/status.h; -KVF_TIMEOUT, ...); kvferry_error(h) is the sentence that
 * goes with the last failure on this handle.
 *
 * Options structs: fill with zeros first; zero always means the default.
 *
 * Restart of the daemon: requests that were under way fail with
 * -KVF_PEER_UNREACHABLE. The next request opens a new session by itself, and is
 * sent when the daemon has answered to that.
 * Buffers, regions and payloads of the old daemon are void then: using them
 * gives -KVF_STALE or -KVF_INVALID, never somebody else's bytes. Views that you
 * still hold stay readable until you release them; release them soon, because
 * their owner keeps that memory until the last is gone.
 *
 * Fork: a child must not use a handle of its parent. */
#ifndef KVFERRY_KVFERRY_H
#define KVFERRY_KVFERRY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kvferry/status.h"

#ifdef __cplusplus
extern "C" {
#endif

struct kvferry;         /* a handle */
struct kvferry_payload; /* what a get brought; ends with kvferry_release */

/* ---- opening ------------------------------------------------------------ */

/* Events of the daemon. `json` is the event's whole map as JSON text, valid
 * during the call; `name` is "retired", "written", "peer", ... */
typedef void (*kvferry_event_fn)(struct kvferry *h, void *user,
                                 const char *name, const char *json);

#define KVFERRY_NO_SESSION 1u /* no hello: only calls without memory */
#define KVFERRY_EVENTS 2u     /* ask for peer, drain and pool events */

struct kvferry_open_options {
    const char *endpoint; /* "ipc://..."; NULL: the default one of the worker
                             named by the next four */
    const char *cluster;  /* NULL: "default" */
    uint32_t stage, rank, replica;
    const char *client;  /* shown in the daemon's log; NULL: program's name */
    uint32_t timeout_ms; /* how long the daemon may take to answer a call that
                            does not wait for a peer; also added to the deadline
                            of those that do. 0: 5000 */
    unsigned flags;
    kvferry_event_fn on_event; /* NULL: events are dropped */
    void *user;                /* for on_event */
};

/* Connects, says hello, maps the pool. Blocks for timeout_ms at most.
 * On failure *out is NULL and `err` (may be NULL) has the reason.
 *   -KVF_PEER_UNREACHABLE  no daemon answers there
 *   -KVF_DENIED            it runs as another user, ... */
int kvferry_open(struct kvferry **out, const struct kvferry_open_options *o,
                 char *err, size_t err_cap);
/* Ends the session: everything not published is released. Callbacks of what is
 * still outstanding run with -KVF_CANCELLED (a put among it may have been done
 * all the same); what they start is refused with it as well. Payloads not yet
 * released become invalid. Blocks for a second at most. NULL is fine. Not from
 * a callback. */
void kvferry_close(struct kvferry *h);

/* The last failure's sentence, "" when none. Valid until the next call. */
const char *kvferry_error(const struct kvferry *h);
/* "TIMEOUT" and "waited the whole time; ..." for a status of either sign. */
const char *kvferry_status_name(int status);
const char *kvferry_status_text(int status);
/* "0.1.0": the version of the library. */
const char *kvferry_version(void);

/* What hello told. Zeros without a session. */
struct kvferry_info {
    char server[64], cluster[64], endpoint[256], pool_path[64], transports[64];
    uint32_t stage, rank, replica;
    uint8_t incarnation[16];
    uint64_t pool_size, inline_max, max_frame, max_key, max_meta, max_segments,
        max_outstanding;
    int64_t daemon_pid; /* 0 when it is not known */
};
void kvferry_info(const struct kvferry *h, struct kvferry_info *out);

/* ---- memory ------------------------------------------------------------- */

/* A piece of the daemon's pool that this session fills. */
struct kvferry_buffer {
    uint64_t id;
    void *data; /* mapped, writable; valid until put, free or close */
    uint64_t size;
};
int kvferry_alloc(struct kvferry *h, uint64_t size, struct kvferry_buffer *out);
int kvferry_free(struct kvferry *h, uint64_t buffer);
/* A memfd of this process, sealed against shrinking. `addr` is where it is
 * mapped here, or NULL; it is used only to give pointers back in payloads. */
int kvferry_register(struct kvferry *h, int fd, uint64_t size, void *addr,
                     uint64_t *region);
int kvferry_unregister(struct kvferry *h, uint64_t region);

struct kvferry_segment {
    uint64_t id; /* of a buffer, or of a region */
    bool is_region;
    uint64_t offset; /* inside it */
    uint64_t length; /* bytes; 0: the whole buffer from offset */
};

/* ---- put ---------------------------------------------------------------- */

struct kvferry_metadata {
    char source_host[256]; /* "": absent */
    uint16_t source_port;
    uint64_t data_size;
    uint64_t generation; /* 0: absent */
    bool has_incarnation;
    uint8_t incarnation[16];
};

#define KVFERRY_READERS_ANY UINT64_MAX

struct kvferry_put_options {
    uint64_t ttl_ms;  /* 0: the daemon's put_ttl_ms */
    uint64_t readers; /* 0: one; KVFERRY_READERS_ANY: until TTL or cleanup */
    bool reject_duplicate, checksum, notify;
    const void *meta; /* opaque bytes for the reader */
    size_t meta_len;
};

struct kvferry_put_result {
    uint64_t size, generation;
    struct kvferry_metadata metadata; /* enough for a get elsewhere */
};

/* Publishes a copy of `size` bytes: small ones travel in the request, others
 * are copied into the pool. `o` and `r` may be NULL. OK means that a get that
 * starts now can succeed. */
int kvferry_put(struct kvferry *h, const char *key, const void *data,
                size_t size, const struct kvferry_put_options *o,
                struct kvferry_put_result *r);
/* Publishes memory in place. On success the buffers are the daemon's. On
 * failure they stay yours. Regions need `notify`. */
int kvferry_put_segments(struct kvferry *h, const char *key,
                         const struct kvferry_segment *segments, unsigned n,
                         const struct kvferry_put_options *o,
                         struct kvferry_put_result *r);

/* ---- get ---------------------------------------------------------------- */

enum kvferry_mode { KVFERRY_AUTO, KVFERRY_VIEW, KVFERRY_COPY, KVFERRY_INLINE };

#define KVFERRY_NO_TIMEOUT UINT64_MAX

struct kvferry_get_options {
    enum kvferry_mode mode;
    const struct kvferry_segment *into; /* lengths needed; mode is ignored */
    unsigned n_into;
    /* Who has it: the first that is set. None: the edges of the config. */
    unsigned from_fields; /* 1: from_stage, 2: and rank, 3: and replica */
    uint32_t from_stage, from_rank, from_replica;
    const char *source_host;
    uint16_t source_port;
    const struct kvferry_metadata *metadata;
    uint64_t generation; /* 0: any; else this one, or wait for it */
    uint64_t timeout_ms; /* 0: the daemon's default; KVFERRY_NO_TIMEOUT */
    bool no_wait;
    bool verify; /* views: check the checksum here, if the put asked for one */
};

/* Fetches. On success *out is yours until kvferry_release. */
int kvferry_get(struct kvferry *h, const char *key,
                const struct kvferry_get_options *o,
                struct kvferry_payload **out);

struct kvferry_mget_item {
    const char *key;
    struct kvferry_get_options options; /* timeout_ms: see below */
    int status;                         /* out: 0 or negative */
    struct kvferry_payload *payload;    /* out: NULL unless status is 0 */
    char message[160];                  /* out */
};
/* Several gets in one request. timeout_ms as in a get, for those that have none
 * of their own. Returns 0 when the request was done (look at each status); with
 * all_or_nothing the first failure, and no payload then. */
int kvferry_mget(struct kvferry *h, struct kvferry_mget_item *items, unsigned n,
                 uint64_t timeout_ms, bool all_or_nothing);

/* Read-only, and only until the payload is released. data is NULL for `into` a
 * region that was registered without an address. */
struct kvferry_piece {
    const void *data;
    uint64_t length;
};
struct kvferry_timing {
    uint64_t lookup_us, wait_us, transfer_us, total_us; /* the daemon's */
};
/* Sets *pieces, returns their number. They make up the payload in order. */
unsigned kvferry_payload_pieces(const struct kvferry_payload *p,
                                const struct kvferry_piece **pieces);
uint64_t kvferry_payload_size(const struct kvferry_payload *p);
uint64_t kvferry_payload_generation(const struct kvferry_payload *p);
const void *kvferry_payload_meta(const struct kvferry_payload *p, size_t *len);
const char *kvferry_payload_mode(const struct kvferry_payload *p);
const char *kvferry_payload_transport(const struct kvferry_payload *p);
unsigned kvferry_payload_attempts(const struct kvferry_payload *p);
void kvferry_payload_timing(const struct kvferry_payload *p,
                            struct kvferry_timing *out);
/* True when the put asked for a checksum (XXH3-64, seed 0). */
bool kvferry_payload_checksum(const struct kvferry_payload *p, uint64_t *out);
/* Hashes the bytes: 0, -KVF_CORRUPT, or -KVF_UNSUPPORTED without a checksum. */
int kvferry_payload_verify(const struct kvferry_payload *p);
/* Copies up to `cap` bytes from `offset` on; returns how many. */
size_t kvferry_payload_copy(const struct kvferry_payload *p, uint64_t offset,
                            void *dst, size_t cap);
/* Gives it back and sets *p to NULL (and does nothing to NULL). Does not wait
 * for the daemon. A view counts as read from here on. */
void kvferry_release(struct kvferry_payload **p);

/* ---- push, windows ------------------------------------------------------ */

/* Which worker: by its stage, as the config or kvferry_peer knows it, or by the
 * place of its daemon's metadata port. */
struct kvferry_target {
    unsigned to_fields; /* 1: stage, 2: and rank, 3: and replica; 0: host */
    uint32_t stage, rank, replica;
    const char *host;
    uint16_t port;
};

/* What a transfer without a payload tells. */
struct kvferry_transfer {
    uint64_t size;
    uint64_t generation; /* push: the receiver's */
    char transport[16];  /* "shm", "tcp", "rdma", "eager", "local" */
    unsigned attempts;   /* also when it failed and the daemon said so */
    struct kvferry_timing timing;
};

struct kvferry_push_options {
    struct kvferry_put_options put; /* ttl_ms 0: the receiver's put_ttl_ms;
                                       notify: the event "retired" tells how
                                       it ended there */
    struct kvferry_target to;
    uint64_t timeout_ms; /* 0: the daemon's default; KVFERRY_NO_TIMEOUT */
};

/* Publishes a copy of `size` bytes under `key` at another worker's daemon, in
 * its pool: a get there finds it locally. OK means that it lies there, whole.
 * `o` names the receiver; `r` may be NULL. -KVF_NO_SPACE is the receiver's. A
 * push that failed may be tried again: it is never published twice. */
int kvferry_push(struct kvferry *h, const char *key, const void *data,
                 size_t size, const struct kvferry_push_options *o,
                 struct kvferry_transfer *r);
/* The same from memory in place, which stays yours; do not change it before
 * the answer. Regions need no `notify`: the answer says that they are free. */
int kvferry_push_segments(struct kvferry *h, const char *key,
                          const struct kvferry_segment *segments, unsigned n,
                          const struct kvferry_push_options *o,
                          struct kvferry_transfer *r);

/* Memory of this engine that other workers write to and read from. */
struct kvferry_window {
    uint64_t id;
    uint64_t size;
    void *data;      /* NULL: a region that was registered without an address */
    uint64_t memory; /* buffer or region, to be named in segments */
    uint64_t offset; /* of a buffer: where it lies in the pool's file */
};
/* Exposes new memory of the pool, or a whole region, under a name that is free
 * in this daemon (-KVF_EXISTS). It lasts until kvferry_unexpose or the end of
 * the session. The bytes of new memory are undefined. */
int kvferry_expose(struct kvferry *h, const char *name, uint64_t size,
                   bool writable, struct kvferry_window *out);
int kvferry_expose_region(struct kvferry *h, const char *name, uint64_t region,
                          bool writable, struct kvferry_window *out);
/* Memory of the pool goes with it; do not touch it from here on. */
int kvferry_unexpose(struct kvferry *h, uint64_t window);

struct kvferry_window_options { /* write and read */
    struct kvferry_target to;
    uint64_t timeout_ms; /* as in a push */
    const void *notify;  /* not NULL: the window's owner gets the event
                            "written" with these bytes (as hex), once, after
                            the transfer. May be empty */
    size_t notify_len;
};
/* One-sided transfers between segments here and one range of a window there,
 * from target_offset on, as long as all segments together. OK: the bytes are in
 * place. -KVF_NOT_FOUND no such window, -KVF_DENIED not writable, -KVF_INVALID
 * out of bounds: nothing has moved then. After other failures what was to be
 * filled is undefined. Many small blocks are best one request. */
int kvferry_write(struct kvferry *h, const char *window, uint64_t target_offset,
                  const struct kvferry_segment *segments, unsigned n,
                  const struct kvferry_window_options *o,
                  struct kvferry_transfer *r);
int kvferry_read(struct kvferry *h, const char *window, uint64_t target_offset,
                 const struct kvferry_segment *segments, unsigned n,
                 const struct kvferry_window_options *o,
                 struct kvferry_transfer *r);

/* ---- KV layouts: layout, publish, pull ---------------------------------- */

#include "kvferry/layout.h"

/* ---- the rest ----------------------------------------------------------- */

int kvferry_ping(struct kvferry *h);
int kvferry_fail(struct kvferry *h, const char *key, const char *reason);
/* Every key `request_id:*`, or with from/to >= 0 only `request_id:from_to`. */
int kvferry_cleanup(struct kvferry *h, const char *request_id, int from, int to,
                    uint64_t *count);
int kvferry_peer(struct kvferry *h, uint32_t stage, uint32_t rank,
                 uint32_t replica, const char *host, uint16_t port);
/* Asks the daemon to finish and exit. timeout_ms 0: its drain_ms. */
int kvferry_drain(struct kvferry *h, uint64_t timeout_ms);
/* Replies as JSON text (bytes as hex), to be freed with free(3).
 * list: an array; prefix NULL: all; limit 0: the daemon's. */
int kvferry_list(struct kvferry *h, const char *prefix, uint64_t limit,
                 char **json);
int kvferry_stats(struct kvferry *h, char **json);
int kvferry_health(struct kvferry *h, char **json);

/* ---- async -------------------------------------------------------------- */

struct kvferry_result {
    int status;          /* 0 or negative */
    const char *message; /* "" when 0; valid during the callback */
    struct kvferry_put_result put;
    struct kvferry_payload *payload; /* get: now the callback's to release */
    struct kvferry_buffer buffer;    /* alloc */
    uint64_t number; /* region of register, count of cleanup and cancel */
    char *json;      /* list, stats, health: freed after the callback */
    struct kvferry_transfer transfer; /* push, write, read */
    /* publish, pull; valid during the callback, NULL for others */
    const struct kvferry_handle *handle;
    const struct kvferry_pull_result *pull;
};
/* Called exactly once for each request that was accepted (async call returned
 * 0), from kvferry_process, a blocking call, or kvferry_close; never from
 * inside the call that started it. It may start and cancel requests. */
typedef void (*kvferry_done_fn)(struct kvferry *h, void *user,
                                const struct kvferry_result *r);

/* A file descriptor that becomes readable when there is something to do, also
 * when a deadline passed. Level-triggered use (poll, epoll without EPOLLET,
 * libevent) is right. The fd is the handle's: do not read or close it. */
int kvferry_fd(const struct kvferry *h);
/* Does all that can be done without blocking: receives, runs callbacks. Call it
 * when the fd is readable, and **once after starting requests before going to
 * sleep** (a send can swallow the wake-up of a reply). Returns the number of
 * callbacks run, or a negative status. */
int kvferry_process(struct kvferry *h);
/* Blocks until something happened, timeout_ms at most (-1: no limit). For
 * programs without a loop of their own. As kvferry_process otherwise. It may
 * return 0 before the time is up (a reply without a callback, a timer of the
 * handle's own): call it in a loop that tests what you wait for. */
int kvferry_wait(struct kvferry *h, int timeout_ms);
/* Requests started and not yet completed. */
unsigned kvferry_outstanding(const struct kvferry *h);

/* `ticket` (may be NULL) names the request for kvferry_cancel. The data of
 * kvferry_put_async and kvferry_push_async must stay until the callback;
 * everything else is copied. */
int kvferry_put_async(struct kvferry *h, const char *key, const void *data,
                      size_t size, const struct kvferry_put_options *o,
                      kvferry_done_fn fn, void *user, uint64_t *ticket);
int kvferry_put_segments_async(struct kvferry *h, const char *key,
                               const struct kvferry_segment *segments,
                               unsigned n, const struct kvferry_put_options *o,
                               kvferry_done_fn fn, void *user,
                               uint64_t *ticket);
int kvferry_get_async(struct kvferry *h, const char *key,
                      const struct kvferry_get_options *o, kvferry_done_fn fn,
                      void *user, uint64_t *ticket);
int kvferry_alloc_async(struct kvferry *h, uint64_t size, kvferry_done_fn fn,
                        void *user, uint64_t *ticket);
int kvferry_ping_async(struct kvferry *h, kvferry_done_fn fn, void *user,
                       uint64_t *ticket);
int kvferry_push_async(struct kvferry *h, const char *key, const void *data,
                       size_t size, const struct kvferry_push_options *o,
                       kvferry_done_fn fn, void *user, uint64_t *ticket);
int kvferry_push_segments_async(struct kvferry *h, const char *key,
                                const struct kvferry_segment *segments,
                                unsigned n,
                                const struct kvferry_push_options *o,
                                kvferry_done_fn fn, void *user,
                                uint64_t *ticket);
int kvferry_write_async(struct kvferry *h, const char *window,
                        uint64_t target_offset,
                        const struct kvferry_segment *segments, unsigned n,
                        const struct kvferry_window_options *o,
                        kvferry_done_fn fn, void *user, uint64_t *ticket);
int kvferry_read_async(struct kvferry *h, const char *window,
                       uint64_t target_offset,
                       const struct kvferry_segment *segments, unsigned n,
                       const struct kvferry_window_options *o,
                       kvferry_done_fn fn, void *user, uint64_t *ticket);
int kvferry_publish_async(struct kvferry *h, uint64_t layout,
                          const char *request_id,
                          const struct kvferry_blocks *blocks,
                          unsigned n_blocks,
                          const struct kvferry_publish_options *o,
                          kvferry_done_fn fn, void *user, uint64_t *ticket);
int kvferry_pull_async(struct kvferry *h, uint64_t layout,
                       const struct kvferry_blocks *blocks, unsigned n_blocks,
                       const struct kvferry_pull_options *o, kvferry_done_fn fn,
                       void *user, uint64_t *ticket);
/* Asks the daemon to give up; the request's own callback still comes, with
 * -KVF_CANCELLED unless it finished before. Does not block. */
int kvferry_cancel(struct kvferry *h, uint64_t ticket);

#ifdef __cplusplus
}
#endif
#endif
