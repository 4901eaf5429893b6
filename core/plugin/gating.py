"""The gates that run code: examine each mutant, small and on CPU cores, before any trial."""

from collections.abc import Callable, Sequence

from core.context import files_digest
from core.errors import DeltaspecError, SessionError
from core.gates import Work, check_configuration, configuration
from core.launch.examine import Examined, NotExamined, Subject, examine_all
from core.mutate import Job, mutate, mutate_all
from core.plugin.options import Request
from core.process.child import Zygote
from core.profile import torch_build

# What decides what an examination finds.
EXAMINING_FILES = (
    *("launch/examine.py", "namespaces.py", "sandbox.py"),
    *("training/gate", "training/entry.py", "training/run.py"),
)


def examined(
    works: Sequence[Work],
    request: Request,
    zygote: Zygote,
    progress: Callable[[str, float], None],
) -> dict[str, Examined]:
    """Return what the gates find in each mutant of *works*, by its digest.

    Raises:
        SessionError: An examination could not be made.
    """
    found: dict[str, Examined] = {}
    subjects: dict[str, Subject] = {}
    for work, small in zip(works, _small(works, request), strict=True):
        if isinstance(small, DeltaspecError):
            note = f"not examined, since it does not shrink: {small.message}"
            found[work.mutant.digest] = Examined(note=note)
            continue
        sizes = configuration(small)
        subjects[work.mutant.digest] = Subject(
            source=small,
            sequence_len=sizes["SEQUENCE_LEN"],
            vocab_size=sizes["VOCAB_SIZE"],
        )
    try:
        return found | examine_all(
            subjects,
            zygote=zygote,
            library=request.library,
            cache=request.cache / "examined",
            files=f"{files_digest(EXAMINING_FILES)} {torch_build().version}",
            is_confined=request.confined,
            done=lambda count, total: progress("examining mutants", count / total),
        )
    except (NotExamined, OSError) as error:
        raise SessionError(
            f"a mutant could not be examined: {error}.",
            hint="look at the machine, then run again: nothing was trained.",
        ) from error


def _small(works: Sequence[Work], request: Request) -> list[str | DeltaspecError]:
    """Return each mutant in sizes for a CPU, or why it has none."""
    profile = request.profile
    if profile.small == profile.overrides:
        return [work.mutant.source for work in works]
    try:
        base = mutate(
            Job(source=request.module.read_text(), codemods=profile.small),
            project=request.project,
            cache=request.cache / "mutants",
            confined=request.confined,
        )
    except DeltaspecError as error:
        return [error] * len(works)
    sizes = configuration(base.source)
    mutants = mutate_all(
        [Job(source=base.source, codemods=work.case.codemods) for work in works],
        project=request.project,
        cache=request.cache / "mutants",
        confined=request.confined,
    )
    small: list[str | DeltaspecError] = []
    for mutant in mutants:
        if isinstance(mutant, DeltaspecError):
            small.append(mutant)
            continue
        try:
            check_configuration(mutant.source, sizes)
            small.append(mutant.source)
        except DeltaspecError as error:
            small.append(error)
    return small
