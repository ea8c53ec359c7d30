/* The keys of this daemon: generations, claims, readers, time to live,
 * tombstones and the gets that wait here for their key.
 *
 *   put -> live generation -> claimed n times -> retired(reason) -> quiet ->
 * gone
 *
 * A key has at most one live generation; older ones live on, detached, while
 * claims still read them. A generation's memory is pinned by each claim and
 * given back (buffer retired) when the generation is retired and no claim is
 * left: by the buffers' own rule never earlier.
 *
 * Pure of I/O: time comes from the sched, everything that must go up goes
 * through function pointers. One thread. */
#ifndef KVF_STORE_STORE_H
#define KVF_STORE_STORE_H

#include "base/bytes.h"
#include "base/list.h"
#include "base/sched.h"
#include "base/stats.h"
#include "base/why.h"
#include "memory/buffer.h"

#include <stdbool.h>
#include <sys/uio.h>

struct kvf_store;
struct kvf_gen;
struct kvf_claim;
struct kvf_waiter;
struct kvf_verdict;

enum kvf_retire {
    KVF_RETIRE_CONSUMED,
    KVF_RETIRE_EXPIRED,
    KVF_RETIRE_CLEANUP,
    KVF_RETIRE_REPLACED,
    KVF_RETIRE_FAILED,
    KVF_RETIRE_REASONS
};
const char *kvf_retire_name(enum kvf_retire reason); /* "consumed", ... */

/* A piece of a payload: in a buffer of the pool, or in a region. */
struct kvf_seg {
    struct kvf_buffer *buffer; /* exactly one of the two */
    struct kvf_region *region;
    uint64_t offset; /* in the pool file (buffer) or in the region */
    uint64_t length;
};
/* Where the bytes are mapped in this daemon. */
uint8_t *kvf_seg_ptr(const struct kvf_seg *seg);
/* Keeps its buffer or region while something may touch it. */
void kvf_seg_pin(const struct kvf_seg *seg);
void kvf_seg_unpin(const struct kvf_seg *seg);

struct kvf_store_conf {
    uint32_t max_keys, max_tombstones, max_parked, max_claims;
};

struct kvf_store_ops {
    /* A generation has been retired AND is quiet (its memory is free or about
     * to be): the `notify` event (docs/PROTOCOL.md) goes out now. `publisher`
     * is the id given with the put. Called from the loop, not from inside put,
     * for every generation: gen->notify tells whether the engine wants to know.
     * `gen` is gone afterwards; its segments already are (n_segs is 0). */
    void (*on_retired)(void *arg, const struct kvf_gen *gen,
                       enum kvf_retire reason);
    /* A generation with a `user` is freed: the last that is heard of it. Also
     * at the end of the store. */
    void (*on_freed)(void *arg, void *user);
};

/* `first_generation`: generations count up from there (never repeat across
 * starts: the daemon derives it from the clock). conf is copied. */
struct kvf_store *kvf_store_create(struct kvf_sched *sched,
                                   struct kvf_stats *stats,
                                   const struct kvf_store_conf *conf,
                                   const struct kvf_store_ops *ops, void *arg,
                                   uint64_t first_generation,
                                   struct kvf_why *why);
/* All claims must have ended. Gives all memory back without notifications. */
void kvf_store_destroy(struct kvf_store *st);
void kvf_store_configure(struct kvf_store *st,
                         const struct kvf_store_conf *conf);

/* ---- put ---------------------------------------------------------------- */

struct kvf_put {
    const char *key;
    size_t key_len;
    struct kvf_seg *segs; /* copied; buffers FILLING (a push: RECEIVING), all
                             of the caller's */
    unsigned n_segs;
    const void *meta; /* copied */
    size_t meta_len;
    uint64_t ttl_ms;
    uint64_t readers; /* 0 = any number */
    bool reject_duplicate, has_checksum, notify;
    /* Readers are known by name (kvf_claim_consumer) and each counts once;
     * `readers` is 0 until it is told there. */
    bool by_consumer;
    uint64_t checksum;
    struct kvf_id publisher; /* session; zeros when none */
    void *user;              /* whoever put it; ops.on_freed */
};

/* Counts `puts` and `put_bytes`. On success the buffers are PUBLISHED (out of
 * their session's list) and the store owns them; regions are pinned; a get that
 * starts now can succeed; waiting gets are answered in the order they came, as
 * far as readers go. -KVF_EXISTS   live generation there and reject_duplicate
 *   -KVF_BUSY     max_keys reached
 * Otherwise nothing has changed. */
int kvf_store_put(struct kvf_store *st, const struct kvf_put *put,
                  const struct kvf_gen **out, struct kvf_why *why);

/* Read access for replies, logs and list. */
struct kvf_gen {
    const char *key; /* NUL-terminated copy, key_len bytes */
    size_t key_len;
    uint64_t generation, size, readers, readers_done, ttl_ms, created_ns;
    uint64_t checksum;
    bool has_checksum, notify, retired;
    enum kvf_retire reason;
    const void *meta;
    size_t meta_len;
    struct kvf_seg *segs;
    unsigned n_segs, n_claims;
    bool by_consumer;
    struct kvf_id publisher;
    void *user;
    struct kvf_gen_private *priv;
};
/* The line [KVF PUT] of a generation that an engine, here or elsewhere, has
 * just published. */
void kvf_gen_log_put(const struct kvf_gen *g);
/* The payload as one piece: in place when it lies in one (*scratch NULL), else
 * gathered into *scratch, which the caller frees. NULL: out of memory. Copies
 * up to gen->size bytes: for small payloads. */
const void *kvf_gen_bytes(const struct kvf_gen *gen, void **scratch);

/* ---- ask, claim --------------------------------------------------------- */

/* One reader of one generation, reserved. The holder (a peer session, or a get
 * of this daemon) ends it with done or abort; memory stays pinned until it is
 * ended and `io` is 0. */
struct kvf_claim {
    uint64_t id;         /* never repeats within an incarnation */
    struct kvf_id token; /* unguessable */
    struct kvf_gen *gen;
    struct kvf_list holder_node; /* the holder's list */
    void *holder;                /* the holder's */
    bool ended;
    unsigned io; /* sends or copies under way that read the memory */
    struct kvf_claim_private *priv;
    /* for the holder's use */
    bool shm, eager, rdma;
    void *holder_data;
};

/* Ids of claims count up from `first` (or so): two stores whose claims share a
 * table of ids begin far apart. Before the first claim. */
void kvf_store_claims_from(struct kvf_store *st, uint64_t first);
/* put.by_consumer: the claim is that of reader `consumer` out of `of`. Done, it
 * counts only if that one has not been counted yet. `kind` tells whose readers
 * they are, and each kind counts for itself. The generation is consumed when
 * all have read of every kind of which one has read or holds a claim;
 * gen->readers and readers_done are the sums over those kinds. */
void kvf_claim_consumer(struct kvf_claim *c, uint64_t kind, uint32_t consumer,
                        uint64_t of);
/* Finds a claim by id; NULL when it is not live (ended ones too). */
struct kvf_claim *kvf_claim_find(const struct kvf_store *st, uint64_t id);

/* A reader is done with it / gives it back. Idempotent through kvf_claim_find.
 * After the call *c may be gone (or go when io drops to 0). */
void kvf_claim_done(struct kvf_claim *c);
void kvf_claim_abort(struct kvf_claim *c);
void kvf_claim_io_begin(struct kvf_claim *c);
void kvf_claim_io_end(struct kvf_claim *c); /* may free an ended claim */
/* A DONE that comes after its claim was aborted (session lost in between):
 * counts the reader if the generation is still live and has one left. */
void kvf_store_late_done(struct kvf_store *st, uint64_t claim_id);

/* Pieces of payload [offset, offset+length) as mapped here; at most *n (in) are
 * written, *n (out) is how many; they cover a prefix if that was too few.
 * -KVF_INVALID when outside. */
int kvf_claim_iov(const struct kvf_claim *c, uint64_t offset, uint64_t length,
                  struct iovec *iov, unsigned *n, struct kvf_why *why);

/* A get that waits at this owner. Embedded in its asker, zeroed before its
 * first use (`key` tells whether it is parked). */
struct kvf_waiter {
    struct kvf_list node;       /* in the key */
    struct kvf_list asker_node; /* the asker's own list; not touched here */
    struct kvf_key *key;        /* NULL when not parked */
    bool has_generation;
    uint64_t generation;
    /* Called from the loop once, when parked: claim != NULL granted (the
     * waiter takes it), else status and text. The waiter is not parked any
     * more. Never called from inside kvf_store_ask. */
    void (*answer)(struct kvf_waiter *w, struct kvf_claim *claim,
                   enum kvf_status status, const char *text);
    /* The store's: the answer while it is on its way to the waiter. */
    bool due;
    enum kvf_status status;
    struct kvf_claim *granted;
    struct kvf_verdict *verdict;
};

#define KVF_STORE_PARKED 1

/* Asks for a reader of `key`.
 *   0                 *claim granted now
 *   KVF_STORE_PARKED  (only with wait) w->answer follows
 *   -KVF_STALE        a newer generation than w->generation is there
 *   -KVF_CONSUMED, -KVF_EXPIRED, -KVF_FAILED  from a tombstone
 *   -KVF_NOT_FOUND    not wait: not there (or only an older generation)
 *   -KVF_BUSY         not wait: all readers are claimed; or a bound is reached
 *   -KVF_SHUTTING_DOWN  wait, closed: only a put could serve it
 */
int kvf_store_ask(struct kvf_store *st, const char *key, size_t len,
                  struct kvf_waiter *w, bool wait, struct kvf_claim **claim,
                  struct kvf_why *why);
/* Delivers now the answers that wait for their posted task, so that what a put
 * set free goes out before the put's own reply. Not from inside a callback of
 * the store. */
void kvf_store_settle(struct kvf_store *st);
/* No put will come any more (the caller's promise): who waits for one, now or
 * later, is answered SHUTTING_DOWN. Those who wait for a reader of what is
 * there wait on, and what is there is served. */
void kvf_store_close(struct kvf_store *st);
/* No answer will come. Idempotent. */
void kvf_store_unask(struct kvf_store *st, struct kvf_waiter *w);

/* The live generation of key, or NULL (protocol rule 3: "looks among its own
 * daemon's live generations once"). */
const struct kvf_gen *kvf_store_live(const struct kvf_store *st,
                                     const char *key, size_t len);

/* ---- the rest ----------------------------------------------------------- */

/* fail: retires a live generation and leaves a FAILED tombstone for ttl_ms;
 * waiters are answered FAILED with reason. -KVF_BUSY at the bound of keys. */
int kvf_store_fail(struct kvf_store *st, const char *key, size_t len,
                   const char *reason, size_t reason_len, uint64_t ttl_ms,
                   struct kvf_why *why);
/* Retires every key "request_id:*" (or exactly "request_id:from_to" when
 * has_edge) as CLEANUP, forgets its tombstone, and answers its waiters
 * CANCELLED. Returns how many live generations went. */
uint64_t kvf_store_cleanup(struct kvf_store *st, const char *request_id,
                           size_t len, bool has_edge, uint64_t from,
                           uint64_t to);
/* A view of every key for `list`, in the order of the keys (a key may give
 * several: its live generation, old ones that drain, its tombstone); stops when
 * fn returns false, which must not change the store.
 * state: "published", "draining", "consumed", "expired", "failed". */
struct kvf_key_info {
    const char *key;
    size_t key_len;
    const char *state;
    uint64_t size, generation, readers, readers_done, claims, age_ms, ttl_ms;
};
void kvf_store_list(const struct kvf_store *st, const char *prefix, size_t len,
                    bool (*fn)(void *arg, const struct kvf_key_info *info),
                    void *arg);

struct kvf_store_gauges {
    uint64_t keys, live, draining, tombstones, parked, claims, bytes;
};
void kvf_store_gauges(const struct kvf_store *st, struct kvf_store_gauges *g);
/* Re-derives every count from the tables and compares; 0 or -KVF_INTERNAL. For
 * tests. */
int kvf_store_check(const struct kvf_store *st, struct kvf_why *why);
#endif
