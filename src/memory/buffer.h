/* Buffers: named ranges of the pool with a life, and regions: memory that an
 * engine registered.
 *
 *   FREE -> FILLING -> PUBLISHED -> DRAINING -> FREE          at the sender
 *   FREE -> RECEIVING -> HELD -> DRAINING -> FREE             at the receiver
 *   FREE -> RECEIVING -> PUBLISHED -> ...                     of a push
 *
 * A pin is anything that may still touch the bytes: a claim, a slice copy, a
 * socket operation, a mapped view. Memory goes back to the pool only from
 * DRAINING with no pins; nothing else gives memory back. PUBLISHED with a pin
 * counts as "claimed" in the gauges.
 *
 * Ids never repeat, also across incarnations: they start at (real time in ms)
 * << 22 and count up, so that a later start begins above all earlier ones. */
#ifndef KVF_MEMORY_BUFFER_H
#define KVF_MEMORY_BUFFER_H

#include "base/list.h"
#include "memory/hash.h"
#include "memory/pool.h"
#include "memory/segment.h"

#include <stdint.h>

enum kvf_buffer_state {
    KVF_BUF_FILLING,   /* an engine writes into it */
    KVF_BUF_PUBLISHED, /* backs a generation; nobody writes */
    KVF_BUF_RECEIVING, /* a transport writes into it */
    KVF_BUF_HELD,      /* an engine reads what was received */
    KVF_BUF_DRAINING,  /* nobody may start to use it; free when unpinned */
    KVF_BUF_STATES
};

struct kvf_buffers; /* the table of one pool */

struct kvf_buffer {
    uint64_t id;
    uint64_t offset;   /* in the pool file */
    uint64_t size;     /* what was asked for; what segments default to */
    uint64_t capacity; /* what it takes: size rounded up to 4 KiB */
    enum kvf_buffer_state state;
    unsigned pins;
    struct kvf_list owner_node; /* in the owner's list (a session), or alone */
    const void *owner;          /* opaque to this layer; compared only */
    struct kvf_buffers *table;
    UT_hash_handle hh; /* by id */
};

/* `id_base` 0 = from the clock. The segment and pool stay the caller's. */
struct kvf_buffers *kvf_buffers_create(struct kvf_segment *seg,
                                       struct kvf_pool *pool, uint64_t id_base,
                                       struct kvf_why *why);
/* Forgets every buffer and region, pinned or not: only once nothing runs. */
void kvf_buffers_destroy(struct kvf_buffers *t);

/* `state` is FILLING or RECEIVING. The table owns the buffer; the caller may
 * put owner_node into a list of its own. -KVF_INVALID for size 0, else the
 * errors of kvf_pool_alloc. */
int kvf_buffer_alloc(struct kvf_buffers *t, uint64_t size,
                     enum kvf_buffer_state state, const void *owner,
                     struct kvf_buffer **out, struct kvf_why *why);
/* Also finds buffers that are DRAINING (regions that are retired). */
struct kvf_buffer *kvf_buffer_find(const struct kvf_buffers *t, uint64_t id);
uint8_t *kvf_buffer_ptr(const struct kvf_buffer *b);
/* FILLING -> PUBLISHED, RECEIVING -> HELD or PUBLISHED (a push) and PUBLISHED
 * -> FILLING (an undone put); anything else is a defect and asserts. */
void kvf_buffer_set_state(struct kvf_buffer *b, enum kvf_buffer_state state);
void kvf_buffer_pin(struct kvf_buffer *b);
/* May free the buffer (when DRAINING and this was the last pin). */
void kvf_buffer_unpin(struct kvf_buffer *b);
/* -> DRAINING, out of its owner's list; frees at once when unpinned. Does
 * nothing when it is DRAINING already. */
void kvf_buffer_retire(struct kvf_buffer *b);

struct kvf_buffer_gauges { /* bytes, by capacity */
    uint64_t size, free, largest_free;
    uint64_t filling, published, claimed, draining, receiving, held;
    uint64_t buffers;
};
void kvf_buffers_gauges(const struct kvf_buffers *t,
                        struct kvf_buffer_gauges *out);
/* Next id of the common counter (buffers, regions, views). */
uint64_t kvf_buffers_next_id(struct kvf_buffers *t);
/* Called whenever memory went back to the pool (gets that wait for room). `fn`
 * should post a task: it runs inside whatever gave the memory back. */
void kvf_buffers_on_free(struct kvf_buffers *t, void (*fn)(void *arg),
                         void *arg);

/* ---- regions ------------------------------------------------------------ */

struct kvf_region {
    uint64_t id; /* same counter as buffers: an id is one or the other */
    struct kvf_mapping *map; /* read-write */
    uint64_t size;
    unsigned pins; /* puts, claims, receives that use it */
    bool retired;  /* unregistered or its session is gone; freed at 0 pins */
    const void *owner;
    struct kvf_list owner_node;
    struct kvf_buffers *table;
    void *registered;  /* the rdma transport's handle; NULL: none */
    char path[64];     /* /proc/<daemon pid>/fd/<n>: how others on this host may
                          map it for reading */
    UT_hash_handle hh; /* by id */
};

/* `map` is taken over on success. */
int kvf_region_add(struct kvf_buffers *t, struct kvf_mapping *map,
                   uint64_t size, const void *owner, struct kvf_region **out,
                   struct kvf_why *why);
struct kvf_region *kvf_region_find(const struct kvf_buffers *t, uint64_t id);
void kvf_region_pin(struct kvf_region *r);
void kvf_region_unpin(struct kvf_region *r);
void kvf_region_retire(struct kvf_region *r);
/* Told of every region that comes and of each before it goes; either may be
 * NULL. */
void kvf_regions_on_change(struct kvf_buffers *t,
                           void (*added)(void *arg, struct kvf_region *r),
                           void (*dropped)(void *arg, struct kvf_region *r),
                           void *arg);
unsigned kvf_region_count(const struct kvf_buffers *t);
#endif
