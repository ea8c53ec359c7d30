/* A request's plan: its cells; and the walk over its descriptors.
 *
 * Happy path: cells in token order per group, then batches out of the iterator.
 * The cell at the end of the request is read whole (its tail is free to copy);
 * the cell at the head of a window too, unless both together would read more
 * than one cell in vain: then its first tokens are left out. Failure modes:
 * memory, absurdly many cells. */
#include "plan.h"

#include <stdlib.h>
#include <string.h>

void kvf_plan_free(struct kvf_plan *plan)
{
    free(plan->cells);
    free(plan->trimmed);
    free(plan->sheets);
    *plan = (struct kvf_plan){0};
}

/* How many cells a group has; `skip` is what the first one leaves out. */
static size_t count_cells(const struct kvf_template *t, unsigned g,
                          const struct kvf_request *r, int64_t *skip)
{
    struct kvf_span w = kvf_want(t->side[1], g, r);
    int64_t head, tail;

    *skip = 0;
    if (t->of_group[g].lo == t->of_group[g].hi) /* none of its layers here */
        return 0;
    if (t->side[1]->groups[g].kind == KVF_GSSM)
        return r->ids[1][g].n;
    if (w.lo >= w.hi)
        return 0;
    head = w.lo % t->cell;
    tail = (t->cell - w.hi % t->cell) % t->cell;
    if (head + tail > t->cell)
        *skip = head;
    return (size_t)((w.hi + tail - (w.lo - head)) / t->cell);
}

static void slot_cells(const struct kvf_ids *p, const struct kvf_ids *d,
                       struct kvf_cell *out)
{
    for (size_t i = 0; i < d->n; i++)
        out[i] = (struct kvf_cell){{p->ids[i], d->ids[i]}, {0, 0}};
}

static void token_cells(const struct kvf_template *t, unsigned g,
                        const struct kvf_request *r, size_t n,
                        struct kvf_cell *out)
{
    int64_t lo = kvf_want(t->side[1], g, r).lo / t->cell;

    for (int s = 0; s < 2; s++) {
        const struct kvf_side *x = t->side[s];
        const struct kvf_ids *ids = &r->ids[s][g];
        int64_t parts = x->bs / t->cell, in = parts * x->ppl;
        int64_t i = lo / in - ids->first, kb = lo % in / parts,
                part = lo % in % parts;

        for (size_t k = 0; k < n; k++) {
            out[k].block[s] = ids->ids[i] * x->ppl + kb;
            out[k].part[s] = part;
            if (++part < parts)
                continue;
            part = 0;
            if (++kb < x->ppl)
                continue;
            kb = 0;
            i++;
        }
    }
}

/* Room for n cells, a sheet or two per group, and trimmed pieces. */
static bool make_room(struct kvf_plan *plan, const struct kvf_template *t,
                      size_t n, bool trims)
{
    if (n > plan->cap_cells) {
        struct kvf_cell *more = realloc(plan->cells, n * sizeof *more);

        if (more == NULL)
            return false;
        plan->cells = more;
        plan->cap_cells = n;
    }
    if (plan->t != t) {
        free(plan->sheets);
        free(plan->trimmed);
        plan->trimmed = NULL;
        plan->t = NULL;
        plan->sheets =
            calloc(2 * (size_t)t->side[1]->n_groups, sizeof *plan->sheets);
        if (plan->sheets == NULL)
            return false;
        plan->t = t;
    }
    if (trims && plan->trimmed == NULL)
        plan->trimmed = calloc(t->n_raw + 1, sizeof *plan->trimmed);
    return !trims || plan->trimmed != NULL;
}

static void add_sheet(struct kvf_plan *plan, const struct kvf_piece *pieces,
                      size_t n_pieces, size_t cells)
{
    if (n_pieces > 0 && cells > 0)
        plan->sheets[plan->n_sheets++] =
            (struct kvf_sheet){pieces, n_pieces, plan->n_cells, cells};
    plan->n_cells += cells;
}

static void trim(struct kvf_plan *plan, unsigned g, int64_t skip)
{
    const struct kvf_template *t = plan->t;
    struct kvf_piece *out = plan->trimmed + plan->n_trimmed;
    size_t lo = 0, hi, n;

    while (lo < t->n_raw && t->raw[lo].group < g)
        lo++;
    for (hi = lo; hi < t->n_raw && t->raw[hi].group == g;)
        hi++;
    n = kvf_fold(t->raw + lo, hi - lo, skip, t->cell - skip, out);
    plan->n_trimmed += n;
    add_sheet(plan, out, n, 1);
}

int kvf_plan_make(struct kvf_plan *plan, const struct kvf_template *t,
                  const struct kvf_request *r, struct kvf_refusal *no)
{
    unsigned n_groups = t->side[1]->n_groups;
    size_t total = 0;
    bool trims = false;
    int64_t skip;

    for (unsigned g = 0; g < n_groups; g++) {
        size_t n = count_cells(t, g, r, &skip);

        trims = trims || skip > 0;
        if (n > KVF_CELLS_MAX || (total += n) > KVF_CELLS_MAX)
            return kvf_refuse(no, KVF_E_OVERFLOW,
                              "more than %zu cells in one request",
                              KVF_CELLS_MAX);
    }
    plan->n_cells = plan->n_sheets = plan->n_trimmed = 0;
    if (!make_room(plan, t, total, trims))
        return kvf_refuse(no, KVF_E_MEMORY, "no memory for %zu cells", total);
    for (unsigned g = 0; g < n_groups; g++) {
        const struct kvf_span *own = &t->of_group[g];
        size_t n = count_cells(t, g, r, &skip);

        if (n == 0)
            continue;
        if (t->side[1]->groups[g].kind == KVF_GSSM)
            slot_cells(&r->ids[0][g], &r->ids[1][g],
                       plan->cells + plan->n_cells);
        else
            token_cells(t, g, r, n, plan->cells + plan->n_cells);
        if (skip > 0) {
            trim(plan, g, skip);
            n--;
        }
        add_sheet(plan, t->pieces + own->lo, (size_t)(own->hi - own->lo), n);
    }
    return 0;
}

void kvf_plan_size(const struct kvf_plan *plan, int64_t *runs, int64_t *bytes)
{
    *runs = *bytes = 0;
    for (size_t s = 0; s < plan->n_sheets; s++)
        for (size_t i = 0; i < plan->sheets[s].n_pieces; i++) {
            const struct kvf_piece *x = &plan->sheets[s].pieces[i];
            int64_t n, b;

            if (__builtin_mul_overflow(x->n[0], x->n[1], &n) ||
                __builtin_mul_overflow(n, (int64_t)plan->sheets[s].n_cells,
                                       &n) ||
                __builtin_mul_overflow(n, x->run, &b) ||
                __builtin_add_overflow(*runs, n, runs) ||
                __builtin_add_overflow(*bytes, b, bytes)) {
                *runs = *bytes = INT64_MAX;
                return;
            }
        }
}

void kvf_plan_begin(struct kvf_plan_iter *it, const struct kvf_plan *plan)
{
    *it = (struct kvf_plan_iter){.plan = plan};
}

/* Descriptors of one cell from (a, b) on, into out[n..]; the new n. Stops, with
 * the place kept in *it, before one that does not fit. */
static size_t walk_cell(struct kvf_plan_iter *it, const struct kvf_piece *x,
                        const struct kvf_cell *c, struct kvf_desc *out,
                        size_t n, size_t cap)
{
    int64_t p =
        x->base[0] + c->block[0] * x->stride[0] + c->part[0] * x->step[0];
    int64_t d =
        x->base[1] + c->block[1] * x->stride[1] + c->part[1] * x->step[1];

    for (; it->b < x->n[1]; it->b++, it->a = 0)
        for (; it->a < x->n[0]; it->a++) {
            struct kvf_desc y = {
                x->p_rank,
                x->region[0],
                p + it->a * x->inc[0][0] + it->b * x->inc[0][1],
                x->region[1],
                d + it->a * x->inc[1][0] + it->b * x->inc[1][1],
                x->run};

            if (n > 0 && kvf_desc_merge(&out[n - 1], &y))
                continue;
            if (n == cap)
                return n;
            out[n++] = y;
        }
    it->b = it->a = 0;
    it->cell++;
    return n;
}

size_t kvf_plan_next(struct kvf_plan_iter *it, struct kvf_desc *out, size_t cap)
{
    const struct kvf_plan *plan = it->plan;
    size_t n = 0;

    for (; it->sheet < plan->n_sheets; it->sheet++, it->piece = 0) {
        const struct kvf_sheet *s = &plan->sheets[it->sheet];

        for (; it->piece < s->n_pieces; it->piece++, it->cell = 0) {
            while (it->cell < s->n_cells) {
                size_t at = it->cell;

                n = walk_cell(it, &s->pieces[it->piece],
                              &plan->cells[s->first_cell + at], out, n, cap);
                if (it->cell == at)
                    return n;
            }
        }
    }
    return n;
}
