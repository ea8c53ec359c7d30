/* Views over many keys: cleanup by request, list, gauges, and the check that
 * tests run after every step.
 *
 * Prefixes are ranges of the ordered index, so a cleanup costs what it finds,
 * however many keys there are. */
#include "store/store_private.h"

#include <inttypes.h>
#include <stdio.h>

/* ---- cleanup ------------------------------------------------------------ */

static uint64_t clean(struct kvf_key *key)
{
    uint64_t live = key->live != NULL;

    kvf_tomb_lift(key);
    kvf_waiters_end(key, true, 0, KVF_CANCELLED,
                    "the request was cleaned up at the owner");
    if (live)
        kvf_gen_retire(key->live, KVF_RETIRE_CLEANUP, NULL, 0, 0);
    return live;
}

uint64_t kvf_store_cleanup(struct kvf_store *st, const char *request_id,
                           size_t len, bool has_edge, uint64_t from,
                           uint64_t to)
{
    char name[KVF_STORE_MAX_KEY + 64];
    struct kvf_key *key, *next;
    uint64_t count = 0;

    if (len >= KVF_STORE_MAX_KEY)
        return 0;
    memcpy(name, request_id, len);
    name[len++] = ':';
    if (has_edge)
        len += (size_t)snprintf(name + len, sizeof name - len,
                                "%" PRIu64 "_%" PRIu64, from, to);
    key =
        has_edge ? kvf_key_find(st, name, len) : kvf_index_first(st, name, len);
    if (key != NULL)
        kvf_key_hold(key);
    for (; key != NULL; key = next) {
        /* Held before `key` may go, so that the walk can go on from it. */
        next = has_edge ? NULL : kvf_index_next(key, name, len);
        if (next != NULL)
            kvf_key_hold(next);
        count += clean(key);
        kvf_key_drop(key);
    }
    return count;
}

/* ---- list --------------------------------------------------------------- */

static struct kvf_key_info gen_info(const struct kvf_gen *g, uint64_t now_ns)
{
    return (struct kvf_key_info){.key = g->key,
                                 .key_len = g->key_len,
                                 .state = g->retired ? "draining" : "published",
                                 .size = g->size,
                                 .generation = g->generation,
                                 .readers = g->readers,
                                 .readers_done = g->readers_done,
                                 .claims = g->n_claims,
                                 .age_ms =
                                     (now_ns - g->created_ns) / KVF_NS_PER_MS,
                                 .ttl_ms = g->ttl_ms};
}

static bool list_key(const struct kvf_key *key,
                     bool (*fn)(void *arg, const struct kvf_key_info *info),
                     void *arg)
{
    const struct kvf_tomb *t = key->tomb;
    uint64_t now_ns = key->st->sched->now_ns;
    struct kvf_key_info info;

    if (key->live != NULL) {
        info = gen_info(key->live, now_ns);
        if (!fn(arg, &info))
            return false;
    }
    kvf_list_for_each (n, &key->old) {
        const struct kvf_gen_private *p =
            kvf_container_of(n, struct kvf_gen_private, key_node);

        if (p->quiet)
            continue;
        info = gen_info(&p->g, now_ns);
        if (!fn(arg, &info))
            return false;
    }
    if (t == NULL)
        return true;
    info = (struct kvf_key_info){.key = key->name,
                                 .key_len = key->len,
                                 .state = kvf_retire_name(t->reason),
                                 .size = t->size,
                                 .generation = t->generation,
                                 .readers = t->readers,
                                 .readers_done = t->readers_done,
                                 .age_ms = (now_ns - t->at_ns) / KVF_NS_PER_MS,
                                 .ttl_ms = t->ttl_ms};
    return fn(arg, &info);
}

void kvf_store_list(const struct kvf_store *st, const char *prefix, size_t len,
                    bool (*fn)(void *arg, const struct kvf_key_info *info),
                    void *arg)
{
    for (const struct kvf_key *key = kvf_index_first(st, prefix, len);
         key != NULL; key = kvf_index_next(key, prefix, len))
        if (!list_key(key, fn, arg))
            return;
}

/* ---- gauges ------------------------------------------------------------- */

void kvf_store_gauges(const struct kvf_store *st, struct kvf_store_gauges *g)
{
    *g = (struct kvf_store_gauges){.keys = HASH_CNT(hh, st->keys),
                                   .live = st->n_live,
                                   .draining = st->n_draining,
                                   .tombstones = st->n_tombs,
                                   .parked = st->n_parked,
                                   .claims = HASH_CNT(hh, st->claims),
                                   .bytes = st->bytes};
}

/* ---- check -------------------------------------------------------------- */

/* Sums over one generation; false when its own counts do not hold. */
static bool check_gen(const struct kvf_gen *g, struct kvf_store_gauges *sum,
                      unsigned *refs)
{
    const struct kvf_gen_private *p = g->priv;
    unsigned live = 0, held = 0;

    ++*refs;
    kvf_list_for_each (n, &p->claims) {
        const struct kvf_claim_private *c =
            kvf_container_of(n, struct kvf_claim_private, gen_node);

        if (c->c.ended)
            held++;
        else
            live++;
    }
    sum->claims += live;
    if (!p->quiet) {
        sum->bytes += g->size;
        if (g->retired)
            sum->draining++;
        else
            sum->live++;
    }
    for (unsigned i = 0; i < p->n_bufs; i++)
        if (p->bufs[i]->pins < live + held ||
            p->bufs[i]->state !=
                (g->retired ? KVF_BUF_DRAINING : KVF_BUF_PUBLISHED))
            return false;
    return live == g->n_claims && held == p->n_held &&
           p->quiet == (g->retired && live + held == 0) &&
           (g->readers == 0 || g->by_consumer ||
            live + g->readers_done <= g->readers) &&
           (g->retired || g->readers == 0 || g->readers_done < g->readers);
}

/* Nobody may be parked who could have been answered. */
static bool check_waiters(const struct kvf_key *key,
                          struct kvf_store_gauges *sum, unsigned *refs)
{
    unsigned bound = 0;

    kvf_list_for_each (n, &key->waiters) {
        const struct kvf_waiter *w =
            kvf_container_of(n, struct kvf_waiter, node);
        uint64_t at = w->generation;

        ++*refs;
        sum->parked++;
        bound += w->has_generation;
        if (w->key != key || w->due)
            return false;
        if (key->tomb != NULL &&
            (!w->has_generation || at <= key->tomb->generation))
            return false;
        if (key->live == NULL)
            continue;
        if (w->has_generation && at < key->live->generation)
            return false;
        if ((!w->has_generation || at == key->live->generation) &&
            kvf_gen_has_reader(key->live))
            return false;
    }
    return bound == key->n_bound;
}

static int check_key(const struct kvf_key *key, struct kvf_store_gauges *sum,
                     struct kvf_why *why)
{
    unsigned refs = 0;
    bool ok = check_waiters(key, sum, &refs);

    sum->keys++;
    if (key->tomb != NULL) {
        refs++;
        sum->tombstones++;
        ok = ok && key->live == NULL && key->tomb->key == key;
    }
    if (key->live != NULL)
        ok = ok && !key->live->retired && check_gen(key->live, sum, &refs);
    kvf_list_for_each (n, &key->old) {
        const struct kvf_gen_private *p =
            kvf_container_of(n, struct kvf_gen_private, key_node);

        ok = ok && p->g.retired && check_gen(&p->g, sum, &refs);
    }
    kvf_list_for_each (n, &key->st->due) {
        const struct kvf_waiter *w =
            kvf_container_of(n, struct kvf_waiter, node);

        refs += w->key == key;
        ok = ok && w->due;
    }
    if (!ok || refs != key->refs)
        return kvf_fail(why, KVF_INTERNAL, "store: key %s does not add up",
                        key->name);
    return 0;
}

int kvf_store_check(const struct kvf_store *st, struct kvf_why *why)
{
    struct kvf_store_gauges have, sum = {0};
    uint64_t n;
    int rc = kvf_index_check(st, &n, why);

    for (const struct kvf_key *key = st->keys; key != NULL && rc == 0;
         key = key->hh.next)
        rc = check_key(key, &sum, why);
    if (rc != 0)
        return rc;
    kvf_list_for_each (it, &st->due)
        sum.parked++;
    kvf_store_gauges(st, &have);
    if (n != have.keys || memcmp(&have, &sum, sizeof have) != 0)
        return kvf_fail(why, KVF_INTERNAL, "store: gauges do not add up");
    return 0;
}
