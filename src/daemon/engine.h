/* The engine side: one ROUTER, envelopes in, one handler an operation. */
#ifndef KVF_DAEMON_ENGINE_H
#define KVF_DAEMON_ENGINE_H

#include "daemon/session.h"

/* A request while its handler runs. */
struct kvf_call {
    struct kvf_server *s;
    struct kvf_client *client;
    struct kvf_req *req;
    struct kvf_to to;
};

/* For the ROUTER; arg is the server. */
extern const struct kvf_zsock_ops kvf_engine_ops;

/* Replies with a bare status. */
void kvf_call_reply(struct kvf_call *call, enum kvf_status status,
                    const char *message);
void kvf_call_ok(struct kvf_call *call);
void kvf_call_why(struct kvf_call *call, const struct kvf_why *why);
/* True, after replying INVALID, when an event is wanted by a REQ socket. */
bool kvf_call_no_events(struct kvf_call *call, bool notify);

/* The session of the caller, or NULL after replying STALE. */
struct kvf_session *kvf_call_session(struct kvf_call *call);
/* The same for what a tcp session may not do: UNSUPPORTED. */
struct kvf_session *kvf_call_memory(struct kvf_call *call);

/* What segments are for. INTO: they are written into, and no byte may be named
 * twice. PUT: they are given away, so nothing may use them. SOURCE: they are
 * read, by any number of requests at once. */
enum kvf_seg_use { KVF_SEG_INTO, KVF_SEG_PUT, KVF_SEG_SOURCE };
/* Resolves segments against the session's own buffers and regions into s->segs.
 * -KVF_INVALID, -KVF_BUSY with why. */
int kvf_segments_resolve(struct kvf_server *s, struct kvf_session *ss,
                         const struct kvf_segment_ref *ref, unsigned n,
                         enum kvf_seg_use use, uint64_t *total,
                         struct kvf_why *why);
/* Adds `next` to the reply that was begun: a buffer of that size for the
 * session, which needs no alloc for its next put then. Returns the cookie, or
 * 0: none was asked for, there is no room, or ss is NULL or cannot map. */
uint64_t kvf_reply_next(struct kvf_server *s, struct kvf_session *ss,
                        uint64_t size);
/* True while a put of this session waits for the checksum of the buffer. */
bool kvf_put_reads(const struct kvf_session *ss, const struct kvf_buffer *b);

/* Starts one get for a pending request: resolves `into` and the session's
 * rights. */
int kvf_get_launch(struct kvf_server *s, struct kvf_session *ss,
                   const struct kvf_req_get *req, uint64_t timeout_ms,
                   bool hold, const struct kvf_get_ops *ops, void *arg,
                   struct kvf_get **out, struct kvf_why *why);
/* What the caller may not ask for: STALE or UNSUPPORTED with why, else 0. */
int kvf_get_allowed(const struct kvf_session *ss, const struct kvf_req_get *req,
                    struct kvf_why *why);
/* Fields of a get's result beyond id, status and message; returns how many
 * pairs were written. */
unsigned kvf_get_fields_write(struct kvf_mpw *w,
                              const struct kvf_get_result *res);
/* Gives back what a reply gave that nobody read: a received buffer, a view, an
 * allocated buffer, a region, a session. */
void kvf_undo(struct kvf_server *s, uint64_t cookie);
/* Sends the reply that was begun, without a payload; what it gives (0: nothing)
 * goes back at once when the client is gone. */
void kvf_reply_give(struct kvf_server *s, const struct kvf_to *to,
                    uint64_t cookie);
/* The same for a request that is answered later; kvf_pending_end follows. */
void kvf_pending_give(struct kvf_pending *p, uint64_t cookie);
/* A cookie for several buffers or views; 0 without memory (or none). */
uint64_t kvf_undo_list_add(struct kvf_server *s, const uint64_t *id,
                           unsigned n);
/* The reply is on its way: the cookie will not be needed. */
void kvf_undo_forget(struct kvf_server *s, uint64_t cookie);
void kvf_undo_lists_free(struct kvf_server *s);

/* A layout of the session; NULL with why. */
struct kvf_layout *kvf_session_layout(const struct kvf_session *ss,
                                      uint64_t number, struct kvf_why *why);

void kvf_op_layout(struct kvf_call *call);
void kvf_op_publish(struct kvf_call *call);
void kvf_op_pull(struct kvf_call *call);
void kvf_op_hello(struct kvf_call *call);
void kvf_op_bye(struct kvf_call *call);
void kvf_op_ping(struct kvf_call *call);
void kvf_op_alloc(struct kvf_call *call);
void kvf_op_free(struct kvf_call *call);
void kvf_op_register(struct kvf_call *call);
void kvf_op_unregister(struct kvf_call *call);
void kvf_op_put(struct kvf_call *call);
void kvf_op_get(struct kvf_call *call);
void kvf_op_release(struct kvf_call *call);
void kvf_op_mget(struct kvf_call *call);
void kvf_op_cancel(struct kvf_call *call);
void kvf_op_fail(struct kvf_call *call);
void kvf_op_cleanup(struct kvf_call *call);
void kvf_op_list(struct kvf_call *call);
void kvf_op_peer(struct kvf_call *call);
void kvf_op_stats(struct kvf_call *call);
void kvf_op_health(struct kvf_call *call);
void kvf_op_drain(struct kvf_call *call);
void kvf_op_expose(struct kvf_call *call);
void kvf_op_unexpose(struct kvf_call *call);
void kvf_op_push(struct kvf_call *call);
void kvf_op_write(struct kvf_call *call);
void kvf_op_read(struct kvf_call *call);
/* Closes it; a buffer that was made for it goes back to the pool. */
void kvf_window_end(struct kvf_window *w, const char *text);
#endif
