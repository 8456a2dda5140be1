"""How many bytes weights take, what training and serving them would need at least, and what can provably be saved."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from diffai_dist.analyses.architecture import Architecture, describe
from diffai_dist.analyses.architecture_comparison import shapes_of
from diffai_dist.analyses.base import Kind, finding, threshold
from diffai_dist.analyses.roles import pattern, role
from diffai_dist.analyses.savings import Saving, savings
from diffai_dist.analyses.staleness_check import is_state
from diffai_dist.records import AnalysisRecord, Finding

if TYPE_CHECKING:
    from diffai_dist.analyses.series import Series
    from diffai_dist.checkpoint import Checkpoint

_ROWS = 20
_STATE = "optimizer"
_SPEAKING = ("decoder", "encoder-decoder", "hybrid")  # kinds that keep keys and values of earlier tokens

FORMULAS = {
    "weights": "sum of the tensors' bytes, exact",
    "training": "Adam in mixed precision, P parameters: 2 P weights + gradient_bytes P gradients + 12 P optimizer (F32 "
    "copy and two moments, 4 bytes each); divided by world_size: the optimizer from zero_stage 1 on, gradients from 2 "
    "on, weights from 3 on",
    "activations": "depth × sequence × batch × hidden × (34 + 5 × q_heads × sequence / hidden), the second term only "
    "without fused attention: nothing recomputed, 16-bit, a feed-forward part of 4 × hidden, dropout",
    "kv_bytes_per_token": "attention_blocks × 2 × kv_dim × kv_bytes; of latent attention attention_blocks × kv_latent "
    "× kv_bytes; windows not regarded",
    "serving": "weights + kv_bytes_per_token × sequence × batch; weights alone where the second is not known",
}


@dataclass(frozen=True)
class Held:
    """Members of the same tensors and configuration, by index; tensors and bytes by dtype and role."""

    tensors: Mapping[str, tuple[str, tuple[int, ...], int]]
    config: Mapping[str, Any] | None
    architecture: Architecture
    members: list[int]
    sizes: Mapping[tuple[str, str], tuple[int, int]]

    def nbytes(self, state: bool = False) -> int:
        """Of the weights, or of the optimizer's state."""
        return sum(size for (_, group), (_, size) in self.sizes.items() if (group == _STATE) == state)


@dataclass(frozen=True)
class MemoryAnalysis:
    """Exact bytes of weights by dtype and role, estimates with their formulas and inputs, and savings that are proven.

    Estimates are lower bounds from formulas; their inputs are the thresholds of this analysis, printed beside them.
    Savings need the bits of the tensors: equal tensors are those of equal dtype, shape, content digest and moments; F32
    holds BF16 where the lower 16 bits of all its words are 0, and F16 where the lower 13 are and all exponents are in
    F16's normal range (from the histogram, where that was measured). Kinds of savings do not add up.
    """

    name: ClassVar[str] = "memory_analysis"
    flag: ClassVar[str] = "--memory-analysis"
    kind: ClassVar[Kind] = "H"
    partials: ClassVar[tuple[str, ...]] = ("config", "content")
    always: ClassVar[bool] = False
    in_all: ClassVar[bool] = True
    result: ClassVar[Mapping[str, str]] = {
        "delta_bytes": "bytes of the last member's weights minus those of the first; null where a tensor of either "
        "could not be read",
        "weights": "per kind of member (`member` is the first of `members`): bytes of weights, of optimizer state, "
        "parameters (null where an encoding is not known), tensors that could not be read and are not counted",
        "by_dtype": "tensors and bytes by dtype, the optimizer's with them",
        "by_role": "tensors and bytes by role; `optimizer` for its state",
        "deltas": f"neighbours whose weights differ in bytes, the first {_ROWS}",
        "estimates": "bytes: train_weights, train_gradients, train_optimizer, train_total, activations; "
        "kv_bytes_per_token, kv_bytes, serving, fits (null without device_memory)",
        "inputs": "what the estimates assume",
        "formulas": "how they are computed, of each",
        "savings": "kind (duplicate, bf16-in-f32, f16-in-f32), tensors, and the bytes saved if each were stored once, "
        "or in the narrower dtype; `members` that have it, `member` the first",
        "largest_savings": f"the {_ROWS} largest among them by tensor: `tensor`, what it equals or holds, bytes saved",
        "not_examined": "tensors of members whose bits were not measured: no saving is claimed of them",
    }
    rules: ClassVar[Mapping[str, str]] = {
        "exceeds-device": "weights, and keys and values of batch × sequence tokens, need more than device_memory: high",
    }
    sources: ClassVar[tuple[str, ...]] = (
        "format: bytes are those of the headers; a BF16 is the upper half of an F32; F16 has 5 bits of exponent and 10 "
        "of fraction",
        "derived: 2 + 2 + 12 bytes a parameter from what mixed-precision Adam keeps; 34 bytes from the 16-bit inputs "
        "and 8-bit dropout masks that a block keeps",
        "convention: 16-bit gradients, keys and values, one sequence of 2,048 tokens",
    )

    device_memory: int | None = threshold(
        None, "bytes that weights, keys and values must fit in", "setting of the user"
    )
    batch: int = threshold(1, "sequences at a time", "convention")
    sequence: int = threshold(2048, "tokens of a sequence", "convention")
    gradient_bytes: int = threshold(2, "bytes of a gradient: 2, or 4 where they are summed up in F32", "convention")
    kv_bytes: int = threshold(2, "bytes of a cached key or value", "convention")
    fused_attention: bool = threshold(True, "whether attention keeps no matrix of scores", "convention")
    world_size: int = threshold(1, "processes that share what zero_stage divides", "convention")
    zero_stage: int = threshold(0, "0 to 3: what of training is divided by world_size", "convention")

    def __call__(self, series: Series) -> AnalysisRecord:
        """Members of equal headers and configuration are told once."""
        held = _held(series.measured.comparison.members)
        rows = [{**_who(series, one), **self._estimate(one)} for one in held[:_ROWS]]
        result: dict[str, Any] = {
            "delta_bytes": _delta(series, held, 0, len(series.members) - 1),
            "weights": [{**_who(series, one), **_sizes(series, one)} for one in held[:_ROWS]],
            "by_dtype": [row for one in held[:_ROWS] for row in _table(series, one, 0, "dtype")],
            "by_role": [row for one in held[:_ROWS] for row in _table(series, one, 1, "role")],
            "deltas": list(itertools.islice(_deltas(series, held), _ROWS)),
            "estimates": rows,
            "inputs": {key: getattr(self, key) for key in _INPUTS},
            "formulas": [{"of": key, "formula": formula} for key, formula in FORMULAS.items()],
            **_saved(series),
        }
        return AnalysisRecord(self.name, result, tuple(self._findings(rows)))

    def _estimate(self, held: Held) -> dict[str, Any]:
        facts, weights = held.architecture, held.nbytes()
        per_token = self._kv_bytes_per_token(facts)
        cached = None if per_token is None else per_token * self.batch * self.sequence
        serving = weights + (cached or 0)
        return {
            **self._training(facts.value("params_total")),
            "activations": self._activations(facts),
            "kv_bytes_per_token": per_token,
            "kv_bytes": cached,
            "serving": serving,
            "fits": None if self.device_memory is None else serving <= self.device_memory,
        }

    def _training(self, parameters: int | None) -> dict[str, int | None]:
        """Bytes of one process, rounded up."""
        parts = {"train_weights": (2, 3), "train_gradients": (self.gradient_bytes, 2), "train_optimizer": (12, 1)}
        if parameters is None:
            return dict.fromkeys((*parts, "train_total"))
        found: dict[str, int | None] = {}
        for key, (size, divided_from) in parts.items():
            shared_by = self.world_size if self.zero_stage >= divided_from else 1
            found[key] = -(-size * parameters // shared_by)
        return found | {"train_total": sum(size or 0 for size in found.values())}

    def _activations(self, facts: Architecture) -> int | None:
        depth, hidden, heads = (facts.value(key) for key in ("depth", "hidden", "q_heads"))
        tokens = self.sequence * self.batch
        if None in (depth, hidden) or not facts.value("attention_blocks"):
            return None
        if self.fused_attention:
            return int(depth * tokens * hidden * 34)
        return None if heads is None else int(depth * tokens * (34 * hidden + 5 * heads * self.sequence))

    def _kv_bytes_per_token(self, facts: Architecture) -> int | None:
        blocks, width, latent = (facts.value(key) for key in ("attention_blocks", "kv_dim", "kv_latent"))
        values = latent if latent else 2 * width if width else None
        if facts.value("kind") not in _SPEAKING or not blocks or not values:
            return None
        return int(blocks * values * self.kv_bytes)

    def _findings(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
        for row in rows:
            if row["fits"] is False:
                option = "device_memory"
                yield finding(self, "exceeds-device", "high", None, row["serving"], option, candidate=row["member"])


_INPUTS = ("batch", "sequence", "gradient_bytes", "kv_bytes", "fused_attention", "world_size", "zero_stage")


def _held(members: Sequence[Checkpoint]) -> list[Held]:
    found: list[Held] = []
    for index, member in enumerate(members):
        tensors = {name: (one.dtype, one.shape, one.nbytes) for name, one in member.tensors.items()}
        same = next((one for one in found if one.tensors == tensors and one.config == member.config), None)
        if same and members[same.members[0]].unreadable.keys() == member.unreadable.keys():
            same.members.append(index)
        else:
            architecture = describe(shapes_of(member), member.config)
            found.append(Held(tensors, member.config, architecture, [index], _by_dtype_and_role(tensors)))
    return found


def _by_dtype_and_role(
    tensors: Mapping[str, tuple[str, tuple[int, ...], int]],
) -> dict[tuple[str, str], tuple[int, int]]:
    found: dict[tuple[str, str], tuple[int, int]] = {}
    roles: dict[str, str] = {}  # by pattern: looking at each name would take most of the time
    for name, (dtype, _, size) in tensors.items():
        text = pattern(name)[0]
        if text not in roles:
            roles[text] = _STATE if is_state(name) else role(name)
        count, nbytes = found.get((dtype, roles[text]), (0, 0))
        found[dtype, roles[text]] = count + 1, nbytes + size
    return found


def _who(series: Series, held: Held) -> dict[str, Any]:
    return {"member": series.names[held.members[0]], "members": len(held.members)}


def _sizes(series: Series, held: Held) -> dict[str, Any]:
    checkpoint = series.measured.comparison.members[held.members[0]]
    return {
        "bytes": held.nbytes(),
        "optimizer_bytes": held.nbytes(state=True),
        "parameters": held.architecture.value("params_total"),
        "unread": len(checkpoint.unreadable) + bool(checkpoint.unknown),
    }


def _table(series: Series, held: Held, place: int, key: str) -> Iterator[dict[str, Any]]:
    """Rows by dtype or role, the largest first."""
    sums: dict[str, tuple[int, int]] = {}
    for group, (count, size) in held.sizes.items():
        before = sums.get(group[place], (0, 0))
        sums[group[place]] = before[0] + count, before[1] + size
    for name, (count, size) in sorted(sums.items(), key=lambda one: (-one[1][1], one[0])):
        yield {"member": series.names[held.members[0]], key: name, "tensors": count, "bytes": size}


def _of(held: Sequence[Held], member: int) -> Held:
    return next(one for one in held if member in one.members)


def _delta(series: Series, held: Sequence[Held], before: int, after: int) -> int | None:
    sides = [series.measured.comparison.members[member] for member in (before, after)]
    if any(one.unreadable or one.unknown for one in sides):
        return None
    return _of(held, after).nbytes() - _of(held, before).nbytes()


def _deltas(series: Series, held: Sequence[Held]) -> Iterator[dict[str, Any]]:
    of = {member: one for one in held for member in one.members}
    for before, after in itertools.pairwise(range(len(series.members))):
        if of[before] is not of[after] and (delta := _delta(series, held, before, after)):
            yield {"baseline": series.names[before], "candidate": series.names[after], "delta_bytes": delta}


def _saved(series: Series) -> dict[str, Any]:
    """Sums by kind and members, the largest of all, and how much was not examined."""
    found, unknown = savings(series.measured)
    groups: dict[tuple[str, tuple[int, ...]], list[Saving]] = {}
    for one in found:
        groups.setdefault((one.kind, one.members), []).append(one)
    sums = [
        {"member": series.names[members[0]], "members": len(members), "kind": kind, "tensors": len(group)}
        | {"bytes": sum(one.nbytes for one in group)}
        for (kind, members), group in groups.items()
    ]
    largest = [
        {"member": series.names[one.members[0]], "members": len(one.members), "kind": one.kind}
        | {"tensor": one.tensor, "like": one.like, "bytes": one.nbytes}
        for one in found[:_ROWS]
    ]
    return {"savings": sums[: 2 * _ROWS], "largest_savings": largest, "not_examined": unknown}
