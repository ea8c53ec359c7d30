/* Private to src/wire: the bodies of peer messages, a family of types a file.
 * put writes one, read checks one into `m` (zeroed before), done frees what
 * read has allocated; read and done take any message of the family. */
#ifndef KVF_WIRE_PEER_BODY_H
#define KVF_WIRE_PEER_BODY_H

#include "wire/peer_field.h"

/* peer_msg_grant.c: GRANT. */
void kvf_peer_grant_put(struct kvf_mpw *w, const struct kvf_peer_grant *g);
void kvf_peer_grant_read(struct kvf_body *b, struct kvf_peer_msg *m);
void kvf_peer_grant_done(struct kvf_peer_grant *g);

/* peer_msg_layout.c: LAYOUT to LAYOUT_IS. */
void kvf_peer_layout_put(struct kvf_mpw *w, const struct kvf_peer_msg *m);
void kvf_peer_layout_read(struct kvf_body *b, struct kvf_peer_msg *m);
void kvf_peer_layout_done(struct kvf_peer_layout *l);

/* peer_msg_blocks.c: BLOCKS_ASK to VERDICT. */
void kvf_peer_blocks_put(struct kvf_mpw *w, const struct kvf_peer_msg *m);
void kvf_peer_blocks_read(struct kvf_body *b, struct kvf_peer_msg *m);
void kvf_peer_blocks_done(struct kvf_peer_blocks *blocks);

/* peer_msg_push.c: WINDOW_ASK to RETIRED_SEEN. Nothing is allocated. */
void kvf_peer_push_put(struct kvf_mpw *w, const struct kvf_peer_msg *m);
void kvf_peer_push_read(struct kvf_body *b, struct kvf_peer_msg *m);

/* peer_msg_rdma.c: RDMA_CONNECT to RDMA_KEYS. */
void kvf_peer_rdma_put(struct kvf_mpw *w, const struct kvf_peer_msg *m);
void kvf_peer_rdma_read(struct kvf_body *b, struct kvf_peer_msg *m);
void kvf_peer_rdma_done(struct kvf_peer_msg *m);
/* GRANT: the fields `rdma`, `rdma_soon` and `keys`, absent when there is none.
 * put returns how many fields it will write when w is NULL. */
unsigned kvf_peer_rdma_put_grant(struct kvf_mpw *w,
                                 const struct kvf_peer_grant *g);
void kvf_peer_rdma_read_grant(struct kvf_body *b, struct kvf_peer_grant *g);
void kvf_peer_rdma_grant_done(struct kvf_peer_grant *g);

#endif
