"""What a configuration says of the codes of one module; nothing in it is trusted."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal

from diffai_dist.schemes.stored import Declared, Undecodable

# The keys that list modules without codes, by who writes them: compressed-tensors and ModelOpt, transformers, ModelOpt.
LEFT_OUT = ("ignore", "modules_to_not_convert", "exclude_modules")
MOST_ENTRIES, MOST_PATTERNS, MOST_CHARACTERS = 10_000, 200, 256  # of a list; published ones have some hundred names

_TOKEN = re.compile(r"\\\.|\.[*+]?|[\w:-]+|.", re.DOTALL)
_AS_GLOB = {"\\.": ".", ".*": "*", ".+": "?*", ".": "?"}


def weights(declared: Declared) -> Iterator[tuple[Mapping[str, Any], Any]]:
    """What the groups of a configuration of compressed-tensors say of weights, and their targets."""
    groups = declared.fields.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        if isinstance(group, dict) and isinstance(group.get("weights"), dict):
            yield group["weights"], group.get("targets")


def blocks(declared: Declared) -> list[tuple[int, int]]:
    """All blocks that are declared, for whichever module: the shape of the scales says which one is meant."""
    found = [declared.fields.get("weight_block_size")]
    for one, _ in weights(declared):
        found += [one.get("block_structure"), [1, one.get("group_size")]]
    usable = [one for one in found if isinstance(one, list) and len(one) == 2]
    return [(one[0], one[1]) for one in usable if all(type(size) is int and size > 0 for size in one)]


def refuse_rotated(declared: Declared) -> None:
    """Raise Undecodable where a transform is declared: weights are then in another basis than the baseline's."""
    if declared.fields.get("transform_config"):
        raise Undecodable("it is rotated (transform_config): its values are not in the basis of an unrotated model")


def has_codes(declared: Declared, module: str, kind: Literal["float", "int"]) -> bool:
    """Whether the weight of a module is declared to be codes of that kind, so that it must have scales."""
    if left_out(declared, module) is not False or "embed" in module.rpartition(".")[2]:
        return False
    if declared.method == "compressed-tensors":
        return any(
            one.get("type") == kind and (kind == "int" or one.get("num_bits") == 8) and _meant(targets, module)
            for one, targets in weights(declared)
        )
    algorithm = declared.fields.get("quant_algo")
    modelopt = declared.method.startswith("modelopt") and isinstance(algorithm, str) and algorithm.startswith("FP8")
    transformers = declared.method in ("fp8", "fbgemm_fp8") and module.rpartition(".")[2] != "lm_head"
    return kind == "float" and (modelopt or transformers)


def left_out(declared: Declared, module: str) -> bool | None:
    """Whether a module is listed as one without codes; None where a list, or an entry of it, is not understood."""
    found = [listed(declared.fields.get(key), module) for key in LEFT_OUT if declared.fields.get(key)]
    return True if True in found else None if None in found else False


def listed(entries: object, module: str) -> bool | None:
    r"""Whether one of the entries is the module's name, a part of it up to a dot, or a pattern that matches it.

    A pattern is a glob, or `re:` with a regular expression of `.*`, `.+`, `.`, `\.`, `^` and `$`, as published ones
    are: others could take for ever, and make the answer None.

    >>> listed(["lm_head", r"re:.*\.gate$"], "model.layers.0.mlp.gate"), listed(["re:(a+)+"], "aaab")
    (True, None)
    """
    if not isinstance(entries, list) or len(entries) > MOST_ENTRIES:
        return None
    names = [entry for entry in entries if isinstance(entry, str)]
    patterns = [name for name in names if name.startswith("re:") or not {"*", "?", "["}.isdisjoint(name)]
    if any(f".{module}.".startswith(f".{name}.") or f".{module}".endswith(f".{name}") for name in names):
        return True
    globs = [_glob(pattern) for pattern in patterns[:MOST_PATTERNS]]
    if any(glob is not None and fnmatchcase(module, glob) for glob in globs):
        return True
    return None if None in globs or len(patterns) > len(globs) else False


def disagreements(declared: Declared, module: str, stored_as: str, methods: Container[str]) -> tuple[str, ...]:
    """Remarks on a configuration that the tensors do not bear out; `methods` are those of other layouts than theirs."""
    if declared.method in methods:
        return (f"{declared.file} declares {declared.method}, but what is stored is {stored_as}, and read as that",)
    if left_out(declared, module):
        return (f"{declared.file} lists modules as not quantised that are {stored_as}, and read as that",)
    return ()


def _meant(targets: object, module: str) -> bool:
    """Whether a group is for the module: `Linear` is for all that has a matrix, but for embeddings."""
    return isinstance(targets, list) and ("Linear" in targets or listed(targets, module) is True)


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
