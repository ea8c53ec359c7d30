/* The handshake of two ends of an RC connection: what each tells the other, and
 * what both make of it. Pure: no verbs call, no socket. */
#ifndef KVF_TRANSPORT_RDMA_HANDSHAKE_H
#define KVF_TRANSPORT_RDMA_HANDSHAKE_H

#include "base/why.h"
#include "wire/rdma_msg.h"

#include <stdbool.h>
#include <stdint.h>

/* What a QP needs to know of the way to the other end. */
struct kvf_rdma_path {
    uint32_t qpn, psn; /* the other's */
    uint16_t lid;
    uint32_t mtu, rd_atomic;
    bool global;         /* a GRH: always on Ethernet */
    uint8_t dgid[16];    /* then: the other's */
    uint32_t sgid_index; /* then: the own */
};

/* Does the route to `dst` leave from an address of ours? True with the GID of
 * that address in src. May be NULL. */
struct kvf_rdma_route {
    bool (*source)(void *arg, const uint8_t dst[16], uint8_t src[16]);
    void *arg;
};

/* Owner: picks the pair of GIDs and the minima, fills *path for its own QP and
 * what *accept says but for id, qpn, psn and pool. -KVF_MISMATCH with what
 * differs in words. */
int kvf_rdma_answer(const struct kvf_rdma_end *own,
                    const struct kvf_rdma_end *getter,
                    const struct kvf_rdma_route *route,
                    struct kvf_rdma_accept *accept, struct kvf_rdma_path *path,
                    struct kvf_why *why);
/* Getter: checks the answer against what it said and fills *path.
 * -KVF_MISMATCH. */
int kvf_rdma_conclude(const struct kvf_rdma_end *own,
                      const struct kvf_rdma_accept *accept,
                      struct kvf_rdma_path *path, struct kvf_why *why);

/* An IPv4 address as a GID (::ffff:a.b.c.d)? */
bool kvf_rdma_gid_is_v4(const uint8_t raw[16]);
/* "fe80::..." or "10.0.0.1"; cap >= 46. */
void kvf_rdma_gid_text(const uint8_t raw[16], char *out, unsigned cap);
const char *kvf_rdma_gid_type_name(uint8_t type);

#endif
