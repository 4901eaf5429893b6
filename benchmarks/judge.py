"""Time the judge at real size: what the audit adds to plain scoring.

    python benchmarks/judge.py --prepared DIR [--tokens 21000000] [--device cuda]

DIR is a folder that a session prepared (in the user's cache, below deltaspec/data); its
rows are repeated until there are enough.  The shipped module answers with the values
that it starts from, which takes as long as with any others.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from core.device import cpu, gpus
from core.judge import Server, score
from core.launch.compile_cache import environment
from core.memory import allocate, question_bytes
from core.process.child import Child, Zygote, python_environment
from core.profile import GPU
from core.sandbox import Policy
from core.training.data import open_rows
from core.training.entry import trained
from core.training.module import load_module
from core.training.run import Run
from core.training.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
MAIN = "core.training.serve"


def main() -> None:
    """Print a line for each way to score, then their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--module", type=Path, default=ROOT / "core/training/train.py")
    parser.add_argument("--tokens", type=int, default=GPU.scored_tokens)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    sizes = json.loads((arguments.prepared / "data.json").read_text())
    T, V = sizes["sequence_len"], sizes["vocab_size"]
    few = open_rows(arguments.prepared / "validation.bin", T)
    rows = np.resize(few, (arguments.tokens // T, T + 1))
    token_bytes = Tokenizer.load(arguments.prepared / "tokenizer.json").token_bytes()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        zygote = stack.enter_context(Zygote(ROOT, (MAIN,)))
        settings = {
            "seed": 0,
            "device": arguments.device,
            "threads": 1,
            "sequence_len": T,
            "vocab_size": V,
            "scored_rows": GPU.scored_rows,
            "module": str(arguments.module),
            "weights": str(folder / "weights.safetensors"),
        }
        module = load_module(arguments.module)
        on_cpu = Run(device=torch.device("cpu"), seed=0)
        safetensors.torch.save_model(trained(module, on_cpu, 0), settings["weights"])
        began = time.monotonic()
        servers = ready(stack, zygote, settings, folder)
        print(f"servers started in {time.monotonic() - began:.1f} s")
        seconds: dict[str, list[float]] = {"plain": [], "with probes": []}
        for _ in range(arguments.repeat):  # in turns, so that both meet the same GPU
            for name, taken in seconds.items():
                began = time.monotonic()
                how = {"probes_a_row": 0.0} if name == "plain" else {}
                device = torch.device(arguments.device)
                scored = score(rows, token_bytes, servers, device, **how)
                taken.append(time.monotonic() - began)
                print(
                    f"{name:12} {scored.tokens:,} tokens in {taken[-1]:.2f} s, "
                    f"{scored.audit.probes} probes, worst {scored.audit.worst_nats:g} "
                    f"nats {scored.audit.breach}"
                )
        plain, audited = (statistics.median(taken) for taken in seconds.values())
        print(f"median {plain:.2f} s plain, {audited:.2f} s with probes: ", end="")
        print(f"{audited / plain:.2f} times")


def ready(
    stack: ExitStack, zygote: Zygote, settings: dict, folder: Path
) -> tuple[Server, ...]:
    """Start the two servers, and wait until they have loaded the weights."""
    children, servers = zip(
        *(start(zygote, settings, folder, number) for number in (1, 2)), strict=True
    )
    for child in children:
        stack.callback(child.end)
        child.send({})
    for word in ("ready", "serving"):
        for child in children:
            while (said := child.events.receive() or {}).get("event") != word:
                if said.get("event") not in ("confined", "ready", "serving"):
                    raise SystemExit(f"a server says {said}")
            child.send({})
    return servers


def start(
    zygote: Zygote, settings: dict, folder: Path, number: int
) -> tuple[Child, Server]:
    """Start a server, confined as in a trial."""
    own = folder / f"server{number}"
    own.mkdir()
    device = cpu() if settings["device"] == "cpu" else gpus()[0]
    logits_of = settings["vocab_size"] if settings["device"] == "cpu" else 0
    size = question_bytes(settings["scored_rows"], settings["sequence_len"], logits_of)
    (asked, asks), (answered, answers) = os.pipe(), os.pipe()
    memory = allocate(size)
    child = Child.start(
        f"{MAIN}:main",
        settings,
        zygote=zygote,
        name=f"server {number}",
        folder=own,
        environment={
            **python_environment(ROOT),
            **environment(own),
            "TMPDIR": str(own),
            "HOME": str(own),
            "CUDA_VISIBLE_DEVICES": "" if device.kind == "cpu" else device.id,
        },
        log=folder / "log.txt",
        policy=Policy(
            read=(str(folder), settings["module"]),
            write=(str(own),),
            lists=(str(ROOT),),
            gpus=() if device.minor is None else (device.minor,),
        ),
        inherited=(asked, answers, memory),
    )
    return child, Server.open(settings, asks, answered, memory)


if __name__ == "__main__":
    main()
