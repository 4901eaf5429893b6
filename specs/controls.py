"""What must show nothing, and what must show harm: how far verdicts can be believed.

Both placebos were published as differences of one run, smaller than what counts here as
the same.  What was never published has no prediction: it is measured.
"""

from core.spec import Expect, Experiment, codemod

NOTHING = Expect(delta_bpb=0, within=0.001)

long_rotary_tables = Experiment(
    hypothesis="Rows of a table that nobody reads change nothing: a placebo. A rotary "
    "buffer cut from 10 to 2 times the context was logged as a change of +0.0004.",
    change="Make the rotary tables ten times as long as the context; the model reads "
    "the same rows of them as before.",
    codemod=codemod(
        "statements.ReplaceStatement",
        function="rotary_tables",
        statement="position = torch.arange(...)",
        source="position = torch.arange(10 * SEQUENCE_LEN, dtype=torch.float32)",
    ),
    expect=NOTHING,
    tags=("placebo", "position"),
)

other_draw = Experiment(
    hypothesis="Other random numbers of the same kind make no better model: a placebo "
    "that moves val_bpb as a seed does. A seed was logged as a change of +0.0007.",
    change="Draw the initial values from generators of other names. The order of the "
    "data stays as it is.",
    codemod=codemod(
        "statements.ReplaceStatement",
        function="initialize",
        statement="weight.init(...)",
        source='weight.init(weight.data, run.generator(f"other {name}"))',
    ),
    expect=NOTHING,
    tags=("placebo", "seed"),
)

no_warmdown = Experiment(
    hypothesis="A model that is measured at the peak of its learning rate shows the "
    "noise of its last steps.",
    change="Keep the learning rate at its peak to the end.",
    codemod=codemod("constants.SetConstant", name="WARMDOWN_SHARE", value=0.0),
    tags=("learning_rate",),
)

no_momentum = Experiment(
    hypothesis="The direction of one gradient alone is mostly noise, and Muon makes "
    "all of its directions equally large.",
    change="Let Muon orthogonalise the gradient of the step itself, from the first step "
    "to the last.",
    codemod=(
        codemod("constants.SetConstant", name="MUON_MOMENTUM_START", value=0.0),
        codemod("constants.SetConstant", name="MUON_MOMENTUM", value=0.0),
    ),
    tags=("muon",),
)

no_qk_norm = Experiment(
    hypothesis="Without a fixed length of queries and keys the products grow until each "
    "token reads from one other.",
    change="Leave queries and keys as long as they are after the rotation.",
    codemod=(
        codemod(
            "statements.DeleteStatement",
            function="CausalSelfAttention.forward",
            statement="q = norm(q)",
        ),
        codemod(
            "statements.DeleteStatement",
            function="CausalSelfAttention.forward",
            statement="k = norm(k)",
        ),
    ),
    tags=("heads",),
)
