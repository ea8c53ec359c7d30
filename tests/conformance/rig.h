/* One owner and one getter in one process and one loop, over any transport. */
#ifndef KVF_TESTS_CONFORMANCE_RIG_H
#define KVF_TESTS_CONFORMANCE_RIG_H

#include "../lib/sim_transport.h"
#include "base/rng.h"
#include "loop/reactor.h"
#include "transport/shm.h"
#include "transport/tcp/tcp.h"
#include "transport/xfer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include "rig_rdma.h"

#define KIB 1024ull
#define MIB (1024 * KIB)
#define CLAIM 7u

enum rig_kind {
    RIG_SIM,
    RIG_SHM,
    RIG_TCP,
    RIG_TCP_STREAMS,
    RIG_RDMA,        /* verbs devices inside the process */
    RIG_RDMA_LATE,   /* whose completions take their time */
    RIG_RDMA_DEVICE, /* a real one: environment KVF_RDMA_DEVICE */
    RIG_KINDS
};
extern const char *const rig_names[RIG_KINDS];

struct rig {
    enum rig_kind kind;
    struct kvf_reactor *reactor;
    struct kvf_sched *sched;
    struct kvf_stats stats;
    /* owner */
    struct kvf_transport *owner; /* tcp, rdma */
    uint8_t *payload;
    uint64_t size;
    int memfd;
    int pins; /* taken and not given back */
    unsigned resolves;
    int refuse_after; /* resolves left until STALE; -1 = never */
    bool taken_back;  /* what is pinned is not live any more */
    uint64_t claim;   /* that lives; CLAIM at first */
    char claims[4];   /* what pins point to, by claim */
    uint64_t piece;   /* bytes of one piece that resolve gives */
    /* getter */
    struct kvf_transport *t;
    struct kvf_map_cache *maps;
    struct kvf_mapping *map;
    struct kvf_sim_plan sim;
    struct kvf_link_addr addr;
    struct kvf_link link;
    struct kvf_remote remote;
    struct kvf_remote_seg segs[3];
    unsigned ups, downs, rooms;
    struct kvf_why down_why;
    bool inside; /* a call is on the stack: no callback may come */
    int fds;     /* open descriptors before */
    struct rig_rdma rdma;
};

/* How much of something a kind is given: an emulated device moves 100 MB/s, a
 * simulated one goes byte by byte. */
static inline uint64_t rig_most(enum rig_kind kind, uint64_t real,
                                uint64_t device, uint64_t sim)
{
    return kind == RIG_SIM ? sim : kind == RIG_RDMA_DEVICE ? device : real;
}

struct pull {
    struct kvf_xfer x;
    struct rig *rig;
    uint8_t *mem;
    unsigned calls;
    int status;
    struct kvf_why why;
};

/* False: it cannot run here (no such device). */
bool rig_has(enum rig_kind kind);
void rig_open(struct rig *r, enum rig_kind kind, uint64_t size);
/* Memory here that a transfer uses: rdma wants to know it. */
void rig_register(struct rig *r, void *base, uint64_t size);
void rig_unregister(struct rig *r, const void *base);
/* Also checks pins and descriptors. */
void rig_close(struct rig *r);
/* The claim is given back and another one asked for. */
void rig_claim_again(struct rig *r);
int rig_link(struct rig *r, struct kvf_link *link);
/* Turns the loop until *flag is not 0; fails the test after `ms`. */
void rig_until(struct rig *r, const unsigned *flag, unsigned ms);
void rig_turns(struct rig *r, unsigned n);
int rig_fds(void);

void pull_init(struct pull *p, struct rig *r, bool write);
/* Local memory in pieces of 0 to max bytes. */
void pull_init_scattered(struct pull *p, struct rig *r, struct kvf_rng *rng,
                         uint64_t max);
void pull_start(struct pull *p, struct kvf_link *link);
void pull_end(struct pull *p);
extern const struct kvf_serve_ops rig_serve;
#endif
