"""Every error that a user can cause.

* DeltaspecError
  x SpecError               a spec file says something impossible
  x MutationError           a codemod cannot be applied to the training module
    + SourceRefused         ... because the source is too large or not Python
    + CodemodRefused        ... because there is no such codemod, or not with such options
    + SiteNotFound          ... because the code that it rewrites is not there
    + NoChange              ... because what it leaves means the same as before
    + Conflict              ... because it rewrites what an earlier codemod wrote
    + Stale                 ... because the spec asks for something else by now
  x GateRefused             the mutated module does what is none of its business
  x ConfigurationError      the mutated module states sizes that cannot run
  x CaptureError            a hand-edited module cannot become a codemod
  x DataError               a corpus cannot be read, or is too small
  x SessionError            this session cannot run here: profile, lock, option
  x StoreError              a row would make ``runs.duckdb`` untrue
"""


class DeltaspecError(Exception):
    """Base class of every error that a user can cause.

    Args:
        message: What was found and what was expected, with the value itself.
        hint: What to do next, as one imperative sentence.
    """

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n\nhint: {self.hint}"


class SpecError(DeltaspecError):
    """A spec file says something impossible.

    Args:
        message: What was found and what was expected, with the value itself.
        hint: What to do next, as one imperative sentence.
        field: The argument at fault, where one is.
        place: ``file:line``, added by whoever knows it.
    """

    def __init__(
        self, message: str, *, hint: str, field: str | None = None, place: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.field = field
        self.place = place

    def __str__(self) -> str:
        return f"{self.place}: {super().__str__()}" if self.place else super().__str__()


class MutationError(DeltaspecError):
    """A codemod cannot be applied to the training module."""


class SourceRefused(MutationError):
    """The source is too large to be edited safely, or it is not Python."""


class CodemodRefused(MutationError):
    """There is no such codemod, or it does not take such options, or it failed."""


class SiteNotFound(MutationError):
    """The code that a codemod rewrites is not in the training module."""


class NoChange(MutationError):
    """The codemods leave a module that means the same as the base."""


class Conflict(MutationError):
    """A codemod rewrites what an earlier one wrote."""


class Stale(MutationError):
    """A codemod was written for another wording of its spec."""


class GateRefused(DeltaspecError):
    """The mutated module does what a training module has no business doing."""


class ConfigurationError(DeltaspecError):
    """The mutated module states sizes that cannot run."""


class CaptureError(DeltaspecError):
    """A hand-edited training module cannot become a codemod."""


class DataError(DeltaspecError):
    """A corpus cannot be read, or is too small."""


class SessionError(DeltaspecError):
    """This session cannot run here, with these options."""


class StoreError(DeltaspecError):
    """A row would make ``runs.duckdb`` untrue."""
