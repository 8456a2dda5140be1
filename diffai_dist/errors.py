"""What can go wrong, as a tree; each branch knows its code and the exit code it ends in.

DiffaiError 4                 a bug or something unforeseen
├── UsageError 2              the command line or a setting is wrong: nothing was read
├── ClusterError 4            scheduler or workers lost, or unfit
├── StoreError 4              the report store cannot be read or written
├── GateBroken 1              something is not as a policy says it must be
└── CheckpointError 3         one object cannot be used; the rest goes on
    ├── Unreadable            missing, forbidden, unreachable, not a regular file
    ├── UnknownFormat         not a checkpoint; says what it is
    ├── BadHeader             a header or directory that breaks its format
    ├── BadIndex              an index file that breaks the format or leaves its folder
    ├── UnknownScheme         quantised in a way that is not read, or with parts missing
    ├── MissingShard          the index and the files disagree
    ├── SourceChanged         the object is not the one that was pinned
    └── ShortRead             fewer or other bytes came back than were asked for
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Failure:
    """What could not be read, as data: it crosses processes and ends up in every output."""

    code: str
    object: str  # redacted URL
    tensor: str | None
    expected: str
    found: str
    hint: str

    def sentence(self) -> str:
        """The failure on one line: where, what, and what to do."""
        where = f"{self.object}: tensor {self.tensor!r}" if self.tensor is not None else self.object
        expected = f", expected {self.expected}" if self.expected else ""
        hint = f". {self.hint}" if self.hint else ""
        return f"{where}: {self.found}{expected}{hint} [{self.code}]"


class DiffaiError(Exception):
    """Base of all errors that this package raises on purpose."""

    exit_code: ClassVar[int] = 4
    code: ClassVar[str] = "E0001"


class UsageError(DiffaiError):
    """The command line or a setting cannot be used."""

    exit_code = 2
    code = "E0002"


class ClusterError(DiffaiError):
    """The scheduler or its workers were lost, or do not fit this client."""

    code = "E0003"


class StoreError(DiffaiError):
    """The report store cannot be read or written."""

    code = "E0004"


class DamagedStore(StoreError):
    """Something in the report store is not what was written there; who can make it again, does."""


class GateBroken(DiffaiError):
    """Something is not as a policy says it must be; commands end with its code, programs ask for the error."""

    exit_code = 1
    code = "E0005"


class CheckpointError(DiffaiError):
    """One object, tensor or range cannot be used; everything else goes on."""

    exit_code = 3
    code = "E1000"

    def __init__(self, url: str, found: str, *, expected: str = "", hint: str = "", tensor: str | None = None) -> None:
        self.failure = Failure(self.code, url, tensor, expected, found, hint)
        super().__init__(self.failure.sentence())

    def __reduce__(self) -> tuple[Callable[..., CheckpointError], tuple[type[CheckpointError], Failure]]:
        """Pickled as its failure, since errors cross processes."""
        return _again, (type(self), self.failure)


def _again(kind: type[CheckpointError], failure: Failure) -> CheckpointError:
    """The error that a failure came from."""
    return kind(failure.object, failure.found, expected=failure.expected, hint=failure.hint, tensor=failure.tensor)


class Unreadable(CheckpointError):
    """Missing, forbidden, unreachable or not a regular file."""

    code = "E1101"


class SourceChanged(CheckpointError):
    """The object is no longer the one that was pinned at the start."""

    code = "E1102"


class ShortRead(CheckpointError):
    """Fewer or other bytes came back than were asked for."""

    code = "E1103"


class UnknownFormat(CheckpointError):
    """Not a checkpoint that can be read; the message says what it is."""

    code = "E1201"


class BadHeader(CheckpointError):
    """A header, or another table of tensors, that breaks its format."""

    code = "E1202"


class MissingShard(CheckpointError):
    """The index and the files beside it disagree."""

    code = "E1203"


class BadIndex(CheckpointError):
    """An index file that breaks the format or points out of its folder."""

    code = "E1204"


class UnknownScheme(CheckpointError):
    """Codes whose values are not known: in a layout that is not read, or with scales missing."""

    code = "E1205"
