"""How torch.compile is set in the processes of a trial, and what it can do ahead.

Nothing in it is chosen by timing: two trials that compile the same run the same kernels,
whatever else the machine did meanwhile.  On an H200 a step takes as long with kernels
that were timed, to 0.1 % (docs/performance.md).
"""

import importlib

# Imported with torch._dynamo, for which the first optimizer of each child would else
# wait seconds: so it is there before they are forked.
from torch._inductor import config as inductor

# What torch.compile and the base import at their first call, which takes seconds.
NEEDED = (
    "torch._inductor.compile_fx",
    "core.training.kernels",
    "core.training.lowering",
)
NEEDED_WITH_TRITON = ("core.training.kernels.gemm",)


def configure_compiler() -> None:
    """Set what holds for the process."""
    # It was imported with another environment.
    inductor.compile_threads = inductor.decide_compile_threads()
    inductor.use_fast_math = True  # the exponentials of the loss, within 2 ulp
    inductor.deterministic = True
    inductor.triton.autotune_pointwise = False


def prepare_compiler() -> None:
    """Do what torch.compile does at its first call, as far as it needs no device.

    Nothing is traced: for that, torch takes a context of the GPU that is another's still.
    """
    for name in NEEDED:
        importlib.import_module(name)
    from torch._inductor.codecache import torch_key
    from torch._inductor.codegen.common import init_backend_registration
    from torch._inductor.runtime.compile_tasks import _set_triton_ptxas_path
    from torch._inductor.runtime.triton_compat import HAS_TRITON, triton_key

    # It asks its caches by digests of all that torch and Triton consist of, and keeps
    # them for as long as the process lives.
    torch_key()
    if HAS_TRITON:
        # Triton asks its cache by the version of ptxas too.  torch brings one, and names
        # it when it first compiles: a process that finds all compiled would use another.
        _set_triton_ptxas_path()
        triton_key()
        for name in NEEDED_WITH_TRITON:
            importlib.import_module(name)
    init_backend_registration()
