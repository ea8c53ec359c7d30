/* The connection: one DEALER, a monitor that tells when the daemon went away,
 * and one epoll fd that stands for both and for the next deadline.
 *
 * Happy path: kvferry_process receives until nothing is left. ZMQ_FD tells of
 * edges only, and every zmq_send may eat one, so nobody sleeps here before a
 * receive has found nothing after the last send (`quiet`).
 *
 * Failure modes: a connection that is lost ends every outstanding call (ZMQ
 * reconnects silently, but what was asked is gone); what cannot be read is
 * dropped. */
#include "client.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

uint64_t kvfc_now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

void kvfc_arm(struct kvferry *h, uint64_t due_ns)
{
    struct itimerspec it = {{0, 0}, {0, 0}};

    /* An earlier deadline stays armed: it costs one wake-up, while arming
     * anew for every request would cost a system call each. */
    if (due_ns >= h->armed_ns)
        return;
    it.it_value.tv_sec = (time_t)(due_ns / 1000000000ull);
    it.it_value.tv_nsec = (long)(due_ns % 1000000000ull);
    if (it.it_value.tv_sec == 0 && it.it_value.tv_nsec == 0)
        it.it_value.tv_nsec = 1;
    if (timerfd_settime(h->timerfd, TFD_TIMER_ABSTIME, &it, NULL) == 0)
        h->armed_ns = due_ns;
}

static int watch(struct kvferry *h, int fd)
{
    struct epoll_event ev = {.events = EPOLLIN};

    ev.data.fd = fd;
    return epoll_ctl(h->epfd, EPOLL_CTL_ADD, fd, &ev);
}

static int zmq_fd(void *sock)
{
    int fd = -1;
    size_t len = sizeof fd;

    return zmq_getsockopt(sock, ZMQ_FD, &fd, &len) == 0 ? fd : -1;
}

static int set_options(struct kvferry *h)
{
    int zero = 0, interval = 50, interval_max = 1000;

    /* Sends never block and are never dropped: what is outstanding is bounded
     * by the daemon's limit, and the calls' deadlines by ours. */
    return zmq_setsockopt(h->sock, ZMQ_SNDHWM, &zero, sizeof zero) ||
           zmq_setsockopt(h->sock, ZMQ_RCVHWM, &zero, sizeof zero) ||
           zmq_setsockopt(h->sock, ZMQ_LINGER, &zero, sizeof zero) ||
           zmq_setsockopt(h->sock, ZMQ_RECONNECT_IVL, &interval,
                          sizeof interval) ||
           zmq_setsockopt(h->sock, ZMQ_RECONNECT_IVL_MAX, &interval_max,
                          sizeof interval_max);
}

static int open_monitor(struct kvferry *h)
{
    char name[64];
    int zero = 0;

    snprintf(name, sizeof name, "inproc://kvferry-%p", (void *)h);
    if (zmq_socket_monitor(h->sock, name, ZMQ_EVENT_DISCONNECTED) != 0)
        return -1;
    h->mon = zmq_socket(h->ctx, ZMQ_PAIR);
    if (h->mon == NULL)
        return -1;
    zmq_setsockopt(h->mon, ZMQ_LINGER, &zero, sizeof zero);
    return zmq_connect(h->mon, name);
}

static bool disconnected(struct kvferry *h);

int kvfc_conn_open(struct kvferry *h, const char *endpoint, struct kvf_why *why)
{
    h->armed_ns = KVFC_NEVER;
    h->epfd = epoll_create1(EPOLL_CLOEXEC);
    h->timerfd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    h->ctx = zmq_ctx_new();
    h->sock = h->ctx != NULL ? zmq_socket(h->ctx, ZMQ_DEALER) : NULL;
    if (h->epfd < 0 || h->timerfd < 0 || h->sock == NULL ||
        set_options(h) != 0 || open_monitor(h) != 0 ||
        watch(h, h->timerfd) != 0 ||
        watch(h, h->sock_fd = zmq_fd(h->sock)) != 0 ||
        watch(h, h->mon_fd = zmq_fd(h->mon)) != 0)
        return kvf_fail(why, KVF_INTERNAL, "cannot set up a socket: %s",
                        zmq_strerror(errno));
    if (zmq_connect(h->sock, endpoint) != 0)
        return kvf_fail(why, KVF_INVALID, "endpoint %s: %s", endpoint,
                        zmq_strerror(errno));
    /* A pipe wakes its reader only after it was found empty once. */
    disconnected(h);
    return 0;
}

void kvfc_conn_close(struct kvferry *h)
{
    if (h->sock != NULL) {
        zmq_socket_monitor(h->sock, NULL, 0);
        zmq_close(h->sock);
    }
    if (h->mon != NULL)
        zmq_close(h->mon);
    if (h->ctx != NULL)
        while (zmq_ctx_term(h->ctx) != 0 && errno == EINTR)
            ;
    if (h->timerfd >= 0)
        close(h->timerfd);
    if (h->epfd >= 0)
        close(h->epfd);
}

int kvfc_send(struct kvferry *h, const void *head, size_t head_len,
              const void *payload, size_t len)
{
    int more = payload != NULL ? ZMQ_SNDMORE : 0, rc;

    if (head == NULL)
        return kvfc_error(h, -KVF_INTERNAL, "out of memory");
    h->quiet = false;
    do
        rc = zmq_send(h->sock, head, head_len, ZMQ_DONTWAIT | more);
    while (rc < 0 && errno == EINTR);
    if (rc < 0)
        return kvfc_error(h, errno == EAGAIN ? -KVF_BUSY : -KVF_INTERNAL,
                          "cannot send: %s", zmq_strerror(errno));
    if (payload == NULL)
        return 0;
    do
        rc = zmq_send(h->sock, payload, len, ZMQ_DONTWAIT);
    while (rc < 0 && errno == EINTR);
    return rc < 0 ? kvfc_error(h, -KVF_INTERNAL, "cannot send: %s",
                               zmq_strerror(errno))
                  : 0;
}

/* ---- receiving ---------------------------------------------------------- */

static void event(struct kvferry *h, const msgpack_object *map)
{
    const char *name;
    size_t len;
    char text[32];
    char *json;

    if (h->on_event == NULL ||
        kvf_mp_str(map, "event", 1, sizeof text - 1, &name, &len, NULL) != 1)
        return;
    memcpy(text, name, len);
    text[len] = '\0';
    json = kvfc_json(map, false);
    if (json == NULL)
        return;
    h->on_event(h, h->event_user, text, json);
    h->completed++;
    free(json);
}

static int read_status(const msgpack_object *map)
{
    const char *s;
    size_t len;
    int status;

    if (kvf_mp_str(map, "status", 1, 64, &s, &len, NULL) != 1)
        return -(int)KVF_INTERNAL;
    status = kvf_status_parse(s, len);
    return status < 0 ? -(int)KVF_INTERNAL : -status;
}

static void dispatch(struct kvferry *h, zmq_msg_t *head, zmq_msg_t *frame)
{
    struct kvfc_reply r = {.frame = frame};
    struct kvfc_call *c;
    struct kvf_mp mp;
    const char *text;
    uint64_t id;
    size_t len;

    h->last_rx_ns = kvfc_now();
    if (kvf_mp_parse(&mp, zmq_msg_data(head), zmq_msg_size(head), NULL) != 0)
        return;
    if (kvf_mp_get(&mp.root, "event") != NULL) {
        event(h, &mp.root);
    } else if (kvf_mp_u64(&mp.root, "id", 1, UINT64_MAX, &id, NULL) == 1 &&
               (c = kvfc_call_find(h, id)) != NULL) {
        r.map = &mp.root;
        r.status = read_status(r.map);
        if (r.status != 0 &&
            kvf_mp_str(r.map, "message", 0, 65536, &text, &len, NULL) == 1)
            snprintf(r.message, sizeof r.message, "%.*s",
                     (int)(len < 247 ? len : 247), text);
        kvfc_call_reply(h, c, &r);
    }
    kvf_mp_done(&mp);
}

/* One message of up to two frames; further frames are dropped. */
static bool receive(struct kvferry *h)
{
    zmq_msg_t head, frame, rest;
    bool got, more;

    zmq_msg_init(&head);
    zmq_msg_init(&frame);
    got = zmq_msg_recv(&head, h->sock, ZMQ_DONTWAIT) >= 0;
    more = got && zmq_msg_more(&head);
    if (more && zmq_msg_recv(&frame, h->sock, ZMQ_DONTWAIT) >= 0) {
        bool again = zmq_msg_more(&frame);

        while (again) {
            zmq_msg_init(&rest);
            again = zmq_msg_recv(&rest, h->sock, ZMQ_DONTWAIT) >= 0 &&
                    zmq_msg_more(&rest);
            zmq_msg_close(&rest);
        }
    }
    if (got)
        dispatch(h, &head, more ? &frame : NULL);
    zmq_msg_close(&frame);
    zmq_msg_close(&head);
    return got || errno == EINTR;
}

void kvfc_drain(struct kvferry *h)
{
    if (h->quiet)
        return;
    do
        h->quiet = true; /* unless a callback sends */
    while (receive(h));
}

/* The monitor's messages have two frames; only that there was one counts. */
static bool disconnected(struct kvferry *h)
{
    bool lost = false;
    zmq_msg_t m;

    for (;;) {
        int rc;

        zmq_msg_init(&m);
        rc = zmq_msg_recv(&m, h->mon, ZMQ_DONTWAIT);
        zmq_msg_close(&m);
        if (rc >= 0)
            lost = true;
        else if (errno != EINTR)
            return lost;
    }
}

static void lost(struct kvferry *h)
{
    kvfc_session_suspect(h);
    kvfc_calls_fail(h, KVFC_ALL, -KVF_PEER_UNREACHABLE,
                    "the connection to the daemon was lost");
}

void kvfc_conn_look(struct kvferry *h)
{
    /* With calls outstanding their callbacks would run from inside the call
     * that is being started. Just after a reply there is nothing to see, and
     * looking costs a system call. */
    if (h->n_external > 0 ||
        (!h->rehello && kvfc_now() - h->last_rx_ns < KVFC_MS))
        return;
    if (disconnected(h))
        lost(h);
}

static void timer(struct kvferry *h)
{
    uint64_t expirations;

    if (read(h->timerfd, &expirations, sizeof expirations) < 0)
        return;
    h->armed_ns = KVFC_NEVER;
    kvfc_calls_timers(h, kvfc_now());
}

/* Looks at what is ready and does it; timeout in ms as epoll_wait's. */
static int turn(struct kvferry *h, int timeout_ms)
{
    struct epoll_event ev[3];
    int before = h->completed, n;

    kvfc_drain(h);
    if (h->completed != before)
        timeout_ms = 0;
    n = epoll_wait(h->epfd, ev, 3, timeout_ms);
    for (int i = 0; i < n; i++)
        if (ev[i].data.fd == h->sock_fd)
            h->quiet = false;
    kvfc_drain(h); /* replies first: a lost connection ends the rest */
    for (int i = 0; i < n; i++) {
        if (ev[i].data.fd == h->timerfd) {
            timer(h);
        } else if (ev[i].data.fd == h->mon_fd && disconnected(h)) {
            h->quiet = false; /* what came before the end of it */
            kvfc_drain(h);
            lost(h);
        }
    }
    kvfc_drain(h); /* callbacks may have sent */
    return h->completed - before;
}

KVFC_EXPORT int kvferry_fd(const struct kvferry *h)
{
    return h->epfd;
}

KVFC_EXPORT int kvferry_process(struct kvferry *h)
{
    return turn(h, 0);
}

KVFC_EXPORT int kvferry_wait(struct kvferry *h, int timeout_ms)
{
    return turn(h, timeout_ms);
}
