"""Sizes, the residual stream, initial values and the heads."""

from core.spec import Expect, Experiment, codemod

one_more_block = Experiment(
    hypothesis="Five minutes are enough to train a larger model: what it learns from a "
    "step is worth more than the steps that it loses.",
    change='Known as "depth 9, aspect ratio 57", as if the width stayed 512. Really one '
    "block and one head more: on a GPU, depth 9 and dim 640 in 5 heads, since 9 * 57 "
    "channels, and 9 * 64 just so, round up to 5 heads of 128.",
    expect=Expect(delta_bpb=-0.0043, sd=0.002),
    tags=("depth_9", "size"),
)

small_x0 = Experiment(
    hypothesis="The embedding that every block adds again drowns what blocks wrote.",
    change="Halve the initial weight of the embedding in each block, to 0.05.",
    codemod=codemod("constants.ScaleConstant", name="X0_SCALAR", factor=0.5),
    expect=Expect(delta_bpb=-0.0008, sd=0.001),
    tags=("residual",),
)

smaller_x0 = Experiment(
    hypothesis="Below half of its initial weight the embedding is missed in the later "
    "blocks: harm. A cliff between 0.05 and 0.04 would be strange, and noise is likelier.",
    change="Start the weight of the embedding in each block at 0.04 instead of 0.1.",
    codemod=codemod("constants.ScaleConstant", name="X0_SCALAR", factor=0.4),
    expect=Expect(delta_bpb=0.0037, sd=0.004),
    tags=("residual", "harm", "disputed"),
)

small_init = Experiment(
    hypothesis="Smaller matrices are turned faster by updates of a fixed size, so "
    "that less of their random start is left.",
    change="Scale the initial values of all matrices of the blocks, and of the value "
    "embeddings, by 0.8. Projections that start at zero stay at zero.",
    codemod=codemod("constants.ScaleConstant", name="MATRIX_BOUND", factor=0.8),
    expect=Expect(delta_bpb=-0.0004, sd=0.0006),
    tags=("init",),
)

weight_tying = Experiment(
    hypothesis="What a token is as an input and what it is as a target differ, and with "
    "rows of size 1 the first logits are far too large: harm.",
    change="Let lm_head be the matrix of the embedding: one parameter, which keeps the "
    "embedding's initial values (std 1, not the 0.001 of lm_head), its learning rate "
    "and its dtype.",
    # Which of the two initial values the published run kept is unknown, hence the sd.
    expect=Expect(delta_bpb=2.24, sd=1.0),
    tags=("embedding", "harm"),
)

one_kv_head = Experiment(
    hypothesis="One key and value head for all queries is too narrow: harm.",
    change="Share one key and value head among all query heads, and make the value "
    "embeddings as narrow as that head.",
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

all_long = Experiment(
    hypothesis="Three blocks in four that see half of the context lose more than their "
    "windows save: in 60 s, with another kernel, the whole context was better by far.",
    change="Let all blocks see the whole context.",
    codemod=codemod("constants.SetConstant", name="WINDOW_PATTERN", value="L"),
    tags=("window", "speed"),
)
