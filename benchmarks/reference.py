"""Adapt a copy of karpathy/autoresearch's trainer, to run beside ours.

Its model, optimizer, schedule and loader stay as they are.  Its FlashAttention 3, which
the hub alone has, gives way to the kernels that ours attends with; budget, data and the
length of its evaluation are set.
"""

import shutil
from pathlib import Path

import libcst as cst
from libcst.codemod import CodemodContext

from codemods.base import Codemod
from codemods.constants import SetConstant
from codemods.statements import DeleteStatement, ReplaceStatement

EVALUATED_TOKENS = 3 * 2**19

Edit = tuple[type[Codemod], dict[str, object]]


def adapted(source: str, *edits: Edit) -> str:
    """Return *source* after each of *edits*.

    Raises:
        DeltaspecError: One of them finds nothing to rewrite.
    """
    tree = cst.parse_module(source)
    for codemod, options in edits:
        tree = codemod(CodemodContext(), **options).transform_module(tree)
    return tree.code


def write_reference(
    checkout: Path, folder: Path, *, data: Path, budget_seconds: float, pattern: str
) -> None:
    """Write an adapted copy of the trainer in *checkout* to *folder*.

    Args:
        checkout: Of karpathy/autoresearch.
        folder: Where ``train.py``, ``prepare.py`` and what they make are put.
        data: A folder of parquet shards, one of them called ``shard_val.parquet``.
        budget_seconds: Of training; it does not count its first steps.
        pattern: Of windows, as SSSL or L.
    """
    shards = folder / "data"
    shutil.copytree(data, shards)
    (folder / "prepare.py").write_text(
        adapted(
            (checkout / "prepare.py").read_text(),
            (SetConstant, {"name": "DATA_DIR", "value": str(shards)}),
            (
                SetConstant,
                {"name": "TOKENIZER_DIR", "value": str(folder / "tokenizer")},
            ),
            (SetConstant, {"name": "VAL_FILENAME", "value": "shard_val.parquet"}),
            (SetConstant, {"name": "TIME_BUDGET", "value": budget_seconds}),
            (SetConstant, {"name": "EVAL_TOKENS", "value": EVALUATED_TOKENS}),
        )
    )
    (folder / "train.py").write_text(
        adapted(
            (checkout / "train.py").read_text(),
            (
                ReplaceStatement,
                {
                    "statement": "from kernels import get_kernel",
                    "source": "from core.training.kernels import windowed_attention",
                },
            ),
            (DeleteStatement, {"statement": "repo = ..."}),
            (DeleteStatement, {"statement": "fa3 = ..."}),
            (
                ReplaceStatement,
                {
                    "function": "CausalSelfAttention.forward",
                    "statement": "y = fa3.flash_attn_func(...)",
                    "source": "y = windowed_attention(q, k, v, window_size[0])",
                },
            ),
            *(
                [(SetConstant, {"name": "WINDOW_PATTERN", "value": pattern})]
                if pattern != "SSSL"  # as it is; a codemod that changes nothing raises
                else []
            ),
        )
    )
