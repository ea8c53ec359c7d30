/* Layouts of this daemon's engines, and the store of what they publish.
 *
 * Happy path: a layout is checked once and pins its regions until its session
 * has ended and nothing published in it is live. Failure modes: refusals of the
 * layout (INVALID); bounds (BUSY); memory. */
#include "peer/blocks.h"

#include "peer/peers_private.h"

#include <stdlib.h>
#include <string.h>

struct kvf_blocks {
    struct kvf_blocks_env env;
    struct kvf_stats stats;
    struct kvf_store *store;
    struct kvf_list layouts; /* newest first */
    unsigned n_layouts;
    struct kvf_list waiting; /* kvf_layout_wait.node */
    void (*on_end)(void *arg, struct kvf_layout *l);
    void *on_end_arg;
};

/* ---- the whole ---------------------------------------------------------- */

static void on_retired(void *arg, const struct kvf_gen *gen,
                       enum kvf_retire reason)
{
    struct kvf_blocks *b = arg;

    if (b->env.on_retired != NULL)
        b->env.on_retired(b->env.arg, gen, reason);
}

static void on_freed(void *arg, void *user)
{
    (void)arg;
    kvf_publication_free(user);
}

int kvf_blocks_create(const struct kvf_blocks_env *env, struct kvf_blocks **out,
                      struct kvf_why *why)
{
    const struct kvf_store_ops ops = {.on_retired = on_retired,
                                      .on_freed = on_freed};
    struct kvf_blocks *b = calloc(1, sizeof *b);

    if (b == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    b->env = *env;
    kvf_list_init(&b->layouts);
    kvf_list_init(&b->waiting);
    b->store = kvf_store_create(env->sched, &b->stats, env->store, &ops, b,
                                env->first_generation, why);
    if (b->store == NULL) {
        free(b);
        return -KVF_NO_SPACE;
    }
    kvf_store_claims_from(b->store, KVF_BLOCK_CLAIMS);
    *out = b;
    return 0;
}

void kvf_blocks_destroy(struct kvf_blocks *b)
{
    if (b == NULL)
        return;
    kvf_store_destroy(b->store);
    free(b);
}

struct kvf_store *kvf_blocks_store(const struct kvf_blocks *b)
{
    return b->store;
}

const struct kvf_stats *kvf_blocks_stats(const struct kvf_blocks *b)
{
    return &b->stats;
}

void kvf_blocks_on_end(struct kvf_blocks *b,
                       void (*fn)(void *arg, struct kvf_layout *l), void *arg)
{
    b->on_end = fn;
    b->on_end_arg = arg;
}

/* ---- layouts ------------------------------------------------------------ */

static void layout_free(struct kvf_layout *l)
{
    kvf_pairs_forget(l);
    for (unsigned i = 0; i < l->decl.n_regions; i++)
        if (l->regions != NULL && l->regions[i] != NULL)
            kvf_region_unpin(l->regions[i]);
    kvf_columns_free(l->columns);
    kvf_layout_done(&l->decl);
    free(l->regions);
    free(l->base);
    free(l->segs);
    free(l);
}

static void tell_end(struct kvf_layout *l)
{
    if (l->blocks->on_end != NULL)
        l->blocks->on_end(l->blocks->on_end_arg, l);
}

struct kvf_layout *kvf_layout_hold(struct kvf_layout *l)
{
    l->refs++;
    return l;
}

void kvf_layout_release(struct kvf_layout *l)
{
    if (--l->refs != 0)
        return;
    l->blocks->n_layouts--;
    kvf_list_unlink(&l->node);
    tell_end(l); /* who learnt of it from a publication, after its session */
    layout_free(l);
}

void kvf_layouts_end(struct kvf_list *owner)
{
    struct kvf_list *n;

    while ((n = kvf_list_pop(owner)) != NULL) {
        struct kvf_layout *l =
            kvf_container_of(n, struct kvf_layout, owner_node);

        l->ended = true;
        tell_end(l);
        kvf_layout_release(l);
    }
}

/* The regions as one payload. */
static int lay_regions(struct kvf_layout *l, struct kvf_region *const *regions,
                       struct kvf_why *why)
{
    unsigned n = l->decl.n_regions;

    l->regions = calloc(n + 1u, sizeof(struct kvf_region *));
    l->base = calloc(n + 1u, sizeof *l->base);
    l->segs = calloc(n + 1u, sizeof *l->segs);
    if (l->regions == NULL || l->base == NULL || l->segs == NULL)
        return kvf_fail(why, KVF_NO_SPACE, "out of memory for a layout");
    for (unsigned i = 0; i < n; i++) {
        l->regions[i] = regions[i];
        kvf_region_pin(regions[i]);
        l->base[i] = l->size;
        l->segs[i] =
            (struct kvf_seg){.region = regions[i], .length = regions[i]->size};
        if (regions[i]->size > (uint64_t)INT64_MAX - l->size)
            return kvf_fail(why, KVF_INVALID,
                            "E_OVERFLOW: the regions do not fit in 63 bits");
        l->size += regions[i]->size;
    }
    return 0;
}

static int check_layout(struct kvf_layout *l, struct kvf_why *why)
{
    struct kvf_side *s = &l->decl.side;
    int64_t stage = l->decl.rank / s->tp;
    struct kvf_refusal no;
    int rc;

    for (unsigned i = 0; i < l->decl.n_regions; i++)
        if (kvf_side_add_region(s, 0, i, (int64_t)l->regions[i]->size) < 0)
            return kvf_fail(why, KVF_NO_SPACE, "out of memory for a layout");
    /* Those of other stages are not looked at below, but told to peers. */
    for (unsigned y = 0; y < s->n_layers; y++)
        if (s->layers[y].kind < 0)
            return kvf_fail(why, KVF_INVALID,
                            "E_LAYERS: layer %u is of an unknown kind", y);
    rc = kvf_side_check(s, stage, &no);
    if (rc == -(int)KVF_NO_SPACE)
        return kvf_fail(why, KVF_NO_SPACE, "%s", no.text);
    if (rc < 0)
        return kvf_fail(why, KVF_INVALID, "%s: %s", kvf_refuse_name(no.kind),
                        no.text);
    if (kvf_columns_make(l, &l->columns) < 0)
        return kvf_fail(why, KVF_NO_SPACE, "out of memory for a layout");
    return 0;
}

static void wake(struct kvf_blocks *b)
{
    struct kvf_list batch, *n;

    kvf_list_init(&batch);
    kvf_list_splice(&batch, &b->waiting);
    while ((n = kvf_list_pop(&batch)) != NULL) {
        struct kvf_layout_wait *w =
            kvf_container_of(n, struct kvf_layout_wait, node);

        w->fn(w);
    }
}

int kvf_layout_add(struct kvf_blocks *b, struct kvf_layout_decl *decl,
                   struct kvf_region *const *regions, struct kvf_list *owner,
                   struct kvf_layout **out, struct kvf_why *why)
{
    struct kvf_layout *l;
    int rc;

    if (b->n_layouts >= KVF_LAYOUTS_MAX)
        return kvf_fail(why, KVF_BUSY, "%u layouts are declared already",
                        b->n_layouts);
    l = calloc(1, sizeof *l);
    if (l == NULL)
        return kvf_fail(why, KVF_NO_SPACE, "out of memory for a layout");
    l->decl = *decl;
    memset(decl, 0, sizeof *decl);
    l->blocks = b;
    l->refs = 1;
    kvf_list_init(&l->owner_node);
    kvf_list_init(&l->node);
    kvf_list_init(&l->pairs);
    rc = lay_regions(l, regions, why);
    if (rc == 0)
        rc = check_layout(l, why);
    if (rc < 0) {
        layout_free(l);
        return rc;
    }
    l->number = kvf_buffers_next_id(b->env.buffers);
    kvf_list_push_front(&b->layouts, &l->node);
    kvf_list_push_back(owner, &l->owner_node);
    b->n_layouts++;
    wake(b);
    *out = l;
    return 0;
}

struct kvf_layout *kvf_layout_next(const struct kvf_blocks *b,
                                   const struct kvf_layout *l)
{
    struct kvf_list *n = l == NULL ? b->layouts.next : l->node.next;

    return n != &b->layouts ? kvf_container_of(n, struct kvf_layout, node)
                            : NULL;
}

unsigned kvf_layout_count(const struct kvf_blocks *b)
{
    return b->n_layouts;
}

void kvf_layout_wait(struct kvf_blocks *b, struct kvf_layout_wait *w)
{
    kvf_list_push_back(&b->waiting, &w->node);
}
