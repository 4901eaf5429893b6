"""Turn a hand-edited training module into the codemod that makes the same edits.

What is written is proved before anybody sees it: applied to the original it leaves a
module of the same digest, and applied twice it is an error.
"""

import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import attrs

from core.capture.edits import edits, units_of
from core.capture.writing import codemod_file
from core.errors import CaptureError, MutationError
from core.gates import OF_THE_DATA, configuration
from core.mutate import Job, Mutant, SymbolChange, compare, mutate_all
from core.profile import PROFILES
from core.spec import CodemodCall
from core.spec.vocabulary import NAME
from core.syntax import MAX_SOURCE_BYTES

ORIGINAL = "the training module"


@attrs.frozen(kw_only=True)
class Target:
    """The experiment that a codemod is captured for.

    Attributes:
        spec: Of the spec file, below ``specs/`` and without suffix: ``("x",)``.
        name: The experiment.
    """

    spec: tuple[str, ...]
    name: str

    @property
    def spec_file(self) -> str:
        """The spec file, relative to the project."""
        return f"specs/{'/'.join(self.spec)}.py"

    @property
    def codemod_file(self) -> str:
        """The codemod's file, relative to the project."""
        return f"codemods/{'/'.join(self.spec)}/{self.name}.py"

    @property
    def id(self) -> str:
        """The pytest id."""
        return f"{self.spec_file}::{self.name}"

    @property
    def codemod(self) -> str:
        """The name of the codemod's class."""
        return "".join(part.capitalize() for part in self.name.split("_"))

    @property
    def reference(self) -> str:
        """The codemod, as a spec would name it."""
        return ".".join([*self.spec, self.name, self.codemod])


@attrs.frozen(kw_only=True)
class Captured:
    """The codemod that turns a module into its edited copy.

    Attributes:
        source: The codemod's file.
        changes: What it changes, one row a symbol.
        mutant: What it makes of the original.
        warnings: Where else it will not apply, and what to do about that.
    """

    source: str
    changes: tuple[SymbolChange, ...]
    mutant: Mutant
    warnings: tuple[str, ...]


def target(name: str) -> Target:
    """Return what ``specs/x.py::idea`` names.

    Raises:
        CaptureError: It is not so written, or breaks the rule for names.
    """
    file, found, experiment = name.partition("::")
    path = Path(file)
    if not found or path.parts[:1] != ("specs",) or path.suffix != ".py":
        raise CaptureError(
            f"{name!r} names no experiment: expected SPEC::NAME.",
            hint="name the spec file, from the project, and the experiment: "
            "--as specs/x.py::idea.",
        )
    spec = path.with_suffix("").parts[1:]
    for part in (*spec, experiment):
        if not NAME.fullmatch(part):
            raise CaptureError(
                f"{part!r} in {name!r} does not match {NAME.pattern}.",
                hint="name files and experiments in lower case and underscores, at most "
                "64 characters.",
            )
    return Target(spec=spec, name=experiment)


def capture(
    base: str,
    edited: str,
    *,
    target: Target,
    file: str = "a copy",
    change: str = "",
    confined: bool = True,
) -> Captured:
    """Return the codemod that turns *base* into what *edited* means.

    Args:
        base: The training module.
        edited: A copy of it, edited by hand.
        target: The experiment that the change belongs to.
        file: What to call the copy.
        change: What was changed, in a sentence, for whoever reads the codemod.
        confined: The codemod is tried in a sandbox.

    Raises:
        CaptureError: There is nothing to capture, or what there is cannot be.
        MutationError: The training module itself cannot be edited.
    """
    old, new = _read(base, ORIGINAL), _read(edited, file)
    if old.digest == new.digest:
        raise CaptureError(
            f"{file} means the same as {ORIGINAL}: there is nothing to capture.",
            hint="change what it computes, not only its comments or layout.",
        )
    _check_data(base, edited, file)
    source = codemod(base, edited, target=target, file=file, change=change)
    if len(source.encode()) > MAX_SOURCE_BYTES:
        raise CaptureError(
            f"the codemod of {file} would take {len(source.encode()):,} bytes, and "
            f"{MAX_SOURCE_BYTES:,} can be read.",
            hint="capture fewer edits at a time.",
        )
    mutant = _proved(base, source, target, confined)
    check_complete(mutant.source, edited, file)
    _check_refusals(mutant, file)
    return Captured(
        source=source,
        changes=mutant.changes,
        mutant=mutant,
        warnings=tuple(_warnings(mutant, base, target)),
    )


def codemod(
    base: str, edited: str, *, target: Target, file: str = "a copy", change: str = ""
) -> str:
    """Return the file of the codemod that turns *base* into *edited*, unproved."""
    found = tuple(edits(units_of(base), units_of(edited)))
    return codemod_file(found, target.codemod, file, change)


def check_complete(mutant: str, edited: str, file: str) -> None:
    """Check that *mutant*, which a codemod made, means what *edited* means.

    Raises:
        CaptureError: It does not.
    """
    made, wanted = compare.read(mutant), compare.read(edited)
    if made.digest == wanted.digest:
        return
    names = [change.symbol for change in compare.changes(made, wanted)]
    raise CaptureError(
        f"not everything in {file} can be captured: {', '.join(names)} would differ.",
        hint="give symbols names of their own, or write this codemod by hand on "
        "codemods.base.Codemod.",
    )


def _read(source: str, file: str) -> compare.Module:
    try:
        return compare.read(source)
    except compare.Unreadable as error:
        raise CaptureError(
            f"{file} cannot be captured: {error}",
            hint="make it a module that Python imports, of at most 256 KiB.",
        ) from error


def _check_data(base: str, edited: str, file: str) -> None:
    before, after = configuration(base), configuration(edited)
    for name in OF_THE_DATA:
        if before.get(name) != after.get(name):
            now = repr(after[name]) if name in after else "no constant"
            raise CaptureError(
                f"{name} is {now} in {file}, and {before.get(name)!r} in {ORIGINAL}.",
                hint=f"leave {name} alone: it belongs to the data, which a profile "
                "chooses.",
            )


def _check_refusals(mutant: Mutant, file: str) -> None:
    if not mutant.refusals:
        return
    found = "".join(
        f"\n  line {refusal.line}"
        f"{f', in {refusal.symbol}' if refusal.symbol else ''}: {refusal.reason}"
        for refusal in mutant.refusals
    )
    raise CaptureError(
        f"{file} does what a training module has no business doing:{found}",
        hint="leave that out, then capture again: nothing was written.",
    )


def _proved(base: str, source: str, target: Target, confined: bool) -> Mutant:
    """Return what the codemod *source* makes of *base*, in a project of its own."""
    call = CodemodCall(reference=target.reference)
    once, twice = (Job(source=base, codemods=(call,) * times) for times in (1, 2))
    with tempfile.TemporaryDirectory(prefix="deltaspec-") as folder:
        path = Path(folder, target.codemod_file)
        path.parent.mkdir(parents=True)
        path.write_text(source, encoding="utf-8")
        mutant, again = mutate_all(
            [once, twice], project=Path(folder), confined=confined
        )
    if isinstance(mutant, MutationError):
        raise mutant
    assert isinstance(again, MutationError), "a codemod that applies twice"
    return mutant


def _warnings(mutant: Mutant, base: str, target: Target) -> Iterator[str]:
    """Say which changes do not apply where a profile sizes the module."""
    before, after = configuration(base), configuration(mutant.source)
    for row in mutant.changes:
        profiles = [
            profile.name
            for profile in PROFILES.values()
            for call in profile.overrides
            if row.kind == "constant" and dict(call.options)["name"] == row.symbol
        ]
        if not profiles or row.edit not in {"changed", "removed"}:
            continue
        there = " and ".join(profiles)
        message = (
            f"{row.symbol} is sized by the profile {there}: this codemod does not apply "
            f"there. "
        )
        factor = _factor(before.get(row.symbol), after.get(row.symbol))
        if row.edit == "removed" or factor is None:
            yield f"{message}Leave {row.symbol} as it is to run it under {there}."
            continue
        instead = (
            f'codemod("constants.ScaleConstant", name="{row.symbol}", factor={factor})'
        )
        if len(mutant.changes) == 1:
            yield f"{message}Write codemod={instead} in {target.spec_file} instead."
        else:
            both = f'({instead}, codemod("{target.reference}"))'
            yield (
                f"{message}Capture the rest without {row.symbol}, and write "
                f"codemod={both} in {target.spec_file}."
            )


def _factor(old: Any, new: Any) -> str | None:
    """Return what turns one number into the other, as a spec writes it."""
    for value in (old, new):
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            return None
    factor = Fraction(str(new)) / Fraction(str(old))
    if factor.denominator == 1:
        return str(factor)
    return f'"{factor}"'
