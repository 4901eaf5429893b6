"""What each device is doing now, on a terminal; elsewhere the preparation's seconds."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from core.device import Device
from core.launch.watch import Progress as TrialProgress


class Live:
    """Progress bars that make room when a verdict is written.

    Args:
        terminal: pytest's terminal reporter, or None for no display.
    """

    def __init__(self, terminal: Any) -> None:
        self._terminal = terminal
        self._tasks: dict[str, TaskID] = {}
        self._stage = ""
        self._stage_began = time.monotonic()
        self._mutex = threading.Lock()
        self._progress: Progress | None = None
        self._running = False
        if terminal is not None and terminal.isatty:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                console=Console(
                    file=cast(TextIO, _Output(terminal)),
                    force_terminal=True,
                    no_color=not terminal.hasmarkup,
                ),
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )

    def preparing(self, stage: str, share: float) -> None:
        """Show how far a stage of the preparation has come, 0 to 1."""
        if self._terminal is None:
            return
        if stage != self._stage:
            self.prepared()
            self._stage, self._stage_began = stage, time.monotonic()
        if self._progress is not None:
            self.start()
            if "data" not in self._tasks:
                self._tasks["data"] = self._progress.add_task("", total=1.0, note="")
            self._progress.update(
                self._tasks["data"], description=stage, completed=share
            )

    def prepared(self) -> None:
        """Say how long the last stage of the preparation took."""
        if self._stage:
            seconds = time.monotonic() - self._stage_began
            self.pause()
            self._terminal.ensure_newline()
            self._terminal.write_line(f"data    {self._stage}: {seconds:.1f} s")
        self._stage = ""
        if self._progress is not None and "data" in self._tasks:
            self._progress.remove_task(self._tasks.pop("data"))

    def watch(self, device: Device, label: str, progress: TrialProgress | None) -> None:
        """Show what a device does; called from the device's thread."""
        if self._progress is None:
            return
        with self._mutex:
            if progress is None:
                task = self._tasks.pop(device.id, None)
                if task is not None:
                    self._progress.remove_task(task)
                return
            if device.id not in self._tasks:
                self._tasks[device.id] = self._progress.add_task(
                    "", total=None, note=""
                )
            loss = (
                "" if progress.loss_nats is None else f"loss {progress.loss_nats:.3f}"
            )
            self._progress.update(
                self._tasks[device.id],
                description=f"{label}: {progress.phase}",
                completed=progress.seconds,
                total=progress.of_seconds,
                note=loss,
            )

    def write_about(self, agent: str) -> None:
        """Show what the agent does; called from its threads."""
        if self._progress is None:
            return
        with self._mutex:
            if "agent" not in self._tasks:
                self._tasks["agent"] = self._progress.add_task("", total=None, note="")
            self._progress.update(self._tasks["agent"], description=agent)
            if not agent:
                self._progress.remove_task(self._tasks.pop("agent"))

    def start(self) -> None:
        """Show the bars."""
        if self._progress is not None and not self._running:
            self._terminal.ensure_newline()
            self._progress.start()
            self._running = True

    def pause(self) -> None:
        """Take the bars away, so that lines can be written."""
        if self._progress is not None and self._running:
            self._progress.stop()
            self._running = False

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Make room for lines; the bars come back if there were any."""
        running = self._running
        self.pause()
        yield
        if running:
            self.start()

    def close(self) -> None:
        """Take the bars away for good."""
        self.pause()


class _Output:
    """pytest's own output as a file: the standard one may be captured."""

    encoding = "utf-8"

    def __init__(self, terminal: Any) -> None:
        self._terminal = terminal

    def write(self, text: str) -> int:
        self._terminal.write(text, flush=True)
        return len(text)

    def flush(self) -> None:
        self._terminal.flush()

    def isatty(self) -> bool:
        return True
