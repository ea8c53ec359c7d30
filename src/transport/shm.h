/* shm transport: the owner's memory is mapped here; a READ is a copy done in
 * slices of the loop's bulk budget. Needs remote->segs[].map. WRITE copies the
 * other way and needs writable mappings (used by tests and by push). */
#ifndef KVF_TRANSPORT_SHM_H
#define KVF_TRANSPORT_SHM_H

#include "transport/transport.h"

int kvf_shm_create(struct kvf_sched *sched, struct kvf_stats *stats,
                   struct kvf_transport **out, struct kvf_why *why);
#endif
