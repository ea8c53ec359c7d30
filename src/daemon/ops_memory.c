/* alloc, free, unregister, and segments of requests -> memory. */
#include "daemon/engine.h"

#include <inttypes.h>
#include <stdlib.h>

static int alloc_for(struct kvf_server *s, struct kvf_session *ss,
                     uint64_t size, struct kvf_buffer **b, struct kvf_why *why)
{
    int rc = kvf_buffer_alloc(s->buffers, size, KVF_BUF_FILLING, ss, b, why);

    if (rc == 0)
        kvf_list_push_back(&ss->buffers, &(*b)->owner_node);
    return rc;
}

uint64_t kvf_reply_next(struct kvf_server *s, struct kvf_session *ss,
                        uint64_t size)
{
    struct kvf_buffer *b;
    struct kvf_why why;
    struct kvf_mpw *w;

    if (size == 0 || ss == NULL || !ss->can_map ||
        alloc_for(s, ss, size, &b, &why) < 0)
        return 0;
    w = kvf_reply_key(s, "next");
    kvf_mpw_map(w, 3);
    kvf_mpw_kv_u64(w, "buffer", b->id);
    kvf_mpw_kv_u64(w, "offset", b->offset);
    kvf_mpw_kv_u64(w, "size", b->size);
    return b->id;
}

void kvf_op_alloc(struct kvf_call *call)
{
    struct kvf_server *s = call->s;
    uint64_t size = call->req->u.alloc.size;
    struct kvf_session *ss = kvf_call_memory(call);
    struct kvf_buffer *b;
    struct kvf_why why;

    if (ss == NULL)
        return;
    if (alloc_for(s, ss, size, &b, &why) < 0) {
        kvf_reply_begin(s, &call->to, why.status, why.text);
        if (why.status == KVF_NO_SPACE)
            kvf_reply_space(s, size);
        (void)kvf_reply_send(s, &call->to, NULL, 0, 0);
        return;
    }
    kvf_reply_begin(s, &call->to, KVF_OK, NULL);
    kvf_reply_u64(s, "buffer", b->id);
    kvf_reply_u64(s, "offset", b->offset);
    kvf_reply_u64(s, "size", b->size);
    kvf_reply_give(s, &call->to, b->id);
    kvf_event_pool(s);
}

static int free_buffer(const struct kvf_session *ss, struct kvf_buffer *b,
                       uint64_t id, struct kvf_why *why)
{
    if (b != NULL && b->state == KVF_BUF_PUBLISHED)
        return kvf_fail(why, KVF_BUSY,
                        "buffer %" PRIu64 " is published: it becomes free by "
                        "itself when it is retired",
                        id);
    if (b == NULL || b->owner != ss || b->state == KVF_BUF_DRAINING)
        return kvf_fail(why, KVF_INVALID,
                        "buffer %" PRIu64 " is not one of this session", id);
    if (b->state != KVF_BUF_FILLING)
        return kvf_fail(why, KVF_INVALID,
                        "buffer %" PRIu64 " came with a get: use release", id);
    if (b->pins > 0)
        return kvf_fail(why, KVF_BUSY,
                        "buffer %" PRIu64 " is in use by a request", id);
    kvf_buffer_retire(b);
    return 0;
}

void kvf_op_free(struct kvf_call *call)
{
    uint64_t id = call->req->u.handle.id;
    struct kvf_session *ss = kvf_call_session(call);
    struct kvf_why why;

    if (ss == NULL)
        return;
    if (free_buffer(ss, kvf_buffer_find(call->s->buffers, id), id, &why) < 0)
        kvf_call_why(call, &why);
    else if (!call->req->u.handle.quiet)
        kvf_call_ok(call);
    kvf_event_pool(call->s);
}

void kvf_op_unregister(struct kvf_call *call)
{
    uint64_t id = call->req->u.handle.id;
    struct kvf_session *ss = kvf_call_session(call);
    struct kvf_region *r;

    if (ss == NULL)
        return;
    r = kvf_region_find(call->s->buffers, id);
    if (r == NULL || r->owner != ss || r->retired) {
        kvf_call_reply(call, KVF_INVALID, "no such region in this session");
    } else if (r->pins > 0) {
        kvf_call_reply(call, KVF_BUSY,
                       "the region is used by a put or get: wait for its "
                       "retired event or reply");
    } else {
        kvf_region_retire(r);
        kvf_call_ok(call);
    }
}

/* ---- segments ----------------------------------------------------------- */

static int check_range(const struct kvf_segment_ref *ref, uint64_t size,
                       uint64_t *length, struct kvf_why *why)
{
    *length = ref->has_length ? ref->length : size - ref->offset;
    if (ref->offset >= size || *length == 0 || *length > size - ref->offset)
        return kvf_fail(why, KVF_INVALID,
                        "offset %" PRIu64 " length %" PRIu64
                        " is outside %s %" PRIu64 " of %" PRIu64 " bytes",
                        ref->offset, ref->has_length ? ref->length : 0,
                        ref->is_region ? "region" : "buffer", ref->id, size);
    return 0;
}

static int resolve_buffer(struct kvf_server *s, const struct kvf_session *ss,
                          const struct kvf_segment_ref *ref,
                          enum kvf_seg_use use, struct kvf_seg *out,
                          struct kvf_why *why)
{
    struct kvf_buffer *b = kvf_buffer_find(s->buffers, ref->id);
    int rc;

    if (b == NULL || b->owner != ss || b->state == KVF_BUF_DRAINING)
        return kvf_fail(why, KVF_INVALID,
                        "buffer %" PRIu64 " is not one of this session",
                        ref->id);
    if (b->state != KVF_BUF_FILLING &&
        (use != KVF_SEG_SOURCE || b->state != KVF_BUF_HELD))
        return kvf_fail(why, KVF_INVALID,
                        "buffer %" PRIu64 " was not allocated for writing",
                        ref->id);
    if (use == KVF_SEG_PUT    ? b->pins > 0
        : use == KVF_SEG_INTO ? kvf_put_reads(ss, b)
                              : false)
        return kvf_fail(why, KVF_BUSY,
                        "buffer %" PRIu64 " is in use by another request",
                        ref->id);
    rc = check_range(ref, b->size, &out->length, why);
    out->buffer = b;
    out->region = NULL;
    out->offset = b->offset + ref->offset;
    return rc;
}

static int resolve_region(struct kvf_server *s, const struct kvf_session *ss,
                          const struct kvf_segment_ref *ref,
                          struct kvf_seg *out, struct kvf_why *why)
{
    struct kvf_region *r = kvf_region_find(s->buffers, ref->id);
    int rc;

    if (r == NULL || r->owner != ss || r->retired)
        return kvf_fail(why, KVF_INVALID,
                        "region %" PRIu64 " is not one of this session",
                        ref->id);
    rc = check_range(ref, r->size, &out->length, why);
    out->buffer = NULL;
    out->region = r;
    out->offset = ref->offset;
    return rc;
}

static int by_place(const void *a, const void *b)
{
    const struct kvf_seg *x = a, *y = b;
    uintptr_t rx = (uintptr_t)x->region, ry = (uintptr_t)y->region;

    if (rx != ry)
        return rx < ry ? -1 : 1;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return 0;
}

static bool in_order(const struct kvf_seg *segs, unsigned n)
{
    for (unsigned i = 1; i < n; i++)
        if (segs[i].region != segs[i - 1].region ||
            segs[i].offset < segs[i - 1].offset + segs[i - 1].length)
            return false;
    return true;
}

static int check_distinct(const struct kvf_seg *segs, unsigned n,
                          struct kvf_why *why)
{
    struct kvf_seg sorted[KVF_MAX_SEGMENTS];

    if (in_order(segs, n))
        return 0;
    for (unsigned i = 0; i < n; i++)
        sorted[i] = segs[i];
    qsort(sorted, n, sizeof sorted[0], by_place);
    for (unsigned i = 1; i < n; i++)
        if (sorted[i].region == sorted[i - 1].region &&
            sorted[i].offset < sorted[i - 1].offset + sorted[i - 1].length)
            return kvf_fail(why, KVF_INVALID,
                            "field into: a byte is named twice");
    return 0;
}

int kvf_segments_resolve(struct kvf_server *s, struct kvf_session *ss,
                         const struct kvf_segment_ref *ref, unsigned n,
                         enum kvf_seg_use use, uint64_t *total,
                         struct kvf_why *why)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < n; i++) {
        struct kvf_seg *out = &s->segs[i];
        int rc = ref[i].is_region
                     ? resolve_region(s, ss, &ref[i], out, why)
                     : resolve_buffer(s, ss, &ref[i], use, out, why);

        if (rc < 0)
            return rc;
        sum += out->length; /* <= 1024 times the size of what is mapped */
    }
    *total = sum;
    return use != KVF_SEG_INTO ? 0 : check_distinct(s->segs, n, why);
}
