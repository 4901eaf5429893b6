"""Give a module of the model a parameter of its own."""

import libcst as cst
import libcst.matchers as m
from libcst.codemod import CodemodContext

from codemods.base import Codemod, definition, exchanged, expression
from codemods.optimizer import keyword, optimizer_group
from core.errors import CodemodRefused, SiteNotFound


class AddParameter(Codemod):
    """Assign a parameter, or a layer, at the end of a module's ``__init__``.

    What lies within a block is in the blocks' optimizer group already.  What the model
    itself owns needs a group: ``like`` names the one whose settings it gets, in a group
    of its own.  The new name keys its initial values, so all others stay as they were.
    """

    DESCRIPTION = "Give a module a parameter, and an optimizer group for it"

    EXAMPLES = (
        (
            {
                "owner": "MLP",
                "name": "gate",
                "value": "Linear(MODEL_DIM, 1, constant(0.0))",
            },
            """
            class MLP(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.up = Linear(MODEL_DIM, 4 * MODEL_DIM, uniform(0.1))
            """,
            """
            class MLP(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.up = Linear(MODEL_DIM, 4 * MODEL_DIM, uniform(0.1))
                    self.gate = Linear(MODEL_DIM, 1, constant(0.0))
            """,
        ),
        (
            {
                "owner": "GPT",
                "name": "skip_scalars",
                "value": "parameter(DEPTH, init=constant(0.0))",
                "like": "x0_scalars",
                "lr": "0.1 * X0_SCALAR_LR",
            },
            """
            class GPT(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.x0_scalars = parameter(DEPTH, init=constant(0.1))

            groups = [
                dict(name="x0_scalars", params=[model.x0_scalars], lr=X0_SCALAR_LR),
            ]
            """,
            """
            class GPT(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.x0_scalars = parameter(DEPTH, init=constant(0.1))
                    self.skip_scalars = parameter(DEPTH, init=constant(0.0))

            groups = [
                dict(name="x0_scalars", params=[model.x0_scalars], lr=X0_SCALAR_LR),
                dict(name="skip_scalars", params=[model.skip_scalars], lr=0.1 * X0_SCALAR_LR),
            ]
            """,
        ),
    )

    def __init__(
        self,
        context: CodemodContext,
        *,
        owner: str,
        name: str,
        value: str,
        like: str | None = None,
        lr: str | None = None,
    ) -> None:
        super().__init__(context)
        self.owner = owner
        self.name = name
        self.value = value
        self.like = like
        self.lr = lr

    def transform_module_impl(self, tree: cst.Module) -> cst.Module:
        """Append the assignment, then the group."""
        if not self.name.isidentifier():
            raise CodemodRefused(
                f"name={self.name!r} is not a name.",
                hint="give the name of the attribute, without 'self.'.",
            )
        if self.lr is not None and self.like is None:
            raise CodemodRefused(
                f"lr={self.lr!r} is given without like=.",
                hint="name in like= the optimizer group whose other settings it gets.",
            )
        value = expression(self.value, option="value")
        init = definition(tree, f"{self.owner}.__init__")
        attribute = m.AssignTarget(m.Attribute(m.Name("self"), m.Name(self.name)))
        if m.findall(init, attribute):
            raise CodemodRefused(
                f"{self.owner} has an attribute {self.name!r} already.",
                hint="choose another name, or change it by statements.ReplaceStatement.",
            )
        target = cst.Attribute(cst.Name("self"), cst.Name(self.name))
        line = cst.SimpleStatementLine([cst.Assign([cst.AssignTarget(target)], value)])
        body = init.body.with_changes(body=[*init.body.body, line])
        changed = exchanged(tree, init.body, body)
        return changed if self.like is None else self._with_group(changed, init)

    def _with_group(self, tree: cst.Module, init: cst.FunctionDef) -> cst.Module:
        group = optimizer_group(tree, self.like)
        lists = m.findall(
            tree,
            m.List(
                elements=[
                    m.ZeroOrMore(),
                    m.Element(m.MatchIfTrue(lambda node: node is group)),
                    m.ZeroOrMore(),
                ]
            ),
        )
        model = m.findall(keyword(group, "params") or group, m.Attribute(m.Name()))
        if not lists or not model:
            raise SiteNotFound(
                f"The optimizer group {self.like!r} is not an element of a list with "
                "params= of the model's attributes.",
                hint="name in like= a group such as dict(name=..., params=[model.x]).",
            )
        liked = m.AssignTarget(m.Attribute(m.Name("self"), m.Name(model[0].attr.value)))
        if not m.findall(init, liked):
            raise CodemodRefused(
                f"The optimizer group {self.like!r} holds nothing of {self.owner}.",
                hint="leave like= out where the owner is part of a block: the group of "
                "the blocks holds its parameters.",
            )
        path = f"{model[0].value.value}.{self.name}"
        is_tensor = self.value.lstrip().startswith(("parameter(", "nn.Parameter("))
        settings = {
            "name": f'"{self.name}"',
            "params": f"[{path}]" if is_tensor else f"list({path}.parameters())",
        }
        if self.lr is not None:
            settings["lr"] = tree.code_for_node(expression(self.lr, option="lr"))
        args = [
            argument.with_changes(
                value=cst.parse_expression(settings.pop(argument.keyword.value))
            )
            if argument.keyword is not None and argument.keyword.value in settings
            else argument
            for argument in group.args
        ]
        if settings:
            raise SiteNotFound(
                f"The optimizer group {self.like!r} has no {', '.join(settings)}.",
                hint="name in like= a group that states name=, params= and lr=.",
            )
        return exchanged(
            tree,
            lists[0],
            _with_element(lists[0], group, group.with_changes(args=args)),
        )


def _with_element(groups: cst.List, group: cst.Call, new: cst.Call) -> cst.List:
    """Put *new* after *group*, spaced as its neighbours are."""
    elements = list(groups.elements)
    index = next(i for i, element in enumerate(elements) if element.value is group)
    element = elements[index]
    gap = element.comma
    if element is elements[-1]:  # what follows its comma belongs to the bracket
        space = groups.lbracket.whitespace_after
        is_one_line = isinstance(space, cst.SimpleWhitespace)
        gap = cst.Comma(
            whitespace_after=cst.SimpleWhitespace(" ") if is_one_line else space
        )
    elements[index : index + 1] = [
        element.with_changes(comma=gap),
        element.with_changes(value=new),
    ]
    return groups.with_changes(elements=elements)
