/* What is written from a configuration and from the table: the dump, the
 * sample, the documentation's table; the engine endpoint; and what a reload may
 * change. */
#include "conf/conf.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "conf/conf_table.h"

static void write_keys(const struct kvf_conf *c, const void *base,
                       enum kvf_key_base in, FILE *out)
{
    const char *section = "";
    char value[KVF_CONF_TEXT];

    for (unsigned i = 0; i < kvf_n_keys; i++) {
        const struct kvf_key *k = &kvf_keys[i];

        if (k->base != in)
            continue;
        if (in == KVF_IN_CONF && strcmp(section, k->section) != 0)
            fprintf(out, "[%s]\n", k->section);
        section = k->section;
        kvf_key_format(k, base, c, value, sizeof value);
        fprintf(out, "%s = %s\n", k->name, value);
    }
}

void kvf_conf_dump(const struct kvf_conf *c, FILE *out)
{
    write_keys(c, c, KVF_IN_CONF, out);
    for (unsigned i = 0; i < c->n_edges; i++) {
        fprintf(out, "[edge %u->%u]\n", c->edge[i].from, c->edge[i].to);
        write_keys(c, &c->edge[i], KVF_IN_EDGE, out);
    }
    for (unsigned i = 0; i < c->n_peers; i++)
        fprintf(out, "[peer " KVF_WORKER_FMT "]\nhost = %s\nport = %u\n",
                KVF_WORKER_ARG(&c->peer[i].worker), c->peer[i].host,
                c->peer[i].port);
}

void kvf_conf_write_sample(FILE *out)
{
    const char *section = "";

    fputs("# kvferryd: every key with its default. Made from the table of\n"
          "# keys (src/conf/conf_table.c); docs/CONFIG.md explains them.\n",
          out);
    for (unsigned i = 0; i < kvf_n_keys; i++) {
        const struct kvf_key *k = &kvf_keys[i];

        if (strcmp(section, k->section) != 0)
            fprintf(out, "\n[%s%s]\n", k->section,
                    k->base == KVF_IN_EDGE ? " 0->1" : "");
        section = k->section;
        fprintf(out, "# %s\n%s = %s\n", k->help, k->name, k->def);
    }
    fputs(
        "\n# Where a worker is, when the port rule does not tell; port is the\n"
        "# exact metadata port.\n# [peer 0.2]\n# host = 10.0.0.7\n"
        "# port = 50183\n",
        out);
}

void kvf_conf_write_markdown(FILE *out)
{
    fputs("| section | key | default | allowed | reload | meaning |\n"
          "|---|---|---|---|---|---|\n",
          out);
    for (unsigned i = 0; i < kvf_n_keys; i++) {
        const struct kvf_key *k = &kvf_keys[i];

        fprintf(out, "| %s | `%s` | `%s` | ", k->section, k->name, k->def);
        if (k->max != 0 && k->type != KVF_KEY_NAME)
            fprintf(out, "%llu to %llu", (unsigned long long)k->min,
                    (unsigned long long)k->max);
        else
            fputs("see text", out);
        fprintf(out, " | %s | %s |\n", k->reload ? "yes" : "no", k->help);
    }
}

static bool usable_dir(const char *dir, mode_t mode, bool create)
{
    struct stat st;

    if (create && mkdir(dir, mode) != 0 && errno != EEXIST)
        return false;
    /* lstat: a link in /tmp may lead anywhere. */
    if (lstat(dir, &st) != 0)
        return false;
    return S_ISDIR(st.st_mode) && access(dir, W_OK | X_OK) == 0 &&
           (mode != 0700 || st.st_uid == geteuid());
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
        } else if (usable_dir("/run/kvferry", 0755, create)) {
            snprintf(dir, sizeof dir, "/run/kvferry");
        } else {
            snprintf(dir, sizeof dir, "/tmp/kvferry-%u", (unsigned)geteuid());
            if (create && !usable_dir(dir, 0700, true))
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

static unsigned reload_keys(void *c, const void *fresh, enum kvf_key_base in,
                            struct kvf_why *why)
{
    unsigned left = 0;

    for (unsigned i = 0; i < kvf_n_keys; i++) {
        const struct kvf_key *k = &kvf_keys[i];
        char *to = (char *)c + k->offset;
        const char *from = (const char *)fresh + k->offset;
        bool text = k->type == KVF_KEY_NAME || k->type == KVF_KEY_TEXT;
        size_t len;

        if (k->base != in ||
            (text ? strcmp(to, from) == 0 : memcmp(to, from, k->size) == 0))
            continue;
        if (k->reload) {
            memcpy(to, from, k->size);
            continue;
        }
        left++;
        if (why == NULL)
            continue;
        len = strlen(why->text);
        snprintf(why->text + len, sizeof why->text - len, "%s[%s] %s",
                 len != 0 ? ", " : "", k->section, k->name);
    }
    return left;
}

unsigned kvf_conf_reload(struct kvf_conf *c, const struct kvf_conf *fresh,
                         struct kvf_why *why)
{
    unsigned left;

    if (why != NULL)
        *why = (struct kvf_why){.status = KVF_OK};
    left = reload_keys(c, fresh, KVF_IN_CONF, why);
    for (unsigned i = 0; i < c->n_edges; i++) {
        struct kvf_conf_edge e =
            kvf_conf_find_edge(fresh, c->edge[i].from, c->edge[i].to);

        left += reload_keys(&c->edge[i], &e, KVF_IN_EDGE, why);
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
    return left;
}
