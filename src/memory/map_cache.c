/* Mappings of memory that others offer, found again by inode.
 *
 * Happy path: open the path with O_PATH (which touches nothing), look at what
 * it is, and either share the mapping there is or open and map it.
 *
 * Failure modes: a path that is not one of /proc's descriptor links, a file
 * that could shrink under us (SIGBUS), another pool than the one that was
 * promised; and a path that cannot be opened from here at all. */
#include "memory/segment.h"

#include "base/list.h"
#include "memory/hash.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct map_key { /* no padding: hashed as bytes */
    uint64_t dev, ino, write;
};

struct entry {
    struct kvf_mapping m; /* first: a mapping is an entry */
    struct map_key key;
    bool orphan; /* replaced in the table by a longer one */
    struct kvf_list idle_node;
    UT_hash_handle hh;
};

struct kvf_map_cache {
    struct entry *table;
    struct kvf_list idle; /* oldest first */
    unsigned idle_count, idle_max, count;
};

struct kvf_map_cache *kvf_map_cache_create(unsigned idle_max)
{
    struct kvf_map_cache *mc = calloc(1, sizeof *mc);

    if (mc == NULL)
        return NULL;
    kvf_list_init(&mc->idle);
    mc->idle_max = idle_max;
    return mc;
}

static void unmap(struct kvf_map_cache *mc, struct entry *e)
{
    if (!e->orphan)
        HASH_DEL(mc->table, e);
    munmap(e->m.base, e->m.size);
    if (e->m.fd >= 0)
        close(e->m.fd);
    free(e);
    mc->count--;
}

static struct entry *oldest_idle(struct kvf_map_cache *mc)
{
    struct kvf_list *n = kvf_list_pop(&mc->idle);

    if (n == NULL)
        return NULL;
    mc->idle_count--;
    return kvf_container_of(n, struct entry, idle_node);
}

void kvf_map_cache_trim(struct kvf_map_cache *mc)
{
    struct entry *e;

    while ((e = oldest_idle(mc)) != NULL)
        unmap(mc, e);
}

void kvf_map_cache_destroy(struct kvf_map_cache *mc)
{
    struct entry *e, *next;

    if (mc == NULL)
        return;
    kvf_map_cache_trim(mc);
    HASH_ITER (hh, mc->table, e, next) {
        unmap(mc, e);
    }
    free(mc);
}

unsigned kvf_map_count(const struct kvf_map_cache *mc)
{
    return mc->count;
}

void kvf_map_hold(struct kvf_mapping *m)
{
    struct entry *e = (struct entry *)m;
    struct kvf_map_cache *mc = m->cache_private;

    if (m->refs++ == 0 && !kvf_list_empty(&e->idle_node)) {
        kvf_list_unlink(&e->idle_node);
        mc->idle_count--;
    }
}

void kvf_map_release(struct kvf_mapping *m)
{
    struct entry *e = (struct entry *)m;
    struct kvf_map_cache *mc = m->cache_private;

    if (--m->refs > 0)
        return;
    /* An engine that takes its region back wants the memory back. */
    if (e->orphan || e->key.write || mc->idle_max == 0) {
        unmap(mc, e);
        return;
    }
    kvf_list_push_back(&mc->idle, &e->idle_node);
    if (++mc->idle_count > mc->idle_max)
        unmap(mc, oldest_idle(mc));
}

static struct entry *lookup(const struct kvf_map_cache *mc,
                            const struct stat *st, bool write, uint64_t size)
{
    struct map_key key = {st->st_dev, st->st_ino, write};
    struct entry *e;

    HASH_FIND(hh, mc->table, &key, sizeof key, e);
    return e != NULL && e->m.size >= size ? e : NULL;
}

/* Maps the whole file and enters it into the table. Keeps `fd` open in the
 * entry only with keep_fd. */
static int map_new(struct kvf_map_cache *mc, int fd, const struct stat *st,
                   bool write, bool keep_fd, struct entry **out,
                   struct kvf_why *why)
{
    struct entry *e = calloc(1, sizeof *e), *old;
    void *p;

    if (e == NULL)
        return kvf_fail(why, KVF_INTERNAL, "no memory for a mapping");
    e->m.size = (uint64_t)st->st_size;
    p = mmap(NULL, e->m.size, PROT_READ | (write ? PROT_WRITE : 0), MAP_SHARED,
             fd, 0);
    if (p == MAP_FAILED) {
        int err = errno;

        free(e);
        return kvf_fail(why, KVF_UNSUPPORTED, "mapping %lld bytes: %s",
                        (long long)st->st_size, strerror(err));
    }
    e->m.base = p;
    e->m.dev = st->st_dev;
    e->m.ino = st->st_ino;
    e->m.fd = -1;
    e->m.cache_private = mc;
    e->key = (struct map_key){st->st_dev, st->st_ino, write};
    kvf_list_init(&e->idle_node);
    HASH_FIND(hh, mc->table, &e->key, sizeof e->key, old);
    if (old != NULL) { /* the file grew since */
        HASH_DEL(mc->table, old);
        old->orphan = true;
    }
    HASH_ADD(hh, mc->table, key, sizeof e->key, e);
    if (e->hh.tbl == NULL) /* lives, but will not be found again */
        e->orphan = true;
    mc->count++;
    if (old != NULL && old->m.refs == 0) {
        kvf_list_unlink(&old->idle_node);
        mc->idle_count--;
        unmap(mc, old);
    }
    if (keep_fd)
        e->m.fd = fd;
    *out = e;
    return 0;
}

/* ---- opening what a peer named ------------------------------------------ */

/* Exactly /proc/<digits>/fd/<digits>: nothing that a peer sends may open any
 * other file. */
static bool is_fd_link(const char *path)
{
    static const char *const parts[] = {"/proc/", "/fd/"};

    for (int i = 0; i < 2; i++) {
        size_t n = strlen(parts[i]), digits = 0;

        if (strncmp(path, parts[i], n) != 0)
            return false;
        path += n;
        while (isdigit((unsigned char)path[digits]))
            digits++;
        if (digits == 0 || digits > 10)
            return false;
        path += digits;
    }
    return *path == '\0';
}

static int check_stat(const char *path, const struct stat *st,
                      const struct kvf_map_expect *x, struct kvf_why *why)
{
    uint64_t size = (uint64_t)st->st_size;

    if (!S_ISREG(st->st_mode))
        return kvf_fail(why, KVF_STALE, "%s is no shared memory", path);
    if (x->has_inode && (st->st_dev != x->dev || st->st_ino != x->ino))
        return kvf_fail(why, KVF_STALE, "%s is another file than announced",
                        path);
    if (st->st_size <= 0 || size < x->size ||
        (x->has_header && (size != x->size || size < KVF_SEGMENT_HEADER)))
        return kvf_fail(why, KVF_STALE, "%s has %lld bytes, not %llu", path,
                        (long long)st->st_size, (unsigned long long)x->size);
    return 0;
}

/* The page is another process' memory: compared in a private copy. */
static int check_header(const char *path, const struct kvf_mapping *m,
                        const struct kvf_map_expect *x, struct kvf_why *why)
{
    struct kvf_segment_header h;

    if (!x->has_header)
        return 0;
    memcpy(&h, m->base, sizeof h);
    if (memcmp(h.magic, KVF_SEGMENT_MAGIC, sizeof h.magic) != 0 ||
        h.version != 1 || h.header_size != KVF_SEGMENT_HEADER)
        return kvf_fail(why, KVF_STALE, "%s is no pool of this version", path);
    if (memcmp(h.incarnation, x->incarnation.b, KVF_ID_LEN) != 0)
        return kvf_fail(why, KVF_STALE, "%s is of another incarnation", path);
    if (h.size != x->size)
        return kvf_fail(why, KVF_STALE, "%s: its header says %llu bytes", path,
                        (unsigned long long)h.size);
    return 0;
}

static int reopen_and_map(struct kvf_map_cache *mc, int opath, const char *path,
                          const struct kvf_map_expect *x, struct entry **out,
                          struct kvf_why *why)
{
    char link[64];
    struct stat st;
    int fd, seals, rc;

    snprintf(link, sizeof link, "/proc/self/fd/%d", opath);
    fd = open(link, (x->write ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return kvf_fail(why, KVF_UNSUPPORTED, "opening %s: %s", path,
                        strerror(errno));
    /* Sizes only count once the file cannot shrink any more. */
    seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || !(seals & F_SEAL_SHRINK))
        rc = kvf_fail(why, KVF_STALE, "%s is not sealed against shrinking",
                      path);
    else if (fstat(fd, &st) != 0)
        rc = kvf_fail(why, KVF_UNSUPPORTED, "%s: %s", path, strerror(errno));
    else
        rc = check_stat(path, &st, x, why);
    if (rc == 0)
        rc = map_new(mc, fd, &st, x->write, false, out, why);
    close(fd);
    return rc;
}

int kvf_map_open(struct kvf_map_cache *mc, const char *path,
                 const struct kvf_map_expect *expect, struct kvf_mapping **out,
                 struct kvf_why *why)
{
    struct entry *e = NULL;
    struct stat st;
    int opath, rc;

    if (!is_fd_link(path))
        return kvf_fail(why, KVF_STALE,
                        "the path of a pool must be /proc/<pid>/fd/<n>");
    opath = open(path, O_PATH | O_CLOEXEC);
    if (opath < 0)
        return kvf_fail(why, KVF_UNSUPPORTED, "opening %s: %s", path,
                        strerror(errno));
    if (fstat(opath, &st) != 0)
        rc = kvf_fail(why, KVF_UNSUPPORTED, "%s: %s", path, strerror(errno));
    else
        rc = check_stat(path, &st, expect, why);
    if (rc == 0) {
        e = lookup(mc, &st, expect->write, expect->size);
        if (e == NULL)
            rc = reopen_and_map(mc, opath, path, expect, &e, why);
    }
    close(opath);
    if (rc != 0)
        return rc;
    kvf_map_hold(&e->m);
    rc = check_header(path, &e->m, expect, why);
    if (rc != 0) {
        kvf_map_release(&e->m);
        return rc;
    }
    *out = &e->m;
    return 0;
}

int kvf_map_fd(struct kvf_map_cache *mc, int fd, uint64_t size, bool write,
               struct kvf_mapping **out, struct kvf_why *why)
{
    struct entry *e;
    struct stat st;
    int rc;

    if (fstat(fd, &st) != 0)
        return kvf_fail(why, KVF_INTERNAL, "fstat: %s", strerror(errno));
    if (st.st_size <= 0 || (uint64_t)st.st_size < size)
        return kvf_fail(why, KVF_DENIED, "%lld bytes, not %llu",
                        (long long)st.st_size, (unsigned long long)size);
    e = lookup(mc, &st, write, size);
    if (e == NULL) {
        rc = map_new(mc, fd, &st, write, true, &e, why);
        if (rc != 0)
            return rc;
    } else if (e->m.fd < 0) {
        e->m.fd = fd; /* it was opened by path before */
    } else {
        close(fd);
    }
    kvf_map_hold(&e->m);
    *out = &e->m;
    return 0;
}

/* ---- the count of windows ----------------------------------------------- */

static uint64_t *windows_of(const struct kvf_mapping *m)
{
    return &((struct kvf_segment_header *)(void *)m->base)->windows;
}

uint64_t kvf_pool_windows(const struct kvf_mapping *pool)
{
    /* After everything that was copied before. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return __atomic_load_n(windows_of(pool), __ATOMIC_SEQ_CST);
}

void kvf_pool_set_windows(struct kvf_mapping *own, uint64_t n)
{
    __atomic_store_n(windows_of(own), n, __ATOMIC_SEQ_CST);
}
