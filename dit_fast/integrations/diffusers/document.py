# SPDX-License-Identifier: Apache-2.0
"""docs/diffusers.md, from the table of recipes. `python -m dit_fast.integrations.diffusers.document` prints it."""

from .known import KNOWN
from .recipes import FAMILIES, LEFT, PARTS
from .table import Family

HEAD = """<!-- Written by `python -m dit_fast.integrations.diffusers.document`; a test holds it current. -->
# What `dit_fast.patch` fuses in diffusers

    report = dit_fast.patch(pipe.transformer)   # in place; same numbers beyond rounding
    print(report)                               # what was replaced, what was left and why
    dit_fast.unpatch(pipe.transformer)          # as before, bit by bit

| op | stands for |
|---|---|
| `adaln` | `norm(x) * (1 + scale) + shift` |
| `gated_residual_adaln` | `x + gate * y`, and the norm and modulation that follow |
| `gated_residual` | `x + gate * y` |
| `patch_embed` | the convolution that cuts patches, and adding the positions |

Attention, feed forwards and the Linears of modulations stay calls of diffusers' own modules: processors, attention
backends, IP adapters, LoRA and quantised Linears go on working. Where a norm is hooked or replaced after patching, or
dtypes or shapes are none that an op takes, that call computes the plain expression.

A block is replaced only if its forward is one of those read, whose fingerprints are in
[`known.py`](../dit_fast/integrations/diffusers/known.py): of diffusers {versions}. Where another version or a
subclass has another forward, the block is left alone, and the report says so.
"""

TABLE = """
| model | replaced | left to PyTorch |
|---|---|---|
"""


def page() -> str:
    versions = {v for prints in KNOWN.values() for seen in prints.values() for v in seen}
    rows = "".join(map(_row, sorted(FAMILIES, key=lambda family: family.models)))
    left = "".join(f"- `{name.rsplit('.', 1)[1]}`: {why}\n" for name, why in sorted(LEFT.items()))
    head = HEAD.format(versions=", ".join(sorted(versions, key=lambda v: [int(p) for p in v.split(".")])))
    return f"{head}{TABLE}{rows}\nRecognised and left alone:\n\n{left}"


def _row(family: Family) -> str:
    models = "<br>".join(f"`{model}`" for model in family.models)
    fused = {row.name.rsplit(".", 1)[1]: row.ops for row in family.blocks}
    fused |= {part: PARTS[part] for part in family.parts}
    replaced = "<br>".join(f"`{name}`: {', '.join(ops)}" for name, ops in fused.items())
    return f"| {models} | {replaced} | {family.left or '-'} |\n"


if __name__ == "__main__":
    print(page(), end="")
