/* A verbs table with devices inside the process: RC queue pairs that copy with
 * memcpy when their completions are polled, and show on demand what a device
 * shows once in a year. It checks what a device checks (keys, ranges, access,
 * states, queue lengths) and what libibverbs would hang on (events that were
 * never acknowledged, objects in use).
 *
 * One at a time: the table has no argument, so there is one static world. */
#ifndef KVF_TESTS_FAKE_VERBS_H
#define KVF_TESTS_FAKE_VERBS_H

#include "transport/rdma/verbs.h"

#include "base/rng.h"

#include <stdbool.h>

#define FAKE_CALLS(X)                                                          \
    X(get_device_list)                                                         \
    X(open_device)                                                             \
    X(query_device)                                                            \
    X(query_port)                                                              \
    X(gid_table)                                                               \
    X(alloc_pd)                                                                \
    X(reg_mr)                                                                  \
    X(dereg_mr)                                                                \
    X(create_channel)                                                          \
    X(create_cq)                                                               \
    X(destroy_cq)                                                              \
    X(req_notify_cq)                                                           \
    X(poll_cq)                                                                 \
    X(create_qp)                                                               \
    X(modify_qp)                                                               \
    X(destroy_qp)                                                              \
    X(post_send)

enum fake_call {
#define FAKE_ENUM(name) FAKE_##name,
    FAKE_CALLS(FAKE_ENUM)
#undef FAKE_ENUM
        FAKE_CALL_COUNT
};
extern const char *const fake_call_names[FAKE_CALL_COUNT];

struct fake_world {
    /* what devices are */
    unsigned n_devices; /* "fake0", "fake1", ... */
    struct ibv_device_attr attr;
    struct ibv_port_attr port;
    struct ibv_gid_entry gid[8];
    unsigned n_gid;
    /* faults */
    unsigned calls[FAKE_CALL_COUNT]; /* made so far */
    /* The fail_at-th call from now (1 = the next) fails; fail_n of them. */
    unsigned fail_at[FAKE_CALL_COUNT], fail_n[FAKE_CALL_COUNT];
    int fail_errno;
    uint64_t post_mib_ns; /* post_send takes so long for a MiB */
    unsigned late;        /* a work request is ready after 0 to so many polls */
    bool hold;            /* nothing completes: the other side is dead */
    bool hold_flush;      /* nor is anything flushed */
    enum ibv_wc_status status; /* of the work request number status_at */
    uint64_t status_at;        /* counted in `executed`; 0 = none */
    uint64_t
        dup_wc; /* every so many completions one of nobody comes; 0 = none */
    /* what happened */
    uint64_t posted, executed, signalled, flushed, doorbells, max_chain;
    uint64_t max_doorbell; /* bytes */
    uint64_t reads, writes, sges;
    unsigned contexts, pds, mrs, channels, cqs, qps; /* that exist */
    unsigned misuses; /* what a device would hang on or lose */
    struct kvf_rng rng;
};
extern struct fake_world fake;
extern const struct kvf_verbs fake_verbs;

/* Fresh world with two devices, port active, one RoCE v2 address. Everything
 * of the one before must be gone. */
void fake_reset(void);
/* Frees the CQs that could not be destroyed and went with their device, as the
 * kernel does; how many. */
unsigned fake_reap_cqs(void);
/* An asynchronous event of every open context. */
void fake_port_event(enum ibv_event_type type);
/* Of every QP that has something posted, or (posted false) that has not. */
unsigned fake_qp_event(enum ibv_event_type type, bool posted);
/* What the other end may do through it. */
int fake_qp_access(const struct ibv_qp *qp);
/* QPs in that state. */
unsigned fake_qps_in(enum ibv_qp_state state);
/* Objects of any kind that exist. */
unsigned fake_objects(void);
#endif
