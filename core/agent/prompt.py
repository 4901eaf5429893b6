"""What a model is told; the words are in ``prompts/``."""

import string
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from core.agent.candidate import class_name
from core.agent.dryrun import place
from core.agent.lookup import quoted, vocabulary
from core.settings import LIBRARY
from core.spec import Case

MAX_EARLIER = 3  # attempts that the next one is shown

TOOLS: tuple[dict[str, Any], ...] = (
    {
        "name": "dry_run",
        "description": "Apply a codemod to the training module and examine what it "
        "leaves. Returns the diffs, or failures with line and reason. Takes one round.",
        "input_schema": {
            "type": "object",
            "properties": {
                "source": {"type": "string", "description": "The whole file."}
            },
            "required": ["source"],
            "additionalProperties": False,
        },
    },
    {
        "name": "submit",
        "description": "Hand in the codemod of the last dry run, which must have "
        "passed. Another reader then compares its diff with the spec.",
        "input_schema": {
            "type": "object",
            "properties": {},
            "additionalProperties": False,
        },
    },
    {
        "name": "read_symbol",
        "description": "Return the source of a function, method, class or constant of "
        "the training module, of what it calls, or of the codemods.",
        "input_schema": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "description": "As GPT.forward."}
            },
            "required": ["name"],
            "additionalProperties": False,
        },
    },
    {
        "name": "tried",
        "description": "Return what experiments did to a symbol of the training module "
        "so far, what was measured, and the end of the log of runs that failed.",
        "input_schema": {
            "type": "object",
            "properties": {
                "symbol": {"type": "string", "description": "As ROPE_BASE."}
            },
            "required": ["symbol"],
            "additionalProperties": False,
        },
    },
)

AGREEMENT = {
    "type": "object",
    "properties": {
        "does_what_is_asked": {"type": "boolean"},
        "does_nothing_else": {"type": "boolean"},
        "reason": {"type": "string"},
    },
    "required": ["does_what_is_asked", "does_nothing_else", "reason"],
    "additionalProperties": False,
}


@cache
def words(name: str) -> str:
    """Return the text of ``prompts/<name>.md``."""
    file = resources.files("core.agent") / "prompts" / f"{name}.md"
    return file.read_text(encoding="utf-8").strip()


@cache
def implementing(module: str) -> tuple[str, ...]:
    """Return the system prompt that all codemods are written under, stable and cached.

    Args:
        module: Source of the training module.
    """
    return (
        words("implement"),
        f"# The vocabulary\n\n```python\n{vocabulary(LIBRARY / 'codemods')}\n```",
        f"# The training module\n\n```python\n{module}\n```",
    )


def task(cases: Sequence[Case], earlier: Sequence[Mapping[str, Any]]) -> str:
    """Return what is to be written.

    Args:
        cases: Of one experiment.
        earlier: Attempts that came to nothing, or whose codemod is gone, oldest first.
    """
    first = cases[0]
    shown = [
        {
            "codemod": attempt["codemod"],
            "what became of it": attempt["reason"]
            or "it was accepted, and is not there any more: a person took it out",
        }
        for attempt in earlier[-MAX_EARLIER:]
    ]
    return string.Template(words("task")).substitute(
        id=f"{first.file}::{first.name}",
        name=class_name(first.name),
        place=place(first),
        spec=quoted(_spec(cases)),
        earlier=f"\n<earlier_attempts>\n{quoted(shown)}\n</earlier_attempts>\n"
        if shown
        else "",
    )


def comparison(cases: Sequence[Case], diffs: Mapping[str, str]) -> str:
    """Return what the second reader sees: spec and diffs, and nothing else."""
    shown = list(diffs.items())
    if len(shown) > 2:  # a sweep: its ends say what its middle does
        shown = [shown[0], shown[-1]]
    parts = [f"<spec>\n{quoted(_spec(cases))}\n</spec>"]
    for values, diff in shown:
        about = f' case="{values}"' if values else ""
        parts.append(f"<diff{about}>\n{diff}\n</diff>")
    return "\n\n".join(parts)


def _spec(cases: Sequence[Case]) -> dict[str, Any]:
    first = cases[0]
    if not first.values:
        return {"hypothesis": first.hypothesis, "change": first.change}
    return {
        "hypothesis": first.hypothesis,
        "axes": [axis for axis, _ in first.values],
        "cases": [{**dict(case.values), "change": case.change} for case in cases],
    }
