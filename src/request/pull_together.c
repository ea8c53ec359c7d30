/* A pull of a group: it ends as the group does.
 *
 * Happy path: JOIN before anything else, READY with the last byte, and the
 * verdict ends the wait. Failure modes: the group failed (its first cause);
 * the meeting point is lost (PEER_UNREACHABLE, and nobody can say what the
 * others were told); our own failure, which the group is told. After READY we
 * may no longer fail alone: a cancel or deadline asks the place, and its word,
 * which may be OK, is the answer. */
#include "request/pulls_private.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void body_of(const struct kvf_pull *p, enum kvf_together phase,
                    struct kvf_peer_together *b)
{
    *b = (struct kvf_peer_together){
        .member = (uint64_t)p->layout->decl.rank,
        .size = p->together_size,
        .request_id = {p->request_id, p->request_len},
        .name = {p->together_name, p->together_len},
        .phase = phase,
        .status = (uint32_t)p->status,
    };
    if (phase == KVF_TOGETHER_FAILED)
        snprintf(b->text, sizeof b->text, "%.199s",
                 p->text != NULL ? p->text : "");
}

static struct kvf_pull *pull_of(struct kvf_ask *a)
{
    return kvf_container_of(a, struct kvf_pull, meet_ask);
}

static void on_verdict(struct kvf_ask *a, enum kvf_status status,
                       const char *text)
{
    struct kvf_pull *p = pull_of(a);
    struct kvf_why why;

    if (p->state >= KVF_PULL_DRAINING)
        return;
    p->told = true;
    if (status == KVF_OK && p->state == KVF_PULL_MEETING) {
        p->met = true;
        p->status = KVF_OK; /* too late to leave */
        free(p->text);
        p->text = NULL;
        kvf_timer_cancel(p->ps->env.sched, &p->deadline);
        kvf_task_post(p->ps->env.sched, &p->task);
        return;
    }
    kvf_fail(&why, status != KVF_OK ? status : KVF_INTERNAL, "together: %s",
             text);
    kvf_pull_fail(p, &why);
}

static void on_deny(struct kvf_ask *a, const struct kvf_why *why,
                    uint64_t generation, uint64_t size)
{
    (void)generation;
    (void)size;
    pull_of(a)->told = true;
    kvf_pull_fail(pull_of(a), why);
}

/* The connection was made anew: what it carried is not known. */
static void on_again(struct kvf_ask *a)
{
    struct kvf_pull *p = pull_of(a);
    struct kvf_why why;

    kvf_fail(&why, KVF_PEER_UNREACHABLE,
             "together: the connection to %s was lost, and with it perhaps "
             "the verdict",
             kvf_peer_name(p->meet));
    p->told = true;
    kvf_pull_fail(p, &why);
}

static void join(struct kvf_pull *p)
{
    struct kvf_peer_together b;
    struct kvf_why why;

    body_of(p, KVF_TOGETHER_JOIN, &b);
    p->meet_ask.on_verdict = on_verdict;
    p->meet_ask.on_deny = on_deny;
    p->meet_ask.on_again = on_again;
    p->joined = true;
    if (kvf_peer_together(p->meet, &p->meet_ask, &b, &why) < 0)
        kvf_pull_fail(p, &why);
    else if (p->state == KVF_PULL_MEETING)
        kvf_pull_ready(p);
}

static void on_up(struct kvf_peer_user *u)
{
    struct kvf_pull *p = kvf_container_of(u, struct kvf_pull, meet_user);

    if (!p->joined && p->state < KVF_PULL_DRAINING)
        join(p);
}

static void on_down(struct kvf_peer_user *u, const struct kvf_why *why)
{
    struct kvf_pull *p = kvf_container_of(u, struct kvf_pull, meet_user);

    /* Only a refusal is final while it is awaited; of a session that ends the
     * question is denied. */
    if (!p->joined && kvf_peer_state(p->meet) == KVF_PEER_REFUSED)
        kvf_pull_fail(p, why);
}

/* All ranks must meet at one place that each can name: rank 0 of the sender. */
int kvf_pull_join(struct kvf_pull *p, struct kvf_why *why)
{
    const struct kvf_worker *w = kvf_peer_worker(p->peer);
    struct kvf_worker at;
    char host[KVF_CONF_TEXT];
    uint16_t port = p->port;
    int ret = 0;

    if (p->together_size < 2 || p->meet != NULL || w == NULL)
        return 0;
    at = (struct kvf_worker){w->stage, 0, w->replica};
    memcpy(host, p->host, sizeof host);
    if (!kvf_worker_equal(&at, w))
        ret = kvf_directory_near(p->ps->env.peers, &at, p->host, host,
                                 sizeof host, &port, why);
    if (ret == 0)
        ret = kvf_peer_at(p->ps->env.peers, host, port, &p->meet, why);
    if (ret < 0)
        return ret;
    if (kvf_peer_state(p->meet) == KVF_PEER_REFUSED) {
        *why = *kvf_peer_why(p->meet);
        return -(int)why->status;
    }
    p->meet_user.on_up = on_up;
    p->meet_user.on_down = on_down;
    kvf_peer_join(p->meet, &p->meet_user);
    if (kvf_peer_state(p->meet) == KVF_PEER_UP)
        join(p);
    return 0;
}

void kvf_pull_ready(struct kvf_pull *p)
{
    struct kvf_peer_together b;

    if (!p->joined)
        return; /* said with JOIN */
    body_of(p, KVF_TOGETHER_READY, &b);
    (void)kvf_peer_together(p->meet, &p->meet_ask, &b, NULL);
}

void kvf_pull_leave(struct kvf_pull *p)
{
    struct kvf_peer_together b;

    if (!p->meet_ask.active)
        return;
    body_of(p, KVF_TOGETHER_FAILED, &b);
    (void)kvf_peer_together(p->meet, &p->meet_ask, &b, NULL);
}

bool kvf_pull_ask_out(struct kvf_pull *p)
{
    struct kvf_sched *sched = p->ps->env.sched;

    if (p->state != KVF_PULL_MEETING || !p->joined || p->told ||
        !p->meet_ask.active || kvf_peer_state(p->meet) != KVF_PEER_UP)
        return false;
    if (p->leaving)
        return kvf_timer_armed(&p->deadline); /* it did not answer */
    p->leaving = true;
    kvf_pull_leave(p);
    kvf_timer_set(sched, &p->deadline,
                  sched->now_ns +
                      p->ps->env.conf->peer_timeout_ms * KVF_NS_PER_MS);
    return true;
}
