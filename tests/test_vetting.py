import ast
import builtins
import contextlib
import importlib
import importlib.util
import math
import types
from pathlib import Path
from textwrap import dedent

import libcst as cst
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.mutate import Job, Refusal, compare, forbidden, mutate, mutate_all, vetting
from core.mutate.literals import MAX_ADDED_LITERALS
from core.mutate.names import Names
from core.mutate.vetting import refusals
from core.profile import CPU
from tests.corpus import base, load_cheats, load_honest, mutated
from tests.test_specs import CASES, ROOT, codemods

TRAIN = (ROOT / "core" / "training" / "train.py").read_text()
BASE = """
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2, 2))

    def forward(self, tokens):
        return F.linear(tokens, self.weight)


def train(run):
    model = GPT().to(run.device)
    for step, tokens in enumerate(run.batches(8)):
        run.log(model(tokens).mean())
    return model
"""


def found(fragment, before=BASE):
    """Return what is refused in a module with *fragment* at its end."""
    return refusals(f"{BASE}\n{dedent(fragment).strip()}\n", before)


def reasons(fragment):
    return [refusal.reason for refusal in found(fragment)]


# What is refused, and what the user reads

IN_TORCH = "a training module imports torch and math"
USES_TORCH = "a training module uses torch and math"
NO_FILES = "a training module has no files, processes or network"
INTERPRETER = "a training module leaves the interpreter alone"
MEMORY = (
    "which reaches the memory behind a tensor; index or slice it, or take its .item() or "
    ".tolist()"
)
SEED = "the seed is the run's, as is run.generator(name)"
SETTING = "which sets what holds for the whole process"
TEXT = "which makes names or code out of text"
PRIVATE = "which is private to something else"
MADE = "a training module changes what it made"
REFUSED = {
    # imports
    "import os": f"it imports os; {IN_TORCH}",
    "import os.path as p": f"it imports os.path; {IN_TORCH}",
    "from subprocess import run": f"it imports subprocess.run; {IN_TORCH}",
    "import random": "it imports random; random numbers come from run.generator(name)",
    "import numpy as np": "it imports numpy; a training module stays in torch",
    "import time": (
        "it imports time; the clock is the run's, and run.progress the share of it "
        "that has passed"
    ),
    "import torch.distributed": f"it imports torch.distributed; {IN_TORCH}",
    "import torch.utils.cpp_extension": (
        f"it imports torch.utils.cpp_extension; {IN_TORCH}"
    ),
    "from torch import multiprocessing": (
        f"it imports torch.multiprocessing; {IN_TORCH}"
    ),
    "from torch.utils.data import DataLoader": (
        f"it imports torch.utils.data.DataLoader; {IN_TORCH}"
    ),
    "from torch import load": f"it imports torch.load; {IN_TORCH}",
    "from operator import attrgetter": f"it imports operator.attrgetter; {IN_TORCH}",
    "from math import *": "it imports all of math; name what it uses",
    "from . import helpers": (
        "it imports from its own package; a training module is one file"
    ),
    "class A:\n    import math as m": (
        "it imports within a class; import at the top"
    ),
    # files, processes, code
    "open('rows.txt')": f"it uses open; {NO_FILES}",
    "torch.load('weights.pt')": f"it uses torch.load; {NO_FILES}",
    "F.torch": f"it uses torch.nn.functional.torch; {USES_TORCH}",
    "torch.os": f"it uses torch.os; {USES_TORCH}",
    "torch.jit.load": f"it uses torch.jit.load; {USES_TORCH}",
    "torch.PyTorchFileReader('x')": f"it uses torch.PyTorchFileReader; {INTERPRETER}",
    "def f(m): m.save('x')": f"it uses save; {NO_FILES}",
    "def f(x): return x.os": f"it uses os; {USES_TORCH}",
    "torch.ops.load_library('x.so')": f"it uses torch.ops.load_library; {NO_FILES}",
    "eval('1')": f"it uses eval, {TEXT}",
    "def f(): yield compile": f"it uses compile, {TEXT}",
    "torch.fx": f"it uses torch.fx, {TEXT}",
    "vars(math)['x'] if 0 else 1": f"it uses vars; {INTERPRETER}",
    "torch.compile(F.relu, backend=print)": (
        "it compiles with a backend of its own; a compiler starts programs"
    ),
    "torch.compile(F.relu, options={'shape_padding': True})": (
        "it compiles with the option 'shape_padding', which has no effect here: "
        "products are not timed"
    ),
    "torch.compile(F.relu, options={'cpp.cxx': ('./evil',)})": (
        "it compiles with the option 'cpp.cxx'; a compiler starts programs"
    ),
    "def f(o): torch.compile(F.relu, options=o)": (
        "it compiles with options that are not written out; a compiler starts programs"
    ),
    "def f(o): torch.compile(F.relu, **o)": (
        "it compiles with options that are not written out"
    ),
    # the interpreter
    "().__class__.__bases__": f"it uses __bases__; {INTERPRETER}",
    "def f(e): return e.tb_frame": f"it uses tb_frame; {INTERPRETER}",
    "def f(): return __builtins__": f"it uses __builtins__; {INTERPRETER}",
    "class A:\n    def __reduce__(self): return 1": (
        "it defines __reduce__; Python would call it"
    ),
    "class A:\n    __torch_function__ = 1": (
        "it defines __torch_function__; Python would call it"
    ),
    "class A(metaclass=B): pass": (
        "it has a metaclass; a training module makes plain classes"
    ),
    "class A(Tensor): pass": (
        "it derives from a tensor, and would take part in all that is computed"
    ),
    "class A(type(torch.empty(0))): pass": (
        "it derives from the type of an object; name the class"
    ),
    "type('A', (object,), {})": "it makes a class with type(); write a class statement",
    # attributes by name
    "def f(x, n): return getattr(x, n)": (
        "it uses getattr with a name that is not written out; choose from a dict or an "
        "nn.ModuleDict"
    ),
    "def f(x: 'open(1)'): pass": "it has an annotation that is more than the names of types",
    "def f(x): return getattr(x, *['a'])": "it uses getattr without an object and a name",
    "g = getattr": "it hands on getattr; call it with a name that is written out",
    "def f(x): return getattr(x, 'data_ptr')": f"it uses data_ptr, {MEMORY}",
    "'{0.__class__}'.format(1)": f"it uses '__class__' in a format, {TEXT}",
    "('{0.__cla' + 'ss__}').format(1)": (
        f"it uses format of a text that is put together, {TEXT}"
    ),
    "def f(x, super): return super().data": (
        "it defines super, which is Python's own"
    ),
    # memory
    "def f(x): return x.untyped_storage()": f"it uses untyped_storage, {MEMORY}",
    "def f(x): return torch.as_strided(x, (2,), (1,))": (
        f"it uses torch.as_strided, {MEMORY}"
    ),
    "def f(x): return x._base": f"it uses _base, {MEMORY}",
    "torch.UntypedStorage": f"it uses torch.UntypedStorage, {MEMORY}",
    # what belongs to others
    "F.cross_entropy = len": f"it changes torch.nn.functional.cross_entropy; {MADE}",
    "def f(run): run.batches = 1": f"it changes run.batches; {MADE}",
    "def f(run): type(run).batches = 1": f"it changes type(...).batches; {MADE}",
    "torch.backends.cuda.matmul.allow_tf32 = True": (
        "it changes torch.backends.cuda.matmul.allow_tf32; call "
        "torch.set_float32_matmul_precision"
    ),
    "def f(): return F": (
        "it hands on the module torch.nn.functional; name it where it is used"
    ),
    "def f(run): return run._rows": (
        "it uses run._rows; a run has batches, device, generator, log and progress"
    ),
    "def f(run): return type(run)": (
        "it asks what kind of run it has; it is to train alike in each"
    ),
    "def f(x): return x._version": f"it uses _version, {PRIVATE}",
    "torch._C": f"it uses torch._C, {PRIVATE}",
    "torch.manual_seed(1)": f"it uses torch.manual_seed; {SEED}",
    "torch.Generator().manual_seed(1)": f"it uses manual_seed; {SEED}",
    "torch.set_default_dtype(torch.half)": f"it uses torch.set_default_dtype, {SETTING}",
}  # fmt: skip


@pytest.mark.parametrize(("fragment", "reason"), REFUSED.items())
def test_what_is_refused_says_why(fragment, reason):
    assert reason in reasons(fragment)


def test_a_refusal_has_the_line_and_the_symbol_of_what_it_refuses():
    source = dedent("""
        import torch

        class GPT(torch.nn.Module):
            def forward(self, tokens):
                import os
                return [open for _ in tokens]

        def train(run):
            def inner(x):
                return x.data_ptr()
            return (lambda: eval)
    """).lstrip()

    assert refusals(source, "import torch\n") == (
        Refusal(line=5, symbol="GPT.forward", reason=f"it imports os; {IN_TORCH}"),
        Refusal(line=6, symbol="GPT.forward", reason=f"it uses open; {NO_FILES}"),
        Refusal(line=10, symbol="train.inner", reason=f"it uses data_ptr, {MEMORY}"),
        Refusal(line=11, symbol="train", reason=f"it uses eval, {TEXT}"),
    )


# Ways around

AROUND = {
    "a built-in under another name": "o = open\no('x')",
    "a built-in in a list": "[eval][0]('1')",
    "a built-in as a default": "def f(x=exec): return x",
    "a built-in in a wide script": "\N{FULLWIDTH LATIN SMALL LETTER O}pen('x')",
    "a built-in that another function binds": (
        "def f(open): return open\ndef g(): return open('x')"
    ),
    "a built-in that a comprehension binds": (
        "def f(): return [1 for open in ()], open('x')"
    ),
    "a built-in that a class binds": "class A:\n    open = 1\n    x = [open]\n    def f(self): return open('x')",
    "a global that hides a parameter's name": (
        "def f(open):\n    def g():\n        global open\n        return open('x')\n    return g"
    ),
    "a wide getattr": (
        "def f(x, n): return \N{FULLWIDTH LATIN SMALL LETTER G}etattr(x, n)"
    ),
    "an alias of a module": "f = F\nf.relu = len",
    "an alias of an alias": "def g():\n    f = nn\n    h = f\n    h.functional.relu = len",
    "an alias by a walrus": "(f := F).relu = len",
    "an alias that is bound twice": "f = 1\nf = F\nf.relu = len",
    "an alias of a class": "M = nn.Module\nM.forward = len",
    "a name that hides an import": "import math as F\nF.cross_entropy = len",
    "a module among others": "f, g = F, nn\nf.relu = len",
    "a module that is chosen": "(F if math else nn).relu = len",
    "a module as an argument": "def patch(m): m.relu = len\npatch(F)",
    "a module as an attribute": "class A: pass\na = A()\na.f = F\na.f.relu = len",
    "a module as an attribute and a name": "class A: pass\nb = A.f = F",
    "a module as a class's attribute": "class A:\n    f = F\nA.f.relu = len",
    "a module by getattr": "getattr(nn, 'functional', None).relu = len",
    "a module in a module": "F.math.pi = 3",
    "setattr": "setattr(torch, 'rand', len)",
    "setattr of object": "object.__setattr__(torch, 'rand', len)",
    "update_wrapper": "from functools import update_wrapper",
    "wraps": "import functools\nfunctools.wraps(len, assigned=('x',))(nn.Module)",
    "a target of for": "for F.relu in (len,): pass",
    "a target of with": "with torch.no_grad() as F.relu: pass",
    "a target in a comprehension": "[0 for F.relu in (len,)]",
    "a target in a tuple": "a, (b, *F.relu) = 1, (2, 3)",
    "del": "del F.relu",
    "an augmented assignment": "F.relu += 1",
    "an annotated assignment": "F.relu: int = 1",
    "an item of a module's": "torch.backends.cudnn.flags['x'] = 1",
    "a run under another name": "def f(run):\n    r = run\n    r.batches = 1",
    "a run as an attribute": (
        "class A:\n    def f(self, run): self.r = run\n"
        "    def g(self): return self.r.finish"
    ),
    "a run by getattr": "def f(run): return getattr(run, '_rows')",
    "a run by an f-string": "def f(run): return getattr(run, f'batch{1}')",
    "an attribute by an f-string": "def f(x): return getattr(x, f'data_{1}')",
    "an attribute in a pattern": (
        "def f(run):\n    match run:\n        case object(_rows=rows): return rows"
    ),
    "an attribute in a nested format": "'{:{0.__class__}}'.format(1)",
    "an attribute in a split format": "'{0.__cla' 'ss__}'.format(1)",
    "an attribute in an escaped format": r"'\x7b0.__class__}'.format(1)",
    "format of the class": "str.format('{' + '0.__class__}', 1)",
    "the name of a run's class": "def f(run): return run.__class__.__name__",
    "a run as a text": "def f(run): return f'{run}'",
    "a private attribute in a method without self": (
        "class A:\n    @staticmethod\n    def f(self): return self._rows"
    ),
    "a frame of a generator": "def f(g): return g.gi_frame.f_locals",
    "a module of the library": "import typing\ntyping.sys",
    "a module of the library's library": "import enum\nenum.bltns.open",
    "a file of a library": "import dataclasses\ndataclasses.inspect",
    "threads of the compiler": "torch.fork(len)",
    "a file of the profiler": "torch.autograd.profiler.profile()",
    "torch by the way of its modules": "from torch.nn.modules.linear import torch",
    "a private module": "from torch._C import _from_dlpack",
    "a class by the way of a parameter": "class A(nn.Parameter): pass",
    "a tensor under another name": "T = Tensor\nclass A(T): pass",
    "assembly": "import triton.language as tl\ntl.inline_asm_elementwise",
    "a kernel's runtime": "from triton.runtime import build",
    "names of a type parameter": "x = torch.zeros(2, out=open('x'))",
    "a decorator": "@exec\ndef f(): pass",
    "a lambda's default": "f = lambda x=open: x",
    "an f-string": "f'{open}'",
    "a format of an f-string": "f'{1:{open}}'",
    "an annotation": "x: open('x') = 1",
    "an exception": "try: pass\nexcept* open as e: pass",
    "a subscript": "{}[open]",
    "a module that an allowed one keeps": (
        "class A: importlib = None\n"
        "def f(p): return p.importlib.import_module('x')\n"
        "from torch.utils import _pytree\nf(_pytree)"
    ),
    "torch by the way of a parameter": "def f(m): m.torch.relu = len",
    "what the run keeps to itself": (
        "class A: _ask = None\ndef f(r): return r._ask(4)"
    ),
    "a format with a name": "K = '{0._' + '_class_' + '_}'\nK.format(1)",
    "an annotation that is dispatched on": (
        "import functools\n@functools.singledispatch\ndef f(x): return x"
    ),
    "an annotation that is evaluated": (
        "import typing_extensions as t\ndef f(): return t.get_annotations(f)"
    ),
    "a reference that is evaluated": "import typing\ntyping.ForwardRef('x')",
    "a tree that is read from a text": (
        "from torch.utils import _pytree\n_pytree.treespec_loads('[]')"
    ),
    "members that become names of a module": "import enum\nenum.global_enum(1)",
    "a module's types": "import types\ntypes.FunctionType",
    "an annotation that is given a built-in": "def f(x: 'K[open]'): pass",
    "an annotation within one": "def f(x: 'list[\"open(1)\"]'): pass",
    "the object of another": (
        "class A:\n    def f(self, other): object.__setattr__(other, 'x', 1)"
    ),
    "a class by setting it": (
        "class A:\n    def f(self): object.__setattr__(self, '__class__', 1)"
    ),
    "the run under its name": "def f(r):\n    run = r\n    return run.secret",
    "a name that is written out elsewhere too": (
        "def f(x):\n    for n in ('a', 'b'): pass\n    n = x.n\n    return getattr(x, n)"
    ),
    "a name of another function": (
        "def g():\n    n = 'a'\ndef f(x, n): return getattr(x, n)"
    ),
    "a name that is written out and refused": (
        "N = 'data_ptr'\ndef f(x): return getattr(x, N)"
    ),
    "a name among others in a loop": (
        "def f(x):\n    for n in ('a', '__class__'): return getattr(x, n)"
    ),
    "a pager": "help()",
    "await": "async def f():\n    async with open('x') as g: pass",
}


@pytest.mark.parametrize("fragment", AROUND.values(), ids=AROUND)
def test_a_way_around_is_refused_too(fragment):
    ast.parse(fragment)  # or it would be refused for another reason

    assert found(fragment)


ENCODED = """
# -*- coding: utf-7 -*-
# +AAo-HIDDEN +AD0- 1
X = 1
"""


def test_a_line_that_only_another_encoding_shows_is_refused(tmp_path):
    path = tmp_path / "hidden.py"
    path.write_text(ENCODED.lstrip())
    spec = importlib.util.spec_from_file_location("hidden", path)
    module = importlib.util.module_from_spec(spec)

    spec.loader.exec_module(module)

    assert module.HIDDEN == 1  # though no parser of the text saw it
    assert refusals(ENCODED.lstrip(), "X = 2\n") == (
        Refusal(
            line=1,
            symbol="",
            reason="it says that it is written in utf-7; write it in UTF-8",
        ),
    )


@pytest.mark.parametrize(
    ("first", "is_refused"),
    [
        ("# coding: utf-8", False),
        ("# vim: set fileencoding=UTF_8 :", False),
        ("# encoding of positions: rotary", False),
        ("\f\f\f# coding: utf-7", True),
        ("#!/usr/bin/env python\n# coding=latin-1", True),
        ("# one\r# coding=latin-1", True),
        ("#\n#\n# coding: latin-1", False),
    ],
)
def test_an_encoding_counts_where_python_reads_it(first, is_refused):
    assert bool(refusals(f"{first}\nX = 1\n", "X = 2\n")) == is_refused


# What training code does

FINE = {
    "names that are written out before": """
        ACTIVATION = "gelu"

        class A:
            def __init__(self):
                for name in ("up", "gate"):
                    setattr(self, name, 1)
                self.activation = getattr(F, ACTIVATION)
    """,
    "a local that is called run": """
        def f(x):
            run = x.cumsum(1) / 2
            run = run.to(x.dtype) - x
            return run.reshape(-1)
    """,
    "a frozen dataclass that computes a field": """
        import dataclasses

        @dataclasses.dataclass(frozen=True)
        class Sizes:
            ratio: float = 2.0

            def __post_init__(self):
                object.__setattr__(self, "hidden", int(self.ratio * 8))
    """,
    "a namespace, an abstract class, a compiled model": """
        import abc
        from types import SimpleNamespace

        class A(metaclass=abc.ABCMeta): pass

        def g(x: "Float[Tensor, 'b t (h d)']", mode: "Literal['a-b']"): pass

        def f(model, x: "Tensor | None") -> "list[Tensor]":
            return [model._orig_mod, SimpleNamespace(x=x)]
    """,
    "imports": """
        from __future__ import annotations
        import collections.abc, copy, dataclasses, enum, functools, itertools, operator
        import einops, re
        from collections import defaultdict, namedtuple
        from contextlib import nullcontext
        from dataclasses import dataclass, field
        from functools import lru_cache, partial, reduce
        from operator import mul
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention
        from torch.nn.modules.batchnorm import _BatchNorm
        from torch.nn.utils.parametrizations import orthogonal
        from torch.optim.lr_scheduler import LambdaLR
        from torch.optim.swa_utils import AveragedModel
        from torch.utils.checkpoint import checkpoint
        from typing import NamedTuple, TYPE_CHECKING
    """,
    "a parameter called input": """
        class Layer(nn.Module):
            def forward(self, input, *, vars=None, compile=False):
                dir = F.relu(input)
                return [(lambda open: open(input))(vars), dir, compile]
    """,
    "buffers and attributes by name": """
        class Layer(nn.Module):
            def __init__(self, layers):
                super().__init__()
                for i in range(layers):
                    self.register_buffer(f"cos_{i}", torch.zeros(1))
                    setattr(self, f"gate_{i}", nn.Parameter(torch.zeros(1)))
                self._cache = None
            def forward(self, x):
                if hasattr(self, "gate_0") and self._cache is None:
                    self._cache = getattr(self, f"gate_{0}")
                return x * getattr(self, f"cos_{0}") * getattr(F, "relu")(x)
        def f(layer): return layer._cache
    """,
    "writes to what it made": """
        def f(model, optimizer):
            model.lm_head.weight = model.embedding.weight
            model.blocks[0].forward = torch.compile(model.blocks[0].forward)
            for p in model.parameters():
                p.grad = None
                p.data = p.data.clone()
                p.data.copy_(p)
                p.init = len
            optimizer.param_groups[0]["lr"] = 0.1
            del model.cache
            model.signal = model.random = 1
            model._modules["x"] = nn.Linear(1, 1)
            return model.signal
        class Counter:
            count = 0
            @classmethod
            def add(cls, by):
                cls.count += by
                cls._by = by
            def step(self): type(self).count += 1
    """,
    "operators of its own": """
        class Square(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x * x
            @staticmethod
            def backward(ctx, gradient):
                (x,) = ctx.saved_tensors
                return 2 * x * gradient
        @torch.library.custom_op("lab::scale", mutates_args=())
        def scale(x: Tensor) -> Tensor: return x * 2
        @scale.register_fake
        def _(x): return torch.empty_like(x)
        @torch.jit.script
        def fused(x): return x * torch.ops.lab.scale(x)
        @torch._dynamo.disable
        def plain(x): return torch._foreach_mul([x], 2) + [torch._int_mm(x, x)]
    """,
    "kernels": """
        import triton
        import triton.language as tl
        @triton.autotune(configs=[triton.Config({"BLOCK": 64}, num_warps=4)], key=["n"])
        @triton.jit
        def kernel(x, y, n, BLOCK: tl.constexpr):
            i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
            tl.store(y + i, tl.load(x + i, mask=i < n), mask=i < n)
        def f(x): kernel[(triton.cdiv(x.numel(), 64),)](x, x, x.numel())
    """,
    "compiling": """
        @torch.compile(mode="max-autotune", fullgraph=True, dynamic=False)
        def f(x): return x
        g = torch.compile(f, backend="inductor", options={"triton.cudagraphs": True})
        h = torch.compile(f, options=None)
        torch.set_float32_matmul_precision("high")
        torch.backends.cuda.enable_flash_sdp(True)
        if torch.cuda.is_available(): torch.cuda.synchronize()
        OLD = torch.__version__ < "2.5"
    """,
    "hooks and contexts": """
        def f(model, x, run):
            handle = model.register_forward_hook(lambda m, i, o: o)
            with torch.autocast(run.device.type, torch.bfloat16), torch.no_grad() as c:
                model.apply(lambda m: m.__class__.__name__)
            handle.remove()
            print(f"{type(model).__name__:>10} {x:.3f}", "{:.2f} {}".format(1.0, x))
            model.load_state_dict(model.state_dict())
            model.named = {k: v for k, v in model.named_parameters()}
    """,
    "random numbers of the run": """
        def f(run, x):
            there = torch.Generator(run.device)
            there.manual_seed(run.generator("dropout").initial_seed())
            return torch.rand(2, generator=there), F.dropout(x, 0.1)
    """,
    "an optimizer of its own": """
        class Lion(torch.optim.Optimizer):
            def __init__(self, params, lr):
                super().__init__(params, dict(lr=lr))
            def __setstate__(self, state):
                super().__setstate__(state)
            @torch.no_grad()
            def step(self):
                for group in self.param_groups:
                    self._init_group(group)
    """,
    "dispatch by the type": """
        act = {"relu": F.relu, "gelu": F.gelu}
        DTYPE = torch.bfloat16
        def f(m, x):
            match m:
                case nn.Linear(weight=w, bias=None): return F.linear(x, w)
                case {"scale": s, **rest}: return x * s
                case [first, *others]: return first
                case torch.float32 | nn.Embedding(): return x
            return isinstance(m, (nn.Linear, nn.Embedding)) and type(m) is nn.Linear
    """,
    "a name that an import has too": """
        def f(x):
            B, T, F = x.shape
            F.real, F = 1, 2
            return [F, B, T]
    """,
}


@pytest.mark.parametrize("fragment", FINE.values(), ids=FINE)
def test_what_training_code_does_is_not_refused(fragment):
    assert found(fragment) == ()


def test_the_training_module_itself_does_nothing_that_is_refused():
    assert refusals(TRAIN, "X = 1\n") == ()


@pytest.mark.slow
def test_nothing_is_refused_of_the_experiments_that_deltaspec_comes_with():
    source = mutate(Job(source=TRAIN, codemods=CPU.overrides), project=ROOT).source
    jobs = [Job(source=source, codemods=codemods(case)) for case in CASES.values()]

    mutants = mutate_all(jobs, project=ROOT)

    assert {name: m.refusals for name, m in zip(CASES, mutants, strict=True)} == (
        dict.fromkeys(CASES, ())
    )


@pytest.mark.parametrize("honest", load_honest(), ids=lambda h: h.name)
def test_an_honest_mutant_is_not_refused(honest):
    assert refusals(mutated(base(), honest.source), base()) == ()


@pytest.mark.slow
@pytest.mark.parametrize("cheat", load_cheats(), ids=lambda c: c.name)
def test_a_cheat_is_refused_if_its_header_says_so(cheat):
    found = refusals(mutated(base(), cheat.source), base())

    assert found or "static" not in cheat.caught_by


# The base's own business


def test_what_the_base_does_in_the_same_place_is_not_refused():
    base_source = (
        "import os\nimport einx\n\ndef home():\n    return os.environ['HOME']\n"
    )
    mutant = base_source.replace("HOME", "PWD") + "X = einx.sum\n"

    assert refusals(mutant, base_source) == ()


@pytest.mark.parametrize(
    ("added", "reason"),
    [
        ("def away():\n    return os.remove", f"it uses os.remove; {USES_TORCH}"),
        ("import sys", f"it imports sys; {IN_TORCH}"),
        ("np.load('x')", f"it uses numpy.load; {NO_FILES}"),
    ],
)
def test_what_the_base_does_elsewhere_is_no_excuse(added, reason):
    base_source = (
        "import os\nimport numpy as np\n\ndef home():\n    return os.environ\n"
    )

    found = refusals(f"{base_source}\n{added}\n", base_source)

    assert reason in [refusal.reason for refusal in found]


# Literals


def test_a_table_of_answers_is_refused_where_most_of_it_is():
    text = f"{BASE}\ndef words():\n    a = 'x' * 9\n    return {'y' * 5000!r}\n"

    assert refusals(text, BASE) == (
        Refusal(
            line=BASE.count("\n") + 2,
            symbol="words",
            reason="it adds 5,002 characters of literals, and may add 4,096; "
            "data belong in --data",
        ),
    )


KEYS = ", ".join(f"{'k' * 80}{i:03}=1" for i in range(100))
HOLDS = {
    "text": repr("x" * MAX_ADDED_LITERALS + "x"),
    "bytes": repr(b"x" * MAX_ADDED_LITERALS + b"x"),
    "numbers": str([12345678] * 600),
    "one number": str(7**4900),
    "floats": str([math.pi] * 300),
    "an f-string": f"f'{'x' * 5000}{{1}}'",
    "names": f"[{', '.join(f'A{i % 7}' for i in range(600))}]",
    "keywords": f"dict({KEYS})",
    "truth": str([True, False] * 500),
}


@pytest.mark.parametrize("expression", HOLDS.values(), ids=HOLDS)
def test_whatever_can_hold_a_text_counts_as_a_literal(expression):
    assert any(
        "of literals, and may add 4,096" in why for why in reasons(f"X = {expression}")
    )


@pytest.mark.parametrize(
    "fragment",
    [
        f"X = {[math.pi] * 20}\nY = {'x' * 2000!r}",
        f'def f():\n    """{"x" * 9000}"""',
        f"# {'x' * 9000}",
        "def f(x):\n" + "    x = x[0, 1:2] * 0.5 + 1\n" * 200,
    ],
    ids=["a short table", "a docstring", "a comment", "code"],
)
def test_what_is_no_table_is_not_data(fragment):
    assert found(fragment) == ()


# What the rules rest on


def importable(path):
    """Return the module *path*, or what is called one in torch."""
    try:
        return importlib.import_module(path)
    except ImportError:
        parent, _, name = path.rpartition(".")
        return getattr(importable(parent), name)


@pytest.fixture(scope="module")
def reachable():
    """Return the modules that a training module can reach, by the path it took."""
    installed = {"einops", "triton"} - {
        name for name in ("einops", "triton") if importlib.util.find_spec(name)
    }
    waiting = [
        (path, importable(path))
        for path in sorted(forbidden.IMPORTABLE | forbidden.MODULES)
        if path.partition(".")[0] not in installed
    ]
    found = {}
    while waiting:
        path, module = waiting.pop()
        if path in found:
            continue
        found[path] = module
        for name, value in members(path, module):
            if isinstance(value, types.ModuleType) and path.count(".") < 6:
                waiting.append((f"{path}.{name}", value))
    return found


def members(path, module):
    """Yield what the rules let a training module use of *module*."""
    for name in dir(module):
        if forbidden.member(path, name) is None:
            with contextlib.suppress(AttributeError, ImportError, RuntimeError):
                yield name, getattr(module, name)


def test_no_module_that_is_refused_can_be_reached_through_one_that_is_not(reachable):
    guarded = forbidden.MEMBERS.keys() | forbidden.ONLY.keys()
    ways = {
        path: module.__name__
        for path, module in reachable.items()
        if isinstance(module, types.ModuleType)
        and path != module.__name__
        and (forbidden.imported(module.__name__) or module.__name__ in guarded)
    }

    assert ways == {}
    assert len(reachable) > 200


def test_nothing_that_is_refused_by_one_path_can_be_had_by_another(reachable):
    refused = {id(vars(builtins)[name]): name for name in forbidden.BUILTINS}
    for path, module in reachable.items():
        for name in forbidden.MEMBERS.get(path, {}) | forbidden.ATTRIBUTES:
            value = getattr(module, name, None)
            if not isinstance(value, int | str | None):
                refused[id(value)] = f"{path}.{name}"

    ways = {
        f"{path}.{name}": refused[id(value)]
        for path, module in reachable.items()
        for name, value in members(path, module)
        if id(value) in refused
    }

    assert ways == {}
    assert {"torch.load", "torch.cuda.cudart", "eval"} <= set(refused.values())


def test_the_modules_that_the_rules_know_are_there(reachable):
    known = {path for path in forbidden.MODULES if path.partition(".")[0] == "torch"}

    assert known <= reachable.keys()


LIBRARY = Path(ast.__file__).parent
READ = [
    *(ROOT / "core").rglob("*.py"),
    *(LIBRARY / f"{name}.py" for name in ("ast", "dataclasses", "enum", "typing")),
]


@pytest.mark.parametrize("path", READ, ids=lambda path: path.stem)
def test_libcst_shows_every_name_that_python_reads(path):
    names = Names()

    cst.parse_module(path.read_text()).visit(names)

    assert vetting.identifiers(compare.read(path.read_text()).tree) <= names.seen


def test_a_name_that_libcst_does_not_show_is_refused(monkeypatch):
    monkeypatch.setattr(Names, "visit_Global", lambda self, node: False)

    assert reasons("def f():\n    global unseen") == [
        "it uses unseen, which Python reads there and LibCST does not"
    ]


@given(st.text(max_size=40))
def test_whatever_text_there_is_it_is_vetted_or_unreadable(text):
    source = f"X = {text!r}\n{text}"
    with contextlib.suppress(compare.Unreadable, cst.ParserSyntaxError):
        assert all(one.line >= 1 for one in refusals(source, "X = 1\n"))
