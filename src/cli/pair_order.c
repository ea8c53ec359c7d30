/* Orders: what the initiator asks of the target's engine through the control
 * window (pair.h).
 *
 * Happy path: a write of 8 bytes with the order as notification, then reads of
 * the status until it carries the order's number. Failure modes: the target's
 * engine is gone or stands still: TIMEOUT after ORDER_MS. */
#include "pair.h"

#include "base/bytes.h"
#include "bench.h"

#include <string.h>
#include <unistd.h>

#define ORDER_MS 30000u

static const size_t n_fields = PAIR_ORDER_SIZE / 8;

void pair_order_write(const struct pair_order *o, uint8_t out[PAIR_ORDER_SIZE])
{
    const uint64_t v[] = {o->what,   o->slot,  o->seq, o->offset,
                          o->length, o->block, o->seed};

    for (size_t i = 0; i < n_fields; i++)
        kvf_put_u64(out + 8 * i, v[i]);
}

bool pair_order_read(const char *hex, struct pair_order *o)
{
    uint64_t v[PAIR_ORDER_SIZE / 8];

    if (strlen(hex) != 2 * PAIR_ORDER_SIZE)
        return false;
    for (size_t i = 0; i < n_fields; i++) {
        unsigned long long x;
        int used = 0;
        char part[17];

        memcpy(part, hex + 16 * i, 16);
        part[16] = '\0';
        if (sscanf(part, "%16llx%n", &x, &used) != 1 || used != 16)
            return false;
        v[i] = x;
    }
    *o = (struct pair_order){v[0], v[1], v[2], v[3], v[4], v[5], v[6]};
    return true;
}

void pair_target_of(const struct pair *p, struct kvferry_target *to)
{
    *to = (struct kvferry_target){.host = p->peer_host, .port = p->peer_port};
}

int pair_link_open(struct pair_link *l, struct kvferry *h, const struct pair *p)
{
    memset(l, 0, sizeof *l);
    l->h = h;
    l->p = p;
    l->seq = bench_now();
    l->slot = (uint64_t)getpid() % PAIR_SLOTS;
    snprintf(l->ctl_name, sizeof l->ctl_name, "%s.ctl", p->window);
    return kvferry_alloc(h, PAIR_CTL_SIZE, &l->ctl);
}

static int read_status(struct pair_link *l, struct pair_status *out)
{
    struct kvferry_window_options o = {.timeout_ms = l->p->timeout_ms};
    struct kvferry_segment seg = {.id = l->ctl.id, .length = PAIR_STATUS_SIZE};
    int rc;

    pair_target_of(l->p, &o.to);
    rc = kvferry_read(l->h, l->ctl_name, 0, &seg, 1, &o, NULL);
    if (rc == 0)
        memcpy(out, l->ctl.data, sizeof *out);
    return rc;
}

static int send_order(struct pair_link *l, const struct pair_order *o)
{
    uint8_t notify[PAIR_ORDER_SIZE];
    struct kvferry_window_options wo = {.timeout_ms = l->p->timeout_ms,
                                        .notify = notify,
                                        .notify_len = sizeof notify};
    struct kvferry_segment seg = {
        .id = l->ctl.id, .offset = PAIR_STATUS_SIZE, .length = 8};

    pair_order_write(o, notify);
    pair_target_of(l->p, &wo.to);
    return kvferry_write(l->h, l->ctl_name, PAIR_STATUS_SIZE, &seg, 1, &wo,
                         NULL);
}

int pair_order_do(struct pair_link *l, struct pair_order o,
                  struct pair_status *out, uint64_t *wrong)
{
    uint64_t end = bench_now() + ORDER_MS * 1000000ull;
    int pause_ms = 0;
    int rc;

    o.slot = l->slot;
    o.seq = ++l->seq;
    rc = send_order(l, &o);
    while (rc == 0 && (rc = read_status(l, out)) == 0 &&
           out->answered[o.slot] != o.seq) {
        if (out->magic != PAIR_MAGIC)
            return -(int)KVF_MISMATCH;
        if (bench_now() > end || pair_interrupted())
            return -(int)KVF_TIMEOUT;
        kvferry_wait(l->h, pause_ms); /* the target may be at work */
        pause_ms = pause_ms < 8 ? pause_ms + 1 : 8;
    }
    if (rc == 0 && wrong != NULL)
        *wrong = out->wrong[o.slot];
    return rc;
}
