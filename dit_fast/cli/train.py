# SPDX-License-Identifier: Apache-2.0
"""Train a DiT, in one process or in each of those that torchrun starts; stopped at any time, it goes on.

What to train, and how, comes from flags, over the file CONFIG.yaml, over the preset, over the paper's recipe. A flag is
a key of the file with dashes. `torchrun ... -m dit_fast train ...` takes the same.
"""

import argparse
import sys
from datetime import timedelta
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

from dit_fast.train.config import HINTS, TrainConfig
from dit_fast.train.configfile import field_help, load_config
from dit_fast.train.presets import PRESETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.allow_abbrev = False  # a new field must not change what a flag means
    parser.add_argument("config", nargs="?", type=Path, metavar="CONFIG.yaml", help="a file of `key: value` lines")
    parser.add_argument("--preset", metavar="NAME", help=f"one of {', '.join(PRESETS)}")
    parser.add_argument("--dry-run", action="store_true", help="print parameters, FLOPs, memory and the data found")
    parser.add_argument("--ranks", type=int, metavar="N", help="processes that --dry-run reckons for")
    fields = parser.add_argument_group("fields")
    help_of, defaults = field_help(), TrainConfig()
    for name, hint in HINTS.items():
        default = getattr(defaults, name)
        about = f"{help_of[name]} (default: {default})".replace("%", "%%")
        fields.add_argument(f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, help=about, **how(name, hint))


def how(name: str, hint: Any) -> dict[str, Any]:
    """A flag of a field, for argparse. Its text is read later, by the field's type, as a file's is."""
    kinds = [kind for kind in get_args(hint) if kind is not NoneType] if get_origin(hint) is UnionType else [hint]
    if kinds == [bool]:
        return {"action": argparse.BooleanOptionalAction}
    if name == "model_args":
        return {"action": "append", "metavar": "KEY=VALUE,..."}
    if bool in kinds:
        return {"nargs": "?", "const": "true", "metavar": "MODE"}
    if get_origin(hint) is Literal:
        return {"metavar": "{" + ",".join(map(str, get_args(hint))) + "}"}
    return {"metavar": getattr(kinds[0], "__name__", "A,B").upper()}


def run(arguments: argparse.Namespace) -> int:
    flags = {name: getattr(arguments, name) for name in HINTS if hasattr(arguments, name)}
    config = load_config(arguments.preset, arguments.config, flags)
    if arguments.dry_run:
        from ._dry_run import dry_run

        print(dry_run(config, arguments.ranks), end="")
        return 0

    from dit_fast.train.engine import Trainer, open_data

    from ._drawing import Drawing

    source = open_data(config)
    draw = Drawing(config, source) if config.sample_every else None
    try:
        trainer = Trainer(config, source, draw=draw)
        result = trainer.run()
    except FloatingPointError as error:
        print(f"dit-fast train: {error}", file=sys.stderr)
        return 1
    if trainer.ranks.first:
        print(
            f"{result.reason} after {result.steps} of {config.steps} steps, {timedelta(seconds=round(result.seconds))}"
            f" this time; checkpoints, samples and summary.md in {config.out}/"
        )
    return 0
