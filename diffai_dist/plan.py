"""What to read together, each byte once: lanes, subtrees, units. Made from headers alone; nothing here does I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from diffai_dist.checkpoint import Tensor
from diffai_dist.comparison import Aligned, Comparison, Pair
from diffai_dist.dtypes import Family
from diffai_dist.grid import column_count, leaf_count, leaf_elements, row_elements
from diffai_dist.partials import (
    ALGORITHM,
    BITWISE,
    BLOCK,
    COLUMN,
    COLUMN_SHIFT,
    CONTENT,
    GRAM,
    MOMENTS,
    ROW,
    ROW_SHIFT,
    SHIFT,
)
from diffai_dist.storage import Profile, chunk_bytes, is_remote

# A unit should take about a second on a worker (dask costs up to 4 ms a task), yet leave every thread several units.
LARGEST_UNIT = 256 * 2**20
SMALLEST_UNIT = 16 * 2**20
UNITS_PER_RUN = 64
SUBTREES_PER_UNIT = 4096  # bounds what a task carries where tensors are tiny
ROWS_PER_UNIT = 16 * 2**20  # bytes of partials that a unit gives at most, where there are many members and pairs

# One thread's buffer: what it reads before it computes. Local reads of 1 MiB stay in the cache between the two;
# remote ones want 4 ranges of 8 MiB under way.
LOCAL_ARENA = 4 * 2**20
REMOTE_ARENA = 64 * 2**20
GRAM_FAMILIES = (Family.SINGLE, Family.DOUBLE)
REAL_FAMILIES = (*GRAM_FAMILIES, Family.INTEGER)  # those that have rows and columns
ROOM = 2 * (8 * BLOCK + 8)  # bytes: two blocks of the widest dtype, a byte more where nibbles begin inside one
BASE_MEMORY = 220 * 2**20  # Python, NumPy, numba and the compiled kernels, measured


@dataclass(frozen=True, slots=True)
class Lane:
    """One aligned tensor in the members that share its shape. `tensors` are nameless: a task needs no names.

    `pairs` and `gram` say what is measured beside the members themselves: elements pair by pair, products of the group.
    """

    places: tuple[int, ...]  # indices into comparison.aligned: of several that are the same bytes in all members, ties
    tensors: tuple[Tensor | None, ...]
    shape: tuple[int, ...]
    nbytes: int  # to be read; a range that members or places share counts once
    shared: int  # bytes that need not be read again for that reason
    level: int  # a subtree covers 2**level leaves
    nodes: int  # how many subtrees that makes
    pairs: bool = True
    gram: bool = False
    height: int = 0  # rows of which partials are kept
    width: int = 0  # and columns

    @property
    def leaf(self) -> int:
        """Elements of a leaf."""
        return leaf_elements(self.shape)


@dataclass(frozen=True, slots=True)
class Subtree:
    """A subtree of a lane's leaves: elements [first, stop) of all its members."""

    lane: int
    node: int
    first: int
    stop: int
    leaf: int
    tensors: tuple[Tensor | None, ...]
    row: int = 0  # elements of a row of which partials are kept; 0 where there are none
    width: int = 0  # columns of which partials are kept


@dataclass(frozen=True, slots=True)
class Unit:
    """What one task reads and measures."""

    index: int
    subtrees: tuple[Subtree, ...]
    pairs: tuple[tuple[int, int], ...]
    members: int
    anchor: int  # member around which the Gram is taken; -1 for none
    arena: int  # bytes of buffer
    nbytes: int
    profile: Profile
    details: tuple[str, ...] = ()  # out of partials.DETAILS

    @property
    def key(self) -> str:
        """Digest of all that decides the result: pinned objects, ranges, dtypes, leaves, algorithm."""
        asked = f"{ALGORITHM} {self.pairs} {self.members} {self.anchor} {self.details}"
        digest = hashlib.blake2b(asked.encode(), digest_size=16)
        for subtree in self.subtrees:
            digest.update(repr((subtree.first, subtree.stop, subtree.leaf, subtree.tensors)).encode())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Plan:
    """A comparison cut into units. The cut changes how work is spread, never a bit of the result."""

    comparison: Comparison
    lanes: tuple[Lane, ...]
    unit_bytes: int
    arena: int
    profile: Profile

    @property
    def nbytes(self) -> int:
        """Bytes that a run reads."""
        return sum(lane.nbytes for lane in self.lanes)

    @property
    def shared_bytes(self) -> int:
        """Bytes that are read once although several members have them."""
        return sum(lane.shared for lane in self.lanes)

    @property
    def requests(self) -> int:
        """About how many ranges are asked for over a network; none for local files."""
        total, region = 0, self.arena // max(1, len(self.comparison.members))
        for lane in self.lanes:
            spans = {span for tensor in lane.tensors if tensor for span in tensor.spans}
            remote = [span for span in spans if is_remote(span.source.url)]
            total += sum(-(-(span.stop - span.start) // min(chunk_bytes(span.source), region)) for span in remote)
        return total

    def peak_memory(self, threads: int) -> int:
        """Bytes of memory that a process with so many threads needs at most, results aside."""
        comparison = self.comparison
        results = len(comparison.aligned) * _row_bytes(comparison, True, comparison.anchor is not None)
        tables = sum(len(lane.places) * table_bytes(comparison, lane.height, lane.width) for lane in self.lanes)
        widest = max(
            (lane.width * min(lane.nodes and 2**lane.level, self.unit_bytes) for lane in self.lanes), default=0
        )
        working = table_bytes(comparison, 0, widest) + _histogram_bytes(comparison)
        working += max((_coded_bytes(lane, self.arena) for lane in self.lanes), default=0)
        return BASE_MEMORY + threads * (self.arena + 2**20 + working) + results + 2 * tables

    def units(self) -> Iterator[Unit]:
        """The units, made one by one: small lanes share one, large ones are cut."""
        comparison = self.comparison
        every = tuple((pair.baseline, pair.candidate) for pair in comparison.pairs)
        for index, (lane, subtrees, nbytes) in enumerate(_pack(comparison, self.lanes, self.unit_bytes)):
            anchor = comparison.anchor if lane.gram and comparison.anchor is not None else -1
            pairs = every if lane.pairs else ()
            yield Unit(
                index, subtrees, pairs, len(comparison.members), anchor, self.arena, nbytes, self.profile,
                comparison.details,
            )  # fmt: skip


def table_bytes(comparison: Comparison, height: int, width: int) -> int:
    """Bytes of the rows and columns of one tensor."""
    members, pairs = len(comparison.members), len(comparison.pairs)
    rows = ROW.itemsize * members + ROW_SHIFT.itemsize * pairs
    return height * rows + width * (COLUMN.itemsize * members + COLUMN_SHIFT.itemsize * pairs)


def _coded_bytes(lane: Lane, arena: int) -> int:
    """Bytes of codes that a thread holds beside their values: all of a tensor, and of others fewer than those take."""
    coded = [one for one in lane.tensors if one and one.scheme]
    return sum(one.nbytes for one in coded if one.scheme and one.scheme.whole) + (arena if coded else 0)


def _histogram_bytes(comparison: Comparison) -> int:
    """Bytes of the counts of all bins that a task keeps."""
    return 8 * 2**16 * len(comparison.members) if {"histogram", "codes"}.intersection(comparison.details) else 0


def _row_bytes(comparison: Comparison, pairs: bool, gram: bool) -> int:
    """Bytes of all partials of one tensor."""
    members = len(comparison.members)
    products = 8 * len(GRAM) * members**2 if gram else 0
    moments = MOMENTS.itemsize + CONTENT.itemsize * ("content" in comparison.details)
    shifts = SHIFT.itemsize + BITWISE.itemsize * ("bitwise" in comparison.details)
    return moments * members + (shifts * len(comparison.pairs) if pairs else 0) + products


def make_plan(comparison: Comparison, profile: Profile, unit_bytes: int | None = None) -> Plan:
    """Cut a comparison into units of about `unit_bytes` bytes over all members, by default fit for its size."""
    places: dict[tuple[Tensor | None, ...], list[int]] = {}
    for index, one in enumerate(comparison.aligned):
        for group in _groups(one, comparison.pairs):
            places.setdefault(group, []).append(index)
    groups = sorted(places, key=_place)
    total = sum(tensor.nbytes for group in groups for tensor in group if tensor)
    unit_bytes = unit_bytes or min(max(total // UNITS_PER_RUN, SMALLEST_UNIT), LARGEST_UNIT)
    remote = any(is_remote(source.url) for member in comparison.members for source in member.sources)
    # A block of every member must fit, be there ever so many of them.
    arena = max(REMOTE_ARENA if remote else LOCAL_ARENA, len(comparison.members) * ROOM)
    lanes = tuple(_lane(comparison, places[group], group, unit_bytes) for group in groups)
    return Plan(comparison, lanes, unit_bytes, arena, profile)


def _groups(aligned: Aligned, pairs: Iterable[Pair]) -> Iterator[tuple[Tensor | None, ...]]:
    """The members' tensors, apart where their shapes differ, without those that nothing readable is compared with."""
    wanted = {
        member
        for pair in pairs
        if not (aligned.unreadable[pair.baseline] or aligned.unreadable[pair.candidate])
        for member in (pair.baseline, pair.candidate)
    }
    tensors = [tensor if member in wanted else None for member, tensor in enumerate(aligned.tensors)]
    for shape in dict.fromkeys(_measured_shape(tensor) for tensor in tensors if tensor):
        yield tuple(
            _nameless(tensor, shape) if tensor and _measured_shape(tensor) == shape else None for tensor in tensors
        )


def _measured_shape(tensor: Tensor) -> tuple[int, ...]:
    """Bytes where the dtype has no decoder: those of unknown layout are measured as a run of bytes."""
    return (tensor.nbytes,) if tensor.decoder.family == Family.BYTES else tensor.shape


def _nameless(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    return Tensor("", tensor.dtype, shape, tensor.spans, tensor.scheme)


def _place(group: tuple[Tensor | None, ...]) -> tuple[int, str, int]:
    """Where the first member that has it keeps it: reading in file order lets neighbours share a request."""
    member, tensor = next((m, tensor) for m, tensor in enumerate(group) if tensor)
    return member, tensor.spans[0].source.url, tensor.spans[0].start


def _lane(comparison: Comparison, places: Iterable[int], group: tuple[Tensor | None, ...], unit_bytes: int) -> Lane:
    present = [tensor for tensor in group if tensor]
    shape, leaves = present[0].shape, leaf_count(present[0].shape)
    nbytes = sum(span.stop - span.start for span in {span for tensor in present for span in tensor.spans})
    places = tuple(places)
    shared = sum(tensor.nbytes for tensor in present) * len(places) - nbytes
    # The largest subtree that fits a unit; at least one leaf, which is the grid's and not ours to cut.
    level = max(0, (unit_bytes * leaves // nbytes).bit_length() - 1) if nbytes else 0
    if any(one.scheme and one.scheme.whole for one in present):
        level = max(leaves - 1, 0).bit_length()  # all of it: each unit would read the whole again
    # 64-bit integers are not exact in float64, and complex numbers are pairs: both are few, and go pair by pair.
    gram = comparison.anchor is not None and all(one.decoder.family in GRAM_FAMILIES for one in present)
    nodes = -(-leaves // 2**level)
    row, width = _table(comparison, present)
    return Lane(
        places, group, shape, nbytes, shared, level, nodes, comparison.elementwise or not gram, gram,
        present[0].elements // row if row else 0, width,
    )  # fmt: skip


def is_real(tensor: Tensor) -> bool:
    """Whether its values are real numbers, which have rows, columns and bins."""
    return tensor.decoder.family in REAL_FAMILIES


def _table(comparison: Comparison, present: Sequence[Tensor]) -> tuple[int, int]:
    """Elements of a row, and columns, of which partials are asked for; 0 where there are none."""
    if not any(map(is_real, present)):
        return 0, 0
    shape = present[0].shape
    row = row_elements(shape) if {"rows", "columns"}.intersection(comparison.details) else 0
    return row, column_count(shape) if "columns" in comparison.details else 0


def _subtrees(lane_index: int, lane: Lane) -> Iterator[tuple[Subtree, int]]:
    """The subtrees of a lane, each with its bytes."""
    leaf = lane.leaf
    present = [tensor for tensor in lane.tensors if tensor]
    elements, step = present[0].elements, leaf * 2**lane.level
    for node in range(lane.nodes):
        first, stop = node * step, min((node + 1) * step, elements)
        row = elements // lane.height if lane.height else 0
        subtree = Subtree(lane_index, node, first, stop, leaf, lane.tensors, row, lane.width)
        yield subtree, lane.nbytes * (stop - first) // elements


def _pack(
    comparison: Comparison, lanes: Sequence[Lane], unit_bytes: int
) -> Iterator[tuple[Lane, tuple[Subtree, ...], int]]:
    """Runs of subtrees that fit a unit, each with a lane that stands for all of its unit, and its bytes."""
    subtrees: list[Subtree] = []
    size = 0
    for kind in dict.fromkeys((lane.pairs, lane.gram) for lane in lanes):
        most = min(SUBTREES_PER_UNIT, max(1, ROWS_PER_UNIT // _row_bytes(comparison, *kind)))
        for index, lane in enumerate(lanes):
            if (lane.pairs, lane.gram) != kind:
                continue
            for subtree, nbytes in _subtrees(index, lane):
                if subtrees and (size + nbytes > unit_bytes or len(subtrees) >= most):
                    yield lanes[subtrees[0].lane], tuple(subtrees), size
                    subtrees, size = [], 0
                subtrees.append(subtree)
                size += nbytes
        if subtrees:
            yield lanes[subtrees[0].lane], tuple(subtrees), size
        subtrees, size = [], 0
