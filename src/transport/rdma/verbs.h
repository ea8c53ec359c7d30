/* The verbs calls that this transport makes, as a table: the real libibverbs,
 * or a fake that shows on demand what no device does (tests/lib/fake_verbs.c).
 *
 * Every int function returns 0 or a positive errno, whatever the library's own
 * habit; poll_cq returns how many entries, or a negative errno; pointers are
 * NULL with errno set. One thread. */
#ifndef KVF_TRANSPORT_RDMA_VERBS_H
#define KVF_TRANSPORT_RDMA_VERBS_H

#include <infiniband/verbs.h>

struct kvf_verbs {
    struct ibv_device **(*get_device_list)(int *n);
    void (*free_device_list)(struct ibv_device **list);
    const char *(*device_name)(struct ibv_device *dev);
    struct ibv_context *(*open_device)(struct ibv_device *dev);
    int (*close_device)(struct ibv_context *ctx);
    int (*query_device)(struct ibv_context *ctx, struct ibv_device_attr *attr);
    int (*query_port)(struct ibv_context *ctx, uint8_t port,
                      struct ibv_port_attr *attr);
    /* Entries that are filled, or a negative errno. */
    int (*gid_table)(struct ibv_context *ctx, struct ibv_gid_entry *entry,
                     unsigned max);
    struct ibv_pd *(*alloc_pd)(struct ibv_context *ctx);
    int (*dealloc_pd)(struct ibv_pd *pd);
    struct ibv_mr *(*reg_mr)(struct ibv_pd *pd, void *addr, size_t length,
                             int access);
    int (*dereg_mr)(struct ibv_mr *mr);
    struct ibv_comp_channel *(*create_channel)(struct ibv_context *ctx);
    int (*destroy_channel)(struct ibv_comp_channel *ch);
    struct ibv_cq *(*create_cq)(struct ibv_context *ctx, int cqe,
                                void *cq_context, struct ibv_comp_channel *ch);
    int (*destroy_cq)(struct ibv_cq *cq);
    int (*get_cq_event)(struct ibv_comp_channel *ch, struct ibv_cq **cq,
                        void **cq_context);
    void (*ack_cq_events)(struct ibv_cq *cq, unsigned n);
    int (*req_notify_cq)(struct ibv_cq *cq);
    int (*poll_cq)(struct ibv_cq *cq, int n, struct ibv_wc *wc);
    struct ibv_qp *(*create_qp)(struct ibv_pd *pd,
                                struct ibv_qp_init_attr *attr);
    int (*modify_qp)(struct ibv_qp *qp, struct ibv_qp_attr *attr, int mask);
    int (*destroy_qp)(struct ibv_qp *qp);
    int (*post_send)(struct ibv_qp *qp, struct ibv_send_wr *wr,
                     struct ibv_send_wr **bad);
    int (*get_async_event)(struct ibv_context *ctx,
                           struct ibv_async_event *event);
    void (*ack_async_event)(struct ibv_async_event *event);
};

extern const struct kvf_verbs kvf_verbs_real;

#endif
