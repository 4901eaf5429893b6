"""Count what each layer catches alone: a row for each cheat of tests/cheats/, then the sums.

    python benchmarks/cheats.py [NAME...]

A `1` marks the first layer that catches a cheat, `+` each other one that would.
"""

import argparse
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from core.process.child import Zygote
from tests.corpus import HARMLESS, LAYERS, ROOT, load_cheats
from tests.layers import MODULES, Bench

COLUMNS = (*LAYERS, HARMLESS)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    names = parser.parse_args().names
    cheats = [cheat for cheat in load_cheats() if not names or cheat.name in names]
    with tempfile.TemporaryDirectory() as folder, Zygote(ROOT, MODULES) as zygote:
        caught = Bench.open(Path(folder), zygote).caught(cheats)
    print(table(caught))


def table(caught: Mapping[str, Mapping[str, str]]) -> str:
    """Return a row for each cheat, how many each layer catches, and how many first."""
    lines = [row("", COLUMNS)]
    for name, found in caught.items():
        first = next(iter(found), None)
        marks = ["1" if c == first else "+" if c in found else "" for c in COLUMNS]
        lines.append(row(name, marks))
    alone = [sum(c in found for found in caught.values()) for c in COLUMNS]
    first = [sum(next(iter(f), "") == c for f in caught.values()) for c in COLUMNS]
    lines += [row(f"caught, of {len(caught)}", alone), row("caught first", first)]
    return "\n".join(lines)


def row(name: str, cells: Iterable[object]) -> str:
    """Return *cells* below the heads of their columns."""
    return "".join([f"{name:28}", *(f"{cell!s:>10}" for cell in cells)]).rstrip()


if __name__ == "__main__":
    main()
