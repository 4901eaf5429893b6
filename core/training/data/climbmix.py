"""The corpus that a GPU is given by default: shards of a data set, of one commit."""

import re

import attrs

from core.errors import DataError

CLIMBMIX = "climbmix"
NAME = re.compile(rf"{CLIMBMIX}(?::(-?\d+))?")
TRAINING_SHARDS = 10  # unless the name says how many: ``climbmix:20``

REPOSITORY = "karpathy/climbmix-400b-shuffle"
# Pinned, so that the same shards are the same text, whoever fetches them and when.
COMMIT = "915333b4f8b8684f39aeaafea600fea6f43fb703"
LAST = 6542  # the shard that is set apart


@attrs.frozen(kw_only=True)
class Shards:
    """A corpus of parquet files on the Hugging Face hub, which may not be here yet.

    Attributes:
        name: What the user called it.
        repository: The data set, as ``owner/name``.
        commit: All 40 digits of the commit that has the files.
        training: Names of the files to train on.
        validation: The file that is set apart.
    """

    name: str
    repository: str
    commit: str
    training: tuple[str, ...] = attrs.field(repr=False)
    validation: str

    @property
    def files(self) -> tuple[str, ...]:
        """All names, the validation file first."""
        return self.validation, *self.training


def climbmix(name: str) -> Shards | None:
    """Return the shards that ``climbmix`` or ``climbmix:N`` names; None for others.

    Raises:
        DataError: There are not that many.
    """
    match = NAME.fullmatch(name)
    if match is None:
        return None
    count = int(match[1] or TRAINING_SHARDS)
    if not 1 <= count <= LAST:
        raise DataError(
            f"{name} asks for {count} shards to train on, and {CLIMBMIX} has 1 to"
            f" {LAST:,}.",
            hint=f"name a number in that range, as {CLIMBMIX}:{TRAINING_SHARDS}.",
        )
    shard = "shard_{:05}.parquet".format
    return Shards(
        name=name,
        repository=REPOSITORY,
        commit=COMMIT,
        training=tuple(map(shard, range(count))),
        validation=shard(LAST),
    )
