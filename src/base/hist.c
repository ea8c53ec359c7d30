/* Histogram buckets: values below 8 exactly, then 8 equal steps an octave. */
#include "base/hist.h"

#include <stddef.h>
#include <string.h>

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

void kvf_hist_recent_add(struct kvf_hist_recent *h, uint64_t value,
                         uint64_t now_ns)
{
    uint64_t age = now_ns - h->began_ns;

    if (age >= KVF_HIST_WINDOW_NS) {
        if (age < 2 * KVF_HIST_WINDOW_NS)
            h->before = h->now;
        else
            memset(&h->before, 0, sizeof h->before);
        memset(&h->now, 0, sizeof h->now);
        h->began_ns = now_ns;
    }
    kvf_hist_add(&h->now, value);
}

uint64_t kvf_hist_recent_quantile(const struct kvf_hist_recent *h, double q,
                                  uint64_t now_ns)
{
    uint64_t age = now_ns - h->began_ns;
    struct kvf_hist both = h->now;

    if (age >= 2 * KVF_HIST_WINDOW_NS)
        return 0;
    if (age >= KVF_HIST_WINDOW_NS || h->before.count == 0)
        return kvf_hist_quantile(&both, q);
    for (size_t i = 0; i < KVF_HIST_BUCKETS; i++)
        both.bucket[i] += h->before.bucket[i];
    both.count += h->before.count;
    if (h->now.count == 0 || h->before.min < both.min)
        both.min = h->before.min;
    if (h->before.max > both.max)
        both.max = h->before.max;
    return kvf_hist_quantile(&both, q);
}
