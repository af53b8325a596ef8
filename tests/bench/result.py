# SPDX-License-Identifier: Apache-2.0
"""A result made up: rows of every kind, a loaded one, an absent peer, text that HTML must escape."""

from dit_fast.bench.schema import Result, Row

TIMES = {
    ("adaln", "float32"): {"cpu": 1.0, "eager": 3.0, "compile": 1.5},
    ("adaln", "bfloat16"): {"cpu": 1.0, "eager": 2.0, "compile": 0.8},
    ("attention", "float32"): {"cpu": 4.0, "eager": 8.0, "compile": 4.02},
    ("linear_gelu", "float32"): {"cpu": 10.0, "eager": 12.0, "compile": 40.0},
}
"""Against the fastest other: 1.5 faster, 0.8 slower, level, and (under load) nothing."""


def ops() -> list[Row]:
    return [
        Row(
            "ops", name, "XL/2, N=8", {"N": 8, "T": 256, "D": 1152}, dtype, "forward", backend, backend == "cpu", ms=ms,
            spread=0.02, rounds=15, loaded=name == "linear_gelu", others_cores=0.5 if name == "linear_gelu" else 0.0,
            gbytes_per_s=20 / ms, tflops=None if name == "adaln" else 0.1 / ms, share=0.5 / ms, share_of="copy",
            peak_bytes=int(3e6), memory_method="the allocator's peak", error=1e-3, error_eager=1e-3,
            ratio_to_eager=times["eager"] / ms, note="<pinned & named>" if backend == "compile" else "",
            repeat=f"dit-fast bench ops --op {name}",
        )
        for (name, dtype), times in TIMES.items()
        for backend, ms in times.items()
    ]  # fmt: skip


def models() -> list[Row]:
    return [
        Row(
            "model", "DiT-S/2", f"N={n}, 32x32 latent", {"batch": n}, "bfloat16", "forward", backend, backend == "auto",
            ms=n * ms, spread=0.02, rounds=9, tflops=2 * 6.06e-3 / ms, images_per_s=1e3 / ms,
            repeat=f"dit-fast bench model --batch {n}",
        )
        for n in (1, 8)
        for backend, ms in {"auto": 50.0, "eager": 80.0, "openvino": 49.9}.items()
    ]  # fmt: skip


def growth(axis: str, values: list[int], power: float) -> list[Row]:
    """ms = value ** power for ours, twice that for eager."""
    return [
        Row(
            "growth", "DiT-S/2", f"{axis}={value}", {"width": 384, axis: value}, "float32", "forward", backend,
            backend == "auto", ms=times * value**power, spread=0.01, rounds=3, peak_bytes=value << 20,
        )
        for value in values
        for backend, times in {"auto": 1.0, "eager": 2.0}.items()
    ]  # fmt: skip


def made_up() -> Result:
    rows = [*ops(), *models(), *growth("tokens", [64, 256, 1024, 4096], 1.2), *growth("batch", [1, 4, 16], 1.0)]
    return Result(
        date="2026-01-02T03:04:05+00:00", command="dit-fast bench ops --html <page>.html",
        environment={"device": "A CPU with <brackets>", "torch": "2.13.0", "commit": "0123abc" * 5},
        ceilings={"copy_gbytes_per_s": 30.0, "matmul_tflops": {"float32": 0.2, "bfloat16": 0.4}},
        load={"others_cores": 0.02, "limit": 0.15, "allowed": True},
        absent={"ops: flash-attn": "not installed & <missing>"}, rows=rows,
    )  # fmt: skip
