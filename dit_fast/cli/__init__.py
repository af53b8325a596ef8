# SPDX-License-Identifier: Apache-2.0
"""The command `dit-fast`: info, parity, demo, sample, convert, bench, plan."""

import argparse
import os
import sys

from . import bench, convert, demo, info, parity, plan, sample


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dit-fast", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for module in (info, parity, demo, sample, convert, bench, plan):
        name = module.__name__.rsplit(".", 1)[1]
        about = (module.__doc__ or "").strip()
        command = commands.add_parser(name, help=about.splitlines()[0], description=about)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; the answer is the exit status: 0 done, 1 a check failed, 2 bad input."""
    arguments = build_parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except (ValueError, FileNotFoundError) as error:
        print(f"dit-fast {arguments.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
