/* Memory of engines over rdma: published from one region, received into
 * another.
 *
 *   regions OWNER_ENDPOINT GETTER_ENDPOINT TRANSPORT
 *
 * The owner's region of 40 MiB (several registered pieces) is published in
 * segments that are neither in order nor aligned; the getter takes them into
 * pieces of its own region. Every byte of the region is checked, also those
 * that nobody may touch. Then KV blocks are published and pulled between them.
 * The last line is "REGIONS OK" or what was wrong. */
#include "kvferry/kvferry.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SIZE (40ull << 20)
#define ROUNDS 6

struct engine {
    struct kvferry *h;
    uint8_t *mem;
    uint64_t region;
};

static void need(bool ok, const char *what, struct kvferry *h)
{
    if (ok)
        return;
    printf("REGIONS BAD %s: %s\n", what, h != NULL ? kvferry_error(h) : "");
    exit(1);
}

static void begin(struct engine *e, const char *endpoint)
{
    struct kvferry_open_options o = {
        .endpoint = endpoint, .client = "regions", .timeout_ms = 30000};
    char err[256] = "";
    int fd = memfd_create("region", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (kvferry_open(&e->h, &o, err, sizeof err) != 0) {
        printf("REGIONS BAD %s: %s\n", endpoint, err);
        exit(1);
    }
    need(fd >= 0 && ftruncate(fd, (off_t)SIZE) == 0 &&
             fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) == 0,
         "memfd", NULL);
    e->mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    need(e->mem != MAP_FAILED, "mmap", NULL);
    need(kvferry_register(e->h, fd, SIZE, e->mem, &e->region) == 0, "register",
         e->h);
    close(fd);
}

/* A word for each eight bytes: a shift, a hole or another round all differ. */
static void fill(struct engine *e, uint64_t round)
{
    for (uint64_t i = 0; i < SIZE / 8; i++) {
        uint64_t w = (i + 1 + (round << 40)) * 0x9e3779b97f4a7c15u;

        memcpy(e->mem + 8 * i, &w, 8);
    }
}

/* Last to first, with gaps of 7 bytes and more. */
static unsigned cut(uint64_t region, uint64_t size, unsigned n,
                    struct kvferry_segment *out)
{
    uint64_t left = size, at = SIZE - 3;

    for (unsigned i = 0; i < n; i++) {
        uint64_t len = i == n - 1 ? left : size / n + i * 13 - 5;

        at -= len + 7;
        out[i] = (struct kvferry_segment){region, true, at, len};
        left -= len;
    }
    return n;
}

static void round_trip(struct engine *a, struct engine *b, unsigned round,
                       const char *transport)
{
    static const uint64_t sizes[ROUNDS] = {70001,    1 << 20,  (4 << 20) + 1,
                                           12345678, 20 << 20, 33 << 20};
    struct kvferry_put_options po = {.notify = true};
    struct kvferry_segment from[9], into[5];
    struct kvferry_payload *p;
    uint64_t size = sizes[round], at = 0;
    uint8_t *want = malloc(SIZE), *flat = malloc(size);
    char key[32];
    struct kvferry_get_options go = {.into = into,
                                     .n_into = cut(b->region, size, 5, into),
                                     .from_fields = 1,
                                     .timeout_ms = 60000};

    snprintf(key, sizeof key, "region:%u", round);
    fill(a, round);
    memset(b->mem, 0xee, SIZE);
    memset(want, 0xee, SIZE);
    cut(a->region, size, 9, from);
    for (unsigned i = 0; i < 9; at += from[i++].length)
        memcpy(flat + at, a->mem + from[i].offset, from[i].length);
    at = 0;
    for (unsigned i = 0; i < 5; at += into[i++].length)
        memcpy(want + into[i].offset, flat + at, into[i].length);
    need(kvferry_put_segments(a->h, key, from, 9, &po, NULL) == 0, "put", a->h);
    need(kvferry_get(b->h, key, &go, &p) == 0, "get", b->h);
    need(strcmp(kvferry_payload_transport(p), transport) == 0,
         kvferry_payload_transport(p), NULL);
    need(memcmp(want, b->mem, SIZE) == 0, "bytes", NULL);
    kvferry_release(&p);
    free(want);
    free(flat);
}

/* Do the last bytes of both regions move by that transport yet? */
static bool over(struct engine *a, struct engine *b, const char *transport)
{
    struct kvferry_put_options po = {.notify = true};
    struct kvferry_segment s = {a->region, true, SIZE - 70000, 70000};
    struct kvferry_segment into = {b->region, true, SIZE - 70000, 70000};
    struct kvferry_get_options go = {
        .into = &into, .n_into = 1, .from_fields = 1, .timeout_ms = 60000};
    struct kvferry_payload *p;
    bool yes;

    need(kvferry_put_segments(a->h, "region:first", &s, 1, &po, NULL) == 0,
         "put", a->h);
    if (kvferry_get(b->h, "region:first", &go, &p) != 0)
        return false;
    yes = strcmp(kvferry_payload_transport(p), transport) == 0;
    kvferry_release(&p);
    return yes;
}

/* ---- KV blocks ---------------------------------------------------------- */

#define LAYERS 3u
#define BLOCK 4096u /* bytes of k, and of v, of one block of one layer */
#define TOKENS 16u
#define ALL 256u
#define MOVED 96u

static uint64_t place(uint64_t layer, unsigned v, uint64_t block)
{
    return layer * (12ull << 20) + 40960 + block * 3 * BLOCK + v * BLOCK;
}

static uint64_t declare(struct engine *e)
{
    static const struct kvferry_layout_group group = {.kind = "full"};
    static const struct kvferry_layout_comp comps[] = {{"k", 4, 64},
                                                       {"v", 4, 64}};
    struct kvferry_layout_layer layers[LAYERS];
    struct kvferry_layout_view views[2 * LAYERS];
    static const char *const names[LAYERS] = {"l0", "l1", "l2"};
    struct kvferry_layout l = {.tp = 1,
                               .pp = 1,
                               .bs = TOKENS,
                               .ppl = 1,
                               .nblocks = ALL,
                               .order = "HND",
                               .kv = "split",
                               .groups = &group,
                               .n_groups = 1,
                               .layers = layers,
                               .n_layers = LAYERS,
                               .views = views,
                               .n_views = 2 * LAYERS};
    uint64_t id;

    for (unsigned i = 0; i < LAYERS; i++) {
        layers[i] =
            (struct kvferry_layout_layer){names[i], 0, "attn", comps, 2};
        for (unsigned v = 0; v < 2; v++)
            views[2 * i + v] = (struct kvferry_layout_view){
                i,    v == 0 ? "k" : "v", e->region, place(i, v, 0), 3 * BLOCK,
                BLOCK};
    }
    need(kvferry_layout(e->h, &l, &id) == 0, "layout", e->h);
    return id;
}

static void check_blocks(const struct engine *a, const struct engine *b,
                         const uint64_t *from, const uint64_t *to)
{
    uint8_t *want = malloc(SIZE);

    memset(want, 0xee, SIZE);
    for (unsigned i = 0; i < MOVED; i++)
        for (unsigned l = 0; l < LAYERS; l++)
            for (unsigned v = 0; v < 2; v++)
                memcpy(want + place(l, v, to[i]), a->mem + place(l, v, from[i]),
                       BLOCK);
    need(memcmp(want, b->mem, SIZE) == 0, "bytes of blocks", NULL);
    free(want);
}

/* Publishes and pulls until it goes by that transport (the first time the keys
 * may not have been told yet), and checks every byte each time. */
static void pull_blocks(struct engine *a, struct engine *b,
                        const char *transport)
{
    uint64_t la = declare(a), lb = declare(b), from[MOVED], to[MOVED];
    bool by = false;

    for (unsigned i = 0; i < MOVED; i++) {
        from[i] = (i * 37 + 5) % ALL;
        to[i] = (i * 11 + 100) % ALL;
    }
    for (unsigned round = 0; round < 20 && !by; round++) {
        struct kvferry_blocks src = {0, 0, from, MOVED},
                              dst = {0, 0, to, MOVED};
        struct kvferry_publish_options po = {.n_tokens = MOVED * TOKENS};
        struct kvferry_pull_options go = {.timeout_ms = 60000};
        struct kvferry_pull_result r;
        struct kvferry_handle handle;
        char name[32];

        snprintf(name, sizeof name, "blocks-%u", round);
        fill(a, ROUNDS + round);
        memset(b->mem, 0xee, SIZE);
        need(kvferry_publish(a->h, la, name, &src, 1, &po, &handle) == 0,
             "publish", a->h);
        go.handle = &handle;
        need(kvferry_pull(b->h, lb, &dst, 1, &go, &r) == 0, "pull", b->h);
        check_blocks(a, b, from, to);
        by = strcmp(r.transport, transport) == 0;
    }
    need(by, "blocks never came by that transport", NULL);
}

/* Layouts pin their regions for as long as the session: it ends. */
static void end(struct engine *e)
{
    kvferry_close(e->h);
}

int main(int argc, char **argv)
{
    struct engine a, b;

    if (argc != 4) {
        fprintf(stderr, "usage: regions OWNER GETTER TRANSPORT\n");
        return 2;
    }
    begin(&a, argv[1]);
    begin(&b, argv[2]);
    /* Regions are registered in slices of the daemons' loops: until then their
     * bytes move another way, or not at all. */
    for (unsigned i = 0; i < 600 && !over(&a, &b, argv[3]); i++)
        usleep(50000);
    for (unsigned i = 0; i < ROUNDS; i++)
        round_trip(&a, &b, i, argv[3]);
    pull_blocks(&a, &b, argv[3]);
    end(&a);
    end(&b);
    printf("REGIONS OK rounds=%d\n", ROUNDS);
    return 0;
}
