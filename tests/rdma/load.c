/* Engines for the tests in the guest: one process puts, one gets; what is
 * moved follows from the seed, so that both know every byte without talking.
 *
 *   load put ENDPOINT SEED COUNT MAX DEPTH
 *   load get ENDPOINT SEED COUNT MAX DEPTH TRANSPORT|any [CANCEL_PERCENT]
 *   load sizes ENDPOINT ENDPOINT TRANSPORT SIZE...
 *
 * put publishes keys SEED:0, SEED:1, ... of 1 to MAX bytes, at most DEPTH of
 * them unread. get fetches them, DEPTH at a time, into new memory or into
 * pieces of its own, checks every byte and by which transport they came;
 * CANCEL_PERCENT of its gets are cancelled under way and made again. sizes does
 * both for each SIZE in turn. The last line is "LOAD OK ..." or says what was
 * wrong. Statuses in which a fault of the network or of a peer may end are
 * tried again for as long as the environment's KVF_LOAD_RETRY_S says. */
#include "kvferry/kvferry.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DEPTH_MAX 64
#define PIECES 5

struct item { /* one get under way */
    uint64_t index, ticket, size;
    struct kvferry_buffer buffer; /* of an `into`; id 0: none */
    struct kvferry_segment piece[PIECES];
    unsigned n_pieces;
    bool cancelled, busy;
};

static uint64_t seed, count, max_size, n_bytes, n_cancelled, n_again, n_done;
static uint64_t by_transport[4];
static const char *const transports[] = {"rdma", "tcp", "shm", "other"};
static unsigned depth, cancel_percent;
static const char *want_transport;
static double give_up; /* seconds of the monotonic clock */
static struct item items[DEPTH_MAX];

static void bad(const char *fmt, ...)
    __attribute__((noreturn, format(printf, 1, 2)));

static void bad(const char *fmt, ...)
{
    va_list ap;

    printf("LOAD BAD ");
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    printf("\n");
    exit(1);
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* Few large ones, many small ones, hardly any of a round length. */
static uint64_t size_of(uint64_t index)
{
    uint64_t r = mix(seed ^ mix(index)), top = max_size;

    switch (r & 7) {
    case 0:
        top = 64;
        break;
    case 1:
    case 2:
    case 3:
        top = 64 << 10;
        break;
    case 4:
    case 5:
        top = max_size / 8;
        break;
    default:
        break;
    }
    if (top > max_size || top == 0)
        top = max_size;
    return 1 + mix(r) % top;
}

/* 8-byte words, a counter that starts at a hash: a shift, a hole, a repeat or
 * another payload's bytes all differ. */
static uint64_t word_at(uint64_t index, uint64_t at)
{
    return mix(seed * 31 + index) + at / 8;
}

static void fill(uint8_t *p, uint64_t size, uint64_t index)
{
    for (uint64_t at = 0; at < size; at += 8) {
        uint64_t w = word_at(index, at);

        memcpy(p + at, &w, size - at < 8 ? size - at : 8);
    }
}

/* `p` holds the bytes from `from` on; they may begin in the middle of a word.
 */
static void check(const uint8_t *p, uint64_t n, uint64_t index, uint64_t from)
{
    for (uint64_t i = 0; i < n;) {
        uint64_t at = from + i, skip = at % 8, part = 8 - skip;
        uint64_t w = word_at(index, at);

        if (part > n - i)
            part = n - i;
        if (memcmp(p + i, (const uint8_t *)&w + skip, part) != 0)
            bad("%llu:%llu differs at byte %llu", (unsigned long long)seed,
                (unsigned long long)index, (unsigned long long)at);
        i += part;
    }
}

static void key_of(uint64_t index, char key[48])
{
    snprintf(key, 48, "load-%llu:%llu", (unsigned long long)seed,
             (unsigned long long)index);
}

static bool again(int status)
{
    switch (-status) {
    case KVF_PEER_UNREACHABLE:
    case KVF_TRANSFER_TIMEOUT:
    case KVF_TIMEOUT:
    case KVF_TRANSPORT:
    case KVF_STALE:
    case KVF_BUSY:
    case KVF_NO_SPACE:
        n_again++;
        return now() < give_up;
    default:
        return false;
    }
}

static struct kvferry *connect_to(const char *endpoint,
                                  kvferry_event_fn on_event)
{
    struct kvferry_open_options o = {.endpoint = endpoint,
                                     .client = "load",
                                     .timeout_ms = 30000,
                                     .on_event = on_event};
    struct kvferry *h;
    char err[256];

    if (kvferry_open(&h, &o, err, sizeof err) != 0)
        bad("%s: %s", endpoint, err);
    return h;
}

/* ---- put ---------------------------------------------------------------- */

static uint64_t n_retired;

static void on_event(struct kvferry *h, void *user, const char *name,
                     const char *json)
{
    (void)h;
    (void)user;
    if (strcmp(name, "retired") != 0)
        return;
    if (strstr(json, "consumed") == NULL)
        bad("retired otherwise than by its reader: %s", json);
    n_retired++;
}

static void put_one(struct kvferry *h, uint64_t index, uint64_t size)
{
    struct kvferry_put_options o = {.notify = true};
    struct kvferry_segment s = {.is_region = false};
    struct kvferry_buffer b;
    char key[48];
    int rc;

    while ((rc = kvferry_alloc(h, size, &b)) != 0)
        if (rc != -KVF_NO_SPACE || kvferry_wait(h, 1000) < 0 ||
            now() > give_up + 60)
            bad("alloc of %llu: %s", (unsigned long long)size,
                kvferry_error(h));
    fill(b.data, size, index);
    s.id = b.id;
    key_of(index, key);
    rc = kvferry_put_segments(h, key, &s, 1, &o, NULL);
    if (rc != 0)
        bad("put: %s", kvferry_error(h));
    n_bytes += size;
}

static void run_put(struct kvferry *h)
{
    for (uint64_t i = 0; i < count; i++) {
        while (i - n_retired >= depth)
            if (kvferry_wait(h, 1000) < 0)
                bad("%s", kvferry_error(h));
        put_one(h, i, size_of(i));
    }
    while (n_retired < count)
        if (kvferry_wait(h, 1000) < 0)
            bad("%s", kvferry_error(h));
}

/* ---- get ---------------------------------------------------------------- */

static void start(struct kvferry *h, struct item *it);

static void count_transport(const char *name)
{
    unsigned i = 0;

    while (i < 3 && strcmp(name, transports[i]) != 0)
        i++;
    by_transport[i]++;
    if (strcmp(want_transport, "any") != 0 && strcmp(want_transport, name) != 0)
        bad("came by %s, not by %s", name, want_transport);
}

static void verify(const struct item *it, const struct kvferry_payload *p)
{
    const struct kvferry_piece *piece;
    unsigned n = kvferry_payload_pieces(p, &piece);
    uint64_t at = 0;

    if (kvferry_payload_size(p) != it->size)
        bad("%llu bytes instead of %llu",
            (unsigned long long)kvferry_payload_size(p),
            (unsigned long long)it->size);
    for (unsigned i = 0; i < n; i++) {
        check(piece[i].data, piece[i].length, it->index, at);
        at += piece[i].length;
    }
    if (at != it->size)
        bad("the pieces make %llu bytes", (unsigned long long)at);
    count_transport(kvferry_payload_transport(p));
}

static void on_done(struct kvferry *h, void *user,
                    const struct kvferry_result *r)
{
    struct item *it = user;
    struct kvferry_payload *p = r->payload;

    if (r->status != 0) {
        if (r->status == -KVF_CANCELLED && it->cancelled)
            n_cancelled++;
        else if (!again(r->status))
            bad("%llu: %s: %s", (unsigned long long)it->index,
                kvferry_status_name(r->status), r->message);
        it->cancelled = false;
        start(h, it);
        return;
    }
    verify(it, p);
    kvferry_release(&p);
    if (it->buffer.id != 0 && kvferry_free(h, it->buffer.id) != 0)
        bad("free: %s", kvferry_error(h));
    it->buffer.id = 0;
    it->busy = false;
    n_bytes += it->size;
    n_done++;
}

/* Cuts the memory of an `into` into pieces of any length, in reverse order. */
static void cut(struct item *it)
{
    uint64_t left = it->size, r = mix(seed + it->index);

    it->n_pieces = 0;
    while (left > 0) {
        uint64_t n = it->n_pieces + 1 == PIECES ? left : 1 + r % left;

        it->piece[it->n_pieces++] = (struct kvferry_segment){
            .id = it->buffer.id, .offset = left - n, .length = n};
        left -= n;
        r = mix(r);
    }
}

static void start(struct kvferry *h, struct item *it)
{
    struct kvferry_get_options o = {.from_fields = 1, .timeout_ms = 120000};
    char key[48];

    if (it->buffer.id != 0) {
        o.into = it->piece;
        o.n_into = it->n_pieces;
    } else {
        o.mode = KVFERRY_COPY;
    }
    key_of(it->index, key);
    if (kvferry_get_async(h, key, &o, on_done, it, &it->ticket) != 0)
        bad("get: %s", kvferry_error(h));
}

static void begin(struct kvferry *h, struct item *it, uint64_t index)
{
    *it = (struct item){.index = index, .size = size_of(index), .busy = true};
    if (mix(seed ^ index) % 4 == 0) {
        int rc = kvferry_alloc(h, it->size, &it->buffer);

        if (rc == 0)
            cut(it);
        else if (rc == -KVF_NO_SPACE)
            it->buffer.id = 0; /* the daemon waits for room itself */
        else
            bad("alloc: %s", kvferry_error(h));
    }
    start(h, it);
}

/* Now and then one of those under way. */
static void cancel_some(struct kvferry *h)
{
    static uint64_t turn;
    struct item *it = &items[mix(seed + turn) % depth];

    if (mix(~seed + turn++) % 100 < cancel_percent && it->busy &&
        !it->cancelled) {
        it->cancelled = true;
        if (kvferry_cancel(h, it->ticket) != 0)
            bad("cancel: %s", kvferry_error(h));
    }
}

static void run_get(struct kvferry *h)
{
    uint64_t next = 0;

    while (n_done < count) {
        for (unsigned i = 0; i < depth && next < count; i++)
            if (!items[i].busy)
                begin(h, &items[i], next++);
        cancel_some(h);
        if (kvferry_wait(h, 50) < 0)
            bad("%s", kvferry_error(h));
    }
}

/* ---- sizes -------------------------------------------------------------- */

static void run_sizes(int n, char **size)
{
    struct kvferry *a = connect_to(size[0], on_event);
    struct kvferry *b = connect_to(size[1], NULL);

    want_transport = size[2];
    for (int i = 3; i < n; i++) {
        struct kvferry_get_options o = {
            .from_fields = 1, .mode = KVFERRY_COPY, .timeout_ms = 120000};
        struct item it = {.index = (uint64_t)i,
                          .size = strtoull(size[i], NULL, 0)};
        struct kvferry_payload *p;
        char key[48];

        put_one(a, it.index, it.size);
        key_of(it.index, key);
        if (kvferry_get(b, key, &o, &p) != 0)
            bad("get of %s: %s", size[i], kvferry_error(b));
        verify(&it, p);
        kvferry_release(&p);
        printf("size %s\n", size[i]);
    }
    kvferry_close(b);
    kvferry_close(a);
}

int main(int argc, char **argv)
{
    const char *retry = getenv("KVF_LOAD_RETRY_S");
    struct kvferry *h;

    setvbuf(stdout, NULL, _IOLBF, 0);
    give_up = now() + (retry != NULL ? atof(retry) : 0);
    if (argc > 5 && strcmp(argv[1], "sizes") == 0) {
        run_sizes(argc - 2, argv + 2);
    } else {
        if (argc < 7)
            bad("usage: see load.c");
        seed = strtoull(argv[3], NULL, 0);
        count = strtoull(argv[4], NULL, 0);
        max_size = strtoull(argv[5], NULL, 0);
        depth = (unsigned)atoi(argv[6]);
        want_transport = argc > 7 ? argv[7] : "any";
        cancel_percent = argc > 8 ? (unsigned)atoi(argv[8]) : 0;
        if (max_size == 0 || depth == 0 || depth > DEPTH_MAX)
            bad("MAX from 1, DEPTH 1 to %u", DEPTH_MAX);
        h = connect_to(argv[2], on_event);
        if (argv[1][0] == 'p')
            run_put(h);
        else
            run_get(h);
        kvferry_close(h);
    }
    printf("LOAD OK bytes=%llu cancelled=%llu again=%llu",
           (unsigned long long)n_bytes, (unsigned long long)n_cancelled,
           (unsigned long long)n_again);
    for (unsigned i = 0; i < 4; i++)
        printf(" %s=%llu", transports[i], (unsigned long long)by_transport[i]);
    printf("\n");
    return 0;
}
