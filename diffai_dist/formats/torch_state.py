"""Which tensors the object in a torch file holds, and under which names. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field

from diffai_dist.formats.names import SHOWN_CHARACTERS, listed
from diffai_dist.formats.torch_views import PLAIN, Unusable, View, view_of
from diffai_dist.formats.unpickling import Made, Pairs, Persistent

MAX_WORK = 60_000_000  # some 5 s: a pickle of some hundred bytes can name one tensor 10^9 times over
VISIT_WORK = 30  # of an object that may hold others, against looking at one that cannot
MAX_DEPTH = 64
MAX_NAME_CHARACTERS = 64 * 1024 * 1024  # of all names together
MAX_SCALARS = 64  # of the outermost dict, which become metadata: epoch, step, version

_ORDERED = "collections.OrderedDict"
_PARTS = frozenset({"_parameters", "_buffers", "_modules"})  # attributes of a pickled module
_HOLDERS = (list, tuple, Pairs, Made, Persistent)
_ARRAYS = frozenset(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core"))

# Objects of these hold no tensor, or are looked into like what they stand for.
_FAMILIAR = PLAIN | _ARRAYS | {
    _ORDERED, "collections.Counter", "collections.defaultdict", "torch.Size", "torch.device", "torch.Generator",
    "torch.serialization._get_layout", "_codecs.encode", "builtins.set", "builtins.frozenset", "builtins.bytearray",
    "builtins.complex", "builtins.slice", "builtins.dict", "builtins.list", "builtins.tuple", "builtins.int",
    "builtins.float", "builtins.str", "builtins.bytes", "builtins.object", "builtins.range", "__builtin__.set",
    "__builtin__.dict", "__builtin__.object", "__builtin__.bytearray", "__builtin__.long", "__builtin__.complex",
    "copy_reg._reconstructor", "copyreg._reconstructor", "datetime.datetime", "datetime.timedelta",
    "pathlib.Path", "pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath",
    "argparse.Namespace", "types.SimpleNamespace",
    *(f"numpy.{name}" for name in ("dtype", "ndarray")),
    *(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")),
}  # fmt: skip

# Who unpickles a file that names one of these, or what is in them, runs what the file says. Nothing depends on the list
# being complete: here nothing is run, and classes that are not in it are named, too.
_RUNS_CODE = frozenset(
    "os posix nt subprocess sys pty runpy shutil socket importlib ctypes webbrowser pickle _pickle cPickle marshal "
    "shelve imp pip pdb bdb doctest builtins __builtin__ code.interact code.InteractiveInterpreter timeit.timeit "
    "cProfile.run profile.run operator.attrgetter operator.methodcaller _operator.attrgetter _operator.methodcaller "
    "functools.reduce numpy.load numpy.testing".split()
).union(f"torch.{name}" for name in ("load", "hub", "serialization.load", "storage._load_from_bytes"))
LONGEST = 3  # parts of the longest of them


@dataclass(slots=True)
class State:
    """What the object of a torch file holds."""

    views: dict[str, View] = field(default_factory=dict)
    unusable: dict[str, Unusable] = field(default_factory=dict)
    scalars: dict[str, str] = field(default_factory=dict)  # of the outermost dict
    arrays: list[str] = field(default_factory=list)  # names of NumPy arrays
    strange: dict[str, None] = field(default_factory=dict)  # classes that torch would import, in order


class TooMuch(ValueError):
    """More names than any checkpoint has."""


def harmful(names: frozenset[str]) -> list[str]:
    """Those of the names that a pickle imports which run code of its choice.

    >>> harmful(frozenset({"posix.system", "builtins.eval", "builtins.set", "torch.FloatStorage"}))
    ['builtins.eval', 'posix.system']
    """
    found = (name for name in names if name not in _FAMILIAR)
    return sorted(name for name in found if name in _RUNS_CODE or not _RUNS_CODE.isdisjoint(_parents(name)))


def _parents(name: str) -> list[str]:
    parts = name.split(".")[:-1][:LONGEST]
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def state_of(root: object) -> State:
    """All tensors, with dotted names; raises TooMuch where there is no end of them.

    The names of a state dict stay as they are; keys of the dicts around it come before them.
    """
    walk = _Walk(State(scalars=_scalars(root)))
    walk.visit("", root, 0)
    return walk.state


class _Walk:
    """Down through all objects that may hold tensors, also those that are there many times over."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.work = 0
        self.characters = 0

    def visit(self, name: str, value: object, depth: int) -> None:
        """Note what a tensor, or all that an object holds, is called."""
        if isinstance(value, Made) and value.path in _ARRAYS:
            self.state.arrays.append(name or "array")
            self._spend(VISIT_WORK, len(name))
        elif isinstance(value, Persistent) or (isinstance(value, Made) and _is_tensor(value)):
            _add(self.state, name or "tensor", value)
            self._spend(VISIT_WORK, len(name))
        else:
            self._visit_all(name, value, depth)

    def _visit_all(self, name: str, value: object, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise TooMuch(f"objects nested more than {MAX_DEPTH} deep")
        if isinstance(value, Made) and value.path not in _FAMILIAR and len(self.state.strange) < MAX_SCALARS:
            self.state.strange[value.path or "?"] = None
        children = _children(value)
        self._spend(VISIT_WORK + len(children), 0)
        for key, child in children:
            if isinstance(child, _HOLDERS):
                self.visit(_joined(name, key), child, depth + 1)

    def _spend(self, work: int, characters: int) -> None:
        self.work += work
        self.characters += characters
        if self.work > MAX_WORK or self.characters > MAX_NAME_CHARACTERS:
            raise TooMuch("more names of tensors, or of objects that may hold some, than any checkpoint has")


def _children(value: object) -> list[tuple[object, object]]:
    """What an object holds, by key, attribute or number; attributes of a module that hold its parts have no name."""
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    if isinstance(value, Pairs):
        return value.pairs
    if not isinstance(value, Made):
        return []
    if value.path == _ORDERED:  # its state is the _metadata of a module
        return value.pairs
    arguments = value.arguments if isinstance(value.arguments, tuple) else ()
    states = value.state if isinstance(value.state, tuple) else (value.state,)
    attributes = [pair for one in states if isinstance(one, Pairs) for pair in one.pairs]
    named = [(None if type(key) is str and key in _PARTS else key, child) for key, child in attributes]
    return [*enumerate((*arguments, *value.items)), *value.pairs, *named]


def _joined(name: str, key: object) -> str:
    if key is None:
        return name
    if type(key) is int and abs(key) < 2**63:
        key = str(key)
    text = key if type(key) is str else f"<{type(key).__name__}>"
    return f"{name}.{text}" if name else text


def _scalars(root: object) -> dict[str, str]:
    """Numbers and short texts of the outermost dict: epoch, step, version."""
    found: dict[str, str] = {}
    for key, value in root.pairs if isinstance(root, Pairs | Made) else ():
        usable = type(value) in (float, bool) or (type(value) is int and abs(value) < 2**63)
        usable = usable or (type(value) is str and len(value) <= SHOWN_CHARACTERS)
        if type(key) is str and len(key) <= SHOWN_CHARACTERS and usable and len(found) < MAX_SCALARS:
            found[key] = str(value)
    return found


def _is_tensor(value: Made) -> bool:
    module, _, name = value.path.rpartition(".")
    return name.startswith("_rebuild") and (module == "torch" or module.startswith("torch."))


def _add(state: State, name: str, value: Made | Persistent) -> None:
    if name in state.views or name in state.unusable:
        state.views.pop(name, None)
        state.unusable[name] = Unusable("several tensors have this name", broken=True)
        return
    try:
        if isinstance(value, Persistent):
            raise Unusable("a bare storage, which has no shape")
        state.views[name] = view_of(value)
    except Unusable as error:
        state.unusable[name] = error


def remarks(state: State) -> tuple[str, ...]:
    """What is odd about the file, one sentence each."""
    found = []
    if state.strange:
        found.append(
            f"objects of classes that are not loaded, only looked into for tensors: {listed(list(state.strange))}"
        )
    if state.arrays:
        found.append(f"{len(state.arrays):,} NumPy arrays are no tensors and are not compared: {listed(state.arrays)}")
    if not state.views and not state.unusable:
        found.append("it holds no tensors")
    return tuple(found)
