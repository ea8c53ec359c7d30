/* What came of the last requests, by their random ids: one that is asked again
 * because its answer was lost is answered the same and not done twice. A ring:
 * the oldest is forgotten, long after anybody could ask again. */
#include "peer/access.h"

#include <stdlib.h>

struct kvf_memo_entry {
    struct kvf_id id;
    uint64_t value;
    UT_hash_handle hh;
};

void kvf_memo_add(struct kvf_memo *m, const struct kvf_id *id, uint64_t value)
{
    struct kvf_memo_entry *e;

    if (m->n == KVF_MEMO_MAX) {
        e = m->table; /* uthash keeps the order of adding */
        HASH_DEL(m->table, e);
        m->n--;
    } else {
        e = malloc(sizeof *e);
        if (e == NULL)
            return; /* only an answer that is lost as well would miss it */
    }
    e->id = *id;
    e->value = value;
    HASH_ADD(hh, m->table, id, sizeof e->id, e);
    if (e->hh.tbl == NULL)
        free(e);
    else
        m->n++;
}

bool kvf_memo_find(const struct kvf_memo *m, const struct kvf_id *id,
                   uint64_t *value)
{
    struct kvf_memo_entry *e;

    HASH_FIND(hh, m->table, id, sizeof *id, e);
    if (e != NULL)
        *value = e->value;
    return e != NULL;
}

void kvf_memo_free(struct kvf_memo *m)
{
    struct kvf_memo_entry *e, *next;

    HASH_ITER (hh, m->table, e, next) {
        HASH_DEL(m->table, e);
        free(e);
    }
    m->n = 0;
}
