/* Templates: what every request between two layouts has in common.
 *
 * Happy path: for each layer of the D rank's stage and each component, D's
 * units are cut into stretches with one source each; a stretch is a raw piece;
 * raw pieces are folded into runs as long as both sides allow. Failure mode:
 * memory. */
#include "plan.h"

#include <stdlib.h>

static bool one_run(const struct kvf_piece *x)
{
    return x->n[0] == 1 && x->n[1] == 1;
}

/* Both in one run per cell, and the next right behind the last? */
static bool join(struct kvf_piece *x, const struct kvf_piece *y)
{
    if (!one_run(x) || !one_run(y) || x->p_rank != y->p_rank ||
        x->group != y->group)
        return false;
    for (int s = 0; s < 2; s++)
        if (x->region[s] != y->region[s] || x->stride[s] != y->stride[s] ||
            x->step[s] != y->step[s] || x->base[s] + x->run != y->base[s])
            return false;
    x->run += y->run;
    return true;
}

/* One loop of the piece: swallowed when its steps are the run on both sides. */
static void loop_add(struct kvf_piece *x, int64_t n, const int64_t step[2],
                     int *dims)
{
    if (n == 1)
        return;
    if (*dims == 0 && step[0] == x->run && step[1] == x->run) {
        x->run *= n;
        return;
    }
    x->n[*dims] = n;
    x->inc[0][*dims] = step[0];
    x->inc[1][*dims] = step[1];
    ++*dims;
}

static void fold_one(const struct kvf_raw *r, int64_t from, int64_t tokens,
                     struct kvf_piece *x)
{
    int dims = 0;
    /* the loop with the smaller step on D goes first: it may be swallowed */
    bool tokens_in = r->token_step[1] <= r->unit_step[1];

    *x = (struct kvf_piece){
        .p_rank = r->p_rank, .group = r->group, .run = r->bytes, .n = {1, 1}};
    for (int i = 0; i < 2; i++) {
        x->region[i] = r->region[i];
        x->stride[i] = r->stride[i];
        x->base[i] = r->base[i] + from * r->token_step[i];
        x->step[i] = r->step[i];
    }
    if (tokens_in)
        loop_add(x, tokens, r->token_step, &dims);
    loop_add(x, r->units, r->unit_step, &dims);
    if (!tokens_in)
        loop_add(x, tokens, r->token_step, &dims);
}

size_t kvf_fold(const struct kvf_raw *raw, size_t n, int64_t from,
                int64_t tokens, struct kvf_piece *out)
{
    size_t made = 0;

    for (size_t i = 0; i < n; i++) {
        struct kvf_piece x;

        /* an SSM slot has no token axis */
        if (raw[i].token_step[1] == 0)
            fold_one(&raw[i], 0, 1, &x);
        else
            fold_one(&raw[i], from, tokens, &x);
        if (made == 0 || !join(&out[made - 1], &x))
            out[made++] = x;
    }
    return made;
}

static int by_place(const void *a, const void *b)
{
    const struct kvf_raw *x = a, *y = b;

#define BY(f)                                                                  \
    if (x->f != y->f)                                                          \
    return x->f < y->f ? -1 : 1
    BY(group);
    BY(p_rank);
    BY(region[1]);
    BY(base[1]);
    BY(region[0]);
    BY(base[0]);
#undef BY
    return 0;
}

/* K and V that lie side by side for every token (packed on both sides). */
static bool pair_up(struct kvf_raw *x, const struct kvf_raw *y)
{
    if (x->group != y->group || x->p_rank != y->p_rank || x->units != y->units)
        return false;
    for (int s = 0; s < 2; s++)
        if (x->region[s] != y->region[s] || x->stride[s] != y->stride[s] ||
            x->base[s] + x->bytes != y->base[s] ||
            x->unit_step[s] != y->unit_step[s] ||
            x->token_step[s] != y->token_step[s] ||
            (x->units > 1 && x->unit_step[s] < x->bytes + y->bytes) ||
            (x->token_step[s] != 0 && x->token_step[s] < x->bytes + y->bytes) ||
            (x->token_step[s] == 0 && x->units > 1))
            return false;
    x->bytes += y->bytes;
    return true;
}

/* The stretches of component c of a layer. */
static void cut_comp(struct kvf_template *t, unsigned l, unsigned c)
{
    const struct kvf_side *p = t->side[0], *d = t->side[1];
    const struct kvf_layer *y[2] = {&p->layers[l], &d->layers[l]};
    int64_t r = t->d_rank % d->tp, units = y[1]->comps[c].units, from;
    struct kvf_span win = kvf_window(p->tp, d->tp, r);
    struct kvf_span own = kvf_own(units, d->tp, r), get = {own.lo, own.lo};
    struct kvf_affine at[2];

    kvf_comp_place(p, y[0], c, &at[0]);
    kvf_comp_place(d, y[1], c, &at[1]);
    while (get.hi < own.hi) {
        struct kvf_raw *x = &t->raw[t->n_raw++];
        int64_t skip[2];

        get = kvf_own_source(units, p->tp, win, own, get.hi, &from);
        skip[0] = get.lo - kvf_own(units, p->tp, from).lo;
        skip[1] = get.lo - own.lo;
        *x = (struct kvf_raw){.p_rank = y[0]->stage * p->tp + from,
                              .group = (unsigned)y[1]->group,
                              .bytes = y[1]->comps[c].bytes,
                              .units = get.hi - get.lo};
        for (int s = 0; s < 2; s++) {
            const struct kvf_part_view *v =
                &y[s]->views[kvf_comp_part(t->side[s], y[s], c)];

            x->region[s] = v->region;
            x->stride[s] = v->stride;
            x->base[s] = v->off0 + at[s].base + skip[s] * at[s].unit_step;
            x->unit_step[s] = at[s].unit_step;
            x->token_step[s] = at[s].token_step;
            if (t->side[s]->bs > t->cell)
                x->step[s] = t->cell * at[s].token_step;
        }
    }
}

/* Does P's stage sp own a layer of D's stage sd? */
static bool stages_meet(const struct kvf_side *p, const struct kvf_side *d,
                        int64_t sp, int64_t sd)
{
    for (unsigned l = 0; l < p->n_layers; l++)
        if (p->layers[l].stage == sp && d->layers[l].stage == sd)
            return true;
    return false;
}

static void tell_whom(struct kvf_template *t)
{
    const struct kvf_side *p = t->side[0], *d = t->side[1];
    struct kvf_span win = kvf_window(p->tp, d->tp, t->d_rank % d->tp);

    for (int64_t s = 0; s < p->pp; s++)
        if (stages_meet(p, d, s, t->d_rank / d->tp))
            for (int64_t r = win.lo; r < win.hi; r++)
                t->done[t->n_done++] = s * p->tp + r;
}

int64_t kvf_consumers(const struct kvf_side *p, const struct kvf_side *d,
                      int64_t p_rank)
{
    /* meeting is mutual: the window of P's share among D's */
    struct kvf_span win = kvf_window(d->tp, p->tp, p_rank % p->tp);
    int64_t n = 0;

    for (int64_t s = 0; s < d->pp; s++)
        if (stages_meet(p, d, p_rank / p->tp, s))
            n += win.hi - win.lo;
    return n;
}

static void index_groups(struct kvf_template *t)
{
    size_t at = 0;

    for (unsigned g = 0; g < t->side[1]->n_groups; g++) {
        t->of_group[g].lo = (int64_t)at;
        while (at < t->n_pieces && t->pieces[at].group == g)
            at++;
        t->of_group[g].hi = (int64_t)at;
    }
}

void kvf_template_keep(struct kvf_template *t, int64_t p_rank)
{
    size_t n = 0;

    for (size_t i = 0; i < t->n_raw; i++)
        if (t->raw[i].p_rank == p_rank)
            t->raw[n++] = t->raw[i];
    t->n_raw = n;
    n = 0;
    for (size_t i = 0; i < t->n_pieces; i++)
        if (t->pieces[i].p_rank == p_rank)
            t->pieces[n++] = t->pieces[i];
    t->n_pieces = n;
    index_groups(t);
}

static int fill_in(struct kvf_template *t)
{
    const struct kvf_side *d = t->side[1];
    size_t n = 0;

    for (unsigned l = 0; l < d->n_layers; l++)
        if (d->layers[l].stage == t->d_rank / d->tp)
            for (unsigned c = 0; c < d->layers[l].n_comps; c++)
                cut_comp(t, l, c);
    qsort(t->raw, t->n_raw, sizeof *t->raw, by_place);
    for (size_t i = 0; i < t->n_raw; i++)
        if (n == 0 || !pair_up(&t->raw[n - 1], &t->raw[i]))
            t->raw[n++] = t->raw[i];
    t->n_raw = n;
    t->pieces = calloc(n + 1, sizeof *t->pieces);
    if (t->pieces == NULL)
        return -1;
    t->n_pieces = kvf_fold(t->raw, n, 0, t->cell, t->pieces);
    index_groups(t);
    tell_whom(t);
    return 0;
}

int kvf_template_make(const struct kvf_side *p, const struct kvf_side *d,
                      int64_t d_rank, struct kvf_template **out,
                      struct kvf_refusal *no)
{
    struct kvf_template *t = calloc(1, sizeof *t);
    struct kvf_span win = kvf_window(p->tp, d->tp, d_rank % d->tp);
    size_t width = (size_t)(win.hi - win.lo), comps = 0;

    if (t == NULL)
        return kvf_refuse(no, KVF_E_MEMORY, "no memory for a template");
    for (unsigned l = 0; l < d->n_layers; l++)
        if (d->layers[l].stage == d_rank / d->tp)
            comps += d->layers[l].n_comps;
    t->d_rank = d_rank;
    t->side[0] = p;
    t->side[1] = d;
    t->cell = p->bs < d->bs ? p->bs : d->bs;
    t->raw = calloc(comps * width + 1, sizeof *t->raw);
    t->of_group = calloc(d->n_groups, sizeof *t->of_group);
    t->done = calloc((size_t)p->pp * width, sizeof *t->done);
    if (t->raw == NULL || t->of_group == NULL || t->done == NULL ||
        fill_in(t) < 0) {
        kvf_template_free(t);
        return kvf_refuse(no, KVF_E_MEMORY, "no memory for a template");
    }
    *out = t;
    return 0;
}

void kvf_template_free(struct kvf_template *t)
{
    if (t == NULL)
        return;
    free(t->raw);
    free(t->pieces);
    free(t->of_group);
    free(t->done);
    free(t);
}
