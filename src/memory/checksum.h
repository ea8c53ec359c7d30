/* XXH3-64 (seed 0) over scattered memory, in slices of the loop's bulk budget.
 */
#ifndef KVF_MEMORY_CHECKSUM_H
#define KVF_MEMORY_CHECKSUM_H

#include "base/sched.h"
#include "base/why.h"

#include <sys/uio.h>

struct kvf_checksum {
    struct kvf_sched *sched;
    struct kvf_slice slice;
    struct kvf_task finish;
    struct iovec *iov; /* copied */
    unsigned n_iov, at;
    size_t pos;
    void *state;
    uint64_t value;
    bool running;
    void (*done)(struct kvf_checksum *c, uint64_t value);
};

/* Begins; done() is called later, from the loop. The memory must stay pinned
 * until then or until stop. -KVF_NO_SPACE when out of memory. */
int kvf_checksum_start(struct kvf_checksum *c, struct kvf_sched *sched,
                       const struct iovec *iov, unsigned n_iov,
                       void (*done)(struct kvf_checksum *c, uint64_t value),
                       struct kvf_why *why);
void kvf_checksum_stop(struct kvf_checksum *c); /* idempotent; zeroed is fine */
#endif
