/* The configuration: an INI file, read and checked whole before anything
 * starts. One table (conf_table.c: section, key, type, field, default, range,
 * help) generates validation, --dump-config, docs/CONFIG.md and
 * config/kvferryd.ini; tests keep those in step. */
#ifndef KVF_CONF_CONF_H
#define KVF_CONF_CONF_H

#include "base/log.h"
#include "base/why.h"
#include "base/worker.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define KVF_CONF_TEXT 256
#define KVF_CONF_EDGES 256
#define KVF_CONF_PEERS 1024
#define KVF_PORT_AUTO (-1) /* take a free port */

enum kvf_protocol { KVF_PROTO_SHM, KVF_PROTO_TCP, KVF_PROTO_RDMA };

struct kvf_conf_edge { /* [edge FROM->TO] */
    uint32_t from, to;
    int64_t window_size; /* bytes on their way in, pulled or pushed; -1 = any */
    uint32_t max_inflight; /* of these at once */
    uint32_t from_tp, to_tp;
};

struct kvf_conf_peer { /* [peer STAGE.RANK[.REPLICA]] */
    struct kvf_worker worker;
    char host[KVF_CONF_TEXT];
    uint16_t port;
};

struct kvf_conf {
    /* [worker] */
    char cluster[64];
    struct kvf_worker self;
    char engine_endpoint[KVF_CONF_TEXT]; /* "auto" is resolved by
                                            kvf_conf_endpoint */
    /* [connector] */
    char host[KVF_CONF_TEXT];      /* "auto" or what to advertise and bind */
    int32_t zmq_port;              /* base of the port rule; KVF_PORT_AUTO */
    int32_t rpc_port;              /* bulk tcp; KVF_PORT_AUTO */
    enum kvf_protocol protocol[3]; /* in order of preference */
    unsigned n_protocol;
    bool protocol_auto;
    char device_name[64];
    char memory_pool_device[32];
    uint64_t memory_pool_size;   /* bytes, header page included */
    uint64_t get_sub_timeout_ms; /* 0 = no timeout */
    uint64_t put_ttl_ms;
    uint64_t peer_timeout_ms;
    uint64_t session_timeout_ms;
    uint64_t drain_ms;
    uint64_t inline_max; /* bytes */
    uint32_t linger_us;  /* awake for the next message; 0 = never */
    uint64_t max_frame;  /* bytes */
    /* [tcp] */
    uint32_t tcp_streams;    /* connections per peer for large payloads */
    uint64_t tcp_stream_min; /* payload bytes from which several are used */
    uint64_t tcp_chunk;      /* bytes of one read request */
    uint32_t tcp_spin_us;    /* spin while bytes are in flight; 0 = never */
    /* [rdma] */
    int32_t rdma_gid_index; /* -1: by the route to the peer */
    uint32_t rdma_mtu;      /* largest path MTU, bytes; 0: the port's */
    uint32_t rdma_timeout; /* 4.096 us * 2^timeout until a packet is repeated */
    uint32_t rdma_retry;
    uint32_t rdma_rnr_retry;
    uint64_t rdma_chunk;        /* bytes of one operation */
    uint64_t rdma_burst;        /* bytes posted in one turn of the loop */
    uint32_t rdma_depth;        /* operations of one transfer in flight */
    uint32_t rdma_queue;        /* work requests of one link in flight */
    uint32_t rdma_signal_every; /* operations a signalled completion */
    uint32_t rdma_spin_us;      /* as tcp_spin_us */
    /* [limits] */
    uint32_t max_outstanding; /* requests of one client, >= 16384 */
    uint32_t max_keys;        /* live generations */
    uint32_t max_tombstones;
    uint32_t max_parked; /* gets of peers waiting here */
    uint32_t max_claims;
    uint32_t max_sessions; /* engine sessions */
    uint32_t max_peers;    /* peer sessions and links */
    /* [retry] */
    uint32_t attempts;
    uint64_t backoff_ms, backoff_max_ms;
    /* [log] */
    enum kvf_log_level log_level;
    char log_file[KVF_CONF_TEXT];

    struct kvf_conf_edge edge[KVF_CONF_EDGES];
    unsigned n_edges;
    struct kvf_conf_peer peer[KVF_CONF_PEERS];
    unsigned n_peers;
};

/* Fills in every default. (The struct is large: keep it on the heap.) */
void kvf_conf_defaults(struct kvf_conf *c);

/* Reads and checks a file. Every error is written to `err` as
 * "FILE:LINE: [section] key: what is wrong; what is allowed" (with the nearest
 * valid name for an unknown one) and all of them are reported, not only the
 * first. Returns 0, or -KVF_INVALID with the number of errors in *n_errors. */
int kvf_conf_load(struct kvf_conf *c, const char *path, FILE *err,
                  unsigned *n_errors);
/* The same from memory, for tests and fuzzing. */
int kvf_conf_parse(struct kvf_conf *c, const char *text, size_t len,
                   const char *name, FILE *err, unsigned *n_errors);

/* Writes an INI file with every key: the effective values (dump) or the
 * defaults with one comment a key (sample). Reading it back gives the same
 * configuration. */
void kvf_conf_dump(const struct kvf_conf *c, FILE *out);
void kvf_conf_write_sample(FILE *out);
/* docs/CONFIG.md's table. */
void kvf_conf_write_markdown(FILE *out);

/* Port rule: base + 100 + 1024*replica + 16*rank + stage. 0 if it overflows. */
uint16_t kvf_conf_port(int32_t base, const struct kvf_worker *w);

/* The engine endpoint with "auto" resolved:
 * ipc://<runtime dir>/kvferry-<cluster>-s<stage>-r<rank>-p<replica>.ipc, the
 * runtime dir being $XDG_RUNTIME_DIR, else /run/kvferry when writable (or it
 * can be created), else /tmp/kvferry-<uid> (0700). Creates the directory when
 * `create`. -KVF_INVALID when the path is longer than 107 bytes. Also used by
 * clients, which is why it takes its parts. */
int kvf_conf_endpoint(const char *configured, const char *cluster,
                      const struct kvf_worker *w, bool create, char *out,
                      size_t cap, struct kvf_why *why);

/* The edge from->to, or one with defaults when the file has none. */
struct kvf_conf_edge kvf_conf_find_edge(const struct kvf_conf *c, uint32_t from,
                                        uint32_t to);

/* What SIGHUP may change: [log], [retry], timeouts, limits, [edge] figures.
 * Copies those from `fresh` into `c`; returns how many other keys differ (they
 * need a restart) and names them in `why`. */
unsigned kvf_conf_reload(struct kvf_conf *c, const struct kvf_conf *fresh,
                         struct kvf_why *why);

/* Shared parsers: "1GiB" "64KiB" "1073741824"; "500ms" "30s" "30000" (ms). */
int kvf_parse_size(const char *text, uint64_t *out);
int kvf_parse_duration_ms(const char *text, uint64_t *out);
#endif
