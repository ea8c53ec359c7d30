/* The daemon as one object: every part, built in one visible order (server.c)
 * and torn down in reverse. One thread owns all of it. */
#ifndef KVF_DAEMON_SERVER_H
#define KVF_DAEMON_SERVER_H

#include "conf/conf.h"
#include "daemon/lockfile.h"
#include "daemon/reply.h"
#include "loop/resolver.h"
#include "loop/zsock.h"
#include "memory/proc.h"
#include "peer/peers.h"
#include "peer/window.h"
#include "request/gets.h"
#include "request/moves.h"
#include "request/pulls.h"
#include "transport/rdma/rdma.h"
#include "transport/tcp/tcp.h"

struct kvf_client;
struct kvf_session;
struct kvf_asks;
struct kvf_procwatch;
struct kvf_zchannel;
struct kvf_undo_list;

/* Clients remembered at once; idle ones without a session go first. */
#define KVF_MAX_CLIENTS 65536u

struct kvf_drain_left { /* what is still under way */
    uint64_t claims, gets, keys;
};

struct kvf_drain {
    bool active, cutting;
    bool closed; /* who waited for a put has been told that none comes */
    uint64_t since_ns, deadline_ns;
    struct kvf_drain_left cut_left; /* when the deadline came */
    struct kvf_timer timer;
};

struct kvf_server {
    /* what it was told */
    struct kvf_conf *conf;
    const char *conf_path, *ready_path;
    bool has_ready_file; /* it was written */

    /* who it is */
    struct kvf_id incarnation;
    uint64_t started_ns;
    uint64_t proc_start; /* of this process, in ticks */
    char engine_endpoint[KVF_CONF_TEXT];
    bool engine_ipc;
    char host[KVF_CONF_TEXT]; /* advertised */
    char bind_host[64];       /* numeric */
    uint16_t peer_port, bulk_port;

    /* the parts, in the order of building */
    struct kvf_lockfile lock;
    struct kvf_segment segment;
    bool has_segment;
    int broker; /* socket of the fd broker, -1 = none */
    pid_t broker_pid;
    struct kvf_zctx *zctx;
    struct kvf_stats stats;
    struct kvf_reactor *reactor;
    struct kvf_sched *sched;
    struct kvf_rng rng;
    struct kvf_pool *pool;
    struct kvf_buffers *buffers;
    struct kvf_map_cache *maps;
    struct kvf_mapping *own_map; /* the pool, as gets of own keys read it */
    struct kvf_store *store;
    struct kvf_blocks *blocks;
    struct kvf_resolver *resolver;
    struct kvf_procwatch *procs;
    struct kvf_asks *asks; /* ops_register.c: questions to the fd broker */
    struct kvf_transport *shm, *tcp; /* tcp: NULL when not configured */
    struct kvf_transport *rdma;      /* NULL: not configured, or no device */
    struct kvf_rdma_hooks rdma_hooks;
    bool shm_on; /* shm with peers */
    struct kvf_zchannel *channel;
    struct kvf_peers *peers;
    struct kvf_gets *gets;
    struct kvf_moves *moves;
    struct kvf_pulls *pulls;
    struct kvf_zsock *engine;

    /* engines */
    struct kvf_client *clients_by_rid, *clients_by_serial;
    unsigned n_clients;
    struct kvf_list clients_idle;   /* without a session, oldest first */
    struct kvf_list clients_joined; /* with one, oldest first */
    struct kvf_list event_clients;
    struct kvf_session *sessions_by_id, *sessions_by_serial;
    unsigned n_sessions;
    uint64_t next_serial;
    struct kvf_list ending; /* sessions that wait for their requests */
    unsigned n_pending;     /* requests not answered yet */
    bool pool_low;          /* event sent; again only above 15 % */

    struct kvf_reply reply;
    struct kvf_mpw scratch;
    struct kvf_seg segs[KVF_MAX_SEGMENTS]; /* of the request at hand */
    struct kvf_undo_list *undo_lists;      /* undo.c */
    struct kvf_list nobody_buffers, nobody_views;
    struct kvf_log_limit limit_malformed, limit_flood;

    struct kvf_drain drain;
    bool leaving; /* the loop has ended: no message makes anything new */
    int exit_code;
};

/* Builds everything and says that it is ready. `conf` is taken over (also
 * freed on failure). Blocks while the pool is prepared. NULL with why: cannot
 * start. */
struct kvf_server *kvf_server_create(struct kvf_conf *conf,
                                     const char *conf_path,
                                     const char *ready_path,
                                     struct kvf_why *why);
/* Runs the loop until drained; returns the exit code. */
int kvf_server_run(struct kvf_server *s);
void kvf_server_destroy(struct kvf_server *s); /* NULL is fine */

/* What a configuration asks for and this build cannot do: -KVF_UNSUPPORTED
 * with the reason, else 0. */
int kvf_server_supports(const struct kvf_conf *conf, struct kvf_why *why);

/* Is `proto` in [connector] protocol? */
bool kvf_server_speaks(const struct kvf_server *s, enum kvf_protocol proto);

/* ---- the parts that server.c has built by others ------------------------ */

/* process.c: limits, heap, lock, broker, pool; at the end the process has no
 * capabilities. Before any thread. May block while the pool is prepared. */
int kvf_server_build_process(struct kvf_server *s, struct kvf_why *why);

/* tcp.c: makes the transport and listens; fills tcp and bulk_port. */
int kvf_server_build_tcp(struct kvf_server *s, struct kvf_why *why);
/* What the tcp transport is to know of the configuration. */
void kvf_server_tcp_conf(const struct kvf_server *s, struct kvf_tcp_conf *tc);
/* Fills in what peers are to know of tcp, also when there is none. */
void kvf_server_tcp_for_peers(const struct kvf_server *s,
                              struct kvf_peers_env *env);

/* rdma.c: opens the verbs device and registers the pool. Without a device
 * `auto` goes on (s->rdma NULL, logged once); a configuration that names rdma
 * fails. */
int kvf_server_build_rdma(struct kvf_server *s, struct kvf_why *why);
/* Takes new figures (SIGHUP). */
void kvf_server_configure_rdma(struct kvf_server *s);

/* ---- drain.c: going away in order --------------------------------------- */

void kvf_drain_init(struct kvf_server *s);
/* Stops puts and gets of engines, lets readers finish for at most timeout_ms,
 * then ends the loop. A second call can only shorten it. */
void kvf_drain_begin(struct kvf_server *s, uint64_t timeout_ms,
                     const char *cause);
#define KVF_LAST_REPLIES_MS 500
/* The loop has ended (or never ran): every request is answered, then every
 * getter has heard BYE; each for KVF_LAST_REPLIES_MS at most. Blocks so long.
 * Nothing new is made afterwards. */
void kvf_drain_settle(struct kvf_server *s);

/* ---- ops_register.c ------------------------------------------------------ */

/* s->asks. Listens to the fd broker, when there is one. */
int kvf_asks_create(struct kvf_server *s, struct kvf_why *why);
/* Nothing may be pending. NULL is fine. */
void kvf_asks_destroy(struct kvf_asks *a);

/* ---- signals.c ---------------------------------------------------------- */

int kvf_signals_init(struct kvf_server *s, struct kvf_why *why);

/* ---- place.c: where the daemon listens ---------------------------------- */

/* Fills engine_endpoint, engine_ipc, host, bind_host. May ask the DNS once. */
int kvf_place_find(struct kvf_server *s, struct kvf_why *why);
/* Binds the engines' ROUTER (socket mode 0600 on ipc). */
int kvf_place_bind_engine(struct kvf_server *s, struct kvf_why *why);
/* Warns when a bound address can be reached from other hosts. */
void kvf_place_warn(const struct kvf_server *s);
/* The ready line, to stdout and to the ready file. */
int kvf_place_announce(struct kvf_server *s, struct kvf_why *why);

/* ---- stats.c ------------------------------------------------------------ */

/* Writes the maps of the `stats` reply into s->reply. */
void kvf_stats_write(struct kvf_server *s);
/* The whole of docs/METRICS.md. */
void kvf_stats_write_markdown(FILE *out);
unsigned kvf_count_fds(void); /* open descriptors of this process */

/* ---- dump.c ------------------------------------------------------------- */

/* Logs clients, sessions, keys, gets, peers, gauges (SIGUSR1). */
void kvf_server_dump(struct kvf_server *s);
#endif
