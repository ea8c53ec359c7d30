/* Layouts and publications of this daemon.
 *
 * Happy path: a layout is checked once and pins its regions; a publication
 * names blocks of it and goes into the store. Failure modes: refusals of the
 * layout or of ids (INVALID); bounds (BUSY); memory. */
#include "peer/blocks.h"

#include "base/rng.h"
#include "peer/peers_private.h"

#include <inttypes.h>
#include <stdio.h>
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

static void publication_free(struct kvf_publication *p);

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
    publication_free(user);
}

int kvf_blocks_create(const struct kvf_blocks_env *env, struct kvf_blocks **out,
                      struct kvf_why *why)
{
    const struct kvf_store_ops ops = {.on_retired = on_retired,
                                      .on_freed = on_freed};
    struct kvf_blocks *b = calloc(1, sizeof *b);

    if (b == NULL)
        return kvf_fail(why, KVF_NO_SPACE, "out of memory");
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

struct kvf_layout *kvf_layout_find(const struct kvf_blocks *b, uint64_t number)
{
    for (struct kvf_layout *l = kvf_layout_next(b, NULL); l != NULL;
         l = kvf_layout_next(b, l))
        if (l->number == number)
            return l;
    return NULL;
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

/* ---- blocks ------------------------------------------------------------- */

struct kvf_ids *kvf_ids_of(const struct kvf_req_blocks *r, unsigned groups)
{
    struct kvf_ids *ids = calloc(groups + 1u, sizeof *ids);

    for (unsigned i = 0; ids != NULL && i < r->n; i++)
        if (r->groups[i].group < groups)
            ids[r->groups[i].group] = (struct kvf_ids){
                r->groups[i].first, r->groups[i].n, r->groups[i].ids};
    return ids;
}

int kvf_ids_check(const struct kvf_layout *l, const struct kvf_req_blocks *r,
                  const struct kvf_ids *ids, struct kvf_why *why)
{
    struct kvf_refusal no;
    int rc;

    for (unsigned i = 0; i < r->n; i++)
        if (r->groups[i].group >= l->decl.side.n_groups)
            return kvf_fail(why, KVF_INVALID,
                            "field blocks[%u]: group %u of %u", i,
                            r->groups[i].group, l->decl.side.n_groups);
    rc = kvf_ids_legal(&l->decl.side, 0, ids, &no);
    if (rc == -(int)KVF_NO_SPACE)
        return kvf_fail(why, KVF_NO_SPACE, "%s", no.text);
    if (rc < 0)
        return kvf_fail(why, KVF_INVALID, "%s: %s", kvf_refuse_name(no.kind),
                        no.text);
    return 0;
}

/* ---- publications ------------------------------------------------------- */

static void publication_free(struct kvf_publication *p)
{
    if (p == NULL)
        return;
    if (p->layout != NULL)
        kvf_layout_release(p->layout);
    free(p->ids);
    free(p->sorted);
    free(p->arena);
    free(p);
}

static int by_number(const void *a, const void *b)
{
    const int64_t *x = a, *y = b;

    return (*x > *y) - (*x < *y);
}

/* The ids as they were given, and sorted for look-ups. */
static int copy_ids(struct kvf_publication *p, const struct kvf_ids *ids,
                    unsigned groups)
{
    size_t total = 0, at = 0;

    for (unsigned g = 0; g < groups; g++)
        total += ids[g].n;
    p->arena = malloc((2 * total + 1) * sizeof *p->arena);
    p->ids = calloc(groups + 1u, sizeof *p->ids);
    p->sorted = calloc(groups + 1u, sizeof *p->sorted);
    if (p->arena == NULL || p->ids == NULL || p->sorted == NULL)
        return -1;
    for (unsigned g = 0; g < groups; g++) {
        int64_t *given = p->arena + at, *sorted = given + total;

        if (ids[g].n != 0) {
            memcpy(given, ids[g].ids, ids[g].n * sizeof *given);
            memcpy(sorted, ids[g].ids, ids[g].n * sizeof *sorted);
            qsort(sorted, ids[g].n, sizeof *sorted, by_number);
        }
        p->ids[g] = (struct kvf_ids){ids[g].first, ids[g].n, given};
        p->sorted[g] = (struct kvf_ids){0, ids[g].n, sorted};
        at += ids[g].n;
    }
    return 0;
}

static struct kvf_publication *publication_new(const struct kvf_publish *r,
                                               const struct kvf_ids *ids)
{
    struct kvf_publication *p = calloc(1, sizeof *p);

    if (p == NULL)
        return NULL;
    p->n_tokens = r->n_tokens;
    p->request_len = r->request_id.len;
    p->minted = r->tag == NULL;
    if (p->minted)
        kvf_random_bytes(&p->tag, sizeof p->tag);
    else
        p->tag = *r->tag;
    if (copy_ids(p, ids, r->layout->decl.side.n_groups) < 0) {
        publication_free(p);
        return NULL;
    }
    p->layout = kvf_layout_hold(r->layout);
    return p;
}

size_t kvf_blocks_key(char *out, const struct kvf_slice_str *request_id,
                      int64_t rank)
{
    int n;

    memcpy(out, request_id->p, request_id->len);
    n = snprintf(out + request_id->len, KVF_MAX_KEY - request_id->len,
                 ":%" PRId64, rank);
    return request_id->len + (size_t)n;
}

int kvf_publish(struct kvf_blocks *b, const struct kvf_publish *r,
                const struct kvf_gen **out, struct kvf_why *why)
{
    const struct kvf_layout *l = r->layout;
    struct kvf_ids *ids = kvf_ids_of(r->blocks, l->decl.side.n_groups);
    struct kvf_publication *p = NULL;
    struct kvf_put put;
    char key[KVF_MAX_KEY];
    int rc;

    if (ids == NULL)
        return kvf_fail(why, KVF_NO_SPACE, "out of memory to publish");
    rc = kvf_ids_check(l, r->blocks, ids, why);
    if (rc == 0)
        p = publication_new(r, ids);
    free(ids);
    if (rc < 0)
        return rc;
    if (p == NULL)
        return kvf_fail(why, KVF_NO_SPACE, "out of memory to publish");
    put = (struct kvf_put){
        .key = key,
        .key_len = kvf_blocks_key(key, &r->request_id, l->decl.rank),
        .segs = l->segs,
        .n_segs = l->decl.n_regions,
        .ttl_ms = r->ttl_ms,
        .notify = r->notify,
        .by_consumer = true,
        .publisher = r->publisher,
        .user = p,
    };
    rc = kvf_store_put(b->store, &put, out, why);
    if (rc < 0)
        publication_free(p);
    return rc;
}

/* Which region byte `offset` of the payload lies in. */
static unsigned region_at(const struct kvf_layout *l, uint64_t offset)
{
    unsigned lo = 0, hi = l->decl.n_regions;

    while (hi - lo > 1) {
        unsigned mid = lo + (hi - lo) / 2;

        if (l->base[mid] <= offset)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

bool kvf_publication_covers(const struct kvf_publication *p, uint64_t offset,
                            uint64_t length)
{
    const struct kvf_layout *l = p->layout;
    uint64_t at, end, next;
    unsigned r;

    if (length == 0 || offset >= l->size || length > l->size - offset)
        return false;
    r = region_at(l, offset);
    at = offset - l->base[r];
    end = at + length;
    if (end > l->regions[r]->size)
        return false;
    for (; at < end; at = next) {
        next = kvf_columns_reach(l->columns, r, at, p->sorted);
        if (next == at)
            return false;
    }
    return true;
}

uint8_t *kvf_publication_ptr(const struct kvf_publication *p, uint64_t offset)
{
    const struct kvf_layout *l = p->layout;
    unsigned r = region_at(l, offset);

    return l->regions[r]->map->base + (offset - l->base[r]);
}

uint64_t kvf_blocks_fail(struct kvf_blocks *b,
                         const struct kvf_slice_str *request_id, int64_t rank,
                         const char *reason, size_t len, uint64_t ttl_ms)
{
    char key[KVF_MAX_KEY];
    uint64_t n = 0;
    size_t k;

    for (const struct kvf_layout *l = kvf_layout_next(b, NULL);;) {
        int64_t r = l != NULL ? l->decl.rank : rank;

        if (r < 0)
            break;
        k = kvf_blocks_key(key, request_id, r);
        n += kvf_store_live(b->store, key, k) != NULL;
        (void)kvf_store_fail(b->store, key, k, reason, len, ttl_ms, NULL);
        if (l == NULL)
            break;
        l = kvf_layout_next(b, l);
    }
    return n;
}
