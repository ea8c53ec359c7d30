/* What the files of the tcp transport share. */
#ifndef KVF_TRANSPORT_TCP_PRIV_H
#define KVF_TRANSPORT_TCP_PRIV_H

#include "transport/tcp/tcp.h"
#include "transport/turn.h"
#include "wire/frame.h"

#include <netinet/in.h>
#include <sys/socket.h>

#define KVF_TCP_PIPE 16u     /* requests under way on a connection */
#define KVF_TCP_QUEUE 64u    /* requests the owner reads ahead */
#define KVF_TCP_OPS_MAX 256u /* posted on one link */
/* Bytes a connection may move before the loop has its turn: some 50 us, so that
 * several busy connections together stay within a fraction of a millisecond.
 * With 128 KiB 16 MiB moved at 5.1 GB/s instead of 6.5 (bare sockets 7.3), and
 * pings beside 1 GiB were no faster. */
#define KVF_TCP_BUDGET (256ull << 10)
/* What one that sends alone may send while nobody asks: a turn that ends costs
 * the receiver a wait (reads of 64 KiB x 128 made 5.6 instead of 5.1 GB/s, gets
 * of 16 MiB 4.4 instead of 3.7; 1 MiB was no faster than that). */
#define KVF_TCP_LONG (512ull << 10)
#define KVF_TCP_SCRATCH (256u << 10) /* where unwanted bytes go */
/* Runs of at most so many bytes on average are put together and taken apart in
 * scratch: a piece costs the kernel some 60 ns more than a copy does (measured:
 * 64 B 107 -> 45 ns to send and 70 -> 42 to receive, 256 B 121 -> 74 and 117 ->
 * 66, 512 B 160 -> 131 and 157 -> 122, 1 KiB no difference). */
#define KVF_TCP_STAGE_RUN 512u
#define KVF_TCP_STAGE (64u << 10) /* bytes at once; stays in the cache */
#define KVF_TCP_STREAMS_MAX 16u
#define KVF_TCP_IOV 256u /* pieces of one system call */
/* Requests on their way out; the tables of runs need more. */
#define KVF_TCP_TX (KVF_PREFACE_LEN + KVF_TCP_PIPE * KVF_FRAME_REQ_LEN)
#define KVF_TCP_TX_RUNS (KVF_TCP_TX + KVF_FRAME_MAX_RUNS * KVF_FRAME_RUN_LEN)
/* The owner reads no further requests ahead while so many runs wait. */
#define KVF_TCP_RUNS_AHEAD 16384u
#define KVF_TCP_ACCEPT_PAUSE_NS (100 * KVF_NS_PER_MS)

struct kvf_tcp_secret {
    uint8_t secret[KVF_FRAME_SECRET];
    void *session;
};

struct kvf_tcp {
    struct kvf_transport t;
    struct kvf_reactor *reactor;
    struct kvf_tcp_conf conf;
    const struct kvf_serve_ops *serve;
    void *serve_arg;
    uint8_t *scratch; /* KVF_TCP_SCRATCH bytes; nothing in it lasts longer than
                         a call */
    struct kvf_turn turn;
    /* getter's side */
    unsigned n_out;
    /* owner's side */
    int listen_fd; /* -1: not listening */
    struct kvf_source listener;
    struct kvf_timer accept_again;
    struct kvf_list in_conns;
    unsigned n_in;
    unsigned n_amid; /* of them, with tx_amid */
    struct kvf_tcp_secret *secrets;
    unsigned n_secrets, cap_secrets;
};

/* Numeric addresses only; -1 otherwise. */
int kvf_tcp_parse_addr(const char *host, uint16_t port,
                       struct sockaddr_storage *sa, socklen_t *len);

/* Options of a connection that is made: no delay; and within a host a
 * congestion control that does not pace. Nothing is congested there, and the
 * timers of bbr, the default of some systems, cost half of the rate (raw_tcp
 * 16m 1 spin hot: 3.0 GB/s with bbr, 5.9 with cubic or reno). */
void kvf_tcp_tune(int fd);

/* ---- getter's side ------------------------------------------------------ */

struct kvf_tcp_slot { /* a request whose answer is awaited */
    uint64_t tag, length;
    struct kvf_transfer_op *op; /* NULL: nobody wants it any more */
    bool write;
};

struct kvf_tcp_link;

struct kvf_tcp_out {
    struct kvf_source src;
    struct kvf_tcp_link *tl;
    int fd; /* -1: not open */
    unsigned stream;
    bool up;
    struct kvf_timer timer; /* connect, then stall */
    uint64_t last_progress;
    struct kvf_list unsent;  /* ops whose request is not in tx yet */
    uint64_t bytes_assigned; /* of ops on this connection */
    /* requests on their way out: headers, then the bytes of one WRITE */
    uint8_t *tx; /* KVF_TCP_TX bytes, KVF_TCP_TX_RUNS once there were runs */
    unsigned tx_cap, tx_len, tx_off;
    struct kvf_transfer_op *tx_op;
    bool tx_rest; /* the end of tx is what was left of a cancelled WRITE */
    bool tx_blocked;
    /* answers */
    struct kvf_tcp_slot slot[KVF_TCP_PIPE];
    unsigned slot_first, slot_n;
    uint8_t rx[KVF_FRAME_RSP_LEN];
    unsigned rx_have;
    uint64_t rx_left; /* bytes of the first slot's answer still to come */
    bool rx_body;
};

struct kvf_tcp_link {
    struct kvf_link *link;
    struct kvf_tcp *tcp;
    struct kvf_link_addr addr;
    struct sockaddr_storage sa;
    socklen_t sa_len;
    struct kvf_tcp_out conn[KVF_TCP_STREAMS_MAX];
    unsigned n_conn; /* tried so far */
    unsigned n_live;
    uint64_t next_tag;
    bool starved, was_up, told_up;
    struct kvf_task event; /* on_up, on_down */
    struct kvf_task room;
    struct kvf_why down_why;
};

extern const struct kvf_source_ops kvf_tcp_out_ops;

int kvf_tcp_link_open(struct kvf_transport *t, struct kvf_link *link,
                      const struct kvf_link_addr *addr, struct kvf_why *why);
void kvf_tcp_link_close(struct kvf_link *link);
int kvf_tcp_post(struct kvf_link *link, struct kvf_transfer_op *op,
                 struct kvf_why *why);
void kvf_tcp_cancel(struct kvf_link *link, struct kvf_transfer_op *op);
/* Gives an op back; op is in no list and no slot of its connection. */
void kvf_tcp_op_end(struct kvf_tcp_out *c, struct kvf_transfer_op *op,
                    int status, const struct kvf_why *why);
/* Closes the connection and fails its ops; with the last one the link. */
void kvf_tcp_out_fail(struct kvf_tcp_out *c, const struct kvf_why *why);
/* The peer did something: it is not silent. */
void kvf_tcp_out_progress(struct kvf_tcp_out *c);
/* Fails the connection: n is 0 (end of file) or negative (errno). False. */
bool kvf_tcp_out_io_failed(struct kvf_tcp_out *c, const char *what, ssize_t n);
/* out_send.c */
/* Sends what the socket takes. False: the connection has failed. */
bool kvf_tcp_out_send(struct kvf_tcp_out *c);
/* What is left to send of tx_op is copied behind the requests in tx: the owner
 * counts on it, and the op's memory is not read any more. False: no memory. */
bool kvf_tcp_out_copy_rest(struct kvf_tcp_out *c);

/* out_op.c */
unsigned kvf_tcp_op_pieces(const struct kvf_transfer_op *op);
struct iovec kvf_tcp_op_piece(const struct kvf_transfer_op *op, unsigned i);
/* The part of the op's memory that has not moved yet, as far as KVF_TCP_IOV
 * pieces and max bytes go: pieces in v; *sum says how many bytes. */
unsigned kvf_tcp_op_rest(const struct kvf_transfer_op *op, struct iovec *v,
                         uint64_t max, uint64_t *sum);
/* n more bytes are where they belong. */
void kvf_tcp_op_moved(struct kvf_transfer_op *op, uint64_t n);
/* Its pieces are so small that what is received is copied into place. */
bool kvf_tcp_op_staged(const struct kvf_transfer_op *op);
/* Copies n received bytes into place. */
void kvf_tcp_op_place(struct kvf_transfer_op *op, const uint8_t *from,
                      uint64_t n);

/* Bytes that a turn of one connection may send. amid: not the first ones of
 * what is asked for; n_amid: connections that are. */
static inline uint64_t kvf_tcp_turn(struct kvf_tcp *tcp, bool amid,
                                    unsigned n_amid)
{
    bool alone =
        kvf_turn_long(&tcp->turn, tcp->t.stats, tcp->t.sched->now_ns, amid);

    return alone && n_amid <= 1 ? KVF_TCP_LONG : KVF_TCP_BUDGET;
}

/* ---- owner's side ------------------------------------------------------- */

/* A request and how far it is served. */
struct kvf_tcp_job {
    struct kvf_frame_req req;
    struct kvf_range *runs; /* its table, owned; NULL without */
    int status;             /* of a WRITE: != 0: refused, its bytes go to
                               scratch */
    uint64_t left;          /* bytes still to come, or not in the socket */
    unsigned run_at;        /* where the next part begins */
    uint64_t run_skip;
};

/* Where the bytes of a part of it lie. */
struct kvf_tcp_part {
    struct iovec iov[KVF_TCP_IOV];
    unsigned n, at;
    void *pin;
};

struct kvf_tcp_in {
    struct kvf_list node;
    struct kvf_source src;
    struct kvf_tcp *tcp;
    void *session;
    int fd;
    bool proven;
    struct kvf_timer timer; /* preface, then stall */
    uint64_t last_progress;
    uint8_t rx[KVF_TCP_QUEUE * KVF_FRAME_REQ_LEN];
    unsigned rx_len;
    struct kvf_tcp_job queue[KVF_TCP_QUEUE]; /* in the order of the requests */
    unsigned q_first, q_n;
    unsigned n_runs; /* in tables that are kept */
    /* a request whose table is being received into the end of wr.runs, or a
     * WRITE whose bytes are */
    bool table_active, wr_active;
    unsigned table_left; /* bytes */
    struct kvf_tcp_job wr;
    struct kvf_tcp_part wr_part;
    /* the answer being sent */
    bool tx_active, tx_blocked;
    bool tx_amid; /* bytes were sent since there was nothing to answer */
    uint8_t tx_hdr[KVF_FRAME_RSP_LEN];
    unsigned tx_hdr_off;
    struct kvf_tcp_job tx;
    struct kvf_tcp_part tx_part;
};

void kvf_tcp_in_accept(struct kvf_tcp *tcp, int fd);
void kvf_tcp_in_close(struct kvf_tcp_in *c);
bool kvf_tcp_in_serving(const struct kvf_tcp_in *c);
/* It may read another request. */
static inline bool kvf_tcp_in_takes(const struct kvf_tcp_in *c)
{
    return c->q_n < KVF_TCP_QUEUE && c->n_runs < KVF_TCP_RUNS_AHEAD;
}
/* Asks for the next part of a job, after what was asked before. 0 or a status
 * that may travel. */
int kvf_tcp_in_resolve(struct kvf_tcp_in *c, struct kvf_tcp_job *j,
                       struct kvf_tcp_part *part);
void kvf_tcp_in_unpin(struct kvf_tcp_in *c, struct kvf_tcp_part *part);
/* Whether it is in the middle of what it was asked for. */
void kvf_tcp_in_amid(struct kvf_tcp_in *c, bool amid);
/* Gives its table back. */
void kvf_tcp_job_end(struct kvf_tcp_in *c, struct kvf_tcp_job *j);
/* Both return false when the connection was closed. *bytes counts up. */
bool kvf_tcp_in_receive(struct kvf_tcp_in *c, uint64_t *bytes);
bool kvf_tcp_in_send(struct kvf_tcp_in *c, uint64_t *bytes);

/* Takes n bytes off the front of v[*at..n_v). */
static inline void kvf_tcp_iov_take(struct iovec *v, unsigned n_v, unsigned *at,
                                    uint64_t n)
{
    while (*at < n_v && n >= v[*at].iov_len) {
        n -= v[*at].iov_len;
        v[*at].iov_len = 0;
        ++*at;
    }
    if (n > 0 && *at < n_v) {
        v[*at].iov_base = (char *)v[*at].iov_base + n;
        v[*at].iov_len -= n;
    }
}
#endif
