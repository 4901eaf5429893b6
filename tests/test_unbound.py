import ast
from textwrap import dedent

import pytest

from core.mutate import Refusal
from core.mutate.unbound import unbound


def found(source):
    return [
        (refusal.line, refusal.symbol, refusal.reason.removeprefix("it uses "))
        for refusal in unbound(ast.parse(dedent(source)))
    ]


def test_a_name_that_nothing_binds_is_found_with_its_line_and_symbol():
    tree = ast.parse("class GPT:\n    def forward(self, x):\n        return geglu(x)\n")

    assert list(unbound(tree)) == [
        Refusal(
            line=3,
            symbol="GPT.forward",
            reason="it uses geglu, which nothing binds; define it or import it",
        )
    ]


@pytest.mark.parametrize(
    ("source", "reasons"),
    [
        (
            "DEPTH = 8\nWIDTH = 64 * DEPHT\n",
            [(2, "", "DEPHT, which nothing binds; the nearest name is DEPTH")],
        ),
        (
            "x = numpy.ones(3)\n",
            [(1, "", "numpy, which nothing binds; a training module stays in torch")],
        ),
        (
            "def f(x):\n    y = np.exp(x)\n    return np.sqrt(y)\n",
            [(2, "f", "np, which nothing binds; define it or import it")],
        ),
        (
            "def f(x: Tensor):\n    return x\n",
            [(1, "f", "Tensor, which nothing binds; define it or import it")],
        ),
    ],
)
def test_each_name_is_found_once_in_a_symbol_with_the_nearest_that_there_is(
    source, reasons
):
    assert found(source) == reasons


@pytest.mark.parametrize(
    "source",
    [
        "print(len(range(3)), __name__)",
        "import torch.nn.functional\nfrom math import pi as circle\ntorch.ones(circle)",
        "from math import *\nsin(0)",
        "from __future__ import annotations\ndef f(x: Tensor) -> Tensor: return x",
        "total = sum(x * y for x, y in pairs for pairs in [()])",
        "f = lambda *args, x=1, **rest: (args, x, rest)",
        "try:\n    pass\nexcept OSError as error:\n    print(error)",
        "if (n := 3) > 2:\n    print(n)",
        "def f():\n    return g()\n\ndef g():\n    return 1",
        "def f():\n    global later\n    later = 1\n\ndef g():\n    return later",
        "def f():\n    g\n\nclass A:\n    g = 1",
        """
        match [1, {}]:
            case [first, *rest] as whole:
                print(first, rest, whole)
            case {"a": 1, **others}:
                print(others)
        """,
        "x = 0\n" + "if x:\n    pass\n" + "elif x:\n    pass\n" * 900,
    ],
)
def test_a_name_that_is_bound_anywhere_passes(source):
    assert found(source) == []
