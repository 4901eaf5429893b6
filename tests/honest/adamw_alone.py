"""Step all parameters, matrices of blocks included, by AdamW."""

import torch
from torch import nn

from core.training.train import (
    ADAM_BETA1,
    ADAM_BETA2,
    ADAM_EPS,
    ADAM_LR_SCALE,
    EMBEDDING_LR,
    LM_HEAD_LR,
    X0_SCALAR_LR,
)

MATRIX_LR = 0.003
WEIGHT_DECAY = 0.01


def build_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    embeddings = [
        *model.embedding.parameters(),
        *model.value_embeddings.parameters(),
    ]
    scalars = [model.residual_scalars, model.x0_scalars]
    rates = (
        ("embeddings", embeddings, EMBEDDING_LR * ADAM_LR_SCALE, 0.0),
        ("lm_head", [*model.lm_head.parameters()], LM_HEAD_LR * ADAM_LR_SCALE, 0.0),
        ("scalars", scalars, X0_SCALAR_LR / 100, 0.0),
        ("blocks", [*model.blocks.parameters()], MATRIX_LR, WEIGHT_DECAY),
    )
    groups = [
        dict(name=name, params=params, lr=lr, peak_lr=lr, weight_decay=decay)
        for name, params, lr, decay in rates
    ]
    betas = ADAM_BETA1, ADAM_BETA2
    return [torch.optim.AdamW(groups, betas=betas, eps=ADAM_EPS, fused=True)]
