/* Names to addresses with libevent's evdns.
 *
 * Numeric addresses and "localhost" are answered from here. For the rest a
 * resolver is opened with the first question and closed after the last answer:
 * it then holds no sockets while idle, and reads /etc/resolv.conf and
 * /etc/hosts anew. Answers come through a task, since evdns may call back from
 * inside the question. */
#include "loop/resolver.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <event2/dns.h>
#include <event2/event.h>
#include <event2/util.h>

#include "loop/reactor_base.h"

struct kvf_resolver {
    struct kvf_reactor *reactor;
    struct evdns_base *dns; /* NULL while no question is with evdns */
    struct kvf_list questions;
    unsigned asked; /* with evdns */
};

struct kvf_resolve {
    struct kvf_list node;
    struct kvf_resolver *rs;
    struct kvf_task task;
    struct evdns_getaddrinfo_request *req;
    kvf_resolve_fn *fn; /* NULL once cancelled */
    void *arg;
    bool asked; /* evdns will still call back */
    char host[256];
    char addr[INET6_ADDRSTRLEN]; /* "" = failed, see why */
    struct kvf_why why;
};

bool kvf_addr_is_numeric(const char *host)
{
    struct in6_addr a;
    char plain[INET6_ADDRSTRLEN];
    const char *scope = strchr(host, '%');

    if (scope == NULL)
        return inet_pton(AF_INET, host, &a) == 1 ||
               inet_pton(AF_INET6, host, &a) == 1;
    /* fe80::1%eth0 */
    if ((size_t)(scope - host) >= sizeof plain || scope[1] == '\0')
        return false;
    memcpy(plain, host, (size_t)(scope - host));
    plain[scope - host] = '\0';
    return inet_pton(AF_INET6, plain, &a) == 1;
}

static bool route_from(int family, const struct sockaddr *to, socklen_t len,
                       char *out, size_t cap)
{
    struct sockaddr_storage from;
    socklen_t n = sizeof from;
    int fd = socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool ok;

    if (fd < 0)
        return false;
    ok = connect(fd, to, len) == 0 &&
         getsockname(fd, (struct sockaddr *)&from, &n) == 0 &&
         getnameinfo((struct sockaddr *)&from, n, out, (socklen_t)cap, NULL, 0,
                     NI_NUMERICHOST) == 0;
    close(fd);
    return ok;
}

void kvf_addr_of_this_host(char *out, size_t cap)
{
    /* Addresses set aside for documentation: they take the default route, and
     * connecting a datagram socket sends nothing. */
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(9)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(9)};

    inet_pton(AF_INET, "192.0.2.1", &v4.sin_addr);
    inet_pton(AF_INET6, "2001:db8::1", &v6.sin6_addr);
    if (!route_from(AF_INET, (struct sockaddr *)&v4, sizeof v4, out, cap) &&
        !route_from(AF_INET6, (struct sockaddr *)&v6, sizeof v6, out, cap))
        snprintf(out, cap, "127.0.0.1");
}

static void forget(struct kvf_resolve *q)
{
    struct kvf_resolver *rs = q->rs;

    kvf_task_cancel(&q->task);
    kvf_list_unlink(&q->node);
    free(q);
    if (rs->asked == 0 && rs->dns != NULL) {
        evdns_base_free(rs->dns, 0);
        rs->dns = NULL;
    }
}

static void answer(struct kvf_task *t)
{
    struct kvf_resolve *q = kvf_container_of(t, struct kvf_resolve, task);
    kvf_resolve_fn *fn = q->fn;
    void *arg = q->arg;
    char addr[sizeof q->addr];
    struct kvf_why why = q->why;

    memcpy(addr, q->addr, sizeof addr);
    /* First forgotten: the owner may end the resolver in its callback. */
    forget(q);
    if (fn != NULL)
        fn(arg, addr[0] != '\0' ? addr : NULL, &why);
}

static void take_address(struct kvf_resolve *q, const struct sockaddr *sa)
{
    const void *raw = NULL;

    if (sa->sa_family == AF_INET)
        raw = &((const struct sockaddr_in *)(const void *)sa)->sin_addr;
    else if (sa->sa_family == AF_INET6)
        raw = &((const struct sockaddr_in6 *)(const void *)sa)->sin6_addr;
    if (raw == NULL ||
        inet_ntop(sa->sa_family, raw, q->addr, sizeof q->addr) == NULL)
        q->addr[0] = '\0';
}

/* Called by evdns, now or later; only marks. */
static void on_dns(int err, struct evutil_addrinfo *res, void *arg)
{
    struct kvf_resolve *q = arg;

    q->asked = false;
    q->req = NULL;
    q->rs->asked--;
    if (err == 0 && res != NULL)
        take_address(q, res->ai_addr);
    if (q->addr[0] == '\0')
        kvf_fail(&q->why, KVF_PEER_UNREACHABLE, "%.180s has no address: %s",
                 q->host, err != 0 ? evutil_gai_strerror(err) : "empty answer");
    if (res != NULL)
        evutil_freeaddrinfo(res);
    kvf_task_post(kvf_reactor_sched(q->rs->reactor), &q->task);
}

static int open_dns(struct kvf_resolver *rs)
{
    if (rs->dns != NULL)
        return 0;
    rs->dns = evdns_base_new(kvf_reactor_base(rs->reactor), 0);
    if (rs->dns == NULL)
        return -1;
    /* A missing file leaves evdns with 127.0.0.1, which is a fair guess. */
    evdns_base_resolv_conf_parse(rs->dns, DNS_OPTIONS_ALL, "/etc/resolv.conf");
    return 0;
}

static void ask(struct kvf_resolve *q)
{
    struct evutil_addrinfo hints = {.ai_family = AF_UNSPEC,
                                    .ai_socktype = SOCK_STREAM,
                                    .ai_flags = EVUTIL_AI_ADDRCONFIG};
    struct evdns_getaddrinfo_request *req;

    if (open_dns(q->rs) != 0) {
        kvf_fail(&q->why, KVF_INTERNAL, "no resolver for %.180s", q->host);
        kvf_task_post(kvf_reactor_sched(q->rs->reactor), &q->task);
        return;
    }
    q->asked = true;
    q->rs->asked++;
    req = evdns_getaddrinfo(q->rs->dns, q->host, NULL, &hints, on_dns, q);
    /* NULL: on_dns has been called already. */
    if (q->asked)
        q->req = req;
}

int kvf_resolver_create(struct kvf_reactor *r, struct kvf_resolver **out,
                        struct kvf_why *why)
{
    struct kvf_resolver *rs = calloc(1, sizeof *rs);

    if (rs == NULL)
        return kvf_fail(why, KVF_NO_SPACE, "no memory for the resolver");
    rs->reactor = r;
    kvf_list_init(&rs->questions);
    *out = rs;
    return 0;
}

void kvf_resolver_destroy(struct kvf_resolver *rs)
{
    struct kvf_list *n;

    if (rs == NULL)
        return;
    kvf_list_for_each (it, &rs->questions)
        kvf_resolve_cancel(kvf_container_of(it, struct kvf_resolve, node));
    /* evdns calls back once more for what was cancelled, from the loop. All
     * callbacks there only mark, so it may be turned here. */
    for (unsigned i = 0; rs->asked != 0 && i < 100; i++)
        event_base_loop(kvf_reactor_base(rs->reactor),
                        EVLOOP_ONCE | EVLOOP_NONBLOCK);
    if (rs->dns != NULL)
        evdns_base_free(rs->dns, 0);
    rs->dns = NULL;
    while ((n = kvf_list_first(&rs->questions)) != NULL)
        forget(kvf_container_of(n, struct kvf_resolve, node));
    free(rs);
}

struct kvf_resolve *kvf_resolve_start(struct kvf_resolver *rs, const char *host,
                                      kvf_resolve_fn *fn, void *arg)
{
    struct kvf_resolve *q = calloc(1, sizeof *q);

    if (q == NULL)
        abort(); /* as for a lost timer: a question without answer hangs */
    q->rs = rs;
    q->fn = fn;
    q->arg = arg;
    q->why.status = KVF_OK;
    kvf_task_init(&q->task, answer);
    kvf_list_init(&q->node);
    kvf_list_push_back(&rs->questions, &q->node);
    snprintf(q->host, sizeof q->host, "%s", host);
    if (strlen(host) >= sizeof q->host || host[0] == '\0') {
        kvf_fail(&q->why, KVF_INVALID, "not a host name: \"%.100s\"", host);
    } else if (strcmp(host, "localhost") == 0) {
        snprintf(q->addr, sizeof q->addr, "127.0.0.1");
    } else if (kvf_addr_is_numeric(host) && strlen(host) < sizeof q->addr) {
        snprintf(q->addr, sizeof q->addr, "%.45s", host);
    } else {
        ask(q);
        return q;
    }
    kvf_task_post(kvf_reactor_sched(rs->reactor), &q->task);
    return q;
}

void kvf_resolve_cancel(struct kvf_resolve *q)
{
    if (q == NULL || q->fn == NULL)
        return;
    /* The answer still comes, and is forgotten. */
    q->fn = NULL;
    if (q->asked && q->req != NULL)
        evdns_getaddrinfo_cancel(q->req);
}
