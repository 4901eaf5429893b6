"""Ask what an honest model answers alike: does it see the future, the company, the past?

A *probe* is a scored row with its tokens from some position on altered, asked of the
server that was not scored on it, in other company and in another place.  Whatever the
model is, positions before the alteration must answer as they did:

* a model that looks ahead answers them otherwise, since the future is another;
* a model that looks at other rows, since the company is another;
* a model that learned or remembered while it was asked, since that server was not asked
  the same.

Half of the argument is that nothing tells probes from scoring: both servers get both, in
random order, with rows and alterations drawn after training.

A kernel whose rounding depends on the company may flip a choice between two experts, now
and then, wherever the row is altered; a leak shows just before the alterations, and to
the advantage of what was scored.  So what differs is counted there and elsewhere, and an
exact test says whether that is chance.  What is too rare to count is asked again.
https://github.com/openai/parameter-golf/issues/1017 states the rules.
"""

import math
from collections.abc import Sequence

import attrs
import numpy as np
import torch
from torch import Tensor

PROBES_A_ROW = 1 / 4  # the cost of the audit, in evaluations
SHARE_OF_TOKENS = 7 / 8  # of the probes: one token altered; the others: half each
# What rounding may do to one answer, in nats: float32's, and bfloat16's (0.055 was the
# largest of 65,536 differences between a compiled model and an eager one).
ROUNDING_NATS = {"cpu": 1e-3, "cuda": 0.1}
LOUD_SHARE = 0.05  # of positions whose answer depends on company; routing has less
# How far two answers may differ in the mean, in nats a token: what luck can bring a score.
UNSTEADY_NATS = 0.02  # in all; twice what 0.055 as the largest lets one expect
UNSTEADY_LOUD_NATS = 0.005  # beyond rounding
UNSTEADY_ROW_NATS = 0.005  # of rows as wholes, which rounding hardly moves
ROW_SDS = 3.0  # of a row's sum, that flips at single positions may bring
LOUDER = (1, 10, 1000)  # times rounding: small noise must not hide a large gain
WINDOWS = (1, 8)  # positions before an alteration: who skips the next token sees others
CHANCE = 1e-5  # of an honest surplus, for each of the seven counts
CLIP_NATS = 1.0  # a gain, for its mean, and to rounding: huge ones widen the error
GAIN_SDS = 6.0  # standard errors that are no chance: 1 in 10^8
LEAST_PROBES = 30  # for a mean to have a standard error
COPIES = 4  # of a suspect, in each server


@attrs.frozen(kw_only=True)
class Probe:
    """A row as it is asked.

    Attributes:
        row: Which.
        changed: First position that is altered; T if none is.
        donor: Another row, that gives the tokens.
        suffix: All tokens from there on are the donor's, and not one alone.
    """

    row: int
    changed: int
    donor: int = 0
    suffix: bool = False

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """Return the ids to ask, (T,), made from *rows*, (N, T + 1)."""
        ids = rows[self.row, :-1].copy()
        at, donated = self.changed, rows[self.donor, :-1]
        if self.suffix:
            ids[at:] = donated[at:]
        elif at < len(ids):
            # Of the donor the next that is another token; else nothing is altered.
            others = np.flatnonzero(np.roll(donated, -at) != ids[at])
            ids[at] = np.roll(donated, -at)[others[0]] if len(others) else ids[at]
        return ids


@attrs.frozen(kw_only=True)
class Audit:
    """What the probes showed.

    Attributes:
        probes: How many rows were asked.
        positions: Answers that had to agree.
        worst_nats: Largest difference.
        mean_nats: Mean absolute difference far from any alteration.
        loud_share: Share of the positions there that differ beyond rounding.
        gain_nats: Mean of what the claims gained, just before the alterations, on what
            the same positions answered without their future.
        seed: Of the draw.
        breach: What is wrong; empty if nothing is.
    """

    probes: int
    positions: int
    worst_nats: float
    mean_nats: float
    loud_share: float
    gain_nats: float
    seed: int
    breach: str = ""


def draw(
    home: np.ndarray,
    sequence_len: int,
    *,
    batch: int,
    chances: np.random.Generator,
    probes_a_row: float = PROBES_A_ROW,
) -> list[list[Probe]]:
    """Return the probes that each server is asked.

    Args:
        home: For each row, which of the two servers is scored on it.
        sequence_len: T.
        batch: Rows of a question; probes fill up the last one, since it costs the same.
        chances: To draw from.
        probes_a_row: For a benchmark; 0 for none at all.
    """
    counts = []
    for place in range(2):
        others = int((home != place).sum())
        scored = len(home) - others
        count = int(others * probes_a_row)
        fill = -(scored + count) % batch if probes_a_row else 0
        counts.append(count + fill if others else 0)
    total = sum(counts)
    alterable = sequence_len - 1  # the first token has no answer before it
    tokens = min(alterable, round(total * SHARE_OF_TOKENS))
    suffixes = (total - tokens + 1) // 2 if alterable else 0
    at = np.concatenate([
        chances.permutation(alterable)[:tokens] + 1,
        chances.integers(1, alterable + 1, size=suffixes) if alterable else [],
        np.full(total - tokens - suffixes, sequence_len),
    ]).astype(int)
    kinds = chances.permutation(total)
    drawn: list[list[Probe]] = []
    for place, count in enumerate(counts):
        others = np.flatnonzero(home != place)
        rows = np.resize(chances.permutation(others), count)
        drawn.append([
            Probe(
                row=int(row),
                changed=int(at[kind]),
                donor=int(chances.integers(len(home))),
                suffix=tokens <= kind < tokens + suffixes,
            )
            for row, kind in zip(rows, kinds[:count], strict=True)
        ])
        kinds = kinds[count:]
    return drawn


@attrs.frozen(kw_only=True, eq=False)
class Comparison:
    """What probes answered, beside what was claimed.

    Attributes:
        probes: They.
        gains: What each claim is lower than the probe's answer, (R, T), in nats.
        before: The positions that must agree, (R, T).
        loud: The ones of them that do not, beyond rounding.
        rounding_nats: How much that is.
    """

    probes: Sequence[Probe]
    gains: Tensor
    before: Tensor
    loud: Tensor
    rounding_nats: float

    @classmethod
    def of(
        cls, probes: Sequence[Probe], claims: Tensor, answers: Tensor
    ) -> "Comparison":
        """Compare *answers*, (R, T), with the *claims*, (N, T), of the probes' rows."""
        device = claims.device
        pairs = [(probe.row, probe.changed) for probe in probes]
        asked = torch.tensor(pairs, dtype=torch.int64, device=device).reshape(-1, 2)
        rows, changed = asked.unbind(1)
        position = torch.arange(claims.size(1), device=device)
        before = position < changed[:, None]
        gains = torch.where(before, answers - claims[rows], 0.0)
        rounding_nats = ROUNDING_NATS[device.type]
        # What is not finite is not rounding either.
        loud = ~(gains.abs() <= rounding_nats)
        return cls(
            probes=probes,
            gains=gains,
            before=before,
            loud=loud,
            rounding_nats=rounding_nats,
        )

    def suspects(self, most: int) -> list[tuple[int, int]]:
        """Return the loudest position of the loudest probes: indices (probe, position)."""
        largest, position = self.gains.abs().nan_to_num(math.inf).max(dim=1)
        loudest = largest.argsort(descending=True)[:most].tolist()
        return [
            (probe, int(position[probe]))
            for probe in loudest
            if largest[probe] > self.rounding_nats
        ]

    def odd(self) -> str:
        """Return that an answer is no number; empty if all are."""
        if bool(self.gains.isfinite().all()):
            return ""
        return "the answer to a probe is not finite, and what was scored is."

    def company(self) -> str:
        """Return what is wrong far from any alteration; empty if nothing is."""
        far, share = self._far(), self.loud_share()
        of_row = far.sum(dim=1).double()
        positions = max(1.0, of_row.sum().item())
        loud = (self.loud & far).sum(dim=1)
        # A flip can last for its row, so rows are what is counted.
        error = (loud - share * of_row).square().sum().sqrt().item() / positions
        by_chance = math.sqrt(LOUD_SHARE / positions)
        if share <= LOUD_SHARE + GAIN_SDS * max(error, by_chance):
            return ""
        worst = self.gains[far].abs().max().item()
        return (
            f"{share:.0%} of the positions far from any alteration answer otherwise "
            f"beside other rows, by up to {worst:.3g} nats: a row's answer depends on "
            "its company, on its future, or on what was asked before."
        )

    def unsteady(self) -> str:
        """Return what is wrong with how far answers differ; empty if nothing is.

        A model that is lucky in a row, or at a position, now and then, is so for claims
        and for probes alike: where does not tell it, how much does.
        """
        far, each = self._far(), self.mean_nats()
        gains, positions = (far * self.gains).double(), max(1, int(far.sum()))
        loud = (gains * self.loud).abs().sum().item() / positions
        by_chance = ROW_SDS * gains.square().sum(dim=1).sqrt()  # of any sign
        beyond = (gains.sum(dim=1).abs() - by_chance).clamp(min=0.0)
        of_rows = beyond.sum().item() / positions
        if (
            each <= UNSTEADY_NATS
            and loud <= UNSTEADY_LOUD_NATS
            and of_rows <= UNSTEADY_ROW_NATS
        ):
            return ""
        return (
            f"far from any alteration, two answers differ by {each:.2g} nats a token "
            f"({loud:.2g} beyond rounding, {of_rows:.2g} by whole rows): an answer "
            "depends on chance, on its company, on its future, or on what was asked "
            "before."
        )

    def mean_nats(self) -> float:
        """Return the mean absolute difference far from any alteration."""
        far = self._far()
        return self.gains[far].double().abs().sum().item() / max(1, int(far.sum()))

    def loud_share(self) -> float:
        """Return the share of the positions there that differ beyond rounding."""
        far = self._far()
        return int((self.loud & far).sum()) / max(1, int(far.sum()))

    def _far(self) -> Tensor:
        """Return the positions that no window before an alteration holds, (R, T)."""
        first = self.before.sum(dim=1, keepdim=True)  # (R, 1), that differs
        position = torch.arange(self.gains.size(1), device=self.gains.device)
        near = max(WINDOWS) * self._altered()[:, None]
        return position < first - near

    def surplus(self) -> str:
        """Return what is wrong with where claims gained; empty if nothing is."""
        for louder in LOUDER:
            gained = self.gains > louder * self.rounding_nats
            for window in WINDOWS:
                if self._is_surplus(*self._counts(gained, window)):
                    return self._example(gained, window)
        rows, altered = self.loud.any(dim=1), self._altered()
        n, k = int(altered.sum()), int((rows & altered).sum())
        if not self._is_surplus(k, n, int(rows.sum()), len(rows)):
            return ""
        return (
            f"{k} of {n} rows answer otherwise before their first token that was "
            f"altered, and {int(rows.sum()) - k} of {len(rows) - n} where none was: the "
            "model looks ahead."
        )

    def _altered(self) -> Tensor:
        """Return which probes are altered, (R,)."""
        T = self.gains.size(1)
        changed = [probe.changed < T for probe in self.probes]
        return torch.tensor(changed, dtype=torch.bool, device=self.gains.device)

    def _counts(self, gained: Tensor, window: int) -> tuple[int, int, int, int]:
        """Count windows with a gain: before an alteration, of how many; in all."""
        length = self.before.sum(dim=1, keepdim=True)  # (R, 1), the first that differs
        position = torch.arange(gained.size(1), device=gained.device)
        # Backwards from the alteration: window 0 lies just before it.
        index = ((length - 1 - position) // window).clamp(min=0)
        windows = torch.zeros_like(gained, dtype=torch.int64)
        windows.scatter_add_(1, index, (gained & self.before).long())
        altered = self._altered()
        total = int(((length + window - 1) // window).sum())
        just_before = windows[altered, 0] > 0
        return int(just_before.sum()), len(just_before), int((windows > 0).sum()), total

    @staticmethod
    def _is_surplus(here: int, of_here: int, anywhere: int, of_all: int) -> bool:
        """Say whether more is *here* than chance brings, by Fisher's exact test."""
        return bool(here) and _tail(here, of_here, anywhere, of_all) < CHANCE

    def _example(self, gained: Tensor, window: int) -> str:
        """Return how often claims gained before alterations, with the clearest case."""
        here, of_here, anywhere, of_all = self._counts(gained, window)
        T = self.gains.size(1)
        gain, index, position = max(
            (float(self.gains[i, at]), i, at)
            for i, probe in enumerate(self.probes)
            if probe.changed < T
            for at in range(max(0, probe.changed - window), probe.changed)
        )
        probe = self.probes[index]
        return (
            f"with {_alteration(probe)} replaced, position {position} answers "
            f"{gain:.3g} nats worse; so do {here} of {of_here} probes just before their "
            f"alteration, and {anywhere - here} of {of_all - of_here} elsewhere: the "
            "model looks ahead."
        )

    def mean_gain(self) -> str:
        """Return what is wrong with the altered rows as a whole; empty if nothing is."""
        if len(self.just_before()) < LEAST_PROBES:
            return ""
        for clip_nats in (self.rounding_nats, CLIP_NATS):
            gains = self.just_before().clamp(-clip_nats, clip_nats)
            mean, error = (
                gains.mean().item(),
                gains.std().item() / math.sqrt(len(gains)),
            )
            if mean > GAIN_SDS * error and mean > self.rounding_nats / 1000:
                return (
                    f"without their future, {len(gains)} positions answer {mean:.3g} "
                    f"nats worse than was claimed (standard error {error:.2g}): the "
                    "model looks ahead."
                )
        return ""

    def just_before(self) -> Tensor:
        """Return the gains of the positions just before the alterations."""
        T = self.gains.size(1)
        pairs = [
            (index, probe.changed - 1)
            for index, probe in enumerate(self.probes)
            if probe.changed < T
        ]
        indices = torch.tensor(pairs, dtype=torch.int64, device=self.gains.device)
        return self.gains[tuple(indices.reshape(-1, 2).unbind(1))].double()

    def audited(self, seed: int, breach: str) -> Audit:
        """Return the summary."""
        before = self.just_before()
        return Audit(
            probes=len(self.probes),
            positions=int(self.before.sum()),
            worst_nats=_finite(self.gains.abs()).max().item() if self.probes else 0.0,
            mean_nats=_finite(torch.tensor(self.mean_nats())).item(),
            loud_share=self.loud_share(),
            gain_nats=_finite(before).mean().item() if len(before) else 0.0,
            seed=seed,
            breach=breach,
        )


def _finite(nats: Tensor) -> Tensor:
    """Return *nats* with 0 for what is not finite, which is a breach by itself."""
    return nats.nan_to_num(0.0, 0.0, 0.0)


def confirmed(probe: Probe, position: int, unaltered: Tensor, altered: Tensor) -> str:
    """Return what is wrong with a suspect that was asked again; empty if it was chance.

    Args:
        probe: The suspect.
        position: Where its answer differed.
        unaltered: Answers of copies of the row there, in nats, (servers, copies).
        altered: Answers of copies of the probe, of the same shape.
    """
    rounding_nats = ROUNDING_NATS[unaltered.device.type]
    if not bool(unaltered.isfinite().all() and altered.isfinite().all()):
        return "the answer to a probe is not finite, and what was scored is."
    # One that agrees is enough: a suspect is one that flipped, and may often do so.  What
    # hides in chance, the counts of first answers have shown.
    first, second = unaltered
    if bool((first[:, None] - second).abs().min() > rounding_nats):
        return (
            f"position {position} of a row answers {first.mean().item():.3f} nats in one "
            f"process and {second.mean().item():.3f} in another with the same weights: "
            "the model remembers what it was asked."
        )
    apart = (unaltered.flatten()[:, None] - altered.flatten()).abs().min()
    if not bool(apart > rounding_nats):
        return ""
    return (
        f"with {_alteration(probe)} replaced, position {position} answers "
        f"{altered.mean().item():.3f} nats in place of {unaltered.mean().item():.3f}: "
        "the model looks ahead."
    )


def _alteration(probe: Probe) -> str:
    if probe.suffix:
        return f"the tokens from position {probe.changed} on"
    return f"the token at position {probe.changed}"


def _tail(here: int, of_here: int, anywhere: int, of_all: int) -> float:
    """Return the chance that *here* or more of *anywhere* fall on *of_here* of *of_all*.

    The hypergeometric distribution's, in logarithms.
    """

    def ways(of: int, some: int) -> float:
        return math.lgamma(of + 1) - math.lgamma(some + 1) - math.lgamma(of - some + 1)

    elsewhere = of_all - of_here
    most, least = min(anywhere, of_here), max(here, anywhere - elsewhere)
    all_ways = ways(of_all, anywhere)
    chances = [
        math.exp(ways(of_here, k) + ways(elsewhere, anywhere - k) - all_ways)
        for k in range(least, most + 1)
    ]
    return min(1.0, math.fsum(chances))
