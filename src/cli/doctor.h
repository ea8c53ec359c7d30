/* kvferry doctor: findings, each with its remedy. */
#ifndef KVF_CLI_DOCTOR_H
#define KVF_CLI_DOCTOR_H

#include "cli.h"
#include "conf/conf.h"

enum doctor_level { DOCTOR_OK, DOCTOR_WARN, DOCTOR_FAIL };

struct doctor {
    bool json;
    unsigned found[3];
    struct kvf_conf *conf; /* defaults when no file was given */
    bool conf_given;
    char endpoint[256];
    bool daemon_answers;
};

/* `remedy` may be NULL. */
void doctor_say(struct doctor *d, enum doctor_level level, const char *what,
                const char *remedy, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));

void doctor_machine(struct doctor *d); /* doctor_machine.c */
void doctor_network(struct doctor *d); /* doctor_net.c */
void doctor_verbs(struct doctor *d);   /* doctor_verbs.c */
/* doctor_peer.c; `port` is the metadata port. */
void doctor_peer(struct doctor *d, const char *host, uint16_t port);
#endif
