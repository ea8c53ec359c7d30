/* kvferry get: fetches and writes the bytes. */
#include "cli.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

struct get_args {
    struct kvferry_get_options o;
    char host[256];
    const char *output;
};

static int write_all(int fd, const void *p, size_t n)
{
    size_t at = 0;

    while (at < n) {
        ssize_t did = write(fd, (const char *)p + at, n - at);

        if (did < 0 && errno == EINTR)
            continue;
        if (did < 0)
            return -1;
        at += (size_t)did;
    }
    return 0;
}

/* Where the bytes go. Opened before they are asked for: a get consumes. */
struct output {
    const char *path; /* NULL: standard output */
    int fd;
    bool made; /* the file was not there before */
};

static int io_failed(const struct output *o)
{
    fprintf(stderr, "kvferry: %s: %s\n",
            o->path == NULL ? "standard output" : o->path, strerror(errno));
    return CLI_IO;
}

static int output_open(struct output *o, const char *path)
{
    const int flags = O_WRONLY | O_CREAT | O_CLOEXEC;

    *o = (struct output){.fd = STDOUT_FILENO};
    if (path == NULL || strcmp(path, "-") == 0)
        return 0;
    o->path = path;
    o->fd = open(path, flags | O_EXCL, 0666);
    o->made = o->fd >= 0;
    if (o->fd < 0 && errno == EEXIST)
        o->fd = open(path, flags, 0666);
    return o->fd >= 0 ? 0 : io_failed(o);
}

/* Nothing came: what was there before stays as it was. */
static void output_drop(const struct output *o)
{
    if (o->made)
        unlink(o->path);
    if (o->path != NULL)
        close(o->fd);
}

static int save(const struct kvferry_payload *p, const struct output *o)
{
    const struct kvferry_piece *piece;
    unsigned n = kvferry_payload_pieces(p, &piece);
    bool bad = false;

    /* Of a device there is nothing to cut. */
    if (o->path != NULL && ftruncate(o->fd, 0) != 0 && errno != EINVAL)
        bad = true;
    for (unsigned i = 0; i < n && !bad; i++)
        bad = write_all(o->fd, piece[i].data, piece[i].length) != 0;
    if (o->path != NULL && !bad)
        bad = close(o->fd) != 0;
    return bad ? io_failed(o) : 0;
}

static void report(const char *key, const struct kvferry_payload *p)
{
    struct kvferry_timing t;

    kvferry_payload_timing(p, &t);
    fprintf(stderr,
            "key=%s size=%llu gen=%llu mode=%s transport=%s attempts=%u "
            "wait_us=%llu transfer_us=%llu total_us=%llu\n",
            key, (unsigned long long)kvferry_payload_size(p),
            (unsigned long long)kvferry_payload_generation(p),
            kvferry_payload_mode(p), kvferry_payload_transport(p),
            kvferry_payload_attempts(p), (unsigned long long)t.wait_us,
            (unsigned long long)t.transfer_us, (unsigned long long)t.total_us);
}

enum {
    G_FROM = 1,
    G_SOURCE,
    G_GENERATION,
    G_TIMEOUT,
    G_NOWAIT,
    G_MODE,
    G_VERIFY
};

static const struct option options[] = {
    {"output", required_argument, NULL, 'o'},
    {"from", required_argument, NULL, G_FROM},
    {"source", required_argument, NULL, G_SOURCE},
    {"generation", required_argument, NULL, G_GENERATION},
    {"timeout", required_argument, NULL, G_TIMEOUT},
    {"no-wait", no_argument, NULL, G_NOWAIT},
    {"mode", required_argument, NULL, G_MODE},
    {"verify", no_argument, NULL, G_VERIFY},
    {0},
};

static bool mode(const char *text, enum kvferry_mode *out)
{
    static const char *const names[] = {"auto", "view", "copy", "inline"};

    for (int i = 0; i < 4; i++)
        if (strcmp(text, names[i]) == 0) {
            *out = (enum kvferry_mode)i;
            return true;
        }
    return false;
}

static bool option(int code, struct get_args *a)
{
    uint32_t w[3] = {0};

    switch (code) {
    case 'o':
        a->output = optarg;
        return true;
    case G_FROM:
        a->o.from_fields = cli_worker(optarg, w);
        a->o.from_stage = w[0];
        a->o.from_rank = w[1];
        a->o.from_replica = w[2];
        return a->o.from_fields != 0;
    case G_SOURCE:
        a->o.source_host = a->host;
        return cli_host_port(optarg, a->host, sizeof a->host,
                             &a->o.source_port);
    case G_GENERATION:
        return cli_u64(optarg, INT64_MAX, &a->o.generation);
    case G_TIMEOUT:
        if (!cli_ms(optarg, &a->o.timeout_ms))
            return false;
        if (a->o.timeout_ms == 0)
            a->o.timeout_ms = KVFERRY_NO_TIMEOUT;
        return true;
    case G_NOWAIT:
        return a->o.no_wait = true;
    case G_MODE:
        return mode(optarg, &a->o.mode);
    case G_VERIFY:
        return a->o.verify = true;
    default:
        return false;
    }
}

int cli_get(struct cli *c, int argc, char **argv)
{
    struct get_args a = {.output = NULL};
    struct kvferry_payload *p;
    struct output out;
    struct kvferry *h;
    int code, rc;

    while ((code = cli_getopt(c, argc, argv, "o:", options)) != -1)
        if (!option(code, &a))
            return cli_bad_option(c, code, argv);
    if (argc - optind != 1)
        return cli_usage(c, "needs KEY");
    rc = output_open(&out, a.output);
    if (rc != 0)
        return rc;
    rc = cli_open(c, 0, &h);
    if (rc != 0) {
        output_drop(&out);
        return rc;
    }
    rc = kvferry_get(h, argv[optind], &a.o, &p);
    if (rc != 0) {
        rc = cli_failed(h, rc, "get %s", argv[optind]);
        output_drop(&out);
    } else {
        rc = save(p, &out);
        report(argv[optind], p);
        kvferry_release(&p);
    }
    kvferry_close(h);
    return rc;
}
