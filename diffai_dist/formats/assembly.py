"""Headers become one checkpoint. Shards that cannot be read spoil their own tensors only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from diffai_dist.checkpoint import Checkpoint
from diffai_dist.errors import CheckpointError, Failure, MissingShard, Unreadable
from diffai_dist.formats.agreement import Owners, broken_shard, judge, odd_total
from diffai_dist.formats.containers import read_file
from diffai_dist.formats.heads import Header
from diffai_dist.formats.index import Index
from diffai_dist.formats.names import listed, lookalikes
from diffai_dist.storage import Profile, is_remote, join, redact

THREADS = 8  # headers in flight; local ones are read one by one, since parsing them is what takes the time

Shards = Mapping[str, Header | CheckpointError]


def read_shards(folder: str, names: Sequence[str], present: Collection[str] | None, profile: Profile) -> Shards:
    """The header of each shard, or why it has none; nothing is asked about a name that the listing does not have."""

    def header(name: str) -> Header | CheckpointError:
        if present is not None and name not in present:
            return MissingShard(redact(join(folder, name)), "this shard is missing", hint="Fetch or upload the file")
        return _read_shard(join(folder, name), profile)

    if not is_remote(folder):
        return {name: header(name) for name in names}
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(header, names), strict=True))


def _read_shard(url: str, profile: Profile) -> Header | CheckpointError:
    try:
        return read_file(url, profile)
    except Unreadable as error:
        found = f"this shard cannot be read: {error.failure.found}"
        return MissingShard(redact(url), found, hint=error.failure.hint)
    except CheckpointError as error:
        return error


def assemble(url: str, shards: Shards, index: Index | None = None, warnings: Sequence[str] = ()) -> Checkpoint:
    """One checkpoint of all shards that have a header; raises CheckpointError when none has."""
    where = redact(url)
    headers = {name: shard for name, shard in shards.items() if isinstance(shard, Header)}
    errors = {name: shard for name, shard in shards.items() if isinstance(shard, CheckpointError)}
    if errors and not headers:
        raise _nothing_left(where, list(errors.values()))
    broken = {name: error.failure for name, error in errors.items()}
    verdict = judge(where, _owners(headers), broken, index)
    tensors = {name: tensor for header in headers.values() for name, tensor in header.tensors.items()}
    violations = (*map(broken_shard, broken.values()), *verdict.violations)
    if index and not broken and not verdict.failures:
        stored = {span for tensor in tensors.values() for span in tensor.spans}  # tied tensors have the same
        odd = odd_total(where, index, sum(span.stop - span.start for span in stored))
        warnings, violations = (*warnings, *(one.found for one in odd)), (*violations, *odd)
    return Checkpoint(
        url=where,
        format=" and ".join(dict.fromkeys(header.format for header in headers.values())),
        sources=tuple(header.source for header in headers.values()),
        tensors={name: tensor for name, tensor in tensors.items() if name not in verdict.unreadable},
        metadata={key: text for header in reversed(headers.values()) for key, text in header.metadata.items()},
        unreadable={**_unreadable(headers.values()), **verdict.unreadable},
        failures=(*broken.values(), *verdict.failures),
        unknown=next(iter(broken.values()), None) if index is None else None,
        warnings=(
            *warnings,
            *dict.fromkeys(warning for header in headers.values() for warning in header.warnings),
            *verdict.warnings,
            *_odd_names(tensors),
            *_odd_metadata(headers.values()),
        ),
        violations=violations,
    )


def _nothing_left(where: str, errors: list[CheckpointError]) -> CheckpointError:
    if len(errors) == 1:
        return errors[0]
    first = errors[0].failure
    found = f"none of its {len(errors):,} shards can be read; the first, {first.object}: {first.found}"
    return MissingShard(where, found, hint=first.hint)


def _owners(headers: Mapping[str, Header]) -> Owners:
    owners = defaultdict(list)
    for shard, header in headers.items():
        for name in (*header.tensors, *header.unreadable):
            owners[name].append(shard)
    return owners


def _unreadable(headers: Collection[Header]) -> dict[str, Failure]:
    return {name: failure for header in headers for name, failure in header.unreadable.items()}


def _odd_names(names: Collection[str]) -> list[str]:
    pairs = lookalikes(names)
    if not pairs:
        return []
    examples = "; ".join(f"{first[:64]!a} and {second[:64]!a}" for first, second in pairs[:3])
    return [f"{len(pairs):,} pairs of distinct names differ only by normalisation or case: {examples}"]


def _odd_metadata(headers: Collection[Header]) -> list[str]:
    """Keys with several values; the checkpoint keeps that of the first shard."""
    values = defaultdict(set)
    for header in headers:
        for key, text in header.metadata.items():
            values[key].add(text)
    several = [key for key, texts in values.items() if len(texts) > 1]
    return [f"the shards' metadata differ, the first shard's were taken: {listed(several)}"] if several else []
