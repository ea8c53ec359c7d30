/* kvferry put: a regular file is read straight into the pool; other input is
 * read whole first. With --to or --target it is a push. */
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

/* What the command line asks for, and what came of it. */
struct job {
    struct kvferry_push_options o; /* o.put alone, unless `push` */
    struct kvferry_put_result put;
    struct kvferry_transfer pushed;
    bool push;
    char host[256];
};

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
                        uint64_t size, struct job *j)
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
    if (j->push)
        rc = kvferry_push_segments(h, key, &s, 1, &j->o, &j->pushed);
    else
        rc = kvferry_put_segments(h, key, &s, 1, &j->o.put, &j->put);
    return rc != 0 ? cli_failed(h, rc, "%s %s", j->push ? "push" : "put", key)
                   : 0;
}

static int put_bytes(struct kvferry *h, const char *key, int fd, struct job *j)
{
    size_t len = 0;
    void *p = read_all(fd, &len);
    int rc;

    if (p == NULL)
        return io_error("read");
    if (j->push)
        rc = kvferry_push(h, key, p, len, &j->o, &j->pushed);
    else
        rc = kvferry_put(h, key, p, len, &j->o.put, &j->put);
    free(p);
    return rc != 0 ? cli_failed(h, rc, "%s %s", j->push ? "push" : "put", key)
                   : 0;
}

static void tell(const char *key, const struct job *j)
{
    if (j->push)
        printf("key=%s size=%llu gen=%llu transport=%s attempts=%u\n", key,
               (unsigned long long)j->pushed.size,
               (unsigned long long)j->pushed.generation, j->pushed.transport,
               j->pushed.attempts);
    else
        printf("key=%s size=%llu gen=%llu source=%s:%u\n", key,
               (unsigned long long)j->put.size,
               (unsigned long long)j->put.generation,
               j->put.metadata.source_host, j->put.metadata.source_port);
    fflush(stdout);
}

static int put_file(struct kvferry *h, const char *key, const char *file,
                    struct job *j)
{
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
        rc = put_in_place(h, key, fd, (uint64_t)st.st_size, j);
    else
        rc = put_bytes(h, key, fd, j);
    if (fd != STDIN_FILENO)
        close(fd);
    if (rc == 0)
        tell(key, j);
    return rc;
}

enum {
    P_TTL = 1,
    P_READERS,
    P_META,
    P_REJECT,
    P_CHECKSUM,
    P_WAIT,
    P_TO,
    P_TARGET,
    P_TIMEOUT
};

static const struct option options[] = {
    {"ttl", required_argument, NULL, P_TTL},
    {"readers", required_argument, NULL, P_READERS},
    {"meta", required_argument, NULL, P_META},
    {"reject", no_argument, NULL, P_REJECT},
    {"checksum", no_argument, NULL, P_CHECKSUM},
    {"wait-retired", no_argument, NULL, P_WAIT},
    {"to", required_argument, NULL, P_TO},
    {"target", required_argument, NULL, P_TARGET},
    {"timeout", required_argument, NULL, P_TIMEOUT},
    {0},
};

static bool push_option(int code, struct job *j)
{
    struct kvferry_target *to = &j->o.to;
    uint32_t who[3] = {0};

    if (code == P_TIMEOUT) {
        if (!cli_ms(optarg, &j->o.timeout_ms))
            return false;
        if (j->o.timeout_ms == 0)
            j->o.timeout_ms = KVFERRY_NO_TIMEOUT;
        return true;
    }
    j->push = true;
    if (code == P_TARGET) {
        to->host = j->host;
        return cli_host_port(optarg, j->host, sizeof j->host, &to->port);
    }
    to->to_fields = cli_worker(optarg, who);
    to->stage = who[0];
    to->rank = who[1];
    to->replica = who[2];
    return to->to_fields != 0;
}

static bool option(int code, struct job *j)
{
    struct kvferry_put_options *o = &j->o.put;

    if (code >= P_TO)
        return push_option(code, j);
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
    struct job j = {.push = false};
    struct retired retired = {.done = false};
    struct kvferry *h;
    int code, rc;

    while ((code = cli_getopt(c, argc, argv, "", options)) != -1)
        if (code == '?' || !option(code, &j))
            return cli_bad_option(c, code, argv);
    if (argc - optind != 2)
        return cli_usage(c, "needs KEY and FILE");
    if (!j.push && j.o.timeout_ms != 0)
        return cli_usage(c, "--timeout goes with --to or --target");
    c->on_event = on_event;
    c->event_user = &retired;
    rc = cli_open(c, 0, &h);
    if (rc != 0)
        return rc;
    rc = put_file(h, argv[optind], argv[optind + 1], &j);
    while (rc == 0 && j.o.put.notify && !retired.done) {
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
