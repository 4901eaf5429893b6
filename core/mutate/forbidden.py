"""Which names a training module has no business with, and why; `vetting` looks for them.

Three kinds of names: paths from an import (``torch.nn.functional``), attributes of
whatever object, and built-in names.  Each function returns a reason, or None.
"""

import re
import sys


def _words(names: str) -> frozenset[str]:
    return frozenset(names.split())


def _each(reasons: dict[str, str]) -> dict[str, str]:
    """Return the reason of each name, from the names of each reason."""
    return {name: reason for reason, names in reasons.items() for name in names.split()}


FILES = "it uses {}; a training module has no files, processes or network"
INTERPRETER = "it uses {}; a training module leaves the interpreter alone"
MEMORY = (
    "it uses {}, which reaches the memory behind a tensor; index or slice it, or take "
    "its .item() or .tolist()"
)
SEED = "it uses {}; the seed is the run's, as is run.generator(name)"
SETTING = "it uses {}, which sets what holds for the whole process"
TEXT = "it uses {}, which makes names or code out of text"
FOREIGN = "it uses {}; a training module uses torch and math"
PRIVATE = "it uses {}, which is private to something else"
IMPORT = "it imports {}; {}"
RUN = "it uses {}, which is the run's own"
INSTEAD = {
    "numpy": "a training module stays in torch",
    "random": "random numbers come from run.generator(name)",
    "time": "the clock is the run's, and run.progress the share of it that has passed",
}

# What may be imported: these and what is below them, less what is refused further down
IMPORTABLE = _words("""
    __future__ abc bisect cmath collections contextlib copy core dataclasses einops enum
    fractions functools heapq itertools math numbers operator re statistics torch triton
    types typing typing_extensions
""")

# Modules that these are known to hold, of those that may be used
MODULES = _words("""
    collections.abc einops.layers einops.layers.torch torch.accelerator torch.amp
    torch.autograd torch.autograd.forward_ad torch.autograd.function
    torch.autograd.functional torch.autograd.grad_mode torch.autograd.graph
    torch.backends torch.backends.cpu torch.backends.cuda torch.backends.cudnn
    torch.backends.mha torch.backends.mkl torch.backends.mkldnn torch.backends.openmp
    torch.backends.opt_einsum torch.compiler torch.cpu torch.cpu.amp torch.cuda
    torch.cuda.amp torch.cuda.graphs torch.cuda.memory torch.cuda.nvtx
    torch.cuda.streams torch.distributions torch.fft torch.func torch.functional
    torch.jit torch.library torch.linalg torch.masked torch.nested torch.nn
    torch.nn.attention torch.nn.attention.bias torch.nn.attention.flex_attention
    torch.nn.attention.varlen torch.nn.functional torch.nn.init torch.nn.modules
    torch.nn.parameter torch.nn.utils torch.nn.utils.clip_grad
    torch.nn.utils.convert_parameters torch.nn.utils.parametrizations
    torch.nn.utils.parametrize torch.nn.utils.rnn torch.nn.utils.stateless torch.ops
    torch.ops.aten torch.optim torch.optim.lr_scheduler torch.optim.swa_utils
    torch.signal torch.sparse torch.special torch.utils torch.utils._pytree
    torch.utils.checkpoint
    torch.version triton.language
""")
# Below these, what has a lower-case name is a module
OF_MODULES = ("torch.distributions", "torch.nn.modules", "torch.optim")

# Refused on whatever object
ATTRIBUTES = _each({
    MEMORY: """
        CUDAPluggableAllocator ExternalStream _base _cdata as_strided as_strided_
        as_strided_copy as_strided_scatter caching_allocator_alloc
        caching_allocator_delete change_current_allocator const_data_ptr ctypes data_ptr
        from_blob from_dlpack frombuffer numpy resize_ resize_as_ resize_as_sparse_
        resize_storage_bytes_ set_ share_memory share_memory_ sparse_resize_
        sparse_resize_and_clear_ storage to_dlpack typed_storage untyped_storage
    """,
    FILES: """
        debug_dump dump export_chrome_trace export_memory_timeline export_stacks from_file
        fromfile list_gpu_processes load_inline load_library load_state_dict_from_url
        load_url memmap save tofile
    """,
    INTERPRETER: """
        ag_code ag_frame cell_contents co_code co_consts co_names cr_code cr_frame
        dispatch_table
        f_back f_builtins f_code f_globals f_locals func_closure func_code func_globals
        gi_code gi_frame tb_frame tb_next
    """,
    SEED: """
        fork_rng manual_seed manual_seed_all seed_all set_rng_state set_rng_state_all
    """,
    SETTING: "update_wrapper",
    TEXT: """
        ForwardRef attrgetter evaluate_forward_ref find_spec get_annotations get_type_hints
        inline_asm_elementwise make_dataclass methodcaller
    """,
    FOREIGN: """
        builtins gc importlib inspect io mmap multiprocessing os pathlib pickle shutil
        socket subprocess sys tempfile threading torch warnings weakref
    """,
    RUN: "_ask _report",
})
# Of those, the names that a module may give to what it makes itself
OWN = frozenset({
    name
    for name, why in ATTRIBUTES.items()
    if why in (FOREIGN, RUN) or name in ("dump", "save")
})

# Refused on a module, beside other modules that it happens to hold
MEMBERS = {
    "numpy": _each({
        FILES: """
            DataSource ctypeslib distutils f2py fromregex genfromtxt lib load loadtxt
            rec savetxt savez savez_compressed testing
        """
    }),
    "torch": _each({
        FILES: """
            classes distributed export fork futures get_file_path hub import_ir_module
            import_ir_module_from_buffer load monitor mtia onnx package
            prepare_multiprocessing_environment profiler serialization testing wait
        """,
        FOREIGN: "ao mps quantization torch xpu",
        INTERPRETER: "get_device_module overrides torch_version",
        SEED: "random seed",
        SETTING: """
            init_num_threads set_anomaly_enabled set_default_device set_default_dtype
            set_default_tensor_type set_flush_denormal set_num_interop_threads
            set_num_threads set_warn_always
        """,
        TEXT: "cpp fx parse_ir parse_schema",
    }),
    "torch.autograd": _each({FILES: "profiler profiler_legacy profiler_util"}),
    "torch.backends": _each({FILES: "m python_native xeon"}),
    "torch.cuda": _each({
        FILES: "gds nccl profiler tunable",
        MEMORY: "cudart get_stream_from_external pynvml",
        SEED: "random seed",
        TEXT: "jiterator",
    }),
    "torch.ops.aten": _each({MEMORY: "set"}),
    "torch.return_types": _each({FOREIGN: "return_types"}),
    "torch.nn": _each({FOREIGN: "intrinsic parallel qat quantizable quantized"}),
}
# Nothing but these may be used of
ONLY = {
    "contextlib": _words("""
        AbstractContextManager ContextDecorator ExitStack closing contextmanager
        nullcontext suppress
    """),
    "core": _words("training"),
    "core.training": _words("kernels"),
    "core.training.kernels": _words("squared_relu_mlp windowed_attention"),
    "dataclasses": _words("""
        FrozenInstanceError InitVar KW_ONLY MISSING asdict astuple dataclass field
        fields is_dataclass replace
    """),
    "enum": _words("Enum Flag IntEnum IntFlag StrEnum auto member nonmember unique"),
    "functools": _words("""
        cache cached_property cmp_to_key lru_cache partial partialmethod reduce
        total_ordering wraps
    """),
    "torch._dynamo": _words("""
        allow_in_graph disable graph_break is_compiling mark_dynamic mark_static
        mark_static_address maybe_mark_dynamic
    """),
    "torch.compiler": _words("""
        allow_in_graph assume_constant_result compile cudagraph_mark_step_begin disable
        is_compiling is_dynamo_compiling nested_compile_region reset set_stance
    """),
    "torch.jit": _words("""
        Final annotate export ignore is_scripting is_tracing script unused
    """),
    "torch.library": _words("""
        custom_op opcheck register_autocast register_autograd register_fake
        register_kernel register_vmap triton_op wrap_triton
    """),
    "torch.utils": _words("_pytree checkpoint"),
    "torch.utils._pytree": _words("""
        PyTree tree_all tree_any tree_flatten tree_iter tree_leaves tree_map tree_map_
        tree_map_only tree_structure tree_unflatten
    """),
    "types": _words("MappingProxyType SimpleNamespace"),
    "triton": _words("Config autotune cdiv heuristics jit language next_power_of_2"),
}
# With a capital letter only these of torch itself: the rest writes files, compiles text
# or holds raw memory.
CLASSES = re.compile(
    r"(?!(Tensor|Size|Generator|Stream|Event|GradScaler|Tag|OutOfMemoryError"
    r"|AcceleratorError|Sym(Int|Float|Bool)|TYPE_CHECKING"
    r"|(B?Float16|Half|Float|Double|Byte|Char|Short|Int|Long|Bool)Tensor)$)[A-Z]"
)
# Private, and yet called by whoever writes training code
PRIVATE_OPERATIONS = re.compile(
    r"_(adaptive|efficient|flash|foreach|fused|native|scaled|thnn)_\w+$"
    r"|_(BatchNorm|LRScheduler|calculate_\w+)$"
    r"|_(assert|assert_async|check|chunk_cat|grouped_mm|int_mm|log_softmax|softmax"
    r"|weight_norm)$"
)
PRIVATE_OF_OBJECTS = _words("""
    _asdict _buffers _fields _make _modules _orig_mod _parameters _replace
""")

PLAIN = _words("""
    abs all bool call contains copy deepcopy enter eq exit float ge getitem gt hash
    index init int invert iter le len lt name ne neg new next pos post_init qualname
    repr reversed setitem str version
""")
OPERATORS = _words(
    "add and floordiv lshift matmul mod mul or pow rshift sub truediv xor"
)
DUNDERS = frozenset(f"__{name}__" for name in PLAIN) | {
    f"__{side}{name}__" for name in OPERATORS for side in ("", "r", "i")
}
VIA_SUPER = DUNDERS | {
    *("__delattr__", "__getattr__", "__getstate__", "__setattr__", "__setstate__")
}
DEFINABLE = VIA_SUPER | {*("__all__", "__constants__", "__delitem__", "__slots__")}

BUILTINS = _each({
    FILES: "breakpoint copyright credits help input license open",
    INTERPRETER: "delattr dir globals locals memoryview vars",
    TEXT: "__import__ compile eval exec",
})
ATTRIBUTE_BY_NAME = _words("getattr hasattr setattr")
# What the rules take for the built-in
KEPT = ATTRIBUTE_BY_NAME | {"staticmethod", "super", "type"}


def cut(name: str) -> str:
    """Return *name*, shortened if nobody would read it."""
    return name if len(name) <= 60 else f"{name[:57]}..."


def is_dunder(name: str) -> bool:
    """Say whether *name* is one of Python's own."""
    return name.startswith("__") and name.endswith("__")


def imported(path: str) -> str | None:
    """Say why the module or name *path* may not be imported."""
    top, *rest = path.split(".")
    instead = INSTEAD.get(top, "a training module imports torch and math")
    if top not in IMPORTABLE:
        return IMPORT.format(cut(path), instead)
    for name in rest:
        if member(top, name):
            return IMPORT.format(cut(path), instead)
        top = f"{top}.{name}"
    return None


def member(path: str, name: str) -> str | None:
    """Say why *name* may not be used of what was imported as *path*."""
    whole = cut(f"{path}.{name}")
    if name in ATTRIBUTES and whole not in MODULES:
        return ATTRIBUTES[name].format(whole)
    if is_dunder(name):
        return None if name in DUNDERS else INTERPRETER.format(whole)
    if path in ONLY:
        return None if name in ONLY[path] else FOREIGN.format(whole)
    if name.startswith("_"):
        is_known = PRIVATE_OPERATIONS.match(name) or whole == "torch._dynamo"
        return None if is_known else PRIVATE.format(whole)
    if reason := MEMBERS.get(path, {}).get(name):
        return reason.format(whole)
    if name.endswith("Storage"):
        return MEMORY.format(whole)
    if path == "torch" and CLASSES.match(name):
        return INTERPRETER.format(whole)
    return FOREIGN.format(whole) if _is_foreign(path, name) else None


# Functions of an allowed module that bear the name of another module
NOT_FOREIGN = frozenset({"abc", "bisect", "copy", "select", "signal", "trace"})
SHORTHANDS = frozenset({"F", "bltns", "fx_traceback", "hooks", "np", "torch"})


def _is_foreign(path: str, name: str) -> bool:
    """Say whether *name* is another module, which *path* imported for itself."""
    if f"{path}.{name}" in MODULES:
        return False
    return name in SHORTHANDS or (
        name in sys.stdlib_module_names and name not in NOT_FOREIGN
    )


def used(path: str) -> str | None:
    """Say why *path* may not be used, though the base imports its module."""
    top = path.partition(".")[0]
    is_known = top not in sys.stdlib_module_names or top in IMPORTABLE
    return None if is_known else FOREIGN.format(cut(path))


def is_module(path: str) -> bool:
    """Say whether *path* is a module rather than something in one."""
    parent, _, name = path.rpartition(".")
    return (
        path in MODULES
        or path in IMPORTABLE
        or (parent in OF_MODULES and name.islower() and not name.startswith("_"))
    )
