"""Attention: positions, windows, and what the model is without it."""

from core.spec import Expect, Experiment, Sweep, codemod

rope_base = Experiment(
    hypothesis="A larger rotary base turns the slow channels less, so that far "
    "positions stay comparable.",
    change="Multiply the rotary base by {factor}.",
    codemod=codemod("constants.ScaleConstant", name="ROPE_BASE", factor="{factor}"),
    sweep=Sweep(factor=(5, 20)),
    expect=Expect(delta_bpb=-0.0012, sd=0.001),
    tags=("attention", "position"),
)

short_window = Experiment(
    hypothesis="Short windows of an eighth of the context free compute for more steps, "
    "and cost little, since every fourth layer still sees all of it.",
    change="In the S layers use a quarter of the present window.",
    codemod=codemod("constants.ScaleConstant", name="SHORT_WINDOW", factor="1/4"),
    expect=Expect(delta_bpb=-0.0009, sd=0.0008),
    tags=("attention", "speed"),
)

no_attention = Experiment(
    hypothesis="A token that cannot read the tokens before it predicts little more "
    "than a bigram does, however long it trains: this is how harm looks.",
    change="In every block let a token attend to nothing but itself.",
    codemod=codemod(
        "statements.ReplaceStatement",
        function="CausalSelfAttention.__init__",
        statement="self.window = layer_window(layer)",
        source="self.window = 0",
    ),
    expect=Expect(delta_bpb=0.1, sd=0.05, on="cpu"),
    tags=("attention", "harm"),
)

scale_written_out = Experiment(
    hypothesis="Writing out the scale that attention has by default changes nothing: "
    "a placebo.",
    change="Name the default scale of the products, HEAD_DIM ** -0.5.",
    codemod=codemod(
        "statements.ReplaceStatement",
        function="attend",
        statement="return windowed_attention(...)",
        source="return windowed_attention(q, k, v, window, scale=HEAD_DIM**-0.5)",
    ),
    expect=Expect(delta_bpb=0, within=0.001),
    tags=("attention", "placebo"),
)
