"""Change the groups of parameters that the optimizers are given."""

import libcst as cst
import libcst.matchers as m
from libcst.codemod import CodemodContext

from codemods.base import Codemod, close, exchanged
from codemods.constants import Value, given, replaced
from core.errors import CodemodRefused, SiteNotFound


class SetOptimizerGroup(Codemod):
    """Set one keyword of the group that is called *group*, or add it.

    A group is a call whose first keyword is a literal name: ``dict(name="lm_head", ...)``.
    """

    DESCRIPTION = "Set one keyword of an optimizer's group"

    EXAMPLES = (
        (
            {"group": "value_embedding", "keyword": "weight_decay", "value": 0.003},
            """
            groups = [
                dict(name="lm_head", params=head, weight_decay=0.0),
                dict(name="value_embedding", params=embeddings, weight_decay=0.0),
            ]
            """,
            """
            groups = [
                dict(name="lm_head", params=head, weight_decay=0.0),
                dict(name="value_embedding", params=embeddings, weight_decay=0.003),
            ]
            """,
        ),
        (
            {
                "group": "lm_head",
                "keyword": "lr",
                "expression": "2 * LM_HEAD_LR * ADAM_LR_SCALE",
            },
            """
            groups = [
                dict(
                    name="lm_head",
                    params=head,
                ),
            ]
            """,
            """
            groups = [
                dict(
                    name="lm_head",
                    params=head,
                    lr=2 * LM_HEAD_LR * ADAM_LR_SCALE,
                ),
            ]
            """,
        ),
    )

    def __init__(
        self,
        context: CodemodContext,
        *,
        group: str,
        keyword: str,
        value: Value = None,
        expression: str | None = None,
    ) -> None:
        super().__init__(context)
        self.group = group
        self.keyword = keyword
        self.value = value
        self.expression = expression

    def transform_module_impl(self, tree: cst.Module) -> cst.Module:
        """Exchange the value, or append the keyword as the last one is written."""
        call = optimizer_group(tree, self.group)
        old = keyword(call, self.keyword)
        new = given(self.value, self.expression, instead_of=old)
        if old is not None:
            return replaced(tree, f"{self.keyword}= of {self.group!r}", old, new)
        if not self.keyword.isidentifier():
            raise CodemodRefused(
                f"keyword={self.keyword!r} is not a name.",
                hint='give the name of an option of the optimizer, as "weight_decay".',
            )
        *others, last = call.args
        gap = others[-1].comma
        added = cst.Arg(
            keyword=cst.Name(self.keyword),
            value=new,
            equal=last.equal,
            comma=last.comma,
            whitespace_after_arg=last.whitespace_after_arg,
        )
        before = last.with_changes(
            comma=gap, whitespace_after_arg=cst.SimpleWhitespace("")
        )
        args = [*others, before, added]
        return exchanged(tree, call, call.with_changes(args=args))


def optimizer_group(tree: cst.Module, name: str) -> cst.Call:
    """Return the one call that makes the group called *name*.

    Raises:
        SiteNotFound: There is none.
        CodemodRefused: There are several.
    """
    named = m.Call(
        args=[
            m.Arg(keyword=m.Name("name"), value=m.SimpleString()),
            m.AtLeastN(n=1),  # its parameters
        ]
    )
    groups: list[tuple[str, cst.Call]] = []
    for call in m.findall(tree, named):
        text = keyword(call, "name")
        groups.append((text.evaluated_value, call))
    found = [call for group, call in groups if group == name]
    if not found:
        raise SiteNotFound(
            f"The training module has no optimizer group {name!r}.",
            hint=f"use a group that is there: {close(name, (g for g, _ in groups))}.",
        )
    if len(found) > 1:
        raise CodemodRefused(
            f"The training module has {len(found)} optimizer groups {name!r}.",
            hint="write a codemod that tells them apart.",
        )
    return found[0]


def keyword(call: cst.Call, name: str) -> cst.BaseExpression | None:
    """Return the value of a keyword of *call*, or None where it is not given."""
    for argument in call.args:
        if argument.keyword is not None and argument.keyword.value == name:
            return argument.value
    return None
