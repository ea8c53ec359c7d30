/* Watching processes. Happy path: the first watch of a process opens its pidfd
 * and adds it to the loop; when it turns readable every watch is told once.
 * Failure modes: the process is gone already, or not visible here. */
#include "daemon/procwatch.h"

#include "memory/hash.h"
#include "memory/proc.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct entry {
    struct kvf_source src;
    struct kvf_procwatch *pw;
    struct kvf_proc_id id; /* memset before use: it is a key */
    struct kvf_list watches;
    UT_hash_handle hh;
};

struct kvf_proc_watch {
    struct kvf_list node; /* in entry->watches, or in pw->fired */
    struct entry *entry;  /* NULL once told */
    void (*gone)(void *arg);
    void *arg;
};

struct kvf_procwatch {
    struct kvf_reactor *reactor;
    struct entry *entries;
    struct kvf_list fired;
};

static void entry_free(struct entry *e)
{
    HASH_DEL(e->pw->entries, e);
    kvf_source_remove(&e->src);
    close(e->src.fd);
    free(e);
}

static void on_ready(struct kvf_source *src, unsigned ready, unsigned budget)
{
    struct entry *e = kvf_container_of(src, struct entry, src);
    struct kvf_procwatch *pw = e->pw;
    struct kvf_list due, *n;

    (void)ready;
    (void)budget;
    if (!kvf_proc_gone(src->fd))
        return;
    kvf_list_init(&due);
    kvf_list_splice(&due, &e->watches);
    kvf_list_for_each (it, &due)
        kvf_container_of(it, struct kvf_proc_watch, node)->entry = NULL;
    entry_free(e);
    /* A callback may unwatch others of the list: always take the first. */
    while ((n = kvf_list_pop(&due)) != NULL) {
        struct kvf_proc_watch *w =
            kvf_container_of(n, struct kvf_proc_watch, node);

        kvf_list_push_back(&pw->fired, &w->node);
        w->gone(w->arg);
    }
}

static const struct kvf_source_ops source_ops = {.drain = on_ready};

static int entry_open(struct kvf_procwatch *pw, const struct kvf_proc_id *id,
                      struct entry **out, struct kvf_why *why)
{
    struct entry *e = calloc(1, sizeof *e);
    uid_t uid; /* whose it is does not matter here */
    int fd, rc;

    if (e == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    rc = kvf_proc_open(id, &fd, &uid, why);
    if (rc < 0) {
        free(e);
        return rc;
    }
    e->pw = pw;
    e->id.pid = id->pid;
    e->id.start = id->start;
    kvf_list_init(&e->watches);
    rc = kvf_source_add(pw->reactor, &e->src, "pidfd", &source_ops, fd,
                        KVF_WANT_READ, why);
    if (rc < 0) {
        close(fd);
        free(e);
        return rc;
    }
    HASH_ADD(hh, pw->entries, id, sizeof e->id, e);
    if (e->hh.tbl == NULL) {
        kvf_source_remove(&e->src);
        close(fd);
        free(e);
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    }
    *out = e;
    return 0;
}

static int watch(void *ctx, uint64_t pid, uint64_t start,
                 void (*gone)(void *arg), void *arg,
                 struct kvf_proc_watch **out, struct kvf_why *why)
{
    struct kvf_procwatch *pw = ctx;
    struct kvf_proc_watch *w;
    struct kvf_proc_id id;
    struct entry *e;
    int rc = 0;

    if (pid == 0 || pid > INT32_MAX)
        return kvf_fail(why, KVF_UNSUPPORTED, "process not visible here");
    memset(&id, 0, sizeof id);
    id.pid = (pid_t)pid;
    id.start = start;
    if (start == 0)
        rc = kvf_proc_start(id.pid, &id.start, why);
    if (rc < 0)
        return rc;
    w = calloc(1, sizeof *w);
    if (w == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    HASH_FIND(hh, pw->entries, &id, sizeof id, e);
    if (e == NULL)
        rc = entry_open(pw, &id, &e, why);
    if (rc < 0 || e == NULL) {
        free(w);
        return rc;
    }
    w->entry = e;
    w->gone = gone;
    w->arg = arg;
    kvf_list_init(&w->node);
    kvf_list_push_back(&e->watches, &w->node);
    *out = w;
    return 0;
}

static void unwatch(void *ctx, struct kvf_proc_watch *w)
{
    struct entry *e;

    (void)ctx;
    if (w == NULL)
        return;
    e = w->entry;
    kvf_list_unlink(&w->node);
    free(w);
    if (e != NULL && kvf_list_empty(&e->watches))
        entry_free(e);
}

static bool alive(void *ctx, const struct kvf_proc_watch *w)
{
    (void)ctx;
    return w->entry != NULL && !kvf_proc_gone(w->entry->src.fd);
}

const struct kvf_proc_ops kvf_procwatch_ops = {
    .watch = watch, .unwatch = unwatch, .alive = alive};

int kvf_procwatch_create(struct kvf_reactor *r, struct kvf_procwatch **out,
                         struct kvf_why *why)
{
    struct kvf_procwatch *pw = calloc(1, sizeof *pw);

    if (pw == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    pw->reactor = r;
    kvf_list_init(&pw->fired);
    *out = pw;
    return 0;
}

static void free_watches(struct kvf_list *l)
{
    struct kvf_list *n;

    while ((n = kvf_list_pop(l)) != NULL)
        free(kvf_container_of(n, struct kvf_proc_watch, node));
}

void kvf_procwatch_destroy(struct kvf_procwatch *pw)
{
    struct entry *e, *next;

    if (pw == NULL)
        return;
    HASH_ITER (hh, pw->entries, e, next) {
        free_watches(&e->watches);
        entry_free(e);
    }
    free_watches(&pw->fired);
    free(pw);
}

int kvf_procwatch_fd(const struct kvf_proc_watch *w)
{
    return w->entry != NULL ? w->entry->src.fd : -1;
}

unsigned kvf_procwatch_count(const struct kvf_procwatch *pw)
{
    return HASH_COUNT(pw->entries);
}
