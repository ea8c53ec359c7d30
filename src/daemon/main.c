/* kvferryd: options, configuration, exit codes.
 *
 * Exit codes: 0 ended in order (or --check found nothing); 1 cannot start; 2
 * bad usage or configuration. */
#include "daemon/server.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXIT_START 1
#define EXIT_USAGE 2

struct options {
    const char *conf_path, *ready_path;
    bool check, dump;
};

static const char help[] =
    "Usage: kvferryd [OPTIONS] FILE\n"
    "\n"
    "Moves KV-cache payloads between the engines of a cluster: one daemon a\n"
    "worker. FILE is the configuration (docs/CONFIG.md).\n"
    "\n"
    "      --config FILE      the same as FILE\n"
    "      --check            check the configuration and exit: 0 good, 2 bad\n"
    "      --dump-config      print every effective value and exit\n"
    "      --ready-file FILE  write the ready line there once ready\n"
    "      --metrics          print what `stats` contains (Markdown) and exit\n"
    "      --version          print the version and exit\n"
    "      --help             print this and exit\n"
    "\n"
    "Signals: TERM and INT drain and end, HUP reloads the configuration and\n"
    "reopens the log, USR1 logs the state.\n";

enum { OPT_CONFIG = 256, OPT_CHECK, OPT_DUMP, OPT_READY, OPT_METRICS };

static const struct option long_options[] = {
    {"config", required_argument, NULL, OPT_CONFIG},
    {"check", no_argument, NULL, OPT_CHECK},
    {"dump-config", no_argument, NULL, OPT_DUMP},
    {"ready-file", required_argument, NULL, OPT_READY},
    {"metrics", no_argument, NULL, OPT_METRICS},
    {"version", no_argument, NULL, 'V'},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0}};

static int usage(const char *text)
{
    fprintf(stderr, "kvferryd: %s (see kvferryd --help)\n", text);
    return EXIT_USAGE;
}

/* -1: go on; else the exit code. */
static int parse_options(int argc, char **argv, struct options *o)
{
    int c;

    while ((c = getopt_long(argc, argv, "hV", long_options, NULL)) != -1) {
        switch (c) {
        case OPT_CONFIG:
            o->conf_path = optarg;
            break;
        case OPT_CHECK:
            o->check = true;
            break;
        case OPT_DUMP:
            o->dump = true;
            break;
        case OPT_READY:
            o->ready_path = optarg;
            break;
        case OPT_METRICS:
            kvf_stats_write_markdown(stdout);
            return 0;
        case 'V':
            puts("kvferryd " KVF_VERSION);
            return 0;
        case 'h':
            fputs(help, stdout);
            return 0;
        default:
            return usage("wrong option"); /* getopt has said which */
        }
    }
    if (optind < argc && o->conf_path == NULL)
        o->conf_path = argv[optind++];
    if (optind < argc)
        return usage("more than one configuration");
    return -1;
}

static struct kvf_conf *load(const struct options *o)
{
    struct kvf_conf *conf = malloc(sizeof *conf);
    struct kvf_why why;
    unsigned errors = 0;

    if (conf == NULL)
        return NULL;
    kvf_conf_defaults(conf);
    if (o->conf_path != NULL &&
        kvf_conf_load(conf, o->conf_path, stderr, &errors) < 0) {
        fprintf(stderr, "kvferryd: %s: %u error%s\n", o->conf_path, errors,
                errors == 1 ? "" : "s");
        free(conf);
        return NULL;
    }
    if (kvf_server_supports(conf, &why) < 0) {
        fprintf(stderr, "kvferryd: %s\n", why.text);
        free(conf);
        return NULL;
    }
    return conf;
}

/* What others must know of this worker, as far as the file tells. */
static void tell_checked(const char *path, const struct kvf_conf *c)
{
    uint16_t port = kvf_conf_port(c->zmq_port, &c->self);

    printf("%s is valid: worker " KVF_WORKER_FMT " of cluster %s, ", path,
           KVF_WORKER_ARG(&c->self), c->cluster);
    if (port != 0)
        printf("metadata port %u\n", port);
    else
        printf("any free metadata port (zmq_port = auto)\n");
}

static int serve(const struct options *o, struct kvf_conf *conf)
{
    struct kvf_server *s;
    struct kvf_why why = {.text = "out of memory"};
    bool log_elsewhere = strcmp(conf->log_file, "stderr") != 0;
    int rc;

    if (kvf_log_open(conf->log_file, conf->log_level, &why) < 0) {
        fprintf(stderr, "kvferryd: %s\n", why.text);
        free(conf);
        return EXIT_START;
    }
    s = kvf_server_create(conf, o->conf_path, o->ready_path, &why);
    if (s == NULL) {
        kvf_log(KVF_LOG_ERROR, "ENGINE", "cannot start: %s", why.text);
        if (log_elsewhere)
            fprintf(stderr, "kvferryd: cannot start: %s\n", why.text);
        kvf_log_close();
        return EXIT_START;
    }
    rc = kvf_server_run(s);
    kvf_server_destroy(s);
    kvf_log_close();
    return rc;
}

int main(int argc, char **argv)
{
    struct options o = {.conf_path = NULL};
    struct kvf_conf *conf;
    int rc = parse_options(argc, argv, &o);

    if (rc >= 0)
        return rc;
    if (o.conf_path == NULL && !o.dump)
        return usage("no configuration given");
    conf = load(&o);
    if (conf == NULL)
        return EXIT_USAGE;
    if (o.dump)
        kvf_conf_dump(conf, stdout);
    else if (o.check)
        tell_checked(o.conf_path, conf);
    if (o.dump || o.check) {
        free(conf);
        return 0;
    }
    return serve(&o, conf);
}
