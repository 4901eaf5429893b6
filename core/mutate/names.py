"""Read from a module's LibCST tree what it does to which names, and in which scope.

One visit collects, nothing is judged; what a name stands for is known at the end only,
since a function may use what is bound below it.
"""

import unicodedata
from collections.abc import Iterator, Sequence

import attrs
import libcst as cst


def name_of(node: cst.Name) -> str:
    """Return a name as Python reads it: a wide or bold ``open`` is ``open``."""
    return unicodedata.normalize("NFKC", node.value)


@attrs.define(eq=False)
class Scope:
    """A module, a class or a function, and what is bound in it.

    Attributes:
        symbol: As a user would look for it, ``GPT.forward``; empty for the module.
        kind: ``module``, ``class`` or ``function``.
        above: The scope that it is in.
        bound: Names bound here, to whatever.
        declared: Names that ``global`` or ``nonlocal`` gives to another scope.
        paths: What of an import a name stands for, ``F`` for ``torch.nn.functional``;
            all of it, if it was bound more than once.
        first: The parameter that is the object, if it is a method.
        parameters: Names of all of them, if it is a function.
    """

    symbol: str = ""
    kind: str = "module"
    above: "Scope | None" = None
    bound: set[str] = attrs.field(factory=set)
    declared: dict[str, str] = attrs.field(factory=dict)
    paths: dict[str, set[str]] = attrs.field(factory=dict)
    first: str | None = None
    parameters: set[str] = attrs.field(factory=set)

    def owner(self, name: str) -> "Scope":
        """Return the scope that binds *name* when it is stored here."""
        how = self.declared.get(name)
        scope = self
        while how and scope.above is not None:
            scope = scope.above
            if how == "nonlocal" and scope.kind == "function" and name in scope.bound:
                break
        return scope

    def up(self) -> Iterator["Scope"]:
        """Yield the scopes in which Python looks for a name that is used here."""
        scope: Scope | None = self
        while scope is not None:
            if scope is self or scope.kind != "class":
                yield scope
            scope = scope.above

    def stands_for(self, name: str) -> set[str]:
        """Return the paths of imports that *name* may stand for here."""
        scope = self
        if self.declared.get(name) == "global":
            scope = self.owner(name)
        for above in scope.up():
            if name in above.paths:
                return above.paths[name]
            if above.kind == "function" and name in above.bound:
                break
        return set()

    def is_local(self, name: str) -> bool:
        """Say whether a function binds *name*, so that it is no built-in here."""
        for scope in self.up():
            if scope.declared.get(name) == "global":
                return False
            if scope.kind == "function" and name in scope.bound:
                return True
        return False

    def is_self(self, name: str) -> bool:
        """Say whether *name* is the object of a method that this is in."""
        return any(
            scope.first == name and name in scope.bound
            for scope in self.up()
            if scope.kind == "function"
        )


@attrs.frozen(eq=False)
class Use:
    """A node, and the scope in which it stands."""

    scope: Scope
    node: cst.CSTNode


class Names(cst.CSTVisitor):
    """Collect the uses of names in a module.

    Attributes:
        module: The outermost scope.
        values: Names and attributes that are used for what they are, rather than as the
            left side of a dot.
        names: Names that are read.
        attributes: Every ``x.y``.
        calls: Every call.
        writes: What is assigned to, deleted, or bound by ``for``, ``with`` and ``as``.
        imports: ``import`` and ``from``.
        definitions: Functions and classes, and names stored to.
        texts: Literals of characters that are no part of a larger one.
        patterns: ``case Class(name=...)``.
        shown: What an f-string turns into text.
        stored: Scope, target and value of every ``x = y``.
        looped: Scope, target and what is gone through of every ``for``.
        seen: Every name in the text.
        called: Ids of what is called.
        plain: Ids of what is assigned to names and nothing else.
    """

    def __init__(self) -> None:
        super().__init__()
        self.module = self.scope = Scope()
        self.values: list[Use] = []
        self.names: list[Use] = []
        self.attributes: list[Use] = []
        self.calls: list[Use] = []
        self.writes: list[Use] = []
        self.imports: list[Use] = []
        self.definitions: list[Use] = []
        self.texts: list[Use] = []
        self.patterns: list[Use] = []
        self.shown: list[Use] = []
        self.stored: list[tuple[Scope, cst.BaseExpression, cst.BaseExpression]] = []
        self.looped: list[tuple[Scope, cst.BaseExpression, cst.BaseExpression]] = []
        self.seen: set[str] = set()
        self.called: set[int] = set()
        self.plain: set[int] = set()
        self._no_reads: set[int] = set()  # ids of names that are no expressions
        self._lefts: set[int] = set()  # ids of what stands before a dot

    def _use(self, node: cst.CSTNode) -> Use:
        return Use(self.scope, node)

    def _skip(self, *nodes: cst.CSTNode | None) -> None:
        self._no_reads.update(id(node) for node in nodes if node is not None)

    # Scopes

    def _enter(self, name: str, kind: str) -> Scope:
        symbol = f"{self.scope.symbol}.{name}".lstrip(".") if name else ""
        self.scope = Scope(symbol or self.scope.symbol, kind, self.scope)
        return self.scope

    def _leave(self) -> None:
        assert self.scope.above is not None
        self.scope = self.scope.above

    def visit_ClassDef(self, node: cst.ClassDef) -> bool:
        """Read what is evaluated outside of the class, then its body inside."""
        self._bind(node.name)
        for part in (*node.decorators, *node.bases, *node.keywords):
            part.visit(self)
        self._enter(name_of(node.name), "class")
        self.definitions.append(self._use(node))
        self._read_body(node)
        self._leave()
        return False

    def visit_FunctionDef(self, node: cst.FunctionDef) -> bool:
        """Read what is evaluated outside of the function, then its body inside."""
        self._bind(node.name)
        is_method = self.scope.kind == "class" and not _is_static(node)
        for part in node.decorators:
            part.visit(self)
        if node.returns is not None:
            node.returns.annotation.visit(self)
        self._read_defaults(node.params)
        self._enter(name_of(node.name), "function")
        self.definitions.append(self._use(node))
        self._bind_parameters(node.params, is_method=is_method)
        self._read_body(node)
        self._leave()
        return False

    def visit_Lambda(self, node: cst.Lambda) -> bool:
        """Read its defaults outside, and its body inside."""
        self._read_defaults(node.params)
        self._enter("", "function")
        self._bind_parameters(node.params)
        node.body.visit(self)
        self._leave()
        return False

    def _read_body(self, node: cst.ClassDef | cst.FunctionDef) -> None:
        if node.type_parameters is not None:
            node.type_parameters.visit(self)
        node.body.visit(self)

    def _read_defaults(self, parameters: cst.Parameters) -> None:
        for parameter in _each(parameters):
            if parameter.annotation is not None:
                parameter.annotation.annotation.visit(self)
            if parameter.default is not None:
                parameter.default.visit(self)

    def _bind_parameters(
        self, parameters: cst.Parameters, *, is_method: bool = False
    ) -> None:
        for parameter in _each(parameters):
            self._bind(parameter.name)
            self.scope.parameters.add(name_of(parameter.name))
        ordered = [*parameters.posonly_params, *parameters.params]
        if is_method and ordered:
            self.scope.first = name_of(ordered[0].name)

    def visit_Global(self, node: cst.Global) -> bool:
        """Note whose the names are."""
        self._declare(node.names, "global")
        return False

    def visit_Nonlocal(self, node: cst.Nonlocal) -> bool:
        """Note whose the names are."""
        self._declare(node.names, "nonlocal")
        return False

    def _declare(self, items: Sequence[cst.NameItem], how: str) -> None:
        for item in items:
            name = name_of(item.name)
            self.seen.add(name)
            self.scope.declared[name] = how
            self.scope.bound.discard(name)

    # What binds a name, or writes elsewhere

    def _bind(self, node: cst.Name) -> None:
        self._skip(node)
        name = name_of(node)
        self.seen.add(name)
        if name not in self.scope.declared:
            self.scope.bound.add(name)
        self.definitions.append(self._use(node))

    def _write(self, target: cst.BaseExpression) -> None:
        match target:
            case cst.Name():
                self._bind(target)
            case cst.Tuple(elements=elements) | cst.List(elements=elements):
                for element in elements:
                    self._write(element.value)
            case cst.StarredElement(value=value):
                self._write(value)
            case _:
                self.writes.append(self._use(target))

    def visit_AssignTarget(self, node: cst.AssignTarget) -> None:
        """Note the target."""
        self._write(node.target)

    def visit_Assign(self, node: cst.Assign) -> None:
        """Note a name that may come to stand for what another does."""
        for target in node.targets:
            self.stored.append((self.scope, target.target, node.value))
        if all(isinstance(target.target, cst.Name) for target in node.targets):
            self.plain.add(id(node.value))

    def visit_AnnAssign(self, node: cst.AnnAssign) -> None:
        """Note the target, unless it is merely declared."""
        self._write(node.target)
        if node.value is not None:
            self.stored.append((self.scope, node.target, node.value))
            if isinstance(node.target, cst.Name):
                self.plain.add(id(node.value))

    def visit_NamedExpr(self, node: cst.NamedExpr) -> None:
        """Note the target."""
        self._write(node.target)
        self.stored.append((self.scope, node.target, node.value))

    def visit_AugAssign(self, node: cst.AugAssign) -> None:
        """Note the target."""
        self._write(node.target)

    def visit_Del(self, node: cst.Del) -> None:
        """Note the target."""
        self._write(node.target)

    def visit_For(self, node: cst.For) -> None:
        """Note the target."""
        self.looped.append((self.scope, node.target, node.iter))
        self._write(node.target)

    def visit_CompFor(self, node: cst.CompFor) -> None:
        """Note the target, which is bound in no scope that we know."""
        before = set(self.scope.bound)
        self._write(node.target)
        self.scope.bound = before

    def visit_AsName(self, node: cst.AsName) -> None:
        """Note the target of ``with`` and ``except``."""
        self._write(node.name)

    def visit_MatchAs(self, node: cst.MatchAs) -> None:
        """Note what a pattern binds."""
        if node.name is not None:
            self._bind(node.name)

    def visit_MatchStar(self, node: cst.MatchStar) -> None:
        """Note what a pattern binds."""
        if node.name is not None:
            self._bind(node.name)

    def visit_MatchMapping(self, node: cst.MatchMapping) -> None:
        """Note what a pattern binds."""
        if node.rest is not None:
            self._bind(node.rest)

    def visit_MatchKeywordElement(self, node: cst.MatchKeywordElement) -> None:
        """Note that a pattern reads an attribute."""
        self._skip(node.key)
        self.patterns.append(self._use(node))

    def visit_Import(self, node: cst.Import) -> bool:
        """Note what the names stand for."""
        self.imports.append(self._use(node))
        for alias in node.names:
            path = dotted(alias.name)
            self.seen.update(path.split("."))
            if alias.asname is not None:
                self._import(alias.asname.name, path)
            else:
                self._import(cst.Name(path.partition(".")[0]), path.partition(".")[0])
        return False

    def visit_ImportFrom(self, node: cst.ImportFrom) -> bool:
        """Note what the names stand for."""
        self.imports.append(self._use(node))
        source = "" if node.module is None else dotted(node.module)
        self.seen.update(source.split(".") if source else ())
        if not isinstance(node.names, cst.ImportStar):
            for alias in node.names:
                path = dotted(alias.name)
                self.seen.add(path)
                bound = alias.name if alias.asname is None else alias.asname.name
                self._import(bound, f"{source}.{path}")
        return False

    def _import(self, node: cst.CSTNode, path: str) -> None:
        name = dotted(node)
        self.seen.add(name)
        self.scope.owner(name).paths.setdefault(name, set()).add(path)

    # What reads

    def visit_Name(self, node: cst.Name) -> None:
        """Note a name that is read."""
        self.seen.add(name_of(node))
        if id(node) not in self._no_reads:
            self.names.append(self._use(node))
            if id(node) not in self._lefts:
                self.values.append(self._use(node))

    def visit_Attribute(self, node: cst.Attribute) -> None:
        """Note an attribute, whether it is read or written."""
        self._skip(node.attr)
        self._lefts.add(id(node.value))
        self.attributes.append(self._use(node))
        if id(node) not in self._lefts:
            self.values.append(self._use(node))

    def visit_Call(self, node: cst.Call) -> None:
        """Note a call."""
        self.calls.append(self._use(node))
        self.called.add(id(node.func))

    def visit_Arg(self, node: cst.Arg) -> None:
        """Skip the keyword, of a call or of a class: it is no name that is read."""
        self._skip(node.keyword)

    def visit_SimpleString(self, node: cst.SimpleString) -> None:
        """Note a text."""
        self.texts.append(self._use(node))

    def visit_ConcatenatedString(self, node: cst.ConcatenatedString) -> None:
        """Note a text."""
        self.texts.append(self._use(node))

    def visit_FormattedStringExpression(
        self, node: cst.FormattedStringExpression
    ) -> None:
        """Note what becomes text."""
        self.shown.append(self._use(node.expression))

    def visit_TypeVar(self, node: cst.TypeVar) -> None:
        """Note a parameter of a type, which is no name that is read."""
        self._skip(node.name)

    def visit_TypeVarTuple(self, node: cst.TypeVarTuple) -> None:
        """Note a parameter of a type, which is no name that is read."""
        self._skip(node.name)

    def visit_ParamSpec(self, node: cst.ParamSpec) -> None:
        """Note a parameter of a type, which is no name that is read."""
        self._skip(node.name)

    def visit_TypeAlias(self, node: cst.TypeAlias) -> None:
        """Note the name of a type."""
        self._bind(node.name)


def dotted(node: cst.CSTNode) -> str:
    """Return ``a.b.c`` of a name or of attributes of one."""
    if isinstance(node, cst.Attribute):
        return f"{dotted(node.value)}.{name_of(node.attr)}"
    return name_of(cst.ensure_type(node, cst.Name))


def _each(parameters: cst.Parameters) -> Iterator[cst.Param]:
    yield from parameters.posonly_params
    yield from parameters.params
    yield from parameters.kwonly_params
    for star in (parameters.star_arg, parameters.star_kwarg):
        if isinstance(star, cst.Param):
            yield star


def _is_static(node: cst.FunctionDef) -> bool:
    return any(
        isinstance(decorator.decorator, cst.Name)
        and name_of(decorator.decorator) == "staticmethod"
        for decorator in node.decorators
    )
