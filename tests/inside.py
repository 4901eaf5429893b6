"""Call a function in a child of a zygote, as the processes of trials run; hear what it says."""

import importlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from core.channel import Reader, write
from core.process.child import Child, Exit, Zygote, python_environment
from core.sandbox import Policy
from tests.conftest import ROOT

MAIN = "tests.inside:main"


def main(
    settings: dict[str, Any], events: int, commands: Reader, inherited: list[int]
) -> None:
    """Call the function that *settings* name; say what it returned or raised."""
    module, _, name = settings["function"].partition(":")
    function = getattr(importlib.import_module(module), name)
    try:
        said = {"returned": function(*settings["arguments"])}
    except BaseException as error:  # whatever it is, the test asks for it
        number = error.errno if isinstance(error, OSError) else None
        said = {"raised": type(error).__name__, "errno": number, "text": str(error)}
    write(events, said)


@attrs.frozen(kw_only=True)
class Said:
    """What came of it.

    Attributes:
        returned: By the function, as JSON has it.
        raised: The type of what it raised.
        errno: Of an OSError.
        text: Of what it raised.
    """

    returned: Any = None
    raised: str | None = None
    errno: int | None = None
    text: str = attrs.field(default="", eq=False)


def refused(number: int) -> Said:
    """Return what a PermissionError with that number is heard as."""
    return Said(raised="PermissionError", errno=number)


@attrs.define
class Inside:
    """Calls functions in children of *zygote*, each in a folder of its own.

    Attributes:
        zygote: It has imported what the functions need: they cannot read this folder.
        folder: For the children's folders.
        confined: What the latest child said of its sandbox.
        exit: How the latest child ended.
    """

    zygote: Zygote
    folder: Path
    confined: dict[str, Any] | None = None
    exit: Exit | None = None
    _numbers: itertools.count = attrs.field(factory=itertools.count)

    def own(self) -> Path:
        """Return a new folder for a child."""
        own = self.folder / f"own{next(self._numbers)}"
        own.mkdir()
        return own

    def start(
        self,
        policy: Policy | None,
        function: Callable[..., Any],
        *arguments: Any,
        **options: Any,
    ) -> Child:
        """Start a child that calls *function* and says what came of it.

        It works in the first folder that it may write; *options* are those of Child.
        """
        own = Path(policy.write[0]) if policy and policy.write else self.own()
        return Child.start(
            MAIN,
            {
                "function": f"{function.__module__}:{function.__qualname__}",
                "arguments": arguments,
            },
            **{
                "zygote": self.zygote,
                "name": "inside",
                "folder": own,
                "environment": python_environment(ROOT),
                "log": own.with_suffix(".log"),
                "policy": policy,
                **options,
            },
        )

    def __call__(
        self,
        policy: Policy | None,
        function: Callable[..., Any],
        *arguments: Any,
        **options: Any,
    ) -> Said:
        """Return what *function* says in a child that *policy* confines, if there is one."""
        child = self.start(policy, function, *arguments, **options)
        try:
            self.confined = child.events.receive() if policy else None
            said = child.events.receive()
        finally:
            self.exit = child.end()
        assert said is not None, (self.confined, self.exit)
        return Said(**said)
