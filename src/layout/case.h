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
    /* What a line says that cannot be meant (a group that is not there, a
     * number beyond 63 bits), the first in the order of refusals. The line
     * itself counts for nothing. */
    bool flawed;
    struct kvf_refusal flaw;
};

/* Reads text of len bytes. Numbers beyond 63 bits are taken as the nearest that
 * fits, so that the checks of a layout name what is wrong with them. Only a
 * text that is no case is refused here, with E_LAYOUT. Memory is bounded by the
 * text and the limits of layout.h. kvf_case_free() after success only. */
int kvf_case_parse(const char *text, size_t len, struct kvf_case *out,
                   struct kvf_refusal *no);
/* The case's request; it points into the case. */
struct kvf_request kvf_case_request(const struct kvf_case *c);
/* All refusals in their order: those of the sides, of the request, and what the
 * lines themselves had. */
int kvf_case_check(const struct kvf_case *c, struct kvf_refusal *no);
void kvf_case_free(struct kvf_case *c);
#endif
