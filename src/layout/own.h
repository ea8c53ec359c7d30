/* Ownership: the only sharding rule, one relation in three roles.
 *
 * Cut [0,1) into n equal shares and again into m. Share i of n meets a run of
 * the m shares. Units of a rank, ranks that have a unit, and P ranks that a D
 * rank talks to are all that run. */
#ifndef KVF_LAYOUT_OWN_H
#define KVF_LAYOUT_OWN_H

#include <stdbool.h>
#include <stdint.h>

struct kvf_span {
    int64_t lo, hi; /* [lo, hi) */
};

/* The shares of m that meet share i of n. 0 <= i < n, (n + 1) * m < 2^63. */
static inline struct kvf_span kvf_meet(int64_t i, int64_t n, int64_t m)
{
    return (struct kvf_span){i * m / n, ((i + 1) * m + n - 1) / n};
}

/* Can `units` be dealt to tp ranks: whole shares, or whole replicas? */
static inline bool kvf_own_legal(int64_t units, int64_t tp)
{
    return tp <= units ? units % tp == 0 : tp % units == 0;
}

/* Units of rank r; the number is the same for every rank. */
static inline struct kvf_span kvf_own(int64_t units, int64_t tp, int64_t r)
{
    return kvf_meet(r, tp, units);
}

static inline int64_t kvf_own_count(int64_t units, int64_t tp)
{
    return tp <= units ? units / tp : 1;
}

/* The P ranks (within a stage) that D rank d talks to. */
static inline struct kvf_span kvf_window(int64_t tp_p, int64_t tp_d, int64_t d)
{
    return kvf_meet(d, tp_d, tp_p);
}

/* The units from u on that D reads from one and the same P rank: the lowest of
 * the window that has u. *p is that rank; the result ends at or before
 * `own.hi`, where own are D's units. */
struct kvf_span kvf_own_source(int64_t units, int64_t tp_p,
                               struct kvf_span window, struct kvf_span own,
                               int64_t u, int64_t *p);
#endif
