"""Replace whole functions of a training module."""

import libcst as cst
from libcst.codemod import CodemodContext

from codemods.base import Codemod, close, definition, exchanged, statements
from core.errors import CodemodRefused


class ReplaceFunction(Codemod):
    """Put other source in the place of a function or a method.

    The source is the whole definition, decorators included; the comments above the
    old one stay.
    """

    DESCRIPTION = "Put other source in the place of a function or a method"

    EXAMPLES = (
        (
            {
                "name": "MLP.forward",
                "source": """
                def forward(self, x):
                    return self.down(F.gelu(self.up(x)))
                """,
            },
            """
            class MLP(nn.Module):
                def forward(self, x):
                    x = self.up(x)
                    x = F.relu(x).square()
                    return self.down(x)
            """,
            """
            class MLP(nn.Module):
                def forward(self, x):
                    return self.down(F.gelu(self.up(x)))
            """,
        ),
    )

    def __init__(self, context: CodemodContext, *, name: str, source: str) -> None:
        super().__init__(context)
        self.name = name
        self.source = source

    def transform_module_impl(self, tree: cst.Module) -> cst.Module:
        """Exchange the definition."""
        old = definition(tree, self.name)
        parts = statements(tree, self.source, option="source")
        name = self.name.rpartition(".")[2]
        if (
            len(parts) != 1
            or not isinstance(old, cst.FunctionDef)
            or not isinstance(parts[0], cst.FunctionDef)
            or parts[0].name.value != name
        ):
            found = (part.name.value for part in parts if isinstance(part, FUNCTIONS))
            raise CodemodRefused(
                f"{self} needs the definition of one function {name!r}, and its source "
                f"defines {close('', found)}.",
                hint=f"begin source= with 'def {name}(' and give nothing else; a helper "
                "goes before it by statements.InsertBefore.",
            )
        new = parts[0].with_changes(
            leading_lines=[*old.leading_lines, *parts[0].leading_lines]
        )
        return exchanged(tree, old, new)


FUNCTIONS = cst.FunctionDef | cst.ClassDef
