"""What the members are built like, from headers and their config.json, and in which way neighbours differ."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from diffai_dist.analyses.architecture import Architecture, contradictions, describe, holds_tokens
from diffai_dist.analyses.architecture_facts import NOTHING
from diffai_dist.analyses.base import Kind, finding, threshold
from diffai_dist.analyses.staleness_check import is_state
from diffai_dist.records import AnalysisRecord, Finding

if TYPE_CHECKING:
    from diffai_dist.analyses.architecture_names import Shape, Shapes
    from diffai_dist.analyses.series import Series
    from diffai_dist.checkpoint import Checkpoint
    from diffai_dist.comparison import Aligned

_ROWS = 20  # of each table; counts tell the rest
_SERIOUS = ("depth", "experts")
_PREFIXES = 4  # components that may stand before the name in one of two members


@dataclass(frozen=True)
class Built:
    """Members of equal names, shapes and configurations, by index."""

    shapes: Shapes
    config: Mapping[str, Any] | None
    architecture: Architecture
    members: list[int]


@dataclass(frozen=True)
class Step:
    """What neighbours do not have in common, by index of the aligned tensor; `renamed` by name on either side."""

    before: int
    after: int
    added: Sequence[int]
    removed: Sequence[int]
    reshaped: Sequence[tuple[str, Shape, Shape]]
    renamed: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class ArchitectureComparison:
    """Family, depth, widths, heads, experts and vocabulary of each member, and the tensors that neighbours differ in.

    Every field has a value and its source: `name` and `shape` of the tensors, `config` where a config.json tells what
    neither of them does, `assumed` for candidates. A family is a layout of names, which several families may share. A
    model of several stacks is described by that of its language model; each stack has a row of its own. Widths of heads
    are known without their number: q_dim / kv_dim is the ratio of grouped queries even where head_dim is not known.
    Tensors are matched by name, or as --tensor-matching and --map match them, then by names that differ in a prefix;
    what is left is added or removed. Members that differ in nothing of this are described once.
    """

    name: ClassVar[str] = "architecture_comparison"
    flag: ClassVar[str] = "--architecture-comparison"
    kind: ClassVar[Kind] = "H"
    partials: ClassVar[tuple[str, ...]] = ("config",)
    always: ClassVar[bool] = False
    in_all: ClassVar[bool] = True
    result: ClassVar[Mapping[str, str]] = {
        "architectures": "how many different ones there are among the members",
        "fields": "of each architecture (`member` is the first of `members` members): field, value, source, note. "
        "depth: 1 + largest block number. hidden: rows of the matrices that write the residual stream. ffn: columns of "
        "the second matrix of the feed-forward part. q_dim: columns of the output projection; kv_dim: rows of k_proj, "
        "or (rows - q_dim) / 2 of a fused one. head_dim: length of q_norm and k_norm, where they are "
        "alike and not over all heads; what config.json gives and the widths allow; 2 × that of inv_freq, where it "
        "turns whole heads; else candidates. q_heads, kv_heads: q_dim, kv_dim / head_dim. experts: 1 + largest number "
        "of an expert, or the first dimension of stacked ones. kv_latent, "
        "kv_rank, q_rank: rows of the low-rank projections of MLA. lora_rank: rows of lora_A. params_total: elements "
        "as often as they are stored, without buffers and what decodes others; params_active: total - routed × "
        "(experts - experts_per_token) / experts. tied: no head is stored",
        "unknown": "fields that nothing tells, with the reason",
        "stacks": "every stack of blocks by itself: member, stack, family, depth, hidden, ffn, q_dim, kv_dim, experts",
        "differences": "fields that differ between neighbours, both known from the same source",
        "changes": "per pair of neighbours that differ: how many tensors were added, removed, renamed, reshaped",
        "added": f"tensors of the candidate alone, the first {_ROWS}",
        "removed": f"tensors of the baseline alone, the first {_ROWS}",
        "renamed": f"tensors whose names differ, the first {_ROWS}",
        "reshaped": f"tensors of other shapes, the first {_ROWS}",
        "contradictions": "where config.json and the tensors cannot both be right: field, value of the tensors, "
        "config, severity, note. q_heads, kv_heads, head_dim: q_dim or kv_dim is no multiple, or their ratio is "
        "another; vocab: the table has fewer rows, or more than twice as many",
    }
    rules: ClassVar[Mapping[str, str]] = {
        "shape-changed": "a matched tensor has another shape: high; beyond `listed` tensors one finding counts them",
        "depth-changed": "neighbours have different numbers of blocks: high",
        "experts-changed": "neighbours have different numbers of experts: high",
        "token-resize": "more rows in the vocabulary's tensors and no other difference: info",
        "config-mismatch": "config.json contradicts the tensors: high for depth, hidden and heads of a model of one "
        "stack of like blocks; low for experts, head_dim and vocabulary, and for other models",
    }
    sources: ClassVar[tuple[str, ...]] = (
        "format: shapes and names of the headers",
        "judgement: severities; that a changed depth or number of experts is as severe as a changed shape",
        "judgement: candidates of head_dim, the sizes of published models",
        "judgement: a table of more than twice the vocabulary is not only padded",
    )

    listed: int = threshold(20, "findings about single tensors between two neighbours; beyond, one counts them")

    def __call__(self, series: Series) -> AnalysisRecord:
        """Architectures in the order of their first members; neighbours in that of the series."""
        kinds = _built(series.measured.comparison.members)
        of = {member: one for one in kinds for member in one.members}
        steps = [_step(series, before, after) for before, after in itertools.pairwise(range(len(series.members)))]
        told = [row for step in steps for row in _differences(series, of, step)]
        result: dict[str, Any] = {
            "architectures": len(kinds),
            "fields": [row for one in kinds[:_ROWS] for row in _fields(series, one)],
            "unknown": [row for one in kinds[:_ROWS] for row in _unknown(series, one)],
            "stacks": [row for one in kinds[:_ROWS] for row in _stacks(series, one)][: 2 * _ROWS],
            "differences": told[: 2 * _ROWS],
            **_changes(series, steps),
            "contradictions": [row for one in kinds for row in _contradictions(series, one)][:_ROWS],
        }
        return AnalysisRecord(self.name, result, tuple(self._findings(series, kinds, of, steps)))

    def _findings(
        self, series: Series, kinds: Sequence[Built], of: Mapping[int, Built], steps: Sequence[Step]
    ) -> Iterator[Finding]:
        for step in steps:
            yield from self._of_step(series, of, step)
        for one in kinds:
            for row in _contradictions(series, one)[: self.listed]:
                source = f"config.json: {row['field']}" + (f", {row['note']}" if row["note"] else "")
                name = series.names[one.members[0]]
                yield Finding(
                    "config-mismatch", row["severity"], None, row["value"], row["config"], source, candidate=name
                )

    def _of_step(self, series: Series, of: Mapping[int, Built], step: Step) -> Iterator[Finding]:
        sides = series.names[step.before], series.names[step.after]
        for row in _differences(series, of, step):
            if row["field"] in _SERIOUS:
                rule, source = f"{row['field']}-changed", f"{row['field']} of the baseline"
                yield Finding(rule, "high", None, row["after"], row["before"], source, *sides)
        if resized := _token_resize(step):
            yield Finding("token-resize", "info", None, *resized, "vocabulary of the baseline", *sides)
        elif len(step.reshaped) > self.listed:
            yield finding(self, "shape-changed", "high", None, len(step.reshaped), "listed", *sides)
        else:
            for name, before, after in step.reshaped:
                yield Finding("shape-changed", "high", name, _text(after), _text(before), "shape there", *sides)


def shapes_of(checkpoint: Checkpoint) -> dict[str, Shape | None]:
    """Shapes of all tensors that are no optimizer's, None for those that could not be read."""
    shapes: dict[str, Shape | None] = dict.fromkeys(checkpoint.unreadable)
    shapes |= {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    return {name: shape for name, shape in shapes.items() if not is_state(name)}


def _built(members: Sequence[Checkpoint]) -> list[Built]:
    found: list[Built] = []
    for member, one in enumerate(members):
        shapes = shapes_of(one)
        same = next((built for built in found if built.shapes == shapes and built.config == one.config), None)
        if same:
            same.members.append(member)
        else:
            found.append(Built(shapes, one.config, describe(shapes, one.config), [member]))
    return found


def _fields(series: Series, built: Built) -> Iterator[dict[str, Any]]:
    for field, fact in built.architecture.facts.items():
        if fact.value is not None:
            who = {"member": series.names[built.members[0]], "members": len(built.members)}
            yield {**who, "field": field, "value": fact.value, "source": fact.source, "note": fact.note}


def _unknown(series: Series, built: Built) -> Iterator[dict[str, Any]]:
    reasons: dict[str, list[str]] = {}
    for field, fact in built.architecture.facts.items():
        if fact.value is None:
            reasons.setdefault(fact.note or "names, shapes and configuration do not tell", []).append(field)
    for reason, fields in reasons.items():
        yield {"member": series.names[built.members[0]], "fields": fields, "reason": reason}


_OF_STACK = ("depth", "hidden", "ffn", "q_dim", "kv_dim", "head_dim", "experts")


def _stacks(series: Series, built: Built) -> Iterator[dict[str, Any]]:
    for stack in built.architecture.stacks:
        family = stack.family.name if stack.family else None
        widths = {key: stack.facts.get(key, NOTHING).value for key in _OF_STACK}
        yield {"member": series.names[built.members[0]], "stack": stack.path, "family": family, **widths}


def _contradictions(series: Series, built: Built) -> list[dict[str, Any]]:
    name = series.names[built.members[0]]
    return [{"member": name, **row} for row in contradictions(built.architecture, built.config)]


def _differences(series: Series, of: Mapping[int, Built], step: Step) -> Iterator[dict[str, Any]]:
    before, after = (of[member].architecture.facts for member in (step.before, step.after))
    for field in dict.fromkeys((*before, *after)):
        a, b = before.get(field, NOTHING), after.get(field, NOTHING)
        if a.source == b.source is not None and a.value != b.value:
            sides = {"baseline": series.names[step.before], "candidate": series.names[step.after]}
            yield {**sides, "field": field, "before": a.value, "after": b.value, "source": a.source}


def _step(series: Series, before: int, after: int) -> Step:
    """Tensors that may be in a part that could not be read are not called added or removed."""
    aligned = series.measured.comparison.aligned
    sure = [i for i, one in enumerate(aligned) if one.unreadable[before] is one.unreadable[after] is None]
    added = {aligned[i].name: i for i in sure if aligned[i].tensors[before] is None and aligned[i].tensors[after]}
    removed = {aligned[i].name: i for i in sure if aligned[i].tensors[after] is None and aligned[i].tensors[before]}
    renamed = dict(_prefixed(removed, added))
    pairs = [(aligned[i], aligned[i]) for i in sure]
    pairs += [(aligned[removed[old]], aligned[added[new]]) for old, new in renamed.items()]
    reshaped = list(_reshaped(pairs, before, after))
    called = [(a.name, b.name) for one in aligned if (a := one.tensors[before]) and (b := one.tensors[after])]
    return Step(
        before,
        after,
        [i for name, i in added.items() if name not in set(renamed.values())],
        [i for name, i in removed.items() if name not in renamed],
        reshaped,
        [*renamed.items(), *((old, new) for old, new in called if old != new)],
    )


def _reshaped(pairs: Sequence[tuple[Aligned, Aligned]], before: int, after: int) -> Iterator[tuple[str, Shape, Shape]]:
    for one, other in pairs:
        a, b = one.tensors[before], other.tensors[after]
        if a is not None and b is not None and a.shape != b.shape:
            yield other.name, a.shape, b.shape


def _prefixed(removed: Mapping[str, int], added: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Names one of which is the other with more in front, where no other name makes that ambiguous."""
    for these, those, turn in ((removed, added, False), (added, removed, True)):
        ends: dict[str, list[str]] = {}
        for name in these:
            parts = name.split(".", _PREFIXES)
            for cut in range(1, len(parts)):
                ends.setdefault(".".join(parts[cut:]), []).append(name)
        for name in those:
            if len(found := ends.get(name, [])) == 1:
                yield (name, found[0]) if turn else (found[0], name)


def _changes(series: Series, steps: Sequence[Step]) -> dict[str, Any]:
    aligned = series.measured.comparison.aligned
    rows: dict[str, list[dict[str, Any]]] = {key: [] for key in ("changes", "added", "removed", "renamed", "reshaped")}
    for step in steps:
        sides = {"baseline": series.names[step.before], "candidate": series.names[step.after]}
        counts = {key: len(getattr(step, key)) for key in ("added", "removed", "renamed", "reshaped")}
        if any(counts.values()):
            rows["changes"].append({**sides, **counts})
        for key, member in (("added", step.after), ("removed", step.before)):
            for i in getattr(step, key)[:_ROWS]:
                tensor = aligned[i].tensors[member]
                rows[key].append({**sides, "tensor": aligned[i].name, "shape": list(tensor.shape) if tensor else None})
        rows["renamed"] += [{**sides, "before": old, "after": new} for old, new in step.renamed[:_ROWS]]
        rows["reshaped"] += [
            {**sides, "tensor": name, "before": list(old), "after": list(new)}
            for name, old, new in step.reshaped[:_ROWS]
        ]
    return {key: found[:_ROWS] for key, found in rows.items()}


def _token_resize(step: Step) -> tuple[int, int] | None:
    """Rows after and before, where the tensors of the vocabulary alone have grown, and all of them alike."""
    if not step.reshaped or step.added or step.removed:
        return None
    if any(old[1:] != new[1:] or not holds_tokens(name) for name, old, new in step.reshaped):
        return None
    sizes = {(old[0], new[0]) for _, old, new in step.reshaped if old and new}
    before, after = sizes.pop()
    return (after, before) if not sizes and after > before else None


def _text(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"
