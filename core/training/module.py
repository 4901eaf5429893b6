"""Load the training module of a run folder."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def load_module(path: Path) -> ModuleType:
    """Import *path* under the name ``train``; it must define ``train(run)``."""
    spec = importlib.util.spec_from_file_location("train", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # torch.compile looks for it by its name
    spec.loader.exec_module(module)
    if not callable(getattr(module, "train", None)):
        raise TypeError(f"{path.name} defines no function train(run)")
    return module
