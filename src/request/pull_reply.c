/* The last of a pull: its one reply, DONE or ABORT to every sender, and the
 * line in the log. Both ways free the pull, unless there is no memory for the
 * reply: then it is given up. */
#include "request/pulls_private.h"

#include "base/log.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static void fill_timing(const struct kvf_pull *p, struct kvf_pull_result *r)
{
    uint64_t now = kvf_sched_clock(p->ps->env.sched);

    r->lookup_us =
        kvf_us_between(p->t_start, p->t_granted ? p->t_granted : now);
    r->plan_us = kvf_us_between(p->t_granted, p->t_planned);
    r->transfer_us = kvf_us_between(p->t_planned, now);
    r->total_us = kvf_us_between(p->t_start, now);
    for (unsigned i = 0; i < p->n_sources; i++)
        if (p->sources[i].attempts > r->attempts)
            r->attempts = p->sources[i].attempts;
}

static void end_claims(struct kvf_pull *p, bool done)
{
    for (unsigned i = 0; i < p->n_sources; i++) {
        struct kvf_grant *g = p->sources[i].grant;

        p->sources[i].grant = NULL;
        if (g == NULL)
            continue;
        if (done)
            kvf_grant_done(g);
        else
            kvf_grant_abort(g);
    }
}

/* What the request asked for, group by group. */
static struct kvf_filled *fill_groups(const struct kvf_pull *p)
{
    const struct kvf_side *d = &p->layout->decl.side;
    const struct kvf_request r = {.n_tokens = p->n_tokens,
                                  .ids = {NULL, p->ids}};
    struct kvf_filled *f = calloc(p->blocks.n + 1u, sizeof *f);

    for (unsigned i = 0; f != NULL && i < p->blocks.n; i++) {
        unsigned g = p->blocks.groups[i].group;
        struct kvf_span w = kvf_want(d, g, &r);

        if (d->groups[g].kind == KVF_GSSM) /* a state is that of all tokens */
            w = (struct kvf_span){0, p->ids[g].n != 0 ? p->n_tokens : 0};
        f[i].group = g;
        f[i].first_token = w.lo < w.hi ? w.lo : p->n_tokens;
        f[i].tokens = w.lo < w.hi ? w.hi - w.lo : 0;
    }
    return f;
}

static const char *transport_of(const struct kvf_pull *p)
{
    const char *name = NULL;

    for (unsigned i = 0; i < p->n_sources; i++) {
        const struct kvf_pull_source *s = &p->sources[i];

        if (s->bytes == 0)
            continue;
        if (name != NULL && strcmp(name, s->retry.transport) != 0)
            return "mixed";
        name = s->retry.transport;
    }
    return name != NULL ? name : "none";
}

static void log_ok(const struct kvf_pull *p, const struct kvf_pull_result *r)
{
    uint64_t us = r->total_us != 0 ? r->total_us : 1;
    char key[512];

    if (!kvf_log_on(KVF_LOG_INFO))
        return;
    kvf_log(KVF_LOG_INFO, "KVF PULL",
            "request=%s rank=%" PRId64 " bytes=%" PRIu64 " reads=%" PRIu64
            " sources=%u asked=%u transport=%s attempts=%u lookup_us=%" PRIu64
            " plan_us=%" PRIu64 " transfer_us=%" PRIu64 " total_us=%" PRIu64
            " MBps=%.1f",
            kvf_log_key(key, sizeof key, p->request_id, p->request_len),
            p->layout->decl.rank, r->bytes, r->reads, r->n_sources,
            p->n_sources, r->transport, r->attempts, r->lookup_us, r->plan_us,
            r->transfer_us, r->total_us, (double)r->bytes / (double)us);
}

static void log_failure(const struct kvf_pull *p,
                        const struct kvf_pull_result *r)
{
    char key[512];

    kvf_log(r->status == KVF_CANCELLED ? KVF_LOG_DEBUG : KVF_LOG_WARN,
            "KVF PULL",
            "request=%s rank=%" PRId64
            " failed status=%s attempts=%u after_ms=%" PRIu64 ": %s",
            kvf_log_key(key, sizeof key, p->request_id, p->request_len),
            p->layout->decl.rank, kvf_status_name(r->status), r->attempts,
            r->total_us / 1000, r->text);
}

void kvf_pull_finish(struct kvf_pull *p)
{
    struct kvf_worker *from = calloc(p->n_sources + 1u, sizeof *from);
    struct kvf_filled *filled = fill_groups(p);
    struct kvf_stats *st = p->ps->env.stats;
    struct kvf_pull_result r = {.status = KVF_OK,
                                .text = "",
                                .sources = from,
                                .filled = filled,
                                .n_filled = p->blocks.n,
                                .transport = transport_of(p)};

    if (from == NULL || filled == NULL) {
        struct kvf_why why;

        free(from);
        free(filled);
        kvf_fail(&why, KVF_NO_SPACE, "out of memory for the reply");
        kvf_pull_fail(p, &why);
        return;
    }
    p->state = KVF_PULL_OVER;
    for (unsigned i = 0; i < p->n_sources; i++) {
        const struct kvf_pull_source *s = &p->sources[i];

        r.bytes += (uint64_t)s->bytes;
        r.reads += s->xfer_made ? s->xfer.runs_done : 0;
        if (s->bytes != 0)
            from[r.n_sources++] = s->worker;
    }
    fill_timing(p, &r);
    if (p->ops->reply(p->arg, &r) < 0) {
        st->pull_failed++;
        end_claims(p, false); /* nobody knows that it has them */
    } else {
        end_claims(p, true);
        log_ok(p, &r);
        st->pulls++;
        st->pull_bytes += r.bytes;
        st->pull_reads += r.reads;
    }
    free(from);
    free(filled);
    kvf_pull_free(p);
}

void kvf_pull_answer_failure(struct kvf_pull *p)
{
    struct kvf_stats *st = p->ps->env.stats;
    struct kvf_pull_result r = {.status = p->status,
                                .text = p->text != NULL ? p->text : ""};

    p->state = KVF_PULL_OVER;
    fill_timing(p, &r);
    st->pull_failed++;
    st->timeouts += r.status == KVF_TIMEOUT || r.status == KVF_TRANSFER_TIMEOUT;
    log_failure(p, &r);
    end_claims(p, false);
    (void)p->ops->reply(p->arg, &r);
    kvf_pull_free(p);
}
