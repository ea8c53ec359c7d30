/* Going away in order. Happy path: puts and gets of engines stop, readers
 * finish, the loop ends. Failure modes: at the deadline what is left is cut and
 * said so in one line; replies get a bounded grace to leave. */
#include "daemon/engine.h"

#include <inttypes.h>

#define LOOK_MS 5
#define GRACE_MS 300

static const char text[] = "the daemon is shutting down";

static struct kvf_drain_left count_left(struct kvf_server *s)
{
    struct kvf_store_gauges g, b;
    struct kvf_peers_gauges x;

    kvf_store_gauges(s->store, &g);
    kvf_store_gauges(kvf_blocks_store(s->blocks), &b);
    kvf_peers_gauges(s->peers, &x);
    return (struct kvf_drain_left){.claims = g.claims + b.claims + x.rooms +
                                             kvf_views_elsewhere(s->gets),
                                   .gets = s->n_pending,
                                   .keys = g.live + b.live};
}

static void finish(struct kvf_server *s, const struct kvf_drain_left *cut)
{
    struct kvf_drain_left now = count_left(s);

    kvf_log(now.keys + cut->claims + cut->gets > 0 ? KVF_LOG_WARN
                                                   : KVF_LOG_INFO,
            "DRAIN",
            "done after_ms=%" PRIu64 " cut_keys=%" PRIu64 " cut_claims=%" PRIu64
            " cut_requests=%" PRIu64,
            (uint64_t)((s->sched->now_ns - s->drain.since_ns) / KVF_NS_PER_MS),
            now.keys, cut->claims, cut->gets);
    kvf_reactor_stop(s->reactor);
}

static void cancel_everything(struct kvf_server *s)
{
    struct kvf_client *c, *next;

    HASH_ITER (hh, s->clients_by_rid, c, next) {
        (void)kvf_client_cancel(c, NULL, NULL, 0, KVF_SHUTTING_DOWN, text);
    }
    kvf_gets_cancel_all(s->gets, KVF_SHUTTING_DOWN, text);
}

/* Gets that wait for a put wait in vain, once no push can bring one either. */
static void refuse_waiters(struct kvf_server *s)
{
    struct kvf_peers_gauges x;

    kvf_peers_gauges(s->peers, &x);
    if (x.rooms > 0)
        return;
    s->drain.closed = true;
    kvf_store_close(s->store);
    kvf_store_close(kvf_blocks_store(s->blocks));
}

static void look(struct kvf_timer *t)
{
    struct kvf_drain *d = kvf_container_of(t, struct kvf_drain, timer);
    struct kvf_server *s = kvf_container_of(d, struct kvf_server, drain);
    static const struct kvf_drain_left nothing;
    struct kvf_drain_left left = count_left(s);
    uint64_t now = s->sched->now_ns;
    bool quiet = left.gets == 0 && kvf_zsock_queued(s->engine) == 0;

    if (!d->closed)
        refuse_waiters(s);
    if (d->cutting) {
        if (quiet || now >= d->deadline_ns)
            finish(s, &d->cut_left);
        else
            kvf_timer_set(s->sched, t, now + LOOK_MS * KVF_NS_PER_MS);
        return;
    }
    if (quiet && left.claims == 0) {
        finish(s, &nothing);
        return;
    }
    if (now >= d->deadline_ns) {
        d->cutting = true;
        d->cut_left = left;
        d->deadline_ns = now + GRACE_MS * KVF_NS_PER_MS;
        cancel_everything(s);
    }
    kvf_timer_set(s->sched, t, now + LOOK_MS * KVF_NS_PER_MS);
}

void kvf_drain_init(struct kvf_server *s)
{
    kvf_timer_init(&s->drain.timer, look);
}

void kvf_drain_begin(struct kvf_server *s, uint64_t timeout_ms,
                     const char *cause)
{
    uint64_t deadline = s->sched->now_ns + timeout_ms * KVF_NS_PER_MS;

    if (s->drain.active) {
        if (!s->drain.cutting && deadline < s->drain.deadline_ns)
            s->drain.deadline_ns = deadline;
        return;
    }
    s->drain.active = true;
    kvf_peers_drain(s->peers);
    s->drain.since_ns = s->sched->now_ns;
    s->drain.deadline_ns = deadline;
    kvf_log(KVF_LOG_INFO, "DRAIN", "begun timeout_ms=%" PRIu64 ": %s",
            timeout_ms, cause);
    kvf_event_drain(s, timeout_ms);
    kvf_timer_set(s->sched, &s->drain.timer, s->sched->now_ns);
}

/* ---- after the loop ----------------------------------------------------- */

/* Runs the loop once more, while something is left and not for long. */
static void run_while(struct kvf_server *s,
                      bool (*left)(const struct kvf_server *s))
{
    uint64_t end =
        kvf_sched_clock(s->sched) + KVF_LAST_REPLIES_MS * KVF_NS_PER_MS;

    while (left(s) && kvf_sched_clock(s->sched) < end)
        if (kvf_reactor_once(s->reactor, 10 * KVF_NS_PER_MS, NULL) < 0)
            break;
}

static bool unanswered(const struct kvf_server *s)
{
    return kvf_gets_running(s->gets) > 0 || s->n_pending > 0 ||
           (s->moves != NULL && kvf_moves_running(s->moves) > 0);
}

static bool unheard(const struct kvf_server *s)
{
    return kvf_peers_unheard(s->peers) > 0;
}

void kvf_drain_settle(struct kvf_server *s)
{
    s->leaving = true;
    kvf_sessions_end_all(s, text);
    kvf_clients_drop_all(s);
    kvf_gets_cancel_all(s->gets, KVF_SHUTTING_DOWN, text);
    if (s->moves != NULL)
        kvf_moves_cancel_all(s->moves, KVF_SHUTTING_DOWN, text);
    run_while(s, unanswered);
    /* Who pulls from us learns it from us, not from our silence. */
    kvf_peers_leave(s->peers);
    run_while(s, unheard);
}
