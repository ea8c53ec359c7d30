/* What is written from a configuration and from the table: the dump, the
 * sample and the documentation's table. */
#include "conf/conf.h"

#include <string.h>

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

/* 1GiB rather than 1073741824. */
static void write_size(uint64_t v, FILE *out)
{
    static const char *const units[] = {"", "KiB", "MiB", "GiB", "TiB"};
    unsigned u = 0;

    while (u < 4 && v != 0 && v % 1024 == 0) {
        v /= 1024;
        u++;
    }
    fprintf(out, "%llu%s", (unsigned long long)v, units[u]);
}

static void write_allowed(const struct kvf_key *k, FILE *out)
{
    unsigned long long min = k->min, max = k->max;

    switch (k->type) {
    case KVF_KEY_U32:
        fprintf(out, "%llu to %llu", min, max);
        break;
    case KVF_KEY_DURATION:
        fprintf(out, "%llu to %llu ms", min, max);
        break;
    case KVF_KEY_PORT:
        fprintf(out, "%llu to %llu, `auto`", min, max);
        break;
    case KVF_KEY_WINDOW:
        fputs("`-1`, or from ", out);
        write_size(k->min, out);
        break;
    case KVF_KEY_SIZE:
        write_size(k->min, out);
        fputs(" to ", out);
        write_size(k->max, out);
        break;
    case KVF_KEY_NAME:
        fprintf(out, "1 to %zu of `A-Z a-z 0-9 _ . -`", k->size - 1);
        break;
    case KVF_KEY_TEXT:
        fputs("text", out);
        break;
    case KVF_KEY_HOST:
        fputs("`auto`, an address, a name", out);
        break;
    case KVF_KEY_ENDPOINT:
        fputs("`auto`, `ipc://PATH`, `tcp://HOST:PORT`", out);
        break;
    case KVF_KEY_DEVICE:
        fputs("`cpu`", out);
        break;
    case KVF_KEY_PROTOCOL:
        fputs("`auto`, or a list of `shm` `tcp` `rdma`", out);
        break;
    case KVF_KEY_LEVEL:
        fputs("`error` `warn` `info` `debug` `trace`", out);
        break;
    }
}

void kvf_conf_write_markdown(FILE *out)
{
    fputs("| section | key | default | allowed | reload | meaning |\n"
          "|---|---|---|---|---|---|\n",
          out);
    for (unsigned i = 0; i < kvf_n_keys; i++) {
        const struct kvf_key *k = &kvf_keys[i];

        fprintf(out, "| `[%s%s]` | `%s` | `%s` | ", k->section,
                k->base == KVF_IN_EDGE ? " FROM->TO" : "", k->name, k->def);
        write_allowed(k, out);
        fprintf(out, " | %s | %s |\n", k->reload ? "yes" : "no", k->help);
    }
    fputs("| `[peer STAGE.RANK[.REPLICA]]` | `host` | none | an address, a "
          "name | no | where that worker is |\n"
          "| `[peer STAGE.RANK[.REPLICA]]` | `port` | none | 1 to 65535 | no "
          "| its exact metadata port |\n",
          out);
}
