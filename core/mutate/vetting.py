"""Refuse what a training module has no business doing, with the reason and the line.

This is the first layer and the cheap one: it costs a fraction of a second, runs nothing,
and explains itself, so that an honest author learns the rules and a careless cheat ends
before a GPU is warm.  It stops nobody who is determined: what a name stands for is
followed through imports and plain assignments, and not through containers, calls or
arithmetic.  What holds is the sandbox, which the module cannot leave, and the judge,
which asks the model and believes nothing else.
"""

import ast
import re
import string
import warnings
from collections.abc import Iterator
from functools import cache

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider

from core.mutate import Refusal, compare, forbidden, literals
from core.mutate.meaning import Meanings, is_called, is_name
from core.mutate.names import Names, Scope, dotted, name_of
from core.mutate.unbound import unbound

KINDS = ("id", "isinstance", "repr", "str", "type")
RUN = ("batches", "device", "generator", "log", "progress")
TENSORS = re.compile(
    r"torch\.(\w*Tensor|nn\.(parameter\.)?(Parameter|Buffer|Uninitialized\w+)"
    r"|autograd\.Variable)$"
)
# Options of a compiler that is told which program to run, or where to write
COMPILER_OPTIONS = """
    combo_kernels coordinate_descent_tuning epilogue_fusion fallback_random max_autotune
    max_autotune_pointwise triton.cudagraphs triton.unique_kernel_names
"""
# Options that change nothing where products are not timed: core/training/compiler.py
IDLE_OPTIONS = "max_autotune_gemm max_autotune_gemm_backends shape_padding"
COMPILERS = {"torch.compile", "torch.compiler.compile"}
COMPILER_BACKENDS = frozenset({"aot_eager", "cudagraphs", "eager", "inductor"})
# https://peps.python.org/pep-0263/
CODING = re.compile(r"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")

# What a quoted annotation consists of: "Tensor", "list[int] | None", "Literal['a']"
OF_TYPES = (
    *(ast.Expression, ast.Name, ast.Attribute, ast.Subscript, ast.Constant),
    *(ast.Tuple, ast.List, ast.Starred, ast.BinOp, ast.operator, ast.expr_context),
)

Finding = tuple[Scope, cst.CSTNode, str]


def refusals(source: str, base: str) -> tuple[Refusal, ...]:
    """Return why *source* is refused, in the order of its lines; () where it is not.

    What *base* does in the same symbol is its author's business, and no codemod's.

    Raises:
        compare.Unreadable: One of them is too large, not Python, or nested too deeply.
    """
    tree = compare.read(source).tree  # first: LibCST may crash on what this refuses
    found = [*_encoding(source), *_annotations(tree), *unbound(tree)]
    if (many := literals.too_many(tree, compare.read(base).tree)) is not None:
        statement, reason = many
        symbol = getattr(statement, "name", "")
        found.append(Refusal(line=statement.lineno, symbol=symbol, reason=reason))
    found += _vetted(source, tree)
    if found:
        trusted = _trusted(base)
        found = [one for one in found if (one.reason, one.symbol) not in trusted]
    return tuple(sorted(set(found), key=lambda one: (one.line, one.symbol, one.reason)))


@cache
def _trusted(base: str) -> frozenset[tuple[str, str]]:
    tree = compare.read(base).tree
    found = [*_encoding(base), *_annotations(tree), *unbound(tree)]
    found += _vetted(base, tree)
    return frozenset((one.reason, one.symbol) for one in found)


def _vetted(source: str, tree: ast.Module) -> list[Refusal]:
    """Return the refusals of the visitor."""
    module = cst.parse_module(source)
    names = Names()
    module.visit(names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "\d" is for its author's own linter
        findings = list(Vetting(names).findings())
    unseen = identifiers(tree) - names.seen
    if unseen:
        name = forbidden.cut(min(unseen))
        reason = f"it uses {name}, which Python reads there and LibCST does not"
        findings.append((names.module, module, reason))
    if not findings:
        return []  # positions take as long as all of the above
    positions = MetadataWrapper(module, unsafe_skip_copy=True).resolve(PositionProvider)
    return [
        Refusal(line=positions[node].start.line, symbol=scope.symbol, reason=reason)
        for scope, node, reason in findings
    ]


def identifiers(tree: ast.Module) -> set[str]:
    """Return every name that Python itself finds in a module."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                found.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
            case ast.ClassDef(name=name) | ast.keyword(arg=str(name)):
                found.add(name)
            case ast.alias(name=path, asname=name):
                found.update(path.split(".") if path != "*" else ())
                found.update([name] if name else ())
            case ast.ImportFrom(module=str(path)):
                found.update(path.split("."))
            case ast.Global(names=several) | ast.Nonlocal(names=several):
                found.update(several)
            case ast.MatchClass(kwd_attrs=several):
                found.update(several)
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                found.add(name)
            case ast.MatchMapping(rest=str(name)) | ast.ExceptHandler(name=str(name)):
                found.add(name)
    return found


def _encoding(source: str) -> Iterator[Refusal]:
    """Yield the line that has Python read the file otherwise than as UTF-8."""
    for line, text in enumerate(re.split(r"\r\n|\r|\n", source)[:2], 1):
        found = CODING.match(text)
        if found and found[1].lower().replace("_", "-") not in {"utf-8", "utf8"}:
            codec = forbidden.cut(found[1])
            reason = f"it says that it is written in {codec}; write it in UTF-8"
            yield Refusal(line=line, symbol="", reason=reason)


def _annotations(tree: ast.Module) -> Iterator[Refusal]:
    """Yield annotations whose text Python could be asked to run."""
    for node in ast.walk(tree):
        match node:
            case ast.arg(annotation=annotation) | ast.AnnAssign(annotation=annotation):
                pass
            case ast.FunctionDef(returns=annotation):
                pass
            case ast.AsyncFunctionDef(returns=annotation):
                pass
            case _:
                continue
        for part in ast.walk(annotation) if annotation is not None else ():
            text = getattr(part, "value", None)
            is_made = isinstance(part, ast.JoinedStr)
            if is_made or (isinstance(text, str) and not _is_type(text)):
                reason = "it has an annotation that is more than the names of types"
                yield Refusal(line=part.lineno, symbol="", reason=reason)


def _is_type(text: str) -> bool:
    """Say whether to evaluate the *text* of an annotation does no more than to name."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError):
        return True  # it is no Python: the shape of a tensor, or prose
    for node in nodes:
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                refused = name in forbidden.BUILTINS or name in forbidden.ATTRIBUTES
                if refused or forbidden.is_dunder(name):
                    return False
            case ast.Constant(value=str(inner)) if not _is_type(inner):
                return False
            case _ if not isinstance(node, OF_TYPES):
                return False
    return True


class Vetting:
    """Judge what the visitor collected; each rule yields reasons."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.meanings = Meanings(names)

    def findings(self) -> Iterator[Finding]:
        """Yield each finding: scope, node, reason."""
        rules = (
            (self.names.imports, self._import),
            (self.names.definitions, self._definition),
            (self.names.names, self._name),
            (self.names.attributes, self._attribute),
            (self.names.values, self._value),
            (self.names.calls, self._call),
            (self.names.writes, self._write),
            (self.names.texts, self._text),
            (self.names.patterns, self._pattern),
            (self.names.shown, self._shown),
        )
        for uses, rule in rules:
            for use in uses:
                for reason in rule(use.scope, use.node):
                    yield use.scope, use.node, reason

    def _import(self, scope: Scope, node: cst.CSTNode) -> Iterator[str]:
        if scope.kind == "class":
            yield "it imports within a class; import at the top"
        if isinstance(node, cst.Import):
            for alias in node.names:
                if reason := forbidden.imported(dotted(alias.name)):
                    yield reason
            return
        assert isinstance(node, cst.ImportFrom)
        if node.relative or node.module is None:
            yield "it imports from its own package; a training module is one file"
            return
        path = dotted(node.module)
        if isinstance(node.names, cst.ImportStar):
            yield f"it imports all of {forbidden.cut(path)}; name what it uses"
            return
        for alias in node.names:
            if reason := forbidden.imported(f"{path}.{dotted(alias.name)}"):
                yield reason

    def _definition(self, scope: Scope, node: cst.CSTNode) -> Iterator[str]:
        match node:
            case cst.Name():
                name = name_of(node)
                if forbidden.is_dunder(name) and name not in forbidden.DEFINABLE:
                    yield f"it defines {forbidden.cut(name)}; Python would call it"
                elif name in forbidden.KEPT:
                    yield f"it defines {name}, which is Python's own"
            case cst.ClassDef(bases=bases, keywords=keywords):
                for base in bases:
                    yield from self._base(scope, base.value)
                for k in keywords:
                    is_metaclass = k.keyword and name_of(k.keyword) == "metaclass"
                    if is_metaclass and self.meanings.paths(scope, k.value) != {
                        "abc.ABCMeta"
                    }:
                        yield "it has a metaclass; a training module makes plain classes"

    def _base(self, scope: Scope, base: cst.BaseExpression) -> Iterator[str]:
        if any(TENSORS.match(path) for path in self.meanings.paths(scope, base)):
            yield "it derives from a tensor, and would take part in all that is computed"
        if isinstance(base, cst.Call) and is_called(base, "type"):
            yield "it derives from the type of an object; name the class"

    def _name(self, scope: Scope, node: cst.CSTNode) -> Iterator[str]:
        assert isinstance(node, cst.Name)
        name = name_of(node)
        reason = forbidden.BUILTINS.get(name)
        if reason and not scope.is_local(name) and not scope.stands_for(name):
            yield reason.format(name)
        elif name in forbidden.ATTRIBUTE_BY_NAME and id(node) not in self.names.called:
            yield f"it hands on {name}; call it with a name that is written out"
        elif forbidden.is_dunder(name) and name != "__name__":
            yield forbidden.INTERPRETER.format(forbidden.cut(name))

    def _attribute(self, scope: Scope, node: cst.CSTNode) -> Iterator[str]:
        assert isinstance(node, cst.Attribute)
        is_run = self.meanings.is_run(scope, node.value)
        if id(node) not in self.meanings.allowed or is_run:
            yield from self._read(scope, node.value, name_of(node.attr))

    def _read(
        self, scope: Scope, owner: cst.BaseExpression, name: str
    ) -> Iterator[str]:
        """Yield why *name* may not be read of *owner*."""
        paths = self.meanings.paths(scope, owner)
        for path in sorted(paths):
            if reason := forbidden.member(path, name):
                yield reason
        if not paths:
            if self.meanings.is_run(scope, owner) and name not in RUN:
                yield (
                    f"it uses run.{forbidden.cut(name)}; a run has "
                    f"{', '.join(RUN[:-1])} and {RUN[-1]}"
                )
            elif reason := self._of_an_object(scope, owner, name):
                yield reason.format(forbidden.cut(name))

    def _of_an_object(
        self, scope: Scope, owner: cst.BaseExpression, name: str
    ) -> str | None:
        if name in forbidden.ATTRIBUTES:
            is_own = name in forbidden.OWN and name in self.meanings.own
            if is_own and (name == "save" or _is_of_self(scope, owner)):
                return None
            return forbidden.ATTRIBUTES[name]
        is_super = isinstance(owner, cst.Call) and is_called(owner, "super")
        if forbidden.is_dunder(name):
            known = forbidden.VIA_SUPER if is_super else forbidden.DUNDERS
            return None if name in known else forbidden.INTERPRETER
        if not name.startswith("_") or name == "_":
            return None
        is_self = isinstance(owner, cst.Name) and scope.is_self(name_of(owner))
        is_known = name in forbidden.PRIVATE_OF_OBJECTS or name in self.meanings.own
        return None if is_super or is_self or is_known else forbidden.PRIVATE

    def _value(self, scope: Scope, node: cst.CSTNode) -> Iterator[str]:
        for path in sorted(self.meanings.paths(scope, node)):
            if reason := forbidden.used(path):
                yield reason
            elif id(node) in self.meanings.givers:
                continue
            elif path in self.meanings.modules or forbidden.is_module(path):
                yield (
                    f"it hands on the module {forbidden.cut(path)}; "
                    "name it where it is used"
                )

    def _call(self, scope: Scope, node: cst.CSTNode) -> Iterator[str]:
        assert isinstance(node, cst.Call)
        for name in forbidden.ATTRIBUTE_BY_NAME:
            if is_called(node, name) and not scope.is_local(name):
                yield from self._by_name(scope, node, name)
        if any(is_called(node, name) for name in KINDS) and node.args:
            yield from self._shown(scope, node.args[0].value)
        if is_called(node, "type") and len(node.args) != 1:
            yield "it makes a class with type(); write a class statement"
        match node:
            case cst.Call(
                func=cst.Attribute(attr=cst.Name("__setattr__")),
                args=[
                    cst.Arg(value=owner),
                    cst.Arg(value=cst.SimpleString() as text),
                    _,
                ],
            ):
                yield from self._read(scope, owner, str(text.evaluated_value))
        paths = self.meanings.paths(scope, node.func)
        if "functools.wraps" in paths and len(node.args) != 1:
            yield forbidden.SETTING.format("functools.wraps with names")
        if paths & COMPILERS:
            yield from _options(node)
        match node.func:
            case cst.Attribute(value=text, attr=cst.Name("format" | "format_map")):
                is_text = isinstance(text, cst.SimpleString | cst.ConcatenatedString)
                is_whole = is_text and isinstance(text.evaluated_value, str)
                is_own = _is_of_self(scope, text) and "format" in self.meanings.own
                if not (is_whole or is_own or self.meanings.texts(scope, text)):
                    yield forbidden.TEXT.format("format of a text that is put together")

    def _by_name(self, scope: Scope, node: cst.Call, function: str) -> Iterator[str]:
        """Yield why an attribute that is named by a text may not be used."""
        if len(node.args) < 2 or any(arg.star or arg.keyword for arg in node.args):
            yield f"it uses {function} without an object and a name"
            return
        owner, name = node.args[0].value, node.args[1].value
        texts = self.meanings.texts(scope, name)
        for text in texts:
            yield from self._read(scope, owner, text)
        match name:
            case _ if texts:
                pass
            case cst.FormattedString(
                parts=[cst.FormattedStringText(value=start), *_]
            ) if _is_harmless(start) and not self.meanings.is_given(scope, owner):
                pass
            case _:
                yield (
                    f"it uses {function} with a name that is not written out; choose "
                    "from a dict or an nn.ModuleDict"
                )
        if function == "setattr":
            yield from self._written(scope, owner, name)

    def _write(self, scope: Scope, node: cst.CSTNode) -> Iterator[str]:
        match node:
            case cst.Attribute(value=owner, attr=name):
                yield from self._written(scope, owner, name)
            case cst.Subscript(value=owner):
                yield from self._written(scope, owner, None)

    def _written(
        self,
        scope: Scope,
        owner: cst.BaseExpression,
        name: cst.BaseExpression | None,
    ) -> Iterator[str]:
        """Yield why *owner*, or its attribute *name*, may not be changed."""
        what = f".{name_of(name)}" if isinstance(name, cst.Name) else ""
        while True:
            if paths := self.meanings.paths(scope, owner):
                yield _changes(f"{min(paths)}{what}")
                return
            if self.meanings.is_run(scope, owner):
                yield _changes(f"run{what}")
                return
            if isinstance(owner, cst.Call):
                if is_called(owner, "type") and not _is_self_type(scope, owner):
                    yield _changes(f"type(...){what}")
                if not is_called(owner, "getattr") or not owner.args:
                    return
                owner = owner.args[0].value
            elif isinstance(owner, cst.Attribute | cst.Subscript):
                owner = owner.value
            else:
                return

    def _text(self, scope: Scope, node: cst.CSTNode) -> Iterator[str]:
        assert isinstance(node, cst.SimpleString | cst.ConcatenatedString)
        text = node.evaluated_value
        if not isinstance(text, str) or "{" not in text:
            return
        for name in _fields(text):
            is_private = name.startswith("_")
            if is_private or name in forbidden.ATTRIBUTES:
                yield forbidden.TEXT.format(f"{forbidden.cut(name)!r} in a format")

    def _pattern(self, scope: Scope, node: cst.CSTNode) -> Iterator[str]:
        assert isinstance(node, cst.MatchKeywordElement)
        name = name_of(node.key)
        if reason := self._of_an_object(scope, node.key, name):
            yield reason.format(forbidden.cut(name))

    def _shown(self, scope: Scope, node: cst.CSTNode) -> Iterator[str]:
        if self.meanings.is_run(scope, node):
            yield "it asks what kind of run it has; it is to train alike in each"


def _is_of_self(scope: Scope, node: cst.CSTNode) -> bool:
    """Say whether *node* is the object of a method, or something in it."""
    while isinstance(node, cst.Attribute | cst.Subscript):
        node = node.value
    return isinstance(node, cst.Name) and scope.is_self(name_of(node))


def _is_self_type(scope: Scope, node: cst.Call) -> bool:
    match node.args:
        case [cst.Arg(value=cst.Name() as owner)]:
            return scope.is_self(name_of(owner))
    return False


def _changes(what: str) -> str:
    if what.endswith("allow_tf32"):
        return f"it changes {what}; call torch.set_float32_matmul_precision"
    return f"it changes {forbidden.cut(what)}; a training module changes what it made"


def _is_harmless(start: str) -> bool:
    """Say whether no name that is refused begins with *start*."""
    return start[:1].isalpha() and not any(
        name.startswith(start) for name in forbidden.ATTRIBUTES
    )


def _fields(text: str) -> Iterator[str]:
    """Yield the attributes and keys that a format asks for."""
    try:
        for _, field, specification, _ in string.Formatter().parse(text):
            yield from re.findall(r"[.\[]\s*(\w+)", field or "")
            if specification and "{" in specification:
                yield from _fields(specification)
    except ValueError:  # it is no format
        return


def _options(node: cst.Call) -> Iterator[str]:
    """Yield why a call of the compiler is refused."""
    for argument in node.args:
        keyword = argument.keyword and name_of(argument.keyword)
        if argument.star == "**":
            yield "it compiles with options that are not written out"
        elif keyword == "options":
            refused = _refused_option(argument.value)
            if refused is not None:
                yield f"it compiles with {refused}"
        elif keyword == "backend" and not (
            isinstance(argument.value, cst.SimpleString)
            and argument.value.evaluated_value in COMPILER_BACKENDS
        ):
            yield "it compiles with a backend of its own; a compiler starts programs"


def _refused_option(options: cst.BaseExpression) -> str | None:
    """Return the first option that may do harm or does nothing, and which of these."""
    unwritten = "options that are not written out; a compiler starts programs"
    if not isinstance(options, cst.Dict):
        return None if is_name(options, "None") else unwritten
    for element in options.elements:
        match element:
            case cst.DictElement(key=cst.SimpleString() as key):
                option = str(key.evaluated_value)
                named = f"the option {forbidden.cut(option)!r}"
                if option in IDLE_OPTIONS.split():
                    return f"{named}, which has no effect here: products are not timed"
                if option not in COMPILER_OPTIONS.split():
                    return f"{named}; a compiler starts programs"
            case _:
                return unwritten
    return None
