# SPDX-License-Identifier: Apache-2.0
"""Which of the trained timesteps a shorter chain keeps.

LEGEND: T trained timesteps, K kept timesteps.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

Respacing = str | int | Sequence[int] | None


def space_timesteps(diffusion_steps: int, timestep_respacing: Respacing) -> tuple[int, ...]:
    """Choose the kept timesteps, ascending, out of `0 .. diffusion_steps - 1`.

    `timestep_respacing` is one of:
      * `""` or `None`: all T timesteps;
      * `"250"` or `250`: K evenly spaced real numbers from the first to the last timestep, both included,
        rounded to integers (Improved DDPM, arXiv 2102.09672, section 4); ties go to the even integer;
      * `"10,10,20"` or `[10, 10, 20]`: T is cut into that many sections, as equal as can be with the longer
        ones first, and each is spaced on its own; a section of one step keeps its first timestep;
      * `"ddim50"`: `0, T/50, 2T/50, ...`, so the count has to divide T. It names a spacing only: whether DDPM
        or DDIM sampling follows it is the caller's choice.

    Raises ValueError naming `timestep_respacing` where the text cannot be read or the spacing cannot be met.
    """
    if timestep_respacing is None or timestep_respacing == "":
        return tuple(range(diffusion_steps))
    if isinstance(timestep_respacing, str) and timestep_respacing.startswith("ddim"):
        return _integer_stride(diffusion_steps, timestep_respacing)
    counts = _section_counts(timestep_respacing)
    kept: list[int] = []
    start = 0
    for index, count in enumerate(counts):
        size = diffusion_steps // len(counts) + (index < diffusion_steps % len(counts))
        if not 1 <= count <= size:
            raise ValueError(
                f"timestep_respacing: expected 1 to {size} steps in section {index} (which holds {size} of "
                f"{diffusion_steps} timesteps), came {count} in {timestep_respacing!r}"
            )
        stride = Fraction(size - 1, max(count - 1, 1))
        kept.extend(start + round(stride * i) for i in range(count))
        start += size
    return tuple(kept)


def _integer_stride(diffusion_steps: int, timestep_respacing: str) -> tuple[int, ...]:
    digits = timestep_respacing.removeprefix("ddim")
    count = int(digits) if digits.isdecimal() else 0
    if count < 1 or diffusion_steps % count:
        divisors = [d for d in range(1, diffusion_steps + 1) if diffusion_steps % d == 0]
        nearest = [d for d in divisors if d < count][-1:] + [d for d in divisors if d > count][:1]
        raise ValueError(
            f"timestep_respacing: expected 'ddimN' with N a divisor of diffusion_steps={diffusion_steps} "
            f"(nearest: {' or '.join(map(str, nearest))}), came {timestep_respacing!r}"
        )
    return tuple(range(0, diffusion_steps, diffusion_steps // count))


def _section_counts(timestep_respacing: str | int | Sequence[int]) -> list[int]:
    parts: Sequence[object]
    if isinstance(timestep_respacing, str):
        words = [word.strip() for word in timestep_respacing.split(",")]
        parts = [int(word) if word.isdecimal() else word for word in words]
    elif isinstance(timestep_respacing, Sequence):
        parts = timestep_respacing
    else:
        parts = [timestep_respacing]
    counts = [part for part in parts if isinstance(part, int) and not isinstance(part, bool)]
    if not counts or len(counts) != len(parts):
        raise ValueError(
            "timestep_respacing: expected '', a count such as '250', section counts such as '10,10,20', "
            f"'ddimN', an int or a list of ints, came {timestep_respacing!r}"
        )
    return counts
