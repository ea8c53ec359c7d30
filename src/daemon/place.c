/* Where the daemon listens and what it says about it. Happy path: endpoints
 * from the configuration, numeric bind address, one ready line.
 * Failure modes: a name that does not resolve, a path that is too long, a port
 * that is taken. */
#include "base/newfile.h"
#include "daemon/engine.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define ENGINE_HWM 20000

/* Before the daemon is ready it may block: the DNS is asked once. */
static int resolve_host(const char *host, char *out, size_t cap,
                        struct kvf_why *why)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    int rc;

    if (kvf_addr_is_numeric(host)) {
        if ((size_t)snprintf(out, cap, "%s", host) >= cap)
            return kvf_fail(why, KVF_INVALID, "[connector] host is too long");
        return 0;
    }
    rc = getaddrinfo(host, NULL, &hints, &found);
    if (rc != 0)
        return kvf_fail(why, KVF_INVALID, "[connector] host = %s: %s", host,
                        gai_strerror(rc));
    rc = getnameinfo(found->ai_addr, found->ai_addrlen, out, (socklen_t)cap,
                     NULL, 0, NI_NUMERICHOST);
    freeaddrinfo(found);
    if (rc != 0)
        return kvf_fail(why, KVF_INVALID, "[connector] host = %s: %s", host,
                        gai_strerror(rc));
    return 0;
}

int kvf_place_find(struct kvf_server *s, struct kvf_why *why)
{
    int rc = kvf_conf_endpoint(s->conf->engine_endpoint, s->conf->cluster,
                               &s->conf->self, true, s->engine_endpoint,
                               sizeof s->engine_endpoint, why);

    if (rc < 0)
        return rc;
    s->engine_ipc = strncmp(s->engine_endpoint, "ipc://", 6) == 0;
    if (s->engine_ipc && s->engine_endpoint[6] == '@')
        return kvf_fail(why, KVF_INVALID,
                        "engine_endpoint = %s: abstract sockets have no "
                        "permissions, give a path",
                        s->engine_endpoint);
    if (!s->engine_ipc && strncmp(s->engine_endpoint, "tcp://", 6) != 0)
        return kvf_fail(why, KVF_INVALID,
                        "engine_endpoint = %s: must be ipc:// or tcp://",
                        s->engine_endpoint);
    if (strcmp(s->conf->host, "auto") == 0)
        kvf_addr_of_this_host(s->host, sizeof s->host);
    else
        snprintf(s->host, sizeof s->host, "%s", s->conf->host);
    return resolve_host(s->host, s->bind_host, sizeof s->bind_host, why);
}

static int bind_private(struct kvf_server *s, struct kvf_why *why)
{
    const char *path = s->engine_endpoint + 6;
    mode_t old = umask(0177);
    int rc = kvf_zsock_bind(s->engine, s->engine_endpoint, NULL, 0, why);

    umask(old);
    if (rc == 0 && chmod(path, 0600) != 0)
        rc = kvf_fail(why, KVF_INTERNAL, "chmod %s: %s", path, strerror(errno));
    return rc;
}

int kvf_place_bind_engine(struct kvf_server *s, struct kvf_why *why)
{
    struct kvf_zsock_opts opts = {.max_frame = s->conf->max_frame,
                                  .hwm = ENGINE_HWM,
                                  .mandatory = true,
                                  .handover = true,
                                  .ipv6 = true};
    char actual[KVF_CONF_TEXT];
    int rc = kvf_zsock_open(s->zctx, s->reactor, KVF_ZSOCK_ROUTER, "zmq:engine",
                            &opts, &kvf_engine_ops, s, &s->engine, why);

    if (rc < 0)
        return rc;
    if (s->engine_ipc)
        return bind_private(s, why);
    rc = kvf_zsock_bind(s->engine, s->engine_endpoint, actual, sizeof actual,
                        why);
    if (rc == 0)
        snprintf(s->engine_endpoint, sizeof s->engine_endpoint, "%s", actual);
    return rc;
}

static bool loopback(const char *addr)
{
    return strncmp(addr, "127.", 4) == 0 || strcmp(addr, "::1") == 0;
}

void kvf_place_warn(const struct kvf_server *s)
{
    const char *engine = s->engine_endpoint + 6;
    bool engine_open =
        !s->engine_ipc && !loopback(engine) && strncmp(engine, "[::1]", 5) != 0;

    if (engine_open || !loopback(s->bind_host))
        kvf_log(KVF_LOG_WARN, "PEER",
                "the channel is not authenticated: engine=%s peer=%s must be "
                "on a network where you trust every host",
                s->engine_endpoint, s->bind_host);
}

/* "host:port", "[v6]:port" */
static void host_port(char *out, size_t cap, const char *host, uint16_t port)
{
    if (strchr(host, ':') != NULL)
        snprintf(out, cap, "[%s]:%u", host, port);
    else
        snprintf(out, cap, "%s:%u", host, port);
}

static void ready_line(const struct kvf_server *s, char *out, size_t cap)
{
    char peer[KVF_CONF_TEXT + 16], bulk[96] = "none", id[2 * KVF_ID_LEN + 1];

    host_port(peer, sizeof peer, s->host, s->peer_port);
    if (s->tcp != NULL)
        host_port(bulk, sizeof bulk, s->bind_host, s->bulk_port);
    for (unsigned i = 0; i < KVF_ID_LEN; i++)
        snprintf(id + 2 * i, 3, "%02x", s->incarnation.b[i]);
    snprintf(out, cap,
             "kvferryd ready engine=%s peer=tcp://%s bulk=%s pid=%ld "
             "incarnation=%s\n",
             s->engine_endpoint, peer, bulk, (long)getpid(), id);
}

int kvf_place_announce(struct kvf_server *s, struct kvf_why *why)
{
    char line[3 * KVF_CONF_TEXT + 256];

    ready_line(s, line, sizeof line);
    /* Whoever waits on stdout may have gone: no reason not to serve. */
    (void)fputs(line, stdout);
    (void)fflush(stdout);
    if (s->ready_path == NULL)
        return 0;
    if (kvf_newfile(s->ready_path, line, why) < 0)
        return kvf_fail_prefix(why, "--ready-file");
    s->has_ready_file = true;
    return 0;
}
