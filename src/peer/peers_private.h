/* What the files of this folder share; nobody else includes it. */
#ifndef KVF_PEER_PEERS_PRIVATE_H
#define KVF_PEER_PEERS_PRIVATE_H

#include "peer/peers.h"

#define KVF_ADDR_TEXT (KVF_CONF_TEXT + 8) /* "host:port" */
#define KVF_ENDED_BATCH 64
#define KVF_GONE_MAX 256 /* notices of unmapped views that are remembered */

struct kvf_place { /* where a worker is, set explicitly */
    struct kvf_worker worker;
    char host[KVF_CONF_TEXT];
    uint16_t port;
    UT_hash_handle hh;
};

/* A DONE or ABORT that the owner has not acknowledged yet. */
struct kvf_end {
    uint64_t claim;
    struct kvf_id token;
    bool done; /* else abort */
    uint64_t sent_ns;
    UT_hash_handle hh;
};

/* A message that found no room; sent when the channel is writable again. */
struct kvf_queued {
    struct kvf_list node;
    size_t len;
    uint8_t data[];
};

/* Which of our layouts the other side of a connection knows. */
struct kvf_told {
    uint64_t *numbers;
    unsigned n, cap;
};

/* An owner that we dial. */
struct kvf_peer {
    struct kvf_peers *ps;
    char addr[KVF_ADDR_TEXT];
    char host[KVF_CONF_TEXT];
    uint16_t port;
    enum kvf_peer_state state;
    bool was_up, known, shm_ok;
    bool renewing; /* UP, but the owner does not know this connection: HELLO is
                      sent again, lookups wait for its WELCOME */
    struct kvf_worker worker;  /* when known */
    struct kvf_id incarnation; /* when known */
    char name[KVF_ADDR_TEXT];
    struct kvf_why why;
    char shm_why[260];
    struct kvf_dial *dial;
    struct kvf_timer tick;
    uint64_t last_rx_ns, last_hello_ns, down_since_ns, ping_seq;
    uint64_t doubt_from; /* asks from here on it may not have heard */
    uint64_t pinged_ask; /* what was next when the last PING went */
    struct kvf_log_limit log_up, log_renewed, log_down;
    struct kvf_list users;
    struct kvf_ask *asks;             /* by id */
    struct kvf_grant_private *grants; /* by claim id */
    struct kvf_end *ends;             /* by claim id */
    struct kvf_far *fars;             /* layouts of its engines */
    bool far_evicted;                 /* one of those, since the last WELCOME */
    struct kvf_told told;
    struct kvf_list watches; /* our pushes there (retired.c) */
    struct kvf_list outq;
    struct kvf_mapping *pool_map;
    struct kvf_mapping *pool_rw; /* for writing; made with the first such grant
                                    and kept, since its pages fill up slowly */
    char pool_path[KVF_PEER_PATH];
    uint64_t pid, start; /* of its process; with shm_ok */
    uint64_t link;       /* tells this one from others to the same owner */
    uint64_t timeout_ms; /* the owner's peer_timeout_ms; 0: not told */
    struct kvf_proc_watch *watch; /* made with the first access over shm */
    bool gone;                    /* its process has ended */
    struct kvf_link tcp, shm, rdma;
    struct kvf_link_addr tcp_addr;
    bool has_tcp;
    bool has_rdma;          /* both have a device */
    unsigned rdma_fails;    /* in a row */
    uint64_t rdma_again_ns; /* not before that */
    uint64_t rdma_up_ns;
    struct kvf_why rdma_why;              /* it failed last */
    struct kvf_list awaiting, await_told; /* kvf_link_wait */
    bool await_up;                        /* what those told hear */
    struct kvf_task await_task;
    struct kvf_timer await_timer; /* the link is set up again */
    UT_hash_handle hh;            /* by addr */
};

struct kvf_grant_private {
    struct kvf_grant *g;
    struct kvf_peer *peer;
    uint64_t claim;
    UT_hash_handle hh;
};

/* A process of a getter that maps our memory for a view. */
struct kvf_engine_watch {
    struct kvf_guest *guest;
    uint64_t pid, start;
    unsigned claims;
    bool gone;
    bool unmapped; /* it says so; counts once its daemon has ended */
    struct kvf_proc_watch *watch;
    struct kvf_list node; /* in guest->engines */
};

/* A get of a guest that waits here. */
struct kvf_guest_ask {
    struct kvf_waiter waiter;
    struct kvf_guest *guest;
    uint64_t id;
    uint64_t eager_max, view_pid, view_start;
    bool want_shm;
    enum kvf_mode mode;
    /* A lookup of blocks, or of a layout (then in layout_wait). */
    bool blocks, layout;
    struct kvf_far *far; /* the getter's layout */
    bool has_tag;
    struct kvf_id tag;
    struct kvf_layout_wait layout_wait;
    UT_hash_handle hh; /* by id */
};

#define KVF_ACCESS_BIT (1ull << 63) /* in a claim's id: see access.h */
#define KVF_MEMO_MAX 16384u
struct kvf_memo { /* memo.c */
    struct kvf_memo_entry *table;
    unsigned n;
};

/* A getter that dialled us. */
struct kvf_guest {
    struct kvf_peers *ps;
    struct kvf_worker worker;
    /* The hash key: a daemon that knows us by two addresses has two sessions
     * here, each with claims and a silence of its own. */
    uint64_t link;
    struct kvf_id incarnation;
    char name[48];
    uint8_t rid[KVF_RID_MAX];
    size_t rid_len;
    bool up, daemon_gone, shm_ok, admitted;
    bool rdma;       /* it has a verbs device */
    bool rdma_stuck; /* its QP is not gone yet: claims over it stay */
    char shm_why[160];
    uint8_t secret[KVF_SECRET_LEN];
    uint64_t last_rx_ns;
    struct kvf_timer tick;
    uint64_t
        ended[KVF_ENDED_BATCH]; /* acknowledgements that wait for company */
    unsigned n_ended;
    struct kvf_timer ended_timer;
    struct kvf_guest_ask *asks;
    struct kvf_far *fars; /* layouts of its engines */
    struct kvf_told told;
    struct kvf_told told_keys; /* layouts whose keys it was told */
    struct kvf_list together;  /* its pulls that meet here */
    struct kvf_list claims;    /* kvf_claim.holder_node */
    struct kvf_list accesses;  /* kvf_access.guest_node */
    struct kvf_list rooms;     /* kvf_room.guest_node */
    unsigned rdma_writes;      /* accesses by which its QP may write */
    struct kvf_list engines;
    struct kvf_mapping *pool_map; /* proves that we may believe its pid */
    struct kvf_proc_watch *watch;
    uint64_t eager_bytes;  /* sent in GRANTs that were not ended yet */
    uint64_t meta_bytes;   /* likewise */
    UT_hash_handle hh;     /* by link and incarnation */
    UT_hash_handle hh_rid; /* by rid */
};

#define KVF_GUEST_LIMITS 64
struct kvf_guest_limits {
    struct kvf_log_limit up, down;
};

struct kvf_peers {
    struct kvf_peers_env env;
    struct kvf_place *places;
    struct kvf_peer *peers;
    struct kvf_guest *guests, *guests_by_rid;
    struct kvf_group_of *groups; /* together.c */
    struct kvf_edge edge[KVF_STAGES];
    struct kvf_access *accesses; /* by id */
    uint64_t next_access;
    struct kvf_window *windows, *windows_by_id;
    uint64_t windows_ended;          /* as our pool's header tells it */
    struct kvf_room *rooms;          /* by the push's id */
    struct kvf_memo pushes, notices; /* done already */
    struct kvf_watch *watches;       /* by the push's id (retired.c) */
    struct kvf_pushed *pushed;       /* by generation */
    struct kvf_list pushed_over;     /* retired, not seen by the sender yet */
    unsigned n_pushed_over;
    bool draining;
    struct kvf_mpw w;
    uint64_t next_ask, next_link;
    struct kvf_peer_gone gone[KVF_GONE_MAX];
    unsigned n_gone;
    struct kvf_log_limit log_bad, log_refused;
    struct kvf_guest_limits guest_limits[KVF_GUEST_LIMITS]; /* by worker */
    bool leaving; /* BYE is said; from getters only theirs is heard */
    bool closing;
};

/* Fills in the head of an outgoing message. */
void kvf_peers_head(const struct kvf_peers *ps, struct kvf_peer_msg *m,
                    enum kvf_peer_type type, const struct kvf_id *to);
/* Silence after which the other side is down: a little less than
 * peer_timeout_ms, so that the requests that depend on it are answered within
 * that time. */
uint64_t kvf_peers_silence_ns(const struct kvf_peers *ps);
/* From one PING to the next: often enough for the side that is the sooner to
 * take silence for death. */
uint64_t kvf_peer_ping_ns(const struct kvf_peer *p);
/* Checks version, cluster and who it is for. *status for a REFUSE. */
int kvf_peers_check_head(const struct kvf_peers *ps,
                         const struct kvf_peer_head *h, struct kvf_why *why);

/* peer.c */
/* Says HELLO again within the session: both sides forget what was told, and
 * lookups are asked again. */
void kvf_peer_renew(struct kvf_peer *p);
/* Dials a peer that is in the table; and hangs up, closing its links. */
void kvf_peer_begin(struct kvf_peer *p);
void kvf_peer_end(struct kvf_peer *p);
/* peer_send.c */
/* 0 also when it waits for room; -KVF_NO_SPACE. */
int kvf_peer_send(struct kvf_peer *p, struct kvf_peer_msg *m);
/* What waits is sent, or thrown away. */
void kvf_peer_flush_queue(struct kvf_peer *p);
void kvf_peer_drop_queue(struct kvf_peer *p);
/* Now or not at all: the tick says it again. */
void kvf_peer_send_hello(struct kvf_peer *p);
void kvf_peer_send_ping(struct kvf_peer *p);
/* peer_ways.c */
void kvf_peer_close_tcp(struct kvf_peer *p);
void kvf_peer_close_shm(struct kvf_peer *p);
/* Can its pool be opened here? Both sides must have managed. m: its WELCOME. */
void kvf_peer_open_shm(struct kvf_peer *p, const struct kvf_peer_msg *m);
/* Its bulk port, secret and time-out, of a WELCOME. */
void kvf_peer_take_terms(struct kvf_peer *p, const struct kvf_peer_msg *m);
/* peer_rdma.c */
void kvf_peer_rdma_init(struct kvf_peer *p);
/* The session is up: connects at once where rdma is what gets will use. */
void kvf_peer_rdma_start(struct kvf_peer *p, bool offered);
void kvf_peer_rdma_stop(struct kvf_peer *p);
/* The owner is another process now: stops, and what went wrong with the one
 * before says nothing about this one. */
void kvf_peer_rdma_forget(struct kvf_peer *p);
struct kvf_link *kvf_peer_rdma_link(struct kvf_peer *p, struct kvf_why *why);
/* Sets the link up anew, unless it is up or on its way. */
void kvf_peer_rdma_again(struct kvf_peer *p);
void kvf_peer_rdma_message(struct kvf_peer *p, const struct kvf_peer_msg *m);
/* The regions of a far layout as the segments of a claim over rdma. */
bool kvf_peer_rdma_regions(struct kvf_peer *p, struct kvf_grant *g);
/* Fills in an RDMA_REFUSE or RDMA_CLOSE. */
void kvf_peers_rdma_word(struct kvf_peer_msg *m, uint64_t id,
                         enum kvf_status status, const char *text);
/* guest_rdma.c */
void kvf_guest_rdma_message(struct kvf_guest *g, const struct kvf_peer_msg *m);
/* Takes the guest's QP down; false: it is not quiet yet. */
bool kvf_guest_rdma_expel(struct kvf_guest *g);
/* Fills m->rdma and m->keys; segs and spaces are there. */
void kvf_guest_rdma_describe(struct kvf_guest *g, const struct kvf_gen *gen,
                             struct kvf_peer_grant *m);
void kvf_guest_rdma_described(struct kvf_peer_grant *m);
/* Tells the guest, once, where the regions of a layout that it knows are
 * registered. False: not all of them are, or its handshake did not succeed. */
bool kvf_guest_rdma_tell(struct kvf_guest *g, const struct kvf_layout *l);
/* True: not now, but the handshake or the registration is under way. */
bool kvf_guest_rdma_soon(struct kvf_guest *g, const struct kvf_layout *l);
/* The owner's of kvf_peers_rdma_hooks; session: a guest. */
void kvf_guest_rdma_hook_accept(void *arg, void *session,
                                const struct kvf_rdma_accept *a);
void kvf_guest_rdma_hook_refuse(void *arg, void *session, uint64_t id,
                                const struct kvf_why *why);
void kvf_guest_rdma_hook_closed(void *arg, void *session, uint64_t id,
                                const struct kvf_why *why);
void kvf_guest_rdma_hook_expelled(void *arg, void *session);
/* peer_await.c */
void kvf_peer_await_init(struct kvf_peer *p);
void kvf_peer_await_end(struct kvf_peer *p);
/* The link is up, or has failed: tells those who wait. */
void kvf_peer_await_tell(struct kvf_peer *p, bool up);
/* peer_table.c */
void kvf_peer_free(struct kvf_peer *p);
/* Says BYE to a peer that is up and takes messages. */
void kvf_peer_bye(struct kvf_peer *p, const char *text);
/* grant_open.c */
void kvf_peer_on_grant(struct kvf_peer *p, struct kvf_peer_msg *m);
/* grant.c */
void kvf_peer_on_ended(struct kvf_peer *p, uint64_t claim);
void kvf_peer_ended_message(struct kvf_peer *p, const struct kvf_peer_msg *m);
void kvf_peer_on_revoked(struct kvf_peer *p, uint64_t claim, const char *text);
void kvf_peer_lose_grants(struct kvf_peer *p, bool shm_too,
                          const struct kvf_why *why);
void kvf_peer_send_ends(struct kvf_peer *p, uint64_t not_before_ns);
void kvf_peer_drop_ends(struct kvf_peer *p);
/* What a HELLO lists: claims held, and ends without an acknowledgement. out has
 * room for both; returns how many. */
unsigned kvf_peer_live_claims(const struct kvf_peer *p, uint64_t *out);
/* retired.c: RETIRED came; what it had is gone for good (or for so long that
 * nobody waits for it); we go ourselves */
void kvf_peer_on_retired(struct kvf_peer *p, const struct kvf_peer_retired *r);
void kvf_peer_gone(struct kvf_peer *p);
void kvf_peer_drop_watches(struct kvf_peer *p);
/* far.c */
#define KVF_FARS_MAX 256u
/* Empties the message. At the bound the one that nobody holds and that was not
 * used for longest goes; -KVF_BUSY when all are held, -KVF_NO_SPACE;
 * -KVF_EXISTS when that number is known already (nothing changes). */
int kvf_far_add(struct kvf_far **table, struct kvf_peer_msg *m,
                struct kvf_stats *stats);
struct kvf_far *kvf_far_find(struct kvf_far *table, uint64_t number);
/* The same, and it is the one used last. */
struct kvf_far *kvf_far_use(struct kvf_far **table, uint64_t number);
/* At the bound, and all of them are held? */
bool kvf_fars_full(struct kvf_far *table);
void kvf_far_drop(struct kvf_far **table, uint64_t number);
void kvf_far_drop_all(struct kvf_far **table);
/* Maps all of its regions; false: not possible here. */
bool kvf_far_map(struct kvf_far *f, struct kvf_map_cache *maps);
void kvf_pairs_forget(struct kvf_layout *own);
/* True when it was not known to be told; remembers it. */
bool kvf_told_new(struct kvf_told *t, uint64_t number);
bool kvf_told_drop(struct kvf_told *t, uint64_t number);
void kvf_told_clear(struct kvf_told *t);
/* Writes LAYOUT of an own layout into m. places: also where its regions can be
 * mapped. What it allocates is freed by kvf_layout_msg_free. */
int kvf_layout_msg(struct kvf_peer_msg *m, const struct kvf_layout *l,
                   bool places);
void kvf_layout_msg_free(struct kvf_peer_msg *m);
/* Tells everybody who knows it that it is gone. */
void kvf_peers_layout_end(void *peers, struct kvf_layout *l);
/* peer_blocks.c */
void kvf_peer_forget_layouts(struct kvf_peer *p);
/* LAYOUT, LAYOUT_GONE, LAYOUT_IS, BLOCKS_GRANT, VERDICT. */
void kvf_peer_blocks_message(struct kvf_peer *p, struct kvf_peer_msg *m);
/* together.c */
void kvf_guest_on_together(struct kvf_guest *g,
                           const struct kvf_peer_together *b);
bool kvf_guest_leave_together(struct kvf_guest *g, uint64_t ask);
void kvf_guest_drop_together(struct kvf_guest *g);
void kvf_together_free_all(struct kvf_peers *ps);
/* grant.c: a claim that nobody wants */
void kvf_peer_refuse_claim(struct kvf_peer *p, uint64_t claim,
                           const struct kvf_id *token);
/* Makes g one of p's claims; false when out of memory. */
bool kvf_grant_enter(struct kvf_grant *g, struct kvf_peer *p, uint64_t claim);
void kvf_grant_drop(struct kvf_grant *g); /* frees, tells nobody */
/* guest_blocks.c */
void kvf_guest_on_layout(struct kvf_guest *g, struct kvf_peer_msg *m);
void kvf_guest_on_layout_ask(struct kvf_guest *g,
                             const struct kvf_peer_layout_ask *ask);
void kvf_guest_on_blocks_ask(struct kvf_guest *g,
                             const struct kvf_peer_blocks_ask *ask);
/* ask.c */
int kvf_ask_send(struct kvf_peer *p, struct kvf_ask *a, struct kvf_peer_msg *m,
                 struct kvf_why *why);
void kvf_peer_on_deny(struct kvf_peer *p, const struct kvf_peer_msg *m);
void kvf_peer_on_applied(struct kvf_peer *p, const struct kvf_peer_msg *m);
void kvf_peer_fail_asks(struct kvf_peer *p, const struct kvf_why *why);
/* From that ask on nobody has said that the owner heard us; until its PONG. */
void kvf_peer_doubt(struct kvf_peer *p, uint64_t first);
void kvf_peer_on_pong(struct kvf_peer *p);
/* The session was renewed: the owner has dropped our lookups. */
void kvf_peer_repeat_asks(struct kvf_peer *p);
struct kvf_ask *kvf_peer_find_ask(struct kvf_peer *p, uint64_t id);
void kvf_peer_ask_over(struct kvf_ask *a);
/* guest.c */
void kvf_guest_free(struct kvf_guest *g, const char *reason);
/* Says BYE to a guest that is up. */
void kvf_guest_bye(struct kvf_guest *g, const char *reason);
void kvf_guest_down(struct kvf_guest *g, const char *reason);
struct kvf_guest *kvf_guest_by_rid(struct kvf_peers *ps, const void *rid,
                                   size_t len);
/* A session of that daemon which is up, or NULL. O(guests). */
struct kvf_guest *kvf_guest_up(const struct kvf_peers *ps,
                               const struct kvf_id *incarnation);
void kvf_guest_hello(struct kvf_peers *ps, const void *rid, size_t rid_len,
                     struct kvf_peer_msg *m);
void kvf_guest_answer(struct kvf_guest *g, struct kvf_peer_msg *m,
                      const void *payload, size_t payload_len);
/* No QP of its session can touch memory any more. */
void kvf_guest_expelled(struct kvf_guest *g);
/* Deletes a guest that is down and holds nothing. */
void kvf_guest_settle(struct kvf_guest *g);
/* guest_asks.c */
void kvf_guest_say_no(struct kvf_guest *g, uint64_t ask, enum kvf_status status,
                      const char *text);
/* NULL when the id is in use or there is no memory (answered then). */
struct kvf_guest_ask *kvf_guest_ask_new(struct kvf_guest *g, uint64_t id);
void kvf_guest_ask_free(struct kvf_guest_ask *a);
void kvf_guest_on_ask(struct kvf_guest *g, const struct kvf_peer_ask *ask);
void kvf_guest_on_unask(struct kvf_guest *g, uint64_t id);
void kvf_guest_drop_asks(struct kvf_guest *g);
/* guest_claims.c */
/* A live claim on a key or on blocks. */
struct kvf_claim *kvf_peers_claim(const struct kvf_peers *ps, uint64_t id);
/* The process that will map a view, watched from its first claim to its last;
 * NULL when it cannot be. */
struct kvf_engine_watch *kvf_guest_hold_engine(struct kvf_guest *g,
                                               uint64_t pid, uint64_t start);
void kvf_guest_claim_end(struct kvf_claim *c, bool done);
void kvf_guest_on_end(struct kvf_guest *g, uint64_t claim,
                      const struct kvf_id *token, bool done);
/* Sends the acknowledgements that wait. */
void kvf_guest_flush_ended(struct kvf_guest *g);
/* Ends claims: those not over shm, or all. */
void kvf_guest_abort_claims(struct kvf_guest *g, bool shm_too);
/* Ends what the HELLO does not list; fills `dead` with what it lists in vain.
 */
unsigned kvf_guest_reconcile(struct kvf_guest *g, const uint64_t *live,
                             unsigned n_live, uint64_t *dead);
/* Ends shm claims all of whose processes are gone. */
void kvf_guest_reap(struct kvf_guest *g);
void kvf_guest_unmapped(struct kvf_peers *ps, const struct kvf_peer_gone *gone);
#endif
