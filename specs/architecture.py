"""The residual stream and the heads."""

from core.spec import Expect, Experiment, codemod

small_x0 = Experiment(
    hypothesis="The embedding that every block adds again drowns what blocks wrote.",
    change="Halve the initial weight of the embedding in each block.",
    codemod=codemod("constants.ScaleConstant", name="X0_SCALAR", factor=0.5),
    expect=Expect(delta_bpb=-0.0008, sd=0.001),
    tags=("residual",),
)

one_kv_head = Experiment(
    hypothesis="One key and value head for all queries is too narrow: harm.",
    change="Share one key and value head among all query heads.",
    codemod=codemod("constants.SetConstant", name="N_KV_HEAD", value=1),
    expect=Expect(delta_bpb=0.0079, sd=0.003),
    tags=("heads", "harm"),
)

parallel_block = Experiment(
    hypothesis="An MLP that cannot read what attention of its own block wrote loses "
    "more than the shorter path gains: harm.",
    change="Add attention and MLP of a block to the stream at once.",
    expect=Expect(delta_bpb=0.011, sd=0.004),
    tags=("residual", "harm"),
)
