"""Which files of a folder are the checkpoint. Decided by names alone, and never by merging whatever lies there."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace

from diffai_dist.errors import UnknownFormat
from diffai_dist.formats.index import MAX_SHARDS, SUFFIX
from diffai_dist.formats.names import listed

SINGLE = "model.safetensors"
INDEX = f"model{SUFFIX}"

# model-00001-of-00002.safetensors, and in the wild also model_00001-of-00072 and model-00001-of-000001.
_NUMBERED = re.compile(r"(?P<stem>.*[-_])(?P<number>[0-9]{5,6})-of-(?P<total>[0-9]{5,6})\.safetensors", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Layout:
    """What to read: one file, an index, or numbered shards without an index, of which some may be missing."""

    single: str | None = None
    index: str | None = None
    shards: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def choose(names: Collection[str], where: str) -> Layout:
    """The checkpoint among the files of a folder; raises UnknownFormat where there is none, or no telling which.

    `model.safetensors` wins over an index beside it, as in transformers; the warnings say so.
    """
    files = sorted(name for name in names if name.endswith(".safetensors") and not name.startswith("."))
    indexes = sorted(name for name in names if name.endswith(SUFFIX) and not name.startswith("."))
    if SINGLE in files:
        return _with_rest_named(Layout(single=SINGLE), [*files, *indexes])
    sets = _numbered_sets(files)
    if INDEX in indexes or (len(indexes) == 1 and not _strangers(indexes[0], files)):
        layout = Layout(index=INDEX if INDEX in indexes else indexes[0])
        return _with_rest_named(layout, indexes)
    if indexes:
        raise _ambiguous(where, "indexes and shards", [*indexes, *files])
    if len(sets) == 1:
        return _with_rest_named(Layout(shards=sets[0]), files)
    if len(files) == 1:
        return Layout(single=files[0])
    if files:
        raise _ambiguous(where, "safetensors files", files)
    raise _nothing(where, names)


def _numbered_sets(files: Collection[str]) -> list[tuple[str, ...]]:
    """The complete sets of names that the numbered files belong to, missing members included."""
    matches = [match for name in files if (match := _NUMBERED.fullmatch(name))]
    sets = {(match["stem"], len(match["number"]), match["total"]) for match in matches if _in_range(match)}
    return [
        tuple(f"{stem}{number:0{width}}-of-{total}.safetensors" for number in range(1, int(total) + 1))
        for stem, width, total in sorted(sets)
    ]


def _strangers(index: str, files: Collection[str]) -> bool:
    """Whether there are numbered files of another stem than the index: those of an optimizer are no model."""
    stem = index.removesuffix(SUFFIX)
    return any(match["stem"].rstrip("-_") != stem for name in files if (match := _NUMBERED.fullmatch(name)))


def _in_range(match: re.Match[str]) -> bool:
    return 1 <= int(match["number"]) <= int(match["total"]) <= MAX_SHARDS


def _with_rest_named(layout: Layout, candidates: Collection[str]) -> Layout:
    read = layout.single or layout.index
    rest = sorted(set(candidates) - {read, *layout.shards})
    if not rest:
        return layout
    chosen = listed([read]) if read else f"the {len(layout.shards):,} numbered shards"
    return replace(layout, warnings=(f"read {chosen}; not read, although beside it: {listed(rest)}",))


def _ambiguous(where: str, what: str, names: list[str]) -> UnknownFormat:
    hint = "Name the one to read"
    return UnknownFormat(where, f"several {what} and no {SINGLE} or {INDEX}: {listed(names)}", hint=hint)


def _nothing(where: str, names: Collection[str]) -> UnknownFormat:
    others = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".npz")))
    if others:
        hint = "Convert it to safetensors first, where you trust its origin"
        return UnknownFormat(where, f"no safetensors file in this folder, but {listed(others)}", hint=hint)
    hint = "Name the folder that holds the weights, for instance a subfolder"
    return UnknownFormat(where, f"no safetensors file among the {len(names):,} files of this folder", hint=hint)
