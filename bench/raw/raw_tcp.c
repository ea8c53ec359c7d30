/* How fast blocks can be pulled over loopback tcp: the limit of the tcp
 * transport.
 *
 *   raw_tcp SIZE STREAMS spin|sleep hot|cold [ROUNDS [CONGESTION]]
 *
 * Two processes, a core each. The receiver asks with 16 bytes on every stream,
 * the sender answers with its part of the block; the next block is asked for
 * when the last has come. One thread a side serves all streams, as a daemon
 * does. `spin` polls while bytes are due, `sleep` waits in poll(2). CONGESTION:
 * the kernel's algorithm (reno, cubic, bbr), else the system's own. One JSON
 * line a round; the last block is checked. */
#include "../common.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define STREAMS 16
#define PIECE (1u << 20) /* bytes of one send or recv: other streams wait */

struct ask {
    uint64_t at, n;
};

struct stream {
    int fd;
    struct ask ask;
    unsigned got;  /* bytes of `ask` that are here (sender) */
    uint64_t done; /* payload bytes moved */
};

static struct stream streams[STREAMS];
static unsigned n_streams;
static bool spin;
static char *mem;

static void sleep_for(short events)
{
    struct pollfd pf[STREAMS];

    for (unsigned i = 0; i < n_streams; i++) {
        struct stream *s = &streams[i];
        bool send_side = events == POLLOUT;
        bool due = s->done < s->ask.n && (!send_side || s->got == 16);

        pf[i].fd = due || send_side ? s->fd : -1;
        pf[i].events = due ? events : POLLIN;
    }
    poll(pf, n_streams, -1);
}

/* The number of bytes moved, 0 when it would block. */
static size_t did(ssize_t rc)
{
    if (rc > 0)
        return (size_t)rc;
    if (rc == 0 || (errno != EAGAIN && errno != EINTR))
        exit(0); /* the other side is done */
    return 0;
}

static size_t serve(struct stream *s)
{
    size_t n;

    if (s->got < sizeof s->ask) {
        n = did(recv(s->fd, (char *)&s->ask + s->got, sizeof s->ask - s->got,
                     MSG_DONTWAIT));
        s->got += (unsigned)n;
        s->done = 0;
        return n;
    }
    n = s->ask.n - s->done;
    if (n_streams > 1 && n > PIECE)
        n = PIECE;
    n = did(
        send(s->fd, mem + s->ask.at + s->done, n, MSG_DONTWAIT | MSG_NOSIGNAL));
    s->done += n;
    if (s->done == s->ask.n)
        s->got = 0;
    return n;
}

static void sender(void)
{
    for (;;) {
        size_t moved = 0;

        for (unsigned i = 0; i < n_streams; i++)
            moved += serve(&streams[i]);
        if (moved == 0 && !spin)
            sleep_for(POLLOUT);
    }
}

static void pull(uint64_t at, uint64_t size)
{
    uint64_t part = (size / n_streams + 63) / 64 * 64, left = size;

    for (unsigned i = 0; i < n_streams; i++) {
        struct stream *s = &streams[i];

        s->ask.at = at + i * part;
        s->ask.n = i + 1 < n_streams ? part : size - i * part;
        s->done = 0;
        if (send(s->fd, &s->ask, sizeof s->ask, MSG_NOSIGNAL) != 16)
            bench_die("cannot ask: %s", strerror(errno));
    }
    while (left > 0) {
        uint64_t before = left;

        for (unsigned i = 0; i < n_streams; i++) {
            struct stream *s = &streams[i];
            size_t n = s->ask.n - s->done;

            if (n == 0)
                continue;
            n = did(recv(s->fd, mem + s->ask.at + s->done, n, MSG_DONTWAIT));
            s->done += n;
            left -= n;
        }
        if (left == before && !spin)
            sleep_for(POLLIN);
    }
}

static void choose_congestion(int fd, const char *name)
{
    if (name != NULL && setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name,
                                   (socklen_t)strlen(name)) != 0)
        bench_die("congestion control %s: %s", name, strerror(errno));
}

static void connect_all(int theirs[STREAMS], const char *congestion)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    int l = socket(AF_INET, SOCK_STREAM, 0), one = 1;

    if (l < 0 || bind(l, (void *)&a, len) != 0 || listen(l, STREAMS) != 0 ||
        getsockname(l, (void *)&a, &len) != 0)
        bench_die("cannot listen: %s", strerror(errno));
    for (unsigned i = 0; i < n_streams; i++) {
        streams[i].fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(streams[i].fd, (void *)&a, len) != 0)
            bench_die("cannot connect: %s", strerror(errno));
        theirs[i] = accept(l, NULL, NULL);
        setsockopt(streams[i].fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(theirs[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        choose_congestion(streams[i].fd, congestion);
        choose_congestion(theirs[i], congestion);
    }
    close(l);
}

static void rounds(pid_t kid, uint64_t size, uint64_t arena, int n_rounds,
                   const char *how)
{
    uint64_t turns = bench_turns(size, GIB), at = 0;

    for (int r = -1; r < n_rounds; r++) {
        uint64_t n = r < 0 ? 2 : turns, last = 0;
        uint64_t cpu = bench_cpu(0) + bench_cpu(kid), t0 = bench_now(), ns;
        double gb = (double)(n * size) / 1e9;

        for (uint64_t i = 0; i < n; i++) {
            pull(last = at, size);
            at = at + 2 * size <= arena ? at + size : 0;
        }
        ns = bench_now() - t0;
        cpu = bench_cpu(0) + bench_cpu(kid) - cpu;
        if (bench_check(mem + last, size, 7, last) != UINT64_MAX)
            bench_die("wrong bytes came");
        if (r >= 0)
            printf("{\"bench\":\"tcp\",\"how\":\"x%u %s\",\"size\":%llu,"
                   "\"GBps\":%.3f,\"us\":%.2f,\"cpu_s_per_GB\":%.4f}\n",
                   n_streams, how, (unsigned long long)size,
                   gb * 1e9 / (double)ns, (double)ns / 1e3 / (double)n,
                   (double)cpu / 1e9 / gb);
        fflush(stdout);
    }
}

int main(int argc, char **argv)
{
    uint64_t size, arena;
    int theirs[STREAMS];
    pid_t kid;

    if (argc < 5)
        bench_die("usage: raw_tcp SIZE STREAMS spin|sleep hot|cold "
                  "[ROUNDS [CONGESTION]]");
    size = bench_size(argv[1]);
    n_streams = (unsigned)atoi(argv[2]);
    spin = strcmp(argv[3], "spin") == 0;
    arena = argv[4][0] == 'c' ? (GIB + size - 1) / size * size : size;
    if (n_streams < 1 || n_streams > STREAMS || size < n_streams * 64)
        bench_die("1 to %u streams", STREAMS);
    connect_all(theirs, argc > 6 ? argv[6] : NULL);
    kid = fork();
    if (kid < 0)
        bench_die("cannot fork");
    if (kid == 0)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    bench_pin(kid == 0 ? 0 : 1);
    mem = bench_memory(arena, false);
    for (unsigned i = 0; kid == 0 && i < n_streams; i++) {
        close(streams[i].fd);
        streams[i].fd = theirs[i];
    }
    if (kid == 0) {
        bench_fill(mem, arena, 7, 0);
        sender();
    }
    for (unsigned i = 0; i < n_streams; i++)
        close(theirs[i]);
    rounds(kid, size, arena, argc > 5 ? atoi(argv[5]) : 1, argv[3]);
    kill(kid, SIGKILL);
    waitpid(kid, NULL, 0);
    return 0;
}
