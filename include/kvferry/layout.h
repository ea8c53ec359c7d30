/* Part of kvferry.h: KV layouts. An engine says once how its KV cache lies in
 * memory, a sender publishes the blocks of a request, a receiver pulls them
 * into its own blocks, whatever the two tensor-parallel sizes, block sizes and
 * page layouts are. docs/LAYOUTS.md explains the words. */
#ifndef KVFERRY_LAYOUT_H
#define KVFERRY_LAYOUT_H

#ifndef KVFERRY_KVFERRY_H
#error "include kvferry/kvferry.h"
#endif

struct kvferry_layout_group {
    const char *kind; /* "full", "swa", "ssm" */
    uint64_t window;  /* swa: tokens */
};
struct kvferry_layout_comp {
    const char *name;
    uint64_t units, bytes; /* of the whole model; bytes of one unit */
};
struct kvferry_layout_layer {
    const char *name;
    uint64_t group;
    const char *kind; /* "attn", "mla", "ssm" */
    const struct kvferry_layout_comp *comps;
    unsigned n_comps;
};
/* Where a part of a layer lies on this rank. */
struct kvferry_layout_view {
    uint64_t layer;
    const char *part;            /* "k", "v", "kv", "lat", "ssm" */
    uint64_t region;             /* of kvferry_register */
    uint64_t off0, stride, page; /* bytes */
};
struct kvferry_layout {
    uint64_t tp, pp, rank;     /* rank: stage x tp + tp rank */
    uint64_t bs, ppl, nblocks; /* tokens of a kernel block; kernel blocks of a
                                  logical one; logical blocks there are */
    const char *order;         /* "HND", "NHD" */
    const char *kv;            /* "split", "blocks_first", "packed" */
    bool shared;               /* all groups take ids from one pool */
    const struct kvferry_layout_group *groups;
    unsigned n_groups;
    const struct kvferry_layout_layer *layers; /* all of the model */
    unsigned n_layers;
    const struct kvferry_layout_view *views; /* of this rank's layers */
    unsigned n_views;
};
/* Declares how this rank's cache lies; *layout lasts as long as the session.
 * Nothing of *l is kept. */
int kvferry_layout(struct kvferry *h, const struct kvferry_layout *l,
                   uint64_t *layout);

/* Blocks of one group, in the order of their positions. */
struct kvferry_blocks {
    uint64_t group, first; /* first: position of ids[0], in blocks */
    const uint64_t *ids;
    size_t n_ids;
};

/* What a receiver has to know of a publication; of any rank. */
struct kvferry_handle {
    char request_id[1001], source_host[256];
    uint8_t tag[16], incarnation[16];
    uint16_t source_port;
};

struct kvferry_publish_options {
    uint64_t n_tokens;
    const uint8_t *tag; /* 16 bytes, the same on all ranks of a request; NULL:
                           the daemon makes one */
    uint64_t ttl_ms;    /* 0: the daemon's put_ttl_ms */
    bool notify;        /* the event "retired" when all consumers are done, or
                           with the reason why they will not be */
};
/* Publishes this rank's blocks of a request. They must not be written to before
 * the event "retired". `out` may be NULL. */
int kvferry_publish(struct kvferry *h, uint64_t layout, const char *request_id,
                    const struct kvferry_blocks *blocks, unsigned n_blocks,
                    const struct kvferry_publish_options *o,
                    struct kvferry_handle *out);

struct kvferry_pull_options {
    const struct kvferry_handle *handle; /* or the next ones */
    const char *request_id;              /* of the sender */
    unsigned from_fields; /* 1: from_stage, 2: and rank, 3: and replica */
    uint32_t from_stage, from_rank, from_replica;
    uint64_t timeout_ms;  /* 0: the daemon's default; KVFERRY_NO_TIMEOUT */
    const char *together; /* not NULL: the pulls of this name, together_size of
                             them, succeed all or fail all */
    uint64_t together_size;
};

struct kvferry_filled {
    uint64_t group, first_token, tokens;
};
#define KVFERRY_FILLED_MAX 64u
struct kvferry_pull_result {
    uint64_t bytes, reads;
    char transport[16];
    unsigned attempts;
    char sources[512]; /* "0.0 0.1": stage.rank of who had it, as far as they
                          fit */
    unsigned n_filled; /* groups; the first KVFERRY_FILLED_MAX are here */
    struct kvferry_filled filled[KVFERRY_FILLED_MAX];
    struct kvferry_timing timing;
};
/* Fills blocks from another stage. `blocks` names the blocks to fill, from the
 * first that is not cached; a group without ids has all it needs. 0: every byte
 * is in place. After a failure the contents of those blocks are undefined, and
 * nobody writes to them any more. `r` may be NULL. */
int kvferry_pull(struct kvferry *h, uint64_t layout,
                 const struct kvferry_blocks *blocks, unsigned n_blocks,
                 const struct kvferry_pull_options *o,
                 struct kvferry_pull_result *r);

#endif
