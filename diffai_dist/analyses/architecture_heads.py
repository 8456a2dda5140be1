"""How large the heads of an attention are: what its tensors and a config.json tell of it, and which is believed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from diffai_dist.analyses.architecture_config import config_facts, rotates_in_part
from diffai_dist.analyses.architecture_facts import NOTHING, Fact
from diffai_dist.analyses.families import PARTIAL_ROTARY

Basis = Literal["qk_norm", "config", "inv_freq"]


@dataclass(frozen=True, slots=True)
class Attention:
    """Widths of all query heads and of all key heads, and two hints of the size of one; None where nothing tells."""

    q_dim: int | None
    kv_dim: int | None
    normed: int | None = None  # length of q_norm and k_norm, where it is the same
    turned: int | None = None  # twice that of inv_freq

    def fits(self, size: int | None) -> bool:
        """Whether all widths are multiples of it."""
        widths = [width for width in (self.q_dim, self.kv_dim) if width]
        return bool(size and widths and all(width % size == 0 for width in widths))


def head_size(own: Attention, config: Mapping[str, Fact]) -> tuple[int, Basis] | None:
    """Elements of one head, and what tells it.

    Norms of queries and keys that are as long as all heads together say nothing of one.

    >>> head_size(Attention(640, 128, 16), {}), head_size(Attention(640, 640, 640), {"q_heads": Fact(40, "config")})
    ((16, 'qk_norm'), (16, 'config'))
    """
    several = max(own.q_dim or 0, own.kv_dim or 0)
    if own.normed and own.normed < several and own.fits(own.normed):
        return own.normed, "qk_norm"
    for size in _configured(own, config):
        if own.fits(size):
            return size, "config"
    return (own.turned, "inv_freq") if own.turned and own.turned < several and own.fits(own.turned) else None


def untrue(own: Attention, config: Mapping[str, Fact]) -> dict[str, str]:
    """Fields of a configuration that the widths rule out, and why.

    >>> untrue(Attention(640, 128), {"q_heads": Fact(7, "config"), "kv_heads": Fact(8, "config")})
    {'q_heads': '640 is no multiple of it'}
    """
    wrong: dict[str, str] = {}
    q_heads, kv_heads, size = (config.get(key, NOTHING).value for key in ("q_heads", "kv_heads", "head_dim"))
    for key, value, width in (
        *(("q_heads", q_heads, own.q_dim), ("kv_heads", kv_heads, own.kv_dim)),
        *(("head_dim", size, own.q_dim), ("head_dim", size, own.kv_dim)),
    ):
        if value and width and width % value:
            wrong.setdefault(key, f"{width:,} is no multiple of it")
    if not wrong.keys() & {"q_heads", "kv_heads"}:
        wrong |= _uneven(own, q_heads, kv_heads)
    if q_heads and size and own.q_dim and not wrong.keys() & {"q_heads", "head_dim"} and q_heads * size != own.q_dim:
        wrong["head_dim"] = f"{q_heads:,} of them are not {own.q_dim:,}"
    return wrong


def rotates_whole(layout: str | None, config: Mapping[str, Any]) -> bool:
    """Whether frequencies of rotary embeddings are for the whole of a head; False where the family is not known."""
    names = {one for one in (layout, config_facts(config).get("family", NOTHING).value) if one}
    return bool(names) and not names & PARTIAL_ROTARY and not rotates_in_part(config)


def _uneven(own: Attention, q_heads: int | None, kv_heads: int | None) -> dict[str, str]:
    """Numbers of heads of which either may be wrong: their ratio is not that of the widths."""
    if not q_heads or not own.q_dim or not own.kv_dim:
        return {}
    ratio = f"q_dim / kv_dim is {own.q_dim:,} / {own.kv_dim:,}"
    if kv_heads:
        same = q_heads * own.kv_dim == kv_heads * own.q_dim
        return {} if same else dict.fromkeys(("q_heads", "kv_heads"), ratio)
    return {"q_heads": ratio} if q_heads * own.kv_dim % own.q_dim else {}


def _configured(own: Attention, config: Mapping[str, Fact]) -> Iterator[int]:
    true = {key: one.value for key, one in config.items() if key not in untrue(own, config)}
    if "head_dim" in true:
        yield true["head_dim"]
    for key, width in (("q_heads", own.q_dim), ("kv_heads", own.kv_dim)):
        if key in true and width:
            yield width // true[key]
