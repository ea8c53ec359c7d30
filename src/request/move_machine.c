/* Happy path: ACCEPTED -> ASKING -> MOVING -> CONFIRMING -> DONE, without
 * CONFIRMING for a transfer that nobody must be told of, and from ASKING
 * straight to DONE for bytes that went with the question. A failed attempt goes
 * to RETRYING and back to MOVING, or to ASKING when the grant was lost. STOP in
 * MOVING leads through DRAINING: nobody is answered while a transport can still
 * touch the memory. */
#include "request/move_machine.h"

const char *kvf_move_state_name(enum kvf_move_state s)
{
    static const char *const names[KVF_MOVE_STATE_COUNT] = {
#define NAME(name, text, truth) text,
        KVF_MOVE_STATES(NAME)
#undef NAME
    };

    return (unsigned)s < KVF_MOVE_STATE_COUNT ? names[s] : "?";
}

const char *kvf_move_event_name(enum kvf_move_event e)
{
    static const char *const names[KVF_MOVE_EV_COUNT] = {
        "wait-peer", "ask",     "grant",     "applied", "moved", "broken",
        "lost",      "backoff", "confirmed", "stop",    "quiet"};

    return (unsigned)e < KVF_MOVE_EV_COUNT ? names[e] : "?";
}

static unsigned go(struct kvf_move_machine *m, enum kvf_move_state next,
                   unsigned actions)
{
    m->state = next;
    return actions;
}

static unsigned odd(struct kvf_move_machine *m)
{
    m->unexpected++;
    return 0;
}

static unsigned attempt(struct kvf_move_machine *m)
{
    m->attempts++;
    return go(m, KVF_MOVE_MOVING, KVF_MOVE_DO_MOVE);
}

static unsigned try_again(struct kvf_move_machine *m, bool reask)
{
    if (reask)
        m->reask = true;
    if (m->attempts >= m->max_attempts)
        return go(m, KVF_MOVE_FAILED, KVF_MOVE_DO_FAIL);
    return go(m, KVF_MOVE_RETRYING, KVF_MOVE_DO_BACKOFF);
}

static unsigned fail(struct kvf_move_machine *m, unsigned actions)
{
    return go(m, KVF_MOVE_FAILED, actions | KVF_MOVE_DO_FAIL);
}

static unsigned before(struct kvf_move_machine *m, enum kvf_move_event e)
{
    switch ((unsigned)e) {
    case KVF_MOVE_EV_WAIT_PEER:
        return go(m, KVF_MOVE_CONNECTING, 0);
    case KVF_MOVE_EV_ASK:
        return go(m, KVF_MOVE_ASKING, KVF_MOVE_DO_ASK);
    case KVF_MOVE_EV_STOP:
        return fail(m, 0);
    default:
        return odd(m);
    }
}

static unsigned asking(struct kvf_move_machine *m, enum kvf_move_event e)
{
    switch ((unsigned)e) {
    case KVF_MOVE_EV_WAIT_PEER: /* it was lost before it heard of us */
        return go(m, KVF_MOVE_CONNECTING, 0);
    case KVF_MOVE_EV_GRANT:
        return attempt(m);
    case KVF_MOVE_EV_APPLIED:
        if (m->attempts == 0)
            m->attempts = 1; /* the question was one */
        return go(m, KVF_MOVE_DONE, KVF_MOVE_DO_FINISH);
    case KVF_MOVE_EV_ASK: /* in another form */
        return KVF_MOVE_DO_ASK;
    case KVF_MOVE_EV_STOP:
        return fail(m, KVF_MOVE_DO_UNASK);
    default:
        return odd(m);
    }
}

static unsigned moving(struct kvf_move_machine *m, enum kvf_move_event e)
{
    switch ((unsigned)e) {
    case KVF_MOVE_EV_MOVED:
        if (m->confirm)
            return go(m, KVF_MOVE_CONFIRMING, KVF_MOVE_DO_CONFIRM);
        return go(m, KVF_MOVE_DONE, KVF_MOVE_DO_FINISH);
    case KVF_MOVE_EV_BROKEN:
        return try_again(m, false);
    case KVF_MOVE_EV_LOST:
        return try_again(m, true);
    case KVF_MOVE_EV_STOP:
        return go(m, KVF_MOVE_DRAINING, KVF_MOVE_DO_CANCEL);
    default:
        return odd(m);
    }
}

static unsigned retrying(struct kvf_move_machine *m, enum kvf_move_event e)
{
    switch ((unsigned)e) {
    case KVF_MOVE_EV_BACKOFF:
        if (!m->reask)
            return attempt(m);
        m->reask = false;
        return go(m, KVF_MOVE_ASKING, KVF_MOVE_DO_ASK);
    case KVF_MOVE_EV_LOST:
        m->reask = true;
        return 0;
    case KVF_MOVE_EV_STOP:
        return fail(m, 0);
    default:
        return odd(m);
    }
}

static unsigned confirming(struct kvf_move_machine *m, enum kvf_move_event e)
{
    switch ((unsigned)e) {
    case KVF_MOVE_EV_CONFIRMED:
        return go(m, KVF_MOVE_DONE, KVF_MOVE_DO_FINISH);
    case KVF_MOVE_EV_LOST:
        return try_again(m, true);
    case KVF_MOVE_EV_STOP:
        return fail(m, KVF_MOVE_DO_UNASK);
    default:
        return odd(m);
    }
}

unsigned kvf_move_step(struct kvf_move_machine *m, enum kvf_move_event e)
{
    switch (m->state) {
    case KVF_MOVE_ACCEPTED:
    case KVF_MOVE_CONNECTING:
        return before(m, e);
    case KVF_MOVE_ASKING:
        return asking(m, e);
    case KVF_MOVE_MOVING:
        return moving(m, e);
    case KVF_MOVE_RETRYING:
        return retrying(m, e);
    case KVF_MOVE_CONFIRMING:
        return confirming(m, e);
    case KVF_MOVE_DRAINING:
        if (e == KVF_MOVE_EV_QUIET)
            return fail(m, 0);
        return e == KVF_MOVE_EV_STOP ? 0 : odd(m); /* once is enough */
    case KVF_MOVE_DONE:
    case KVF_MOVE_FAILED:
    case KVF_MOVE_STATE_COUNT:
    default:
        return odd(m);
    }
}
