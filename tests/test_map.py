"""`--map FILE`: other names, fused and stacked tensors as declared, and maps that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner

import decoding
from diffai_dist import compare, sweep
from diffai_dist.api import open_store
from diffai_dist.cli import commands
from diffai_dist.config import load_map
from diffai_dist.errors import UsageError
from diffai_dist.matching import Fused, Matching, Rename
from diffai_dist.run import Settings
from diffai_dist.storage import Profile, traffic
from models import Arrays, write


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def saved(tmp_path: Path, text: str) -> str:
    path = tmp_path / "names.yaml"
    path.write_text(text)
    return str(path)


def pair(tmp_path: Path, before: Arrays, after: Arrays) -> list[str]:
    return [str(write(tmp_path / f"{name}.safetensors", one)) for name, one in (("a", before), ("b", after))]


def compared(
    tmp_path: Path, before: Arrays, after: Arrays, text: str, **options: Any
) -> dict[str, tuple[str, str | None]]:
    """Status and name in the candidate by name, mapped."""
    report = compare(*pair(tmp_path, before, after), map=saved(tmp_path, text), **options)
    assert not report.failures
    return {one.name: (one.status, one.candidate_name) for one in report.result.tensors}


# What maps do


def test_matrices_are_compared_as_declared_transposes(tmp_path: Path) -> None:
    before = {"layers.0.w": noise(5, 3), "layers.1.w": noise(5, 3, seed=1), "square": noise(4, 4), "b": noise(4)}
    after = {"h.0.w": before["layers.0.w"].T, "h.1.w": before["layers.1.w"].T + 1, "square": before["square"].T}
    text = "rename: [{old: h.*.w, new: layers.*.w, transposed: true}, {old: square, new: square, transposed: true}]"
    assert compared(tmp_path, before, after | {"b": noise(4)}, text) == {
        "layers.0.w": ("identical", "h.0.w"),
        "layers.1.w": ("changed", "h.1.w"),
        "square": ("identical", None),
        "b": ("identical", None),
    }


def test_a_transpose_is_not_taken_for_what_was_stored_as_it_is(tmp_path: Path) -> None:
    """Measurements of an earlier night are of the matrix, not of its transpose."""
    w = noise(4, 4)
    store, text = str(tmp_path / "store"), "rename: [{old: w, new: w, transposed: true}]"
    paths = pair(tmp_path, {"w": w}, {"w": w.T})
    assert compare(*paths, store=store).result.tensors[0].status == "changed"
    turned = compare(*paths, store=store, map=saved(tmp_path, text))
    assert turned.result.tensors[0].status == "identical"
    assert compare(*paths, store=store).result.tensors[0].status == "changed"


def test_renames_by_glob_and_by_regular_expression(tmp_path: Path) -> None:
    before = {"layers.0.q.w": noise(3), "layers.1.q.w": noise(4), "norm": noise(5), "same": noise(2)}
    after = {"h.0.attn.q": noise(3), "h.1.attn.q": noise(4) + 1, "ln-5": noise(5), "same": noise(2)}
    text = """
rename:
  - {old: h.*.attn.*, new: layers.*.*.w}
  - {old: '(ln)-(?P<n>\\d)', new: 'norm', regex: true}
"""
    assert compared(tmp_path, before, after, text) == {
        "layers.0.q.w": ("identical", "h.0.attn.q"),
        "layers.1.q.w": ("changed", "h.1.attn.q"),
        "norm": ("identical", "ln-5"),
        "same": ("identical", None),
    }


def test_the_first_rule_that_matches_counts_and_names_can_change_places(tmp_path: Path) -> None:
    before, after = {"up": noise(3), "gate": noise(3, seed=1)}, {"gate": noise(3), "up": noise(3, seed=1)}
    found = compared(tmp_path, before, after, "rename: [{old: up, new: gate}, {old: gate, new: up}]")
    assert found == {"gate": ("identical", "up"), "up": ("identical", "gate")}
    rules = "rename: [{old: u*, new: x*}, {old: up, new: gate}]"
    with pytest.raises(UsageError, match="'up' to 'gate' is about no tensor"):
        compared(tmp_path, before, after, rules)
    assert Rename("h.*", "layers.*").renamed("h.0.h.1") == "layers.0.h.1"
    assert Rename(r"(.)\.(.)", r"\2.\1", regex=True).renamed("a.bc") is None


def test_the_names_of_the_baseline_stay(tmp_path: Path) -> None:
    text = "rename: [{old: h.*.w, new: layers.*.w}]"
    assert compared(tmp_path, {"layers.0.w": noise(3)}, {"h.0.w": noise(3)}, text) == {
        "layers.0.w": ("identical", "h.0.w")
    }
    with pytest.raises(UsageError, match="is about no tensor of any checkpoint but the baseline, whose names stay"):
        compared(tmp_path, {"h.0.w": noise(3)}, {"layers.0.w": noise(3)}, text)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_fused_tensors_are_compared_as_declared_parts(tmp_path: Path, ndim: int, turned: bool) -> None:
    tail = (5, 2)[: ndim - 1]
    fine = {
        "h.0.k": noise(3, *tail),
        "h.0.q": noise(6, *tail),
        "h.1.k": noise(3, *tail, seed=1),
        "h.1.q": noise(6, *tail, seed=2),
    }
    whole = {f"h.{i}.kq": np.concatenate([fine[f"h.{i}.k"], fine[f"h.{i}.q"]]) for i in (0, 1)}
    whole["h.1.kq"].reshape(9, -1)[4, 0] += 1
    text = "fused: [{name: h.*.kq, parts: [h.*.k, h.*.q]}]"
    found = compared(tmp_path, *((whole, fine) if turned else (fine, whole)), text)
    places = {"h.0.k": "h.0.kq[0:3]", "h.0.q": "h.0.kq[3:9]", "h.1.k": "h.1.kq[0:3]", "h.1.q": "h.1.kq[3:9]"}
    assert {name: status for name, (status, _) in found.items()} == dict.fromkeys(fine, "identical") | {
        "h.1.q": "changed"
    }
    assert {name: other for name, (_, other) in found.items()} == (dict.fromkeys(fine) if turned else places)


def test_stacked_tensors_are_compared_one_by_one(tmp_path: Path) -> None:
    fine = {f"experts.{e}.{n}": noise(4, 3, seed=e + ord(n)) for e in range(3) for n in "gu"}
    stacked = {
        "experts.gu": np.stack([np.concatenate([fine[f"experts.{e}.g"], fine[f"experts.{e}.u"]]) for e in range(3)])
    }
    text = "fused: [{name: experts.gu, parts: ['experts.{}.g', 'experts.{}.u']}]"
    found = compared(tmp_path, fine, stacked, text)
    assert set(found) == set(fine)
    assert {status for status, _ in found.values()} == {"identical"}
    assert found["experts.2.u"][1] == "experts.gu[2,4:8]"


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_rows_that_alternate_are_compared_share_by_share(tmp_path: Path, heads: int) -> None:
    """As BLOOM and GPT-NeoX fuse: of each head its q, its k, its v."""
    fine = {name: noise(8, 6, seed=i) for i, name in enumerate("qkv")}
    parts = [fine[name].reshape(heads, -1, 6) for name in "qkv"]
    whole = np.concatenate(parts, axis=1).reshape(24, 6)
    whole[-1, 0] += 1
    text = f"fused: [{{name: qkv, parts: [q, k, v], interleaved: {heads}}}]"
    found = compared(tmp_path, fine, {"qkv": whole}, text)
    rows = 8 // heads
    last = "v" if heads == 1 else f"v[{8 - rows}:8]"
    assert len(found) == 3 * heads
    assert [name for name, (status, _) in found.items() if status != "identical"] == [last]
    assert found[last] == ("changed", f"qkv[{24 - rows}:24]")


FP8_CODES = np.random.default_rng(1).integers(0, 120, (768, 256), np.uint8).view(ml_dtypes.float8_e4m3fn)


@pytest.mark.parametrize("groups", [1, 4])
def test_a_quantised_tensor_is_cut_like_any_other(tmp_path: Path, groups: int) -> None:
    """Parts may begin anywhere in a tile of 128 rows; together they need little more than the bytes there are."""
    scales = np.linspace(0.5, 2, 12, dtype=np.float32).reshape(6, 2)
    values = FP8_CODES.astype(np.float32) * np.kron(scales, np.ones((128, 128), np.float32))
    shares = values.reshape(groups, 3, -1, 256)
    before = {name: shares[:, i].reshape(-1, 256).copy() for i, name in enumerate("qkv")}
    before["v"][7, 9] += 1
    folder = decoding.write(tmp_path / "b", {"qkv.weight": FP8_CODES, "qkv.weight_scale_inv": scales})
    a = write(tmp_path / "a.safetensors", {f"{name}.weight": array for name, array in before.items()})
    text = f"fused: [{{name: qkv.weight, parts: [q.weight, k.weight, v.weight], interleaved: {groups}}}]"
    start = traffic().bytes
    report = compare(str(a), str(folder), map=saved(tmp_path, text))
    assert traffic().bytes - start <= 1.05 * (a.stat().st_size + FP8_CODES.nbytes) + 2 * 2**17
    assert not report.failures
    changed = [one["name"] for one in report.records if one["change"]["max_abs"]]
    assert changed == (["v.weight"] if groups == 1 else ["v.weight[0:64]"])
    assert len(report.records) == 3 * groups
    assert {one["candidate"]["dtype"] for one in report.records} == {"fp8-block"}


def test_what_is_quantised_as_a_whole_is_said_to_be(tmp_path: Path) -> None:
    codes = {"qk.qweight": np.zeros((4, 64), np.int32), "qk.qzeros": np.full((1, 8), 0x77777777, np.int32)}
    write(tmp_path / "b" / "model.safetensors", codes | {"qk.scales": np.ones((1, 64), np.float16)})
    a = write(tmp_path / "a.safetensors", {"q.weight": noise(32, 32), "k.weight": noise(32, 32)})
    for text, said in (
        (
            "fused: [{name: qk.weight, parts: [q.weight, k.weight]}]",
            "it is quantised (gptq-4bit), so that each part would need all of its bytes",
        ),
        ("rename: [{old: qk.weight, new: q.weight, transposed: true}]", "it is quantised (gptq-4bit), and only values"),
    ):
        with pytest.raises(UsageError) as error:
            compare(str(a), str(tmp_path / "b"), map=saved(tmp_path, text))
        assert said in str(error.value)


def test_a_map_and_the_matching_of_names_work_together(tmp_path: Path) -> None:
    before = {"model.layers.0.self_attn.q_proj.weight": noise(4, 4), "odd": noise(2)}
    after = {"module.model.layers.0.self_attn.q_proj.weight": noise(4, 4), "strange": noise(2)}
    files, path = pair(tmp_path, before, after), saved(tmp_path, "rename: [{old: strange, new: odd}]")
    report = compare(*files, map=path, analyses=["tensor_matching"])
    result = next(one.result for one in report.result.analyses)
    assert report.result.statuses == {"identical": 2}
    assert (result["declared"], result["wrapper"], result["exact"]) == (1, 1, 0)


def test_parts_of_a_file_that_is_fused_in_both_are_left_whole(tmp_path: Path) -> None:
    whole = {"kq": noise(9, 5)}
    text = "fused: [{name: kq, parts: [k, q]}]"
    assert compared(tmp_path, whole, whole, text) == {"kq": ("identical", None)}


# Maps that cannot be used


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "rename: [{old: h.*, new: layers}]",
            "names.yaml:1:10: 'h.*' and 'layers' do not have as many * as each other",
        ),
        ("rename: [{old: '(', new: a, regex: true}]", "'(' to 'a' is no replacement: missing ), unterminated"),
        ("rename: [{old: '(a)', new: '\\2', regex: true}]", "no replacement: invalid group reference 2"),
        ("rename: [{old: '(a)', new: '\\g<b>', regex: true}]", "is no replacement: unknown group name 'b'"),
        ("rename: [{old: a}]", "the key 'new' is missing"),
        ("rename: [{old: a, neu: b}]", "unknown key 'neu' (did you mean 'new'?)"),
        ("rename: {a: b}", "rename wants a list, found a section of settings"),
        ("renames: []", "unknown key 'renames' (did you mean 'rename'?)"),
        ("fused: [{name: a, parts: []}]", "'a' is made of nothing"),
        ("fused: [{name: a, parts: [b], interleaved: 0}]", "'a' is made of nothing"),
        ("fused: [{name: a.*, parts: [b]}]", "'a.*' and 'b' do not have as many *"),
        ("fused: [{name: a, parts: ['b.{}'], interleaved: 2}]", "not both"),
        ("fused: [{name: a, parts: [b], interleaved: two}]", "interleaved wants a whole number, found the text 'two'"),
        ("rename: [{old: a, new: b, transpose: true}]", "unknown key 'transpose' (did you mean 'transposed'?)"),
        ("- a", "a map is made of `rename:` and `fused:`"),
        ("rename: [", "names.yaml:1:10: not YAML"),
        ("rename: !!python/object:os.system []", "is refused"),
    ],
)
def test_a_wrong_map_is_said_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        load_map(saved(tmp_path, text))
    assert said in str(error.value)
    assert "names.yaml:1:" in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rename: [{old: nope, new: a}]", "'nope' to 'a' is about no tensor of any checkpoint"),
        ("rename: [{old: both, new: kq}]", "'both' becomes 'kq', but so is another tensor called"),
        ("rename: [{old: '(both|kq)', new: x, regex: true}]", "becomes 'x', but so is another"),
        ("rename: [{old: vector, new: k2, transposed: true}]", "'vector' cannot be transposed: it is no matrix"),
        ("fused: [{name: nope, parts: [k, q]}]", "'nope' of 'k', 'q' is about no tensor"),
        ("fused: [{name: kq, parts: [k, v]}]", "no checkpoint has all parts of 'kq', some have 'k'"),
        ("fused: [{name: kq, parts: [k]}]", "'kq' is not made of 'k': the parts have 15 elements, it has 45"),
        ("fused: [{name: kq, parts: [k, q], interleaved: 2}]", "the rows of its parts do not go into 2 groups"),
        ("fused: [{name: odd, parts: [k, q]}]", "'odd' cannot be cut into 'k', 'q': there is a 'k' beside it"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(tmp_path: Path, text: str, said: str) -> None:
    fine = {"k": noise(3, 5), "q": noise(6, 5)}
    whole = {"kq": np.concatenate([fine["k"], fine["q"]])}
    others = {"both": whole["kq"], "odd": noise(9, 5), "vector": noise(9)}
    with pytest.raises(UsageError) as error:
        compared(tmp_path, fine | {"odd": noise(9, 5)}, whole | others, text)
    assert said in str(error.value)


def test_a_map_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nope\.yaml: the map cannot be read: No such file"):
        load_map(str(tmp_path / "nope.yaml"))


# Where maps come from


def test_the_example_is_a_map_that_does_what_it_says(tmp_path: Path) -> None:
    before = {f"model.layers.0.self_attn.{n}_proj.weight": noise(4, 6, seed=ord(n)) for n in "qkv"}
    q, k, v = (array.reshape(2, 2, 6) for array in before.values())
    before["model.norm.weight"] = noise(6)
    experts = [[noise(5, 6, seed=e), noise(5, 6, seed=9 + e)] for e in range(3)]
    for e, halves in enumerate(experts):
        before |= {
            f"model.layers.0.mlp.experts.{e}.{n}_proj.weight": x for n, x in zip(("gate", "up"), halves, strict=True)
        }
    after = {
        "decoder.layers.0.self_attention.linear_qkv.weight": np.concatenate([q, k, v], axis=1).reshape(12, 6),
        "decoder.final_norm.weight": noise(6),
        "model.layers.0.mlp.experts.gate_up_proj": np.stack([np.concatenate(halves) for halves in experts]),
        "decoder.layers.0.mlp.linear_fc2.weight": noise(6, 7).T,
    }
    before["model.layers.0.mlp.down_proj.weight"] = noise(6, 7)
    report = compare(*pair(tmp_path, before, after), map=str(Path(__file__).parents[1] / "configs" / "names.yaml"))
    assert report.result.statuses == {"identical": 14}


def test_a_map_decides_the_run_and_is_kept_with_it() -> None:
    matching = Matching(
        True, (Rename("a.*", "b.*"), Rename("(a)", r"\1", True)), (Fused("a", ("b.{}", "c.{}")), Fused("d", ("e",), 4))
    )
    assert Matching.of(json.loads(json.dumps(matching.document()))) == matching
    plain, mapped = Settings().digest_part(), Settings(matching=matching).digest_part()
    assert plain != mapped
    assert plain == Settings(matching=Matching()).digest_part()


def test_the_command_line_takes_a_map(tmp_path: Path) -> None:
    files = pair(tmp_path, {"layers.0.w": noise(3)}, {"h.0.w": noise(3) + 1})
    path = saved(tmp_path, "rename: [{old: h.*, new: layers.*}]")
    done = CliRunner().invoke(commands, ["compare", *files, "--map", path, "-o", "json"], standalone_mode=False)
    (record,) = (one for one in json.loads(done.stdout) if one["kind"] == "tensor")
    assert (record["name"], record["candidate_name"], record["status"]) == ("layers.0.w", "h.0.w", "changed")
    done = CliRunner().invoke(commands, ["compare", *files, "--map", path], standalone_mode=False)
    assert "candidate_name=h.0.w" in done.output
    done = CliRunner().invoke(commands, ["plan", *files, "--map", path], standalone_mode=False)
    assert "1 compared" in done.output


def test_a_configuration_names_a_map_beside_it(tmp_path: Path) -> None:
    for step, name in enumerate(("layers.0.w", "h.0.w", "h.0.w")):
        write(tmp_path / "run" / f"step-{step}.safetensors", {name: noise(3, seed=step)})
    saved(tmp_path, "rename: [{old: h.*, new: layers.*}]")
    config = tmp_path / "sweep.yaml"
    config.write_text("checkpoints: run/step-*\nselect: {map: names.yaml}\nstore: store\n")
    report = sweep(str(config))
    assert [result.statuses for result in report.sweep.results] == [{"changed": 1}] * 2
    # The second pair has one name on both sides, and yet another than the candidate's own.
    assert [result.tensors[0].candidate_name for result in report.sweep.results] == ["h.0.w", "h.0.w"]
    kept = open_store(str(tmp_path / "store"), Profile())
    assert kept.plan(report.id)["settings"]["matching"]["renames"] == [
        {"old": "h.*", "new": "layers.*", "regex": False, "transposed": False}
    ]
    again = kept.load(report.id)
    assert [result.tensors for result in again.results] == [result.tensors for result in report.sweep.results]
