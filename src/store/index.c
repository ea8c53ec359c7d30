/* Ordered index of the keys: a treap (a search tree by key that is a heap by a
 * random priority, so that no order of puts unbalances it).
 *
 * Adding and removing turn the node up or down by rotations; the successor is
 * found over the parent links. Nothing allocates, nothing fails. */
#include "store/store_private.h"

static struct kvf_key *key_of(struct kvf_index_node *n)
{
    return n != NULL ? kvf_container_of(n, struct kvf_key, at) : NULL;
}

static int compare(const char *a, size_t a_len, const char *b, size_t b_len)
{
    size_t n = a_len < b_len ? a_len : b_len;
    int c = n != 0 ? memcmp(a, b, n) : 0;

    if (c != 0)
        return c;
    return a_len < b_len ? -1 : a_len > b_len;
}

/* The link that points to n. */
static struct kvf_index_node **link_of(struct kvf_store *st,
                                       struct kvf_index_node *n)
{
    if (n->up == NULL)
        return &st->index;
    return n->up->left == n ? &n->up->left : &n->up->right;
}

/* Puts n in the place of its parent, which becomes a child of n. */
static void rotate_up(struct kvf_store *st, struct kvf_index_node *n)
{
    struct kvf_index_node *p = n->up, **link = link_of(st, p);
    struct kvf_index_node *moved;

    if (p->left == n) {
        moved = p->left = n->right;
        n->right = p;
    } else {
        moved = p->right = n->left;
        n->left = p;
    }
    if (moved != NULL)
        moved->up = p;
    n->up = p->up;
    p->up = n;
    *link = n;
}

void kvf_index_add(struct kvf_store *st, struct kvf_key *key)
{
    struct kvf_index_node **link = &st->index, *up = NULL, *n = &key->at;

    while (*link != NULL) {
        const struct kvf_key *k = key_of(*link);

        up = *link;
        link = compare(key->name, key->len, k->name, k->len) < 0 ? &up->left
                                                                 : &up->right;
    }
    *n = (struct kvf_index_node){.up = up, .prio = kvf_rng_next(&st->rng)};
    *link = n;
    while (n->up != NULL && n->up->prio < n->prio)
        rotate_up(st, n);
}

void kvf_index_remove(struct kvf_store *st, struct kvf_key *key)
{
    struct kvf_index_node *n = &key->at, *only;

    while (n->left != NULL && n->right != NULL)
        rotate_up(st, n->left->prio > n->right->prio ? n->left : n->right);
    only = n->left != NULL ? n->left : n->right;
    *link_of(st, n) = only;
    if (only != NULL)
        only->up = n->up;
    n->left = n->right = n->up = NULL;
}

static struct kvf_key *if_prefix(struct kvf_key *key, const char *prefix,
                                 size_t len)
{
    if (key == NULL || key->len < len ||
        (len != 0 && memcmp(key->name, prefix, len) != 0))
        return NULL;
    return key;
}

struct kvf_key *kvf_index_first(const struct kvf_store *st, const char *prefix,
                                size_t len)
{
    struct kvf_index_node *n = st->index, *best = NULL;

    while (n != NULL) {
        const struct kvf_key *k = key_of(n);

        if (compare(k->name, k->len, prefix, len) >= 0) {
            best = n;
            n = n->left;
        } else {
            n = n->right;
        }
    }
    return if_prefix(key_of(best), prefix, len);
}

static struct kvf_index_node *successor(const struct kvf_index_node *n)
{
    struct kvf_index_node *s = n->right;

    if (s != NULL) {
        while (s->left != NULL)
            s = s->left;
        return s;
    }
    for (s = n->up; s != NULL && s->right == n; s = s->up)
        n = s;
    return s;
}

struct kvf_key *kvf_index_next(const struct kvf_key *key, const char *prefix,
                               size_t len)
{
    return if_prefix(key_of(successor(&key->at)), prefix, len);
}

static bool links_hold(const struct kvf_index_node *n)
{
    return (n->left == NULL ||
            (n->left->up == n && n->left->prio <= n->prio)) &&
           (n->right == NULL ||
            (n->right->up == n && n->right->prio <= n->prio));
}

int kvf_index_check(const struct kvf_store *st, uint64_t *n,
                    struct kvf_why *why)
{
    const struct kvf_key *last = NULL;

    *n = 0;
    for (const struct kvf_key *k = kvf_index_first(st, "", 0); k != NULL;
         k = kvf_index_next(k, "", 0)) {
        if (!links_hold(&k->at))
            return kvf_fail(why, KVF_INTERNAL, "index: links at %s", k->name);
        if (last != NULL &&
            compare(last->name, last->len, k->name, k->len) >= 0)
            return kvf_fail(why, KVF_INTERNAL, "index: order at %s", k->name);
        last = k;
        ++*n;
    }
    return 0;
}
