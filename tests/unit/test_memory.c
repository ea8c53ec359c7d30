/* The pool's segment, mappings of what others offer, copies, buffers and
 * regions. */
#include "base/log.h"
#include "base/rng.h"
#include "memory/buffer.h"
#include "memory/copy.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MIB (1ull << 20)

static const struct kvf_id incarnation = {"0123456789abcde"};

static struct kvf_segment make_segment(uint64_t size)
{
    struct kvf_segment s;
    struct kvf_why why = {0};

    if (kvf_segment_create(&s, size, &incarnation, &why) != 0)
        fail_msg("%s", why.text);
    return s;
}

/* ---- segment ------------------------------------------------------------ */

static void segment_is_sealed_and_backed(void **state)
{
    struct kvf_segment s = make_segment(3 * MIB + 5);
    struct kvf_segment_header h;
    struct stat st;
    int seals = fcntl(s.fd, F_GET_SEALS), want;

    (void)state;
    want = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    assert_int_equal(seals & want, want);
    assert_int_equal(s.size, 3 * MIB + 4096);
    assert_int_equal(ftruncate(s.fd, 4096), -1);
    assert_int_equal(ftruncate(s.fd, (off_t)(8 * MIB)), -1);
    assert_true(fcntl(s.fd, F_GETFD) & FD_CLOEXEC);
    assert_int_equal(stat(s.path, &st), 0); /* through /proc, as others do */
    assert_int_equal(st.st_size, s.size);
    assert_int_equal(st.st_ino, s.ino);
    assert_int_equal(st.st_dev, s.dev);
    assert_true((uint64_t)st.st_blocks * 512 >= s.size);
    memcpy(&h, s.base, sizeof h);
    assert_memory_equal(h.magic, KVF_SEGMENT_MAGIC, 8);
    assert_int_equal(h.version, 1);
    assert_int_equal(h.header_size, 4096);
    assert_int_equal(h.size, s.size);
    assert_int_equal(h.page_size, s.page_size);
    assert_int_equal(h.pid, getpid());
    assert_memory_equal(h.incarnation, incarnation.b, KVF_ID_LEN);
    s.base[s.size - 1] = 1;
    kvf_segment_destroy(&s);
    assert_int_equal(s.fd, -1);
    assert_int_not_equal(stat(s.path, &st), 0);
}

static void segment_refuses_with_a_remedy(void **state)
{
    struct kvf_segment s;
    struct kvf_why why = {0};

    (void)state;
    assert_int_equal(kvf_segment_create(&s, 4096, &incarnation, &why),
                     -KVF_INVALID);
    assert_int_equal(kvf_segment_create(&s, UINT64_MAX, &incarnation, &why),
                     -KVF_INVALID);
    assert_int_equal(kvf_segment_create(&s, 1ull << 55, &incarnation, &why),
                     -KVF_NO_SPACE);
    assert_non_null(strstr(why.text, "memory_pool_size"));
}

static char tapped[4096];

static void tap(void *arg, const char *line)
{
    (void)arg;
    if (strstr(line, "ulimit -l") != NULL)
        snprintf(tapped, sizeof tapped, "%s", line);
}

/* A process that may lock 64 KiB and has no privilege to lock more. */
static int without_lock_rights(void)
{
    struct rlimit rl = {65536, 65536};
    struct kvf_segment s;

    if (setrlimit(RLIMIT_MEMLOCK, &rl) != 0 ||
        (geteuid() == 0 && setuid(65534) != 0))
        return 1;
    kvf_log_tap(tap, NULL);
    if (kvf_segment_create(&s, MIB, &incarnation, NULL) != 0)
        return 2;
    if (s.locked)
        return 3;
    if (strstr(tapped, "is 64 KiB, 1024 needed") == NULL)
        return 4;
    kvf_segment_destroy(&s);
    return 0;
}

static void mlock_refused_is_a_warning(void **state)
{
    pid_t pid;
    int status;

    (void)state;
#if defined(__SANITIZE_ADDRESS__)
    print_message("mlock_refused_is_a_warning: skipped, the address sanitizer "
                  "makes mlock do nothing\n");
    skip();
#endif
    pid = fork();
    if (pid == 0)
        _exit(without_lock_rights());
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* ---- map cache ---------------------------------------------------------- */

static struct kvf_map_expect expect_of(const struct kvf_segment *s)
{
    return (struct kvf_map_expect){.size = s->size,
                                   .has_header = true,
                                   .incarnation = incarnation,
                                   .has_inode = true,
                                   .dev = s->dev,
                                   .ino = s->ino};
}

static void map_shares_and_keeps(void **state)
{
    struct kvf_segment s = make_segment(MIB), s2 = make_segment(MIB);
    struct kvf_map_cache *mc = kvf_map_cache_create(1);
    struct kvf_map_expect x = expect_of(&s), x2 = expect_of(&s2);
    struct kvf_mapping *a, *b, *c;
    uint8_t *where;

    (void)state;
    strcpy((char *)s.base + 8192, "payload");
    assert_int_equal(kvf_map_open(mc, s.path, &x, &a, NULL), 0);
    assert_string_equal((char *)a->base + 8192, "payload");
    assert_int_equal(a->fd, -1);
    assert_int_equal(kvf_map_open(mc, s.path, &x, &b, NULL), 0);
    assert_ptr_equal(a, b);
    assert_int_equal(a->refs, 2);
    where = a->base;
    kvf_map_release(a);
    kvf_map_release(b);
    assert_int_equal(kvf_map_count(mc), 1); /* idle, kept */
    assert_int_equal(kvf_map_open(mc, s.path, &x, &a, NULL), 0);
    assert_ptr_equal(a->base, where);
    assert_int_equal(kvf_map_open(mc, s2.path, &x2, &c, NULL), 0);
    assert_int_equal(kvf_map_count(mc), 2);
    kvf_map_release(a);
    kvf_map_release(c); /* only one idle mapping stays, the younger one */
    assert_int_equal(kvf_map_count(mc), 1);
    assert_int_equal(kvf_map_open(mc, s2.path, &x2, &b, NULL), 0);
    assert_ptr_equal(b, c);
    kvf_map_release(b);
    kvf_map_cache_trim(mc);
    assert_int_equal(kvf_map_count(mc), 0);
    kvf_map_cache_destroy(mc);
    kvf_segment_destroy(&s);
    kvf_segment_destroy(&s2);
}

static void check_map(struct kvf_map_cache *mc, const char *path,
                      const struct kvf_map_expect *x, int want)
{
    struct kvf_mapping *m = NULL;
    struct kvf_why why = {0};
    int rc = kvf_map_open(mc, path, x, &m, &why);

    if (rc != want)
        fail_msg("%s: %d instead of %d: %s", path, rc, want, why.text);
    if (rc == 0)
        kvf_map_release(m);
    else
        assert_true(why.text[0] != '\0' && m == NULL);
}

static void map_refuses_what_was_not_told(void **state)
{
    struct kvf_segment s = make_segment(MIB);
    struct kvf_map_cache *mc = kvf_map_cache_create(4);
    struct kvf_map_expect x;
    char path[64];
    int fd, p[2];

    (void)state;
    for (int warm = 0; warm < 2; warm++) { /* also when it is cached */
        x = expect_of(&s);
        x.size -= 4096;
        check_map(mc, s.path, &x, -KVF_STALE);
        x = expect_of(&s);
        x.size += 4096;
        check_map(mc, s.path, &x, -KVF_STALE);
        x = expect_of(&s);
        x.ino++;
        check_map(mc, s.path, &x, -KVF_STALE);
        x = expect_of(&s);
        x.incarnation.b[3] ^= 1;
        check_map(mc, s.path, &x, -KVF_STALE);
        x = expect_of(&s);
        check_map(mc, s.path, &x, 0);
    }
    s.base[0] ^= 1;
    check_map(mc, s.path, &x, -KVF_STALE);
    s.base[0] ^= 1;

    x = (struct kvf_map_expect){.size = 4096};
    check_map(mc, "/etc/passwd", &x, -KVF_STALE);
    check_map(mc, "/proc/1/fd/../../../etc/passwd", &x, -KVF_STALE);
    check_map(mc, "/proc/self/fd/1", &x, -KVF_STALE);
    check_map(mc, "/proc/1/fd/", &x, -KVF_STALE);
    check_map(mc, "/proc/1/fd/1/", &x, -KVF_STALE);
    check_map(mc, "/proc/12345678901/fd/1", &x, -KVF_STALE);
    check_map(mc, "", &x, -KVF_STALE);
    check_map(mc, "/proc/4294967295/fd/1", &x, -KVF_UNSUPPORTED);

    fd = memfd_create("open", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_int_equal(ftruncate(fd, 8192), 0);
    snprintf(path, sizeof path, "/proc/%d/fd/%d", getpid(), fd);
    check_map(mc, path, &x, -KVF_STALE); /* could shrink */
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
    check_map(mc, path, &x, 0);
    x.has_header = true;
    x.size = 8192;
    check_map(mc, path, &x, -KVF_STALE); /* no pool */
    close(fd);
    assert_int_equal(pipe(p), 0);
    snprintf(path, sizeof path, "/proc/%d/fd/%d", getpid(), p[0]);
    check_map(mc, path, &x, -KVF_STALE);
    close(p[0]);
    close(p[1]);
    kvf_map_cache_destroy(mc);
    kvf_segment_destroy(&s);
}

static void map_grows_with_the_file(void **state)
{
    struct kvf_map_cache *mc = kvf_map_cache_create(4);
    struct kvf_mapping *a, *b;
    int fd = memfd_create("grows", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    (void)state;
    assert_int_equal(ftruncate(fd, 4096), 0);
    assert_int_equal(kvf_map_fd(mc, dup(fd), 4096, true, &a, NULL), 0);
    assert_int_equal(ftruncate(fd, 3 * 4096), 0);
    assert_int_equal(kvf_map_fd(mc, dup(fd), 3 * 4096, true, &b, NULL), 0);
    assert_ptr_not_equal(a, b);
    b->base[3 * 4096 - 1] = 7;
    b->base[0] = 9;
    assert_int_equal(a->base[0], 9);
    kvf_map_release(a);
    kvf_map_release(b); /* writable ones are not kept */
    assert_int_equal(kvf_map_count(mc), 0);
    assert_int_equal(kvf_map_fd(mc, fd, 4 * 4096, true, &a, NULL), -KVF_DENIED);
    assert_true(fcntl(fd, F_GETFD) >= 0); /* not taken over */
    close(fd);
    kvf_map_cache_destroy(mc);
}

/* ---- copy --------------------------------------------------------------- */

static void copies_are_exact(void **state)
{
    static const size_t lens[] = {0,   1,   63,  64,   65,   255,  256,
                                  257, 319, 511, 1000, 4096, 5003, 70001};
    enum { ROOM = 70001 + 512 };
    uint8_t *src = malloc(ROOM), *dst = malloc(ROOM);
    struct kvf_rng rng;

    (void)state;
    printf("non-temporal copies use %s\n", kvf_copy_kernel());
    kvf_rng_seed(&rng, 7);
    for (size_t i = 0; i < ROOM; i++)
        src[i] = (uint8_t)kvf_rng_next(&rng);
    for (size_t k = 0; k < sizeof lens / sizeof lens[0]; k++) {
        for (int trial = 0; trial < 40; trial++) {
            size_t n = lens[k], so = kvf_rng_below(&rng, 130),
                   off = 64 + kvf_rng_below(&rng, 130);

            memset(dst, 0xee, off + n + 64);
            kvf_copy(dst + off, src + so, n, trial % 4 != 0);
            assert_memory_equal(dst + off, src + so, n);
            for (size_t i = 0; i < 64; i++) {
                assert_int_equal(dst[off - 1 - i], 0xee);
                assert_int_equal(dst[off + n + i], 0xee);
            }
        }
    }
    free(src);
    free(dst);
}

/* ---- buffers ------------------------------------------------------------ */

struct fixture {
    struct kvf_segment seg;
    struct kvf_pool *pool;
    struct kvf_buffers *t;
    unsigned freed;
};

static void count_free(void *arg)
{
    struct fixture *f = arg;

    f->freed++;
}

static void open_fixture(struct fixture *f)
{
    f->freed = 0;
    f->seg = make_segment(2 * MIB);
    f->pool = kvf_pool_create(KVF_SEGMENT_HEADER, f->seg.size, NULL);
    f->t = kvf_buffers_create(&f->seg, f->pool, 0, NULL);
    assert_non_null(f->t);
    kvf_buffers_on_free(f->t, count_free, f);
}

static void close_fixture(struct fixture *f)
{
    kvf_buffers_destroy(f->t);
    assert_int_equal(kvf_pool_bytes_free(f->pool), kvf_pool_size(f->pool));
    kvf_pool_destroy(f->pool);
    kvf_segment_destroy(&f->seg);
}

static void memory_waits_for_pins(void **state)
{
    struct fixture f;
    struct kvf_buffer *b, *c;
    struct kvf_buffer_gauges g;
    struct kvf_list owner;
    uint64_t id;

    (void)state;
    open_fixture(&f);
    kvf_list_init(&owner);
    assert_int_equal(kvf_buffer_alloc(f.t, 5000, KVF_BUF_FILLING, &f, &b, NULL),
                     0);
    kvf_list_push_back(&owner, &b->owner_node);
    id = b->id;
    assert_int_equal(b->size, 5000);
    assert_int_equal(b->capacity, 8192);
    assert_true(b->offset >= KVF_SEGMENT_HEADER);
    assert_ptr_equal(kvf_buffer_ptr(b), f.seg.base + b->offset);
    assert_ptr_equal(kvf_buffer_find(f.t, id), b);
    kvf_buffer_set_state(b, KVF_BUF_PUBLISHED);
    kvf_buffer_pin(b);
    kvf_buffer_pin(b);
    kvf_buffers_gauges(f.t, &g);
    assert_int_equal(g.claimed, 8192);
    assert_int_equal(g.published, 0);
    kvf_buffer_retire(b);
    kvf_buffer_retire(b); /* twice does no harm */
    assert_true(kvf_list_empty(&owner));
    kvf_buffer_unpin(b);
    assert_int_equal(f.freed, 0);
    assert_ptr_equal(kvf_buffer_find(f.t, id), b);
    kvf_buffers_gauges(f.t, &g);
    assert_int_equal(g.draining, 8192);
    kvf_buffer_unpin(b);
    assert_int_equal(f.freed, 1);
    assert_null(kvf_buffer_find(f.t, id));
    assert_int_equal(
        kvf_buffer_alloc(f.t, 5000, KVF_BUF_RECEIVING, &f, &c, NULL), 0);
    assert_true(c->id > id); /* never again the same */
    kvf_buffer_set_state(c, KVF_BUF_HELD);
    assert_int_equal(kvf_buffer_alloc(f.t, 0, KVF_BUF_FILLING, &f, &b, NULL),
                     -KVF_INVALID);
    assert_int_equal(
        kvf_buffer_alloc(f.t, 3 * MIB, KVF_BUF_FILLING, &f, &b, NULL),
        -KVF_TOO_LARGE);
    assert_int_equal(
        kvf_buffer_alloc(f.t, 2 * MIB - 8192, KVF_BUF_FILLING, &f, &b, NULL),
        -KVF_NO_SPACE);
    close_fixture(&f); /* c is still there: forgotten, not lost */
}

static void assert_gauges(const struct fixture *f, struct kvf_buffer *const *v,
                          unsigned n)
{
    struct kvf_buffer_gauges g, w = {0};

    kvf_buffers_gauges(f->t, &g);
    for (unsigned i = 0; i < n; i++) {
        uint64_t c = v[i]->capacity;

        w.filling += v[i]->state == KVF_BUF_FILLING ? c : 0;
        w.receiving += v[i]->state == KVF_BUF_RECEIVING ? c : 0;
        w.held += v[i]->state == KVF_BUF_HELD ? c : 0;
        w.draining += v[i]->state == KVF_BUF_DRAINING ? c : 0;
        if (v[i]->state == KVF_BUF_PUBLISHED)
            *(v[i]->pins > 0 ? &w.claimed : &w.published) += c;
    }
    assert_int_equal(g.filling, w.filling);
    assert_int_equal(g.published, w.published);
    assert_int_equal(g.claimed, w.claimed);
    assert_int_equal(g.draining, w.draining);
    assert_int_equal(g.receiving, w.receiving);
    assert_int_equal(g.held, w.held);
    assert_int_equal(g.buffers, n);
    assert_int_equal(g.size, g.free + g.filling + g.published + g.claimed +
                                 g.draining + g.receiving + g.held);
}

/* One random step on buffer i; returns false when it is gone. */
static bool step(struct kvf_buffer *b, struct kvf_rng *rng)
{
    unsigned left = b->pins;

    switch (kvf_rng_below(rng, 5)) {
    case 0:
    case 1:
        if (b->state == KVF_BUF_FILLING)
            kvf_buffer_set_state(b, KVF_BUF_PUBLISHED);
        else if (b->state == KVF_BUF_RECEIVING)
            kvf_buffer_set_state(b, KVF_BUF_HELD);
        else if (b->state == KVF_BUF_PUBLISHED && left == 0)
            kvf_buffer_set_state(b, KVF_BUF_FILLING);
        return true;
    case 2:
        if (b->state != KVF_BUF_DRAINING)
            kvf_buffer_pin(b);
        return true;
    case 3: {
        bool last = b->state == KVF_BUF_DRAINING && left == 1;

        if (left > 0)
            kvf_buffer_unpin(b);
        return !last;
    }
    default:
        kvf_buffer_retire(b);
        return left > 0;
    }
}

static void gauges_are_the_sums(void **state)
{
    enum { MOST = 64 };
    struct kvf_buffer *v[MOST];
    struct kvf_rng rng;
    struct fixture f;
    unsigned n = 0;

    (void)state;
    open_fixture(&f);
    kvf_rng_seed(&rng, 42);
    for (int i = 0; i < 5000; i++) {
        bool in = kvf_rng_below(&rng, 2) == 0;

        if (n < MOST && kvf_rng_below(&rng, 3) == 0) {
            if (kvf_buffer_alloc(f.t, 1 + kvf_rng_below(&rng, 100000),
                                 in ? KVF_BUF_RECEIVING : KVF_BUF_FILLING, NULL,
                                 &v[n], NULL) == 0)
                n++;
        } else if (n > 0) {
            unsigned k = (unsigned)kvf_rng_below(&rng, n);

            if (!step(v[k], &rng))
                v[k] = v[--n];
        }
        assert_gauges(&f, v, n);
    }
    assert_int_equal(kvf_pool_check(f.pool, NULL), 0);
    assert_true(f.freed > 100);
    close_fixture(&f);
}

static uint64_t real_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* Ids begin at the time of the start, with room for 4 million a ms. */
static void ids_begin_at_the_clock(void **state)
{
    uint64_t before = real_ms(), after;
    struct kvf_buffer *b;
    struct fixture f;

    (void)state;
    open_fixture(&f);
    after = real_ms();
    assert_int_equal(kvf_buffer_alloc(f.t, 1, KVF_BUF_FILLING, NULL, &b, NULL),
                     0);
    assert_true(b->id >> 22 >= before && b->id >> 22 <= after);
    close_fixture(&f);
}

/* ---- regions ------------------------------------------------------------ */

static void regions_wait_for_pins(void **state)
{
    struct kvf_map_cache *mc = kvf_map_cache_create(4);
    struct fixture f;
    struct kvf_mapping *m;
    struct kvf_region *r;
    struct kvf_buffer *b;
    struct stat st;
    uint64_t id;
    int fd = memfd_create("region", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    (void)state;
    open_fixture(&f);
    assert_int_equal(ftruncate(fd, 8192), 0);
    assert_int_equal(kvf_map_fd(mc, fd, 8192, true, &m, NULL), 0);
    assert_int_equal(kvf_region_add(f.t, m, 8193, &f, &r, NULL), -KVF_INVALID);
    assert_int_equal(kvf_region_add(f.t, m, 8000, &f, &r, NULL), 0);
    id = r->id;
    assert_int_equal(kvf_buffer_alloc(f.t, 1, KVF_BUF_FILLING, NULL, &b, NULL),
                     0);
    assert_int_not_equal(b->id, id);
    assert_ptr_equal(kvf_region_find(f.t, id), r);
    assert_null(kvf_buffer_find(f.t, id));
    assert_int_equal(stat(r->path, &st), 0);
    assert_int_equal(st.st_ino, m->ino);
    kvf_region_pin(r);
    kvf_region_retire(r);
    kvf_region_retire(r);
    assert_int_equal(kvf_region_count(f.t), 1);
    m->base[100] = 1; /* still mapped */
    kvf_region_unpin(r);
    assert_int_equal(kvf_region_count(f.t), 0);
    assert_null(kvf_region_find(f.t, id));
    assert_int_equal(kvf_map_count(mc), 0);
    close_fixture(&f);
    kvf_map_cache_destroy(mc);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(segment_is_sealed_and_backed),
        cmocka_unit_test(segment_refuses_with_a_remedy),
        cmocka_unit_test(mlock_refused_is_a_warning),
        cmocka_unit_test(map_shares_and_keeps),
        cmocka_unit_test(map_refuses_what_was_not_told),
        cmocka_unit_test(map_grows_with_the_file),
        cmocka_unit_test(copies_are_exact),
        cmocka_unit_test(memory_waits_for_pins),
        cmocka_unit_test(gauges_are_the_sums),
        cmocka_unit_test(ids_begin_at_the_clock),
        cmocka_unit_test(regions_wait_for_pins),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
