/* See fake_daemon.h. */
#include "fake_daemon.h"

#include "memory/segment.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zmq.h>

#define POOL (1u << 20)

static void make_pool(struct fake *f)
{
    struct kvf_segment_header *p;

    f->pool_size = POOL;
    f->pool_fd = memfd_create("fake", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (f->pool_fd < 0 || ftruncate(f->pool_fd, POOL) != 0)
        abort();
    fcntl(f->pool_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW);
    f->pool =
        mmap(NULL, POOL, PROT_READ | PROT_WRITE, MAP_SHARED, f->pool_fd, 0);
    p = (void *)f->pool;
    memcpy(p->magic, KVF_SEGMENT_MAGIC, 8);
    p->version = 1;
    p->header_size = KVF_SEGMENT_HEADER;
    memcpy(p->incarnation, f->incarnation, 16);
    p->size = POOL;
    f->next = KVF_SEGMENT_HEADER;
}

static void write_path(struct fake *f, struct kvf_mpw *w)
{
    char path[64];

    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)getpid(), f->pool_fd);
    kvf_mpw_kv_str(w, "path", path);
}

static unsigned hello(struct fake *f, struct kvf_mpw *w,
                      const msgpack_object *map)
{
    f->hellos++;
    f->unmapped += kvf_mp_get(map, "unmapped") != NULL;
    kvf_mpw_kv_str(w, "server", "fake");
    kvf_mpw_kv_bin(w, "incarnation", f->incarnation, 16);
    kvf_mpw_kv_bin(w, "session", f->incarnation, 16);
    kvf_mpw_str(w, "pool");
    kvf_mpw_map(w, 2);
    write_path(f, w);
    kvf_mpw_kv_u64(w, "size", f->pool_size);
    kvf_mpw_str(w, "limits");
    kvf_mpw_map(w, 1);
    kvf_mpw_kv_u64(w, "inline_max", 1024);
    return 5;
}

static unsigned put(struct fake *f, struct kvf_mpw *w,
                    const msgpack_object *map, const void *data, size_t len)
{
    const char *key;
    size_t n;

    kvf_mp_str(map, "key", 1, 63, &key, &n, NULL);
    memcpy(f->stored_key, key, n);
    f->stored_key[n] = '\0';
    f->inline_len = data != NULL ? len : 0;
    if (data != NULL)
        memcpy(f->inline_data, data, len);
    kvf_mpw_kv_u64(w, "size", data != NULL ? len : f->stored_len);
    kvf_mpw_kv_u64(w, "generation", 7);
    return 2;
}

static unsigned got(struct fake *f, struct kvf_mpw *w)
{
    kvf_mpw_kv_u64(w, "generation", 7);
    kvf_mpw_kv_str(w, "transport", "shm");
    if (f->inline_len != 0) {
        kvf_mpw_kv_u64(w, "size", f->inline_len);
        return 3;
    }
    kvf_mpw_kv_u64(w, "size", f->stored_len);
    kvf_mpw_kv_u64(w, "buffer", 99);
    kvf_mpw_str(w, "segments");
    kvf_mpw_array(w, 2); /* in two pieces, to see that they are joined */
    kvf_mpw_map(w, 3);
    write_path(f, w);
    kvf_mpw_kv_u64(w, "offset", f->stored_at);
    kvf_mpw_kv_u64(w, "length", 1);
    kvf_mpw_map(w, 3);
    write_path(f, w);
    kvf_mpw_kv_u64(w, "offset", f->stored_at + 1);
    kvf_mpw_kv_u64(w, "length", f->stored_len - 1);
    return 5;
}

/* ---- push, windows ------------------------------------------------------ */

static unsigned expose(struct fake *f, struct kvf_mpw *w,
                       const msgpack_object *map)
{
    uint64_t region;

    kvf_mpw_kv_u64(w, "window", 5);
    if (kvf_mp_u64(map, "region", 0, UINT64_MAX, &region, NULL) == 1) {
        kvf_mpw_kv_u64(w, "region", region);
        kvf_mpw_kv_u64(w, "size", 4096);
        return 3;
    }
    kvf_mp_u64(map, "size", 1, POOL, &f->window_size, NULL);
    f->window_at = f->next;
    f->next += f->window_size;
    kvf_mpw_kv_u64(w, "buffer", 44);
    kvf_mpw_kv_u64(w, "offset", f->window_at + f->window_lie);
    kvf_mpw_kv_u64(w, "size", f->window_size);
    return 4;
}

static void transferred(struct kvf_mpw *w, uint64_t size)
{
    kvf_mpw_kv_u64(w, "size", size);
    kvf_mpw_kv_u64(w, "generation", 11);
    kvf_mpw_kv_str(w, "transport", "tcp");
    kvf_mpw_kv_u64(w, "attempts", 2);
    kvf_mpw_str(w, "timing");
    kvf_mpw_map(w, 1);
    kvf_mpw_kv_u64(w, "total_us", 77);
}

/* The segments lie one after the other from stored_at on (alloc's place). */
static unsigned access_window(struct fake *f, struct kvf_mpw *w,
                              const msgpack_object *map, bool write)
{
    const msgpack_object *a;
    uint64_t at = 0, sum = 0, n;
    uint8_t *there;

    kvf_mp_u64(map, "target_offset", 0, POOL, &at, NULL);
    kvf_mp_array(map, "segments", 64, &a, NULL);
    there = f->pool + f->window_at + at;
    for (uint32_t i = 0; i < a->via.array.size; i++) {
        uint64_t offset = 0;
        uint8_t *here = f->pool + f->stored_at;

        n = f->stored_len;
        kvf_mp_u64(&a->via.array.ptr[i], "offset", 0, POOL, &offset, NULL);
        kvf_mp_u64(&a->via.array.ptr[i], "length", 1, POOL, &n, NULL);
        if (write)
            memcpy(there + sum, here + offset, n);
        else
            memcpy(here + offset, there + sum, n);
        sum += n;
    }
    transferred(w, sum);
    return 5;
}

static unsigned push(struct fake *f, struct kvf_mpw *w, size_t len)
{
    transferred(w, len != 0 ? len : f->stored_len);
    return 5;
}

/* The event that the owner of a window gets; here it is the same client. */
static void send_written(void *sock, const void *who, size_t who_len,
                         const void *notify, size_t len)
{
    struct kvf_mpw w;

    kvf_mpw_init(&w);
    kvf_mpw_map(&w, 3);
    kvf_mpw_kv_str(&w, "event", "written");
    kvf_mpw_kv_u64(&w, "window", 5);
    kvf_mpw_kv_bin(&w, "notify", notify, len);
    zmq_send(sock, who, who_len, ZMQ_SNDMORE);
    zmq_send(sock, w.buf.data, w.buf.size, 0);
    kvf_mpw_fini(&w);
}

/* ---- layouts ------------------------------------------------------------ */

static unsigned publish(struct fake *f, struct kvf_mpw *w)
{
    kvf_mpw_str(w, "handle");
    kvf_mpw_map(w, 5);
    kvf_mpw_kv_str(w, "request_id", "req-1");
    kvf_mpw_kv_bin(w, "tag", "0123456789abcdef", 16);
    kvf_mpw_kv_str(w, "source_host", "10.0.0.7");
    kvf_mpw_kv_u64(w, "source_port", 50001);
    kvf_mpw_kv_bin(w, "incarnation", f->incarnation, 16);
    return 1;
}

static unsigned pull(struct kvf_mpw *w)
{
    transferred(w, 0);
    kvf_mpw_kv_u64(w, "bytes", 8192);
    kvf_mpw_kv_u64(w, "reads", 3);
    kvf_mpw_str(w, "sources");
    kvf_mpw_array(w, 2);
    kvf_mpw_str(w, "0.2");
    kvf_mpw_str(w, "0.3");
    kvf_mpw_str(w, "filled");
    kvf_mpw_array(w, 1);
    kvf_mpw_map(w, 3);
    kvf_mpw_kv_u64(w, "group", 1);
    kvf_mpw_kv_u64(w, "first_token", 32);
    kvf_mpw_kv_u64(w, "tokens", 17);
    return 9;
}

static void send_reply(void *sock, const void *who, size_t who_len,
                       struct kvf_mpw *w, const void *data, size_t len)
{
    zmq_send(sock, who, who_len, ZMQ_SNDMORE);
    zmq_send(sock, w->buf.data, w->buf.size, len != 0 ? ZMQ_SNDMORE : 0);
    if (len != 0)
        zmq_send(sock, data, len, 0);
}

static bool is(const char *op, size_t n, const char *want)
{
    return strlen(want) == n && memcmp(op, want, n) == 0;
}

static unsigned act(struct fake *f, struct kvf_mpw *w, const char *op, size_t n,
                    const msgpack_object *map, const void *data, size_t len,
                    bool *with_data)
{
    if (is(op, n, "hello"))
        return hello(f, w, map);
    if (is(op, n, "put"))
        return put(f, w, map, data, len);
    if (is(op, n, "expose"))
        return expose(f, w, map);
    if (is(op, n, "push"))
        return push(f, w, len);
    if (is(op, n, "write") || is(op, n, "read"))
        return access_window(f, w, map, op[0] == 'w');
    if (is(op, n, "register")) {
        kvf_mpw_kv_u64(w, "region", f->region);
        return 1;
    }
    if (is(op, n, "layout")) {
        kvf_mpw_kv_u64(w, "layout", 21);
        return 1;
    }
    if (is(op, n, "publish"))
        return publish(f, w);
    if (is(op, n, "pull"))
        return pull(w);
    f->unexposes += is(op, n, "unexpose");
    if (is(op, n, "get")) {
        *with_data = f->inline_len != 0;
        return got(f, w);
    }
    if (is(op, n, "alloc")) {
        f->stored_at = f->next;
        kvf_mp_u64(map, "size", 1, POOL, &f->stored_len, NULL);
        f->next += (f->stored_len + 4095) & ~4095ull;
        kvf_mpw_kv_u64(w, "buffer", 5);
        kvf_mpw_kv_u64(w, "offset", f->stored_at);
        kvf_mpw_kv_u64(w, "size", f->stored_len);
        return 3;
    }
    f->releases += is(op, n, "release");
    f->frees += is(op, n, "free");
    f->byes += is(op, n, "bye");
    f->pings += is(op, n, "ping");
    f->cancels += is(op, n, "cancel");
    return 0;
}

static void answer(struct fake *f, void *sock, zmq_msg_t *m, unsigned frames)
{
    const void *who = zmq_msg_data(&m[0]);
    size_t who_len = zmq_msg_size(&m[0]), n, mark;
    const void *data = frames > 2 ? zmq_msg_data(&m[2]) : NULL;
    bool with_data = false;
    unsigned pairs, status;
    struct kvf_mpw w;
    struct kvf_mp mp;
    const char *op;
    const void *notify;
    uint64_t id = 0;
    size_t len;

    if (kvf_mp_parse(&mp, zmq_msg_data(&m[1]), zmq_msg_size(&m[1]), NULL) != 0)
        return;
    kvf_mp_str(&mp.root, "op", 1, 64, &op, &n, NULL);
    kvf_mp_u64(&mp.root, "id", 0, UINT64_MAX, &id, NULL);
    if (zmq_msg_size(&m[1]) <= sizeof f->last &&
        (is(op, n, "push") || is(op, n, "write") || is(op, n, "read") ||
         is(op, n, "expose") || is(op, n, "layout") || is(op, n, "publish") ||
         is(op, n, "pull"))) {
        f->last_len = zmq_msg_size(&m[1]);
        memcpy(f->last, zmq_msg_data(&m[1]), f->last_len);
    }
    if (is(op, n, "get") && f->stored_key[0] == '\0') {
        f->parked = id;
        kvf_mp_done(&mp);
        return;
    }
    kvf_mpw_init(&w);
    mark = kvf_mpw_map_begin(&w);
    kvf_mpw_kv_u64(&w, "id", id);
    status = atomic_exchange(&f->next_status, 0);
    if (is(op, n, "push"))
        status |= atomic_exchange(&f->push_status, 0);
    while (is(op, n, "expose") && f->hold_expose && !f->stop)
        usleep(1000);
    kvf_mpw_kv_str(&w, "status", kvf_status_name((enum kvf_status)status));
    kvf_mpw_kv_str(&w, "message", "as told");
    pairs = status != 0 ? 0
                        : act(f, &w, op, n, &mp.root, data,
                              frames > 2 ? zmq_msg_size(&m[2]) : 0, &with_data);
    kvf_mpw_map_end(&w, mark, pairs + 3);
    send_reply(sock, who, who_len, &w, f->inline_data,
               with_data ? f->inline_len : 0);
    if (kvf_mp_bin(&mp.root, "notify", 0, 64, &notify, &len, NULL) == 1)
        send_written(sock, who, who_len, notify, len);
    if (is(op, n, "put") && status == 0 && f->parked != 0) {
        kvf_mpw_reset(&w);
        mark = kvf_mpw_map_begin(&w);
        kvf_mpw_kv_u64(&w, "id", f->parked);
        kvf_mpw_kv_str(&w, "status", "OK");
        kvf_mpw_map_end(&w, mark, got(f, &w) + 2);
        send_reply(sock, who, who_len, &w, f->inline_data, f->inline_len);
        f->parked = 0;
    }
    kvf_mpw_fini(&w);
    kvf_mp_done(&mp);
}

static void *run(void *arg)
{
    struct fake *f = arg;
    void *sock = f->sock;

    while (!f->stop) {
        zmq_msg_t m[4];
        unsigned n = 0;
        bool more = true;

        for (; n < 4 && more; n++) {
            zmq_msg_init(&m[n]);
            if (zmq_msg_recv(&m[n], sock, 0) < 0)
                break;
            more = zmq_msg_more(&m[n]);
        }
        if (n >= 2 && !f->silent)
            answer(f, sock, m, n);
        for (unsigned i = 0; i < n; i++)
            zmq_msg_close(&m[i]);
    }
    zmq_close(sock);
    return NULL;
}

void fake_start(struct fake *f, const char *endpoint, unsigned incarnation)
{
    int wait_ms = 20;

    memset(f, 0, sizeof *f);
    snprintf(f->endpoint, sizeof f->endpoint, "%s", endpoint);
    memset(f->incarnation, (int)incarnation, 16);
    make_pool(f);
    f->ctx = zmq_ctx_new();
    f->sock = zmq_socket(f->ctx, ZMQ_ROUTER);
    zmq_setsockopt(f->sock, ZMQ_RCVTIMEO, &wait_ms, sizeof wait_ms);
    zmq_setsockopt(f->sock, ZMQ_LINGER, &wait_ms, sizeof wait_ms);
    if (zmq_bind(f->sock, f->endpoint) != 0)
        abort();
    if (pthread_create(&f->thread, NULL, run, f) != 0)
        abort();
}

void fake_stop(struct fake *f)
{
    f->stop = true;
    pthread_join(f->thread, NULL);
    zmq_ctx_term(f->ctx);
    munmap(f->pool, POOL);
    close(f->pool_fd);
}
