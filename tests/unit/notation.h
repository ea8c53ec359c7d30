/* Tests write messages as text: JSON with ' for quotes, plus <hex> for bin and
 * nil. Any other byte where a value is due fails the test. */
#ifndef KVF_TESTS_NOTATION_H
#define KVF_TESTS_NOTATION_H

#include "wire/mp.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *notation_value(struct kvf_mpw *w, const char *p);

static const char *notation_skip(const char *p)
{
    while (*p == ' ' || *p == ',' || *p == ':')
        p++;
    return p;
}

static const char *notation_list(struct kvf_mpw *w, const char *p, char end)
{
    struct kvf_mpw in;
    unsigned n = 0;

    kvf_mpw_init(&in);
    for (p = notation_skip(p + 1); *p != end; p = notation_skip(p), n++)
        p = notation_value(&in, p);
    if (end == '}')
        kvf_mpw_map(w, n / 2);
    else
        kvf_mpw_array(w, n);
    kvf_mpw_raw(w, in.buf.data, in.buf.size);
    kvf_mpw_fini(&in);
    return p + 1;
}

static const char *notation_bin(struct kvf_mpw *w, const char *p)
{
    uint8_t b[256];
    size_t n = 0;

    for (p++; *p != '>'; p += 2) {
        char two[3] = {p[0], p[1], 0};

        b[n++] = (uint8_t)strtoul(two, NULL, 16);
    }
    kvf_mpw_bin(w, b, n);
    return p + 1;
}

static const char *notation_number(struct kvf_mpw *w, const char *p)
{
    char *end;

    if (*p == '-') {
        msgpack_pack_int64(&w->pk, strtoll(p, &end, 10));
        return end;
    }
    if (p[strspn(p, "0123456789")] == '.')
        kvf_mpw_double(w, strtod(p, &end));
    else
        kvf_mpw_u64(w, strtoull(p, &end, 10));
    if (end == p) {
        fprintf(stderr, "notation: %s\n", p);
        abort();
    }
    return end;
}

static const char *notation_value(struct kvf_mpw *w, const char *p)
{
    const char *end;

    if (*p == '{' || *p == '[')
        return notation_list(w, p, *p == '{' ? '}' : ']');
    if (*p == '<')
        return notation_bin(w, p);
    if (*p == '\'') {
        end = strchr(p + 1, '\'');
        kvf_mpw_strn(w, p + 1, (size_t)(end - p - 1));
        return end + 1;
    }
    if (strncmp(p, "nil", 3) == 0) {
        kvf_mpw_nil(w);
        return p + 3;
    }
    if (strncmp(p, "true", 4) == 0 || strncmp(p, "false", 5) == 0) {
        kvf_mpw_bool(w, *p == 't');
        return p + (*p == 't' ? 4 : 5);
    }
    return notation_number(w, p);
}
#endif
