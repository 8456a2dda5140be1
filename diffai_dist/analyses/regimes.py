"""What kind of training made one checkpoint of another: a label for evidence, which is always given with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from diffai_dist.analyses.moves import Moves, Part, changed_share, is_adapter, moved_share, reinitialised

_PROJECTIONS = {"q", "k", "v", "kv", "qkv", "o", "gate", "up", "gate_up", "down", "expert"}
_NEARLY_ALL = 0.9  # of the blocks that have a role, or of the elements. Judgement
_STRAIGHT = 1e-7  # 1 - cos
_ASIDE = 0.01  # of the squared move, not along the baseline: a small step of training is nearly all aside. Judgement
SPARSE = 0.3  # of the elements; reinforcement learning changes 5 to 30 %: 2505.11711, published

Evidence = dict[str, Any]


def regime(moves: Moves) -> tuple[str | None, list[Evidence]]:
    """The first label whose test holds, and what speaks for it; None where nothing can be compared."""
    for label, test in _REGIMES:
        found = test(moves)
        if found is not None:
            return label, [*found, *_common(moves)]
    return None, _common(moves)


def _said(what: str, value: Any) -> Evidence:
    return {"evidence": what, "value": value}


def _common(moves: Moves) -> list[Evidence]:
    """What qualifies any label."""
    counts = {status: len(names) for status, names in moves.others.items()}
    told = {
        "tensors in the candidate alone": counts.get("added", 0),
        "tensors in the baseline alone": counts.get("removed", 0),
        "tensors that could not be compared": counts.get("incomparable", 0) + counts.get("failed", 0),
        "tensors of another dtype, whose rounding counts as a move": sum(one.retyped for one in moves.moved),
    }
    return [_said(what, number) for what, number in told.items() if number]


def _adapter(moves: Moves) -> list[Evidence] | None:
    if not moves.adapters or any(not is_adapter(one.name) for one in moves.moved):
        return None
    return [_said("matrices of adapters", len(moves.adapters)), _said("of them all zeros", len(moves.untrained))]


def _identical(moves: Moves) -> list[Evidence] | None:
    if not moves.parts or moves.moved or moves.grown or moves.others:
        return None
    return [_said("tensors with equal values", len(moves.parts))]


def _quantised(moves: Moves) -> list[Evidence] | None:
    if not moves.moved or not all(one.quantised for one in moves.moved):
        return None
    return [_said("tensors that the candidate alone holds as codes", len(moves.moved))]


def _vocabulary(moves: Moves) -> list[Evidence] | None:
    if not moves.grown or any(one.role not in ("embed", "head") for one in moves.moved):
        return None
    return [_said(f"rows of {name}", f"{before} -> {after}") for name, before, after in moves.grown[:4]]


def _decay(moves: Moves) -> list[Evidence] | None:
    """One factor below 1 for all, and no other direction: what weight decay does without a gradient."""
    moved = moves.moved
    straight = all(one.cosine_distance is not None and one.cosine_distance < _STRAIGHT for one in moved)
    if not moved or not straight or not all(0 < one.factor < 1 and one.aside < _ASIDE for one in moved):
        return None
    lost = [1 - one.factor for one in moved]
    if max(lost) > 1.1 * min(lost):
        return None
    middle = sorted(lost)[len(lost) // 2]
    return [_said("factor of all tensors that moved", 1 - middle), _said("largest 1 - cos", _largest_angle(moved))]


def _largest_angle(moved: Sequence[Part]) -> float:
    return max(one.cosine_distance or 0.0 for one in moved)


def _anew(moves: Moves) -> list[Evidence] | None:
    drawn = {one.name for one in reinitialised(moves)}
    matrices = [one for one in moves.moved if len(one.shape) > 1]
    if not drawn or any(one.name not in drawn for one in matrices):
        return None
    return [_said("matrices that are as long and point elsewhere", len(drawn)), _roles_said(matrices)]


def _only(*roles: str) -> Callable[[Moves], list[Evidence] | None]:
    """Only tensors of these roles moved; "bias" is any name that ends in it."""

    def test(moves: Moves) -> list[Evidence] | None:
        moved = moves.moved
        if not moved or not moves.frozen or not {_kind(one, roles) for one in moved} <= set(roles):
            return None
        return [_said("tensors that moved", len(moved)), _said("tensors with equal values", len(moves.frozen))]

    return test


def _kind(one: Part, roles: Sequence[str]) -> str:
    return "bias" if "bias" in roles and one.name.endswith(("bias", "beta")) else one.role


def _lora(moves: Moves) -> list[Evidence] | None:
    """Matrices of some roles moved in nearly all of their blocks, all else is bit for bit the same."""
    moved = moves.moved
    if not moved or not moves.frozen or any(len(one.shape) != 2 or one.role not in _PROJECTIONS for one in moved):
        return None
    for kind in {one.role for one in moved}:
        every = {one.block for one in moves.parts if one.role == kind and len(one.shape) == 2}
        if len({one.block for one in moved if one.role == kind}) < _NEARLY_ALL * len(every):
            return None
    return [
        _roles_said(moved),
        _said("blocks in which they moved", len({one.block for one in moved})),
        _said("tensors with equal values", len(moves.frozen)),
        _said("rank of the change", "not measured"),
    ]


def _roles_said(parts: Sequence[Part]) -> Evidence:
    return _said("roles that moved", ", ".join(sorted({one.role for one in parts})))


def _sparse(moves: Moves) -> list[Evidence] | None:
    """Most tensors moved, each in few of its elements."""
    share, spread = changed_share(moves.parts), moved_share(moves)
    if not moves.moved or share is None or share > SPARSE or spread < _NEARLY_ALL:
        return None
    return [_said("share of elements that changed", share), _said("share of elements in tensors that moved", spread)]


def _partly(moves: Moves) -> list[Evidence] | None:
    if not moves.moved or not moves.frozen or moved_share(moves) >= _NEARLY_ALL:
        return None
    return [_said("share of elements in tensors that moved", moved_share(moves)), _roles_said(moves.moved)]


def _dense(moves: Moves) -> list[Evidence] | None:
    if not moves.moved:
        return None
    spread = _said("share of elements in tensors that moved", moved_share(moves))
    return [spread, _said("share of elements that changed", changed_share(moves.parts))]


def _unchanged(moves: Moves) -> list[Evidence] | None:
    """What both sides have is the same; one has more."""
    return [_said("tensors with equal values", len(moves.parts))] if moves.parts else None


# In this order: what explains more comes first.
_REGIMES: tuple[tuple[str, Callable[[Moves], list[Evidence] | None]], ...] = (
    ("adapter", _adapter),
    ("identical", _identical),
    ("quantised", _quantised),
    ("vocabulary-grown", _vocabulary),
    ("decay-only", _decay),
    ("norms-and-biases-only", _only("norm", "bias")),
    ("head-only", _only("head")),
    ("embeddings-only", _only("embed", "head")),
    ("re-initialised", _anew),
    ("lora-like", _lora),
    ("partly-frozen", _partly),
    ("sparse", _sparse),
    ("dense", _dense),
    ("unchanged", _unchanged),
)
