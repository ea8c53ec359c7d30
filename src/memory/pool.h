/* Allocator of the pool: which byte ranges of a segment are free.
 *
 * First fit by address in O(log n): the free extents form a balanced tree
 * ordered by offset, each node knowing the longest extent below it. Extents are
 * multiples of KVF_POOL_ALIGN, neighbours are merged at once. It never touches
 * the memory it manages. Not thread-safe. */
#ifndef KVF_MEMORY_POOL_H
#define KVF_MEMORY_POOL_H

#include "base/why.h"

#include <stdint.h>

#define KVF_POOL_ALIGN 4096ull

struct kvf_pool;

/* Manages [start, end); both are rounded inwards to KVF_POOL_ALIGN. */
struct kvf_pool *kvf_pool_create(uint64_t start, uint64_t end,
                                 struct kvf_why *why);
void kvf_pool_destroy(struct kvf_pool *p);

/* Takes `size` bytes (> 0, rounded up). *offset on success.
 *   -KVF_TOO_LARGE  could never fit, even if all were free
 *   -KVF_NO_SPACE   no free extent is long enough now
 * The text names needed, free and largest free bytes. */
int kvf_pool_alloc(struct kvf_pool *p, uint64_t size, uint64_t *offset,
                   struct kvf_why *why);
/* Gives back exactly what was taken (same offset and size). A range that is
 * free already, in part or whole, is a defect of the daemon: returns
 * -KVF_INTERNAL and changes nothing. Never fails for lack of memory. */
int kvf_pool_free(struct kvf_pool *p, uint64_t offset, uint64_t size);

uint64_t kvf_pool_size(const struct kvf_pool *p);         /* all bytes */
uint64_t kvf_pool_bytes_free(const struct kvf_pool *p);   /* O(1) */
uint64_t kvf_pool_largest_free(const struct kvf_pool *p); /* O(1) */
uint64_t kvf_pool_extents(const struct kvf_pool *p);      /* free extents */
/* Tree nodes visited since create, for tests of how it scales. */
uint64_t kvf_pool_steps(const struct kvf_pool *p);
/* Walks everything and checks order, merging, balance, augmentation and sums;
 * returns 0 or -KVF_INTERNAL. For tests. */
int kvf_pool_check(const struct kvf_pool *p, struct kvf_why *why);
#endif
