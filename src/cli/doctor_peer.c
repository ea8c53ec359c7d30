/* doctor --peer: moves a test payload to another worker's daemon and back. The
 * way back is a get, over rdma a READ, of one byte more than fits in messages:
 * full packets and one small one; then of 1 MiB. */
#include "doctor.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TRIES                                                                  \
    8 /* a connection is made in the background: up to some seconds            \
       */
#define TTL_MS 20000

struct trip {
    struct doctor *d;
    struct kvferry *h;
    const char *host;
    uint16_t port;
    char key[64], transport[16];
    struct kvferry_timing timing;
};

static uint8_t byte_at(uint64_t i)
{
    return (uint8_t)(i * 131 + (i >> 8) * 7 + 1);
}

static int there(struct trip *t, const uint8_t *data, uint64_t size)
{
    struct kvferry_push_options o = {.put = {.ttl_ms = TTL_MS},
                                     .to = {.host = t->host, .port = t->port},
                                     .timeout_ms = 5000};

    return kvferry_push(t->h, t->key, data, size, &o, NULL);
}

/* 0, a negative status, or 1 when other bytes came. */
static int back(struct trip *t, uint64_t size)
{
    struct kvferry_get_options o = {.mode = KVFERRY_COPY,
                                    .source_host = t->host,
                                    .source_port = t->port,
                                    .timeout_ms = 10000};
    const struct kvferry_piece *piece;
    struct kvferry_payload *p;
    uint64_t at = 0;
    bool same = true;
    int rc = kvferry_get(t->h, t->key, &o, &p);

    if (rc != 0)
        return rc;
    for (unsigned i = 0, n = kvferry_payload_pieces(p, &piece); i < n; i++)
        for (uint64_t j = 0; j < piece[i].length; j++, at++)
            same &= ((const uint8_t *)piece[i].data)[j] == byte_at(at);
    snprintf(t->transport, sizeof t->transport, "%s",
             kvferry_payload_transport(p));
    kvferry_payload_timing(p, &t->timing);
    kvferry_release(&p);
    return same && at == size ? 0 : 1;
}

/* What the daemon says of that peer. */
static void peer_why(struct trip *t, char *out, size_t cap)
{
    char *text = NULL;
    json_t *top = NULL, *one;
    size_t i;

    snprintf(out, cap, "see the daemon's log");
    if (kvferry_stats(t->h, &text) == 0)
        top = json_loads(text, 0, NULL);
    json_array_foreach(json_object_get(json_object_get(top, "peers"), "list"),
                       i, one)
    {
        const char *host = json_string_value(json_object_get(one, "host"));
        const char *why = json_string_value(json_object_get(one, "why"));

        if (host != NULL && why != NULL && strcmp(host, t->host) == 0 &&
            json_integer_value(json_object_get(one, "port")) == t->port &&
            !json_is_true(json_object_get(one, "guest")))
            snprintf(out, cap, "%s", why);
    }
    json_decref(top);
    free(text);
}

/* False when nothing more needs to be tried. */
static bool one_size(struct trip *t, uint64_t size, bool wants)
{
    uint8_t *data = malloc(size);
    char what[48], why[200];
    int rc = data == NULL ? -KVF_INTERNAL : 0;

    for (uint64_t i = 0; data != NULL && i < size; i++)
        data[i] = byte_at(i);
    snprintf(what, sizeof what, "peer, %llu bytes", (unsigned long long)size);
    for (unsigned try = 0; rc == 0 && try < TRIES; try++) {
        if (try > 0)
            (void)kvferry_wait(t->h, 800);
        rc = there(t, data, size);
        if (rc == 0)
            rc = back(t, size);
        if (!wants || strcmp(t->transport, "tcp") != 0)
            break;
    }
    free(data);
    if (rc < 0) {
        doctor_say(t->d, DOCTOR_FAIL, what,
                   "is that the metadata port of a kvferryd, of this cluster, "
                   "and does it share a protocol with the daemon here?",
                   "%s:%u: %s: %s", t->host, t->port, kvferry_status_name(rc),
                   kvferry_error(t->h));
        return false;
    }
    peer_why(t, why, sizeof why);
    if (rc > 0)
        doctor_say(t->d, DOCTOR_FAIL, what, "please report this",
                   "other bytes came back by %s", t->transport);
    else if (wants && strcmp(t->transport, "tcp") == 0)
        doctor_say(t->d, DOCTOR_WARN, what,
                   "the GIDs above: is there a route between them, does UDP "
                   "port 4791 pass, is the MTU the same on the whole way?",
                   "came back by tcp, not rdma: %s", why);
    else
        doctor_say(t->d, DOCTOR_OK, what, NULL,
                   "came back whole by %s, %llu us", t->transport,
                   (unsigned long long)t->timing.transfer_us);
    return rc == 0;
}

/* Does the daemon itself have a device open? */
static bool daemon_has_rdma(struct kvferry *h)
{
    char *text = NULL;
    json_t *top = NULL;
    bool on = false;

    if (kvferry_stats(h, &text) == 0)
        top = json_loads(text, 0, NULL);
    on = json_is_true(json_object_get(
        json_object_get(json_object_get(top, "transports"), "rdma"), "on"));
    json_decref(top);
    free(text);
    return on;
}

void doctor_peer(struct doctor *d, const char *host, uint16_t port)
{
    struct kvferry_open_options o = {.endpoint = d->endpoint,
                                     .client = "kvferry-doctor",
                                     .timeout_ms = 5000};
    struct trip t = {.d = d, .host = host, .port = port};
    struct kvferry_info info;
    char err[256];
    bool wants;

    if (kvferry_open(&t.h, &o, err, sizeof err) != 0) {
        doctor_say(d, DOCTOR_FAIL, "peer",
                   "start kvferryd here: it makes the test",
                   "%s:%u cannot be tried: %s", host, port, err);
        return;
    }
    kvferry_info(t.h, &info);
    snprintf(t.key, sizeof t.key, "kvferry-doctor:%ld", (long)getpid());
    wants = daemon_has_rdma(t.h);
    if (!wants)
        doctor_say(d, DOCTOR_OK, "peer rdma", NULL,
                   "the daemon here does not use rdma");
    if (one_size(&t, info.inline_max + 1, wants))
        one_size(&t, 1u << 20, wants);
    kvferry_close(t.h);
}
