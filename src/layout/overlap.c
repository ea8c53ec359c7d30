/* Whether two views of the receiver claim the same bytes.
 *
 * Views of one group, or of groups with block ids of their own, must be apart,
 * or two reads would write one byte. Groups of one pool may share views: their
 * ids differ. Happy path: views sorted by region, pairs compared within one.
 * Two strides: compared modulo their common divisor, and only when that does
 * not keep them apart, block by block. Failure modes: an overlap; memory; a
 * layout so odd that WALK_MAX steps do not settle it is refused. */
#include "layout.h"

#include "own.h"

#include <inttypes.h>
#include <stdlib.h>

struct strip {
    const struct kvf_layer *layer;
    int64_t region, off0, stride, bytes, n;
};

static int by_region(const void *a, const void *b)
{
    const struct strip *x = a, *y = b;

    if (x->layer->stage != y->layer->stage)
        return x->layer->stage < y->layer->stage ? -1 : 1;
    if (x->region != y->region)
        return x->region < y->region ? -1 : 1;
    return (x->off0 > y->off0) - (x->off0 < y->off0);
}

#define WALK_MAX ((int64_t)1 << 24)

/* Block by block, the one that lies behind is moved on. */
static bool walk_meet(const struct strip *x, const struct strip *y,
                      int64_t *steps)
{
    int64_t i = 0, k = 0;

    while (i < x->n && k < y->n) {
        int64_t a = x->off0 + i * x->stride, b = y->off0 + k * y->stride;

        if (++*steps > WALK_MAX)
            return true;
        if (a + x->bytes <= b)
            i++;
        else if (b + y->bytes <= a)
            k++;
        else
            return true;
    }
    return false;
}

/* x->off0 <= y->off0 */
static bool meet(const struct strip *x, const struct strip *y, int64_t *steps)
{
    int64_t gap = y->off0 - x->off0, g = x->stride, h = y->stride, k;

    if (x->n == 0 || y->n == 0 || gap >= (x->n - 1) * x->stride + x->bytes)
        return false;
    if (g == h) { /* y lies behind block k of x; block k + 1 may reach back */
        k = gap / g;
        return (k < x->n && gap % g < x->bytes) ||
               (k + 1 < x->n && g - gap % g < y->bytes);
    }
    while (h != 0) {
        k = g % h;
        g = h;
        h = k;
    }
    return (gap % g < x->bytes || g - gap % g < y->bytes) &&
           walk_meet(x, y, steps);
}

/* Their blocks are never the same ones. */
static bool may_share(const struct kvf_side *d, const struct strip *x,
                      const struct strip *y)
{
    return d->shared && x->layer->group != y->layer->group;
}

static size_t gather(const struct kvf_side *d, struct strip *v)
{
    size_t n = 0;

    for (unsigned l = 0; l < d->n_layers; l++) {
        const struct kvf_layer *y = &d->layers[l];

        for (unsigned c = 0; c < y->n_comps; c++) {
            enum kvf_part part = kvf_comp_part(d, y, c);
            const struct kvf_part_view *w = &y->views[part];

            if (c > 0 && kvf_comp_part(d, y, c - 1) == part)
                continue;
            v[n] =
                (struct strip){y, w->region, w->off0, w->stride, 0, d->nblocks};
            if (y->kind != KVF_SSM)
                v[n].n *= d->ppl;
            kvf_part_bytes(d, y, part, &v[n].bytes);
            n++;
        }
    }
    return n;
}

int kvf_views_check(const struct kvf_side *d, struct kvf_refusal *no)
{
    struct strip *v = calloc((size_t)d->n_layers * 2, sizeof *v);
    int64_t steps = 0;
    size_t n;
    int rc = 0;

    if (v == NULL)
        return kvf_refuse(no, KVF_E_MEMORY, "no memory");
    n = gather(d, v);
    qsort(v, n, sizeof *v, by_region);
    for (size_t i = 0; i < n && rc == 0; i++)
        for (size_t k = i + 1; k < n && v[k].region == v[i].region &&
                               v[k].layer->stage == v[i].layer->stage;
             k++)
            if (!may_share(d, &v[i], &v[k]) && meet(&v[i], &v[k], &steps)) {
                rc =
                    kvf_refuse(no, KVF_E_REGION,
                               "D: layers %.60s and %.60s lie on the same "
                               "bytes of region %" PRId64,
                               v[i].layer->name, v[k].layer->name, v[i].region);
                break;
            }
    free(v);
    return rc;
}
