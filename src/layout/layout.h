/* What an engine says about its KV memory, and whether two engines fit.
 *
 * A side (P sends, D receives) has groups of layers; a layer has components of
 * so many units (KV heads, state shards, or one latent) of so many bytes; a
 * view says where one part of a layer lies in a region. Pure data: no I/O, no
 * clock. Everything here may come from outside, so numbers are signed, may be
 * out of any range, and nothing is used before kvf_pair_check() passed.
 * docs/LAYOUTS.md has the mathematics. */
#ifndef KVF_LAYOUT_LAYOUT_H
#define KVF_LAYOUT_LAYOUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* X(name): the reasons to refuse, in the order in which they are looked for.
 * E_MEMORY is ours: the answer is not known because memory ran out. */
#define KVF_REFUSE_LIST(X)                                                     \
    X(E_TP)                                                                    \
    X(E_LAYOUT)                                                                \
    X(E_LAYERS)                                                                \
    X(E_GROUPS)                                                                \
    X(E_GEOMETRY)                                                              \
    X(E_HEADS)                                                                 \
    X(E_SSM_SHAPE)                                                             \
    X(E_BLOCK_SIZE)                                                            \
    X(E_STRIDE)                                                                \
    X(E_OVERFLOW)                                                              \
    X(E_REGION)                                                                \
    X(E_BLOCK_RANGE)                                                           \
    X(E_BLOCK_DUP)                                                             \
    X(E_SSM_SLOTS)                                                             \
    X(E_LOCAL_SHORT)                                                           \
    X(E_BLOCKS_SHORT)                                                          \
    X(E_MEMORY)

enum kvf_refuse {
    KVF_E_NONE,
#define KVF_REFUSE_ENUM(name) KVF_##name,
    KVF_REFUSE_LIST(KVF_REFUSE_ENUM)
#undef KVF_REFUSE_ENUM
        KVF_REFUSE_COUNT
};

/* In this layer it takes the place of kvf_why: the page's own kinds. */
struct kvf_refusal {
    enum kvf_refuse kind;
    char text[240];
};

/* Fills *no (if not NULL). Returns a negative status: NO_SPACE for E_MEMORY,
 * INVALID for what is wrong with one request's blocks, else MISMATCH. */
int kvf_refuse(struct kvf_refusal *no, enum kvf_refuse kind, const char *fmt,
               ...) __attribute__((format(printf, 3, 4)));
/* "E_TP", ...; never NULL. */
const char *kvf_refuse_name(enum kvf_refuse kind);

/* Limits that keep every loop and table small. */
#define KVF_TP_MAX 1024
#define KVF_RANKS_MAX 65536
#define KVF_LAYERS_MAX 4096
#define KVF_GROUPS_MAX 1024
#define KVF_COMPS_MAX 64
#define KVF_UNITS_MAX ((int64_t)1 << 40)

/* -1 in any of these: a word that is not known. */
enum kvf_order { KVF_HND, KVF_NHD };
enum kvf_kv { KVF_SPLIT, KVF_BLOCKS_FIRST, KVF_PACKED };
enum kvf_group_kind { KVF_FULL, KVF_SWA, KVF_GSSM };
enum kvf_layer_kind { KVF_ATTN, KVF_MLA, KVF_SSM };
enum kvf_part {
    KVF_PART_K,
    KVF_PART_V,
    KVF_PART_KV,
    KVF_PART_LAT,
    KVF_PART_SSM,
    KVF_PARTS
};

struct kvf_comp {
    char *name;
    int64_t units, bytes; /* a unit has `bytes` per token (SSM: per slot) */
};

struct kvf_part_view {
    bool given;
    int64_t region, off0, stride, page; /* bytes, but the region's index */
};

struct kvf_layer {
    char *name; /* NULL: not given */
    int64_t stage, group;
    int kind; /* enum kvf_layer_kind or -1 */
    unsigned n_comps;
    struct kvf_comp *comps;
    struct kvf_part_view views[KVF_PARTS];
};

struct kvf_group {
    bool given;
    int kind;       /* enum kvf_group_kind or -1 */
    int64_t window; /* tokens; used by KVF_SWA */
};

struct kvf_extent {
    int64_t stage, index, length; /* bytes */
};

struct kvf_side {
    int64_t tp, pp, bs, ppl, nblocks;
    int order, kv; /* enums or -1 */
    bool shared;   /* one pool of block ids for all groups */
    struct kvf_group *groups;
    unsigned n_groups;
    struct kvf_layer *layers;
    unsigned n_layers;
    struct kvf_extent *regions; /* sorted by (stage, index) before any check */
    size_t n_regions, cap_regions;
};

/* Empty tables for so many groups and layers (within the limits above).
 * -NO_SPACE when memory ran out; free with kvf_side_free either way. */
int kvf_side_init(struct kvf_side *s, unsigned n_groups, unsigned n_layers);
void kvf_side_free(struct kvf_side *s);
/* Keeps the table sorted; cheapest when added in order. -NO_SPACE, or -EXISTS
 * when the region is there already. */
int kvf_side_add_region(struct kvf_side *s, int64_t stage, int64_t index,
                        int64_t length);
/* NULL when there is none. */
const struct kvf_extent *kvf_side_region(const struct kvf_side *s,
                                         int64_t stage, int64_t index);

/* Bytes of one kernel block (SSM: one slot) of a part on any rank; false when
 * they do not fit in 63 bits. Needs legal ownership and tp, bs >= 1. */
bool kvf_part_bytes(const struct kvf_side *s, const struct kvf_layer *l,
                    enum kvf_part part, int64_t *out);
/* Where component c of a layer lies. */
enum kvf_part kvf_comp_part(const struct kvf_side *s, const struct kvf_layer *l,
                            unsigned c);

/* Component c inside its view, on any rank: unit h (of the own ones) and token
 * n of a kernel block lie at base + h * unit_step + n * token_step. An affine
 * map is all that a page order or K/V arrangement is to the planner. */
struct kvf_affine {
    int64_t base, unit_step, token_step;
};
void kvf_comp_place(const struct kvf_side *s, const struct kvf_layer *l,
                    unsigned c, struct kvf_affine *out);

/* The last part of kvf_pair_check: are D's views apart? 0 or E_REGION. */
int kvf_views_check(const struct kvf_side *d, struct kvf_refusal *no);
/* May D read from P? 0, or the first reason of KVF_REFUSE_LIST up to E_REGION
 * that applies. kvf_pair_check(s, s) tells whether a side makes sense alone.
 * Time grows with layers, and with the square of the views that share one
 * region on D. */
int kvf_pair_check(const struct kvf_side *p, const struct kvf_side *d,
                   struct kvf_refusal *no);
#endif
