/* Layouts: MessagePack -> struct kvf_side and back.
 *
 * Happy path: the numbers, then groups, layers and views; region names become
 * indices in the order in which they appear. Failure modes: -KVF_INVALID with
 * the field and its place; memory is bounded by the message and the limits of
 * layout/layout.h. */
#include "wire/layout_msg.h"

#include "base/utf8.h"
#include "layout/own.h"
#include "layout/pair.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define NUMBER_MAX ((uint64_t)INT64_MAX)

static const char *const orders[] = {"HND", "NHD"};
static const char *const kvs[] = {"split", "blocks_first", "packed"};
static const char *const group_kinds[] = {"full", "swa", "ssm"};
static const char *const layer_kinds[] = {"attn", "mla", "ssm"};
static const char *const parts[] = {"k", "v", "kv", "lat", "ssm"};

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* ---- reading ------------------------------------------------------------ */

static int number(const msgpack_object *map, const char *key, int64_t *out,
                  struct kvf_why *why)
{
    uint64_t v = 0;
    int rc = kvf_mp_u64(map, key, 0, NUMBER_MAX, &v, why);

    if (rc <= 0)
        return rc < 0 ? rc : kvf_mp_missing(why, key);
    *out = (int64_t)v;
    return 1;
}

/* -1 for a word that is not in the list. */
static int word(const msgpack_object *map, const char *key,
                const char *const *words, size_t n, int *out,
                struct kvf_why *why)
{
    const char *p = NULL;
    size_t len = 0;
    int rc = kvf_mp_str(map, key, 0, 64, &p, &len, why);

    if (rc <= 0)
        return rc < 0 ? rc : kvf_mp_missing(why, key);
    *out = -1;
    for (size_t i = 0; i < n; i++)
        if (strlen(words[i]) == len && memcmp(words[i], p, len) == 0)
            *out = (int)i;
    return 1;
}

static char *copy_text(const char *p, size_t len)
{
    char *s = malloc(len + 1);

    if (s == NULL)
        return NULL;
    memcpy(s, p, len);
    s[len] = '\0';
    return s;
}

static int no_memory(struct kvf_why *why)
{
    return kvf_fail(why, KVF_INTERNAL, "out of memory");
}

/* A name that ends in logs and messages: no control bytes. */
static int text(const msgpack_object *map, const char *key, size_t max,
                char **out, struct kvf_why *why)
{
    const char *p = NULL;
    size_t len = 0;
    int rc = kvf_mp_str(map, key, 1, max, &p, &len, why);

    if (rc <= 0)
        return rc < 0 ? rc : kvf_mp_missing(why, key);
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)p[i] < ' ' || p[i] == 0x7f)
            return kvf_fail(why, KVF_INVALID, "field %s: has a control byte",
                            key);
    *out = copy_text(p, len);
    return *out != NULL ? 1 : no_memory(why);
}

static int element(const msgpack_object *o, const char *key, unsigned i,
                   struct kvf_why *why)
{
    if (o->type == MSGPACK_OBJECT_MAP)
        return 0;
    return kvf_fail(why, KVF_INVALID, "field %s[%u]: must be a map, not %s",
                    key, i, kvf_mp_type_name(o));
}

static int read_group(const msgpack_object *o, struct kvf_group *g,
                      struct kvf_why *why)
{
    uint64_t window = 0;
    int rc = word(o, "kind", group_kinds, COUNT(group_kinds), &g->kind, why);

    if (rc > 0)
        rc = kvf_mp_u64(o, "window", 0, NUMBER_MAX, &window, why);
    g->given = true;
    g->window = (int64_t)window;
    return rc < 0 ? rc : 0;
}

static int read_comp(const msgpack_object *o, struct kvf_comp *c,
                     struct kvf_why *why)
{
    const msgpack_object *v = o->via.array.ptr;

    if (o->type != MSGPACK_OBJECT_ARRAY || o->via.array.size != 3 ||
        v[0].type != MSGPACK_OBJECT_STR || v[0].via.str.size == 0 ||
        v[0].via.str.size > KVF_COMP_NAME ||
        !kvf_utf8_valid(v[0].via.str.ptr, v[0].via.str.size) ||
        memchr(v[0].via.str.ptr, 0, v[0].via.str.size) != NULL ||
        v[1].type != MSGPACK_OBJECT_POSITIVE_INTEGER ||
        v[1].via.u64 > NUMBER_MAX ||
        v[2].type != MSGPACK_OBJECT_POSITIVE_INTEGER ||
        v[2].via.u64 > NUMBER_MAX)
        return kvf_fail(why, KVF_INVALID, "must be [name, units, bytes]");
    c->name = copy_text(v[0].via.str.ptr, v[0].via.str.size);
    if (c->name == NULL)
        return no_memory(why);
    c->units = (int64_t)v[1].via.u64;
    c->bytes = (int64_t)v[2].via.u64;
    return 0;
}

static int read_comps(const msgpack_object *o, struct kvf_layer *l,
                      struct kvf_why *why)
{
    const msgpack_object *a;
    int rc = kvf_mp_array(o, "comps", KVF_COMPS_MAX, &a, why);

    if (rc <= 0)
        return rc < 0 ? rc : kvf_mp_missing(why, "comps");
    l->comps = calloc(a->via.array.size + 1u, sizeof *l->comps);
    if (l->comps == NULL)
        return no_memory(why);
    for (unsigned c = 0; c < a->via.array.size; c++) {
        l->n_comps = c + 1;
        rc = read_comp(&a->via.array.ptr[c], &l->comps[c], why);
        if (rc < 0) {
            if (l->comps[c].name == NULL)
                l->n_comps = c;
            return kvf_fail_prefix(why, "comps[%u]", c);
        }
    }
    return 0;
}

static int read_layer(const msgpack_object *o, struct kvf_layer *l,
                      struct kvf_why *why)
{
    int rc = text(o, "name", KVF_LAYOUT_NAME, &l->name, why);

    if (rc > 0)
        rc = number(o, "group", &l->group, why);
    if (rc > 0)
        rc = word(o, "kind", layer_kinds, COUNT(layer_kinds), &l->kind, why);
    return rc < 0 ? rc : read_comps(o, l, why);
}

/* Index of a region that an engine names; the table grows by the new ones. */
static int region_index(struct kvf_layout_decl *d, uint64_t id, int64_t *out)
{
    /* Views of one region mostly follow each other. */
    for (unsigned i = d->n_regions; i-- > 0;)
        if (d->regions[i] == id) {
            *out = i;
            return 0;
        }
    if (d->n_regions == KVF_LAYOUT_REGIONS)
        return -1;
    d->regions[d->n_regions] = id;
    *out = d->n_regions++;
    return 0;
}

static int read_view(const msgpack_object *o, struct kvf_layout_decl *d,
                     struct kvf_span stage, struct kvf_why *why)
{
    struct kvf_part_view v = {.given = true};
    int64_t layer = 0;
    uint64_t region = 0;
    int part = -1, rc = number(o, "layer", &layer, why);

    if (rc > 0)
        rc = word(o, "part", parts, COUNT(parts), &part, why);
    if (rc > 0) {
        rc = kvf_mp_u64(o, "region", 0, UINT64_MAX, &region, why);
        rc = rc == 0 ? kvf_mp_missing(why, "region") : rc;
    }
    if (rc > 0)
        rc = number(o, "off0", &v.off0, why);
    if (rc > 0)
        rc = number(o, "stride", &v.stride, why);
    if (rc > 0)
        rc = number(o, "page", &v.page, why);
    if (rc < 0)
        return rc;
    if (layer < stage.lo || layer >= stage.hi)
        return kvf_fail(why, KVF_INVALID,
                        "layer %" PRId64 " is not on this rank's stage, which "
                        "has layers %" PRId64 " to %" PRId64,
                        layer, stage.lo, stage.hi - 1);
    if (part < 0)
        return kvf_fail(why, KVF_INVALID, "part must be k, v, kv, lat or ssm");
    if (d->side.layers[layer].views[part].given)
        return kvf_fail(why, KVF_INVALID,
                        "a second view of %s of layer %" PRId64, parts[part],
                        layer);
    if (region_index(d, region, &v.region) < 0)
        return kvf_fail(why, KVF_INVALID, "more than %u regions",
                        KVF_LAYOUT_REGIONS);
    d->side.layers[layer].views[part] = v;
    return 0;
}

static int read_numbers(const msgpack_object *map, struct kvf_layout_decl *d,
                        struct kvf_why *why)
{
    struct kvf_side *s = &d->side;
    int rc = number(map, "tp", &s->tp, why);

    if (rc > 0)
        rc = number(map, "pp", &s->pp, why);
    if (rc > 0)
        rc = number(map, "rank", &d->rank, why);
    if (rc > 0)
        rc = number(map, "bs", &s->bs, why);
    if (rc > 0)
        rc = number(map, "ppl", &s->ppl, why);
    if (rc > 0)
        rc = number(map, "nblocks", &s->nblocks, why);
    if (rc > 0)
        rc = word(map, "order", orders, COUNT(orders), &s->order, why);
    if (rc > 0)
        rc = word(map, "kv", kvs, COUNT(kvs), &s->kv, why);
    if (rc > 0) {
        rc = kvf_mp_bool(map, "shared", &s->shared, why);
        rc = rc == 0 ? kvf_mp_missing(why, "shared") : rc;
    }
    return rc;
}

/* The tables; their sizes are known first. */
static int make_tables(const msgpack_object *groups,
                       const msgpack_object *layers, unsigned n_views,
                       struct kvf_layout_decl *d, struct kvf_why *why)
{
    struct kvf_side numbers = d->side;

    if (kvf_side_init(&d->side, groups->via.array.size,
                      layers->via.array.size) < 0)
        return no_memory(why);
    d->side.tp = numbers.tp;
    d->side.pp = numbers.pp;
    d->side.bs = numbers.bs;
    d->side.ppl = numbers.ppl;
    d->side.nblocks = numbers.nblocks;
    d->side.order = numbers.order;
    d->side.kv = numbers.kv;
    d->side.shared = numbers.shared;
    d->regions = calloc(n_views + 1u, sizeof *d->regions);
    return d->regions != NULL ? 0 : no_memory(why);
}

static int list(const msgpack_object *map, const char *key, size_t max,
                const msgpack_object **out, struct kvf_why *why)
{
    int rc = kvf_mp_array(map, key, max, out, why);

    return rc != 0 ? rc : kvf_mp_missing(why, key);
}

/* Which pipeline stage each layer is on; legal numbers only. */
static struct kvf_span place_layers(struct kvf_layout_decl *d)
{
    struct kvf_side *s = &d->side;

    for (int64_t stage = 0; stage < s->pp; stage++) {
        struct kvf_span l = kvf_stage_layers(s->n_layers, s->pp, stage);

        for (int64_t i = l.lo; i < l.hi; i++)
            s->layers[i].stage = stage;
    }
    return kvf_stage_layers(s->n_layers, s->pp, d->rank / s->tp);
}

static int read_ranks(const struct kvf_layout_decl *d, struct kvf_why *why)
{
    const struct kvf_side *s = &d->side;

    if (s->tp < 1 || s->tp > KVF_TP_MAX || s->pp < 1 || s->pp > KVF_TP_MAX ||
        s->tp * s->pp > KVF_RANKS_MAX)
        return kvf_fail(why, KVF_INVALID,
                        "E_TP: tp %" PRId64 ", pp %" PRId64
                        ": each must be 1 to %d, the ranks %d at most",
                        s->tp, s->pp, KVF_TP_MAX, KVF_RANKS_MAX);
    if (d->rank >= s->tp * s->pp)
        return kvf_fail(why, KVF_INVALID, "E_TP: rank %" PRId64 " of %" PRId64,
                        d->rank, s->tp * s->pp);
    return 0;
}

int kvf_layout_read(const msgpack_object *map, struct kvf_layout_decl *d,
                    struct kvf_why *why)
{
    const msgpack_object *groups, *layers, *views;
    struct kvf_span stage;
    int rc;

    memset(d, 0, sizeof *d);
    rc = read_numbers(map, d, why);
    if (rc > 0)
        rc = list(map, "groups", KVF_GROUPS_MAX, &groups, why);
    if (rc > 0)
        rc = list(map, "layers", KVF_LAYERS_MAX, &layers, why);
    if (rc > 0)
        rc = list(map, "views", KVF_LAYOUT_VIEWS, &views, why);
    if (rc > 0)
        rc = read_ranks(d, why);
    if (rc >= 0)
        rc = make_tables(groups, layers, views->via.array.size, d, why);
#define EACH(list_, key, call)                                                 \
    for (unsigned i = 0; rc >= 0 && i < (list_)->via.array.size; i++) {        \
        const msgpack_object *o = &(list_)->via.array.ptr[i];                  \
                                                                               \
        rc = element(o, key, i, why);                                          \
        if (rc == 0 && (rc = (call)) < 0)                                      \
            kvf_fail_prefix(why, "field " key "[%u]", i);                      \
    }
    if (rc >= 0) {
        EACH(groups, "groups", read_group(o, &d->side.groups[i], why))
        EACH(layers, "layers", read_layer(o, &d->side.layers[i], why))
    }
    if (rc >= 0) {
        stage = place_layers(d);
        EACH(views, "views", read_view(o, d, stage, why))
    }
#undef EACH
    return rc < 0 ? rc : 0;
}

void kvf_layout_done(struct kvf_layout_decl *d)
{
    kvf_side_free(&d->side);
    free(d->regions);
    d->regions = NULL;
    d->n_regions = 0;
}

/* ---- writing ------------------------------------------------------------ */

static void write_layer(struct kvf_mpw *w, const struct kvf_layer *l)
{
    kvf_mpw_map(w, 4);
    kvf_mpw_kv_str(w, "name", l->name);
    kvf_mpw_kv_u64(w, "group", (uint64_t)l->group);
    kvf_mpw_kv_str(w, "kind", layer_kinds[l->kind]);
    kvf_mpw_str(w, "comps");
    kvf_mpw_array(w, l->n_comps);
    for (unsigned c = 0; c < l->n_comps; c++) {
        kvf_mpw_array(w, 3);
        kvf_mpw_str(w, l->comps[c].name);
        kvf_mpw_u64(w, (uint64_t)l->comps[c].units);
        kvf_mpw_u64(w, (uint64_t)l->comps[c].bytes);
    }
}

static void write_view(struct kvf_mpw *w, unsigned layer, unsigned part,
                       const struct kvf_part_view *v)
{
    kvf_mpw_map(w, 6);
    kvf_mpw_kv_u64(w, "layer", layer);
    kvf_mpw_kv_str(w, "part", parts[part]);
    kvf_mpw_kv_u64(w, "region", (uint64_t)v->region);
    kvf_mpw_kv_u64(w, "off0", (uint64_t)v->off0);
    kvf_mpw_kv_u64(w, "stride", (uint64_t)v->stride);
    kvf_mpw_kv_u64(w, "page", (uint64_t)v->page);
}

static unsigned count_views(const struct kvf_side *s)
{
    unsigned n = 0;

    for (unsigned l = 0; l < s->n_layers; l++)
        for (unsigned p = 0; p < KVF_PARTS; p++)
            n += s->layers[l].views[p].given;
    return n;
}

void kvf_layout_write(struct kvf_mpw *w, const struct kvf_side *s, int64_t rank)
{
    kvf_mpw_kv_u64(w, "tp", (uint64_t)s->tp);
    kvf_mpw_kv_u64(w, "pp", (uint64_t)s->pp);
    kvf_mpw_kv_u64(w, "rank", (uint64_t)rank);
    kvf_mpw_kv_u64(w, "bs", (uint64_t)s->bs);
    kvf_mpw_kv_u64(w, "ppl", (uint64_t)s->ppl);
    kvf_mpw_kv_u64(w, "nblocks", (uint64_t)s->nblocks);
    kvf_mpw_kv_str(w, "order", orders[s->order]);
    kvf_mpw_kv_str(w, "kv", kvs[s->kv]);
    kvf_mpw_kv_bool(w, "shared", s->shared);
    kvf_mpw_str(w, "groups");
    kvf_mpw_array(w, s->n_groups);
    for (unsigned g = 0; g < s->n_groups; g++) {
        kvf_mpw_map(w, 2);
        kvf_mpw_kv_str(w, "kind", group_kinds[s->groups[g].kind]);
        kvf_mpw_kv_u64(w, "window", (uint64_t)s->groups[g].window);
    }
    kvf_mpw_str(w, "layers");
    kvf_mpw_array(w, s->n_layers);
    for (unsigned l = 0; l < s->n_layers; l++)
        write_layer(w, &s->layers[l]);
    kvf_mpw_str(w, "views");
    kvf_mpw_array(w, count_views(s));
    for (unsigned l = 0; l < s->n_layers; l++)
        for (unsigned p = 0; p < KVF_PARTS; p++)
            if (s->layers[l].views[p].given)
                write_view(w, l, p, &s->layers[l].views[p]);
}
