# SPDX-License-Identifier: Apache-2.0
"""What each probe of csrc/host_exec/probes.cu must compute, from the PTX ISA's text and figures, in numpy.

`Probe.make(rng, exact)` makes the bytes a probe reads: with `exact`, numbers so small that every order and rounding of
sums gives the same; without, ones that exercise rounding. `Probe.expect(input)` is the result and its allowed error.
`lane >> 2` is the ISA's groupID, `lane % 4` its threadID_in_group.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

LANES = np.arange(32)
GROUP, THREAD = LANES >> 2, LANES % 4


def bf16_bits(x: np.ndarray) -> np.ndarray:
    """Float32 to bfloat16, to nearest even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def f16_bits(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(x, np.float32).astype(np.float16).view(np.uint16)


def bf16_values(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def f16_values(bits: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(bits, np.uint16).view(np.float16).astype(np.float64)


BITS = {"bf16": bf16_bits, "f16": f16_bits}
VALUES = {"bf16": bf16_values, "f16": f16_values}


@dataclass(frozen=True)
class Probe:
    make: Callable[[np.random.Generator, bool], np.ndarray]
    expect: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | int]]
    result: np.dtype
    capability: tuple[int, int | None] = (80, None)  # the GPUs that have it: from, and up to

    def check(self, input: np.ndarray, output: bytes) -> None:
        expected, allowed = self.expect(input)
        result = np.frombuffer(output, self.result).reshape(expected.shape)
        if not np.issubdtype(self.result, np.floating):
            np.testing.assert_array_equal(result, expected)
        else:
            error = np.abs(result.astype(np.float64) - expected)
            assert (error <= allowed).all(), f"error {error.max()} where {np.max(allowed)} is allowed"


def numbers(rng: np.random.Generator, shape: tuple[int, ...], exact: bool) -> np.ndarray:
    return rng.integers(-8, 9, shape).astype(np.float32) if exact else rng.standard_normal(shape).astype(np.float32)


def sum_error(c: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of c + a @ b in float32: a rounding or truncation (2^-23) for each of its terms, relative to their sizes.

    Zero where every product and sum is a small integer, which float32 holds exactly.
    """
    whole = all(np.array_equal(x, np.rint(x)) for x in (a, b, c))
    return (0.0 if whole else (a.shape[1] + 1) * 2.0**-23) * (np.abs(c) + np.abs(a) @ np.abs(b))


# ---- mma.m16n8k16 and mma.m16n8k8


def mma(k: int, dtype: str) -> Probe:
    fields = np.dtype([("d", "f4", 4), ("a", "u2", k // 2), ("b", "u2", k // 4)])

    def places(lane: int):
        """(row, column) of each element of this lane's fragments of a, b, c."""
        group, thread = lane >> 2, lane % 4
        a = [(group + (0 if i % 4 < 2 else 8), thread * 2 + (i & 1) + (0 if i < 4 else 8)) for i in range(k // 2)]
        b = [(thread * 2 + (i & 1) + (0 if i < 2 else 8), group) for i in range(k // 4)]
        c = [(group + (0 if i < 2 else 8), thread * 2 + (i & 1)) for i in range(4)]
        return a, b, c

    def make(rng, exact):
        out = np.zeros(32, fields)
        out["d"] = numbers(rng, (32, 4), exact)
        out["a"] = BITS[dtype](numbers(rng, (32, k // 2), exact))
        out["b"] = BITS[dtype](numbers(rng, (32, k // 4), exact))
        return out

    def expect(x):
        a, b, c = np.zeros((16, k)), np.zeros((k, 8)), np.zeros((16, 8))
        for lane in LANES:
            in_a, in_b, in_c = places(lane)
            for i, at in enumerate(in_a):
                a[at] = VALUES[dtype](x["a"][lane, i : i + 1])[0]
            for i, at in enumerate(in_b):
                b[at] = VALUES[dtype](x["b"][lane, i : i + 1])[0]
            for i, at in enumerate(in_c):
                c[at] = x["d"][lane, i]
        d, allowed = c + a @ b, sum_error(c, a, b)
        gather = [tuple(zip(*places(lane)[2], strict=True)) for lane in LANES]
        return np.array([d[at] for at in gather]), np.array([allowed[at] for at in gather])

    return Probe(make, expect, np.dtype("f4"))


# ---- two floats to one register


def pack(dtype: str) -> Probe:
    def make(rng, exact):
        x = numbers(rng, (32, 2), exact)
        if not exact:  # halfway cases of both types, overflow of float16, subnormal numbers, infinity, zero
            x[:3] = [[1 + 2**-8, 1 + 3 * 2**-8], [1 + 2**-11, 1 + 3 * 2**-11], [65519, 65520]]
            x[3:6] = [[2**-24, 3 * 2**-25], [np.inf, -np.inf], [-0.0, 2**-130]]
        return x

    def expect(x):
        bits = BITS[dtype](x).astype(np.uint32)
        return bits[:, 0] | bits[:, 1] << 16, 0

    return Probe(make, expect, np.dtype("u4"))


def exp2_approx() -> Probe:
    def make(rng, exact):
        x = numbers(rng, (32,), exact) * np.float32(1 if exact else 8)
        x[:6] = [-np.inf, 0, -0.0, 127, -126, -127]  # the last would be subnormal: 0
        return x

    def expect(x):
        y = np.exp2(x.astype(np.float64))
        return np.where(y < 2.0**-126, 0, y), 2.0**-22 * y

    return Probe(make, expect, np.dtype("f4"))


# ---- ldmatrix


def ldmatrix(matrices: int, transposed: bool) -> Probe:
    fields = np.dtype([("rows", "u2", (32, 8)), ("row_of_lane", "i4", 32)])

    def make(rng, exact):
        out = np.zeros((), fields)
        out["rows"] = rng.integers(0, 1 << 16, (32, 8))
        out["row_of_lane"] = LANES if exact else rng.permutation(32)
        return out

    def expect(x):
        out = np.zeros((32, matrices, 2), np.uint16)
        for i in range(matrices):
            matrix = x["rows"][x["row_of_lane"][8 * i : 8 * i + 8]]
            if transposed:
                matrix = matrix.T
            out[:, i, 0], out[:, i, 1] = matrix[GROUP, 2 * THREAD], matrix[GROUP, 2 * THREAD + 1]
        return out, 0

    return Probe(make, expect, np.dtype("u2"))


# ---- copies and barriers


def cp_async() -> Probe:
    fields = np.dtype([("data", "u4", (2, 32, 4)), ("wanted", "i4", (2, 32))])

    def make(rng, exact):
        out = np.zeros((), fields)
        out["data"] = rng.integers(0, 1 << 32, (2, 32, 4))
        out["wanted"] = 1 if exact else rng.integers(0, 2, (2, 32))
        return out

    def expect(x):
        return (x["data"] * (x["wanted"] != 0)[..., None].astype(np.uint32))[:, LANES ^ 1], 0

    return Probe(make, expect, np.dtype("u4"))


def mbarrier() -> Probe:
    def make(rng, exact):
        return rng.integers(-(1 << 31), 1 << 31, (4, 32)).astype(np.int32)

    return Probe(make, lambda x: (x[:, LANES ^ 5], 0), np.dtype("i4"), (90, None))


def swizzled(tile: np.ndarray) -> np.ndarray:
    """(rows, 64) elements to how they lie: 16-byte chunk c of row r at chunk c xor r % 8."""
    chunks = tile.reshape(len(tile), 8, 8)
    out = np.empty_like(chunks)
    for r in range(len(tile)):
        for c in range(8):
            out[r, c ^ r % 8] = chunks[r, c]
    return out


def tma_load(row: int, column: int) -> Probe:
    rows, columns, box_rows, margin = 20, 72, 16, 80

    def make(rng, exact):
        return rng.integers(1, 1 << 16, (rows, columns)).astype(np.uint16)

    def expect(x):
        space = np.zeros((rows + 2 * margin, columns + 2 * margin), np.uint16)  # zero outside the matrix
        space[margin : margin + rows, margin : margin + columns] = x
        top, left = margin + row, margin + column
        return swizzled(space[top : top + box_rows, left : left + 64]), 0

    return Probe(make, expect, np.dtype("u2"), (90, None))


def tma_load_head(columns: int, column: int, token: int) -> Probe:
    """Of (sample, token, head, column): a box of 16 tokens of head 2 of sample 1, zero outside."""
    samples, tokens, heads, width, box_tokens = 2, 20, 3, 72, 16

    def make(rng, exact):
        return rng.integers(1, 1 << 16, (samples, tokens, heads, width)).astype(np.uint16)

    def expect(x):
        box = np.zeros((box_tokens, columns), np.uint16)
        inside = x[1, token : token + box_tokens, 2, column : column + columns]
        box[: inside.shape[0], : inside.shape[1]] = inside
        return swizzled(box) if columns == 64 else box, 0

    return Probe(make, expect, np.dtype("u2"), (90, None))


# ---- wgmma


def wgmma(dtype: str, accumulate: bool = True, a_is: str = "k", b_is: str = "k", n: int = 64) -> Probe:
    """a_is: "k" (rows along k), "m" (transposed) or "registers"; b_is: "k" or "n" (transposed); or both are "plain"."""
    size = 64
    fields = np.dtype(
        [("a", "u2", (size, size)), ("b", "u2", (size, n)), ("d", "f4", (128, n // 2)), ("registers", "u2", (128, 8))]
    )

    def place(thread: int):
        warp, lane = thread // 32, thread % 32
        i = np.arange(n // 2)
        return 16 * warp + (lane >> 2) + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * (lane % 4) + i % 2

    def place_in_a(thread: int):
        """Of the eight elements of a that a thread has in registers, low to high."""
        warp, lane = thread // 32, thread % 32
        i = np.arange(8)
        return 16 * warp + (lane >> 2) + 8 * (i // 2 % 2), 2 * (lane % 4) + i % 2 + 8 * (i // 4)

    def make(rng, exact):
        out = np.zeros((), fields)
        out["a"] = BITS[dtype](numbers(rng, (size, size), exact))
        out["b"] = BITS[dtype](numbers(rng, (size, n), exact))
        out["d"] = numbers(rng, (128, n // 2), exact)
        out["registers"] = BITS[dtype](numbers(rng, (128, 8), exact))
        return out

    def expect(x):
        depth = np.r_[32:40, 48:56] if a_is == "plain" else np.r_[32:48]
        a = VALUES[dtype](x["a"].T if a_is == "m" else x["a"])[:, depth]
        b = VALUES[dtype](x["b"])[depth] if b_is == "n" else VALUES[dtype](x["b"])[:, depth].T
        c = np.zeros((size, n))
        for thread in range(128):
            if a_is == "registers":
                a[place_in_a(thread)] = VALUES[dtype](x["registers"][thread])
            if accumulate:
                c[place(thread)] = x["d"][thread]
        d, allowed = c + a @ b, sum_error(c, a, b)
        return np.array([d[place(t)] for t in range(128)]), np.array([allowed[place(t)] for t in range(128)])

    return Probe(make, expect, np.dtype("f4"), (90, 90))


PROBES = {
    "mma_m16n8k16_bf16": mma(16, "bf16"),
    "mma_m16n8k16_f16": mma(16, "f16"),
    "mma_m16n8k8_bf16": mma(8, "bf16"),
    "mma_m16n8k8_f16": mma(8, "f16"),
    "pack_bf16": pack("bf16"),
    "pack_f16": pack("f16"),
    "exp2_approx": exp2_approx(),
    "ldmatrix_x1": ldmatrix(1, False),
    "ldmatrix_x1_trans": ldmatrix(1, True),
    "ldmatrix_x2": ldmatrix(2, False),
    "ldmatrix_x2_trans": ldmatrix(2, True),
    "ldmatrix_x4": ldmatrix(4, False),
    "ldmatrix_x4_trans": ldmatrix(4, True),
    "cp_async16": cp_async(),
    "mbarrier": mbarrier(),
    "tma_load_inside": tma_load(2, 8),
    "tma_load_past_the_end": tma_load(8, 32),
    "tma_load_before_the_start": tma_load(-3, -8),
    "tma_load_head": tma_load_head(64, 0, 8),
    "tma_load_head_tail": tma_load_head(8, 64, 8),
    "tma_load_head_past_the_end": tma_load_head(8, 72, 0),
    "wgmma_m64n64k16_bf16": wgmma("bf16"),
    "wgmma_m64n64k16_f16": wgmma("f16"),
    "wgmma_m64n64k16_bf16_overwrite": wgmma("bf16", accumulate=False),
    "wgmma_m64n64k16_f16_b_transposed": wgmma("f16", b_is="n"),
    "wgmma_m64n64k16_bf16_both_transposed": wgmma("bf16", a_is="m", b_is="n"),
    "wgmma_m64n64k16_f16_both_transposed": wgmma("f16", a_is="m", b_is="n"),
    "wgmma_m64n64k16_bf16_plain": wgmma("bf16", a_is="plain", b_is="plain"),
    "wgmma_m64k16_registers_n64_bf16": wgmma("bf16", a_is="registers"),
    "wgmma_m64k16_registers_n64_f16_b_transposed": wgmma("f16", a_is="registers", b_is="n"),
    "fence_proxy_async": wgmma("bf16", a_is="registers", b_is="n"),
    "wgmma_m64k16_registers_n8_bf16_b_transposed_plain": wgmma("bf16", a_is="registers", b_is="n", n=8),
    "wgmma_m64k16_registers_n8_f16_b_transposed_plain": wgmma("f16", a_is="registers", b_is="n", n=8),
}
