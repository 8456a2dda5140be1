"""Stored codes, scales and zero points become one tensor, with the name and shape that it has unquantised."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping

from diffai_dist.checkpoint import Checkpoint, Tensor, Violation
from diffai_dist.errors import Failure, UnknownScheme
from diffai_dist.formats.names import listed, quoted
from diffai_dist.schemes import SCHEMES
from diffai_dist.schemes.declared import otherwise
from diffai_dist.schemes.stored import Declared, Finder, Found, PartLost, Stored, Undecodable
from diffai_dist.storage import redact

OTHERWISE = "declared-otherwise"  # the rule that a configuration breaks which the tensors do not bear out
PLAIN = (".scale", ".scales", ".shape", ".meta", ".biases")  # endings that parameters of plain modules have, too
_DTYPES = frozenset[str]().union(*(finder.dtypes for finder in SCHEMES))


def may_be_quantised(checkpoint: Checkpoint) -> bool:
    """Whether any tensor could be codes of a scheme, so that it is worth to look at what is declared."""
    here = any(next(_asked(tensor), None) for tensor in checkpoint.tensors.values())
    stored = Stored(checkpoint.tensors, checkpoint.unreadable)
    return here or any(next(_lost(name, stored), None) for name in checkpoint.unreadable)


def told(checkpoint: Checkpoint) -> list[Tensor]:
    """The small tensors whose content tells the finders what codes mean."""
    endings = tuple(ending for finder in SCHEMES for ending in finder.told)
    return _plain(checkpoint, endings)


def headed(checkpoint: Checkpoint) -> list[Tensor]:
    """The large tensors whose first bytes tell the finders how codes are meant."""
    endings = tuple(ending for finder in SCHEMES for ending in finder.heads)
    return _plain(checkpoint, endings)


def _plain(checkpoint: Checkpoint, endings: tuple[str, ...]) -> list[Tensor]:
    """The tensors of such names whose bytes are their values."""
    return [one for name, one in checkpoint.tensors.items() if f".{name}".endswith(endings) and one.scheme is None]


def logical(checkpoint: Checkpoint, declared: Declared, content: Mapping[str, bytes]) -> Checkpoint:
    """The checkpoint with logical tensors in the place of their parts; what has no known values cannot be read."""
    stored = Stored(checkpoint.tensors, checkpoint.unreadable, content, declared)
    tensors, unreadable = dict(checkpoint.tensors), dict(checkpoint.unreadable)
    remarks: dict[str, list[str]] = defaultdict(list)
    against: dict[str, list[str]] = defaultdict(list)
    for codes in checkpoint.tensors.values():
        for finder, prefix, name in _asked(codes):
            found = _found(finder, prefix, codes, stored)
            if found is None:
                continue
            for part in (codes.name, *_parts(finder, prefix, found, stored)):
                tensors.pop(part, None)
                unreadable.pop(part, None)
            if name in tensors and name != codes.name:
                del tensors[name]
                found = Undecodable(f"the weight is stored twice, as it is and as codes in {quoted(codes.name)}")
            if isinstance(found, Undecodable):
                unreadable[name] = _failure(codes, name, found)
            else:
                tensors[name] = dataclasses.replace(found.tensor, name=name)
                for remark in found.remarks:
                    remarks[remark].append(name)
                for remark in (*found.otherwise, *otherwise(declared, tensors[name])):
                    against[remark].append(name)
            break
    left = Stored(tensors, checkpoint.unreadable)
    for name, failure in checkpoint.unreadable.items():
        for weight, parts in _lost(name, left, bool(declared.file)):
            for part in (name, *parts):
                tensors.pop(part, None)
                unreadable.pop(part, None)
            unreadable[weight] = dataclasses.replace(failure, tensor=weight)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in unreadable}
    warnings = (f"{remark} ({listed(names)})" for remark, names in (*against.items(), *remarks.items()))
    broken = (Violation(OTHERWISE, checkpoint.url, remark, tuple(names)) for remark, names in against.items())
    return dataclasses.replace(
        checkpoint,
        tensors=tensors,
        unreadable=unreadable,
        warnings=(*checkpoint.warnings, *warnings),
        violations=(*checkpoint.violations, *broken),
    )


def _asked(codes: Tensor) -> Iterator[tuple[Finder, str, str]]:
    """The finders that may know the tensor, with its prefix and the logical name."""
    if codes.dtype in _DTYPES:
        for finder in SCHEMES:
            if (place := finder.prefix(codes)) is not None:
                yield finder, *place


def _parts(finder: Finder, prefix: str, found: Found | Undecodable, stored: Stored) -> Iterator[str]:
    """The names of what is not compared for itself: of names that plain parameters have, too, only what is decoded."""
    used = found.tensor.spans if isinstance(found, Found) else None
    for ending in finder.parts:
        name = stored.name(prefix + ending)
        part = stored.tensors.get(name)
        if used is None or ending not in PLAIN or (part and part.spans[0] in used):
            yield name


def _lost(name: str, stored: Stored, declared: bool = True) -> Iterator[tuple[str, list[str]]]:
    """What codes of that name, which cannot be read, would stand for, and their parts.

    Of a name that plain tensors have, too, only if a part that is no plain parameter's can be read. Where nothing is
    declared, a parameter that is no module's weight is a plain one, and so is what lies beside it.
    """
    for finder in SCHEMES:
        if (place := finder.of_name(name)) is None or (place[0] == name and not declared):
            continue
        prefix, weight = place
        parts = {stored.name(prefix + ending): ending for ending in finder.parts}
        if weight == name:
            parts = {part: end for part, end in parts.items() if part in stored.tensors and end not in PLAIN}
        if any(map(stored.has, parts)):
            yield weight, list(parts)


def _found(finder: Finder, prefix: str, codes: Tensor, stored: Stored) -> Found | Undecodable | None:
    try:
        return finder.find(prefix, codes, stored)
    except Undecodable as error:
        return error


def _failure(codes: Tensor, name: str, error: Undecodable) -> Failure:
    if isinstance(error, PartLost):
        return dataclasses.replace(error.failure, tensor=name)
    where = redact(codes.spans[0].source.url)
    return UnknownScheme(where, error.found, expected=error.expected, hint=error.hint, tensor=name).failure
