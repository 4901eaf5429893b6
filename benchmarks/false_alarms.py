"""Audit honest mutants again and again: how often does the judge cry wolf?

    python benchmarks/false_alarms.py --prepared DIR [--audits 50] [--device cpu] [NAME...]

The mutants are those of tests/honest/ and the base.  Each is trained for some steps, or
has random weights, and is then audited on the validation rows of DIR, as `judge.py` in
this folder has it, with new rows and alterations each time.
"""

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from judge import MAIN, ROOT, ready
from torch import nn

from core.judge import score
from core.process.child import Zygote
from core.profile import CPU, GPU, Profile
from core.training.data import open_rows
from core.training.entry import trained
from core.training.module import load_module
from core.training.run import Training
from core.training.tokenizer import Tokenizer
from tests.corpus import base, load_honest, mutated

RANDOM_SD = 0.02  # added to every weight that is not trained


def main() -> None:
    """Print a line for each mutant, then the sum."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--audits", type=int, default=50)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=60, help="of training; 0: random")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    profile = CPU if arguments.device == "cpu" else GPU
    source = base(profile)
    mutants = {"base": source}
    mutants |= {one.name: mutated(source, one.source) for one in load_honest()}
    chosen = arguments.names or list(mutants)
    alarms = 0
    with Zygote(ROOT, (MAIN,)) as zygote:
        for name in chosen:
            alarms += audited(name, mutants[name], arguments, profile, zygote)
    print(f"{alarms} alarms in {len(chosen) * arguments.audits} audits")


def audited(
    name: str,
    source: str,
    arguments: argparse.Namespace,
    profile: Profile,
    zygote: Zygote,
) -> int:
    """Audit one mutant, print how that went, and return how many alarms there were."""
    prepared = arguments.prepared
    sizes = json.loads((prepared / "data.json").read_text())
    T, V = sizes["sequence_len"], sizes["vocab_size"]
    token_bytes = Tokenizer.load(prepared / "tokenizer.json").token_bytes()
    rows = open_rows(prepared / "validation.bin", T)[: profile.scored_tokens // T]
    device = torch.device(arguments.device)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "train.py").write_text(source)
        settings = {
            "seed": 0,
            "device": arguments.device,
            "threads": 1,
            "sequence_len": T,
            "vocab_size": V,
            "scored_rows": profile.scored_rows,
            "module": str(folder / "train.py"),
            "weights": str(folder / "weights.safetensors"),
        }
        model = weights(folder / "train.py", prepared, T, arguments.steps)
        safetensors.torch.save_model(model, settings["weights"])
        servers = ready(stack, zygote, settings, folder)
        audits = [
            score(rows, token_bytes, servers, device).audit
            for _ in range(arguments.audits)
        ]
    breaches = [audit.breach for audit in audits if audit.breach]
    worst = max(audit.worst_nats for audit in audits)
    mean = max(audit.mean_nats for audit in audits)
    loud = max(audit.loud_share for audit in audits)
    print(
        f"{name:24} {len(audits)} audits, {len(breaches)} alarms; answers differ by up "
        f"to {worst:.2g} nats, in the mean by {mean:.2g}, {loud:.2%} beyond rounding"
        f" {breaches[:1] or ''}",
        flush=True,
    )
    return len(breaches)


def weights(module: Path, prepared: Path, sequence_len: int, steps: int) -> nn.Module:
    """Return the model after so many steps on a CPU, or with random weights."""
    torch.set_num_threads(1)
    rows = open_rows(prepared / "training.bin", sequence_len)
    chances = np.random.default_rng(0)
    asked = 0

    def ask(count: int) -> tuple[np.ndarray, float] | None:
        nonlocal asked
        asked += 1
        if asked > steps:
            return None
        return rows[chances.integers(len(rows), size=count)], (asked - 1) / steps

    run = Training(
        device=torch.device("cpu"), seed=0, ask=ask, report=lambda loss: None
    )
    model = trained(load_module(module), run, 0)
    if not steps:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in model.parameters():
                noise = torch.randn(weight.shape, generator=generator)
                weight += RANDOM_SD * noise.to(weight.dtype)
    return model


if __name__ == "__main__":
    main()
