/* The command line of kvferry bench --mode target|initiator.
 *
 * Names are ours; those of Mooncake's transfer_engine_bench and
 * rdma_transport_test are taken too, with underscores or dashes, with one dash
 * or two, booleans in all words of gflags. What makes sense only for an
 * accelerator's memory is refused in plain words; what has no meaning here is
 * accepted and does nothing. */
#include "pair.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum {
    O_MODE = 1,
    O_OPERATION,
    O_SEGMENT,
    O_LOCAL,
    O_METADATA,
    O_PROTOCOL,
    O_DEVICE,
    O_BLOCK,
    O_BATCH,
    O_DEPTH,
    O_BUFFER,
    O_DURATION,
    O_COUNT,
    O_WARMUP,
    O_TIMEOUT,
    O_VERIFY,
    O_JSON,
    O_COLD,
    O_ENGINE,
    O_READY,
    O_WINDOW,
    O_KVFERRYD,
    O_UNIT,
    O_PRECISION,
    O_VRAM,
    O_DISCOVER,
    O_NICS,
    O_BACKEND,
    O_NOT_YET,
    O_FLAG, /* a boolean without a meaning here */
    O_NOTHING
};

static const struct option options[] = {
    {"mode", required_argument, NULL, O_MODE},
    {"operation", required_argument, NULL, O_OPERATION},
    {"segment-id", required_argument, NULL, O_SEGMENT},
    {"local-server-name", required_argument, NULL, O_LOCAL},
    {"metadata-server", required_argument, NULL, O_METADATA},
    {"protocol", required_argument, NULL, O_PROTOCOL},
    {"device-name", required_argument, NULL, O_DEVICE},
    {"block-size", required_argument, NULL, O_BLOCK},
    {"batch-size", required_argument, NULL, O_BATCH},
    {"depth", required_argument, NULL, O_DEPTH},
    {"threads", required_argument, NULL, O_DEPTH},
    {"buffer-size", required_argument, NULL, O_BUFFER},
    {"duration", required_argument, NULL, O_DURATION},
    {"count", required_argument, NULL, O_COUNT},
    {"warmup", required_argument, NULL, O_WARMUP},
    {"timeout", required_argument, NULL, O_TIMEOUT},
    {"verify", no_argument, NULL, O_VERIFY},
    {"json", no_argument, NULL, O_JSON},
    {"cold", no_argument, NULL, O_COLD},
    {"engine", required_argument, NULL, O_ENGINE},
    {"ready-file", required_argument, NULL, O_READY},
    {"window", required_argument, NULL, O_WINDOW},
    {"kvferryd", required_argument, NULL, O_KVFERRYD},
    {"report-unit", required_argument, NULL, O_UNIT},
    {"report-precision", required_argument, NULL, O_PRECISION},
    {"use-vram", optional_argument, NULL, O_VRAM},
    {"nouse-vram", no_argument, NULL, O_NOTHING},
    {"gpu-id", required_argument, NULL, O_NOT_YET},
    {"npu-id", required_argument, NULL, O_NOT_YET},
    {"nic-priority-matrix", required_argument, NULL, O_NICS},
    {"auto-discovery", optional_argument, NULL, O_DISCOVER},
    {"noauto-discovery", no_argument, NULL, O_NOTHING},
    {"init-mem", optional_argument, NULL, O_FLAG},
    {"noinit-mem", no_argument, NULL, O_NOTHING},
    {"backend", required_argument, NULL, O_BACKEND},
    {"logtostderr", optional_argument, NULL, O_FLAG},
    {"alsologtostderr", optional_argument, NULL, O_FLAG},
    {"minloglevel", required_argument, NULL, O_NOTHING},
    {0},
};

/* "-block_size=4096" as "--block-size=4096"; other arguments as they are. */
static char *normalised(const char *arg)
{
    size_t len = strlen(arg);
    bool one = arg[0] == '-' && arg[1] != '-' && len > 2;
    char *s = malloc(len + 2);

    if (s == NULL)
        return NULL;
    snprintf(s, len + 2, "%s%s", one ? "-" : "", arg);
    if (s[0] == '-' && s[1] == '-')
        for (char *c = s; *c != '\0' && *c != '='; c++)
            if (*c == '_')
                *c = '-';
    return s;
}

static bool is_pair(const char *mode)
{
    return strcmp(mode, "target") == 0 || strcmp(mode, "initiator") == 0;
}

bool pair_wanted(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i] + strspn(argv[i], "-");

        if (name == argv[i])
            continue;
        if (strncmp(name, "mode=", 5) == 0 && is_pair(name + 5))
            return true;
        if (strcmp(name, "mode") == 0 && i + 1 < argc && is_pair(argv[i + 1]))
            return true;
        /* Those tools are initiators unless told otherwise. */
        if (strncmp(name, "segment", 7) == 0 &&
            (name[7] == '-' || name[7] == '_') &&
            strncmp(name + 8, "id", 2) == 0)
            return true;
    }
    return false;
}

static bool positive(unsigned *out, unsigned max)
{
    uint64_t v;

    if (!cli_u64(optarg, max, &v) || v == 0)
        return false;
    *out = (unsigned)v;
    return true;
}

/* As Mooncake's tools: a bare number is of seconds. */
static bool seconds(uint64_t *ms)
{
    uint64_t v;

    if (cli_u64(optarg, 30u * 86400, &v)) {
        *ms = v * 1000;
        return v > 0;
    }
    return cli_ms(optarg, ms) && *ms > 0;
}

/* HOST or HOST:PORT. */
static bool place(char *host, size_t cap, uint16_t *port)
{
    if (cli_host_port(optarg, host, cap, port))
        return true;
    *port = 0;
    return optarg[0] != '\0' && strchr(optarg, ':') == NULL &&
           (size_t)snprintf(host, cap, "%s", optarg) < cap;
}

static bool sizes_option(int code, struct pair *p)
{
    uint64_t v;

    switch (code) {
    case O_BLOCK:
        return cli_size(optarg, &p->block) && p->block > 0;
    case O_BATCH:
        return positive(&p->batch, 65536);
    case O_DEPTH:
        return positive(&p->depth, 4096);
    case O_BUFFER:
        return cli_size(optarg, &p->buffer) && p->buffer > 0;
    case O_DURATION:
        return seconds(&p->duration_ms);
    case O_TIMEOUT:
        return seconds(&p->timeout_ms);
    case O_COUNT:
        return cli_u64(optarg, UINT32_MAX, &p->count) && p->count > 0;
    case O_WARMUP:
        if (!cli_u64(optarg, 1000000, &v))
            return false;
        p->warmup = (unsigned)v;
        return true;
    case O_PRECISION:
        if (!cli_u64(optarg, 9, &v))
            return false;
        p->precision = (unsigned)v;
        return true;
    default:
        return false;
    }
}

static bool text_option(int code, struct pair *p)
{
    switch (code) {
    case O_MODE:
        p->target = strcmp(optarg, "target") == 0;
        return is_pair(optarg);
    case O_OPERATION:
        p->write = strcmp(optarg, "write") == 0;
        return p->write || strcmp(optarg, "read") == 0;
    case O_SEGMENT:
        return cli_host_port(optarg, p->peer_host, sizeof p->peer_host,
                             &p->peer_port);
    case O_LOCAL:
        return place(p->host, sizeof p->host, &p->port);
    case O_PROTOCOL:
        p->protocol = optarg;
        return true;
    case O_DEVICE: /* of a list the first */
        p->device = p->nic;
        return (size_t)snprintf(p->nic, sizeof p->nic, "%.*s",
                                (int)strcspn(optarg, ","),
                                optarg) < sizeof p->nic;
    case O_BACKEND:
        return strcmp(optarg, "classic") == 0 || strcmp(optarg, "tent") == 0;
    case O_ENGINE:
        p->engine = optarg;
        return true;
    case O_READY:
        p->ready_file = optarg;
        return true;
    case O_WINDOW:
        p->window = optarg;
        return optarg[0] != '\0' && strlen(optarg) < 256;
    case O_KVFERRYD:
        p->kvferryd = optarg;
        return true;
    case O_UNIT:
        p->unit = optarg;
        return pair_unit(optarg) > 0;
    default:
        return sizes_option(code, p);
    }
}

/* 1, 0, or -1 for a word that is neither. */
static int boolean(const char *word)
{
    static const char *const words[] = {"false", "f", "no",  "n", "0",
                                        "true",  "t", "yes", "y", "1"};

    for (int i = 0; i < 10; i++)
        if (strcasecmp(word, words[i]) == 0)
            return i >= 5;
    return -1;
}

/* The value of a boolean option. `--use-vram true`: getopt leaves the word of
 * an optional argument alone. */
static int flag(int argc, char **argv)
{
    if (optarg != NULL)
        return boolean(optarg);
    if (optind < argc && boolean(argv[optind]) >= 0)
        return boolean(argv[optind++]);
    return 1;
}

static int flag_option(struct pair *p, int code, int nth, int argc, char **argv)
{
    int v = flag(argc, argv);

    if (v < 0)
        return cli_usage(p->c, "bad value %s of %s", optarg, argv[nth]);
    if (v == 1 && code == O_VRAM)
        return cli_usage(p->c, "--use-vram: memory of an accelerator is not "
                               "supported yet; use --use-vram=false");
    if (v == 1 && code == O_DISCOVER)
        p->discover = true;
    return 0;
}

/* What only an accelerator's memory or fabric can do. */
static bool needs_accelerator(const char *protocol)
{
    static const char *const those[] = {"barex",  "nvlink",       "hip",
                                        "nvmeof", "nvlink_intra", "ascend"};

    for (size_t i = 0; i < sizeof those / sizeof *those; i++)
        if (strcmp(protocol, those[i]) == 0)
            return true;
    return false;
}

/* {"cpu:0": [["mlx5_2", ...], ["mlx5_3", ...]], ...}: the first device that the
 * file prefers for the host's memory. A file that cannot be read is passed
 * over, as those tools do, and said so. */
static void first_nic(struct pair *p, const char *path)
{
    json_error_t err;
    json_t *root = json_load_file(path, 0, &err);
    const json_t *rows = json_object_get(root, "cpu:0");
    const json_t *name = json_array_get(json_array_get(rows, 0), 0);

    if (json_array_size(json_array_get(rows, 0)) == 0)
        name = json_array_get(json_array_get(rows, 1), 0);
    if (json_is_string(name)) {
        snprintf(p->nic, sizeof p->nic, "%s", json_string_value(name));
        p->device = p->nic;
    } else {
        fprintf(stderr,
                "kvferry bench: --nic-priority-matrix: %s names no device for "
                "cpu:0; going on without\n",
                path);
    }
    json_decref(root);
}

static int option(struct pair *p, int code, int nth, int argc, char **argv)
{
    switch (code) {
    case O_VERIFY:
        p->verify = true;
        return 0;
    case O_JSON:
        p->json = true;
        return 0;
    case O_COLD:
        p->cold = true;
        return 0;
    case O_NOTHING:
        return 0;
    case O_VRAM:
    case O_DISCOVER:
    case O_FLAG:
        return flag_option(p, code, nth, argc, argv);
    case O_NICS:
        p->nics = optarg;
        return 0;
    case O_NOT_YET:
        return cli_usage(p->c, "%s is not supported yet", argv[nth]);
    case O_METADATA:
        if (strcmp(optarg, "P2PHANDSHAKE") == 0)
            return 0;
        return cli_usage(p->c, "--metadata-server: only P2PHANDSHAKE, for the "
                               "daemons find each other without a server");
    default:
        return text_option(code, p)
                   ? 0
                   : cli_usage(p->c, "bad value %s of %s",
                               optarg != NULL ? optarg : "", argv[nth]);
    }
}

static int check(struct pair *p)
{
    uint64_t need = p->block * p->batch * p->depth;

    if (p->engine == NULL)
        p->engine = p->c->endpoint;
    if (needs_accelerator(p->protocol))
        return cli_usage(p->c, "--protocol %s is not supported yet",
                         p->protocol);
    if (p->nics != NULL && p->nics[0] != '\0')
        first_nic(p, p->nics);
    if (p->discover)
        p->device = NULL; /* the daemon finds one */
    if (p->block > (1ull << 40) / p->batch / p->depth)
        return cli_usage(p->c, "block size x batch size x depth is above 1TiB");
    if (!p->target && p->peer_port == 0)
        return cli_usage(p->c, "--mode initiator needs --segment-id HOST:PORT, "
                               "as the target prints it");
    if (p->buffer == 0)
        p->buffer = need > (64u << 20) ? need : 64u << 20;
    if (p->buffer < need) {
        fprintf(stderr,
                "kvferry bench: --buffer-size is smaller than block size x "
                "batch size x depth; taking %llu\n",
                (unsigned long long)need);
        p->buffer = need;
    }
    if (p->target && p->port != 0 && p->port <= 100)
        return cli_usage(p->c, "the port of --local-server-name is below 101");
    return 0;
}

int pair_options(struct cli *c, int argc, char **argv, struct pair *p)
{
    int code, rc, nth = 1;

    *p = (struct pair){.c = c,
                       .host = "127.0.0.1",
                       .protocol = "auto",
                       .window = "bench",
                       .unit = "GB",
                       .block = 65536,
                       .duration_ms = 10000,
                       .batch = 128,
                       .depth = 1,
                       .warmup = 20,
                       .precision = 2};
    for (int i = 1; i < argc; i++)
        if ((argv[i] = normalised(argv[i])) == NULL)
            return CLI_IO;
    while ((code = cli_getopt(c, argc, argv, "", options)) != -1) {
        if (code == '?')
            return cli_bad_option(c, code, argv);
        rc = option(p, code, nth, argc, argv);
        if (rc != 0)
            return rc;
        nth = optind;
    }
    if (optind != argc)
        return cli_usage(c, "takes no argument");
    return check(p);
}

int pair_main(struct cli *c, int argc, char **argv)
{
    static struct pair p;
    int rc = pair_options(c, argc, argv, &p);

    if (rc != 0)
        return rc;
    return p.target ? pair_target(&p) : pair_initiator(&p);
}
