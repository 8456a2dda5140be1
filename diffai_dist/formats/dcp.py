"""The folders of torch.distributed.checkpoint: metadata, and files of pieces, each a torch file of one tensor."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from diffai_dist.checkpoint import Checkpoint, Tensor
from diffai_dist.dtypes import BITS
from diffai_dist.errors import BadHeader, CheckpointError, Failure, MissingShard
from diffai_dist.formats.archive import SAVE_AGAIN, read_archive
from diffai_dist.formats.names import is_plain_file_name, listed, quoted
from diffai_dist.formats.ranges import Ranges
from diffai_dist.formats.torch_views import Unusable, counts
from diffai_dist.formats.torch_zip import failure_of, only_tensor, unpickled
from diffai_dist.formats.unpickling import MAX_BYTES, Made, Pairs
from diffai_dist.schemes.chunked import matrix_of
from diffai_dist.storage import Profile, Source, is_remote, join, pin, read, redact

ENDS = 1024  # bytes of a piece before and after its data, of which torch 2.13 writes some 700 and 900
FILES_AT_ONCE = 8
_MODULE = "torch.distributed.checkpoint."


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A part of a tensor, and the bytes [start, stop) of the file that hold it as a torch file of its own.

    Equal to itself alone: of numbers from a file the hash could be chosen.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Contents:
    """What the metadata say: the shape and pieces of each tensor, or why it has none that can be read."""

    tensors: Mapping[str, tuple[tuple[int, ...], tuple[Piece, ...]]]
    unusable: Mapping[str, Unusable]


def open_pieces(
    url: str, metadata: str, files: Collection[str], profile: Profile, warnings: tuple[str, ...] = ()
) -> Checkpoint:
    """All tensors of a folder; a file that is missing costs those that have a piece in it."""
    where = redact(url)
    source = pin(join(url, metadata), profile)
    if source.size > MAX_BYTES:
        raise BadHeader(redact(source.url), f"{source.size:,} bytes of metadata", expected=f"at most {MAX_BYTES:,}")
    contents = parse_metadata(read(source, 0, source.size, profile), redact(source.url))
    wanted = defaultdict(list)
    for _, pieces in contents.tensors.values():
        for piece in pieces:
            wanted[piece.file].append(piece)
    found = _read_files(url, wanted, files, profile)
    broken = {name: one.failure for name, one in found.items() if isinstance(one, CheckpointError)}
    opened = {name: one for name, one in found.items() if isinstance(one, Opened)}
    tensors, unreadable = _tensors(contents, opened, broken, where)
    sources = tuple(one.source for one in opened.values())
    failures = tuple(broken.values())
    return Checkpoint(where, "dcp", sources, tensors, unreadable=unreadable, failures=failures, warnings=warnings)


def _tensors(
    contents: Contents, opened: Mapping[str, Opened], broken: Mapping[str, Failure], where: str
) -> tuple[dict[str, Tensor], dict[str, Failure]]:
    """The tensors all pieces of which are there, and why the others cannot be read."""
    tensors, unreadable = {}, {name: failure_of(where, name, error) for name, error in contents.unusable.items()}
    for name, (shape, pieces) in contents.tensors.items():
        lost = next((broken[piece.file] for piece in pieces if piece.file in broken), None)
        if lost:
            unreadable[name] = dataclasses.replace(lost, tensor=name)
            continue
        try:
            tensors[name] = assembled(name, shape, pieces, [opened[piece.file].parts[piece] for piece in pieces])
        except Unusable as error:
            unreadable[name] = failure_of(where, name, error)
    return tensors, unreadable


def parse_metadata(data: bytes, where: str) -> Contents:
    """The tensors that the metadata name; BadHeader where it is no metadata of torch.distributed.checkpoint."""
    root = unpickled(data, where)
    fields = _fields(root)
    described, stored = fields.get("state_dict_metadata"), fields.get("storage_data")
    if not isinstance(described, Pairs) or not isinstance(stored, Pairs):
        raise BadHeader(where, "no metadata of torch.distributed.checkpoint", hint=SAVE_AGAIN)
    places = dict(_places(stored))
    tensors, unusable = {}, {}
    for name, about in described.pairs:
        if type(name) is not str or not isinstance(about, Made) or not about.path.endswith(".TensorStorageMetadata"):
            continue  # numbers and texts, which are no tensors
        try:
            if name in tensors or name in unusable:
                raise Unusable("several tensors have this name", broken=True)
            tensors[name] = _described(name, _fields(about), places)
        except Unusable as error:
            unusable[name] = error
    return Contents({name: one for name, one in tensors.items() if name not in unusable}, unusable)


def _fields(value: object) -> dict[str, object]:
    """The attributes of an object of a data class."""
    state = value.state if isinstance(value, Made) and value.path.startswith(_MODULE) else None
    return {key: one for key, one in state.pairs if type(key) is str} if isinstance(state, Pairs) else {}


Place = tuple[str, int, int]  # file, first byte, last byte + 1
Key = tuple[str, str]  # name of a tensor, and offsets of a piece as a text


def _places(stored: Pairs) -> Iterator[tuple[Key, Place | Unusable]]:
    """Where the piece of a tensor at some offsets lies."""
    for key, value in stored.pairs:
        index = _fields(key)
        name, offset = index.get("fqn"), index.get("offset")
        if type(name) is not str or offset is None:
            continue  # something that is no tensor
        try:
            offsets = str(counts(offset))
        except Unusable:
            continue
        try:
            yield (name, offsets), _place(_fields(value))
        except Unusable as error:
            yield (name, offsets), error


def _place(info: Mapping[str, object]) -> Place:
    file, start, length = info.get("relative_path"), info.get("offset"), info.get("length")
    if info.get("transform_descriptors"):
        raise Unusable("its pieces are compressed or otherwise transformed")
    if type(file) is not str or not is_plain_file_name(file):
        found = quoted(file) if type(file) is str else "no name"
        raise Unusable(f"a piece lies in {found}, which is no plain name of a file beside the metadata", broken=True)
    (start, length) = counts((start, length))
    return file, start, start + length


def _described(
    name: str, fields: Mapping[str, object], places: Mapping[Key, Place | Unusable]
) -> tuple[tuple[int, ...], tuple[Piece, ...]]:
    shape, chunks = counts(fields.get("size")), fields.get("chunks")
    if type(chunks) is not list or not chunks:
        raise Unusable("no list of its pieces", broken=True)
    pieces = []
    for chunk in chunks:
        about = _fields(chunk)
        offsets, sizes = counts(about.get("offsets")), counts(about.get("sizes"))
        place = places.get((name, str(offsets)))
        if place is None:
            raise Unusable(f"its piece at {list(offsets)} is in no file", broken=True)
        if isinstance(place, Unusable):
            raise place
        pieces.append(Piece(offsets, sizes, *place))
    return shape, tuple(sorted(pieces, key=lambda piece: piece.offsets))


@dataclass(frozen=True, slots=True)
class Opened:
    """A file of pieces, with the tensor that each of them holds."""

    source: Source
    parts: Mapping[Piece, Tensor | Unusable]


def _read_files(
    url: str, wanted: Mapping[str, Sequence[Piece]], files: Collection[str], profile: Profile
) -> dict[str, Opened | CheckpointError]:
    """The pieces of each file, or why it has none."""

    def attempt(name: str) -> Opened | CheckpointError:
        try:
            if name not in files:
                raise MissingShard(redact(join(url, name)), "this file is missing", hint="Fetch or upload the file")
            source = pin(join(url, name), profile)
            return _read_pieces(source, wanted[name], profile)
        except CheckpointError as error:
            return error

    if not is_remote(url):
        return {name: attempt(name) for name in wanted}
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        return dict(zip(wanted, pool.map(attempt, wanted), strict=True))


def _read_pieces(source: Source, pieces: Sequence[Piece], profile: Profile) -> Opened:
    """The first and last bytes of all pieces, asked for together: the end of one and the begin of the next are one."""
    ranges = Ranges(source, profile)
    inside = [piece for piece in pieces if piece.stop <= source.size]
    ends = [(piece.start, min(piece.start + ENDS, piece.stop)) for piece in inside]
    ranges.load([*ends, *((max(piece.stop - ENDS, piece.start), piece.stop) for piece in inside)])
    return Opened(source, {piece: _part(ranges, piece) for piece in pieces})


def _part(ranges: Ranges, piece: Piece) -> Tensor | Unusable:
    """The tensor that a piece holds."""
    try:
        if piece.stop > ranges.source.size:
            raise Unusable(f"a piece ends at byte {piece.stop:,}, its file at {ranges.source.size:,}", broken=True)
        return only_tensor(read_archive(ranges, piece.start, piece.stop))
    except CheckpointError as error:
        return Unusable(f"a piece of it: {error.failure.found}", error.failure.expected, broken=True)
    except Unusable as error:
        return error


def assembled(name: str, shape: tuple[int, ...], pieces: Sequence[Piece], parts: Sequence[Tensor | Unusable]) -> Tensor:
    """A tensor of its pieces; Unusable where they do not fit together."""
    found = []
    for piece, part in zip(pieces, parts, strict=True):
        if isinstance(part, Unusable):
            raise part
        if part.shape != piece.sizes or not len(piece.offsets) == len(piece.sizes) == len(shape):
            raise Unusable(
                f"a piece has shape {list(part.shape)}", f"{list(piece.sizes)} of {list(shape)}", broken=True
            )
        found.append(part)
    spans = tuple(part.spans[0] for part in found)
    kinds = {part.dtype for part in found}
    if len(kinds) > 1:
        raise Unusable(f"its pieces have several dtypes: {listed(sorted(kinds))}", broken=True)
    (kind,) = kinds
    if len(found) == 1 and found[0].shape == shape:
        return dataclasses.replace(found[0], name=name)
    scheme = matrix_of(shape, [(piece.offsets, piece.sizes) for piece in pieces])
    if scheme is None:
        raise Unusable("its pieces leave something out, overlap, or are cut along more axes than two")
    if any(part.scheme for part in found) or BITS.get(kind, 1) % 8:
        raise Unusable(f"pieces of {kind} in another order than that of the shape, which is not read")
    return Tensor(name, kind, shape, spans, dataclasses.replace(scheme, values=kind))
