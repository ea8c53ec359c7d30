/* How fast a bare verbs loop moves blocks: the limit of the rdma transport.
 *
 *   raw_verbs read|write SIZE CHUNK DEPTH poll|event [ROUNDS [DEVICE [GID]]]
 *
 * Two processes on one device, an RC queue pair each; the first one reads from
 * (or writes to) the memory of the second, which only sleeps. A block of SIZE
 * bytes goes in work requests of CHUNK bytes, at most DEPTH of them posted; one
 * in DEPTH/4 is signalled, and the last. What there is room for is posted as
 * one chain. `poll` spins on the completion queue, `event` sleeps in
 * ibv_get_cq_event. One JSON line a round; the last block is checked. */
#include "../common.h"

#include <errno.h>
#include <infiniband/verbs.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define DEPTH_MAX 1024

struct hello { /* what each side tells the other */
    uint32_t qpn, psn, rkey, rd_atomic;
    uint64_t addr;
    union ibv_gid gid;
    uint16_t lid;
    uint8_t mtu;
};

static struct ibv_context *ctx;
static struct ibv_pd *pd;
static struct ibv_mr *mr;
static struct ibv_comp_channel *channel;
static struct ibv_cq *cq;
static struct ibv_qp *qp;
static struct ibv_port_attr port;
static int gid_index = -1;
static unsigned depth, every;
static uint64_t chunk;
static bool writes, events;
static char *mem;
static uint64_t n_wr, n_wc, n_posts, n_sleeps;
static uint64_t register_ns; /* what ibv_reg_mr of the block took */

static void open_device(const char *name)
{
    int n = 0;
    struct ibv_device **list = ibv_get_device_list(&n);

    for (int i = 0; i < n && ctx == NULL; i++)
        if (name == NULL || strcmp(ibv_get_device_name(list[i]), name) == 0)
            ctx = ibv_open_device(list[i]);
    if (ctx == NULL)
        bench_die("no verbs device");
    ibv_free_device_list(list);
    if (ibv_query_port(ctx, 1, &port) != 0 || port.state != IBV_PORT_ACTIVE)
        bench_die("port 1 is not active");
}

/* The first IPv4 address under RoCE v2; index 0 where there is none. */
static void choose_gid(union ibv_gid *gid)
{
    static const uint8_t v4[12] = {[10] = 0xff, [11] = 0xff};
    struct ibv_gid_entry e;

    for (int i = 0; gid_index < 0 && i < port.gid_tbl_len; i++)
        if (ibv_query_gid_ex(ctx, 1, (uint32_t)i, &e, 0) == 0 &&
            e.gid_type == IBV_GID_TYPE_ROCE_V2 &&
            memcmp(e.gid.raw, v4, sizeof v4) == 0)
            gid_index = i;
    if (gid_index < 0)
        gid_index = 0;
    if (ibv_query_gid(ctx, 1, gid_index, gid) != 0)
        bench_die("no GID %d", gid_index);
}

static struct hello make_qp(uint64_t size)
{
    int access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ |
                 IBV_ACCESS_REMOTE_WRITE;
    struct ibv_device_attr dev;
    struct ibv_qp_attr a = {.qp_state = IBV_QPS_INIT,
                            .port_num = 1,
                            .qp_access_flags = (unsigned)access};
    struct ibv_qp_init_attr init = {.qp_type = IBV_QPT_RC};
    struct hello h = {.lid = port.lid, .mtu = (uint8_t)port.active_mtu};

    if (ibv_query_device(ctx, &dev) != 0)
        bench_die("cannot query the device");
    pd = ibv_alloc_pd(ctx);
    channel = ibv_create_comp_channel(ctx);
    cq = channel ? ibv_create_cq(ctx, (int)depth + 1, NULL, channel, 0) : NULL;
    register_ns = bench_now();
    mr = pd ? ibv_reg_mr(pd, mem, size, access) : NULL;
    register_ns = bench_now() - register_ns;
    if (cq == NULL || mr == NULL)
        bench_die("no queue or no registration: %s", strerror(errno));
    init.send_cq = init.recv_cq = cq;
    init.cap.max_send_wr = depth;
    init.cap.max_recv_wr = init.cap.max_send_sge = init.cap.max_recv_sge = 1;
    qp = ibv_create_qp(pd, &init);
    if (qp == NULL || ibv_modify_qp(qp, &a,
                                    IBV_QP_STATE | IBV_QP_PKEY_INDEX |
                                        IBV_QP_PORT | IBV_QP_ACCESS_FLAGS) != 0)
        bench_die("no queue pair: %s", strerror(errno));
    choose_gid(&h.gid);
    h.qpn = qp->qp_num;
    h.psn = (uint32_t)bench_now() & 0xffffff;
    h.rkey = mr->rkey;
    h.addr = (uintptr_t)mem;
    h.rd_atomic = (uint32_t)(dev.max_qp_rd_atom < dev.max_qp_init_rd_atom
                                 ? dev.max_qp_rd_atom
                                 : dev.max_qp_init_rd_atom);
    return h;
}

static void connect_qp(const struct hello *me, const struct hello *peer)
{
    uint32_t rd =
        me->rd_atomic < peer->rd_atomic ? me->rd_atomic : peer->rd_atomic;
    struct ibv_qp_attr a = {
        .qp_state = IBV_QPS_RTR,
        .path_mtu = me->mtu < peer->mtu ? me->mtu : peer->mtu,
        .dest_qp_num = peer->qpn,
        .rq_psn = peer->psn,
        .max_dest_rd_atomic = (uint8_t)(rd > 255 ? 255 : rd),
        .min_rnr_timer = 12,
        .ah_attr = {.port_num = 1, .dlid = peer->lid},
    };

    a.ah_attr.is_global = port.link_layer == IBV_LINK_LAYER_ETHERNET;
    a.ah_attr.grh.dgid = peer->gid;
    a.ah_attr.grh.sgid_index = (uint8_t)gid_index;
    a.ah_attr.grh.hop_limit = 64;
    if (ibv_modify_qp(qp, &a,
                      IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU |
                          IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                          IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER) !=
        0)
        bench_die("ready to receive: %s", strerror(errno));
    a.qp_state = IBV_QPS_RTS;
    a.timeout = 14;
    a.retry_cnt = a.rnr_retry = 7;
    a.sq_psn = me->psn;
    a.max_rd_atomic = a.max_dest_rd_atomic;
    if (ibv_modify_qp(qp, &a,
                      IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT |
                          IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
                          IBV_QP_MAX_QP_RD_ATOMIC) != 0)
        bench_die("ready to send: %s", strerror(errno));
}

/* Posts a chain of `n` chunks from `first`; `total` make the block. wr_id is
 * how many chunks are complete when this one is. */
static void post(const struct hello *peer, uint64_t size, uint64_t first,
                 uint64_t n, uint64_t total)
{
    static struct ibv_send_wr wr[DEPTH_MAX];
    static struct ibv_sge sge[DEPTH_MAX];
    struct ibv_send_wr *bad;

    for (uint64_t i = 0; i < n; i++) {
        uint64_t c = first + i, at = c * chunk;
        bool signal = (c + 1) % every == 0 || c + 1 == total;

        sge[i] = (struct ibv_sge){
            .addr = (uintptr_t)mem + at,
            .length = (uint32_t)(size - at < chunk ? size - at : chunk),
            .lkey = mr->lkey};
        wr[i] = (struct ibv_send_wr){
            .wr_id = c + 1,
            .next = i + 1 < n ? &wr[i + 1] : NULL,
            .sg_list = &sge[i],
            .num_sge = 1,
            .opcode = writes ? IBV_WR_RDMA_WRITE : IBV_WR_RDMA_READ,
            .send_flags = signal ? IBV_SEND_SIGNALED : 0};
        wr[i].wr.rdma.remote_addr = peer->addr + at;
        wr[i].wr.rdma.rkey = peer->rkey;
    }
    if (ibv_post_send(qp, wr, &bad) != 0)
        bench_die("post: %s", strerror(errno));
    n_wr += n;
    n_posts++;
}

static void sleep_for_event(void)
{
    struct ibv_cq *which;
    void *arg;

    if (ibv_get_cq_event(channel, &which, &arg) != 0)
        bench_die("channel: %s", strerror(errno));
    ibv_ack_cq_events(which, 1);
    if (ibv_req_notify_cq(which, 0) != 0)
        bench_die("notify: %s", strerror(errno));
    n_sleeps++;
}

/* The highest wr_id that has completed since, or `had`. */
static uint64_t completions(uint64_t had)
{
    struct ibv_wc wc[16];
    int n;

    while ((n = ibv_poll_cq(cq, 16, wc)) > 0)
        for (int i = 0; i < n; i++) {
            if (wc[i].status != IBV_WC_SUCCESS)
                bench_die("completion: %s", ibv_wc_status_str(wc[i].status));
            had = wc[i].wr_id;
            n_wc++;
        }
    if (n < 0)
        bench_die("poll");
    return had;
}

static void move(const struct hello *peer, uint64_t size)
{
    uint64_t total = (size + chunk - 1) / chunk, posted = 0, done = 0;

    while (done < total) {
        uint64_t room = depth - (posted - done), before = done;

        if (room > total - posted)
            room = total - posted;
        if (room > 0) {
            post(peer, size, posted, room, total);
            posted += room;
        }
        done = completions(done);
        while (done == before) {
            if (events)
                sleep_for_event();
            done = completions(done);
        }
    }
}

static void rounds(const struct hello *peer, uint64_t size, unsigned n_rounds)
{
    uint64_t turns = bench_turns(size, 64 * MIB);

    if (events && ibv_req_notify_cq(cq, 0) != 0)
        bench_die("notify");
    move(peer, size);
    for (unsigned r = 0; bench_step(r, n_rounds); r++) {
        uint64_t n = turns, cpu, t0, ns;
        double gb = (double)(n * size) / 1e9, of = (double)n;

        n_wr = n_wc = n_posts = n_sleeps = 0;
        cpu = bench_cpu(0);
        t0 = bench_now();
        for (uint64_t i = 0; i < n; i++)
            move(peer, size);
        ns = bench_now() - t0;
        cpu = bench_cpu(0) - cpu;
        printf("{\"bench\":\"verbs\",\"how\":\"%s %s\",\"size\":%llu,"
               "\"chunk\":%llu,\"depth\":%u,\"GBps\":%.5f,\"us\":%.2f,"
               "\"cpu_s_per_GB\":%.4f,\"wr\":%.1f,\"completions\":%.1f,"
               "\"doorbells\":%.1f,\"sleeps\":%.1f,\"register_us\":%.1f}\n",
               writes ? "write" : "read", events ? "event" : "poll",
               (unsigned long long)size, (unsigned long long)chunk, depth,
               gb * 1e9 / (double)ns, (double)ns / 1e3 / of,
               (double)cpu / 1e9 / gb, (double)n_wr / of, (double)n_wc / of,
               (double)n_posts / of, (double)n_sleeps / of,
               (double)register_ns / 1e3);
        fflush(stdout);
    }
}

static void exchange(int fd, const void *mine, void *theirs, size_t n)
{
    if (write(fd, mine, n) != (ssize_t)n ||
        recv(fd, theirs, n, MSG_WAITALL) != (ssize_t)n)
        bench_die("the other process is gone");
}

/* The side whose memory is used: it says at the end whether its bytes are the
 * pattern that the writer has, or gives its own to be read. */
static int target(int fd, uint64_t size)
{
    char word[4];

    exchange(fd, "up", word, 2); /* both queue pairs are ready */
    if (recv(fd, word, 1, MSG_WAITALL) != 1)
        return 1;
    word[0] = bench_check(mem, size, 7, 0) == UINT64_MAX ? 'y' : 'n';
    return write(fd, word, 1) != 1;
}

static void initiator(int fd, const struct hello *peer, uint64_t size,
                      unsigned n_rounds)
{
    char word[4] = "?";

    exchange(fd, "up", word, 2);
    rounds(peer, size, n_rounds);
    exchange(fd, "?", word, 1);
    if (word[0] != 'y' || bench_check(mem, size, 7, 0) != UINT64_MAX)
        bench_die("wrong bytes came");
}

int main(int argc, char **argv)
{
    struct hello me, peer;
    int pair[2], code = 0;
    uint64_t size;
    pid_t kid;

    if (argc < 6)
        bench_die("usage: raw_verbs read|write SIZE CHUNK DEPTH poll|event "
                  "[ROUNDS [DEVICE [GID]]]");
    writes = argv[1][0] == 'w';
    size = bench_size(argv[2]);
    chunk = bench_size(argv[3]);
    depth = (unsigned)atoi(argv[4]);
    every = depth >= 8 ? depth / 4 : 1;
    events = argv[5][0] == 'e';
    if (argc > 8)
        gid_index = atoi(argv[8]);
    if (depth < 1 || depth > DEPTH_MAX || chunk < 1 || chunk > GIB || size < 1)
        bench_die("1 to %u deep, chunks of 1 byte to 1 GiB", DEPTH_MAX);
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0)
        bench_die("cannot pair");
    kid = fork();
    if (kid < 0)
        bench_die("cannot fork");
    if (kid == 0)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    close(pair[kid == 0 ? 1 : 0]);
    open_device(argc > 7 ? argv[7] : NULL);
    mem = bench_memory(size, true);
    if ((kid == 0) != writes)
        bench_fill(mem, size, 7, 0);
    me = make_qp(size);
    exchange(pair[kid == 0 ? 0 : 1], &me, &peer, sizeof me);
    connect_qp(&me, &peer);
    if (kid == 0)
        return target(pair[0], size);
    initiator(pair[1], &peer, size, argc > 6 ? (unsigned)atoi(argv[6]) : 1);
    waitpid(kid, &code, 0);
    return code != 0;
}
