/* KV blocks of this daemon: the layouts that its engines declared, and the
 * requests whose blocks they published.
 *
 * A publication is a generation of a store of its own (key "request_id:rank"):
 * its payload is all regions of its layout, one after the other, of which only
 * the published blocks may be read. Time to live, waiting pulls, claims,
 * readers and `retired` are the store's.
 *
 * A layout lives as long as its session, and longer while a publication or a
 * pull uses it; it pins its regions for as long. One thread, no I/O. */
#ifndef KVF_PEER_BLOCKS_H
#define KVF_PEER_BLOCKS_H

#include "layout/pair.h"
#include "memory/buffer.h"
#include "store/store.h"
#include "wire/engine_msg.h"

struct kvf_blocks;
struct kvf_columns;

/* Claims of publications have ids from here on, those of keys lie below. */
#define KVF_BLOCK_CLAIMS (1ull << 62)
#define KVF_LAYOUTS_MAX 4096u

struct kvf_layout {
    uint64_t number; /* of op `layout`; from the counter of buffers */
    unsigned refs;
    bool ended; /* its session is gone */
    struct kvf_layout_decl decl;
    struct kvf_region **regions; /* by index, pinned */
    uint64_t *base;              /* where each begins in the payload */
    struct kvf_seg *segs;        /* the whole regions */
    uint64_t size;               /* of the payload */
    struct kvf_columns *columns; /* which bytes are which block */
    struct kvf_blocks *blocks;
    struct kvf_list owner_node; /* in its session's list */
    struct kvf_list node;       /* in blocks, newest first */
    struct kvf_list pairs;      /* far.c */
};

/* One published request on this rank; kvf_gen.user. */
struct kvf_publication {
    struct kvf_layout *layout;
    struct kvf_id tag;
    bool minted; /* the tag is this daemon's own */
    int64_t n_tokens;
    uint64_t request_len; /* of the request id within the key */
    struct kvf_ids *ids;  /* by group */
    struct kvf_ids *sorted;
    int64_t *arena;
};

/* Somebody who waits for a layout to be declared. */
struct kvf_layout_wait {
    struct kvf_list node;
    void (*fn)(struct kvf_layout_wait *w);
};

struct kvf_blocks_env {
    struct kvf_sched *sched;
    struct kvf_buffers *buffers;
    const struct kvf_store_conf *store;
    uint64_t first_generation;
    /* Of a publication, with its reason; as kvf_store_ops.on_retired. */
    void (*on_retired)(void *arg, const struct kvf_gen *gen,
                       enum kvf_retire reason);
    void *arg;
};

int kvf_blocks_create(const struct kvf_blocks_env *env, struct kvf_blocks **out,
                      struct kvf_why *why);
/* Every claim has ended, every pull let go of its layout. NULL is fine. */
void kvf_blocks_destroy(struct kvf_blocks *b);
struct kvf_store *kvf_blocks_store(const struct kvf_blocks *b);
/* What the store counts: puts are publications. */
const struct kvf_stats *kvf_blocks_stats(const struct kvf_blocks *b);
/* Told when the session of a layout has ended, and when it is freed (one
 * listener: the peers). */
void kvf_blocks_on_end(struct kvf_blocks *b,
                       void (*fn)(void *arg, struct kvf_layout *l), void *arg);

/* Checks the layout against itself and takes `decl` over (also its memory; it
 * is empty afterwards). regions: by index, of the caller's session, pinned
 * here. -KVF_INVALID with the kind of refusal in the text; -KVF_BUSY at the
 * bound. */
int kvf_layout_add(struct kvf_blocks *b, struct kvf_layout_decl *decl,
                   struct kvf_region *const *regions, struct kvf_list *owner,
                   struct kvf_layout **out, struct kvf_why *why);
struct kvf_layout *kvf_layout_hold(struct kvf_layout *l);
void kvf_layout_release(struct kvf_layout *l);
/* Ends all of a session. */
void kvf_layouts_end(struct kvf_list *owner);
/* Newest first, those of ended sessions that are still used included; NULL
 * after the last. */
struct kvf_layout *kvf_layout_next(const struct kvf_blocks *b,
                                   const struct kvf_layout *l);
unsigned kvf_layout_count(const struct kvf_blocks *b);
/* Called once when the next layout is declared; node in no list before. */
void kvf_layout_wait(struct kvf_blocks *b, struct kvf_layout_wait *w);

/* ---- publication.c ------------------------------------------------------ */

/* The store's: lets go of the layout. NULL is fine. */
void kvf_publication_free(struct kvf_publication *p);
/* "request_id:rank"; out has room for KVF_MAX_KEY bytes. */
size_t kvf_blocks_key(char *out, const struct kvf_slice_str *request_id,
                      int64_t rank);
struct kvf_publish {
    struct kvf_layout *layout;
    struct kvf_slice_str request_id;
    const struct kvf_id *tag; /* NULL: minted */
    int64_t n_tokens;
    const struct kvf_req_blocks *blocks;
    uint64_t ttl_ms;
    bool notify;
    struct kvf_id publisher;
};
/* -KVF_INVALID with E_BLOCK_RANGE, E_BLOCK_DUP; the store's errors. */
int kvf_publish(struct kvf_blocks *b, const struct kvf_publish *p,
                const struct kvf_gen **out, struct kvf_why *why);
/* May payload [offset, offset + length) be read: all of it published? */
bool kvf_publication_covers(const struct kvf_publication *p, uint64_t offset,
                            uint64_t length);
/* Where that byte of the payload lies here; it is covered. */
uint8_t *kvf_publication_ptr(const struct kvf_publication *p, uint64_t offset);
/* fail: every rank of the request that this daemon has a layout for, and `rank`
 * if it is >= 0. How many live ones went. */
uint64_t kvf_blocks_fail(struct kvf_blocks *b,
                         const struct kvf_slice_str *request_id, int64_t rank,
                         const char *reason, size_t len, uint64_t ttl_ms);

/* The lists of a request by group: `groups` entries that point into r. For
 * groups that it does not name: empty. malloced. NULL when out of memory. */
struct kvf_ids *kvf_ids_of(const struct kvf_req_blocks *r, unsigned groups);
/* A group that the layout does not have: -KVF_INVALID. Otherwise range and
 * repetition of the ids alone, as kvf_request_check. */
int kvf_ids_check(const struct kvf_layout *l, const struct kvf_req_blocks *r,
                  const struct kvf_ids *ids, struct kvf_why *why);

/* ---- columns.c: which bytes of a region belong to which block ------------ */

int kvf_columns_make(const struct kvf_layout *l, struct kvf_columns **out);
void kvf_columns_free(struct kvf_columns *c);
/* The end (exclusive) of the published bytes of that region that begin at
 * `off`, or `off` when it is none. sorted: by group, ascending ids. */
uint64_t kvf_columns_reach(const struct kvf_columns *c, unsigned region,
                           uint64_t off, const struct kvf_ids *sorted);
#endif
