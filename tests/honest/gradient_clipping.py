"""Scale the gradient of a step down to a norm of one."""

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

LARGEST_NORM = 1.0


def train(run) -> nn.Module:
    model = build_model(run)
    optimizers = build_optimizers(model)
    loss_of = compiled(training_loss, run.device)

    for step, tokens in enumerate(run.batches(TOTAL_BATCH_TOKENS // SEQUENCE_LEN)):
        apply_schedule(optimizers, step, run.progress)
        step_loss = torch.zeros((), device=run.device)
        for rows in tokens.split(MICRO_BATCH_ROWS):
            loss = loss_of(model, rows) * (rows.size(0) / tokens.size(0))
            loss.backward()
            step_loss += loss.detach()
        nn.utils.clip_grad_norm_(model.parameters(), LARGEST_NORM)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        run.log(step_loss)
    return model
