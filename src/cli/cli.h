/* The `kvferry` command: what its subcommands share.
 *
 * A subcommand is one file with one function of type cli_cmd; the table in
 * main.c names them. Exit status: 0; the number of the status (status.h, 1 to
 * 21) when a request failed; 1 also when `doctor` found a FAIL; CLI_USAGE for a
 * wrong command line; CLI_IO when a file could not be read or written. */
#ifndef KVF_CLI_CLI_H
#define KVF_CLI_CLI_H

#include "kvferry/kvferry.h"

#include <getopt.h>
#include <stdio.h>

#define CLI_USAGE 64
#define CLI_IO 74

struct cli {
    const char *endpoint, *config, *cluster;
    uint32_t stage, rank, replica;
    uint32_t timeout_ms;
    const char *help; /* of the subcommand that runs */
    const char *name;
    kvferry_event_fn on_event;
    void *event_user;
};

struct cli_command {
    const char *name;
    int (*run)(struct cli *c, int argc, char **argv);
    const char *summary;
    const char *help;
};

/* The options that every subcommand has, in words. */
extern const char cli_common_help[];
/* A help text and those options, on standard output. */
void cli_explain(const char *help);
/* getopt_long with the common options handled inside. Returns the code of an
 * own option, -1 at the end, or '?' after a message (return CLI_USAGE then).
 * `--help` prints and exits. */
int cli_getopt(struct cli *c, int argc, char **argv, const char *shorts,
               const struct option *own);
/* For subcommands without options and arguments: 0 or CLI_USAGE. */
int cli_no_arguments(struct cli *c, int argc, char **argv);
/* Right after cli_getopt, when it or its caller does not take an option: says
 * which one, returns CLI_USAGE. */
int cli_bad_option(const struct cli *c, int code, char **argv);
int cli_usage(const struct cli *c, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* Message on stderr; returns the exit status for `status` (negative). */
int cli_failed(struct kvferry *h, int status, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* The endpoint that the options name. 0, or an exit status after a message. */
int cli_endpoint(struct cli *c, char *out, size_t cap);
/* Opens a handle to it. 0, or an exit status after a message. */
int cli_open(struct cli *c, unsigned flags, struct kvferry **out);

/* Whole numbers, sizes ("64KiB") and durations ("500ms"); false if wrong. */
bool cli_u64(const char *text, uint64_t max, uint64_t *out);
bool cli_size(const char *text, uint64_t *out);
bool cli_ms(const char *text, uint64_t *out);
/* "S", "S.R" or "S.R.P"; the number of parts, 0 if wrong. */
unsigned cli_worker(const char *text, uint32_t out[3]);
/* "HOST:PORT", "[V6]:PORT". */
bool cli_host_port(const char *text, char *host, size_t cap, uint16_t *port);

int cli_put(struct cli *c, int argc, char **argv);
int cli_get(struct cli *c, int argc, char **argv);
int cli_ls(struct cli *c, int argc, char **argv);
int cli_status(struct cli *c, int argc, char **argv);
int cli_fail(struct cli *c, int argc, char **argv);
int cli_cleanup(struct cli *c, int argc, char **argv);
int cli_peer(struct cli *c, int argc, char **argv);
int cli_drain(struct cli *c, int argc, char **argv);
int cli_doctor(struct cli *c, int argc, char **argv);
int cli_bench(struct cli *c, int argc, char **argv);
int cli_plan(struct cli *c, int argc, char **argv);
int cli_version(struct cli *c, int argc, char **argv);
#endif
