/* Two engines for bench/demo: a sender and a receiver, each a process of its
 * own, each with its own daemon.
 *
 *   demo_engines SENDER_ENDPOINT RECEIVER_ENDPOINT view|copy SIZE[,SIZE...]
 *
 * For each size the receiver asks first (the get waits at the sender's daemon),
 * the sender fills a buffer of the pool and puts it, and the receiver checks
 * every byte. One line a payload on stdout, fields separated by `|`:
 *   size|mode|transport|GB/s of the daemon's transfer|GB/s by the receiver's
 *   clock, from the call of put to the get's reply|ms of that|yes or no: all
 * bytes right What is going on goes to stderr. Failure modes: a failed call,
 * wrong bytes or a lost partner end both processes, with a sentence and exit
 * status 1. */
#include "common.h"
#include "kvferry/kvferry.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAYLOADS 16
#define GIVE_UP_NS 60000000000ull
/* Payloads of each size: the first warms up, the best other one counts. */
#define TIMES 3

static uint64_t sizes[PAYLOADS];
static unsigned n_sizes;
static const char *mode;

static void open_daemon(struct kvferry **h, const char *endpoint,
                        const char *name, kvferry_event_fn on_event, void *user)
{
    struct kvferry_open_options o = {
        .endpoint = endpoint,
        .client = name,
        .on_event = on_event,
        .user = user,
        .timeout_ms = 20000,
    };
    char err[256] = "";
    int rc = kvferry_open(h, &o, err, sizeof err);

    if (rc != 0)
        bench_die("%s cannot reach its daemon at %s: %s: %s", name, endpoint,
                  kvferry_status_name(rc), err);
}

static void need(struct kvferry *h, int rc, const char *what)
{
    if (rc != 0)
        bench_die("%s: %s: %s", what, kvferry_status_name(rc),
                  kvferry_error(h));
}

static uint64_t seed_of(unsigned i, unsigned turn)
{
    return 1000 * i + turn + (mode[0] == 'v' ? 500 : 0);
}

static void key_of(unsigned i, unsigned turn, char out[64])
{
    snprintf(out, 64, "demo-%s-%u-%u:0_1", mode, i, turn);
}

/* The two processes talk through pipes: nanoseconds, one number a message. */
static void tell(int fd, uint64_t value)
{
    if (write(fd, &value, sizeof value) != sizeof value)
        bench_die("the other engine is gone");
}

static uint64_t hear(int fd)
{
    uint64_t value;
    ssize_t n;

    do
        n = read(fd, &value, sizeof value);
    while (n < 0 && errno == EINTR);
    if (n != sizeof value)
        bench_die("the other engine is gone");
    return value;
}

/* ---- the sender --------------------------------------------------------- */

static void on_event(struct kvferry *h, void *user, const char *name,
                     const char *json)
{
    (void)h;
    (void)json;
    if (strcmp(name, "retired") == 0)
        ++*(unsigned *)user;
}

static void send_one(struct kvferry *h, unsigned i, unsigned turn, int to,
                     unsigned *retired)
{
    struct kvferry_put_options o = {.readers = 1, .notify = true};
    struct kvferry_segment seg = {0};
    struct kvferry_buffer b;
    unsigned before = *retired;
    uint64_t put_ns;
    char key[64];

    need(h, kvferry_alloc(h, sizes[i], &b), "the sender asks for a buffer");
    bench_fill(b.data, sizes[i], seed_of(i, turn), 0);
    key_of(i, turn, key);
    seg.id = b.id;
    seg.length = sizes[i];
    put_ns = bench_now();
    need(h, kvferry_put_segments(h, key, &seg, 1, &o, NULL), "put");
    tell(to, put_ns);
    /* The pool holds one of the largest: wait until this one is free. */
    while (*retired == before)
        if (kvferry_wait(h, 1000) < 0 || bench_now() - put_ns > GIVE_UP_NS)
            bench_die("%s was not retired: %s", key, kvferry_error(h));
}

static void sender(const char *endpoint, int to, int from)
{
    unsigned retired = 0;
    struct kvferry *h;

    open_daemon(&h, endpoint, "demo sender", on_event, &retired);
    for (unsigned i = 0; i < n_sizes; i++)
        for (unsigned turn = 0; turn < TIMES; turn++) {
            hear(from); /* the receiver's get is on its way */
            send_one(h, i, turn, to, &retired);
        }
    kvferry_close(h);
}

/* ---- the receiver ------------------------------------------------------- */

struct row {
    double daemon_ns, clock_ns;
    char transport[16];
    struct kvferry_payload *payload;
    int status;
    uint64_t done_ns;
    bool done;
};

static void got(struct kvferry *h, void *user, const struct kvferry_result *r)
{
    struct row *row = user;

    (void)h;
    row->done = true;
    row->done_ns = bench_now();
    row->status = r->status;
    row->payload = r->payload;
    if (r->status != 0)
        bench_die("get: %s: %s", kvferry_status_name(r->status), r->message);
}

static void check(const struct kvferry_payload *p, unsigned i, unsigned turn)
{
    const struct kvferry_piece *piece;
    unsigned n = kvferry_payload_pieces(p, &piece);
    uint64_t at = 0, bad;

    for (unsigned k = 0; k < n; k++) {
        bad = bench_check(piece[k].data, piece[k].length, seed_of(i, turn), at);
        if (bad != UINT64_MAX)
            bench_die("WRONG BYTES: %s by %s differs from byte %llu on",
                      bench_size_text(sizes[i]), mode, (unsigned long long)bad);
        at += piece[k].length;
    }
    if (at != sizes[i])
        bench_die("%llu bytes came, not %s", (unsigned long long)at,
                  bench_size_text(sizes[i]));
}

static void receive_one(struct kvferry *h, unsigned i, unsigned turn, int to,
                        int from, struct row *best)
{
    struct kvferry_get_options o = {.mode = mode[0] == 'v' ? KVFERRY_VIEW
                                                           : KVFERRY_COPY,
                                    .timeout_ms = 60000};
    struct kvferry_timing timing;
    struct row row = {0};
    uint64_t put_ns;
    char key[64];

    key_of(i, turn, key);
    need(h, kvferry_get_async(h, key, &o, got, &row, NULL), "get");
    need(h, kvferry_ping(h), "ping"); /* the daemon has taken the get */
    tell(to, 1);
    while (!row.done) /* at its timeout at the latest */
        kvferry_wait(h, 1000);
    put_ns = hear(from);
    kvferry_payload_timing(row.payload, &timing);
    row.daemon_ns = (double)timing.transfer_us * 1e3;
    row.clock_ns = row.done_ns > put_ns ? (double)(row.done_ns - put_ns) : 0;
    snprintf(row.transport, sizeof row.transport, "%s",
             kvferry_payload_transport(row.payload));
    check(row.payload, i, turn);
    kvferry_release(&row.payload);
    if (turn == 1 || (turn > 1 && row.clock_ns < best->clock_ns))
        *best = row;
}

static void print_rate(uint64_t size, double ns)
{
    if (ns < 1e3) /* nothing moved, or too fast for the clock */
        printf("|-");
    else
        printf("|%.1f", (double)size / ns);
}

static void receiver(const char *endpoint, int to, int from)
{
    struct kvferry *h;

    open_daemon(&h, endpoint, "demo receiver", NULL, NULL);
    for (unsigned i = 0; i < n_sizes; i++) {
        struct row row = {0};

        fprintf(stderr, "  %s by %s ", bench_size_text(sizes[i]), mode);
        for (unsigned turn = 0; turn < TIMES; turn++) {
            receive_one(h, i, turn, to, from, &row);
            fputc('.', stderr);
        }
        fprintf(stderr, " %.2f ms by %s, every byte right\n",
                row.clock_ns / 1e6, row.transport);
        printf("%s|%s|%s", bench_size_text(sizes[i]), mode, row.transport);
        print_rate(sizes[i], mode[0] == 'v' ? 0 : row.daemon_ns);
        print_rate(sizes[i], mode[0] == 'v' ? 0 : row.clock_ns);
        printf("|%.2f|yes\n", row.clock_ns / 1e6);
        fflush(stdout);
    }
    kvferry_close(h);
}

static void parse_sizes(char *list)
{
    char *text;

    while ((text = strsep(&list, ",")) != NULL && n_sizes < PAYLOADS)
        sizes[n_sizes++] = bench_size(text);
}

int main(int argc, char **argv)
{
    int a[2], b[2], status = 0;
    pid_t kid;

    if (argc != 5 ||
        (strcmp(argv[3], "view") != 0 && strcmp(argv[3], "copy") != 0))
        bench_die("usage: demo_engines SENDER_ENDPOINT RECEIVER_ENDPOINT "
                  "view|copy SIZE[,SIZE...]");
    mode = argv[3];
    parse_sizes(argv[4]);
    signal(SIGPIPE, SIG_IGN);
    if (pipe(a) != 0 || pipe(b) != 0 || (kid = fork()) < 0)
        bench_die("cannot start two processes: %s", strerror(errno));
    if (kid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(a[0]);
        close(b[1]);
        sender(argv[1], a[1], b[0]);
        return 0;
    }
    close(a[1]);
    close(b[0]);
    receiver(argv[2], b[1], a[0]);
    if (waitpid(kid, &status, 0) != kid || status != 0)
        bench_die("the sender failed");
    return 0;
}
