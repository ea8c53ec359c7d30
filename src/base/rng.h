/* Seeded generator (xoshiro256**) for jitter and tests, and the kernel's random
 * bytes for everything that must not be guessed. */
#ifndef KVF_BASE_RNG_H
#define KVF_BASE_RNG_H

#include <stddef.h>
#include <stdint.h>

struct kvf_rng {
    uint64_t s[4];
};

void kvf_rng_seed(struct kvf_rng *r, uint64_t seed);
uint64_t kvf_rng_next(struct kvf_rng *r);
/* Uniform in [0, n); n > 0. */
uint64_t kvf_rng_below(struct kvf_rng *r, uint64_t n);

/* getrandom(2); aborts only if the kernel has no randomness at all. */
void kvf_random_bytes(void *out, size_t len);
/* Constant-time comparison of secrets. Returns 1 when equal. */
int kvf_secret_equal(const void *a, const void *b, size_t len);
#endif
