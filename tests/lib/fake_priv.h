/* What the two files of the fake share. */
#ifndef KVF_TESTS_FAKE_PRIV_H
#define KVF_TESTS_FAKE_PRIV_H

#include "fake_verbs.h"

#include "base/list.h"

#include <errno.h>

#define DEVICES 4

struct fake_wr {
    struct kvf_list node;
    uint64_t id;
    bool write, signaled;
    unsigned age; /* polls until it is ready */
    uint64_t raddr;
    uint32_t rkey;
    int n_sge;
    struct ibv_sge sge[];
};

struct fake_context {
    struct ibv_context ctx;
    struct kvf_list node, events; /* fake_async */
};

struct fake_async {
    struct kvf_list node;
    struct ibv_async_event ev;
};

struct fake_mr {
    struct ibv_mr mr;
    struct kvf_list node;
    int access;
};

struct fake_channel {
    struct ibv_comp_channel ch;
    struct kvf_list events; /* fake_event */
    unsigned cqs;
};

struct fake_event {
    struct kvf_list node;
    struct fake_cq *cq;
};

struct fake_cq {
    struct ibv_cq cq;
    struct kvf_list node;
    struct fake_channel *ch;
    bool armed;
    unsigned qps, unacked;
};

struct fake_qp {
    struct ibv_qp qp;
    struct kvf_list node, wrs;
    unsigned n_slots;  /* taken in the send queue */
    unsigned n_silent; /* of these: executed, but not signalled */
    uint32_t dest, max_wr, max_sge;
    uint32_t sq_psn, rq_psn;      /* the other's rq_psn, sq_psn */
    uint8_t rd_starts, rd_serves; /* the other's must fit */
    int access;
    struct fake_cq *scq;
};

extern struct kvf_list fake_contexts, fake_mrs, fake_qps;

/* Counts the call; true when the plan says that it fails (errno is set). */
bool fake_fails(enum fake_call c);
void fake_misuse(const char *what);
#define FAIL_INT(c)                                                            \
    do {                                                                       \
        if (fake_fails(FAKE_##c))                                              \
            return errno;                                                      \
    } while (0)
#define FAIL_PTR(c)                                                            \
    do {                                                                       \
        if (fake_fails(FAKE_##c))                                              \
            return NULL;                                                       \
    } while (0)

/* fake_verbs.c: an armed CQ that has (or will have) an entry tells. */
void fake_tell(struct fake_qp *q);
/* fake_qp.c */
bool fake_ready(const struct fake_qp *q);
struct ibv_qp *fake_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *attr);
int fake_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *attr, int mask);
int fake_destroy_qp(struct ibv_qp *qp);
int fake_post_send(struct ibv_qp *qp, struct ibv_send_wr *wr,
                   struct ibv_send_wr **bad);
int fake_poll_cq(struct ibv_cq *cq, int n, struct ibv_wc *wc);
int fake_get_async_event(struct ibv_context *ctx, struct ibv_async_event *ev);
void fake_ack_async_event(struct ibv_async_event *ev);

#endif
