"""Mutant -> a configuration that can run, cheapest check first.

What `mutate` found that a training module has no business doing is refused here.  The
module also states its own rules, as module-level assertions over its constants; they are
checked from the syntax tree, without torch and without running a line.
Checks that need the module to run (does it leak the future?) belong here as well.
"""

import ast
import contextlib
import hashlib
from collections.abc import Mapping
from typing import Any

import attrs

from core.errors import ConfigurationError, GateRefused
from core.mutate import Mutant
from core.spec import Case
from core.syntax import ARITHMETIC, Evaluator, Refused, constants, parse

# The data were tokenized and packed to these; a trial cannot choose them.
OF_THE_DATA = ("SEQUENCE_LEN", "VOCAB_SIZE")


@attrs.frozen(kw_only=True)
class Work:
    """A case with a mutant that passed the gates.

    Attributes:
        case: What the spec says.
        mutant: What its codemods made of the base.
        configuration: The resolved constants of the mutant, by name.
    """

    case: Case
    mutant: Mutant
    configuration: dict[str, Any]

    @property
    def experiment(self) -> str:
        """Sixteen hexadecimal digits of the claim and of the module that tests it."""
        both = f"{self.case.digest} {self.mutant.digest}"
        return hashlib.sha256(both.encode()).hexdigest()[:16]


def passed(case: Case, mutant: Mutant, base: Mapping[str, Any]) -> Work:
    """Return the work of testing *case* with *mutant*, if that can run.

    Args:
        case: What the spec says.
        mutant: What its codemods made of the base.
        base: The configuration of the base.

    Raises:
        GateRefused: The mutant does what a training module has no business doing.
        ConfigurationError: As `check_configuration` has it.
    """
    check_refusals(mutant)
    return Work(
        case=case,
        mutant=mutant,
        configuration=check_configuration(mutant.source, base),
    )


def check_refusals(mutant: Mutant) -> None:
    """Refuse a mutant for the first thing that was found in it.

    Raises:
        GateRefused: Something was.
    """
    if not mutant.refusals:
        return
    first, *rest = mutant.refusals
    place = f", in {first.symbol}" if first.symbol else ""
    more = f" And {len(rest)} more." if rest else ""
    raise GateRefused(
        f"line {first.line} of the mutated module{place}: {first.reason}.{more}",
        hint="leave it out of what the codemod writes: a training module computes with "
        "torch on what run hands it.",
    )


def configuration(source: str) -> dict[str, Any]:
    """Return the constants of a training module, by name, that are plain data."""
    return _plain(constants(parse(source)))


def _plain(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str | None)


def check_configuration(source: str, base: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of the module *source* if it can run.

    Args:
        source: The mutated training module.
        base: The configuration of the base.

    Raises:
        ConfigurationError: An assertion of the module fails, or a constant that belongs
            to the data differs from the base.
    """
    tree = parse(source)
    found = constants(tree)
    names = _plain(found)
    for name in OF_THE_DATA:
        if names.get(name) != base.get(name):
            raise ConfigurationError(
                f"{name} is {names.get(name)!r}, and the data were prepared for "
                f"{base.get(name)!r}.",
                hint=f"leave {name} alone: it belongs to the profile.",
            )
    evaluator = Evaluator(names=found, functions=ARITHMETIC)
    for statement in tree.body:
        if isinstance(statement, ast.Assert):
            _check_assertion(statement, evaluator)
    return names


def _check_assertion(assertion: ast.Assert, evaluator: Evaluator) -> None:
    try:
        if evaluator.value(assertion.test):
            return
    except Refused:  # it asks more than constants: it is checked when the trial imports
        return
    rule = ast.unparse(assertion.test)
    said = _found(assertion.test, evaluator)
    if assertion.msg is not None:
        with contextlib.suppress(Refused):
            said = evaluator.value(assertion.msg)
    raise ConfigurationError(
        f"line {assertion.lineno} of the mutated module fails: {rule}. {said}",
        hint="change the codemod's values so that this holds.",
    )


def _found(test: ast.expr, evaluator: Evaluator) -> str:
    """Return the constants that *test* asks about, with their values."""
    names = {node.id for node in ast.walk(test) if isinstance(node, ast.Name)}
    values = {name: evaluator.names.get(name) for name in sorted(names)}
    known = [f"{name}={value!r}" for name, value in values.items() if value is not None]
    return f"Found {', '.join(known)}." if known else "It never holds."
