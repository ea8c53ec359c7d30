/* kvferry fail, cleanup, peer, drain: one request each. */
#include "cli.h"

static int options_only(struct cli *c, int argc, char **argv)
{
    int code;

    while ((code = cli_getopt(c, argc, argv, "", NULL)) != -1)
        if (code == '?')
            return CLI_USAGE;
    return 0;
}

static int finish(struct kvferry *h, int rc, const char *what)
{
    if (rc != 0)
        rc = cli_failed(h, rc, "%s", what);
    kvferry_close(h);
    return rc;
}

int cli_fail(struct cli *c, int argc, char **argv)
{
    struct kvferry *h;
    int rc = options_only(c, argc, argv), n = argc - optind;

    if (rc != 0 || n < 1 || n > 2)
        return cli_usage(c, "needs KEY and at most one REASON");
    rc = cli_open(c, KVFERRY_NO_SESSION, &h);
    if (rc != 0)
        return rc;
    rc = kvferry_fail(h, argv[optind], n > 1 ? argv[optind + 1] : NULL);
    return finish(h, rc, "fail");
}

int cli_cleanup(struct cli *c, int argc, char **argv)
{
    struct kvferry *h;
    uint64_t from = 0, to = 0, count = 0;
    int rc = options_only(c, argc, argv), n = argc - optind;

    if (rc != 0 || (n != 1 && n != 3) ||
        (n == 3 && (!cli_u64(argv[optind + 1], 1023, &from) ||
                    !cli_u64(argv[optind + 2], 1023, &to))))
        return cli_usage(c, "needs REQUEST_ID, or REQUEST_ID FROM TO");
    rc = cli_open(c, KVFERRY_NO_SESSION, &h);
    if (rc != 0)
        return rc;
    rc = kvferry_cleanup(h, argv[optind], n == 3 ? (int)from : -1,
                         n == 3 ? (int)to : -1, &count);
    if (rc == 0)
        printf("%llu\n", (unsigned long long)count);
    return finish(h, rc, "cleanup");
}

int cli_peer(struct cli *c, int argc, char **argv)
{
    struct kvferry *h;
    uint32_t w[3] = {0, 0, 0};
    char host[256];
    uint16_t port;
    int rc = options_only(c, argc, argv);

    if (rc != 0 || argc - optind != 2 || cli_worker(argv[optind], w) < 2 ||
        !cli_host_port(argv[optind + 1], host, sizeof host, &port))
        return cli_usage(c, "needs STAGE.RANK[.REPLICA] and HOST:PORT");
    rc = cli_open(c, KVFERRY_NO_SESSION, &h);
    if (rc != 0)
        return rc;
    return finish(h, kvferry_peer(h, w[0], w[1], w[2], host, port), "peer");
}

int cli_drain(struct cli *c, int argc, char **argv)
{
    static const struct option options[] = {
        {"timeout", required_argument, NULL, 1}, {0}};
    struct kvferry *h;
    uint64_t timeout_ms = 0;
    int code, rc;

    while ((code = cli_getopt(c, argc, argv, "", options)) != -1)
        if (code == '?' || !cli_ms(optarg, &timeout_ms))
            return cli_bad_option(c, code, argv);
    if (argc != optind)
        return cli_usage(c, "takes no argument");
    rc = cli_open(c, KVFERRY_NO_SESSION, &h);
    if (rc != 0)
        return rc;
    return finish(h, kvferry_drain(h, timeout_ms), "drain");
}
