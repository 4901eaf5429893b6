"""How well the agent writes: shipped specs, whose own codemods are hidden, once more.

    python benchmarks/agent.py [NAME...] [--usd X] [--agent-model MODEL]
    python benchmarks/agent.py --scripted  # no key: a local server hands the originals in

A codemod is right if the module that it leaves has the digest of the original's, under
every profile and in every case of a sweep.  Others may be right in other words: their
diffs are shown with `--diffs`, to be read.
"""

import argparse
import ast
import contextlib
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import attrs
import duckdb

from core.agent.candidate import class_name
from core.errors import DeltaspecError
from core.mutate import Job, Mutant, find_codemod, mutate, mutate_all
from core.plugin.options import AGENT_OPTIONS
from core.profile import PROFILES
from core.settings import LIBRARY, TRAINING_MODULE
from core.spec import Case, CodemodCall, read_spec
from tests.messages import Messages

SPECS = LIBRARY / "specs"
HIDDEN_IN = "replayed"  # below specs/: no codemod of ours is found by that name


@attrs.frozen(kw_only=True)
class Original:
    """A shipped experiment.

    Attributes:
        file: Its spec file, below ``specs/``.
        cases: All that it has, codemods included.
    """

    file: str
    cases: tuple[Case, ...]

    @property
    def name(self) -> str:
        """The experiment."""
        return self.cases[0].name

    @property
    def id(self) -> str:
        """Where it is replayed."""
        return f"specs/{HIDDEN_IN}/{self.file}::{self.name}"


def main() -> None:
    """Print a row for each experiment, then the sums."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="experiments (all)")
    parser.add_argument("--scripted", action="store_true", help="ask no model")
    parser.add_argument("--diffs", action="store_true", help="show diffs that differ")
    for name, options in AGENT_OPTIONS.items():
        parser.add_argument(name, **options)
    arguments = parser.parse_args()
    found = [o for o in originals() if not arguments.names or o.name in arguments.names]
    given = []
    for name in AGENT_OPTIONS:
        value = getattr(arguments, name.removeprefix("--").replace("-", "_"))
        values = value if isinstance(value, list) else [value]
        given += [] if value is None else [name, *map(str, values)]
    with tempfile.TemporaryDirectory(prefix="deltaspec-") as folder:
        project = Path(folder)
        hide(found, project)
        with (
            answering(found) if arguments.scripted else contextlib.nullcontext({}) as to
        ):
            done = subprocess.run(
                [sys.executable, "-m", "core.cli", "implement", "specs", *given],
                cwd=project,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(
                        filter(None, [str(LIBRARY), os.environ.get("PYTHONPATH", "")])
                    ),
                    **to,
                },
                check=False,
            )
        if done.returncode not in (0, 1):
            sys.exit(done.returncode)
        print(table(found, project, diffs=arguments.diffs))


def originals() -> list[Original]:
    """Return the shipped experiments, with the codemods that the specs name or own."""
    found = []
    for path in sorted(SPECS.glob("[!_]*.py")):
        own: dict[str, list[Case]] = {}
        for case in read_spec(path, LIBRARY)[0]:
            own.setdefault(case.name, []).append(
                attrs.evolve(case, codemods=case.codemods or _written(case))
            )
        found += [Original(file=path.name, cases=tuple(c)) for c in own.values()]
    return found


def _written(case: Case) -> tuple[CodemodCall, ...]:
    spec = PurePosixPath(case.file).with_suffix("").parts[1:]
    reference = find_codemod(LIBRARY, spec, case.name)
    assert reference is not None, case.id
    return (CodemodCall(reference=reference, options=case.values),)


def hide(found: Sequence[Original], project: Path) -> None:
    """Make a project of the same experiments, without any codemod."""
    conftest = 'pytest_plugins = ("core.plugin",)\n'
    (project / "conftest.py").write_text(conftest)
    specs = project / "specs" / HIDDEN_IN
    specs.mkdir(parents=True)
    for file in dict.fromkeys(original.file for original in found):
        wanted = {o.name for o in found if o.file == file}
        text = _without_codemods((SPECS / file).read_text(), wanted)
        (specs / file).write_text(text)


def _without_codemods(source: str, wanted: set[str]) -> str:
    """Return a spec file with the experiments *wanted*, and no codemod= in it."""
    lines = source.splitlines(keepends=True)
    dropped: set[int] = set()
    for node in ast.parse(source).body:
        match node:
            case ast.Assign(
                targets=[ast.Name(id=name)],
                value=ast.Call(func=ast.Name(id="Experiment"), keywords=keywords),
            ):
                if name not in wanted:
                    dropped.update(range(node.lineno, (node.end_lineno or 0) + 1))
                for keyword in keywords:
                    if keyword.arg == "codemod":
                        end = keyword.value.end_lineno or 0
                        dropped.update(range(keyword.lineno, end + 1))
    return "".join(line for n, line in enumerate(lines, 1) if n not in dropped)


def mutants(
    cases: Sequence[Case], codemods: Sequence[tuple[CodemodCall, ...]], project: Path
) -> list[Mutant | DeltaspecError]:
    """Return what *codemods* make of the module, of each case under each profile."""
    module = (LIBRARY / TRAINING_MODULE).read_text()
    bases = [
        mutate(Job(source=module, codemods=profile.overrides), project=LIBRARY).source
        for profile in PROFILES.values()
    ]
    jobs = [Job(source=base, codemods=calls) for base in bases for calls in codemods]
    return list(mutate_all(jobs, project=project))


def table(found: Sequence[Original], project: Path, *, diffs: bool) -> str:
    """Return what came of each experiment, and of all."""
    database = project / "runs.duckdb"
    with duckdb.connect(str(database), read_only=True) as db:
        rounds = dict(
            db.execute(
                "select id, sum(rounds) from agent_attempts group by id"
            ).fetchall()
        )
        spent = {
            id: (calls, prompt, cached, out, usd)
            for id, calls, prompt, cached, out, usd in db.execute(
                "select id, count(*),"
                " sum(input_tokens + cache_read_tokens + cache_write_tokens),"
                " sum(cache_read_tokens), sum(output_tokens), sum(usd)"
                " from agent_calls group by id"
            ).fetchall()
        }
    lines = [
        f"{'experiment':24}{'module':>10}{'rounds':>8}{'calls':>7}{'tokens in':>11}"
        f"{'cached':>8}{'out':>8}{'usd':>8}"
    ]
    words: list[str] = []
    for original in found:
        word, diff = _compared(original, project)
        words.append(word)
        calls, prompt, cached, out, usd = spent.get(original.id, (0, 0, 0, 0, 0.0))
        share = f"{cached / prompt:.0%}" if prompt else "–"
        lines.append(
            f"{original.name:24}{word:>10}{rounds.get(original.id, 0):>8}{calls:>7}"
            f"{prompt:>11,}{share:>8}{out:>8,}{usd or 0:>8.3f}"
        )
        if diffs and diff:
            lines.append(textwrap.indent(diff, "    "))
    sums = [sum(column) for column in zip(*spent.values(), strict=True)] or [0] * 5
    calls, prompt, cached, out, usd = sums
    equal = words.count("equal")
    lines += [
        f"{f'equal: {equal} of {len(found)} ({equal / len(found):.0%})':34}"
        f"{sum(rounds.values()):>8}{calls:>7}{prompt:>11,}"
        f"{f'{cached / prompt:.0%}' if prompt else '–':>8}{out:>8,}{usd:>8.3f}",
        ", ".join(
            f"{words.count(word)} {word}"
            for word in dict.fromkeys(words)
            if word != "equal"
        ),
    ]
    return "\n".join(line for line in lines if line)


def _compared(original: Original, project: Path) -> tuple[str, str]:
    """Return whether the agent's modules are the original's, and a diff that is not."""
    spec = (HIDDEN_IN, original.file.removesuffix(".py"))
    reference = find_codemod(project, spec, original.name)
    if reference is None:
        return "missing", ""
    wanted = mutants(original.cases, [c.codemods for c in original.cases], LIBRARY)
    got = mutants(
        original.cases,
        [
            (CodemodCall(reference=reference, options=case.values),)
            for case in original.cases
        ],
        project,
    )
    for one, other in zip(wanted, got, strict=True):
        if isinstance(one, DeltaspecError) or isinstance(other, DeltaspecError):
            return "broken", str(other)
        if one.digest != other.digest:
            return "differs", other.diff
    return "equal", ""


# Without a model


@contextlib.contextmanager
def answering(found: Sequence[Original]) -> Iterator[dict[str, str]]:
    """Serve the originals as if a model wrote them; yield what points a client there."""
    agreed = (
        '{"does_what_is_asked": true, "does_nothing_else": true, "reason": "Scripted."}'
    )
    scripts: list[dict[str, Any]] = [
        {
            "when": ["You compare a spec with a diff."],
            "replies": [{"blocks": [{"type": "text", "text": agreed}]}],
            "repeat": True,
        }
    ]
    for original in found:
        source = rewritten(original)
        uses = [("dry_run", {"source": source}), ("submit", {})]
        scripts.append({
            "when": [f"`{original.id}`"],
            "replies": [
                {"blocks": [{"type": "tool_use", "name": name, "input": given}]}
                for name, given in uses
            ],
        })
    with Messages(scripts, key="scripted") as server:
        yield {"ANTHROPIC_BASE_URL": server.url, "ANTHROPIC_API_KEY": "scripted"}


def rewritten(original: Original) -> str:
    """Return the original as one file: its own, or its calls of the vocabulary."""
    case = original.cases[0]
    module = case.codemods[0].reference.rpartition(".")[0]
    path = LIBRARY / "codemods" / f"{module.replace('.', '/')}.py"
    if module.endswith(f".{original.name}"):
        return path.read_text()
    before, after = _example(original)
    options = dict(case.values)
    parameters = "".join(f", {axis}: {type(v).__name__}" for axis, v in case.values)
    calls = []
    for number, call in enumerate(case.codemods):
        given = ", ".join(
            f"{name}={_as_written(name, value, original, number)}"
            for name, value in call.options
        )
        calls.append(f"{call.reference.rpartition('.')[2]}(self.context, {given})")
    imports = sorted({
        f"from codemods.{module} import {name}"
        for module, _, name in (c.reference.rpartition(".") for c in case.codemods)
    })
    example = f"({options!r}, {before!r}, {after!r})"
    return "\n".join([
        f'"""{original.name}, in calls of the vocabulary."""',
        "",
        "import libcst as cst",
        "from libcst.codemod import CodemodContext",
        "",
        "from codemods.base import Codemod",
        *imports,
        "",
        "",
        f"class {class_name(original.name)}(Codemod):",
        f'    """Do what {original.name} asks for."""',
        "",
        f'    DESCRIPTION = "{original.name}"',
        "",
        f"    EXAMPLES = ({example},)",
        "",
        f"    def __init__(self, context: CodemodContext, *{parameters}) -> None:"
        if parameters
        else "    def __init__(self, context: CodemodContext) -> None:",
        "        super().__init__(context)",
        *(f"        self.{axis} = {axis}" for axis, _ in case.values),
        "",
        "    def transform_module_impl(self, tree: cst.Module) -> cst.Module:",
        '        """Apply the vocabulary, one after the other."""',
        *(f"        tree = {call}.transform_module(tree)" for call in calls),
        "        return tree",
        "",
    ])


def _as_written(name: str, value: Any, original: Original, number: int) -> str:
    """Return an option as the codemod has it: a swept one is its own parameter."""
    for axis, _ in original.cases[0].values:
        values = [dict(case.values)[axis] for case in original.cases]
        options = [dict(c.codemods[number].options)[name] for c in original.cases]
        if len(values) > 1 and options == values:
            return f"self.{axis}"
    return repr(value)


def _example(original: Original) -> tuple[str, str]:
    """Return what the codemod does to the symbols that it changes, and to no others."""
    case = original.cases[0]
    source = (LIBRARY / TRAINING_MODULE).read_text()
    mutant = mutate(Job(source=source, codemods=case.codemods), project=LIBRARY)
    changed = {change.symbol.partition(".")[0] for change in mutant.changes}
    parts = []
    for node in ast.parse(source).body:
        text = ast.get_source_segment(source, node) or ""
        match node:
            case ast.Assign():  # what a constant is computed from
                parts.append(text)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                parts += [text] if name in changed else []
    before = "\n".join(["", *parts, ""])
    after = mutate(Job(source=before, codemods=case.codemods), project=LIBRARY).source
    return before, after


if __name__ == "__main__":
    main()
