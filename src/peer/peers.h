/* Other daemons. Two separate halves, because the two directions of pulling
 * have nothing in common but their messages:
 *
 *   peer.c, ask.c    the owners that this daemon pulls from (it dials them)
 *   guest.c          the getters that pull from this daemon (they dial us)
 *
 * plus directory.c (which worker is where). One thread, no I/O of its own. */
#ifndef KVF_PEER_PEERS_H
#define KVF_PEER_PEERS_H

#include "base/rng.h"
#include "base/sched.h"
#include "base/stats.h"
#include "base/worker.h"
#include "conf/conf.h"
#include "peer/blocks.h"
#include "peer/channel.h"
#include "peer/edge.h"
#include "store/store.h"
#include "transport/rdma/rdma.h"
#include "transport/transport.h"
#include "wire/peer_msg.h"

#include "memory/hash.h"

struct kvf_peers;
struct kvf_peer;
struct kvf_window;

/* What became of a push at its receiver. */
struct kvf_push_end {
    const char *key;
    size_t key_len;
    uint64_t generation, readers_done;
    enum kvf_retire reason;
    struct kvf_id publisher; /* as kvf_put.publisher */
};

/* How processes that map our memory are watched (daemon/procwatch.c; faked in
 * tests). */
struct kvf_proc_watch;
struct kvf_proc_ops {
    /* Watches exactly that process; gone() is called once from the loop when it
     * has ended. -KVF_NOT_FOUND gone already, -KVF_UNSUPPORTED not visible. */
    int (*watch)(void *ctx, uint64_t pid, uint64_t start,
                 void (*gone)(void *arg), void *arg,
                 struct kvf_proc_watch **out, struct kvf_why *why);
    void (*unwatch)(void *ctx, struct kvf_proc_watch *w); /* NULL is fine */
    /* Asks the kernel now: gone() may not have come yet. */
    bool (*alive)(void *ctx, const struct kvf_proc_watch *w);
};

struct kvf_peers_env {
    struct kvf_sched *sched;
    struct kvf_stats *stats;
    struct kvf_rng *rng;
    const struct kvf_conf *conf; /* stays valid; may change at reload */
    struct kvf_id incarnation;
    struct kvf_store *store;
    struct kvf_buffers *buffers; /* rooms for pushes */
    struct kvf_blocks *blocks;   /* layouts and publications */
    struct kvf_map_cache *maps;
    struct kvf_mapping *own_map; /* the own pool, as any other mapping */
    struct kvf_channel channel;
    struct kvf_proc_ops proc;
    void *proc_ctx;
    /* Transports that are compiled in and configured; NULL otherwise. */
    struct kvf_transport *shm, *tcp, *rdma;
    /* The own pool, for peers on this host ("" = shm is off). */
    struct kvf_peer_pool pool;
    /* Bulk endpoint to advertise; port 0 = none. */
    char bulk_host[64];
    uint16_t bulk_port;
    /* Metadata endpoint as others reach us; to recognise ourselves. */
    char host[KVF_CONF_TEXT];
    uint16_t port;
    /* tcp's admit/expel, behind pointers so that simulation tests can do
     * without sockets. */
    int (*admit)(void *ctx, const uint8_t *secret, void *session,
                 struct kvf_why *why);
    void (*expel)(void *ctx, void *session);
    void *admit_ctx;
    /* A worker came up or went down as seen by this daemon (events). */
    void (*on_peer)(void *arg, const struct kvf_worker *w, bool up,
                    const char *reason);
    void *on_peer_arg;
    /* Another worker has written into (read from) a window and wants its owner
     * to know; may be NULL. With on_peer_arg. */
    void (*on_written)(void *arg, const struct kvf_window *w, bool write,
                       const void *data, size_t len);
    /* A push of this daemon that was to be watched has ended at its receiver;
     * may be NULL. With on_peer_arg. */
    void (*on_push_end)(void *arg, const struct kvf_push_end *e);
};

/* env is copied. */
int kvf_peers_create(const struct kvf_peers_env *env, struct kvf_peers **out,
                     struct kvf_why *why);
/* Says BYE to getters and hears nothing more from them but the BYE that they
 * answer with. A connection that is closed right behind a message may take the
 * message along, so who leaves in order waits, bounded, for kvf_peers_unheard
 * to become 0. */
void kvf_peers_leave(struct kvf_peers *ps);
/* Getters that have not answered yet. */
unsigned kvf_peers_unheard(const struct kvf_peers *ps);
/* Says BYE to everybody who was not told, ends all claims and asks (asks
 * answered SHUTTING_DOWN), frees everything. */
void kvf_peers_destroy(struct kvf_peers *ps);

/* Admission of what comes from a stage, pulls and pushes alike. */
struct kvf_edge *kvf_peers_edge(struct kvf_peers *ps, uint32_t from);

/* ---- messages from the bound ROUTER ------------------------------------- */

/* A message from a getter. Nothing in it is believed. */
void kvf_peers_on_message(struct kvf_peers *ps, const void *rid, size_t rid_len,
                          const void *data, size_t len);

/* A getter sends but does not read, and too many answers wait for it: its
 * session ends. It may open another when it has read them. */
void kvf_peers_overrun(struct kvf_peers *ps, const void *rid, size_t rid_len);

/* How the rdma transport's handshake travels: links are those of peers,
 * sessions are guests; arg is not used. */
extern const struct kvf_rdma_hooks kvf_peers_rdma_hooks;
/* The verbs device was opened anew: getters are told the keys of regions
 * again. */
void kvf_peers_rdma_renewed(struct kvf_peers *ps);

/* What the bulk transport asks about requests of guests (kvf_serve_ops). */
extern const struct kvf_serve_ops kvf_guest_serve_ops;

/* ---- directory ---------------------------------------------------------- */

/* Sets or replaces where a worker is (op `peer`, [peer] sections). */
int kvf_directory_set(struct kvf_peers *ps, const struct kvf_worker *w,
                      const char *host, uint16_t port, struct kvf_why *why);
/* Where a worker is: set explicitly, else by the port rule on our own host.
 * -KVF_INVALID when neither tells. */
int kvf_directory_find(const struct kvf_peers *ps, const struct kvf_worker *w,
                       char *host, size_t cap, uint16_t *port,
                       struct kvf_why *why);
/* The same; a worker that only the port rule places is on host `near`. */
int kvf_directory_near(const struct kvf_peers *ps, const struct kvf_worker *w,
                       const char *near, char *host, size_t cap, uint16_t *port,
                       struct kvf_why *why);
/* Which worker a get without a complete name means (protocol rule 3): stage
 * (has_stage false: the one predecessor that the edges give), absent rank
 * mapped by from_tp/to_tp, absent replica our own. -KVF_INVALID "name `from`"
 * when that is not exactly one. */
int kvf_directory_map(const struct kvf_peers *ps, bool has_stage,
                      uint32_t stage, bool has_rank, uint32_t rank,
                      bool has_replica, uint32_t replica,
                      struct kvf_worker *out, struct kvf_why *why);

/* ---- owners that we pull from ------------------------------------------- */

enum kvf_peer_state {
    KVF_PEER_DIALING, /* no session yet: HELLO is sent as soon as possible */
    KVF_PEER_UP,
    KVF_PEER_DOWN,   /* had a session, lost it; still trying */
    KVF_PEER_REFUSED /* it told us that it will never talk to us; tried again
                        after a while */
};

/* Somebody (a get) who waits for a peer to come up or wants to know when it
 * goes down. Embedded. Callbacks come from the loop, never from inside. */
struct kvf_peer_user {
    struct kvf_list node;
    struct kvf_peer *peer;
    void (*on_up)(struct kvf_peer_user *u);
    void (*on_down)(struct kvf_peer_user *u, const struct kvf_why *why);
};

/* The peer at an address; dials it when new. -KVF_BUSY at max_peers,
 * -KVF_INVALID when the name is too long, -KVF_NO_SPACE. */
int kvf_peer_at(struct kvf_peers *ps, const char *host, uint16_t port,
                struct kvf_peer **out, struct kvf_why *why);
bool kvf_peer_is_self(const struct kvf_peers *ps, const char *host,
                      uint16_t port);
void kvf_peer_join(struct kvf_peer *p, struct kvf_peer_user *u);
void kvf_peer_leave(struct kvf_peer_user *u); /* idempotent */
enum kvf_peer_state kvf_peer_state(const struct kvf_peer *p);
bool kvf_peer_was_up(const struct kvf_peer *p); /* ever had a session */
/* Who it said it is; NULL before the first WELCOME. */
const struct kvf_worker *kvf_peer_worker(const struct kvf_peer *p);
/* -KVF_MISMATCH when it said that it is another worker; 0 while unknown. */
int kvf_peer_check_worker(const struct kvf_peer *p,
                          const struct kvf_worker *expect, struct kvf_why *why);
/* Its incarnation; NULL before the first WELCOME. */
const struct kvf_id *kvf_peer_incarnation(const struct kvf_peer *p);
/* "0.2" or "host:port" while unknown; for logs. Static per peer. */
const char *kvf_peer_name(const struct kvf_peer *p);
/* When the last message of it came (clock of the sched). */
uint64_t kvf_peer_heard_ns(const struct kvf_peer *p);
/* Why it is not up, in words. */
const struct kvf_why *kvf_peer_why(const struct kvf_peer *p);
/* True when its pool could be opened here and it opened ours. */
bool kvf_peer_has_shm(const struct kvf_peer *p);
/* True while the process is there whose memory the accesses over shm that we
 * hold at it lie in: bytes that were written into it are in place. */
bool kvf_peer_alive(const struct kvf_peer *p);
/* A count that goes up when a window of the peer ends, read from its memory:
 * what was granted at the same count is a window still. 0: not known. */
uint64_t kvf_peer_windows(const struct kvf_peer *p);
/* Why not, in words. */
const char *kvf_peer_shm_why(const struct kvf_peer *p);
/* The link of a transport to it, opened on demand; NULL with why when it has
 * none. */
struct kvf_link *kvf_peer_link(struct kvf_peer *p, enum kvf_protocol proto,
                               struct kvf_why *why);

/* What is to be expected of the rdma link to it (peer_rdma.c). */
enum kvf_peer_rdma {
    KVF_PEER_RDMA_OFF,    /* no session, or one side has no device */
    KVF_PEER_RDMA_COMING, /* it is being set up, or will be: await it */
    KVF_PEER_RDMA_UP
};
enum kvf_peer_rdma kvf_peer_rdma_state(const struct kvf_peer *p);
/* Why it failed last, in words. */
const struct kvf_why *kvf_peer_rdma_why(const struct kvf_peer *p);

/* Somebody who waits for that link. Embedded; its node is initialised, and
 * unlinked by who does not wait any more. */
struct kvf_link_wait {
    struct kvf_list node;
    void (*fn)(struct kvf_link_wait *w, bool up); /* else it has failed */
};
/* True: w->fn comes, once, from the loop; also when the session ends. A link
 * that failed is set up again after its pause. False: not COMING. */
bool kvf_peer_await_rdma(struct kvf_peer *p, struct kvf_link_wait *w);

/* A layout of an engine of another daemon, as that daemon told it (far.c).
 * Counted: its session there, claims on it, pulls that plan with it. */
struct kvf_far {
    uint64_t number; /* the other daemon's */
    int64_t rank;
    struct kvf_side side;
    unsigned n_regions;
    uint64_t *length;
    uint64_t *base; /* where each region begins in the payload */
    uint64_t size;
    struct kvf_peer_space *spaces; /* NULL: not told */
    struct kvf_mapping **maps;     /* NULL: not opened */
    struct kvf_rdma_keys **keys;   /* by region; NULL: not told (all of them) */
    unsigned n_keys;               /* told */
    unsigned refs;
    bool gone; /* its session there has ended */
    struct kvf_list pairs;
    UT_hash_handle hh; /* by number */
};
struct kvf_far *kvf_far_hold(struct kvf_far *f);
void kvf_far_release(struct kvf_far *f);

/* What a far layout and one of ours make of each other; kept with both. */
struct kvf_pair {
    struct kvf_list far_node, own_node;
    struct kvf_far *far;
    struct kvf_layout *own;
    bool far_sends; /* it is P, ours is D; else the other way round */
    int rc;         /* 0, or as kvf_match_make */
    struct kvf_refusal no;
    struct kvf_match match;
};
/* Made at first use, which also logs every field that differs. NULL when out
 * of memory. */
struct kvf_pair *kvf_pair_of(struct kvf_far *far, struct kvf_layout *own,
                             bool far_sends, const char *who);

/* A claim that we hold at an owner (or at our own store). Reference counted by
 * nobody: it has one holder, who ends it exactly once with done or abort. */
struct kvf_grant {
    struct kvf_peer *peer;   /* NULL: our own store */
    struct kvf_claim *local; /* then this */
    uint64_t generation, size, checksum;
    bool has_checksum;
    bool shm;  /* segments are mapped here: view and shm copy are possible */
    bool rdma; /* the owner said where they are registered */
    bool rdma_soon;              /* not yet, but asked again later it will */
    struct kvf_rdma_keys **keys; /* of the regions; segments point to them */
    unsigned n_keys;
    bool write;   /* the segments are mapped for writing */
    bool region;  /* some of them lie in regions, not in the owner's pool */
    bool lost;    /* the owner ended it, or the session is gone */
    bool revoked; /* the owner ended it: its memory may hold other bytes now */
    void *meta;
    size_t meta_len;
    const void *eager; /* the bytes, if they came along: they lie in the
                          message, so they are valid during on_grant only */
    struct kvf_remote remote;
    /* A claim on blocks: of a publication of that layout. Empty otherwise. */
    struct kvf_far *far;
    struct kvf_id tag;
    bool minted;
    int64_t n_tokens;
    struct kvf_ids *ids; /* by group of far->side */
    int64_t *ids_arena;
    char (*paths)[KVF_PEER_PATH]; /* per segment, for views of a remote pool;
                                     "" = the pool of this daemon */
    /* Set by the holder: the claim is not live any more (why says). Called from
     * the loop. */
    void (*on_lost)(struct kvf_grant *g, const struct kvf_why *why);
    void *user;
    struct kvf_grant_private *priv;
};
/* Counts as read / gives it back. Sent again until the owner acknowledges or
 * has another incarnation. g is gone. */
void kvf_grant_done(struct kvf_grant *g);
void kvf_grant_abort(struct kvf_grant *g);
/* This daemon ends: tells a remote owner nothing, which then watches who else
 * may touch the bytes. g is gone. */
void kvf_grant_forget(struct kvf_grant *g);
/* Gives the claim back now and keeps g, as `lost`, to compare the next one
 * with; kvf_grant_abort frees it. Nothing may be moving by it. */
void kvf_grant_give_back(struct kvf_grant *g);
/* For a claim of the own store; takes the claim over. */
struct kvf_grant *kvf_grant_local(struct kvf_peers *ps, struct kvf_claim *claim,
                                  struct kvf_why *why);

/* A lookup under way. Embedded in its get. Exactly one of on_grant and on_deny
 * comes, from the loop, unless it is taken back. on_again: the connection was
 * made anew within the session and the owner has forgotten the lookup; it is
 * not active any more, and the callback asks again (kvf_peer_ask). */
struct kvf_ask {
    struct kvf_peer *peer;
    uint64_t id;
    bool active;
    bool write;      /* what is granted will be written into */
    bool blocks;     /* a grant of blocks is due, and no other */
    bool unheard;    /* in on_deny: the owner was lost and had not heard it */
    uint64_t layout; /* ours that it named; 0 = none */
    bool retold;     /* the owner did not know it, and was told again */
    /* NULL: such an answer is a lie of the owner, and ignored. */
    void (*on_grant)(struct kvf_ask *a, struct kvf_grant *g);
    void (*on_applied)(struct kvf_ask *a, uint64_t generation);
    void (*on_deny)(struct kvf_ask *a, const struct kvf_why *why,
                    uint64_t generation, uint64_t size);
    void (*on_again)(struct kvf_ask *a);
    uint64_t free, largest_free, needed; /* of a DENY with NO_SPACE; else 0 */
    /* kvf_peer_together: what became of the group, instead of on_grant. */
    void (*on_verdict)(struct kvf_ask *a, enum kvf_status status,
                       const char *text);
    /* kvf_peer_ask_layout: the answer, instead of on_grant. */
    void (*on_layout)(struct kvf_ask *a, struct kvf_far *far);
    UT_hash_handle hh; /* by id */
};
/* body->ask is filled in. The peer must be UP. body's strings are copied into
 * the message at once. */
int kvf_peer_ask(struct kvf_peer *p, struct kvf_ask *a,
                 const struct kvf_peer_ask *body, struct kvf_why *why);
/* The other things that are asked (PROTOCOL-PEER.md); as kvf_peer_ask. on_grant
 * is for the first two, on_applied for the last three. */
int kvf_peer_ask_window(struct kvf_peer *p, struct kvf_ask *a,
                        const struct kvf_peer_window_ask *body,
                        struct kvf_why *why);
int kvf_peer_ask_room(struct kvf_peer *p, struct kvf_ask *a,
                      const struct kvf_peer_room_ask *body,
                      struct kvf_why *why);
int kvf_peer_commit(struct kvf_peer *p, struct kvf_ask *a,
                    const struct kvf_peer_commit *body, struct kvf_why *why);
int kvf_peer_notify(struct kvf_peer *p, struct kvf_ask *a,
                    const struct kvf_peer_notify *body, struct kvf_why *why);
/* Which layout there may send to `own`? Waits until one is declared. */
int kvf_peer_ask_layout(struct kvf_peer *p, struct kvf_ask *a,
                        struct kvf_layout *own,
                        const struct kvf_id *incarnation, struct kvf_why *why);
/* One that is known already; NULL when there is none. */
struct kvf_far *kvf_peer_known_layout(struct kvf_peer *p,
                                      struct kvf_layout *own);
/* The blocks of a request on P rank body->rank, for `own`; waits until they are
 * published. ask and layout of body are filled in. */
int kvf_peer_ask_blocks(struct kvf_peer *p, struct kvf_ask *a,
                        struct kvf_layout *own,
                        const struct kvf_peer_blocks_ask *body,
                        struct kvf_why *why);
/* JOIN makes `a` active until the verdict; READY and FAILED are said about it,
 * and after FAILED no callback comes. */
int kvf_peer_together(struct kvf_peer *p, struct kvf_ask *a,
                      const struct kvf_peer_together *body,
                      struct kvf_why *why);
/* A push whose end is wanted. Made before it is asked for; then either it was
 * answered OK, and env.on_push_end is called once (perhaps from inside), or it
 * is dropped. -KVF_BUSY: too many, or no memory. */
#define KVF_WATCHES_MAX 65536u
struct kvf_watch;
int kvf_watch_new(struct kvf_peer *p, const struct kvf_id *push,
                  const char *key, size_t key_len,
                  const struct kvf_id *publisher, struct kvf_watch **out,
                  struct kvf_why *why);
void kvf_watch_published(struct kvf_watch *w, uint64_t generation);
void kvf_watch_drop(struct kvf_watch *w);
/* A generation of our store is quiet (kvf_store_ops.on_retired). True: it was
 * pushed by another daemon, which is told. */
bool kvf_peers_retired(struct kvf_peers *ps, const struct kvf_gen *gen,
                       enum kvf_retire reason);
/* No callback will come; a grant that arrives later is aborted. Idempotent. */
void kvf_peer_unask(struct kvf_ask *a);

/* Tells every owner that views of an earlier start are unmapped
 * (hello.unmapped). */
void kvf_peers_unmapped(struct kvf_peers *ps, const struct kvf_peer_gone *gone);

/* From now on pushes of others are refused; those that have room go on. */
void kvf_peers_drain(struct kvf_peers *ps);

/* The configuration has changed (SIGHUP): timers that run follow it. */
void kvf_peers_configure(struct kvf_peers *ps);

/* ---- introspection ------------------------------------------------------ */

struct kvf_peers_gauges {
    unsigned peers, peers_up, guests, guests_up;
    unsigned asks;         /* our lookups without an answer */
    unsigned grants;       /* claims we hold at others */
    unsigned unacked;      /* DONE and ABORT not acknowledged yet */
    unsigned guest_asks;   /* gets of others parked here */
    unsigned guest_claims; /* claims of others on our keys */
    unsigned windows;      /* that our engines expose */
    unsigned accesses;     /* of others to windows and rooms */
    unsigned rooms;        /* pushes of others under way */
    unsigned watches;      /* our pushes whose end is awaited */
    unsigned pushed;       /* those of others here */
};
void kvf_peers_gauges(const struct kvf_peers *ps, struct kvf_peers_gauges *g);
struct kvf_peer_info {
    bool guest; /* false: we dial it; true: it dials us */
    const char *name, *host, *state, *transport, *why;
    uint16_t port;
    uint64_t asks, claims, silent_ms;
};
void kvf_peers_list(const struct kvf_peers *ps,
                    void (*fn)(void *arg, const struct kvf_peer_info *info),
                    void *arg);
#endif
