"""How torch.compile is set in the processes of a trial, and what it can do ahead.

It chooses nothing by timing: two trials that compile the same run the same kernels,
whatever else the machine did meanwhile.  For the shipped module that costs nothing
(docs/performance.md); matrices whose sides are no multiples of 8 are not padded by it.  An
edit may ask for more: with max_autotune its elementwise kernels are timed, its matrix
products are not.
"""

import importlib

# Imported with torch._dynamo, for which the first optimizer of each child would else
# wait seconds: so it is there before they are forked.
from torch._inductor import config as inductor

# What torch.compile imports at its first call, which takes seconds.
COMPILER = "torch._inductor.compile_fx"


def configure_compiler() -> None:
    """Set what holds for the process."""
    # It was imported with another environment.
    inductor.compile_threads = inductor.decide_compile_threads()
    inductor.use_fast_math = True  # the exponentials of the loss, within 2 ulp
    inductor.deterministic = True
    inductor.triton.autotune_pointwise = False


def prepare_compiler() -> None:
    """Make it ready to compile for a GPU, as far as that needs no device.

    Nothing is traced: for that, torch takes a context of the GPU that is another's still.
    """
    importlib.import_module(COMPILER)
    # Here, because it takes seconds that a trial on a CPU has no use for.
    from torch._inductor.codecache import torch_key
    from torch._inductor.runtime.compile_tasks import _set_triton_ptxas_path
    from torch._inductor.runtime.triton_compat import HAS_TRITON, triton_key

    # It asks its caches by digests of all that torch and Triton consist of, and keeps
    # them for as long as the process lives.
    torch_key()
    if HAS_TRITON:
        # Triton asks its cache by the version of ptxas too.  torch may bring one, and
        # names it when it first compiles: who finds all compiled would use another.
        _set_triton_ptxas_path()
        triton_key()
