"""The paged KV cache of a rank: blocks of tokens in memory that may be a
region registered with kvferryd.

For each layer an area of all key pages and one of all value pages (`split`);
a page holds one block of tokens of the rank's heads, by head (HND) or by token
(NHD), as float16.
"""
import numpy as np

from model import own


class Cache:
    """`memory`: a writable buffer of `Cache.size` bytes, or None for memory of
    its own."""

    def __init__(self, config, tp, rank, blocks, block_size, order="HND",
                 memory=None):
        self.config, self.order = config, order
        self.heads = own(config.kv_heads, tp, rank)
        self.n_blocks, self.block_size = blocks, block_size
        h, d = len(self.heads), config.head_dim
        self.page = h * block_size * d * 2
        nbytes = self.size(config, tp, rank, blocks, block_size)
        if memory is None:
            memory = np.zeros(nbytes, np.uint8)
        flat = np.frombuffer(memory, np.float16, nbytes // 2)
        page = (h, block_size, d) if order == "HND" else (block_size, h, d)
        pages = flat.reshape(config.layers, 2, blocks, *page)
        # Seen as [layer, k or v, block, head, token, d] in both orders.
        self.pages = pages if order == "HND" else \
            pages.transpose(0, 1, 2, 4, 3, 5)
        self.of = {}  # sequence: its block ids

    @staticmethod
    def size(config, tp, rank, blocks, block_size):
        return (len(own(config.kv_heads, tp, rank)) * config.head_dim * 2
                * block_size * blocks * 2 * config.layers)

    def area(self, layer, part):
        """Where the pages of a layer's keys (0) or values (1) begin."""
        return (layer * 2 + part) * self.n_blocks * self.page

    def open(self, seq, ids):
        self.of[seq] = np.array(list(ids), dtype=np.intp)

    def close(self, seq):
        self.of.pop(seq, None)

    def _slots(self, seq, first, end):
        at = np.arange(first, end)
        return self.of[seq][at // self.block_size], at % self.block_size

    def store(self, seq, layer, first, k, v):
        """k, v: [tokens, heads, d]"""
        block, slot = self._slots(seq, first, first + len(k))
        self.pages[layer, 0][block, :, slot] = k
        self.pages[layer, 1][block, :, slot] = v

    def load(self, seq, layer, n):
        """Keys and values of the first n tokens: [heads, tokens, d]."""
        ids = self.of[seq][:-(-n // self.block_size)]
        h, d = len(self.heads), self.config.head_dim
        out = []
        for part in (0, 1):
            x = self.pages[layer, part][ids].astype(np.float64)
            out.append(x.transpose(1, 0, 2, 3).reshape(h, -1, d)[:, :n])
        return out

    def read(self, seq, layers, first, end, out):
        """Packs a piece into `out`: [layer, k or v, token, head, d]."""
        block, slot = self._slots(seq, first, end)
        for i, layer in enumerate(layers):
            for part in (0, 1):
                out[i, part] = self.pages[layer, part][block, :, slot]

    def write(self, seq, layers, first, piece, theirs):
        """The reverse, for those heads of `piece` that are ours; `theirs`:
        which heads it has."""
        block, slot = self._slots(seq, first, first + piece.shape[2])
        both = [h for h in theirs if h in self.heads]
        src = [h - theirs.start for h in both]
        dst = np.array([h - self.heads.start for h in both])
        for i, layer in enumerate(layers):
            for part in (0, 1):
                self.pages[layer, part][block[:, None], dst, slot[:, None]] = \
                    piece[i, part][:, src]
