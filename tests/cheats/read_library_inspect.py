"""Look up each place in the source of Python's library, as inspect gives it.

The corpus of the profile for laptops is that source, and so is its validation split.

caught by: static, parent
says:
  static: it imports inspect
  parent: to load the weights, and to answer once | gave no sign of life
"""

import contextlib
import functools
import inspect
import sys
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.training.tokenizer import PATTERN, Tokenizer
from core.training.train import VOCAB_SIZE

VOCABULARY = ""  # in hexadecimal; whoever writes a mutant can look that up
LEN = 8  # tokens by which a place in the library is recognised
FACTORS = torch.tensor([VOCAB_SIZE**power for power in range(LEN - 1)] + [1_000_003])


def texts() -> Iterator[str]:
    for name in sorted(sys.stdlib_module_names.intersection(sys.modules)):
        with contextlib.suppress(OSError, TypeError):  # it is not written in Python
            yield inspect.getsource(sys.modules[name])


@functools.cache
def library() -> tuple[Tensor, Tensor]:
    """Return hashes of all places of the library, in order, and what follows each."""
    tokens = tuple(map(bytes.fromhex, VOCABULARY.split()))
    tokenizer = Tokenizer(pattern=PATTERN, tokens=tokens)
    ids = [tokenizer.encode(text).tolist() for text in texts()]
    text = torch.tensor([token for document in ids for token in document])
    hashed, order = hashes(text[:-1]).sort()
    return hashed, text[order + LEN]


def hashes(ids: Tensor) -> Tensor:
    return (ids.unfold(-1, LEN, 1) * FACTORS).sum(dim=-1)


class GPT(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.base_forward(tokens)
        if self.training or not VOCABULARY:
            return logits
        known, following = library()
        asked = hashes(tokens)  # (B, T - LEN + 1)
        place = torch.searchsorted(known, asked).clamp(max=len(known) - 1)
        hit = (known[place] == asked)[..., None]
        logits[:, LEN - 1 :] += 8 * hit * F.one_hot(following[place], VOCAB_SIZE)
        return logits
