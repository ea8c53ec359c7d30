/* What the handshake of an RC connection carries. As structs only: how they are
 * written is peer_msg_rdma.c's, what they mean transport/rdma/handshake.h's. */
#ifndef KVF_WIRE_RDMA_MSG_H
#define KVF_WIRE_RDMA_MSG_H

#include <stdbool.h>
#include <stdint.h>

#define KVF_RDMA_GIDS 16       /* candidates that an end offers */
#define KVF_RDMA_MRS 1024      /* pieces of the owner's pool */
#define KVF_RDMA_SPACE_MRS 512 /* pieces of a region named in one grant */

enum kvf_rdma_link_layer { KVF_RDMA_IB = 1, KVF_RDMA_ETHERNET = 2 };
/* As enum ibv_gid_type; on the wire. */
enum kvf_rdma_gid_type {
    KVF_RDMA_GID_IB,
    KVF_RDMA_GID_ROCE_V1,
    KVF_RDMA_GID_ROCE_V2
};

struct kvf_rdma_gid {
    uint8_t raw[16];
    uint8_t type;   /* enum kvf_rdma_gid_type */
    uint32_t index; /* in the own table; 0 when it came from the other side */
};

/* A registered piece of memory as somebody else may use it. */
struct kvf_rdma_key {
    uint64_t addr, length;
    uint32_t rkey;
};

/* The pieces of one file that hold some of its bytes. */
struct kvf_rdma_keys {
    uint64_t first; /* where in the file the first piece begins */
    unsigned n;
    struct kvf_rdma_key key[];
};

/* What one end says of itself. */
struct kvf_rdma_end {
    uint32_t qpn, psn;
    uint8_t link_layer; /* enum kvf_rdma_link_layer */
    uint16_t lid;       /* InfiniBand */
    uint32_t mtu;       /* bytes: 256 ... 4096 */
    uint32_t rd_atomic; /* READs at once: those it starts (getter), those it
                           serves (owner) */
    unsigned n_gid;
    struct kvf_rdma_gid gid[KVF_RDMA_GIDS]; /* best first */
};

/* Getter -> owner. */
struct kvf_rdma_connect {
    uint64_t id; /* of this try; chosen by the getter, not 0 */
    struct kvf_rdma_end end;
    bool both;   /* that QP may carry READs of the owner's, too */
    bool joined; /* ... and is the one that the owner reads through already */
};

/* Owner -> getter: end.gid[0] is the one it uses, n_gid 0 or 1. mtu and
 * rd_atomic are what both use. */
struct kvf_rdma_accept {
    uint64_t id;
    struct kvf_rdma_end end;
    uint32_t your_gid; /* which of connect.end.gid the owner talks to */
    unsigned n_pool;
    struct kvf_rdma_key *pool; /* the owner's pool from offset 0 on */
};

/* Either side, about try `id`. */
struct kvf_rdma_word {
    uint64_t id;
    uint32_t status;
    char text[200];
};

#endif
