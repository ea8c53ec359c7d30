/* The table of key entries: found by hash, kept in order by the index, alive
 * while somebody holds them (see store_private.h).
 *
 * The hash is seeded at random in every process, so that nobody outside can
 * choose keys that all fall into one bucket. Out of memory: kvf_key_make
 * returns NULL and nothing has changed. */
#include "store/store_private.h"

#include <stdlib.h>
#include <xxhash.h>

static unsigned hash_of(const struct kvf_store *st, const char *name,
                        size_t len)
{
    return (unsigned)XXH3_64bits_withSeed(name, len, st->seed);
}

static struct kvf_key *find(const struct kvf_store *st, const char *name,
                            size_t len, unsigned hash)
{
    struct kvf_key *key = NULL;

    HASH_FIND_BYHASHVALUE(hh, st->keys, name, len, hash, key);
    return key;
}

struct kvf_key *kvf_key_find(const struct kvf_store *st, const char *name,
                             size_t len)
{
    return find(st, name, len, hash_of(st, name, len));
}

struct kvf_key *kvf_key_make(struct kvf_store *st, const char *name, size_t len)
{
    unsigned hash = hash_of(st, name, len);
    struct kvf_key *key = find(st, name, len, hash);

    if (key == NULL) {
        key = calloc(1, sizeof *key + len + 1);
        if (key == NULL)
            return NULL;
        key->st = st;
        key->len = (uint32_t)len;
        memcpy(key->name, name, len);
        kvf_list_init(&key->old);
        kvf_list_init(&key->waiters);
        HASH_ADD_KEYPTR_BYHASHVALUE(hh, st->keys, key->name, len, hash, key);
        if (key->hh.tbl == NULL) {
            free(key);
            return NULL;
        }
        kvf_index_add(st, key);
    }
    key->refs++;
    return key;
}

void kvf_key_hold(struct kvf_key *key)
{
    key->refs++;
}

void kvf_key_drop(struct kvf_key *key)
{
    if (--key->refs != 0)
        return;
    kvf_index_remove(key->st, key);
    HASH_DELETE(hh, key->st->keys, key);
    free(key);
}
