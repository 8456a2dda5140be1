"""The files of torch.save: a zip archive of a pickle, which names the tensors, and their storages as they are."""

from __future__ import annotations

import math
from collections.abc import Mapping

from diffai_dist.checkpoint import Span, Tensor
from diffai_dist.errors import BadHeader, CheckpointError, Failure, UnknownFormat, UnknownScheme
from diffai_dist.formats.archive import SAVE_AGAIN, Archive
from diffai_dist.formats.heads import Header
from diffai_dist.formats.names import listed, quoted
from diffai_dist.formats.torch_state import State, TooMuch, harmful, remarks, state_of
from diffai_dist.formats.torch_views import Unusable, View, view_of
from diffai_dist.formats.unpickling import MAX_BYTES, BadPickle, unpickle
from diffai_dist.schemes.strided import MOST_BYTES, Strided
from diffai_dist.storage import redact

PICKLE = "/data.pkl"
_SAVE_STATE = "Save its state_dict() with torch.save, or as safetensors"


def read_torch(archive: Archive) -> Header:
    """All tensors that the pickle of a torch file names; those that are not read are told, each with its reason."""
    source = archive.ranges.source
    where, root = redact(source.url), _root(archive)
    state = named(_object(archive, root), where)
    tensors, unreadable = _tensors(archive, root, state)
    failures = {name: failure_of(where, name, error) for name, error in {**state.unusable, **unreadable}.items()}
    return Header(source, tensors, state.scalars, "torch", failures, remarks(state))


def _root(archive: Archive) -> str:
    """The folder in the archive that holds all, `archive` or the name of the file; checked as far as names tell."""
    where = redact(archive.ranges.source.url)
    roots = [name.removesuffix(PICKLE) for name in archive.members if name.endswith(PICKLE)]
    if len(roots) != 1 or "/" in roots[0]:
        raise BadHeader(where, f"several pickles in one torch file: {listed(roots)}", hint=SAVE_AGAIN)
    (root,) = roots
    if f"{root}/constants.pkl" in archive.members or any(name.startswith(f"{root}/code/") for name in archive.members):
        raise UnknownFormat(where, "this is a TorchScript module, which is code", hint=_SAVE_STATE)
    order = f"{root}/byteorder"
    if order in archive.members and (found := _small(archive, order, 16)) != b"little":
        raise UnknownFormat(where, f"numbers in byte order {found!r}", expected="b'little'", hint=SAVE_AGAIN)
    return root


def _small(archive: Archive, name: str, most: int) -> bytes:
    if (size := archive.members[name].size) > most:
        where = redact(archive.ranges.source.url)
        raise BadHeader(where, f"{quoted(name)} has {size:,} bytes", expected=f"at most {most:,}")
    return archive.read(name)


def only_tensor(archive: Archive) -> Tensor:
    """The tensor that a torch file holds, of one that holds nothing else; Unusable where it does not."""
    root = _root(archive)
    view = view_of(_object(archive, root))
    name = f"{root}/data/{view.key}"
    if name not in archive.members:
        raise Unusable(f"its storage {quoted(view.key)} is not there", broken=True)
    return tensor_of("", view, archive.locate(name))


def _object(archive: Archive, root: str) -> object:
    return unpickled(_small(archive, root + PICKLE, MAX_BYTES), redact(archive.ranges.source.url))


def unpickled(data: bytes, where: str) -> object:
    """What a pickle describes; BadHeader where it is broken, or asks for code to be run."""
    try:
        made, names = unpickle(data)
    except BadPickle as error:
        raise BadHeader(where, str(error), hint="Incomplete or damaged? Fetch or save it again") from error
    if found := harmful(names):
        hint = "Do not load this file: nothing of it was run here"
        raise BadHeader(where, f"its pickle asks whoever loads it to run {listed(found)}", hint=hint)
    return made


def named(root: object, where: str) -> State:
    """The tensors of an object by their names; BadHeader where there is no end of them."""
    try:
        return state_of(root)
    except TooMuch as error:
        raise BadHeader(where, str(error), hint="Save the state_dict() alone") from error


def _tensors(archive: Archive, root: str, state: State) -> tuple[dict[str, Tensor], dict[str, Unusable]]:
    """The tensors whose storages are in the archive, and why others are not."""
    members = {view.key: f"{root}/data/{view.key}" for view in state.views.values()}
    spans, lost = _storages(archive, members)
    tensors, unusable = {}, {}
    for name, view in state.views.items():
        try:
            if view.key in lost:
                raise lost[view.key]
            tensors[name] = tensor_of(name, view, spans[view.key])
        except Unusable as error:
            unusable[name] = error
    return tensors, unusable


def _storages(archive: Archive, members: Mapping[str, str]) -> tuple[dict[str, Span], dict[str, Unusable]]:
    """Where the storages lie; of a broken one, why it is not there: the others can be read."""
    there = {key: name for key, name in members.items() if name in archive.members}
    missing = {key: Unusable(f"its storage {quoted(key)} is not there", broken=True) for key in members.keys() - there}
    archive.preload(there.values())
    spans: dict[str, Span] = {}
    for key, name in there.items():
        try:
            spans[key] = archive.locate(name)
        except BadHeader as error:
            missing[key] = Unusable(error.failure.found, error.failure.expected, broken=True)
    return spans, missing


def tensor_of(name: str, view: View, storage: Span) -> Tensor:
    """A tensor in a storage that was found; Unusable where it does not fit, or lies there in a way that is not read."""
    size = storage.stop - storage.start
    if size != view.storage_bytes:
        raise Unusable(f"its storage has {size:,} bytes in the archive", f"{view.storage_bytes:,}", broken=True)
    span = storage.part(view.offset * view.item, (view.offset + view.reach) * view.item)
    if not view.reach:
        span = storage.part(0, 0)
    if view.contiguous:
        # torch counts the bytes of float4_e2m1fn_x2, which hold two values each.
        shape = (*view.shape[:-1], view.shape[-1] * 2) if view.dtype == "F4" and view.shape else view.shape
        return Tensor(name, view.dtype, shape, (span,))
    logical = math.prod(view.shape) * view.item
    if max(logical, span.stop - span.start) > MOST_BYTES:
        found = f"{logical:,} bytes that lie in another order than that of the shape {list(view.shape)}"
        raise Unusable(found, f"at most {MOST_BYTES:,}, or contiguous")
    if view.dtype in ("F4", "C128"):
        raise Unusable(f"elements of {view.dtype} in another order than that of the shape, which is not read")
    return Tensor(name, view.dtype, view.shape, (span,), Strided(view.dtype, view.strides))


def failure_of(where: str, name: str, error: Unusable) -> Failure:
    kind: type[CheckpointError] = BadHeader if error.broken else UnknownScheme
    hint = SAVE_AGAIN if error.broken else "Save it as a contiguous tensor of a plain dtype"
    return kind(where, error.found, expected=error.expected, hint=hint, tensor=name).failure
