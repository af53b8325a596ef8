# SPDX-License-Identifier: Apache-2.0
"""The command `dit-fast`: info, parity, demo, encode, train, sample, evaluate, convert, bench, plan."""

import argparse
import os
import sys

from dit_fast.train.values import nearest

from . import bench, convert, demo, encode, evaluate, info, parity, plan, sample, train

COMMANDS = (info, parity, demo, encode, train, sample, evaluate, convert, bench, plan)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dit-fast", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for module in COMMANDS:
        name = module.__name__.rsplit(".", 1)[1]
        about = (module.__doc__ or "").strip()
        command = commands.add_parser(name, help=about.splitlines()[0], description=about)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def parse(argv: list[str] | None) -> argparse.Namespace:
    """An unknown flag is refused with the nearest known one."""
    parser = build_parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        commands = next(action for action in parser._actions if action.dest == "command").choices or {}
        flags = dict(commands)[arguments.command]._option_string_actions
        near = [nearest(word.partition("=")[0], flags) for word in unknown if word.startswith("-")]
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{next(iter(near), '')}")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run one command; the answer is the exit status: 0 done, 1 a check failed, 2 bad input, a bad disk, no library."""
    arguments = parse(argv)
    try:
        return arguments.run(arguments)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"dit-fast {arguments.command}: {error}", file=sys.stderr)
        return 2
