/* Windows: the table, and what guests ask of it.
 *
 * Happy path: a guest asks by name, gets an access to all of the window, and
 * may have its owner told when bytes are in place. Failure modes: no such name,
 * not writable, out of bounds; closed while somebody uses it (revoked). */
#include "peer/access.h"

#include <stdlib.h>
#include <string.h>

static struct kvf_window *window_new(const struct kvf_window_spec *spec)
{
    struct kvf_window *w = calloc(1, sizeof *w);

    if (w == NULL || (w->name = malloc(spec->name_len + 1)) == NULL) {
        free(w);
        return NULL;
    }
    memcpy(w->name, spec->name, spec->name_len);
    w->name[spec->name_len] = '\0';
    w->name_len = spec->name_len;
    w->seg = spec->seg;
    w->writable = spec->writable;
    w->listener = spec->listener;
    w->owner = spec->owner;
    kvf_list_init(&w->owner_node);
    kvf_list_init(&w->accesses);
    return w;
}

static bool insert(struct kvf_peers *ps, struct kvf_window *w)
{
    HASH_ADD_KEYPTR(hh, ps->windows, w->name, (unsigned)w->name_len, w);
    if (w->hh.tbl == NULL)
        return false;
    HASH_ADD(hh_id, ps->windows_by_id, id, sizeof w->id, w);
    if (w->hh_id.tbl != NULL)
        return true;
    HASH_DEL(ps->windows, w);
    return false;
}

int kvf_window_add(struct kvf_peers *ps, const struct kvf_window_spec *spec,
                   struct kvf_window **out, struct kvf_why *why)
{
    struct kvf_window *w;

    if (kvf_window_named(ps, spec->name, spec->name_len) != NULL)
        return kvf_fail(why, KVF_EXISTS,
                        "a window of that name is exposed in this daemon");
    if (HASH_COUNT(ps->windows) >= KVF_MAX_WINDOWS)
        return kvf_fail(why, KVF_BUSY, "%u windows are exposed already",
                        KVF_MAX_WINDOWS);
    w = window_new(spec);
    if (w != NULL)
        w->id = kvf_buffers_next_id(ps->env.buffers);
    if (w == NULL || !insert(ps, w)) {
        if (w != NULL)
            free(w->name);
        free(w);
        return kvf_fail(why, KVF_NO_SPACE, "out of memory for a window");
    }
    w->ps = ps;
    kvf_seg_pin(&w->seg);
    if (spec->owner_list != NULL)
        kvf_list_push_back(spec->owner_list, &w->owner_node);
    *out = w;
    return 0;
}

struct kvf_window *kvf_window_find(const struct kvf_peers *ps, uint64_t id)
{
    struct kvf_window *w;

    HASH_FIND(hh_id, ps->windows_by_id, &id, sizeof id, w);
    return w;
}

struct kvf_window *kvf_window_named(const struct kvf_peers *ps,
                                    const char *name, size_t len)
{
    struct kvf_window *w;

    HASH_FIND(hh, ps->windows, name, (unsigned)len, w);
    return w;
}

void kvf_window_close(struct kvf_window *w, const char *text)
{
    struct kvf_peers *ps = w->ps;

    /* Who kept an access over shm sees this at once, REVOKED may be late. */
    kvf_pool_set_windows(ps->env.own_map, ++ps->windows_ended);
    HASH_DEL(ps->windows, w);
    HASH_DELETE(hh_id, ps->windows_by_id, w);
    kvf_list_unlink(&w->owner_node);
    kvf_list_for_each_safe (n, &w->accesses)
        kvf_access_revoke(kvf_container_of(n, struct kvf_access, window_node),
                          text);
    kvf_seg_unpin(&w->seg);
    free(w->name);
    free(w);
}

void kvf_windows_destroy(struct kvf_peers *ps)
{
    while (ps->windows != NULL)
        kvf_window_close(ps->windows, "the owner is shutting down");
}

int kvf_window_check(const struct kvf_window *w, bool write, uint64_t offset,
                     uint64_t length, struct kvf_why *why)
{
    if (write && !w->writable)
        return kvf_fail(why, KVF_DENIED, "the window is not writable");
    if (offset > w->seg.length || length > w->seg.length - offset)
        return kvf_fail(why, KVF_INVALID,
                        "%llu bytes at %llu are outside the window of %llu",
                        (unsigned long long)length, (unsigned long long)offset,
                        (unsigned long long)w->seg.length);
    return 0;
}

/* ---- guests ------------------------------------------------------------- */

void kvf_guest_on_window_ask(struct kvf_guest *g,
                             const struct kvf_peer_window_ask *ask)
{
    struct kvf_window *w = kvf_window_named(g->ps, ask->name.p, ask->name.len);
    struct kvf_access *a;
    struct kvf_why why;

    if (w == NULL) {
        kvf_fail(&why, KVF_NOT_FOUND,
                 "no window of that name is exposed there");
        kvf_guest_deny(g, ask->ask, &why, 0);
        return;
    }
    if (kvf_window_check(w, ask->write, ask->offset, ask->length, &why) < 0) {
        kvf_guest_deny(g, ask->ask, &why, 0);
        return;
    }
    a = kvf_access_new(g, &w->seg, ask->write, g->shm_ok && ask->want_shm);
    if (a == NULL) {
        kvf_fail(&why, KVF_BUSY, "no memory for one more access at the owner");
        kvf_guest_deny(g, ask->ask, &why, 0);
        return;
    }
    a->window = w;
    kvf_list_push_back(&w->accesses, &a->window_node);
    kvf_guest_grant_access(a, ask->ask, w->id);
}

void kvf_guest_on_notify(struct kvf_guest *g, const struct kvf_peer_notify *n)
{
    struct kvf_peers *ps = g->ps;
    struct kvf_access *a = kvf_access_find(ps, n->claim);
    struct kvf_why why;
    uint64_t seen;

    if (kvf_memo_find(&ps->notices, &n->id, &seen)) {
        kvf_guest_applied(g, n->ask, 0);
        return;
    }
    if (a == NULL || a->window == NULL) {
        kvf_fail(&why, KVF_STALE, "the window is not exposed any more");
        kvf_guest_deny(g, n->ask, &why, 0);
        return;
    }
    if (a->guest != g ||
        !kvf_secret_equal(&a->token, &n->token, sizeof n->token)) {
        ps->env.stats->peer_malformed++;
        kvf_fail(&why, KVF_DENIED, "not your access");
        kvf_guest_deny(g, n->ask, &why, 0);
        return;
    }
    kvf_memo_add(&ps->notices, &n->id, 0);
    if (ps->env.on_written != NULL)
        ps->env.on_written(ps->env.on_peer_arg, a->window, n->write, n->data,
                           n->len);
    kvf_guest_applied(g, n->ask, 0);
}
