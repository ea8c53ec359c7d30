/* `kvferry plan`: one planning case in, its transfer plan out.
 *
 * Happy path: read, parse, check, then for each D rank a template, a plan, its
 * descriptors sorted, merged and printed. Failure modes: a refusal is an answer
 * (ERR, exit 0); a file that cannot be read or written is exit 74. */
#include "cli.h"
#include "plan.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define CASE_MAX ((size_t)256 << 20)
#define DESCS_MAX ((int64_t)1 << 24)

static char *read_all(FILE *f, size_t *len)
{
    size_t cap = 1 << 16, n = 0;
    char *p = malloc(cap);

    while (p != NULL) {
        size_t got = fread(p + n, 1, cap - n, f);
        char *more;

        n += got;
        if (got == 0 && (feof(f) || ferror(f)))
            break;
        if (n < cap)
            continue;
        more = cap < CASE_MAX ? realloc(p, cap * 2) : NULL;
        if (more == NULL) {
            free(p);
            return NULL;
        }
        p = more;
        cap *= 2;
    }
    if (p != NULL && ferror(f)) {
        free(p);
        return NULL;
    }
    *len = n;
    return p;
}

static int print_reads(const struct kvf_template *t, struct kvf_plan *plan,
                       const struct kvf_request *r, FILE *out,
                       struct kvf_refusal *no)
{
    int64_t runs, bytes;
    struct kvf_desc *v;
    size_t n;
    int rc = kvf_plan_make(plan, t, r, no);

    if (rc < 0)
        return rc;
    kvf_plan_size(plan, &runs, &bytes);
    if (runs > DESCS_MAX)
        return kvf_refuse(no, KVF_E_OVERFLOW,
                          "D rank %" PRId64 " would need %" PRId64
                          " reads, too many to print",
                          t->d_rank, runs);
    rc = cli_plan_descs(plan, &v, &n, no);
    if (rc < 0)
        return rc;
    n = kvf_desc_coalesce(v, n);
    for (size_t i = 0; i < n; i++)
        fprintf(out,
                "R %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64
                " %" PRId64 " %" PRId64 "\n",
                t->d_rank, v[i].p_rank, v[i].p_region, v[i].p_off,
                v[i].d_region, v[i].d_off, v[i].len);
    free(v);
    return 0;
}

/* All reads, then all notifications, into `out`. */
static int print_plan(const struct kvf_case *c, const struct kvf_request *r,
                      FILE *out, struct kvf_refusal *no)
{
    const struct kvf_side *p = &c->side[0], *d = &c->side[1];
    int64_t ranks = d->tp * d->pp;
    struct kvf_template *t;
    int rc = 0;

    for (int pass = 0; pass < 2 && rc == 0; pass++)
        for (int64_t rank = 0; rank < ranks && rc == 0; rank++) {
            struct kvf_plan plan = {0};

            rc = kvf_template_make(p, d, rank, &t, no);
            if (rc < 0)
                break;
            if (pass == 0)
                rc = print_reads(t, &plan, r, out, no);
            else
                for (size_t i = 0; i < t->n_done; i++)
                    fprintf(out, "N %" PRId64 " %" PRId64 "\n", rank,
                            t->done[i]);
            kvf_plan_free(&plan);
            kvf_template_free(t);
        }
    return rc;
}

/* What the plan prints is held back until it is whole: a refusal in the middle
 * must not follow half a plan. */
static int answer(const struct kvf_case *c, const struct kvf_request *r,
                  struct kvf_refusal *no)
{
    char *text = NULL;
    size_t len = 0;
    FILE *hold = open_memstream(&text, &len);
    int rc;

    if (hold == NULL)
        return kvf_refuse(no, KVF_E_MEMORY, "no memory");
    rc = print_plan(c, r, hold, no);
    if (fclose(hold) != 0 && rc == 0)
        rc = kvf_refuse(no, KVF_E_MEMORY, "no memory for the answer");
    if (rc == 0)
        fwrite(text, 1, len, stdout);
    free(text);
    return rc;
}

static int plan_case(const char *text, size_t len, int mode)
{
    struct kvf_refusal no = {0};
    struct kvf_request r;
    struct kvf_case c;
    int rc = kvf_case_parse(text, len, &c, &no);

    if (rc == 0) {
        r = kvf_case_request(&c);
        rc = kvf_case_check(&c, &no);
        if (rc == 0)
            rc = mode == 'e'   ? cli_plan_explain(&c, &r, &no)
                 : mode == 's' ? cli_plan_stats(&c, &r, &no)
                               : answer(&c, &r, &no);
        kvf_case_free(&c);
    }
    if (rc < 0)
        printf("ERR %s %s\n", kvf_refuse_name(no.kind), no.text);
    if (rc < 0 || mode == 0)
        printf("END\n");
    return rc < 0 && no.kind == KVF_E_MEMORY ? KVF_NO_SPACE : 0;
}

int cli_plan(struct cli *c, int argc, char **argv)
{
    static const struct option own[] = {
        {"case", required_argument, NULL, 'c'},
        {"explain", no_argument, NULL, 'e'},
        {"stats", no_argument, NULL, 's'},
        {NULL, 0, NULL, 0},
    };
    const char *path = NULL;
    int mode = 0, o, rc;
    FILE *in = stdin;
    size_t len = 0;
    char *text;

    while ((o = cli_getopt(c, argc, argv, "", own)) != -1) {
        if (o == '?')
            return CLI_USAGE;
        if (o == 'c')
            path = optarg;
        else
            mode = o;
    }
    if (optind < argc)
        return cli_usage(c, "unexpected %s", argv[optind]);
    if (path != NULL && strcmp(path, "-") != 0)
        in = fopen(path, "re");
    text = in == NULL ? NULL : read_all(in, &len);
    if (text == NULL) {
        fprintf(stderr, "kvferry plan: %s cannot be read\n",
                path == NULL ? "standard input" : path);
        if (in != NULL && in != stdin)
            fclose(in);
        return CLI_IO;
    }
    if (in != stdin)
        fclose(in);
    rc = plan_case(text, len, mode);
    free(text);
    if (fflush(stdout) != 0 || ferror(stdout))
        return CLI_IO;
    return rc;
}
