/* expose, unexpose, and the event `written`.
 *
 * Happy path: memory of the session gets a name by which other workers address
 * it, and loses it again. Failure modes: the name is taken, no room, not the
 * session's; a window ends with its session, and its memory is free when
 * nobody can touch it any more. */
#include "daemon/engine.h"

#include <inttypes.h>
#include <string.h>

static int take_memory(struct kvf_call *call, struct kvf_session *ss,
                       struct kvf_seg *seg, struct kvf_why *why)
{
    const struct kvf_req_expose *e = &call->req->u.expose;
    struct kvf_server *s = call->s;
    struct kvf_region *r;
    int rc;

    if (!e->is_region) {
        rc = kvf_buffer_alloc(s->buffers, e->size, KVF_BUF_FILLING, ss,
                              &seg->buffer, why);
        if (rc < 0)
            return rc;
        kvf_list_push_back(&ss->buffers, &seg->buffer->owner_node);
        seg->offset = seg->buffer->offset;
        seg->length = seg->buffer->size;
        return 0;
    }
    r = kvf_region_find(s->buffers, e->region);
    if (r == NULL || r->owner != ss || r->retired)
        return kvf_fail(why, KVF_INVALID,
                        "region %" PRIu64 " is not one of this session",
                        e->region);
    seg->region = r;
    seg->length = r->size;
    return 0;
}

static int add_window(struct kvf_call *call, struct kvf_session *ss,
                      struct kvf_window **out, struct kvf_why *why)
{
    const struct kvf_req_expose *e = &call->req->u.expose;
    struct kvf_window_spec spec = {
        .name = e->name.p,
        .name_len = e->name.len,
        .writable = e->writable,
        .owner = ss,
        .owner_list = &ss->windows,
    };
    int rc;

    if (kvf_window_named(call->s->peers, e->name.p, e->name.len) != NULL)
        return kvf_fail(why, KVF_EXISTS,
                        "a window of that name is exposed in this daemon");
    rc = take_memory(call, ss, &spec.seg, why);
    if (rc < 0)
        return rc;
    spec.listener = kvf_event_address(call);
    rc = kvf_window_add(call->s->peers, &spec, out, why);
    if (rc < 0 && spec.seg.buffer != NULL)
        kvf_buffer_retire(spec.seg.buffer);
    return rc;
}

void kvf_window_end(struct kvf_window *w, const char *text)
{
    struct kvf_buffer *b = w->seg.buffer;

    kvf_window_close(w, text);
    if (b != NULL)
        kvf_buffer_retire(b); /* free when the last access is quiet */
}

static void reply_exposed(struct kvf_call *call, const struct kvf_window *w)
{
    struct kvf_server *s = call->s;
    uint64_t id = w->id;

    kvf_reply_begin(s, &call->to, KVF_OK, NULL);
    kvf_reply_u64(s, "window", id);
    if (w->seg.buffer != NULL)
        kvf_reply_u64(s, "buffer", w->seg.buffer->id);
    else
        kvf_reply_u64(s, "region", w->seg.region->id);
    kvf_reply_u64(s, "offset", w->seg.offset);
    kvf_reply_u64(s, "size", w->seg.length);
    kvf_reply_give(s, &call->to, id);
}

void kvf_op_expose(struct kvf_call *call)
{
    struct kvf_server *s = call->s;
    struct kvf_session *ss;
    struct kvf_window *w;
    struct kvf_why why;
    char name[512];

    if (s->drain.active) {
        kvf_call_reply(call, KVF_SHUTTING_DOWN, "the daemon is draining");
        return;
    }
    ss = kvf_call_memory(call);
    if (ss == NULL)
        return;
    if (add_window(call, ss, &w, &why) < 0) {
        kvf_reply_begin(s, &call->to, why.status, why.text);
        if (why.status == KVF_NO_SPACE)
            kvf_reply_space(s, call->req->u.expose.size);
        (void)kvf_reply_send(s, &call->to, NULL, 0, 0);
        return;
    }
    kvf_log(KVF_LOG_INFO, "KVF WINDOW",
            "window=%s exposed id=%" PRIu64 " size=%" PRIu64 " writable=%s",
            kvf_log_key(name, sizeof name, w->name, w->name_len), w->id,
            w->seg.length, w->writable ? "yes" : "no");
    reply_exposed(call, w);
    kvf_event_pool(s);
}

void kvf_op_unexpose(struct kvf_call *call)
{
    struct kvf_session *ss = kvf_call_session(call);
    struct kvf_window *w;

    if (ss == NULL)
        return;
    w = kvf_window_find(call->s->peers, call->req->u.handle.id);
    if (w == NULL || w->owner != ss) {
        kvf_call_reply(call, KVF_INVALID, "no such window in this session");
        return;
    }
    kvf_window_end(w, "the window was unexposed");
    kvf_call_ok(call);
    kvf_event_pool(call->s);
}

void kvf_event_written(void *server, const struct kvf_window *w, bool write,
                       const void *data, size_t len)
{
    struct kvf_server *s = server;
    struct kvf_mpw *m = &s->scratch;
    struct kvf_client *c = kvf_event_listener(s, &w->listener);

    if (c == NULL)
        return; /* a REQ socket takes no events */
    kvf_mpw_reset(m);
    kvf_mpw_map(m, 5);
    kvf_mpw_kv_str(m, "event", "written");
    kvf_mpw_kv_u64(m, "window", w->id);
    kvf_mpw_str(m, "name");
    kvf_mpw_strn(m, w->name, w->name_len);
    kvf_mpw_kv_str(m, "op", write ? "write" : "read");
    kvf_mpw_kv_bin(m, "notify", data != NULL ? data : "", len);
    kvf_client_event(c);
    s->stats.written_events++;
}
