/* Shared memory: the daemon's own pool, and mappings of what others offer.
 *
 * The pool is one memfd (huge pages where the machine has them), sealed against
 * shrinking and growing, mapped once, prefaulted, mlocked when allowed. Its
 * first page is a header that whoever maps it compares with what it was told.
 */
#ifndef KVF_MEMORY_SEGMENT_H
#define KVF_MEMORY_SEGMENT_H

#include "base/bytes.h"
#include "base/why.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define KVF_SEGMENT_HEADER 4096u
#define KVF_SEGMENT_MAGIC "KVFPOOL1"
#define KVF_WINDOWS_FIRST 1u /* kvf_segment_header.windows of a new pool */

/* First page of the pool, little-endian as x86 and arm64 store it. Read-only
 * for everybody but the daemon that made it. */
struct kvf_segment_header {
    char magic[8];
    uint32_t version;     /* 1 */
    uint32_t header_size; /* KVF_SEGMENT_HEADER */
    uint8_t incarnation[KVF_ID_LEN];
    uint64_t size;      /* of the whole file, header included */
    uint64_t page_size; /* 4096, or of the huge pages */
    uint64_t pid;       /* of the daemon, in its own namespace; for people */
    uint64_t windows;   /* goes up when a window of the daemon ends, before its
                           engine hears of it; 0: it does not tell */
};

struct kvf_segment {
    int fd;
    uint8_t *base;
    uint64_t size;
    uint64_t page_size;
    bool locked;
    char path[64]; /* /proc/<pid>/fd/<n> */
    dev_t dev;
    ino_t ino;
};

/* Creates, sizes (fallocate), seals, maps and prefaults. Blocks while it does
 * (only used before the daemon is ready); logs "[POOL] preparing memory: 42 %"
 * once a second when it takes longer than that, one warning when mlock is
 * refused (with the `ulimit -l` that would be needed), and one line with the
 * result. Errors name the remedy (memory, cgroup, hugepages). size: bytes, a
 * multiple of 4096 is made of it (rounded up to page_size). */
int kvf_segment_create(struct kvf_segment *s, uint64_t size,
                       const struct kvf_id *incarnation, struct kvf_why *why);
void kvf_segment_destroy(struct kvf_segment *s);

/* A mapping of somebody else's memory, shared by all who need it and found
 * again by (dev, ino), never by path. Read-only unless `write`. */
struct kvf_mapping {
    uint8_t *base;
    uint64_t size;
    dev_t dev;
    ino_t ino;
    int fd; /* kept open; -1 if not needed */
    unsigned refs;
    void *cache_private;
};

struct kvf_map_cache; /* by (dev, ino, write); unmaps when the last ref goes,
                         but keeps up to `idle_max` unused ones
                         that are read-only */

struct kvf_map_cache *kvf_map_cache_create(unsigned idle_max);
/* Unmaps all that is in the table; call it once nothing is held. */
void kvf_map_cache_destroy(struct kvf_map_cache *mc);
/* Unmaps what nobody uses: an idle mapping keeps the memory of a dead daemon
 * allocated, so this is for when a peer is gone. */
void kvf_map_cache_trim(struct kvf_map_cache *mc);

/* What a mapping must be to be believed. */
struct kvf_map_expect {
    uint64_t size;             /* at least this many bytes; exact when
                                  has_header */
    bool has_header;           /* a pool: check the header page */
    struct kvf_id incarnation; /* with has_header */
    bool has_inode;            /* check st_dev and st_ino */
    bool write;                /* for writing too; else read-only */
    uint64_t dev, ino;
};
/* Opens `path`, which must look like /proc/<pid>/fd/<n> (anything else is
 * -KVF_STALE: nothing a peer sends may open arbitrary files) and be a regular
 * file with F_SEAL_SHRINK, checks it and maps all of it.
 *   -KVF_UNSUPPORTED  cannot be opened here (other PID namespace, other uid)
 *   -KVF_STALE        opened, but it is not what was told */
int kvf_map_open(struct kvf_map_cache *mc, const char *path,
                 const struct kvf_map_expect *expect, struct kvf_mapping **out,
                 struct kvf_why *why);
/* From an fd that the caller verified; takes the fd over on success. Maps the
 * whole file, so that m->size may be above `size`. */
int kvf_map_fd(struct kvf_map_cache *mc, int fd, uint64_t size, bool write,
               struct kvf_mapping **out, struct kvf_why *why);
void kvf_map_hold(struct kvf_mapping *m);
void kvf_map_release(struct kvf_mapping *m);
unsigned kvf_map_count(const struct kvf_map_cache *mc); /* live + idle */

/* The count in the header of a mapped pool. What was copied from or to a window
 * before the call was copied while every window was there of which the count
 * was the same before the copy. Any process of the uid may have written there:
 * memory must not depend on it, only what is said about a transfer. */
uint64_t kvf_pool_windows(const struct kvf_mapping *pool);
/* For the daemon whose pool it is, mapped for writing. */
void kvf_pool_set_windows(struct kvf_mapping *own, uint64_t n);
#endif
