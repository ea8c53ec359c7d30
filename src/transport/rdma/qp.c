/* One queue pair: RESET -> INIT -> RTR -> RTS, and the way out: ERR, destroyed.
 *
 * Never ERR -> RESET: what was posted would vanish without a completion. */
#include "transport/rdma/rdma_priv.h"

#include <errno.h>
#include <string.h>

#include "base/rng.h"

static enum ibv_mtu mtu_code(uint32_t bytes)
{
    switch (bytes) {
    case 256:
        return IBV_MTU_256;
    case 512:
        return IBV_MTU_512;
    case 1024:
        return IBV_MTU_1024;
    case 2048:
        return IBV_MTU_2048;
    default:
        return IBV_MTU_4096;
    }
}

int kvf_rdma_qp_create(struct kvf_rdma *r, struct kvf_rdma_qp *q,
                       struct ibv_cq *cq, uint32_t queue, void *context,
                       struct kvf_why *why)
{
    struct ibv_qp_init_attr attr = {
        .qp_context = context,
        .send_cq = cq,
        .recv_cq = cq,
        .qp_type = IBV_QPT_RC,
        .cap = {.max_send_wr = queue,
                .max_recv_wr = 1,
                .max_send_sge = (uint32_t)(r->attr.max_sge < (int)KVF_RDMA_SGE
                                               ? r->attr.max_sge
                                               : (int)KVF_RDMA_SGE),
                .max_recv_sge = 1},
    };

    errno = 0;
    q->qp = r->v->create_qp(r->pd, &attr);
    if (q->qp == NULL)
        return kvf_rdma_advise(r, why, "ibv_create_qp", errno);
    kvf_random_bytes(&q->psn, sizeof q->psn);
    q->psn &= 0xffffff;
    r->n_qps++;
    return 0;
}

int kvf_rdma_qp_init(struct kvf_rdma *r, struct kvf_rdma_qp *q, int access,
                     struct kvf_why *why)
{
    struct ibv_qp_attr a = {.qp_state = IBV_QPS_INIT,
                            .pkey_index = 0,
                            .port_num = r->port,
                            .qp_access_flags = (unsigned)access};
    int err = r->v->modify_qp(q->qp, &a,
                              IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT |
                                  IBV_QP_ACCESS_FLAGS);

    return err == 0 ? 0 : kvf_rdma_advise(r, why, "QP to INIT", err);
}

int kvf_rdma_qp_rtr(struct kvf_rdma *r, struct kvf_rdma_qp *q,
                    const struct kvf_rdma_path *path, struct kvf_why *why)
{
    struct ibv_qp_attr a = {
        .qp_state = IBV_QPS_RTR,
        .path_mtu = mtu_code(path->mtu),
        .dest_qp_num = path->qpn,
        .rq_psn = path->psn,
        .max_dest_rd_atomic = (uint8_t)path->rd_atomic,
        .min_rnr_timer = 12, /* 0.64 ms */
        .ah_attr = {.dlid = path->lid,
                    .is_global = path->global,
                    .port_num = r->port},
    };
    int err;

    if (path->global) {
        memcpy(a.ah_attr.grh.dgid.raw, path->dgid, 16);
        a.ah_attr.grh.sgid_index = (uint8_t)path->sgid_index;
        a.ah_attr.grh.hop_limit = 64;
    }
    err = r->v->modify_qp(q->qp, &a,
                          IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU |
                              IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                              IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
    return err == 0 ? 0 : kvf_rdma_advise(r, why, "QP to RTR", err);
}

int kvf_rdma_qp_rts(struct kvf_rdma *r, struct kvf_rdma_qp *q,
                    const struct kvf_rdma_path *path, struct kvf_why *why)
{
    struct ibv_qp_attr a = {
        .qp_state = IBV_QPS_RTS,
        .timeout = (uint8_t)r->conf.timeout,
        .retry_cnt = (uint8_t)r->conf.retry,
        .rnr_retry = (uint8_t)r->conf.rnr_retry,
        .sq_psn = q->psn,
        .max_rd_atomic = (uint8_t)path->rd_atomic,
    };
    int err = r->v->modify_qp(q->qp, &a,
                              IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT |
                                  IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
                                  IBV_QP_MAX_QP_RD_ATOMIC);

    return err == 0 ? 0 : kvf_rdma_advise(r, why, "QP to RTS", err);
}

int kvf_rdma_qp_access(struct kvf_rdma *r, struct kvf_rdma_qp *q, int access)
{
    struct ibv_qp_attr a = {.qp_access_flags = (unsigned)access};

    return q->qp == NULL ? 0 : r->v->modify_qp(q->qp, &a, IBV_QP_ACCESS_FLAGS);
}

int kvf_rdma_qp_err(struct kvf_rdma *r, struct kvf_rdma_qp *q)
{
    struct ibv_qp_attr a = {.qp_state = IBV_QPS_ERR};

    return q->qp == NULL ? 0 : r->v->modify_qp(q->qp, &a, IBV_QP_STATE);
}

int kvf_rdma_qp_destroy(struct kvf_rdma *r, struct kvf_rdma_qp *q)
{
    int err;

    if (q->qp == NULL)
        return 0;
    err = r->v->destroy_qp(q->qp);
    if (err != 0)
        return err;
    q->qp = NULL;
    r->n_qps--;
    return 0;
}
