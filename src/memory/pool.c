/* First fit by address over the tree of free extents (extents.c).
 *
 * Happy path: alloc walks to the leftmost extent that is long enough and takes
 * its front; free finds both neighbours on one walk and merges with them.
 *
 * Failure modes: nothing fits; a free of what is free already. A free can need
 * one node more, and there are never more free extents than live allocations
 * + 1; so an alloc succeeds only once that many nodes exist, and no free has to
 * ask malloc for one. */
#include "memory/pool.h"

#include "memory/extents.h"

#include <stdbool.h>
#include <stdlib.h>

struct kvf_pool {
    uint64_t start, end;
    uint64_t bytes_free;
    uint64_t extents;
    uint64_t live;  /* allocations */
    uint64_t nodes; /* in the tree and on the spare list */
    struct kvf_extents free;
    struct kvf_extent *spare; /* chained by ->left */
};

/* ---- nodes -------------------------------------------------------------- */

static bool add_spare(struct kvf_pool *p)
{
    struct kvf_extent *n = calloc(1, sizeof *n);

    if (n == NULL)
        return false;
    n->left = p->spare;
    p->spare = n;
    p->nodes++;
    return true;
}

static void put_spare(struct kvf_pool *p, struct kvf_extent *n)
{
    n->right = NULL;
    n->left = p->spare;
    p->spare = n;
}

static struct kvf_extent *get_spare(struct kvf_pool *p, uint64_t offset,
                                    uint64_t len)
{
    struct kvf_extent *n = p->spare;

    p->spare = n->left;
    kvf_extent_init(n, offset, len);
    return n;
}

static void remove_extent(struct kvf_pool *p, uint64_t offset)
{
    put_spare(p, kvf_extents_take(&p->free, offset));
    p->extents--;
}

/* ---- public ------------------------------------------------------------- */

struct kvf_pool *kvf_pool_create(uint64_t start, uint64_t end,
                                 struct kvf_why *why)
{
    struct kvf_pool *p;

    if (start > UINT64_MAX - (KVF_POOL_ALIGN - 1)) {
        kvf_fail(why, KVF_INVALID, "a pool of no bytes");
        return NULL;
    }
    start = (start + KVF_POOL_ALIGN - 1) / KVF_POOL_ALIGN * KVF_POOL_ALIGN;
    end = end / KVF_POOL_ALIGN * KVF_POOL_ALIGN;
    if (end <= start) {
        kvf_fail(why, KVF_INVALID, "a pool of no bytes");
        return NULL;
    }
    p = calloc(1, sizeof *p);
    if (p == NULL || !add_spare(p)) {
        free(p);
        kvf_fail(why, KVF_INTERNAL, "no memory for the pool's table");
        return NULL;
    }
    p->start = start;
    p->end = end;
    p->bytes_free = end - start;
    p->extents = 1;
    kvf_extents_insert(&p->free, get_spare(p, start, end - start));
    return p;
}

void kvf_pool_destroy(struct kvf_pool *p)
{
    if (p == NULL)
        return;
    kvf_extents_free(&p->free);
    while (p->spare != NULL) {
        struct kvf_extent *n = p->spare;

        p->spare = n->left;
        free(n);
    }
    free(p);
}

int kvf_pool_alloc(struct kvf_pool *p, uint64_t size, uint64_t *offset,
                   struct kvf_why *why)
{
    struct kvf_extent *n;

    if (size == 0)
        return kvf_fail(why, KVF_INVALID, "0 bytes asked for");
    if (size > p->end - p->start)
        return kvf_fail(why, KVF_TOO_LARGE,
                        "%llu bytes needed, the whole pool has %llu "
                        "(memory_pool_size)",
                        (unsigned long long)size,
                        (unsigned long long)(p->end - p->start));
    size = (size + KVF_POOL_ALIGN - 1) / KVF_POOL_ALIGN * KVF_POOL_ALIGN;
    if (size > kvf_extents_longest(&p->free))
        return kvf_fail(why, KVF_NO_SPACE,
                        "the pool is full: needed=%llu free=%llu "
                        "largest_free=%llu",
                        (unsigned long long)size,
                        (unsigned long long)p->bytes_free,
                        (unsigned long long)kvf_extents_longest(&p->free));
    /* The free of this one must find its node: live + 1 after this alloc. */
    while (p->nodes < p->live + 2) {
        if (!add_spare(p))
            return kvf_fail(why, KVF_NO_SPACE,
                            "no memory left for the pool's table");
    }
    n = kvf_extents_first_fit(&p->free, size);
    *offset = n->offset;
    if (n->len == size) {
        remove_extent(p, n->offset);
    } else {
        n->offset += size;
        n->len -= size;
        kvf_extents_refresh(&p->free, n);
    }
    p->bytes_free -= size;
    p->live++;
    return 0;
}

static bool in_range(const struct kvf_pool *p, uint64_t offset, uint64_t size)
{
    return size > 0 && offset % KVF_POOL_ALIGN == 0 && offset >= p->start &&
           offset < p->end && size <= p->end - offset;
}

int kvf_pool_free(struct kvf_pool *p, uint64_t offset, uint64_t size)
{
    struct kvf_extent *before, *after;

    if (!in_range(p, offset, size))
        return -KVF_INTERNAL;
    size = (size + KVF_POOL_ALIGN - 1) / KVF_POOL_ALIGN * KVF_POOL_ALIGN;
    kvf_extents_around(&p->free, offset, &before, &after);
    if ((before != NULL && before->offset + before->len > offset) ||
        (after != NULL && after->offset < offset + size))
        return -KVF_INTERNAL;
    if (before != NULL && before->offset + before->len != offset)
        before = NULL;
    if (after != NULL && after->offset != offset + size)
        after = NULL;

    if (before == NULL && after == NULL) {
        /* Only a caller that gave back less than it took can meet this. */
        if (p->spare == NULL && !add_spare(p))
            return -KVF_INTERNAL;
        kvf_extents_insert(&p->free, get_spare(p, offset, size));
        p->extents++;
    } else if (before == NULL) {
        after->offset = offset;
        after->len += size;
        kvf_extents_refresh(&p->free, after);
    } else {
        uint64_t gained = size;

        if (after != NULL) {
            gained += after->len;
            remove_extent(p, after->offset);
        }
        before->len += gained;
        kvf_extents_refresh(&p->free, before);
    }
    p->bytes_free += size;
    if (p->live > 0)
        p->live--;
    return 0;
}

uint64_t kvf_pool_size(const struct kvf_pool *p)
{
    return p->end - p->start;
}

uint64_t kvf_pool_bytes_free(const struct kvf_pool *p)
{
    return p->bytes_free;
}

uint64_t kvf_pool_largest_free(const struct kvf_pool *p)
{
    return kvf_extents_longest(&p->free);
}

uint64_t kvf_pool_extents(const struct kvf_pool *p)
{
    return p->extents;
}

uint64_t kvf_pool_steps(const struct kvf_pool *p)
{
    return p->free.steps;
}

/* ---- check -------------------------------------------------------------- */

int kvf_pool_check(const struct kvf_pool *p, struct kvf_why *why)
{
    struct kvf_extents_walk w = {
        .least = p->start, .most = p->end, .align = KVF_POOL_ALIGN};
    uint64_t spare = 0;

    kvf_extents_check(&p->free, &w);
    for (const struct kvf_extent *n = p->spare; n != NULL; n = n->left)
        spare++;
    if (w.fault == NULL && w.sum != p->bytes_free)
        w.fault = "the sum of free bytes is wrong";
    if (w.fault == NULL && w.count != p->extents)
        w.fault = "the number of extents is wrong";
    if (w.fault == NULL && w.count + spare != p->nodes)
        w.fault = "a node is lost";
    if (w.fault == NULL && p->nodes < p->live + 1)
        w.fault = "too few nodes for the frees to come";
    if (w.fault != NULL)
        return kvf_fail(why, KVF_INTERNAL, "pool: %s", w.fault);
    return 0;
}
