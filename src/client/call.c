/* Outstanding calls: ids, deadlines, exactly one completion each.
 *
 * Happy path: new, begin/end (sends), reply, done. A call may send more than
 * one request under its id, one after another (a large put: alloc, then put).
 *
 * Failure modes: a daemon that does not answer. The daemon answers before the
 * request's deadline plus a grace, so the client waits timeout_ms longer than
 * that, completes the call as PEER_UNREACHABLE and asks for its cancellation.
 * The slot stays until the late reply came, so that what it may bring is given
 * back. Calls whose deadline is not known are guarded by a ping. */
#include "client.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SLOT_BITS 20
#define SLOT_MAX (1u << SLOT_BITS)

int kvfc_error(struct kvferry *h, int status, const char *fmt, ...)
{
    char text[sizeof h->error];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    memcpy(h->error, text, sizeof text);
    return status;
}

static int grow(struct kvferry *h)
{
    unsigned n = h->n_slots == 0 ? 64 : h->n_slots * 2;
    struct kvfc_call **slots;
    unsigned *free_slots;

    if (n > SLOT_MAX)
        return kvfc_error(h, -KVF_BUSY, "too many requests at once");
    slots = realloc(h->slots, n * sizeof *slots);
    if (slots == NULL)
        return kvfc_error(h, -KVF_INTERNAL, "out of memory");
    h->slots = slots;
    free_slots = realloc(h->free_slots, n * sizeof *free_slots);
    if (free_slots == NULL)
        return kvfc_error(h, -KVF_INTERNAL, "out of memory");
    h->free_slots = free_slots;
    for (unsigned i = h->n_slots; i < n; i++) {
        slots[i] = NULL;
        free_slots[h->n_free++] = n - 1 - (i - h->n_slots);
    }
    h->n_slots = n;
    return 0;
}

struct kvfc_call *kvfc_call_new(struct kvferry *h, kvfc_reply_fn reply,
                                kvferry_done_fn done, void *user)
{
    struct kvfc_call *c;
    unsigned slot;

    if (h->ending && done != NULL) {
        kvfc_error(h, 0, "the handle is being closed");
        return NULL;
    }
    if (h->n_free == 0 && grow(h) != 0)
        return NULL;
    c = calloc(1, sizeof *c);
    if (c == NULL) {
        kvfc_error(h, -KVF_INTERNAL, "out of memory");
        return NULL;
    }
    slot = h->free_slots[--h->n_free];
    h->slots[slot] = c;
    c->id = (++h->seq << SLOT_BITS) | slot;
    c->deadline_ns = KVFC_NEVER;
    c->reply = reply;
    c->done = done;
    c->user = user;
    c->external = done != NULL;
    c->epoch = h->s.epoch;
    h->n_live++;
    h->n_external += c->external;
    return c;
}

int kvfc_refused(struct kvferry *h)
{
    return h->ending ? -(int)KVF_CANCELLED : -(int)KVF_BUSY;
}

void kvfc_call_drop(struct kvferry *h, struct kvfc_call *c)
{
    unsigned slot = (unsigned)(c->id & (SLOT_MAX - 1));

    if (c->held)
        kvfc_held_drop(h, c);
    h->n_external -= c->external;
    h->n_live--;
    h->slots[slot] = NULL;
    h->free_slots[h->n_free++] = slot;
    free(c->body);
    free(c);
}

struct kvfc_call *kvfc_call_find(struct kvferry *h, uint64_t id)
{
    uint64_t slot = id & (SLOT_MAX - 1);

    if (slot >= h->n_slots || h->slots[slot] == NULL ||
        h->slots[slot]->id != id)
        return NULL;
    return h->slots[slot];
}

void kvfc_call_clock(struct kvferry *h, struct kvfc_call *c,
                     uint64_t timeout_ms)
{
    uint64_t now = kvfc_now(), due;

    if (timeout_ms > UINT64_MAX / KVFC_MS / 4) {
        c->deadline_ns = KVFC_NEVER;
        due = now + h->timeout_ms * KVFC_MS;
    } else {
        due = now + (timeout_ms + h->timeout_ms) * KVFC_MS;
        c->deadline_ns = due;
    }
    kvfc_arm(h, due);
}

/* ---- writing ------------------------------------------------------------ */

size_t kvfc_begin(struct kvferry *h, const char *op, uint64_t id)
{
    size_t mark;

    kvf_mpw_reset(&h->w);
    mark = kvf_mpw_map_begin(&h->w);
    kvf_mpw_kv_str(&h->w, "op", op);
    kvf_mpw_kv_u64(&h->w, "id", id);
    return mark;
}

int kvfc_end(struct kvferry *h, struct kvfc_call *c, size_t mark,
             unsigned pairs, uint64_t timeout_ms)
{
    int rc;

    kvf_mpw_map_end(&h->w, mark, pairs + 2);
    rc = kvfc_call_send(h, c, NULL, 0);
    if (rc != 0) {
        kvfc_call_drop(h, c);
        return rc;
    }
    kvfc_call_clock(h, c, timeout_ms);
    return 0;
}

/* ---- completing --------------------------------------------------------- */

static void complete(struct kvferry *h, struct kvfc_call *c,
                     struct kvferry_result *out)
{
    kvferry_done_fn done = c->done;
    void *user = c->user;
    bool first = !c->abandoned;

    kvfc_call_drop(h, c);
    if (!first || done == NULL) {
        kvferry_release(&out->payload);
    } else {
        h->completed++;
        if (out->status != 0)
            kvfc_error(h, 0, "%s", out->message);
        done(h, user, out);
    }
}

/* One reply for a call: from the daemon, or made up when it went away. */
void kvfc_call_reply(struct kvferry *h, struct kvfc_call *c,
                     struct kvfc_reply *r)
{
    struct kvferry_result out = {.status = r->status, .message = r->message};
    char *json;

    if (r->status == -(int)KVF_STALE)
        kvfc_session_suspect(h);
    if (!c->reply(h, c, r, &out))
        return;
    json = out.json;
    complete(h, c, &out);
    free(json);
}

static void unanswered(struct kvferry *h, struct kvfc_call *c)
{
    struct kvfc_reply r = {.status = -(int)KVF_PEER_UNREACHABLE,
                           .message = "the daemon does not answer"};

    kvfc_call_reply(h, c, &r);
}

/* Completes towards the caller and keeps the slot for the late reply. */
static void abandon(struct kvferry *h, struct kvfc_call *c)
{
    struct kvferry_result out = {.status = -(int)KVF_PEER_UNREACHABLE,
                                 .message = "the daemon does not answer"};
    kvferry_done_fn done = c->done;
    size_t mark;

    if (c->held) { /* never sent: no reply will come */
        unanswered(h, c);
        return;
    }
    c->abandoned = true;
    c->deadline_ns = KVFC_NEVER;
    h->n_external -= c->external;
    c->external = false;
    c->data = NULL; /* the caller's again */
    mark = kvfc_begin(h, "cancel", 0);
    kvf_mpw_kv_u64(&h->w, "target", c->id);
    kvf_mpw_map_end(&h->w, mark, 3);
    kvfc_send(h, h->w.failed ? NULL : h->w.buf.data, h->w.buf.size, NULL, 0);
    if (done == NULL)
        return;
    h->completed++;
    kvfc_error(h, 0, "%s", out.message);
    done(h, c->user, &out);
}

void kvfc_calls_fail(struct kvferry *h, enum kvfc_which which, int status,
                     const char *message)
{
    uint64_t last = h->seq; /* what callbacks start now is not meant */

    for (unsigned i = 0; i < h->n_slots; i++) {
        struct kvfc_call *c = h->slots[i];
        struct kvfc_reply r = {.status = status};

        if (c == NULL || c->id >> SLOT_BITS > last)
            continue;
        if ((which == KVFC_EXTERNAL && !c->external) ||
            (which == KVFC_HELD && !c->held) || (c->keep && !h->closing))
            continue;
        snprintf(r.message, sizeof r.message, "%s", message);
        kvfc_call_reply(h, c, &r);
    }
}

static bool forget_reply(struct kvferry *h, struct kvfc_call *c,
                         struct kvfc_reply *r, struct kvferry_result *out);

static int forget_send(struct kvferry *h, struct kvfc_call *c)
{
    size_t mark = kvfc_begin(h, c->op, c->id);

    kvf_mpw_kv_u64(&h->w, strcmp(c->op, "unexpose") ? "buffer" : "window",
                   c->number);
    return kvfc_end(h, c, mark, 1, 0);
}

/* Past the daemon's limit of outstanding requests a release is refused; it must
 * not be lost, or the memory would stay pinned for the session's life. */
static bool forget_reply(struct kvferry *h, struct kvfc_call *c,
                         struct kvfc_reply *r, struct kvferry_result *out)
{
    (void)out;
    if (r->status != -(int)KVF_BUSY || strcmp(c->op, "release") || h->closing)
        return true;
    forget_send(h, c);
    return false;
}

void kvfc_forget(struct kvferry *h, const char *op, uint64_t id)
{
    struct kvfc_call *c;

    if (h->closing || (c = kvfc_call_new(h, forget_reply, NULL, NULL)) == NULL)
        return;
    c->number = id;
    c->keep = true;
    c->op = op;
    kvfc_session_renew(h);
    if (!h->rehello && !h->hello_pending)
        forget_send(h, c); /* else sent when the session is back */
}

/* After a reconnection: the same session still holds what we gave up; another
 * one knows nothing of it. */
void kvfc_calls_resend(struct kvferry *h, bool same_session)
{
    uint64_t last = h->seq;

    for (unsigned i = 0; i < h->n_slots; i++) {
        struct kvfc_call *c = h->slots[i];

        if (c == NULL || !c->keep || c->id >> SLOT_BITS > last)
            continue;
        if (!same_session)
            kvfc_call_drop(h, c);
        else if (!c->held)
            forget_send(h, c);
    }
}

/* ---- deadlines ---------------------------------------------------------- */

static bool guard_reply(struct kvferry *h, struct kvfc_call *c,
                        struct kvfc_reply *r, struct kvferry_result *out)
{
    (void)c;
    (void)r;
    (void)out;
    h->ping_ns = 0;
    return true;
}

/* Somebody waits without a deadline and the daemon was silent: ask it. The
 * ping also keeps a tcp session alive. */
static void guard(struct kvferry *h, uint64_t now, bool needed)
{
    uint64_t every = h->timeout_ms * KVFC_MS;
    struct kvfc_call *c;

    if (!needed)
        return;
    if (h->ping_ns != 0 && now >= h->ping_ns + every &&
        h->last_rx_ns < h->ping_ns) {
        h->ping_ns = 0;
        kvfc_session_suspect(h);
        for (unsigned i = 0; i < h->n_slots; i++)
            if (h->slots[i] != NULL && !h->slots[i]->abandoned &&
                h->slots[i]->deadline_ns == KVFC_NEVER && !h->slots[i]->keep)
                abandon(h, h->slots[i]);
        return;
    }
    if (h->ping_ns == 0 && now >= h->last_rx_ns + every &&
        (c = kvfc_call_new(h, guard_reply, NULL, NULL)) != NULL) {
        h->ping_ns = now;
        kvfc_end(h, c, kvfc_begin(h, "ping", c->id), 0, 0);
    }
    kvfc_arm(h, now + every);
}

void kvfc_calls_timers(struct kvferry *h, uint64_t now)
{
    uint64_t next = KVFC_NEVER;
    bool unbounded = false;

    for (unsigned i = 0; i < h->n_slots; i++) {
        struct kvfc_call *c = h->slots[i];

        if (c == NULL || c->abandoned)
            continue;
        if (c->deadline_ns == KVFC_NEVER) {
            unbounded |= !c->keep;
        } else if (c->deadline_ns > now) {
            if (c->deadline_ns < next)
                next = c->deadline_ns;
        } else if (c->urgent && c->done == NULL) {
            unanswered(h, c); /* a hello: others may wait for it */
        } else if (c->keep) {
            c->deadline_ns = KVFC_NEVER; /* until a reconnection */
        } else {
            abandon(h, c);
        }
    }
    guard(h, now, unbounded);
    if (next != KVFC_NEVER)
        kvfc_arm(h, next);
}

void kvfc_calls_free(struct kvferry *h)
{
    for (unsigned i = 0; i < h->n_slots; i++)
        if (h->slots[i] != NULL)
            kvfc_call_drop(h, h->slots[i]);
    free(h->slots);
    free(h->free_slots);
}

KVFC_EXPORT unsigned kvferry_outstanding(const struct kvferry *h)
{
    return h->n_external;
}
