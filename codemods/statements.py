"""Change the statements around one that is found by its source.

The statement is compared by meaning: comments, layout and quotes don't count.  In it
``...`` stands for any expression, alone between the parentheses of a call for any
arguments, and alone as a body for any body.
"""

import ast
import difflib
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from textwrap import dedent
from typing import Any

import libcst as cst
from libcst.codemod import CodemodContext
from libcst.metadata import MetadataWrapper, PositionProvider

from codemods.base import (
    Block,
    Codemod,
    Statement,
    definition,
    definitions,
    exchanged,
    parsable,
    statements,
)
from core.errors import CodemodRefused, SiteNotFound

Site = tuple[Block, Statement, ast.stmt]


class StatementCodemod(Codemod):
    """Find one statement, and leave what goes in its place to ``around``."""

    def __init__(
        self, context: CodemodContext, *, statement: str, function: str = ""
    ) -> None:
        super().__init__(context)
        self.statement = statement
        self.function = function

    @abstractmethod
    def around(self, found: Statement, tree: cst.Module) -> list[Statement]:
        """Return what takes the place of *found*."""

    def transform_module_impl(self, tree: cst.Module) -> cst.Module:
        """Exchange the statement within its block."""
        block, found = self._site(tree)
        body: list[Any] = []
        for part in block.body:
            body += self.around(part, tree) if part is found else [part]
        if not body and block is not tree:
            body = [cst.parse_statement("pass")]
        return exchanged(tree, block, block.with_changes(body=body))

    def _site(self, tree: cst.Module) -> tuple[Block, Statement]:
        scope = definition(tree, self.function) if self.function else tree
        where = self.function or "the training module, outside functions and classes"
        pattern = self._pattern()
        sites = list(_statements(scope, scope))
        found = _matching(pattern, sites)
        if not found:
            elsewhere = _elsewhere(pattern, tree)
            raise SiteNotFound(
                f"There is no statement {_first_line(pattern)!r} in {where}.",
                hint=f"it stands in {elsewhere}: give function={elsewhere!r}."
                if elsewhere
                else f"take one that is there: {_nearest(pattern, sites)}.",
            )
        if len(found) > 1:
            positions = MetadataWrapper(tree, unsafe_skip_copy=True).resolve(
                PositionProvider
            )
            listed = "; ".join(
                f"line {positions[part].start.line}: {_first_line(node)}"
                for _, part, node in found
            )
            raise CodemodRefused(
                f"{len(found)} statements in {where} match "
                f"{_first_line(pattern)!r}: {listed}.",
                hint="write out the one that is meant, name its function, or replace "
                "the whole by functions.ReplaceFunction.",
            )
        return found[0][:2]

    def _pattern(self) -> ast.stmt:
        source = dedent(self.statement).strip("\n")
        parsed = parsable(source, option="statement", mode="exec")
        first, *rest = ast.parse(ast.unparse(parsed)).body
        if rest:
            raise CodemodRefused(
                f"The option statement= holds {len(rest) + 1} statements, not one.",
                hint="give one of them, and what surrounds it to another codemod.",
            )
        return first


class ReplaceStatement(StatementCodemod):
    """Put other source in the place of a statement."""

    DESCRIPTION = "Put other source in the place of a statement"

    EXAMPLES = (
        (
            {
                "function": "MLP.forward",
                "statement": "x = F.relu(x).square()",
                "source": "x = F.gelu(x)",
            },
            """
            class MLP(nn.Module):
                def forward(self, x):
                    x = self.up(x)
                    x = F.relu(x).square()  # https://arxiv.org/abs/2109.08668
                    return self.down(x)
            """,
            """
            class MLP(nn.Module):
                def forward(self, x):
                    x = self.up(x)
                    x = F.gelu(x)
                    return self.down(x)
            """,
        ),
        (
            {
                "function": "MLP.__init__",
                "statement": "self.up = Linear(...)",
                "source": "self.up = Linear(MODEL_DIM, 8 * MODEL_DIM)",
            },
            """
            class MLP(nn.Module):
                def __init__(self):
                    self.up = Linear(MODEL_DIM, 4 * MODEL_DIM)
                    self.down = Linear(4 * MODEL_DIM, MODEL_DIM)
            """,
            """
            class MLP(nn.Module):
                def __init__(self):
                    self.up = Linear(MODEL_DIM, 8 * MODEL_DIM)
                    self.down = Linear(4 * MODEL_DIM, MODEL_DIM)
            """,
        ),
    )

    def __init__(
        self,
        context: CodemodContext,
        *,
        statement: str,
        source: str,
        function: str = "",
    ) -> None:
        super().__init__(context, statement=statement, function=function)
        self.source = source

    def around(self, found: Statement, tree: cst.Module) -> list[Statement]:
        """Keep the comments above the statement."""
        first, *rest = statements(tree, self.source, option="source")
        above = [*found.leading_lines, *first.leading_lines]
        return [first.with_changes(leading_lines=above), *rest]


class InsertBefore(StatementCodemod):
    """Put source before a statement; its comments stay with it."""

    DESCRIPTION = "Put source before a statement"

    EXAMPLES = (
        (
            {
                "statement": "class MLP(nn.Module): ...",
                "source": """
                def squared_relu(x):
                    return F.relu(x).square()
                """,
            },
            """
            import torch


            class MLP(nn.Module):
                def forward(self, x):
                    return self.down(x)
            """,
            """
            import torch


            def squared_relu(x):
                return F.relu(x).square()


            class MLP(nn.Module):
                def forward(self, x):
                    return self.down(x)
            """,
        ),
    )

    def __init__(
        self,
        context: CodemodContext,
        *,
        statement: str,
        source: str,
        function: str = "",
    ) -> None:
        super().__init__(context, statement=statement, function=function)
        self.source = source

    def around(self, found: Statement, tree: cst.Module) -> list[Statement]:
        """Space definitions as the one that follows."""
        first, *rest = statements(tree, self.source, option="source")
        if isinstance(found, cst.FunctionDef | cst.ClassDef):
            blank = [line for line in found.leading_lines if line.comment is None]
            first = first.with_changes(leading_lines=[*blank, *first.leading_lines])
        return [first, *rest, found]


class InsertAfter(StatementCodemod):
    """Put source after a statement."""

    DESCRIPTION = "Put source after a statement"

    EXAMPLES = (
        (
            {
                "function": "CausalSelfAttention.forward",
                "statement": "k = norm(k)",
                "source": "q, k = 1.2 * q, 1.2 * k  # sharper attention",
            },
            """
            class CausalSelfAttention(nn.Module):
                def forward(self, q, k, v):
                    q = norm(q)
                    k = norm(k)  # after the rotation

                    return attend(q, k, v)
            """,
            """
            class CausalSelfAttention(nn.Module):
                def forward(self, q, k, v):
                    q = norm(q)
                    k = norm(k)  # after the rotation
                    q, k = 1.2 * q, 1.2 * k  # sharper attention

                    return attend(q, k, v)
            """,
        ),
    )

    def __init__(
        self,
        context: CodemodContext,
        *,
        statement: str,
        source: str,
        function: str = "",
    ) -> None:
        super().__init__(context, statement=statement, function=function)
        self.source = source

    def around(self, found: Statement, tree: cst.Module) -> list[Statement]:
        """Follow the statement with the source."""
        return [found, *statements(tree, self.source, option="source")]


class DeleteStatement(StatementCodemod):
    """Take a statement out, with the comments above it."""

    DESCRIPTION = "Take a statement out"

    EXAMPLES = (
        (
            {"function": "attend", "statement": "q = norm(q)"},
            """
            def attend(q, k):
                # keeps the logits small
                q = norm(q)
                return q @ k
            """,
            """
            def attend(q, k):
                return q @ k
            """,
        ),
    )

    def around(self, found: Statement, tree: cst.Module) -> list[Statement]:
        """Leave nothing."""
        return []


def _statements(node: cst.CSTNode, scope: cst.CSTNode) -> Iterator[Site]:
    """Yield each statement of *scope* with its block and its syntax tree.

    A function holds the functions within it; a module or a class holds none of what is
    inside their functions and classes.
    """
    for child in node.children:
        if isinstance(node, Block) and isinstance(child, Statement):
            code = cst.Module([]).code_for_node(child)
            parsed = ast.parse(code).body
            if len(parsed) == 1:  # `a = 1; b = 2` is two on a line
                # Unparsed once, so that "a" "b" and "ab" are the same constant
                yield node, child, ast.parse(ast.unparse(parsed)).body[0]
        is_closed = isinstance(
            child, cst.FunctionDef | cst.ClassDef
        ) and not isinstance(scope, cst.FunctionDef)
        if not is_closed and not isinstance(child, cst.BaseExpression):
            yield from _statements(child, scope)


def _matching(pattern: ast.stmt, sites: Iterable[Site]) -> list[Site]:
    """Return the *sites* that are *pattern*, or that it fits."""
    sites = list(sites)
    # `x[..., 0]` is common in tensor code: what is equal needs no wildcard.
    equal = [site for site in sites if ast.dump(site[2]) == ast.dump(pattern)]
    return equal or [site for site in sites if _fits(pattern, site[2])]


def _elsewhere(pattern: ast.stmt, tree: cst.Module) -> str:
    """Return the function that holds a statement like *pattern*; "" if none does."""
    for name, node in definitions(tree.body):
        is_function = isinstance(node, cst.FunctionDef)
        if is_function and _matching(pattern, _statements(node, node)):
            return name
    return ""


def _nearest(pattern: ast.stmt, sites: Iterable[Site]) -> str:
    """Show the statements that are most like *pattern*, each as a pattern."""
    shown = list(dict.fromkeys(_as_pattern(node) for *_, node in sites))
    near = difflib.get_close_matches(_as_pattern(pattern), shown, n=3, cutoff=0)
    return "; ".join(near) or "it has none"


def _as_pattern(node: ast.stmt) -> str:
    first, *rest = ast.unparse(node).splitlines()
    return f"{first} ..." if rest else first


def _first_line(node: ast.stmt) -> str:
    return ast.unparse(node).splitlines()[0]


def _is_wildcard(node: Any) -> bool:
    return isinstance(node, ast.Constant) and node.value is ...


def _fits(pattern: Any, node: Any) -> bool:
    """Say whether *node* is *pattern*, where ``...`` stands for anything."""
    if _is_wildcard(pattern):
        return isinstance(node, ast.expr)
    if isinstance(pattern, list):
        match pattern:
            case [ast.Expr(value=value)] if _is_wildcard(value):
                return bool(node)
        return (
            isinstance(node, list)
            and len(pattern) == len(node)
            and all(map(_fits, pattern, node))
        )
    if not isinstance(pattern, ast.AST):
        return type(pattern) is type(node) and pattern == node
    if type(pattern) is not type(node):
        return False
    fields = set(pattern._fields)
    if isinstance(pattern, ast.Call) and not pattern.keywords:
        match pattern.args:
            case [only] if _is_wildcard(only):
                fields = {"func"}
    return all(
        _fits(getattr(pattern, field, None), getattr(node, field, None))
        for field in fields
    )
