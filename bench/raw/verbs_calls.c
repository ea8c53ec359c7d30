/* How long each verbs call takes that the daemon makes in its loop when it
 * connects, or opens a device again that failed (src/transport/rdma/heal.c).
 *
 *   verbs_calls [ROUNDS]
 *
 * Opens the first device and makes everything on it, and takes it down again.
 * A line a call: the first one of the process, which may load a library or read
 * files, and of all others the median and the longest. */
#include "../common.h"

#include <infiniband/verbs.h>
#include <stdio.h>
#include <stdlib.h>

#define ROUNDS_MAX 1000
#define CALLS_MAX 32

static struct {
    const char *name;
    uint64_t ns[ROUNDS_MAX];
} calls[CALLS_MAX];
static unsigned at, n_calls, turn;
static uint64_t began;

static void start(void)
{
    began = bench_now();
}

static void stop(const char *name, bool ok)
{
    uint64_t ns = bench_now() - began;

    if (!ok)
        bench_die("%s failed", name);
    calls[at].name = name;
    calls[at++].ns[turn] = ns;
}

#define TIMED(name, call, ok)                                                  \
    do {                                                                       \
        start();                                                               \
        call;                                                                  \
        stop(name, ok);                                                        \
    } while (0)

static int modify(struct ibv_qp *qp, enum ibv_qp_state state)
{
    struct ibv_qp_attr a = {.qp_state = state,
                            .port_num = 1,
                            .qp_access_flags = IBV_ACCESS_REMOTE_READ};

    return ibv_modify_qp(qp, &a,
                         state != IBV_QPS_INIT
                             ? IBV_QP_STATE
                             : IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT |
                                   IBV_QP_ACCESS_FLAGS);
}

static void one(void *mem, uint64_t size)
{
    struct ibv_gid_entry gid[256];
    struct ibv_qp_init_attr init = {.qp_type = IBV_QPT_RC,
                                    .cap = {.max_send_wr = 256,
                                            .max_recv_wr = 1,
                                            .max_send_sge = 16,
                                            .max_recv_sge = 1}};
    struct ibv_device_attr device;
    struct ibv_port_attr port;
    struct ibv_device **list;
    struct ibv_context *ctx;
    struct ibv_comp_channel *channel;
    struct ibv_pd *pd;
    struct ibv_cq *cq;
    struct ibv_qp *qp;
    struct ibv_mr *mr;
    int n = 0, rc;

    TIMED("ibv_get_device_list", list = ibv_get_device_list(&n), n > 0);
    TIMED("ibv_open_device", ctx = ibv_open_device(list[0]), ctx != NULL);
    TIMED("ibv_query_device", rc = ibv_query_device(ctx, &device), rc == 0);
    TIMED("ibv_query_port", rc = ibv_query_port(ctx, 1, &port), rc == 0);
    TIMED("ibv_query_gid_table",
          rc = (int)ibv_query_gid_table(ctx, gid, 256, 0), rc >= 0);
    TIMED("ibv_alloc_pd", pd = ibv_alloc_pd(ctx), pd != NULL);
    TIMED("ibv_create_comp_channel", channel = ibv_create_comp_channel(ctx),
          channel != NULL);
    TIMED("ibv_reg_mr of 16 MiB",
          mr = ibv_reg_mr(pd, mem, size, IBV_ACCESS_LOCAL_WRITE), mr != NULL);
    TIMED("ibv_create_cq", cq = ibv_create_cq(ctx, 256, NULL, channel, 0),
          cq != NULL);
    init.send_cq = init.recv_cq = cq;
    TIMED("ibv_create_qp", qp = ibv_create_qp(pd, &init), qp != NULL);
    TIMED("ibv_modify_qp to INIT", rc = modify(qp, IBV_QPS_INIT), rc == 0);
    TIMED("ibv_modify_qp to ERR", rc = modify(qp, IBV_QPS_ERR), rc == 0);
    TIMED("ibv_destroy_qp", rc = ibv_destroy_qp(qp), rc == 0);
    TIMED("ibv_destroy_cq", rc = ibv_destroy_cq(cq), rc == 0);
    TIMED("ibv_dereg_mr", rc = ibv_dereg_mr(mr), rc == 0);
    TIMED("ibv_destroy_comp_channel", rc = ibv_destroy_comp_channel(channel),
          rc == 0);
    TIMED("ibv_dealloc_pd", rc = ibv_dealloc_pd(pd), rc == 0);
    TIMED("ibv_close_device", rc = ibv_close_device(ctx), rc == 0);
    ibv_free_device_list(list);
    n_calls = at;
    at = 0;
}

static int by_time(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;

    return (*x > *y) - (*x < *y);
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : 20;
    const uint64_t size = 16 * MIB;
    void *mem = bench_memory(size, false);

    if (rounds < 2 || rounds > ROUNDS_MAX)
        bench_die("ROUNDS is 2 to %d", ROUNDS_MAX);
    for (turn = 0; turn < (unsigned)rounds; turn++)
        one(mem, size);
    printf("%-26s %10s %10s %10s us\n", "", "first", "median", "longest");
    for (unsigned i = 0; i < n_calls; i++) {
        uint64_t *ns = calls[i].ns, first = ns[0];

        qsort(ns + 1, (size_t)rounds - 1, sizeof *ns, by_time);
        printf("%-26s %10.0f %10.0f %10.0f\n", calls[i].name,
               (double)first / 1e3, (double)ns[rounds / 2] / 1e3,
               (double)ns[rounds - 1] / 1e3);
    }
    return 0;
}
