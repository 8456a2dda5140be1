"""Lists of modules in a configuration: names, parts of names, patterns. Nothing in them is trusted."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

MOST_ENTRIES, MOST_PATTERNS, MOST_CHARACTERS = 10_000, 200, 256  # of a list; published ones have some hundred names
MOST_PARTS = 64  # of a module's name, between dots

_TOKEN = re.compile(r"\\\.|\.[*+]?|[\w:-]+|.", re.DOTALL)
_AS_GLOB = {"\\.": ".", ".*": "*", ".+": "?*", ".": "?"}


@dataclass(frozen=True, slots=True)
class Modules:
    """A list, taken apart once: a checkpoint asks it about each of its weights."""

    names: frozenset[str] = frozenset()
    globs: tuple[str, ...] = ()
    understood: bool = True  # whether it is a list, and every entry of it has a meaning

    @classmethod
    def of(cls, entries: object) -> Modules:
        """What a value of a configuration lists.

        A pattern is a glob, or `re:` with a regular expression of `.*`, `.+`, `.`, `\\.`, `^` and `$`, as published
        ones are: others could take for ever, and are not understood.
        """
        if not isinstance(entries, list) or len(entries) > MOST_ENTRIES:
            return cls(understood=False)
        names = [entry for entry in entries if isinstance(entry, str)]
        patterns = [name for name in names if name.startswith("re:") or not {"*", "?", "["}.isdisjoint(name)]
        globs = [_glob(pattern) for pattern in patterns[:MOST_PATTERNS]]
        understood = None not in globs and len(patterns) == len(globs)
        return cls(frozenset(names), tuple(glob for glob in globs if glob is not None), understood)

    def lists(self, module: str) -> bool | None:
        r"""Whether an entry is the module's name, a part of it up to a dot, or a pattern that matches it.

        None where that is not known.

        >>> one = Modules.of(["lm_head", r"re:.*\.gate$"])
        >>> one.lists("model.layers.0.mlp.gate"), one.lists("gates"), Modules.of(["re:(a+)+"]).lists("aaab")
        (True, False, None)
        """
        parts = module.split(".")
        if len(parts) > MOST_PARTS:
            return None
        ends = range(1, len(parts) + 1)
        if any(".".join(parts[:end]) in self.names or ".".join(parts[-end:]) in self.names for end in ends):
            return True
        if any(fnmatchcase(module, glob) for glob in self.globs):
            return True
        return False if self.understood else None


def _glob(pattern: str) -> str | None:
    """The glob with the meaning of a pattern, which matches without going back; None where there is none."""
    if len(pattern) > MOST_CHARACTERS:
        return None
    if not pattern.startswith("re:"):
        return pattern
    text = pattern.removeprefix("re:").removeprefix("^")
    tokens = _TOKEN.findall(text.removesuffix("$"))
    if not all(token in _AS_GLOB or token[0] == "_" or token[0].isalnum() for token in tokens):
        return None
    return "".join(_AS_GLOB.get(token, token) for token in tokens) + ("" if text.endswith("$") else "*")
