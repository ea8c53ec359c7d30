/* libkvferry against real daemons; test_libkvferry.py starts them and calls
 *
 *   lib_e2e CASE SENDER_ENDPOINT RECEIVER_ENDPOINT
 *
 * A case ends with exit status 0, or with a line that says what was not as it
 * should be. The case `restart` prints a word when it is somewhere and goes on
 * when it reads a line. */
#include "kvferry/kvferry.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define CHECK(x)                                                               \
    do {                                                                       \
        if (!(x)) {                                                            \
            printf("%s:%d: %s\n", __func__, __LINE__, #x);                     \
            exit(1);                                                           \
        }                                                                      \
    } while (0)
#define STATUS(h, rc, want)                                                    \
    do {                                                                       \
        int got_ = (rc);                                                       \
        if (got_ != -(int)(want)) {                                            \
            printf("%s:%d: %s: %s: %s\n", __func__, __LINE__, #rc,             \
                   kvferry_status_name(got_), kvferry_error(h));               \
            exit(1);                                                           \
        }                                                                      \
    } while (0)
#define OK(h, rc) STATUS(h, rc, KVF_OK)

static const char *ep[2];

struct seen {
    unsigned retired, cancelled, ok, other;
    char reason[32];
    int status;
};

static void on_event(struct kvferry *h, void *user, const char *name,
                     const char *json)
{
    struct seen *s = user;
    const char *at = strstr(json, "\"reason\":");

    (void)h;
    if (strcmp(name, "retired") != 0 || at == NULL)
        return;
    s->retired++;
    snprintf(s->reason, sizeof s->reason, "%.30s", at + 9);
}

static void on_done(struct kvferry *h, void *user,
                    const struct kvferry_result *r)
{
    struct seen *s = user;
    struct kvferry_payload *p = r->payload;

    (void)h;
    s->status = r->status;
    s->ok += r->status == 0;
    s->cancelled += r->status == -(int)KVF_CANCELLED;
    s->other += r->status != 0 && r->status != -(int)KVF_CANCELLED;
    kvferry_release(&p);
}

static struct kvferry *open_handle(int which, struct seen *s)
{
    struct kvferry_open_options o = {.endpoint = ep[which],
                                     .client = "lib_e2e",
                                     .on_event = s != NULL ? on_event : NULL,
                                     .user = s};
    struct kvferry *h;
    char err[256] = "";

    if (kvferry_open(&h, &o, err, sizeof err) != 0) {
        printf("open: %s\n", err);
        exit(1);
    }
    return h;
}

static void fill(uint8_t *p, size_t n, unsigned seed)
{
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)((i * 2654435761u + seed * 40503u) >> 13);
}

static bool same(const uint8_t *p, size_t n, unsigned seed)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] != (uint8_t)((i * 2654435761u + seed * 40503u) >> 13))
            return false;
    return true;
}

static bool payload_is(const struct kvferry_payload *p, size_t n, unsigned seed)
{
    uint8_t *copy = malloc(n);
    bool ok = kvferry_payload_size(p) == n &&
              kvferry_payload_copy(p, 0, copy, n) == n && same(copy, n, seed);

    free(copy);
    return ok;
}

static void put(struct kvferry *h, const char *key, size_t n, unsigned seed)
{
    uint8_t *data = malloc(n);

    fill(data, n, seed);
    OK(h, kvferry_put(h, key, data, n, NULL, NULL));
    free(data);
}

/* ---- regions ------------------------------------------------------------ */

static int memory(size_t size, bool sealed, uint8_t **addr)
{
    int fd = memfd_create("lib_e2e", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    CHECK(fd >= 0 && ftruncate(fd, (off_t)size) == 0);
    CHECK(!sealed || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) == 0);
    *addr = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(*addr != MAP_FAILED);
    return fd;
}

#define REGION (1u << 20)

static void put_from_region(struct kvferry *a, struct kvferry *b,
                            struct seen *s, uint64_t region, uint8_t *mem,
                            unsigned round)
{
    struct kvferry_segment seg[2] = {
        {.id = region, .is_region = true, .offset = 4096, .length = 100000},
        {.id = region, .is_region = true, .offset = 300000, .length = 5000}};
    struct kvferry_put_options o = {.notify = true, .checksum = true};
    struct kvferry_get_options g = {
        .mode = round % 2 ? KVFERRY_COPY : KVFERRY_VIEW, .verify = true};
    struct kvferry_payload *p;
    uint8_t *both = malloc(105000);

    fill(both, 105000, round);
    memcpy(mem + 4096, both, 100000);
    memcpy(mem + 300000, both + 100000, 5000);
    free(both);
    STATUS(a, kvferry_put_segments(a, "r", seg, 2, NULL, NULL), KVF_INVALID);
    OK(a, kvferry_put_segments(a, "r", seg, 2, &o, NULL));
    STATUS(a, kvferry_unregister(a, region), KVF_BUSY);
    OK(b, kvferry_get(b, "r", &g, &p));
    CHECK(payload_is(p, 105000, round));
    kvferry_release(&p);
    while (s->retired <= round)
        CHECK(kvferry_wait(a, 10000) > 0);
    CHECK(strncmp(s->reason, "\"consumed\"", 10) == 0);
}

static void get_into_region(struct kvferry *a, struct kvferry *b)
{
    uint8_t *mem;
    int fd = memory(REGION, true, &mem);
    uint64_t region;
    struct kvferry_get_options g = {.n_into = 2};
    struct kvferry_segment seg[2];
    const struct kvferry_piece *piece;
    struct kvferry_payload *p;

    OK(b, kvferry_register(b, fd, REGION, mem, &region));
    for (unsigned mode = 0; mode < 2; mode++) {
        seg[0] = (struct kvferry_segment){region, true, 7, 150000};
        seg[1] = (struct kvferry_segment){region, true, 500000, 50000};
        g.into = seg;
        put(a, "into", 200000, 77 + mode);
        seg[1].length = 49999;
        STATUS(b, kvferry_get(b, "into", &g, &p), KVF_MISMATCH);
        seg[1].length = 50000;
        OK(b, kvferry_get(b, "into", &g, &p));
        CHECK(kvferry_payload_pieces(p, &piece) == 2);
        CHECK(piece[0].data == mem + 7 && piece[1].data == mem + 500000);
        CHECK(payload_is(p, 200000, 77 + mode));
        CHECK(mem[6] == 0 && mem[7 + 150000] == 0);
        kvferry_release(&p);
    }
    OK(b, kvferry_unregister(b, region));
    STATUS(b, kvferry_unregister(b, region), KVF_INVALID);
    STATUS(b, kvferry_get(b, "into", &g, &p), KVF_INVALID);
    munmap(mem, REGION);
    close(fd);
}

static void regions(void)
{
    struct seen s = {0};
    struct kvferry *a = open_handle(0, &s), *b = open_handle(1, NULL);
    uint8_t *mem, *open_mem;
    int fd = memory(REGION, true, &mem);
    int bad = memory(REGION, false, &open_mem);
    uint64_t region = 0;

    STATUS(a, kvferry_register(a, bad, REGION, open_mem, &region), KVF_DENIED);
    STATUS(a, kvferry_register(a, 9999, REGION, NULL, &region), KVF_DENIED);
    STATUS(a, kvferry_register(a, -1, REGION, NULL, &region), KVF_INVALID);
    OK(a, kvferry_register(a, fd, REGION, mem, &region));
    for (unsigned round = 0; round < 4; round++)
        put_from_region(a, b, &s, region, mem, round);
    OK(a, kvferry_unregister(a, region));
    get_into_region(a, b);
    munmap(mem, REGION);
    munmap(open_mem, REGION);
    close(fd);
    close(bad);
    kvferry_close(a);
    kvferry_close(b);
}

/* ---- async -------------------------------------------------------------- */

static void cancel(void)
{
    struct kvferry *a = open_handle(0, NULL), *b = open_handle(1, NULL);
    struct kvferry_get_options g = {.timeout_ms = KVFERRY_NO_TIMEOUT};
    struct seen s = {0};
    uint64_t ticket[3];

    for (unsigned i = 0; i < 3; i++) {
        char key[16];

        snprintf(key, sizeof key, "c%u", i);
        OK(b, kvferry_get_async(b, key, &g, on_done, &s, &ticket[i]));
    }
    OK(b, kvferry_ping(b));
    OK(b, kvferry_cancel(b, ticket[1]));
    while (s.cancelled == 0)
        CHECK(kvferry_wait(b, 10000) >= 0);
    kvferry_cancel(b, ticket[1]); /* it is over: nothing happens */
    put(a, "c0", 1000, 1);
    put(a, "c2", 100000, 2);
    while (kvferry_outstanding(b) > 0)
        CHECK(kvferry_wait(b, 10000) >= 0);
    CHECK(s.cancelled == 1 && s.ok == 2 && s.other == 0);
    kvferry_close(a);
    kvferry_close(b);
}

static void mget(void)
{
    struct kvferry *a = open_handle(0, NULL), *b = open_handle(1, NULL);
    struct kvferry_mget_item it[4];

    for (int all = 0; all < 2; all++) {
        put(a, "m0", 10, 1);
        put(a, "m1", 200000, 2);
        put(a, "m2", 30000, 3);
        memset(it, 0, sizeof it);
        it[0].key = "m0";
        it[1].key = "m1";
        it[2].key = "m2";
        it[3].key = "missing";
        it[0].options.mode = it[2].options.mode = KVFERRY_INLINE;
        STATUS(b, kvferry_mget(b, it, 4, 300, all), all ? KVF_TIMEOUT : KVF_OK);
        CHECK(it[3].status == -(int)KVF_TIMEOUT && it[3].message[0] != '\0');
        for (int i = 0; i < 3; i++) {
            CHECK(it[i].status == (all ? -(int)KVF_CANCELLED : 0));
            CHECK((it[i].payload == NULL) == all);
        }
        if (all) /* nothing was consumed: the same again, without it */
            OK(b, kvferry_mget(b, it, 3, 3000, true));
        CHECK(payload_is(it[0].payload, 10, 1));
        CHECK(payload_is(it[1].payload, 200000, 2));
        CHECK(payload_is(it[2].payload, 30000, 3));
        for (int i = 0; i < 3; i++)
            kvferry_release(&it[i].payload);
    }
    kvferry_close(a);
    kvferry_close(b);
}

#define MANY 2000

struct one {
    unsigned i, calls;
    size_t size;
};

static void many_done(struct kvferry *h, void *user,
                      const struct kvferry_result *r)
{
    struct one *o = user;
    struct kvferry_payload *p = r->payload;

    (void)h;
    if (r->status != 0) {
        printf("%u: %s: %s\n", o->i, kvferry_status_name(r->status),
               r->message);
        exit(1);
    }
    o->calls++;
    if (p == NULL)
        return; /* a put */
    CHECK(payload_is(p, o->size, o->i));
    kvferry_release(&p);
}

static void drain(struct kvferry *h)
{
    while (kvferry_outstanding(h) > 0) {
        struct pollfd pf = {.fd = kvferry_fd(h), .events = POLLIN};

        if (kvferry_process(h) == 0 && kvferry_outstanding(h) > 0)
            CHECK(poll(&pf, 1, 20000) == 1);
    }
}

static void pipeline(void)
{
    struct kvferry *a = open_handle(0, NULL), *b = open_handle(1, NULL);
    struct one *o = calloc(MANY, sizeof *o);
    uint8_t *data = malloc(MANY * 4096u);
    char key[24];

    for (unsigned i = 0; i < MANY; i++) { /* gets first: all of them wait */
        o[i].i = i;
        o[i].size = 1 + i * 2;
        snprintf(key, sizeof key, "p%u", i);
        OK(b, kvferry_get_async(b, key, NULL, many_done, &o[i], NULL));
    }
    CHECK(kvferry_outstanding(b) == MANY);
    for (unsigned i = 0; i < MANY; i++) {
        snprintf(key, sizeof key, "p%u", i);
        fill(data + i * 4096u, o[i].size, i);
        OK(a, kvferry_put_async(a, key, data + i * 4096u, o[i].size, NULL,
                                many_done, &o[i], NULL));
    }
    drain(a);
    drain(b);
    for (unsigned i = 0; i < MANY; i++)
        CHECK(o[i].calls == 2);
    kvferry_close(a);
    kvferry_close(b);
    free(data);
    free(o);
}

/* ---- restart ------------------------------------------------------------ */

static void say(const char *word)
{
    char line[16];

    printf("%s\n", word);
    fflush(stdout);
    CHECK(fgets(line, sizeof line, stdin) != NULL);
}

static bool is_void(int status)
{
    return status == -(int)KVF_STALE || status == -(int)KVF_INVALID;
}

static void restart(void)
{
    struct kvferry *a = open_handle(0, NULL), *b = open_handle(1, NULL);
    struct kvferry_get_options g = {.mode = KVFERRY_VIEW},
                               never = {.timeout_ms = KVFERRY_NO_TIMEOUT};
    struct kvferry_segment seg;
    struct kvferry_buffer buf, again;
    struct kvferry_payload *view, *p;
    struct seen s = {0};

    put(a, "v", 300000, 5);
    OK(b, kvferry_get(b, "v", &g, &view));
    OK(b, kvferry_alloc(b, 5000, &buf));
    OK(b, kvferry_get_async(b, "never", &never, on_done, &s, NULL));
    OK(b, kvferry_ping(b));
    say("ready"); /* the receiver's daemon is killed and started again */
    while (s.other == 0)
        CHECK(kvferry_wait(b, 10000) >= 0);
    CHECK(s.status == -(int)KVF_PEER_UNREACHABLE && s.ok + s.cancelled == 0);
    CHECK(payload_is(view, 300000, 5));
    memset(buf.data, 1, buf.size); /* what may still be written harms nobody */
    CHECK(is_void(kvferry_free(b, buf.id)));
    seg = (struct kvferry_segment){.id = buf.id};
    CHECK(is_void(kvferry_put_segments(b, "k", &seg, 1, NULL, NULL)));
    OK(b, kvferry_alloc(b, 5000, &again));
    CHECK(again.id != buf.id);
    memset(again.data, 2, again.size);
    OK(b, kvferry_free(b, again.id));
    put(a, "w", 100000, 6);
    OK(b, kvferry_get(b, "w", NULL, &p));
    CHECK(payload_is(p, 100000, 6));
    kvferry_release(&p);
    CHECK(payload_is(view, 300000, 5));
    say("held"); /* the sender's daemon must not have freed it */
    CHECK(payload_is(view, 300000, 5));
    kvferry_release(&view);
    OK(b, kvferry_ping(b));
    say("released"); /* now it must */
    CHECK(s.other == 1);
    kvferry_close(a);
    kvferry_close(b);
}

/* The first call after a restart, of each kind, in turn. */
static void first_call(void)
{
    struct kvferry *b = open_handle(1, NULL);
    struct kvferry_buffer buf;
    struct kvferry_payload *p;
    uint8_t *mem;
    int fd = memory(REGION, true, &mem);
    uint64_t region;

    say("ready");
    OK(b, kvferry_alloc(b, 5000, &buf));
    say("ready");
    OK(b, kvferry_register(b, fd, REGION, mem, &region));
    say("ready");
    put(b, "own", 100000, 1);
    OK(b, kvferry_get(b, "own", NULL, &p));
    kvferry_release(&p);
    say("ready");
    put(b, "own", 10, 1);
    OK(b, kvferry_get(b, "own", NULL, &p));
    kvferry_release(&p);
    say("ready");
    OK(b, kvferry_ping(b));
    kvferry_close(b);
    munmap(mem, REGION);
    close(fd);
}

/* ---- threads, closing, leaks -------------------------------------------- */

static void *worker(void *arg)
{
    unsigned me = *(unsigned *)arg;
    struct kvferry *a = open_handle(0, NULL), *b = open_handle(1, NULL);

    for (unsigned i = 0; i < 150; i++) {
        struct kvferry_payload *p;
        size_t n = 1 + (i % 10) * 15000;
        char key[24];

        snprintf(key, sizeof key, "t%u-%u", me, i % 7);
        put(a, key, n, i);
        OK(b, kvferry_get(b, key, NULL, &p));
        CHECK(payload_is(p, n, i));
        kvferry_release(&p);
    }
    kvferry_close(a);
    kvferry_close(b);
    return NULL;
}

static void threads(void)
{
    unsigned id[2] = {0, 1};
    pthread_t t[2];

    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&t[i], NULL, worker, &id[i]) == 0);
    for (int i = 0; i < 2; i++)
        pthread_join(t[i], NULL);
}

static unsigned fds(void)
{
    DIR *d = opendir("/proc/self/fd");
    unsigned n = 0;

    CHECK(d != NULL);
    while (readdir(d) != NULL)
        n++;
    closedir(d);
    return n;
}

static void closing(void)
{
    unsigned before = fds();

    for (unsigned round = 0; round < 20; round++) {
        struct kvferry *a = open_handle(0, NULL), *b = open_handle(1, NULL);
        struct kvferry_get_options g = {.timeout_ms = KVFERRY_NO_TIMEOUT};
        struct kvferry_buffer buf;
        struct kvferry_payload *held;
        struct seen s = {0};
        uint8_t *data = malloc(100000);

        fill(data, 100000, round);
        put(a, "h", 200000, round);
        OK(b, kvferry_get(b, "h", NULL, &held)); /* ends with the handle */
        OK(a, kvferry_alloc(a, 5000, &buf));
        for (unsigned i = 0; i < 50; i++)
            OK(b, kvferry_get_async(b, "never", &g, on_done, &s, NULL));
        OK(a,
           kvferry_put_async(a, "late", data, 100000, NULL, on_done, &s, NULL));
        if (round % 2)
            kvferry_process(b);
        kvferry_close(b);
        kvferry_close(a);
        free(data);
        CHECK(s.ok + s.cancelled == 51 && s.cancelled >= 50);
    }
    CHECK(fds() == before);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } cases[] = {
        {"regions", regions}, {"cancel", cancel},
        {"mget", mget},       {"pipeline", pipeline},
        {"restart", restart}, {"first_call", first_call},
        {"threads", threads}, {"closing", closing},
    };

    CHECK(argc == 4);
    ep[0] = argv[2];
    ep[1] = argv[3];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (strcmp(argv[1], cases[i].name) == 0) {
            cases[i].run();
            return 0;
        }
    printf("no case %s\n", argv[1]);
    return 1;
}
