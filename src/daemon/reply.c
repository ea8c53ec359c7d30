/* Replies. Happy path: begin, fields, send; the writer's memory is kept.
 * Failure modes: no memory for the map (the client gets INTERNAL), no client
 * any more (the caller undoes). */
#include "daemon/reply.h"

#include "daemon/server.h"

#include <stdio.h>

static const uint8_t nil_id = 0xc0;

static void write_id(struct kvf_mpw *w, const struct kvf_to *to)
{
    kvf_mpw_str(w, "id");
    if (to->id != NULL)
        kvf_mpw_raw(w, to->id, to->id_len);
    else
        kvf_mpw_raw(w, &nil_id, 1);
}

void kvf_reply_begin(struct kvf_server *s, const struct kvf_to *to,
                     enum kvf_status status, const char *message)
{
    struct kvf_reply *r = &s->reply;

    kvf_mpw_reset(&r->w);
    r->status = status;
    r->pairs = 2;
    r->mark = kvf_mpw_map_begin(&r->w);
    write_id(&r->w, to);
    kvf_mpw_kv_str(&r->w, "status", kvf_status_name(status));
    if (status != KVF_OK)
        kvf_reply_str(s, "message",
                      message != NULL && message[0] != '\0'
                          ? message
                          : kvf_status_text(status));
}

struct kvf_mpw *kvf_reply_key(struct kvf_server *s, const char *key)
{
    s->reply.pairs++;
    kvf_mpw_str(&s->reply.w, key);
    return &s->reply.w;
}

void kvf_reply_u64(struct kvf_server *s, const char *key, uint64_t v)
{
    s->reply.pairs++;
    kvf_mpw_kv_u64(&s->reply.w, key, v);
}

void kvf_reply_bool(struct kvf_server *s, const char *key, bool v)
{
    s->reply.pairs++;
    kvf_mpw_kv_bool(&s->reply.w, key, v);
}

void kvf_reply_str(struct kvf_server *s, const char *key, const char *v)
{
    s->reply.pairs++;
    kvf_mpw_kv_str(&s->reply.w, key, v);
}

void kvf_reply_bin(struct kvf_server *s, const char *key, const void *p,
                   size_t len)
{
    s->reply.pairs++;
    kvf_mpw_kv_bin(&s->reply.w, key, p, len);
}

int kvf_reply_send(struct kvf_server *s, const struct kvf_to *to,
                   const void *payload, size_t len, uint64_t cookie)
{
    struct kvf_reply *r = &s->reply;
    struct kvf_frame f[4];
    unsigned n = 0;
    int rc;

    kvf_mpw_map_end(&r->w, r->mark, r->pairs);
    if (r->w.failed)
        return -KVF_INTERNAL;
    f[n++] = (struct kvf_frame){to->rid, to->rid_len};
    if (to->delimiter)
        f[n++] = (struct kvf_frame){"", 0};
    f[n++] = (struct kvf_frame){r->w.buf.data, r->w.buf.size};
    if (payload != NULL)
        f[n++] = (struct kvf_frame){payload, len};
    s->stats.status[r->status]++;
    rc = kvf_zsock_send(s->engine, f, n, cookie);
    if (rc == 0)
        s->stats.replies++;
    else
        s->stats.replies_undone++;
    return rc;
}

void kvf_reply_space(struct kvf_server *s, uint64_t needed)
{
    kvf_reply_u64(s, "free", kvf_pool_bytes_free(s->pool));
    kvf_reply_u64(s, "largest_free", kvf_pool_largest_free(s->pool));
    kvf_reply_u64(s, "needed", needed);
}

int kvf_reply_status(struct kvf_server *s, const struct kvf_to *to,
                     enum kvf_status status, const char *message)
{
    kvf_reply_begin(s, to, status, message);
    return kvf_reply_send(s, to, NULL, 0, 0);
}

int kvf_reply_why(struct kvf_server *s, const struct kvf_to *to,
                  const struct kvf_why *why)
{
    return kvf_reply_status(s, to, why->status, why->text);
}
