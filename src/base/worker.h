/* Who a worker is inside a cluster: stage.rank.replica. */
#ifndef KVF_BASE_WORKER_H
#define KVF_BASE_WORKER_H

#include <stdbool.h>
#include <stdint.h>

struct kvf_worker {
    uint32_t stage, rank, replica;
};

/* Bounds that keep the port rule free of collisions (port = base + 100 +
 * 1024*replica + 16*rank + stage): stage < 16, rank < 64, replica < 63. */
#define KVF_STAGE_MAX 15
#define KVF_RANK_MAX 63
#define KVF_REPLICA_MAX 62

static inline bool kvf_worker_equal(const struct kvf_worker *a,
                                    const struct kvf_worker *b)
{
    return a->stage == b->stage && a->rank == b->rank &&
           a->replica == b->replica;
}

#define KVF_WORKER_FMT "%u.%u.%u"
#define KVF_WORKER_ARG(w) (w)->stage, (w)->rank, (w)->replica

#endif
