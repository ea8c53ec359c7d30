/* An endpoint for tests that need a peer which is not there (yet). */
#ifndef KVF_TESTS_FREE_ENDPOINT_H
#define KVF_TESTS_FREE_ENDPOINT_H

#include <arpa/inet.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

/* Where nobody listens. Not a ROUTER that was closed: its listener lives on for
 * a moment, and the DEALER may meet it. */
static inline void free_endpoint(char *out, size_t cap)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    assert_int_equal(bind(fd, (struct sockaddr *)&a, len), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
    close(fd);
    snprintf(out, cap, "tcp://127.0.0.1:%u", ntohs(a.sin_port));
}

#endif
