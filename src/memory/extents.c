/* An AVL tree of free extents. The recursion is as deep as the tree is high:
 * about 1.44 log2(n). */
#include "memory/extents.h"

#include <assert.h>
#include <stdlib.h>

static int height(const struct kvf_extent *t)
{
    return t == NULL ? 0 : t->height;
}

static uint64_t longest(const struct kvf_extent *t)
{
    return t == NULL ? 0 : t->max;
}

static void update(struct kvf_extent *t)
{
    int hl = height(t->left), hr = height(t->right);
    uint64_t ml = longest(t->left), mr = longest(t->right);
    uint64_t m = ml > mr ? ml : mr;

    t->height = (hl > hr ? hl : hr) + 1;
    t->max = m > t->len ? m : t->len;
}

static struct kvf_extent *rotate_right(struct kvf_extent *t)
{
    struct kvf_extent *l = t->left;

    assert(l != NULL);
    t->left = l->right;
    l->right = t;
    update(t);
    update(l);
    return l;
}

static struct kvf_extent *rotate_left(struct kvf_extent *t)
{
    struct kvf_extent *r = t->right;

    assert(r != NULL);
    t->right = r->left;
    r->left = t;
    update(t);
    update(r);
    return r;
}

static struct kvf_extent *balance(struct kvf_extent *t)
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

static struct kvf_extent *insert(struct kvf_extents *e, struct kvf_extent *t,
                                 struct kvf_extent *n)
{
    e->steps++;
    if (t == NULL)
        return n;
    if (n->offset < t->offset)
        t->left = insert(e, t->left, n);
    else
        t->right = insert(e, t->right, n);
    return balance(t);
}

static struct kvf_extent *take_leftmost(struct kvf_extents *e,
                                        struct kvf_extent *t,
                                        struct kvf_extent **out)
{
    e->steps++;
    if (t->left == NULL) {
        *out = t;
        return t->right;
    }
    t->left = take_leftmost(e, t->left, out);
    return balance(t);
}

/* Takes the node at `offset` (it is there) out of the tree. */
static struct kvf_extent *take(struct kvf_extents *e, struct kvf_extent *t,
                               uint64_t offset, struct kvf_extent **out)
{
    struct kvf_extent *next;

    e->steps++;
    if (offset < t->offset) {
        t->left = take(e, t->left, offset, out);
        return balance(t);
    }
    if (offset > t->offset) {
        t->right = take(e, t->right, offset, out);
        return balance(t);
    }
    *out = t;
    if (t->right == NULL)
        return t->left;
    if (t->left == NULL)
        return t->right;
    t->right = take_leftmost(e, t->right, &next);
    next->left = t->left;
    next->right = t->right;
    return balance(next);
}

/* Brings the longest lengths up to date on the way to `n`, after its length
 * changed. */
static void refresh(struct kvf_extents *e, struct kvf_extent *t,
                    const struct kvf_extent *n)
{
    e->steps++;
    if (t != n)
        refresh(e, n->offset < t->offset ? t->left : t->right, n);
    update(t);
}

/* ---- public ------------------------------------------------------------- */

void kvf_extent_init(struct kvf_extent *n, uint64_t offset, uint64_t len)
{
    n->left = n->right = NULL;
    n->offset = offset;
    n->len = len;
    update(n);
}

void kvf_extents_insert(struct kvf_extents *e, struct kvf_extent *n)
{
    e->root = insert(e, e->root, n);
}

struct kvf_extent *kvf_extents_take(struct kvf_extents *e, uint64_t offset)
{
    struct kvf_extent *n = NULL;

    e->root = take(e, e->root, offset, &n);
    return n;
}

void kvf_extents_refresh(struct kvf_extents *e, const struct kvf_extent *n)
{
    refresh(e, e->root, n);
}

struct kvf_extent *kvf_extents_first_fit(struct kvf_extents *e, uint64_t size)
{
    struct kvf_extent *t = e->root;

    for (;;) {
        e->steps++;
        if (longest(t->left) >= size)
            t = t->left;
        else if (t->len >= size)
            return t;
        else
            t = t->right;
    }
}

void kvf_extents_around(struct kvf_extents *e, uint64_t offset,
                        struct kvf_extent **before, struct kvf_extent **after)
{
    struct kvf_extent *t = e->root;

    *before = *after = NULL;
    while (t != NULL) {
        e->steps++;
        if (t->offset <= offset) {
            *before = t;
            t = t->right;
        } else {
            *after = t;
            t = t->left;
        }
    }
}

uint64_t kvf_extents_longest(const struct kvf_extents *e)
{
    return longest(e->root);
}

static void free_tree(struct kvf_extent *t)
{
    if (t == NULL)
        return;
    free_tree(t->left);
    free_tree(t->right);
    free(t);
}

void kvf_extents_free(struct kvf_extents *e)
{
    free_tree(e->root);
    e->root = NULL;
}

/* ---- check -------------------------------------------------------------- */

static void check_node(const struct kvf_extent *t, struct kvf_extents_walk *w)
{
    struct kvf_extent copy;

    if (t == NULL || w->fault != NULL)
        return;
    check_node(t->left, w);
    if (t->offset < w->least || t->len == 0 || t->offset >= w->most ||
        t->len > w->most - t->offset || t->offset % w->align != 0 ||
        t->len % w->align != 0)
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
    check_node(t->right, w);
}

void kvf_extents_check(const struct kvf_extents *e, struct kvf_extents_walk *w)
{
    check_node(e->root, w);
}
