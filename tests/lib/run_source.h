/* Random sources of runs for tests of scattered transfers, and what must be in
 * local memory afterwards. */
#ifndef KVF_TESTS_RUN_SOURCE_H
#define KVF_TESTS_RUN_SOURCE_H

#include "base/rng.h"
#include "transport/scatter.h"

struct run_source {
    struct kvf_run_source src; /* for kvf_scatter_init */
    struct kvf_run *v;
    size_t n, at;
    unsigned rewinds;
    uint64_t bytes, size;
    size_t n_real; /* runs that are not empty */
    uint8_t *local;
    uint64_t local_size;
    struct kvf_rng rng;
};

/* Cuts the payload into runs of 0 to max bytes, drops some, shuffles them and
 * gives each its place in local memory of its own, with gaps between. */
void run_source_init(struct run_source *s, struct kvf_rng *rng, uint64_t size,
                     uint64_t max);
/* Every wanted byte is in place and nothing beside them was touched. */
void run_source_check(const struct run_source *s, const uint8_t *payload);
/* For writes: fills local memory with something of its own; checks that the
 * payload has it where a run leads, and `before` elsewhere. */
void run_source_fill(struct run_source *s);
void run_source_check_written(const struct run_source *s,
                              const uint8_t *payload, const uint8_t *before);
void run_source_free(struct run_source *s);
#endif
