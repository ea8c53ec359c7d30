/* Which GIDs of a port an end offers, in which order, and what to do about an
 * errno of a verbs call. Used by the transport, and by `kvferry doctor` to say
 * what the daemon would do. Nothing here talks to a device. */
#ifndef KVF_TRANSPORT_RDMA_CHOOSE_H
#define KVF_TRANSPORT_RDMA_CHOOSE_H

#include "base/why.h"
#include "wire/rdma_msg.h"

#include <infiniband/verbs.h>

/* A numeric address as a GID. False when it is none. */
bool kvf_rdma_address_gid(const char *text, uint8_t out[16]);

/* From a GID table of n entries, those of `port` that can be used, the best
 * first: the one of the address `prefer` (numeric, "" = none), RoCE v2 before
 * v1, routable before link-local, IPv4 before IPv6. index >= 0: only that one.
 * Returns how many. */
unsigned kvf_rdma_choose_gids(const struct ibv_gid_entry *table, int n,
                              unsigned port, int32_t index, const char *prefer,
                              struct kvf_rdma_gid out[KVF_RDMA_GIDS]);

/* "mlx5_0:1" -> "mlx5_0" and 1; port 0 = any. -KVF_INVALID. */
int kvf_rdma_parse_device(const char *text, char *name, size_t cap,
                          unsigned *port, struct kvf_why *why);

/* Why the call `what` on device `dev` failed and what to do. -status. */
int kvf_rdma_advice(struct kvf_why *why, const char *dev, const char *what,
                    int err);
#endif
