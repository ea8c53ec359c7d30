/* The tables of a side, and where components lie in a page.
 *
 * Happy path: init, fill in, check the pair (check.c), then the places below
 * are plain arithmetic that cannot overflow. Failure modes: memory. */
#include "layout.h"

#include "kvferry/status.h"
#include "own.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[] = {"E_NONE",
#define NAME(name) #name,
                                    KVF_REFUSE_LIST(NAME)
#undef NAME
};

const char *kvf_refuse_name(enum kvf_refuse kind)
{
    return (unsigned)kind < KVF_REFUSE_COUNT ? names[kind] : "E_NONE";
}

int kvf_refuse(struct kvf_refusal *no, enum kvf_refuse kind, const char *fmt,
               ...)
{
    va_list ap;

    if (no != NULL) {
        no->kind = kind;
        va_start(ap, fmt);
        vsnprintf(no->text, sizeof no->text, fmt, ap);
        va_end(ap);
    }
    if (kind == KVF_E_MEMORY)
        return -KVF_NO_SPACE;
    return kind >= KVF_E_BLOCK_RANGE ? -KVF_INVALID : -KVF_MISMATCH;
}

int kvf_side_init(struct kvf_side *s, unsigned n_groups, unsigned n_layers)
{
    *s = (struct kvf_side){.order = -1, .kv = -1};
    s->groups = calloc(n_groups + 1u, sizeof *s->groups);
    s->layers = calloc(n_layers + 1u, sizeof *s->layers);
    if (s->groups == NULL || s->layers == NULL)
        return -KVF_NO_SPACE;
    s->n_groups = n_groups;
    s->n_layers = n_layers;
    return 0;
}

void kvf_side_free(struct kvf_side *s)
{
    for (unsigned i = 0; i < s->n_layers; i++) {
        for (unsigned c = 0; c < s->layers[i].n_comps; c++)
            free(s->layers[i].comps[c].name);
        free(s->layers[i].comps);
        free(s->layers[i].name);
    }
    free(s->groups);
    free(s->layers);
    free(s->regions);
    *s = (struct kvf_side){0};
}

/* The first region that is not before (stage, index). */
static size_t place_of(const struct kvf_side *s, int64_t stage, int64_t index)
{
    size_t lo = 0, hi = s->n_regions;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        const struct kvf_extent *r = &s->regions[mid];

        if (r->stage < stage || (r->stage == stage && r->index < index))
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

const struct kvf_extent *kvf_side_region(const struct kvf_side *s,
                                         int64_t stage, int64_t index)
{
    size_t i = place_of(s, stage, index);

    if (i == s->n_regions || s->regions[i].stage != stage ||
        s->regions[i].index != index)
        return NULL;
    return &s->regions[i];
}

int kvf_side_add_region(struct kvf_side *s, int64_t stage, int64_t index,
                        int64_t length)
{
    size_t at = s->n_regions;

    if (kvf_side_region(s, stage, index) != NULL)
        return -KVF_EXISTS;
    if (s->n_regions == s->cap_regions) {
        size_t cap = s->cap_regions == 0 ? 64 : s->cap_regions * 2;
        struct kvf_extent *more = realloc(s->regions, cap * sizeof *more);

        if (more == NULL)
            return -KVF_NO_SPACE;
        s->regions = more;
        s->cap_regions = cap;
    }
    at = place_of(s, stage, index);
    memmove(s->regions + at + 1, s->regions + at,
            (s->n_regions - at) * sizeof *s->regions);
    s->regions[at] = (struct kvf_extent){stage, index, length};
    s->n_regions++;
    return 0;
}

enum kvf_part kvf_comp_part(const struct kvf_side *s, const struct kvf_layer *l,
                            unsigned c)
{
    if (l->kind == KVF_SSM)
        return KVF_PART_SSM;
    if (l->kind == KVF_MLA)
        return KVF_PART_LAT;
    if (s->kv == KVF_SPLIT)
        return c == 0 ? KVF_PART_K : KVF_PART_V;
    return KVF_PART_KV;
}

bool kvf_part_bytes(const struct kvf_side *s, const struct kvf_layer *l,
                    enum kvf_part part, int64_t *out)
{
    int64_t sum = 0;

    for (unsigned c = 0; c < l->n_comps; c++) {
        int64_t n = kvf_own_count(l->comps[c].units, s->tp);

        if (kvf_comp_part(s, l, c) != part)
            continue;
        if (__builtin_mul_overflow(n, l->comps[c].bytes, &n) ||
            (l->kind != KVF_SSM && __builtin_mul_overflow(n, s->bs, &n)) ||
            __builtin_add_overflow(sum, n, &sum))
            return false;
    }
    *out = sum;
    return true;
}

void kvf_comp_place(const struct kvf_side *s, const struct kvf_layer *l,
                    unsigned c, struct kvf_affine *out)
{
    enum kvf_part part = kvf_comp_part(s, l, c);
    int64_t own = kvf_own_count(l->comps[c].units, s->tp);
    /* one token's slot of one unit: K and V side by side when packed */
    bool packed = part == KVF_PART_KV && s->kv == KVF_PACKED;
    int64_t slot = l->comps[c].bytes;

    *out = (struct kvf_affine){0};
    for (unsigned b = 0; b < l->n_comps; b++) {
        if (b == c || kvf_comp_part(s, l, b) != part)
            continue;
        if (packed)
            slot += l->comps[b].bytes;
        if (b < c) /* what lies before it: one unit's share, or all of it */
            out->base += l->comps[b].bytes *
                         (packed ? 1
                                 : kvf_own_count(l->comps[b].units, s->tp) *
                                       (l->kind == KVF_SSM ? 1 : s->bs));
    }
    if (l->kind == KVF_SSM) {
        out->unit_step = slot;
    } else if (s->order == KVF_HND) {
        out->unit_step = s->bs * slot;
        out->token_step = slot;
    } else {
        out->unit_step = slot;
        out->token_step = own * slot;
    }
}
