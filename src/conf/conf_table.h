/* The table of keys, for the files of this folder. */
#ifndef KVF_CONF_CONF_TABLE_H
#define KVF_CONF_CONF_TABLE_H

#include "conf/conf.h"

enum kvf_key_type {
    KVF_KEY_U32,
    KVF_KEY_SIZE,     /* uint64_t bytes */
    KVF_KEY_DURATION, /* uint64_t ms */
    KVF_KEY_PORT,     /* int32_t, or auto */
    KVF_KEY_NAME,     /* char[], A-Za-z0-9_.- */
    KVF_KEY_TEXT,     /* char[], anything but empty */
    KVF_KEY_HOST,     /* char[], auto, numeric address or name */
    KVF_KEY_ENDPOINT, /* char[], auto, ipc:// or tcp:// */
    KVF_KEY_DEVICE,   /* char[], where the pool lies */
    KVF_KEY_PROTOCOL,
    KVF_KEY_LEVEL,
    KVF_KEY_WINDOW /* int64_t, -1 or bytes */
};

enum kvf_key_base { KVF_IN_CONF, KVF_IN_EDGE };

struct kvf_key {
    const char *section, *name;
    enum kvf_key_type type;
    enum kvf_key_base base;
    size_t offset, size; /* of the field */
    const char *def;     /* as it would be written */
    uint64_t min, max;
    bool reload; /* SIGHUP may change it */
    const char *help;
};

extern const struct kvf_key kvf_keys[];
extern const unsigned kvf_n_keys;

/* Writes the value into the field at `base`. On error fills `why` with what is
 * wrong and what is allowed. */
int kvf_key_parse(const struct kvf_key *k, void *base, struct kvf_conf *c,
                  const char *text, struct kvf_why *why);
/* The field's value as it would be written. */
void kvf_key_format(const struct kvf_key *k, const void *base,
                    const struct kvf_conf *c, char *out, size_t cap);
void kvf_edge_defaults(struct kvf_conf_edge *e);
/* Forms of text. 0, or -KVF_INVALID and what is wrong. "auto" passes. */
int kvf_form_host(const char *text, struct kvf_why *why);
int kvf_form_endpoint(const char *text, struct kvf_why *why);
bool kvf_name_valid(const char *text, size_t cap);
int kvf_parse_u64(const char *text, uint64_t *out);

#endif
