/* KV layouts between real daemons: cases that test_blocks_rdma.py drew and
 * worked out by brute force, carried out and compared byte by byte.
 *
 *   blocks FILE TRANSPORT
 *
 * A rank of a case is an engine of its own at the daemon of that rank
 * (ipc:///run/eSTAGE.RANK, senders are stage 0). Words of FILE, for each case:
 *
 *   case NAME TOKENS BY_HANDLE  side (senders)  side (receivers)
 *   side = TP PP BS PPL NBLOCKS ORDER KV SHARED N_GROUPS group.. N_LAYERS
 *          layer.. blocks..  rank..
 *   group = KIND WINDOW      layer = NAME GROUP KIND N_COMPS (NAME UNITS
 * BYTES).. blocks = FIRST N ID..                                    of each
 * group rank = WANTED OWN N_REGIONS (SIZE HEX).. N_VIEWS (LAYER PART REGION
 * OFF0 STRIDE PAGE)..            of each rank
 *
 * HEX is what a sender's region holds, and what a receiver's must hold in the
 * end: ".." is a byte that may be anything (slots of own blocks that no token
 * wants). All else must be what it was, to the end of the region's last page.
 * WANTED to OWN bytes are moved. Prints BLOCKS OK or BLOCKS FAILED. */
#include "kvferry/kvferry.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#define RANKS 4u
#define REGIONS 64u
#define LAYERS 16u
#define COMPS 4u
#define GROUPS 4u
#define IDS 128u
#define FILL 0xee /* what a receiver's memory holds before */

struct region {
    uint8_t *mem, *want;
    bool *any;
    uint64_t size, mapped, id;
};

struct rank {
    struct kvferry *h;
    struct region regions[REGIONS];
    struct kvferry_layout_view views[REGIONS];
    unsigned n_regions, n_views, retired, consumed;
    uint64_t layout, wanted, own;
    /* of the pull under way */
    bool done;
    int status;
    uint64_t bytes;
    char transport[16], message[256];
};

struct side {
    struct kvferry_layout l;
    struct kvferry_layout_group groups[GROUPS];
    struct kvferry_layout_layer layers[LAYERS];
    struct kvferry_layout_comp comps[LAYERS][COMPS];
    struct kvferry_blocks blocks[GROUPS];
    uint64_t ids[GROUPS][IDS];
    struct rank ranks[RANKS];
    unsigned n_ranks, stage;
};

static const char *name = "no case", *transport;
static char *words; /* what is left of the file */
static uint64_t n_tokens;
static unsigned n_none, n_pulls;
static char tag_text[33]; /* of the publication under way, as in JSON */

static void failed(const char *fmt, ...)
    __attribute__((noreturn, format(printf, 1, 2)));

static void failed(const char *fmt, ...)
{
    va_list ap;

    printf("BLOCKS FAILED %s: ", name);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    printf("\n");
    exit(1);
}

static void ok(struct kvferry *h, int rc, const char *what)
{
    if (rc != 0)
        failed("%s: %s: %s", what, kvferry_status_name(rc), kvferry_error(h));
}

/* ---- the file ----------------------------------------------------------- */

static char *word(void)
{
    char *w = strtok_r(NULL, " \n", &words);

    if (w == NULL)
        failed("the file ends");
    return w;
}

static uint64_t number(void)
{
    char *w = word(), *end;
    uint64_t v = strtoull(w, &end, 10);

    if (*end != '\0')
        failed("'%s' is no number", w);
    return v;
}

static unsigned count(unsigned most)
{
    uint64_t v = number();

    if (v > most)
        failed("%llu are too many", (unsigned long long)v);
    return (unsigned)v;
}

static void load(const char *path)
{
    FILE *f = fopen(path, "r");
    size_t size = 0;

    if (f == NULL || getdelim(&words, &size, '\0', f) < 0)
        failed("%s cannot be read", path);
    fclose(f);
}

static void read_layers(struct side *s)
{
    s->l.n_layers = count(LAYERS);
    for (unsigned i = 0; i < s->l.n_layers; i++) {
        struct kvferry_layout_layer *x = &s->layers[i];

        x->name = word();
        x->group = number();
        x->kind = word();
        x->comps = s->comps[i];
        x->n_comps = count(COMPS);
        for (unsigned c = 0; c < x->n_comps; c++) {
            s->comps[i][c].name = word();
            s->comps[i][c].units = number();
            s->comps[i][c].bytes = number();
        }
    }
}

static void read_blocks(struct side *s)
{
    for (unsigned g = 0; g < s->l.n_groups; g++) {
        s->blocks[g].group = g;
        s->blocks[g].first = number();
        s->blocks[g].n_ids = count(IDS);
        s->blocks[g].ids = s->ids[g];
        for (size_t i = 0; i < s->blocks[g].n_ids; i++)
            s->ids[g][i] = number();
    }
}

static void read_bytes(struct region *r)
{
    const char *hex = word();

    if (strlen(hex) != 2 * r->size)
        failed("%zu digits for %llu bytes", strlen(hex),
               (unsigned long long)r->size);
    r->want = malloc(r->size);
    r->any = calloc(r->size, sizeof *r->any);
    for (uint64_t i = 0; i < r->size; i++, hex += 2) {
        char two[3] = {hex[0], hex[1], '\0'};

        r->any[i] = hex[0] == '.';
        r->want[i] = (uint8_t)strtoul(two, NULL, 16);
    }
}

static void read_rank(struct rank *r)
{
    r->wanted = number();
    r->own = number();
    r->n_regions = count(REGIONS);
    for (unsigned i = 0; i < r->n_regions; i++) {
        r->regions[i].size = number();
        read_bytes(&r->regions[i]);
    }
    r->n_views = count(REGIONS);
    for (unsigned i = 0; i < r->n_views; i++) {
        struct kvferry_layout_view *v = &r->views[i];

        v->layer = number();
        v->part = word();
        v->region = count(r->n_regions - 1);
        v->off0 = number();
        v->stride = number();
        v->page = number();
    }
}

static void read_side(struct side *s, unsigned stage)
{
    struct kvferry_layout *l = &s->l;

    memset(s, 0, sizeof *s);
    s->stage = stage;
    l->tp = number();
    l->pp = number();
    l->bs = number();
    l->ppl = number();
    l->nblocks = number();
    l->order = word();
    l->kv = word();
    l->shared = number() != 0;
    l->groups = s->groups;
    l->n_groups = count(GROUPS);
    for (unsigned i = 0; i < l->n_groups; i++) {
        s->groups[i].kind = word();
        s->groups[i].window = number();
    }
    l->layers = s->layers;
    read_layers(s);
    read_blocks(s);
    if (l->tp * l->pp > RANKS)
        failed("too many ranks");
    s->n_ranks = (unsigned)(l->tp * l->pp);
    for (unsigned i = 0; i < s->n_ranks; i++)
        read_rank(&s->ranks[i]);
}

/* ---- engines ------------------------------------------------------------ */

static void on_event(struct kvferry *h, void *user, const char *event,
                     const char *json)
{
    struct rank *r = user;

    (void)h;
    /* That of a publication before may come late. */
    if (strcmp(event, "retired") != 0 || strstr(json, tag_text) == NULL)
        return;
    r->retired++;
    r->consumed += strstr(json, "\"consumed\"") != NULL;
}

static void map(struct rank *r, struct region *m)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    int fd = memfd_create("kv", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    m->mapped = (m->size + page - 1) / page * page;
    if (fd < 0 || ftruncate(fd, (off_t)m->size) != 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) != 0)
        failed("memfd");
    m->mem = mmap(NULL, m->mapped, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (m->mem == MAP_FAILED)
        failed("mmap");
    ok(r->h, kvferry_register(r->h, fd, m->size, m->mem, &m->id), "register");
    close(fd);
}

static void begin(struct side *s, unsigned at)
{
    struct rank *r = &s->ranks[at];
    char endpoint[64], err[256] = "";
    struct kvferry_open_options o = {.endpoint = endpoint,
                                     .client = "blocks",
                                     .timeout_ms = 30000,
                                     .on_event = on_event,
                                     .user = r};
    struct kvferry_layout l = s->l;

    snprintf(endpoint, sizeof endpoint, "ipc:///run/e%u.%u", s->stage, at);
    if (kvferry_open(&r->h, &o, err, sizeof err) != 0)
        failed("%s: %s", endpoint, err);
    for (unsigned i = 0; i < r->n_regions; i++)
        map(r, &r->regions[i]);
    for (unsigned i = 0; i < r->n_views; i++)
        r->views[i].region = r->regions[r->views[i].region].id;
    l.rank = at;
    l.views = r->views;
    l.n_views = r->n_views;
    ok(r->h, kvferry_layout(r->h, &l, &r->layout), "layout");
}

static void end(struct rank *r)
{
    kvferry_close(r->h);
    for (unsigned i = 0; i < r->n_regions; i++) {
        munmap(r->regions[i].mem, r->regions[i].mapped);
        free(r->regions[i].want);
        free(r->regions[i].any);
    }
}

/* ---- a case ------------------------------------------------------------- */

static void prepare(struct side *s)
{
    for (unsigned i = 0; i < s->n_ranks; i++)
        for (unsigned k = 0; k < s->ranks[i].n_regions; k++) {
            struct region *m = &s->ranks[i].regions[k];

            if (s->stage == 0)
                memcpy(m->mem, m->want, m->size);
            else
                memset(m->mem, FILL, m->size);
        }
}

static void check(const struct side *s)
{
    for (unsigned i = 0; i < s->n_ranks; i++)
        for (unsigned k = 0; k < s->ranks[i].n_regions; k++) {
            const struct region *m = &s->ranks[i].regions[k];

            for (uint64_t n = 0; n < m->mapped; n++) {
                unsigned want = n < m->size ? m->want[n] : 0;

                if (m->mem[n] == want || (n < m->size && m->any[n]))
                    continue;
                failed("%s rank %u region %u byte %llu of %llu is %02x, "
                       "should be %02x",
                       s->stage == 0 ? "sender" : "receiver", i, k,
                       (unsigned long long)n, (unsigned long long)m->size,
                       m->mem[n], want);
            }
        }
}

static void publish(struct side *s, const char *id, struct kvferry_handle *out)
{
    uint8_t tag[16];
    struct kvferry_publish_options o = {
        .n_tokens = n_tokens, .tag = tag, .notify = true};

    if (getrandom(tag, sizeof tag, 0) != (ssize_t)sizeof tag)
        failed("getrandom");
    for (unsigned i = 0; i < sizeof tag; i++)
        snprintf(tag_text + 2 * i, 3, "%02x", tag[i]);
    for (unsigned i = 0; i < s->n_ranks; i++) {
        struct rank *r = &s->ranks[i];

        r->retired = r->consumed = 0;
        ok(r->h,
           kvferry_publish(r->h, r->layout, id, s->blocks, s->l.n_groups, &o,
                           i == 0 ? out : NULL),
           "publish");
    }
}

static void on_pulled(struct kvferry *h, void *user,
                      const struct kvferry_result *res)
{
    struct rank *r = user;

    (void)h;
    r->done = true;
    r->status = res->status;
    r->bytes = 0;
    snprintf(r->message, sizeof r->message, "%s", res->message);
    if (res->status != 0)
        return;
    r->bytes = res->pull->bytes;
    snprintf(r->transport, sizeof r->transport, "%s", res->pull->transport);
}

/* All receivers at the same time, and all by that transport: with it alone in
 * the configuration a link that is coming up, and memory that is not registered
 * with the device yet, are waited for. */
static void pull(struct side *s, const struct kvferry_pull_options *o)
{
    for (unsigned i = 0; i < s->n_ranks; i++) {
        struct rank *r = &s->ranks[i];
        uint64_t ticket;

        r->done = false;
        ok(r->h,
           kvferry_pull_async(r->h, r->layout, s->blocks, s->l.n_groups, o,
                              on_pulled, r, &ticket),
           "pull");
    }
    for (unsigned i = 0; i < s->n_ranks; i++) {
        struct rank *r = &s->ranks[i];

        while (!r->done)
            if (kvferry_wait(r->h, -1) < 0)
                failed("receiver %u: %s", i, kvferry_error(r->h));
        if (r->status != 0)
            failed("receiver %u: %s: %s", i, kvferry_status_name(r->status),
                   r->message);
        if (r->bytes > 0 && strcmp(r->transport, transport) != 0)
            failed("receiver %u: by %s", i, r->transport);
        if (r->bytes < r->wanted || r->bytes > r->own)
            failed("receiver %u: %llu bytes, not %llu to %llu", i,
                   (unsigned long long)r->bytes, (unsigned long long)r->wanted,
                   (unsigned long long)r->own);
    }
}

static void wait_retired(struct side *s)
{
    for (unsigned i = 0; i < s->n_ranks; i++) {
        struct rank *r = &s->ranks[i];

        for (unsigned n = 0; r->retired == 0 && n < 3000; n++)
            kvferry_wait(r->h, 10);
        if (r->retired != 1 || r->consumed != 1)
            failed("sender %u: retired %u times, consumed %u times", i,
                   r->retired, r->consumed);
    }
}

static void move(struct side *p, struct side *d, bool by_handle)
{
    struct kvferry_handle handle;
    struct kvferry_pull_options o = {.timeout_ms = 30000};

    prepare(p);
    prepare(d);
    publish(p, name, &handle);
    if (by_handle) {
        o.handle = &handle;
    } else {
        o.request_id = name;
        o.from_fields = 1;
    }
    pull(d, &o);
    check(d);
    check(p);
}

static void run_case(struct side *p, struct side *d)
{
    bool by_handle = number() != 0;

    read_side(p, 0);
    read_side(d, 1);
    for (unsigned i = 0; i < p->n_ranks; i++)
        begin(p, i);
    for (unsigned i = 0; i < d->n_ranks; i++)
        begin(d, i);
    move(p, d, by_handle);
    wait_retired(p);
    check(d); /* nothing came after the answer */
    for (unsigned i = 0; i < d->n_ranks; i++) {
        n_pulls++;
        n_none += d->ranks[i].bytes == 0;
        end(&d->ranks[i]);
    }
    for (unsigned i = 0; i < p->n_ranks; i++)
        end(&p->ranks[i]);
}

int main(int argc, char **argv)
{
    static struct side p, d;
    unsigned n = 0;
    char *text, *w;

    if (argc != 3) {
        fprintf(stderr, "usage: blocks FILE TRANSPORT\n");
        return 2;
    }
    transport = argv[2];
    load(argv[1]);
    text = words;
    for (w = strtok_r(text, " \n", &words); w != NULL;
         w = strtok_r(NULL, " \n", &words)) {
        if (strcmp(w, "case") != 0)
            failed("'%s' where a case should begin", w);
        name = word();
        n_tokens = number();
        run_case(&p, &d);
        n++;
    }
    printf("BLOCKS OK cases=%u pulls=%u empty=%u\n", n, n_pulls, n_none);
    free(text);
    return 0;
}
