"""Say what the names of a module stand for: something imported, the run, its own.

Followed are imports and plain assignments, however many; what goes through a container,
a call or a parameter is not.
"""

from collections.abc import Iterator

import libcst as cst

from core.mutate.forbidden import ATTRIBUTE_BY_NAME
from core.mutate.names import Names, Scope, Use, dotted, name_of

MAX_ALIASES = 16  # meanings of one name, and names between a name and its meaning


class Meanings:
    """What names stand for, in the scopes of one module.

    Attributes:
        modules: Paths that were imported as modules, whatever we know of them.
        own: Attributes that the module gives to objects that it makes.
        givers: Ids of the values that a plain assignment, or a call of ``getattr``,
            takes a meaning from.
        allowed: Ids of attributes that are refused everywhere but where they are.
    """

    def __init__(self, names: Names) -> None:
        self.names = names
        self.modules: set[str] = set()
        self.runs: set[tuple[Scope, str]] = set()  # what stands for the run, but `run`
        self.run_attributes: set[str] = set()  # where it is kept
        self.givers: set[int] = set()
        self.allowed: set[int] = set()
        self.own = set(self._own())
        self.not_runs = set(self._not_runs())  # functions whose `run` is another thing
        self._allow()
        self._follow()

    def _own(self) -> Iterator[str]:
        """Yield the names of attributes that the module gives to objects of its own."""
        for use in self.names.definitions:
            if isinstance(use.node, cst.ClassDef):
                yield from use.scope.bound
        for use in self.names.writes:
            match use.node:
                case cst.Attribute(value=cst.Name() as owner, attr=attr) if (
                    use.scope.is_self(name_of(owner))
                ):
                    yield name_of(attr)
        for use in self.names.calls:
            match use.node:
                case cst.Call(
                    func=cst.Attribute(attr=cst.Name(value=function)),
                    args=[cst.Arg(value=cst.SimpleString() as text), *_],
                ) if function.startswith("register_"):
                    yield str(text.evaluated_value)

    def _not_runs(self) -> Iterator[Scope]:
        """Yield functions that compute something, and call it ``run``."""
        computed: dict[Scope, bool] = {}
        for scope, target, value in self.names.stored:
            if is_name(target, "run"):
                # A method's result, or a sum: what could not be the run itself.
                is_method = isinstance(value, cst.Call) and isinstance(
                    value.func, cst.Attribute
                )
                may_be = not (is_method or isinstance(value, cst.BinaryOperation))
                owner = scope.owner("run")
                computed[owner] = computed.get(owner, True) and not may_be
        for scope, is_computed in computed.items():
            is_own = scope.kind == "function" and "run" not in scope.parameters
            bound = [
                use
                for use in self.names.definitions
                if is_name(use.node, "run") and use.scope.owner("run") is scope
            ]
            stored = [
                target
                for where, target, _ in self.names.stored
                if is_name(target, "run") and where.owner("run") is scope
            ]
            if is_own and is_computed and len(bound) == len(stored):
                yield scope

    def _allow(self) -> None:
        """Note what is refused everywhere but in one place."""
        for use in self.names.attributes:
            match use.node:  # the name of a class, for a message
                case cst.Attribute(
                    value=cst.Attribute(attr=cst.Name("__class__")) as inner,
                    attr=cst.Name("__name__" | "__qualname__"),
                ):
                    self.allowed.add(id(inner))
        for use in self.names.calls:
            for name in ATTRIBUTE_BY_NAME:
                if is_called(use.node, name) and use.node.args:
                    self.givers.add(id(use.node.args[0].value))
            match use.node:  # how a frozen dataclass computes a field of its own
                case cst.Call(
                    func=cst.Attribute(
                        value=cst.Name("object"), attr=cst.Name("__setattr__")
                    ) as function,
                    args=[
                        cst.Arg(value=cst.Name() as owner, star="", keyword=None),
                        cst.Arg(value=cst.SimpleString(), star="", keyword=None),
                        cst.Arg(star="", keyword=None),
                    ],
                ) if use.scope.is_self(name_of(owner)):
                    self.allowed.add(id(function))
            match use.node:  # a generator elsewhere, from one of the run's
                case cst.Call(
                    func=cst.Attribute(attr=cst.Name("manual_seed")) as function,
                    args=[
                        cst.Arg(
                            value=cst.Call(
                                func=cst.Attribute(attr=cst.Name("initial_seed"))
                            )
                        )
                    ],
                ):
                    self.allowed.add(id(function))

    def _follow(self) -> None:
        """Give names the meaning of what they are plainly assigned from."""
        for use in self.names.imports:
            if isinstance(use.node, cst.Import):
                self.modules.update(dotted(alias.name) for alias in use.node.names)
        for use in self.names.definitions:
            match use:
                case Use(
                    scope=Scope(symbol="train"),
                    node=cst.FunctionDef(params=cst.Parameters(params=[first, *_])),
                ):
                    self.runs.add((use.scope, name_of(first.name)))
        for _ in range(MAX_ALIASES):
            if not any([self._assigned(*stored) for stored in self.names.stored]):
                break

    def _assigned(
        self, scope: Scope, target: cst.BaseExpression, value: cst.BaseExpression
    ) -> bool:
        """Note what an assignment makes a name stand for; say whether that is news."""
        if isinstance(target, cst.Attribute):
            if self.is_run(scope, value):
                self.run_attributes.add(name_of(target.attr))
            return False
        if not isinstance(target, cst.Name):
            return False
        name = name_of(target)
        owner = scope.owner(name)
        is_new = self.is_run(scope, value) and (owner, name) not in self.runs
        if is_new:
            self.runs.add((owner, name))
        paths = self.paths(scope, value)
        if paths and scope.kind != "class" and id(value) in self.names.plain:
            self.givers.add(id(value))
        known = owner.paths.get(name, set())
        if paths - known and len(known) < MAX_ALIASES:
            owner.paths[name] = known | paths
            is_new = True
        return is_new

    def paths(self, scope: Scope, node: cst.CSTNode) -> set[str]:
        """Return the paths of imports that an expression may stand for."""
        match node:
            case cst.Name():
                return scope.stands_for(name_of(node))
            case cst.Attribute(value=value, attr=attr):
                return {f"{p}.{name_of(attr)}" for p in self.paths(scope, value)}
            case cst.NamedExpr(value=value):
                return self.paths(scope, value)
            case cst.Call(
                args=[
                    cst.Arg(value=value),
                    cst.Arg(value=cst.SimpleString() as text),
                    *_,
                ]
            ) if is_called(node, "getattr"):
                name = text.evaluated_value
                return {f"{path}.{name}" for path in self.paths(scope, value)}
        return set()

    def is_run(self, scope: Scope, node: cst.CSTNode) -> bool:
        """Say whether an expression stands for the run."""
        match node:
            case cst.Name():
                name = name_of(node)
                if name == "run":
                    binding = (s for s in scope.up() if name in s.bound)
                    return next(binding, None) not in self.not_runs
                return any((above, name) in self.runs for above in scope.up())
            case cst.Attribute(attr=attr):
                return name_of(attr) in self.run_attributes
            case cst.NamedExpr(value=value):
                return self.is_run(scope, value)
        return False

    def texts(self, scope: Scope, node: cst.CSTNode) -> list[str]:
        """Return what texts an expression stands for; empty if it may be another one."""
        if isinstance(node, cst.SimpleString):
            return [str(node.evaluated_value)]
        if not isinstance(node, cst.Name):
            return []
        name = name_of(node)
        binding = [above for above in scope.up() if name in above.bound]
        if not binding or name in binding[0].parameters:
            return []
        owner, known, others = binding[0], [], 0
        for where, target, value in self.names.stored + self.names.looped:
            if is_name(target, name) and where.owner(name) is owner:
                written = _literals(value)
                known += written
                others += not written
        bound = sum(
            is_name(use.node, name) and use.scope.owner(name) is owner
            for use in self.names.definitions
        )
        plain = sum(
            is_name(target, name) and where.owner(name) is owner
            for where, target, _ in self.names.stored + self.names.looped
        )
        return [] if others or bound != plain else known

    def is_given(self, scope: Scope, node: cst.CSTNode) -> bool:
        """Say whether *node* is the run, or comes from an import."""
        return self.is_run(scope, node) or bool(self.paths(scope, node))


def _literals(node: cst.CSTNode) -> list[str]:
    """Return the text, or the texts, that an expression consists of; else nothing."""
    match node:
        case cst.SimpleString():
            return [str(node.evaluated_value)]
        case cst.Tuple(elements=elements) | cst.List(elements=elements):
            parts = [element.value for element in elements]
            if all(isinstance(part, cst.SimpleString) for part in parts):
                return [str(part.evaluated_value) for part in parts]
    return []


def is_name(node: cst.CSTNode, name: str) -> bool:
    """Say whether *node* is that name."""
    return isinstance(node, cst.Name) and name_of(node) == name


def is_called(node: cst.Call, name: str) -> bool:
    """Say whether *node* calls what has that name."""
    return is_name(node.func, name)
