/* Generations: made whole with their put, retired for one reason, told about
 * when nothing reads them any more.
 *
 * All memory that the end of a generation needs is taken with the put, so that
 * retiring cannot fail. Notifications go out from a posted task, a bounded
 * number at a time; the generation is freed there and nowhere else. */
#include "store/store_private.h"

#include <inttypes.h>
#include <stdlib.h>

#include "base/log.h"

/* ---- a generation ------------------------------------------------------- */

bool kvf_gen_has_reader(const struct kvf_gen *g)
{
    return !g->retired && (g->readers == 0 || g->by_consumer ||
                           g->n_claims + g->readers_done < g->readers);
}

static void gen_expired(struct kvf_timer *t)
{
    struct kvf_gen_private *p =
        kvf_container_of(t, struct kvf_gen_private, ttl);

    kvf_gen_retire(&p->g, KVF_RETIRE_EXPIRED, NULL, 0, 0);
}

static int by_address(const void *a, const void *b)
{
    uintptr_t x = (uintptr_t) * (void *const *)a;
    uintptr_t y = (uintptr_t) * (void *const *)b;

    return x < y ? -1 : x > y;
}

/* Sorts n pointers and drops repetitions; returns how many are left. */
static unsigned unique(void **ptrs, unsigned n)
{
    unsigned kept = 0;

    if (n > 1)
        qsort(ptrs, n, sizeof *ptrs, by_address);
    for (unsigned i = 0; i < n; i++)
        if (kept == 0 || ptrs[kept - 1] != ptrs[i])
            ptrs[kept++] = ptrs[i];
    return kept;
}

static void copy_segments(struct kvf_gen_private *p, const struct kvf_put *put)
{
    void **bufs = (void **)p->bufs, **regions = (void **)p->regions;

    for (unsigned i = 0; i < put->n_segs; i++) {
        p->starts[i] = p->g.size;
        p->g.segs[i] = put->segs[i];
        p->g.size += put->segs[i].length;
        if (put->segs[i].buffer != NULL)
            bufs[p->n_bufs++] = put->segs[i].buffer;
        else
            regions[p->n_regions++] = put->segs[i].region;
    }
    p->g.n_segs = put->n_segs;
    p->n_bufs = unique(bufs, p->n_bufs);
    p->n_regions = unique(regions, p->n_regions);
}

static void gen_free(struct kvf_gen_private *p)
{
    if (p->g.user != NULL && p->st->ops.on_freed != NULL)
        p->st->ops.on_freed(p->st->arg, p->g.user);
    kvf_tallies_free(p);
    kvf_tomb_free(p->tomb);
    free(p);
}

/* One block: the generation, its segments and tables, the metadata. */
struct kvf_gen_private *kvf_gen_new(struct kvf_key *key,
                                    const struct kvf_put *put)
{
    size_t n = put->n_segs;
    size_t each =
        sizeof(struct kvf_seg) + sizeof(uint64_t) + 2 * sizeof(void *);
    struct kvf_gen_private *p = calloc(1, sizeof *p + n * each + put->meta_len);
    char *at;

    if (p == NULL || (p->tomb = calloc(1, sizeof *p->tomb)) == NULL) {
        free(p);
        return NULL;
    }
    at = (char *)(p + 1);
    p->g.segs = (void *)at;
    p->starts = (void *)(at += n * sizeof(struct kvf_seg));
    p->bufs = (void *)(at += n * sizeof(uint64_t));
    p->regions = (void *)(at += n * sizeof(void *));
    at += n * sizeof(void *);
    if (put->meta_len != 0)
        memcpy(at, put->meta, put->meta_len);
    p->g.meta = at;
    p->g.meta_len = put->meta_len;
    p->g.priv = p;
    p->st = key->st;
    p->key = key;
    kvf_list_init(&p->key_node);
    kvf_list_init(&p->quiet_node);
    kvf_list_init(&p->claims);
    kvf_list_init(&p->late);
    kvf_timer_init(&p->ttl, gen_expired);
    copy_segments(p, put);
    p->g.key = key->name;
    p->g.key_len = key->len;
    p->g.readers = put->readers;
    p->g.ttl_ms = put->ttl_ms;
    p->g.has_checksum = put->has_checksum;
    p->g.checksum = put->checksum;
    p->g.notify = put->notify;
    p->g.publisher = put->publisher;
    p->g.by_consumer = put->by_consumer;
    p->g.user = put->user;
    return p;
}

/* ---- the end of a generation -------------------------------------------- */

static void log_retired(const struct kvf_gen *g, uint64_t now_ns)
{
    char key[1100];

    if (!kvf_log_on(KVF_LOG_INFO))
        return;
    kvf_log(KVF_LOG_INFO, "KVF RETIRE",
            "key=%s gen=%" PRIu64 " reason=%s readers_done=%" PRIu64
            " age_ms=%" PRIu64,
            kvf_log_key(key, sizeof key, g->key, g->key_len), g->generation,
            kvf_retire_name(g->reason), g->readers_done,
            (uint64_t)((now_ns - g->created_ns) / KVF_NS_PER_MS));
}

static void leave_tomb(struct kvf_gen_private *p, const char *text,
                       size_t text_len, uint64_t ttl_ms)
{
    struct kvf_tomb *t = p->tomb;

    p->tomb = NULL;
    t->reason = p->g.reason;
    t->generation = p->g.generation;
    t->readers = p->g.readers;
    t->readers_done = p->g.readers_done;
    t->size = p->g.size;
    t->ttl_ms = t->reason == KVF_RETIRE_FAILED ? ttl_ms : p->g.ttl_ms;
    kvf_tomb_set(p->key, t, text, text_len);
}

void kvf_gen_retire(struct kvf_gen *g, enum kvf_retire reason, const char *text,
                    size_t text_len, uint64_t ttl_ms)
{
    struct kvf_gen_private *p = g->priv;
    struct kvf_store *st = p->st;

    g->retired = true;
    g->reason = reason;
    p->key->live = NULL;
    kvf_list_push_back(&p->key->old, &p->key_node);
    kvf_timer_cancel(st->sched, &p->ttl);
    kvf_late_forget(p);
    st->n_live--;
    st->n_draining++;
    st->stats->retired++;
    log_retired(g, st->sched->now_ns);
    if (reason != KVF_RETIRE_REPLACED && reason != KVF_RETIRE_CLEANUP)
        leave_tomb(p, text, text_len, ttl_ms);
    /* Freed at once or, by the buffers' own rule, with the last claim's pin. */
    for (unsigned i = 0; i < p->n_bufs; i++)
        kvf_buffer_retire(p->bufs[i]);
    kvf_gen_settle(p);
}

void kvf_gen_settle(struct kvf_gen_private *p)
{
    struct kvf_store *st = p->st;

    if (!p->g.retired || p->quiet || p->g.n_claims != 0 || p->n_held != 0)
        return;
    p->quiet = true;
    p->g.n_segs = 0; /* what they name is no longer ours */
    st->n_draining--;
    st->bytes -= p->g.size;
    for (unsigned i = 0; i < p->n_regions; i++)
        kvf_region_unpin(p->regions[i]);
    p->n_bufs = p->n_regions = 0;
    kvf_list_push_back(&st->quiet, &p->quiet_node);
    kvf_task_post(st->sched, &st->quiet_task);
}

void kvf_gen_run(struct kvf_task *t)
{
    struct kvf_store *st = kvf_container_of(t, struct kvf_store, quiet_task);
    struct kvf_list *n;

    for (unsigned i = 0; i < KVF_STORE_BATCH; i++) {
        n = kvf_list_pop(&st->quiet);
        if (n == NULL)
            return;
        struct kvf_gen_private *p =
            kvf_container_of(n, struct kvf_gen_private, quiet_node);

        if (st->ops.on_retired != NULL)
            st->ops.on_retired(st->arg, &p->g, p->g.reason);
        kvf_list_unlink(&p->key_node);
        kvf_key_drop(p->key);
        gen_free(p);
    }
    kvf_task_post(st->sched, t);
}

void kvf_gen_log_put(const struct kvf_gen *g)
{
    char key[512];

    if (!kvf_log_on(KVF_LOG_INFO))
        return;
    kvf_log(KVF_LOG_INFO, "KVF PUT",
            "key=%s gen=%" PRIu64 " size=%" PRIu64 " readers=%" PRIu64
            " ttl_ms=%" PRIu64 " segments=%u",
            kvf_log_key(key, sizeof key, g->key, g->key_len), g->generation,
            g->size, g->readers, g->ttl_ms, g->n_segs);
}
