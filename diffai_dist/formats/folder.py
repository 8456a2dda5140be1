"""Which files of a folder are the checkpoint. Decided by names alone, and never by merging whatever lies there."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace

from diffai_dist.errors import UnknownFormat
from diffai_dist.formats.index import MAX_SHARDS
from diffai_dist.formats.names import listed

METADATA, PIECES = ".metadata", ".distcp"  # of a torch.distributed.checkpoint, which is a folder

# model-00001-of-00002.safetensors, and in the wild also model_00001-of-00072 and model-00001-of-000001.
_NUMBERED = re.compile(
    r"(?P<stem>.*[-_])(?P<number>[0-9]{5,6})-of-(?P<total>[0-9]{5,6})(?P<suffix>\.[a-z]+)", re.DOTALL
)
# What transformers, accelerate and Lightning put beside the weights of a training; a user may name it.
_OF_TRAINING = re.compile(
    r"(?:optimizer|scheduler|scaler|sampler|training_args|rng_state|random_states)(?:_[0-9]+)*\.[a-z]+"
)


@dataclass(frozen=True, slots=True)
class Family:
    """Files of one format: which are weights, and what loaders call those of a whole model."""

    name: str
    suffixes: tuple[str, ...]
    single: str = ""

    def files(self, names: Collection[str]) -> list[str]:
        """Its weight files, in order."""
        found = sorted(name for name in names if name.endswith(self.suffixes) and not name.startswith("."))
        return found if self is SAFETENSORS else [name for name in found if not _OF_TRAINING.fullmatch(name)]

    def indexes(self, names: Collection[str]) -> list[str]:
        """Its indexes, in order."""
        endings = tuple(f"{suffix}.index.json" for suffix in self.suffixes)
        return sorted(name for name in names if name.endswith(endings) and not name.startswith("."))


SINGLE = "model.safetensors"

SAFETENSORS = Family("safetensors", (".safetensors",), SINGLE)
TORCH = Family("torch", (".bin", ".pt", ".pth", ".ckpt"), "pytorch_model.bin")
# In this order: the first that a folder has is read. Between the two lies the folder of torch.distributed.checkpoint,
# which may hold a file of torch.save besides.
FAMILIES = (
    SAFETENSORS,
    TORCH,
    Family("GGUF", (".gguf",)),
    Family("NumPy", (".npz", ".npy")),
)


# Files of these names stand for their folder.
USUAL = tuple(name for one in FAMILIES if one.single for name in (one.single, f"{one.single}.index.json"))


@dataclass(frozen=True, slots=True)
class Layout:
    """What to read: one file, an index, numbered shards without an index, of which some may be missing, or the
    metadata of a folder of pieces."""

    single: str | None = None
    index: str | None = None
    shards: tuple[str, ...] = ()
    metadata: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """What is read, for messages."""
        read = self.single or self.index or self.metadata
        return listed([read]) if read else f"the {len(self.shards):,} numbered shards"

    @property
    def first(self) -> str:
        """The file that stands for all."""
        return self.single or self.index or self.metadata or self.shards[0]


def choose(names: Collection[str], where: str) -> Layout:
    """The checkpoint among the files of a folder; raises UnknownFormat where there is none, or no telling which.

    `model.safetensors` wins over an index beside it, as in transformers, and safetensors over other formats; the
    warnings say so.
    """
    found = [one for one in (_layout(family, names, where) for family in FAMILIES) if one]
    if METADATA in names and any(name.endswith(PIECES) for name in names):
        found.insert(1 if SAFETENSORS.files(names) else 0, Layout(metadata=METADATA))
    if not found:
        hint = "Name the folder that holds the weights, for instance a subfolder"
        raise UnknownFormat(where, f"no weight file among the {len(names):,} files of this folder", hint=hint)
    chosen, *others = found
    if isinstance(chosen, UnknownFormat):
        raise chosen
    rest = [one.first for one in others if isinstance(one, Layout)]
    if not rest:
        return chosen
    also = f"read {chosen.shown}; not read, although beside it, in another format: {listed(rest)}"
    return replace(chosen, warnings=(*chosen.warnings, also))


def is_weights(name: str) -> bool:
    """Whether a file of that name is a checkpoint, or an index of one; arrays of NumPy may hold anything.

    >>> [name for name in ("step-9.pt", "optimizer.pt", "model.safetensors.index.json", "loss.npy") if is_weights(name)]
    ['step-9.pt', 'model.safetensors.index.json']
    """
    return any(one.files([name]) or one.indexes([name]) for one in FAMILIES[:-1])


def siblings(name: str, names: Collection[str]) -> list[str]:
    """The weight files of the format to which an index of that name belongs."""
    return next((family.files(names) for family in FAMILIES if family.indexes([name])), SAFETENSORS.files(names))


def _layout(family: Family, names: Collection[str], where: str) -> Layout | UnknownFormat | None:
    """The checkpoint among the files of a format, None if there are none, an error where there is no telling which."""
    files, indexes = family.files(names), family.indexes(names)
    if family.single in files:
        return _with_rest_named(Layout(single=family.single), [*files, *indexes])
    index = f"{family.single}.index.json"
    if index in indexes or (len(indexes) == 1 and not _strangers(indexes[0], files)):
        return _with_rest_named(Layout(index=index if index in indexes else indexes[0]), indexes)
    if indexes:
        return _ambiguous(where, "indexes and shards", [*indexes, *files], family)
    sets = _numbered_sets(files)
    if len(sets) == 1:
        return _with_rest_named(Layout(shards=sets[0]), files)
    if len(files) == 1:
        return Layout(single=files[0])
    return _ambiguous(where, f"{family.name} files", files, family) if files else None


def _numbered_sets(files: Collection[str]) -> list[tuple[str, ...]]:
    """The complete sets of names that the numbered files belong to, missing members included."""
    matches = [match for name in files if (match := _NUMBERED.fullmatch(name))]
    sets = {(match["stem"], len(match["number"]), match["total"], match["suffix"]) for match in matches if _fits(match)}
    return [
        tuple(f"{stem}{number:0{width}}-of-{total}{suffix}" for number in range(1, int(total) + 1))
        for stem, width, total, suffix in sorted(sets)
    ]


def _strangers(index: str, files: Collection[str]) -> bool:
    """Whether there are numbered files of another stem than the index: those of an optimizer are no model."""
    stem = index.removesuffix(".index.json").rpartition(".")[0]
    return any(match["stem"].rstrip("-_") != stem for name in files if (match := _NUMBERED.fullmatch(name)))


def _fits(match: re.Match[str]) -> bool:
    return 1 <= int(match["number"]) <= int(match["total"]) <= MAX_SHARDS


def _with_rest_named(layout: Layout, candidates: Collection[str]) -> Layout:
    rest = sorted(set(candidates) - {layout.single, layout.index, *layout.shards})
    if not rest:
        return layout
    return replace(layout, warnings=(f"read {layout.shown}; not read, although beside it: {listed(rest)}",))


def _ambiguous(where: str, what: str, names: list[str], family: Family) -> UnknownFormat:
    known = f" and no {family.single} or {family.single}.index.json" if family.single else ""
    return UnknownFormat(where, f"several {what}{known}: {listed(names)}", hint="Name the one to read")
