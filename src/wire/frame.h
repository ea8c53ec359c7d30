/* Frames of the tcp bulk channel: fixed size, big-endian, no struct overlay.
 *
 * A connection starts with one preface from the connecting side; after that the
 * connecting side sends requests and the accepting side answers each, in order.
 *   READ  request: header;            answer: header + `length` bytes
 *   WRITE request: header + bytes;    answer: header, sent when applied
 * READ_RUNS and WRITE_RUNS are the same for many runs of the payload, told in a
 * table behind the header; the bytes are those of the runs one after the other.
 * (They came later than the other two: only an owner that showed by its
 * messages that it publishes layouts or takes pushes is asked them.)
 * A failed READ is answered with status != 0 and length 0; the connection goes
 * on. Offsets are positions in the payload of the claim. */
#ifndef KVF_WIRE_FRAME_H
#define KVF_WIRE_FRAME_H

#include "base/bytes.h"
#include "base/range.h"
#include "base/why.h"

#include <stdbool.h>

#define KVF_FRAME_MAGIC 0x4b564642u /* "KVFB" */
#define KVF_FRAME_VERSION 1u
#define KVF_FRAME_SECRET 32u
#define KVF_FRAME_MAX_LENGTH (64ull << 20) /* bytes of one READ or WRITE */

struct kvf_preface {
    uint16_t version;
    uint16_t stream; /* 0, 1, ...: for logs */
    uint8_t secret[KVF_FRAME_SECRET];
};
#define KVF_PREFACE_LEN 40u

enum kvf_frame_op {
    KVF_FRAME_READ = 1,
    KVF_FRAME_WRITE = 2,
    KVF_FRAME_READ_RUNS = 3,
    KVF_FRAME_WRITE_RUNS = 4
};

struct kvf_frame_req {
    enum kvf_frame_op op;
    uint64_t tag, claim;
    struct kvf_id token;
    uint64_t offset; /* 0 with runs */
    uint64_t length; /* of all runs */
    uint32_t n_runs; /* 0 without */
};
#define KVF_FRAME_REQ_LEN 56u
#define KVF_FRAME_RUN_LEN 12u    /* one entry of the table */
#define KVF_FRAME_MAX_RUNS 4096u /* of one request */

struct kvf_frame_rsp {
    uint32_t status; /* enum kvf_status */
    uint64_t tag, length;
};
#define KVF_FRAME_RSP_LEN 24u

static inline bool kvf_frame_is_write(const struct kvf_frame_req *f)
{
    return f->op == KVF_FRAME_WRITE || f->op == KVF_FRAME_WRITE_RUNS;
}
static inline bool kvf_frame_has_runs(const struct kvf_frame_req *f)
{
    return f->op == KVF_FRAME_READ_RUNS || f->op == KVF_FRAME_WRITE_RUNS;
}

void kvf_preface_encode(const struct kvf_preface *p, uint8_t *out);
int kvf_preface_decode(struct kvf_preface *p, const uint8_t *in,
                       struct kvf_why *why);
void kvf_frame_req_encode(const struct kvf_frame_req *f, uint8_t *out);
/* Checks magic, op, length in [1, KVF_FRAME_MAX_LENGTH], offset + length or the
 * number of runs. */
int kvf_frame_req_decode(struct kvf_frame_req *f, const uint8_t *in,
                         struct kvf_why *why);
/* Entry by entry. */
void kvf_frame_run_encode(const struct kvf_range *r, uint8_t *out);
/* Checks the table of a request: every run in [1, 2^32), offset + length, their
 * sum. `in` may be the last n * KVF_FRAME_RUN_LEN bytes of out's own memory. */
int kvf_frame_runs_decode(const struct kvf_frame_req *f, const uint8_t *in,
                          struct kvf_range *out, struct kvf_why *why);
void kvf_frame_rsp_encode(const struct kvf_frame_rsp *f, uint8_t *out);
int kvf_frame_rsp_decode(struct kvf_frame_rsp *f, const uint8_t *in,
                         struct kvf_why *why);
#endif
