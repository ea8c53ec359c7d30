/* libFuzzer: any text as a planning case; what is accepted is planned. */
#include "layout/case.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { BATCH = 64, BATCHES = 64, RANKS = 8 };

/* Every descriptor must lie in a region of the side, whoever wrote the case. */
static void check(const struct kvf_side *s, int64_t rank, int64_t region,
                  int64_t off, int64_t len)
{
    const struct kvf_extent *r =
        kvf_side_region(s, s->tp > 0 ? rank / s->tp : 0, region);

    if (r == NULL || off < 0 || len < 1 || off > r->length - len)
        __builtin_trap();
}

static void plan(const struct kvf_case *c, const struct kvf_request *r,
                 int64_t rank)
{
    struct kvf_desc v[BATCH];
    struct kvf_plan_iter it;
    struct kvf_plan plan = {0};
    struct kvf_template *t;
    size_t n;

    if (kvf_template_make(&c->side[0], &c->side[1], rank, &t, NULL) < 0)
        return;
    if (kvf_plan_make(&plan, t, r, NULL) == 0) {
        kvf_plan_begin(&it, &plan);
        for (int i = 0; i < BATCHES; i++) {
            n = kvf_plan_next(&it, v, BATCH);
            for (size_t k = 0; k < n; k++) {
                check(&c->side[0], v[k].p_rank, v[k].p_region, v[k].p_off,
                      v[k].len);
                check(&c->side[1], rank, v[k].d_region, v[k].d_off, v[k].len);
            }
            if (n == 0)
                break;
        }
    }
    kvf_plan_free(&plan);
    kvf_template_free(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct kvf_refusal no = {0};
    struct kvf_request r;
    struct kvf_case c;

    if (kvf_case_parse((const char *)data, size, &c, &no) < 0)
        return 0;
    r = kvf_case_request(&c);
    if (kvf_case_check(&c, &no) == 0)
        for (int64_t d = 0; d < c.side[1].tp * c.side[1].pp && d < RANKS; d++)
            plan(&c, &r, d);
    kvf_case_free(&c);
    return 0;
}
