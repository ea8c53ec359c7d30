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

/* The same of the last 10 to 20 seconds: two windows, the older one dropped
 * when the newer is full. No timer: time is told by the caller. */
#define KVF_HIST_WINDOW_NS 10000000000ull

struct kvf_hist_recent {
    uint64_t began_ns; /* of `now` */
    struct kvf_hist now, before;
};

void kvf_hist_recent_add(struct kvf_hist_recent *h, uint64_t value,
                         uint64_t now_ns);
/* As kvf_hist_quantile; 0 when nothing was added recently. */
uint64_t kvf_hist_recent_quantile(const struct kvf_hist_recent *h, double q,
                                  uint64_t now_ns);
#endif
