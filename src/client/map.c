/* Mappings of pools: this daemon's own (writable) and those that views point
 * into (read-only).
 *
 * Happy path: open the path, fstat, find the mapping by device and inode; a new
 * one is checked (regular, sealed, header page) and mapped whole.
 *
 * Failure modes: a path that cannot be opened is UNSUPPORTED (another PID
 * namespace or user), one that is not what was told is STALE (its daemon was
 * replaced). */
#include "client.h"
#include "memory/segment.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int check_header(const struct kvf_segment_header *p, uint64_t size,
                        const struct kvf_id *incarnation, struct kvf_why *why)
{
    if (memcmp(p->magic, KVF_SEGMENT_MAGIC, sizeof p->magic) != 0 ||
        p->version != 1 || p->header_size != KVF_SEGMENT_HEADER)
        return kvf_fail(why, KVF_STALE, "that is not a pool of kvferryd");
    if (p->size != size)
        return kvf_fail(why, KVF_STALE, "the pool has %llu bytes, not %llu",
                        (unsigned long long)size, (unsigned long long)p->size);
    if (incarnation != NULL &&
        memcmp(p->incarnation, incarnation->b, KVF_ID_LEN) != 0)
        return kvf_fail(why, KVF_STALE,
                        "the pool is of another incarnation of the daemon");
    return 0;
}

/* A view points into a pool, or into a region, an engine's own memfd that has
 * no header; the reply does not tell which, nor the file's inode. What calls
 * itself a pool must be a whole one; the seal was checked, and the segment's
 * place is compared with the size. */
static int check_view(const struct kvf_segment_header *p, uint64_t size,
                      struct kvf_why *why)
{
    if (size < KVF_SEGMENT_HEADER ||
        memcmp(p->magic, KVF_SEGMENT_MAGIC, sizeof p->magic) != 0)
        return 0;
    return check_header(p, size, NULL, why);
}

/* A file that has grown since (a region may) is mapped anew. */
static struct kvfc_map *find(struct kvferry *h, const struct stat *st,
                             bool write)
{
    for (struct kvfc_map *m = h->maps; m != NULL; m = m->next)
        if (m->ino == st->st_ino && m->dev == st->st_dev && m->write == write &&
            m->size == (uint64_t)st->st_size)
            return m;
    return NULL;
}

static int map_fd(struct kvferry *h, int fd, bool write,
                  const struct kvf_id *incarnation, const struct stat *st,
                  struct kvfc_map **out, struct kvf_why *why)
{
    uint64_t size = (uint64_t)st->st_size;
    struct kvfc_map *m;
    int seals = fcntl(fd, F_GET_SEALS), rc;
    void *base;

    /* Without the seal the file could be cut while we read: SIGBUS. */
    if (!S_ISREG(st->st_mode) || seals < 0 || !(seals & F_SEAL_SHRINK) ||
        size == 0 || (write && size < KVF_SEGMENT_HEADER))
        return kvf_fail(why, KVF_STALE, "that is not a sealed memory file");
    base = mmap(NULL, size, write ? PROT_READ | PROT_WRITE : PROT_READ,
                MAP_SHARED, fd, 0);
    if (base == MAP_FAILED)
        return kvf_fail(why, KVF_INTERNAL, "mmap of %llu bytes: %s",
                        (unsigned long long)size, strerror(errno));
    rc = write ? check_header(base, size, incarnation, why)
               : check_view(base, size, why);
    m = rc == 0 ? calloc(1, sizeof *m) : NULL;
    if (m == NULL) {
        munmap(base, size);
        return rc != 0 ? rc : kvf_fail(why, KVF_INTERNAL, "out of memory");
    }
    m->base = base;
    m->size = size;
    m->dev = st->st_dev;
    m->ino = st->st_ino;
    m->write = write;
    m->next = h->maps;
    h->maps = m;
    *out = m;
    return 0;
}

int kvfc_map_open(struct kvferry *h, const char *path, bool write,
                  const struct kvf_id *incarnation, uint64_t size,
                  struct kvfc_map **out, struct kvf_why *why)
{
    struct kvfc_map *m = NULL;
    struct stat st;
    int fd, rc;

    fd = open(path, (write ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return kvf_fail(why, KVF_UNSUPPORTED, "cannot open %s: %s", path,
                        strerror(errno));
    if (fstat(fd, &st) != 0) {
        rc = kvf_fail(why, KVF_INTERNAL, "fstat: %s", strerror(errno));
    } else if (size != 0 && (uint64_t)st.st_size != size) {
        rc =
            kvf_fail(why, KVF_STALE, "%s is not the pool that was named", path);
    } else if ((m = find(h, &st, write)) != NULL) {
        rc = write ? check_header((const void *)m->base, m->size, incarnation,
                                  why)
                   : check_view((const void *)m->base, m->size, why);
    } else {
        rc = map_fd(h, fd, write, incarnation, &st, &m, why);
    }
    close(fd);
    if (rc != 0 || m == NULL)
        return rc;
    m->refs++;
    *out = m;
    return 0;
}

static void unlink_map(struct kvferry *h, struct kvfc_map *m)
{
    struct kvfc_map **at = &h->maps;

    while (*at != m)
        at = &(*at)->next;
    *at = m->next;
    munmap(m->base, m->size);
    free(m);
}

/* The caller may still have pointers into buffers of a lost pool. Their
 * addresses stay writable until the handle is closed, but the pool's memory
 * goes: empty pages of our own take its place. */
static void hollow(struct kvfc_map *m)
{
    void *p =
        mmap(m->base, m->size, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);

    if (p != MAP_FAILED) {
        m->ino = 0; /* found by nobody */
        m->dev = 0;
        m->refs = 1; /* until close */
    }
}

void kvfc_map_put(struct kvferry *h, struct kvfc_map *m)
{
    if (--m->refs > 0)
        return;
    if (m->write && !h->closing)
        hollow(m);
    else
        kvfc_map_trim(h, 64);
}

void kvfc_map_trim(struct kvferry *h, unsigned keep_idle)
{
    struct kvfc_map *m = h->maps, *next;
    unsigned idle = 0;

    for (; m != NULL; m = next) {
        next = m->next;
        if ((m->refs == 0 && ++idle > keep_idle) ||
            (h->closing && keep_idle == 0))
            unlink_map(h, m);
    }
}
