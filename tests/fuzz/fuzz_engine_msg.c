/* libFuzzer: any bytes as a request; the first byte says whether a payload
 * frame comes with it. */
#include "base/utf8.h"
#include "wire/engine_msg.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct kvf_req req;
    struct kvf_req_get get;
    bool payload = size > 0 && (data[0] & 1);
    struct kvf_why why;
    int rc;

    if (size > 0) {
        data++;
        size--;
    }
    rc = kvf_req_decode(&req, data, size, "x", 1, payload, &why);
    if (rc == 0 && req.op == KVF_OP_MGET)
        for (unsigned i = 0; i < req.u.mget.n; i++) {
            kvf_req_mget_item(&req, i, &get, &why);
            kvf_req_get_done(&get);
        }
    if (rc < 0 && !kvf_utf8_valid(why.text, strlen(why.text)))
        __builtin_trap(); /* would make an unreadable reply */
    kvf_req_done(&req);
    return 0;
}
