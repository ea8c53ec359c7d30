/* Copies of payload bytes, ordinary and with non-temporal stores.
 *
 * A non-temporal store does not first read the line it overwrites and does not
 * push other data out of the caches: it wins for blocks that are cold or large
 * and loses for small hot ones. Streams need an aligned destination, so the
 * ends are copied plainly. No failure modes. */
#include "memory/copy.h"

#include <stdint.h>
#include <string.h>

/* Measured medians in GB/s on an EPYC with 32 MiB of L3, memcpy / non-temporal:
 * 64 KiB hot 97/35, 1 MiB hot 45/36, 16 MiB hot 19/29; cold 17/19, 13/19,
 * 13/20. What a transfer moves is cold as a rule, so the line lies low, where
 * an unlucky guess costs microseconds. */
const size_t kvf_copy_nt_min = 256u << 10;

#if defined(__x86_64__)

#include <immintrin.h>

#define BLOCK 256u /* bytes a turn: four lines in flight */

#define PAGE 4096u
#define PAGES 8u /* read at once, where there are as many */

/* Two lines of each of PAGES pages in turn: more is fetched at once than the
 * processor's own prefetcher would, which stops at the end of a page. GB/s of
 * one page after the other / of eight, in blocks of 64 KiB, on a Xeon with 2
 * MiB of L2: 8 MiB hot 14.5/14.8, 32 MiB hot 14.2/15.4, 256 MiB 8.5/10.1 (two
 * pages 9.4, four 9.5; software prefetch 8.4 to 9.6). */
__attribute__((target("avx512f"))) static void
stream512_pages(uint8_t *dst, const uint8_t *src)
{
    for (size_t i = 0; i < PAGE; i += 128) {
        __m512i v[2 * PAGES];

        for (unsigned p = 0; p < PAGES; p++) {
            v[2 * p] = _mm512_loadu_si512(src + p * PAGE + i);
            v[2 * p + 1] = _mm512_loadu_si512(src + p * PAGE + i + 64);
        }
        for (unsigned p = 0; p < PAGES; p++) {
            _mm512_stream_si512((void *)(dst + p * PAGE + i), v[2 * p]);
            _mm512_stream_si512((void *)(dst + p * PAGE + i + 64),
                                v[2 * p + 1]);
        }
    }
}

/* n is a multiple of BLOCK, dst aligned to 64. Both pointers are indexed by one
 * counter on purpose: advancing them measured 10 to 20 % slower from cold
 * memory. */
__attribute__((target("avx512f"))) static void
stream512(uint8_t *dst, const uint8_t *src, size_t n)
{
    size_t i = 0;

    for (; n - i >= PAGES * PAGE; i += PAGES * PAGE)
        stream512_pages(dst + i, src + i);
    for (; i < n; i += BLOCK) {
        __m512i a, b, c, d;

        a = _mm512_loadu_si512(src + i);
        b = _mm512_loadu_si512(src + i + 64);
        c = _mm512_loadu_si512(src + i + 128);
        d = _mm512_loadu_si512(src + i + 192);
        _mm512_stream_si512((void *)(dst + i), a);
        _mm512_stream_si512((void *)(dst + i + 64), b);
        _mm512_stream_si512((void *)(dst + i + 128), c);
        _mm512_stream_si512((void *)(dst + i + 192), d);
    }
}

__attribute__((target("avx2"))) static void
stream256(uint8_t *dst, const uint8_t *src, size_t n)
{
    for (size_t i = 0; i < n; i += BLOCK) {
        __m256i v[BLOCK / 32];

        for (unsigned k = 0; k < BLOCK / 32; k++)
            v[k] = _mm256_loadu_si256((const void *)(src + i + 32 * k));
        for (unsigned k = 0; k < BLOCK / 32; k++)
            _mm256_stream_si256((void *)(dst + i + 32 * k), v[k]);
    }
}

static void stream128(uint8_t *dst, const uint8_t *src, size_t n)
{
    for (size_t i = 0; i < n; i += BLOCK) {
        __m128i v[BLOCK / 16];

        for (unsigned k = 0; k < BLOCK / 16; k++)
            v[k] = _mm_loadu_si128((const void *)(src + i + 16 * k));
        for (unsigned k = 0; k < BLOCK / 16; k++)
            _mm_stream_si128((void *)(dst + i + 16 * k), v[k]);
    }
}

struct kernel {
    const char *name;
    void (*stream)(uint8_t *dst, const uint8_t *src, size_t n);
};

/* The compiler's runtime has the answers ready: a load and a test each. */
static struct kernel choose(void)
{
    if (__builtin_cpu_supports("avx512f"))
        return (struct kernel){"avx512", stream512};
    if (__builtin_cpu_supports("avx2"))
        return (struct kernel){"avx2", stream256};
    return (struct kernel){"sse2", stream128};
}

static void copy_nt(uint8_t *dst, const uint8_t *src, size_t n)
{
    size_t head = (64 - ((uintptr_t)dst & 63)) & 63, body;

    if (n < head + BLOCK) {
        memcpy(dst, src, n);
        return;
    }
    body = (n - head) / BLOCK * BLOCK;
    memcpy(dst, src, head);
    choose().stream(dst + head, src + head, body);
    memcpy(dst + head + body, src + head + body, n - head - body);
}

static void fence_nt(void)
{
    _mm_sfence();
}

const char *kvf_copy_kernel(void)
{
    return choose().name;
}

#else

static void copy_nt(uint8_t *dst, const uint8_t *src, size_t n)
{
    memcpy(dst, src, n);
}

static void fence_nt(void)
{
}

const char *kvf_copy_kernel(void)
{
    return "plain";
}

#endif

void kvf_copy_piece(void *dst, const void *src, size_t n, bool nt)
{
    if (nt)
        copy_nt(dst, src, n);
    else
        memcpy(dst, src, n);
}

void kvf_copy_fence(void)
{
    fence_nt();
    __atomic_thread_fence(__ATOMIC_RELEASE);
}

void kvf_copy(void *dst, const void *src, size_t n, bool nt)
{
    kvf_copy_piece(dst, src, n, nt);
    if (nt)
        fence_nt();
    __atomic_thread_fence(__ATOMIC_RELEASE);
}
