/* Helpers of the benchmark programs. Whatever fails ends the program with a
 * sentence: a benchmark has nobody to hand an error to. */
#include "common.h"

#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

void bench_die(const char *fmt, ...)
{
    va_list ap;

    fflush(stdout);
    fprintf(stderr, "%s: ", program_invocation_short_name);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    exit(1);
}

static uint64_t clock_ns(clockid_t id)
{
    struct timespec ts;

    if (clock_gettime(id, &ts) != 0)
        return 0;
    return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

uint64_t bench_now(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

uint64_t bench_cpu(pid_t pid)
{
    clockid_t id = CLOCK_PROCESS_CPUTIME_ID;

    if (pid != 0 && clock_getcpuclockid(pid, &id) != 0)
        return 0;
    return clock_ns(id);
}

void bench_pin(unsigned nth)
{
    cpu_set_t may, one;

    if (sched_getaffinity(0, sizeof may, &may) != 0 || CPU_COUNT(&may) < 2)
        return;
    nth %= (unsigned)CPU_COUNT(&may);
    for (unsigned cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &may) || nth-- != 0)
            continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        sched_setaffinity(0, sizeof one, &one);
        return;
    }
}

uint64_t bench_size(const char *text)
{
    char *end;
    uint64_t n = strtoull(text, &end, 10);
    static const char units[] = "kmg";
    const char *unit = *end != '\0' ? strchr(units, *end | 0x20) : NULL;

    if (unit != NULL)
        n <<= 10 * (unit - units + 1);
    if (n == 0 || end == text || (*end != '\0' && (unit == NULL || end[1])))
        bench_die("%s is not a size; 4k, 16m and 1g are", text);
    return n;
}

const char *bench_size_text(uint64_t size)
{
    static char text[4][24];
    static unsigned turn;
    static const char *const units[] = {"B", "KiB", "MiB", "GiB"};
    char *out = text[turn++ % 4];
    unsigned u = 0;

    while (u < 3 && size >= 1024 && size % 1024 == 0) {
        size /= 1024;
        u++;
    }
    snprintf(out, sizeof text[0], "%llu %s", (unsigned long long)size,
             units[u]);
    return out;
}

uint64_t bench_turns(uint64_t size, uint64_t bytes)
{
    const char *most = getenv("KVF_BENCH_BYTES");

    if (most != NULL && bench_size(most) < bytes)
        bytes = bench_size(most);
    return bytes / size < 2 ? 2 : bytes / size;
}

bool bench_step(unsigned nth, unsigned rounds)
{
    char c = '\0';

    if (getenv("KVF_BENCH_STEP") == NULL)
        return nth < rounds;
    while (read(STDIN_FILENO, &c, 1) == 1)
        if (c == '\n')
            return true;
    return false;
}

void *bench_memory(uint64_t size, bool shared)
{
    int fd = shared ? memfd_create("bench", MFD_CLOEXEC) : -1;
    void *p = MAP_FAILED;

    if (!shared || (fd >= 0 && ftruncate(fd, (off_t)size) == 0))
        p = mmap(NULL, size, PROT_READ | PROT_WRITE,
                 shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, fd, 0);
    if (p == MAP_FAILED)
        bench_die("no memory for %s: %s", bench_size_text(size),
                  strerror(errno));
    memset(p, 1, size);
    if (fd >= 0)
        close(fd);
    return p;
}

static uint64_t first_word(uint64_t seed)
{
    uint64_t x = (seed + 1) * 0x9e3779b97f4a7c15ull;

    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    return x ^ (x >> 27);
}

static uint8_t byte_at(uint64_t first, uint64_t at)
{
    return (uint8_t)((first + at / 8) >> (8 * (at % 8)));
}

void bench_fill(void *p, uint64_t n, uint64_t seed, uint64_t at)
{
    uint64_t first = first_word(seed), i = 0, *w;
    uint8_t *b = p;

    for (; i < n && (at + i) % 8 != 0; i++)
        b[i] = byte_at(first, at + i);
    w = (void *)(b + i);
    for (uint64_t k = 0, base = first + (at + i) / 8; k < (n - i) / 8; k++)
        w[k] = base + k;
    for (i += (n - i) / 8 * 8; i < n; i++)
        b[i] = byte_at(first, at + i);
}

uint64_t bench_check(const void *p, uint64_t n, uint64_t seed, uint64_t at)
{
    uint64_t first = first_word(seed), i = 0, wrong = 0;
    const uint8_t *b = p;
    const uint64_t *w;

    for (; i < n && (at + i) % 8 != 0; i++)
        wrong |= b[i] ^ byte_at(first, at + i);
    w = (const void *)(b + i);
    for (uint64_t k = 0, base = first + (at + i) / 8; k < (n - i) / 8; k++)
        wrong |= w[k] ^ (base + k);
    for (i += (n - i) / 8 * 8; i < n; i++)
        wrong |= b[i] ^ byte_at(first, at + i);
    if (wrong == 0)
        return UINT64_MAX;
    for (i = 0; i < n; i++)
        if (b[i] != byte_at(first, at + i))
            break;
    return at + i;
}

uint64_t bench_quantile(uint64_t *v, uint64_t n, double q)
{
    for (uint64_t gap = n / 2; gap > 0; gap /= 2)
        for (uint64_t i = gap; i < n; i++)
            for (uint64_t k = i; k >= gap && v[k - gap] > v[k]; k -= gap) {
                uint64_t t = v[k];

                v[k] = v[k - gap];
                v[k - gap] = t;
            }
    return v[(uint64_t)((double)(n - 1) * q)];
}

uint64_t bench_sum(const void *p, uint64_t n)
{
    const uint64_t *w = p;
    const uint8_t *b = p;
    uint64_t sum = 0;

    for (uint64_t i = 0; i < n / 8; i++)
        sum += w[i];
    for (uint64_t i = n / 8 * 8; i < n; i++)
        sum += b[i];
    return sum;
}

#if defined(__x86_64__)

#include <immintrin.h>

__attribute__((target("avx512f"))) static void nt512(char *d, const char *s,
                                                     uint64_t n)
{
    for (uint64_t i = 0; i < n; i += 256)
        for (unsigned k = 0; k < 256; k += 64)
            _mm512_stream_si512((void *)(d + i + k),
                                _mm512_loadu_si512(s + i + k));
}

static void nt128(char *d, const char *s, uint64_t n)
{
    for (uint64_t i = 0; i < n; i += 16)
        _mm_stream_si128((void *)(d + i),
                         _mm_loadu_si128((const void *)(s + i)));
}

void bench_copy_nt(void *dst, const void *src, uint64_t n)
{
    uint64_t body = (uintptr_t)dst % 64 == 0 ? n / 256 * 256 : 0;

    if (__builtin_cpu_supports("avx512f"))
        nt512(dst, src, body);
    else
        nt128(dst, src, body);
    _mm_sfence();
    memcpy((char *)dst + body, (const char *)src + body, n - body);
}

#else

void bench_copy_nt(void *dst, const void *src, uint64_t n)
{
    memcpy(dst, src, n);
}

#endif
