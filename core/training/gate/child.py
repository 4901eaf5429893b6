"""The main of a process that examines one module: in the sandbox, without a trial."""

from pathlib import Path
from typing import Any

import attrs
import torch

from core.channel import Reader, write
from core.training.entry import guarded
from core.training.gate import examine
from core.training.module import load_module


def main(
    settings: dict[str, Any], events: int, commands: Reader, inherited: list[int]
) -> None:
    """Examine the module that the settings name, and say what was found."""
    torch.set_num_threads(1)

    def began(check: str) -> None:
        write(events, {"event": "began", "check": check})

    with guarded({**settings, "device": "cpu"}, events):
        began("import")
        examination = examine(
            load_module(Path(settings["module"])),
            seed=settings["seed"],
            sequence_len=settings["sequence_len"],
            vocab_size=settings["vocab_size"],
            seconds=settings["seconds"],
            began=began,
        )
        write(events, {"event": "examined", **attrs.asdict(examination)})
