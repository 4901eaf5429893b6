"""The verdict table: predicted beside measured, in 80 columns."""

import io
from collections.abc import Sequence

import attrs
from rich.console import Console
from rich.table import Table
from rich.text import Text

from core.evidence import Verdict
from core.launch.log import escaped
from core.spec import Expect

WIDTH = 80
ABSURD = 100.0  # bits per byte: no byte of text is worth so many
STYLE = {
    "supported": "green",
    "refuted": "yellow",
    "crashed": "red",
    "invalid": "red",
    "inconclusive": "",
    "measured": "",
}


@attrs.frozen(kw_only=True)
class Row:
    """One experiment of the table.

    Attributes:
        id: The pytest id.
        expect: What the spec predicts, under whatever profile.
        verdict: What became of it.
        stored: Whether it was decided in an earlier session.
        earlier: The words of earlier attempts, oldest first.
    """

    id: str
    expect: Expect | None
    verdict: Verdict
    stored: bool
    earlier: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """The spec file."""
        return self.id.split("::", 1)[0]

    @property
    def label(self) -> str:
        """The experiment within its file."""
        return escaped(self.id.split("::", 1)[1])


def line(row: Row) -> tuple[str, dict[str, bool]]:
    """Return one line on a verdict, and pytest's markup for it."""
    verdict = row.verdict
    said = f"{verdict.word:<12} {row.file}::{row.label}"
    if verdict.delta_bpb is not None:
        said += f"  {verdict.delta_bpb:+.4f}"
    if verdict.candidates:
        said += f"  {_seeds(verdict)}"
    said += "  (stored)" if row.stored else f"  {verdict.seconds:.0f} s"
    style = STYLE.get(verdict.word)
    return said, {style: True} if style else {}


def table(rows: Sequence[Row], *, colour: bool) -> str:
    """Return the verdict table, as wide as WIDTH at most.

    Args:
        rows: Shown by file, in the order in which they come.
        colour: Whether to colour the words.
    """
    shown = Table(box=None, pad_edge=False, header_style="bold", width=WIDTH)
    shown.add_column("experiment", ratio=1, overflow="fold")
    shown.add_column("predicted", justify="right", no_wrap=True)
    shown.add_column("measured ± 90 %", justify="right", no_wrap=True)
    shown.add_column("seeds", justify="right", no_wrap=True)
    shown.add_column("s", justify="right", no_wrap=True)
    shown.add_column("verdict", no_wrap=True)
    file = None
    for row in sorted(rows, key=lambda row: row.file):
        verdict = row.verdict
        if row.file != file:
            file = row.file
            shown.add_row(Text(file, style="dim" if colour else ""))
        shown.add_row(
            Text(f"  {row.label}"),  # as a str, [relu] would be markup
            predicted(row.expect),
            measured(verdict),
            str(verdict.candidates),
            f"{verdict.seconds:.0f}",
            Text(verdict.word, style=STYLE.get(verdict.word, "") if colour else ""),
        )
    notes = _notes(rows)
    output = io.StringIO()
    console = Console(
        file=output,
        width=WIDTH,
        force_terminal=colour,
        color_system="standard" if colour else None,
        highlight=False,
    )
    console.print(shown)
    for note in notes:
        console.print(Text(note))
    return output.getvalue().rstrip("\n")


def predicted(expect: Expect | None) -> str:
    """Return a prediction with the profile that it speaks of."""
    if expect is None:
        return "–"
    size = f"0±{expect.within:g}" if expect.delta_bpb == 0 else f"{expect.delta_bpb:+g}"
    return f"{size} {expect.on}"


def measured(verdict: Verdict) -> str:
    """Return a measured change with its interval."""
    if verdict.delta_bpb is None:
        return "–"
    assert verdict.lower_bpb is not None
    half = verdict.delta_bpb - verdict.lower_bpb
    if max(abs(verdict.delta_bpb), half) >= ABSURD:  # the words need their room
        return f"{verdict.delta_bpb:+.2g} ± {half:.2g}"
    return f"{verdict.delta_bpb:+.4f} ± {half:.4f}"


def _seeds(verdict: Verdict) -> str:
    return f"{verdict.candidates} seed{'s' * (verdict.candidates > 1)}"


def _notes(rows: Sequence[Row]) -> list[str]:
    """Return what the table cannot say in a column."""
    notes = []
    for row in rows:
        verdict, name = row.verdict, row.label
        said = []
        if verdict.replication is not None:
            said.append(f"a repetition is supported too with {verdict.replication:.0%}")
        if verdict.size_held is False and verdict.word == "supported":
            said.append("the predicted size lies outside the interval")
        if verdict.word in ("inconclusive", "crashed", "invalid"):
            said.append(escaped(verdict.reason.rstrip(".")))
        if verdict.attempt:
            before = f" (before: {', '.join(row.earlier)})" if row.earlier else ""
            said.append(f"attempt {verdict.attempt + 1}, on fresh seeds{before}")
        if said:
            notes.append(f"{name}: {'; '.join(said)}.")
    for profile in sorted({
        row.expect.on
        for row in rows
        if row.expect is not None and row.verdict.predicted_bpb is None
    }):
        notes.append(
            f"measured: predictions for {profile} are not judged under another profile."
        )
    if any(row.stored for row in rows):
        notes.append(
            f"{sum(row.stored for row in rows)} of {len(rows)} verdicts are from "
            "earlier sessions; --rerun tests them on fresh seeds."
        )
    return notes
