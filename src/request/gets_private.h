/* What the files of a get share; nobody else includes it. */
#ifndef KVF_REQUEST_GETS_PRIVATE_H
#define KVF_REQUEST_GETS_PRIVATE_H

#include "memory/checksum.h"
#include "request/get_machine.h"
#include "request/gets.h"
#include "request/retry.h"
#include "transport/xfer.h"

struct kvf_gets {
    struct kvf_gets_env env;
    struct kvf_list all; /* kvf_get.node */
    unsigned running;
    struct kvf_view *views;
    struct kvf_link local_link; /* copies payloads of this daemon */
};

/* What a get needs only while bytes move; a parked one does without. */
struct kvf_get_pull {
    struct kvf_get *get;
    struct kvf_xfer xfer;
    struct kvf_checksum checksum;
    struct iovec *iov;
    unsigned n_iov;
};

struct kvf_get {
    struct kvf_list node;
    struct kvf_gets *gs;
    struct kvf_get_machine m;
    const struct kvf_get_ops *ops;
    void *arg;
    bool silent; /* its session ended: no reply */
    bool stopping;
    bool overdue; /* held beyond its deadline */

    /* the request */
    char *key;
    size_t key_len;
    bool has_generation, has_incarnation, wait, can_map;
    bool has_expect;
    uint64_t generation;
    struct kvf_id incarnation;
    enum kvf_mode mode;
    struct kvf_seg *into;
    unsigned n_into;
    uint64_t pid, start;
    const void *owner;
    struct kvf_list *owner_list, *view_list;

    /* where */
    struct kvf_worker expect; /* who must be at the address */
    char *host;
    char *cause; /* of the last broken attempt, for the RETRY line */
    uint16_t port;
    bool self; /* this daemon is the owner */
    struct kvf_peer *peer;
    struct kvf_peer_user user;
    struct kvf_ask ask;
    struct kvf_waiter waiter;

    /* what came */
    struct kvf_grant *grant;
    struct kvf_buffer *buffer;
    struct kvf_get_pull *pull;
    void *stash; /* inline bytes of a held get */
    const void *payload;
    const char *transport;
    struct kvf_retry retry;
    enum kvf_mode got; /* mode of the result */

    struct kvf_edge_wait edge; /* admission */

    /* time */
    struct kvf_timer deadline, pause;
    struct kvf_task task;
    uint64_t t_start, t_asked, t_granted, deadline_ns;

    /* how it ends */
    enum kvf_status status;
    bool has_size, has_space;
    uint64_t size, needed;
    char *text;
};

/* gets.c */
void kvf_get_feed(struct kvf_get *g, enum kvf_get_event e);
/* Sets status and text (first cause wins). */
void kvf_get_because(struct kvf_get *g, enum kvf_status status, const char *fmt,
                     ...) __attribute__((format(printf, 3, 4)));
/* because + STOP */
void kvf_get_stop(struct kvf_get *g, const struct kvf_why *why);
/* Deadline, pause and task: what the machine hears when they run. */
void kvf_get_init_time(struct kvf_get *g);
/* get_start.c */
/* Frees g after its reply. */
void kvf_get_release(struct kvf_get *g);
/* get_locate.c */
void kvf_get_begin(struct kvf_get *g);
void kvf_get_ask(struct kvf_get *g);
void kvf_get_unask(struct kvf_get *g);
/* get_grant.c */
/* Takes over the grant; the one before is given back. */
void kvf_get_on_grant(struct kvf_get *g, struct kvf_grant *grant);
/* get_pull.c */
void kvf_get_admit(struct kvf_get *g);
void kvf_get_on_enter(struct kvf_edge_wait *w);
void kvf_get_pull(struct kvf_get *g);
void kvf_get_cancel_pull(struct kvf_get *g);
void kvf_get_backoff(struct kvf_get *g);
/* The link that was waited for is up, or has failed. */
void kvf_get_on_link(struct kvf_retry *r);
void kvf_get_verify(struct kvf_get *g);
void kvf_get_pull_free(struct kvf_get *g);
/* get_reply.c */
void kvf_get_finish(struct kvf_get *g);
void kvf_get_fail(struct kvf_get *g);
const char *kvf_get_owner_name(const struct kvf_get *g);
/* view.c */
struct kvf_view *kvf_view_new(struct kvf_get *g);
#endif
