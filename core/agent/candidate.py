"""A codemod as a model wrote it: what its text alone shows, before anything of it runs."""

import ast
import difflib
import textwrap
from typing import Any

import attrs

from core.mutate.compare import Module, Unreadable, read
from core.mutate.lookup import BINDING
from core.spec.vocabulary import is_option
from core.syntax import parse

MAX_BYTES = 64 * 1024


@attrs.frozen(kw_only=True)
class Failure:
    """Why a codemod is not accepted, in the terms of whoever wrote it.

    Attributes:
        stage: What found it: ``text``, ``apply``, ``examples``, ``twice``, ``gates``,
            ``diff`` or ``check``.
        reason: What was found, and what was expected.
        hint: What to do.
        line: Where, if it is known; `of` says in what.
        of: ``codemod``, or ``module``: the training module that it leaves.
        case: The swept values and the profile that it failed with.
    """

    stage: str
    reason: str
    hint: str = ""
    line: int | None = None
    of: str = ""
    case: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return what is known of it."""
        return {k: v for k, v in attrs.asdict(self).items() if v not in ("", None)}


@attrs.frozen(kw_only=True)
class Example:
    """One of the EXAMPLES of a codemod."""

    options: dict[str, Any]
    before: str
    after: str


@attrs.frozen(kw_only=True)
class Candidate:
    """A codemod that reads as one.

    Attributes:
        source: The whole file.
        name: Its class.
        examples: What it says that it does.
    """

    source: str
    name: str
    examples: tuple[Example, ...]


def class_name(experiment: str) -> str:
    """Return what the codemod of an experiment is called, by which it is found."""
    return "".join(part.title() for part in experiment.split("_"))


def candidate(source: str, experiment: str) -> Candidate | Failure:
    """Return the codemod in *source*, or the first thing that is wrong with its text."""
    if len(source.encode(errors="replace")) > MAX_BYTES:
        return Failure(
            stage="text",
            reason=f"the file has {len(source.encode(errors='replace')):,} bytes: at "
            f"most {MAX_BYTES:,} were expected.",
            hint="find the place by a pattern, and write what changes there.",
        )
    try:
        module = read(source)
        tree = parse(source)  # with docstrings, which `read` drops
    except Unreadable as unreadable:
        return Failure(
            stage="text",
            reason=str(unreadable),
            hint="give the whole file, as Python reads it.",
            line=getattr(unreadable.__cause__, "line", None) or None,
            of="codemod",
        )
    wanted = class_name(experiment)
    classes = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    if [node.name for node in classes] != [wanted]:
        held = ", ".join(node.name for node in classes) or "none"
        return Failure(
            stage="text",
            reason=f"the public classes of the file are: {held}; one was expected, "
            f"{wanted}.",
            hint=f"define class {wanted}(Codemod), and begin the names of others with "
            "an underscore.",
        )
    (node,) = classes
    if BINDING in {name for kind, name in module.symbols if kind == "constant"}:
        return Failure(
            stage="text",
            reason=f"{BINDING} is set.",
            hint="leave it out: it is added when the codemod is accepted.",
        )
    undocumented = _undocumented(tree, node)
    if undocumented:
        return Failure(
            stage="text",
            reason=f"no docstring: {', '.join(undocumented)}.",
            hint="say in one sentence what it is for.",
        )
    examples = _examples(node)
    if isinstance(examples, Failure):
        return examples
    return Candidate(source=source, name=wanted, examples=examples)


def _undocumented(tree: ast.Module, codemod: ast.ClassDef) -> list[str]:
    """Return what has no docstring and would need one in this repository."""
    methods = [
        part
        for part in codemod.body
        if isinstance(part, ast.FunctionDef) and not part.name.startswith("_")
    ]
    named = [("the module", tree), (codemod.name, codemod)]
    named += [(f"{codemod.name}.{method.name}", method) for method in methods]
    return [name for name, node in named if not ast.get_docstring(node)]


def _assigned(codemod: ast.ClassDef, name: str) -> ast.expr | None:
    """Return what a class gives its attribute *name*."""
    for part in codemod.body:
        match part:
            case ast.Assign(targets=[ast.Name(id=found)], value=value):
                pass
            case ast.AnnAssign(target=ast.Name(id=found), value=ast.expr() as value):
                pass
            case _:
                continue
        if found == name:
            return value
    return None


def _examples(codemod: ast.ClassDef) -> tuple[Example, ...] | Failure:
    """Return the EXAMPLES of a codemod, without running any of it."""
    shape = (
        'EXAMPLES = (({"option": value}, """before""", """after"""),), without the '
        "options where there are none: literals alone"
    )
    if _assigned(codemod, "DESCRIPTION") is None:
        return Failure(
            stage="text",
            reason=f"{codemod.name} has no DESCRIPTION.",
            hint="give one line: DESCRIPTION = '...'.",
            line=codemod.lineno,
            of="codemod",
        )
    value = _assigned(codemod, "EXAMPLES")
    line = codemod.lineno if value is None else value.lineno
    try:
        given = ast.literal_eval(value) if value is not None else ()
        examples = tuple(
            Example(
                options=dict(*options),
                before=textwrap.dedent(before),
                after=textwrap.dedent(after),
            )
            for *options, before, after in given
        )
    except (ValueError, TypeError, AttributeError) as error:
        return Failure(
            stage="examples",
            reason=f"EXAMPLES cannot be read: {str(error)[:80]}.",
            hint=f"write {shape}.",
            line=line,
            of="codemod",
        )
    for options in (example.options for example in examples):
        for name, given in options.items():
            if not isinstance(name, str) or not is_option(given):
                return Failure(
                    stage="examples",
                    reason=f"the option {name!r} of an example is {given!r}: a name and "
                    "a number, a text, a truth value, None or a tuple were expected.",
                    hint="write options as a spec would.",
                    line=line,
                    of="codemod",
                )
    if not examples:
        return Failure(
            stage="examples",
            reason=f"{codemod.name} has no EXAMPLES.",
            hint=f"write {shape}; short ones, with the site as the training module has "
            "it.",
            line=line,
            of="codemod",
        )
    return examples


def bound(source: str, digest: str, experiment: str) -> str:
    """Return a codemod that says what it was written for.

    Args:
        source: The codemod.
        digest: Of what the spec asks for: ``Case.asked``.
        experiment: ``specs/x.py::idea``.
    """
    body = parse(source).body
    imports = [n for n in body if isinstance(n, ast.Import | ast.ImportFrom)]
    after = max((node.end_lineno or 0 for node in imports or body[:1]), default=0)
    lines = source.splitlines(keepends=True)
    rest = "".join(lines[after:]).lstrip("\n")
    head = "".join(lines[:after]).rstrip("\n")
    gap = "\n\n" if rest.startswith(("class ", "def ", "@")) else "\n"
    return f'{head}\n\n{BINDING} = "{digest}"  # {experiment}\n{gap}{rest}'


def needless(base: str, mutant: Module, source: str, changed: set[str]) -> list[int]:
    """Return the lines of a mutant that differ from the base and mean nothing.

    What stands in a symbol that was changed may be laid out anew: a docstring, a
    comment.  Elsewhere a diff holds what has a meaning, and nothing else.

    Args:
        base: The source before.
        mutant: The source after, as `read` has it.
        source: The same, as it is.
        changed: The symbols that differ.
    """
    old, new = base.splitlines(keepends=True), source.splitlines(keepends=True)
    spans = _spans(parse(source), new, changed)
    found = []
    blocks = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for operation, start, end, new_start, new_end in blocks.get_opcodes():
        if operation == "equal" or any(
            first <= new_start + 1 and new_end <= last for first, last in spans
        ):
            continue
        reverted = "".join([*new[:new_start], *old[start:end], *new[new_end:]])
        try:
            is_needless = read(reverted).digest == mutant.digest
        except Unreadable:
            is_needless = False
        if is_needless:
            found.append(new_start + 1)
    return found


def _spans(
    tree: ast.Module, lines: list[str], symbols: set[str]
) -> list[tuple[int, int]]:
    """Return the first and last lines of *symbols*, comments above them included."""
    spans = []
    for node in ast.walk(tree):
        for owner, part in ((node, part) for part in ast.iter_child_nodes(node)):
            names = _names(owner, part)
            if names & symbols:
                first = part.lineno
                while first > 1 and lines[first - 2].lstrip().startswith("#"):
                    first -= 1
                spans.append((first, part.end_lineno or first))
    return spans


def _names(owner: ast.AST, node: ast.AST) -> set[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            inside = owner.name + "." if isinstance(owner, ast.ClassDef) else ""
            return {inside + name}
        case ast.Assign(targets=targets):
            return {target.id for target in targets if isinstance(target, ast.Name)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
    return set()
