/* libkvferry's push and windows against real daemons; started by
 * test_lib_push.py as
 *
 *   lib_push CASE WRITER_ENDPOINT OWNER_ENDPOINT OWNER_HOST OWNER_PORT
 *
 * A case ends with exit status 0, or with a line that says what was not as it
 * should be. */
#include "kvferry/kvferry.h"

#include <fcntl.h>
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

static char **arg; /* of main, from the first endpoint on */
static struct kvferry_target owner;

struct seen {
    unsigned events, done, bad;
    char json[300];
};

static void on_event(struct kvferry *h, void *user, const char *name,
                     const char *json)
{
    struct seen *s = user;

    (void)h;
    if (strcmp(name, "written") != 0 && strcmp(name, "retired") != 0)
        return;
    s->events++;
    snprintf(s->json, sizeof s->json, "%s", json);
}

static void on_done(struct kvferry *h, void *user,
                    const struct kvferry_result *r)
{
    struct seen *s = user;

    (void)h;
    s->done++;
    s->bad += r->status != 0;
}

static struct kvferry *open_handle(int which, struct seen *s)
{
    struct kvferry_open_options o = {.endpoint = arg[which],
                                     .client = "lib_push",
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

/* It lies at the owner: a get there that may not wait has it. */
static void arrived(struct kvferry *b, const char *key, size_t n, unsigned seed,
                    uint64_t generation)
{
    struct kvferry_get_options g = {.no_wait = true};
    uint8_t *copy = malloc(n);
    struct kvferry_payload *p;

    OK(b, kvferry_get(b, key, &g, &p));
    CHECK(kvferry_payload_size(p) == n);
    CHECK(kvferry_payload_generation(p) == generation);
    CHECK(kvferry_payload_copy(p, 0, copy, n) == n && same(copy, n, seed));
    kvferry_release(&p);
    free(copy);
}

static void push(void)
{
    struct seen s = {.events = 0};
    struct kvferry *a = open_handle(0, &s), *b = open_handle(1, NULL);
    struct kvferry_push_options o = {.to = owner, .put = {.checksum = true}};
    static const size_t sizes[] = {1, 1000, 65536, 65537, 3000000};
    struct kvferry_transfer r;

    for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        uint8_t *data = malloc(sizes[i]);

        fill(data, sizes[i], i);
        OK(a, kvferry_push(a, "pushed", data, sizes[i], &o, &r));
        CHECK(r.size == sizes[i] && r.attempts <= 1 && r.transport[0] != '\0');
        arrived(b, "pushed", sizes[i], i, r.generation);
        free(data);
    }
    o.put.reject_duplicate = true;
    OK(a, kvferry_push(a, "twice", "abc", 3, &o, NULL));
    STATUS(a, kvferry_push(a, "twice", "xyz", 3, &o, NULL), KVF_EXISTS);
    o.put.notify = true;
    OK(a, kvferry_push(a, "n", "abc", 3, &o, NULL));
    CHECK(s.events == 0);
    OK(b, kvferry_cleanup(b, "n", -1, -1, NULL));
    OK(b, kvferry_fail(b, "n", "enough"));
    while (s.events == 0 && kvferry_wait(a, 5000) >= 0)
        ;
    CHECK(strstr(s.json, "\"reason\":\"failed\"") != NULL);
    kvferry_close(a);
    kvferry_close(b);
}

/* Memory that was pushed is the caller's still: again, then put, then freed. */
static void push_segments(void)
{
    struct kvferry *a = open_handle(0, NULL), *b = open_handle(1, NULL);
    struct kvferry_push_options o = {.to = owner};
    struct kvferry_segment seg[2];
    struct kvferry_buffer buf;
    struct kvferry_transfer r;

    OK(a, kvferry_alloc(a, 300000, &buf));
    fill(buf.data, buf.size, 7);
    seg[0] = (struct kvferry_segment){.id = buf.id, .length = 100000};
    seg[1] = (struct kvferry_segment){.id = buf.id, .offset = 100000};
    for (int i = 0; i < 3; i++) {
        OK(a, kvferry_push_segments(a, "s", seg, 2, &o, &r));
        arrived(b, "s", 300000, 7, r.generation);
    }
    OK(a, kvferry_put_segments(a, "own", seg + 1, 1, NULL, NULL));
    STATUS(a, kvferry_push_segments(a, "s", seg, 2, &o, &r), KVF_INVALID);
    OK(a, kvferry_fail(a, "own", NULL));
    kvferry_close(a);
    kvferry_close(b);
}

static void await_events(struct kvferry *h, struct seen *s, unsigned n)
{
    while (s->events < n)
        CHECK(kvferry_wait(h, 10000) >= 0);
    CHECK(s->events == n);
}

static void windows(void)
{
    struct seen s = {0};
    struct kvferry *a = open_handle(0, NULL), *b = open_handle(1, &s);
    struct kvferry_window_options o = {.to = owner};
    struct kvferry_window rw, ro, none;
    struct kvferry_segment seg[3];
    struct kvferry_transfer r;
    struct kvferry_buffer buf;
    uint8_t *there;

    OK(b, kvferry_expose(b, "rw", 1 << 20, true, &rw));
    OK(b, kvferry_expose(b, "ro", 4096, false, &ro));
    STATUS(b, kvferry_expose(b, "rw", 10, true, &none), KVF_EXISTS);
    STATUS(b, kvferry_free(b, rw.memory), KVF_BUSY);
    there = rw.data;
    memset(there, 0, rw.size);
    fill(ro.data, ro.size, 3);
    OK(a, kvferry_alloc(a, 1 << 20, &buf));
    fill(buf.data, buf.size, 4);
    for (unsigned i = 0; i < 3; i++) /* backwards, with gaps */
        seg[i] = (struct kvferry_segment){
            .id = buf.id, .offset = 200000 - 90000 * i, .length = 70001};
    o.notify = "\xab";
    o.notify_len = 1;
    OK(a, kvferry_write(a, "rw", 11, seg, 3, &o, &r));
    CHECK(r.size == 3 * 70001);
    await_events(b, &s, 1);
    CHECK(strstr(s.json, "\"notify\":\"ab\"") && strstr(s.json, "\"write\""));
    CHECK(there[10] == 0 && there[11 + 3 * 70001] == 0);
    for (unsigned i = 0; i < 3; i++)
        CHECK(memcmp(there + 11 + i * 70001,
                     (uint8_t *)buf.data + 200000 - 90000 * i, 70001) == 0);
    o.notify = NULL;
    seg[0] =
        (struct kvferry_segment){.id = buf.id, .offset = 1, .length = 4096};
    OK(a, kvferry_read(a, "ro", 0, seg, 1, &o, &r));
    CHECK(same((uint8_t *)buf.data + 1, 4096, 3));
    STATUS(a, kvferry_write(a, "ro", 0, seg, 1, &o, &r), KVF_DENIED);
    STATUS(a, kvferry_read(a, "ro", 1, seg, 1, &o, &r), KVF_INVALID);
    STATUS(a, kvferry_read(a, "gone", 0, seg, 1, &o, &r), KVF_NOT_FOUND);
    OK(b, kvferry_unexpose(b, ro.id));
    STATUS(a, kvferry_read(a, "ro", 0, seg, 1, &o, &r), KVF_NOT_FOUND);
    STATUS(b, kvferry_unexpose(b, ro.id), KVF_INVALID);
    CHECK(s.events == 1);
    kvferry_close(a);
    kvferry_close(b); /* and the window with it */
}

static void region(void)
{
    struct kvferry *a = open_handle(0, NULL), *b = open_handle(1, NULL);
    struct kvferry_window_options o = {.to = owner};
    struct kvferry_window win;
    struct kvferry_segment seg;
    struct kvferry_buffer buf;
    uint64_t id;
    uint8_t *mem;
    int fd = memfd_create("lib_push", MFD_CLOEXEC | MFD_ALLOW_SEALING), rc;

    CHECK(fd >= 0 && ftruncate(fd, 65536) == 0);
    CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) == 0);
    mem = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(mem != MAP_FAILED);
    OK(b, kvferry_register(b, fd, 65536, mem, &id));
    OK(b, kvferry_expose_region(b, "mem", id, true, &win));
    CHECK(win.data == mem && win.size == 65536 && win.memory == id);
    STATUS(b, kvferry_unregister(b, id), KVF_BUSY);
    OK(a, kvferry_alloc(a, 1000, &buf));
    fill(buf.data, 1000, 9);
    seg = (struct kvferry_segment){.id = buf.id};
    OK(a, kvferry_write(a, "mem", 64536, &seg, 1, &o, NULL));
    CHECK(same(mem + 64536, 1000, 9));
    OK(b, kvferry_unexpose(b, win.id));
    /* Busy until the writer's daemon has said that it is done there. */
    for (int i = 0; (rc = kvferry_unregister(b, id)) == -KVF_BUSY && i < 1000;
         i++)
        CHECK(usleep(5000) == 0);
    OK(b, rc);
    kvferry_close(a);
    kvferry_close(b);
    munmap(mem, 65536);
    close(fd);
}

#define MANY 500

static void many(void)
{
    struct seen s = {0}, t = {0};
    struct kvferry *a = open_handle(0, NULL), *b = open_handle(1, &s);
    struct kvferry_window_options o = {
        .to = owner, .notify = "x", .notify_len = 1};
    struct kvferry_segment seg = {.length = 1024};
    struct kvferry_window win;
    struct kvferry_buffer buf;

    OK(b, kvferry_expose(b, "many", MANY * 1024, true, &win));
    OK(a, kvferry_alloc(a, MANY * 1024, &buf));
    fill(buf.data, buf.size, 5);
    seg.id = buf.id;
    for (unsigned i = 0; i < MANY; i++) {
        seg.offset = i * 1024u;
        OK(a, kvferry_write_async(a, "many", i * 1024u, &seg, 1, &o, on_done,
                                  &t, NULL));
    }
    while (t.done < MANY)
        CHECK(kvferry_wait(a, 10000) >= 0);
    CHECK(t.bad == 0);
    await_events(b, &s, MANY); /* one each, none twice */
    CHECK(same(win.data, MANY * 1024, 5));
    OK(b, kvferry_unexpose(b, win.id));
    kvferry_close(a);
    kvferry_close(b);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } cases[] = {
        {"push", push},       {"push_segments", push_segments},
        {"windows", windows}, {"region", region},
        {"many", many},
    };

    CHECK(argc == 6);
    arg = argv + 2;
    owner.host = argv[4];
    owner.port = (uint16_t)atoi(argv[5]);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (strcmp(argv[1], cases[i].name) == 0) {
            cases[i].run();
            return 0;
        }
    printf("no case %s\n", argv[1]);
    return 1;
}
