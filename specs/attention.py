"""Attention: positions, windows, and how much of it there must be."""

from core.spec import Expect, Experiment, Sweep, codemod

rope_base = Experiment(
    hypothesis="A larger rotary base keeps far positions apart.",
    change="Multiply the rotary base by {factor}.",
    codemod=codemod("constants.ScaleConstant", name="ROPE_BASE", factor="{factor}"),
    sweep=Sweep(factor=(5, 20)),
    expect=Expect(delta_bpb=-0.0012, sd=0.001),
    tags=("attention",),
)
