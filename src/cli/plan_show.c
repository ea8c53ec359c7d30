/* `kvferry plan --explain` and `--stats`.
 *
 * Happy path: the checked case is drawn: the ranks as shares of one line, per D
 * rank what it reads from whom, per group which blocks pair; or it is planned
 * again and again with shuffled ids and timed. Failure mode: memory. */
#include "plan.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BAR 48 /* characters of the line that the ranks share */

static const char *const group_words[] = {"full", "sliding window", "ssm"};
static const char *const kv_words[] = {"split", "blocks_first", "packed"};

int cli_plan_descs(const struct kvf_plan *plan, struct kvf_desc **out,
                   size_t *n, struct kvf_refusal *no)
{
    struct kvf_plan_iter it;
    size_t cap = 4096;
    struct kvf_desc *v = malloc(cap * sizeof *v);

    *n = 0;
    kvf_plan_begin(&it, plan);
    while (v != NULL) {
        size_t got = kvf_plan_next(&it, v + *n, cap - *n);
        struct kvf_desc *more;

        if (got == 0)
            break;
        *n += got;
        if (*n < cap)
            continue;
        more = realloc(v, 2 * cap * sizeof *v);
        if (more == NULL) {
            free(v);
            v = NULL;
            break;
        }
        v = more;
        cap *= 2;
    }
    if (v == NULL)
        return kvf_refuse(no, KVF_E_MEMORY, "no memory for the descriptors");
    *out = v;
    return 0;
}

/* The reads of one D rank. */
static void draw_side(char letter, const struct kvf_side *s)
{
    char bar[BAR + 1];

    printf("%c  tp %" PRId64 "  pp %" PRId64 "  blocks of %" PRId64
           " x %" PRId64 " tokens  %s  %s\n",
           letter, s->tp, s->pp, s->ppl, s->bs,
           s->order == KVF_HND ? "HND" : "NHD", kv_words[s->kv]);
    if (s->tp > BAR / 2)
        return;
    memset(bar, ' ', BAR);
    bar[BAR] = '\0';
    for (int64_t r = 0; r < s->tp; r++) {
        char *at = bar + r * BAR / s->tp;

        *at++ = '|';
        if (r > 9)
            *at++ = (char)('0' + r / 10);
        *at = (char)('0' + r % 10);
    }
    printf("   %s|\n", bar);
}

/* "k 0-3 of 8" for every component of a layer on a rank. */
static void draw_units(const struct kvf_side *s, const struct kvf_layer *l,
                       int64_t r)
{
    for (unsigned c = 0; c < l->n_comps; c++) {
        struct kvf_span own = kvf_own(l->comps[c].units, s->tp, r);

        printf("  %s %" PRId64, l->comps[c].name, own.lo);
        if (own.hi - own.lo > 1)
            printf("-%" PRId64, own.hi - 1);
        printf(" of %" PRId64, l->comps[c].units);
    }
}

/* Same group and components as the layer before: not told again. */
static bool like_last(const struct kvf_side *s, unsigned l)
{
    const struct kvf_layer *a, *b = &s->layers[l];

    if (l == 0)
        return false;
    a = &s->layers[l - 1];
    if (a->stage != b->stage || a->group != b->group || a->kind != b->kind ||
        a->n_comps != b->n_comps)
        return false;
    for (unsigned c = 0; c < a->n_comps; c++)
        if (a->comps[c].units != b->comps[c].units ||
            a->comps[c].bytes != b->comps[c].bytes)
            return false;
    return true;
}

static void draw_layers(const struct kvf_side *d, int64_t rank)
{
    for (unsigned l = 0; l < d->n_layers; l++) {
        unsigned n = l + 1;

        if (d->layers[l].stage != rank / d->tp || like_last(d, l))
            continue;
        while (n < d->n_layers && like_last(d, n))
            n++;
        printf("   %s", d->layers[l].name);
        if (n > l + 1)
            printf(" .. %s", d->layers[n - 1].name);
        draw_units(d, &d->layers[l], rank % d->tp);
        printf("\n");
    }
}

static void draw_sources(const struct kvf_template *t, const struct kvf_desc *v,
                         size_t n)
{
    for (size_t k = 0; k < t->n_done; k++) {
        int64_t bytes = 0, least = INT64_MAX, most = 0;
        size_t reads = 0;

        for (size_t i = 0; i < n; i++) {
            if (v[i].p_rank != t->done[k])
                continue;
            reads++;
            bytes += v[i].len;
            least = v[i].len < least ? v[i].len : least;
            most = v[i].len > most ? v[i].len : most;
        }
        printf("   <- P%" PRId64 "  ", t->done[k]);
        if (reads == 0)
            printf("told only, nothing read\n");
        else
            printf("%zu reads of %" PRId64 "%s%.0" PRId64 " bytes, %" PRId64
                   " in all\n",
                   reads, least, most > least ? " to " : "",
                   most > least ? most : 0, bytes);
    }
}

static void draw_group(const struct kvf_case *c, const struct kvf_request *r,
                       unsigned g)
{
    const struct kvf_side *d = &c->side[1];
    struct kvf_span w = kvf_want(d, g, r);
    const struct kvf_ids *x[2] = {&r->ids[0][g], &r->ids[1][g]};

    printf("group %u, %s", g, group_words[d->groups[g].kind]);
    if (d->groups[g].kind == KVF_SWA)
        printf(" of %" PRId64, d->groups[g].window);
    if (d->groups[g].kind == KVF_GSSM) {
        printf(": %zu slots\n", x[1]->n);
        for (size_t i = 0; i < x[1]->n && i < 16; i++)
            printf("   slot P %" PRId64 " -> D %" PRId64 "\n", x[0]->ids[i],
                   x[1]->ids[i]);
        return;
    }
    if (w.lo >= w.hi) {
        printf(": nothing wanted\n");
        return;
    }
    printf(": tokens %" PRId64 " to %" PRId64 "\n", w.lo, w.hi - 1);
    for (int s = 0; s < 2; s++) {
        int64_t size = c->side[s].bs * c->side[s].ppl;

        printf("   %c blocks:", "PD"[s]);
        for (size_t i = 0; i < x[s]->n; i++) {
            int64_t from = (x[s]->first + (int64_t)i) * size;

            if (i == 16) {
                printf(" ... %zu in all", x[s]->n);
                break;
            }
            printf(from < w.hi && from + size > w.lo ? " %" PRId64
                                                     : " (%" PRId64 ")",
                   x[s]->ids[i]);
        }
        printf("   from token %" PRId64 "\n", x[s]->first * size);
    }
}

int cli_plan_explain(const struct kvf_case *c, const struct kvf_request *r,
                     struct kvf_refusal *no)
{
    const struct kvf_side *p = &c->side[0], *d = &c->side[1];
    struct kvf_plan plan = {0};
    struct kvf_template *t;
    struct kvf_desc *v;
    int rc = 0;
    size_t n;

    printf("%s, %" PRId64 " tokens\n\n", c->id, c->n_tokens);
    draw_side('P', p);
    draw_side('D', d);
    printf("\n");
    for (unsigned g = 0; g < d->n_groups; g++)
        draw_group(c, r, g);
    for (int64_t rank = 0; rank < d->tp * d->pp; rank++) {
        if ((rc = kvf_template_make(p, d, rank, &t, no)) < 0)
            break;
        if ((rc = kvf_plan_make(&plan, t, r, no)) == 0 &&
            (rc = cli_plan_descs(&plan, &v, &n, no)) == 0) {
            n = kvf_desc_coalesce(v, n);
            printf("\nD%" PRId64 "  stage %" PRId64 ", tp rank %" PRId64 "\n",
                   rank, rank / d->tp, rank % d->tp);
            draw_layers(d, rank);
            draw_sources(t, v, n);
            free(v);
        }
        kvf_plan_free(&plan);
        kvf_template_free(t);
        if (rc < 0)
            return rc;
    }
    printf("\nconsumers:");
    for (int64_t rank = 0; rank < p->tp * p->pp; rank++)
        printf(" P%" PRId64 ":%" PRId64, rank, kvf_consumers(p, d, rank));
    printf("\n(blocks in brackets hold nothing that is wanted)\n");
    return rc;
}

static double now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static void shuffle(const struct kvf_ids *x, uint64_t *seed)
{
    int64_t *ids = (int64_t *)(uintptr_t)x->ids; /* the case's own */

    for (size_t i = x->n; i > 1; i--) {
        size_t k;
        int64_t swap;

        *seed = *seed * 6364136223846793005u + 1442695040888963407u;
        k = (size_t)((*seed >> 33) % i);
        swap = ids[i - 1];
        ids[i - 1] = ids[k];
        ids[k] = swap;
    }
}

static int by_value(const void *a, const void *b)
{
    const double *x = a, *y = b;

    return (*x > *y) - (*x < *y);
}

/* Batch by batch, as a transfer takes them. How many. */
static size_t walk_all(const struct kvf_plan *plan)
{
    static struct kvf_desc batch[512];
    struct kvf_plan_iter it;
    size_t n, total = 0;

    kvf_plan_begin(&it, plan);
    while ((n = kvf_plan_next(&it, batch, 512)) > 0)
        total += n;
    return total;
}

enum { ROUNDS = 51 };

/* Medians of: check and cells; walking all descriptors in batches. */
static int time_again(const struct kvf_case *c, const struct kvf_request *r,
                      const struct kvf_template *t, struct kvf_plan *plan,
                      struct kvf_refusal *no)
{
    double make[ROUNDS], walk[ROUNDS];
    uint64_t seed = 1;
    size_t total = 0;

    for (int i = 0; i < ROUNDS; i++) {
        double a, b;
        int rc;

        for (int s = 0; s < 2; s++)
            for (unsigned g = 0; g < c->side[s].n_groups; g++)
                shuffle(&r->ids[s][g], &seed);
        a = now_us();
        rc = kvf_request_check(&c->side[0], &c->side[1], r, no);
        if (rc == 0)
            rc = kvf_plan_make(plan, t, r, no);
        if (rc < 0)
            return rc;
        b = now_us();
        total = walk_all(plan);
        make[i] = b - a;
        walk[i] = now_us() - b;
    }
    qsort(make, ROUNDS, sizeof *make, by_value);
    qsort(walk, ROUNDS, sizeof *walk, by_value);
    printf("repeated with shuffled ids (median of %d): check and plan %.1f us, "
           "walk of %zu descriptors %.1f us\n",
           ROUNDS, make[ROUNDS / 2], total, walk[ROUNDS / 2]);
    return 0;
}

static int64_t sum_len(const struct kvf_desc *v, size_t n)
{
    int64_t sum = 0;

    for (size_t i = 0; i < n; i++)
        sum += v[i].len;
    return sum;
}

int cli_plan_stats(const struct kvf_case *c, const struct kvf_request *r,
                   struct kvf_refusal *no)
{
    const struct kvf_side *d = &c->side[1];
    int64_t ranks = d->tp * d->pp;
    double start = now_us();
    int rc = kvf_pair_check(&c->side[0], d, no);

    printf("check of the two layouts %.1f us\n", now_us() - start);
    for (int64_t rank = 0; rank < ranks && rc == 0; rank++) {
        struct kvf_plan plan = {0};
        double begin = now_us(), made, planned, walked;
        struct kvf_template *t;
        struct kvf_desc *v;
        size_t n, left;

        if ((rc = kvf_template_make(&c->side[0], d, rank, &t, no)) < 0)
            break;
        made = now_us();
        rc = kvf_plan_make(&plan, t, r, no);
        planned = now_us();
        n = rc == 0 ? walk_all(&plan) : 0; /* as a transfer does */
        walked = now_us();
        if (rc == 0 && (rc = cli_plan_descs(&plan, &v, &n, no)) == 0) {
            double stored = now_us();

            left = kvf_desc_coalesce(v, n);
            printf("D%" PRId64 ": %zu pieces, %zu cells, %zu descriptors "
                   "(%zu sorted), %" PRId64 " bytes, %zu to tell\n",
                   rank, t->n_pieces, plan.n_cells, n, left, sum_len(v, left),
                   t->n_done);
            free(v);
            if (rank == 0) {
                printf("first: template %.1f us, plan %.1f us, walk of %zu "
                       "descriptors %.1f us (all of them stored: %.1f us)\n",
                       made - begin, planned - made, n, walked - planned,
                       stored - walked);
                rc = time_again(c, r, t, &plan, no);
            }
        }
        kvf_plan_free(&plan);
        kvf_template_free(t);
    }
    return rc;
}
