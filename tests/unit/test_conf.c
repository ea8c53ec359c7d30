/* The configuration: every key with good and bad values, the structure of the
 * file, what several keys must agree on, and the files made from the table. */
#include "conf/conf.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static struct kvf_conf *conf, *other;
static char errors[16384];

/* Parses text; the messages are in `errors`. Returns their number. */
static unsigned parse_into(struct kvf_conf *c, const char *text)
{
    FILE *err = fmemopen(errors, sizeof errors, "w");
    unsigned n = 0;
    int rc;

    assert_non_null(err);
    memset(errors, 0, sizeof errors);
    rc = kvf_conf_parse(c, text, strlen(text), "f", err, &n);
    fclose(err);
    assert_int_equal(rc, n == 0 ? 0 : -KVF_INVALID);
    return n;
}

static unsigned parse(const char *text)
{
    return parse_into(conf, text);
}

static unsigned parse_key(const char *section, const char *key,
                          const char *value)
{
    char text[512];

    snprintf(text, sizeof text, "; head\n\n[%s]\n%s = %s\n", section, key,
             value);
    return parse(text);
}

static char *written(void (*fn)(FILE *out))
{
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);

    assert_non_null(f);
    fn(f);
    fclose(f);
    return text;
}

static char *dump(const struct kvf_conf *c)
{
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);

    assert_non_null(f);
    kvf_conf_dump(c, f);
    fclose(f);
    return text;
}

static char *file(const char *path)
{
    char full[512];
    char *text = calloc(1, 65536);
    FILE *f;

    assert_non_null(text);
    snprintf(full, sizeof full, "%s/%s", KVF_SOURCE_DIR, path);
    f = fopen(full, "re");
    if (f == NULL)
        fail_msg("cannot open %s", full);
    assert_true(fread(text, 1, 65535, f) > 0);
    fclose(f);
    return text;
}

struct row {
    const char *section, *key;
    const char *good[7], *bad[11];
};

static const struct row rows[] = {
    {"worker",
     "cluster",
     {"default", "a", "A-1_b.c"},
     {"", "a b", "a/b", "\xc3\xa4",
      "0123456789012345678901234567890123456789012345678901234567890123"}},
    {"worker", "stage", {"0", "15"}, {"16", "-1", "one", "", "99999999999"}},
    {"worker", "rank", {"0", "63"}, {"64", "1.5", "0x1", "+1"}},
    {"worker", "replica", {"0", "14"}, {"63", "x"}},
    {"worker",
     "engine_endpoint",
     {"auto", "ipc:///run/x.ipc", "tcp://127.0.0.1:5555", "tcp://[::1]:5555",
      "tcp://*:*", "tcp://host-1.lan:*"},
     {"", "udp://x", "ipc://", "ipc://x", "ipc:///", "tcp://127.0.0.1",
      "tcp://127.0.0.1:0", "tcp://127.0.0.1:65536", "tcp://::1:5555",
      "tcp://:5555", "tcp://[127.0.0.1]:1"}},
    {"connector",
     "host",
     {"auto", "127.0.0.1", "::1", "fe80::1%eth0", "node-7.cluster.local", "a",
      "7a"},
     {"", "10.0.0.300", "1.2.3", "-a", "a-", "a..b", "a_b", "a b",
      ":::", "fe80::1%", "1.2.3.4%a"}},
    {"connector",
     "zmq_port",
     {"auto", "1", "50051", "65435"},
     {"0", "65536", "-5", "port", "65436"}},
    {"connector",
     "rpc_port",
     {"auto", "1", "65535", "50051", "50152"},
     {"0", "65536", "x", "50151"}},
    {"connector",
     "protocol",
     {"auto", "shm", "tcp,shm", "rdma , tcp, shm"},
     {"udp", "tcp,udp", "tcp tcp", "tcp,tcp", "", ",", "tcp,", "auto,tcp"}},
    {"connector", "device_name", {"auto", "mlx5_0:1"}, {""}},
    {"connector",
     "memory_pool_size",
     {"1MiB", "1048576", "2304MiB", "1TiB", "1073741824B"},
     {"0", "-1", "12XB", "1 GiB", "1gib", "99999999999999999999999",
      "18014398509481985KiB", "1048575"}},
    {"connector",
     "memory_pool_device",
     {"cpu"},
     {"cuda", "toaster", "", "CPU"}},
    {"connector",
     "get_sub_timeout_ms",
     {"0", "300ms", "30s", "5m", "24h"},
     {"-1", "soon", "25h", "1d", "1.5s"}},
    {"connector", "put_ttl_ms", {"1", "1h", "720h"}, {"0", "721h"}},
    {"connector", "peer_timeout_ms", {"100", "10m"}, {"0", "99", "601s"}},
    {"connector", "session_timeout_ms", {"100", "24h"}, {"x", "99"}},
    {"connector", "drain_ms", {"0", "10m"}, {"-1", "601s"}},
    {"connector", "inline_max", {"0", "16MiB"}, {"big", "17MiB"}},
    {"connector", "linger_us", {"0", "1000"}, {"-1", "1001"}},
    {"connector", "max_frame", {"64KiB", "1GiB"}, {"x", "65535", "2GiB"}},
    {"edge 0->1", "window_size", {"-1", "1", "1GiB"}, {"-2", "0", "x"}},
    {"edge 0->1", "max_inflight", {"1", "65536"}, {"0", "65537"}},
    {"edge 0->1", "from_tp", {"1", "64"}, {"0", "65"}},
    {"edge 0->1", "to_tp", {"1", "64"}, {"-1", "65"}},
    {"tcp", "streams", {"1", "64"}, {"0", "65"}},
    {"tcp", "stream_min", {"1", "1TiB"}, {"0", "2TiB"}},
    {"tcp", "chunk", {"4KiB", "256MiB"}, {"4095", "257MiB"}},
    {"tcp", "spin_us", {"0", "1000"}, {"1001"}},
    {"rdma", "gid_index", {"auto", "0", "255"}, {"256", "-1", "x"}},
    {"rdma", "mtu", {"0", "4096"}, {"4097", "1KiB"}},
    {"rdma", "timeout", {"1", "22"}, {"0", "23"}},
    {"rdma", "retry", {"0", "7"}, {"8"}},
    {"rdma", "rnr_retry", {"0", "7"}, {"8"}},
    {"rdma", "chunk", {"4KiB", "1GiB"}, {"4095", "2GiB"}},
    {"rdma", "burst", {"4KiB", "1GiB"}, {"4095", "2GiB"}},
    {"rdma", "depth", {"1", "256"}, {"0", "257"}},
    {"rdma", "queue", {"8", "4096"}, {"7", "4097"}},
    {"rdma", "signal_every", {"1", "64"}, {"0", "65"}},
    {"rdma", "spin_us", {"0", "1000"}, {"1001"}},
    {"limits", "max_outstanding", {"16384", "1048576"}, {"16383", "1048577"}},
    {"limits", "max_keys", {"1", "268435456"}, {"0", "268435457"}},
    {"limits", "max_tombstones", {"1", "268435456"}, {"0"}},
    {"limits", "max_parked", {"1", "16777216"}, {"0"}},
    {"limits", "max_claims", {"1", "16777216"}, {"0"}},
    {"limits", "max_sessions", {"1", "65536"}, {"0", "65537"}},
    {"limits", "max_peers", {"1", "65536"}, {"0"}},
    {"retry", "attempts", {"1", "100"}, {"0", "101"}},
    {"retry", "backoff_ms", {"1", "2s"}, {"0", "x", "3s"}},
    {"retry", "backoff_max_ms", {"20", "10m"}, {"-3", "19"}},
    {"log",
     "level",
     {"error", "warn", "info", "debug", "trace"},
     {"loud", "1"}},
    {"log", "file", {"stderr", "/var/log/k.log"}, {""}},
};

static void test_every_key(void **state)
{
    (void)state;
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        const struct row *w = &rows[r];

        for (unsigned i = 0; i < 7 && w->good[i] != NULL; i++)
            if (parse_key(w->section, w->key, w->good[i]) != 0)
                fail_msg("%s = %s: %s", w->key, w->good[i], errors);
        for (unsigned i = 0; i < 11 && w->bad[i] != NULL; i++) {
            if (parse_key(w->section, w->key, w->bad[i]) != 1)
                fail_msg("%s = %s: accepted", w->key, w->bad[i]);
            if (strncmp(errors, "f:4: [", 6) != 0 ||
                strstr(errors, w->key) == NULL)
                fail_msg("%s = %s: bad message: %s", w->key, w->bad[i], errors);
        }
    }
}

/* The rows above have every key of the sample, which has every key there is. */
static void test_every_key_is_tried(void **state)
{
    char *text = written(kvf_conf_write_sample), *save = NULL;
    unsigned n = 0;

    (void)state;
    for (char *l = strtok_r(text, "\n", &save); l != NULL;
         l = strtok_r(NULL, "\n", &save)) {
        bool found = false;

        if (*l == '#' || strstr(l, " = ") == NULL)
            continue;
        *strstr(l, " = ") = '\0';
        for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
            found = found || strcmp(rows[r].key, l) == 0;
        if (!found)
            fail_msg("%s is not tried", l);
        n++;
    }
    free(text);
    assert_int_equal(n, sizeof rows / sizeof *rows);
}

static void test_values(void **state)
{
    struct kvf_conf_edge e;

    (void)state;
    assert_int_equal(
        parse("\xef\xbb\xbf[worker]\r\n  cluster=c1 ; a comment\r\nstage = 3 # "
              "x\n[connector]\nprotocol = tcp, shm\nzmq_port = auto\n"
              "get_sub_timeout_ms = 2s\nmemory_pool_size = 3MiB\n"
              "[edge 2->3]\nwindow_size=1KiB\nfrom_tp=2\nto_tp = 4\n"
              "[edge 3->4]\n[peer 4.1.2]\nhost = 10.0.0.7\nport = 50183\n"
              "[worker]\nrank=7\n[log]\nfile = /x;y#z\nlevel = trace"),
        0);
    assert_string_equal(conf->cluster, "c1");
    assert_int_equal(conf->self.stage, 3);
    assert_int_equal(conf->self.rank, 7);
    assert_int_equal(conf->n_protocol, 2);
    assert_int_equal(conf->protocol[0], KVF_PROTO_TCP);
    assert_int_equal(conf->protocol[1], KVF_PROTO_SHM);
    assert_false(conf->protocol_auto);
    assert_int_equal(conf->zmq_port, KVF_PORT_AUTO);
    assert_int_equal(conf->get_sub_timeout_ms, 2000);
    assert_int_equal(conf->memory_pool_size, 3 << 20);
    assert_int_equal(conf->n_edges, 2); /* one without keys counts */
    e = kvf_conf_find_edge(conf, 2, 3);
    assert_int_equal(e.window_size, 1024);
    assert_int_equal(e.from_tp, 2);
    assert_int_equal(e.to_tp, 4);
    assert_int_equal(e.max_inflight, 64);
    e = kvf_conf_find_edge(conf, 9, 10);
    assert_true(e.window_size == -1 && e.from_tp == 1 && e.to_tp == 1);
    assert_int_equal(conf->n_peers, 1);
    assert_int_equal(conf->peer[0].worker.replica, 2);
    assert_string_equal(conf->peer[0].host, "10.0.0.7");
    assert_int_equal(conf->peer[0].port, 50183);
    assert_string_equal(conf->log_file, "/x;y#z");
    assert_int_equal(conf->log_level, KVF_LOG_TRACE);
    /* As in requests, an absent replica is the own one, wherever that stands.
     */
    assert_int_equal(parse("[peer 4.1]\nhost = a\nport = 1\n[peer 4.1.0]\n"
                           "host = b\nport = 2\n[worker]\nreplica = 3\n"),
                     0);
    assert_int_equal(conf->n_peers, 2);
    assert_int_equal(conf->peer[0].worker.replica, 3);
    assert_int_equal(conf->peer[1].worker.replica, 0);
}

static void test_structure(void **state)
{
    static const struct {
        const char *text, *message; /* the first error begins like this */
        unsigned n;
    } bad[] = {
        {"[worker]\nstage\n", "f:2: neither", 1},
        {"stage = 0\n", "f:1: stage: a key before", 1},
        {"[worker\nstage = 0\n", "f:1: neither", 1},
        {"[a]b]\n", "f:1: neither", 1},
        {"[]\n", "f:1: []: no such section", 1},
        {"\n[nonsense]\n", "f:2: [nonsense]: no such section", 1},
        {"[conector]\nhost = auto\n",
         "f:1: [conector]: no such section; did you mean [connector]?", 1},
        {"[connector]\nmemory_pool_sise = 1\n",
         "f:2: [connector] memory_pool_sise: no such key; did you mean "
         "memory_pool_size?",
         1},
        {"[worker]\nstage = 1\n[worker]\nstage = 1\n",
         "f:4: [worker] stage: given twice", 1},
        {"[edge 0->1]\nto_tp = 1\nto_tp = 2\n",
         "f:3: [edge 0->1] to_tp: given twice", 1},
        {"[edge 0-1]\n", "f:1: [edge 0-1]: not an edge", 1},
        {"[edge 0->16]\n", "f:1: [edge 0->16]: not an edge", 1},
        {"[edge 0->1 ]\nx = 1\n", "f:1: [edge 0->1 ]: not an edge", 1},
        {"[edge 0->1]\nhost = x\n", "f:2: [edge 0->1] host: no such key", 1},
        {"[edge 0->1]\nfrom_tp = 3\n\nto_tp = 2\n\n",
         "f:4: [edge 0->1] from_tp = 3, to_tp = 2: no mapping", 1},
        {"[peer x]\nport = 5\n", "f:1: [peer x]: not a worker", 1},
        {"[peer 0]\n", "f:1: [peer 0]: not a worker", 1},
        {"[peer 0.64]\n", "f:1: [peer 0.64]: not a worker", 1},
        {"[peer 0.1.2.3]\n", "f:1: [peer 0.1.2.3]: not a worker", 1},
        {"\n[peer 0.1]\n", "f:2: [peer 0.1.0]: host is missing", 1},
        {"[peer 0.1]\nhost = a\n\n", "f:2: [peer 0.1.0]: port is missing", 1},
        {"[peer 0.1]\nhost = a\nport = 0\n", "f:3: [peer 0.1] port", 1},
        {"[peer 0.1]\nport = 1\nhost = a b\n", "f:3: [peer 0.1] host", 1},
        {"[peer 0.1]\nport = 1\nhost = auto\n", "f:3: [peer 0.1] host", 1},
        {"[peer 0.1]\nhost = a\nport = 1\ncolour = 1\n",
         "f:4: [peer 0.1] colour: no such key", 1},
        {"[peer 0.1]\nhost = a\nport = 1\n[peer 0.1.0]\nport = 1\n",
         "f:5: [peer 0.1.0]: given twice, with", 1},
        {"[peer 0.1]\nhost = a\nport = 1\n[peer 0.1]\nport = 1\n",
         "f:5: [peer 0.1] port: given twice", 1},
        {"[peer]\nhost = a\n", "f:1: [peer]: not a worker", 1},
        {"[edge]\nto_tp = 1\n", "f:1: [edge]: not an edge", 1},
        {"[edges]\nto_tp = 1\n", "f:1: [edges]: no such section", 1},
        {"[worker]\ncluster = a\001b\n", "f:2: a control byte (0x01)", 1},
        {"[worker]\nstage = 0\r1\n", "f:2: a control byte (0x0d)", 1},
        {"[log]\nfile = \033[2J\n", "f:2: a control byte (0x1b)", 1},
        {"[worker]\nstage = x\nrank = y\n[log]\nlevel = z\n", "f:2: [worker]",
         3},
        {"[retry]\nbackoff_max_ms = 5\nattempts = 1\n",
         "f:2: [retry] backoff_max_ms: below backoff_ms", 1},
        {"[connector]\ninline_max = 128KiB\nmax_frame = 64KiB\n",
         "f:3: [connector] inline_max: above max_frame", 1},
    };
    char line[400] = "[log]\nfile = /";

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        unsigned n = parse(bad[i].text);

        if (n != bad[i].n ||
            strncmp(errors, bad[i].message, strlen(bad[i].message)) != 0)
            fail_msg("%s: %u errors: %s", bad[i].text, n, errors);
    }
    memset(line + strlen(line), 'x', 182);
    assert_int_equal(parse(line), 0);
    strcat(line, "x");
    assert_int_equal(parse(line), 1);
    assert_int_equal(kvf_conf_parse(conf, "a\0b", 3, "f", NULL, NULL),
                     -KVF_INVALID);
    assert_int_equal(parse(""), 0);
    assert_int_equal(parse("[worker]"), 0);
}

static void test_port_rule(void **state)
{
    struct kvf_worker w = {1, 2, 3};

    (void)state;
    assert_int_equal(kvf_conf_port(50051, &w), 50051 + 100 + 3072 + 32 + 1);
    assert_int_equal(kvf_conf_port(KVF_PORT_AUTO, &w), 0);
    assert_int_equal(kvf_conf_port(0, &w), 0);
    w = (struct kvf_worker){15, 63, 62};
    assert_int_equal(kvf_conf_port(65535 - 100 - 62 * 1024 - 1023, &w), 65535);
    assert_int_equal(kvf_conf_port(65535 - 100 - 62 * 1024 - 1022, &w), 0);
    w = (struct kvf_worker){16, 0, 0};
    assert_int_equal(kvf_conf_port(1, &w), 0);
    w = (struct kvf_worker){0, 64, 0};
    assert_int_equal(kvf_conf_port(1, &w), 0);
    w = (struct kvf_worker){0, 0, 63};
    assert_int_equal(kvf_conf_port(1, &w), 0);
    /* The message tells the line of one of the keys that make it. */
    assert_int_equal(
        parse("[connector]\nzmq_port = 60000\n[worker]\nreplica = 10\n"), 1);
    assert_non_null(strstr(errors, "f:4: [connector] zmq_port = 60000"));
    assert_non_null(strstr(errors, "up to 55195"));
    assert_int_equal(
        parse("[connector]\nzmq_port = 55195\n[worker]\nreplica = 10\n"), 0);
    /* Of another worker: that may run on another machine. */
    assert_int_equal(parse("[connector]\nrpc_port = 50152\n"), 0);
    assert_int_equal(parse("[connector]\nrpc_port = 50152\n[worker]\n"
                           "stage = 1\n"),
                     1);
}

static void test_dump_reads_back(void **state)
{
    static const char *const texts[] = {
        "",
        "[worker]\nstage = 3\n[edge 3->4]\nto_tp = 2\n[edge 0->3]\n"
        "window_size = 1GiB\n[peer 4.1]\nhost = ::1\nport = 50183\n"
        "[connector]\nmemory_pool_size = 3GiB\nprotocol = tcp,shm\n"
        "rpc_port = 7\n[worker]\nengine_endpoint = tcp://*:*\n[log]\nlevel = "
        "debug\n",
    };

    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        char *first, *second;
        struct kvf_why why;

        assert_int_equal(parse(texts[i]), 0);
        first = dump(conf);
        if (parse_into(other, first) != 0)
            fail_msg("%s", errors);
        second = dump(other);
        assert_string_equal(first, second);
        kvf_conf_reload(conf, other, &why);
        assert_string_equal(why.text, "");
        free(first);
        free(second);
    }
}

static void test_generated_files(void **state)
{
    char *made = written(kvf_conf_write_sample);
    char *there = file("config/kvferryd.ini");
    char *plain, *from_sample;

    (void)state;
    /* conf_gen sample > config/kvferryd.ini */
    assert_string_equal(made, there);
    assert_int_equal(parse(made), 0);
    assert_int_equal(conf->n_edges, 1);
    conf->n_edges = 0;
    kvf_conf_defaults(other);
    plain = dump(other);
    from_sample = dump(conf);
    assert_string_equal(plain, from_sample);
    free(made);
    free(there);
    free(plain);
    free(from_sample);
    /* conf_gen table, between the other paragraphs */
    made = written(kvf_conf_write_markdown);
    there = file("docs/CONFIG.md");
    if (strstr(there, made) == NULL)
        fail_msg("docs/CONFIG.md has not this table:\n%s", made);
    free(made);
    free(there);
}

static void test_examples(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        char name[64];
        char *text;

        snprintf(name, sizeof name, "config/examples/stage%u.ini", i);
        text = file(name);
        if (parse(text) != 0)
            fail_msg("%s: %s", name, errors);
        free(text);
        assert_string_equal(conf->cluster, "demo");
        assert_int_equal(conf->self.stage, i);
        assert_int_equal(kvf_conf_port(conf->zmq_port, &conf->self), 50151 + i);
        assert_int_equal(conf->n_edges, 1);
    }
}

static int endpoint(const char *configured, const char *cluster, bool create,
                    char out[KVF_CONF_TEXT])
{
    struct kvf_worker w = {1, 2, 3};
    struct kvf_why why;

    return kvf_conf_endpoint(configured, cluster, &w, create, out,
                             KVF_CONF_TEXT, &why);
}

static void test_endpoint(void **state)
{
    char out[KVF_CONF_TEXT], dir[200] = "/";
    const size_t tail = strlen("/kvferry-c-s1-r2-p3.ipc");

    (void)state;
    setenv("XDG_RUNTIME_DIR", "/some/where", 1);
    assert_int_equal(endpoint("auto", "c", false, out), 0);
    assert_string_equal(out, "ipc:///some/where/kvferry-c-s1-r2-p3.ipc");
    assert_int_equal(endpoint("ipc:///a", "c", false, out), 0);
    assert_string_equal(out, "ipc:///a");
    assert_int_equal(endpoint("tcp://*:*", "c", false, out), 0);
    assert_string_equal(out, "tcp://*:*");
    memset(dir + 1, 'd', 107 - tail - 1);
    setenv("XDG_RUNTIME_DIR", dir, 1);
    assert_int_equal(endpoint("auto", "c", false, out), 0);
    assert_int_equal(strlen(out), 6 + 107);
    strcat(dir, "d");
    setenv("XDG_RUNTIME_DIR", dir, 1);
    assert_int_equal(endpoint("auto", "c", false, out), -KVF_INVALID);
    /* Not absolute, or not set: the next place. */
    setenv("XDG_RUNTIME_DIR", "relative", 1);
    assert_int_equal(endpoint("auto", "c", false, out), 0);
    assert_null(strstr(out, "relative"));
    unsetenv("XDG_RUNTIME_DIR");
    assert_int_equal(endpoint("auto", "c", false, out), 0);
    snprintf(dir, sizeof dir, "ipc:///tmp/kvferry-%u/", (unsigned)geteuid());
    assert_true(strncmp(out, "ipc:///run/kvferry/", 19) == 0 ||
                strncmp(out, dir, strlen(dir)) == 0);
}

static void test_reload(void **state)
{
    struct kvf_why why;

    (void)state;
    assert_int_equal(parse("[edge 0->1]\nto_tp = 2\n[peer 1.0]\nhost = a\n"
                           "port = 1\n[connector]\nprotocol = tcp\n"),
                     0);
    /* The same keys in another order change nothing. */
    assert_int_equal(parse_into(other,
                                "[connector]\nprotocol = tcp\n[peer 1.0]\n"
                                "port = 1\nhost = a\n[edge 0->1]\nto_tp = 2\n"),
                     0);
    assert_int_equal(kvf_conf_reload(conf, other, &why), 0);
    assert_string_equal(why.text, "");
    assert_int_equal(
        parse_into(other,
                   "[edge 0->1]\nto_tp = 4\nwindow_size = 5\n[edge 1->2]\n"
                   "max_inflight = 3\n[peer 1.0]\nhost = b\nport = 1\n"
                   "[connector]\nprotocol = tcp,shm\nput_ttl_ms = 1s\n"
                   "zmq_port = 2000\n[log]\nlevel = debug\n[retry]\n"
                   "attempts = 9\n[limits]\nmax_keys = 7\n"),
        0);
    assert_int_equal(kvf_conf_reload(conf, other, &why), 4);
    assert_string_equal(why.text, "[connector] zmq_port, [connector] protocol, "
                                  "[edge] to_tp, [peer]");
    assert_int_equal(conf->put_ttl_ms, 1000);
    assert_int_equal(conf->log_level, KVF_LOG_DEBUG);
    assert_int_equal(conf->attempts, 9);
    assert_int_equal(conf->max_keys, 7);
    assert_int_equal(conf->n_edges, 2);
    assert_int_equal(conf->edge[0].window_size, 5);
    assert_int_equal(conf->edge[0].to_tp, 2);
    assert_int_equal(conf->edge[1].max_inflight, 3);
    assert_int_equal(conf->zmq_port, 50051);
    assert_int_equal(conf->n_protocol, 1);
    assert_string_equal(conf->peer[0].host, "a");
    /* An edge that went has the default figures. */
    assert_int_equal(parse_into(other, "[connector]\nprotocol = tcp\n"), 0);
    assert_int_equal(kvf_conf_reload(conf, other, NULL), 2);
    assert_int_equal(conf->edge[0].window_size, -1);
    assert_int_equal(conf->edge[1].max_inflight, 64);
}

static void test_load(void **state)
{
    char path[] = "/tmp/kvf-test-conf-XXXXXX";
    int fd = mkstemp(path);
    unsigned n = 0;

    (void)state;
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "[worker]\nstage = 4\n", 19), 19);
    close(fd);
    assert_int_equal(kvf_conf_load(conf, path, NULL, &n), 0);
    assert_int_equal(n, 0);
    assert_int_equal(conf->self.stage, 4);
    unlink(path);
    assert_int_equal(kvf_conf_load(conf, path, NULL, &n), -KVF_INVALID);
    assert_int_equal(n, 1);
    assert_int_equal(kvf_conf_load(conf, "/", NULL, &n), -KVF_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_key),
        cmocka_unit_test(test_every_key_is_tried),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_structure),
        cmocka_unit_test(test_port_rule),
        cmocka_unit_test(test_dump_reads_back),
        cmocka_unit_test(test_generated_files),
        cmocka_unit_test(test_examples),
        cmocka_unit_test(test_endpoint),
        cmocka_unit_test(test_reload),
        cmocka_unit_test(test_load),
    };
    int rc;

    conf = malloc(sizeof *conf);
    other = malloc(sizeof *other);
    if (conf == NULL || other == NULL)
        abort();
    rc = cmocka_run_group_tests(tests, NULL, NULL);
    free(conf);
    free(other);
    return rc;
}
