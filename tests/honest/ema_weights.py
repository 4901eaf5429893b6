"""Return a running mean of the weights of all steps."""

import torch
from torch import nn

from core.training.train import (
    MICRO_BATCH_ROWS,
    SEQUENCE_LEN,
    TOTAL_BATCH_TOKENS,
    apply_schedule,
    build_model,
    build_optimizers,
    compiled,
    training_loss,
)

EMA_DECAY = 0.95


def train(run) -> nn.Module:
    model = build_model(run)
    optimizers = build_optimizers(model)
    loss_of = compiled(training_loss, run.device)
    weights = list(model.parameters())
    means = [weight.detach().clone() for weight in weights]

    for step, tokens in enumerate(run.batches(TOTAL_BATCH_TOKENS // SEQUENCE_LEN)):
        apply_schedule(optimizers, step, run.progress)
        step_loss = torch.zeros((), device=run.device)
        for rows in tokens.split(MICRO_BATCH_ROWS):
            loss = loss_of(model, rows) * (rows.size(0) / tokens.size(0))
            loss.backward()
            step_loss += loss.detach()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        decay = min(EMA_DECAY, step / (step + 1))
        torch._foreach_lerp_(means, [w.detach() for w in weights], 1 - decay)
        run.log(step_loss)
    with torch.no_grad():
        torch._foreach_copy_(weights, means)
    return model
