"""Give the model one block more, whatever its depth."""

import ast

import libcst as cst

from codemods.base import Codemod
from codemods.constants import constant, replaced
from core.errors import CodemodRefused
from core.syntax import constants


class OneMoreBlock(Codemod):
    """Add 1 to DEPTH, and with it to the heads that the width is rounded up to.

    The width is DEPTH times ASPECT_RATIO in whole heads: where it was a whole number of
    heads, a ninth block needs one head more, however little the aspect ratio is reduced
    for it.  A factor would not do: 9/8 of the two blocks of a laptop is no integer.
    """

    DESCRIPTION = "Give the model one block more"

    EXAMPLES = (
        (
            """
            DEPTH = 8  # blocks
            ASPECT_RATIO = 64
            """,
            """
            DEPTH = 9  # blocks
            ASPECT_RATIO = 64
            """,
        ),
    )

    def transform_module_impl(self, tree: cst.Module) -> cst.Module:
        """Write the new depth in place of the old one."""
        old = constant(tree, "DEPTH")
        depth = constants(ast.parse(tree.code)).get("DEPTH")
        if not isinstance(depth, int):
            raise CodemodRefused(
                f"DEPTH = {tree.code_for_node(old)} is not a number of blocks.",
                hint="set it by constants.SetConstant(name=..., expression=...).",
            )
        return replaced(tree, "DEPTH", old, cst.Integer(str(depth + 1)))
