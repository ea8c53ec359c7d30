/* The parser of planning cases.
 *
 * Happy path: line by line, word by word, one function per kind of line; tables
 * are sized by the `side` line, within limits. Failure modes: anything that is
 * not a case is refused with the number of the line. Nothing is read beyond
 * `len`, no word is trusted. */
#include "case.h"

#include <stdlib.h>
#include <string.h>

#include "kvferry/status.h"

struct word {
    const char *p;
    size_t len;
};

struct parser {
    const char *at, *end; /* of the line */
    unsigned line;
    struct kvf_case *c;
    struct kvf_refusal *no;
    bool huge; /* the last number was beyond 63 bits */
};

static int bad(const struct parser *x, enum kvf_refuse kind, const char *what)
{
    return kvf_refuse(x->no, kind, "line %u: %s", x->line, what);
}

/* The line can be read, but not be meant. What is wrong elsewhere may come
 * first: kvf_case_check decides. */
static int flaw(const struct parser *x, enum kvf_refuse kind, const char *what)
{
    if (x->c->flawed && x->c->flaw.kind <= kind)
        return 0;
    x->c->flawed = true;
    (void)kvf_refuse(&x->c->flaw, kind, "line %u: %s", x->line, what);
    return 0;
}

static int no_memory(const struct parser *x)
{
    return kvf_refuse(x->no, KVF_E_MEMORY, "no memory");
}

static bool space(char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

static bool next(struct parser *x, struct word *w)
{
    while (x->at < x->end && space(*x->at))
        x->at++;
    w->p = x->at;
    while (x->at < x->end && !space(*x->at))
        x->at++;
    w->len = (size_t)(x->at - w->p);
    return w->len > 0;
}

static bool is(struct word w, const char *text)
{
    return strlen(text) == w.len && memcmp(w.p, text, w.len) == 0;
}

/* Saturates; false when it is no number. */
static bool number(struct parser *x, int64_t *out)
{
    struct word w;
    size_t i = 0;
    int64_t v = 0;
    bool minus;

    x->huge = false;
    if (!next(x, &w))
        return false;
    minus = w.p[0] == '-';
    if ((i = minus) == w.len)
        return false;
    for (; i < w.len; i++) {
        if (w.p[i] < '0' || w.p[i] > '9')
            return false;
        if (__builtin_mul_overflow(v, 10, &v) ||
            __builtin_add_overflow(v, w.p[i] - '0', &v)) {
            v = INT64_MAX;
            x->huge = true;
        }
    }
    *out = minus ? -v : v;
    return true;
}

/* A number that has to fit. */
static bool sized(struct parser *x, int64_t *out)
{
    if (!number(x, out))
        return false;
    if (x->huge)
        (void)flaw(x, KVF_E_OVERFLOW, "a number beyond 63 bits");
    return true;
}

/* The place of a word in a list, -1 when it is not there. */
static bool choice(struct parser *x, const char *const *list, int *out)
{
    struct word w;

    if (!next(x, &w))
        return false;
    for (*out = 0; list[*out] != NULL; ++*out)
        if (is(w, list[*out]))
            return true;
    *out = -1;
    return true;
}

static char *text(struct parser *x)
{
    struct word w;

    return next(x, &w) && memchr(w.p, 0, w.len) == NULL ? strndup(w.p, w.len)
                                                        : NULL;
}

static const char *const side_names[] = {"P", "D", NULL};
static const char *const orders[] = {"HND", "NHD", NULL};
static const char *const kvs[] = {"split", "blocks_first", "packed", NULL};
static const char *const group_kinds[] = {"full", "swa", "ssm", NULL};
static const char *const layer_kinds[] = {"attn", "mla", "ssm", NULL};
static const char *const parts[] = {"k", "v", "kv", "lat", "ssm", NULL};

static int side_line(struct parser *x)
{
    static const char *const keys[] = {"tp",      "pp",      "bs",
                                       "ppl",     "nblocks", "shared",
                                       "ngroups", "nlayers", NULL};
    int64_t v[8] = {0};
    int which, order = -1, kv = -1, key;
    unsigned got = 0;
    struct kvf_side *s;
    struct word w;

    if (!choice(x, side_names, &which) || which < 0)
        return bad(x, KVF_E_LAYOUT, "a side is P or D");
    if (x->c->have_side[which])
        return bad(x, KVF_E_LAYOUT, "this side was given before");
    while (next(x, &w)) {
        if (is(w, "order") || is(w, "kv")) {
            bool o = w.len > 2;

            if ((got & (o ? 1u << 8 : 1u << 9)) != 0)
                return bad(x, KVF_E_LAYOUT, "a key of the side is there twice");
            if (!choice(x, o ? orders : kvs, o ? &order : &kv))
                return bad(x, KVF_E_LAYOUT, "a key without a value");
            got |= o ? 1u << 8 : 1u << 9;
            continue;
        }
        for (key = 0; keys[key] != NULL && !is(w, keys[key]);)
            key++;
        if (keys[key] == NULL || !number(x, &v[key]))
            return bad(x, KVF_E_LAYOUT, "an unknown key, or no number after");
        if ((got >> key & 1) != 0)
            return bad(x, KVF_E_LAYOUT, "a key of the side is there twice");
        if (x->huge && key >= 2 && key <= 4)
            (void)flaw(x, KVF_E_OVERFLOW, "a number beyond 63 bits");
        got |= 1u << key;
    }
    if (got != 0x3ff)
        return bad(x, KVF_E_LAYOUT, "a key of the side is missing");
    if (v[6] < 0 || v[6] > KVF_GROUPS_MAX)
        return bad(x, KVF_E_GROUPS, "so many groups cannot be");
    if (v[7] < 0 || v[7] > KVF_LAYERS_MAX)
        return bad(x, KVF_E_LAYERS, "so many layers cannot be");
    if (v[5] != 0 && v[5] != 1)
        return bad(x, KVF_E_LAYOUT, "shared is 0 or 1");
    s = &x->c->side[which];
    x->c->have_side[which] = true;
    x->c->ids[which] = calloc((size_t)v[6] + 1, sizeof *x->c->ids[which]);
    if (kvf_side_init(s, (unsigned)v[6], (unsigned)v[7]) < 0 ||
        x->c->ids[which] == NULL)
        return no_memory(x);
    s->tp = v[0];
    s->pp = v[1];
    s->bs = v[2];
    s->ppl = v[3];
    s->nblocks = v[4];
    s->shared = v[5] == 1;
    s->order = order;
    s->kv = kv;
    return 0;
}

/* The side that a line names; NULL when there is none (yet). */
static struct kvf_side *side_of(struct parser *x, int *which)
{
    if (!choice(x, side_names, which) || *which < 0 || !x->c->have_side[*which])
        return NULL;
    return &x->c->side[*which];
}

static int group_line(struct parser *x, struct kvf_side *s)
{
    struct kvf_group g = {.given = true};
    int64_t i;

    if (!number(x, &i) || !choice(x, group_kinds, &g.kind) ||
        !number(x, &g.window))
        return bad(x, KVF_E_LAYOUT, "group SIDE INDEX KIND WINDOW");
    if (i < 0 || i >= (int64_t)s->n_groups || s->groups[i].given)
        return flaw(x, KVF_E_GROUPS, "no such group, or given twice");
    s->groups[i] = g;
    return 0;
}

static int layer_line(struct parser *x, struct kvf_side *s)
{
    struct kvf_layer *l;
    int64_t i, n;

    if (!number(x, &i))
        return bad(x, KVF_E_LAYOUT, "layer SIDE INDEX NAME ...");
    if (i < 0 || i >= (int64_t)s->n_layers || s->layers[i].name != NULL) {
        x->at = x->end;
        return flaw(x, KVF_E_LAYERS, "no such layer, or given twice");
    }
    l = &s->layers[i];
    if ((l->name = text(x)) == NULL || !number(x, &l->stage) ||
        !number(x, &l->group) || !choice(x, layer_kinds, &l->kind) ||
        !number(x, &n))
        return bad(x, KVF_E_LAYOUT,
                   "layer SIDE INDEX NAME STAGE GROUP KIND NCOMP ...");
    if (n < 0 || n > KVF_COMPS_MAX) {
        x->at = x->end;
        return flaw(x, KVF_E_GEOMETRY, "so many components cannot be");
    }
    l->comps = calloc((size_t)n + 1, sizeof *l->comps);
    if (l->comps == NULL)
        return no_memory(x);
    while (l->n_comps < n) {
        struct kvf_comp *c = &l->comps[l->n_comps++];

        if ((c->name = text(x)) == NULL || !number(x, &c->units) ||
            !number(x, &c->bytes))
            return bad(x, KVF_E_LAYOUT, "a component is NAME UNITS BYTES");
    }
    return 0;
}

static int region_line(struct parser *x, struct kvf_side *s)
{
    int64_t stage, i, length;
    int rc;

    if (!number(x, &stage) || !number(x, &i) || !sized(x, &length))
        return bad(x, KVF_E_LAYOUT, "region SIDE STAGE INDEX LENGTH");
    rc = kvf_side_add_region(s, stage, i, length);
    if (rc == -KVF_EXISTS)
        return bad(x, KVF_E_LAYOUT, "this region was given before");
    return rc < 0 ? no_memory(x) : 0;
}

static int view_line(struct parser *x, struct kvf_side *s)
{
    struct kvf_part_view v = {.given = true};
    int64_t stage, l;
    int part;

    if (!number(x, &stage) || !number(x, &l) || !choice(x, parts, &part) ||
        !number(x, &v.region) || !sized(x, &v.off0) || !sized(x, &v.stride) ||
        !sized(x, &v.page))
        return bad(x, KVF_E_LAYOUT,
                   "view SIDE STAGE LAYER PART REGION OFF0 STRIDE PAGE");
    if (l < 0 || l >= (int64_t)s->n_layers)
        return flaw(x, KVF_E_LAYERS, "a view of a layer that is not there");
    if (part < 0 || s->layers[l].views[part].given)
        return flaw(x, KVF_E_GEOMETRY, "no such part, or given twice");
    if (s->layers[l].name == NULL || s->layers[l].stage != stage)
        return flaw(x, KVF_E_GEOMETRY, "a view on a stage without its layer");
    s->layers[l].views[part] = v;
    return 0;
}

static int blocks_line(struct parser *x, int which)
{
    int64_t g, first, n, *ids;
    struct kvf_ids *list;

    if (!number(x, &g) || !sized(x, &first) || !number(x, &n))
        return bad(x, KVF_E_LAYOUT, "blocks SIDE GROUP FIRST COUNT IDS...");
    if (g < 0 || g >= (int64_t)x->c->side[which].n_groups) {
        x->at = x->end;
        return flaw(x, KVF_E_GROUPS, "blocks of a group that is not there");
    }
    list = &x->c->ids[which][g];
    if (list->ids != NULL || n < 0 || n > x->end - x->at)
        return bad(x, KVF_E_LAYOUT, "too few ids, or given twice");
    ids = calloc((size_t)n + 1, sizeof *ids);
    if (ids == NULL)
        return no_memory(x);
    *list = (struct kvf_ids){first, (size_t)n, ids};
    for (int64_t i = 0; i < n; i++)
        if (!number(x, &ids[i]))
            return bad(x, KVF_E_LAYOUT, "too few ids, or no number");
    return 0;
}

static int line(struct parser *x, struct word w)
{
    struct kvf_side *s;
    struct word rest;
    int which, rc;

    if (is(w, "id") || is(w, "tier") || is(w, "seed")) {
        if (is(w, "id") && next(x, &rest)) {
            size_t n = rest.len < 63 ? rest.len : 63;

            memcpy(x->c->id, rest.p, n);
            x->c->id[n] = '\0';
        }
        return 0;
    }
    if (is(w, "n_tokens"))
        return x->c->n_tokens < 0 && sized(x, &x->c->n_tokens) &&
                       x->c->n_tokens >= 0 && !next(x, &rest)
                   ? 0
                   : bad(x, KVF_E_LAYOUT, "n_tokens N, once");
    if (is(w, "side"))
        return side_line(x);
    if ((s = side_of(x, &which)) == NULL)
        return bad(x, KVF_E_LAYOUT, "an unknown line, or before its side");
    if (is(w, "group"))
        rc = group_line(x, s);
    else if (is(w, "layer"))
        rc = layer_line(x, s);
    else if (is(w, "region"))
        rc = region_line(x, s);
    else if (is(w, "view"))
        rc = view_line(x, s);
    else if (is(w, "blocks"))
        rc = blocks_line(x, which);
    else
        return bad(x, KVF_E_LAYOUT, "an unknown line");
    if (rc == 0 && next(x, &rest))
        return bad(x, KVF_E_LAYOUT, "words too many");
    return rc;
}

static int parse(struct parser *x, const char *p, const char *end)
{
    bool begun = false;

    x->c->n_tokens = -1;
    while (p < end) {
        const char *nl = memchr(p, '\n', (size_t)(end - p));
        struct word w;
        int rc;

        x->at = p;
        x->end = nl == NULL ? end : nl;
        x->line++;
        p = nl == NULL ? end : nl + 1;
        if (!next(x, &w))
            continue;
        if (!begun) {
            int64_t version;

            if (!is(w, "KVCASE") || !number(x, &version) || version != 1)
                return bad(x, KVF_E_LAYOUT, "a case begins with KVCASE 1");
            begun = true;
            continue;
        }
        if (is(w, "end"))
            return x->c->have_side[0] && x->c->have_side[1] &&
                           x->c->n_tokens >= 0
                       ? 0
                       : bad(x, KVF_E_LAYOUT, "a side or n_tokens is missing");
        if ((rc = line(x, w)) < 0)
            return rc;
    }
    return bad(x, KVF_E_LAYOUT, "the case has no end");
}

int kvf_case_parse(const char *p, size_t len, struct kvf_case *out,
                   struct kvf_refusal *no)
{
    struct kvf_case c = {0};
    struct parser x = {.c = &c, .no = no};
    int rc = parse(&x, p, p + len);

    if (rc < 0)
        kvf_case_free(&c);
    else
        *out = c;
    return rc;
}

struct kvf_request kvf_case_request(const struct kvf_case *c)
{
    return (struct kvf_request){c->n_tokens, {c->ids[0], c->ids[1]}};
}

int kvf_case_check(const struct kvf_case *c, struct kvf_refusal *no)
{
    struct kvf_request r = kvf_case_request(c);
    struct kvf_refusal mine;
    int rc = kvf_pair_check(&c->side[0], &c->side[1], &mine);

    if (rc == 0)
        rc = kvf_request_check(&c->side[0], &c->side[1], &r, &mine);
    if (rc < 0 && mine.kind == KVF_E_MEMORY)
        return kvf_refuse(no, mine.kind, "%s", mine.text);
    if (c->flawed && (rc == 0 || c->flaw.kind <= mine.kind))
        return kvf_refuse(no, c->flaw.kind, "%s", c->flaw.text);
    return rc < 0 ? kvf_refuse(no, mine.kind, "%s", mine.text) : 0;
}

void kvf_case_free(struct kvf_case *c)
{
    for (int s = 0; s < 2; s++) {
        for (unsigned g = 0; g < c->side[s].n_groups && c->ids[s] != NULL; g++)
            free((void *)(uintptr_t)c->ids[s][g].ids);
        free(c->ids[s]);
        kvf_side_free(&c->side[s]);
    }
    *c = (struct kvf_case){0};
}
