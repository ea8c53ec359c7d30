/* Asking for a reader, and waiting for one.
 *
 * What a get gets is decided at once, in the order in which they came: the
 * claim of a waiter is reserved inside the put (or the abort) that makes it
 * possible, so nobody can overtake; only the call that tells the waiter is
 * left to a posted task. A waiter is either parked (in its key's list) or due
 * (in the store's list, with its answer).
 *
 * O(1) for each waiter that is answered. A walk ends when no reader is free
 * and no waiter that named a generation is left to look at. */
#include "store/store_private.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static struct kvf_waiter *waiter_of(struct kvf_list *n)
{
    return kvf_container_of(n, struct kvf_waiter, node);
}

/* ---- answers ------------------------------------------------------------ */

/* Held by the caller. NULL when out of memory: the waiters then get the
 * status with its general text. */
static struct kvf_verdict *verdict_new(const char *text)
{
    struct kvf_verdict *v = malloc(sizeof *v);

    if (v != NULL) {
        v->refs = 1;
        snprintf(v->text, sizeof v->text, "%s", text);
    }
    return v;
}

static void verdict_drop(struct kvf_verdict *v)
{
    if (v != NULL && --v->refs == 0)
        free(v);
}

/* parked -> due, with a claim or a status. */
static void resolve(struct kvf_waiter *w, struct kvf_claim *claim,
                    enum kvf_status status, struct kvf_verdict *v)
{
    struct kvf_store *st = w->key->st;

    kvf_list_unlink(&w->node);
    kvf_list_push_back(&st->due, &w->node);
    if (w->has_generation)
        w->key->n_bound--;
    w->due = true;
    w->granted = claim;
    w->status = status;
    w->verdict = v;
    if (v != NULL)
        v->refs++;
    kvf_task_post(st->sched, &st->due_task);
}

static void clear(struct kvf_waiter *w)
{
    struct kvf_key *key = w->key;

    kvf_list_unlink(&w->node);
    w->key = NULL;
    w->due = false;
    w->granted = NULL;
    w->verdict = NULL;
    key->st->n_parked--;
    kvf_key_drop(key);
}

void kvf_waiters_run(struct kvf_task *t)
{
    struct kvf_store *st = kvf_container_of(t, struct kvf_store, due_task);

    for (unsigned i = 0; i < KVF_STORE_BATCH; i++) {
        struct kvf_list *n = kvf_list_first(&st->due);
        struct kvf_waiter *w;
        struct kvf_claim *claim;
        struct kvf_verdict *v;
        enum kvf_status status;

        if (n == NULL)
            return;
        w = waiter_of(n);
        claim = w->granted;
        status = w->status;
        v = w->verdict;
        clear(w);
        /* The waiter may be asked again or freed in there. */
        w->answer(w, claim, status,
                  v != NULL ? v->text : kvf_status_text(status));
        verdict_drop(v);
    }
    kvf_task_post(st->sched, t);
}

void kvf_store_settle(struct kvf_store *st)
{
    if (kvf_list_empty(&st->due))
        return;
    kvf_task_cancel(&st->due_task);
    kvf_waiters_run(&st->due_task);
}

void kvf_waiters_end(struct kvf_key *key, bool all, uint64_t generation,
                     enum kvf_status status, const char *text)
{
    struct kvf_verdict *v;

    if (kvf_list_empty(&key->waiters))
        return;
    v = verdict_new(text);
    kvf_list_for_each_safe (n, &key->waiters) {
        struct kvf_waiter *w = waiter_of(n);

        if (all || !w->has_generation || w->generation <= generation)
            resolve(w, NULL, status, v);
    }
    verdict_drop(v);
}

static void serve_stale(struct kvf_waiter *w, uint64_t current)
{
    struct kvf_verdict *v;
    char text[96];

    snprintf(text, sizeof text,
             "generation %" PRIu64 " was asked for, %" PRIu64 " is there",
             w->generation, current);
    v = verdict_new(text);
    resolve(w, NULL, KVF_STALE, v);
    verdict_drop(v);
}

static void serve_grant(struct kvf_waiter *w, struct kvf_gen *g)
{
    struct kvf_claim *c = kvf_claim_new(g);
    struct kvf_verdict *v;

    if (c != NULL) {
        resolve(w, c, KVF_OK, NULL);
        return;
    }
    v = verdict_new("too many claims at once: retry later");
    resolve(w, NULL, KVF_BUSY, v);
    verdict_drop(v);
}

void kvf_waiters_serve(struct kvf_key *key)
{
    struct kvf_gen *g = key->live;
    unsigned bound = key->n_bound;

    if (g == NULL)
        return;
    kvf_list_for_each_safe (n, &key->waiters) {
        struct kvf_waiter *w = waiter_of(n);

        if (bound == 0 && !kvf_gen_has_reader(g))
            return;
        if (w->has_generation) {
            bound--;
            if (w->generation > g->generation)
                continue;
            if (w->generation < g->generation) {
                serve_stale(w, g->generation);
                continue;
            }
        }
        if (kvf_gen_has_reader(g))
            serve_grant(w, g);
    }
}

/* ---- asking ------------------------------------------------------------- */

static int park(struct kvf_store *st, const char *name, size_t len,
                struct kvf_waiter *w, struct kvf_why *why)
{
    struct kvf_key *key;

    if (w->key != NULL)
        return kvf_fail(why, KVF_INTERNAL, "this get waits already");
    if (st->n_parked >= st->conf.max_parked)
        return kvf_fail(why, KVF_BUSY, "%u gets wait at this owner already",
                        st->conf.max_parked);
    key = kvf_key_make(st, name, len); /* held by the waiter */
    if (key == NULL)
        return kvf_fail(why, KVF_BUSY, "out of memory for one more get");
    w->key = key;
    w->due = false;
    w->granted = NULL;
    w->verdict = NULL;
    kvf_list_init(&w->node);
    kvf_list_push_back(&key->waiters, &w->node);
    if (w->has_generation)
        key->n_bound++;
    st->n_parked++;
    st->stats->parked++;
    return KVF_STORE_PARKED;
}

/* What the live generation says: granted, refused, or PARKED for "wait". */
static int ask_live(struct kvf_gen *g, const struct kvf_waiter *w, bool wait,
                    struct kvf_claim **claim, struct kvf_why *why)
{
    bool bound = w != NULL && w->has_generation;
    struct kvf_claim *c;

    if (bound && w->generation < g->generation)
        return kvf_fail(why, KVF_STALE,
                        "generation %" PRIu64 " was asked for, %" PRIu64
                        " is there",
                        w->generation, g->generation);
    if (bound && w->generation > g->generation)
        return wait
                   ? KVF_STORE_PARKED
                   : kvf_fail(why, KVF_NOT_FOUND,
                              "only an older generation (%" PRIu64 ") is there",
                              g->generation);
    if (!kvf_gen_has_reader(g))
        return wait ? KVF_STORE_PARKED
                    : kvf_fail(why, KVF_BUSY,
                               "all %" PRIu64 " readers are claimed",
                               g->readers);
    c = kvf_claim_new(g);
    if (c == NULL)
        return kvf_fail(why, KVF_BUSY, "too many claims at once: retry later");
    *claim = c;
    return 0;
}

static const char closed_text[] =
    "the owner is draining and takes no puts: the key cannot come any more";

/* No generation that is there can serve it, whatever becomes of its readers. */
static bool only_a_put_serves(const struct kvf_key *key,
                              const struct kvf_waiter *w)
{
    return key == NULL || key->live == NULL ||
           (w->has_generation && w->generation > key->live->generation);
}

void kvf_store_close(struct kvf_store *st)
{
    struct kvf_verdict *v = verdict_new(closed_text);
    struct kvf_key *key, *next;

    st->closed = true;
    HASH_ITER (hh, st->keys, key, next) {
        kvf_list_for_each_safe (n, &key->waiters) {
            struct kvf_waiter *w = waiter_of(n);

            if (only_a_put_serves(key, w))
                resolve(w, NULL, KVF_SHUTTING_DOWN, v);
        }
    }
    verdict_drop(v);
}

int kvf_store_ask(struct kvf_store *st, const char *key, size_t len,
                  struct kvf_waiter *w, bool wait, struct kvf_claim **claim,
                  struct kvf_why *why)
{
    struct kvf_key *k;
    bool bound = w != NULL && w->has_generation;
    int rc;

    if (len == 0 || len > KVF_STORE_MAX_KEY)
        return kvf_fail(why, KVF_INVALID, "a key has 1 to %u bytes",
                        KVF_STORE_MAX_KEY);
    k = kvf_key_find(st, key, len);
    if (k != NULL && k->live != NULL) {
        rc = ask_live(k->live, w, wait && w != NULL, claim, why);
        if (rc != KVF_STORE_PARKED)
            return rc;
    } else if (k != NULL && k->tomb != NULL &&
               (!bound || w->generation <= k->tomb->generation)) {
        return kvf_tomb_fail(k->tomb, st->sched->now_ns, why);
    }
    if (!wait || w == NULL)
        return kvf_fail(why, KVF_NOT_FOUND, "no such key at its owner");
    if (st->closed && only_a_put_serves(k, w))
        return kvf_fail(why, KVF_SHUTTING_DOWN, "%s", closed_text);
    return park(st, key, len, w, why);
}

void kvf_store_unask(struct kvf_store *st, struct kvf_waiter *w)
{
    struct kvf_claim *claim = w->granted;

    (void)st;
    if (w->key == NULL)
        return;
    if (!w->due && w->has_generation)
        w->key->n_bound--;
    if (w->due)
        verdict_drop(w->verdict);
    else
        claim = NULL;
    clear(w);
    /* The reader that was kept for it goes to the next one. */
    if (claim != NULL)
        kvf_claim_abort(claim);
}

void kvf_waiters_forget(struct kvf_list *list, struct kvf_store *st)
{
    struct kvf_list *n;

    while ((n = kvf_list_first(list)) != NULL)
        kvf_store_unask(st, waiter_of(n));
}
