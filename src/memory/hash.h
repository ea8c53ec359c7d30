/* uthash as this tree uses it: a failed insertion is reported (hh.tbl stays
 * NULL) instead of ending the daemon, and the hash is a plain FNV-1a, for keys
 * of a few bytes that no stranger chooses. */
#ifndef KVF_MEMORY_HASH_H
#define KVF_MEMORY_HASH_H

#ifndef HASH_NONFATAL_OOM
#define HASH_NONFATAL_OOM 1
#endif
#include <uthash.h>

#include <stddef.h>
#include <stdint.h>

static inline unsigned kvf_hash_small(const void *key, size_t len)
{
    const uint8_t *p = key;
    uint64_t h = 14695981039346656037ull;

    for (size_t i = 0; i < len; i++)
        h = (h ^ p[i]) * 1099511628211ull;
    return (unsigned)(h ^ h >> 32);
}

#undef HASH_FUNCTION
#define HASH_FUNCTION(keyptr, keylen, hashv)                                   \
    ((hashv) = kvf_hash_small((keyptr), (keylen)))

#endif
