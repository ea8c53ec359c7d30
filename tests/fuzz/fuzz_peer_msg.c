/* libFuzzer: any bytes as a peer message; one that is taken must encode to
 * something that is taken again. */
#include "wire/peer_msg.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct kvf_peer_msg m, again;
    struct kvf_mpw w;

    if (kvf_peer_decode(&m, data, size, NULL, 0, NULL) == 0) {
        kvf_mpw_init(&w);
        if (kvf_peer_encode(&w, &m) != 0 ||
            kvf_peer_decode(&again, w.buf.data, w.buf.size, NULL, 0, NULL) != 0)
            __builtin_trap();
        kvf_peer_done(&again);
        kvf_mpw_fini(&w);
    }
    kvf_peer_done(&m);
    kvf_peer_decode(&m, data, size, "hello", 5, NULL);
    kvf_peer_done(&m);
    return 0;
}
