/* Opening and closing a handle.
 *
 * Happy path: connect, hello, map the pool; at the end bye, so that everything
 * that was held is free when kvferry_close returns. Failure modes: nobody
 * answers within timeout_ms; a bye that is not answered within a second is left
 * alone (the daemon also watches the process). */
#include "client.h"

#include "conf/conf.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int resolve(struct kvferry *h, const struct kvferry_open_options *o,
                   struct kvf_why *why)
{
    struct kvf_worker w = {o->stage, o->rank, o->replica};

    if (o->endpoint != NULL && o->endpoint[0] != '\0') {
        if ((size_t)snprintf(h->info.endpoint, sizeof h->info.endpoint, "%s",
                             o->endpoint) >= sizeof h->info.endpoint)
            return kvf_fail(why, KVF_INVALID, "the endpoint is too long");
        return 0;
    }
    return kvf_conf_endpoint(
        "auto", o->cluster != NULL ? o->cluster : "default", &w, false,
        h->info.endpoint, sizeof h->info.endpoint, why);
}

static int first_hello(struct kvferry *h, struct kvf_why *why)
{
    struct kvfc_waiter w = {.done = false};
    int rc = kvfc_wait(h, kvfc_hello(h, kvfc_waiter_done, &w), &w);

    if (rc == -(int)KVF_PEER_UNREACHABLE)
        return kvf_fail(why, KVF_PEER_UNREACHABLE,
                        "no daemon answers at %s (is kvferryd running?)",
                        h->info.endpoint);
    return rc != 0 ? kvf_fail(why, (enum kvf_status) - rc, "%s", h->error) : 0;
}

static int start(struct kvferry *h, const struct kvferry_open_options *o,
                 struct kvf_why *why)
{
    int rc = resolve(h, o, why);

    if (rc == 0)
        rc = kvfc_conn_open(h, h->info.endpoint, why);
    h->last_rx_ns = kvfc_now();
    if (rc == 0 && !(h->flags & KVFERRY_NO_SESSION))
        rc = first_hello(h, why);
    return rc;
}

static void destroy(struct kvferry *h)
{
    h->closing = true;
    kvfc_calls_fail(h, KVFC_ALL, -KVF_CANCELLED, "the handle was closed");
    kvfc_payloads_orphan(h);
    kvfc_conn_close(h);
    kvfc_map_trim(h, 0);
    kvfc_calls_free(h);
    while (h->regions != NULL) {
        struct kvfc_region *r = h->regions;

        h->regions = r->next;
        free(r);
    }
    kvf_mpw_fini(&h->w);
    free(h);
}

KVFC_EXPORT int kvferry_open(struct kvferry **out,
                             const struct kvferry_open_options *o, char *err,
                             size_t err_cap)
{
    static const struct kvferry_open_options none;
    struct kvferry *h = calloc(1, sizeof *h);
    struct kvf_why why;
    int rc;

    *out = NULL;
    if (o == NULL)
        o = &none;
    if (h == NULL)
        return -(int)KVF_INTERNAL;
    h->epfd = h->timerfd = h->sock_fd = h->mon_fd = -1;
    h->timeout_ms = o->timeout_ms != 0 ? o->timeout_ms : 5000;
    h->flags = o->flags;
    h->on_event = o->on_event;
    h->event_user = o->user;
    snprintf(h->client, sizeof h->client, "%s",
             o->client != NULL ? o->client : program_invocation_short_name);
    kvf_mpw_init(&h->w);
    rc = start(h, o, &why);
    if (rc == 0) {
        *out = h;
        return 0;
    }
    if (err != NULL && err_cap > 0)
        snprintf(err, err_cap, "%s", why.text);
    destroy(h);
    return rc;
}

static void say_bye(struct kvferry *h)
{
    struct kvfc_waiter w = {.done = false};
    struct kvfc_call *c;
    uint64_t end = kvfc_now() + 1000 * KVFC_MS, id;

    if (!h->s.open || h->rehello)
        return;
    c = kvfc_call_new(h, kvfc_plain_reply, NULL, &w);
    if (c == NULL)
        return;
    c->done = kvfc_waiter_done;
    c->urgent = true;
    id = c->id;
    if (kvfc_end(h, c, kvfc_begin(h, "bye", id), 0, 0) != 0)
        return;
    while (!w.done && kvfc_now() < end)
        kvferry_wait(h, (int)((end - kvfc_now()) / KVFC_MS) + 1);
    if (!w.done && (c = kvfc_call_find(h, id)) != NULL)
        c->done = NULL; /* `w` ends here */
}

KVFC_EXPORT void kvferry_close(struct kvferry *h)
{
    if (h == NULL)
        return;
    /* Told before bye: its answers to what is under way (STALE, ...) would be
     * about the end of the session. What they bring is released with it. */
    h->ending = true;
    kvfc_calls_fail(h, KVFC_EXTERNAL, -KVF_CANCELLED, "the handle was closed");
    kvfc_payloads_orphan(h); /* unmapped before the daemon hears bye */
    say_bye(h);
    destroy(h);
}

KVFC_EXPORT const char *kvferry_error(const struct kvferry *h)
{
    return h->error;
}

KVFC_EXPORT const char *kvferry_status_name(int status)
{
    return kvf_status_name((enum kvf_status)(status < 0 ? -status : status));
}

KVFC_EXPORT const char *kvferry_status_text(int status)
{
    return kvf_status_text((enum kvf_status)(status < 0 ? -status : status));
}

KVFC_EXPORT const char *kvferry_version(void)
{
    return KVF_VERSION;
}
