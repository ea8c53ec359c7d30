/* The `stats` reply and its documentation, both from the same lists. */
#include "daemon/engine.h"

#include "daemon/procwatch.h"
#include "loop/accept_guard.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

/* X(name, expression, text); `k`, `p`, `g`, `x` are the gauges of below */
#define POOL_GAUGES(X)                                                         \
    X(size, k.size, "bytes of the pool, header page included")                 \
    X(free, k.free, "bytes that can be allocated")                             \
    X(largest_free, k.largest_free, "longest piece of them")                   \
    X(filling, k.filling, "allocated, an engine writes")                       \
    X(published, k.published, "published, no reader now")                      \
    X(claimed, k.claimed, "published, being read")                             \
    X(draining, k.draining, "waiting until nothing touches them")              \
    X(receiving, k.receiving, "being received into")                           \
    X(held, k.held, "received, an engine reads")                               \
    X(buffers, k.buffers, "number of buffers")                                 \
    X(regions, kvf_region_count(s->buffers), "number of registered regions")
#define KEY_GAUGES(X)                                                          \
    X(keys, p.keys, "keys known, tombstones included")                         \
    X(live, p.live, "live generations")                                        \
    X(draining, p.draining, "retired generations that claims still read")      \
    X(tombstones, p.tombstones, "keys remembered as ended")                    \
    X(parked, p.parked, "lookups that wait here for their key")                \
    X(claims, p.claims, "live claims")                                         \
    X(bytes, p.bytes, "payload bytes of all generations")
#define GET_GAUGES(X)                                                          \
    X(running, g.running, "gets without an answer")                            \
    X(waiting, g.waiting, "of these, waiting for peer or key")                 \
    X(pulling, g.pulling, "moving bytes")                                      \
    X(draining, g.draining, "cancelled, not quiet yet")                        \
    X(queued, g.queued, "waiting for room: window, in-flight limit, pool")     \
    X(views, g.views, "views that engines hold")                               \
    X(pull_bytes, g.pull_bytes, "claimed, unfinished bytes")
#define MOVE_GAUGES(X)                                                         \
    X(running, m.running, "pushes, writes and reads without an answer")        \
    X(waiting, m.waiting, "of these, waiting for the peer, room or access")    \
    X(moving, m.moving, "moving bytes")                                        \
    X(confirming, m.confirming, "all bytes there, waiting for its word")       \
    X(draining, m.draining, "cancelled, not quiet yet")                        \
    X(idle_grants, m.idle_grants, "accesses to windows kept for the next")     \
    X(bytes, m.bytes, "bytes of those that run")
#define BLOCK_GAUGES(X)                                                        \
    X(layouts, kvf_layout_count(s->blocks), "layouts declared or in use")      \
    X(published, c.live, "requests whose blocks are published")                \
    X(draining, c.draining, "retired ones that claims still read")             \
    X(tombstones, c.tombstones, "requests remembered as ended")                \
    X(parked, c.parked, "pulls of others that wait here")                      \
    X(claims, c.claims, "live claims on blocks")                               \
    X(publishes, kvf_blocks_stats(s->blocks)->puts,                            \
      "requests published since the start")                                    \
    X(claims_done, kvf_blocks_stats(s->blocks)->claims_done,                   \
      "claims on blocks that ended as read, since the start")                  \
    X(claims_aborted, kvf_blocks_stats(s->blocks)->claims_aborted,             \
      "claims on blocks that ended otherwise, since the start")                \
    X(pulls, u.running, "pulls of our engines without an answer")              \
    X(waiting, u.waiting, "of these, waiting for peers or publications")       \
    X(moving, u.moving, "moving bytes")                                        \
    X(pull_draining, u.draining, "given up, not quiet yet")                    \
    X(pull_bytes, u.bytes, "planned bytes that are not in place")
#define PEER_GAUGES(X)                                                         \
    X(peers, x.peers, "owners that are dialled")                               \
    X(peers_up, x.peers_up, "of these, up")                                    \
    X(guests, x.guests, "getters that dialled us")                             \
    X(guests_up, x.guests_up, "of these, up")                                  \
    X(asks, x.asks, "our lookups without an answer")                           \
    X(grants, x.grants, "claims that we hold at others")                       \
    X(unacked, x.unacked, "DONE and ABORT not acknowledged")                   \
    X(guest_asks, x.guest_asks, "gets of others parked here")                  \
    X(guest_claims, x.guest_claims, "claims of others on our keys")            \
    X(windows, x.windows, "windows that engines expose here")                  \
    X(accesses, x.accesses, "accesses of others to windows and rooms here")    \
    X(rooms, x.rooms, "pushes of others under way to us")                      \
    X(watches, x.watches, "our pushes with notify that have not ended")        \
    X(pushed, x.pushed, "those of others: here, or their end not seen yet")
#define HISTOGRAMS(X)                                                          \
    X(lookup_us, "until the owner granted the claim")                          \
    X(wait_us, "waiting for the key")                                          \
    X(transfer_us, "moving the bytes")                                         \
    X(total_us, "from acceptance to reply")                                    \
    X(loop_lag_us, "from the end of one wait of the loop to the next")
#define RDMA_GAUGES(X)                                                         \
    X(qps, v.qps, "queue pairs that exist")                                    \
    X(cqs, v.cqs, "completion queues that exist")                              \
    X(mrs, v.mrs, "memory regions that are registered")                        \
    X(mr_bytes, v.mr_bytes, "their bytes")                                     \
    X(links, v.links, "links to owners, those that end included")              \
    X(links_up, v.links_up, "of these, up")                                    \
    X(dying, v.dying, "links and getters on their way out")                    \
    X(guests, v.guests, "getters that a queue pair serves, of a link or not")  \
    X(wrs_in_flight, v.wrs_in_flight, "work requests posted, not completed")
#define ENGINE_GAUGES(X)                                                       \
    X(clients, s->n_clients, "sockets of engines known")                       \
    X(sessions, s->n_sessions, "open sessions")                                \
    X(pending, s->n_pending, "requests without an answer")                     \
    X(replies_waiting, kvf_zsock_queued(s->engine),                            \
      "replies that wait for room in the socket")                              \
    X(watched, kvf_procwatch_count(s->procs), "processes watched")

unsigned kvf_count_fds(void)
{
    DIR *d = opendir("/proc/self/fd");
    struct rlimit r;
    unsigned n = 0;

    if (d == NULL) /* out of descriptors: that many, then */
        return errno == EMFILE && getrlimit(RLIMIT_NOFILE, &r) == 0
                   ? (unsigned)r.rlim_cur
                   : 0;
    while (readdir(d) != NULL)
        n++;
    closedir(d);
    return n > 3 ? n - 3 : 0; /* ".", "..", and the one of this listing */
}

static uint64_t resident_bytes(void)
{
    unsigned long long size, resident = 0;
    FILE *f = fopen("/proc/self/statm", "re");

    if (f == NULL)
        return 0;
    if (fscanf(f, "%llu %llu", &size, &resident) != 2)
        resident = 0;
    fclose(f);
    return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint64_t cpu_ms(void)
{
    struct rusage u;

    if (getrusage(RUSAGE_SELF, &u) != 0)
        return 0;
    return (uint64_t)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000 +
           (uint64_t)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1000;
}

#define COUNT_ONE(...) +1
#define WRITE_GAUGE(name, value, text) kvf_mpw_kv_u64(w, #name, value);

static void write_counters(struct kvf_server *s)
{
    struct kvf_mpw *w = kvf_reply_key(s, "counters");

    s->stats.refused_no_fd = kvf_accept_guard_refused();
    kvf_mpw_map(w, 0 KVF_COUNTERS(COUNT_ONE));
#define WRITE_COUNTER(name, text) kvf_mpw_kv_u64(w, #name, s->stats.name);
    KVF_COUNTERS(WRITE_COUNTER)
#undef WRITE_COUNTER
    w = kvf_reply_key(s, "status_counts");
    kvf_mpw_map(w, KVF_STATUS_COUNT);
    for (unsigned i = 0; i < KVF_STATUS_COUNT; i++)
        kvf_mpw_kv_u64(w, kvf_status_name((enum kvf_status)i),
                       s->stats.status[i]);
}

static void write_gauges(struct kvf_server *s)
{
    struct kvf_buffer_gauges k;
    struct kvf_store_gauges p;
    struct kvf_gets_gauges g;
    struct kvf_moves_gauges m;
    struct kvf_store_gauges c;
    struct kvf_pulls_gauges u;
    struct kvf_mpw *w = kvf_reply_key(s, "pool");

    kvf_buffers_gauges(s->buffers, &k);
    /* The allocator does not know the header page; rule 13 counts it. */
    k.size = s->segment.size;
    kvf_store_gauges(s->store, &p);
    kvf_gets_gauges(s->gets, &g);
    kvf_moves_gauges(s->moves, &m);
    kvf_mpw_map(w, 0 POOL_GAUGES(COUNT_ONE));
    POOL_GAUGES(WRITE_GAUGE)
    kvf_reply_key(s, "keys");
    kvf_mpw_map(w, 0 KEY_GAUGES(COUNT_ONE));
    KEY_GAUGES(WRITE_GAUGE)
    kvf_reply_key(s, "gets");
    kvf_mpw_map(w, 0 GET_GAUGES(COUNT_ONE));
    GET_GAUGES(WRITE_GAUGE)
    kvf_reply_key(s, "moves");
    kvf_mpw_map(w, 0 MOVE_GAUGES(COUNT_ONE));
    MOVE_GAUGES(WRITE_GAUGE)
    kvf_store_gauges(kvf_blocks_store(s->blocks), &c);
    kvf_pulls_gauges(s->pulls, &u);
    kvf_reply_key(s, "blocks");
    kvf_mpw_map(w, 0 BLOCK_GAUGES(COUNT_ONE));
    BLOCK_GAUGES(WRITE_GAUGE)
    kvf_reply_key(s, "engines");
    kvf_mpw_map(w, 0 ENGINE_GAUGES(COUNT_ONE));
    ENGINE_GAUGES(WRITE_GAUGE)
}

struct peer_list {
    struct kvf_mpw *w; /* NULL while counting */
    unsigned n;
};

static void write_peer(void *arg, const struct kvf_peer_info *info)
{
    struct peer_list *l = arg;

    l->n++;
    if (l->w == NULL)
        return;
    kvf_mpw_map(l->w, 10);
    kvf_mpw_kv_str(l->w, "name", info->name != NULL ? info->name : "");
    kvf_mpw_kv_bool(l->w, "guest", info->guest);
    kvf_mpw_kv_str(l->w, "host", info->host != NULL ? info->host : "");
    kvf_mpw_kv_u64(l->w, "port", info->port);
    kvf_mpw_kv_str(l->w, "state", info->state != NULL ? info->state : "");
    kvf_mpw_kv_str(l->w, "transport",
                   info->transport != NULL ? info->transport : "");
    kvf_mpw_kv_str(l->w, "why", info->why != NULL ? info->why : "");
    kvf_mpw_kv_u64(l->w, "asks", info->asks);
    kvf_mpw_kv_u64(l->w, "claims", info->claims);
    kvf_mpw_kv_u64(l->w, "silent_ms", info->silent_ms);
}

static void write_peers(struct kvf_server *s)
{
    struct kvf_peers_gauges x;
    struct peer_list l = {.n = 0};
    struct kvf_mpw *w = kvf_reply_key(s, "peers");

    kvf_peers_gauges(s->peers, &x);
    kvf_peers_list(s->peers, write_peer, &l);
    kvf_mpw_map(w, 1 PEER_GAUGES(COUNT_ONE));
    PEER_GAUGES(WRITE_GAUGE)
    kvf_mpw_str(w, "list");
    kvf_mpw_array(w, l.n);
    l.w = w;
    kvf_peers_list(s->peers, write_peer, &l);
}

static void write_transports(struct kvf_server *s)
{
    struct kvf_mpw *w = kvf_reply_key(s, "transports");
    struct kvf_tcp_gauges t = {0, 0, 0};
    struct kvf_rdma_gauges v = {.qps = 0};

    if (s->tcp != NULL)
        kvf_tcp_gauges(s->tcp, &t);
    if (s->rdma != NULL)
        kvf_rdma_gauges(s->rdma, &v);
    kvf_mpw_map(w, 3);
    kvf_mpw_str(w, "shm");
    kvf_mpw_map(w, 2);
    kvf_mpw_kv_bool(w, "on", s->shm_on);
    kvf_mpw_kv_u64(w, "mappings", kvf_map_count(s->maps));
    kvf_mpw_str(w, "tcp");
    kvf_mpw_map(w, 4);
    kvf_mpw_kv_bool(w, "on", s->tcp != NULL);
    kvf_mpw_kv_u64(w, "out_conns", t.out_conns);
    kvf_mpw_kv_u64(w, "in_conns", t.in_conns);
    kvf_mpw_kv_u64(w, "sends_under_way", t.sends_under_way);
    kvf_mpw_str(w, "rdma");
    kvf_mpw_map(w, 3 RDMA_GAUGES(COUNT_ONE));
    kvf_mpw_kv_bool(w, "on", s->rdma != NULL);
    kvf_mpw_kv_bool(w, "port_up", v.port_up);
    kvf_mpw_kv_str(w, "device",
                   s->rdma != NULL ? kvf_rdma_describe(s->rdma) : "");
    RDMA_GAUGES(WRITE_GAUGE)
}

static void write_histogram(struct kvf_mpw *w, const char *name,
                            const struct kvf_hist *h)
{
    kvf_mpw_str(w, name);
    kvf_mpw_map(w, 5);
    kvf_mpw_kv_u64(w, "count", h->count);
    kvf_mpw_kv_u64(w, "p50", kvf_hist_quantile(h, 0.5));
    kvf_mpw_kv_u64(w, "p90", kvf_hist_quantile(h, 0.9));
    kvf_mpw_kv_u64(w, "p99", kvf_hist_quantile(h, 0.99));
    kvf_mpw_kv_u64(w, "max", h->max);
}

static void write_process(struct kvf_server *s)
{
    struct kvf_mpw *w = kvf_reply_key(s, "histograms");
    char hex[2 * KVF_ID_LEN + 1];

    kvf_mpw_map(w, 0 HISTOGRAMS(COUNT_ONE));
#define WRITE_HISTOGRAM(name, text) write_histogram(w, #name, &s->stats.name);
    HISTOGRAMS(WRITE_HISTOGRAM)
#undef WRITE_HISTOGRAM
    kvf_reply_key(s, "loop");
    kvf_mpw_map(w, 4);
    kvf_mpw_kv_u64(w, "turns", s->sched->turns);
    kvf_mpw_kv_u64(w, "timers", s->sched->timers_run);
    kvf_mpw_kv_u64(w, "tasks", s->sched->tasks_run);
    kvf_mpw_kv_u64(w, "slices", s->sched->slices_run);
    kvf_reply_key(s, "process");
    kvf_mpw_map(w, 6);
    kvf_mpw_kv_u64(w, "pid", (uint64_t)getpid());
    kvf_mpw_kv_u64(w, "uptime_ms",
                   (s->sched->now_ns - s->started_ns) / KVF_NS_PER_MS);
    kvf_mpw_kv_u64(w, "rss", resident_bytes());
    kvf_mpw_kv_u64(w, "fds", kvf_count_fds());
    kvf_mpw_kv_u64(w, "cpu_ms", cpu_ms());
    kvf_mpw_kv_u64(w, "log_lost", kvf_log_lost());
    for (unsigned i = 0; i < KVF_ID_LEN; i++)
        snprintf(hex + 2 * (size_t)i, 3, "%02x", s->incarnation.b[i]);
    kvf_reply_str(s, "version", KVF_VERSION);
    kvf_reply_str(s, "incarnation", hex);
}

void kvf_stats_write(struct kvf_server *s)
{
    write_counters(s);
    write_gauges(s);
    write_peers(s);
    write_transports(s);
    write_process(s);
}

/* ---- documentation ------------------------------------------------------ */

static void table(FILE *out, const char *map, const char *what)
{
    fprintf(out, "\n## %s\n\n%s\n\n| name | what |\n|---|---|\n", map, what);
}

void kvf_stats_write_markdown(FILE *out)
{
#define ROW3(name, value, text) fprintf(out, "| `%s` | %s |\n", #name, text);
#define ROW2(name, text) fprintf(out, "| `%s` | %s |\n", #name, text);
#define ROW_STATUS(name, number, text)                                         \
    fprintf(out, "| `%s` | %s |\n", #name, text);
    fprintf(out,
            "# Metrics\n\nThe maps of the `stats` reply. This page is written "
            "by `kvferryd --metrics`.\nBytes and counts are integers; "
            "counters start at 0 with the daemon.\n");
    table(out, "counters", "Only ever grow.");
    KVF_COUNTERS(ROW2)
    table(out, "status_counts", "Replies by status.");
    KVF_STATUS_LIST(ROW_STATUS)
    table(out, "pool",
          "Bytes by what they are used for; with nothing alive, "
          "`free` is `size` less the header page of 4096.");
    POOL_GAUGES(ROW3)
    table(out, "keys", "What this daemon owns.");
    KEY_GAUGES(ROW3)
    table(out, "gets", "What its engines fetch.");
    GET_GAUGES(ROW3)
    table(out, "moves", "What its engines push, write and read.");
    MOVE_GAUGES(ROW3)
    table(out, "blocks", "KV blocks: layouts, publications, pulls.");
    BLOCK_GAUGES(ROW3)
    table(out, "engines", "The engine socket.");
    ENGINE_GAUGES(ROW3)
    table(out, "peers",
          "Other daemons; `list` has one map each: name, guest, host, port, "
          "state, transport, why, asks, claims, silent_ms.");
    PEER_GAUGES(ROW3)
    table(out, "transports",
          "`shm`: on, mappings. `tcp`: on, out_conns, "
          "in_conns, sends_under_way.");
    fprintf(out, "| `on` | configured |\n");
    table(out, "transports.rdma",
          "Also `on` (a device is in use), `port_up`, `device` (which, with "
          "its port, MTU and GID).");
    RDMA_GAUGES(ROW3)
    table(out, "histograms",
          "Each a map of count, p50, p90, p99, max, in microseconds.");
    HISTOGRAMS(ROW2)
    table(out, "loop, process", "The daemon itself.");
    fprintf(out,
            "| `loop.turns` `.timers` `.tasks` `.slices` | what the loop ran "
            "|\n| `process.pid` | process id |\n| `process.uptime_ms` | since "
            "the start |\n| `process.rss` | resident bytes, the pool included "
            "|\n| `process.fds` | open descriptors |\n| `process.cpu_ms` | "
            "CPU time, user and system |\n| `process.log_lost` | log lines "
            "that the sink did not take |\n\n`version` and `incarnation` (32 "
            "hex digits) stand beside the maps.\n");
}
