"""What must be equal for two runs to be compared."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import attrs

from core.device import Device
from core.profile import Profile, torch_build
from core.training.backend import attention_backend

HERE = Path(__file__).parent
JUDGE_FILES = ("judge",)
# A change in one of these can change a number: what trains, serves and judges, and what
# sets their clock, threads and environment.
NUMERIC_FILES = (
    "device.py",
    "device_memory.py",
    *JUDGE_FILES,
    "launch/clock.py",
    "launch/handout.py",
    "launch/local.py",
    "launch/watch.py",
    "memory.py",
    "process",
    "profile.py",
    "training/backend.py",
    "training/compiler.py",
    "training/entry.py",
    "training/kernels",
    "training/module.py",
    "training/oom.py",
    "training/run.py",
    "training/serve.py",
    "training/tokenizer.py",
    "training/data",
)


@attrs.frozen(kw_only=True)
class Context:
    """What must be equal for two runs to be compared; a row of ``contexts``.

    Attributes:
        profile: Its name.
        budget_seconds: Training time of a trial.
        device: The model of the GPU or CPU.
        torch: Its version with the build.
        attention: The backend that attends.
        data: Fingerprint of corpus, tokenizer and packing.
        base: Digest of the base module, sizes included.
        numerics: Digest of the files that trainer, server and judge run.
        scored_tokens: Validation tokens that the judge asks for.
        shared: Other processes are allowed on the GPUs, and take what time they take.
        confined: What runs edited code is in a sandbox.
    """

    profile: str
    budget_seconds: float
    device: str
    torch: str
    attention: str
    data: str
    base: str
    numerics: str
    scored_tokens: int
    shared: bool
    confined: bool

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that name the context."""
        text = json.dumps(attrs.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def current_context(
    profile: Profile,
    device: Device,
    *,
    data: str,
    base: str,
    shared: bool,
    confined: bool,
) -> Context:
    """Return the context of a session.

    Args:
        profile: With its budget as the session overrides it.
        device: Any of the session's devices; they are of one model.
        data: Fingerprint of the prepared corpus.
        base: Digest of the base module.
        shared: Other processes are allowed on the GPUs.
        confined: What runs edited code is in a sandbox.
    """
    return Context(
        profile=profile.name,
        budget_seconds=profile.budget_seconds,
        device=device.name,
        torch=torch_build().version,
        attention=attention_backend(device.kind),
        data=data,
        base=base,
        numerics=files_digest(NUMERIC_FILES),
        scored_tokens=profile.scored_tokens,
        shared=shared,
        confined=confined,
    )


def files_digest(names: Iterable[str], core: Path = HERE) -> str:
    """Return the digest of files and folders below *core*, with their names."""
    digest = hashlib.sha256()
    for name in names:
        path = core / name
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            content = file.read_bytes()
            digest.update(f"{file.relative_to(core)} {len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()[:12]
