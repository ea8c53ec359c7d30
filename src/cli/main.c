/* `kvferry SUBCOMMAND ...`: finds the subcommand and runs it. */
#include "cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int cli_help(struct cli *c, int argc, char **argv);

static const struct cli_command commands[] = {
    {"put", cli_put, "publish a file or standard input",
     "put KEY FILE|-\n"
     "  --ttl TIME         time to live (500ms, 30s; default: the daemon's)\n"
     "  --readers N        how many may read it (default 1; 0 = any number)\n"
     "  --meta TEXT        opaque bytes for the reader\n"
     "  --reject           EXISTS if the key is there (default: replace)\n"
     "  --checksum         let readers verify the bytes\n"
     "  --wait-retired     stay until it was read, or ended otherwise\n"
     "  --to S[.R[.P]]     push: publish it at that worker's daemon\n"
     "  --target HOST:PORT the same, by the daemon's metadata port\n"
     "  --timeout TIME     for the whole push (0 = none)\n"},
    {"get", cli_get, "fetch a key into a file or to standard output",
     "get KEY [-o FILE|-]\n"
     "  -o, --output FILE  default: standard output\n"
     "  --from S[.R[.P]]   the sender: stage, rank, replica\n"
     "  --source HOST:PORT the sender: its metadata port\n"
     "  --generation N     this generation or none older\n"
     "  --timeout TIME     for the whole get (0 = none)\n"
     "  --no-wait          NOT_FOUND when it is not there now\n"
     "  --mode MODE        auto, view, copy or inline\n"
     "  --verify           check the checksum of the bytes here\n"},
    {"ls", cli_ls, "list keys",
     "ls [PREFIX]\n"
     "  --limit N          at most N keys\n"
     "  --json\n"},
    {"status", cli_status, "pool, keys, peers, counters, latencies",
     "status\n"
     "  --json\n"
     "  --watch SEC        again every SEC seconds\n"},
    {"fail", cli_fail, "say that a key will not come", "fail KEY [REASON]\n"},
    {"cleanup", cli_cleanup, "retire all keys of a request",
     "cleanup REQUEST_ID [FROM TO]\n"},
    {"peer", cli_peer, "say where a worker is",
     "peer STAGE.RANK[.REPLICA] HOST:PORT\n"},
    {"drain", cli_drain, "finish what is open, then end the daemon",
     "drain\n"
     "  --timeout TIME     at most so long (default: drain_ms)\n"},
    {"doctor", cli_doctor, "what this machine offers and what is wrong",
     "doctor\n"
     "  --json\n"
     "  --peer HOST:PORT   move test bytes to that worker's daemon and back\n"
     "With --config FILE the file and what it asks for are checked too.\n"
     "Exit status 1 if anything is FAIL.\n"},
    {"bench", cli_bench, "measure latency and throughput",
     "bench\n"
     "  --workload W       get, put, put+get, parked, ping or mget\n"
     "  --size LIST        4KiB,1MiB,... (default 4KiB,1MiB,16MiB)\n"
     "  --mode M           auto, view, copy, into or inline\n"
     "  --depth N          requests at once (default 1)\n"
     "  --keys N           different keys (default 16)\n"
     "  --count N          measured requests (default 1000)\n"
     "  --duration TIME    at most so long for one size (default 10s)\n"
     "  --warmup N         requests that are not counted (default 20)\n"
     "  --verify           check every byte\n"
     "  --view-read        read every byte\n"
     "  --from-endpoint E  the sender's daemon (default: --endpoint)\n"
     "  --to-endpoint E    the receiver's daemon (default: the sender's)\n"
     "  --pids P,Q         whose CPU time to count (default: the daemons')\n"
     "  --copy             memcpy against non-temporal stores, no daemon\n"
     "  --json             one JSON object a line\n"
     "\n"
     "bench --mode target      exposes a window and says where, until ended\n"
     "bench --mode initiator   writes or reads it, and prints the figures\n"
     "  --segment-id HOST:PORT  where the target is, as it printed it\n"
     "  --operation O      read (default) or write\n"
     "  --block-size N --batch-size N   bytes; blocks in one request\n"
     "  --depth N          requests at once (also --threads)\n"
     "  --duration TIME --count N --warmup N   seconds, or 500ms; requests\n"
     "  --verify           every byte, by the eyes of the other side\n"
     "  --cold             walk through the whole --buffer-size\n"
     "  --buffer-size N    of the window (default 64MiB)\n"
     "  --timeout TIME     of one request (default: the daemon's)\n"
     "  --engine E         use this daemon (default: start a kvferryd)\n"
     "  --local-server-name HOST[:PORT]  what the own daemon binds\n"
     "  --protocol P --device-name D     of the own daemon\n"
     "  --kvferryd FILE    the program to start\n"
     "  --window NAME      (default bench)\n"
     "  --ready-file FILE  the target's line goes there too\n"
     "  --metadata-server P2PHANDSHAKE   accepted; there is no server\n"
     "  --report-unit U --report-precision N   of the last line (GB, 2)\n"
     "  --nic-priority-matrix FILE       its first device for cpu:0\n"
     "  --auto-discovery   the daemon finds a device\n"
     "  --use-vram --gpu-id N --npu-id N --init-mem --backend B\n"
     "  --logtostderr --minloglevel N    taken; no meaning, or not yet\n"
     "Option names are taken with underscores too.\n"},
    {"plan", cli_plan, "plan a transfer between two KV layouts",
     "plan [--case FILE]\n"
     "  --case FILE        a KVCASE text (default: standard input)\n"
     "  --explain          who reads what, for people\n"
     "  --stats            descriptors, bytes and planning times\n"
     "No daemon is asked. A refusal is an answer too: ERR KIND text, exit "
     "0.\n"},
    {"version", cli_version, "print the version", "version\n"},
    {"help", cli_help, "explain a subcommand", "help [SUBCOMMAND]\n"},
};
#define N_COMMANDS (sizeof commands / sizeof commands[0])

static void usage(FILE *out)
{
    fprintf(out, "usage: kvferry SUBCOMMAND [OPTIONS] ...\n\n");
    for (size_t i = 0; i < N_COMMANDS; i++)
        fprintf(out, "  %-9s %s\n", commands[i].name, commands[i].summary);
    fprintf(out,
            "\n%s\n`kvferry help SUBCOMMAND` tells more. Exit status: 0, the "
            "number of the\nfailed request's status, 64 for a wrong command "
            "line, 74 for a file error.\n",
            cli_common_help);
}

static const struct cli_command *find(const char *name)
{
    for (size_t i = 0; i < N_COMMANDS; i++)
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    return NULL;
}

static int cli_help(struct cli *c, int argc, char **argv)
{
    const struct cli_command *cmd;

    if (argc < 2) {
        usage(stdout);
        return 0;
    }
    cmd = find(argv[1]);
    if (cmd == NULL || argc > 2)
        return cli_usage(c, "no subcommand %s", argv[argc - 1]);
    cli_explain(cmd->help);
    return 0;
}

int cli_version(struct cli *c, int argc, char **argv)
{
    if (argv != NULL && cli_no_arguments(c, argc, argv) != 0)
        return CLI_USAGE;
    printf("kvferry %s\n", kvferry_version());
    return 0;
}

static int run(int argc, char **argv)
{
    static char name[64]; /* getopt begins its messages with it */
    const struct cli_command *cmd;
    struct cli c = {.name = "kvferry"};

    if (argc < 2) {
        usage(stderr);
        return CLI_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        usage(stdout);
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0)
        return cli_version(&c, 0, NULL);
    cmd = find(argv[1]);
    if (cmd == NULL) {
        fprintf(stderr, "kvferry: no subcommand %s (see kvferry --help)\n",
                argv[1]);
        return CLI_USAGE;
    }
    c.help = cmd->help;
    c.name = cmd->name;
    snprintf(name, sizeof name, "kvferry %s", cmd->name);
    argv[1] = name;
    return cmd->run(&c, argc - 1, argv + 1);
}

/* What was printed and could not be written is a failure of its own. */
int main(int argc, char **argv)
{
    int rc = run(argc, argv);

    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout))
        return rc;
    fprintf(stderr, "kvferry: standard output: %s\n",
            errno != 0 ? strerror(errno) : "not all of it was written");
    return rc != 0 ? rc : CLI_IO;
}
