/* Pulls: their table, their time, and how they come to an end.
 *
 * Happy path: started, begun from a task, complete, one reply (pull_reply.c).
 * Failure modes: the first cause gives up the whole: lookups are taken back,
 * transfers cancelled, and the reply follows when nothing writes any more. */
#include "request/pulls_private.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int kvf_pulls_create(const struct kvf_pulls_env *env, struct kvf_pulls **out,
                     struct kvf_why *why)
{
    struct kvf_pulls *ps = calloc(1, sizeof *ps);

    if (ps == NULL)
        return kvf_fail(why, KVF_INTERNAL, "out of memory");
    ps->env = *env;
    kvf_list_init(&ps->all);
    *out = ps;
    return 0;
}

void kvf_pulls_destroy(struct kvf_pulls *ps)
{
    free(ps);
}

unsigned kvf_pulls_running(const struct kvf_pulls *ps)
{
    return ps->running;
}

/* ---- the end ------------------------------------------------------------ */

void kvf_pull_free(struct kvf_pull *p)
{
    struct kvf_sched *sched = p->ps->env.sched;

    for (unsigned i = 0; i < p->n_sources; i++) {
        struct kvf_pull_source *s = &p->sources[i];

        kvf_timer_cancel(sched, &s->pause);
        kvf_way_leave(&s->retry);
        kvf_peer_leave(&s->user);
        if (s->xfer_made)
            kvf_scatter_fini(&s->xfer);
        kvf_plan_free(&s->plan);
        if (s->far != NULL)
            kvf_far_release(s->far);
    }
    kvf_timer_cancel(sched, &p->deadline);
    kvf_timer_cancel(sched, &p->pause);
    kvf_task_cancel(&p->task);
    kvf_peer_leave(&p->user);
    kvf_peer_unask(&p->meet_ask);
    kvf_peer_leave(&p->meet_user);
    free(p->together_name);
    kvf_edge_leave(&p->edge);
    kvf_layout_release(p->layout);
    kvf_req_blocks_done(&p->blocks);
    free(p->ids);
    free(p->sources);
    free(p->request_id);
    free(p->text);
    if (!kvf_list_empty(&p->node)) {
        kvf_list_unlink(&p->node);
        p->ps->running--;
    }
    free(p);
}

/* The first cause is the answer. */
static void because(struct kvf_pull *p, enum kvf_status status,
                    const char *text)
{
    if (p->status != KVF_OK)
        return;
    p->status = status;
    p->text = strdup(text);
}

static bool quiet(const struct kvf_pull *p)
{
    for (unsigned i = 0; i < p->n_sources; i++)
        if (p->sources[i].state == KVF_SOURCE_MOVING)
            return false;
    return true;
}

void kvf_pull_check_quiet(struct kvf_pull *p)
{
    if (quiet(p))
        kvf_task_post(p->ps->env.sched, &p->task);
}

void kvf_pull_fail(struct kvf_pull *p, const struct kvf_why *why)
{
    struct kvf_sched *sched = p->ps->env.sched;

    because(p, why->status, why->text);
    if (p->state >= KVF_PULL_DRAINING || kvf_pull_ask_out(p))
        return;
    p->state = KVF_PULL_DRAINING;
    kvf_timer_cancel(sched, &p->deadline);
    kvf_timer_cancel(sched, &p->pause);
    kvf_peer_unask(&p->ask);
    kvf_pull_leave(p);
    for (unsigned i = 0; i < p->n_sources; i++) {
        struct kvf_pull_source *s = &p->sources[i];

        kvf_timer_cancel(sched, &s->pause);
        kvf_way_leave(&s->retry);
        kvf_peer_unask(&s->ask);
        if (s->state == KVF_SOURCE_MOVING)
            kvf_scatter_cancel(&s->xfer);
    }
    kvf_pull_check_quiet(p);
}

void kvf_pull_check_complete(struct kvf_pull *p)
{
    for (unsigned i = 0; i < p->n_sources; i++)
        if (p->sources[i].state != KVF_SOURCE_COMPLETE)
            return;
    if (p->state != KVF_PULL_MOVING)
        return;
    /* Not held while others are awaited: they may need the room. */
    kvf_edge_leave(&p->edge);
    if (p->together_size > 1) {
        p->state = KVF_PULL_MEETING;
        kvf_pull_ready(p);
    } else {
        kvf_task_post(p->ps->env.sched, &p->task);
    }
}

static void on_task(struct kvf_task *t)
{
    struct kvf_pull *p = kvf_container_of(t, struct kvf_pull, task);
    struct kvf_why why;

    if (p->state == KVF_PULL_DRAINING) {
        if (quiet(p)) /* it may have been posted for something else */
            kvf_pull_answer_failure(p);
    } else if (p->met) {
        kvf_pull_finish(p);
    } else if (p->stopping) {
        kvf_fail(&why, p->status, "%s", p->text != NULL ? p->text : "");
        kvf_pull_fail(p, &why);
    } else if (p->state == KVF_PULL_LOCATING) {
        kvf_pull_begin(p);
    } else if (p->state == KVF_PULL_MOVING) {
        kvf_pull_finish(p);
    }
}

static void on_deadline(struct kvf_timer *t)
{
    struct kvf_pull *p = kvf_container_of(t, struct kvf_pull, deadline);
    unsigned long long ms =
        (p->ps->env.sched->now_ns - p->t_start) / KVF_NS_PER_MS;
    const char *awaited = "";
    uint64_t done = 0, all = 0;
    struct kvf_why why;

    if (p->state == KVF_PULL_MEETING && !p->joined) {
        kvf_fail(&why, KVF_PEER_UNREACHABLE,
                 "together: %s, where the ranks meet, was not reached within "
                 "%llu ms: %.120s",
                 kvf_peer_name(p->meet), ms, kvf_peer_why(p->meet)->text);
    } else if (p->state == KVF_PULL_MEETING) {
        kvf_fail(&why, KVF_TIMEOUT,
                 "waited %llu ms for the other ranks of the group; ours had "
                 "all its bytes",
                 ms);
    } else if (!p->planned) {
        kvf_pull_why_waiting(p, ms, &why);
    } else {
        for (unsigned i = 0; i < p->n_sources; i++) {
            all += (uint64_t)p->sources[i].bytes;
            if (p->sources[i].xfer_made)
                done += p->sources[i].xfer.bytes_done;
            if (*awaited == '\0')
                awaited = kvf_way_awaited(&p->sources[i].retry);
        }
        kvf_fail(&why, KVF_TRANSFER_TIMEOUT,
                 "%" PRIu64 " of %" PRIu64 " bytes had come after %llu ms%s",
                 done, all, ms, awaited);
    }
    kvf_pull_fail(p, &why);
}

/* ---- the beginning ------------------------------------------------------ */

static int find_entry(struct kvf_pull *p, const struct kvf_req_pull *r,
                      struct kvf_why *why)
{
    const struct kvf_conf *c = p->ps->env.conf;

    p->has_handle = r->has_handle;
    if (r->has_handle) {
        p->tag = r->tag;
        p->incarnation = r->incarnation;
        snprintf(p->host, sizeof p->host, "%s", r->source.host);
        p->port = r->source.port;
        return 0;
    }
    /* Rank 0 is always there, and knows how its stage is cut. */
    p->expect = (struct kvf_worker){
        .stage = (uint32_t)r->from.stage,
        .rank = r->from.has_rank ? (uint32_t)r->from.rank : 0,
        .replica =
            r->from.has_replica ? (uint32_t)r->from.replica : c->self.replica};
    p->has_expect = true;
    return kvf_directory_find(p->ps->env.peers, &p->expect, p->host,
                              sizeof p->host, &p->port, why);
}

static int copy_request(struct kvf_pull *p, struct kvf_req_pull *r,
                        struct kvf_why *why)
{
    p->request_id = malloc(r->request_id.len + 1);
    p->ids = kvf_ids_of(&p->blocks, p->layout->decl.side.n_groups);
    if (p->request_id == NULL || p->ids == NULL)
        return kvf_fail(why, KVF_NO_SPACE, "out of memory for a pull");
    memcpy(p->request_id, r->request_id.p, r->request_id.len);
    p->request_id[r->request_id.len] = '\0';
    p->request_len = r->request_id.len;
    p->together_size = r->together.p != NULL ? r->together_size : 0;
    p->together_len = r->together.len;
    p->together_name = malloc(r->together.len + 1);
    if (p->together_name == NULL)
        return kvf_fail(why, KVF_NO_SPACE, "out of memory for a pull");
    if (r->together.p != NULL)
        memcpy(p->together_name, r->together.p, r->together.len);
    return kvf_ids_check(p->layout, &p->blocks, p->ids, why);
}

int kvf_pull_start(struct kvf_pulls *ps, struct kvf_layout *layout,
                   struct kvf_req_pull *req, uint64_t timeout_ms,
                   const struct kvf_pull_ops *ops, void *arg,
                   struct kvf_pull **out, struct kvf_why *why)
{
    struct kvf_sched *sched = ps->env.sched;
    struct kvf_pull *p = calloc(1, sizeof *p);
    int rc;

    if (p == NULL)
        return kvf_fail(why, KVF_NO_SPACE, "out of memory for a pull");
    p->ps = ps;
    p->ops = ops;
    p->arg = arg;
    p->layout = kvf_layout_hold(layout);
    p->blocks = req->blocks;
    memset(&req->blocks, 0, sizeof req->blocks);
    kvf_list_init(&p->node);
    kvf_list_init(&p->user.node);
    kvf_list_init(&p->meet_user.node);
    kvf_timer_init(&p->deadline, on_deadline);
    kvf_timer_init(&p->pause, NULL);
    kvf_task_init(&p->task, on_task);
    kvf_edge_wait_init(&p->edge, kvf_pull_on_enter);
    rc = copy_request(p, req, why);
    if (rc == 0)
        rc = find_entry(p, req, why);
    if (rc < 0) {
        kvf_pull_free(p);
        return rc;
    }
    p->t_start = sched->now_ns;
    if (timeout_ms != 0)
        kvf_timer_set(sched, &p->deadline,
                      p->t_start + timeout_ms * KVF_NS_PER_MS);
    kvf_list_push_back(&ps->all, &p->node);
    ps->running++;
    kvf_task_post(sched, &p->task);
    *out = p;
    return 0;
}

void kvf_pull_cancel(struct kvf_pull *p, enum kvf_status status,
                     const char *text)
{
    if (p->state >= KVF_PULL_DRAINING || p->stopping || p->met)
        return; /* met: the others were told that all have it */
    because(p, status, text);
    p->stopping = true;
    kvf_task_post(p->ps->env.sched, &p->task);
}

void kvf_pulls_cancel_all(struct kvf_pulls *ps, enum kvf_status status,
                          const char *text)
{
    kvf_list_for_each (n, &ps->all)
        kvf_pull_cancel(kvf_container_of(n, struct kvf_pull, node), status,
                        text);
}

void kvf_pulls_gauges(const struct kvf_pulls *ps, struct kvf_pulls_gauges *out)
{
    struct kvf_pulls_gauges g = {.running = ps->running};

    kvf_list_for_each (n, &ps->all) {
        const struct kvf_pull *p = kvf_container_of(n, struct kvf_pull, node);

        g.waiting += p->state < KVF_PULL_MOVING;
        g.moving += p->state == KVF_PULL_MOVING;
        g.draining += p->state == KVF_PULL_DRAINING;
        for (unsigned i = 0; i < p->n_sources; i++)
            g.bytes +=
                (uint64_t)p->sources[i].bytes -
                (p->sources[i].xfer_made ? p->sources[i].xfer.bytes_done : 0);
    }
    *out = g;
}
