"""Find codemods by name, in the files of a project and beside the machinery.

Files are read and never imported: a name that is wrong costs no child process.
"""

import ast
import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from core.errors import CodemodRefused
from core.mutate import compare

BINDING = "WRITTEN_FOR"  # names what a spec asked for, in a codemod
ROOT = Path(__file__).resolve().parents[2]  # where the built-in codemods are


def folders(project: Path) -> list[Path]:
    """Return where codemods are, the project's own first."""
    return list(dict.fromkeys([project / "codemods", ROOT / "codemods"]))


def find_codemod(project: Path, spec: Sequence[str], name: str) -> str | None:
    """Return the reference of an experiment's own codemod, or None if it has no file.

    Args:
        project: The folder that holds ``codemods/``.
        spec: The spec file's path below ``specs/``, without suffix: ``("attention",)``.
        name: The experiment.

    Raises:
        CodemodRefused: The file is there and does not hold exactly one codemod.
    """
    module = ".".join([*spec, name])
    path = _file(folders(project.resolve()), module)
    if path is None:
        return None
    classes = _classes(path)
    named = [found for found in classes if found.lower() == name.replace("_", "")]
    found = [found for found, is_codemod in classes.items() if is_codemod]
    if len(found) != 1:
        found = named
    if len(found) != 1:
        held = ", ".join(classes) or "no class"
        raise CodemodRefused(
            f"codemods/{module.replace('.', '/')}.py holds {held}: "
            "one codemod was expected.",
            hint=f"define one class that derives from Codemod, such as "
            f"{''.join(part.title() for part in name.split('_'))}.",
        )
    return f"{module}.{found[0]}"


def written_for(project: Path, spec: Sequence[str], name: str) -> str | None:
    """Return what an experiment's own codemod was written for: ``WRITTEN_FOR`` in it.

    Args:
        project: The folder that holds ``codemods/``.
        spec: The spec file's path below ``specs/``, without suffix.
        name: The experiment.

    Returns:
        ``Case.asked`` as it was; None for a codemod that is bound to no wording.
    """
    path = _file(folders(project.resolve()), ".".join([*spec, name]))
    if path is None:
        return None
    symbols = compare.read(path.read_text(encoding="utf-8")).symbols
    text = symbols.get(("constant", BINDING))
    return None if text is None else text.strip("'")


def _file(places: Iterable[Path], module: str) -> Path | None:
    path = module.replace(".", "/")
    for folder in places:
        for candidate in (folder / f"{path}.py", folder / path / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


def _classes(path: Path) -> dict[str, bool]:
    """Return the public classes of a file, and whether each is a codemod."""
    try:
        body = compare.read(path.read_text(encoding="utf-8")).tree.body
    except (compare.Unreadable, UnicodeDecodeError) as error:
        place = path.as_posix().rpartition("/codemods/")[2]
        raise CodemodRefused(
            f"codemods/{place} cannot be read: {error}",
            hint="make it a module that Python imports.",
        ) from error
    return {
        node.name: any(ast.unparse(base).endswith("Codemod") for base in node.bases)
        and not node.name.endswith("Codemod")
        for node in body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    }


def check(places: Sequence[Path], reference: str) -> None:
    """Check that a codemod is where its reference says.

    Raises:
        CodemodRefused: It is not there.
    """
    module, _, name = reference.rpartition(".")
    path = None
    if all(part.isidentifier() for part in module.split(".")):
        path = _file(places, module)
    if path is not None and name in _classes(path):
        return
    known = list(_references(places))
    beside = [other for other in known if other.rpartition(".")[0] == module]
    if beside:  # the module is right, so its codemods are meant, however named
        near = difflib.get_close_matches(reference, beside, n=3, cutoff=0)
    else:
        near = difflib.get_close_matches(reference, known, n=3)
    # Not the modules of single experiments: those are many, and for nobody else
    modules = sorted({other.partition(".")[0] for other in known})
    raise CodemodRefused(
        f"There is no codemod {reference!r} below codemods/.",
        hint=f"use one that is there: {', '.join(near)}."
        if near
        else f"look for one in these modules: {', '.join(modules)}.",
    )


def _references(places: Iterable[Path]) -> Iterator[str]:
    """Yield all codemods, those of the first folder first."""
    modules: dict[str, Path] = {}
    for folder in places:
        for found in sorted(folder.rglob("*.py")):
            parts = found.relative_to(folder).with_suffix("").parts
            modules.setdefault(".".join(parts).removesuffix(".__init__"), found)
    for name, found in modules.items():
        try:
            classes = _classes(found)
        except CodemodRefused:  # of somebody else: not what was asked for
            continue
        yield from (f"{name}.{c}" for c, is_codemod in classes.items() if is_codemod)
