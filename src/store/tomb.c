/* Tombstones: what became of a key, for those who ask after the end.
 *
 * Left by a generation that ended as consumed, expired or failed, and by
 * `fail` of a key that has none; gone after their own time (a timer each: the
 * heap takes 65,536 of them in 17 steps), by a put or a cleanup, or when there
 * are too many (the oldest first). */
#include "store/store_private.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

/* What fits into a struct kvf_why with room for a prefix. */
#define MAX_REASON 200u

static enum kvf_status status_of(const struct kvf_tomb *t)
{
    if (t->reason == KVF_RETIRE_CONSUMED)
        return KVF_CONSUMED;
    return t->reason == KVF_RETIRE_EXPIRED ? KVF_EXPIRED : KVF_FAILED;
}

int kvf_tomb_fail(const struct kvf_tomb *t, uint64_t now_ns,
                  struct kvf_why *why)
{
    uint64_t ago = (now_ns - t->at_ns) / KVF_NS_PER_MS;

    if (t->reason == KVF_RETIRE_EXPIRED)
        return kvf_fail(why, KVF_EXPIRED,
                        "expired %" PRIu64 " ms ago (ttl %" PRIu64 " ms)", ago,
                        t->ttl_ms);
    if (t->reason != KVF_RETIRE_CONSUMED)
        return kvf_fail(why, KVF_FAILED, "%s",
                        t->text != NULL ? t->text
                                        : "the producer gave no reason");
    if (t->readers == 1)
        return kvf_fail(why, KVF_CONSUMED,
                        "consumed by its only reader %" PRIu64 " ms ago", ago);
    return kvf_fail(why, KVF_CONSUMED,
                    "consumed by all %" PRIu64 " readers %" PRIu64 " ms ago",
                    t->readers, ago);
}

void kvf_tomb_free(struct kvf_tomb *t)
{
    if (t != NULL)
        free(t->text);
    free(t);
}

static void tomb_end(struct kvf_tomb *t)
{
    struct kvf_key *key = t->key;
    struct kvf_store *st = key->st;

    kvf_timer_cancel(st->sched, &t->timer);
    kvf_list_unlink(&t->node);
    st->n_tombs--;
    key->tomb = NULL;
    kvf_tomb_free(t);
    kvf_key_drop(key);
}

static void tomb_due(struct kvf_timer *timer)
{
    tomb_end(kvf_container_of(timer, struct kvf_tomb, timer));
}

void kvf_tomb_lift(struct kvf_key *key)
{
    if (key->tomb != NULL)
        tomb_end(key->tomb);
}

void kvf_tomb_trim(struct kvf_store *st)
{
    while (st->n_tombs > st->conf.max_tombstones) {
        struct kvf_list *n = kvf_list_first(&st->tombs);

        if (n == NULL)
            return;
        tomb_end(kvf_container_of(n, struct kvf_tomb, node));
    }
}

/* A copy cut to a length that a reply can carry, at the end of a character.
 * NULL (no text) when there is none or no memory for it. */
static char *copy_reason(const char *text, size_t len)
{
    char *copy;

    if (text == NULL || len == 0)
        return NULL;
    if (len > MAX_REASON) {
        len = MAX_REASON;
        while (len > 0 && ((unsigned char)text[len] & 0xc0) == 0x80)
            len--;
    }
    copy = malloc(len + 1);
    if (copy != NULL) {
        memcpy(copy, text, len);
        copy[len] = '\0';
    }
    return copy;
}

void kvf_tomb_set(struct kvf_key *key, struct kvf_tomb *t, const char *text,
                  size_t text_len)
{
    struct kvf_store *st = key->st;
    struct kvf_why why;

    kvf_key_hold(key);
    kvf_tomb_lift(key);
    t->text = copy_reason(text, text_len);
    t->at_ns = st->sched->now_ns;
    t->key = key;
    key->tomb = t;
    kvf_list_init(&t->node);
    kvf_list_push_back(&st->tombs, &t->node);
    st->n_tombs++;
    kvf_timer_init(&t->timer, tomb_due);
    kvf_timer_set(st->sched, &t->timer, kvf_store_after_ms(st, t->ttl_ms));
    kvf_tomb_fail(t, t->at_ns, &why);
    kvf_waiters_end(key, false, t->generation, status_of(t), why.text);
    kvf_tomb_trim(st);
}

int kvf_store_fail(struct kvf_store *st, const char *key, size_t len,
                   const char *reason, size_t reason_len, uint64_t ttl_ms,
                   struct kvf_why *why)
{
    struct kvf_key *k;
    struct kvf_tomb *t;

    if (len == 0 || len > KVF_STORE_MAX_KEY)
        return kvf_fail(why, KVF_INVALID, "a key has 1 to %u bytes",
                        KVF_STORE_MAX_KEY);
    if (st->conf.max_tombstones == 0)
        return kvf_fail(why, KVF_BUSY, "no room for marks of failed keys");
    k = kvf_key_make(st, key, len);
    if (k == NULL)
        return kvf_fail(why, KVF_BUSY, "out of memory for one more key");
    if (k->live != NULL) {
        kvf_gen_retire(k->live, KVF_RETIRE_FAILED, reason, reason_len, ttl_ms);
        kvf_key_drop(k);
        return 0;
    }
    t = calloc(1, sizeof *t);
    if (t == NULL) {
        kvf_key_drop(k);
        return kvf_fail(why, KVF_BUSY, "out of memory for one more key");
    }
    t->reason = KVF_RETIRE_FAILED;
    /* A get that wants a later generation than any handed out so far means a
     * put that this mark knows nothing of. */
    t->generation = st->next_generation - 1;
    t->ttl_ms = ttl_ms;
    kvf_tomb_set(k, t, reason, reason_len);
    kvf_key_drop(k);
    return 0;
}
