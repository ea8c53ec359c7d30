/* The sections of a configuration and the keys in them.
 *
 * Failure modes: every one is reported with what is allowed or was perhaps
 * meant; the keys of a section that was reported are passed over. */
#include "conf/conf_parser.h"

#include <string.h>

/* ---- what was perhaps meant --------------------------------------------- */

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

/* ---- keys of the table --------------------------------------------------- */

unsigned kvf_key_row(const char *section, const char *name)
{
    unsigned i = 0;

    while (i < kvf_n_keys && (strcmp(kvf_keys[i].section, section) != 0 ||
                              strcmp(kvf_keys[i].name, name) != 0))
        i++;
    return i;
}

static void set_key(struct kvf_conf_parser *p, const char *section, void *base,
                    uint64_t *seen, const char *name, const char *value)
{
    unsigned i = kvf_key_row(section, name);
    struct kvf_why why;

    if (i == kvf_n_keys) {
        kvf_conf_bad(p, "[%s] %s: no such key; did you mean %s?", p->section,
                     name, nearest(section, name));
        return;
    }
    if ((*seen & 1ull << i) != 0) {
        kvf_conf_bad(p, "[%s] %s: given twice; allowed: once", p->section,
                     name);
        return;
    }
    *seen |= 1ull << i;
    p->key_line[i] = p->line;
    if (kvf_key_parse(&kvf_keys[i], base, p->c, value, &why) != 0)
        kvf_conf_bad(p, "[%s] %s = %s: %s", p->section, name, value, why.text);
}

/* ---- sections ----------------------------------------------------------- */

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

/* What stands behind `edge ` or `peer `; "" when nothing does. */
static const char *after_kind(const struct kvf_conf_parser *p)
{
    const char *blank = strchr(p->section, ' ');

    return blank != NULL ? blank + 1 : "";
}

static enum kvf_conf_open open_edge(struct kvf_conf_parser *p)
{
    struct kvf_conf *c = p->c;
    uint32_t from, to;
    const char *s = take_number(after_kind(p), KVF_STAGE_MAX, &from);
    unsigned i = 0;

    if (s == NULL || strncmp(s, "->", 2) != 0 ||
        (s = take_number(s + 2, KVF_STAGE_MAX, &to)) == NULL || *s != '\0') {
        kvf_conf_bad(
            p, "[%s]: not an edge; allowed: [edge FROM->TO], stages 0 to %d",
            p->section, KVF_STAGE_MAX);
        return KVF_OPEN_WRONG;
    }
    while (i < c->n_edges && (c->edge[i].from != from || c->edge[i].to != to))
        i++;
    if (i == KVF_CONF_EDGES) {
        kvf_conf_bad(p, "[%s]: too many edges; allowed: %d", p->section,
                     KVF_CONF_EDGES);
        return KVF_OPEN_WRONG;
    }
    if (i == c->n_edges) {
        c->n_edges++;
        c->edge[i] = (struct kvf_conf_edge){.from = from, .to = to};
        kvf_edge_defaults(&c->edge[i]);
    }
    p->index = i;
    p->edge_line[i] = p->line;
    return KVF_OPEN_EDGE;
}

static enum kvf_conf_open open_peer(struct kvf_conf_parser *p)
{
    struct kvf_conf *c = p->c;
    struct kvf_worker w = {0, 0, KVF_CONF_OWN_REPLICA};
    const char *s = take_number(after_kind(p), KVF_STAGE_MAX, &w.stage);
    unsigned i = 0;

    s = s != NULL && *s == '.' ? take_number(s + 1, KVF_RANK_MAX, &w.rank)
                               : NULL;
    if (s != NULL && *s == '.')
        s = take_number(s + 1, KVF_REPLICA_MAX, &w.replica);
    if (s == NULL || *s != '\0') {
        kvf_conf_bad(
            p,
            "[%s]: not a worker; allowed: [peer STAGE.RANK[.REPLICA]], up to "
            "%d.%d.%d",
            p->section, KVF_STAGE_MAX, KVF_RANK_MAX, KVF_REPLICA_MAX);
        return KVF_OPEN_WRONG;
    }
    while (i < c->n_peers && !kvf_worker_equal(&c->peer[i].worker, &w))
        i++;
    if (i == KVF_CONF_PEERS) {
        kvf_conf_bad(p, "[%s]: too many peers; allowed: %d", p->section,
                     KVF_CONF_PEERS);
        return KVF_OPEN_WRONG;
    }
    if (i == c->n_peers) {
        c->n_peers++;
        c->peer[i] = (struct kvf_conf_peer){.worker = w};
    }
    p->index = i;
    p->peer_line[i] = p->line;
    return KVF_OPEN_PEER;
}

/* `kind` alone, or with what it is of behind it: both openers look there. */
static bool is_kind(const char *section, const char *kind)
{
    size_t n = strlen(kind);

    return strncmp(section, kind, n) == 0 &&
           (section[n] == ' ' || section[n] == '\0');
}

enum kvf_conf_open kvf_conf_open_section(struct kvf_conf_parser *p)
{
    if (is_kind(p->section, "edge"))
        return open_edge(p);
    if (is_kind(p->section, "peer"))
        return open_peer(p);
    for (unsigned i = 0; i < kvf_n_keys; i++)
        if (kvf_keys[i].base == KVF_IN_CONF &&
            strcmp(kvf_keys[i].section, p->section) == 0)
            return KVF_OPEN_PLAIN;
    kvf_conf_bad(p, "[%s]: no such section; did you mean [%s]?", p->section,
                 nearest(NULL, p->section));
    return KVF_OPEN_WRONG;
}

/* ---- keys of a section --------------------------------------------------- */

static void set_peer(struct kvf_conf_parser *p, const char *name,
                     const char *value)
{
    struct kvf_conf_peer *peer = &p->c->peer[p->index];
    unsigned char *seen = &p->peer_seen[p->index];
    unsigned char bit = strcmp(name, "host") == 0   ? 1
                        : strcmp(name, "port") == 0 ? 2
                                                    : 0;
    struct kvf_why why;
    uint64_t port = 0;

    if (bit == 0) {
        kvf_conf_bad(p, "[%s] %s: no such key; allowed: host, port", p->section,
                     name);
        return;
    }
    if ((*seen & bit) != 0) {
        kvf_conf_bad(p, "[%s] %s: given twice; allowed: once", p->section,
                     name);
        return;
    }
    *seen |= bit;
    p->peer_line[p->index] = p->line;
    if (bit == 2) {
        if (kvf_parse_u64(value, &port) != 0 || port == 0 || port > 65535)
            kvf_conf_bad(p, "[%s] port = %s: not a port; allowed: 1 to 65535",
                         p->section, value);
        else
            peer->port = (uint16_t)port;
    } else if (strlen(value) >= sizeof peer->host ||
               kvf_form_host(value, &why) != 0 || strcmp(value, "auto") == 0) {
        kvf_conf_bad(
            p,
            "[%s] host = %s: not a host; allowed: a numeric address, or a "
            "name of A-Z a-z 0-9 . -",
            p->section, value);
    } else {
        memcpy(peer->host, value, strlen(value) + 1);
    }
}

int kvf_conf_on_key(void *arg, const char *section, const char *name,
                    const char *value)
{
    struct kvf_conf_parser *p = arg;

    (void)section; /* cut by inih when long; ours is whole */
    switch (p->open) {
    case KVF_OPEN_NONE:
        kvf_conf_bad(p, "%s: a key before any [section]", name);
        break;
    case KVF_OPEN_WRONG:
        break;
    case KVF_OPEN_PLAIN:
        set_key(p, p->section, p->c, &p->seen, name, value);
        break;
    case KVF_OPEN_EDGE:
        p->edge_line[p->index] = p->line;
        set_key(p, "edge", &p->c->edge[p->index], &p->edge_seen[p->index], name,
                value);
        break;
    case KVF_OPEN_PEER:
        set_peer(p, name, value);
        break;
    }
    return 1;
}
