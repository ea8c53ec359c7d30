/* Pieces of payloads: where they are mapped here, and what keeps their memory.
 */
#include "store/store.h"

#include <stdlib.h>
#include <string.h>

uint8_t *kvf_seg_ptr(const struct kvf_seg *seg)
{
    if (seg->buffer != NULL)
        return kvf_buffer_ptr(seg->buffer) +
               (seg->offset - seg->buffer->offset);
    return seg->region->map->base + seg->offset;
}

void kvf_seg_pin(const struct kvf_seg *seg)
{
    if (seg->buffer != NULL)
        kvf_buffer_pin(seg->buffer);
    else
        kvf_region_pin(seg->region);
}

void kvf_seg_unpin(const struct kvf_seg *seg)
{
    if (seg->buffer != NULL)
        kvf_buffer_unpin(seg->buffer);
    else
        kvf_region_unpin(seg->region);
}

const void *kvf_gen_bytes(const struct kvf_gen *gen, void **scratch)
{
    uint8_t *p;

    *scratch = NULL;
    if (gen->n_segs == 1)
        return kvf_seg_ptr(&gen->segs[0]);
    p = *scratch = malloc(gen->size);
    if (p == NULL)
        return NULL;
    for (unsigned i = 0; i < gen->n_segs; i++) {
        memcpy(p, kvf_seg_ptr(&gen->segs[i]), gen->segs[i].length);
        p += gen->segs[i].length;
    }
    return *scratch;
}
