"""Conversations with the agent, as tests and benchmarks write them down."""

import json
import os

from tests.messages import Messages

Json = dict[str, object]

KEY = "sk-ant-secret"
SPEC = """
from core.spec import Expect, Experiment, Sweep

rope = Experiment(
    hypothesis="Slow channels turn less, so that far positions stay comparable.",
    change="Multiply the rotary base by {factor}.",
    sweep=Sweep(factor=(5, 20)),
    expect=Expect(delta_bpb=-0.0012, sd=0.001),
)
"""
ROPE = '''"""Turn the slow channels of the rotation less."""

from libcst.codemod import CodemodContext

from codemods.constants import ScaleConstant


class Rope(ScaleConstant):
    """Multiply the rotary base by *factor*, so that far positions stay comparable."""

    DESCRIPTION = "Multiply the rotary base"

    EXAMPLES = (
        (
            {"factor": 5},
            """
            ROPE_BASE = 10_000
            """,
            """
            ROPE_BASE = 50_000
            """,
        ),
    )

    def __init__(self, context: CodemodContext, *, factor: float) -> None:
        super().__init__(context, name="ROPE_BASE", factor=factor)
'''
# As ROPE is made; another class, another constant, one value
SETS = '''"""{purpose}."""

from libcst.codemod import CodemodContext

from codemods.constants import SetConstant


class {name}(SetConstant):
    """{purpose}."""

    DESCRIPTION = "{purpose}"

    EXAMPLES = (
        (
            """
            {constant} = {old}
            """,
            """
            {constant} = {new}
            """,
        ),
    )

    def __init__(self, context: CodemodContext) -> None:
        super().__init__(context, name="{constant}", value={new})
'''
REPLACES = '''"""{purpose}."""

from libcst.codemod import CodemodContext

from codemods.statements import ReplaceStatement

STATEMENT = {statement!r}
SOURCE = {source!r}


class {name}(ReplaceStatement):
    """{purpose}."""

    DESCRIPTION = "{purpose}"

    EXAMPLES = (({before!r}, {after!r}),)

    def __init__(self, context: CodemodContext) -> None:
        super().__init__(
            context, function={function!r}, statement=STATEMENT, source=SOURCE
        )
'''


def sets(name: str, constant: str, old: object, new: object) -> str:
    """Return a codemod that gives a constant another value."""
    purpose = f"Set {constant}"
    return SETS.format(name=name, purpose=purpose, constant=constant, old=old, new=new)


def replaces(name: str, function: str, statement: str, source: str) -> str:
    """Return a codemod that replaces a statement of a function without a class."""

    def example(body: str) -> str:
        lines = "".join(f"    {line}\n" for line in body.splitlines())
        return f"\ndef {function}(x):\n{lines}"

    return REPLACES.format(
        name=name,
        purpose=f"Change {function}",
        function=function,
        statement=statement,
        source=source,
        before=example(statement),
        after=example(source),
    )


def uses(tool: str, **given: object) -> Json:
    """Return the reply that calls a tool."""
    return {"blocks": [{"type": "tool_use", "name": tool, "input": given}]}


def says(text: str, **more: object) -> Json:
    """Return the reply that is text alone; *more* as ``Messages`` has it."""
    return {"blocks": [{"type": "text", "text": text}], **more}


def tries(source: str) -> Json:
    """Return the reply that dry-runs a codemod."""
    return uses("dry_run", source=source)


def hands_in(source: str) -> tuple[Json, Json]:
    """Return the replies that dry-run a codemod, and submit it."""
    return tries(source), uses("submit")


def agrees(reason: str = "It does that.") -> Json:
    """Return the judgement of a reader who finds nothing."""
    return judges(does_it=True, nothing_else=True, reason=reason)


def disagrees(reason: str) -> Json:
    """Return the judgement of a reader who finds more than the spec says."""
    return judges(does_it=True, nothing_else=False, reason=reason)


def judges(*, does_it: bool, nothing_else: bool, reason: str) -> Json:
    """Return the judgement of a reader."""
    judgement = {
        "does_what_is_asked": does_it,
        "does_nothing_else": nothing_else,
        "reason": reason,
    }
    return says(json.dumps(judgement))


def author(id: str, *replies: Json, **more: object) -> Json:
    """Return the script of whoever writes the codemod of an experiment."""
    return {"when": [f"the codemod of `{id}`"], "replies": list(replies), **more}


def reader(word: str, *replies: Json, **more: object) -> Json:
    """Return the script of the second reader of what holds *word*."""
    when = ["You compare a spec with a diff", word]
    return {"when": when, "replies": list(replies), **more}


def environment(server: Messages | str) -> dict[str, str]:
    """Return what leads the client of a child process to a server, and nothing else."""
    url = server if isinstance(server, str) else server.url
    ours = {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": KEY}
    rest = {k: v for k, v in os.environ.items() if not k.startswith("ANTHROPIC_")}
    return rest | ours
