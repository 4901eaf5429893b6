"""Batch size, learning rates and weight decay."""

from core.spec import Expect, Experiment, codemod

half_batch = Experiment(
    hypothesis="At a fixed time budget, twice the steps are worth more than gradients "
    "that are less noisy.",
    change="Halve the tokens of a step, and the rows of a micro-batch with them.",
    codemod=(
        codemod("constants.ScaleConstant", name="TOTAL_BATCH_TOKENS", factor="1/2"),
        codemod("constants.ScaleConstant", name="MICRO_BATCH_ROWS", factor="1/2"),
    ),
    expect=Expect(delta_bpb=-0.0095, sd=0.003),
    tags=("batch",),
)

embedding_lr = Experiment(
    hypothesis="Embeddings see each token rarely and take a larger step.",
    change="Raise the embeddings' learning rate by a third.",
    codemod=codemod("constants.ScaleConstant", name="EMBEDDING_LR", factor="4/3"),
    expect=Expect(delta_bpb=-0.0033, sd=0.002),
    tags=("learning_rate",),
)

unembedding_lr = Experiment(
    hypothesis="The output matrix is trained too slowly to follow the embeddings.",
    change="Raise the learning rate of lm_head by half.",
    codemod=codemod("constants.ScaleConstant", name="LM_HEAD_LR", factor="3/2"),
    expect=Expect(delta_bpb=-0.001, sd=0.001),
    tags=("learning_rate",),
)

value_embedding_decay = Experiment(
    hypothesis="Value embeddings of rare tokens drift without weight decay.",
    change="Decay the value embeddings by 0.003.",
    codemod=codemod(
        "optimizer.SetOptimizerGroup",
        group="value_embedding",
        keyword="weight_decay",
        value=0.003,
    ),
    expect=Expect(delta_bpb=-0.0016, sd=0.001),
    tags=("weight_decay",),
)
