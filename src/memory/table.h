/* What buffers and regions share (inside this folder only): one table, one
 * counter of ids. */
#ifndef KVF_MEMORY_TABLE_H
#define KVF_MEMORY_TABLE_H

#include "memory/buffer.h"

struct kvf_buffers {
    struct kvf_segment *seg;
    struct kvf_pool *pool;
    struct kvf_buffer *by_id;
    struct kvf_region *regions;
    uint64_t next_id;
    struct kvf_buffer_gauges gauges; /* the pool's own three stay unused */
    void (*on_free)(void *arg);
    void *on_free_arg;
    void (*on_region)(void *arg, struct kvf_region *r);
    void (*on_region_gone)(void *arg, struct kvf_region *r);
    void *on_region_arg;
};

void kvf_regions_clear(struct kvf_buffers *t);
#endif
