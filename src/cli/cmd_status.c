/* kvferry status: health and stats, as a table or as they came.
 *
 * The table is drawn from whatever the reply has: scalars first, then a section
 * a map, without the zeros (the pool's excepted); a map with a p50 is a
 * histogram and takes one line. */
#include "cli.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool histogram(const json_t *v)
{
    return json_is_object(v) && json_object_get(v, "p50") != NULL;
}

static void scalar(const char *name, const json_t *v)
{
    char *text = json_dumps(v, JSON_ENCODE_ANY);

    printf("  %-24s %s\n", name, text != NULL ? text : "?");
    free(text);
}

static void hist_row(const char *name, const json_t *v)
{
    const char *key;
    json_t *x;

    printf("  %-24s", name);
    json_object_foreach((json_t *)(uintptr_t)v, key, x)
    {
        if (json_is_number(x))
            printf(" %s=%.0f", key, json_number_value(x));
    }
    printf("\n");
}

static bool dull(const json_t *v)
{
    return (json_is_number(v) && json_number_value(v) == 0.0) ||
           (json_is_object(v) && json_object_size(v) == 0) ||
           (json_is_array(v) && json_array_size(v) == 0) ||
           (histogram(v) &&
            json_number_value(json_object_get(v, "count")) == 0.0);
}

static void section(const char *name, json_t *map)
{
    bool all = strcmp(name, "pool") == 0;
    const char *key;
    json_t *v;

    printf("%s\n", name);
    json_object_foreach(map, key, v)
    {
        if (histogram(v) && !dull(v))
            hist_row(key, v);
        else if (!histogram(v) && (all || !dull(v)))
            scalar(key, v);
    }
}

static void table(const char *text)
{
    json_t *top = json_loads(text, 0, NULL), *v;
    const char *key;

    json_object_foreach(top, key, v)
    {
        if (!json_is_object(v) && !dull(v))
            scalar(key, v);
    }
    json_object_foreach(top, key, v)
    {
        if (histogram(v) && !dull(v))
            hist_row(key, v);
        else if (json_is_object(v) && !dull(v))
            section(key, v);
    }
    json_decref(top);
}

static int show(struct kvferry *h, bool json)
{
    char *health = NULL, *stats = NULL;
    int rc = kvferry_health(h, &health);

    if (rc == 0)
        rc = kvferry_stats(h, &stats);
    if (rc != 0) {
        rc = cli_failed(h, rc, "status");
    } else if (json) {
        printf("{\"health\":%s,\"stats\":%s}\n", health, stats);
    } else {
        table(health);
        table(stats);
    }
    fflush(stdout);
    free(health);
    free(stats);
    return rc;
}

int cli_status(struct cli *c, int argc, char **argv)
{
    static const struct option options[] = {
        {"json", no_argument, NULL, 1},
        {"watch", required_argument, NULL, 2},
        {0}};
    struct kvferry *h;
    bool json = false;
    uint64_t watch = 0;
    int code, rc;

    while ((code = cli_getopt(c, argc, argv, "", options)) != -1) {
        if (code == '?' ||
            (code == 2 && (!cli_u64(optarg, 86400, &watch) || watch == 0)))
            return cli_bad_option(c, code, argv);
        json |= code == 1;
    }
    if (argc != optind)
        return cli_usage(c, "takes no argument");
    rc = cli_open(c, KVFERRY_NO_SESSION, &h);
    if (rc != 0)
        return rc;
    rc = show(h, json);
    while (rc == 0 && watch != 0 && !ferror(stdout)) {
        sleep((unsigned)watch);
        if (!json && isatty(STDOUT_FILENO))
            printf("\033[H\033[2J");
        rc = show(h, json);
    }
    kvferry_close(h);
    return rc;
}
