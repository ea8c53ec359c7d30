/* Random numbers: xoshiro256** (Blackman and Vigna) seeded by splitmix64 where
 * repeatability counts, the kernel's where it must not be guessed. */
#include "base/rng.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/random.h>
#include <unistd.h>

static uint64_t rotl(uint64_t x, unsigned k)
{
    return x << k | x >> (64 - k);
}

void kvf_rng_seed(struct kvf_rng *r, uint64_t seed)
{
    for (unsigned i = 0; i < 4; i++) {
        uint64_t z = (seed += 0x9e3779b97f4a7c15ull);

        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ z >> 27) * 0x94d049bb133111ebull;
        r->s[i] = z ^ z >> 31;
    }
}

uint64_t kvf_rng_next(struct kvf_rng *r)
{
    uint64_t *s = r->s;
    uint64_t result = rotl(s[1] * 5, 7) * 9;
    uint64_t t = s[1] << 17;

    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotl(s[3], 45);
    return result;
}

uint64_t kvf_rng_below(struct kvf_rng *r, uint64_t n)
{
    /* The lowest 2^64 mod n values would make small results likelier. */
    uint64_t skip = (0 - n) % n, x;

    do
        x = kvf_rng_next(r);
    while (x < skip);
    return x % n;
}

/* For kernels and sandboxes that refuse getrandom(2). */
static void from_device(unsigned char *p, size_t len)
{
    int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        abort(); /* guessable secrets are worse than no daemon */
    while (len != 0) {
        ssize_t n = read(fd, p, len);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            abort();
        p += n;
        len -= (size_t)n;
    }
    close(fd);
}

void kvf_random_bytes(void *out, size_t len)
{
    unsigned char *p = out;

    while (len != 0) {
        ssize_t n = getrandom(p, len, 0);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            from_device(p, len);
            return;
        }
        p += n;
        len -= (size_t)n;
    }
}

int kvf_secret_equal(const void *a, const void *b, size_t len)
{
    const volatile unsigned char *x = a, *y = b;
    unsigned char diff = 0;

    for (size_t i = 0; i < len; i++)
        diff = (unsigned char)(diff | (x[i] ^ y[i]));
    return diff == 0;
}
