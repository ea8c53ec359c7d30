/* Several daemons' logic in one process: store, buffers, peers and gets of each
 * node are the real code; sockets, processes and time are simulated. One
 * virtual clock, one seeded generator: the same seed gives the same run.
 *
 *   sim_world.c  time: the next thing that is due, one step at a time
 *   sim_net.c    struct kvf_channel_ops: delay, loss, partition, reconnect
 *   sim_bulk.c   struct kvf_transport_ops as tcp keeps them, over no sockets
 *   sim_node.c   a daemon: start, kill, freeze; processes and who watches them
 *   sim_engine.c an engine: puts with bytes that tell whose they are, gets
 * whose replies are checked at once, and the invariants
 *
 * What a test does between two steps happens outside every node. */
#ifndef KVF_TESTS_SIM_H
#define KVF_TESTS_SIM_H

#include "peer/peers.h"
#include "peer/window.h"
#include "request/gets.h"
#include "request/moves.h"
#include "request/pulls.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#define SIM_NODES 4
#define SIM_MS KVF_NS_PER_MS

struct sim_node;
struct sim_get;

/* A process that may be watched. */
struct sim_proc {
    uint64_t pid;
    bool alive;
};

#define SIM_PROCS 512
#define SIM_OLD 32

struct sim_conf {
    unsigned nodes;
    uint64_t pool_size, inline_max;
    uint64_t delay_ns;   /* of a message, least */
    uint64_t jitter_ns;  /* above that */
    uint64_t tick_ns;    /* every look at the clock takes so long */
    uint64_t bulk_chunk; /* bytes of one op */
    uint64_t bulk_step_ns;
    unsigned no_shm; /* bit i: node i offers no shared memory */
    /* So many nodes are the ranks of stage 0, the others those of stage 1; 0:
     * each is a stage of its own. */
    unsigned senders;
    unsigned bulk_fail_pct, bulk_cut_pct, dup_hello_pct, busy_pct;
    unsigned dup_pct; /* of all messages: comes twice */
};

struct sim {
    struct sim_conf conf;
    uint64_t now_ns;
    struct kvf_sched world; /* messages, transfers, what the test plans */
    struct kvf_rng rng;
    uint64_t seed;
    struct sim_node *node[SIM_NODES];
    struct sim_node *current; /* on whose behalf something runs */
    bool cut[SIM_NODES][SIM_NODES];
    struct kvf_list dials, messages, serves, puts, gets, views;
    struct sim_proc proc[SIM_PROCS];
    unsigned n_procs;
    uint64_t next_generation, next_seed, next_rid;
    uint64_t bulk_ops, bulk_bytes; /* ops begun, bytes that arrived */
    uint64_t fail_op, cut_op;      /* this op (1, 2, ...) breaks; 0 = none */
    /* Tests: false drops a message of `type` between two nodes. */
    bool (*pass)(struct sim *sim, unsigned from, unsigned to,
                 enum kvf_peer_type type);
    unsigned n_gets_open;
    /* Tests of windows: a notification has come. */
    void (*written)(struct sim_node *n, const struct kvf_window *w, bool write,
                    const void *data, size_t len);
    /* Tests of pushes: `retired` of one with notify, at the pushing node. */
    void (*push_end)(struct sim_node *n, const struct kvf_push_end *e);
};

struct sim_engine {
    uint64_t pid;
    bool alive;
    struct kvf_list buffers, views; /* of its session */
    struct kvf_list windows, layouts;
    /* Starts of its daemon that ended under it, not yet reported unmapped. */
    struct kvf_id old[SIM_OLD];
    unsigned n_old;
};

struct sim_admit { /* who may use the bulk port */
    struct kvf_list node;
    uint8_t secret[32];
    void *session;
};

struct sim_node {
    struct sim *sim;
    unsigned idx;
    bool alive, frozen;
    unsigned boots;
    uint64_t pid, thawed_ns;
    uint64_t dying_ns; /* its clock runs on while it is killed */
    struct kvf_worker worker;
    struct kvf_id incarnation;
    struct kvf_conf *conf;
    struct kvf_sched sched;
    struct kvf_stats stats;
    struct kvf_rng rng;
    struct kvf_segment seg;
    struct kvf_pool *pool;
    struct kvf_buffers *bufs;
    struct kvf_map_cache *maps;
    struct kvf_mapping *own_map;
    struct kvf_store *store;
    struct kvf_transport *shm, *tcp;
    struct kvf_peers *peers;
    struct kvf_gets *gets;
    struct kvf_moves *moves;
    struct kvf_blocks *blocks;
    struct kvf_pulls *pulls;
    struct kvf_list inbox;    /* messages that came while it was frozen */
    struct kvf_list watchers; /* struct kvf_proc_watch */
    struct kvf_list admitted;
    struct sim_engine engine;
};

/* ---- world -------------------------------------------------------------- */

struct sim *sim_new(const struct sim_conf *conf, uint64_t seed);
void sim_free(struct sim *sim);
/* Goes to what is due next (at most `limit_ns`) and lets it happen, with the
 * invariants checked. False when nothing was due before the limit. */
bool sim_step(struct sim *sim, uint64_t limit_ns);
void sim_run_ms(struct sim *sim, uint64_t ms);
uint64_t sim_below(struct sim *sim, uint64_t n);
bool sim_chance(struct sim *sim, unsigned percent);
/* For kvf_log_tap: prints the log with the time and the node. */
void sim_tap(void *arg, const char *line);
/* Ends the test with the seed and the time in the message. */
void sim_fail(struct sim *sim, const char *fmt, ...)
    __attribute__((format(printf, 2, 3), noreturn));

/* ---- nodes -------------------------------------------------------------- */

void sim_node_start(struct sim *sim, unsigned idx);
/* Which worker a node is. */
struct kvf_worker sim_worker(const struct sim *sim, unsigned idx);
/* SIGKILL: nothing is said to anybody. The engine lives on unless told. */
void sim_node_kill(struct sim_node *n, bool engine_too);
void sim_node_freeze(struct sim_node *n);
void sim_node_thaw(struct sim_node *n);
/* The engine's process ends; its daemon sees that. */
void sim_engine_kill(struct sim_node *n);
void sim_engine_start(struct sim_node *n);
uint64_t sim_proc_new(struct sim *sim);
void sim_proc_end(struct sim *sim, uint64_t pid);
bool sim_proc_alive(const struct sim *sim, uint64_t pid);
/* Before a call into a node from outside; returns the one before. */
struct sim_node *sim_enter(struct sim_node *n);
void sim_leave(struct sim_node *n, struct sim_node *before);

/* ---- network ------------------------------------------------------------ */

extern const struct kvf_channel_ops sim_channel_ops; /* ctx: the node */
/* Messages and bytes between the two are lost until it is healed; then the
 * connections are made anew. */
void sim_net_cut(struct sim *sim, unsigned a, unsigned b, bool cut);
/* The connections between the two break and come back: what was on its way is
 * lost, and there is a new routing id. */
void sim_net_reset(struct sim *sim, unsigned a, unsigned b);
void sim_net_node_gone(struct sim_node *n);
void sim_net_thaw(struct sim_node *n);
void sim_net_free(struct sim *sim);

/* ---- bulk --------------------------------------------------------------- */

int sim_bulk_create(struct sim_node *n, struct kvf_transport **out,
                    struct kvf_why *why);
int sim_bulk_admit(void *ctx, const uint8_t *secret, void *session,
                   struct kvf_why *why);
void sim_bulk_expel(void *ctx, void *session);
void sim_bulk_node_gone(struct sim_node *n);
void sim_bulk_check(struct sim *sim);
void sim_bulk_free(struct sim *sim);

/* ---- engines ------------------------------------------------------------ */

struct sim_put_opts {
    uint64_t size, ttl_ms, readers; /* ttl 0 = 60 s */
    unsigned segments;              /* 0 = 1; each in a buffer of its own */
    bool checksum, reject;
};
/* What was put: tells the bytes of a generation for ever. */
struct sim_put {
    struct kvf_list node;
    char key[32];
    unsigned idx, boot;
    uint64_t generation, size, seed;
    unsigned n_segs;
    uint64_t buffer[4], offset[4], length[4];
};
/* The generation, or 0 with the status. */
uint64_t sim_put(struct sim_node *n, const char *key,
                 const struct sim_put_opts *o, enum kvf_status *status);

struct sim_get_opts {
    uint64_t timeout_ms; /* 0 = none */
    enum kvf_mode mode;
    bool no_wait, hold, has_incarnation;
    uint64_t generation; /* 0 = any */
    struct kvf_id incarnation;
    uint64_t into; /* bytes, mode INTO */
};
struct sim_get {
    struct kvf_list node;
    struct sim *sim;
    unsigned idx, boot, from;
    char key[32];
    struct kvf_get *get; /* NULL when over */
    unsigned replies, helds;
    uint64_t start_ns, deadline_ns, generation, reply_ns;
    bool gone; /* its daemon or session died: no reply will come */
    bool refuse_reply;
    enum kvf_status status;
    char text[248], transport[12];
    uint64_t got_generation, size, buffer;
    enum kvf_mode mode;
    unsigned attempts;
    struct kvf_buffer *into;
    uint64_t into_id;
};
/* A view that an engine has mapped: outlives its daemon, not its engine. */
struct sim_view {
    struct kvf_list node;
    unsigned idx, boot;
    struct kvf_id incarnation; /* of its daemon */
    uint64_t pid, id, generation;
};
struct sim_get *sim_get(struct sim_node *n, unsigned from, const char *key,
                        const struct sim_get_opts *o);
/* Releases what an OK reply gave. */
void sim_release(struct sim_node *n, uint64_t buffer);
/* The engine unmaps its views of one earlier start of its daemon, if it has
 * any, and says so (hello.unmapped). False when there is no earlier start. */
bool sim_release_old(struct sim_node *n);
void sim_get_drop(struct sim_get *g); /* forgets an answered one */
void sim_engines_node_gone(struct sim_node *n);
void sim_engines_check(struct sim *sim);
void sim_engines_free(struct sim *sim);
const struct sim_put *sim_put_of(const struct sim *sim, uint64_t generation);
/* After everything has ended: memory, gauges and timers are back to nothing. */
void sim_check_quiet(struct sim *sim);

#endif
