"""The attention of each layer, cut into heads: which rows and columns belong to one, and how far each moved."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from diffai_dist.analyses.architecture import describe
from diffai_dist.analyses.architecture_comparison import shapes_of
from diffai_dist.analyses.architecture_config import config_facts
from diffai_dist.analyses.architecture_heads import Attention, head_size, rotates_whole
from diffai_dist.analyses.lines import Lines, row_lines
from diffai_dist.analyses.roles import block, role
from diffai_dist.checkpoint import Tensor
from diffai_dist.records import Measurements

ASSUMED = (128, 64, 96, 80, 192, 256)  # sizes of a head where nothing tells, the most common first; judgement
_PLACE = re.compile(r"attn|attention|^mha$")
_PARTS = {"q", "k", "v", "o"}


@dataclass(frozen=True)
class Layer:
    """Projections of one attention by role, as indices of aligned tensors, and the size of its heads."""

    path: str
    parts: Mapping[str, int]
    size: int
    source: str  # of the size: qk_norm, config, inv_freq or assumed
    heads: int
    groups: int  # heads of k and v


class Heads:
    """The layers of a pair whose shapes are equal on both sides."""

    def __init__(self, measured: Measurements, pair_index: int) -> None:
        self.measured, self.pair_index = measured, pair_index
        pair = measured.comparison.pairs[pair_index]
        self.members = (pair.baseline, pair.candidate)
        self.unknown: list[str] = []  # layers whose size of a head nothing tells

    @cached_property
    def layers(self) -> list[Layer]:
        """Attentions with q, k, v and o of their own, in the order of the comparison."""
        found: dict[str, dict[str, int]] = {}
        for tensor, aligned in enumerate(self.measured.comparison.aligned):
            kind = role(aligned.name)
            if kind in _PARTS and self._matrix(tensor) and (path := place(aligned.name)):
                # A second tensor of one role is a product of two, as in latent attention: its rows are no heads.
                parts = found.setdefault(path, {})
                parts[kind] = -1 if kind in parts else tensor
        whole = ((path, parts) for path, parts in found.items() if set(parts) == _PARTS and min(parts.values()) >= 0)
        return [layer for path, parts in whole if (layer := self._layer(path, parts))]

    def lines(self, layer: Layer, part: str) -> Lines | None:
        """A row for each head of q, k or v."""
        rows = row_lines(self.measured, layer.parts[part], self.pair_index)
        return None if rows is None else rows.grouped(layer.size)

    def outward(self, layer: Layer, member: int) -> np.ndarray | None:
        """Σ x² of the columns of o that read each head."""
        columns = self.measured.details.columns.get((layer.parts["o"], member))
        return None if columns is None else columns["squares"].reshape(-1, layer.size).sum(axis=1)

    def outward_change(self, layer: Layer) -> np.ndarray | None:
        """Σ d² of the same columns."""
        columns = self.measured.details.column_shifts.get((layer.parts["o"], self.pair_index))
        return None if columns is None else columns["d2"].reshape(-1, layer.size).sum(axis=1)

    def norm_shares(self, layer: Layer) -> np.ndarray | None:
        """‖W_o‖‖W_v‖ of each head of the candidate by the sum over all; None where that is 0, or was not measured."""
        outward = self.outward(layer, self.members[1])
        rows = self.measured.details.rows.get((layer.parts["v"], self.members[1]))
        if outward is None or rows is None:
            return None
        values = rows["squares"].reshape(-1, layer.size).sum(axis=1).repeat(layer.heads // layer.groups)
        norms = np.sqrt(outward) * np.sqrt(values)
        found: np.ndarray | None = norms / norms.sum() if norms.any() else None
        return found

    def spoiled(self, layer: Layer, member: int) -> bool:
        """Whether o holds what is not finite, which columns do not tell from 0."""
        row = self.measured.moments[layer.parts["o"], member]
        return bool(row["finite"] != row["count"])

    def _layer(self, path: str, parts: Mapping[str, int]) -> Layer | None:
        wide, narrow = (self._shape(parts[part])[0] for part in ("q", "k"))
        if self._shape(parts["v"])[0] != narrow or self._shape(parts["o"])[1] != wide or wide % narrow:
            self.unknown.append(path)
            return None
        norms = [one.elements for part in "qk" if (one := self._named.get(f"{path}.{part}_norm.weight"))]
        own = Attention(
            wide, narrow, norms[0] if len(norms) == 2 and norms[0] == norms[1] else None, self._turned(path)
        )
        assumed = next(((size, "assumed") for size in ASSUMED if own.fits(size) and size < wide), None)
        found = head_size(own, config_facts(self._config)) or assumed
        if found is None:
            self.unknown.append(path)
            return None
        size, source = found
        return Layer(path, parts, size, source, wide // size, narrow // size)

    def _turned(self, path: str) -> int | None:
        """What the rotary embedding of the layer, or that of all layers, turns."""
        angles = [self._named.get(f"{path}.rotary_emb.inv_freq"), *self._angles]
        sizes = [2 * one.elements for one in angles if one]
        return sizes[0] if sizes and self._whole else None

    @cached_property
    def _config(self) -> Mapping[str, Any]:
        """That of the candidate, or of the baseline where it has none."""
        configs = (self.measured.comparison.members[member].config for member in reversed(self.members))
        return next((config for config in configs if config), {})

    @cached_property
    def _whole(self) -> bool:
        layout = describe(shapes_of(self.measured.comparison.members[self.members[1]])).value("layout")
        return rotates_whole(layout, self._config)

    @cached_property
    def _named(self) -> Mapping[str, Tensor]:
        aligned = self.measured.comparison.aligned
        return {one.name: held for one in aligned if (held := one.tensors[self.members[1]]) is not None}

    @cached_property
    def _angles(self) -> list[Tensor]:
        """Those of rotary embeddings outside of any block."""
        return [one for name, one in self._named.items() if name.endswith("rotary_emb.inv_freq") and not place(name)]

    def _matrix(self, tensor: int) -> bool:
        sides = [self.measured.comparison.aligned[tensor].tensors[member] for member in self.members]
        return (
            all(one is not None and len(one.shape) == 2 for one in sides)
            and len({one.shape for one in sides if one}) == 1
        )

    def _shape(self, tensor: int) -> tuple[int, int]:
        one = self.measured.comparison.aligned[tensor].tensors[self.members[1]]
        return (one.shape[0], one.shape[1]) if one else (0, 0)


def place(name: str) -> str | None:
    """The path of the attention that a tensor of a block belongs to.

    >>> place("model.layers.3.self_attn.q_proj.weight"), place("encoder.layer.0.attention.output.dense.weight")
    ('model.layers.3.self_attn', 'encoder.layer.0.attention')
    """
    path = block(name)
    parts = name[len(path) :].split(".")
    inside = next((i for i, part in enumerate(parts) if _PLACE.search(part.lower())), None)
    return None if inside is None or not path[-1:].isdigit() else path + ".".join(parts[: inside + 1])
