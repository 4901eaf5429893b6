"""Apply codemods, away from the process that believes the outcome.

A request comes as JSON on stdin, an answer goes as a line of JSON to stdout.  Each job
runs in a fork of its own, so that a codemod that crashes, prints, or changes the module
that it is imported from can't touch the next job.  What the codemods wrote is vetted
here, where none of them ran.
"""

import gc
import importlib
import json
import os
import re
import resource
import signal
import sys
import traceback
from importlib.machinery import (
    SOURCE_SUFFIXES,
    FileFinder,
    ModuleSpec,
    SourceFileLoader,
)
from importlib.util import module_from_spec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import attrs
import libcst as cst
import libcst.matchers
from libcst.codemod import CodemodContext

from core import sandbox
from core.errors import MutationError
from core.mutate import compare, vetting
from core.mutate.advice import advice

# What a fork may say of its job; the rest is the worker's to say
OUTCOME = ("steps", "error", "message", "hint", "failed", "advice", "unreadable")
MAX_MEMORY_BYTES = 8 << 30  # address space of one job
MAX_SAID_CHARACTERS = 64 << 20  # of one job; a source has 2**18 bytes at most


class FromSource(SourceFileLoader):
    """Compile anew: a ``.pyc`` is dated to the second, and agents write faster."""

    def get_code(self, fullname: str) -> CodeType:
        """Return the code of the source as it is now."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)

    def exec_module(self, module: ModuleType) -> None:
        """Run *module*, below which are the folders of its name: it need be no package.

        ``specs/optimizer.py`` has its codemods in ``optimizer/``, beside the module
        ``optimizer.py`` of the vocabulary.
        """
        root, *names = module.__name__.split(".")
        folders = getattr(sys.modules[root], "__path__", ())
        below = [Path(folder, *names) for folder in folders]
        if found := [str(folder) for folder in below if folder.is_dir()]:
            module.__path__ = found
        super().exec_module(module)


def find_codemods_in(folders: list[str]) -> None:
    """Make ``codemods`` the union of *folders*, the first of which wins."""

    def finder(path: str) -> FileFinder:
        if not any(Path(path).is_relative_to(folder) for folder in folders):
            raise ImportError(f"{path} holds no codemods")
        return FileFinder(path, (FromSource, SOURCE_SUFFIXES))

    sys.path_hooks.insert(0, finder)
    spec = ModuleSpec("codemods", None, is_package=True)
    spec.submodule_search_locations = folders
    sys.modules["codemods"] = module_from_spec(spec)


def main() -> None:
    """Answer one request."""
    gc.disable()  # trees are large and jobs short: there is nothing to collect
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    find_codemods_in(request["folders"])
    sys.path.append(request["project"])  # last: a project may have a core/ of its own

    def answer(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=answers, flush=True)

    parsed: int | None = None
    for index, calls in request["jobs"]:
        if index != parsed:
            answer({"state": "parsing"})
            tree = cst.parse_module(request["sources"][index])
            parsed = index
        answer({"state": "working"})
        found = in_a_fork(tree, calls, request, answers)
        answer({"state": "vetting"})
        answer(vetted(found, len(calls), request["sources"][index]))


def in_a_fork(
    tree: cst.Module, calls: list[Any], request: Any, answers: Any
) -> dict[str, Any]:
    """Return what `outcome` returns in a child process, or how that child died."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            # The one who is asked must not be able to answer for others.
            answers.close()
            os.close(reading)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            limit(request["timeout_seconds"])
            with open(writing, "w", encoding="utf-8") as pipe:
                why = confine(request) if request["confined"] else ""
                # Before a codemod runs, so that none can say it.
                print(json.dumps(why), file=pipe, flush=True)
                if not why:
                    json.dump(outcome(tree, calls, request["folders"]), pipe)
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8", errors="replace") as pipe:
        unconfined, text = pipe.readline(), pipe.read(MAX_SAID_CHARACTERS)
        if len(text) == MAX_SAID_CHARACTERS:
            os.kill(child, signal.SIGKILL)  # it would write for ever
    _, status = os.waitpid(child, 0)
    if unconfined and (why := json.loads(unconfined)):
        return {"unconfined": why}
    return said(text) if text else {"died": os.waitstatus_to_exitcode(status)}


def confine(request: Any) -> str:
    """Let this process read codemods and write nothing; return why that cannot be."""
    policy = sandbox.Policy(
        read=tuple(filter(os.path.isdir, request["folders"])),
        # Python looks for modules by the names in a folder.
        lists=(request["project"],),
        starts=False,
    )
    try:
        sandbox.enter(policy)
        sandbox.prove(policy)
    except (sandbox.NotConfined, OSError) as error:
        return str(error)
    return ""


def said(text: str) -> dict[str, Any]:
    """Return what a fork says of its own job: a codemod may have written *text*."""
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    if not isinstance(content, dict):
        return {}
    return {name: value for name, value in content.items() if name in OUTCOME}


def vetted(answer: dict[str, Any], calls: int, base: str) -> dict[str, Any]:
    """Return the *answer* of a fork with what `vetting` refuses in its last source."""
    match answer:
        case {"steps": [*steps]} if len(steps) >= calls:
            source = steps[calls - 1]
        case _:
            return answer
    if not isinstance(source, str):
        return {}
    try:
        found = vetting.refusals(source, base)
    except compare.Unreadable:  # the parent finds that too, and says whose it is
        return answer
    return {**answer, "refusals": [attrs.asdict(refusal) for refusal in found]}


def limit(timeout_seconds: float) -> None:
    """Bound what a job can take, should its supervisor be gone."""
    seconds = int(timeout_seconds) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))


def outcome(tree: cst.Module, calls: list[Any], folders: list[str]) -> dict[str, Any]:
    """Return the source after each codemod, and how the first that failed did."""
    steps: list[str] = []
    try:
        for reference, options in calls:
            if steps:  # what the one before built need not be what it looks like
                tree = cst.parse_module(steps[-1])
            source = apply(tree, reference, options)
            compare.read(source)  # before LibCST reads it: LibCST may crash on it
            steps.append(source)
    except MutationError as error:
        text = {"message": error.message, "hint": error.hint}
        return {"steps": steps, "error": type(error).__name__, **text}
    except compare.Unreadable as error:
        return {"steps": steps, "unreadable": str(error)}
    except BaseException as error:  # SystemExit too: no answer would look like a crash
        failed = described(error, folders)
        return {"steps": steps, "failed": failed, "advice": advice(error)}
    return {"steps": steps}


def apply(tree: cst.Module, reference: str, options: list[Any]) -> str:
    """Return the source that one codemod makes of *tree*."""
    module, _, name = reference.rpartition(".")
    command = getattr(importlib.import_module(f"codemods.{module}"), name)
    given = {option: _tuples(value) for option, value in options}
    return command(CodemodContext(), **given).transform_module(tree).code


def described(error: BaseException, folders: list[str]) -> str:
    """Return the error in one line, with the last place in a codemod."""
    text = traceback.format_exception_only(error)[-1].strip()
    text = text.partition(". Did you ")[0]  # newer Pythons do; see advice
    if isinstance(error, ImportError):  # the path of a library says nothing
        text = re.sub(r" \([^()]*\)$", "", text)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        for folder in folders:
            if Path(frame.filename).is_relative_to(folder):
                path = Path(frame.filename).relative_to(Path(folder).parent)
                return f"{text} ({path}, line {frame.lineno})"
    return text


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


if __name__ == "__main__":
    main()
