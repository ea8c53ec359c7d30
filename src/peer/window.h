/* Windows: memory that an engine of this daemon exposed under a name for other
 * workers to read and, if it allows, to write.
 *
 *   add -> open -> close (unexpose, end of the session) -> memory free when
 * quiet
 *
 * One thread. */
#ifndef KVF_PEER_WINDOW_H
#define KVF_PEER_WINDOW_H

#include "peer/peers.h"

#define KVF_MAX_WINDOWS 4096u

struct kvf_window {
    uint64_t id; /* from the counter of buffers */
    char *name;  /* name_len bytes, and a NUL */
    size_t name_len;
    struct kvf_seg seg; /* all of a buffer or of a region; pinned */
    bool writable;
    struct kvf_id listener; /* whom `written` goes to (as kvf_put.publisher) */
    const void *owner;      /* session; opaque */
    struct kvf_list owner_node;
    struct kvf_peers *ps;
    struct kvf_list accesses;
    UT_hash_handle hh; /* by name */
    UT_hash_handle hh_id;
};

struct kvf_window_spec {
    const char *name;
    size_t name_len;
    struct kvf_seg seg; /* pinned on success until the window is closed */
    bool writable;
    struct kvf_id listener;
    const void *owner;
    struct kvf_list *owner_list;
};

/* -KVF_EXISTS, -KVF_BUSY at KVF_MAX_WINDOWS, -KVF_NO_SPACE. */
int kvf_window_add(struct kvf_peers *ps, const struct kvf_window_spec *spec,
                   struct kvf_window **out, struct kvf_why *why);
struct kvf_window *kvf_window_find(const struct kvf_peers *ps, uint64_t id);
struct kvf_window *kvf_window_named(const struct kvf_peers *ps,
                                    const char *name, size_t len);
/* Nobody may begin to use it; those who do are told. w is gone. */
void kvf_window_close(struct kvf_window *w, const char *text);
/* -KVF_DENIED, -KVF_INVALID: what an access to [offset, offset + length) may
 * not do. */
int kvf_window_check(const struct kvf_window *w, bool write, uint64_t offset,
                     uint64_t length, struct kvf_why *why);
#endif
