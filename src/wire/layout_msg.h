/* A KV layout as it travels: in op `layout` from an engine, and between
 * daemons. The same map both times, but for how regions are named: an engine by
 * their ids, a daemon by index into a list of lengths. No I/O. */
#ifndef KVF_WIRE_LAYOUT_MSG_H
#define KVF_WIRE_LAYOUT_MSG_H

#include "layout/layout.h"
#include "wire/mp.h"

#define KVF_LAYOUT_VIEWS 16384u
#define KVF_LAYOUT_REGIONS 2048u
#define KVF_LAYOUT_NAME 255u /* bytes of the name of a layer */
#define KVF_COMP_NAME 63u

/* What one rank declares: all layers, and views of those on its own stage. */
struct kvf_layout_decl {
    struct kvf_side side; /* views name regions by index into `regions` */
    int64_t rank;         /* stage * tp + tp rank */
    uint64_t *regions;    /* as they were named, in order of appearance */
    unsigned n_regions;
};

/* Checks type and range of every field, and what has no kind of refusal of its
 * own: a view of no layer, or of another stage's, or given twice. Words that
 * are not known become -1, for kvf_side_check to name. side.regions is left
 * empty. -KVF_INVALID, -KVF_INTERNAL out of memory; kvf_layout_done in every
 * case. */
int kvf_layout_read(const msgpack_object *map, struct kvf_layout_decl *out,
                    struct kvf_why *why);
void kvf_layout_done(struct kvf_layout_decl *d);
/* Pairs of a map that the caller has begun; returns how many (the same for
 * every layout). Regions are written by index. */
#define KVF_LAYOUT_PAIRS 12u
void kvf_layout_write(struct kvf_mpw *w, const struct kvf_side *s,
                      int64_t rank);
#endif
