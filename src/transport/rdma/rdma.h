/* rdma transport: RC queue pairs, one-sided READ and WRITE.
 *
 * Getter's side: a link is one QP with a completion queue of its own. It is set
 * up through messages that somebody else carries (struct kvf_rdma_hooks: the
 * peer layer, over the metadata channel), proves itself with a READ of one page
 * of the owner's pool, and is then up.
 * Owner's side: one QP for each session that connected; nothing is posted to
 * it, the device answers by itself. Whoever has such a QP can reach every byte
 * that is registered (see docs/internals/rdma.md), so it is given to sessions
 * only, and destroyed before memory that its session may read is used again.
 *
 * Nothing blocks but kvf_rdma_create and kvf_rdma_add_pool (before the daemon
 * is ready). One thread. */
#ifndef KVF_TRANSPORT_RDMA_RDMA_H
#define KVF_TRANSPORT_RDMA_RDMA_H

#include "loop/reactor.h"
#include "transport/rdma/handshake.h"
#include "transport/transport.h"

struct kvf_verbs;
struct kvf_rdma_memory;

struct kvf_rdma_conf {
    char device[64];    /* "auto", "mlx5_0" or "mlx5_0:1" */
    char prefer[64];    /* numeric address the daemon advertises; "" = none:
                           auto takes the device that has it */
    int32_t gid_index;  /* -1 = by the route to the peer */
    uint32_t mtu;       /* largest path MTU in bytes; 0 = the port's */
    uint32_t timeout;   /* 4.096 us * 2^timeout until a packet is repeated */
    uint32_t retry;     /* repeats, 0 to 7 */
    uint32_t rnr_retry; /* 7 = for ever */
    uint64_t chunk;     /* bytes of one op of a contiguous transfer */
    uint64_t burst;     /* bytes that one turn of the loop posts at most: some
                           devices move them inside ibv_post_send */
    uint32_t depth;     /* ops of one transfer in flight */
    uint32_t queue;     /* work requests of one link in flight */
    uint32_t signal_every; /* ops from one signalled completion to the next */
    uint32_t spin_us;      /* stay awake so long after a completion while work
                              requests are in flight; 0 = never */
    uint64_t connect_ms;   /* a link that is not up by then has failed */
    uint64_t stall_ms;     /* no completion for so long: the link has failed */
    uint64_t piece;        /* bytes registered at once; 0 = 16 MiB */
    struct kvf_id self;    /* this daemon; zeros: no connection carries both
                              ways */
};

/* How the handshake travels. All but `expelled` may be called from inside a
 * call into the transport (a link that is closed ends the guest that shares its
 * connection) and must not call back. */
struct kvf_rdma_hooks {
    /* Getter: asks the owner that `link` leads to. An error fails the link. */
    int (*connect)(void *arg, struct kvf_link *link,
                   const struct kvf_rdma_connect *c, struct kvf_why *why);
    /* Getter: the owner may forget the QP of that try. */
    void (*disconnect)(void *arg, struct kvf_link *link, uint64_t id,
                       const char *text);
    /* Owner: answers of kvf_rdma_on_connect. */
    void (*accept)(void *arg, void *session, const struct kvf_rdma_accept *a);
    void (*refuse)(void *arg, void *session, uint64_t id,
                   const struct kvf_why *why);
    /* Owner: a QP that had been accepted is no more. */
    void (*closed)(void *arg, void *session, uint64_t id,
                   const struct kvf_why *why);
    /* The device failed (up false), or has been opened again: then the keys of
     * registered memory are other ones, those of the pool with each handshake.
     * May be NULL. */
    void (*device)(void *arg, bool up, const char *text);
    /* Owner: kvf_rdma_expel said false, and now nothing of the session's can
     * touch memory. From the loop; may call back. */
    void (*expelled)(void *arg, void *session);
};

/* Opens the device, finds port and GIDs.
 *   -KVF_NOT_FOUND    no such device, or none at all
 *   -KVF_UNSUPPORTED  it has no active port, or cannot READ
 *   -KVF_INTERNAL, -KVF_NO_SPACE  a call failed (the text says what to do) */
int kvf_rdma_create(struct kvf_reactor *r, const struct kvf_verbs *v,
                    const struct kvf_rdma_conf *conf,
                    const struct kvf_rdma_hooks *hooks, void *hooks_arg,
                    struct kvf_stats *stats, struct kvf_transport **out,
                    struct kvf_why *why);
/* Takes new figures (SIGHUP): those of links apply to new ones. */
void kvf_rdma_configure(struct kvf_transport *t,
                        const struct kvf_rdma_conf *conf);
/* "mlx5_0:1 Ethernet mtu=4096 gid=3 (10.0.0.1, RoCE v2)", for the log. */
const char *kvf_rdma_describe(const struct kvf_transport *t);
/* Longest time, ns, that the device needs to notice a dead peer by the plain
 * formula (devices may take up to four times as long). */
uint64_t kvf_rdma_budget_ns(const struct kvf_rdma_conf *conf);

/* ---- memory ------------------------------------------------------------- */

/* Registers [base, base+size) now, in pieces; once, before any link. Others may
 * read it from offset 0 on. */
int kvf_rdma_add_pool(struct kvf_transport *t, void *base, uint64_t size,
                      struct kvf_why *why);
/* Registers a mapping in slices of the loop (while the device is broken: when
 * it is back), held until it is deregistered again. Mapped twice counts twice.
 * NULL: no memory (then its bytes move another way). */
struct kvf_rdma_memory *kvf_rdma_memory_add(struct kvf_transport *t,
                                            struct kvf_mapping *map);
/* Not all of it is registered yet, but soon will be. NULL is not. */
bool kvf_rdma_memory_pending(const struct kvf_rdma_memory *m);
/* NULL is fine. */
void kvf_rdma_memory_drop(struct kvf_rdma_memory *m);
/* The registered pieces that hold [offset, offset+length) of it; at most max.
 * Returns how many, 0 when not all of it is registered (yet) or they are more.
 * *first: where the first piece begins in the mapping. */
unsigned kvf_rdma_memory_keys(const struct kvf_rdma_memory *m, uint64_t offset,
                              uint64_t length, struct kvf_rdma_key *out,
                              unsigned max, uint64_t *first);

/* ---- handshake: what came ----------------------------------------------- */

/* Owner: serves the session (an older connection of it ends) over a new QP or,
 * where both ends can, the one that our link to that daemon has; answers by
 * hooks.accept or hooks.refuse, later. `who`: that daemon; NULL: not known. */
void kvf_rdma_on_connect(struct kvf_transport *t, void *session,
                         const struct kvf_id *who,
                         const struct kvf_rdma_connect *c);
/* Getter. `expect` (may be NULL): incarnation that the owner's pool must have.
 * Answers to an earlier try are ignored. */
void kvf_rdma_on_accept(struct kvf_link *link, const struct kvf_rdma_accept *a,
                        const struct kvf_id *expect);
void kvf_rdma_on_refuse(struct kvf_link *link, uint64_t id,
                        enum kvf_status status, const char *text);
/* Either side: the other's QP is gone. */
void kvf_rdma_on_owner_closed(struct kvf_link *link, uint64_t id,
                              const char *text);
void kvf_rdma_on_getter_closed(struct kvf_transport *t, void *session,
                               uint64_t id);
/* Owner: takes the session's QP down. True: nothing of the session's can touch
 * memory any more. False: it is in ERR and will be destroyed, half a second
 * from now or when the device agrees; hooks.expelled follows. */
bool kvf_rdma_expel(struct kvf_transport *t, void *session);
/* Owner: has the session a QP that it was told of? */
bool kvf_rdma_accepted(const struct kvf_transport *t, const void *session);
/* Owner: may the session write? Off for a new QP. The setting stays for QPs to
 * come. Returns false when the device refused. */
bool kvf_rdma_allow_write(struct kvf_transport *t, void *session, bool on);

/* ---- introspection ------------------------------------------------------ */

struct kvf_rdma_gauges {
    unsigned qps, cqs, mrs;   /* that exist */
    uint64_t mr_bytes;        /* registered */
    unsigned links, links_up; /* getter's side; dying ones included */
    unsigned dying;           /* links and guests on their way out */
    unsigned guests;          /* owner's side: sessions with a QP */
    uint64_t wrs_in_flight;   /* posted, not completed */
    bool port_up, fatal;
};
void kvf_rdma_gauges(const struct kvf_transport *t, struct kvf_rdma_gauges *g);
#endif
