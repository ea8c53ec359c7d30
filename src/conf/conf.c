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

struct parser {
    struct kvf_conf *c;
    const char *name;
    FILE *err;
    const char *at, *end;
    unsigned line, errors;
    uint64_t seen; /* keys of plain sections, one bit a row */
    uint64_t edge_seen[KVF_CONF_EDGES];
    unsigned char peer_seen[KVF_CONF_PEERS]; /* 1 host, 2 port */
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

static void edge_defaults(struct kvf_conf_edge *e)
{
    for (unsigned i = 0; i < kvf_n_keys; i++)
        if (kvf_keys[i].base == KVF_IN_EDGE)
            (void)kvf_key_parse(&kvf_keys[i], e, NULL, kvf_keys[i].def, NULL);
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

static void set_key(struct parser *p, const char *shown, const char *section,
                    void *base, uint64_t *seen, const char *name,
                    const char *value)
{
    struct kvf_why why;

    for (unsigned i = 0; i < kvf_n_keys; i++) {
        const struct kvf_key *k = &kvf_keys[i];

        if (strcmp(k->section, section) != 0 || strcmp(k->name, name) != 0)
            continue;
        if ((*seen & 1ull << i) != 0) {
            bad(p, "[%s] %s: given twice; allowed: once", shown, name);
            return;
        }
        *seen |= 1ull << i;
        if (kvf_key_parse(k, base, p->c, value, &why) != 0)
            bad(p, "[%s] %s = %s: %s", shown, name, value, why.text);
        return;
    }
    bad(p, "[%s] %s: no such key; did you mean %s?", shown, name,
        nearest(section, name));
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

static void edge_key(struct parser *p, const char *section, const char *name,
                     const char *value)
{
    uint32_t from, to;
    const char *s = take_number(section + 5, KVF_STAGE_MAX, &from);
    unsigned i = 0;

    if (s == NULL || strncmp(s, "->", 2) != 0 ||
        (s = take_number(s + 2, KVF_STAGE_MAX, &to)) == NULL || *s != '\0') {
        bad(p, "[%s]: not an edge; allowed: [edge FROM->TO], stages 0 to %d",
            section, KVF_STAGE_MAX);
        return;
    }
    while (i < p->c->n_edges &&
           (p->c->edge[i].from != from || p->c->edge[i].to != to))
        i++;
    if (i == KVF_CONF_EDGES) {
        bad(p, "[%s]: too many edges; allowed: %d", section, KVF_CONF_EDGES);
        return;
    }
    if (i == p->c->n_edges) {
        p->c->n_edges++;
        p->c->edge[i] = (struct kvf_conf_edge){.from = from, .to = to};
        edge_defaults(&p->c->edge[i]);
    }
    set_key(p, section, "edge", &p->c->edge[i], &p->edge_seen[i], name, value);
}

static void peer_key(struct parser *p, const char *section, const char *name,
                     const char *value)
{
    struct kvf_worker w = {0, 0, 0};
    const char *s = take_number(section + 5, KVF_STAGE_MAX, &w.stage);
    struct kvf_conf_peer *peer;
    unsigned i = 0;
    unsigned char bit = strcmp(name, "host") == 0 ? 1 : 2;
    uint64_t port = 0;

    if (s != NULL && *s == '.')
        s = take_number(s + 1, KVF_RANK_MAX, &w.rank);
    else
        s = NULL;
    if (s != NULL && *s == '.')
        s = take_number(s + 1, KVF_REPLICA_MAX, &w.replica);
    if (s == NULL || *s != '\0') {
        bad(p, "[%s]: not a worker; allowed: [peer STAGE.RANK[.REPLICA]]",
            section);
        return;
    }
    while (i < p->c->n_peers && !kvf_worker_equal(&p->c->peer[i].worker, &w))
        i++;
    if (i == KVF_CONF_PEERS) {
        bad(p, "[%s]: too many peers; allowed: %d", section, KVF_CONF_PEERS);
        return;
    }
    peer = &p->c->peer[i];
    if (i == p->c->n_peers) {
        p->c->n_peers++;
        *peer = (struct kvf_conf_peer){.worker = w};
    }
    if (bit == 2 && strcmp(name, "port") != 0) {
        bad(p, "[%s] %s: no such key; allowed: host, port", section, name);
        return;
    }
    if ((p->peer_seen[i] & bit) != 0)
        bad(p, "[%s] %s: given twice; allowed: once", section, name);
    p->peer_seen[i] |= bit;
    if (bit == 1 && (*value == '\0' || strlen(value) >= sizeof peer->host))
        bad(p, "[%s] host: empty or too long; allowed: an address or a name",
            section);
    else if (bit == 1)
        memcpy(peer->host, value, strlen(value) + 1);
    else if (kvf_parse_u64(value, &port) != 0 || port == 0 || port > 65535)
        bad(p, "[%s] port = %s: not a port; allowed: 1 to 65535", section,
            value);
    else
        peer->port = (uint16_t)port;
}

static int on_key(void *arg, const char *section, const char *name,
                  const char *value)
{
    struct parser *p = arg;

    if (strncmp(section, "edge ", 5) == 0) {
        edge_key(p, section, name, value);
        return 1;
    }
    if (strncmp(section, "peer ", 5) == 0) {
        peer_key(p, section, name, value);
        return 1;
    }
    for (unsigned i = 0; i < kvf_n_keys; i++) {
        if (kvf_keys[i].base == KVF_IN_CONF &&
            strcmp(kvf_keys[i].section, section) == 0) {
            set_key(p, section, section, p->c, &p->seen, name, value);
            return 1;
        }
    }
    bad(p, "[%s] %s: no such section; did you mean [%s]?", section, name,
        nearest(NULL, section));
    return 1;
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
    p->line++;
    /* Indented lines would be taken as continued ones. */
    while (p->at < end && (*p->at == ' ' || *p->at == '\t'))
        p->at++;
    len = (size_t)(end - p->at);
    if (memchr(p->at, '\0', len) != NULL) {
        bad(p, "a zero byte; allowed: text");
        len = 0;
    }
    for (size_t i = 0; i < len; i++)
        if ((p->at[i] == ';' || p->at[i] == '#') &&
            (i == 0 || p->at[i - 1] == ' ' || p->at[i - 1] == '\t'))
            len = i;
    while (len != 0 && strchr(" \t\r", p->at[len - 1]) != NULL)
        len--;
    if (len > LINE_MAX_BYTES || len + 2 > (size_t)cap) {
        bad(p, "the line is too long; allowed: %d bytes", LINE_MAX_BYTES);
        len = 0;
    } else if (len != 0 && (p->at[0] == '[' ? p->at[len - 1] != ']'
                                            : !memchr(p->at, '=', len))) {
        bad(p, "neither [section] nor key = value");
        len = 0;
    }
    memcpy(out, p->at, len);
    out[len] = '\n';
    out[len + 1] = '\0';
    p->at = end < p->end ? end + 1 : end;
    return out;
}

uint16_t kvf_conf_port(int32_t base, const struct kvf_worker *w)
{
    uint64_t port;

    if (base < 1 || w->stage > KVF_STAGE_MAX || w->rank > KVF_RANK_MAX ||
        w->replica > KVF_REPLICA_MAX)
        return 0;
    port = (uint64_t)base + 100 + 1024ull * w->replica + 16ull * w->rank +
           w->stage;
    return port <= 65535 ? (uint16_t)port : 0;
}

/* What no single key shows. */
static void check_all(struct parser *p)
{
    struct kvf_conf *c = p->c;
    uint16_t own = kvf_conf_port(c->zmq_port, &c->self);

    if (c->zmq_port != KVF_PORT_AUTO && own == 0)
        bad(p,
            "[connector] zmq_port = %d: the port of worker " KVF_WORKER_FMT
            " (base + 100 + 1024*replica + 16*rank + stage) is above 65535",
            c->zmq_port, KVF_WORKER_ARG(&c->self));
    if (own != 0 && c->rpc_port == own)
        bad(p,
            "[connector] rpc_port = %d: is the metadata port too; allowed: "
            "another port, or auto",
            c->rpc_port);
    if (c->zmq_port != KVF_PORT_AUTO && c->rpc_port == c->zmq_port)
        bad(p,
            "[connector] rpc_port = %d: equals zmq_port; allowed: another "
            "port, or auto",
            c->rpc_port);
    if (c->zmq_port != KVF_PORT_AUTO && c->rpc_port >= c->zmq_port + 100 &&
        c->rpc_port != own &&
        c->rpc_port - c->zmq_port - 100 < 1024 * ((int)c->self.replica + 1))
        bad(p,
            "[connector] rpc_port = %d: the port rule gives it to another "
            "worker; allowed: a port below zmq_port, or auto",
            c->rpc_port);
    if (c->backoff_max_ms < c->backoff_ms)
        bad(p, "[retry] backoff_max_ms: below backoff_ms");
    if (c->inline_max > c->max_frame)
        bad(p, "[connector] inline_max: above max_frame");
    for (unsigned i = 0; i < c->n_edges; i++) {
        const struct kvf_conf_edge *e = &c->edge[i];

        if (e->from_tp % e->to_tp != 0 && e->to_tp % e->from_tp != 0)
            bad(p,
                "[edge %u->%u] from_tp = %u, to_tp = %u: no mapping; "
                "allowed: one divides the other",
                e->from, e->to, e->from_tp, e->to_tp);
    }
    for (unsigned i = 0; i < c->n_peers; i++)
        if (p->peer_seen[i] != 3)
            bad(p,
                "[peer " KVF_WORKER_FMT "]: incomplete; host and port are "
                "both required",
                KVF_WORKER_ARG(&c->peer[i].worker));
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

struct kvf_conf_edge kvf_conf_find_edge(const struct kvf_conf *c, uint32_t from,
                                        uint32_t to)
{
    struct kvf_conf_edge e = {.from = from, .to = to};

    for (unsigned i = 0; i < c->n_edges; i++)
        if (c->edge[i].from == from && c->edge[i].to == to)
            return c->edge[i];
    edge_defaults(&e);
    return e;
}
