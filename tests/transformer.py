"""A tiny decoder-only transformer, trained in NumPy: healthy checkpoints with the names and habits of large ones.

All arrays have the seeds as their first axis, so that ten trainings cost little more than one; each is what it would
be alone. The task is a language of pairs: each token is followed by one of four others, with known chances.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import ml_dtypes
import numpy as np

Weights = dict[str, np.ndarray]

SEEDS = tuple(range(10))
TUNING = (0, 1)  # plain trainings that were looked at while thresholds were chosen; the other eight were not

CHECKPOINTS, STEPS_APART = 12, 15
BATCH, LENGTH, FOLLOWERS = 8, 16, (0.6, 0.25, 0.1, 0.05)
WARM_UP, RATE, TUNING_RATE = 10, 3e-3, 3e-4
BETAS, EPSILON = (0.9, 0.999), 1e-8
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


@dataclass(frozen=True)
class Model:
    """Widths of a model with the tensors of Llama; of Qwen 2 with biases, of Mixtral with experts."""

    layers: int = 2
    hidden: int = 32
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 64
    vocab: int = 96
    unused: int = 4  # tokens of the vocabulary that no text has
    experts: int = 0
    tied: bool = False
    biases: bool = False

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name, in the order of the file."""
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, self.hidden)}
        for layer in range(self.layers):
            at, attention = f"model.layers.{layer}", f"model.layers.{layer}.self_attn"
            found[f"{at}.input_layernorm.weight"] = (self.hidden,)
            for part, rows in (("q", wide), ("k", narrow), ("v", narrow)):
                found[f"{attention}.{part}_proj.weight"] = (rows, self.hidden)
                if self.biases:
                    found[f"{attention}.{part}_proj.bias"] = (rows,)
            found[f"{attention}.o_proj.weight"] = (self.hidden, wide)
            found[f"{at}.post_attention_layernorm.weight"] = (self.hidden,)
            if self.experts:
                found[f"{at}.mlp.gate.weight"] = (self.experts, self.hidden)
            for mlp in self.feed_forwards(layer):
                found[f"{mlp}.gate_proj.weight"] = found[f"{mlp}.up_proj.weight"] = (self.ffn, self.hidden)
                found[f"{mlp}.down_proj.weight"] = (self.hidden, self.ffn)
        found["model.norm.weight"] = (self.hidden,)
        if not self.tied:
            found["lm_head.weight"] = (self.vocab, self.hidden)
        return found

    def feed_forwards(self, layer: int) -> list[str]:
        """Where the feed-forward parts of a layer have their tensors."""
        at = f"model.layers.{layer}.mlp"
        return [f"{at}.experts.{expert}" for expert in range(self.experts)] if self.experts else [at]


@dataclass(frozen=True)
class State:
    """One checkpoint of one training, in float32: weights, and the moments that Adam keeps of their gradients."""

    step: int
    weights: Weights
    first: Weights
    second: Weights

    def with_optimizer(self) -> Weights:
        """Weights and the state of the optimizer in one checkpoint, as torch names them."""
        found = dict(self.weights)
        for name in self.weights:
            found[f"optimizer.state.{name}.exp_avg"] = self.first[name]
            found[f"optimizer.state.{name}.exp_avg_sq"] = self.second[name]
            found[f"optimizer.state.{name}.step"] = np.array(self.step, np.float32)
        return found


# What callers ask for


def training(seed: int = 0, dtype: str = "F32", model: Model = Model(), decay: float = 0.0) -> list[Weights]:
    """Twelve checkpoints of one training, stored in a dtype; their arrays may be changed."""
    return [stored(state.weights, dtype) for state in states(seed, model, decay)]


def states(seed: int = 0, model: Model = Model(), decay: float = 0.0) -> tuple[State, ...]:
    """The same with the optimizer's moments, after 15, 30, ... 180 steps."""
    seeds = SEEDS if model == Model() and not decay and seed in SEEDS else (seed,)
    return _trained(seeds, model, decay)[seeds.index(seed)]


def tuned(how: str, seed: int = 0, model: Model = Model(), steps: int = 40) -> tuple[Weights, Weights]:
    """The end of a training, and what fine-tuning on another language makes of it.

    `how`: all weights ("full"), the head alone ("head"), matrices of rank 4 beside q and v ("lora"), or all weights
    once the vocabulary was grown by 8 tokens ("grown").
    """
    base = states(seed, model)[-1].weights
    start, grown = base, model
    if how == "grown":
        start, grown = _grown(base, seed), dataclasses.replace(model, vocab=model.vocab + 8)
    found = _fine_tuned(how, start, grown, seed, steps)
    return stored(base, "F32"), stored(found, "F32")


def stored(weights: Mapping[str, np.ndarray], dtype: str) -> Weights:
    """Copies of the arrays in that dtype."""
    return {name: np.array(array, DTYPES[dtype]) for name, array in weights.items()}


# Training


@cache
def _trained(seeds: tuple[int, ...], model: Model, decay: float) -> tuple[tuple[State, ...], ...]:
    generators = [np.random.default_rng([seed, 0]) for seed in seeds]
    tables = np.array([_language(np.random.default_rng([seed, 1]), model) for seed in seeds])
    weights = {name: _initial(name, shape, generators, model) for name, shape in model.shapes().items()}
    optimizer = Adam(weights, decay)
    found: list[list[State]] = [[] for _ in seeds]
    for step in range(1, CHECKPOINTS * STEPS_APART + 1):
        rate = RATE * min(1.0, step / WARM_UP) * (0.55 + 0.45 * math.cos(math.pi * step / CHECKPOINTS / STEPS_APART))
        optimizer.update(weights, gradients(model, weights, texts(generators, tables))[1], rate)
        if step % STEPS_APART == 0:
            for place, one in enumerate(found):
                every = (weights, optimizer.first, optimizer.second)
                kept = ({name: array[place].copy() for name, array in arrays.items()} for arrays in every)
                one.append(State(step, *kept))
    return tuple(tuple(one) for one in found)


class Adam:
    """Adam with decoupled weight decay (AdamW), as torch has it."""

    def __init__(self, weights: Weights, decay: float = 0.0) -> None:
        self.first = {name: np.zeros_like(array) for name, array in weights.items()}
        self.second = {name: np.zeros_like(array) for name, array in weights.items()}
        self.decay, self.step = decay, 0

    def update(self, weights: Weights, found: Mapping[str, np.ndarray], rate: float) -> None:
        """Move the weights by one step, in place."""
        self.step += 1
        for name, gradient in found.items():
            for kept, beta, term in ((self.first, BETAS[0], gradient), (self.second, BETAS[1], gradient**2)):
                kept[name] = (beta * kept[name] + (1 - beta) * term).astype(term.dtype)
            first, second = (
                self.first[name] / (1 - BETAS[0] ** self.step),
                self.second[name] / (1 - BETAS[1] ** self.step),
            )
            decayed = rate * self.decay * weights[name] if weights[name].ndim > 2 else 0.0
            weights[name] = (weights[name] - decayed - rate * first / (np.sqrt(second) + EPSILON)).astype(np.float32)


def _fine_tuned(how: str, start: Weights, model: Model, seed: int, steps: int) -> Weights:
    generators = [np.random.default_rng([seed, 2])]
    tables = _language(np.random.default_rng([seed, 3]), model)[None]
    weights = {name: array[None].copy() for name, array in start.items()}
    adapters = _adapters(weights, generators[0]) if how == "lora" else {}
    optimizer = Adam(adapters or weights)
    for _ in range(steps):
        found = gradients(model, _merged(weights, adapters), texts(generators, tables))[1]
        if how == "head":
            found = {"lm_head.weight": found["lm_head.weight"]}
        if how == "lora":
            found = _adapted(found, adapters)
        optimizer.update(adapters or weights, found, TUNING_RATE * (10 if how == "lora" else 1))
    return {name: array[0] for name, array in _merged(weights, adapters).items()}


def _adapters(weights: Weights, generator: np.random.Generator, rank: int = 4) -> Weights:
    """A random and B zero, as PEFT starts them."""
    found: Weights = {}
    for name, array in weights.items():
        if name.endswith(("q_proj.weight", "v_proj.weight")):
            _, rows, columns = array.shape
            found[f"{name}.A"] = generator.normal(0, 1 / math.sqrt(columns), (1, rank, columns)).astype(np.float32)
            found[f"{name}.B"] = np.zeros((1, rows, rank), np.float32)
    return found


def _merged(weights: Weights, adapters: Weights) -> Weights:
    return {
        name: array + adapters[f"{name}.B"] @ adapters[f"{name}.A"] if f"{name}.A" in adapters else array
        for name, array in weights.items()
    }


def _adapted(found: Weights, adapters: Weights) -> Weights:
    """Gradients of A and B out of those of W + BA."""
    kept: Weights = {}
    for name in {key[:-2] for key in adapters}:
        kept[f"{name}.A"] = _turned(adapters[f"{name}.B"]) @ found[name]
        kept[f"{name}.B"] = found[name] @ _turned(adapters[f"{name}.A"])
    return kept


def _grown(weights: Weights, seed: int, by: int = 8) -> Weights:
    """New rows of the embedding and the head are the mean of the old ones with a little noise."""
    generator, found = np.random.default_rng([seed, 4]), {}
    for name, array in weights.items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            noise = generator.normal(0, 0.02 * array.std(), (by, array.shape[1]))
            array = np.concatenate([array, array.mean(axis=0) + noise]).astype(np.float32)
        found[name] = array
    return found


def _initial(name: str, shape: tuple[int, ...], generators: Iterable[np.random.Generator], model: Model) -> np.ndarray:
    """Gains 1, biases 0, matrices by their width, those that write to the residual stream by the depth, too."""
    if "norm" in name or name.endswith("bias"):
        return np.array([np.full(shape, float("norm" in name), np.float32) for _ in generators])
    spread = 1 / math.sqrt(shape[1])
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        spread /= math.sqrt(2 * model.layers)
    return np.array([generator.normal(0, spread, shape) for generator in generators], np.float32)


def _language(generator: np.random.Generator, model: Model) -> np.ndarray:
    used = model.vocab - model.unused
    return np.array([generator.permutation(used)[: len(FOLLOWERS)] for _ in range(used)])


def texts(generators: Sequence[np.random.Generator], tables: np.ndarray) -> np.ndarray:
    """Tokens [seeds, BATCH, LENGTH + 1] of each seed's language."""
    found = []
    for generator, table in zip(generators, tables, strict=True):
        picks = generator.choice(len(FOLLOWERS), size=(LENGTH, BATCH), p=FOLLOWERS)
        tokens = [generator.integers(0, len(table), BATCH)]
        for pick in picks:
            tokens.append(table[tokens[-1], pick])
        found.append(np.array(tokens).T)
    return np.array(found)


# The network and its gradients


class Node:
    """A value and the gradient of the loss by it."""

    def __init__(self, value: np.ndarray) -> None:
        self.value, self.grad = value, np.zeros_like(value)


Tape = list[Callable[[], None]]


def gradients(model: Model, weights: Weights, tokens: np.ndarray) -> tuple[np.ndarray, Weights]:
    """The mean cross entropy of each seed in nats, and its gradient by every weight."""
    tape: Tape = []
    nodes = {name: Node(array) for name, array in weights.items()}
    dtype = weights["model.norm.weight"].dtype
    inputs = np.eye(model.vocab, dtype=dtype)[tokens[:, :, :-1].reshape(len(tokens), -1)]
    targets = tokens[:, :, 1:].reshape(len(tokens), -1)
    embedding = nodes["model.embed_tokens.weight"]
    x = _embedded(tape, inputs, embedding)
    for layer in range(model.layers):
        at = f"model.layers.{layer}"
        before = _normed(tape, x, nodes[f"{at}.input_layernorm.weight"])
        x = _add(tape, x, _attended(tape, model, nodes, at, before))
        before = _normed(tape, x, nodes[f"{at}.post_attention_layernorm.weight"])
        x = _add(tape, x, _fed(tape, model, nodes, layer, before))
    head = embedding if model.tied else nodes["lm_head.weight"]
    logits = _linear(tape, _normed(tape, x, nodes["model.norm.weight"]), head)
    odds = _softmax(logits.value)
    truth = np.eye(model.vocab, dtype=dtype)[targets]
    logits.grad += (odds - truth) / targets.shape[1]
    for back in reversed(tape):
        back()
    losses: np.ndarray = -np.log((odds * truth).sum(axis=-1)).mean(axis=-1)
    return losses, {name: node.grad for name, node in nodes.items()}


def _attended(tape: Tape, model: Model, nodes: Mapping[str, Node], at: str, x: Node) -> Node:
    """Grouped-query attention with rotary positions."""
    parts = []
    for part, heads in (("q", model.heads), ("k", model.kv_heads), ("v", model.kv_heads)):
        projected = _linear(tape, x, nodes[f"{at}.self_attn.{part}_proj.weight"])
        if model.biases:
            projected = _shifted(tape, projected, nodes[f"{at}.self_attn.{part}_proj.bias"])
        parts.append(_in_heads(tape, projected, model.kv_heads, heads // model.kv_heads, rotated=part != "v"))
    return _linear(tape, _attention(tape, *parts), nodes[f"{at}.self_attn.o_proj.weight"])


def _fed(tape: Tape, model: Model, nodes: Mapping[str, Node], layer: int, x: Node) -> Node:
    """SwiGLU, or the two best of several, weighted by the router."""
    outputs = []
    for at in model.feed_forwards(layer):
        gate, up = (_linear(tape, x, nodes[f"{at}.{part}_proj.weight"]) for part in ("gate", "up"))
        outputs.append(_linear(tape, _gated(tape, gate, up), nodes[f"{at}.down_proj.weight"]))
    if not model.experts:
        return outputs[0]
    return _routed(tape, _linear(tape, x, nodes[f"model.layers.{layer}.mlp.gate.weight"]), outputs)


def _turned(array: np.ndarray) -> np.ndarray:
    return array.swapaxes(-1, -2)


def _softmax(values: np.ndarray) -> np.ndarray:
    odds = np.exp(values - values.max(axis=-1, keepdims=True))
    found: np.ndarray = odds / odds.sum(axis=-1, keepdims=True)
    return found


def _linear(tape: Tape, x: Node, w: Node) -> Node:
    y = Node(x.value @ _turned(w.value))

    def back() -> None:
        x.grad += y.grad @ w.value
        w.grad += _turned(y.grad) @ x.value

    tape.append(back)
    return y


def _embedded(tape: Tape, inputs: np.ndarray, w: Node) -> Node:
    y = Node(inputs @ w.value)

    def back() -> None:
        w.grad += _turned(inputs) @ y.grad

    tape.append(back)
    return y


def _shifted(tape: Tape, x: Node, bias: Node) -> Node:
    y = Node(x.value + bias.value[:, None])

    def back() -> None:
        x.grad += y.grad
        bias.grad += y.grad.sum(axis=1)

    tape.append(back)
    return y


def _add(tape: Tape, x: Node, other: Node) -> Node:
    y = Node(x.value + other.value)

    def back() -> None:
        x.grad += y.grad
        other.grad += y.grad

    tape.append(back)
    return y


def _normed(tape: Tape, x: Node, gain: Node) -> Node:
    """RMSNorm."""
    scale = 1 / np.sqrt((x.value**2).mean(axis=-1, keepdims=True) + np.asarray(1e-6, x.value.dtype))
    unit = x.value * scale
    y = Node(unit * gain.value[:, None])

    def back() -> None:
        gain.grad += (y.grad * unit).sum(axis=1)
        inner = y.grad * gain.value[:, None]
        x.grad += scale * (inner - unit * (inner * unit).mean(axis=-1, keepdims=True))

    tape.append(back)
    return y


def _gated(tape: Tape, gate: Node, up: Node) -> Node:
    """silu(gate) * up."""
    sigmoid = 1 / (1 + np.exp(-gate.value))
    y = Node(gate.value * sigmoid * up.value)

    def back() -> None:
        gate.grad += y.grad * up.value * sigmoid * (1 + gate.value * (1 - sigmoid))
        up.grad += y.grad * gate.value * sigmoid

    tape.append(back)
    return y


def _routed(tape: Tape, logits: Node, outputs: Sequence[Node]) -> Node:
    """Each token's two best experts, weighted by the softmax over these two."""
    chosen = logits.value >= np.sort(logits.value, axis=-1)[..., -2:-1]
    gates = _softmax(np.where(chosen, logits.value, -np.inf))
    values = np.stack([one.value for one in outputs], axis=-1)
    y = Node((values * gates[:, :, None]).sum(axis=-1))

    def back() -> None:
        by_gate = (values * y.grad[..., None]).sum(axis=2)
        logits.grad += gates * (by_gate - (gates * by_gate).sum(axis=-1, keepdims=True))
        for expert, one in enumerate(outputs):
            one.grad += y.grad * gates[:, :, expert : expert + 1]

    tape.append(back)
    return y


def _in_heads(tape: Tape, x: Node, groups: int, heads: int, *, rotated: bool) -> Node:
    """From [seeds, tokens, width] to [seeds, batch, groups, heads, positions, head_dim], turned by position."""
    seeds, tokens, width = x.value.shape
    cut = (seeds, tokens // LENGTH, LENGTH, groups, heads, width // groups // heads)
    angles = np.outer(np.arange(LENGTH), 100.0 ** (-np.arange(0, cut[-1], 2) / cut[-1]))
    turn = (np.cos(angles) + 1j * np.sin(angles)) if rotated else np.ones_like(angles)
    y = Node(_spun(x.value.reshape(cut).transpose(0, 1, 3, 4, 2, 5), turn))

    def back() -> None:
        x.grad += _spun(y.grad, turn.conj()).transpose(0, 1, 4, 2, 3, 5).reshape(x.value.shape)

    tape.append(back)
    return y


def _spun(values: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Halves of the last axis as the parts of complex numbers, multiplied."""
    real, imaginary = np.split(values, 2, axis=-1)
    found = (real + 1j * imaginary) * turn
    return np.concatenate([found.real, found.imag], axis=-1).astype(values.dtype)


def _attention(tape: Tape, q: Node, k: Node, v: Node) -> Node:
    """Causal; keys and values of a group serve all its queries. Back to [seeds, tokens, width]."""
    scale = np.asarray(1 / math.sqrt(q.value.shape[-1]), q.value.dtype)
    scores = np.where(np.tri(LENGTH, dtype=bool), q.value @ _turned(k.value) * scale, -np.inf)
    odds = _softmax(scores).astype(q.value.dtype)
    heads = odds @ v.value
    seeds, batch, groups, members, length, width = heads.shape
    y = Node(heads.transpose(0, 1, 4, 2, 3, 5).reshape(seeds, batch * length, groups * members * width))

    def back() -> None:
        grad = y.grad.reshape(seeds, batch, length, groups, members, width).transpose(0, 1, 3, 4, 2, 5)
        by_odds = grad @ _turned(v.value)
        by_scores = odds * (by_odds - (odds * by_odds).sum(axis=-1, keepdims=True)) * scale
        v.grad += (_turned(odds) @ grad).sum(axis=3, keepdims=True)
        q.grad += by_scores @ k.value
        k.grad += (_turned(by_scores) @ q.value).sum(axis=3, keepdims=True)

    tape.append(back)
    return y
