/* Values: text to field and back, by the type of the key. Nothing is rounded or
 * guessed: what is not wholly understood is an error that says what is. */
#include "conf/conf_table.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct unit {
    const char *name;
    uint64_t factor;
};

static int parse_units(const char *text, const struct unit *units,
                       uint64_t *out)
{
    char digits[24];
    size_t n = strspn(text, "0123456789");
    uint64_t v;

    if (n == 0 || n >= sizeof digits)
        return -(int)KVF_INVALID;
    memcpy(digits, text, n);
    digits[n] = '\0';
    for (const struct unit *u = units; u->name != NULL; u++) {
        if (strcmp(text + n, u->name) != 0)
            continue;
        if (kvf_parse_u64(digits, &v) != 0 ||
            __builtin_mul_overflow(v, u->factor, &v))
            return -(int)KVF_INVALID;
        *out = v;
        return 0;
    }
    return -(int)KVF_INVALID;
}

int kvf_parse_size(const char *text, uint64_t *out)
{
    static const struct unit units[] = {{"", 1},
                                        {"B", 1},
                                        {"KiB", 1ull << 10},
                                        {"MiB", 1ull << 20},
                                        {"GiB", 1ull << 30},
                                        {"TiB", 1ull << 40},
                                        {NULL, 0}};

    return parse_units(text, units, out);
}

int kvf_parse_duration_ms(const char *text, uint64_t *out)
{
    static const struct unit units[] = {{"", 1},        {"ms", 1},
                                        {"s", 1000},    {"m", 60000},
                                        {"h", 3600000}, {NULL, 0}};

    return parse_units(text, units, out);
}

static const char *const protocols[] = {"shm", "tcp", "rdma"};

static int parse_protocol(struct kvf_conf *c, const char *text,
                          struct kvf_why *why)
{
    enum kvf_protocol list[3] = {0};
    unsigned n = 0, seen = 0;

    if (strcmp(text, "auto") == 0) {
        c->protocol_auto = true;
        c->protocol[0] = KVF_PROTO_SHM;
        c->protocol[1] = KVF_PROTO_RDMA;
        c->protocol[2] = KVF_PROTO_TCP;
        c->n_protocol = 3;
        return 0;
    }
    for (const char *p = text;; p++) {
        size_t len;
        unsigned i = 0;

        p += strspn(p, " ");
        len = strcspn(p, ", ");
        while (i < 3 && (strlen(protocols[i]) != len ||
                         memcmp(protocols[i], p, len) != 0))
            i++;
        if (i == 3 || (seen & 1u << i) != 0)
            return kvf_fail(why, KVF_INVALID,
                            "%s; allowed: auto, or shm, tcp, rdma each at most "
                            "once, separated by commas",
                            i == 3 ? "not a protocol" : "named twice");
        seen |= 1u << i;
        list[n++] = (enum kvf_protocol)i;
        p += len;
        p += strspn(p, " ");
        if (*p == '\0')
            break;
        if (*p != ',')
            return kvf_fail(why, KVF_INVALID,
                            "a comma is missing; allowed: shm, tcp, rdma, "
                            "separated by commas");
    }
    memcpy(c->protocol, list, sizeof list);
    c->n_protocol = n;
    c->protocol_auto = false;
    return 0;
}

static int parse_number(const struct kvf_key *k, const char *text,
                        uint64_t *out, struct kvf_why *why)
{
    const char *hint = "";
    int rc;

    if (k->type == KVF_KEY_SIZE || k->type == KVF_KEY_WINDOW) {
        rc = kvf_parse_size(text, out);
        hint = " bytes (B, KiB, MiB, GiB, TiB)";
    } else if (k->type == KVF_KEY_DURATION) {
        rc = kvf_parse_duration_ms(text, out);
        hint = " ms (units ms, s, m, h)";
    } else {
        rc = kvf_parse_u64(text, out);
    }
    if (rc == 0 && *out >= k->min && *out <= k->max)
        return 0;
    return kvf_fail(
        why, KVF_INVALID, "%s; allowed: %" PRIu64 " to %" PRIu64 "%s%s",
        rc != 0 ? "not such a number" : "out of range", k->min, k->max, hint,
        k->type == KVF_KEY_PORT     ? ", or auto"
        : k->type == KVF_KEY_WINDOW ? ", or -1"
                                    : "");
}

static bool is_text(const struct kvf_key *k)
{
    return k->type == KVF_KEY_NAME || k->type == KVF_KEY_TEXT ||
           k->type == KVF_KEY_HOST || k->type == KVF_KEY_ENDPOINT ||
           k->type == KVF_KEY_DEVICE;
}

static int parse_text(const struct kvf_key *k, char *at, const char *text,
                      struct kvf_why *why)
{
    int rc = 0;

    if (k->type == KVF_KEY_NAME && !kvf_name_valid(text, k->size))
        return kvf_fail(why, KVF_INVALID,
                        "not a name; allowed: 1 to %zu of A-Z a-z 0-9 _ . -",
                        k->size - 1);
    if (*text == '\0' || strlen(text) >= k->size)
        return kvf_fail(why, KVF_INVALID,
                        "empty or too long; allowed: 1 to %zu bytes",
                        k->size - 1);
    if (k->type == KVF_KEY_DEVICE && strcmp(text, "cpu") != 0)
        return kvf_fail(why, KVF_INVALID, "not supported yet: only cpu");
    if (k->type == KVF_KEY_HOST)
        rc = kvf_form_host(text, why);
    else if (k->type == KVF_KEY_ENDPOINT)
        rc = kvf_form_endpoint(text, why);
    if (rc == 0)
        memcpy(at, text, strlen(text) + 1);
    return rc;
}

int kvf_key_parse(const struct kvf_key *k, void *base, struct kvf_conf *c,
                  const char *text, struct kvf_why *why)
{
    char *at = (char *)base + k->offset;
    uint64_t v = 0;

    switch (k->type) {
    case KVF_KEY_NAME:
    case KVF_KEY_TEXT:
    case KVF_KEY_HOST:
    case KVF_KEY_ENDPOINT:
    case KVF_KEY_DEVICE:
        return parse_text(k, at, text, why);
    case KVF_KEY_PROTOCOL:
        return parse_protocol(c, text, why);
    case KVF_KEY_LEVEL: {
        enum kvf_log_level level;

        if (kvf_log_parse_level(text, &level) != 0)
            return kvf_fail(why, KVF_INVALID,
                            "no such level; allowed: error, warn, info, debug, "
                            "trace");
        memcpy(at, &level, sizeof level);
        return 0;
    }
    case KVF_KEY_PORT:
    case KVF_KEY_WINDOW:
        if (strcmp(text, k->type == KVF_KEY_PORT ? "auto" : "-1") == 0)
            v = UINT64_MAX; /* -1 in either width */
        else if (parse_number(k, text, &v, why) != 0)
            return -(int)KVF_INVALID;
        break;
    case KVF_KEY_U32:
    case KVF_KEY_SIZE:
    case KVF_KEY_DURATION:
        if (parse_number(k, text, &v, why) != 0)
            return -(int)KVF_INVALID;
        break;
    }
    if (k->size == sizeof(uint32_t)) {
        uint32_t narrow = (uint32_t)v;

        memcpy(at, &narrow, sizeof narrow);
    } else {
        memcpy(at, &v, sizeof v);
    }
    return 0;
}

static void format_protocol(const struct kvf_conf *c, char *out, size_t cap)
{
    size_t n = 0;

    if (c->protocol_auto) {
        snprintf(out, cap, "auto");
        return;
    }
    out[0] = '\0';
    for (unsigned i = 0; i < c->n_protocol && n < cap; i++)
        n += (size_t)snprintf(out + n, cap - n, "%s%s", i != 0 ? "," : "",
                              protocols[c->protocol[i]]);
}

void kvf_key_format(const struct kvf_key *k, const void *base,
                    const struct kvf_conf *c, char *out, size_t cap)
{
    static const char *const levels[] = {"error", "warn", "info", "debug",
                                         "trace"};
    const char *at = (const char *)base + k->offset;
    uint32_t narrow;
    uint64_t v;

    if (is_text(k)) {
        snprintf(out, cap, "%s", at);
        return;
    }
    if (k->type == KVF_KEY_PROTOCOL) {
        format_protocol(c, out, cap);
        return;
    }
    if (k->size == sizeof narrow) {
        memcpy(&narrow, at, sizeof narrow);
        v = narrow;
        if (k->type == KVF_KEY_PORT && narrow == UINT32_MAX)
            v = UINT64_MAX;
    } else {
        memcpy(&v, at, sizeof v);
    }
    if (k->type == KVF_KEY_LEVEL)
        snprintf(out, cap, "%s", levels[v <= KVF_LOG_TRACE ? v : 0]);
    else if (v == UINT64_MAX)
        snprintf(out, cap, "%s", k->type == KVF_KEY_PORT ? "auto" : "-1");
    else
        snprintf(out, cap, "%" PRIu64, v);
}
