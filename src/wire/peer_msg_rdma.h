/* The RDMA parts of peer messages, for the codecs of this folder. */
#ifndef KVF_WIRE_PEER_MSG_RDMA_H
#define KVF_WIRE_PEER_MSG_RDMA_H

#include "wire/peer_msg.h"

/* Bodies of RDMA_CONNECT, RDMA_ACCEPT, RDMA_REFUSE and RDMA_CLOSE. */
void kvf_peer_rdma_put(struct kvf_mpw *w, const struct kvf_peer_msg *m);
int kvf_peer_rdma_read(const msgpack_object *map, struct kvf_peer_msg *m,
                       struct kvf_why *why);
void kvf_peer_rdma_done(struct kvf_peer_msg *m);
/* GRANT: the fields `rdma` and `keys`, both absent when it is not rdma. put
 * returns how many fields it will write when w is NULL. */
unsigned kvf_peer_rdma_put_grant(struct kvf_mpw *w,
                                 const struct kvf_peer_grant *g);
int kvf_peer_rdma_read_grant(const msgpack_object *map,
                             struct kvf_peer_grant *g, struct kvf_why *why);
void kvf_peer_rdma_grant_done(struct kvf_peer_grant *g);

#endif
