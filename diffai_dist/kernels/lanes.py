"""Loops over vectors of LANES elements, as LLVM vector types: the processor's width decides speed, never bits.

A loop reads words (32 or 64 bits, the patterns of floats), computes one term per fold from each vector, and folds
the terms into lanes: element i goes to lane i mod LANES. At the end halves of the lanes are folded onto each other.
LLVM splits <16 x double> into the registers there are, and never reorders, so that every processor gives the same
bits. Numba's loop vectoriser cannot keep float sums in registers without fast-math.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numba import types
from numba.core.cgutils import ir, unpack_tuple  # llvmlite, as numba uses it
from numba.extending import intrinsic

# Frozen: another number gives other bits. 16 lanes are 2 registers of AVX-512 per sum, enough to hide the latency of
# an addition, and 4 of AVX2, so that the sums of a loop fit the 16 registers there.
LANES = 16

_COUNT = ir.IntType(64)
_REALS = ir.VectorType(ir.DoubleType(), LANES)


def _integers(bits: int) -> Any:
    return ir.VectorType(ir.IntType(bits), LANES)


def splat(kind: Any, value: float) -> Any:
    """A constant in all lanes."""
    return ir.Constant(kind, [ir.Constant(kind.element, value)] * LANES)


@dataclass(frozen=True)
class Fold:
    """How the terms of a loop become one number; the seed is neutral and stands in for lanes behind the end."""

    result: Any  # numba type
    seed: Callable[[int], float]  # of the word's bits
    join: Callable[[Any, Any, Any], Any]  # builder, left, right

    def vector(self, bits: int) -> Any:
        """The vector type of the lanes; integers are as wide as the words, for these take one register then."""
        return _REALS if self.result is types.float64 else _integers(bits)


def _pick(compare: str, sign: str) -> Callable[[Any, Any, Any], Any]:
    def join(builder: Any, left: Any, right: Any) -> Any:
        return builder.select(getattr(builder, sign)(compare, right, left), right, left)

    return join


SUM = Fold(types.float64, lambda bits: 0.0, lambda builder, left, right: builder.fadd(left, right))
TOP = Fold(types.float64, lambda bits: 0.0, _pick(">", "fcmp_ordered"))  # terms >= 0
HITS = Fold(types.int64, lambda bits: 0, lambda builder, left, right: builder.add(left, right))
UNSIGNED_MAX = Fold(types.uint64, lambda bits: 0, _pick(">", "icmp_unsigned"))
UNSIGNED_MIN = Fold(types.uint64, lambda bits: 2**bits - 1, _pick("<", "icmp_unsigned"))
SIGNED_MAX = Fold(types.int64, lambda bits: -(2 ** (bits - 1)), _pick(">", "icmp_signed"))


@dataclass(frozen=True)
class Words:
    """One vector of words of each input, a number, and what terms are made of."""

    builder: Any
    bits: int
    inputs: Sequence[Any]
    number: Any  # in all lanes

    @property
    def first(self) -> Any:
        return self.inputs[0]

    @property
    def second(self) -> Any:
        return self.inputs[1]

    @property
    def floats(self) -> Any:
        """The vector type of the floats the words are patterns of."""
        return ir.VectorType(ir.FloatType() if self.bits == 32 else ir.DoubleType(), LANES)

    def constant(self, value: int) -> Any:
        """An integer of the words' width in all lanes."""
        return splat(_integers(self.bits), value)

    def values(self, words: Any) -> Any:
        """The floats the words are patterns of, widened to float64."""
        if self.bits == 64:
            return self.builder.bitcast(words, _REALS)
        return self.builder.fpext(self.builder.bitcast(words, ir.VectorType(ir.FloatType(), LANES)), _REALS)

    def magnitude(self, words: Any) -> Any:
        """The words without their sign."""
        return self.builder.and_(words, self.constant(2 ** (self.bits - 1) - 1))

    def absolute(self, values: Any) -> Any:
        """|x| of float64 values."""
        pattern = self.builder.bitcast(values, _integers(64))
        return self.builder.bitcast(self.builder.and_(pattern, splat(_integers(64), 2**63 - 1)), _REALS)

    def hits(self, mask: Any) -> Any:
        """1 where the mask holds."""
        return self.builder.zext(mask, _integers(self.bits))


Terms = Callable[[Words], Sequence[Any]]


def loop(folds: Sequence[Fold], terms: Terms, into: int | None = None) -> Any:
    """An intrinsic `(kind, inputs, count, number) -> folds`; `inputs` are addresses of words of the kind's type.

    With `into`, the last input is the address of float64s, one for each word, and that term is added to them as well;
    the count is a multiple of LANES then.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def swept(typing: Any, kind: Any, inputs: Any, count: Any, number: Any) -> Any:
        results = types.Tuple([fold.result for fold in folds])
        signature = results(kind, inputs, types.int64, types.float64)

        def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
            _, addresses, count, number = arguments
            inputs = unpack_tuple(builder, addresses)
            lanes = _emit(builder, kind.bitwidth, inputs, count, number, folds, terms, into)
            values = [_collapse(builder, fold, vector) for fold, vector in zip(folds, lanes, strict=True)]
            return context.make_tuple(builder, results, values)

        return signature, generate

    return swept


def _emit(
    builder: Any,
    bits: int,
    inputs: Sequence[Any],
    count: Any,
    number: Any,
    folds: Sequence[Fold],
    terms: Terms,
    into: int | None,
) -> list[Any]:
    """The loop over whole vectors, and once more the same terms for the rest, whose missing lanes are seeds."""
    sources = inputs if into is None else inputs[:-1]
    pointers = [builder.inttoptr(address, ir.IntType(bits).as_pointer()) for address in sources]
    numbers = _spread(builder, number)
    seeds = [splat(fold.vector(bits), fold.seed(bits)) for fold in folds]

    def folded(state: Sequence[Any], at: Any, live: Any) -> list[Any]:
        words = [_load(builder, bits, pointer, at) for pointer in pointers]
        fresh = terms(Words(builder, bits, words, numbers))
        if into is not None:
            _add_at(builder, inputs[-1], at, fresh[into])
        if live is not None:
            fresh = [builder.select(live, term, seed) for term, seed in zip(fresh, seeds, strict=True)]
        return [fold.join(builder, old, new) for fold, old, new in zip(folds, state, fresh, strict=True)]

    whole = builder.and_(count, ir.Constant(_COUNT, -LANES))
    head, body, check, tail, done = (
        builder.append_basic_block(name) for name in ("head", "body", "check", "tail", "done")
    )
    entry = builder.block
    builder.branch(head)
    builder.position_at_end(head)
    at = builder.phi(_COUNT)
    state = [builder.phi(seed.type) for seed in seeds]
    builder.cbranch(builder.icmp_signed("<", at, whole), body, check)
    builder.position_at_end(body)
    turned = [builder.add(at, ir.Constant(_COUNT, LANES)), *folded(state, at, None)]
    for phi, start, turn in zip([at, *state], [ir.Constant(_COUNT, 0), *seeds], turned, strict=True):
        phi.add_incoming(start, entry)
        phi.add_incoming(turn, body)
    builder.branch(head)
    builder.position_at_end(check)
    builder.cbranch(builder.icmp_signed("<", whole, count), tail, done)
    builder.position_at_end(tail)
    rest = folded(state, whole, _live(builder, builder.sub(count, whole)))
    builder.branch(done)
    builder.position_at_end(done)
    return [_either(builder, (old, check), (new, tail)) for old, new in zip(state, rest, strict=True)]


def _either(builder: Any, *incoming: tuple[Any, Any]) -> Any:
    phi = builder.phi(incoming[0][0].type)
    for value, block in incoming:
        phi.add_incoming(value, block)
    return phi


def _load(builder: Any, bits: int, pointer: Any, at: Any) -> Any:
    # Byte alignment: inputs lie in files at any offset, and on current processors it costs nothing to say so.
    place = builder.bitcast(builder.gep(pointer, [at]), _integers(bits).as_pointer())
    return builder.load(place, align=1)


def _add_at(builder: Any, address: Any, at: Any, term: Any) -> None:
    """Add a vector to float64s in memory."""
    first = builder.gep(builder.inttoptr(address, ir.DoubleType().as_pointer()), [at])
    place = builder.bitcast(first, _REALS.as_pointer())
    builder.store(builder.fadd(builder.load(place, align=8), term), place, align=8)


def _spread(builder: Any, scalar: Any) -> Any:
    one = builder.insert_element(ir.Constant(_vector_of(scalar), ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, one, splat(_integers(32), 0))


def _vector_of(scalar: Any) -> Any:
    return ir.VectorType(scalar.type, LANES)


def _live(builder: Any, count: Any) -> Any:
    """Mask of the first `count` lanes."""
    numbers = ir.Constant(_integers(64), [ir.Constant(_COUNT, lane) for lane in range(LANES)])
    return builder.icmp_signed("<", numbers, _spread(builder, count))


def _collapse(builder: Any, fold: Fold, vector: Any) -> Any:
    """Upper half onto lower half until one lane is left, as 64 bits."""
    width = LANES
    while width > 1:
        width //= 2
        halves = [
            builder.shuffle_vector(
                vector, vector, ir.Constant(ir.VectorType(ir.IntType(32), width), list(range(start, start + width)))
            )
            for start in (0, width)
        ]
        vector = fold.join(builder, *halves)
    value = builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))
    if fold.result is types.float64 or value.type.width == 64:
        return value
    return builder.sext(value, _COUNT) if fold is SIGNED_MAX else builder.zext(value, _COUNT)


@intrinsic  # type: ignore[untyped-decorator]
def load(typing: Any, kind: Any, address: Any, index: Any) -> Any:
    """`load(kind, address, i)`: the i-th word of the kind's type behind an address of any alignment."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        pointer = builder.inttoptr(arguments[1], ir.IntType(kind.bitwidth).as_pointer())
        return builder.load(builder.gep(pointer, [arguments[2]]), align=1)

    return kind(kind, types.int64, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def real(typing: Any, word: Any) -> Any:
    """The float64 value of a pattern: of a float32 in an unsigned 32-bit word, of a float64 in a 64-bit word."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        if word.bitwidth == 64:
            return builder.bitcast(arguments[0], ir.DoubleType())
        return builder.fpext(builder.bitcast(arguments[0], ir.FloatType()), ir.DoubleType())

    return types.float64(word), generate


@intrinsic  # type: ignore[untyped-decorator]
def pattern(typing: Any, value: Any) -> Any:
    """The bits of a float64, or of a float32."""
    word = types.uint32 if value is types.float32 else types.uint64

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(word.bitwidth))

    return word(value), generate


@intrinsic  # type: ignore[untyped-decorator]
def real_of(typing: Any, kind: Any, word: Any) -> Any:
    """The float64 value of a pattern of the kind's width that is held in 64 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        if kind.bitwidth == 64:
            return builder.bitcast(arguments[1], ir.DoubleType())
        narrow = builder.trunc(arguments[1], ir.IntType(32))
        return builder.fpext(builder.bitcast(narrow, ir.FloatType()), ir.DoubleType())

    return types.float64(kind, types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def sign_of(typing: Any, kind: Any) -> Any:
    """The sign bit of the kind's width."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        return ir.Constant(_COUNT, 2 ** (kind.bitwidth - 1))

    return types.uint64(kind), generate


@intrinsic  # type: ignore[untyped-decorator]
def bytes_of(typing: Any, kind: Any) -> Any:
    """The bytes of a word of the kind's width."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        return ir.Constant(_COUNT, kind.bitwidth // 8)

    return types.int64(kind), generate
