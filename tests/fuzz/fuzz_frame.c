/* libFuzzer: bulk frames; one that is taken encodes to the same bytes. */
#include "wire/frame.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t out[KVF_FRAME_REQ_LEN];
    struct kvf_preface p;
    struct kvf_frame_req q;
    struct kvf_frame_rsp r;

    if (size >= KVF_PREFACE_LEN && kvf_preface_decode(&p, data, NULL) == 0) {
        kvf_preface_encode(&p, out);
        if (memcmp(out, data, KVF_PREFACE_LEN) != 0)
            __builtin_trap();
    }
    if (size >= KVF_FRAME_REQ_LEN &&
        kvf_frame_req_decode(&q, data, NULL) == 0) {
        kvf_frame_req_encode(&q, out);
        if (memcmp(out, data, KVF_FRAME_REQ_LEN) != 0)
            __builtin_trap();
    }
    if (size >= KVF_FRAME_RSP_LEN &&
        kvf_frame_rsp_decode(&r, data, NULL) == 0) {
        kvf_frame_rsp_encode(&r, out);
        if (memcmp(out, data, KVF_FRAME_RSP_LEN) != 0)
            __builtin_trap();
    }
    return 0;
}
