/* Options: those that every subcommand has, and its own. */
#include "cli.h"

#include <stdlib.h>
#include <string.h>

const char cli_common_help[] =
    "Which daemon:\n"
    "  --endpoint E       its engine endpoint (ipc://..., tcp://...)\n"
    "  --config FILE      take the endpoint from its configuration\n"
    "  --cluster C --stage S --rank R --replica P\n"
    "                     the default endpoint of that worker\n"
    "  --answer TIME      how long the daemon may take (default 5s)\n";

void cli_explain(const char *help)
{
    printf("usage: kvferry %s\n%s", help, cli_common_help);
}

enum {
    O_ENDPOINT = 1000,
    O_CONFIG,
    O_CLUSTER,
    O_STAGE,
    O_RANK,
    O_REPLICA,
    O_ANSWER,
    O_HELP
};

static const struct option common[] = {
    {"endpoint", required_argument, NULL, O_ENDPOINT},
    {"config", required_argument, NULL, O_CONFIG},
    {"cluster", required_argument, NULL, O_CLUSTER},
    {"stage", required_argument, NULL, O_STAGE},
    {"rank", required_argument, NULL, O_RANK},
    {"replica", required_argument, NULL, O_REPLICA},
    {"answer", required_argument, NULL, O_ANSWER},
    {"help", no_argument, NULL, O_HELP},
};
#define N_COMMON (sizeof common / sizeof common[0])

static bool common_option(struct cli *c, int code, const char *arg)
{
    uint64_t v = 0;

    switch (code) {
    case O_ENDPOINT:
        c->endpoint = arg;
        return true;
    case O_CONFIG:
        c->config = arg;
        return true;
    case O_CLUSTER:
        c->cluster = arg;
        return true;
    case O_STAGE:
    case O_RANK:
    case O_REPLICA:
        if (!cli_u64(arg, 1023, &v))
            return false;
        *(code == O_STAGE  ? &c->stage
          : code == O_RANK ? &c->rank
                           : &c->replica) = (uint32_t)v;
        return true;
    case O_ANSWER:
        if (!cli_ms(arg, &v) || v == 0 || v > UINT32_MAX)
            return false;
        c->timeout_ms = (uint32_t)v;
        return true;
    default:
        return false;
    }
}

int cli_getopt(struct cli *c, int argc, char **argv, const char *shorts,
               const struct option *own)
{
    struct option all[64] = {{0}};
    unsigned n = 0;

    for (; own != NULL && own[n].name != NULL && n < 64 - N_COMMON - 1; n++)
        all[n] = own[n];
    memcpy(all + n, common, sizeof common);
    for (;;) {
        int code = getopt_long(argc, argv, shorts, all, NULL);

        if (code < 1000)
            return code;
        if (code == O_HELP) {
            cli_explain(c->help);
            exit(0);
        }
        if (!common_option(c, code, optarg)) {
            cli_usage(c, "bad value %s", optarg);
            return '?';
        }
    }
}

int cli_bad_option(const struct cli *c, int code, char **argv)
{
    const char *last = argv[optind - 1];

    if (code == '?') /* which one has been said */
        return cli_usage(c, "bad option");
    if (last == optarg)
        return cli_usage(c, "bad value: %s %s", argv[optind - 2], last);
    return cli_usage(c, "bad value: %s", last);
}

int cli_no_arguments(struct cli *c, int argc, char **argv)
{
    int code;

    while ((code = cli_getopt(c, argc, argv, "", NULL)) != -1)
        if (code == '?')
            return CLI_USAGE;
    return optind == argc ? 0 : cli_usage(c, "takes no argument");
}
