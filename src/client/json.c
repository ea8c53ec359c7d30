/* Replies as JSON text, for the calls whose reply is a whole tree (list, stats,
 * health, events). Depth and size were bounded when the reply was parsed. */
#include "client.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

struct text {
    char *p;
    size_t len, cap;
    bool failed;
};

static void add(struct text *t, const char *s, size_t n)
{
    if (t->len + n + 1 > t->cap && !t->failed) {
        size_t cap = (t->len + n + 1) * 2;
        char *p = realloc(t->p, cap);

        t->failed = p == NULL;
        if (p != NULL) {
            t->p = p;
            t->cap = cap;
        }
    }
    if (t->failed)
        return;
    memcpy(t->p + t->len, s, n);
    t->len += n;
    t->p[t->len] = '\0';
}

static void addf(struct text *t, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

static void addf(struct text *t, const char *fmt, ...)
{
    char small[64];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(small, sizeof small, fmt, ap);
    va_end(ap);
    add(t, small, strlen(small));
}

static void string(struct text *t, const char *s, size_t n)
{
    bool utf8 = kvf_utf8_valid(s, n);

    add(t, "\"", 1);
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];

        if (c == '"' || c == '\\')
            addf(t, "\\%c", c);
        else if (c < 0x20 || c == 0x7f)
            addf(t, "\\u%04x", c);
        else if (c >= 0x80 && !utf8)
            add(t, "\\ufffd", 6);
        else
            add(t, s + i, 1);
    }
    add(t, "\"", 1);
}

static void hex(struct text *t, const unsigned char *p, size_t n)
{
    add(t, "\"", 1);
    for (size_t i = 0; i < n; i++)
        addf(t, "%02x", p[i]);
    add(t, "\"", 1);
}

static void value(struct text *t, const msgpack_object *o, bool skip);

static bool envelope(const msgpack_object *k)
{
    return k->type == MSGPACK_OBJECT_STR &&
           ((k->via.str.size == 2 && memcmp(k->via.str.ptr, "id", 2) == 0) ||
            (k->via.str.size == 6 && memcmp(k->via.str.ptr, "status", 6) == 0));
}

static void map(struct text *t, const msgpack_object_map *m, bool skip)
{
    bool comma = false;

    add(t, "{", 1);
    for (uint32_t i = 0; i < m->size; i++) {
        const msgpack_object *k = &m->ptr[i].key;

        if (skip && envelope(k))
            continue;
        if (comma)
            add(t, ",", 1);
        comma = true;
        if (k->type == MSGPACK_OBJECT_STR) {
            string(t, k->via.str.ptr, k->via.str.size);
        } else { /* JSON has names only */
            add(t, "\"", 1);
            if (k->type == MSGPACK_OBJECT_POSITIVE_INTEGER)
                addf(t, "%" PRIu64, k->via.u64);
            add(t, "\"", 1);
        }
        add(t, ":", 1);
        value(t, &m->ptr[i].val, false);
    }
    add(t, "}", 1);
}

static void array(struct text *t, const msgpack_object_array *a)
{
    add(t, "[", 1);
    for (uint32_t i = 0; i < a->size; i++) {
        if (i > 0)
            add(t, ",", 1);
        value(t, &a->ptr[i], false);
    }
    add(t, "]", 1);
}

static void value(struct text *t, const msgpack_object *o, bool skip)
{
    switch (o->type) {
    case MSGPACK_OBJECT_BOOLEAN:
        addf(t, "%s", o->via.boolean ? "true" : "false");
        break;
    case MSGPACK_OBJECT_POSITIVE_INTEGER:
        addf(t, "%" PRIu64, o->via.u64);
        break;
    case MSGPACK_OBJECT_NEGATIVE_INTEGER:
        addf(t, "%" PRId64, o->via.i64);
        break;
    case MSGPACK_OBJECT_FLOAT32:
    case MSGPACK_OBJECT_FLOAT64:
        if (isfinite(o->via.f64))
            addf(t, "%.9g", o->via.f64);
        else
            add(t, "null", 4);
        break;
    case MSGPACK_OBJECT_STR:
        string(t, o->via.str.ptr, o->via.str.size);
        break;
    case MSGPACK_OBJECT_BIN:
        hex(t, (const unsigned char *)o->via.bin.ptr, o->via.bin.size);
        break;
    case MSGPACK_OBJECT_ARRAY:
        array(t, &o->via.array);
        break;
    case MSGPACK_OBJECT_MAP:
        map(t, &o->via.map, skip);
        break;
    case MSGPACK_OBJECT_NIL:
    case MSGPACK_OBJECT_EXT:
    default:
        add(t, "null", 4);
        break;
    }
}

char *kvfc_json(const msgpack_object *o, bool skip_envelope)
{
    struct text t = {NULL, 0, 0, false};

    value(&t, o, skip_envelope);
    if (t.failed) {
        free(t.p);
        return NULL;
    }
    return t.p;
}
