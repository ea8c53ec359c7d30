/* Which P rank a unit is read from.
 *
 * Happy path: owners of the unit, cut to the window, the lowest of them. The
 * window always holds an owner (docs/LAYOUTS.md), so there is no failure. */
#include "own.h"

struct kvf_span kvf_own_source(int64_t units, int64_t tp_p,
                               struct kvf_span window, struct kvf_span own,
                               int64_t u, int64_t *p)
{
    int64_t rank = kvf_meet(u, units, tp_p).lo;
    struct kvf_span have;

    if (rank < window.lo)
        rank = window.lo;
    *p = rank;
    have = kvf_own(units, tp_p, rank);
    return (struct kvf_span){u, have.hi < own.hi ? have.hi : own.hi};
}
