/* kvferry ls: the keys of a daemon. */
#include "cli.h"

#include <jansson.h>
#include <stdlib.h>

static void row(const json_t *k)
{
#define N(name) ((long long)json_integer_value(json_object_get(k, name)))
#define S(name) (json_string_value(json_object_get(k, name)))
    printf("%-10s %12lld %17lld %8lld %8lld %9.1f %9.1f  %s\n",
           S("state") != NULL ? S("state") : "?", N("size"), N("generation"),
           N("readers"), N("claims"), (double)N("age_ms") / 1000,
           (double)N("ttl_ms") / 1000, S("key") != NULL ? S("key") : "?");
#undef N
#undef S
}

static int table(const char *text)
{
    json_t *keys = json_loads(text, 0, NULL), *k;
    size_t i;

    if (!json_is_array(keys)) {
        json_decref(keys);
        fprintf(stderr, "kvferry: the reply cannot be read\n");
        return KVF_INTERNAL;
    }
    printf("%-10s %12s %17s %8s %8s %9s %9s  %s\n", "STATE", "SIZE", "GEN",
           "READERS", "CLAIMS", "AGE_S", "TTL_S", "KEY");
    json_array_foreach(keys, i, k)
    {
        row(k);
    }
    json_decref(keys);
    return 0;
}

int cli_ls(struct cli *c, int argc, char **argv)
{
    static const struct option options[] = {
        {"json", no_argument, NULL, 1},
        {"limit", required_argument, NULL, 2},
        {0}};
    struct kvferry *h;
    bool json = false;
    uint64_t limit = 0;
    char *text;
    int code, rc;

    while ((code = cli_getopt(c, argc, argv, "", options)) != -1) {
        if (code == '?' || (code == 2 && !cli_u64(optarg, UINT32_MAX, &limit)))
            return cli_bad_option(c, code, argv);
        json |= code == 1;
    }
    if (argc - optind > 1)
        return cli_usage(c, "takes one PREFIX");
    rc = cli_open(c, KVFERRY_NO_SESSION, &h);
    if (rc != 0)
        return rc;
    rc = kvferry_list(h, argc > optind ? argv[optind] : NULL, limit, &text);
    if (rc != 0) {
        rc = cli_failed(h, rc, "list");
    } else {
        rc = json ? (puts(text) < 0 ? CLI_IO : 0) : table(text);
        free(text);
    }
    kvferry_close(h);
    return rc;
}
