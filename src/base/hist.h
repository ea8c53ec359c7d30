/* Histogram of unsigned values, log2 with 8 linear steps per octave: relative
 * error <= 12.5 %, 4 KiB, no allocation, O(1) add. */
#ifndef KVF_BASE_HIST_H
#define KVF_BASE_HIST_H

#include <stdint.h>

#define KVF_HIST_BUCKETS 496

struct kvf_hist {
    uint64_t count, sum, min, max;
    uint64_t bucket[KVF_HIST_BUCKETS];
};

void kvf_hist_add(struct kvf_hist *h, uint64_t value);
/* Value below or at which the share q (0..1) lies; upper bound of its bucket,
 * never above max. 0 when empty. */
uint64_t kvf_hist_quantile(const struct kvf_hist *h, double q);
#endif
