/* One reading of a configuration, for the files of this folder. */
#ifndef KVF_CONF_CONF_PARSER_H
#define KVF_CONF_CONF_PARSER_H

#include "conf/conf_table.h"

#define KVF_LINE_MAX 190 /* bytes; inih's buffer is 200 */

enum kvf_conf_open {
    KVF_OPEN_NONE,  /* no section header yet */
    KVF_OPEN_WRONG, /* a header that was reported: its keys are passed over */
    KVF_OPEN_PLAIN,
    KVF_OPEN_EDGE,
    KVF_OPEN_PEER
};

/* Of a [peer] without replica, until the own one is known. */
#define KVF_CONF_OWN_REPLICA UINT32_MAX

struct kvf_conf_parser {
    struct kvf_conf *c;
    const char *name;
    FILE *err;
    const char *at, *end;
    unsigned line, errors;
    enum kvf_conf_open open;    /* section */
    char section[KVF_LINE_MAX]; /* as written */
    unsigned index;             /* of the edge or peer */
    uint64_t seen;              /* keys of plain sections, one bit a row */
    unsigned key_line[64];      /* where they are */
    uint64_t edge_seen[KVF_CONF_EDGES];
    unsigned edge_line[KVF_CONF_EDGES];      /* of the last line about it */
    unsigned char peer_seen[KVF_CONF_PEERS]; /* 1 host, 2 port */
    unsigned peer_line[KVF_CONF_PEERS];
};

/* An error at the line p->line: counted, and written if anybody wants it. */
void kvf_conf_bad(struct kvf_conf_parser *p, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* ---- conf_section.c ----------------------------------------------------- */

/* A section header: opens the section, also one without keys. What the keys
 * below it belong to, or KVF_OPEN_WRONG when it was reported. */
enum kvf_conf_open kvf_conf_open_section(struct kvf_conf_parser *p);
/* inih's handler; arg: the parser. Always 1: go on. */
int kvf_conf_on_key(void *arg, const char *section, const char *name,
                    const char *value);
/* Index into kvf_keys; kvf_n_keys: there is none. */
unsigned kvf_key_row(const char *section, const char *name);

/* ---- conf_check.c ------------------------------------------------------- */

/* What no single key shows. */
void kvf_conf_check(struct kvf_conf_parser *p);

#endif
