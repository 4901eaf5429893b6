"""Batch size, learning rates and weight decay."""

from core.spec import Expect, Experiment, codemod

half_batch = Experiment(
    hypothesis="At a fixed time budget, twice the steps are worth more than gradients "
    "that are less noisy.",
    change="Halve the tokens of a step, and make it one micro-batch: on a GPU that has "
    "as many rows as before, so that steps accumulate no gradients any more.",
    codemod=(
        codemod("constants.ScaleConstant", name="TOTAL_BATCH_TOKENS", factor="1/2"),
        codemod(
            "constants.SetConstant",
            name="MICRO_BATCH_ROWS",
            expression="TOTAL_BATCH_TOKENS // SEQUENCE_LEN",
        ),
    ),
    # The mean of two sessions: -0.0119 and -0.0072.
    expect=Expect(delta_bpb=-0.0096, sd=0.003),
    tags=("batch",),
)

embedding_lr = Experiment(
    hypothesis="A row of the embeddings is updated only where its token occurs, and "
    "takes larger steps than it is given.",
    change="Raise the learning rate of the embeddings by a third, that of the value "
    "embeddings with it.",
    codemod=codemod("constants.ScaleConstant", name="EMBEDDING_LR", factor="4/3"),
    # It was worse on smaller GPUs, hence the sd.
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

no_cautious_decay = Experiment(
    hypothesis="Weight decay that works against the update takes back what was just "
    "learned: harm.",
    change="Decay every weight of the blocks' matrices, not only those that the update "
    "shrinks too. The decay itself stays as it is.",
    codemod=(
        codemod(
            "statements.DeleteStatement",
            function="muon_update",
            statement="shrinks = ...",
        ),
        codemod(
            "statements.ReplaceStatement",
            function="muon_update",
            statement="weights.sub_(...)",
            source="weights.sub_(lr * (update + weight_decay * weights))",
        ),
    ),
    expect=Expect(delta_bpb=0.0055, sd=0.002),
    tags=("weight_decay", "harm"),
)
