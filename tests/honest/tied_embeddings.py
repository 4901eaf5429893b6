"""Use the embedding as the output matrix."""

import torch
from torch import nn

from core.training.train import (
    ADAM_BETA1,
    ADAM_BETA2,
    ADAM_EPS,
    ADAM_LR_SCALE,
    MUON_BETA2,
    MUON_LR,
    MUON_MOMENTUM_START,
    MUON_WEIGHT_DECAY,
    RESIDUAL_SCALAR_LR,
    VALUE_EMBEDDING_LR,
    X0_SCALAR_LR,
    Muon,
)

EMBEDDING_STD = 0.02
EMBEDDING_LR = 0.03


class GPT(nn.Module):
    def __init__(self) -> None:
        self.base___init__()
        self.lm_head.weight = self.embedding.weight


def build_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    value_embeddings = list(model.value_embeddings.parameters())
    rates = (
        ("embedding", [model.embedding.weight], EMBEDDING_LR * ADAM_LR_SCALE),
        ("value_embedding", value_embeddings, VALUE_EMBEDDING_LR * ADAM_LR_SCALE),
        ("residual_scalars", [model.residual_scalars], RESIDUAL_SCALAR_LR),
        ("x0_scalars", [model.x0_scalars], X0_SCALAR_LR),
    )
    groups = [
        dict(name=name, params=params, lr=lr, peak_lr=lr) for name, params, lr in rates
    ]
    matrices = dict(
        name="matrices",
        params=list(model.blocks.parameters()),
        lr=MUON_LR,
        peak_lr=MUON_LR,
        momentum=MUON_MOMENTUM_START,
        beta2=MUON_BETA2,
        weight_decay=MUON_WEIGHT_DECAY,
    )
    adamw = torch.optim.AdamW(
        groups,
        betas=(ADAM_BETA1, ADAM_BETA2),
        eps=ADAM_EPS,
        weight_decay=0.0,
        fused=True,
    )
    return [adamw, Muon([matrices], model.lm_head.weight.device)]
