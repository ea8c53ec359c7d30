/* Accesses of guests to windows and rooms.
 *
 * Happy path: granted, used through the bulk transport or a mapping, ended by
 * its holder. Failure modes: revoked when the window goes (a holder over shm
 * is told and lets go; over tcp it is over at once); the session of the holder
 * ends; the holder's process ends; bytes that are still being received keep the
 * memory pinned. */
#include "peer/access.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct kvf_access *kvf_access_new(struct kvf_guest *g,
                                  const struct kvf_seg *seg, bool write,
                                  bool shm)
{
    struct kvf_peers *ps = g->ps;
    struct kvf_access *a;

    if (HASH_COUNT(ps->accesses) >= KVF_ACCESSES_MAX)
        return NULL;
    a = calloc(1, sizeof *a);
    if (a == NULL)
        return NULL;
    a->id = KVF_ACCESS_BIT | ++ps->next_access;
    kvf_random_bytes(a->token.b, sizeof a->token.b);
    HASH_ADD(hh, ps->accesses, id, sizeof a->id, a);
    if (a->hh.tbl == NULL) {
        free(a);
        return NULL;
    }
    a->ps = ps;
    a->guest = g;
    a->seg = *seg;
    a->write = write;
    a->shm = shm;
    a->rdma = !shm && g->rdma && ps->env.rdma != NULL;
    kvf_list_init(&a->guest_node);
    kvf_list_init(&a->window_node);
    kvf_list_push_back(&g->accesses, &a->guest_node);
    kvf_seg_pin(&a->seg);
    return a;
}

struct kvf_access *kvf_access_find(const struct kvf_peers *ps, uint64_t id)
{
    struct kvf_access *a;

    HASH_FIND(hh, ps->accesses, &id, sizeof id, a);
    return a;
}

/* A QP may write while its guest has something to write into, and no longer:
 * what it may reach then is all of what is registered (docs/ARCHITECTURE.md).
 */
static void allow_write(struct kvf_access *a)
{
    a->rdma = kvf_rdma_allow_write(a->ps->env.rdma, a->guest, true);
    if (a->rdma)
        a->guest->rdma_writes++;
}

void kvf_guest_writes_again(struct kvf_guest *g)
{
    if (g->rdma_writes > 0)
        (void)kvf_rdma_allow_write(g->ps->env.rdma, g, true);
}

static void forbid_write(struct kvf_access *a)
{
    if (--a->guest->rdma_writes == 0)
        (void)kvf_rdma_allow_write(a->ps->env.rdma, a->guest, false);
}

static void settle(struct kvf_access *a)
{
    struct kvf_room *r = a->room;

    if (!a->ended || a->io != 0)
        return;
    kvf_seg_unpin(&a->seg);
    free(a);
    if (r != NULL)
        kvf_room_quiet(r);
}

void kvf_access_end(struct kvf_access *a)
{
    if (a->ended)
        return;
    a->ended = true;
    HASH_DEL(a->ps->accesses, a);
    if (a->rdma && a->write)
        forbid_write(a);
    kvf_list_unlink(&a->guest_node);
    kvf_list_unlink(&a->window_node);
    a->guest = NULL;
    a->window = NULL;
    a->io++; /* keeps it while the room hears of it */
    if (a->room != NULL)
        kvf_room_ended(a->room);
    a->io--;
    settle(a);
}

static void tell_revoked(struct kvf_access *a, const char *text)
{
    struct kvf_peer_msg m;

    if (!a->guest->up)
        return;
    kvf_peers_head(a->ps, &m, KVF_PEER_REVOKED, &a->guest->incarnation);
    m.u.revoked.claim = a->id;
    snprintf(m.u.revoked.text, sizeof m.u.revoked.text, "%.199s", text);
    kvf_guest_answer(a->guest, &m, NULL, 0);
}

void kvf_access_revoke(struct kvf_access *a, const char *text)
{
    if (a->revoked || a->ended)
        return;
    a->revoked = true;
    kvf_list_unlink(&a->window_node);
    a->window = NULL;
    tell_revoked(a, text);
    /* Over tcp nothing can be touched any more. Otherwise its holder has to let
     * go first. */
    if (!a->shm && !a->rdma)
        kvf_access_end(a);
}

void kvf_guest_revoke_again(struct kvf_guest *g)
{
    kvf_list_for_each (n, &g->accesses) {
        struct kvf_access *a =
            kvf_container_of(n, struct kvf_access, guest_node);

        if (a->revoked)
            tell_revoked(a, "it was taken back while we were apart");
    }
}

void kvf_guest_end_accesses(struct kvf_guest *g, bool shm_too)
{
    kvf_list_for_each_safe (n, &g->accesses) {
        struct kvf_access *a =
            kvf_container_of(n, struct kvf_access, guest_node);

        if ((!a->shm || shm_too) && !(a->rdma && g->rdma_stuck))
            kvf_access_end(a);
    }
}

/* ---- the bulk transport ------------------------------------------------- */

int kvf_access_resolve(struct kvf_peers *ps, void *session, uint64_t id,
                       const struct kvf_id *token, bool write, uint64_t offset,
                       uint64_t length, struct iovec *iov, unsigned *n_iov,
                       void **pin, struct kvf_why *why)
{
    struct kvf_access *a = kvf_access_find(ps, id);

    if (a == NULL || a->revoked)
        return kvf_fail(why, KVF_STALE, "the access is not live any more");
    if (a->guest != session ||
        !kvf_secret_equal(&a->token, token, sizeof *token))
        return kvf_fail(why, KVF_DENIED, "not your access");
    if (a->write != write)
        return kvf_fail(why, KVF_DENIED, "the access is for %s",
                        a->write ? "writing" : "reading");
    if (offset > a->seg.length || length > a->seg.length - offset ||
        *n_iov == 0)
        return kvf_fail(why, KVF_INVALID, "outside of what was granted");
    iov[0] = (struct iovec){kvf_seg_ptr(&a->seg) + offset, length};
    *n_iov = 1;
    a->io++;
    *pin = a;
    return 0;
}

void kvf_access_unpin(struct kvf_access *a)
{
    a->io--;
    settle(a);
}

/* ---- answers ------------------------------------------------------------ */

/* Where the memory is, for who maps it or has it registered. */
static void describe(struct kvf_access *a, struct kvf_peer_grant *g,
                     struct kvf_peer_seg *seg, struct kvf_peer_space *space)
{
    struct kvf_gen gen = {.segs = &a->seg, .n_segs = 1};

    *seg = (struct kvf_peer_seg){0, a->seg.offset, a->seg.length};
    g->segs = seg;
    g->n_segs = 1;
    if (a->seg.region != NULL) {
        const struct kvf_mapping *map = a->seg.region->map;

        memset(space, 0, sizeof *space);
        snprintf(space->path, sizeof space->path, "%s", a->seg.region->path);
        space->dev = map->dev;
        space->ino = map->ino;
        space->size = map->size;
        seg->space = 1;
        g->spaces = space;
        g->n_spaces = 1;
    }
    if (a->rdma)
        kvf_guest_rdma_describe(a->guest, &gen, g);
}

void kvf_guest_grant_access(struct kvf_access *a, uint64_t ask,
                            uint64_t generation)
{
    struct kvf_peer_seg seg;
    struct kvf_peer_space space;
    struct kvf_peer_msg m;

    kvf_peers_head(a->ps, &m, KVF_PEER_GRANT, &a->guest->incarnation);
    m.u.grant.ask = ask;
    m.u.grant.claim = a->id;
    m.u.grant.token = a->token;
    m.u.grant.generation = generation;
    m.u.grant.size = a->seg.length;
    m.u.grant.shm = a->shm;
    if (a->rdma && a->write)
        allow_write(a);
    if (a->shm || a->rdma)
        describe(a, &m.u.grant, &seg, &space);
    if (a->rdma && !m.u.grant.rdma && a->write)
        forbid_write(a);
    a->rdma = m.u.grant.rdma;
    if (!a->shm && !a->rdma)
        m.u.grant.n_segs = m.u.grant.n_spaces = 0; /* tcp needs no places */
    kvf_guest_answer(a->guest, &m, NULL, 0);
    kvf_guest_rdma_described(&m.u.grant);
}

void kvf_guest_applied(struct kvf_guest *g, uint64_t ask, uint64_t generation)
{
    struct kvf_peer_msg m;

    kvf_peers_head(g->ps, &m, KVF_PEER_APPLIED, &g->incarnation);
    m.u.applied.ask = ask;
    m.u.applied.generation = generation;
    kvf_guest_answer(g, &m, NULL, 0);
}

void kvf_guest_deny(struct kvf_guest *g, uint64_t ask,
                    const struct kvf_why *why, uint64_t needed)
{
    struct kvf_buffer_gauges pool;
    struct kvf_peer_msg m;

    kvf_peers_head(g->ps, &m, KVF_PEER_DENY, &g->incarnation);
    m.u.deny.ask = ask;
    m.u.deny.status = why->status;
    snprintf(m.u.deny.text, sizeof m.u.deny.text, "%.199s", why->text);
    if (why->status == KVF_NO_SPACE && needed != 0) {
        kvf_buffers_gauges(g->ps->env.buffers, &pool);
        m.u.deny.free = pool.free;
        m.u.deny.largest_free = pool.largest_free;
        m.u.deny.needed = needed;
    }
    kvf_guest_answer(g, &m, NULL, 0);
}
