/* One planning case as text (KVCASE 1): two sides and one request. */
#ifndef KVF_LAYOUT_CASE_H
#define KVF_LAYOUT_CASE_H

#include "plan.h"

struct kvf_case {
    char id[64];
    struct kvf_side side[2]; /* P, D */
    bool have_side[2];
    int64_t n_tokens;
    struct kvf_ids *ids[2]; /* by group; each list is owned */
};

/* Reads text of len bytes. Numbers beyond 63 bits are taken as the nearest that
 * fits, so that the checks of a layout name what is wrong with them. A text
 * that is no case is refused with E_LAYOUT (E_LAYERS, E_GROUPS where a line
 * names one that cannot be). Memory is bounded by the text and the limits of
 * layout.h. kvf_case_free() after success only. */
int kvf_case_parse(const char *text, size_t len, struct kvf_case *out,
                   struct kvf_refusal *no);
void kvf_case_free(struct kvf_case *c);
#endif
