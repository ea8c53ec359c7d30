/* See rig.h. The owner's side resolves into the payload in deliberately small
 * pieces, so that one request needs several. */
#include "rig.h"

#include <dirent.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

const char *const rig_names[RIG_KINDS] = {
    "sim", "shm", "tcp", "tcp streams", "rdma", "rdma late", "rdma device"};

bool rig_has(enum rig_kind kind)
{
    /* Where a device is named it is what is tested: nothing else needs one. */
    return (kind == RIG_RDMA_DEVICE) == (getenv("KVF_RDMA_DEVICE") != NULL);
}

static int resolve(void *arg, void *session, uint64_t claim,
                   const struct kvf_id *token, bool write, uint64_t offset,
                   uint64_t length, struct iovec *iov, unsigned *n_iov,
                   void **pin, struct kvf_why *why)
{
    struct rig *r = arg;
    unsigned n = 0;

    (void)write;
    r->resolves++;
    if (session != r || !kvf_id_equal(token, &(struct kvf_id){{1, 2, 3}}))
        return kvf_fail(why, KVF_DENIED, "token");
    if (claim != r->claim || r->refuse_after == 0)
        return kvf_fail(why, KVF_STALE, "claim");
    if (r->refuse_after > 0)
        r->refuse_after--;
    if (offset > r->size || length > r->size - offset)
        return kvf_fail(why, KVF_INVALID, "range");
    while (length > 0 && n < *n_iov) {
        uint64_t len = length < r->piece ? length : r->piece;

        iov[n++] = (struct iovec){r->payload + offset, len};
        offset += len;
        length -= len;
    }
    *n_iov = n;
    *pin = &r->claims[claim - CLAIM];
    r->pins++;
    return 0;
}

static void unpin(void *arg, void *pin)
{
    struct rig *r = arg;

    assert_in_range((char *)pin - r->claims, 0, r->claim - CLAIM);
    r->pins--;
}

static bool live(void *arg, void *pin)
{
    const struct rig *r = arg;

    return !r->taken_back && pin == &r->claims[r->claim - CLAIM];
}

/* Also ends in the middle of a range now and then. */
static int resolve_runs(void *arg, void *session, uint64_t claim,
                        const struct kvf_id *token, bool write,
                        const struct kvf_range *ranges, unsigned n_ranges,
                        uint64_t skip, struct iovec *iov, unsigned *n_iov,
                        void **pin, struct kvf_why *why)
{
    struct rig *r = arg;
    unsigned n = 0, cap = *n_iov;
    int rc =
        resolve(arg, session, claim, token, write, 0, 0, iov, &n, pin, why);

    if (rc != 0)
        return rc;
    assert_true(n_ranges > 0 && skip < ranges[0].length);
    for (unsigned i = 0; i < n_ranges && n < cap; i++, skip = 0) {
        const struct kvf_range *g = &ranges[i];

        if (g->offset > r->size || g->length > r->size - g->offset) {
            r->pins--;
            return kvf_fail(why, KVF_INVALID, "range");
        }
        for (; skip < g->length && n < cap; n++, skip += r->piece) {
            uint64_t len = g->length - skip;

            iov[n] = (struct iovec){r->payload + g->offset + skip,
                                    len < r->piece ? len : r->piece};
        }
        if (r->resolves % 3 == 0 && n > cap / 2)
            break;
    }
    *n_iov = n;
    return 0;
}

const struct kvf_serve_ops rig_serve = {.resolve = resolve,
                                        .resolve_runs = resolve_runs,
                                        .unpin = unpin,
                                        .live = live};

int rig_fds(void)
{
    DIR *d = opendir("/proc/self/fd");
    int n = 0;

    while (readdir(d) != NULL)
        n++;
    closedir(d);
    return n;
}

static void open_tcp(struct rig *r)
{
    struct kvf_tcp_conf conf = {.streams = r->kind == RIG_TCP ? 1 : 3,
                                .stream_min = MIB,
                                .chunk = MIB,
                                .spin_us = 50,
                                .connect_ms = 1500,
                                .stall_ms = 1000,
                                .max_conns = 64};

    assert_int_equal(kvf_tcp_create(r->reactor, &conf, &rig_serve, r, &r->stats,
                                    &r->owner, NULL),
                     0);
    assert_int_equal(kvf_tcp_create(r->reactor, &conf, &rig_serve, r, &r->stats,
                                    &r->t, NULL),
                     0);
    assert_int_equal(
        kvf_tcp_listen(r->owner, "127.0.0.1", 0, &r->addr.port, NULL), 0);
    strcpy(r->addr.host, "127.0.0.1");
    memset(r->addr.secret, 0x5c, sizeof r->addr.secret);
    assert_int_equal(kvf_tcp_admit(r->owner, r->addr.secret, r, NULL), 0);
}

/* Three segments of one mapping, in an order that is not that of the file. */
static void open_shm(struct rig *r)
{
    uint64_t a = r->size / 3, b = r->size / 2 - a, c = r->size - a - b;
    int fd = dup(r->memfd);

    r->maps = kvf_map_cache_create(0);
    assert_int_equal(kvf_map_fd(r->maps, fd, r->size, true, &r->map, NULL), 0);
    r->segs[0] =
        (struct kvf_remote_seg){.map = r->map, .offset = 0, .length = a};
    r->segs[1] =
        (struct kvf_remote_seg){.map = r->map, .offset = a, .length = b};
    r->segs[2] =
        (struct kvf_remote_seg){.map = r->map, .offset = a + b, .length = c};
    r->remote.segs = r->segs;
    r->remote.n_segs = 3;
    assert_int_equal(kvf_shm_create(r->sched, &r->stats, &r->t, NULL), 0);
}

void rig_open(struct rig *r, enum rig_kind kind, uint64_t size)
{
    *r = (struct rig){
        .kind = kind, .size = size, .refuse_after = -1, .claim = CLAIM};
    r->fds = rig_fds();
    r->piece = 70001;
    r->reactor = kvf_reactor_create(&r->stats, NULL);
    assert_non_null(r->reactor);
    r->sched = kvf_reactor_sched(r->reactor);
    r->memfd = memfd_create("payload", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_int_equal(ftruncate(r->memfd, (off_t)size), 0);
    r->payload =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, r->memfd, 0);
    assert_ptr_not_equal(r->payload, MAP_FAILED);
    for (uint64_t i = 0; i < size; i++)
        r->payload[i] = (uint8_t)(i * 31 + (i >> 11) + 1);
    r->remote =
        (struct kvf_remote){.claim = CLAIM, .token = {{1, 2, 3}}, .size = size};
    r->sim = (struct kvf_sim_plan){
        .payload = r->payload, .size = size, .delay_ns = 20000};
    if (kind == RIG_SHM)
        open_shm(r);
    else if (kind == RIG_SIM)
        assert_int_equal(
            kvf_sim_create(r->sched, &r->stats, &r->sim, &r->t, NULL), 0);
    else if (rig_rdma_kind(kind))
        rig_rdma_open(r);
    else
        open_tcp(r);
    assert_int_equal(rig_link(r, &r->link), 0);
}

static void on_up(struct kvf_link *link)
{
    struct rig *r = link->owner;

    assert_false(r->inside);
    r->ups++;
}

static void on_down(struct kvf_link *link, const struct kvf_why *why)
{
    struct rig *r = link->owner;

    assert_false(r->inside);
    r->downs++;
    r->down_why = *why;
}

static void on_room(struct kvf_link *link)
{
    struct rig *r = link->owner;

    assert_false(r->inside);
    r->rooms++;
}

int rig_link(struct rig *r, struct kvf_link *link)
{
    int rc;

    *link = (struct kvf_link){
        .owner = r, .on_up = on_up, .on_down = on_down, .on_room = on_room};
    r->inside = true;
    rc = kvf_link_open(r->t, link, &r->addr, NULL);
    r->inside = false;
    return rc;
}

void rig_claim_again(struct rig *r)
{
    r->claim++;
    assert_true(r->claim - CLAIM < sizeof r->claims);
    r->remote.claim = r->claim;
}

void rig_until(struct rig *r, const unsigned *flag, unsigned ms)
{
    /* Beside whatever else runs; and the real device is an emulated one. */
    uint64_t patience = r->kind == RIG_RDMA_DEVICE ? 10 : 4;
    uint64_t end = kvf_sched_clock(r->sched) + patience * ms * KVF_NS_PER_MS;

    while (*flag == 0 && kvf_sched_clock(r->sched) < end)
        assert_int_equal(kvf_reactor_once(r->reactor, 10 * KVF_NS_PER_MS, NULL),
                         0);
    assert_int_not_equal(*flag, 0);
}

void rig_turns(struct rig *r, unsigned n)
{
    while (n-- > 0)
        assert_int_equal(kvf_reactor_once(r->reactor, 0, NULL), 0);
}

void rig_close(struct rig *r)
{
    kvf_link_close(&r->link);
    rig_turns(r, 3);
    if (rig_rdma_kind(r->kind))
        rig_rdma_close(r);
    kvf_transport_destroy(r->t);
    kvf_transport_destroy(r->owner);
    assert_int_equal(fake_objects() + fake.misuses, 0);
    assert_int_equal(r->pins, 0);
    if (r->map != NULL) {
        assert_int_equal(r->map->refs, 1);
        kvf_map_release(r->map);
        kvf_map_cache_destroy(r->maps);
    }
    munmap(r->payload, r->size);
    close(r->memfd);
    kvf_reactor_destroy(r->reactor);
    assert_int_equal(rig_fds(), r->fds);
}

static void pull_done(struct kvf_xfer *x, int status, const struct kvf_why *why)
{
    struct pull *p = kvf_container_of(x, struct pull, x);

    assert_false(p->rig->inside);
    assert_int_equal(x->pending, 0);
    p->calls++;
    p->status = status;
    if (why != NULL)
        p->why = *why;
}

static void pull_over(struct pull *p, struct rig *r, bool write,
                      const struct iovec *v, unsigned n)
{
    assert_int_equal(
        kvf_xfer_init(&p->x, r->sched, write, r->size, v, n, pull_done, NULL),
        0);
}

void pull_init(struct pull *p, struct rig *r, bool write)
{
    struct iovec v;

    *p = (struct pull){.rig = r};
    p->mem = calloc(1, r->size);
    rig_register(r, p->mem, r->size);
    v = (struct iovec){p->mem, r->size};
    pull_over(p, r, write, &v, 1);
}

void pull_init_scattered(struct pull *p, struct rig *r, struct kvf_rng *rng,
                         uint64_t max)
{
    unsigned n = 0, cap = (unsigned)(r->size / max) * 8 + 64;
    struct iovec *v = calloc(cap, sizeof *v);

    *p = (struct pull){.rig = r};
    p->mem = calloc(1, r->size);
    rig_register(r, p->mem, r->size);
    for (uint64_t at = 0; at < r->size;) {
        uint64_t len = kvf_rng_below(rng, max + 1);

        if (len > r->size - at || n == cap - 1)
            len = r->size - at;
        v[n++] = (struct iovec){p->mem + at, len};
        at += len;
    }
    pull_over(p, r, false, v, n);
    free(v);
}

void pull_start(struct pull *p, struct kvf_link *link)
{
    p->calls = 0;
    p->rig->inside = true;
    kvf_xfer_start(&p->x, link, &p->rig->remote);
    p->rig->inside = false;
}

void pull_end(struct pull *p)
{
    kvf_xfer_fini(&p->x);
    rig_unregister(p->rig, p->mem);
    free(p->mem);
}
