/* See utf8.h. The bounds of the second byte keep out overlong forms, surrogates
 * and what lies beyond U+10FFFF. */
#include "base/utf8.h"

#include <stdint.h>
#include <string.h>

size_t kvf_utf8_len(const void *text, size_t n)
{
    const uint8_t *s = text;
    uint8_t lo = 0x80, hi = 0xbf;
    size_t len;

    if (n == 0 || s[0] < 0x80)
        return n > 0;
    len = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4 || len > n)
        return 0;
    if (s[0] == 0xe0)
        lo = 0xa0;
    else if (s[0] == 0xed)
        hi = 0x9f;
    else if (s[0] == 0xf0)
        lo = 0x90;
    else if (s[0] == 0xf4)
        hi = 0x8f;
    if (s[1] < lo || s[1] > hi)
        return 0;
    for (size_t i = 2; i < len; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    return len;
}

size_t kvf_utf8_prefix(const char *text, size_t len)
{
    const uint8_t *s = (const uint8_t *)text;

    while (len > 0) {
        size_t step;

        if (len >= 8) {
            uint64_t eight;

            memcpy(&eight, s, sizeof eight);
            if ((eight & 0x8080808080808080ull) == 0) {
                s += 8;
                len -= 8;
                continue;
            }
        }
        step = kvf_utf8_len(s, len);
        if (step == 0)
            break;
        s += step;
        len -= step;
    }
    return (size_t)(s - (const uint8_t *)text);
}

bool kvf_utf8_valid(const char *text, size_t len)
{
    return kvf_utf8_prefix(text, len) == len;
}
