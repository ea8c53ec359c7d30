/* Status codes: the one table shared by the daemon, the C client, the command
 * line and (checked by a test) every other client.
 *
 * The string is what travels in the `status` field of a reply and is stable
 * for ever; the number is stable too (exit codes, language bindings). Codes are
 * grouped by what the caller can do about them. */
#ifndef KVFERRY_STATUS_H
#define KVFERRY_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

/* X(name, number, what it means to the caller) */
#define KVF_STATUS_LIST(X)                                                     \
    X(OK, 0, "done")                                                           \
    X(INVALID, 1, "the request is malformed or out of range")                  \
    X(UNSUPPORTED, 2, "this session or build cannot do that")                  \
    X(NOT_FOUND, 3, "not there, and the caller did not want to wait")          \
    X(TIMEOUT, 4, "waited the whole time; the owner lives, no key came")       \
    X(TRANSFER_TIMEOUT, 5, "it was there; the bytes did not arrive in time")   \
    X(PEER_UNREACHABLE, 6, "the owner could not be reached, or died")          \
    X(EXPIRED, 7, "its time to live passed")                                   \
    X(CONSUMED, 8, "all its readers have read it")                             \
    X(FAILED, 9, "the producer said that it will not come")                    \
    X(CANCELLED, 10, "cancelled")                                              \
    X(STALE, 11, "session, incarnation or generation no longer valid")         \
    X(NO_SPACE, 12, "the pool is full")                                        \
    X(TOO_LARGE, 13, "can never fit")                                          \
    X(BUSY, 14, "in use, or over an admission limit: retry later")             \
    X(EXISTS, 15, "the key is already published")                              \
    X(MISMATCH, 16, "lengths, layouts or versions disagree")                   \
    X(CORRUPT, 17, "the checksum does not match the bytes")                    \
    X(DENIED, 18, "not allowed")                                               \
    X(TRANSPORT, 19, "failed after all retries")                               \
    X(SHUTTING_DOWN, 20, "the daemon is draining")                             \
    X(INTERNAL, 21, "a defect in kvferry: please report it")

enum kvf_status {
#define KVF_STATUS_ENUM(name, number, text) KVF_##name = number,
    KVF_STATUS_LIST(KVF_STATUS_ENUM)
#undef KVF_STATUS_ENUM
        KVF_STATUS_COUNT
};

/* "OK", "NO_SPACE", ...; "INTERNAL" for a number outside the table. Never NULL,
 * static storage, any thread. */
const char *kvf_status_name(enum kvf_status status);

/* One phrase for people. Never NULL, static storage, any thread. */
const char *kvf_status_text(enum kvf_status status);

/* Inverse of kvf_status_name; -1 when the name is not in the table. `len` is in
 * bytes, so the name need not be terminated. */
int kvf_status_parse(const char *name, unsigned long len);

#ifdef __cplusplus
}
#endif
#endif
