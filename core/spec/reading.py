"""Read a spec file into cases, from its syntax tree: a spec file is never executed."""

import ast
import hashlib
import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from core.errors import SpecError
from core.spec.arguments import check_arguments, nearest
from core.spec.vocabulary import (
    NAME,
    CodemodCall,
    Expect,
    Experiment,
    Option,
    Sweep,
    codemod,
    substitute,
)
from core.syntax import Evaluator, Refused, Unknown, bound, parse

VOCABULARY: dict[str, Callable[..., Any]] = {
    "Expect": Expect,
    "Experiment": Experiment,
    "Sweep": Sweep,
    "codemod": codemod,
}
VOCABULARY_MODULE = "core.spec"


@attrs.frozen(kw_only=True)
class Case:
    """One experiment with one combination of swept values: what one pytest item runs.

    Attributes:
        file: The spec file, relative to the project, with ``/``.
        line: Where the experiment stands.
        name: The name that the experiment is bound to.
        values: The swept values, by axis.
        hypothesis: Why the change should help, or harm.
        change: What to change, with the swept values in place.
        codemods: How to change it; empty when the codemod is to be looked up.
        expect: What is predicted, if anything.
        tags: Words for ``-k``.
        asked: Sixteen hexadecimal digits of what a codemod is asked to do: the change,
            and the axes of its sweep. What is predicted, and why, is not part of it.
    """

    file: str
    line: int
    name: str
    values: tuple[tuple[str, Option], ...] = ()
    hypothesis: str
    change: str
    codemods: tuple[CodemodCall, ...] = ()
    expect: Expect | None = None
    tags: tuple[str, ...] = ()
    asked: str = ""

    @property
    def label(self) -> str:
        """The name with its swept values, as ``rope_base[50000]``."""
        values = "-".join(str(value) for _, value in self.values)
        return f"{self.name}[{values}]" if self.values else self.name

    @property
    def id(self) -> str:
        """The pytest id, as ``specs/attention.py::rope_base[50000]``."""
        return f"{self.file}::{self.label}"

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of everything that the author claims."""
        claim = attrs.asdict(
            attrs.evolve(self, line=0), filter=lambda field, _: field.name != "asked"
        )
        text = json.dumps(claim, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_spec(path: Path, project: Path) -> tuple[list[Case], list[SpecError]]:
    """Return the cases of the spec file *path*, and all that is wrong with it.

    A file with an error has cases all the same, so that a caller can say which; whether
    to run them is its decision.
    """
    file = path.relative_to(project).as_posix()
    for part in path.relative_to(project).with_suffix("").parts:
        if not NAME.fullmatch(part):
            hint = "rename it in lower case and underscores: codemods are found by it."
            said = f"{part!r} in the file's path does not match {NAME.pattern}."
            return [], [_error(said, file, 1, hint=hint)]
    errors: list[SpecError] = []
    try:
        tree = parse(path.read_bytes())
    except Refused as refused:
        return [], [_error(refused.message, file, refused.line, hint=UNREADABLE)]
    evaluator = Evaluator(takes_node=frozenset(VOCABULARY))
    cases: list[Case] = []
    lines: dict[str, int] = {}
    failed: set[str] = set()
    for statement in tree.body:
        try:
            for case in _read_statement(statement, file, evaluator):
                _check_new(case, lines)
                cases.append(case)
        except SpecError as error:
            errors.append(_placed(error, file, statement.lineno))
        except Unknown as unknown:
            if unknown.name not in failed:  # or it only repeats an earlier error
                errors.append(_unknown(unknown, statement, file, evaluator))
            failed.add(unknown.name)
        except Refused as refused:
            errors.append(_error(refused.message, file, refused.line, hint=PLAIN_DATA))
        else:
            failed -= bound(statement)
            continue
        failed |= bound(statement)
    if not cases and not errors:
        errors.append(
            _error(
                "no Experiment is bound to a name in this file.",
                file,
                1,
                hint="write NAME = Experiment(...), or start the file's name with '_'.",
            )
        )
    return cases, errors


UNREADABLE = "correct this first: nothing else in the file was read."
PLAIN_DATA = (
    "write it with literals, names bound above, f-strings, comprehensions and "
    f"{', '.join(VOCABULARY)}."
)


def _placed(error: SpecError, file: str, line: int) -> SpecError:
    """Say where *error* is, if nobody nearer to it has."""
    if not error.place:
        error.place = f"{file}:{line}"
    return error


def _error(message: str, file: str, line: int, *, hint: str) -> SpecError:
    return SpecError(message, hint=hint, place=f"{file}:{line or 1}")


def _unknown(
    unknown: Unknown, statement: ast.stmt, file: str, evaluator: Evaluator
) -> SpecError:
    name, message = unknown.name, unknown.message
    known = [*evaluator.names, *evaluator.functions, *VOCABULARY, "True", "False"]
    near = [] if name in known else nearest(name, known)
    if name in evaluator.functions:
        hint = f"write {name}(...)."
    elif name in VOCABULARY:
        message = f"the name {name!r} is not bound above."
        used = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
        missing = sorted(used & VOCABULARY.keys() - evaluator.functions.keys())
        hint = f"add: from {VOCABULARY_MODULE} import {', '.join(missing)}."
    elif name in _formatted(statement):
        axis = nearest(name, _axes(statement))
        hint = (
            f'leave out the f before the text: "{{{axis[0]}}}" is the axis of the sweep.'
            if axis
            else f"bind {name} above; or add sweep=Sweep({name}=(...)), and leave out "
            "the f before the text."
        )
    elif near:
        hint = f"did you mean {near[0]!r}?"
    else:
        hint = PLAIN_DATA
    return _error(message, file, unknown.line, hint=hint)


def _formatted(statement: ast.stmt) -> set[str]:
    """Return the names that f-strings of *statement* refer to."""
    return {
        name.id
        for text in ast.walk(statement)
        if isinstance(text, ast.JoinedStr)
        for name in ast.walk(text)
        if isinstance(name, ast.Name)
    }


def _axes(statement: ast.stmt) -> set[str]:
    """Return the axes of the sweep in *statement*, which was not evaluated."""
    return {
        axis.arg
        for node in ast.walk(statement)
        if isinstance(node, ast.keyword) and node.arg == "sweep"
        for axis in getattr(node.value, "keywords", ())
        if axis.arg is not None
    }


def _check_new(case: Case, lines: dict[str, int]) -> None:
    """Take *case* into *lines*, where each experiment stands, if it is not there."""
    if case.label in lines:
        raise SpecError(
            f"there are two experiments {case.label} in this file; the other stands "
            f"in line {lines[case.label]}.",
            hint="give each experiment, and each of its cases, a name of its own.",
        )
    lines[case.label] = case.line


def _read_statement(statement: ast.stmt, file: str, evaluator: Evaluator) -> list[Case]:
    match statement:
        case ast.Expr(value=ast.Constant(value=str())):
            return []  # a docstring
        case ast.Import() | ast.ImportFrom():
            _import(statement, file, evaluator)
            return []
        case (
            ast.Assign(targets=[ast.Name(id=name)], value=node)
            | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as node)
        ):
            value = evaluator.value(node)
            evaluator.names[name] = value
            if isinstance(value, Experiment):
                return _expand(name, value, file, node)
            if _holds_experiment(value):
                raise SpecError(
                    f"{name} holds an Experiment that has no name of its own.",
                    hint="bind each Experiment to a name; use Sweep for a family.",
                )
            return []
        case _:
            kind, hint = _kind(statement, evaluator)
            raise SpecError(f"a spec file holds data, not {kind}.", hint=hint)


def _kind(statement: ast.stmt, evaluator: Evaluator) -> tuple[str, str]:
    """Return what *statement* is, and what to write in its place."""
    one_name = "bind one plain name in each statement: NAME = Experiment(...)."
    match statement:
        case ast.Expr(value=ast.Call(func=ast.Name(id=name))) if (
            name in evaluator.functions
        ):
            return "a call by itself", f"bind it to a name: NAME = {name}(...)."
        case ast.Expr():
            return "an expression by itself", "leave it out: a spec file runs nothing."
        case ast.Assign():
            return "this assignment", one_name
    kind = {
        ast.FunctionDef: "a function",
        ast.ClassDef: "a class",
        ast.For: "a loop",
        ast.If: "a condition",
    }.get(type(statement), f"this statement ({type(statement).__name__})")
    return kind, PLAIN_DATA


def _holds_experiment(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_experiment, (*value.keys(), *value.values())))
    if isinstance(value, list | tuple | set):
        return any(map(_holds_experiment, value))
    return isinstance(value, Experiment)


def _import(
    statement: ast.Import | ast.ImportFrom, file: str, evaluator: Evaluator
) -> None:
    """Bind what *statement* imports, or was meant to: the rest of the file is read."""
    module = None
    if isinstance(statement, ast.ImportFrom) and statement.level == 0:
        module = statement.module
    if module == "__future__":
        return
    asked = {alias.asname or alias.name: alias.name for alias in statement.names}
    meant = {
        alias if alias != name else near: near
        for alias, name in asked.items()
        for near in nearest(name, VOCABULARY)
    }
    if {"*", VOCABULARY_MODULE} & {*asked.values()}:
        meant = {name: name for name in VOCABULARY}
    located = {alias: _located(VOCABULARY[name], file) for alias, name in meant.items()}
    evaluator.functions = {**evaluator.functions, **located}
    evaluator.takes_node |= located.keys()
    if module == VOCABULARY_MODULE and meant == asked:
        return
    names = [n if alias == n else f"{n} as {alias}" for alias, n in meant.items()]
    said = textwrap.shorten(ast.unparse(statement), 80, placeholder=" ...")
    raise SpecError(
        f"{said}: a spec file imports nothing but the spec vocabulary.",
        hint=f"write: from {VOCABULARY_MODULE} import {', '.join(names)}."
        if names
        else f"leave it out: a spec needs only what {VOCABULARY_MODULE} has, "
        f"{', '.join(VOCABULARY)}.",
    )


def _located(call: Callable[..., Any], file: str) -> Callable[..., Any]:
    """Return *call* so that its errors say where in *file* the argument stands."""

    def located(node: ast.Call, *positional: Any, **named: Any) -> Any:
        lines = {keyword.arg: keyword.value.lineno for keyword in node.keywords}
        try:
            check_arguments(call, positional, named)
            return call(*positional, **named)
        except SpecError as error:
            _placed(error, file, lines.get(error.field, node.lineno))
            raise

    return located


def _expand(name: str, experiment: Experiment, file: str, node: ast.expr) -> list[Case]:
    """Return one case for each combination of swept values."""
    if not NAME.fullmatch(name):
        raise SpecError(
            f"the experiment {name!r} does not match {NAME.pattern}.",
            hint="name it in lower case and underscores, at most 64 characters.",
        )
    calls = tuple(experiment.codemod)
    if experiment.sweep is not None:
        used = repr([call.options for call in calls]) if calls else experiment.change
        where = "codemod" if calls else "change"
        for axis, _ in experiment.sweep.axes:
            if f"{{{axis}}}" not in used:
                others = {f"{{{other}}}" for other, _ in experiment.sweep.axes}
                typo = nearest(f"{{{axis}}}", {*re.findall(r"\{\w+\}", used)} - others)
                raise SpecError(
                    f"the axis {axis!r} of the sweep is used nowhere in {where}=.",
                    hint=f'write "{{{axis}}}" in place of "{typo[0]}".'
                    if typo
                    else f'write "{{{axis}}}" where its value goes in {where}=, or '
                    "take it out of the sweep.",
                    field="sweep",
                )
    axes = () if experiment.sweep is None else dict(experiment.sweep.axes)
    for option, value in (pair for call in calls for pair in call.options):
        axis = (
            re.fullmatch(r"\{([a-z]\w*)\}", value) if isinstance(value, str) else None
        )
        if axis and axis[1] not in axes:
            raise SpecError(
                f"{option}={value!r} refers to an axis, and there is no axis "
                f"{axis[1]!r}.",
                hint=f"add sweep=Sweep({axis[1]}=(...)), or write the value itself.",
            )
    combinations = [{}] if experiment.sweep is None else experiment.sweep.cases()
    return [
        Case(
            file=file,
            line=node.lineno,
            name=name,
            values=tuple(values.items()),
            hypothesis=str(substitute(experiment.hypothesis, values)),
            change=str(substitute(experiment.change, values)),
            codemods=tuple(
                attrs.evolve(
                    call,
                    options=tuple(
                        (option, substitute(value, values))
                        for option, value in call.options
                    ),
                )
                for call in calls
            ),
            expect=experiment.expect,
            tags=tuple(experiment.tags),
            asked=_asked(experiment),
        )
        for values in combinations
    ]


def _asked(experiment: Experiment) -> str:
    """Return the digest of what a codemod is asked to do."""
    axes = () if experiment.sweep is None else experiment.sweep.axes
    text = json.dumps([experiment.change, sorted(name for name, _ in axes)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
