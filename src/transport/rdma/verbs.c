/* The table of the real libibverbs. */
#include "transport/rdma/verbs.h"

#include <errno.h>

/* Some calls return an errno, some -1 with errno set, some both. */
static int code(int rc)
{
    if (rc == 0)
        return 0;
    if (rc > 0)
        return rc;
    return errno != 0 ? errno : EIO;
}

static const char *device_name(struct ibv_device *dev)
{
    return ibv_get_device_name(dev);
}

static int close_device(struct ibv_context *ctx)
{
    return code(ibv_close_device(ctx));
}

static int query_device(struct ibv_context *ctx, struct ibv_device_attr *attr)
{
    return code(ibv_query_device(ctx, attr));
}

static int query_port(struct ibv_context *ctx, uint8_t port,
                      struct ibv_port_attr *attr)
{
    return code(ibv_query_port(ctx, port, attr));
}

static int gid_table(struct ibv_context *ctx, struct ibv_gid_entry *entry,
                     unsigned max)
{
    ssize_t n = ibv_query_gid_table(ctx, entry, max, 0);

    return (int)n;
}

static int dealloc_pd(struct ibv_pd *pd)
{
    return code(ibv_dealloc_pd(pd));
}

static struct ibv_mr *reg_mr(struct ibv_pd *pd, void *addr, size_t length,
                             int access)
{
    return ibv_reg_mr(pd, addr, length, access);
}

static int dereg_mr(struct ibv_mr *mr)
{
    return code(ibv_dereg_mr(mr));
}

static int destroy_channel(struct ibv_comp_channel *ch)
{
    return code(ibv_destroy_comp_channel(ch));
}

static struct ibv_cq *create_cq(struct ibv_context *ctx, int cqe,
                                void *cq_context, struct ibv_comp_channel *ch)
{
    return ibv_create_cq(ctx, cqe, cq_context, ch, 0);
}

static int destroy_cq(struct ibv_cq *cq)
{
    return code(ibv_destroy_cq(cq));
}

static int get_cq_event(struct ibv_comp_channel *ch, struct ibv_cq **cq,
                        void **cq_context)
{
    return code(ibv_get_cq_event(ch, cq, cq_context));
}

static int req_notify_cq(struct ibv_cq *cq)
{
    return code(ibv_req_notify_cq(cq, 0));
}

static int poll_cq(struct ibv_cq *cq, int n, struct ibv_wc *wc)
{
    int rc = ibv_poll_cq(cq, n, wc);

    return rc >= 0 ? rc : -EIO;
}

static int modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *attr, int mask)
{
    return code(ibv_modify_qp(qp, attr, mask));
}

static int destroy_qp(struct ibv_qp *qp)
{
    return code(ibv_destroy_qp(qp));
}

static int post_send(struct ibv_qp *qp, struct ibv_send_wr *wr,
                     struct ibv_send_wr **bad)
{
    return code(ibv_post_send(qp, wr, bad));
}

static int get_async_event(struct ibv_context *ctx,
                           struct ibv_async_event *event)
{
    return code(ibv_get_async_event(ctx, event));
}

const struct kvf_verbs kvf_verbs_real = {
    .get_device_list = ibv_get_device_list,
    .free_device_list = ibv_free_device_list,
    .device_name = device_name,
    .open_device = ibv_open_device,
    .close_device = close_device,
    .query_device = query_device,
    .query_port = query_port,
    .gid_table = gid_table,
    .alloc_pd = ibv_alloc_pd,
    .dealloc_pd = dealloc_pd,
    .reg_mr = reg_mr,
    .dereg_mr = dereg_mr,
    .create_channel = ibv_create_comp_channel,
    .destroy_channel = destroy_channel,
    .create_cq = create_cq,
    .destroy_cq = destroy_cq,
    .get_cq_event = get_cq_event,
    .ack_cq_events = ibv_ack_cq_events,
    .req_notify_cq = req_notify_cq,
    .poll_cq = poll_cq,
    .create_qp = ibv_create_qp,
    .modify_qp = modify_qp,
    .destroy_qp = destroy_qp,
    .post_send = post_send,
    .get_async_event = get_async_event,
    .ack_async_event = ibv_ack_async_event,
};
