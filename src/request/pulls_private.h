/* What the files of a pull share; nobody else includes it. */
#ifndef KVF_REQUEST_PULLS_PRIVATE_H
#define KVF_REQUEST_PULLS_PRIVATE_H

#include "request/pulls.h"
#include "request/retry.h"
#include "transport/scatter.h"

/* Of one source. */
#define KVF_SOURCE_STATES(X)                                                   \
    X(CONNECTING, "its daemon has no session with us")                         \
    X(ASKING, "the lookup is there, perhaps parked")                           \
    X(GRANTED, "its claim is ours; others are awaited")                        \
    X(MOVING, "a transport may write into our memory")                         \
    X(PAUSED, "the next attempt is awaited: back-off, or a link coming up")    \
    X(COMPLETE, "every byte of it is in place")

enum kvf_source_state {
#define KVF_SOURCE_ENUM(name, truth) KVF_SOURCE_##name,
    KVF_SOURCE_STATES(KVF_SOURCE_ENUM)
#undef KVF_SOURCE_ENUM
};

/* Of the whole. */
enum kvf_pull_state {
    KVF_PULL_LOCATING,
    KVF_PULL_ASKING,
    KVF_PULL_MOVING,
    KVF_PULL_MEETING,  /* every byte is in place; the group's verdict is due */
    KVF_PULL_DRAINING, /* given up; a transport may still touch memory */
    KVF_PULL_OVER
};

struct kvf_pull_source { /* a P rank of the window */
    struct kvf_pull *pull;
    enum kvf_source_state state;
    int64_t rank;
    struct kvf_worker worker;
    char host[KVF_CONF_TEXT];
    uint16_t port;
    struct kvf_peer *peer;
    struct kvf_peer_user user;
    struct kvf_ask ask;
    struct kvf_grant *grant;
    struct kvf_timer pause;
    /* plan */
    struct kvf_far *far; /* of the first grant: pair and plan are made of it */
    struct kvf_pair *pair;
    struct kvf_plan plan;
    struct kvf_plan_iter iter;
    int64_t bytes;
    /* moving */
    struct kvf_scatter xfer;
    bool xfer_made;
    unsigned attempts;
    struct kvf_retry retry;
};

struct kvf_pull {
    struct kvf_list node;
    struct kvf_pulls *ps;
    const struct kvf_pull_ops *ops;
    void *arg;
    enum kvf_pull_state state;
    bool planned;
    bool admitted; /* there was room on the edge: sources move */
    struct kvf_edge_wait edge;

    /* the request */
    struct kvf_layout *layout;
    char *request_id;
    size_t request_len;
    bool has_handle;
    struct kvf_id tag, incarnation;
    struct kvf_req_blocks blocks;
    struct kvf_ids *ids; /* by group; points into blocks */

    /* where it asks first */
    bool has_expect;
    struct kvf_worker expect;
    char host[KVF_CONF_TEXT];
    uint16_t port;
    struct kvf_peer *peer;
    struct kvf_peer_user user;
    struct kvf_ask ask;
    struct kvf_timer pause;
    int64_t tp, pp; /* of the sender */

    struct kvf_pull_source *sources;
    unsigned n_sources;
    int64_t n_tokens;

    /* `together`: where the ranks meet */
    char *together_name;
    size_t together_len;
    uint64_t together_size; /* 0 or 1: alone */
    struct kvf_peer *meet;
    struct kvf_peer_user meet_user;
    struct kvf_ask meet_ask;
    bool joined, met;
    bool leaving, told; /* asked to be let go; the place has said its last */

    struct kvf_timer deadline;
    struct kvf_task task;
    uint64_t t_start, t_granted, t_planned;
    enum kvf_status status;
    char *text;
    bool stopping;
};

struct kvf_pulls {
    struct kvf_pulls_env env;
    struct kvf_list all;
    unsigned running;
};

/* pulls.c */
/* Gives the whole up; the first cause is the answer. The pull may be gone. */
void kvf_pull_fail(struct kvf_pull *p, const struct kvf_why *why);
/* A source is complete: the whole may be. */
void kvf_pull_check_complete(struct kvf_pull *p);
/* A source that was given up is quiet. */
void kvf_pull_check_quiet(struct kvf_pull *p);
/* Nothing moves, no claim is held, the engine has its reply. */
void kvf_pull_free(struct kvf_pull *p);
/* pull_reply.c */
/* Every byte is in place, with the group's word if it has one. */
void kvf_pull_finish(struct kvf_pull *p);
/* Given up and quiet: p->status and p->text are the answer. */
void kvf_pull_answer_failure(struct kvf_pull *p);
/* pull_locate.c */
void kvf_pull_begin(struct kvf_pull *p);
/* Layouts that do not fit are compared here too: what differs is logged on both
 * sides. The sender's came before its refusal `why`. */
void kvf_pull_explain(struct kvf_peer *peer, const struct kvf_pull *p,
                      const struct kvf_why *why);
/* A daemon without a session, as for a get: who was never there is awaited, who
 * was there has until `pause` to come back, who refuses us is the failure. */
int kvf_pull_wait_up(struct kvf_pull *p, struct kvf_peer *peer,
                     struct kvf_timer *pause, struct kvf_why *why);
/* Why no answer has come until now; for the deadline. */
void kvf_pull_why_waiting(const struct kvf_pull *p, unsigned long long ms,
                          struct kvf_why *why);
/* pull_source.c */
/* Makes `s` (zeroed) the source of that rank and looks for its daemon. After a
 * failure, too, it is taken down with the pull. */
int kvf_source_begin(struct kvf_pull *p, struct kvf_pull_source *s,
                     int64_t rank, struct kvf_why *why);
/* Its daemon is up: asks it for the blocks. The pull may have failed then. */
void kvf_source_ask(struct kvf_pull_source *s);
/* pull_together.c */
/* As soon as the sender is known; nothing for a pull that is alone. */
int kvf_pull_join(struct kvf_pull *p, struct kvf_why *why);
void kvf_pull_ready(struct kvf_pull *p);
/* The group is told that we failed, with our status and text. */
void kvf_pull_leave(struct kvf_pull *p);
/* We said READY: all may have been told OK already. True: the place was asked
 * to let us go, and what it says (or its loss) ends the pull. */
bool kvf_pull_ask_out(struct kvf_pull *p);
/* pull_move.c */
void kvf_pull_plan(struct kvf_pull *p);
/* There is room on the edge now. */
void kvf_pull_on_enter(struct kvf_edge_wait *w);
void kvf_source_move(struct kvf_pull_source *s);
/* PAUSED is over: the next attempt. */
void kvf_source_resume(struct kvf_pull_source *s);
/* The link that was waited for is up, or has failed. */
void kvf_source_on_link(struct kvf_retry *r);
void kvf_source_on_lost(struct kvf_grant *g, const struct kvf_why *why);
#endif
