/* Reading and checking a configuration.
 *
 * inih finds sections, names and values; the line reader below counts lines,
 * takes comments away and reports what is not INI at all. Every value goes
 * through the table, then the whole is checked for what no single key shows.
 * All errors are reported, none stops the reading. */
#include "conf/conf.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <ini.h>

#include "conf/conf_table.h"

#define LINE_MAX_BYTES 190 /* inih's buffer is 200 */
#define FILE_MAX_BYTES (4u << 20)

enum in_section {
    IN_NONE,  /* no section header yet */
    IN_WRONG, /* a header that was reported: its keys are passed over */
    IN_PLAIN,
    IN_EDGE,
    IN_PEER
};

struct parser {
    struct kvf_conf *c;
    const char *name;
    FILE *err;
    const char *at, *end;
    unsigned line, errors;
    enum in_section in;
    char section[LINE_MAX_BYTES]; /* as written */
    unsigned index;               /* of the edge or peer */
    uint64_t seen;                /* keys of plain sections, one bit a row */
    unsigned key_line[64];        /* where they are */
    uint64_t edge_seen[KVF_CONF_EDGES];
    unsigned edge_line[KVF_CONF_EDGES];      /* of the last line about it */
    unsigned char peer_seen[KVF_CONF_PEERS]; /* 1 host, 2 port */
    unsigned peer_line[KVF_CONF_PEERS];
};

static void bad(struct parser *p, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

static void bad(struct parser *p, const char *fmt, ...)
{
    va_list ap;

    p->errors++;
    if (p->err == NULL)
        return;
    fprintf(p->err, "%s:%u: ", p->name, p->line);
    va_start(ap, fmt);
    vfprintf(p->err, fmt, ap);
    va_end(ap);
    fputc('\n', p->err);
}

void kvf_conf_defaults(struct kvf_conf *c)
{
    memset(c, 0, sizeof *c);
    for (unsigned i = 0; i < kvf_n_keys; i++)
        if (kvf_keys[i].base == KVF_IN_CONF)
            (void)kvf_key_parse(&kvf_keys[i], c, c, kvf_keys[i].def, NULL);
}

/* Edit distance of short names; anything long counts as far. */
static unsigned distance(const char *a, const char *b)
{
    unsigned row[64];
    size_t n = strlen(b);

    if (n >= 64 || strlen(a) >= 64)
        return 99;
    for (unsigned j = 0; j <= n; j++)
        row[j] = j;
    for (unsigned i = 1; *a != '\0'; a++, i++) {
        unsigned diag = row[0];

        row[0] = i;
        for (size_t j = 1; j <= n; j++) {
            unsigned best = diag + (*a != b[j - 1]);

            diag = row[j];
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[n];
}

static const char *nearest(const char *section, const char *name)
{
    const char *best = "";
    unsigned far = 99;

    for (unsigned i = 0; i < kvf_n_keys; i++) {
        const char *s =
            section != NULL ? kvf_keys[i].name : kvf_keys[i].section;
        unsigned d;

        if (section != NULL && strcmp(section, kvf_keys[i].section) != 0)
            continue;
        d = distance(name, s);
        if (d < far) {
            far = d;
            best = s;
        }
    }
    if (section == NULL && distance(name, "peer") < far)
        best = "peer";
    return best;
}

static unsigned row_of(const char *section, const char *name)
{
    unsigned i = 0;

    while (i < kvf_n_keys && (strcmp(kvf_keys[i].section, section) != 0 ||
                              strcmp(kvf_keys[i].name, name) != 0))
        i++;
    return i;
}

static void set_key(struct parser *p, const char *section, void *base,
                    uint64_t *seen, const char *name, const char *value)
{
    unsigned i = row_of(section, name);
    struct kvf_why why;

    if (i == kvf_n_keys) {
        bad(p, "[%s] %s: no such key; did you mean %s?", p->section, name,
            nearest(section, name));
        return;
    }
    if ((*seen & 1ull << i) != 0) {
        bad(p, "[%s] %s: given twice; allowed: once", p->section, name);
        return;
    }
    *seen |= 1ull << i;
    p->key_line[i] = p->line;
    if (kvf_key_parse(&kvf_keys[i], base, p->c, value, &why) != 0)
        bad(p, "[%s] %s = %s: %s", p->section, name, value, why.text);
}

/* A small number up to `max`, then `next`; NULL when it is not that. */
static const char *take_number(const char *s, uint32_t max, uint32_t *out)
{
    uint32_t v = 0;
    const char *start = s;

    for (; *s >= '0' && *s <= '9' && v <= max; s++)
        v = v * 10 + (uint32_t)(*s - '0');
    if (s == start || v > max)
        return NULL;
    *out = v;
    return s;
}

static enum in_section open_edge(struct parser *p)
{
    struct kvf_conf *c = p->c;
    uint32_t from, to;
    const char *s = take_number(p->section + 5, KVF_STAGE_MAX, &from);
    unsigned i = 0;

    if (s == NULL || strncmp(s, "->", 2) != 0 ||
        (s = take_number(s + 2, KVF_STAGE_MAX, &to)) == NULL || *s != '\0') {
        bad(p, "[%s]: not an edge; allowed: [edge FROM->TO], stages 0 to %d",
            p->section, KVF_STAGE_MAX);
        return IN_WRONG;
    }
    while (i < c->n_edges && (c->edge[i].from != from || c->edge[i].to != to))
        i++;
    if (i == KVF_CONF_EDGES) {
        bad(p, "[%s]: too many edges; allowed: %d", p->section, KVF_CONF_EDGES);
        return IN_WRONG;
    }
    if (i == c->n_edges) {
        c->n_edges++;
        c->edge[i] = (struct kvf_conf_edge){.from = from, .to = to};
        kvf_edge_defaults(&c->edge[i]);
    }
    p->index = i;
    p->edge_line[i] = p->line;
    return IN_EDGE;
}

static enum in_section open_peer(struct parser *p)
{
    struct kvf_conf *c = p->c;
    struct kvf_worker w = {0, 0, 0};
    const char *s = take_number(p->section + 5, KVF_STAGE_MAX, &w.stage);
    unsigned i = 0;

    s = s != NULL && *s == '.' ? take_number(s + 1, KVF_RANK_MAX, &w.rank)
                               : NULL;
    if (s != NULL && *s == '.')
        s = take_number(s + 1, KVF_REPLICA_MAX, &w.replica);
    if (s == NULL || *s != '\0') {
        bad(p,
            "[%s]: not a worker; allowed: [peer STAGE.RANK[.REPLICA]], up to "
            "%d.%d.%d",
            p->section, KVF_STAGE_MAX, KVF_RANK_MAX, KVF_REPLICA_MAX);
        return IN_WRONG;
    }
    while (i < c->n_peers && !kvf_worker_equal(&c->peer[i].worker, &w))
        i++;
    if (i == KVF_CONF_PEERS) {
        bad(p, "[%s]: too many peers; allowed: %d", p->section, KVF_CONF_PEERS);
        return IN_WRONG;
    }
    if (i == c->n_peers) {
        c->n_peers++;
        c->peer[i] = (struct kvf_conf_peer){.worker = w};
    }
    p->index = i;
    p->peer_line[i] = p->line;
    return IN_PEER;
}

/* A section header; sections are checked here, so that one without keys is
 * noticed too. */
static enum in_section open_section(struct parser *p)
{
    if (strncmp(p->section, "edge ", 5) == 0)
        return open_edge(p);
    if (strncmp(p->section, "peer ", 5) == 0)
        return open_peer(p);
    for (unsigned i = 0; i < kvf_n_keys; i++)
        if (kvf_keys[i].base == KVF_IN_CONF &&
            strcmp(kvf_keys[i].section, p->section) == 0)
            return IN_PLAIN;
    bad(p, "[%s]: no such section; did you mean [%s]?", p->section,
        nearest(NULL, p->section));
    return IN_WRONG;
}

static void set_peer(struct parser *p, const char *name, const char *value)
{
    struct kvf_conf_peer *peer = &p->c->peer[p->index];
    unsigned char *seen = &p->peer_seen[p->index];
    unsigned char bit = strcmp(name, "host") == 0   ? 1
                        : strcmp(name, "port") == 0 ? 2
                                                    : 0;
    struct kvf_why why;
    uint64_t port = 0;

    if (bit == 0) {
        bad(p, "[%s] %s: no such key; allowed: host, port", p->section, name);
        return;
    }
    if ((*seen & bit) != 0) {
        bad(p, "[%s] %s: given twice; allowed: once", p->section, name);
        return;
    }
    *seen |= bit;
    p->peer_line[p->index] = p->line;
    if (bit == 2) {
        if (kvf_parse_u64(value, &port) != 0 || port == 0 || port > 65535)
            bad(p, "[%s] port = %s: not a port; allowed: 1 to 65535",
                p->section, value);
        else
            peer->port = (uint16_t)port;
    } else if (strlen(value) >= sizeof peer->host ||
               kvf_form_host(value, &why) != 0 || strcmp(value, "auto") == 0) {
        bad(p,
            "[%s] host = %s: not a host; allowed: a numeric address, or a "
            "name of A-Z a-z 0-9 . -",
            p->section, value);
    } else {
        memcpy(peer->host, value, strlen(value) + 1);
    }
}

static int on_key(void *arg, const char *section, const char *name,
                  const char *value)
{
    struct parser *p = arg;

    (void)section; /* cut by inih when long; ours is whole */
    switch (p->in) {
    case IN_NONE:
        bad(p, "%s: a key before any [section]", name);
        break;
    case IN_WRONG:
        break;
    case IN_PLAIN:
        set_key(p, p->section, p->c, &p->seen, name, value);
        break;
    case IN_EDGE:
        p->edge_line[p->index] = p->line;
        set_key(p, "edge", &p->c->edge[p->index], &p->edge_seen[p->index], name,
                value);
        break;
    case IN_PEER:
        set_peer(p, name, value);
        break;
    }
    return 1;
}

/* What must hold for any line. Returns false when it was reported. */
static bool line_valid(struct parser *p, const char *s, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)s[i];

        if ((c < 0x20 && c != '\t') || c == 0x7f) {
            bad(p, "a control byte (0x%02x); allowed: text", c);
            return false;
        }
    }
    if (len > LINE_MAX_BYTES) {
        bad(p, "the line is too long; allowed: %d bytes", LINE_MAX_BYTES);
        return false;
    }
    if (len == 0 || (s[0] != '[' && memchr(s, '=', len) != NULL))
        return true;
    if (s[0] == '[' && memchr(s, ']', len) == s + len - 1) {
        memcpy(p->section, s + 1, len - 2);
        p->section[len - 2] = '\0';
        p->in = open_section(p);
        return true;
    }
    if (s[0] == '[')
        p->in = IN_WRONG;
    bad(p, "neither [section] nor key = value");
    return false;
}

/* fgets for inih: one line a call, trimmed, without its comment. */
static char *next_line(char *out, int cap, void *arg)
{
    struct parser *p = arg;
    const char *end;
    size_t len;

    if (p->at == p->end || cap < 2)
        return NULL;
    end = memchr(p->at, '\n', (size_t)(p->end - p->at));
    if (end == NULL)
        end = p->end;
    if (p->line++ == 0 && end - p->at >= 3 &&
        memcmp(p->at, "\xef\xbb\xbf", 3) == 0)
        p->at += 3; /* an editor's byte order mark */
    /* Indented lines would be taken as continued ones. */
    while (p->at < end && (*p->at == ' ' || *p->at == '\t'))
        p->at++;
    len = (size_t)(end - p->at);
    for (size_t i = 0; i < len; i++)
        if ((p->at[i] == ';' || p->at[i] == '#') &&
            (i == 0 || p->at[i - 1] == ' ' || p->at[i - 1] == '\t'))
            len = i;
    while (len != 0 && strchr(" \t\r", p->at[len - 1]) != NULL)
        len--;
    if (!line_valid(p, p->at, len) || len + 2 > (size_t)cap)
        len = 0;
    memcpy(out, p->at, len);
    out[len] = '\n';
    out[len + 1] = '\0';
    p->at = end < p->end ? end + 1 : end;
    return out;
}

/* Errors about several keys carry the last line that gave one of them. */
static void at_keys(struct parser *p, const char *const (*keys)[2])
{
    p->line = 0;
    for (; (*keys)[0] != NULL; keys++) {
        unsigned i = row_of((*keys)[0], (*keys)[1]);

        if (p->key_line[i] > p->line)
            p->line = p->key_line[i];
    }
}

static void check_ports(struct parser *p)
{
    static const char *const keys[][2] = {
        {"worker", "stage"},       {"worker", "rank"},
        {"worker", "replica"},     {"connector", "zmq_port"},
        {"connector", "rpc_port"}, {NULL, NULL}};
    const struct kvf_conf *c = p->c;
    uint16_t own = kvf_conf_port(c->zmq_port, &c->self);

    at_keys(p, keys);
    if (c->zmq_port != KVF_PORT_AUTO && own == 0)
        bad(p,
            "[connector] zmq_port = %d: the port of worker " KVF_WORKER_FMT
            " (zmq_port + 100 + 1024*replica + 16*rank + stage) is above "
            "65535; allowed: up to %u, or auto",
            c->zmq_port, KVF_WORKER_ARG(&c->self),
            65535 - 100 - 1024 * c->self.replica - 16 * c->self.rank -
                c->self.stage);
    if (own != 0 && c->rpc_port == own)
        bad(p,
            "[connector] rpc_port = %d: is this worker's metadata port too; "
            "allowed: another port, or auto",
            c->rpc_port);
}

/* What no single key shows. */
static void check_all(struct parser *p)
{
    static const char *const backoff[][2] = {
        {"retry", "backoff_ms"}, {"retry", "backoff_max_ms"}, {NULL, NULL}};
    static const char *const frame[][2] = {
        {"connector", "inline_max"}, {"connector", "max_frame"}, {NULL, NULL}};
    const struct kvf_conf *c = p->c;

    check_ports(p);
    at_keys(p, backoff);
    if (c->backoff_max_ms < c->backoff_ms)
        bad(p, "[retry] backoff_max_ms: below backoff_ms");
    at_keys(p, frame);
    if (c->inline_max > c->max_frame)
        bad(p, "[connector] inline_max: above max_frame");
    for (unsigned i = 0; i < c->n_edges; i++) {
        const struct kvf_conf_edge *e = &c->edge[i];

        p->line = p->edge_line[i];
        if (e->from_tp % e->to_tp != 0 && e->to_tp % e->from_tp != 0)
            bad(p,
                "[edge %u->%u] from_tp = %u, to_tp = %u: no mapping; "
                "allowed: one divides the other",
                e->from, e->to, e->from_tp, e->to_tp);
    }
    for (unsigned i = 0; i < c->n_peers; i++) {
        p->line = p->peer_line[i];
        if (p->peer_seen[i] != 3)
            bad(p,
                "[peer " KVF_WORKER_FMT "]: %s is missing; host and port are "
                "both required",
                KVF_WORKER_ARG(&c->peer[i].worker),
                (p->peer_seen[i] & 1) != 0 ? "port" : "host");
    }
}

int kvf_conf_parse(struct kvf_conf *c, const char *text, size_t len,
                   const char *name, FILE *err, unsigned *n_errors)
{
    struct parser *p = calloc(1, sizeof *p);
    unsigned errors = 1;

    if (p != NULL) {
        p->c = c;
        p->name = name;
        p->err = err;
        p->at = text;
        p->end = text + len;
        kvf_conf_defaults(c);
        if (ini_parse_stream(next_line, p, on_key, p) != 0)
            bad(p, "not an INI file");
        check_all(p);
        errors = p->errors;
    }
    free(p);
    if (n_errors != NULL)
        *n_errors = errors;
    return errors == 0 ? 0 : -(int)KVF_INVALID;
}

int kvf_conf_load(struct kvf_conf *c, const char *path, FILE *err,
                  unsigned *n_errors)
{
    FILE *f = fopen(path, "re");
    char *text = malloc(FILE_MAX_BYTES);
    size_t len = 0;
    int rc = -(int)KVF_INVALID;

    errno = f != NULL ? 0 : errno;
    if (f != NULL && text != NULL)
        len = fread(text, 1, FILE_MAX_BYTES, f);
    if (f == NULL || text == NULL || ferror(f) || len == FILE_MAX_BYTES) {
        if (err != NULL)
            fprintf(err, "%s: cannot be read: %s\n", path,
                    errno != 0 ? strerror(errno) : "too large");
        if (n_errors != NULL)
            *n_errors = 1;
    } else {
        rc = kvf_conf_parse(c, text, len, path, err, n_errors);
    }
    if (f != NULL)
        fclose(f);
    free(text);
    return rc;
}
