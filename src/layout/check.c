/* Whether two sides fit: every refusal that does not need a request.
 *
 * Happy path: one function per reason, called in the order of the list, each
 * looking at both sides, so that the first reason that applies is the answer.
 * Later checks rely on the earlier ones. All products are overflow-checked. */
#include "layout.h"

#include "own.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct pair {
    const struct kvf_side *s[2]; /* P, D */
    struct kvf_refusal *no;
};

static const char letter[] = "PD";

#define BOTH(pair, i, side)                                                    \
    for (const struct kvf_side *side = (pair)->s[i = 0]; i < 2;                \
         side = (pair)->s[++i & 1])

static int check_tp(const struct pair *x)
{
    unsigned i;

    BOTH(x, i, s)
    {
        if (s->tp < 1 || s->tp > KVF_TP_MAX || s->pp < 1 ||
            s->pp > KVF_TP_MAX || s->tp * s->pp > KVF_RANKS_MAX)
            return kvf_refuse(x->no, KVF_E_TP,
                              "%c: tp %" PRId64 ", pp %" PRId64
                              ": each must be 1 to %d, the ranks %d at most",
                              letter[i], s->tp, s->pp, KVF_TP_MAX,
                              KVF_RANKS_MAX);
    }
    return 0;
}

static int check_words(const struct pair *x)
{
    unsigned i;

    BOTH(x, i, s)
    {
        if (s->order < 0 || s->kv < 0)
            return kvf_refuse(x->no, KVF_E_LAYOUT, "%c: an unknown %s",
                              letter[i],
                              s->order < 0 ? "page order" : "K/V arrangement");
    }
    return 0;
}

static int by_name(const void *a, const void *b)
{
    const char *const *x = a, *const *y = b;

    return strcmp(*x, *y);
}

static int unique_names(const struct pair *x, const struct kvf_side *s)
{
    const char **names = malloc(s->n_layers * sizeof *names);
    int rc = 0;

    if (names == NULL)
        return kvf_refuse(x->no, KVF_E_MEMORY, "no memory");
    for (unsigned l = 0; l < s->n_layers; l++)
        names[l] = s->layers[l].name;
    qsort(names, s->n_layers, sizeof *names, by_name);
    for (unsigned l = 1; l < s->n_layers && rc == 0; l++)
        if (strcmp(names[l - 1], names[l]) == 0)
            rc = kvf_refuse(x->no, KVF_E_LAYERS, "two layers are named %.80s",
                            names[l]);
    free(names);
    return rc;
}

static int check_layers(const struct pair *x)
{
    const struct kvf_side *p = x->s[0], *d = x->s[1];
    unsigned i;

    if (p->n_layers != d->n_layers || p->n_layers == 0)
        return kvf_refuse(x->no, KVF_E_LAYERS, "P has %u layers, D %u",
                          p->n_layers, d->n_layers);
    for (unsigned l = 0; l < p->n_layers; l++) {
        BOTH(x, i, s)
        {
            const struct kvf_layer *y = &s->layers[l];

            if (y->name == NULL || y->kind < 0)
                return kvf_refuse(
                    x->no, KVF_E_LAYERS, "%c: layer %u is %s", letter[i], l,
                    y->name == NULL ? "not given" : "of an unknown kind");
            if (y->stage < 0 || y->stage >= s->pp)
                return kvf_refuse(x->no, KVF_E_LAYERS,
                                  "%c: layer %u is on stage %" PRId64
                                  " of %" PRId64,
                                  letter[i], l, y->stage, s->pp);
        }
        if (strcmp(p->layers[l].name, d->layers[l].name) != 0)
            return kvf_refuse(x->no, KVF_E_LAYERS,
                              "layer %u is %.60s on P, %.60s on D", l,
                              p->layers[l].name, d->layers[l].name);
        if (p->layers[l].kind != d->layers[l].kind)
            return kvf_refuse(x->no, KVF_E_LAYERS,
                              "layer %.80s is of another kind on P than on D",
                              p->layers[l].name);
    }
    return unique_names(x, p);
}

static int check_groups(const struct pair *x)
{
    const struct kvf_side *p = x->s[0], *d = x->s[1];
    unsigned i;

    if (p->n_groups != d->n_groups || p->n_groups == 0)
        return kvf_refuse(x->no, KVF_E_GROUPS, "P has %u groups, D %u",
                          p->n_groups, d->n_groups);
    for (unsigned g = 0; g < p->n_groups; g++) {
        const struct kvf_group *a = &p->groups[g], *b = &d->groups[g];

        BOTH(x, i, s)
        if (!s->groups[g].given || s->groups[g].kind < 0)
            return kvf_refuse(x->no, KVF_E_GROUPS,
                              "%c: group %u is not given, or of an "
                              "unknown kind",
                              letter[i], g);
        if (a->kind != b->kind)
            return kvf_refuse(x->no, KVF_E_GROUPS,
                              "group %u is of another kind on P than on D", g);
        if (a->kind == KVF_SWA && (a->window < 1 || a->window != b->window))
            return kvf_refuse(x->no, KVF_E_GROUPS,
                              "group %u: the window is %" PRId64
                              " on P, %" PRId64 " on D",
                              g, a->window, b->window);
    }
    for (unsigned l = 0; l < p->n_layers; l++) {
        int64_t g = p->layers[l].group;

        if (g < 0 || g >= (int64_t)p->n_groups || g != d->layers[l].group)
            return kvf_refuse(
                x->no, KVF_E_GROUPS,
                "layer %.80s: group %" PRId64 " on P, %" PRId64 " on D, of %u",
                p->layers[l].name, g, d->layers[l].group, p->n_groups);
        if ((p->layers[l].kind == KVF_SSM) != (p->groups[g].kind == KVF_GSSM))
            return kvf_refuse(x->no, KVF_E_GROUPS,
                              "layer %.80s does not suit the kind of its "
                              "group %" PRId64,
                              p->layers[l].name, g);
    }
    return 0;
}

/* The same components on both sides, with sizes that can be meant? */
static int same_comps(const struct pair *x, unsigned l, enum kvf_refuse kind)
{
    const struct kvf_layer *a = &x->s[0]->layers[l], *b = &x->s[1]->layers[l];

    if (a->n_comps != b->n_comps || a->n_comps == 0)
        return kvf_refuse(x->no, kind,
                          "layer %.80s: %u components on P, %u on D", a->name,
                          a->n_comps, b->n_comps);
    for (unsigned c = 0; c < a->n_comps; c++) {
        const struct kvf_comp *m = &a->comps[c], *n = &b->comps[c];

        if (strcmp(m->name, n->name) != 0 || m->units != n->units ||
            m->bytes != n->bytes)
            return kvf_refuse(x->no, kind,
                              "layer %.60s: P has %.20s %" PRId64 " x %" PRId64
                              ", D %.20s %" PRId64 " x %" PRId64,
                              a->name, m->name, m->units, m->bytes, n->name,
                              n->units, n->bytes);
        if (m->units < 1 || m->units > KVF_UNITS_MAX || m->bytes < 1)
            return kvf_refuse(x->no, kind,
                              "layer %.80s: %.20s has %" PRId64
                              " units of %" PRId64 " bytes",
                              a->name, m->name, m->units, m->bytes);
    }
    return 0;
}

static bool alike(const struct pair *x, unsigned l)
{
    struct pair quiet = {{x->s[0], x->s[1]}, NULL};

    return same_comps(&quiet, l, KVF_E_GEOMETRY) == 0;
}

static bool legal(const struct kvf_side *s, const struct kvf_layer *l)
{
    for (unsigned c = 0; c < l->n_comps; c++)
        if (!kvf_own_legal(l->comps[c].units, s->tp))
            return false;
    return true;
}

/* Every part is there and holds its components. What cannot be computed yet
 * is refused by a later check. */
static int check_parts(const struct pair *x, unsigned i, unsigned l)
{
    const struct kvf_side *s = x->s[i];
    const struct kvf_layer *y = &s->layers[l];
    int64_t need;

    for (unsigned c = 0; c < y->n_comps; c++) {
        enum kvf_part part = kvf_comp_part(s, y, c);
        const struct kvf_part_view *v = &y->views[part];

        if (!v->given)
            return kvf_refuse(x->no, KVF_E_GEOMETRY,
                              "%c: layer %.60s: no view for its %.20s",
                              letter[i], y->name, y->comps[c].name);
        if (s->bs >= 1 && legal(s, y) && kvf_part_bytes(s, y, part, &need) &&
            v->page < need)
            return kvf_refuse(x->no, KVF_E_GEOMETRY,
                              "%c: layer %.60s: %.20s needs %" PRId64
                              " bytes, its page has %" PRId64,
                              letter[i], y->name, y->comps[c].name, need,
                              v->page);
    }
    return 0;
}

static int check_geometry(const struct pair *x)
{
    for (unsigned l = 0; l < x->s[0]->n_layers; l++) {
        const struct kvf_layer *y = &x->s[0]->layers[l];
        int rc = 0;

        if (y->kind != KVF_SSM) {
            rc = same_comps(x, l, KVF_E_GEOMETRY);
            if (rc == 0 && y->kind == KVF_ATTN &&
                (y->n_comps != 2 || y->comps[0].units != y->comps[1].units))
                rc = kvf_refuse(x->no, KVF_E_GEOMETRY,
                                "layer %.80s: attention is k and v with as "
                                "many heads",
                                y->name);
            if (rc == 0 && y->kind == KVF_MLA &&
                (y->n_comps != 1 || y->comps[0].units != 1))
                rc = kvf_refuse(x->no, KVF_E_GEOMETRY,
                                "layer %.80s: MLA is one component of one "
                                "unit",
                                y->name);
        }
        /* SSM components that differ: pages say nothing, E_SSM_SHAPE does */
        for (unsigned i = 0; i < 2 && rc == 0 && alike(x, l); i++)
            rc = check_parts(x, i, l);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* Heads, then SSM shards: can they be dealt to the ranks? */
static int check_shares(const struct pair *x, bool ssm)
{
    enum kvf_refuse kind = ssm ? KVF_E_SSM_SHAPE : KVF_E_HEADS;
    unsigned i;

    for (unsigned l = 0; l < x->s[0]->n_layers; l++) {
        const struct kvf_layer *y = &x->s[0]->layers[l];

        if ((y->kind == KVF_SSM) != ssm)
            continue;
        if (ssm) {
            int rc = same_comps(x, l, kind);

            if (rc < 0)
                return rc;
        }
        BOTH(x, i, s)
        for (unsigned c = 0; c < y->n_comps; c++)
            if (!kvf_own_legal(y->comps[c].units, s->tp))
                return kvf_refuse(x->no, kind,
                                  "%c: layer %.60s: %.20s: %" PRId64
                                  " units on %" PRId64 " ranks",
                                  letter[i], y->name, y->comps[c].name,
                                  y->comps[c].units, s->tp);
    }
    return 0;
}

static int check_blocks(const struct pair *x)
{
    int64_t a = x->s[0]->bs, b = x->s[1]->bs;
    unsigned i;

    BOTH(x, i, s)
    if (s->bs < 1 || s->ppl < 1 || s->nblocks < 0)
        return kvf_refuse(x->no, KVF_E_BLOCK_SIZE,
                          "%c: %" PRId64 " blocks of %" PRId64 " x %" PRId64
                          " tokens",
                          letter[i], s->nblocks, s->ppl, s->bs);
    if (a % b != 0 && b % a != 0)
        return kvf_refuse(x->no, KVF_E_BLOCK_SIZE,
                          "kernel blocks of %" PRId64 " and %" PRId64
                          " tokens: neither divides the other",
                          a, b);
    return 0;
}

/* Where the last kernel block or slot of a view ends; false: not in 63 bits. */
static bool extent(const struct kvf_side *s, const struct kvf_layer *y,
                   const struct kvf_part_view *v, int64_t *end)
{
    int64_t n = s->nblocks, at;

    if (y->kind != KVF_SSM && __builtin_mul_overflow(n, s->ppl, &n))
        return false;
    if (n == 0) {
        *end = v->off0;
        return true;
    }
    return !__builtin_mul_overflow(n - 1, v->stride, &at) &&
           !__builtin_add_overflow(at, v->off0, &at) &&
           !__builtin_add_overflow(at, v->page, end);
}

static int check_view(const struct pair *x, unsigned i,
                      const struct kvf_layer *y, enum kvf_part part,
                      enum kvf_refuse kind)
{
    const struct kvf_side *s = x->s[i];
    const struct kvf_part_view *v = &y->views[part];
    const struct kvf_extent *r;
    int64_t end = 0, need;

    if (kind == KVF_E_STRIDE)
        return v->stride >= v->page
                   ? 0
                   : kvf_refuse(x->no, kind,
                                "%c: layer %.60s: stride %" PRId64
                                " is less than the page of %" PRId64,
                                letter[i], y->name, v->stride, v->page);
    if (!extent(s, y, v, &end) || !kvf_part_bytes(s, y, part, &need))
        return kvf_refuse(x->no, KVF_E_OVERFLOW,
                          "%c: layer %.60s does not fit in 63 bits", letter[i],
                          y->name);
    if (kind == KVF_E_OVERFLOW)
        return 0;
    r = kvf_side_region(s, y->stage, v->region);
    if (r == NULL || v->off0 < 0 || end > r->length)
        return kvf_refuse(x->no, KVF_E_REGION,
                          "%c: layer %.60s: %" PRId64 " to %" PRId64
                          " of region %" PRId64 ", which has %" PRId64,
                          letter[i], y->name, v->off0, end, v->region,
                          r == NULL ? -1 : r->length);
    return 0;
}

static int check_views(const struct pair *x, enum kvf_refuse kind)
{
    int64_t v;
    unsigned i;

    if (kind == KVF_E_OVERFLOW)
        BOTH(x, i, s)
    if (__builtin_mul_overflow(s->nblocks, s->ppl, &v) ||
        __builtin_mul_overflow(s->bs, s->ppl, &v))
        return kvf_refuse(x->no, kind,
                          "%c: %" PRId64 " blocks of %" PRId64 " x %" PRId64
                          " tokens",
                          letter[i], s->nblocks, s->ppl, s->bs);

    BOTH(x, i, s)
    for (unsigned l = 0; l < s->n_layers; l++)
        for (unsigned c = 0; c < s->layers[l].n_comps; c++) {
            const struct kvf_layer *y = &s->layers[l];
            int rc = check_view(x, i, y, kvf_comp_part(s, y, c), kind);

            if (rc < 0)
                return rc;
        }
    return 0;
}

int kvf_pair_check(const struct kvf_side *p, const struct kvf_side *d,
                   struct kvf_refusal *no)
{
    struct pair x = {{p, d}, no};
    int rc;

    if ((rc = check_tp(&x)) < 0 || (rc = check_words(&x)) < 0 ||
        (rc = check_layers(&x)) < 0 || (rc = check_groups(&x)) < 0 ||
        (rc = check_geometry(&x)) < 0 || (rc = check_shares(&x, false)) < 0 ||
        (rc = check_shares(&x, true)) < 0 || (rc = check_blocks(&x)) < 0 ||
        (rc = check_views(&x, KVF_E_STRIDE)) < 0 ||
        (rc = check_views(&x, KVF_E_OVERFLOW)) < 0 ||
        (rc = check_views(&x, KVF_E_REGION)) < 0)
        return rc;
    return kvf_views_check(d, no);
}
