/* Two ranks: the layers that they have in common, and the plan between them.
 *
 * Happy path: both sides are cut down to the common layers, checked as a pair,
 * and the template keeps the pieces of the one P rank. Failure modes: the
 * refusals of check.c; other layers or groups than the other side; memory. */
#include "pair.h"

#include "kvferry/status.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct kvf_span kvf_stage_layers(int64_t n_layers, int64_t pp, int64_t stage)
{
    int64_t each = n_layers / pp, more = n_layers % pp;
    int64_t lo = stage * each + (stage < more ? stage : more);

    return (struct kvf_span){lo, lo + each + (stage < more)};
}

static bool copy_layer(const struct kvf_layer *from, struct kvf_layer *to)
{
    *to = *from;
    to->stage = 0;
    to->n_comps = 0;
    to->name = from->name != NULL ? strdup(from->name) : NULL;
    to->comps = calloc(from->n_comps + 1u, sizeof *to->comps);
    if ((from->name != NULL && to->name == NULL) || to->comps == NULL)
        return false;
    for (unsigned c = 0; c < from->n_comps; c++) {
        to->comps[c] = from->comps[c];
        to->comps[c].name = strdup(from->comps[c].name);
        if (to->comps[c].name == NULL)
            return false;
        to->n_comps = c + 1;
    }
    return true;
}

/* Layers [lo, hi) of a side as a side of one stage. *out can be freed after a
 * failure too. */
static int cut(const struct kvf_side *s, struct kvf_span keep,
               struct kvf_side *out, struct kvf_refusal *no)
{
    unsigned n = keep.lo < keep.hi ? (unsigned)(keep.hi - keep.lo) : 0;

    if (kvf_side_init(out, s->n_groups, n) < 0)
        return kvf_refuse(no, KVF_E_MEMORY, "no memory for a layout");
    out->tp = s->tp;
    out->pp = 1;
    out->bs = s->bs;
    out->ppl = s->ppl;
    out->nblocks = s->nblocks;
    out->order = s->order;
    out->kv = s->kv;
    out->shared = s->shared;
    for (unsigned g = 0; g < s->n_groups; g++)
        out->groups[g] = s->groups[g];
    for (unsigned l = 0; l < n; l++)
        if (!copy_layer(&s->layers[keep.lo + l], &out->layers[l]))
            return kvf_refuse(no, KVF_E_MEMORY, "no memory for a layout");
    for (size_t r = 0; r < s->n_regions; r++)
        if (kvf_side_add_region(out, 0, s->regions[r].index,
                                s->regions[r].length) < 0)
            return kvf_refuse(no, KVF_E_MEMORY, "no memory for a layout");
    return 0;
}

static struct kvf_span layers_of(const struct kvf_side *s, int64_t rank)
{
    return kvf_stage_layers(s->n_layers, s->pp, rank / s->tp);
}

static bool ranks_legal(const struct kvf_side *s)
{
    return s->tp >= 1 && s->tp <= KVF_TP_MAX && s->pp >= 1 &&
           s->pp <= KVF_TP_MAX;
}

int kvf_side_check(const struct kvf_side *s, int64_t stage,
                   struct kvf_refusal *no)
{
    struct kvf_side own = {0};
    int rc;

    if (!ranks_legal(s)) /* the same words, and the same order of reasons */
        return kvf_pair_check(s, s, no);
    rc = cut(s, kvf_stage_layers(s->n_layers, s->pp, stage), &own, no);
    if (rc == 0)
        rc = kvf_pair_check(&own, &own, no);
    kvf_side_free(&own);
    return rc;
}

/* ---- differences -------------------------------------------------------- */

struct diff {
    void (*line)(void *arg, const char *text);
    void *arg;
    unsigned n, max;
};

static void differ(struct diff *d, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

static void differ(struct diff *d, const char *fmt, ...)
{
    char text[200];
    va_list ap;

    if (d->n++ >= d->max)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    d->line(d->arg, text);
}

static const char *name_of(const struct kvf_layer *l)
{
    return l->name != NULL ? l->name : "(not given)";
}

static void diff_comps(struct diff *d, unsigned l, const struct kvf_layer *a,
                       const struct kvf_layer *b)
{
    if (a->n_comps != b->n_comps) {
        differ(d, "layers[%u].comps: %u on P, %u on D", l, a->n_comps,
               b->n_comps);
        return;
    }
    for (unsigned c = 0; c < a->n_comps; c++) {
        const struct kvf_comp *m = &a->comps[c], *n = &b->comps[c];

        if (strcmp(m->name, n->name) != 0)
            differ(d, "layers[%u].comps[%u].name: %.40s on P, %.40s on D", l, c,
                   m->name, n->name);
        if (m->units != n->units)
            differ(d,
                   "layers[%u].comps[%u].units: %" PRId64 " on P, %" PRId64
                   " on D",
                   l, c, m->units, n->units);
        if (m->bytes != n->bytes)
            differ(d,
                   "layers[%u].comps[%u].bytes: %" PRId64 " on P, %" PRId64
                   " on D",
                   l, c, m->bytes, n->bytes);
    }
}

static void diff_layers(struct diff *x, const struct kvf_side *p,
                        const struct kvf_side *d)
{
    static const char *const kinds[] = {"?", "attn", "mla", "ssm"};

    if (p->n_layers != d->n_layers)
        differ(x, "layers: %u on P, %u on D", p->n_layers, d->n_layers);
    for (unsigned l = 0; l < p->n_layers && l < d->n_layers; l++) {
        const struct kvf_layer *a = &p->layers[l], *b = &d->layers[l];

        if (strcmp(name_of(a), name_of(b)) != 0)
            differ(x, "layers[%u].name: %.70s on P, %.70s on D", l, name_of(a),
                   name_of(b));
        if (a->kind != b->kind)
            differ(x, "layers[%u].kind: %s on P, %s on D", l,
                   kinds[a->kind + 1], kinds[b->kind + 1]);
        if (a->group != b->group)
            differ(x, "layers[%u].group: %" PRId64 " on P, %" PRId64 " on D", l,
                   a->group, b->group);
        diff_comps(x, l, a, b);
    }
}

static void diff_groups(struct diff *x, const struct kvf_side *p,
                        const struct kvf_side *d)
{
    static const char *const kinds[] = {"?", "full", "swa", "ssm"};

    if (p->n_groups != d->n_groups)
        differ(x, "groups: %u on P, %u on D", p->n_groups, d->n_groups);
    for (unsigned g = 0; g < p->n_groups && g < d->n_groups; g++) {
        const struct kvf_group *a = &p->groups[g], *b = &d->groups[g];

        if (a->kind != b->kind)
            differ(x, "groups[%u].kind: %s on P, %s on D", g,
                   kinds[a->kind + 1], kinds[b->kind + 1]);
        else if (a->kind == KVF_SWA && a->window != b->window)
            differ(x, "groups[%u].window: %" PRId64 " on P, %" PRId64 " on D",
                   g, a->window, b->window);
    }
}

unsigned kvf_side_diff(const struct kvf_side *p, const struct kvf_side *d,
                       unsigned max, void (*line)(void *arg, const char *text),
                       void *arg)
{
    struct diff x = {.line = line, .arg = arg, .max = max};

    if (p->bs >= 1 && d->bs >= 1 && p->bs % d->bs != 0 && d->bs % p->bs != 0)
        differ(&x, "bs: %" PRId64 " on P, %" PRId64 " on D: neither divides",
               p->bs, d->bs);
    diff_layers(&x, p, d);
    diff_groups(&x, p, d);
    return x.n;
}

/* ---- a pair ------------------------------------------------------------- */

/* All layers and groups by name and order, also those that the two ranks do not
 * have in common. */
static int same_shape(const struct kvf_side *p, const struct kvf_side *d,
                      struct kvf_refusal *no)
{
    if (p->n_layers != d->n_layers)
        return kvf_refuse(no, KVF_E_LAYERS, "P has %u layers, D %u",
                          p->n_layers, d->n_layers);
    for (unsigned l = 0; l < p->n_layers; l++) {
        const struct kvf_layer *a = &p->layers[l], *b = &d->layers[l];

        if (strcmp(name_of(a), name_of(b)) != 0)
            return kvf_refuse(no, KVF_E_LAYERS,
                              "layer %u is %.60s on P, %.60s on D", l,
                              name_of(a), name_of(b));
        if (a->kind != b->kind)
            return kvf_refuse(no, KVF_E_LAYERS,
                              "layer %.80s is of another kind on P than on D",
                              name_of(a));
    }
    if (p->n_groups != d->n_groups)
        return kvf_refuse(no, KVF_E_GROUPS, "P has %u groups, D %u",
                          p->n_groups, d->n_groups);
    return 0;
}

static int fill_in(struct kvf_match *m, int64_t p_rank, int64_t d_rank,
                   struct kvf_refusal *no)
{
    const struct kvf_side *d = &m->side[1];
    int rc;

    m->group = calloc(d->n_groups + 1u, sizeof *m->group);
    if (m->group == NULL)
        return kvf_refuse(no, KVF_E_MEMORY, "no memory for a template");
    for (unsigned l = 0; l < d->n_layers; l++)
        m->group[d->layers[l].group] = true;
    rc = kvf_template_make(&m->side[0], d, d_rank % d->tp, &m->t, no);
    if (rc == 0)
        kvf_template_keep(m->t, p_rank % m->side[0].tp);
    return rc;
}

int kvf_match_make(const struct kvf_side *p, int64_t p_rank,
                   const struct kvf_side *d, int64_t d_rank,
                   struct kvf_match *out, struct kvf_refusal *no)
{
    struct kvf_span a, b, both;
    int rc;

    *out = (struct kvf_match){.t = NULL};
    if (!ranks_legal(p) || !ranks_legal(d))
        return kvf_pair_check(p, d, no);
    rc = same_shape(p, d, no);
    if (rc < 0)
        return rc;
    a = layers_of(p, p_rank);
    b = layers_of(d, d_rank);
    both.lo = a.lo > b.lo ? a.lo : b.lo;
    both.hi = a.hi < b.hi ? a.hi : b.hi;
    if (both.lo >= both.hi)
        return 0;
    rc = cut(p, both, &out->side[0], no);
    if (rc == 0)
        rc = cut(d, both, &out->side[1], no);
    if (rc == 0)
        rc = kvf_pair_check(&out->side[0], &out->side[1], no);
    return rc < 0 ? rc : fill_in(out, p_rank, d_rank, no);
}

void kvf_match_free(struct kvf_match *m)
{
    kvf_template_free(m->t);
    kvf_side_free(&m->side[0]);
    kvf_side_free(&m->side[1]);
    free(m->group);
    *m = (struct kvf_match){.t = NULL};
}

int kvf_window_ranks(int64_t n_layers, int64_t tp_p, int64_t pp_p,
                     const struct kvf_side *d, int64_t d_rank, int64_t **out,
                     size_t *n)
{
    struct kvf_span win = kvf_window(tp_p, d->tp, d_rank % d->tp);
    struct kvf_span own = layers_of(d, d_rank);
    int64_t *v = calloc((size_t)(pp_p * (win.hi - win.lo)) + 1, sizeof *v);
    size_t k = 0;

    if (v == NULL)
        return -KVF_NO_SPACE;
    for (int64_t s = 0; s < pp_p; s++) {
        struct kvf_span l = kvf_stage_layers(n_layers, pp_p, s);

        if (l.lo < own.hi && own.lo < l.hi && l.lo < l.hi)
            for (int64_t r = win.lo; r < win.hi; r++)
                v[k++] = s * tp_p + r;
    }
    *out = v;
    *n = k;
    return 0;
}
