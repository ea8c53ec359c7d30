/* What follows from a configuration: the port rule, the engine endpoint, the
 * figures of an edge, and what a reload may change. */
#include "conf/conf.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "conf/conf_table.h"

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

void kvf_edge_defaults(struct kvf_conf_edge *e)
{
    for (unsigned i = 0; i < kvf_n_keys; i++)
        if (kvf_keys[i].base == KVF_IN_EDGE)
            (void)kvf_key_parse(&kvf_keys[i], e, NULL, kvf_keys[i].def, NULL);
}

struct kvf_conf_edge kvf_conf_find_edge(const struct kvf_conf *c, uint32_t from,
                                        uint32_t to)
{
    struct kvf_conf_edge e = {.from = from, .to = to};

    for (unsigned i = 0; i < c->n_edges; i++)
        if (c->edge[i].from == from && c->edge[i].to == to)
            return c->edge[i];
    kvf_edge_defaults(&e);
    return e;
}

static bool usable_dir(const char *dir, bool own, bool create)
{
    struct stat st;

    if (create && mkdir(dir, 0700) != 0 && errno != EEXIST)
        return false;
    /* lstat: a link in /tmp may lead anywhere. */
    if (lstat(dir, &st) != 0)
        return false;
    return S_ISDIR(st.st_mode) && access(dir, W_OK | X_OK) == 0 &&
           (!own || st.st_uid == geteuid());
}

int kvf_conf_endpoint(const char *configured, const char *cluster,
                      const struct kvf_worker *w, bool create, char *out,
                      size_t cap, struct kvf_why *why)
{
    const char *run = getenv("XDG_RUNTIME_DIR");
    char dir[512];
    int n;

    if (strcmp(configured, "auto") != 0) {
        n = snprintf(out, cap, "%s", configured);
    } else {
        if (run != NULL && run[0] == '/') {
            snprintf(dir, sizeof dir, "%s", run);
        } else if (usable_dir("/run/kvferry", false, create)) {
            snprintf(dir, sizeof dir, "/run/kvferry");
        } else {
            snprintf(dir, sizeof dir, "/tmp/kvferry-%u", (unsigned)geteuid());
            if (create && !usable_dir(dir, true, true))
                return kvf_fail(why, KVF_INVALID,
                                "%s is not a directory of ours; set "
                                "engine_endpoint or XDG_RUNTIME_DIR",
                                dir);
        }
        n = snprintf(out, cap, "ipc://%s/kvferry-%s-s%u-r%u-p%u.ipc", dir,
                     cluster, w->stage, w->rank, w->replica);
    }
    if (n < 0 || (size_t)n >= cap ||
        (strncmp(out, "ipc://", 6) == 0 && strlen(out + 6) > 107))
        return kvf_fail(why, KVF_INVALID,
                        "the engine endpoint's path is longer than 107 bytes");
    return 0;
}

/* Compared as they would be written: a field may have bytes that mean
 * nothing. */
static bool same_value(const struct kvf_key *k, const void *a, const void *b,
                       const struct kvf_conf *ca, const struct kvf_conf *cb)
{
    char x[KVF_CONF_TEXT], y[KVF_CONF_TEXT];

    kvf_key_format(k, a, ca, x, sizeof x);
    kvf_key_format(k, b, cb, y, sizeof y);
    return strcmp(x, y) == 0;
}

static void name_change(struct kvf_why *why, const char *section,
                        const char *key)
{
    size_t len;

    if (why == NULL)
        return;
    len = strlen(why->text);
    snprintf(why->text + len, sizeof why->text - len, "%s[%s]%s%s",
             len != 0 ? ", " : "", section, key[0] != '\0' ? " " : "", key);
}

static unsigned reload_keys(struct kvf_conf *c, void *to,
                            const struct kvf_conf *fresh, const void *from,
                            enum kvf_key_base in, struct kvf_why *why)
{
    unsigned left = 0;

    for (unsigned i = 0; i < kvf_n_keys; i++) {
        const struct kvf_key *k = &kvf_keys[i];

        if (k->base != in || same_value(k, to, from, c, fresh))
            continue;
        if (k->reload) {
            memcpy((char *)to + k->offset, (const char *)from + k->offset,
                   k->size);
            continue;
        }
        left++;
        name_change(why, k->section, k->name);
    }
    return left;
}

/* Peers are named once, at start: links may be up to where they were. */
static bool same_peers(const struct kvf_conf *a, const struct kvf_conf *b)
{
    if (a->n_peers != b->n_peers)
        return false;
    for (unsigned i = 0; i < a->n_peers; i++) {
        unsigned j = 0;

        while (j < b->n_peers &&
               !kvf_worker_equal(&a->peer[i].worker, &b->peer[j].worker))
            j++;
        if (j == b->n_peers || a->peer[i].port != b->peer[j].port ||
            strcmp(a->peer[i].host, b->peer[j].host) != 0)
            return false;
    }
    return true;
}

unsigned kvf_conf_reload(struct kvf_conf *c, const struct kvf_conf *fresh,
                         struct kvf_why *why)
{
    unsigned left;

    if (why != NULL)
        *why = (struct kvf_why){.status = KVF_OK};
    left = reload_keys(c, c, fresh, fresh, KVF_IN_CONF, why);
    for (unsigned i = 0; i < c->n_edges; i++) {
        struct kvf_conf_edge e =
            kvf_conf_find_edge(fresh, c->edge[i].from, c->edge[i].to);

        left += reload_keys(c, &c->edge[i], fresh, &e, KVF_IN_EDGE, why);
    }
    for (unsigned i = 0; i < fresh->n_edges && c->n_edges < KVF_CONF_EDGES;
         i++) {
        unsigned j = 0;

        while (j < c->n_edges && (c->edge[j].from != fresh->edge[i].from ||
                                  c->edge[j].to != fresh->edge[i].to))
            j++;
        if (j == c->n_edges)
            c->edge[c->n_edges++] = fresh->edge[i];
    }
    if (!same_peers(c, fresh)) {
        left++;
        name_change(why, "peer", "");
    }
    return left;
}
