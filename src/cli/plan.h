/* What the files of `kvferry plan` share. */
#ifndef KVF_CLI_PLAN_H
#define KVF_CLI_PLAN_H

#include "layout/case.h"

/* All descriptors of a plan, to be freed; adjacent runs of neighbouring cells
 * are merged, not sorted. 0 or -NO_SPACE. */
int cli_plan_descs(const struct kvf_plan *plan, struct kvf_desc **out,
                   size_t *n, struct kvf_refusal *no);
/* Who reads what, for people, on standard output. */
int cli_plan_explain(const struct kvf_case *c, const struct kvf_request *r,
                     struct kvf_refusal *no);
/* Counts, bytes and times, on standard output. Changes the order of the ids. */
int cli_plan_stats(const struct kvf_case *c, const struct kvf_request *r,
                   struct kvf_refusal *no);
#endif
