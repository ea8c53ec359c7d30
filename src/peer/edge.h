/* Admission on an edge: how much may be on its way from a stage to ours at
 * once, pulled by us or pushed to us ([edge] window_size, max_inflight). First
 * come, first in; one may always go, however large. */
#ifndef KVF_PEER_EDGE_H
#define KVF_PEER_EDGE_H

#include "base/list.h"
#include "conf/conf.h"

#define KVF_STAGES 16

struct kvf_edge { /* one stage -> ours */
    uint32_t from;
    unsigned inflight;
    uint64_t bytes;
    struct kvf_list queue; /* kvf_edge_wait.node */
};

/* Embedded in what wants to go. */
struct kvf_edge_wait {
    struct kvf_list node;
    struct kvf_edge *edge; /* NULL: never asked */
    const struct kvf_conf *conf;
    uint64_t bytes; /* what it counts for */
    bool admitted;
    /* Its turn has come after it had to wait. */
    void (*enter)(struct kvf_edge_wait *w);
};

void kvf_edge_init(struct kvf_edge *e, uint32_t from);
void kvf_edge_wait_init(struct kvf_edge_wait *w,
                        void (*enter)(struct kvf_edge_wait *w));
/* True: admitted. False: queued, `enter` is called when there is room. */
bool kvf_edge_enter(struct kvf_edge *e, const struct kvf_conf *conf,
                    struct kvf_edge_wait *w, uint64_t bytes);
/* Out of the queue, or makes room and lets others in (their `enter` is called
 * from inside). Idempotent. */
void kvf_edge_leave(struct kvf_edge_wait *w);
#endif
