"""The base of every codemod, and what several of them look for in a module."""

import argparse
import ast
import difflib
import inspect
import types
from collections.abc import Callable, Iterable, Iterator
from textwrap import dedent
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin

import libcst as cst
from libcst.codemod import CodemodContext, VisitorBasedCodemodCommand

from core.errors import CodemodRefused, SiteNotFound
from core.mutate import shown

Definition = cst.FunctionDef | cst.ClassDef
Block = cst.Module | cst.IndentedBlock
Statement = cst.SimpleStatementLine | cst.BaseCompoundStatement


class Codemod(VisitorBasedCodemodCommand):
    """A LibCST command whose options are the keyword-only parameters of ``__init__``.

    Override ``leave_<Node>``, or ``transform_module_impl`` for a change of one known
    place.  A codemod that leaves the module as it was raises.

    Attributes:
        DESCRIPTION: One line for ``python -m libcst.tool list``.
        EXAMPLES: (options, before, after), or (before, after) where all options have
            defaults: the documentation, and through one generic test the test.
        options: The options as given.
    """

    EXAMPLES: ClassVar[tuple[tuple[Any, ...], ...]] = ()
    options: dict[str, Any]

    def __new__(cls, context: CodemodContext, **options: Any) -> Self:
        """Refuse options that ``__init__`` would not take."""
        _check(cls, options)
        self = super().__new__(cls)
        self.options = options
        return self

    def __str__(self) -> str:
        return shown(type(self).__name__, self.options.items())

    @classmethod
    def parameters(cls) -> dict[str, inspect.Parameter]:
        """Return the options that the codemod takes, by name."""
        signature = inspect.signature(cls.__init__, eval_str=True)
        return {
            name: parameter
            for name, parameter in signature.parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }

    @classmethod
    def examples(cls) -> Iterator[tuple[dict[str, Any], str, str]]:
        """Yield options, source before and source after of each example."""
        for *options, before, after in cls.EXAMPLES:
            yield dict(*options), dedent(before), dedent(after)

    @classmethod
    def add_args(cls, arg_parser: argparse.ArgumentParser) -> None:
        """Offer each option to ``python -m libcst.tool codemod``."""
        for name, parameter in cls.parameters().items():
            is_required = parameter.default is parameter.empty
            arg_parser.add_argument(
                f"--{name}",
                required=is_required,
                default=None if is_required else parameter.default,
                metavar=inspect.formatannotation(parameter.annotation),
                type=_reader(parameter.annotation),
            )

    def transform_module(self, tree: cst.Module) -> cst.Module:
        """Return *tree* changed.

        Raises:
            SiteNotFound: There was nothing to rewrite.
        """
        changed = super().transform_module(tree)
        if changed.code == tree.code:
            raise SiteNotFound(
                f"{self} found nothing to rewrite in the training module.",
                hint="compare the site that its EXAMPLES show with the training module."
                if self.EXAMPLES
                else "compare what it looks for with the training module, and show it "
                "in EXAMPLES.",
            )
        return changed


def _check(codemod: type[Codemod], options: dict[str, Any]) -> None:
    parameters = codemod.parameters()
    known = ", ".join(parameters)
    for name, value in options.items():
        if name not in parameters:
            near = difflib.get_close_matches(name, parameters, n=1)
            meant = f"did you mean {near[0]!r}? " if near else ""
            raise CodemodRefused(
                f"{codemod.__name__} does not take the option {name!r}.",
                hint=f"{meant}use one of its options: {known}."
                if known
                else "leave it out: the codemod takes no options.",
            )
        annotation = parameters[name].annotation
        if not _accepts(annotation, value):
            raise CodemodRefused(
                f"{codemod.__name__}({name}={value!r}) is not of the type "
                f"{inspect.formatannotation(annotation)}.",
                hint=f"give {name}= as {inspect.formatannotation(annotation)}.",
            )
    for name, parameter in parameters.items():
        if name not in options and parameter.default is parameter.empty:
            raise CodemodRefused(
                f"{codemod.__name__} needs the option {name!r}.",
                hint=f"give {name}=; its options are: {known}.",
            )


def _kinds(annotation: Any) -> tuple[Any, ...]:
    is_union = get_origin(annotation) in {Union, types.UnionType}
    return get_args(annotation) if is_union else (annotation,)


def _accepts(annotation: Any, value: Any) -> bool:
    for kind in _kinds(annotation):
        if kind is inspect.Parameter.empty or kind is Any:
            return True
        if get_origin(kind) is Literal:
            accepted = value in get_args(kind)
        elif kind in {None, types.NoneType}:
            accepted = value is None
        elif kind is float:
            accepted = type(value) in {int, float}
        elif kind is int:  # True is an int to Python, and a mistake here
            accepted = type(value) is int
        else:
            accepted = isinstance(value, get_origin(kind) or kind)
        if accepted:
            return True
    return False


def _reader(annotation: Any) -> Callable[[str], Any]:
    """Return what turns a command-line argument into a value of that type."""

    def read(text: str) -> Any:
        if {str} == {*_kinds(annotation)} - {None, types.NoneType}:
            return text
        try:
            value = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            value = text
        for candidate in (value, text):
            if _accepts(annotation, candidate):
                return candidate
        raise argparse.ArgumentTypeError(
            f"{text!r} is not {inspect.formatannotation(annotation)}"
        )

    return read


def close(name: str, known: Iterable[str]) -> str:
    """Name what is most like *name*, or all that is known, for a hint."""
    known = list(dict.fromkeys(known))
    return ", ".join(difflib.get_close_matches(name, known, n=3) or known) or "nothing"


def definition(tree: cst.Module, name: str) -> Definition:
    """Return the one function, method or class called *name*, as ``MLP.forward``.

    Raises:
        SiteNotFound: There is none.
        CodemodRefused: There are several.
    """
    known = list(definitions(tree.body))
    found = [node for found_name, node in known if found_name == name]
    if not found:
        raise SiteNotFound(
            f"The training module defines no {name!r}.",
            hint=f"use a name that is there: {close(name, (n for n, _ in known))}.",
        )
    if len(found) > 1:
        raise CodemodRefused(
            f"The training module defines {name!r} {len(found)} times.",
            hint="write a codemod that tells them apart.",
        )
    return found[0]


def definitions(
    body: Iterable[cst.CSTNode], prefix: str = ""
) -> Iterator[tuple[str, Definition]]:
    """Yield each function, method and class of *body* with its name."""
    for node in body:
        if isinstance(node, cst.FunctionDef | cst.ClassDef):
            yield prefix + node.name.value, node
        if isinstance(node, cst.ClassDef):
            yield from definitions(node.body.body, f"{prefix}{node.name.value}.")


def statements(tree: cst.Module, source: str, *, option: str) -> list[Statement]:
    """Parse *source*, which was given as *option*, in the layout of *tree*.

    Raises:
        CodemodRefused: It is not made of statements.
    """
    source = dedent(source).strip("\n")
    parsable(source, option=option, mode="exec")
    module = cst.parse_module(source, config=tree.config_for_parsing)
    first, *rest = module.body
    # A comment above the first statement belongs to the module, for LibCST.
    return [
        first.with_changes(leading_lines=[*module.header, *first.leading_lines]),
        *rest,
    ]


def expression(source: str, *, option: str) -> cst.BaseExpression:
    """Parse *source*, which was given as *option*.

    Raises:
        CodemodRefused: It is not one expression.
    """
    parsable(source, option=option, mode="eval")
    return cst.parse_expression(source.strip())


def parsable(
    source: str, *, option: str, mode: Literal["exec", "eval"]
) -> ast.Module | ast.Expression:
    """Return the syntax tree of *source*: LibCST crashes on what ast only refuses.

    Raises:
        CodemodRefused: It is not what *mode* asks for.
    """
    what = "one expression" if mode == "eval" else "statements"
    try:
        tree = ast.parse(source.strip() if mode == "eval" else source, mode=mode)
        if mode == "exec" and not tree.body:
            raise SyntaxError("there is no statement")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", None) or "it is nested too deeply"
        raise CodemodRefused(
            f"The option {option}= is not {what} of Python: {reason}.",
            hint=f"write {what} that Python can parse as {option}=.",
        ) from error
    return tree


class _Exchange(cst.CSTTransformer):
    """Look for one node, and at nothing behind it: ``deep_replace`` reads on."""

    def __init__(self, old: cst.CSTNode, new: cst.CSTNode) -> None:
        super().__init__()
        self.old = old
        self.new = new
        self.is_done = False

    def on_visit(self, node: cst.CSTNode) -> bool:
        return not self.is_done and node is not self.old

    def on_leave(self, original_node: cst.CSTNode, updated_node: cst.CSTNode) -> Any:
        if original_node is not self.old:
            return updated_node
        self.is_done = True
        return self.new


def exchanged(tree: cst.Module, old: cst.CSTNode, new: cst.CSTNode) -> cst.Module:
    """Return *tree* with *new* where *old* was."""
    return tree.visit(_Exchange(old, new))


def literal(value: bool | int | float | str | tuple | None) -> str:
    """Return *value* as a person would write it, in double quotes.

    Raises:
        CodemodRefused: Python has no literal for it (infinity, not a number).
    """
    if isinstance(value, tuple):
        items = ", ".join(literal(item) for item in value)
        return f"({items},)" if len(value) == 1 else f"({items})"
    text = repr(value)
    if isinstance(value, float) and value - value != 0:
        raise CodemodRefused(
            f"value={text} has no literal in Python.",
            hint=f"give it as expression=\"float('{text}')\".",
        )
    if isinstance(value, str) and text.startswith("'") and '"' not in text:
        return f'"{text[1:-1]}"'
    return text
