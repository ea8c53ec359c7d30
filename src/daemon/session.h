/* Sessions of engines: what holds memory.
 *
 *   hello -> live -> bye | exit of the process | silence (tcp) -> freed
 *
 * An ended session gives back its buffers, views and regions at once (the
 * memory becomes free when it is quiet) and has its requests cancelled; the
 * struct itself waits for the last of them. What it published stays. */
#ifndef KVF_DAEMON_SESSION_H
#define KVF_DAEMON_SESSION_H

#include "daemon/client.h"

struct kvf_session {
    struct kvf_server *server;
    struct kvf_id id;
    uint64_t serial; /* never repeats */
    bool can_map;    /* a process that we see: may hold memory */
    bool ended;
    pid_t pid;      /* 0 = tcp, or not visible */
    uint64_t start; /* of the process */
    uid_t uid;
    char client_name[64];
    struct kvf_proc_watch *watch; /* with can_map */
    struct kvf_timer timer;       /* silence, without can_map */
    uint64_t last_ns;             /* last request of one of its clients */
    struct kvf_list buffers, regions, views, windows, layouts;
    struct kvf_list clients;
    struct kvf_list pending; /* struct kvf_pending, of any client */
    struct kvf_list ending_node;
    unsigned n_pending;
    UT_hash_handle hh, hh_serial;
};

/* Opens one for the client. -KVF_BUSY at max_sessions. */
int kvf_session_open(struct kvf_client *c, const char *name, size_t name_len,
                     struct kvf_session **out, struct kvf_why *why);
struct kvf_session *kvf_session_find(struct kvf_server *s,
                                     const struct kvf_id *id);
struct kvf_session *kvf_session_by_serial(struct kvf_server *s,
                                          uint64_t serial);
/* The client leaves its session, if any, and joins this one. */
void kvf_session_join(struct kvf_session *ss, struct kvf_client *c);
/* A request of one of its clients came. */
void kvf_session_touch(struct kvf_session *ss);
/* `died`: its process or socket is gone (counted). */
void kvf_session_end(struct kvf_session *ss, bool died, const char *reason);
/* The last pending request of an ended session is answered. */
void kvf_session_settle(struct kvf_session *ss);
void kvf_sessions_end_all(struct kvf_server *s, const char *reason);
#endif
