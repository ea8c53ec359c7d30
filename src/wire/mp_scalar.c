/* Comparing scalars as they stand in messages. MessagePack has several ways to
 * write one value, and a client is free to use one for an id and another for
 * the target that means it. Failure modes: none; what is cut short, or no
 * scalar, is the same as nothing but its own bytes. */
#include "wire/mp.h"

#include <string.h>

enum kind { BYTES, UINT, NEGATIVE, FLOAT, STR, BIN };

struct scalar {
    enum kind kind;
    uint64_t value;      /* numbers; the bits of a double for FLOAT */
    const uint8_t *body; /* STR, BIN; BYTES: all, head included */
    size_t len;
};

/* A big-endian number of `width` bytes. */
static uint64_t number(const uint8_t *p, unsigned width)
{
    uint64_t v = 0;

    for (unsigned i = 0; i < width; i++)
        v = v << 8 | p[i];
    return v;
}

static struct scalar signed_int(uint64_t bits, unsigned width)
{
    unsigned unused = 64 - 8 * width;
    int64_t v = (int64_t)(bits << unused) >> unused;

    return (struct scalar){.kind = v < 0 ? NEGATIVE : UINT,
                           .value = (uint64_t)v};
}

static struct scalar floating(uint64_t bits, unsigned width)
{
    struct scalar s = {.kind = FLOAT, .value = bits};

    if (width == 4) {
        uint32_t narrow = (uint32_t)bits;
        float f;
        double d;

        memcpy(&f, &narrow, sizeof f);
        d = (double)f;
        memcpy(&s.value, &d, sizeof s.value);
    }
    return s;
}

/* What follows the head: how many bytes of length or number, 0 for none. */
static unsigned width_of(uint8_t head)
{
    if (head >= 0xc4 && head <= 0xc6) /* bin */
        return 1u << (head - 0xc4);
    if (head == 0xca || head == 0xcb) /* float */
        return head == 0xca ? 4 : 8;
    if (head >= 0xcc && head <= 0xcf) /* uint */
        return 1u << (head - 0xcc);
    if (head >= 0xd0 && head <= 0xd3) /* int */
        return 1u << (head - 0xd0);
    if (head >= 0xd9 && head <= 0xdb) /* str */
        return 1u << (head - 0xd9);
    return 0;
}

static struct scalar read_scalar(const uint8_t *p, size_t len)
{
    struct scalar s = {.kind = BYTES, .body = p, .len = len};
    uint8_t head = len > 0 ? p[0] : 0xc0;
    unsigned width = width_of(head);
    uint64_t n;

    if (head < 0x80 || head >= 0xe0)
        return signed_int(head, 1);
    if (head >= 0xa0 && head < 0xc0)
        return (struct scalar){.kind = STR, .body = p + 1, .len = len - 1};
    if (width == 0 || len < 1 + width)
        return s;
    n = number(p + 1, width);
    if (head >= 0xcc && head <= 0xcf)
        return (struct scalar){.kind = UINT, .value = n};
    if (head >= 0xd0 && head <= 0xd3)
        return signed_int(n, width);
    if (head == 0xca || head == 0xcb)
        return floating(n, width);
    s.kind = head >= 0xd9 ? STR : BIN;
    s.body = p + 1 + width;
    s.len = len - 1 - width;
    return s;
}

bool kvf_mp_same(const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len)
{
    struct scalar x, y;

    if (a_len == b_len && memcmp(a, b, a_len) == 0)
        return true;
    x = read_scalar(a, a_len);
    y = read_scalar(b, b_len);
    if (x.kind != y.kind)
        return false;
    if (x.kind == UINT || x.kind == NEGATIVE || x.kind == FLOAT)
        return x.value == y.value;
    return x.len == y.len && memcmp(x.body, y.body, x.len) == 0;
}
