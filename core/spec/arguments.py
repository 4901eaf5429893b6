"""Check the arguments of what a spec calls, in the words of a spec."""

import difflib
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from core.errors import SpecError
from core.spec.vocabulary import SAID, Sweep, codemod


def check_arguments(
    call: Callable[..., Any], positional: tuple[Any, ...], named: dict[str, Any]
) -> None:
    """Refuse unknown, missing and positional arguments of *call*.

    Raises:
        SpecError: There is one.
    """
    if not attrs.has(call) or call is Sweep:
        if positional and call is Sweep:
            raise SpecError(
                f"Sweep({positional[0]!r}) does not say which axis this is.",
                hint="name it: Sweep(base=(1, 2, 4)).",
            )
        if call is codemod and len(positional) != 1:
            raise SpecError(
                f"codemod takes one reference, and got {len(positional)}.",
                hint='write codemod("module.Class", option=value).',
            )
        return
    fields = {field.name: field for field in attrs.fields(call)}
    name = call.__name__
    if positional:
        raise SpecError(
            f"{name}({positional[0]!r}, ...) does not say which field this is.",
            hint=f"name it; the fields are {', '.join(fields)}.",
        )
    for unknown in named:
        if unknown in fields:
            continue
        near = nearest(unknown, fields)
        raise SpecError(
            f"{name} has no field {unknown!r}.",
            hint=f"did you mean {near[0]!r}?"
            if near
            else f"use one of its fields: {', '.join(fields)}.",
            field=unknown,
        )
    missing = [
        field.name
        for field in fields.values()
        if field.default is attrs.NOTHING and field.name not in named
    ]
    if missing:
        s = "s" if len(missing) > 1 else ""
        raise SpecError(
            f"{name} misses the field{s} {' and '.join(map(repr, missing))}.",
            hint=f"add {' and '.join(map(_example, missing))}.",
        )


def _example(field: str) -> str:
    if field in SAID:
        return f'{field}="...", which says {SAID[field]}'
    return f"{field}=-0.001, in bits per byte: negative is an improvement"


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return the one of *known* that *name* is a likely misspelling of, if any is."""
    return difflib.get_close_matches(name, known, n=1, cutoff=0.7)
