"""What a pickle describes, as plain records. Nothing is imported, made or called, whatever the pickle asks for.

The unpickler of the standard library is not used: of five bytes, it allocates 64 GB (the index of a memo), it hashes
keys that a file can choose to collide, and it calls what it is given. Here a call becomes a record of who was to be
called with what, and a dict a list of pairs. Opcodes are decoded by `pickletools`, which only reads.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_BYTES = 256 * 1024 * 1024
MAX_OPERATIONS = 16_000_000  # a tensor takes some 40; they decode at some 0.5 million a second


class BadPickle(ValueError):
    """What is wrong with a pickle; the caller adds whose it is."""


@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """A name that the pickle wants to import."""

    path: str  # module.name


@dataclass(frozen=True, slots=True, eq=False)
class Persistent:
    """Something that the pickle refers to and does not hold."""

    id: object


@dataclass(slots=True, eq=False)
class Pairs:
    """A dict, its keys not hashed."""

    pairs: list[tuple[object, object]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Made:
    """What a call would have made: an object of a class, or whatever a function returns; and what was put into it."""

    maker: object
    arguments: object
    items: list[object] = field(default_factory=list)
    pairs: list[tuple[object, object]] = field(default_factory=list)
    state: object = None

    @property
    def path(self) -> str:
        """Who was to be called; "" for something that has no name."""
        return self.maker.path if isinstance(self.maker, Global) else ""


def unpickle(data: bytes, most: int = MAX_OPERATIONS) -> tuple[object, frozenset[str]]:
    """The object that a pickle describes, and all names that it wants to import; BadPickle where it is broken.

    >>> made, names = unpickle(b"cposix\\nsystem\\n(S'rm -r /'\\ntR.")
    >>> made.path, made.arguments, sorted(names)
    ('posix.system', ('rm -r /',), ['posix.system'])
    """
    if len(data) > MAX_BYTES:
        raise BadPickle(f"a pickle of {len(data):,} bytes, more than {MAX_BYTES:,}")
    machine = _Machine()
    try:
        for number, (opcode, argument) in enumerate(_operations(data)):
            if number >= most:
                raise BadPickle(f"a pickle of more than {most:,} operations")
            if opcode == "STOP":
                return machine.stack.pop(), frozenset(machine.names)
            OPERATIONS[opcode](machine, argument)
    except BadPickle:
        raise
    except KeyError as error:
        raise BadPickle("a pickle with an operation or an entry of its memo that is not there") from error
    except (ValueError, IndexError, OverflowError, EOFError, struct.error, Warning) as error:  # odd escapes warn
        raise BadPickle("a pickle that is cut short or broken") from error
    raise BadPickle("a pickle without an end")


def _operations(data: bytes) -> Iterator[tuple[str, Any]]:
    import pickletools

    for opcode, argument, _ in pickletools.genops(data):
        yield opcode.name, argument


class _Machine:
    """The stack, the stacks below its marks, and the memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.names: set[str] = set()

    def since_mark(self) -> list[Any]:
        """All that was pushed since the last mark, which goes."""
        found, self.stack = self.stack, self.below.pop()
        return found

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def replace(self, count: int, make: Callable[..., object]) -> None:
        """Put what is made of the topmost objects in their place."""
        if len(self.stack) < count:
            raise IndexError
        self.stack[-count:] = [make(*self.stack[-count:])]

    def keep(self, place: int) -> None:
        if not 0 <= place < 2**32:  # larger ones can be chosen so that their hashes collide
            raise BadPickle("a pickle with a memo of more than 2^32 entries")
        self.memo[place] = self.stack[-1]

    def put(self, pairs: list[Any]) -> None:
        """Keys and values, one after the other, into the dict on top."""
        target = self.stack[-1]
        if not isinstance(target, Pairs | Made) or len(pairs) % 2:
            raise BadPickle("a pickle that puts keys into something else than a dict")
        target.pairs.extend(zip(pairs[::2], pairs[1::2], strict=True))

    def append(self, items: list[Any]) -> None:
        """Items into the list or set on top."""
        target = self.stack[-1]
        if not isinstance(target, list | Made):
            raise BadPickle("a pickle that appends to something else than a list")
        (target.items if isinstance(target, Made) else target).extend(items)

    def build(self, state: object) -> None:
        target = self.stack[-1]
        if not isinstance(target, Made):
            raise BadPickle("a pickle that gives a state to something else than an object")
        target.state = state

    def named(self, module: object, name: object) -> Global:
        if type(module) is not str or type(name) is not str:
            raise BadPickle("a pickle that imports something without a name")
        self.names.add(path := f"{module}.{name}")
        return Global(path)


def _made(maker: object, arguments: object, named: object = None) -> Made:
    return Made(maker, arguments)


def _object(machine: _Machine) -> Made:
    maker, *arguments = machine.since_mark()
    return Made(maker, tuple(arguments))


def _dict(items: list[Any]) -> Pairs:
    if len(items) % 2:
        raise IndexError
    return Pairs(list(zip(items[::2], items[1::2], strict=True)))


Operation = Callable[[_Machine, Any], object]


def _push(machine: _Machine, value: object) -> None:
    machine.stack.append(value)


_VALUES = """
    INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES
    BINBYTES8 BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8
""".split()  # opcodes whose argument is what they push

# Those of extension registries and of buffers outside of the pickle are not there.
OPERATIONS: Mapping[str, Operation] = {
    **dict.fromkeys(_VALUES, _push),
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "NONE": lambda machine, _: _push(machine, None),
    "NEWTRUE": lambda machine, _: _push(machine, True),
    "NEWFALSE": lambda machine, _: _push(machine, False),
    "EMPTY_LIST": lambda machine, _: _push(machine, []),
    "EMPTY_TUPLE": lambda machine, _: _push(machine, ()),
    "EMPTY_DICT": lambda machine, _: _push(machine, Pairs()),
    "EMPTY_SET": lambda machine, _: _push(machine, []),
    "MARK": lambda machine, _: machine.mark(),
    "POP": lambda machine, _: machine.stack.pop() if machine.stack else machine.since_mark(),
    "POP_MARK": lambda machine, _: machine.since_mark(),
    "DUP": lambda machine, _: _push(machine, machine.stack[-1]),
    "LIST": lambda machine, _: _push(machine, machine.since_mark()),
    "TUPLE": lambda machine, _: _push(machine, tuple(machine.since_mark())),
    "FROZENSET": lambda machine, _: _push(machine, tuple(machine.since_mark())),
    "DICT": lambda machine, _: _push(machine, _dict(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.replace(1, lambda *items: items),
    "TUPLE2": lambda machine, _: machine.replace(2, lambda *items: items),
    "TUPLE3": lambda machine, _: machine.replace(3, lambda *items: items),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "ADDITEMS": lambda machine, _: machine.append(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.put([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine.put(machine.since_mark()),
    "GET": lambda machine, place: _push(machine, machine.memo[place]),
    "BINGET": lambda machine, place: _push(machine, machine.memo[place]),
    "LONG_BINGET": lambda machine, place: _push(machine, machine.memo[place]),
    "PUT": _Machine.keep,
    "BINPUT": _Machine.keep,
    "LONG_BINPUT": _Machine.keep,
    "MEMOIZE": lambda machine, _: machine.keep(len(machine.memo)),
    "GLOBAL": lambda machine, pair: _push(machine, machine.named(*pair.split(" ", 1))),
    "STACK_GLOBAL": lambda machine, _: machine.replace(2, machine.named),
    "REDUCE": lambda machine, _: machine.replace(2, _made),
    "NEWOBJ": lambda machine, _: machine.replace(2, _made),
    "NEWOBJ_EX": lambda machine, _: machine.replace(3, _made),
    "INST": lambda machine, pair: _push(machine, Made(machine.named(*pair.split(" ", 1)), tuple(machine.since_mark()))),
    "OBJ": lambda machine, _: _push(machine, _object(machine)),
    "BUILD": lambda machine, _: machine.build(machine.stack.pop()),
    "PERSID": lambda machine, name: _push(machine, Persistent(name)),
    "BINPERSID": lambda machine, _: machine.replace(1, Persistent),
}
