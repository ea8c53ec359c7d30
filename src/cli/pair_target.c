/* kvferry bench --mode target: exposes a window and its control window, says
 * where, and does what orders ask until it is interrupted.
 *
 * Failure modes: its daemon ends (so does the target, with PEER_UNREACHABLE);
 * an order that is none, or names bytes outside of the window, is dropped. */
#include "pair.h"

#include "base/newfile.h"
#include "bench.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

struct target {
    struct pair *p;
    struct kvferry *h;
    struct kvferry_info info;
    struct kvferry_window data, ctl;
    struct pair_status *status;
    struct pair_daemon daemon;
    int ping_status; /* of the last ping; written until the handle is closed */
};

static uint64_t wrong_blocks(const uint8_t *data, const struct pair_order *o)
{
    uint64_t wrong = 0, n;

    for (uint64_t at = 0; at < o->length; at += n) {
        n = o->length - at < o->block ? o->length - at : o->block;
        wrong += !bench_same(data + o->offset + at, n, o->seed, o->offset + at);
    }
    return wrong;
}

static void obey(struct target *t, const struct pair_order *o)
{
    uint64_t wrong = 0;

    if (o->slot >= PAIR_SLOTS || o->block == 0 || o->offset > t->data.size ||
        o->length > t->data.size - o->offset)
        return;
    if (o->what == PAIR_FILL)
        bench_fill_at((uint8_t *)t->data.data + o->offset, o->length, o->seed,
                      o->offset);
    else if (o->what == PAIR_CHECK)
        wrong = wrong_blocks(t->data.data, o);
    t->status->daemon_cpu_ns = pair_daemon_cpu(&t->info);
    t->status->engine_cpu_ns = pair_own_cpu();
    t->status->wrong[o->slot] = wrong;
    /* The number goes last: who reads it has the rest. */
    atomic_thread_fence(memory_order_release);
    *(volatile uint64_t *)&t->status->answered[o->slot] = o->seq;
}

static void on_event(struct kvferry *h, void *user, const char *name,
                     const char *json)
{
    struct target *t = user;
    struct pair_order o;
    const char *hex = NULL;
    json_int_t window = 0;
    json_t *root;

    (void)h;
    if (strcmp(name, "written") != 0)
        return;
    root = json_loads(json, 0, NULL);
    if (root != NULL &&
        json_unpack(root, "{s:I, s:s}", "window", &window, "notify", &hex) ==
            0 &&
        (uint64_t)window == t->ctl.id && pair_order_read(hex, &o))
        obey(t, &o);
    json_decref(root);
}

static int expose(struct target *t)
{
    char ctl[300];
    int rc = kvferry_expose(t->h, t->p->window, t->p->buffer, true, &t->data);

    if (rc != 0)
        return cli_failed(t->h, rc, "expose %s", t->p->window);
    snprintf(ctl, sizeof ctl, "%s.ctl", t->p->window);
    rc = kvferry_expose(t->h, ctl, PAIR_CTL_SIZE, true, &t->ctl);
    if (rc != 0)
        return cli_failed(t->h, rc, "expose %s", ctl);
    memset(t->data.data, 0, t->data.size);
    memset(t->ctl.data, 0, t->ctl.size);
    t->status = t->ctl.data;
    t->status->window_size = t->data.size;
    t->status->magic = PAIR_MAGIC;
    return 0;
}

/* Where the daemon is for others: what it tells of anything put there. */
static int place(struct target *t, struct kvferry_metadata *out)
{
    char key[64], id[48];
    struct kvferry_put_result r;
    int rc;

    snprintf(id, sizeof id, "kvferry-bench-%ld", (long)getpid());
    snprintf(key, sizeof key, "%s:0_1", id);
    rc = kvferry_put(t->h, key, "x", 1, NULL, &r);
    if (rc != 0)
        return cli_failed(t->h, rc, "put");
    kvferry_cleanup(t->h, id, -1, -1, NULL);
    *out = r.metadata;
    return 0;
}

static int tell(struct target *t)
{
    struct kvferry_metadata m;
    struct kvf_why why;
    bool v6;
    char line[1200];
    int rc = place(t, &m);

    if (rc != 0)
        return rc;
    v6 = strchr(m.source_host, ':') != NULL;
    snprintf(line, sizeof line,
             "kvferry-bench target=%s%s%s:%u window=%s size=%" PRIu64
             " offset=%" PRIu64 " engine=%s daemon_pid=%" PRId64 " pid=%ld\n",
             v6 ? "[" : "", m.source_host, v6 ? "]" : "", m.source_port,
             t->p->window, t->data.size, t->data.offset, t->info.endpoint,
             t->info.daemon_pid, (long)getpid());
    if (t->p->ready_file != NULL &&
        kvf_newfile(t->p->ready_file, line, &why) < 0) {
        fprintf(stderr, "kvferry bench: %s\n", why.text);
        return CLI_IO;
    }
    fputs(line, stdout);
    fflush(stdout);
    return 0;
}

static void pinged(struct kvferry *h, void *user,
                   const struct kvferry_result *r)
{
    struct target *t = user;

    (void)h;
    t->ping_status = r->status;
}

/* Once a second it asks whether its daemon is still there. */
static int serve(struct target *t)
{
    uint64_t next = 0;

    while (!pair_interrupted() && t->ping_status == 0) {
        if (!pair_daemon_runs(&t->daemon)) {
            fprintf(stderr, "kvferry bench: the target's kvferryd ended\n");
            return KVF_PEER_UNREACHABLE;
        }
        if (bench_now() >= next && kvferry_outstanding(t->h) == 0) {
            kvferry_ping_async(t->h, pinged, t, NULL);
            next = bench_now() + 1000000000ull;
        }
        if (kvferry_wait(t->h, 200) < 0)
            break;
    }
    if (t->ping_status != 0)
        return cli_failed(t->h, t->ping_status, "target");
    return 0;
}

int pair_target(struct pair *p)
{
    struct target t = {.p = p};
    int rc;

    pair_catch_signals();
    rc = pair_daemon_start(p, p->buffer + PAIR_CTL_SIZE, &t.daemon);
    if (rc != 0)
        return rc;
    p->c->endpoint = t.daemon.endpoint;
    p->c->on_event = on_event;
    p->c->event_user = &t;
    rc = cli_open(p->c, 0, &t.h);
    if (rc == 0) {
        kvferry_info(t.h, &t.info);
        rc = expose(&t);
    }
    if (rc == 0)
        rc = tell(&t);
    if (rc == 0)
        rc = serve(&t);
    kvferry_close(t.h);
    pair_daemon_stop(&t.daemon);
    return rc;
}
