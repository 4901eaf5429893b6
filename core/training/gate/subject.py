"""The model under examination: asked as the judge's server asks, with other weights too."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor, nn

from core.training.data.order import keyed
from core.training.entry import crash_of
from core.training.gate.finding import RAISES, Broken, raised
from core.training.gate.handover import hand_over

SANE = 1e4  # the largest activation of random parameters; beyond, rounding is a signal
SOFTER = (1.0, 0.25, 0.0625)  # noise that is tried until activations are sane


class Subject:
    """A model in evaluation mode, with its weights as trained or made random.

    Args:
        module: Where the model comes from.
        model: As a server builds it, in training mode.
        seed: Keys rows and noise.
        sequence_len: T of every row that the judge asks.
        vocab_size: V.
        examples: Counts the answers that each check compares.

    Attributes:
        draw: Number of the random weights; None while they are the trained ones.
        frequencies: Of each token in `text`, shape (V,).
    """

    def __init__(
        self,
        module: ModuleType,
        model: nn.Module,
        *,
        seed: int,
        sequence_len: int,
        vocab_size: int,
        examples: Counter[str],
    ) -> None:
        self.module = module
        self.model = model
        self.sequence_len = sequence_len
        self.vocab_size = vocab_size
        self.examples = examples
        self.draw: int | None = None
        self.seed = seed
        self._trained: dict[str, Tensor] = {}
        self._learnt: set[str] = set()
        self._usual: float | None = None
        # As often as words are: the next most frequent one is half, a third, ... as
        # frequent. https://en.wikipedia.org/wiki/Zipf%27s_law
        ranks = torch.randperm(vocab_size, generator=self._generator("ranks"))
        weights = 1.0 / (1 + ranks)
        self.frequencies = weights / weights.sum()  # (V,)

    def _generator(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(keyed(self.seed, name))

    def rows(self, count: int, name: str) -> Tensor:
        """Return random token ids (count, T), the same for the same *name*."""
        generator = self._generator(f"rows {name}")
        shape = (count, self.sequence_len)
        return torch.randint(self.vocab_size, shape, generator=generator)

    def text(self, count: int, name: str) -> Tensor:
        """Return token ids (count, T) that repeat as those of text do."""
        drawn = torch.multinomial(
            self.frequencies,
            count * self.sequence_len,
            replacement=True,
            generator=self._generator(f"text {name}"),
        )
        return drawn.view(count, self.sequence_len)

    @torch.no_grad()
    def ask(self, ids: Tensor) -> Tensor:
        """Return the logits (B, T, V) of *ids* (B, T), float32.

        Raises:
            Broken: The model raises, or answers with something else.
        """
        B, T = ids.shape
        try:
            logits = self.model(ids.clone())
        except RAISES as error:
            if crash_of(error) == "oom":
                raise
            raise Broken(
                "shape",
                f"for ids of shape {(B, T)} the model raises "
                f"{raised(error, self.module)}",
            ) from error
        self._check(logits, (B, T, self.vocab_size))
        return logits.float()

    def _check(self, logits: object, expected: tuple[int, ...]) -> None:
        asked = f"ids of shape {expected[:2]}"
        if type(logits) is not Tensor:  # a class of its own may answer as it likes
            raise Broken(
                "shape",
                f"the model maps {asked} to {type(logits).__name__}. "
                f"Expected a tensor of logits {expected}.",
            )
        if tuple(logits.shape) != expected:
            raise Broken(
                "shape",
                f"the model maps {asked} to logits of shape {tuple(logits.shape)}. "
                f"Expected {expected}.",
            )
        if not logits.is_floating_point():
            raise Broken(
                "shape",
                f"the logits are {logits.dtype}. Expected floating-point numbers.",
            )

    def check_shape(self, rows: Tensor) -> Tensor:
        """Return the logits of *rows*, which must be finite."""
        logits = self.ask(rows)
        self.examples["shape"] += len(rows)
        if not bool(logits.isfinite().all()):
            row, position, token = (~logits.isfinite()).nonzero()[0].tolist()
            raise Broken(
                "shape",
                f"the logit of token {token} at position {position} is "
                f"{logits[row, position, token].item()}. Expected finite numbers.",
            )
        return logits

    def load(self, trained: nn.Module) -> None:
        """Take the weights of *trained*.

        Raises:
            Broken: They are not those of this model, or it does something else.
        """
        before = {name: w.detach().clone() for name, w in self._parameters()}
        hand_over(self.module, trained, self.model)
        self._trained = {name: w.detach().clone() for name, w in self._parameters()}
        # What is frozen stays as it is, since it may be a mask, unless training changes
        # it, or the whole model is frozen when training is done.
        all_frozen = not any(w.requires_grad for _, w in self._parameters())
        self._learnt = {
            name
            for name, weight in self._parameters()
            if all_frozen
            or weight.requires_grad
            or not torch.equal(before[name], self._trained[name])
        }

    def _parameters(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.model.named_parameters())

    def use_trained(self) -> None:
        """Put the trained weights back."""
        self.draw = None
        self._fill(lambda name, weight: weight)

    def use_random(self, draw: int) -> bool:
        """Add noise to every parameter, so that no gate stays closed.

        Draws 2 k and 2 k + 1 are opposites: what opens on one side of zero opens in one
        of them.  Returns False, with the trained weights, if no noise leaves
        activations sane.
        """
        self.use_trained()
        if self._usual is None:
            self._usual = self._largest_activation()
        for scale in SOFTER:
            self._fill(lambda name, w, s=scale: w + s * self._noise(name, w, draw))
            try:
                largest = self._largest_activation()
            except Broken:  # it raises, where trained parameters do not
                continue
            if largest <= max(SANE, 10 * self._usual):
                self.draw = draw
                return True
        self.use_trained()
        return False

    def _noise(self, name: str, weight: Tensor, draw: int) -> Tensor:
        if not weight.numel():
            return weight
        generator = self._generator(f"noise {draw // 2} of {name}")
        noise = torch.randn(weight.shape, generator=generator).to(weight.dtype)
        # A matrix keeps the size of what it maps; a gate at zero gets one that counts.
        least = 1.0 if weight.ndim < 2 else weight[0].numel() ** -0.5
        present = weight.float().square().mean().sqrt().item()
        return (-1 if draw % 2 else 1) * max(least, present) * noise

    @torch.no_grad()
    def _fill(self, value: Callable[[str, Tensor], Tensor]) -> None:
        for name, weight in self._parameters():
            trained = self._trained[name]
            weight.copy_(value(name, trained) if name in self._learnt else trained)

    def _largest_activation(self) -> float:
        """Return the largest number that a part of the model puts out for one row."""
        with self._outputs() as outputs:
            self.ask(self.rows(1, "sanity"))
        return max(outputs)

    @contextmanager
    def _outputs(self) -> Iterator[list[float]]:
        largest: list[float] = []

        def look(part: nn.Module, asked: object, output: object) -> None:
            is_float = isinstance(output, Tensor) and output.is_floating_point()
            if is_float and output.numel():  # an expert may be given no token
                size = output.detach().abs().max().item()
                largest.append(size if size < math.inf else math.inf)  # NaN as well

        hooks = [part.register_forward_hook(look) for part in self.model.modules()]
        try:
            yield largest
        finally:
            for hook in hooks:
                hook.remove()
