/* The store itself: its life, and putting generations in.
 *
 * A put allocates all that its generation will ever need, then changes the
 * tables without a way to fail: one that is refused has changed nothing. */
#include "store/store_private.h"

#include <inttypes.h>
#include <stdlib.h>

const char *kvf_retire_name(enum kvf_retire reason)
{
    static const char *const names[] = {"consumed", "expired", "cleanup",
                                        "replaced", "failed"};

    return (unsigned)reason < KVF_RETIRE_REASONS ? names[reason] : "unknown";
}

uint64_t kvf_store_after_ms(const struct kvf_store *st, uint64_t ms)
{
    uint64_t now = st->sched->now_ns;

    if (ms > (KVF_NEVER - 1 - now) / KVF_NS_PER_MS)
        return KVF_NEVER;
    return now + ms * KVF_NS_PER_MS;
}

/* ---- put ---------------------------------------------------------------- */

static int check_put(const struct kvf_put *put, struct kvf_why *why)
{
    uint64_t size = 0;

    if (put->key_len == 0 || put->key_len > KVF_STORE_MAX_KEY)
        return kvf_fail(why, KVF_INVALID, "a key has 1 to %u bytes",
                        KVF_STORE_MAX_KEY);
    if (put->ttl_ms == 0)
        return kvf_fail(why, KVF_INVALID, "ttl_ms must not be 0");
    for (unsigned i = 0; i < put->n_segs; i++) {
        const struct kvf_seg *s = &put->segs[i];

        if ((s->buffer == NULL) == (s->region == NULL) || s->length == 0 ||
            s->length > UINT64_MAX - size)
            return kvf_fail(why, KVF_INVALID, "segment %u is not valid", i);
        if (s->buffer != NULL && s->buffer->state != KVF_BUF_FILLING &&
            s->buffer->state != KVF_BUF_RECEIVING)
            return kvf_fail(why, KVF_INVALID,
                            "segment %u: the buffer was put already", i);
        size += s->length;
    }
    if (size == 0)
        return kvf_fail(why, KVF_INVALID, "an empty payload cannot be put");
    return 0;
}

/* From here on readers can find it. */
static void publish(struct kvf_gen_private *p)
{
    struct kvf_store *st = p->st;

    for (unsigned i = 0; i < p->n_bufs; i++) {
        kvf_buffer_set_state(p->bufs[i], KVF_BUF_PUBLISHED);
        kvf_list_unlink(&p->bufs[i]->owner_node);
        p->bufs[i]->owner = NULL;
    }
    for (unsigned i = 0; i < p->n_regions; i++)
        kvf_region_pin(p->regions[i]);
    p->g.generation = st->next_generation++;
    p->g.created_ns = st->sched->now_ns;
    kvf_timer_set(st->sched, &p->ttl, kvf_store_after_ms(st, p->g.ttl_ms));
    p->key->live = &p->g;
    st->n_live++;
    st->bytes += p->g.size;
    st->stats->puts++;
    st->stats->put_bytes += p->g.size;
}

int kvf_store_put(struct kvf_store *st, const struct kvf_put *put,
                  const struct kvf_gen **out, struct kvf_why *why)
{
    struct kvf_gen_private *p;
    struct kvf_key *key;
    int rc = check_put(put, why);

    if (rc != 0)
        return rc;
    key = kvf_key_find(st, put->key, put->key_len);
    if (key != NULL && key->live != NULL) {
        if (put->reject_duplicate)
            return kvf_fail(why, KVF_EXISTS,
                            "generation %" PRIu64 " of the key is live",
                            key->live->generation);
    } else if (st->n_live >= st->conf.max_keys) {
        return kvf_fail(why, KVF_BUSY, "%u keys are published already",
                        st->conf.max_keys);
    }
    key = kvf_key_make(st, put->key, put->key_len); /* held by p below */
    if (key == NULL)
        return kvf_fail(why, KVF_BUSY, "out of memory for one more key");
    p = kvf_gen_new(key, put);
    if (p == NULL) {
        kvf_key_drop(key);
        return kvf_fail(why, KVF_BUSY, "out of memory for one more key");
    }
    if (key->live != NULL)
        kvf_gen_retire(key->live, KVF_RETIRE_REPLACED, NULL, 0, 0);
    kvf_tomb_lift(key);
    publish(p);
    kvf_waiters_serve(key);
    if (out != NULL)
        *out = &p->g;
    return 0;
}

const struct kvf_gen *kvf_store_live(const struct kvf_store *st,
                                     const char *key, size_t len)
{
    const struct kvf_key *k = kvf_key_find(st, key, len);

    return k != NULL ? k->live : NULL;
}

/* ---- life of the store -------------------------------------------------- */

struct kvf_store *kvf_store_create(struct kvf_sched *sched,
                                   struct kvf_stats *stats,
                                   const struct kvf_store_conf *conf,
                                   const struct kvf_store_ops *ops, void *arg,
                                   uint64_t first_generation,
                                   struct kvf_why *why)
{
    struct kvf_store *st = calloc(1, sizeof *st);
    uint32_t first_claim;

    if (st != NULL) {
        st->late = calloc(KVF_LATE_RING, sizeof *st->late);
        st->late_heads = calloc(KVF_LATE_RING, sizeof *st->late_heads);
    }
    if (st == NULL || st->late == NULL || st->late_heads == NULL) {
        if (st != NULL) {
            free(st->late);
            free(st->late_heads);
        }
        free(st);
        kvf_fail(why, KVF_INTERNAL, "out of memory for the store");
        return NULL;
    }
    st->sched = sched;
    st->stats = stats;
    st->conf = *conf;
    if (ops != NULL)
        st->ops = *ops;
    st->arg = arg;
    st->next_generation = first_generation != 0 ? first_generation : 1;
    kvf_random_bytes(&first_claim, sizeof first_claim);
    st->next_claim = (uint64_t)first_claim + 1;
    kvf_random_bytes(&st->seed, sizeof st->seed);
    kvf_rng_seed(&st->rng, st->seed);
    kvf_list_init(&st->tombs);
    kvf_list_init(&st->due);
    kvf_list_init(&st->quiet);
    kvf_task_init(&st->due_task, kvf_waiters_run);
    kvf_task_init(&st->quiet_task, kvf_gen_run);
    for (unsigned i = 0; i < KVF_LATE_RING; i++)
        kvf_list_init(&st->late[i].gen_node);
    return st;
}

void kvf_store_claims_from(struct kvf_store *st, uint64_t first)
{
    st->next_claim = first;
}

void kvf_store_configure(struct kvf_store *st,
                         const struct kvf_store_conf *conf)
{
    st->conf = *conf;
    kvf_tomb_trim(st);
}

static void end_claims(struct kvf_gen_private *p)
{
    struct kvf_list *n;

    while ((n = kvf_list_first(&p->claims)) != NULL) {
        struct kvf_claim_private *c =
            kvf_container_of(n, struct kvf_claim_private, gen_node);

        c->c.io = 0;
        if (c->c.ended) {
            p->n_held--;
            kvf_claim_free(c);
        } else {
            kvf_claim_abort(&c->c);
        }
    }
    kvf_gen_settle(p);
}

void kvf_store_destroy(struct kvf_store *st)
{
    struct kvf_key *key, *next;

    if (st == NULL)
        return;
    st->ops.on_retired = NULL;
    kvf_waiters_forget(&st->due, st);
    HASH_ITER (hh, st->keys, key, next) {
        kvf_key_hold(key);
        kvf_waiters_forget(&key->waiters, st);
        if (key->live != NULL)
            kvf_gen_retire(key->live, KVF_RETIRE_CLEANUP, NULL, 0, 0);
        kvf_list_for_each_safe (n, &key->old)
            end_claims(kvf_container_of(n, struct kvf_gen_private, key_node));
        kvf_tomb_lift(key);
        kvf_key_drop(key);
    }
    while (!kvf_list_empty(&st->quiet))
        kvf_gen_run(&st->quiet_task);
    kvf_task_cancel(&st->due_task);
    kvf_task_cancel(&st->quiet_task);
    free(st->late);
    free(st->late_heads);
    free(st);
}
