/* What a reply gave is taken back when the reply reaches nobody.
 *
 * Happy path: the socket takes the reply and nothing happens here. Failure
 * modes: the client went away while its reply waited for room; the cookie then
 * says what to give back. A reply that gave several things (mget) has a list,
 * kept until the socket took the reply or gave it up; without memory for the
 * list they stay with the session, which gives them back when it ends. */
#include "daemon/engine.h"

#include <stdlib.h>
#include <string.h>

struct kvf_undo_list {
    uint64_t cookie;
    UT_hash_handle hh;
    unsigned n;
    uint64_t id[];
};

static void undo_buffer(struct kvf_buffer *b)
{
    if (b->owner != NULL && b->pins == 0 &&
        (b->state == KVF_BUF_FILLING || b->state == KVF_BUF_HELD))
        kvf_buffer_retire(b);
}

/* Ids of buffers, regions, views and windows are drawn from one counter. */
static void undo_id(struct kvf_server *s, uint64_t id)
{
    struct kvf_buffer *b = kvf_buffer_find(s->buffers, id);
    struct kvf_region *r = b == NULL ? kvf_region_find(s->buffers, id) : NULL;
    struct kvf_view *v =
        b == NULL && r == NULL ? kvf_view_find(s->gets, id) : NULL;

    struct kvf_window *w = b == NULL && r == NULL && v == NULL
                               ? kvf_window_find(s->peers, id)
                               : NULL;

    if (b != NULL)
        undo_buffer(b);
    else if (w != NULL)
        kvf_window_end(w, "the reply of expose reached nobody");
    else if (r != NULL)
        kvf_region_retire(r);
    else if (v != NULL)
        kvf_view_abort(v);
}

static struct kvf_undo_list *take_list(struct kvf_server *s, uint64_t cookie)
{
    struct kvf_undo_list *u;

    HASH_FIND(hh, s->undo_lists, &cookie, sizeof cookie, u);
    if (u != NULL)
        HASH_DEL(s->undo_lists, u);
    return u;
}

uint64_t kvf_undo_list_add(struct kvf_server *s, const uint64_t *id, unsigned n)
{
    struct kvf_undo_list *u = n > 0 ? malloc(sizeof *u + n * sizeof *id) : NULL;

    if (u == NULL)
        return 0;
    u->cookie = KVF_COOKIE_LIST | ++s->next_serial;
    u->n = n;
    memcpy(u->id, id, n * sizeof *id);
    HASH_ADD(hh, s->undo_lists, cookie, sizeof u->cookie, u);
    if (u->hh.tbl == NULL) {
        free(u);
        return 0;
    }
    return u->cookie;
}

void kvf_undo(struct kvf_server *s, uint64_t cookie)
{
    if (cookie >= KVF_COOKIE_OTHER) {
        undo_id(s, cookie);
    } else if ((cookie & KVF_COOKIE_SESSION) != 0) {
        struct kvf_session *ss =
            kvf_session_by_serial(s, cookie & ~KVF_COOKIE_SESSION);

        if (ss != NULL)
            kvf_session_end(ss, true, "its first socket went away");
    } else if ((cookie & KVF_COOKIE_LIST) != 0) {
        struct kvf_undo_list *u = take_list(s, cookie);

        for (unsigned i = 0; u != NULL && i < u->n; i++)
            undo_id(s, u->id[i]);
        free(u);
    }
}

void kvf_reply_give(struct kvf_server *s, const struct kvf_to *to,
                    uint64_t cookie)
{
    if (kvf_reply_send(s, to, NULL, 0, cookie) < 0)
        kvf_undo(s, cookie);
}

void kvf_pending_give(struct kvf_pending *p, uint64_t cookie)
{
    if (kvf_pending_send(p, NULL, 0, cookie) < 0)
        kvf_undo(p->client->server, cookie);
}

void kvf_undo_forget(struct kvf_server *s, uint64_t cookie)
{
    if (cookie < KVF_COOKIE_OTHER && (cookie & KVF_COOKIE_LIST) != 0)
        free(take_list(s, cookie));
}

void kvf_undo_lists_free(struct kvf_server *s)
{
    struct kvf_undo_list *u, *next;

    HASH_ITER (hh, s->undo_lists, u, next) {
        HASH_DEL(s->undo_lists, u);
        free(u);
    }
}
