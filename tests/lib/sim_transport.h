/* A transport of virtual time for tests: the owner's payload is a piece of our
 * own memory, an op moves it in steps of simulated time, and the test says what
 * goes wrong. */
#ifndef KVF_TESTS_SIM_TRANSPORT_H
#define KVF_TESTS_SIM_TRANSPORT_H

#include "transport/transport.h"

/* What the test decides; may be changed at any moment. */
struct kvf_sim_plan {
    uint8_t *payload; /* the owner's memory of every claim */
    uint64_t size;
    uint64_t delay_ns;   /* of one op; its bytes come in two halves */
    uint64_t chunk;      /* bytes of one op; 0 = 1 MiB */
    unsigned depth;      /* 0 = 4 */
    unsigned room;       /* ops at once, then BUSY; 0 = no limit */
    unsigned fail_nth;   /* this op (1, 2, ...) fails after half its bytes */
    unsigned cut_nth;    /* at this op the link goes down in the middle */
    unsigned refuse_nth; /* post itself fails */
    unsigned stuck_nth;  /* no end of its own: cancel or close must end it */
    unsigned posted;     /* counts */
    uint64_t bytes;
};

/* *plan stays the test's and must outlive the transport. */
int kvf_sim_create(struct kvf_sched *sched, struct kvf_stats *stats,
                   struct kvf_sim_plan *plan, struct kvf_transport **out,
                   struct kvf_why *why);
#endif
