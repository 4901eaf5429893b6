"""What a researcher writes, and how it is read.

A spec file imports its vocabulary from here::

    from core.spec import Expect, Experiment, Sweep, codemod
"""

from core.spec.reading import Case, read_spec
from core.spec.vocabulary import (
    PROFILE_NAMES,
    CodemodCall,
    Expect,
    Experiment,
    Option,
    Sweep,
    codemod,
)

__all__ = [
    "PROFILE_NAMES",
    "Case",
    "CodemodCall",
    "Expect",
    "Experiment",
    "Option",
    "Sweep",
    "codemod",
    "read_spec",
]
