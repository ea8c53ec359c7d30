/* Transfer plans: which bytes of which P ranks one D rank reads, and where to.
 *
 *   template  per pair of layouts and D rank, kept: pieces, each a strided copy
 *             of one run per cell (or a few), and whom to tell;
 *   plan      per request: the cells, proportional to the blocks;
 *   iterator  gives the descriptors, in batches, adjacent runs merged.
 *
 * A cell is what meets in one kernel block on both sides: min(B_P, B_D) tokens,
 * or a slot of an SSM group. Nothing here blocks, logs or does I/O. */
#ifndef KVF_LAYOUT_PLAN_H
#define KVF_LAYOUT_PLAN_H

#include "layout.h"
#include "own.h"

/* Of one cell: for b < n[1], a < n[0]: `run` bytes at
 * base + block * stride + part * step + a * inc[0] + b * inc[1] on each side
 * ([0] is P, [1] is D). A transport may take it as it is. */
struct kvf_piece {
    int64_t p_rank;
    unsigned group;
    int64_t region[2], base[2], stride[2], step[2];
    int64_t run, n[2], inc[2][2]; /* inc[side][dimension] */
};

struct kvf_cell {
    int64_t block[2]; /* kernel block or slot */
    int64_t part[2];  /* which cell of that block */
};

/* Before folding: `units` times `tokens` times `bytes`. */
struct kvf_raw {
    int64_t p_rank;
    unsigned group;
    int64_t region[2], base[2], stride[2];
    int64_t step[2]; /* from cell to cell of a block; 0 when it has but one */
    int64_t bytes, units, unit_step[2], token_step[2];
};

struct kvf_template {
    int64_t d_rank;
    struct kvf_raw *raw; /* by group, then P rank */
    size_t n_raw;
    struct kvf_piece *pieces; /* by group, then P rank */
    size_t n_pieces;
    struct kvf_span *of_group; /* pieces of group g: [lo, hi) */
    int64_t *done;             /* P ranks to tell, ascending */
    size_t n_done;
    const struct kvf_side *side[2]; /* borrowed: must outlive it */
    int64_t cell;                   /* tokens */
};

/* For a pair that kvf_pair_check() passed; 0 <= d_rank < tp_D * pp_D. The sides
 * are borrowed. -NO_SPACE when memory ran out. */
int kvf_template_make(const struct kvf_side *p, const struct kvf_side *d,
                      int64_t d_rank, struct kvf_template **out,
                      struct kvf_refusal *no);
void kvf_template_free(struct kvf_template *t);
/* Leaves only what is read from that P rank. */
void kvf_template_keep(struct kvf_template *t, int64_t p_rank);
/* How many D ranks tell this P rank. */
int64_t kvf_consumers(const struct kvf_side *p, const struct kvf_side *d,
                      int64_t p_rank);
/* Folds raw pieces of `tokens` tokens from token `from` of a cell; neighbours
 * merge. Writes at most n pieces; returns how many. */
size_t kvf_fold(const struct kvf_raw *raw, size_t n, int64_t from,
                int64_t tokens, struct kvf_piece *out);

/* The ids of one group on one side; `first` is the logical position of ids[0]
 * in the request (blocks). */
struct kvf_ids {
    int64_t first;
    size_t n;
    const int64_t *ids;
};

struct kvf_request {
    int64_t n_tokens;
    const struct kvf_ids *ids[2]; /* P, D: by group */
};

/* Tokens wanted by a group: [lo, hi), empty when lo >= hi. */
struct kvf_span kvf_want(const struct kvf_side *d, unsigned group,
                         const struct kvf_request *r);
/* What can be said of one side's ids alone: E_OVERFLOW, E_BLOCK_RANGE,
 * E_BLOCK_DUP. which: 0 P, 1 D. ids: by group. */
int kvf_ids_legal(const struct kvf_side *s, int which,
                  const struct kvf_ids *ids, struct kvf_refusal *no);
/* 0, or E_BLOCK_RANGE and what follows it, or E_OVERFLOW. Linear in ids. */
int kvf_request_check(const struct kvf_side *p, const struct kvf_side *d,
                      const struct kvf_request *r, struct kvf_refusal *no);

/* Cells that all use the same pieces. */
struct kvf_sheet {
    const struct kvf_piece *pieces;
    size_t n_pieces;
    size_t first_cell, n_cells; /* of the plan */
};

#define KVF_CELLS_MAX ((size_t)1 << 24)

/* Zero it before first use; may be made again for other requests (keeps its
 * memory); ends with kvf_plan_free. */
struct kvf_plan {
    const struct kvf_template *t; /* borrowed */
    struct kvf_cell *cells;
    size_t n_cells, cap_cells;
    struct kvf_piece *trimmed; /* of cells of which only the end is read */
    size_t n_trimmed;
    struct kvf_sheet *sheets;
    size_t n_sheets;
};

/* For a request that kvf_request_check() passed. Time: its cells. -MISMATCH
 * E_OVERFLOW beyond KVF_CELLS_MAX cells, -NO_SPACE. */
int kvf_plan_make(struct kvf_plan *plan, const struct kvf_template *t,
                  const struct kvf_request *r, struct kvf_refusal *no);
void kvf_plan_free(struct kvf_plan *plan);
/* Descriptors before neighbouring cells merge, and bytes; saturating. */
void kvf_plan_size(const struct kvf_plan *plan, int64_t *runs, int64_t *bytes);

struct kvf_desc {
    int64_t p_rank, p_region, p_off, d_region, d_off, len;
};

struct kvf_plan_iter {
    const struct kvf_plan *plan;
    size_t sheet, piece, cell;
    int64_t a, b;
};

void kvf_plan_begin(struct kvf_plan_iter *it, const struct kvf_plan *plan);
/* The next descriptors, `cap` at most (cap >= 1); 0 at the end. A run that goes
 * on in the next cell is never cut by the end of a batch. */
size_t kvf_plan_next(struct kvf_plan_iter *it, struct kvf_desc *out,
                     size_t cap);

/* Sorts by (P rank, D region, D offset) and merges runs that are adjacent on
 * both sides; returns how many are left. */
size_t kvf_desc_coalesce(struct kvf_desc *v, size_t n);
/* Appends the run to the last descriptor, on either end, if it touches it. */
static inline bool kvf_desc_merge(struct kvf_desc *last,
                                  const struct kvf_desc *next)
{
    if (last->p_rank != next->p_rank || last->p_region != next->p_region ||
        last->d_region != next->d_region ||
        last->d_off - last->p_off != next->d_off - next->p_off)
        return false;
    if (last->d_off + last->len == next->d_off) {
        last->len += next->len;
        return true;
    }
    if (next->d_off + next->len != last->d_off)
        return false;
    last->p_off = next->p_off;
    last->d_off = next->d_off;
    last->len += next->len;
    return true;
}
#endif
