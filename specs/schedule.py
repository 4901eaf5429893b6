"""How the learning rate moves over the budget."""

from core.spec import Expect, Experiment, codemod

final_lr = Experiment(
    hypothesis="The last steps still learn if the rate does not reach zero.",
    change="End the warm-down at 5 % of the peak learning rate.",
    codemod=codemod("constants.SetConstant", name="FINAL_LR_SHARE", value=0.05),
    expect=Expect(delta_bpb=-0.0006, sd=0.0006),
    tags=("learning_rate",),
)

long_warmdown = Experiment(
    hypothesis="A longer warm-down averages more of the noise away.",
    change="Warm down over 70 % of the budget instead of 50 %.",
    codemod=codemod("constants.ScaleConstant", name="WARMDOWN_SHARE", factor="7/5"),
    # Between -0.0006 and -0.0011; on other hardware the sign was another.
    expect=Expect(delta_bpb=-0.0009, sd=0.0015),
    tags=("learning_rate",),
)

warmup = Experiment(
    hypothesis="The first steps, taken before the moments mean anything, are better "
    "taken small. It helped in one session, harmed in another, and so may be noise.",
    change="Warm the learning rate up over the first 5 % of the budget.",
    codemod=codemod("constants.SetConstant", name="WARMUP_SHARE", value=0.05),
    # The mean of -0.0022 and +0.0008, as uncertain as these two disagree.
    expect=Expect(delta_bpb=-0.0007, sd=0.002),
    tags=("learning_rate", "disputed"),
)
