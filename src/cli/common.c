/* Options, values, opening: what every subcommand needs. */
#include "cli.h"

#include "conf/conf.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

int cli_usage(const struct cli *c, const char *fmt, ...)
{
    va_list ap;

    fprintf(stderr, "kvferry %s: ", c->name);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, " (see kvferry help %s)\n", c->name);
    return CLI_USAGE;
}

int cli_failed(struct kvferry *h, int status, const char *fmt, ...)
{
    va_list ap;

    fprintf(stderr, "kvferry: ");
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, ": %s: %s\n", kvferry_status_name(status),
            h != NULL && kvferry_error(h)[0] ? kvferry_error(h)
                                             : kvferry_status_text(status));
    return status < 0 ? -status : status;
}

static int from_config(struct cli *c, char *out, size_t cap)
{
    struct kvf_conf *conf = malloc(sizeof *conf);
    struct kvf_why why;
    unsigned errors;
    int rc;

    if (conf == NULL)
        return CLI_IO;
    rc = kvf_conf_load(conf, c->config, stderr, &errors);
    if (rc == 0)
        rc = kvf_conf_endpoint(conf->engine_endpoint, conf->cluster,
                               &conf->self, false, out, cap, &why);
    free(conf);
    return rc == 0 ? 0 : CLI_USAGE;
}

int cli_endpoint(struct cli *c, char *out, size_t cap)
{
    struct kvf_worker w = {c->stage, c->rank, c->replica};
    struct kvf_why why;

    if (c->endpoint != NULL) {
        snprintf(out, cap, "%s", c->endpoint);
        return 0;
    }
    if (c->config != NULL)
        return from_config(c, out, cap);
    if (kvf_conf_endpoint("auto", c->cluster != NULL ? c->cluster : "default",
                          &w, false, out, cap, &why) != 0)
        return cli_usage(c, "%s", why.text);
    return 0;
}

int cli_open(struct cli *c, unsigned flags, struct kvferry **out)
{
    char endpoint[256], err[256];
    struct kvferry_open_options o = {.endpoint = endpoint,
                                     .client = "kvferry",
                                     .flags = flags,
                                     .timeout_ms = c->timeout_ms,
                                     .on_event = c->on_event,
                                     .user = c->event_user};
    int rc = cli_endpoint(c, endpoint, sizeof endpoint);

    if (rc != 0)
        return rc;
    rc = kvferry_open(out, &o, err, sizeof err);
    if (rc == 0)
        return 0;
    fprintf(stderr, "kvferry: %s: %s\n", kvferry_status_name(rc), err);
    return -rc;
}

bool cli_u64(const char *text, uint64_t max, uint64_t *out)
{
    unsigned long long v;
    char *end;

    if (text[0] < '0' || text[0] > '9')
        return false;
    errno = 0;
    v = strtoull(text, &end, 10);
    if (errno != 0 || *end != '\0' || v > max)
        return false;
    *out = v;
    return true;
}

bool cli_size(const char *text, uint64_t *out)
{
    return kvf_parse_size(text, out) == 0;
}

bool cli_ms(const char *text, uint64_t *out)
{
    return kvf_parse_duration_ms(text, out) == 0;
}

unsigned cli_worker(const char *text, uint32_t out[3])
{
    char copy[64], *at = copy, *part;
    unsigned n = 0;
    uint64_t v;

    if ((size_t)snprintf(copy, sizeof copy, "%s", text) >= sizeof copy)
        return 0;
    while ((part = strsep(&at, ".")) != NULL) {
        if (n == 3 || !cli_u64(part, 1023, &v))
            return 0;
        out[n++] = (uint32_t)v;
    }
    return n;
}

bool cli_host_port(const char *text, char *host, size_t cap, uint16_t *port)
{
    const char *colon = strrchr(text, ':');
    size_t len;
    uint64_t v;

    if (colon == NULL || colon == text || !cli_u64(colon + 1, 65535, &v))
        return false;
    len = (size_t)(colon - text);
    if (text[0] == '[' && text[len - 1] == ']') {
        text++;
        len -= 2;
    }
    if (len == 0 || len >= cap)
        return false;
    memcpy(host, text, len);
    host[len] = '\0';
    *port = (uint16_t)v;
    return v != 0;
}
