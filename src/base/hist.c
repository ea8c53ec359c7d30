/* Histogram buckets: values below 8 exactly, then 8 equal steps an octave. */
#include "base/hist.h"

#include <stddef.h>

static size_t bucket_of(uint64_t v)
{
    unsigned e;

    if (v < 8)
        return (size_t)v;
    e = 63u - (unsigned)__builtin_clzll(v);
    return (size_t)(e - 2) * 8 + (size_t)((v >> (e - 3)) & 7);
}

/* Largest value that belongs to bucket i. */
static uint64_t bucket_top(size_t i)
{
    unsigned e;

    if (i < 8)
        return i;
    e = (unsigned)(i / 8) + 2;
    return ((8ull + i % 8) << (e - 3)) + ((1ull << (e - 3)) - 1);
}

void kvf_hist_add(struct kvf_hist *h, uint64_t value)
{
    if (h->count == 0 || value < h->min)
        h->min = value;
    if (value > h->max)
        h->max = value;
    h->count++;
    h->sum += value;
    h->bucket[bucket_of(value)]++;
}

uint64_t kvf_hist_quantile(const struct kvf_hist *h, double q)
{
    uint64_t seen = 0, target;

    if (h->count == 0)
        return 0;
    if (!(q > 0))
        return h->min;
    if (q >= 1)
        return h->max;
    target = (uint64_t)(q * (double)h->count);
    if ((double)target < q * (double)h->count)
        target++;
    for (size_t i = 0; i < KVF_HIST_BUCKETS; i++) {
        seen += h->bucket[i];
        if (seen >= target) {
            uint64_t top = bucket_top(i);

            return top < h->max ? top : h->max;
        }
    }
    return h->max;
}
