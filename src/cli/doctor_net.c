/* The daemon, its port, and the peers of the configuration. */
#include "doctor.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void daemon_answers(struct doctor *d)
{
    struct kvferry_open_options o = {.endpoint = d->endpoint,
                                     .client = "kvferry-doctor",
                                     .timeout_ms = 1500};
    struct kvferry_info info;
    struct kvferry *h;
    char err[256];
    int rc = kvferry_open(&h, &o, err, sizeof err);

    if (rc != 0) {
        doctor_say(d, DOCTOR_WARN, "daemon",
                   "start kvferryd, or name the right --endpoint or --config",
                   "%s", err);
        return;
    }
    d->daemon_answers = true;
    kvferry_info(h, &info);
    doctor_say(d, DOCTOR_OK, "daemon", NULL,
               "%s, worker %u.%u.%u of %s, transports %s", info.server,
               info.stage, info.rank, info.replica, info.cluster,
               info.transports);
    kvferry_close(h);
}

/* Connects within a second. 0, or an errno. */
static int try_connect(const char *host, uint16_t port)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list = NULL;
    int error = EHOSTUNREACH, fd;
    socklen_t len = sizeof error;
    struct pollfd pf;
    char text[8];

    snprintf(text, sizeof text, "%u", port);
    if (getaddrinfo(host, text, &hints, &list) != 0)
        return EADDRNOTAVAIL;
    fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0 && connect(fd, list->ai_addr, list->ai_addrlen) == 0) {
        error = 0;
    } else if (fd >= 0 && errno == EINPROGRESS) {
        pf = (struct pollfd){.fd = fd, .events = POLLOUT};
        if (poll(&pf, 1, 1000) <= 0)
            error = ETIMEDOUT;
        else
            getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len);
    } else {
        error = errno;
    }
    if (fd >= 0)
        close(fd);
    freeaddrinfo(list);
    return error;
}

static void own_port(struct doctor *d)
{
    uint16_t port = kvf_conf_port(d->conf->zmq_port, &d->conf->self);
    bool any = strcmp(d->conf->host, "auto") == 0;
    bool taken;

    if (d->conf->zmq_port == KVF_PORT_AUTO || port == 0)
        return;
    taken = try_connect(any ? "127.0.0.1" : d->conf->host, port) == 0;
    if (taken && d->daemon_answers)
        doctor_say(d, DOCTOR_OK, "port", NULL, "%u is served", port);
    else if (taken)
        doctor_say(d, DOCTOR_FAIL, "port",
                   "see who holds it with `ss -ltnp`, or change zmq_port",
                   "%u is taken and no daemon answers at the endpoint", port);
    else if (d->daemon_answers)
        doctor_say(d, DOCTOR_WARN, "port",
                   "does the daemon run with this configuration?",
                   "%u does not answer", port);
    else
        doctor_say(d, DOCTOR_OK, "port", NULL, "%u is free", port);
}

static void peers(struct doctor *d)
{
    for (unsigned i = 0; i < d->conf->n_peers; i++) {
        const struct kvf_conf_peer *p = &d->conf->peer[i];
        int error = try_connect(p->host, p->port);
        char what[48];

        snprintf(what, sizeof what, "peer " KVF_WORKER_FMT,
                 KVF_WORKER_ARG(&p->worker));
        if (error == 0)
            doctor_say(d, DOCTOR_OK, what, NULL, "%s:%u answers", p->host,
                       p->port);
        else
            doctor_say(d, DOCTOR_WARN, what,
                       "start it, open the firewall, or correct [peer]",
                       "%s:%u: %s", p->host, p->port, strerror(error));
    }
}

void doctor_network(struct doctor *d)
{
    daemon_answers(d);
    if (d->conf_given) {
        own_port(d);
        peers(d);
    }
}
