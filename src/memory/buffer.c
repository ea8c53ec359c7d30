/* The table of buffers.
 *
 * Happy path: alloc takes pool memory and a fresh id; states move by one
 * setter; retire and the last unpin give the memory back, in one place.
 *
 * Failure modes: the pool is full, or there is no memory for the table (the
 * pool memory goes back). Everything else would be a defect of ours and
 * asserts. The gauges are kept as things change, never counted. */
#include "memory/table.h"

#include <assert.h>
#include <stdlib.h>
#include <time.h>

static uint64_t id_from_clock(void)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    return ((uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000) << 22;
}

struct kvf_buffers *kvf_buffers_create(struct kvf_segment *seg,
                                       struct kvf_pool *pool, uint64_t id_base,
                                       struct kvf_why *why)
{
    struct kvf_buffers *t = calloc(1, sizeof *t);

    if (t == NULL) {
        kvf_fail(why, KVF_INTERNAL, "no memory for the table of buffers");
        return NULL;
    }
    t->seg = seg;
    t->pool = pool;
    t->next_id = id_base != 0 ? id_base : id_from_clock();
    return t;
}

void kvf_buffers_destroy(struct kvf_buffers *t)
{
    struct kvf_buffer *b, *next;

    if (t == NULL)
        return;
    kvf_regions_clear(t);
    HASH_ITER (hh, t->by_id, b, next) {
        HASH_DEL(t->by_id, b);
        kvf_list_unlink(&b->owner_node);
        (void)kvf_pool_free(t->pool, b->offset, b->capacity);
        free(b);
    }
    free(t);
}

/* The gauge that counts the bytes of this buffer now. */
static uint64_t *gauge_of(const struct kvf_buffer *b)
{
    struct kvf_buffer_gauges *g = &b->table->gauges;

    switch (b->state) {
    case KVF_BUF_FILLING:
        return &g->filling;
    case KVF_BUF_PUBLISHED:
        return b->pins > 0 ? &g->claimed : &g->published;
    case KVF_BUF_RECEIVING:
        return &g->receiving;
    case KVF_BUF_HELD:
        return &g->held;
    case KVF_BUF_DRAINING:
        return &g->draining;
    case KVF_BUF_STATES:
        break;
    }
    abort();
}

/* Every change of state or pins goes through here. */
static void change(struct kvf_buffer *b, enum kvf_buffer_state state,
                   unsigned pins)
{
    *gauge_of(b) -= b->capacity;
    b->state = state;
    b->pins = pins;
    *gauge_of(b) += b->capacity;
}

/* The one place where memory goes back. */
static void give_back(struct kvf_buffer *b)
{
    struct kvf_buffers *t = b->table;
    int rc;

    assert(b->state == KVF_BUF_DRAINING && b->pins == 0);
    *gauge_of(b) -= b->capacity;
    t->gauges.buffers--;
    HASH_DEL(t->by_id, b);
    rc = kvf_pool_free(t->pool, b->offset, b->capacity);
    assert(rc == 0);
    (void)rc;
    free(b);
    if (t->on_free != NULL)
        t->on_free(t->on_free_arg);
}

int kvf_buffer_alloc(struct kvf_buffers *t, uint64_t size,
                     enum kvf_buffer_state state, const void *owner,
                     struct kvf_buffer **out, struct kvf_why *why)
{
    struct kvf_buffer *b;
    uint64_t offset;
    int rc;

    assert(state == KVF_BUF_FILLING || state == KVF_BUF_RECEIVING);
    rc = kvf_pool_alloc(t->pool, size, &offset, why);
    if (rc != 0)
        return rc;
    b = calloc(1, sizeof *b);
    if (b != NULL) {
        b->id = t->next_id;
        HASH_ADD(hh, t->by_id, id, sizeof b->id, b);
    }
    if (b == NULL || b->hh.tbl == NULL) {
        free(b);
        (void)kvf_pool_free(t->pool, offset, size);
        return kvf_fail(why, KVF_NO_SPACE,
                        "no memory left for the table of buffers");
    }
    t->next_id++;
    b->offset = offset;
    b->size = size;
    b->capacity = (size + KVF_POOL_ALIGN - 1) / KVF_POOL_ALIGN * KVF_POOL_ALIGN;
    b->state = state;
    b->owner = owner;
    b->table = t;
    kvf_list_init(&b->owner_node);
    *gauge_of(b) += b->capacity;
    t->gauges.buffers++;
    *out = b;
    return 0;
}

struct kvf_buffer *kvf_buffer_find(const struct kvf_buffers *t, uint64_t id)
{
    struct kvf_buffer *b;

    HASH_FIND(hh, t->by_id, &id, sizeof id, b);
    return b;
}

uint8_t *kvf_buffer_ptr(const struct kvf_buffer *b)
{
    return b->table->seg->base + b->offset;
}

void kvf_buffer_set_state(struct kvf_buffer *b, enum kvf_buffer_state state)
{
    assert((b->state == KVF_BUF_FILLING && state == KVF_BUF_PUBLISHED) ||
           (b->state == KVF_BUF_RECEIVING &&
            (state == KVF_BUF_HELD || state == KVF_BUF_PUBLISHED)) ||
           (b->state == KVF_BUF_PUBLISHED && state == KVF_BUF_FILLING));
    change(b, state, b->pins);
}

void kvf_buffer_pin(struct kvf_buffer *b)
{
    assert(b->state != KVF_BUF_DRAINING || b->pins > 0);
    change(b, b->state, b->pins + 1);
}

void kvf_buffer_unpin(struct kvf_buffer *b)
{
    assert(b->pins > 0);
    change(b, b->state, b->pins - 1);
    if (b->state == KVF_BUF_DRAINING && b->pins == 0)
        give_back(b);
}

void kvf_buffer_retire(struct kvf_buffer *b)
{
    if (b->state == KVF_BUF_DRAINING)
        return;
    kvf_list_unlink(&b->owner_node);
    b->owner = NULL;
    change(b, KVF_BUF_DRAINING, b->pins);
    if (b->pins == 0)
        give_back(b);
}

void kvf_buffers_gauges(const struct kvf_buffers *t,
                        struct kvf_buffer_gauges *out)
{
    *out = t->gauges;
    out->size = kvf_pool_size(t->pool);
    out->free = kvf_pool_bytes_free(t->pool);
    out->largest_free = kvf_pool_largest_free(t->pool);
}

void kvf_buffers_on_free(struct kvf_buffers *t, void (*fn)(void *arg),
                         void *arg)
{
    t->on_free = fn;
    t->on_free_arg = arg;
}

uint64_t kvf_buffers_next_id(struct kvf_buffers *t)
{
    return t->next_id++;
}
