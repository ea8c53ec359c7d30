/* kvferry bench as a pair: a target that exposes a window, an initiator that
 * writes or reads it, each beside a kvferryd (its own, unless one is named).
 *
 *   pair_options.c    the command line, in our words and in Mooncake's
 *   pair_daemon.c     the own kvferryd: started, waited for, ended
 *   pair_target.c     the window, and a small control window beside it
 *   pair_initiator.c  many batches at once, rounds when bytes are verified
 *   pair_batch.c      one batch: its requests, its bytes filled and checked
 *   pair_order.c      what the initiator asks of the target's engine
 *   pair_report.c     the progress line and the figures
 *
 * The control window (<window>.ctl) carries what is not measured: an *order* is
 * an empty-handed write into it whose notification says what to do (report CPU
 * time, fill, check); the target answers in its memory, where the initiator
 * reads it. So a check is made by the target's own eyes. */
#ifndef KVF_CLI_PAIR_H
#define KVF_CLI_PAIR_H

#include "cli.h"

#include <sys/types.h>

struct pair {
    struct cli *c;
    bool target, write, verify, json, cold;
    const char *engine, *protocol, *device, *ready_file, *kvferryd, *window,
        *unit;
    const char *nics; /* a file that names devices; NULL: none */
    char nic[64];     /* what `device` points to */
    bool discover;    /* the daemon chooses the device */
    char host[256];   /* local: what the own daemon binds and tells */
    uint16_t port;    /* its metadata port; 0: a free one */
    char peer_host[256];
    uint16_t peer_port; /* initiator: where the target is */
    uint64_t block, buffer, duration_ms, timeout_ms, count;
    unsigned batch, depth, warmup, precision;
    unsigned part; /* blocks of one request at most */
};

/* Reads the command line: 0, or an exit status after a message. */
int pair_options(struct cli *c, int argc, char **argv, struct pair *p);
/* --mode target or --mode initiator is among the arguments. */
bool pair_wanted(int argc, char **argv);
int pair_main(struct cli *c, int argc, char **argv);
int pair_target(struct pair *p);
int pair_initiator(struct pair *p);

/* ---- the own daemon ----------------------------------------------------- */
struct pair_daemon {
    pid_t pid; /* 0: none */
    char dir[128], endpoint[160];
};
/* A kvferryd with a pool for `room` bytes of buffers. It ends with this
 * process, whatever happens to that. 0, or an exit status after a message. */
int pair_daemon_start(const struct pair *p, uint64_t room,
                      struct pair_daemon *d);
/* False once it ended by itself. */
bool pair_daemon_runs(struct pair_daemon *d);
void pair_daemon_stop(struct pair_daemon *d);
/* The daemon's and this process' CPU time so far, ns; negative: not known. */
int64_t pair_daemon_cpu(const struct kvferry_info *i);
int64_t pair_own_cpu(void);
/* Set by SIGINT and SIGTERM once pair_catch_signals was called. */
bool pair_interrupted(void);
void pair_catch_signals(void);

/* ---- orders ------------------------------------------------------------- */
#define PAIR_MAGIC 0x6b76622d70616972ull
#define PAIR_SLOTS 64
#define PAIR_STATUS_SIZE 4096 /* then the part that orders write to */
#define PAIR_CTL_SIZE 8192
#define PAIR_ORDER_SIZE 56

enum pair_what { PAIR_REPORT, PAIR_FILL, PAIR_CHECK };

struct pair_order { /* travels as seven big-endian numbers */
    uint64_t what, slot, seq, offset, length, block, seed;
};

struct pair_status { /* how the control window begins; host byte order */
    uint64_t magic, window_size;
    int64_t daemon_cpu_ns, engine_cpu_ns;
    uint64_t answered[PAIR_SLOTS]; /* seq of the last order of that slot */
    uint64_t wrong[PAIR_SLOTS];    /* its wrong blocks */
};

void pair_order_write(const struct pair_order *o, uint8_t out[PAIR_ORDER_SIZE]);
/* `hex`: the notification as the event's JSON has it. False: not an order. */
bool pair_order_read(const char *hex, struct pair_order *o);

/* The initiator's side of it. */
struct pair_link {
    struct kvferry *h;
    const struct pair *p;
    struct kvferry_buffer ctl;
    char ctl_name[300];
    uint64_t slot, seq;
};
int pair_link_open(struct pair_link *l, struct kvferry *h,
                   const struct pair *p);
/* Asks and waits for the answer: 0 and the status as the target wrote it, or a
 * negative status. `wrong` may be NULL. */
int pair_order_do(struct pair_link *l, struct pair_order o,
                  struct pair_status *out, uint64_t *wrong);
void pair_target_of(const struct pair *p, struct kvferry_target *to);

/* ---- figures ------------------------------------------------------------ */
struct pair_result {
    uint64_t *latency_ns; /* of each batch of which all was done */
    uint64_t n, room;
    uint64_t blocks;          /* done */
    uint64_t failed, retries; /* requests; attempts */
    uint64_t failed_blocks, verified, wrong;
    uint64_t ns; /* in which at least one batch was under way */
    /* Of the requests that were done, as the daemon tells it. */
    uint64_t requests, ask_us, transfer_us, daemon_us;
    double initiator_cpu_s, target_cpu_s; /* negative: not known */
    char transport[16], error[220];
};
/* False without memory. */
bool pair_result_add(struct pair_result *r, uint64_t ns);
/* Once a second at most, on standard error. */
void pair_progress(const struct pair *p, const struct pair_result *r,
                   uint64_t running_ns, bool last);
void pair_print(const struct pair *p, struct pair_result *r);
/* A report unit's bytes; 0: there is no such unit. */
double pair_unit(const char *name);

/* ---- batches ------------------------------------------------------------ */
struct pair_run;
struct pair_slot;
struct pair_part { /* one request of a batch */
    struct pair_slot *slot;
    unsigned first, n; /* blocks */
    bool done;         /* well */
};

struct pair_slot { /* one batch after the other */
    struct pair_run *run;
    unsigned nth, failures; /* batches in a row */
    unsigned left;          /* requests under way */
    bool busy;
    uint64_t t0, offset, not_before, seed;
    struct kvferry_segment *seg;
    struct pair_part *parts;
};

struct pair_run {
    struct pair *p;
    struct kvferry *h;
    struct kvferry_info info;
    struct kvferry_buffer local;
    struct pair_link link;
    struct pair_daemon daemon;
    struct pair_result r, *into; /* into: NULL while warming up */
    struct pair_slot *slots;
    uint64_t started, limit, end_ns, busy_since, seed, moved;
    unsigned busy;
    bool broken; /* orders are not answered any more */
};

uint64_t pair_batch_bytes(const struct pair *p);
/* Requests that a batch takes. */
unsigned pair_batch_parts(const struct pair *p);
/* False without memory; pair_batch_free in any case. */
bool pair_batch_init(struct pair_slot *s, struct pair_run *run, unsigned nth);
void pair_batch_free(struct pair_slot *s);
/* Chooses the blocks, here and at the target. */
void pair_batch_lay_out(struct pair_slot *s);
/* What is written, or what a read must replace. */
void pair_batch_fill(struct pair_slot *s);
void pair_batch_start(struct pair_slot *s);
/* Compares what was done; blocks while the target does. */
void pair_batch_check(struct pair_slot *s);
#endif
