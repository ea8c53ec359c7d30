/* A pull has its claims: what to read from each rank, and how it moves.
 *
 * Happy path: the grants agree, every source gets a plan, those with bytes a
 * scattered transfer. Failure modes: senders that disagree, blocks that do not
 * cover what is wanted (MISMATCH, INVALID); a broken attempt is resumed, also
 * over another transport, as often as a get's; a lost claim is asked for again
 * and goes on if it is the same publication. */
#include "request/pulls_private.h"

#include "base/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the plan ----------------------------------------------------------- */

/* All ranks must have published one and the same request. Tags that a rank made
 * up itself say nothing about the others. */
static int compare_grants(struct kvf_pull *p, struct kvf_why *why)
{
    const struct kvf_pull_source *first = NULL;

    for (unsigned i = 0; i < p->n_sources; i++) {
        const struct kvf_pull_source *s = &p->sources[i];
        const struct kvf_grant *g = s->grant;

        if (i == 0)
            p->n_tokens = g->n_tokens;
        if (g->n_tokens != p->n_tokens)
            return kvf_fail(
                why, KVF_MISMATCH,
                "n_tokens: rank %" PRId64 " of the sender published %" PRId64
                " tokens, rank %" PRId64 " %" PRId64,
                p->sources[0].rank, p->n_tokens, s->rank, g->n_tokens);
        if (g->minted && !p->has_handle)
            continue;
        if (first != NULL && !kvf_id_equal(&first->grant->tag, &g->tag))
            return kvf_fail(why, KVF_MISMATCH,
                            "tag: ranks %" PRId64 " and %" PRId64
                            " of the sender published different requests "
                            "under this id",
                            first->rank, s->rank);
        first = s;
    }
    return 0;
}

/* Only groups with a layer in common count between two ranks. */
static int request_of(const struct kvf_pull_source *s, struct kvf_ids *ids[2],
                      struct kvf_request *r, struct kvf_why *why)
{
    const struct kvf_pull *p = s->pull;
    unsigned n = p->layout->decl.side.n_groups;

    for (int i = 0; i < 2; i++) {
        ids[i] = calloc(n + 1u, sizeof *ids[i]);
        if (ids[i] == NULL)
            return kvf_fail(why, KVF_NO_SPACE, "out of memory for a plan");
    }
    for (unsigned g = 0; g < n; g++)
        if (s->pair->match.group[g]) {
            ids[0][g] = s->grant->ids[g];
            ids[1][g] = p->ids[g];
        }
    *r = (struct kvf_request){.n_tokens = p->n_tokens, .ids = {ids[0], ids[1]}};
    return 0;
}

/* What is wrong with our own blocks is INVALID; with both, MISMATCH. */
static int refuse(const struct kvf_pull_source *s, int rc,
                  const struct kvf_refusal *no, struct kvf_why *why)
{
    if (rc == -(int)KVF_NO_SPACE)
        return kvf_fail(why, KVF_NO_SPACE, "%s", no->text);
    return kvf_fail(why,
                    no->kind == KVF_E_LOCAL_SHORT ? KVF_INVALID : KVF_MISMATCH,
                    "%s: rank %" PRId64 " of the sender: %s",
                    kvf_refuse_name(no->kind), s->rank, no->text);
}

static int plan_source(struct kvf_pull_source *s, struct kvf_why *why)
{
    struct kvf_pull *p = s->pull;
    struct kvf_ids *ids[2] = {NULL, NULL};
    struct kvf_refusal no = {0};
    struct kvf_request r;
    int64_t runs;
    int rc;

    s->far = kvf_far_hold(s->grant->far);
    s->pair = kvf_pair_of(s->far, p->layout, true, kvf_peer_name(s->peer));
    if (s->pair == NULL)
        return kvf_fail(why, KVF_NO_SPACE, "out of memory for a plan");
    if (s->pair->rc < 0)
        return refuse(s, s->pair->rc, &s->pair->no, why);
    if (s->pair->match.t == NULL)
        return 0;
    rc = request_of(s, ids, &r, why);
    if (rc == 0) {
        rc = kvf_request_check(&s->pair->match.side[0], &s->pair->match.side[1],
                               &r, &no);
        if (rc == 0)
            rc = kvf_plan_make(&s->plan, s->pair->match.t, &r, &no);
        if (rc < 0)
            rc = refuse(s, rc, &no, why);
    }
    free(ids[0]);
    free(ids[1]);
    if (rc == 0)
        kvf_plan_size(&s->plan, &runs, &s->bytes);
    return rc;
}

static void start(struct kvf_pull *p)
{
    p->admitted = true;
    for (unsigned i = 0; i < p->n_sources; i++) {
        struct kvf_pull_source *s = &p->sources[i];

        /* One whose claim was lost meanwhile is asked again, and then moves. */
        if (s->state != KVF_SOURCE_GRANTED)
            continue;
        kvf_source_move(s);
        if (p->state != KVF_PULL_MOVING)
            return;
    }
    kvf_pull_check_complete(p);
}

/* The whole pull counts once on its edge. */
static bool admit(struct kvf_pull *p)
{
    const struct kvf_worker *w = kvf_peer_worker(p->peer);
    uint64_t bytes = 0;

    for (unsigned i = 0; i < p->n_sources; i++)
        bytes += (uint64_t)p->sources[i].bytes;
    if (bytes == 0 || w == NULL)
        return true;
    return kvf_edge_enter(kvf_peers_edge(p->ps->env.peers, w->stage),
                          p->ps->env.conf, &p->edge, bytes);
}

void kvf_pull_on_enter(struct kvf_edge_wait *w)
{
    struct kvf_pull *p = kvf_container_of(w, struct kvf_pull, edge);

    if (p->state == KVF_PULL_MOVING)
        start(p);
}

void kvf_pull_plan(struct kvf_pull *p)
{
    const struct kvf_sched *sched = p->ps->env.sched;
    struct kvf_why why;
    int rc;

    p->t_granted = kvf_sched_clock(sched);
    p->state = KVF_PULL_MOVING;
    rc = compare_grants(p, &why);
    for (unsigned i = 0; rc == 0 && i < p->n_sources; i++)
        rc = plan_source(&p->sources[i], &why);
    if (rc < 0) {
        kvf_pull_fail(p, &why);
        return;
    }
    p->planned = true;
    p->t_planned = kvf_sched_clock(sched);
    if (admit(p))
        start(p);
}

/* ---- the runs of a plan ------------------------------------------------- */

static size_t next_runs(void *arg, struct kvf_run *out, size_t cap)
{
    struct kvf_pull_source *s = arg;
    const struct kvf_far *f = s->far;
    const struct kvf_layout *l = s->pull->layout;
    struct kvf_desc d[KVF_SCATTER_AHEAD];
    size_t n;

    if (cap > KVF_SCATTER_AHEAD)
        cap = KVF_SCATTER_AHEAD;
    n = kvf_plan_next(&s->iter, d, cap);
    for (size_t i = 0; i < n; i++)
        out[i] = (struct kvf_run){
            .offset = f->base[d[i].p_region] + (uint64_t)d[i].p_off,
            .length = (uint64_t)d[i].len,
            .local = l->regions[d[i].d_region]->map->base + d[i].d_off};
    return n;
}

static void rewind_runs(void *arg)
{
    struct kvf_pull_source *s = arg;

    kvf_plan_begin(&s->iter, &s->plan);
}

/* ---- moving ------------------------------------------------------------- */

static void log_retry(const struct kvf_pull_source *s, uint64_t ns,
                      const char *cause)
{
    const struct kvf_pull *p = s->pull;
    const char *transport = s->retry.transport;
    char key[512];

    kvf_log(
        KVF_LOG_WARN, "KVF RETRY",
        "request=%s source=%s attempt=%u/%u transport=%s backoff_ms=%" PRIu64
        " done=%" PRIu64 "/%" PRId64 ": %s",
        kvf_log_key(key, sizeof key, p->request_id, p->request_len),
        kvf_peer_name(s->peer), s->attempts + 1, p->ps->env.conf->attempts,
        transport != NULL ? transport : "none", (uint64_t)(ns / KVF_NS_PER_MS),
        s->xfer_made ? s->xfer.bytes_done : 0, s->bytes, cause);
}

static void pause_source(struct kvf_pull_source *s, const char *cause)
{
    const struct kvf_pulls_env *env = &s->pull->ps->env;
    uint64_t ns;

    s->state = KVF_SOURCE_PAUSED;
    if (!kvf_way_pause(&s->retry, env->conf, env->rng, s->peer, s->attempts,
                       &ns))
        return;
    if (s->retry.pause == KVF_PAUSE_BACKOFF)
        log_retry(s, ns, cause);
    kvf_timer_set(env->sched, &s->pause, env->sched->now_ns + ns);
}

/* The attempt is over and memory is quiet. */
static void broken(struct kvf_pull_source *s, const struct kvf_why *why)
{
    struct kvf_pull *p = s->pull;
    const struct kvf_conf *c = p->ps->env.conf;
    const char *transport = s->retry.transport;
    struct kvf_retry_facts f = {.attempts = s->attempts,
                                .max = c->attempts,
                                .remote = true,
                                .up = kvf_peer_state(s->peer) == KVF_PEER_UP,
                                .heard_ns = kvf_peer_heard_ns(s->peer),
                                .now_ns = p->ps->env.sched->now_ns};
    struct kvf_why last;

    s->state = KVF_SOURCE_PAUSED;
    if (!f.up) {
        kvf_pull_fail(p, kvf_peer_why(s->peer));
        return;
    }
    s->attempts =
        kvf_retry_failed(&s->retry, c, &f, &p->ps->env.stats->fallbacks);
    if (s->attempts < c->attempts) {
        pause_source(s, why->text);
        return;
    }
    kvf_fail(&last, KVF_TRANSPORT, "%s from %s failed %u times: %.160s",
             transport != NULL ? transport : "transfer", kvf_peer_name(s->peer),
             s->attempts, why->text);
    kvf_pull_fail(p, &last);
}

static void on_moved(struct kvf_scatter *x, int status,
                     const struct kvf_why *why)
{
    struct kvf_pull_source *s =
        kvf_container_of(x, struct kvf_pull_source, xfer);
    struct kvf_pull *p = s->pull;
    struct kvf_why lost;

    if (p->state == KVF_PULL_DRAINING) {
        s->state = KVF_SOURCE_GRANTED;
        kvf_pull_check_quiet(p);
        return;
    }
    if (s->grant->revoked)
        kvf_scatter_reset(x); /* who knows what was copied since */
    if (status == 0 && s->grant->lost) {
        kvf_fail(&lost, KVF_STALE, "the claim ended during the transfer");
        broken(s, &lost);
        return;
    }
    if (status < 0 && -status == KVF_STALE)
        s->grant->lost = true; /* the owner does not know it any more */
    if (status < 0) {
        broken(s, why);
        return;
    }
    s->state = KVF_SOURCE_COMPLETE;
    kvf_pull_check_complete(p);
}

void kvf_source_move(struct kvf_pull_source *s)
{
    struct kvf_pull *p = s->pull;
    const struct kvf_run_source runs = {next_runs, rewind_runs, s};
    struct kvf_link *link;
    struct kvf_why why;

    if (s->bytes == 0) { /* nothing to read there; it is told all the same */
        s->state = KVF_SOURCE_COMPLETE;
        kvf_pull_check_complete(p);
        return;
    }
    s->attempts++;
    if (!s->xfer_made) {
        kvf_plan_begin(&s->iter, &s->plan);
        kvf_scatter_init(&s->xfer, p->ps->env.sched, false, &runs,
                         (uint64_t)s->bytes, on_moved);
        s->xfer_made = true;
    }
    switch (kvf_way_find(&s->retry, p->ps->env.conf, s->peer, s->grant,
                         KVF_CAP_RUNS, &link, &why)) {
    case KVF_WAY_LINK:
        if (s->attempts > 1)
            p->ps->env.stats->retries++;
        s->state = KVF_SOURCE_MOVING;
        kvf_scatter_start(&s->xfer, link, &s->grant->remote);
        return;
    case KVF_WAY_WAIT: /* nothing was tried */
        s->attempts--;
        pause_source(s, NULL);
        return;
    case KVF_WAY_NONE:
        broken(s, &why);
        return;
    }
}

void kvf_source_resume(struct kvf_pull_source *s)
{
    if (s->state != KVF_SOURCE_PAUSED || s->pull->state >= KVF_PULL_DRAINING)
        return;
    if (s->grant->lost)
        kvf_source_ask(s);
    else
        kvf_source_move(s);
}

void kvf_source_on_link(struct kvf_retry *r)
{
    kvf_source_resume(kvf_container_of(r, struct kvf_pull_source, retry));
}

void kvf_source_on_lost(struct kvf_grant *g, const struct kvf_why *why)
{
    struct kvf_pull_source *s = g->user;
    struct kvf_pull *p = s->pull;

    if (p->state >= KVF_PULL_DRAINING)
        return;
    switch (s->state) {
    case KVF_SOURCE_GRANTED: /* others are awaited: asked for again at once */
    case KVF_SOURCE_PAUSED:
        if (kvf_peer_state(s->peer) != KVF_PEER_UP)
            kvf_pull_fail(p, why);
        else if (s->state == KVF_SOURCE_GRANTED)
            kvf_source_ask(s);
        return;
    case KVF_SOURCE_CONNECTING:
    case KVF_SOURCE_ASKING:
    case KVF_SOURCE_MOVING:   /* the transfer ends by itself and finds out */
    case KVF_SOURCE_COMPLETE: /* every byte came while it was live */
        return;
    }
}
