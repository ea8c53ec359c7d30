/* What others may do with memory of this daemon that is no published key: the
 * windows that engines expose, and the rooms of pushes that come in. Inside
 * this folder; the daemon's half is in window.h.
 *
 *   access -end-> no new use -last io over-> unpinned, gone
 *
 * An access is a claim on the wire (ids with the top bit set), held by one
 * guest. Its memory is pinned until it has ended and is quiet, by the rules of
 * claims: tcp when no receive is under way, shm when its holder has said so or
 * has ended. */
#ifndef KVF_PEER_ACCESS_H
#define KVF_PEER_ACCESS_H

#include "memory/checksum.h"
#include "peer/peers_private.h"
#include "peer/window.h"

struct kvf_room;
struct kvf_pushed;

struct kvf_access {
    uint64_t id; /* first: told from a kvf_claim by its top bit */
    struct kvf_id token;
    struct kvf_peers *ps;
    struct kvf_guest *guest; /* who holds it; NULL: nobody any more */
    struct kvf_list guest_node;
    struct kvf_seg seg;
    bool write, shm, rdma;
    bool revoked; /* no new use; a holder over shm has not let go yet */
    bool ended;
    unsigned io;
    struct kvf_window *window; /* one of the two, while it lives */
    struct kvf_list window_node;
    struct kvf_room *room;
    UT_hash_handle hh; /* by id, until it ends */
};

#define KVF_ACCESSES_MAX 65536u /* of all guests; beyond it BUSY */

/* access.c */
struct kvf_access *kvf_access_new(struct kvf_guest *g,
                                  const struct kvf_seg *seg, bool write,
                                  bool shm);
struct kvf_access *kvf_access_find(const struct kvf_peers *ps, uint64_t id);
/* Its holder can do nothing with it any more; a may be gone. */
void kvf_access_end(struct kvf_access *a);
/* Takes it back: told to the holder, who lets go. */
void kvf_access_revoke(struct kvf_access *a, const char *text);
int kvf_access_resolve(struct kvf_peers *ps, void *session, uint64_t id,
                       const struct kvf_id *token, bool write, uint64_t offset,
                       uint64_t length, struct iovec *iov, unsigned *n_iov,
                       void **pin, struct kvf_why *why);
void kvf_access_unpin(struct kvf_access *a);
/* The guest is back, and may not have heard of what was taken back. */
void kvf_guest_revoke_again(struct kvf_guest *g);
/* The session is up again: what it may still write into it may write to. */
void kvf_guest_writes_again(struct kvf_guest *g);
/* Of a guest: ends those not over shm, or all. */
void kvf_guest_end_accesses(struct kvf_guest *g, bool shm_too);
/* GRANT of it as the answer to an ask. */
void kvf_guest_grant_access(struct kvf_access *a, uint64_t ask,
                            uint64_t generation);
void kvf_guest_applied(struct kvf_guest *g, uint64_t ask, uint64_t generation);
void kvf_guest_deny(struct kvf_guest *g, uint64_t ask,
                    const struct kvf_why *why, uint64_t needed);

/* window.c */
void kvf_guest_on_window_ask(struct kvf_guest *g,
                             const struct kvf_peer_window_ask *ask);
void kvf_guest_on_notify(struct kvf_guest *g, const struct kvf_peer_notify *n);
void kvf_windows_destroy(struct kvf_peers *ps);

/* room.c */
void kvf_guest_on_room_ask(struct kvf_guest *g,
                           const struct kvf_peer_room_ask *ask);
void kvf_guest_on_commit(struct kvf_guest *g, const struct kvf_peer_commit *c);
/* The ask of a push that waits for room is taken back. False: not one. */
bool kvf_guest_unask_room(struct kvf_guest *g, uint64_t ask);
/* Rooms that are not open yet go: their asks are lost with the connection. */
void kvf_guest_drop_rooms(struct kvf_guest *g);
/* The guest is about to be gone. */
void kvf_guest_leave_rooms(struct kvf_guest *g);
/* The access of a room has ended / is quiet. */
void kvf_room_ended(struct kvf_room *r);
void kvf_room_quiet(struct kvf_room *r);
unsigned kvf_rooms_count(const struct kvf_peers *ps);
void kvf_rooms_destroy(struct kvf_peers *ps);

/* retired.c, the receiver's side: a push whose sender wants to hear of its end,
 * kept from its publication on. NULL without memory. */
struct kvf_pushed *kvf_pushed_new(const struct kvf_id *push,
                                  const struct kvf_id *sender);
void kvf_pushed_add(struct kvf_peers *ps, struct kvf_pushed *e,
                    uint64_t generation); /* takes e over */
void kvf_pushed_destroy(struct kvf_peers *ps);
/* The guest has a new connection: it may have missed what it was told. */
void kvf_guest_retired_again(struct kvf_guest *g);
void kvf_guest_on_retired_seen(struct kvf_guest *g,
                               const struct kvf_peer_retired *r);

/* watches and pushed */
void kvf_retired_gauges(const struct kvf_peers *ps, struct kvf_peers_gauges *g);

/* memo.c: the outcomes of the last so many requests, by their random ids. */
void kvf_memo_add(struct kvf_memo *m, const struct kvf_id *id, uint64_t value);
bool kvf_memo_find(const struct kvf_memo *m, const struct kvf_id *id,
                   uint64_t *value);
void kvf_memo_free(struct kvf_memo *m);
#endif
