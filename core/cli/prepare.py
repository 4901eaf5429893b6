"""``deltaspec prepare``: make what ``--data`` names ready for sessions."""

import argparse
import textwrap
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import attrs
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from core.errors import DataError
from core.gates import configuration
from core.mutate import Job, mutate
from core.plugin.options import user_cache
from core.profile import GPU
from core.settings import LIBRARY, TRAINING_MODULE
from core.training.data import DATA_FOLDER, Prepared, open_source, prepare
from core.training.data.climbmix import CLIMBMIX, TRAINING_SHARDS

WIDTH = 80  # of what is printed, a path excepted
MARGIN = 19  # of it, for what a line is about

SPLIT_BY = {
    "pinned": "in files that are set apart",
    "file": "whole files",
    "document": "chosen one by one",
}


DESCRIPTION = (
    "Fetch a corpus, train its tokenizer, pack it into rows: what a session with --data"
    " SOURCE would do first, and then finds done."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help=f"{CLIMBMIX} (from the Hugging Face hub), stdlib, or a file or folder of"
        " parquet or text",
    )
    parser.add_argument(
        "--shards",
        type=int,
        metavar="N",
        help=f"shards of {CLIMBMIX} to train on ({TRAINING_SHARDS}); {CLIMBMIX}:N says"
        " the same",
    )
    parser.add_argument(
        "--vocab-size",
        type=int,
        metavar="V",
        help="ids of the tokenizer (as the training module has it)",
    )
    parser.add_argument(
        "--sequence-len",
        type=int,
        metavar="T",
        help="tokens of a row, without its first (as the training module has it)",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="folder to work in (the one where sessions look)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Prepare a corpus, and print what was made."""
    began = time.monotonic()
    cache = user_cache() if arguments.cache is None else arguments.cache.absolute()
    name = _name(arguments.source, arguments.shards)
    sizes = _sizes(cache)
    sought = (arguments.vocab_size, arguments.sequence_len)
    found = (sizes["VOCAB_SIZE"], sizes["SEQUENCE_LEN"])
    vocab_size, sequence_len = (
        default if asked is None else asked
        for asked, default in zip(sought, found, strict=True)
    )
    with Stages(Console(stderr=True)) as stages:
        prepared = prepare(
            open_source(name),
            vocab_size=vocab_size,
            sequence_len=sequence_len,
            cache=cache / DATA_FOLDER,
            progress=stages,
        )
    print(report(prepared, time.monotonic() - began))
    if arguments.cache is None and (vocab_size, sequence_len) == found:
        print(f"a session on GPUs finds it: pytest specs/ --data {name}")


def _name(source: str, shards: int | None) -> str:
    """Return what ``--data`` would name."""
    if shards is None:
        return source
    if source != CLIMBMIX:
        raise DataError(
            f"--shards {shards} chooses from {CLIMBMIX}, and the corpus is {source}.",
            hint=f"leave --shards out, or name {CLIMBMIX}.",
        )
    return source if shards == TRAINING_SHARDS else f"{source}:{shards}"


def _sizes(cache: Path) -> dict[str, int]:
    """Return the constants of the base that a session on GPUs trains."""
    source = (LIBRARY / TRAINING_MODULE).read_text()
    job = Job(source=source, codemods=GPU.overrides)
    return configuration(mutate(job, project=LIBRARY, cache=cache / "mutants").source)


def report(prepared: Prepared, seconds: float) -> str:
    """Return the lines that say what was made, what was left out, and where it is."""
    training, validation = (
        prepared.counts[split] for split in ("training", "validation")
    )
    width = prepared.sequence_len + 1
    text_bytes = training["bytes"] + validation["bytes"]
    text_tokens = sum(s["tokens"] - s["pieces"] for s in (training, validation))
    rows = [
        ("fingerprint", prepared.fingerprint),
        *(
            (
                f"{name} tokens",
                f"{split['rows'] * width:,} in {split['rows']:,} rows of {width:,}",
            )
            for name, split in (("training", training), ("validation", validation))
        ),
        ("bytes per token", f"{text_bytes / text_tokens:.3f}"),
        (
            "documents",
            f"{training['documents']:,} for training, {validation['documents']:,} for"
            f" validation, {SPLIT_BY[prepared.counts['split_by']]}",
        ),
        *(
            ("left out" if at == 0 else "", text)
            for at, text in enumerate(_left_out(prepared) or ["nothing"])
        ),
        ("seconds", f"{seconds:.1f}"),
        ("folder", str(prepared.folder)),
    ]
    return "\n".join(
        textwrap.fill(
            text,
            WIDTH,
            initial_indent=name.ljust(MARGIN),
            subsequent_indent=" " * MARGIN,
            break_long_words=False,
            break_on_hyphens=False,
        )
        if name != "folder"
        else name.ljust(MARGIN) + text
        for name, text in rows
    )


def _left_out(prepared: Prepared) -> list[str]:
    """Return what did not get into the rows, and why, one line each."""
    counts = prepared.counts
    splits = [counts[split] for split in ("training", "validation")]
    cropped, unfinished, tokens = (
        sum(split[name] for split in splits)
        for name in ("cropped_tokens", "unfinished_tokens", "tokens")
    )
    duplicate_mb = counts["duplicate_bytes_left_out"] / 1e6
    found = [
        (counts["files_ignored"], "files of another kind"),
        (counts["files_undecodable"], "files that are not UTF-8"),
        (counts["documents_undecodable"], "documents that are not UTF-8"),
        (counts["documents_empty"], "documents without text"),
        (
            counts["duplicates_left_out"],
            f"documents of training that validation has, too: {duplicate_mb:,.1f} MB",
        ),
        (cropped, f"tokens cropped to fill rows: {cropped / tokens:.1%}"),
        (unfinished, "tokens of last rows that were not full"),
    ]
    return [f"{count:,} {what}" for count, what in found if count]


@attrs.define
class Stages:
    """What is being prepared: a bar on a terminal, and a line when a stage is done.

    Args:
        console: Where to write.
    """

    console: Console
    _stage: str = attrs.field(default="", init=False)
    _began: float = attrs.field(default=0.0, init=False)
    _bar: Progress | None = attrs.field(default=None, init=False)
    _task: TaskID = attrs.field(default=TaskID(0), init=False)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TaskProgressColumn(),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=self.console,
                transient=True,
            )
            self._bar.start()
        return self

    def __call__(self, stage: str, share: float) -> None:
        """Show how far a stage has come, 0 to 1."""
        if stage != self._stage:
            self._finish()
            self._stage, self._began = stage, time.monotonic()
            if self._bar is not None:
                self._task = self._bar.add_task(stage, total=1.0)
        if self._bar is not None:
            self._bar.update(self._task, completed=share)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._finish()
        if self._bar is not None:
            self._bar.stop()

    def _finish(self) -> None:
        """Say how long the stage took that is over."""
        if not self._stage:
            return
        if self._bar is not None:
            self._bar.remove_task(self._task)
        seconds = time.monotonic() - self._began
        self.console.print(
            f"{self._stage}: {seconds:.1f} s",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
