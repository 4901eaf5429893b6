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
    expect=Expect(delta_bpb=-0.0008, sd=0.0008),
    tags=("learning_rate",),
)
