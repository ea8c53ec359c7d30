/* A request's own refusals, and the tokens that it wants.
 *
 * Happy path: ids in range, none twice, both lists cover what is wanted; each
 * check in the order of the list over all groups. Time is linear in the ids.
 * Failure modes: the refusals, and memory for the table of seen ids. */
#include "plan.h"

#include <inttypes.h>
#include <stdlib.h>

static const char letter[] = "PD";

struct kvf_span kvf_want(const struct kvf_side *d, unsigned group,
                         const struct kvf_request *r)
{
    const struct kvf_ids *x = &r->ids[1][group];
    int64_t lo = x->first * d->bs * d->ppl;

    if (x->n == 0)
        return (struct kvf_span){0, 0};
    if (d->groups[group].kind == KVF_SWA &&
        r->n_tokens - d->groups[group].window + 1 > lo)
        lo = r->n_tokens - d->groups[group].window + 1;
    return (struct kvf_span){lo, r->n_tokens};
}

/* first .. first + n in tokens, within 63 bits? */
static bool tokens_fit(const struct kvf_side *s, const struct kvf_ids *x)
{
    int64_t size, end;

    return !__builtin_mul_overflow(s->bs, s->ppl, &size) &&
           !__builtin_add_overflow(x->first, (int64_t)x->n, &end) &&
           !__builtin_mul_overflow(end, size, &end);
}

static int check_numbers(const struct kvf_side *const side[2],
                         const struct kvf_request *r, struct kvf_refusal *no)
{
    for (int s = 0; s < 2; s++)
        for (unsigned g = 0; g < side[s]->n_groups; g++)
            if (!tokens_fit(side[s], &r->ids[s][g]))
                return kvf_refuse(no, KVF_E_OVERFLOW,
                                  "%c: group %u: positions do not fit in 63 "
                                  "bits",
                                  letter[s], g);
    for (int s = 0; s < 2; s++)
        for (unsigned g = 0; g < side[s]->n_groups; g++) {
            const struct kvf_ids *x = &r->ids[s][g];

            if (x->first < 0)
                return kvf_refuse(no, KVF_E_BLOCK_RANGE,
                                  "%c: group %u starts at block %" PRId64,
                                  letter[s], g, x->first);
            for (size_t i = 0; i < x->n; i++)
                if (x->ids[i] < 0 || x->ids[i] >= side[s]->nblocks)
                    return kvf_refuse(
                        no, KVF_E_BLOCK_RANGE,
                        "%c: group %u: block %" PRId64 " of %" PRId64,
                        letter[s], g, x->ids[i], side[s]->nblocks);
        }
    return 0;
}

/* A set of numbers >= 0: open addressing, at most half full. */
struct seen {
    int64_t *slot; /* id + 1; 0 is empty */
    uint64_t mask;
};

static bool seen_before(struct seen *t, int64_t id)
{
    uint64_t h = (uint64_t)id * 0x9e3779b97f4a7c15u;

    for (h ^= h >> 32;; h++) {
        int64_t *s = &t->slot[h & t->mask];

        if (*s == id + 1)
            return true;
        if (*s == 0) {
            *s = id + 1;
            return false;
        }
    }
}

static int check_dup(const struct kvf_side *const side[2],
                     const struct kvf_request *r, struct kvf_refusal *no)
{
    struct seen t = {0};
    int rc = 0;

    for (int s = 0; s < 2 && rc == 0; s++) {
        bool shared = side[s]->shared;
        size_t total = 1, cap = 16;

        for (unsigned g = 0; g < side[s]->n_groups; g++)
            total += r->ids[s][g].n;
        while (cap < total * 2)
            cap *= 2;
        for (unsigned g = 0; g < side[s]->n_groups && rc == 0; g++) {
            const struct kvf_ids *x = &r->ids[s][g];

            if (x->n == 0)
                continue;
            if (t.slot == NULL || !shared) {
                free(t.slot);
                for (cap = shared ? cap : 16; cap < x->n * 2;)
                    cap *= 2;
                t = (struct seen){calloc(cap, sizeof *t.slot), cap - 1};
            }
            if (t.slot == NULL)
                return kvf_refuse(no, KVF_E_MEMORY, "no memory");
            for (size_t i = 0; i < x->n && rc == 0; i++)
                if (seen_before(&t, x->ids[i]))
                    rc = kvf_refuse(no, KVF_E_BLOCK_DUP,
                                    "%c: group %u: block %" PRId64
                                    " is used twice",
                                    letter[s], g, x->ids[i]);
        }
        free(t.slot);
        t.slot = NULL;
    }
    return rc;
}

int kvf_ids_legal(const struct kvf_side *s, int which,
                  const struct kvf_ids *ids, struct kvf_refusal *no)
{
    const struct kvf_side nobody = {0};
    const struct kvf_side *const side[2] = {which == 0 ? s : &nobody,
                                            which == 0 ? &nobody : s};
    const struct kvf_request r = {.ids = {ids, ids}};
    int rc = check_numbers(side, &r, no);

    return rc < 0 ? rc : check_dup(side, &r, no);
}

/* Do the ids of a side reach over the wanted tokens? */
static bool covers(const struct kvf_side *s, const struct kvf_ids *x,
                   struct kvf_span want)
{
    int64_t size = s->bs * s->ppl;

    return want.lo >= want.hi || (x->first * size <= want.lo &&
                                  (x->first + (int64_t)x->n) * size >= want.hi);
}

static int check_cover(const struct kvf_side *const side[2], int s,
                       const struct kvf_request *r, struct kvf_refusal *no)
{
    for (unsigned g = 0; g < side[s]->n_groups; g++) {
        const struct kvf_ids *x = &r->ids[s][g];
        struct kvf_span want = kvf_want(side[1], g, r);

        if (side[1]->groups[g].kind != KVF_GSSM && !covers(side[s], x, want))
            return kvf_refuse(no,
                              s == 1 ? KVF_E_LOCAL_SHORT : KVF_E_BLOCKS_SHORT,
                              "%c: group %u: %zu blocks from position %" PRId64
                              " do not hold tokens %" PRId64 " to %" PRId64,
                              letter[s], g, x->n, x->first, want.lo, want.hi);
    }
    return 0;
}

int kvf_request_check(const struct kvf_side *p, const struct kvf_side *d,
                      const struct kvf_request *r, struct kvf_refusal *no)
{
    const struct kvf_side *const side[2] = {p, d};
    int rc;

    if ((rc = check_numbers(side, r, no)) < 0 ||
        (rc = check_dup(side, r, no)) < 0)
        return rc;
    for (unsigned g = 0; g < d->n_groups; g++)
        if (d->groups[g].kind == KVF_GSSM && r->ids[1][g].n != 0 &&
            r->ids[0][g].n != r->ids[1][g].n)
            return kvf_refuse(no, KVF_E_SSM_SLOTS,
                              "group %u: %zu slots on P, %zu on D", g,
                              r->ids[0][g].n, r->ids[1][g].n);
    if ((rc = check_cover(side, 1, r, no)) < 0)
        return rc;
    return check_cover(side, 0, r, no);
}
