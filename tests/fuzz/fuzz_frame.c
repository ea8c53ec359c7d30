/* libFuzzer: bulk frames; one that is taken encodes to the same bytes. The
 * table of a request is decoded in place, as the owner does it. */
#include "wire/frame.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void table(const struct kvf_frame_req *f, const uint8_t *in)
{
    struct kvf_range *v = malloc(f->n_runs * sizeof *v);
    uint32_t bytes = f->n_runs * KVF_FRAME_RUN_LEN;
    uint8_t *end = (uint8_t *)(v + f->n_runs) - bytes;
    uint8_t out[KVF_FRAME_RUN_LEN];
    uint64_t sum = 0;

    if (v == NULL)
        return;
    memcpy(end, in, bytes);
    if (kvf_frame_runs_decode(f, end, v, NULL) == 0) {
        for (uint32_t i = 0; i < f->n_runs; i++) {
            kvf_frame_run_encode(&v[i], out);
            if (memcmp(out, in + i * KVF_FRAME_RUN_LEN, sizeof out) != 0)
                __builtin_trap();
            sum += v[i].length;
        }
        if (sum != f->length)
            __builtin_trap();
    }
    free(v);
}

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
        if (q.n_runs > KVF_FRAME_MAX_RUNS)
            __builtin_trap();
        if (q.n_runs > 0 &&
            size - KVF_FRAME_REQ_LEN >= q.n_runs * KVF_FRAME_RUN_LEN)
            table(&q, data + KVF_FRAME_REQ_LEN);
    }
    if (size >= KVF_FRAME_RSP_LEN &&
        kvf_frame_rsp_decode(&r, data, NULL) == 0) {
        kvf_frame_rsp_encode(&r, out);
        if (memcmp(out, data, KVF_FRAME_RSP_LEN) != 0)
            __builtin_trap();
    }
    return 0;
}
