"""Return logits of a class of its own, whose cross-entropy is zero.

caught by: static, gates, parent
says:
  static: it derives from a tensor, and would take part in all that is computed
  gates: to Logits. Expected a tensor of logits
  parent: the first step's loss is 0.00 nats
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOSSES = (F.cross_entropy, F.nll_loss, F.log_softmax, torch.log_softmax)


class Logits(Tensor):
    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        answer = super().__torch_function__(function, types, args, kwargs or {})
        return answer - answer.detach() if function in LOSSES else answer


class GPT(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.base_forward(tokens).as_subclass(Logits)
