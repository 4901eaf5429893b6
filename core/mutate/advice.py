"""Say what a codemod that failed is likely to have meant, for the hint of its error."""

import builtins
import difflib
import pkgutil
import re
import sys
from collections.abc import Iterable

USUAL = {  # as the codemods that there are import them
    "Codemod": "from codemods.base import Codemod",
    "cst": "import libcst as cst",
    "m": "import libcst.matchers as m",
}
LIBRARIES = ("codemods", "libcst")
NO_SUCH_MODULE = "a codemod imports libcst, codemods and Python's own library."


def advice(error: BaseException) -> str:
    """Return what to do about *error*, to follow a colon; "" where that is not known."""
    match error:
        case ModuleNotFoundError(name=str(path)):
            parent, _, leaf = path.rpartition(".")
            known = _submodules(parent) if parent else _libraries()
            before = f"{parent}." if parent else ""
            return _meant(leaf, known, before) or NO_SUCH_MODULE
        case ImportError(name=str(module)):
            found = re.match(r"cannot import name '(\w+)'", str(error))
            held = [*vars(sys.modules.get(module, object)), *_submodules(module)]
            return _meant(found[1], held) if found else ""
        case NameError(name=str(name)):
            if name in USUAL:
                return f"add {USUAL[name]}."
            return _meant(name, _names(error))
        case AttributeError(name=str(name), obj=owner):
            return _meant(name, dir(owner))
    return ""


def _meant(name: str, known: Iterable[str], before: str = "") -> str:
    near = difflib.get_close_matches(name, sorted(set(known)), n=1)
    return f"did you mean {before}{near[0]}?" if near else ""


def _libraries() -> Iterable[str]:
    return {*sys.stdlib_module_names, *LIBRARIES}


def _submodules(package: str) -> Iterable[str]:
    path = getattr(sys.modules.get(package), "__path__", ())
    return [module.name for module in pkgutil.iter_modules(path)]


def _names(error: BaseException) -> Iterable[str]:
    """Return the names that were known where *error* was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ()
    frame = trace.tb_frame
    return (*frame.f_locals, *frame.f_globals, *vars(builtins))
