/* First fit by address over an AVL tree of free extents.
 *
 * Happy path: alloc walks to the leftmost extent that is long enough (each node
 * knows the longest below it) and takes its front; free finds both neighbours
 * on one walk and merges with them.
 *
 * Failure modes: nothing fits; a free of what is free already. A free can need
 * one node more, and there are never more free extents than live allocations
 * + 1; so an alloc succeeds only once that many nodes exist, and no free has to
 * ask malloc for one. */
#include "memory/pool.h"

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>

struct node {
    struct node *left, *right;
    uint64_t offset, len;
    uint64_t max; /* longest len in this subtree */
    int height;
};

struct kvf_pool {
    uint64_t start, end;
    uint64_t bytes_free;
    uint64_t extents;
    uint64_t live;  /* allocations */
    uint64_t nodes; /* in the tree and on the spare list */
    struct node *root;
    struct node *spare; /* chained by ->left */
    uint64_t steps;
};

/* ---- tree --------------------------------------------------------------- */

static int height(const struct node *t)
{
    return t == NULL ? 0 : t->height;
}

static uint64_t longest(const struct node *t)
{
    return t == NULL ? 0 : t->max;
}

static void update(struct node *t)
{
    int hl = height(t->left), hr = height(t->right);
    uint64_t ml = longest(t->left), mr = longest(t->right);
    uint64_t m = ml > mr ? ml : mr;

    t->height = (hl > hr ? hl : hr) + 1;
    t->max = m > t->len ? m : t->len;
}

static struct node *rotate_right(struct node *t)
{
    struct node *l = t->left;

    assert(l != NULL);
    t->left = l->right;
    l->right = t;
    update(t);
    update(l);
    return l;
}

static struct node *rotate_left(struct node *t)
{
    struct node *r = t->right;

    assert(r != NULL);
    t->right = r->left;
    r->left = t;
    update(t);
    update(r);
    return r;
}

static struct node *balance(struct node *t)
{
    int d = height(t->left) - height(t->right);

    if (d > 1) {
        if (height(t->left->left) < height(t->left->right))
            t->left = rotate_left(t->left);
        return rotate_right(t);
    }
    if (d < -1) {
        if (height(t->right->right) < height(t->right->left))
            t->right = rotate_right(t->right);
        return rotate_left(t);
    }
    update(t);
    return t;
}

static struct node *insert(struct kvf_pool *p, struct node *t, struct node *n)
{
    p->steps++;
    if (t == NULL)
        return n;
    if (n->offset < t->offset)
        t->left = insert(p, t->left, n);
    else
        t->right = insert(p, t->right, n);
    return balance(t);
}

static struct node *take_leftmost(struct kvf_pool *p, struct node *t,
                                  struct node **out)
{
    p->steps++;
    if (t->left == NULL) {
        *out = t;
        return t->right;
    }
    t->left = take_leftmost(p, t->left, out);
    return balance(t);
}

/* Takes the node at `offset` (it is there) out of the tree. */
static struct node *take(struct kvf_pool *p, struct node *t, uint64_t offset,
                         struct node **out)
{
    struct node *next;

    p->steps++;
    if (offset < t->offset) {
        t->left = take(p, t->left, offset, out);
        return balance(t);
    }
    if (offset > t->offset) {
        t->right = take(p, t->right, offset, out);
        return balance(t);
    }
    *out = t;
    if (t->right == NULL)
        return t->left;
    if (t->left == NULL)
        return t->right;
    t->right = take_leftmost(p, t->right, &next);
    next->left = t->left;
    next->right = t->right;
    return balance(next);
}

/* Brings the longest lengths up to date on the way to `n`, after its length
 * changed. */
static void refresh(struct kvf_pool *p, struct node *t, const struct node *n)
{
    p->steps++;
    if (t != n)
        refresh(p, n->offset < t->offset ? t->left : t->right, n);
    update(t);
}

/* Leftmost node with len >= size; the caller made sure that there is one. */
static struct node *first_fit(struct kvf_pool *p, uint64_t size)
{
    struct node *t = p->root;

    for (;;) {
        p->steps++;
        if (longest(t->left) >= size)
            t = t->left;
        else if (t->len >= size)
            return t;
        else
            t = t->right;
    }
}

/* ---- nodes -------------------------------------------------------------- */

static bool add_spare(struct kvf_pool *p)
{
    struct node *n = calloc(1, sizeof *n);

    if (n == NULL)
        return false;
    n->left = p->spare;
    p->spare = n;
    p->nodes++;
    return true;
}

static void put_spare(struct kvf_pool *p, struct node *n)
{
    n->right = NULL;
    n->left = p->spare;
    p->spare = n;
}

static struct node *get_spare(struct kvf_pool *p, uint64_t offset, uint64_t len)
{
    struct node *n = p->spare;

    p->spare = n->left;
    n->left = n->right = NULL;
    n->offset = offset;
    n->len = len;
    update(n);
    return n;
}

static void remove_extent(struct kvf_pool *p, uint64_t offset)
{
    struct node *n = NULL;

    p->root = take(p, p->root, offset, &n);
    put_spare(p, n);
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
    p->root = get_spare(p, start, end - start);
    return p;
}

static void free_tree(struct node *t)
{
    if (t == NULL)
        return;
    free_tree(t->left);
    free_tree(t->right);
    free(t);
}

void kvf_pool_destroy(struct kvf_pool *p)
{
    if (p == NULL)
        return;
    free_tree(p->root);
    while (p->spare != NULL) {
        struct node *n = p->spare;

        p->spare = n->left;
        free(n);
    }
    free(p);
}

int kvf_pool_alloc(struct kvf_pool *p, uint64_t size, uint64_t *offset,
                   struct kvf_why *why)
{
    struct node *n;

    if (size == 0)
        return kvf_fail(why, KVF_INVALID, "0 bytes asked for");
    if (size > p->end - p->start)
        return kvf_fail(why, KVF_TOO_LARGE,
                        "%llu bytes needed, the whole pool has %llu "
                        "(memory_pool_size)",
                        (unsigned long long)size,
                        (unsigned long long)(p->end - p->start));
    size = (size + KVF_POOL_ALIGN - 1) / KVF_POOL_ALIGN * KVF_POOL_ALIGN;
    if (size > longest(p->root))
        return kvf_fail(why, KVF_NO_SPACE,
                        "the pool is full: needed=%llu free=%llu "
                        "largest_free=%llu",
                        (unsigned long long)size,
                        (unsigned long long)p->bytes_free,
                        (unsigned long long)longest(p->root));
    /* The free of this one must find its node: live + 1 after this alloc. */
    while (p->nodes < p->live + 2) {
        if (!add_spare(p))
            return kvf_fail(why, KVF_NO_SPACE,
                            "no memory left for the pool's table");
    }
    n = first_fit(p, size);
    *offset = n->offset;
    if (n->len == size) {
        remove_extent(p, n->offset);
    } else {
        n->offset += size;
        n->len -= size;
        refresh(p, p->root, n);
    }
    p->bytes_free -= size;
    p->live++;
    return 0;
}

/* The free extents on both sides of `offset`. */
static void neighbours(struct kvf_pool *p, uint64_t offset,
                       struct node **before, struct node **after)
{
    struct node *t = p->root;

    *before = *after = NULL;
    while (t != NULL) {
        p->steps++;
        if (t->offset <= offset) {
            *before = t;
            t = t->right;
        } else {
            *after = t;
            t = t->left;
        }
    }
}

static bool in_range(const struct kvf_pool *p, uint64_t offset, uint64_t size)
{
    return size > 0 && offset % KVF_POOL_ALIGN == 0 && offset >= p->start &&
           offset < p->end && size <= p->end - offset;
}

int kvf_pool_free(struct kvf_pool *p, uint64_t offset, uint64_t size)
{
    struct node *before, *after;

    if (!in_range(p, offset, size))
        return -KVF_INTERNAL;
    size = (size + KVF_POOL_ALIGN - 1) / KVF_POOL_ALIGN * KVF_POOL_ALIGN;
    neighbours(p, offset, &before, &after);
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
        p->root = insert(p, p->root, get_spare(p, offset, size));
        p->extents++;
    } else if (before == NULL) {
        after->offset = offset;
        after->len += size;
        refresh(p, p->root, after);
    } else {
        uint64_t gained = size;

        if (after != NULL) {
            gained += after->len;
            remove_extent(p, after->offset);
        }
        before->len += gained;
        refresh(p, p->root, before);
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
    return longest(p->root);
}

uint64_t kvf_pool_extents(const struct kvf_pool *p)
{
    return p->extents;
}

uint64_t kvf_pool_steps(const struct kvf_pool *p)
{
    return p->steps;
}

/* ---- check -------------------------------------------------------------- */

struct walk {
    uint64_t sum, count;
    uint64_t last_end; /* end of the extent before; 0 = none yet */
    const char *fault;
};

static void check_node(const struct kvf_pool *p, const struct node *t,
                       struct walk *w)
{
    struct node copy;

    if (t == NULL || w->fault != NULL)
        return;
    check_node(p, t->left, w);
    if (!in_range(p, t->offset, t->len) || t->len % KVF_POOL_ALIGN != 0)
        w->fault = "an extent leaves the pool";
    else if (w->count > 0 && t->offset < w->last_end)
        w->fault = "extents overlap or are out of order";
    else if (w->count > 0 && t->offset == w->last_end)
        w->fault = "neighbours are not merged";
    copy = *t;
    update(&copy);
    if (copy.max != t->max || copy.height != t->height)
        w->fault = "a node's longest length or height is wrong";
    if (abs(height(t->left) - height(t->right)) > 1)
        w->fault = "the tree is out of balance";
    w->sum += t->len;
    w->count++;
    w->last_end = t->offset + t->len;
    check_node(p, t->right, w);
}

int kvf_pool_check(const struct kvf_pool *p, struct kvf_why *why)
{
    struct walk w = {0};
    uint64_t spare = 0;

    check_node(p, p->root, &w);
    for (const struct node *n = p->spare; n != NULL; n = n->left)
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
