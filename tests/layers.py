"""Ask each layer about a mutant, alone: whatever the layers before it would have said.

One trial, without any gate before it, tells of the sandbox, of the parent and of the
judge: what its processes were refused stands in their log, and how it ended in its
`Result`.  What the parent would catch if there were no sandbox, a trial without one says.
"""

import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs

from core.device import cpu
from core.launch import Crash, Result, Status, Trial
from core.launch.compile_cache import CompileCache
from core.launch.examine import MAIN, Subject, examine_all
from core.launch.local import LOG, MAINS, LocalTrial
from core.launch.watch import Progress
from core.mutate.vetting import refusals
from core.process.child import Zygote
from core.profile import CPU
from core.training.data import Prepared, open_source, prepare
from core.training.tokenizer import Tokenizer
from tests.corpus import HARMLESS, LAYERS, ROOT, Cheat, base, mutated, told

MODULES = (*MAINS.values(), MAIN)  # what the zygote has imported
VOCAB_SIZE, SEQUENCE_LEN = 512, 128  # of the base
AT_ONCE = 2  # trials; each of their processes has one thread
SHORT = attrs.evolve(
    CPU,
    budget_seconds=1.5,
    scored_tokens=32_768,
    startup_seconds=30.0,
    hang_seconds=5.0,
)
# A leak at one position in fifty escapes every tenth audit of that many tokens; some
# bide their time for five questions, or until they have many rows.
LONG = attrs.evolve(SHORT, budget_seconds=3.0, scored_tokens=262_144)
PATIENT = {
    *("hidden_infill", "hidden_places"),
    *("ahead_hashed_positions", "ahead_row_hash", "ahead_some_positions"),
    *("answer_trains", "eval_fifth_call", "load_trains"),
}
NOISE_BPB = 0.1  # at that budget, beside other work
HONEST_RUNS = 4  # of which the best counts: how many steps a run has is chance, too
# What the kernel says of a deed that the sandbox does not allow.
REFUSED = re.compile(
    "Permission denied|Operation not permitted|File too large|MemoryError"
    "|can't allocate memory|Invalid cross-device link"
)


@attrs.frozen(kw_only=True)
class Tried:
    """What a trial showed.

    Attributes:
        result: How it went.
        printed: What its processes printed.
    """

    result: Result
    printed: str

    def caught(self, honest_bpb: Callable[[], float]) -> dict[str, str]:
        """Return what the user sees, by the layer that says it.

        Whoever gets a number that is better than an honest one, nobody has caught.

        Args:
            honest_bpb: Measures what the base gets with the same budget.
        """
        result, found = self.result, {}
        said = [*self.printed.splitlines(), result.message]
        if refused := [line for line in said if REFUSED.search(line)]:
            found["sandbox"] = "\n".join(dict.fromkeys(refused))
        if result.status is Status.FINISHED:
            assert result.score is not None
            gain = honest_bpb() - result.score.val_bpb
            if gain > NOISE_BPB:
                return {}
            found[HARMLESS] = f"no better: {-gain:+.4f} bpb"
        elif (result.audit and result.audit.breach) or (
            result.crash is Crash.NAN and result.phase == "score"
        ):
            found["judge"] = result.message
        elif not REFUSED.search(result.message):
            found["parent"] = result.message
        return found


@attrs.frozen(kw_only=True)
class Bench:
    """Where trials are made.

    Attributes:
        folder: For run folders, caches, and what a cheat would leave beside them.
        data: The corpus that the base of the profile for laptops is measured on.
        zygote: To fork from; it has imported `MODULES`.
    """

    folder: Path
    data: Prepared
    zygote: Zygote

    @classmethod
    def open(cls, folder: Path, zygote: Zygote) -> "Bench":
        """Prepare the corpus in a new *folder*."""
        data = prepare(
            open_source("stdlib"),
            vocab_size=VOCAB_SIZE,
            sequence_len=SEQUENCE_LEN,
            cache=folder / "cache",
        )
        return cls(folder=folder, data=data, zygote=zygote)

    def merged(self, fragment: str) -> str:
        """Return the base with *fragment*, and with all that its author can look up."""
        tokens = Tokenizer.load(self.data.tokenizer).tokens
        return told(
            mutated(base(), fragment),
            VALIDATION=str(self.data.validation),
            TRAINING=str(self.data.training),
            CACHE=str(self.folder / "cache"),
            VOCABULARY=" ".join(token.hex() for token in tokens),
        )

    def static(self, source: str) -> str:
        """Return why the text of a mutant is refused; empty if it is not."""
        return "\n".join(one.reason for one in refusals(source, base()))

    def gates(self, sources: Mapping[str, str]) -> dict[str, str]:
        """Return what is found in each mutant, by its name; empty where nothing is."""
        subjects = {
            name: Subject(
                source=source, sequence_len=SEQUENCE_LEN, vocab_size=VOCAB_SIZE
            )
            for name, source in sources.items()
        }
        found = examine_all(
            subjects,
            zygote=self.zygote,
            library=ROOT,
            cache=self.folder / "examined",
            files="",
            is_confined=True,
        )
        return {name: one.breach for name, one in found.items()}

    def trial(
        self,
        name: str,
        source: str,
        *,
        seed: int = 0,
        is_confined: bool = True,
        show: Callable[[Progress], None] = lambda progress: None,
    ) -> Tried:
        """Return how a trial of a mutant goes.

        Args:
            name: Names its run folder, which is new.
            source: The mutant.
            seed: Keys everything random.
            is_confined: What runs edited code is in a sandbox.
            show: Called at each step and phase.
        """
        folder = self.folder / "runs" / name
        folder.mkdir(parents=True)
        never, keep = os.pipe()
        trial = Trial(
            run_id=name,
            source=source,
            seed=seed,
            profile=LONG if name in PATIENT else SHORT,
            device=cpu(),
            training=self.data.training,
            validation=self.data.validation,
            tokenizer=self.data.tokenizer,
            sequence_len=SEQUENCE_LEN,
            vocab_size=VOCAB_SIZE,
            project=ROOT,
            is_confined=is_confined,
        )
        try:
            result = LocalTrial.start(
                trial,
                folder,
                zygote=self.zygote,
                compile_cache=CompileCache(self.folder / "compile" / name),
                stop_fd=never,
                show=show,
            ).run()
        finally:
            os.close(never)
            os.close(keep)
        return Tried(result=result, printed=(folder / LOG).read_text(errors="replace"))

    def trials(self, sources: Mapping[str, str]) -> dict[str, Tried]:
        """Return how a trial of each mutant goes, by its name."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            tried = pool.map(self.trial, sources, sources.values())
            return dict(zip(sources, tried, strict=True))

    def honest_bpb(self) -> float:
        """Return what the base gets, in the best of some runs."""
        tried = self.trials({f"base {n}": base() for n in range(HONEST_RUNS)})
        scores = [one.result.score for one in tried.values()]
        return min(score.val_bpb for score in scores if score is not None)

    def caught(self, cheats: Sequence[Cheat]) -> dict[str, dict[str, str]]:
        """Return what each layer says of each cheat, by name and layer; cheapest first."""
        sources = {cheat.name: self.merged(cheat.source) for cheat in cheats}
        honest_bpb, gates = functools.cache(self.honest_bpb), self.gates(sources)
        tried = self.trials(sources)
        both = [c.name for c in cheats if {"sandbox", "parent"} <= set(c.caught_by)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            unconfined = pool.map(self.unconfined, both, [sources[n] for n in both])
            without = dict(zip(both, unconfined, strict=True))
        found = {}
        for cheat in cheats:
            source = sources[cheat.name]
            said = {"static": self.static(source), "gates": gates[cheat.name]}
            said |= tried[cheat.name].caught(honest_bpb)
            if cheat.name in without:
                said["parent"] = without[cheat.name]
            order = [layer for layer in (*LAYERS, HARMLESS) if said.get(layer)]
            found[cheat.name] = {layer: said[layer] for layer in order}
        return found

    def unconfined(self, name: str, source: str) -> str:
        """Return what the parent says of a cheat that nothing else stops.

        A first trial may leave something to a second.
        """
        for seed in (0, 1):
            run = f"{name} unconfined {seed}"
            tried = self.trial(run, source, seed=seed, is_confined=False)
            if said := tried.caught(lambda: 0.0).get("parent", ""):
                break
        return said
