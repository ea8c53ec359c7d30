/* Publications: the blocks of one request, in one layout of this daemon.
 *
 * Happy path: the ids are checked and sorted, and go into the store as one
 * generation; who reads is held to them. Failure modes: refusals of ids
 * (INVALID); memory. */
#include "peer/blocks.h"

#include "base/rng.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- ids of blocks ------------------------------------------------------ */

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

/* ---- publishing --------------------------------------------------------- */

void kvf_publication_free(struct kvf_publication *p)
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
        kvf_publication_free(p);
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
    rc = kvf_store_put(kvf_blocks_store(b), &put, out, why);
    if (rc < 0)
        kvf_publication_free(p);
    return rc;
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
        n += kvf_store_live(kvf_blocks_store(b), key, k) != NULL;
        (void)kvf_store_fail(kvf_blocks_store(b), key, k, reason, len, ttl_ms,
                             NULL);
        if (l == NULL)
            break;
        l = kvf_layout_next(b, l);
    }
    return n;
}

/* ---- what may be read --------------------------------------------------- */

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
