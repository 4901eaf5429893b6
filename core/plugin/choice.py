"""The profile and devices of a session; refusals come before anything is prepared."""

import os
from collections.abc import Sequence

import attrs

from core.device import Device, DeviceFailed, Gpu, Machine, cpu, look
from core.errors import SessionError
from core.plugin.lock import holder
from core.profile import CPU, GPU, Profile, TorchBuild, torch_build

# A GPU with more than this in use is used, even if the driver lists no process:
# containers hide each other's.
UNLISTED_MIB = 512.0


def choose(
    requested: str | None,
    *,
    count: int | None = None,
    shared: bool = False,
    shipped: bool = True,
    dry: bool = False,
    build: TorchBuild | None = None,
) -> tuple[Profile, tuple[Device, ...], str]:
    """Return the profile, its devices, and why it was chosen, in a few words.

    Args:
        requested: The profile; None for whichever can run.
        count: How many GPUs to use, free ones first; None for all.
        shared: Use a GPU although another process does.
        shipped: The training module is the one whose needs the profile knows.
        dry: Nothing will run, so that it does not matter who uses the GPUs.
        build: Of the torch that the trials import; None for the installed one.

    Raises:
        SessionError: No trial could run like this, or none that counts.
    """
    if count is not None and count < 1:
        raise SessionError(
            f"--gpus {count}: expected at least 1.",
            hint="give the number of GPUs to use, as --gpus 2, or leave it out.",
        )
    build = build or torch_build()
    machine = Machine() if requested == "cpu" else look()
    lacking = _lacking(machine, build)
    if requested == "gpu" and lacking:
        why, hint = lacking
        raise SessionError(
            f"--profile gpu needs a CUDA GPU: {why}.",
            hint=f"{hint}, or use --profile cpu.",
        )
    if lacking:
        reason = "--profile cpu" if requested else lacking[0]
        _refuse_on_cpu(count, shared, reason)
        return CPU, (cpu(),), reason
    alike = [gpu for gpu in machine.gpus if gpu.name == machine.gpus[0].name]
    uses, failed = _uses(alike, dry)
    failed = (*machine.failed, *failed)
    found = _found(len(uses), len(machine.gpus) - len(alike), failed)
    if not uses:
        raise SessionError(
            f"No GPU answers: {_listed(failed)}.",
            hint="look at the machine with nvidia-smi, or use --profile cpu.",
        )
    if count is not None and count > len(uses):
        raise SessionError(
            f"--gpus {count}: found {found}.",
            hint=f"use --gpus {len(uses)}, or leave it out to use all.",
        )
    _check_driver(machine, build)
    if shipped:
        _check_needs([use.gpu for use in uses])
    chosen = uses if count is None else sorted(uses, key=_Use.rank)[:count]
    _check_free(chosen, uses, machine.hidden, shared)
    if shared and shipped:
        _check_room(chosen)
    reason = found if len(chosen) == len(uses) else f"{len(chosen)} of {found}"
    return GPU, tuple(use.gpu for use in chosen), reason


def _lacking(machine: Machine, build: TorchBuild) -> tuple[str, str] | None:
    """Return why there is no GPU to use, and what to do about it."""
    if not (machine.gpus or machine.failed):
        if not machine.hidden:
            return "no CUDA GPU seen", "run on a machine with one"
        setting = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        if setting.startswith("MIG-"):
            return (
                f"CUDA_VISIBLE_DEVICES={setting} is a slice of one, whose neighbours "
                "would show in its numbers",
                "name a whole GPU",
            )
        return (
            f"CUDA_VISIBLE_DEVICES={setting} hides {_counted(machine.hidden)}",
            "name one in it",
        )
    if build.cuda is None:
        return (
            f"torch {build.version} is built without CUDA",
            "install a torch that is built for it",
        )
    if not build.has_bindings:
        return (
            "the package cuda-bindings is not installed",
            f"install the one of torch's CUDA: cuda-bindings=={build.cuda.split('.')[0]}.*",
        )
    return None


def _refuse_on_cpu(count: int | None, shared: bool, reason: str) -> None:
    option = f"--gpus {count}" if count is not None else "--shared-gpu"
    if shared or count is not None:
        raise SessionError(
            f"{option} speaks of GPUs, and the profile is cpu ({reason}).",
            hint=f"leave {option} out, or run where the gpu profile can.",
        )


def _check_driver(machine: Machine, build: TorchBuild) -> None:
    """Refuse a driver that is a major version behind; within one they are compatible."""
    assert build.cuda is not None
    major = build.cuda.partition(".")[0]
    if machine.cuda is not None and machine.cuda[0] < int(major):
        runs = ".".join(map(str, machine.cuda))
        raise SessionError(
            f"The driver {machine.driver} runs CUDA {runs} at most, and torch "
            f"{build.version} is built for CUDA {build.cuda}.",
            hint=f"update the driver to one for CUDA {major}, install a torch that is "
            f"built for CUDA {machine.cuda[0]}, or use --profile cpu.",
        )


def _check_needs(gpus: Sequence[Device]) -> None:
    """Refuse GPUs that the shipped training module cannot run on."""
    for gpu in gpus:
        if GPU.capability and gpu.capability and gpu.capability < GPU.capability:
            has, needs = (
                ".".join(map(str, c)) for c in (gpu.capability, GPU.capability)
            )
            raise SessionError(
                f"{gpu.label} has compute capability {has}, and the training module's "
                f"bfloat16 needs {needs}.",
                hint="use a newer GPU, name a training module of your own that does "
                "without (tool.deltaspec.module in pyproject.toml), or use --profile cpu.",
            )
        if gpu.memory_mib is not None and gpu.memory_mib < GPU.memory_mib:
            raise SessionError(
                f"{gpu.label} has {gpu.memory_mib:,.0f} MiB, and a trial takes "
                f"{GPU.memory_mib:,.0f} MiB.",
                hint="use a GPU with more memory, name a training module of your own "
                "with a smaller MICRO_BATCH_ROWS (tool.deltaspec.module in pyproject.toml), or "
                "use --profile cpu.",
            )


@attrs.frozen(kw_only=True)
class _Use:
    """A GPU and who uses it beside us.

    Attributes:
        gpu: Which.
        used_mib: Memory in use.
        session: Which session has locked it, in words; None if none has.
        process: Which process uses it, in words; empty if none does.
    """

    gpu: Device
    used_mib: float = 0.0
    session: str | None = None
    process: str = ""

    def rank(self) -> tuple[bool, bool]:
        """Return what sorts free GPUs first, and those last that nobody can share."""
        return self.session is not None, bool(self.process)


def _uses(gpus: Sequence[Device], dry: bool) -> tuple[list[_Use], list[DeviceFailed]]:
    """Return who uses each GPU, and what those say that do not answer."""
    if dry:
        return [_Use(gpu=gpu) for gpu in gpus], []
    uses, failed = [], []
    for gpu in gpus:
        try:
            with Gpu(gpu) as asked:
                used_mib = asked.used_mib()
                users = [
                    f"process {process.pid}{_of(process.name, process.used_mib)}"
                    for process in asked.processes()
                ]
        except DeviceFailed as error:
            failed.append(error)
            continue
        if not users and used_mib > UNLISTED_MIB:
            users = [f"something that the driver does not list ({used_mib:,.0f} MiB)"]
        uses.append(
            _Use(
                gpu=gpu,
                used_mib=used_mib,
                session=holder(gpu),
                process=" and ".join(users),
            )
        )
    return uses, failed


def _of(name: str, used_mib: float | None) -> str:
    known = [name] if name else []
    known += [] if used_mib is None else [f"{used_mib:,.0f} MiB"]
    return f" ({', '.join(known)})" if known else ""


def _check_free(
    chosen: Sequence[_Use], uses: Sequence[_Use], hidden: int, shared: bool
) -> None:
    """Refuse GPUs that another session has locked, or another process uses."""
    refused = [use for use in chosen if use.session or (use.process and not shared)]
    if not refused:
        return
    said = _listed([
        f"{use.gpu.label} is used by {use.session or use.process}" for use in refused
    ])
    free = sum(not (use.session or use.process) for use in uses)
    ways = ["wait until that has ended"]
    if free:
        ways.append(f"use --gpus {free} for what is free")
    if hidden or len(uses) > len(refused):
        ways.append("name other GPUs in CUDA_VISIBLE_DEVICES")
    if not any(use.session for use in refused):
        ways.append("use --shared-gpu, which the runs then record")
    raise SessionError(
        f"{said}: a trial's time would not be its own.",
        hint=f"{', '.join(ways[:-1])}{', or ' * (len(ways) > 1)}{ways[-1]}.",
    )


def _check_room(chosen: Sequence[_Use]) -> None:
    """Refuse GPUs where the other process leaves too little memory."""
    for use in chosen:
        if use.gpu.memory_mib is None:
            continue
        room_mib = use.gpu.memory_mib - use.used_mib
        if room_mib < GPU.memory_mib:
            raise SessionError(
                f"{use.gpu.label} has {room_mib:,.0f} MiB left beside {use.process}, "
                f"and a trial takes {GPU.memory_mib:,.0f} MiB.",
                hint="wait until that has ended, or name another GPU in "
                "CUDA_VISIBLE_DEVICES.",
            )


def _found(usable: int, others: int, failed: Sequence[DeviceFailed]) -> str:
    """Return which GPUs there are, and which are left out."""
    out = [f"{others} of another model"] if others else []
    out += map(str, failed)
    return _counted(usable) + (f" (left out: {_listed(out)})" if out else "")


def _counted(gpus: int) -> str:
    return f"{gpus} CUDA GPU{'s' * (gpus != 1)}"


def _listed(found: Sequence[object]) -> str:
    return "; ".join(map(str, found))
