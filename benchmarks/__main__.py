# SPDX-License-Identifier: Apache-2.0
"""python -m benchmarks: `dit-fast bench`, from a checkout; `python -m benchmarks readme` writes the README's tables."""

import argparse
import sys

from benchmarks import readme
from dit_fast.bench.runner import add_arguments, run


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add_arguments(parser)
    try:
        return readme.main() if argv == ["readme"] else run(parser.parse_args(argv))
    except ValueError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
