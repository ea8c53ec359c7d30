/* Replies to engines: one writer, no allocation per reply.
 *
 *   kvf_reply_begin(s, to, KVF_OK, NULL);
 *   kvf_reply_u64(s, "size", n);
 *   kvf_reply_send(s, to, NULL, 0, 0);
 *
 * A cookie says what to undo when the reply turns out to be undeliverable
 * later: the id of a buffer, view or region, or KVF_COOKIE_SESSION | serial. */
#ifndef KVF_DAEMON_REPLY_H
#define KVF_DAEMON_REPLY_H

#include "base/why.h"
#include "wire/mp.h"

struct kvf_server;

/* Serials stay below these, and ids of memory, which begin at the time in ms
 * << 22, lie far above them. */
#define KVF_COOKIE_SESSION (1ull << 46)
#define KVF_COOKIE_LIST (1ull << 47)  /* several ids: undo.c */
#define KVF_COOKIE_OTHER (1ull << 48) /* from here on: an id */

struct kvf_to { /* where a reply goes; points into the caller's memory */
    const void *rid;
    size_t rid_len;
    const uint8_t *id; /* encoded; NULL = nil */
    size_t id_len;
    bool delimiter;
};

struct kvf_reply {
    struct kvf_mpw w;
    size_t mark;
    unsigned pairs;
    enum kvf_status status;
};

/* Starts the map with id, status and, when status is not OK, message (the
 * general text of the status when NULL). */
void kvf_reply_begin(struct kvf_server *s, const struct kvf_to *to,
                     enum kvf_status status, const char *message);
void kvf_reply_u64(struct kvf_server *s, const char *key, uint64_t v);
void kvf_reply_bool(struct kvf_server *s, const char *key, bool v);
void kvf_reply_str(struct kvf_server *s, const char *key, const char *v);
void kvf_reply_bin(struct kvf_server *s, const char *key, const void *p,
                   size_t len);
/* Writes the key; the caller writes one value into the writer returned. */
struct kvf_mpw *kvf_reply_key(struct kvf_server *s, const char *key);
/* Ends the map and sends it, with `payload` as a second frame when not NULL.
 * 0: taken by the socket. -KVF_PEER_UNREACHABLE: the client is gone; the
 * caller undoes what the reply gave. */
int kvf_reply_send(struct kvf_server *s, const struct kvf_to *to,
                   const void *payload, size_t len, uint64_t cookie);

/* The three figures of a NO_SPACE reply. */
void kvf_reply_space(struct kvf_server *s, uint64_t needed);
/* A whole reply of nothing but a status. */
int kvf_reply_status(struct kvf_server *s, const struct kvf_to *to,
                     enum kvf_status status, const char *message);
/* The same from a failed call. */
int kvf_reply_why(struct kvf_server *s, const struct kvf_to *to,
                  const struct kvf_why *why);
#endif
