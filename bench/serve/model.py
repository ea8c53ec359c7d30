"""A small transformer in numpy: RMSNorm, rotary positions, grouped-query
attention over a paged KV cache, SwiGLU; weights from a seed.

Every number that enters a sum lies on a fixed grid (a multiple of a power of
two) and every sum stays below 2^53 steps of its grid, so all sums are exact in
float64. Therefore the order of a sum does not matter, and one process, four
ranks, chunks of any length and any BLAS give the same bits. That is what lets
a test compare tokens and mean it.
"""
import dataclasses

import numpy as np

GRID = 1024.0           # activations: multiples of 2^-10
WEIGHT = 256.0          # weights: 2^-8
SOFT = 65536.0          # attention probabilities: 2^-16
EXP = float(1 << 20)    # terms of a softmax: 2^-20
LIMIT = 64.0            # activations are cut off there
BOS = 256               # inputs are bytes and this
FIRST = 32              # outputs are the 95 printable ASCII bytes and newline
OUTPUTS = 96


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes. tp must divide heads, ffn and OUTPUTS; for kv_heads either may
    divide the other (ranks then share a head)."""
    layers: int = 6
    dim: int = 128
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 32
    ffn: int = 256
    max_tokens: int = 4096
    seed: int = 20

    def check_tp(self, tp):
        """ValueError unless the model can be dealt to that many ranks."""
        for what in ("heads", "ffn"):
            if getattr(self, what) % tp:
                raise ValueError(f"{tp} ranks do not divide {what} = "
                                 f"{getattr(self, what)}")
        if OUTPUTS % tp or (self.kv_heads % tp and tp % self.kv_heads):
            raise ValueError(f"{tp} ranks cannot share {self.kv_heads} KV "
                             "heads")


def own(units, tp, rank):
    """The units of a rank, as a range: an equal share, or one replicated."""
    if tp <= units:
        return range(rank * units // tp, (rank + 1) * units // tp)
    return range(rank * units // tp, rank * units // tp + 1)


def encode(text):
    return [BOS] + list(text.encode())


def decode(tokens):
    return "".join("\n" if t == OUTPUTS - 1 else chr(t + FIRST)
                   for t in tokens)


def as_input(token):
    """A token of the output as one of the input."""
    return 10 if token == OUTPUTS - 1 else token + FIRST


def on_grid(x, grid=GRID):
    return np.clip(np.rint(x * grid), -LIMIT * grid, LIMIT * grid) / grid


def rms_norm(x, gain):
    mean = np.einsum("td,td->t", x, x) / x.shape[1]
    return on_grid(x / np.sqrt(mean + 2.0 ** -10)[:, None] * gain)


def weights(config):
    """All weights, by name; the same for the same config."""
    c = config
    rng = np.random.default_rng(c.seed)

    def matrix(rows, cols, scale):
        w = rng.standard_normal((rows, cols)) * scale / np.sqrt(rows)
        return np.clip(np.rint(w * WEIGHT), -4 * WEIGHT, 4 * WEIGHT) / WEIGHT

    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    w = {"embed": np.rint(rng.standard_normal((257, c.dim)) * WEIGHT) / WEIGHT,
         "head": matrix(c.dim, OUTPUTS, 1.0)}
    for i in range(c.layers):
        w[f"{i}.q"] = matrix(c.dim, q, 2.0)
        w[f"{i}.k"] = matrix(c.dim, kv, 2.0)
        w[f"{i}.v"] = matrix(c.dim, kv, 1.5)
        w[f"{i}.o"] = matrix(q, c.dim, 1.5)
        w[f"{i}.gate"] = matrix(c.dim, c.ffn, 1.0)
        w[f"{i}.up"] = matrix(c.dim, c.ffn, 1.0)
        w[f"{i}.down"] = matrix(c.ffn, c.dim, 1.0)
    return w


def shard(config, w, tp, rank):
    """A rank's weights: q, k, v, gate, up and head by columns, o and down by
    rows."""
    c = config
    d = c.head_dim

    def heads(r):
        return slice(r.start * d, r.stop * d)
    q = heads(own(c.heads, tp, rank))
    kv = heads(own(c.kv_heads, tp, rank))
    f = slice(*(x * c.ffn // tp for x in (rank, rank + 1)))
    cut = {"q": np.s_[:, q], "k": np.s_[:, kv], "v": np.s_[:, kv],
           "o": np.s_[q], "gate": np.s_[:, f], "up": np.s_[:, f],
           "down": np.s_[f]}
    out = {"embed": w["embed"]}
    first = rank * OUTPUTS // tp
    out["head"] = w["head"][:, first:(rank + 1) * OUTPUTS // tp]
    for name, x in w.items():
        if "." in name:
            out[name] = x[cut[name.split(".")[1]]]
    return {k: np.ascontiguousarray(x) for k, x in out.items()}


class Model:
    """One rank's part of the model. `reduce` adds arrays of all ranks."""

    def __init__(self, config, w, tp=1, rank=0, reduce=lambda x: x):
        config.check_tp(tp)
        self.config, self.tp, self.rank, self.reduce = config, tp, rank, reduce
        self.w = w if tp == 1 else shard(config, w, tp, rank)
        self.q_heads = own(config.heads, tp, rank)
        self.kv_heads = own(config.kv_heads, tp, rank)
        half = config.head_dim // 2
        angle = np.arange(config.max_tokens)[:, None] * \
            10000.0 ** (-np.arange(half) / half)
        self.cos, self.sin = np.cos(angle), np.sin(angle)

    def rotate(self, x, positions):
        """Rotary positions; x is [tokens, heads, head_dim]."""
        half = x.shape[2] // 2
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        a, b = x[..., :half], x[..., half:]
        return on_grid(np.concatenate([a * cos - b * sin, b * cos + a * sin],
                                      axis=2))

    def attend(self, q, k, v, first):
        """Attention of the tokens from `first` on to all up to themselves.
        q is [tokens, heads, d]; k and v are [kv heads, all tokens, d]."""
        n, heads, d = q.shape
        per = heads // k.shape[0]
        q = q.reshape(n, k.shape[0], per, d).transpose(1, 2, 0, 3)
        s = np.matmul(q, k[:, None].transpose(0, 1, 3, 2)) / np.sqrt(d)
        if n > 1:
            later = np.arange(first + n) > first + np.arange(n)[:, None]
            s[..., later] = -1e9
        s -= s.max(axis=3, keepdims=True)
        np.exp(s, out=s)
        s *= EXP
        np.rint(s, out=s)  # whole numbers: their sum is exact
        s *= SOFT / s.sum(axis=3, keepdims=True)
        np.rint(s, out=s)
        out = np.matmul(s, v[:, None]) / SOFT
        return on_grid(out.transpose(2, 0, 1, 3).reshape(n, heads * d))

    def forward(self, rows, cache, done=None):
        """Runs tokens through all layers. rows: [(sequence, first position,
        tokens)], one per sequence; `cache` takes and gives keys and values of
        a sequence. done(layer) is called when a layer's are in the cache.
        Returns the states of each row's last token."""
        c, w = self.config, self.w
        x = w["embed"][np.concatenate([t for _, _, t in rows])]
        positions = np.concatenate(
            [np.arange(at, at + len(t)) for _, at, t in rows])
        for i in range(c.layers):
            h = rms_norm(x, 1.0)
            q, k, v = (on_grid(h @ w[f"{i}.{m}"]).reshape(
                len(x), -1, c.head_dim) for m in "qkv")
            q, k = self.rotate(q, positions), self.rotate(k, positions)
            parts, r = [], 0
            for seq, at, tokens in rows:
                n = len(tokens)
                cache.store(seq, i, at, k[r:r + n], v[r:r + n])
                keys, values = cache.load(seq, i, at + n)
                parts.append(self.attend(q[r:r + n], keys, values, at))
                r += n
            if done is not None:
                done(i)
            x = on_grid(x + self.reduce(np.concatenate(parts) @ w[f"{i}.o"]))
            h = rms_norm(x, 1.0)
            gate = h @ w[f"{i}.gate"]
            act = on_grid(gate / (1 + np.exp(-gate)) * (h @ w[f"{i}.up"]))
            x = on_grid(x + self.reduce(act @ w[f"{i}.down"]))
        ends = np.cumsum([len(t) for _, _, t in rows]) - 1
        return rms_norm(x[ends], 1.0)

    def best(self, states):
        """Per state, (score, token) of the best of this rank's tokens."""
        scores = states @ self.w["head"]
        first = self.rank * OUTPUTS // self.tp
        at = scores.argmax(axis=1)
        return [(float(s[a]), int(a) + first) for s, a in zip(scores, at)]


def choose(of_ranks):
    """The best token of each row from what best() gave on every rank; the
    lowest of equals."""
    return [min(row, key=lambda b: (-b[0], b[1]))[1]
            for row in zip(*of_ranks)]


def reference(config, prompt, max_tokens, w=None):
    """The tokens of the same model in this process."""
    from cache import Cache
    model = Model(config, weights(config) if w is None else w)
    tokens = encode(prompt)
    blocks = -(-(len(tokens) + max_tokens) // 16)
    cache = Cache(config, 1, 0, blocks, 16)
    cache.open(0, range(blocks))
    if len(tokens) > 1:
        model.forward([(0, 0, np.array(tokens[:-1]))], cache)
    out, at, token = [], len(tokens) - 1, tokens[-1]
    for _ in range(max_tokens):
        states = model.forward([(0, at, np.array([token]))], cache)
        out.append(choose([model.best(states)])[0])
        at, token = at + 1, as_input(out[-1])
    return out
