/* Which bytes of a region belong to which block.
 *
 * A view repeats every `stride` bytes, so views of one stride in one region are
 * columns of a table: sorted by where they begin in a row, the block of a byte
 * is found by one division and a binary search. Columns may overlap (groups
 * that share a pool): then all that contain the byte are asked. */
#include "peer/blocks.h"

#include <stdlib.h>

struct column {
    uint64_t stride, at; /* of the row: [at, at + page) */
    uint64_t row;        /* its block 0 lies in this row of the table */
    uint64_t page;
    uint64_t reach; /* where this and all columns before it end */
    uint64_t base;  /* offset of row 0 of the table */
    unsigned region, group;
    uint64_t per_id; /* kernel blocks of a logical block */
};

struct table { /* columns [lo, hi) */
    size_t lo, hi;
};

struct kvf_columns {
    struct column *cols;
    size_t n_cols;
    struct table *tables; /* by region, then stride */
    size_t n_tables;
    size_t *of_region; /* tables of region r: [of_region[r], of_region[r+1]) */
};

static int by_table(const void *a, const void *b)
{
    const struct column *x = a, *y = b;

#define BY(f)                                                                  \
    if (x->f != y->f)                                                          \
    return x->f < y->f ? -1 : 1
    BY(region);
    BY(stride);
    BY(at);
    BY(row);
    BY(group);
#undef BY
    return 0;
}

/* Until now `at` is the offset in the region. */
static void make_table(struct column *c, size_t n)
{
    uint64_t base = c[0].at;

    for (size_t i = 0; i < n; i++) {
        c[i].base = base;
        c[i].row = (c[i].at - base) / c[i].stride;
        c[i].at = (c[i].at - base) % c[i].stride;
    }
    qsort(c, n, sizeof *c, by_table);
    for (size_t i = 0; i < n; i++) {
        c[i].reach = c[i].at + c[i].page;
        if (i > 0 && c[i - 1].reach > c[i].reach)
            c[i].reach = c[i - 1].reach;
    }
}

static void collect(const struct kvf_side *s, struct kvf_columns *out)
{
    for (unsigned l = 0; l < s->n_layers; l++)
        for (unsigned p = 0; p < KVF_PARTS; p++) {
            const struct kvf_layer *y = &s->layers[l];
            const struct kvf_part_view *v = &y->views[p];

            /* A view without pages holds nothing, and has no rows. */
            if (v->given && v->stride > 0)
                out->cols[out->n_cols++] = (struct column){
                    .region = (unsigned)v->region,
                    .stride = (uint64_t)v->stride,
                    .at = (uint64_t)v->off0,
                    .page = (uint64_t)v->page,
                    .group = (unsigned)y->group,
                    .per_id = y->kind == KVF_SSM ? 1 : (uint64_t)s->ppl};
        }
}

int kvf_columns_make(const struct kvf_layout *l, struct kvf_columns **out)
{
    const struct kvf_side *s = &l->decl.side;
    struct kvf_columns *c = calloc(1, sizeof *c);
    size_t n = (size_t)s->n_layers * KVF_PARTS + 1;

    if (c == NULL)
        return -1;
    c->cols = calloc(n, sizeof *c->cols);
    c->tables = calloc(n, sizeof *c->tables);
    c->of_region = calloc(l->decl.n_regions + 1u, sizeof *c->of_region);
    if (c->cols == NULL || c->tables == NULL || c->of_region == NULL) {
        kvf_columns_free(c);
        return -1;
    }
    collect(s, c);
    qsort(c->cols, c->n_cols, sizeof *c->cols, by_table);
    for (size_t i = 0, j; i < c->n_cols; i = j) {
        for (j = i + 1; j < c->n_cols &&
                        c->cols[j].region == c->cols[i].region &&
                        c->cols[j].stride == c->cols[i].stride;)
            j++;
        make_table(&c->cols[i], j - i);
        c->tables[c->n_tables++] = (struct table){i, j};
        c->of_region[c->cols[i].region + 1u] = c->n_tables;
    }
    for (unsigned r = 1; r <= l->decl.n_regions; r++)
        if (c->of_region[r] < c->of_region[r - 1])
            c->of_region[r] = c->of_region[r - 1];
    *out = c;
    return 0;
}

void kvf_columns_free(struct kvf_columns *c)
{
    if (c == NULL)
        return;
    free(c->cols);
    free(c->tables);
    free(c->of_region);
    free(c);
}

static bool has_id(const struct kvf_ids *ids, uint64_t id)
{
    size_t lo = 0, hi = ids->n;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;

        if ((uint64_t)ids->ids[mid] < id)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < ids->n && (uint64_t)ids->ids[lo] == id;
}

/* Columns of a table that contain byte `in` of row `row`: the furthest end of
 * one whose block is published, in bytes from the row's begin; 0 = none. */
static uint64_t row_reach(const struct column *c, size_t n, uint64_t row,
                          uint64_t in, const struct kvf_ids *sorted)
{
    uint64_t best = 0;
    size_t lo = 0, hi = n;

    while (lo < hi) { /* columns that begin at or before `in` */
        size_t mid = lo + (hi - lo) / 2;

        if (c[mid].at <= in)
            lo = mid + 1;
        else
            hi = mid;
    }
    while (lo-- > 0 && c[lo].reach > in) {
        uint64_t end = c[lo].at + c[lo].page;

        if (end > in && end > best && row >= c[lo].row &&
            has_id(&sorted[c[lo].group], (row - c[lo].row) / c[lo].per_id))
            best = end;
    }
    return best;
}

uint64_t kvf_columns_reach(const struct kvf_columns *c, unsigned region,
                           uint64_t off, const struct kvf_ids *sorted)
{
    uint64_t best = off;

    for (size_t t = c->of_region[region]; t < c->of_region[region + 1u]; t++) {
        const struct column *cols = &c->cols[c->tables[t].lo];
        size_t n = c->tables[t].hi - c->tables[t].lo;
        uint64_t row, in, end;

        if (off < cols->base)
            continue;
        row = (off - cols->base) / cols->stride;
        in = (off - cols->base) % cols->stride;
        end = row_reach(cols, n, row, in, sorted);
        if (end != 0 && off - in + end > best)
            best = off - in + end;
        if (row == 0)
            continue;
        /* A page that began in the row before may reach into this one. */
        end = row_reach(cols, n, row - 1, in + cols->stride, sorted);
        if (end != 0 && off - in - cols->stride + end > best)
            best = off - in - cols->stride + end;
    }
    return best;
}
