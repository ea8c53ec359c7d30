/* Two daemons' rdma transports on devices inside the process, each with a pool
 * that the other one reads; the messages between them are delivered as a test
 * wants. */
#ifndef KVF_TESTS_CONFORMANCE_PAIR_H
#define KVF_TESTS_CONFORMANCE_PAIR_H

#include "rig.h"

struct pair;

/* The session of a getter has two directions; each keeps its order. */
enum { PAIR_QUEUES = 4 };

struct pair_mail {
    struct kvf_list node;
    enum { PAIR_CONNECT, PAIR_CLOSE, PAIR_ACCEPT, PAIR_REFUSE, PAIR_GONE } what;
    struct kvf_rdma_connect connect;
    struct kvf_rdma_accept accept;
    struct kvf_why why;
    uint64_t id;
    bool lost; /* will not arrive */
};

struct pair_node {
    struct pair *p;
    unsigned i;
    struct kvf_id id;
    struct kvf_stats stats;
    struct kvf_transport *t;
    uint8_t *pool, *mem;
    struct kvf_mapping map; /* of mem */
    struct kvf_rdma_memory *local;
    struct kvf_link link;
    bool open, again; /* opened; opened again whenever it is down */
    unsigned ups, downs, expelled, refused, told_closed;
    unsigned own_will; /* of the downs */
    struct kvf_why down_why;
    /* what it gets from the other */
    struct kvf_remote remote;
    struct kvf_remote_seg seg;
    struct kvf_xfer x;
    unsigned calls;
    int status;
};

struct pair {
    struct kvf_reactor *reactor;
    struct kvf_sched *sched;
    struct kvf_stats stats;
    uint64_t size;
    struct kvf_list queue[PAIR_QUEUES];
    unsigned n_mail; /* questions and answers sent so far */
    unsigned lose;   /* the number of the one that is lost; 0 = none */
    struct pair_node n[2];
};

/* `old`: node 1 is one that knows of no connection for both ways. */
void pair_open(struct pair *p, uint64_t size, uint64_t connect_ms, bool old);
/* Checks that nothing is left. */
void pair_close(struct pair *p);
void pair_link(struct pair_node *n);
void pair_turns(struct pair *p, unsigned n);
/* Delivers the first of queue q; false: there is none. */
bool pair_deliver(struct pair *p, unsigned q);
/* Turns, with mail as it comes, until both links are up and nothing is on its
 * way out any more; fails the test after some seconds. */
void pair_settle(struct pair *p);
/* ... and then has one connection; without `gone` others may still be on their
 * way out (half a second each). */
void pair_settle_one(struct pair *p, bool gone);
/* ... until *flag. */
void pair_until(struct pair *p, const unsigned *flag);
void pair_pull(struct pair_node *n);
/* Both ways at once; all bytes compared. */
void pair_both_ways(struct pair *p);
struct kvf_rdma_gauges pair_gauges(const struct pair_node *n);
/* That many queue pairs at each end, and both links up. */
void pair_assert_qps(struct pair *p, unsigned qps);
#endif
