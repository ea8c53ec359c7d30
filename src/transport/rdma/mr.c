/* Registered memory: the pool at start, mappings of engines while the daemon
 * runs, and the pages that probes read into.
 *
 * Pieces of conf.piece bytes at most (and of the device's limit): registering
 * locks every page, which takes long, so a mapping is registered one piece a
 * slice. One access for all: reading and writing by others; whether a session
 * may write is its QP's matter. Failure modes: no memory may be locked (advice
 * names `ulimit -l`); a mapping that cannot be registered is one whose bytes
 * move another way. */
#include "transport/rdma/rdma_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PIECE (16ull << 20)
#define ACCESS                                                                 \
    (IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE)

/* ---- the index by address ----------------------------------------------- */

/* First entry whose end lies above p. */
static unsigned local_find(const struct kvf_rdma *r, const uint8_t *p)
{
    unsigned lo = 0, hi = r->n_local;

    while (lo < hi) {
        unsigned mid = (lo + hi) / 2;

        if (r->local[mid].base + r->local[mid].length <= p)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

const struct kvf_rdma_mr *kvf_rdma_local(const struct kvf_rdma *r,
                                         const void *p, uint64_t *rest)
{
    const uint8_t *b = p;
    unsigned i = local_find(r, b);

    if (i == r->n_local || r->local[i].base > b)
        return NULL;
    *rest = r->local[i].length - (uint64_t)(b - r->local[i].base);
    return &r->local[i];
}

static bool local_add(struct kvf_rdma *r, const struct kvf_rdma_mr *mr)
{
    unsigned i, cap = r->cap_local != 0 ? r->cap_local * 2 : 16;

    if (r->n_local == r->cap_local) {
        struct kvf_rdma_mr *p = reallocarray(r->local, cap, sizeof *p);

        if (p == NULL)
            return false;
        r->local = p;
        r->cap_local = cap;
    }
    i = local_find(r, mr->base);
    memmove(&r->local[i + 1], &r->local[i],
            (r->n_local - i) * sizeof r->local[0]);
    r->local[i] = *mr;
    r->n_local++;
    return true;
}

static void local_remove(struct kvf_rdma *r, const struct kvf_rdma_mr *mr)
{
    unsigned i = local_find(r, mr->base);

    /* Memory that was registered again while its old pieces go is there twice,
     * the new piece first. */
    while (i < r->n_local && r->local[i].base <= mr->base &&
           r->local[i].mr != mr->mr)
        i++;
    if (i == r->n_local || r->local[i].mr != mr->mr)
        return;
    r->n_local--;
    memmove(&r->local[i], &r->local[i + 1],
            (r->n_local - i) * sizeof r->local[0]);
}

/* ---- pieces ------------------------------------------------------------- */

/* Some milliseconds each; larger where a grant could not name them all. */
static uint64_t piece_size(const struct kvf_rdma *r, uint64_t size)
{
    uint64_t n = r->conf.piece != 0 ? r->conf.piece : PIECE;

    if (n < size / KVF_RDMA_SPACE_MRS + 4096)
        n = size / KVF_RDMA_SPACE_MRS + 4096;

    if (r->attr.max_mr_size != 0 && n > r->attr.max_mr_size)
        n = r->attr.max_mr_size;
    n &= ~(uint64_t)4095;
    return n != 0 ? n : 4096;
}

/* Registers the next `len` bytes. */
static int add_piece(struct kvf_rdma_memory *m, uint64_t len,
                     struct kvf_why *why)
{
    struct kvf_rdma *r = m->r;
    struct kvf_rdma_mr mr = {.base = m->base + m->registered, .length = len};

    if (m->n_mr == m->cap_mr) {
        unsigned cap = m->cap_mr != 0 ? m->cap_mr * 2 : 4;
        struct kvf_rdma_mr *p = reallocarray(m->mr, cap, sizeof *p);

        if (p == NULL)
            return kvf_fail(why, KVF_NO_SPACE, "no memory to register memory");
        m->mr = p;
        m->cap_mr = cap;
    }
    errno = 0;
    mr.mr = r->v->reg_mr(r->pd, mr.base, len, ACCESS);
    if (mr.mr == NULL)
        return kvf_rdma_advise(r, why, "ibv_reg_mr", errno);
    if (!local_add(r, &mr)) {
        (void)r->v->dereg_mr(mr.mr);
        return kvf_fail(why, KVF_NO_SPACE, "no memory to register memory");
    }
    m->mr[m->n_mr++] = mr;
    m->registered += len;
    r->n_mrs++;
    r->mr_bytes += len;
    r->t.stats->rdma_registrations++;
    return 0;
}

/* False: the device refused; the piece stays. */
static bool drop_piece(struct kvf_rdma_memory *m)
{
    struct kvf_rdma *r = m->r;
    struct kvf_rdma_mr *mr = &m->mr[m->n_mr - 1];

    if (r->v->dereg_mr(mr->mr) != 0)
        return false;
    local_remove(r, mr);
    r->n_mrs--;
    r->mr_bytes -= mr->length;
    m->n_mr--;
    return true;
}

static void memory_free(struct kvf_rdma_memory *m)
{
    kvf_rdma_job_stop(&m->job);
    kvf_list_unlink(&m->node);
    if (m->map != NULL)
        kvf_map_release(m->map);
    free(m->mr);
    free(m);
}

static struct kvf_rdma_memory *memory_new(struct kvf_rdma *r, void *base,
                                          uint64_t size)
{
    struct kvf_rdma_memory *m = calloc(1, sizeof *m);

    if (m == NULL)
        return NULL;
    m->r = r;
    m->base = base;
    m->size = size;
    m->refs = 1;
    kvf_list_init(&m->job.node);
    kvf_list_init(&m->node);
    kvf_list_push_back(&r->memories, &m->node);
    return m;
}

int kvf_rdma_add_pool(struct kvf_transport *t, void *base, uint64_t size,
                      struct kvf_why *why)
{
    struct kvf_rdma *r = kvf_rdma_of(t);
    uint64_t piece = r->conf.piece != 0 ? r->conf.piece : size;
    int rc = 0;

    /* Nobody waits yet: as few pieces as the device allows. */
    if (r->attr.max_mr_size != 0 && piece > r->attr.max_mr_size)
        piece = r->attr.max_mr_size & ~(uint64_t)4095;
    if (piece == 0 || (size + piece - 1) / piece > KVF_RDMA_MRS)
        return kvf_fail(why, KVF_UNSUPPORTED,
                        "%s registers %llu bytes at once at most: too many "
                        "pieces for this pool",
                        r->name, (unsigned long long)r->attr.max_mr_size);
    r->pool = memory_new(r, base, size);
    if (r->pool == NULL)
        return kvf_fail(why, KVF_NO_SPACE, "no memory to register memory");
    while (rc == 0 && r->pool->registered < size) {
        uint64_t rest = size - r->pool->registered;

        rc = add_piece(r->pool, rest < piece ? rest : piece, why);
    }
    return rc;
}

/* ---- mappings ----------------------------------------------------------- */

static bool drop_step(struct kvf_rdma_job *job)
{
    struct kvf_rdma_memory *m =
        kvf_container_of(job, struct kvf_rdma_memory, job);

    if (m->n_mr > 0 && drop_piece(m) && m->n_mr > 0)
        return true;
    if (m->n_mr == 0)
        memory_free(m);
    return false; /* a piece that is refused is tried when we end */
}

static bool add_step(struct kvf_rdma_job *job)
{
    struct kvf_rdma_memory *m =
        kvf_container_of(job, struct kvf_rdma_memory, job);
    uint64_t rest = m->size - m->registered, piece = piece_size(m->r, m->size);

    if (add_piece(m, rest < piece ? rest : piece, NULL) != 0) {
        m->failed = true;
        return false;
    }
    return m->registered < m->size;
}

struct kvf_rdma_memory *kvf_rdma_memory_add(struct kvf_transport *t,
                                            struct kvf_mapping *map)
{
    struct kvf_rdma *r = kvf_rdma_of(t);
    struct kvf_rdma_memory *m;

    kvf_list_for_each (n, &r->memories) {
        m = kvf_container_of(n, struct kvf_rdma_memory, node);
        if (m->map == map && m->refs > 0) {
            m->refs++;
            return m;
        }
    }
    m = memory_new(r, map->base, map->size);
    if (m == NULL)
        return NULL;
    kvf_map_hold(map);
    m->map = map;
    m->job.step = add_step;
    if (!r->fatal || r->heal.opened)
        kvf_rdma_job_start(r, &m->job);
    return m;
}

bool kvf_rdma_memory_pending(const struct kvf_rdma_memory *m)
{
    return m != NULL && !m->failed && m->registered < m->size &&
           (!m->r->fatal || m->r->heal.opened);
}

void kvf_rdma_memory_drop(struct kvf_rdma_memory *m)
{
    if (m == NULL || --m->refs > 0)
        return;
    kvf_rdma_job_stop(&m->job);
    m->job.step = drop_step;
    kvf_rdma_job_start(m->r, &m->job);
}

unsigned kvf_rdma_memory_keys(const struct kvf_rdma_memory *m, uint64_t offset,
                              uint64_t length, struct kvf_rdma_key *out,
                              unsigned max, uint64_t *first)
{
    uint64_t at = 0;
    unsigned n = 0;

    if (m == NULL || offset > m->registered || length > m->registered - offset)
        return 0;
    for (unsigned i = 0; i < m->n_mr && at < offset + length; i++) {
        const struct kvf_rdma_mr *mr = &m->mr[i];

        if (at + mr->length > offset) {
            if (n == max)
                return 0;
            if (n == 0)
                *first = at;
            out[n++] = (struct kvf_rdma_key){(uintptr_t)mr->base, mr->length,
                                             mr->mr->rkey};
        }
        at += mr->length;
    }
    return n;
}

/* ---- first and last ----------------------------------------------------- */

int kvf_rdma_scratch_open(struct kvf_rdma *r, struct kvf_why *why)
{
    size_t size = KVF_RDMA_SCRATCH * KVF_RDMA_PROBE;
    void *p = r->scratch;

    if (p == NULL)
        p = mmap(NULL, size, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return kvf_fail(why, KVF_NO_SPACE, "mmap: %s", strerror(errno));
    r->scratch = p;
    errno = 0;
    r->scratch_mr = r->v->reg_mr(r->pd, p, size, IBV_ACCESS_LOCAL_WRITE);
    if (r->scratch_mr == NULL)
        return kvf_rdma_advise(r, why, "ibv_reg_mr", errno);
    r->n_mrs++;
    r->mr_bytes += size;
    return 0;
}

static bool drop_scratch(struct kvf_rdma *r)
{
    if (r->scratch_mr == NULL)
        return true;
    if (r->v->dereg_mr(r->scratch_mr) != 0)
        return false;
    r->scratch_mr = NULL;
    r->n_mrs--;
    r->mr_bytes -= KVF_RDMA_SCRATCH * KVF_RDMA_PROBE;
    return true;
}

void kvf_rdma_memory_suspend(struct kvf_rdma *r)
{
    kvf_list_for_each (n, &r->memories) {
        struct kvf_rdma_memory *m =
            kvf_container_of(n, struct kvf_rdma_memory, node);

        m->registered = 0;
        m->failed = false;
        if (m->refs > 0)
            kvf_rdma_job_stop(&m->job);
    }
}

bool kvf_rdma_memory_drop_one(struct kvf_rdma *r)
{
    kvf_list_for_each (n, &r->memories) {
        struct kvf_rdma_memory *m =
            kvf_container_of(n, struct kvf_rdma_memory, node);

        if (m->n_mr > 0)
            return drop_piece(m);
    }
    return drop_scratch(r);
}

void kvf_rdma_memory_resume(struct kvf_rdma *r)
{
    kvf_list_for_each_safe (n, &r->memories) {
        struct kvf_rdma_memory *m =
            kvf_container_of(n, struct kvf_rdma_memory, node);

        if (m->refs == 0) {
            memory_free(m); /* its pieces had been refused */
            continue;
        }
        m->job.step = add_step;
        kvf_rdma_job_start(r, &m->job);
    }
}

void kvf_rdma_memory_close(struct kvf_rdma *r)
{
    kvf_list_for_each_safe (n, &r->memories) {
        struct kvf_rdma_memory *m =
            kvf_container_of(n, struct kvf_rdma_memory, node);

        while (m->n_mr > 0 && drop_piece(m))
            continue;
        memory_free(m);
    }
    free(r->local);
    (void)drop_scratch(r);
    if (r->scratch != NULL)
        munmap(r->scratch, KVF_RDMA_SCRATCH * KVF_RDMA_PROBE);
}
