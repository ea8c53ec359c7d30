/* Forms of text: numbers, names, hosts and endpoints, checked without asking
 * the network: what passes here may still not exist, what fails can never work.
 */
#include "conf/conf_table.h"

#include <arpa/inet.h>
#include <string.h>

#define HOST_LETTERS                                                           \
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-"
#define IPC_PATH_MAX 107 /* of sun_path, without its NUL */

int kvf_parse_u64(const char *text, uint64_t *out)
{
    uint64_t v = 0;

    if (*text == '\0')
        return -(int)KVF_INVALID;
    for (; *text != '\0'; text++) {
        if (*text < '0' || *text > '9' || __builtin_mul_overflow(v, 10, &v) ||
            __builtin_add_overflow(v, (uint64_t)(*text - '0'), &v))
            return -(int)KVF_INVALID;
    }
    *out = v;
    return 0;
}

bool kvf_name_valid(const char *text, size_t cap)
{
    size_t n = strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuv"
                            "wxyz0123456789_.-");

    return n != 0 && text[n] == '\0' && n < cap;
}

/* An address; one of IPv6 may name its interface (fe80::1%eth0). */
static bool numeric(const char *text)
{
    unsigned char addr[sizeof(struct in6_addr)];
    char v6[INET6_ADDRSTRLEN];
    size_t len = strcspn(text, "%");

    if (inet_pton(AF_INET, text, addr) == 1)
        return true;
    if (len >= sizeof v6 ||
        (text[len] == '%' && !kvf_name_valid(text + len + 1, 16)))
        return false;
    memcpy(v6, text, len);
    v6[len] = '\0';
    return inet_pton(AF_INET6, v6, addr) == 1;
}

/* Labels of 1 to 63 bytes between dots, no hyphen at their ends; a last label
 * of digits alone would be a broken IPv4 address. */
static bool dns_name(const char *text)
{
    size_t len = strlen(text), label = 0;
    bool digits = true;

    if (len == 0 || len > 253 || strspn(text, HOST_LETTERS) != len)
        return false;
    for (size_t i = 0; i < len; i++) {
        if (text[i] == '.') {
            if (label == 0 || label > 63 || text[i - 1] == '-')
                return false;
            label = 0;
            digits = true;
            continue;
        }
        if (label == 0 && text[i] == '-')
            return false;
        digits = digits && text[i] >= '0' && text[i] <= '9';
        label++;
    }
    return label != 0 && label <= 63 && !digits && text[len - 1] != '-';
}

int kvf_form_host(const char *text, struct kvf_why *why)
{
    if (numeric(text) || dns_name(text))
        return 0;
    return kvf_fail(why, KVF_INVALID,
                    "not a host; allowed: auto, a numeric address, or a name "
                    "of A-Z a-z 0-9 . -");
}

/* HOST:PORT, [V6]:PORT, with * for any address or a free port. */
static bool tcp_address(const char *text)
{
    char host[KVF_CONF_TEXT];
    const char *colon = strrchr(text, ':');
    uint64_t port;
    size_t len;

    if (colon == NULL || (size_t)(colon - text) >= sizeof host)
        return false;
    len = (size_t)(colon - text);
    memcpy(host, text, len);
    host[len] = '\0';
    if (strcmp(colon + 1, "*") != 0 &&
        (kvf_parse_u64(colon + 1, &port) != 0 || port == 0 || port > 65535))
        return false;
    if (host[0] == '[' && host[len - 1] == ']') {
        host[len - 1] = '\0';
        return strchr(host, ':') != NULL && numeric(host + 1);
    }
    if (strchr(host, ':') != NULL)
        return false; /* v6 without brackets: where would the port begin? */
    return strcmp(host, "*") == 0 || numeric(host) || dns_name(host);
}

int kvf_form_endpoint(const char *text, struct kvf_why *why)
{
    if (strcmp(text, "auto") == 0)
        return 0;
    if (strncmp(text, "ipc://", 6) == 0) {
        const char *path = text + 6;

        if (path[0] == '/' && path[1] != '\0' && strlen(path) <= IPC_PATH_MAX)
            return 0;
        return kvf_fail(why, KVF_INVALID,
                        "not a socket's path; allowed: ipc:// and an absolute "
                        "path of at most %d bytes",
                        IPC_PATH_MAX);
    }
    if (strncmp(text, "tcp://", 6) == 0 && tcp_address(text + 6))
        return 0;
    return kvf_fail(why, KVF_INVALID,
                    "not an endpoint; allowed: auto, ipc://PATH, or "
                    "tcp://HOST:PORT (port * takes a free one)");
}
