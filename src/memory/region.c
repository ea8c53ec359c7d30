/* Regions: memory that an engine registered, mapped for as long as something
 * uses it.
 *
 * Happy path: add, pins while puts and receives use it, retire, freed with the
 * last pin. Failure modes: only memory for the table. */
#include "memory/table.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void drop(struct kvf_region *r)
{
    if (r->table->on_region_gone != NULL)
        r->table->on_region_gone(r->table->on_region_arg, r);
    HASH_DEL(r->table->regions, r);
    kvf_list_unlink(&r->owner_node);
    kvf_map_release(r->map);
    free(r);
}

void kvf_regions_clear(struct kvf_buffers *t)
{
    struct kvf_region *r, *next;

    HASH_ITER (hh, t->regions, r, next) {
        drop(r);
    }
}

int kvf_region_add(struct kvf_buffers *t, struct kvf_mapping *map,
                   uint64_t size, const void *owner, struct kvf_region **out,
                   struct kvf_why *why)
{
    struct kvf_region *r;

    if (size == 0 || size > map->size)
        return kvf_fail(
            why, KVF_INVALID, "a region of %llu bytes in memory of %llu",
            (unsigned long long)size, (unsigned long long)map->size);
    r = calloc(1, sizeof *r);
    if (r != NULL) {
        r->id = t->next_id;
        HASH_ADD(hh, t->regions, id, sizeof r->id, r);
    }
    if (r == NULL || r->hh.tbl == NULL) {
        free(r);
        return kvf_fail(why, KVF_NO_SPACE,
                        "no memory left for the table of regions");
    }
    t->next_id++;
    r->map = map;
    r->size = size;
    r->owner = owner;
    r->table = t;
    kvf_list_init(&r->owner_node);
    snprintf(r->path, sizeof r->path, "/proc/%ld/fd/%d", (long)getpid(),
             map->fd);
    if (t->on_region != NULL)
        t->on_region(t->on_region_arg, r);
    *out = r;
    return 0;
}

void kvf_regions_on_change(struct kvf_buffers *t,
                           void (*added)(void *arg, struct kvf_region *r),
                           void (*dropped)(void *arg, struct kvf_region *r),
                           void *arg)
{
    t->on_region = added;
    t->on_region_gone = dropped;
    t->on_region_arg = arg;
}

struct kvf_region *kvf_region_find(const struct kvf_buffers *t, uint64_t id)
{
    struct kvf_region *r;

    HASH_FIND(hh, t->regions, &id, sizeof id, r);
    return r;
}

void kvf_region_pin(struct kvf_region *r)
{
    assert(!r->retired || r->pins > 0);
    r->pins++;
}

void kvf_region_unpin(struct kvf_region *r)
{
    assert(r->pins > 0);
    r->pins--;
    if (r->retired && r->pins == 0)
        drop(r);
}

void kvf_region_retire(struct kvf_region *r)
{
    if (r->retired)
        return;
    r->retired = true;
    r->owner = NULL;
    kvf_list_unlink(&r->owner_node);
    if (r->pins == 0)
        drop(r);
}

unsigned kvf_region_count(const struct kvf_buffers *t)
{
    return HASH_COUNT(t->regions);
}
