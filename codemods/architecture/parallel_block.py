"""Let attention and MLP of a block read the same stream."""

import libcst as cst
import libcst.matchers as m

from codemods.base import Codemod


def _added_to_stream(branch: str) -> m.SimpleStatementLine:
    call = m.Call(func=m.Attribute(value=m.Name("self"), attr=m.Name(branch)))
    return m.SimpleStatementLine(body=[m.Assign(value=m.BinaryOperation(right=call))])


ATTENTION, MLP = _added_to_stream("attention"), _added_to_stream("mlp")


class ParallelBlock(Codemod):
    """Add attention and MLP to the stream at once, so that neither waits for the other.

    The MLP then reads the stream without what attention wrote in the same block.
    """

    DESCRIPTION = "Let attention and MLP of a block read the same stream"

    EXAMPLES = (
        (
            """
            x = x + self.attention(norm(x), cos, sin)
            x = x + self.mlp(norm(x))
            """,
            """
            x = x + self.attention(norm(x), cos, sin) + self.mlp(norm(x))
            """,
        ),
    )

    def leave_SimpleStatementLine(
        self,
        original_node: cst.SimpleStatementLine,
        updated_node: cst.SimpleStatementLine,
    ) -> cst.SimpleStatementLine | cst.RemovalSentinel:
        """Move the MLP into the statement that adds attention."""
        if m.matches(updated_node, MLP):
            return cst.RemoveFromParent()
        if m.matches(updated_node, ATTENTION):
            value = updated_node.body[0].value
            both = cst.BinaryOperation(
                left=value,
                operator=cst.Add(),
                right=cst.parse_expression("self.mlp(norm(x))"),
            )
            return updated_node.with_deep_changes(updated_node.body[0], value=both)
        return updated_node
