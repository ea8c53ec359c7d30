/* The daemon's own pool: one sealed memfd, mapped, prefaulted and locked.
 *
 * Happy path: huge pages when the machine has enough of them free, else normal
 * pages; size, map, back every page, lock, write the header, seal.
 *
 * Failure modes: too little memory (told before the kernel starts to kill),
 * limits of a cgroup, mlock refused (only a warning). */
#include "memory/segment.h"

#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define STEP (64ull << 20)
#define MIB(bytes) ((unsigned long long)(((bytes) + (1u << 20) - 1) >> 20))

_Static_assert(offsetof(struct kvf_segment_header, windows) == 56,
               "told in docs/PROTOCOL-PEER.md");
_Static_assert(sizeof(struct kvf_segment_header) <= KVF_SEGMENT_HEADER,
               "the header is one page");

/* ---- progress ----------------------------------------------------------- */

struct progress {
    uint64_t total, done;
    struct timespec last;
};

static void advance(struct progress *p, uint64_t bytes)
{
    struct timespec now;
    long long ms;

    p->done += bytes;
    clock_gettime(CLOCK_MONOTONIC, &now);
    ms = (now.tv_sec - p->last.tv_sec) * 1000LL +
         (now.tv_nsec - p->last.tv_nsec) / 1000000;
    if (ms < 1000 || p->done >= p->total)
        return;
    p->last = now;
    kvf_log(KVF_LOG_INFO, "POOL", "preparing memory: %d %%",
            (int)(p->done * 100 / p->total));
}

/* Calls fn for [0, size) in steps. Returns 0 or an errno. */
static int in_steps(struct kvf_segment *s, struct progress *p,
                    int (*fn)(struct kvf_segment *s, uint64_t off,
                              uint64_t len))
{
    for (uint64_t off = 0; off < s->size; off += STEP) {
        uint64_t len = s->size - off < STEP ? s->size - off : STEP;
        int err = fn(s, off, len);

        if (err != 0)
            return err;
        advance(p, len);
    }
    return 0;
}

static int step_allocate(struct kvf_segment *s, uint64_t off, uint64_t len)
{
    while (fallocate(s->fd, 0, (off_t)off, (off_t)len) != 0) {
        if (errno != EINTR)
            return errno;
    }
    return 0;
}

static int step_populate(struct kvf_segment *s, uint64_t off, uint64_t len)
{
    for (;;) {
        if (madvise(s->base + off, len, MADV_POPULATE_WRITE) == 0)
            return 0;
        if (errno == EINVAL)
            break; /* before Linux 5.14 */
        if (errno != EINTR && errno != EAGAIN)
            return errno;
    }
    for (uint64_t i = 0; i < len; i += 4096)
        *(volatile uint8_t *)(s->base + off + i) = 0;
    return 0;
}

static int step_lock(struct kvf_segment *s, uint64_t off, uint64_t len)
{
    return mlock(s->base + off, len) == 0 ? 0 : errno;
}

/* ---- what the machine has ----------------------------------------------- */

/* A line "name  123 kB" of /proc/meminfo; the number, or 0. */
static uint64_t meminfo(const char *name)
{
    char line[128];
    size_t len = strlen(name);
    uint64_t value = 0;
    FILE *f = fopen("/proc/meminfo", "re");

    if (f == NULL)
        return 0;
    while (fgets(line, sizeof line, f) != NULL) {
        if (strncmp(line, name, len) == 0 && line[len] == ':') {
            value = strtoull(line + len + 1, NULL, 10);
            break;
        }
    }
    fclose(f);
    return value;
}

/* Bytes that the own cgroup may use (v2, own level), or UINT64_MAX. */
static uint64_t cgroup_max(void)
{
    char line[512], path[600], *end;
    uint64_t max = UINT64_MAX;
    FILE *f = fopen("/proc/self/cgroup", "re");

    if (f == NULL)
        return max;
    path[0] = '\0';
    while (fgets(line, sizeof line, f) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        if (strncmp(line, "0::", 3) == 0)
            snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.max",
                     line + 3);
    }
    fclose(f);
    f = path[0] == '\0' ? NULL : fopen(path, "re");
    if (f == NULL)
        return max;
    if (fgets(line, sizeof line, f) != NULL) {
        uint64_t v = strtoull(line, &end, 10);

        if (end != line)
            max = v;
    }
    fclose(f);
    return max;
}

/* A memfd has no size limit of its own: without this check the kernel would
 * start to kill processes instead of refusing. */
static int check_room(uint64_t size, struct kvf_why *why)
{
    uint64_t room = (meminfo("MemAvailable") + meminfo("SwapFree")) * 1024;
    uint64_t max = cgroup_max();

    if (room != 0 && size > room)
        return kvf_fail(why, KVF_NO_SPACE,
                        "the pool needs %llu MiB but the machine has %llu MiB "
                        "available: lower memory_pool_size or free memory",
                        MIB(size), MIB(room));
    if (size > max)
        return kvf_fail(why, KVF_NO_SPACE,
                        "the pool needs %llu MiB but the cgroup allows %llu "
                        "MiB: lower memory_pool_size or raise memory.max "
                        "(MemoryMax= of the unit, the container's limit)",
                        MIB(size), MIB(max));
    return 0;
}

/* True when the kernel gives shared memory huge pages on advice. */
static bool thp_on_advice(void)
{
    char line[128] = "";
    FILE *f = fopen("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "re");

    if (f == NULL)
        return false;
    if (fgets(line, sizeof line, f) == NULL)
        line[0] = '\0';
    fclose(f);
    return strstr(line, "[advise]") != NULL;
}

static int out_of_memory(const struct kvf_segment *s, const char *call, int err,
                         struct kvf_why *why)
{
    if (err == ENOSPC || err == ENOMEM || err == EFAULT)
        return kvf_fail(why, KVF_NO_SPACE,
                        "%s of the %llu MiB pool: %s. Lower memory_pool_size, "
                        "or give more memory (cgroup memory.max, "
                        "vm.nr_hugepages when huge pages are used)",
                        call, MIB(s->size), strerror(err));
    return kvf_fail(why, KVF_INTERNAL, "%s of the %llu MiB pool: %s", call,
                    MIB(s->size), strerror(err));
}

/* ---- steps of creation -------------------------------------------------- */

static uint64_t round_up(uint64_t n, uint64_t unit)
{
    return (n + unit - 1) / unit * unit;
}

static int map_whole(struct kvf_segment *s)
{
    void *p = mmap(NULL, s->size, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd, 0);

    if (p == MAP_FAILED)
        return errno;
    s->base = p;
    return 0;
}

static void unmake(struct kvf_segment *s)
{
    if (s->base != NULL)
        munmap(s->base, s->size);
    if (s->fd >= 0)
        close(s->fd);
    s->base = NULL;
    s->fd = -1;
}

/* Huge pages, if enough are free for the whole pool. Quietly gives up. */
static bool try_huge(struct kvf_segment *s, uint64_t size, struct progress *p)
{
    uint64_t page = meminfo("Hugepagesize") * 1024;
    uint64_t have = meminfo("HugePages_Free"), rsvd = meminfo("HugePages_Rsvd");

    if (page == 0 || have <= rsvd || (have - rsvd) < (size + page - 1) / page)
        return false;
    s->size = round_up(size, page);
    s->page_size = page;
    s->fd = memfd_create("kvferry-pool",
                         MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB);
    if (s->fd < 0)
        return false;
    p->total = 2 * s->size;
    if (ftruncate(s->fd, (off_t)s->size) != 0 ||
        in_steps(s, p, step_allocate) != 0 || map_whole(s) != 0 ||
        in_steps(s, p, step_populate) != 0) {
        unmake(s);
        p->done = 0;
        return false;
    }
    return true;
}

static int make_normal(struct kvf_segment *s, uint64_t size, struct progress *p,
                       struct kvf_why *why)
{
    bool advise = thp_on_advice();
    int err;

    s->size = round_up(size, 4096);
    s->page_size = 4096;
    p->total = (advise ? 1 : 2) * s->size;
    err = check_room(s->size, why);
    if (err != 0)
        return err;
    s->fd = memfd_create("kvferry-pool", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (s->fd < 0)
        return out_of_memory(s, "memfd_create", errno, why);
    if (ftruncate(s->fd, (off_t)s->size) != 0)
        return out_of_memory(s, "ftruncate", errno, why);
    err = map_whole(s);
    if (err != 0)
        return out_of_memory(s, "mmap", err, why);
    (void)madvise(s->base, s->size, MADV_HUGEPAGE);
    /* fallocate is the faster way to back pages and refuses cleanly, but it
     * does not know the advice and would take small ones. */
    err = advise ? 0 : in_steps(s, p, step_allocate);
    if (err != 0)
        return out_of_memory(s, "fallocate", err, why);
    err = in_steps(s, p, step_populate);
    if (err != 0)
        return out_of_memory(s, "prefault", err, why);
    return 0;
}

static void lock_pages(struct kvf_segment *s)
{
    struct progress quiet = {.total = 0};
    struct rlimit rl = {0};
    char limit[32] = "unlimited";
    int err = in_steps(s, &quiet, step_lock);

    s->locked = err == 0;
    if (s->locked)
        return;
    (void)munlock(s->base, s->size);
    getrlimit(RLIMIT_MEMLOCK, &rl);
    if (rl.rlim_cur != RLIM_INFINITY)
        snprintf(limit, sizeof limit, "%llu",
                 (unsigned long long)rl.rlim_cur / 1024);
    kvf_log(KVF_LOG_WARN, "POOL",
            "cannot lock the pool in memory (%s), it may be swapped: `ulimit "
            "-l` is %s KiB, %llu needed (LimitMEMLOCK= of the unit)",
            strerror(err), limit, (unsigned long long)(s->size / 1024));
}

static void write_header(struct kvf_segment *s, const struct kvf_id *inc)
{
    struct kvf_segment_header h = {
        .version = 1,
        .header_size = KVF_SEGMENT_HEADER,
        .size = s->size,
        .page_size = s->page_size,
        .pid = (uint64_t)getpid(),
        .windows = KVF_WINDOWS_FIRST,
    };

    memcpy(h.magic, KVF_SEGMENT_MAGIC, sizeof h.magic);
    memcpy(h.incarnation, inc->b, sizeof h.incarnation);
    memcpy(s->base, &h, sizeof h);
}

static int finish(struct kvf_segment *s, const struct kvf_id *inc,
                  struct kvf_why *why)
{
    struct stat st;

    write_header(s, inc);
    if (fcntl(s->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) !=
            0 ||
        fstat(s->fd, &st) != 0)
        return kvf_fail(why, KVF_INTERNAL, "sealing the pool: %s",
                        strerror(errno));
    s->dev = st.st_dev;
    s->ino = st.st_ino;
    snprintf(s->path, sizeof s->path, "/proc/%ld/fd/%d", (long)getpid(), s->fd);
    return 0;
}

int kvf_segment_create(struct kvf_segment *out, uint64_t size,
                       const struct kvf_id *incarnation, struct kvf_why *why)
{
    struct kvf_segment s = {.fd = -1};
    struct progress p = {0};
    int rc = 0;

    if (size <= KVF_SEGMENT_HEADER || size > (uint64_t)INT64_MAX / 2)
        return kvf_fail(why, KVF_INVALID,
                        "memory_pool_size: %llu bytes make no pool",
                        (unsigned long long)size);
    clock_gettime(CLOCK_MONOTONIC, &p.last);
    if (!try_huge(&s, size, &p))
        rc = make_normal(&s, size, &p, why);
    if (rc == 0)
        rc = finish(&s, incarnation, why);
    if (rc != 0) {
        unmake(&s);
        return rc;
    }
    lock_pages(&s);
    kvf_log(KVF_LOG_INFO, "POOL",
            "ready size=%llu page_size=%llu locked=%s path=%s",
            (unsigned long long)s.size, (unsigned long long)s.page_size,
            s.locked ? "yes" : "no", s.path);
    *out = s;
    return 0;
}

void kvf_segment_destroy(struct kvf_segment *s)
{
    unmake(s);
}
