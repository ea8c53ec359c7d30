/* Free extents of the pool, as an AVL tree ordered by offset in which each node
 * knows the longest extent below it. Private to src/memory: the allocator
 * (pool.c) owns the nodes and keeps neighbours merged. */
#ifndef KVF_MEMORY_EXTENTS_H
#define KVF_MEMORY_EXTENTS_H

#include <stdint.h>

struct kvf_extent {
    struct kvf_extent *left, *right;
    uint64_t offset, len;
    uint64_t max; /* longest len in this subtree */
    int height;
};

struct kvf_extents { /* all zeros: empty */
    struct kvf_extent *root;
    uint64_t steps; /* nodes visited, for tests of how it scales */
};

/* A node for [offset, offset + len) that is in no tree. */
void kvf_extent_init(struct kvf_extent *n, uint64_t offset, uint64_t len);
/* O(log n) each. */
void kvf_extents_insert(struct kvf_extents *e, struct kvf_extent *n);
/* Takes the node at `offset` (it is there) out of the tree. */
struct kvf_extent *kvf_extents_take(struct kvf_extents *e, uint64_t offset);
/* After the length of `n` (or its offset, between its neighbours) changed. */
void kvf_extents_refresh(struct kvf_extents *e, const struct kvf_extent *n);
/* Leftmost node with len >= size; the caller made sure that there is one. */
struct kvf_extent *kvf_extents_first_fit(struct kvf_extents *e, uint64_t size);
/* The last that begins at or before `offset` and the first after it; NULL. */
void kvf_extents_around(struct kvf_extents *e, uint64_t offset,
                        struct kvf_extent **before, struct kvf_extent **after);
/* O(1); 0 when empty. */
uint64_t kvf_extents_longest(const struct kvf_extents *e);
/* Frees every node. */
void kvf_extents_free(struct kvf_extents *e);

/* A walk over everything, for tests. */
struct kvf_extents_walk {
    uint64_t least, most, align; /* extents lie in [least, most) */
    uint64_t sum, count;         /* found: bytes, nodes */
    uint64_t last_end;           /* end of the extent before; 0 = none yet */
    const char *fault;           /* found first; NULL: none */
};
void kvf_extents_check(const struct kvf_extents *e, struct kvf_extents_walk *w);

#endif
