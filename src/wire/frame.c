/* The frames of the tcp bulk channel, byte by byte (docs/PROTOCOL-PEER.md
 * has the layout). A frame that does not check is -KVF_INVALID (a version other
 * than ours -KVF_MISMATCH) and the caller drops the connection. */
#include "wire/frame.h"

#include <inttypes.h>

#define REQ_MAGIC 0x4b51u /* "KQ" */
#define RSP_MAGIC 0x4b52u /* "KR" */

void kvf_preface_encode(const struct kvf_preface *p, uint8_t *out)
{
    kvf_put_u32(out, KVF_FRAME_MAGIC);
    kvf_put_u16(out + 4, p->version);
    kvf_put_u16(out + 6, p->stream);
    memcpy(out + 8, p->secret, KVF_FRAME_SECRET);
}

int kvf_preface_decode(struct kvf_preface *p, const uint8_t *in,
                       struct kvf_why *why)
{
    uint16_t version = kvf_get_u16(in + 4);

    if (kvf_get_u32(in) != KVF_FRAME_MAGIC)
        return kvf_fail(why, KVF_INVALID, "not a kvferry bulk connection");
    if (version != KVF_FRAME_VERSION)
        return kvf_fail(why, KVF_MISMATCH,
                        "bulk version %u, this daemon speaks %u", version,
                        KVF_FRAME_VERSION);
    p->version = version;
    p->stream = kvf_get_u16(in + 6);
    memcpy(p->secret, in + 8, KVF_FRAME_SECRET);
    return 0;
}

/* 0 magic 2, op 2, zero 4, tag 8, claim 8, token 16, offset or number of runs
 * 8, length 8 */
void kvf_frame_req_encode(const struct kvf_frame_req *f, uint8_t *out)
{
    kvf_put_u16(out, REQ_MAGIC);
    kvf_put_u16(out + 2, (uint16_t)f->op);
    kvf_put_u32(out + 4, 0);
    kvf_put_u64(out + 8, f->tag);
    kvf_put_u64(out + 16, f->claim);
    memcpy(out + 24, f->token.b, KVF_ID_LEN);
    kvf_put_u64(out + 40, kvf_frame_has_runs(f) ? f->n_runs : f->offset);
    kvf_put_u64(out + 48, f->length);
}

int kvf_frame_req_decode(struct kvf_frame_req *f, const uint8_t *in,
                         struct kvf_why *why)
{
    uint16_t op = kvf_get_u16(in + 2);
    uint64_t offset = kvf_get_u64(in + 40);
    uint64_t length = kvf_get_u64(in + 48);

    if (kvf_get_u16(in) != REQ_MAGIC || kvf_get_u32(in + 4) != 0)
        return kvf_fail(why, KVF_INVALID, "not a bulk request");
    if (op < KVF_FRAME_READ || op > KVF_FRAME_WRITE_RUNS)
        return kvf_fail(why, KVF_INVALID, "unknown bulk request %u", op);
    if (length == 0 || length > KVF_FRAME_MAX_LENGTH)
        return kvf_fail(why, KVF_INVALID,
                        "bulk length %" PRIu64 " is not within 1..%llu", length,
                        KVF_FRAME_MAX_LENGTH);
    f->op = (enum kvf_frame_op)op;
    f->n_runs = 0;
    if (kvf_frame_has_runs(f)) {
        if (offset == 0 || offset > KVF_FRAME_MAX_RUNS || offset > length)
            return kvf_fail(why, KVF_INVALID,
                            "%" PRIu64 " runs of %" PRIu64 " bytes", offset,
                            length);
        f->n_runs = (uint32_t)offset;
        offset = 0;
    }
    if (offset > (uint64_t)INT64_MAX - length)
        return kvf_fail(why, KVF_INVALID,
                        "bulk offset %" PRIu64 " is out of range", offset);
    f->tag = kvf_get_u64(in + 8);
    f->claim = kvf_get_u64(in + 16);
    memcpy(f->token.b, in + 24, KVF_ID_LEN);
    f->offset = offset;
    f->length = length;
    return 0;
}

/* offset 8, length 4 */
void kvf_frame_run_encode(const struct kvf_range *r, uint8_t *out)
{
    kvf_put_u64(out, r->offset);
    kvf_put_u32(out + 8, (uint32_t)r->length);
}

int kvf_frame_runs_decode(const struct kvf_frame_req *f, const uint8_t *in,
                          struct kvf_range *out, struct kvf_why *why)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < f->n_runs; i++, in += KVF_FRAME_RUN_LEN) {
        uint64_t offset = kvf_get_u64(in);
        uint32_t length = kvf_get_u32(in + 8);

        if (length == 0 || offset > (uint64_t)INT64_MAX - length)
            return kvf_fail(why, KVF_INVALID,
                            "run %u of %u bytes at %" PRIu64 " is out of range",
                            i, length, offset);
        sum += length;
        out[i] = (struct kvf_range){offset, length};
    }
    if (sum != f->length)
        return kvf_fail(why, KVF_INVALID,
                        "runs have %" PRIu64 " bytes, not %" PRIu64, sum,
                        f->length);
    return 0;
}

/* 0 magic 2, zero 2, status 4, tag 8, length 8 */
void kvf_frame_rsp_encode(const struct kvf_frame_rsp *f, uint8_t *out)
{
    kvf_put_u16(out, RSP_MAGIC);
    kvf_put_u16(out + 2, 0);
    kvf_put_u32(out + 4, f->status);
    kvf_put_u64(out + 8, f->tag);
    kvf_put_u64(out + 16, f->length);
}

int kvf_frame_rsp_decode(struct kvf_frame_rsp *f, const uint8_t *in,
                         struct kvf_why *why)
{
    uint32_t status = kvf_get_u32(in + 4);
    uint64_t length = kvf_get_u64(in + 16);

    if (kvf_get_u16(in) != RSP_MAGIC || kvf_get_u16(in + 2) != 0)
        return kvf_fail(why, KVF_INVALID, "not a bulk answer");
    if (status >= KVF_STATUS_COUNT)
        return kvf_fail(why, KVF_INVALID, "unknown status %u", status);
    if (length > KVF_FRAME_MAX_LENGTH)
        return kvf_fail(why, KVF_INVALID,
                        "bulk length %" PRIu64 " is larger than %llu", length,
                        KVF_FRAME_MAX_LENGTH);
    if (status != KVF_OK && length != 0)
        return kvf_fail(why, KVF_INVALID, "a failed answer with bytes");
    f->status = status;
    f->tag = kvf_get_u64(in + 8);
    f->length = length;
    return 0;
}
