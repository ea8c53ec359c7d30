/* The bodies of LAYOUT to VERDICT, for the codecs of this folder. */
#ifndef KVF_WIRE_PEER_MSG_LAYOUT_H
#define KVF_WIRE_PEER_MSG_LAYOUT_H

#include "wire/peer_msg.h"

void kvf_peer_layout_put(struct kvf_mpw *w, const struct kvf_peer_msg *m);
int kvf_peer_layout_read(const msgpack_object *map, struct kvf_peer_msg *m,
                         struct kvf_why *why);
void kvf_peer_layout_done(struct kvf_peer_msg *m);

#endif
