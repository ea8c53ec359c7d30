/* The rdma part of the rig: an owner and a getter on verbs devices inside the
 * process, or on a real one (environment KVF_RDMA_DEVICE). */
#ifndef KVF_TESTS_CONFORMANCE_RIG_RDMA_H
#define KVF_TESTS_CONFORMANCE_RIG_RDMA_H

#include "../lib/fake_verbs.h"
#include "transport/rdma/rdma_priv.h"

struct rig;

struct rig_mail { /* a message of the handshake on its way */
    struct kvf_list node;
    struct rig *rig;
    struct kvf_link *link;
    enum { MAIL_CONNECT, MAIL_ACCEPT, MAIL_REFUSE, MAIL_CLOSE, MAIL_GONE } what;
    struct kvf_rdma_connect connect;
    struct kvf_rdma_accept accept;
    struct kvf_why why;
    uint64_t id;
};

struct rig_local { /* memory here that is registered */
    struct kvf_mapping map;
    struct kvf_rdma_memory *m;
};

struct rig_rdma {
    struct kvf_list mail;
    struct kvf_task deliver;
    struct kvf_link *link; /* who asked last: where answers go */
    struct rig_local local[64];
    bool lose_mail; /* connects get no answer */
    unsigned accepts, refusals, closed, expelled, broke, healed;
    struct kvf_why refused;
};

/* What both rigs and pairs begin with. */
struct kvf_rdma_conf rig_rdma_conf(void);
bool rig_rdma_kind(int kind);
void rig_rdma_open(struct rig *r);
void rig_rdma_close(struct rig *r);
/* A fresh getter's and owner's transport; for tests of creation. */
int rig_rdma_create(struct rig *r, struct kvf_transport **out,
                    struct kvf_why *why);
/* One pull that must succeed with every byte right. */
struct pull;
void rig_rdma_pull(struct rig *r, struct pull *p);
#endif
