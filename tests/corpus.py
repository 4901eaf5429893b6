"""The corpora: cheats, each named with the layers that catch it, and honest mutants.

A file of ``cheats/`` or ``honest/`` is a fragment of a training module and is never
imported.  Its definitions take the place of the base's, symbol by symbol:

* A function or a constant replaces the base's; of a class, each method and attribute.
* What the base lacks is added: imports after its imports, definitions before its first.
* Any other statement runs at the end of the module.
* What is replaced stays callable where the fragment asks for it: as ``base_forward`` in
  a class, or by ``from core.training.train import train as base_train``.

All other imports of ``core.training.train`` only tell a linter where names come from.
What whoever writes a mutant would look up, as where data lie, is an empty constant of
the fragment that `told` fills in.
"""

import ast
import functools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs

from core.mutate import Job, mutate
from core.profile import CPU, Profile

TESTS = Path(__file__).parent
ROOT = TESTS.parent
BASE = "core.training.train"
KEPT = "base_"  # prefix of a replaced function that the fragment still calls
LAYERS = ("static", "gates", "sandbox", "parent", "judge")  # cheapest first
HARMLESS = "harmless"  # in place of a layer: the number is no better than an honest one

Definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


@attrs.frozen(kw_only=True)
class Cheat:
    """A way to a number that is not earned.

    Attributes:
        name: Its file's.
        title: What it does, as one sentence.
        caught_by: Each layer that catches it alone, cheapest first; or HARMLESS.
        says: A line ``layer: text`` for each, with a piece of what the user sees, or
            several (``one | other``) where it is one of them.
        source: The fragment.
    """

    name: str
    title: str
    caught_by: tuple[str, ...]
    says: str
    source: str

    def said_by(self, layer: str) -> list[str]:
        """Return pieces of the message that the user sees if *layer* catches it.

        One of them is in it: it may depend on chance what is seen first.
        """
        lines = dict(line.split(": ", 1) for line in self.says.splitlines())
        return lines[layer].split(" | ")


@attrs.frozen(kw_only=True)
class Honest:
    """A legitimate mutant that is unusual.

    Attributes:
        name: Its file's.
        title: What the model gains, as one sentence.
        source: The fragment.
    """

    name: str
    title: str
    source: str


def load_cheats() -> list[Cheat]:
    """Return every cheat, by name."""
    return [cheat(path.stem, path.read_text()) for path in _files("cheats")]


def load_honest() -> list[Honest]:
    """Return every honest mutant, by name."""
    return [honest(path.stem, path.read_text()) for path in _files("honest")]


def cheat(name: str, source: str) -> Cheat:
    """Read the header of a cheat.

    Raises:
        ValueError: The header is not one of a cheat.
    """
    header = _header(name, source)
    title = _title(name, header)
    caught = re.search(r"^caught by: (.+)$", header, re.MULTILINE)
    says = re.search(r"^says:\n((?:  \w+: .+(?:\n|$))+)\Z", header, re.MULTILINE)
    if caught is None or says is None:
        raise ValueError(f"{name} lacks 'caught by: ...', or 'says:' at its end")
    return Cheat(
        name=name,
        title=title,
        caught_by=tuple(caught[1].split(", ")),
        says="\n".join(line.strip() for line in says[1].splitlines()),
        source=source,
    )


def honest(name: str, source: str) -> Honest:
    """Read the header of an honest mutant.

    Raises:
        ValueError: It has none.
    """
    return Honest(name=name, title=_title(name, _header(name, source)), source=source)


def _files(folder: str) -> Iterable[Path]:
    return sorted((TESTS / folder).glob("*.py"))


def _header(name: str, source: str) -> str:
    header = ast.get_docstring(ast.parse(source))
    if header is None:
        raise ValueError(f"{name} has no docstring")
    return header


def _title(name: str, header: str) -> str:
    """Return the first paragraph of *header*, as one line."""
    title = " ".join(header.split("\n\n")[0].splitlines())
    if not title.endswith("."):
        raise ValueError(f"{name} does not begin with a sentence")
    return title


@functools.cache
def base(profile: Profile = CPU) -> str:
    """Return the training module with the sizes of *profile*."""
    source = (ROOT / "core" / "training" / "train.py").read_text()
    job = Job(source=source, codemods=tuple(profile.overrides))
    return mutate(job, project=ROOT).source


@attrs.define
class _Text:
    """A module, and what is to be done to its lines."""

    lines: list[str]
    edits: list[tuple[int, int, str]] = attrs.field(factory=list)

    def of(self, node: ast.stmt) -> str:
        """Return the lines of a statement, decorators and a comment behind included."""
        start, end = _span(node)
        return "\n".join(self.lines[start:end])

    def replace(self, node: ast.stmt, by: str) -> None:
        self.edits.append((*_span(node), by))

    def insert(self, line: int, text: str) -> None:
        self.edits.append((line, line, text))

    def edited(self) -> str:
        """Return the module with all edits made, those of one place in their order."""
        lines = list(self.lines)
        for start, end, text in sorted(self.edits, key=lambda e: e[:2])[::-1]:
            lines[start:end] = text.split("\n")
        return "\n".join(lines) + "\n"


def mutated(base_source: str, fragment_source: str) -> str:
    """Merge a fragment into a training module, symbol by symbol.

    Raises:
        ValueError: The fragment changes nothing, or is none.
    """
    tree, fragment = ast.parse(base_source), ast.parse(fragment_source)
    text, new = _Text(base_source.splitlines()), _Text(fragment_source.splitlines())
    named = {name: node for node in tree.body if (name := _name(node))}
    first = next(n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef))
    added, at_the_end = [], []
    imports = list(_new_imports(tree, fragment))
    for node in fragment.body:
        if isinstance(node, ast.Import | ast.ImportFrom) or _is_docstring(node):
            continue
        name = _name(node)
        if name is None:
            at_the_end.append(new.of(node))
        elif name not in named:
            added.append(new.of(node))
        elif type(node) is not type(named[name]):
            raise ValueError(f"{name} is something else in the base")
        elif isinstance(node, ast.ClassDef):
            _merge_class(text, named[name], new, node)
        else:
            kept = _asked_for(fragment)
            _replace(text, named[name], new.of(node), kept=kept, between="\n\n\n")
    if imports:
        last = max(
            node.end_lineno
            for node in tree.body
            if isinstance(node, ast.Import | ast.ImportFrom)
        )
        text.insert(last, "\n".join(imports))
    if added:
        text.insert(_span(first)[0], "\n\n\n".join(added) + "\n\n")
    if at_the_end:
        text.insert(len(text.lines), "\n\n" + "\n".join(at_the_end))
    merged = text.edited()
    _check_kept(fragment, merged)
    if ast.dump(ast.parse(merged)) == ast.dump(tree):
        raise ValueError("the fragment changes nothing")
    return merged


def told(source: str, **constants: str) -> str:
    """Give values to those of *constants* that a merged module has, and leaves empty."""
    named = {_name(node): node for node in ast.parse(source).body}
    text = _Text(source.splitlines())
    for name, value in constants.items():
        if name in named:
            text.replace(named[name], f"{name} = {value!r}")
    return text.edited()


def _merge_class(
    text: _Text, old: ast.ClassDef, new: _Text, node: ast.ClassDef
) -> None:
    """Replace the members of *old* that *node* has too, and add the others."""
    if _head(old) != _head(node):
        raise ValueError(f"{_head(node)} is {_head(old)} in the base")
    named = {name: member for member in old.body if (name := _name(member))}
    added = []
    for member in node.body:
        name = _name(member)
        if name is None:
            raise ValueError(f"{node.name} has a member without a name")
        if name in named:
            kept = _asked_for(node)
            _replace(text, named[name], new.of(member), kept=kept, between="\n\n")
        else:
            added.append(new.of(member))
    if added:
        text.insert(old.end_lineno, "\n" + "\n\n".join(added))


def _replace(
    text: _Text, old: Definition, by: str, *, kept: set[str], between: str
) -> None:
    """Put *by* in the place of *old*, which stays under another name if asked for."""
    name = _name(old)
    if KEPT + name in kept:
        before = text.of(old).replace(f"def {name}(", f"def {KEPT}{name}(", 1)
        by = f"{before}{between}{by}"
    text.replace(old, by)


def _asked_for(fragment: ast.AST) -> set[str]:
    """Return each name with the prefix KEPT that *fragment* mentions."""
    names = set()
    for node in ast.walk(fragment):
        match node:
            case ast.alias(asname=str(name)) | ast.Attribute(attr=name):
                names.add(name)
    return {name for name in names if name.startswith(KEPT)}


def _check_kept(fragment: ast.Module, merged: str) -> None:
    """Raise ValueError if the fragment asks for what it does not replace."""
    nodes = ast.walk(ast.parse(merged))
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    for name in sorted(_asked_for(fragment) - defined):
        original = name.removeprefix(KEPT)
        raise ValueError(f"{name} is asked for and nothing replaces {original}")


def _new_imports(tree: ast.Module, fragment: ast.Module) -> Iterator[str]:
    """Yield the fragment's imports that the base lacks."""
    known = {alias for node in tree.body for alias in _imported(node)}
    for node in fragment.body:
        if isinstance(node, ast.ImportFrom) and node.module == BASE:
            continue
        if left := [a for key, a in _imported(node).items() if key not in known]:
            node.names = left
            yield ast.unparse(node)


def _imported(node: ast.stmt) -> dict[tuple[str, ...], ast.alias]:
    """Return what a statement imports, by what tells one import from another."""
    if not isinstance(node, ast.Import | ast.ImportFrom):
        return {}
    module = getattr(node, "module", None) or ""
    return {(module, a.name, a.asname or ""): a for a in node.names}


def _name(node: ast.stmt) -> str | None:
    """Return what a statement defines; None if it is no definition of one name."""
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return name
        case (
            ast.Assign(targets=[ast.Name(name)]) | ast.AnnAssign(target=ast.Name(name))
        ):
            return name
    return None


def _span(node: ast.stmt) -> tuple[int, int]:
    """Return the lines of a statement, decorators included, as a slice."""
    decorators = getattr(node, "decorator_list", [])
    start = min(part.lineno for part in (node, *decorators))
    assert node.end_lineno is not None
    return start - 1, node.end_lineno


def _head(node: ast.ClassDef) -> str:
    bases = ", ".join(map(ast.unparse, [*node.bases, *node.keywords]))
    return f"class {node.name}({bases})"


def _is_docstring(node: ast.stmt) -> bool:
    match node:
        case ast.Expr(ast.Constant(str())):
            return True
    return False
