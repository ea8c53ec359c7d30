/* kvferry put: a regular file is read straight into the pool; other input is
 * read whole first. */
#include "cli.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct retired {
    const char *key;
    bool done;
    char json[512];
};

static void on_event(struct kvferry *h, void *user, const char *name,
                     const char *json)
{
    struct retired *r = user;

    (void)h;
    if (strcmp(name, "retired") != 0)
        return;
    snprintf(r->json, sizeof r->json, "%s", json);
    r->done = true;
}

static int io_error(const char *what)
{
    fprintf(stderr, "kvferry: %s: %s\n", what, strerror(errno));
    return CLI_IO;
}

static void *read_all(int fd, size_t *len)
{
    size_t cap = 1u << 16, n = 0;
    char *p = malloc(cap), *q;
    ssize_t got;

    while (p != NULL && (got = read(fd, p + n, cap - n)) != 0) {
        if (got < 0) {
            free(p);
            return NULL;
        }
        n += (size_t)got;
        if (n < cap)
            continue;
        q = realloc(p, cap *= 2);
        if (q == NULL)
            free(p);
        p = q;
    }
    *len = n;
    return p;
}

static bool read_exactly(int fd, void *p, size_t n)
{
    size_t at = 0;

    while (at < n) {
        ssize_t got = read(fd, (char *)p + at, n - at);

        if (got <= 0)
            return false;
        at += (size_t)got;
    }
    return true;
}

static int put_in_place(struct kvferry *h, const char *key, int fd,
                        uint64_t size, const struct kvferry_put_options *o,
                        struct kvferry_put_result *r)
{
    struct kvferry_buffer b;
    struct kvferry_segment s = {.is_region = false};
    int rc = kvferry_alloc(h, size, &b);

    if (rc != 0)
        return cli_failed(h, rc, "alloc of %llu bytes",
                          (unsigned long long)size);
    if (!read_exactly(fd, b.data, size))
        return io_error("read");
    s.id = b.id;
    rc = kvferry_put_segments(h, key, &s, 1, o, r);
    return rc != 0 ? cli_failed(h, rc, "put %s", key) : 0;
}

static int put_bytes(struct kvferry *h, const char *key, int fd,
                     const struct kvferry_put_options *o,
                     struct kvferry_put_result *r)
{
    size_t len = 0;
    void *p = read_all(fd, &len);
    int rc;

    if (p == NULL)
        return io_error("read");
    rc = kvferry_put(h, key, p, len, o, r);
    free(p);
    return rc != 0 ? cli_failed(h, rc, "put %s", key) : 0;
}

static int put_file(struct kvferry *h, const char *key, const char *file,
                    const struct kvferry_put_options *o)
{
    struct kvferry_put_result r = {0};
    struct kvferry_info info;
    struct stat st;
    int fd = strcmp(file, "-") == 0 ? STDIN_FILENO
                                    : open(file, O_RDONLY | O_CLOEXEC),
        rc;

    if (fd < 0 || fstat(fd, &st) != 0)
        return io_error(file);
    kvferry_info(h, &info);
    if (S_ISREG(st.st_mode) && (uint64_t)st.st_size > info.inline_max &&
        fd != STDIN_FILENO)
        rc = put_in_place(h, key, fd, (uint64_t)st.st_size, o, &r);
    else
        rc = put_bytes(h, key, fd, o, &r);
    if (fd != STDIN_FILENO)
        close(fd);
    if (rc == 0)
        printf("key=%s size=%llu gen=%llu source=%s:%u\n", key,
               (unsigned long long)r.size, (unsigned long long)r.generation,
               r.metadata.source_host, r.metadata.source_port);
    fflush(stdout);
    return rc;
}

enum { P_TTL = 1, P_READERS, P_META, P_REJECT, P_CHECKSUM, P_WAIT };

static const struct option options[] = {
    {"ttl", required_argument, NULL, P_TTL},
    {"readers", required_argument, NULL, P_READERS},
    {"meta", required_argument, NULL, P_META},
    {"reject", no_argument, NULL, P_REJECT},
    {"checksum", no_argument, NULL, P_CHECKSUM},
    {"wait-retired", no_argument, NULL, P_WAIT},
    {0},
};

static bool option(int code, struct kvferry_put_options *o)
{
    if (code == P_TTL)
        return cli_ms(optarg, &o->ttl_ms) && o->ttl_ms > 0;
    if (code == P_READERS) {
        if (!cli_u64(optarg, UINT32_MAX, &o->readers))
            return false;
        if (o->readers == 0)
            o->readers = KVFERRY_READERS_ANY;
    } else if (code == P_META) {
        o->meta = optarg;
        o->meta_len = strlen(optarg);
    } else if (code == P_REJECT) {
        o->reject_duplicate = true;
    } else if (code == P_CHECKSUM) {
        o->checksum = true;
    } else if (code == P_WAIT) {
        o->notify = true;
    }
    return true;
}

int cli_put(struct cli *c, int argc, char **argv)
{
    struct kvferry_put_options o = {0};
    struct retired retired = {.done = false};
    struct kvferry *h;
    int code, rc;

    while ((code = cli_getopt(c, argc, argv, "", options)) != -1)
        if (code == '?' || !option(code, &o))
            return cli_usage(c, "bad option");
    if (argc - optind != 2)
        return cli_usage(c, "needs KEY and FILE");
    c->on_event = on_event;
    c->event_user = &retired;
    rc = cli_open(c, 0, &h);
    if (rc != 0)
        return rc;
    rc = put_file(h, argv[optind], argv[optind + 1], &o);
    while (rc == 0 && o.notify && !retired.done) {
        kvferry_wait(h, 1000);
        if (!retired.done && kvferry_outstanding(h) == 0 &&
            (rc = kvferry_ping(h)) != 0)
            rc = cli_failed(h, rc, "waiting");
    }
    if (retired.done)
        printf("%s\n", retired.json);
    kvferry_close(h);
    return rc;
}
