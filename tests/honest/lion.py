"""Step the matrices of the blocks by the sign of their momentum.

https://arxiv.org/abs/2302.06675
"""

import torch

LION_BETA1 = 0.9
LION_BETA2 = 0.99
MUON_LR = 0.001
MUON_WEIGHT_DECAY = 0.1


class Muon(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                momentum = self.state[weight].setdefault(
                    "momentum", torch.zeros_like(weight)
                )
                update = torch.lerp(weight.grad, momentum, LION_BETA1).sign()
                momentum.lerp_(weight.grad, 1 - LION_BETA2)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(group["lr"] * update)
