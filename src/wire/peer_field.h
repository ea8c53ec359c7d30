/* Private to src/wire: the fields of the body of a peer message, both ways.
 *
 * A body that is read keeps its first failure and turns every later read into a
 * no-op, so that a decoder is a list of its fields and looks at `rc` once, at
 * the end (or before it uses what it has read). A failed or absent read leaves
 * its output alone, unless said otherwise. */
#ifndef KVF_WIRE_PEER_FIELD_H
#define KVF_WIRE_PEER_FIELD_H

#include "wire/peer_msg.h"

struct kvf_body {
    const msgpack_object *map;
    struct kvf_why *why; /* may be NULL */
    int rc;              /* 0, or the first failure */
};

/* ---- reading ------------------------------------------------------------ */

/* Required. */
void kvf_body_u64(struct kvf_body *b, const char *key, uint64_t *out);
void kvf_body_u64_in(struct kvf_body *b, const char *key, uint64_t min,
                     uint64_t max, uint64_t *out);
void kvf_body_flag(struct kvf_body *b, const char *key, bool *out);
void kvf_body_bytes(struct kvf_body *b, const char *key, void *out, size_t len);
void kvf_body_id(struct kvf_body *b, const char *key, struct kvf_id *out);
/* 1 to max bytes; points into the message. */
void kvf_body_str(struct kvf_body *b, const char *key, size_t max,
                  struct kvf_slice_str *out);
/* A name that is used: copied whole, without control bytes, or refused. */
void kvf_body_name(struct kvf_body *b, const char *key, size_t min, char *out,
                   size_t cap);
/* `status`, from `min` on. */
void kvf_body_status(struct kvf_body *b, enum kvf_status min, uint32_t *out);
/* An array of at most max elements; NULL: failed. */
const msgpack_object_array *kvf_body_array(struct kvf_body *b, const char *key,
                                           size_t max);
/* A map within the map, as a body of its own: hand its rc back. */
struct kvf_body kvf_body_nested(struct kvf_body *b, const char *key);
/* The body is the map of a space itself. */
void kvf_body_space(struct kvf_body *b, struct kvf_peer_space *s);

/* Optional; true: it was there. */
bool kvf_body_u64_opt(struct kvf_body *b, const char *key, uint64_t min,
                      uint64_t max, uint64_t *out);
bool kvf_body_flag_opt(struct kvf_body *b, const char *key, bool *out);
bool kvf_body_id_opt(struct kvf_body *b, const char *key, struct kvf_id *out);
/* Points into the message. */
bool kvf_body_bin_opt(struct kvf_body *b, const char *key, size_t min,
                      size_t max, const void **out, size_t *len);
/* NULL: absent, empty, or failed. */
const msgpack_object_array *kvf_body_array_opt(struct kvf_body *b,
                                               const char *key, size_t max);
/* For people only: absent is empty, too long is cut, odd bytes become '?'. */
void kvf_body_text(struct kvf_body *b, const char *key, char *out, size_t cap);

/* Zeroed room for n elements, to be freed, or NULL (which is a failure). */
void *kvf_body_elements(struct kvf_body *b, size_t n, size_t size);
/* The failure "field KEY[i]: malformed". */
void kvf_body_bad_element(struct kvf_body *b, const char *key, unsigned i);

/* ---- writing ------------------------------------------------------------ */

/* A bounded text field; a character that was cut in two is left out. */
void kvf_body_put_text(struct kvf_mpw *w, const char *key, const char *text,
                       size_t cap);
void kvf_body_put_str(struct kvf_mpw *w, const char *key,
                      const struct kvf_slice_str *s);
/* The field `spaces`. */
void kvf_body_put_spaces(struct kvf_mpw *w, const struct kvf_peer_space *s,
                         unsigned n);

#endif
