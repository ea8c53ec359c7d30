/* Ranks of a sender and a receiver over simulated daemons: their memory, what
 * every byte of it must be, publications, and pulls whose replies are checked
 * at once. Nodes 0 .. senders-1 are the ranks of P, the others those of D. */
#ifndef KVF_TESTS_BLOCKS_WORLD_H
#define KVF_TESTS_BLOCKS_WORLD_H

#include "sim.h"

#define BW_REQUESTS 4
#define BW_TOKENS 16 /* of a request */
#define BW_LAYERS 2
#define BW_HEADS 4
#define BW_BYTES 16 /* of k, and of v, for a token and head */

struct bw_shape { /* tp * pp ranks */
    int64_t tp, pp, bs;
    bool nhd;
};

enum bw_state { BW_NEVER, BW_ASKED, BW_OK, BW_FAILED };

struct bw_mem {
    struct kvf_layout *layout;
    uint8_t *p;
    enum bw_state state[BW_REQUESTS]; /* D: of its last pull */
};

/* All ranks or none. */
struct bw_group {
    struct kvf_list node;
    unsigned size, ok, failed, disturbed;
    char name[24];
};

struct bw_pull {
    struct kvf_list node;
    struct bw *w;
    struct kvf_pull *pull; /* NULL when over */
    struct bw_group *group;
    unsigned idx, request, replies;
    enum kvf_status status;
};

struct bw {
    struct sim *sim;
    struct bw_shape shape[2];
    unsigned n_p, n_d;
    struct bw_mem mem[SIM_NODES];
    struct kvf_list pulls, groups;
    unsigned ok, failed, together_ok;
    unsigned refuse_pct; /* replies whose engine is gone */
    /* Raised by the test with every cut, reset, loss, kill and freeze: a group
     * that saw none must not diverge. */
    unsigned disturbed;
    unsigned names;
};

/* The number of nodes that shapes need. */
unsigned bw_nodes(const struct bw_shape *p, const struct bw_shape *d);
/* Declares the layout of every rank. */
void bw_init(struct bw *w, struct sim *sim, const struct bw_shape *p,
             const struct bw_shape *d);
/* (Again,) with fresh memory: its daemon or its engine began anew. */
void bw_declare(struct bw *w, unsigned idx);
/* tag NULL: minted by that rank. */
void bw_publish(struct bw *w, unsigned idx, unsigned request, uint64_t ttl_ms,
                const struct kvf_id *tag);
void bw_publish_all(struct bw *w, unsigned request, uint64_t ttl_ms);
struct bw_group *bw_group(struct bw *w);
/* NULL when that rank pulls that request already. group may be NULL. */
struct bw_pull *bw_pull(struct bw *w, unsigned idx, unsigned request,
                        uint64_t ms, struct bw_group *group);
void bw_cancel(struct bw *w, struct bw_pull *p);
/* Every pull was answered once; memory is what the answers said; daemons hold
 * nothing. Frees what the world has. */
void bw_finish(struct bw *w);
#endif
