/* Signals, delivered in the loop: TERM and INT drain, HUP reloads, USR1 dumps
 * the state. Failure modes of a reload: a bad file changes nothing. */
#include "daemon/server.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

static void on_term(void *arg, int signo)
{
    struct kvf_server *s = arg;

    kvf_drain_begin(s, s->conf->drain_ms,
                    signo == SIGTERM ? "SIGTERM" : "SIGINT");
}

static void apply(struct kvf_server *s)
{
    struct kvf_store_conf sc = {s->conf->max_keys, s->conf->max_tombstones,
                                s->conf->max_parked, s->conf->max_claims};
    struct kvf_tcp_conf tc;
    struct kvf_why why;

    kvf_store_configure(s->store, &sc);
    kvf_store_configure(kvf_blocks_store(s->blocks), &sc);
    kvf_server_tcp_conf(s, &tc);
    if (s->tcp != NULL)
        kvf_tcp_configure(s->tcp, &tc);
    kvf_server_configure_rdma(s);
    kvf_peers_configure(s->peers);
    if (kvf_log_reopen(s->conf->log_level, &why) < 0)
        kvf_log(KVF_LOG_ERROR, "CONF", "the log stays where it is: %s",
                why.text);
}

/* Errors of the file go to the log, line by line. */
static void log_errors(char *text)
{
    char *save = NULL;

    for (char *line = strtok_r(text, "\n", &save); line != NULL;
         line = strtok_r(NULL, "\n", &save))
        kvf_log(KVF_LOG_ERROR, "CONF", "%s", line);
}

static int load_fresh(const char *path, struct kvf_conf *fresh)
{
    char *text = NULL;
    size_t size = 0;
    unsigned errors = 0;
    FILE *err = open_memstream(&text, &size);
    int rc;

    if (err == NULL)
        return -KVF_INTERNAL;
    rc = kvf_conf_load(fresh, path, err, &errors);
    fclose(err);
    if (rc < 0)
        log_errors(text);
    free(text);
    return rc;
}

static void on_hup(void *arg, int signo)
{
    struct kvf_server *s = arg;
    struct kvf_conf *fresh = malloc(sizeof *fresh);
    struct kvf_why why = {.text = ""};
    unsigned ignored = 0;

    (void)signo;
    if (fresh == NULL)
        return;
    kvf_conf_defaults(fresh);
    if (s->conf_path == NULL || load_fresh(s->conf_path, fresh) == 0) {
        if (s->conf_path != NULL)
            ignored = kvf_conf_reload(s->conf, fresh, &why);
        apply(s);
        kvf_log(KVF_LOG_INFO, "CONF", "reloaded");
        if (ignored > 0)
            kvf_log(KVF_LOG_WARN, "CONF", "%u changes need a restart: %s",
                    ignored, why.text);
    } else {
        kvf_log(KVF_LOG_ERROR, "CONF", "not reloaded: %s has errors",
                s->conf_path);
    }
    free(fresh);
}

static void on_usr1(void *arg, int signo)
{
    (void)signo;
    kvf_server_dump(arg);
}

int kvf_signals_init(struct kvf_server *s, struct kvf_why *why)
{
    static const struct {
        int signo;
        void (*fn)(void *arg, int signo);
    } list[] = {{SIGTERM, on_term},
                {SIGINT, on_term},
                {SIGHUP, on_hup},
                {SIGUSR1, on_usr1}};

    for (unsigned i = 0; i < sizeof list / sizeof list[0]; i++) {
        int rc =
            kvf_reactor_signal(s->reactor, list[i].signo, list[i].fn, s, why);

        if (rc < 0)
            return rc;
    }
    return 0;
}
