/* Descriptors in order, neighbours merged. Happy path: one sort, one pass. */
#include "plan.h"

#include <stdlib.h>

static int by_target(const void *a, const void *b)
{
    const struct kvf_desc *x = a, *y = b;

    if (x->p_rank != y->p_rank)
        return x->p_rank < y->p_rank ? -1 : 1;
    if (x->d_region != y->d_region)
        return x->d_region < y->d_region ? -1 : 1;
    return (x->d_off > y->d_off) - (x->d_off < y->d_off);
}

size_t kvf_desc_coalesce(struct kvf_desc *v, size_t n)
{
    size_t left = 0;

    if (n < 2) /* also: v may be NULL */
        return n;
    qsort(v, n, sizeof *v, by_target);
    for (size_t i = 0; i < n; i++)
        if (left == 0 || !kvf_desc_merge(&v[left - 1], &v[i]))
            v[left++] = v[i];
    return left;
}
