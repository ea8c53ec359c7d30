/* Requests that wait for a session.
 *
 * Happy path: the session was lost, a hello is under way; what the caller
 * starts meanwhile is kept here as it was written, and sent in its order when
 * the hello is answered. A request sent at once would reach a daemon that does
 * not know the session, and be STALE for no fault of the caller. What names a
 * buffer of the old session is refused by the new one: ids never repeat.
 *
 * Failure modes: the hello fails, then they do, with its status. */
#include "client.h"

#include <stdlib.h>
#include <string.h>

struct kvfc_held {
    struct kvfc_held *next;
    struct kvfc_call *c;
    size_t head_len, len;
    bool payload;
    uint8_t bytes[]; /* header, payload frame */
};

static int hold(struct kvferry *h, struct kvfc_call *c, const void *payload,
                size_t len)
{
    size_t head_len = h->w.buf.size;
    struct kvfc_held *held, **at = &h->held;

    if (payload == NULL)
        len = 0;
    held = h->w.failed ? NULL : malloc(sizeof *held + head_len + len);
    if (held == NULL)
        return kvfc_error(h, -KVF_INTERNAL, "out of memory");
    held->next = NULL;
    held->c = c;
    held->head_len = head_len;
    held->len = len;
    held->payload = payload != NULL;
    memcpy(held->bytes, h->w.buf.data, head_len);
    if (payload != NULL)
        memcpy(held->bytes + head_len, payload, len);
    if (h->held_last != NULL)
        at = &h->held_last->next;
    *at = held;
    h->held_last = held;
    c->held = true;
    return 0;
}

int kvfc_call_send(struct kvferry *h, struct kvfc_call *c, const void *payload,
                   size_t len)
{
    if (h->hold && !c->urgent)
        return hold(h, c, payload, len);
    return kvfc_send(h, h->w.failed ? NULL : h->w.buf.data, h->w.buf.size,
                     payload, len);
}

void kvfc_held_drop(struct kvferry *h, struct kvfc_call *c)
{
    struct kvfc_held **at = &h->held, *prev = NULL, *held;

    while ((held = *at) != NULL && held->c != c) {
        prev = held;
        at = &held->next;
    }
    c->held = false;
    if (held == NULL)
        return;
    *at = held->next;
    if (h->held_last == held)
        h->held_last = prev;
    free(held);
}

/* Callbacks run only where a send fails. They may lose the session again: then
 * the rest goes on waiting. */
static void send_all(struct kvferry *h)
{
    struct kvfc_held *held;

    while (!h->hold && (held = h->held) != NULL) {
        struct kvfc_call *c = held->c;
        struct kvfc_reply r = {.status = 0};

        r.status = kvfc_send(
            h, held->bytes, held->head_len,
            held->payload ? held->bytes + held->head_len : NULL, held->len);
        kvfc_held_drop(h, c);
        if (r.status == 0)
            continue;
        memcpy(r.message, h->error, sizeof r.message);
        r.message[sizeof r.message - 1] = '\0';
        kvfc_call_reply(h, c, &r);
    }
}

void kvfc_held_settle(struct kvferry *h, int status, const char *message)
{
    if (status == 0)
        send_all(h);
    else
        kvfc_calls_fail(h, KVFC_HELD, status, message);
}
