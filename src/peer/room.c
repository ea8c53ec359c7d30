/* Rooms: pushes of guests on their way into this daemon.
 *
 *   QUEUED -room on the edge-> OPEN -COMMIT, quiet-> COMMITTING -> published
 *                                \-its access ends-> DYING -quiet-> gone
 *
 * Nobody finds the key before the last step, which is one put into the store.
 * Each push has a random id: what it came to is remembered, so that a request
 * whose answer was lost is answered again and never done twice. A room whose
 * sender is gone goes when its memory is quiet; one that has its COMMIT is
 * published even if nobody hears of it. */
#include "peer/access.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum room_state { QUEUED, OPEN, COMMITTING, DYING };

struct kvf_room {
    struct kvf_id push;
    struct kvf_peers *ps;
    struct kvf_guest *guest; /* NULL: gone */
    struct kvf_list guest_node;
    enum room_state state;
    uint64_t ask; /* what is to be answered: ROOM_ASK, later COMMIT */
    bool want_shm, has_checksum, summing;
    uint64_t size, checksum;
    struct kvf_put put; /* key and meta lie behind the struct */
    struct kvf_buffer *buffer;
    struct kvf_access *access;
    struct kvf_edge_wait edge;
    struct kvf_pushed *pushed; /* the sender wants to hear of its end */
    struct kvf_checksum sum;
    UT_hash_handle hh; /* by push, until DYING */
};

/* Out of the tables: the same push may be asked for anew. */
static void forget(struct kvf_room *r)
{
    if (r->state == DYING)
        return;
    r->state = DYING;
    HASH_DEL(r->ps->rooms, r);
    kvf_list_unlink(&r->guest_node);
    r->guest = NULL;
}

/* Nothing touches its memory. */
static void room_free(struct kvf_room *r)
{
    forget(r);
    if (r->summing)
        kvf_checksum_stop(&r->sum);
    if (r->buffer != NULL)
        kvf_buffer_retire(r->buffer);
    kvf_edge_leave(&r->edge);
    free(r->pushed);
    free(r);
}

static void room_drop(struct kvf_room *r)
{
    bool waiting = r->state == COMMITTING && !r->summing;

    if (r->access != NULL) {
        kvf_access_end(r->access); /* goes on in kvf_room_quiet */
        return;
    }
    if (waiting) {
        forget(r); /* kvf_room_quiet is still to come */
        return;
    }
    room_free(r);
}

static void room_deny(struct kvf_room *r, const struct kvf_why *why)
{
    if (r->guest != NULL)
        kvf_guest_deny(r->guest, r->ask, why, r->size);
    room_free(r);
}

/* ---- publishing --------------------------------------------------------- */

static int publish(struct kvf_room *r, uint64_t *generation,
                   struct kvf_why *why)
{
    struct kvf_seg seg = {
        .buffer = r->buffer, .offset = r->buffer->offset, .length = r->size};
    struct kvf_peers *ps = r->ps;
    const struct kvf_gen *g;
    int rc;

    r->put.segs = &seg;
    r->put.n_segs = 1;
    r->put.has_checksum = r->has_checksum;
    r->put.checksum = r->checksum;
    rc = kvf_store_put(ps->env.store, &r->put, &g, why);
    if (rc < 0)
        return rc;
    r->buffer = NULL;
    *generation = g->generation;
    if (r->pushed != NULL)
        kvf_pushed_add(ps, r->pushed, g->generation);
    r->pushed = NULL;
    ps->env.stats->pushed++;
    kvf_gen_log_put(g);
    /* From here on the push has been done, whatever becomes of the answer. */
    kvf_memo_add(&ps->pushes, &r->push, *generation);
    return 0;
}

static void finish(struct kvf_room *r)
{
    struct kvf_store *store = r->ps->env.store;
    struct kvf_why why;
    uint64_t generation;

    if (publish(r, &generation, &why) < 0) {
        room_deny(r, &why);
        return;
    }
    if (r->guest != NULL)
        kvf_guest_applied(r->guest, r->ask, generation);
    room_free(r);
    kvf_store_settle(store); /* gets that waited for it */
}

static void corrupt(struct kvf_room *r)
{
    struct kvf_why why;

    r->ps->env.stats->checksum_failed++;
    kvf_fail(&why, KVF_CORRUPT,
             "the bytes that came do not have the checksum of the push");
    room_deny(r, &why);
}

static void on_checksum(struct kvf_checksum *c, uint64_t value)
{
    struct kvf_room *r = kvf_container_of(c, struct kvf_room, sum);

    r->summing = false;
    if (value != r->checksum)
        corrupt(r);
    else
        finish(r);
}

static void verify(struct kvf_room *r)
{
    struct iovec iov = {kvf_buffer_ptr(r->buffer), r->size};
    struct kvf_why why;

    if (!r->has_checksum) {
        finish(r);
        return;
    }
    if (kvf_checksum_start(&r->sum, r->ps->env.sched, &iov, 1, on_checksum,
                           &why) < 0)
        room_deny(r, &why);
    else
        r->summing = true;
}

void kvf_room_ended(struct kvf_room *r)
{
    r->access = NULL;
    if (r->state == OPEN)
        forget(r);
}

void kvf_room_quiet(struct kvf_room *r)
{
    if (r->state == COMMITTING)
        verify(r);
    else
        room_free(r);
}

/* ---- asking ------------------------------------------------------------- */

static struct kvf_room *room_new(struct kvf_guest *g,
                                 const struct kvf_peer_room_ask *ask)
{
    struct kvf_peers *ps = g->ps;
    struct kvf_room *r = calloc(1, sizeof *r + ask->key.len + ask->meta_len);
    char *at;

    if (r == NULL)
        return NULL;
    at = (char *)(r + 1);
    memcpy(at, ask->key.p, ask->key.len);
    if (ask->meta_len != 0)
        memcpy(at + ask->key.len, ask->meta, ask->meta_len);
    r->push = ask->push;
    r->ps = ps;
    r->guest = g;
    r->ask = ask->ask;
    r->want_shm = ask->want_shm;
    r->has_checksum = ask->has_checksum;
    r->checksum = ask->checksum;
    r->size = ask->size;
    r->put = (struct kvf_put){
        .key = at,
        .key_len = ask->key.len,
        .meta = at + ask->key.len,
        .meta_len = ask->meta_len,
        .ttl_ms = ask->has_ttl ? ask->ttl_ms : ps->env.conf->put_ttl_ms,
        .readers = ask->readers,
        .reject_duplicate = ask->reject_duplicate,
        .notify = ask->notify,
    };
    kvf_list_init(&r->guest_node);
    if (ask->notify)
        r->pushed = kvf_pushed_new(&ask->push, &g->incarnation);
    if (!ask->notify || r->pushed != NULL)
        HASH_ADD(hh, ps->rooms, push, sizeof r->push, r);
    if (r->hh.tbl == NULL) {
        free(r->pushed);
        free(r);
        return NULL;
    }
    kvf_list_push_back(&g->rooms, &r->guest_node);
    return r;
}

static int take_buffer(struct kvf_room *r, struct kvf_why *why)
{
    return kvf_buffer_alloc(r->ps->env.buffers, r->size, KVF_BUF_RECEIVING,
                            r->ps, &r->buffer, why);
}

static void open_room(struct kvf_room *r)
{
    struct kvf_guest *g = r->guest;
    struct kvf_why why;
    struct kvf_seg seg;

    if (take_buffer(r, &why) < 0) {
        room_deny(r, &why);
        return;
    }
    seg = (struct kvf_seg){
        .buffer = r->buffer, .offset = r->buffer->offset, .length = r->size};
    r->access = kvf_access_new(g, &seg, true, g->shm_ok && r->want_shm);
    if (r->access == NULL) {
        kvf_fail(&why, KVF_BUSY, "out of memory at the receiver");
        room_deny(r, &why);
        return;
    }
    r->state = OPEN;
    r->access->room = r;
    kvf_guest_grant_access(r->access, r->ask, 0);
}

static void on_enter(struct kvf_edge_wait *w)
{
    open_room(kvf_container_of(w, struct kvf_room, edge));
}

/* The bytes came along: one message each way. */
static void take_eager(struct kvf_room *r, const struct kvf_peer_room_ask *ask)
{
    struct kvf_why why;

    if (take_buffer(r, &why) < 0) {
        room_deny(r, &why);
        return;
    }
    memcpy(kvf_buffer_ptr(r->buffer), ask->bytes, ask->bytes_len);
    if (r->has_checksum &&
        XXH3_64bits(kvf_buffer_ptr(r->buffer), r->size) != r->checksum)
        corrupt(r);
    else
        finish(r);
}

static int check_ask(const struct kvf_guest *g,
                     const struct kvf_peer_room_ask *ask, struct kvf_why *why)
{
    const struct kvf_peers *ps = g->ps;
    const struct kvf_gen *live;

    if (ps->draining)
        return kvf_fail(why, KVF_SHUTTING_DOWN,
                        "the receiver is draining and takes no pushes");
    if (HASH_COUNT(ps->rooms) >= ps->env.conf->max_parked)
        return kvf_fail(why, KVF_BUSY,
                        "%u pushes are under way at the receiver ([limits] "
                        "max_parked)",
                        ps->env.conf->max_parked);
    if (ask->bytes != NULL && ask->bytes_len > ps->env.conf->inline_max)
        return kvf_fail(why, KVF_TOO_LARGE,
                        "more bytes than the receiver takes with the request");
    live = kvf_store_live(ps->env.store, ask->key.p, ask->key.len);
    if (ask->reject_duplicate && live != NULL)
        return kvf_fail(why, KVF_EXISTS,
                        "generation %" PRIu64 " of the key is live there",
                        live->generation);
    return 0;
}

/* True when the push is known here and the ask is taken care of. */
static bool asked_before(struct kvf_guest *g,
                         const struct kvf_peer_room_ask *ask)
{
    struct kvf_peers *ps = g->ps;
    struct kvf_room *r;
    struct kvf_why why;
    uint64_t generation;

    if (kvf_memo_find(&ps->pushes, &ask->push, &generation)) {
        kvf_guest_applied(g, ask->ask, generation);
        return true;
    }
    HASH_FIND(hh, ps->rooms, &ask->push, sizeof ask->push, r);
    if (r == NULL)
        return false;
    if (r->guest != g) {
        kvf_fail(&why, KVF_DENIED, "that push is another sender's");
        kvf_guest_deny(g, ask->ask, &why, 0);
        return true;
    }
    if (r->state == COMMITTING) {
        r->ask = ask->ask;
        return true;
    }
    room_drop(r); /* the sender does not have its grant: it begins again */
    return false;
}

void kvf_guest_on_room_ask(struct kvf_guest *g,
                           const struct kvf_peer_room_ask *ask)
{
    struct kvf_peers *ps = g->ps;
    struct kvf_room *r = NULL;
    struct kvf_why why;

    if (asked_before(g, ask))
        return;
    if (check_ask(g, ask, &why) == 0) {
        r = room_new(g, ask);
        if (r == NULL)
            kvf_fail(&why, KVF_BUSY, "out of memory at the receiver");
    }
    if (r == NULL) {
        kvf_guest_deny(g, ask->ask, &why, ask->size);
        return;
    }
    kvf_edge_wait_init(&r->edge, on_enter);
    if (ask->bytes != NULL)
        take_eager(r, ask);
    else if (kvf_edge_enter(kvf_peers_edge(ps, g->worker.stage), ps->env.conf,
                            &r->edge, r->size))
        open_room(r);
}

void kvf_guest_on_commit(struct kvf_guest *g, const struct kvf_peer_commit *c)
{
    struct kvf_peers *ps = g->ps;
    struct kvf_room *r;
    struct kvf_why why;
    uint64_t generation;

    if (kvf_memo_find(&ps->pushes, &c->push, &generation)) {
        kvf_guest_applied(g, c->ask, generation);
        return;
    }
    HASH_FIND(hh, ps->rooms, &c->push, sizeof c->push, r);
    if (r != NULL && r->guest == g && r->state == COMMITTING) {
        r->ask = c->ask;
        return;
    }
    if (r == NULL || r->guest != g || r->state != OPEN ||
        r->access->id != c->claim ||
        !kvf_secret_equal(&r->access->token, &c->token, sizeof c->token)) {
        kvf_fail(&why, KVF_STALE, "the room of that push is gone");
        kvf_guest_deny(g, c->ask, &why, 0);
        return;
    }
    r->ask = c->ask;
    if (c->has_checksum) {
        r->has_checksum = true;
        r->checksum = c->checksum;
    }
    r->state = COMMITTING;
    kvf_access_end(r->access); /* kvf_room_quiet follows, perhaps from here */
}

/* ---- going -------------------------------------------------------------- */

bool kvf_guest_unask_room(struct kvf_guest *g, uint64_t ask)
{
    kvf_list_for_each_safe (n, &g->rooms) {
        struct kvf_room *r = kvf_container_of(n, struct kvf_room, guest_node);

        if (r->ask == ask && r->state != OPEN) {
            room_drop(r);
            return true;
        }
    }
    return false;
}

void kvf_guest_drop_rooms(struct kvf_guest *g)
{
    kvf_list_for_each_safe (n, &g->rooms) {
        struct kvf_room *r = kvf_container_of(n, struct kvf_room, guest_node);

        if (r->state == QUEUED)
            room_drop(r);
    }
}

void kvf_guest_leave_rooms(struct kvf_guest *g)
{
    struct kvf_list *n;

    while ((n = kvf_list_pop(&g->rooms)) != NULL)
        kvf_container_of(n, struct kvf_room, guest_node)->guest = NULL;
}

unsigned kvf_rooms_count(const struct kvf_peers *ps)
{
    return HASH_COUNT(ps->rooms);
}

void kvf_rooms_destroy(struct kvf_peers *ps)
{
    struct kvf_room *r, *next;

    HASH_ITER (hh, ps->rooms, r, next)
        room_drop(r);
}
