/* Clients: sockets of engines, known by routing id and Peer-Address. A newcomer
 * that takes over a routing id from another address is another client. The
 * table is bounded; of too many, the idle ones without a session go first. */
#ifndef KVF_DAEMON_CLIENT_H
#define KVF_DAEMON_CLIENT_H

#include "daemon/server.h"

#include <sys/types.h>

struct kvf_call;

struct kvf_client {
    struct kvf_server *server;
    uint64_t serial; /* never repeats */
    uint8_t rid[KVF_RID_MAX];
    size_t rid_len;
    char address[80]; /* Peer-Address */
    bool has_cred;    /* ipc: the next two are the kernel's word */
    uid_t uid;
    pid_t pid;                   /* 0 = not visible from here */
    bool dealer;                 /* its last message had no delimiter */
    bool dead;                   /* its routing id is not its own any more */
    bool events;                 /* asked for peer, drain, pool_low */
    struct kvf_session *session; /* NULL = none */
    struct kvf_list session_node, lru_node, event_node;
    struct kvf_list pending; /* struct kvf_pending */
    unsigned outstanding;    /* their number */
    unsigned notify;         /* puts whose `retired` event is due */
    uint64_t busy_since_ns;  /* window of the next */
    unsigned busy_recent;    /* BUSY answers of this second */
    UT_hash_handle hh, hh_serial;
};

/* The client of a message, made when new. NULL: the table is full of busy
 * ones. */
struct kvf_client *kvf_client_of(struct kvf_server *s, const void *rid,
                                 size_t rid_len, const char *address);
struct kvf_client *kvf_client_find(struct kvf_server *s, uint64_t serial);
/* It has a message now, or its session changed: moves it to its list. */
void kvf_client_touch(struct kvf_client *c);
void kvf_client_set_events(struct kvf_client *c, bool on);
/* Forgets it; freed when its last request is answered. */
void kvf_client_drop(struct kvf_client *c);
void kvf_clients_drop_all(struct kvf_server *s);

/* Sends the event that is in s->scratch (a whole map). Best effort. */
void kvf_client_event(struct kvf_client *c);

void kvf_event_retired(void *server, const struct kvf_gen *gen,
                       enum kvf_retire reason);
/* Whom an event goes to: the socket that asked, or another DEALER of its
 * session (store.h, kvf_put.publisher). NULL: nobody. */
struct kvf_client *kvf_event_listener(struct kvf_server *s,
                                      const struct kvf_id *publisher);
/* The address of the caller for it. */
struct kvf_id kvf_event_address(const struct kvf_call *call);
/* A push of an engine of ours has ended at its receiver. */
void kvf_event_push_end(void *server, const struct kvf_push_end *e);
void kvf_event_written(void *server, const struct kvf_window *w, bool write,
                       const void *data, size_t len);
/* The same for a publication. */
void kvf_event_unpublished(void *server, const struct kvf_gen *gen,
                           enum kvf_retire reason);
void kvf_event_peer(void *server, const struct kvf_worker *w, bool up,
                    const char *reason);
void kvf_event_drain(struct kvf_server *s, uint64_t timeout_ms);
/* Looks at the pool and tells, when it has run low since last time. */
void kvf_event_pool(struct kvf_server *s);

/* ---- requests that are answered later ----------------------------------- */

struct kvf_pending {              /* embedded */
    struct kvf_list node;         /* in client->pending */
    struct kvf_client *client;    /* kept until _end */
    struct kvf_session *session;  /* likewise; NULL = none */
    struct kvf_list session_node; /* in session->pending */
    bool delimiter;
    uint8_t *id; /* encoded */
    size_t id_len;
    uint8_t id_small[24];
    /* Answers it with `status`, now or later. */
    void (*cancel)(struct kvf_pending *p, enum kvf_status status,
                   const char *text);
};

/* -KVF_INTERNAL: out of memory, nothing done. */
int kvf_pending_begin(struct kvf_pending *p, struct kvf_call *call,
                      void (*cancel)(struct kvf_pending *p,
                                     enum kvf_status status, const char *text),
                      struct kvf_why *why);
void kvf_pending_to(const struct kvf_pending *p, struct kvf_to *to);
/* True when its answer can reach nobody: client or session ended. */
bool kvf_pending_orphan(const struct kvf_pending *p);
/* kvf_reply_send, unless the client is dead. */
int kvf_pending_send(struct kvf_pending *p, const void *payload, size_t len,
                     uint64_t cookie);
/* Answered: out of every list. The client or session may be gone after it. */
void kvf_pending_end(struct kvf_pending *p);
/* Cancels those of a client (with this id, or all when id is NULL) but for what
 * it asked in the session `except` (may be NULL); returns how many. */
unsigned kvf_client_cancel(struct kvf_client *c,
                           const struct kvf_session *except, const uint8_t *id,
                           size_t id_len, enum kvf_status status,
                           const char *text);
/* The same for all that was asked in a session, also by sockets that have moved
 * to another one since. */
unsigned kvf_session_cancel(struct kvf_session *ss, const uint8_t *id,
                            size_t id_len, enum kvf_status status,
                            const char *text);
#endif
