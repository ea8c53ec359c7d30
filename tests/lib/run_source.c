/* See run_source.h. */
#include "run_source.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define UNTOUCHED 0xee

static size_t next(void *arg, struct kvf_run *out, size_t cap)
{
    struct run_source *s = arg;
    size_t n = s->n - s->at;

    if (n > cap)
        n = cap;
    /* How many come at once must not matter. */
    if (n > 1 && kvf_rng_below(&s->rng, 3) == 0)
        n = 1 + kvf_rng_below(&s->rng, n);
    if (n > 0)
        memcpy(out, s->v + s->at, n * sizeof *out);
    s->at += n;
    return n;
}

static void rewind_source(void *arg)
{
    struct run_source *s = arg;

    s->at = 0;
    s->rewinds++;
}

static void cut_payload(struct run_source *s, struct kvf_rng *rng,
                        uint64_t size, uint64_t max)
{
    size_t cap = 64;

    s->v = malloc(cap * sizeof *s->v);
    for (uint64_t at = 0; at < size;) {
        uint64_t len = kvf_rng_below(rng, max + 1);

        if (len > size - at)
            len = size - at;
        if (kvf_rng_below(rng, 8) != 0) {
            if (s->n == cap)
                s->v = realloc(s->v, (cap *= 2) * sizeof *s->v);
            s->v[s->n++] = (struct kvf_run){at, len, NULL};
            s->bytes += len;
            s->n_real += len > 0;
        }
        at += len;
    }
}

/* Half of the time the order of the payload stays, as plans have it. */
static void shuffle(struct run_source *s, struct kvf_rng *rng)
{
    if (kvf_rng_below(rng, 2) == 0)
        return;
    for (size_t i = s->n; i > 1; i--) {
        size_t k = kvf_rng_below(rng, i);
        struct kvf_run t = s->v[k];

        s->v[k] = s->v[i - 1];
        s->v[i - 1] = t;
    }
}

void run_source_init(struct run_source *s, struct kvf_rng *rng, uint64_t size,
                     uint64_t max)
{
    uint64_t at = 0, *gap;

    *s = (struct run_source){.size = size};
    s->src = (struct kvf_run_source){next, rewind_source, s};
    kvf_rng_seed(&s->rng, 1);
    cut_payload(s, rng, size, max);
    shuffle(s, rng);
    gap = calloc(s->n + 1, sizeof *gap);
    for (size_t i = 0; i <= s->n; i++) {
        gap[i] = kvf_rng_below(rng, 2) != 0 ? kvf_rng_below(rng, 100) : 0;
        s->local_size += gap[i] + (i < s->n ? s->v[i].length : 0);
    }
    s->local_size++; /* never empty */
    s->local = malloc(s->local_size);
    memset(s->local, UNTOUCHED, s->local_size);
    for (size_t i = 0; i < s->n; i++) {
        at += gap[i];
        s->v[i].local = s->local + at;
        at += s->v[i].length;
    }
    free(gap);
}

void run_source_check(const struct run_source *s, const uint8_t *payload)
{
    uint8_t *want = malloc(s->local_size);

    memset(want, UNTOUCHED, s->local_size);
    for (size_t i = 0; i < s->n; i++)
        memcpy(want + ((uint8_t *)s->v[i].local - s->local),
               payload + s->v[i].offset, s->v[i].length);
    assert_memory_equal(want, s->local, s->local_size);
    free(want);
}

void run_source_fill(struct run_source *s)
{
    for (uint64_t i = 0; i < s->local_size; i++)
        s->local[i] = (uint8_t)(i * 13 + (i >> 9) + 7);
}

void run_source_check_written(const struct run_source *s,
                              const uint8_t *payload, const uint8_t *before)
{
    uint8_t *want = malloc(s->size);

    memcpy(want, before, s->size);
    for (size_t i = 0; i < s->n; i++)
        memcpy(want + s->v[i].offset, s->v[i].local, s->v[i].length);
    assert_memory_equal(want, payload, s->size);
    free(want);
}

void run_source_free(struct run_source *s)
{
    free(s->v);
    free(s->local);
}
