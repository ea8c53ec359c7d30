/* One P rank and one D rank: what lies between them.
 *
 * Each rank declares its own layout: all layers of the model, and views of
 * those on its own pipeline stage. Two ranks have a stretch of layers in common
 * (perhaps none); cut down to it, both sides are one stage, and the template of
 * the pair holds just what this D rank reads from this P rank. So ranks of one
 * stage may lay out their memory differently. Pure, like the rest of here. */
#ifndef KVF_LAYOUT_PAIR_H
#define KVF_LAYOUT_PAIR_H

#include "plan.h"

/* Layers of a stage: contiguous runs, the first (n mod pp) one longer. Needs
 * 0 <= stage < pp. */
struct kvf_span kvf_stage_layers(int64_t n_layers, int64_t pp, int64_t stage);

/* Does this side make sense alone? Only views of `stage` are looked at. */
int kvf_side_check(const struct kvf_side *s, int64_t stage,
                   struct kvf_refusal *no);

struct kvf_match {
    struct kvf_side side[2]; /* P, D: only the layers in common, one stage */
    struct kvf_template *t;  /* reads from this P rank only; NULL: no layer in
                                common */
    bool *group;             /* has a layer in common */
};

/* *out is made even when they do not fit: kvf_match_free in every case. Borrows
 * nothing. MISMATCH with the first reason; NO_SPACE. */
int kvf_match_make(const struct kvf_side *p, int64_t p_rank,
                   const struct kvf_side *d, int64_t d_rank,
                   struct kvf_match *out, struct kvf_refusal *no);
void kvf_match_free(struct kvf_match *m);

/* Every field in which they would have to agree and do not, a line each; at
 * most `max` lines. Returns how many differ. */
unsigned kvf_side_diff(const struct kvf_side *p, const struct kvf_side *d,
                       unsigned max, void (*line)(void *arg, const char *text),
                       void *arg);

/* The P ranks that a D rank talks to, ascending; malloced. Every stage of P
 * that owns a layer of D's stage. -NO_SPACE. */
int kvf_window_ranks(int64_t n_layers, int64_t tp_p, int64_t pp_p,
                     const struct kvf_side *d, int64_t d_rank, int64_t **out,
                     size_t *n);
#endif
