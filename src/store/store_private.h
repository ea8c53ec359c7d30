/* Inside src/store only: the tables and what its files offer each other.
 *
 * Who keeps a key entry alive: each generation that is not freed yet, each
 * waiter (parked or about to be answered), a tombstone, and whoever works on
 * it at the moment. When the last one lets go the entry is gone, so nothing
 * here needs a sweep. */
#ifndef KVF_STORE_STORE_PRIVATE_H
#define KVF_STORE_STORE_PRIVATE_H

#include "base/rng.h"
#include "store/store.h"

/* A table that cannot grow refuses the element (hh.tbl is NULL then). */
#define HASH_NONFATAL_OOM 1
#include <uthash.h>

#define KVF_STORE_MAX_KEY 1024u
#define KVF_LATE_RING 4096u
#define KVF_STORE_BATCH 256u /* callbacks of one posted task */

/* Ordered index over all key entries: a treap, so that a prefix is a range. */
struct kvf_index_node {
    struct kvf_index_node *left, *right, *up;
    uint64_t prio;
};

struct kvf_tomb {
    struct kvf_list node; /* st->tombs, oldest first */
    struct kvf_timer timer;
    struct kvf_key *key;
    enum kvf_retire reason;
    uint64_t generation, at_ns, ttl_ms, readers, readers_done, size;
    char *text; /* the producer's, for FAILED; may be NULL */
};

struct kvf_key {
    UT_hash_handle hh;
    struct kvf_index_node at;
    struct kvf_store *st;
    struct kvf_gen *live;
    struct kvf_list old;     /* retired generations not freed yet */
    struct kvf_list waiters; /* parked, first come first */
    struct kvf_tomb *tomb;
    unsigned refs;
    unsigned n_bound; /* parked waiters that named a generation */
    uint32_t len;
    char name[];
};

struct kvf_gen_private {
    struct kvf_gen g;
    struct kvf_store *st;
    struct kvf_key *key;
    struct kvf_list key_node;   /* key->old, once retired */
    struct kvf_list quiet_node; /* st->quiet, once nothing reads it */
    struct kvf_list claims;     /* also ended ones that still have io */
    struct kvf_list late;       /* remembered aborted claims */
    struct kvf_timer ttl;
    struct kvf_tomb *tomb; /* made with the put: retiring needs no memory */
    unsigned n_held;       /* ended claims that still have io */
    bool quiet;
    struct kvf_tally *tallies; /* by_consumer: one for each kind of readers */
    unsigned n_tallies;
    unsigned n_bufs, n_regions; /* each buffer and region once */
    struct kvf_buffer **bufs;
    struct kvf_region **regions;
    uint64_t *starts; /* payload offset at which each segment begins */
};

/* by_consumer: a reader by name. of 0: one that does not count. */
struct kvf_reader {
    uint64_t kind, of;
    uint32_t who;
};

/* Readers of one kind: those who have read, and claims that may yet. */
struct kvf_tally {
    uint64_t kind, of;
    uint32_t *who;
    unsigned n, cap, live;
};
#define KVF_TALLIES_MAX 64u

struct kvf_claim_private {
    UT_hash_handle hh;
    struct kvf_claim c;
    struct kvf_list gen_node;
    struct kvf_reader reader;
};

/* An aborted claim whose DONE may still be on its way. */
struct kvf_late {
    uint64_t id;
    struct kvf_gen_private *gen; /* NULL = entry not in use */
    struct kvf_reader reader;
    struct kvf_list gen_node;
    uint16_t next; /* in the chain of its bucket: index + 1 */
};

/* The text of an answer, shared by all who get the same. */
struct kvf_verdict {
    unsigned refs;
    char text[sizeof((struct kvf_why *)0)->text];
};

struct kvf_store {
    struct kvf_sched *sched;
    struct kvf_stats *stats;
    struct kvf_store_conf conf;
    struct kvf_store_ops ops;
    void *arg;
    uint64_t next_generation, next_claim, seed;
    bool closed;              /* no put will come */
    struct kvf_id tokens[16]; /* of claims to come: a call for each shows */
    unsigned n_tokens;
    struct kvf_rng rng;
    struct kvf_key *keys;             /* uthash */
    struct kvf_index_node *index;     /* root */
    struct kvf_claim_private *claims; /* uthash, claims not ended */
    struct kvf_list tombs, due, quiet;
    struct kvf_task due_task, quiet_task;
    uint64_t n_live, n_draining, n_tombs, n_parked, bytes;
    struct kvf_late *late; /* ring of KVF_LATE_RING */
    uint16_t *late_heads;  /* chains by claim id: index + 1 */
    unsigned late_next;
};

/* keys.c */
struct kvf_key *kvf_key_find(const struct kvf_store *st, const char *name,
                             size_t len);
/* Finds or makes, and holds it. NULL when out of memory. */
struct kvf_key *kvf_key_make(struct kvf_store *st, const char *name,
                             size_t len);
void kvf_key_hold(struct kvf_key *key);
void kvf_key_drop(struct kvf_key *key);

/* index.c */
void kvf_index_add(struct kvf_store *st, struct kvf_key *key);
void kvf_index_remove(struct kvf_store *st, struct kvf_key *key);
/* First key that begins with the prefix (the first of all when len is 0), and
 * the one after `key`, as long as it begins with the prefix. */
struct kvf_key *kvf_index_first(const struct kvf_store *st, const char *prefix,
                                size_t len);
struct kvf_key *kvf_index_next(const struct kvf_key *key, const char *prefix,
                               size_t len);
/* 0 when order, priorities and links hold; *n = nodes. */
int kvf_index_check(const struct kvf_store *st, uint64_t *n,
                    struct kvf_why *why);

/* store.c */
uint64_t kvf_store_after_ms(const struct kvf_store *st, uint64_t ms);

/* gen.c */
/* Takes over the caller's hold on the key; nothing is published yet. NULL when
 * out of memory (the hold stays the caller's). */
struct kvf_gen_private *kvf_gen_new(struct kvf_key *key,
                                    const struct kvf_put *put);
void kvf_gen_run(struct kvf_task *t);
/* Ends a live generation. `text`, `text_len` and `ttl_ms` only for FAILED. */
void kvf_gen_retire(struct kvf_gen *g, enum kvf_retire reason, const char *text,
                    size_t text_len, uint64_t ttl_ms);
/* Gives regions back and queues the notification once nothing reads it. */
void kvf_gen_settle(struct kvf_gen_private *p);
bool kvf_gen_has_reader(const struct kvf_gen *g);

/* tomb.c */
void kvf_tomb_free(struct kvf_tomb *t);
/* Leaves `t` (taken over) on the key, answers the waiters that it concerns and
 * lets the oldest tombstones go when there are too many. */
void kvf_tomb_set(struct kvf_key *key, struct kvf_tomb *t, const char *text,
                  size_t text_len);
void kvf_tomb_lift(struct kvf_key *key); /* if it has one */
void kvf_tomb_trim(struct kvf_store *st);
int kvf_tomb_fail(const struct kvf_tomb *t, uint64_t now_ns,
                  struct kvf_why *why);

/* ask.c */
/* Grants what can be granted, first come first; the answers follow. */
void kvf_waiters_serve(struct kvf_key *key);
/* Answers parked waiters (all, or those that want no newer generation). */
void kvf_waiters_end(struct kvf_key *key, bool all, uint64_t generation,
                     enum kvf_status status, const char *text);
void kvf_waiters_run(struct kvf_task *t);
/* Unasks all waiters of a list (a key's, or the due ones). */
void kvf_waiters_forget(struct kvf_list *list, struct kvf_store *st);

/* claim.c */
/* NULL at the bound of claims, or out of memory. */
struct kvf_claim *kvf_claim_new(struct kvf_gen *g);
void kvf_claim_free(struct kvf_claim_private *p);
void kvf_late_forget(struct kvf_gen_private *p);
void kvf_tallies_free(struct kvf_gen_private *p);
#endif
