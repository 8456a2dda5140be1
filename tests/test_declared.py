"""What a configuration declares of quantisation and the tensors do not bear out: told, and a finding that gates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from decoding import opened, write
from diffai_dist import compare

FP8 = {"quant_method": "fp8"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"}
RULE = "declared-otherwise"


def fp8(rows: int = 1) -> dict[str, np.ndarray]:
    """A weight of 4 x 256 in FP8, with a scale for the tensor or one for each row."""
    codes = np.linspace(-400, 400, 1024, dtype=np.float32).reshape(4, 256).astype(ml_dtypes.float8_e4m3fn)
    return {"m.weight": codes, "m.weight_scale": np.full((rows, 1), 0.01, np.float32)}


def gptq() -> dict[str, np.ndarray]:
    """A weight of 16 outputs and 64 inputs of 4 bits, in groups of 32: no other number of bits fits the shapes."""
    words = np.random.default_rng(0).integers(-(2**31), 2**31, (8, 16)).astype(np.int32)
    zeros, scales = np.full((2, 2), 0x88888888, np.uint32).view(np.int32), np.full((2, 16), 0.01, np.float16)
    return {"m.qweight": words, "m.qzeros": zeros, "m.scales": scales}


def plain() -> dict[str, np.ndarray]:
    return {"m.weight": np.linspace(-4, 4, 1024, dtype=np.float32).reshape(4, 256)}


def of_weights(**fields: Any) -> dict[str, Any]:
    """A configuration of compressed-tensors with one group."""
    weights = {"type": "float", "num_bits": 8, "strategy": "channel", "symmetric": True} | fields
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": groups}


AGAINST = {
    "method": (fp8(), {"quant_method": "gptq"}, "declares gptq, but what is stored is fp8-tensor, and read as that"),
    "left out": (fp8(), FP8 | {"modules_to_not_convert": ["m"]}, "lists modules as not quantised that are fp8-tensor"),
    "format": (fp8(), FP8 | {"fmt": "e5m2"}, "declares e5m2, but codes are stored with 4 significant bits"),
    "blocks": (fp8(), FP8 | {"weight_block_size": [128, 128]}, "declares another group size than is stored"),
    "channels": (
        fp8(4),
        of_weights(strategy="tensor"),
        "declares scales for larger parts of a weight",
    ),
    "bits": (fp8(4), of_weights(num_bits=4), "declares other bits than are stored, 8"),
    "bits of gptq": (gptq(), GPTQ | {"bits": 8}, "declares other bits than are stored, 4"),
    "groups of gptq": (gptq(), GPTQ | {"group_size": 16}, "declares another group size than is stored"),
    "awq": (gptq(), GPTQ | {"quant_method": "awq"}, "declares awq, but what is stored is gptq-4bit"),
}
BORNE_OUT = {
    "fp8": (fp8(), FP8 | {"fmt": "e4m3"}),
    "fp8 by rows": (fp8(4), of_weights()),
    "channels of one scale": (fp8(), of_weights()),
    "two groups": (fp8(4), of_weights() | {"config_groups": {str(one): {"targets": ["Linear"], "weights": {
        "type": "float", "num_bits": 8, "strategy": one}} for one in ("tensor", "channel")}}),
    "gptq": (gptq(), GPTQ),
    "apart": (gptq(), GPTQ | {"bits": 8, "dynamic": {"m": {"bits": 4}}}),
    "no method that is known": (fp8(), {"quant_method": "quark", "bits": 3, "group_size": 7}),
    "none": (fp8(), None),
    "values that codes could be": (plain(), of_weights() | {"format": "dense"}),
    "caches alone": (plain(), {"quant_method": "modelopt", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}),
    "caches alone, of the other": (plain(), {"quant_method": "compressed-tensors", "config_groups": {}}),
    "activations alone": (plain(), of_weights() | {"config_groups": {"a": {"targets": ["Linear"], "weights": None}}}),
    "when loaded": (plain(), {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "experts of DeepSeek": (
        {"e.0.w1.weight": np.ones((32, 16), np.int8), "e.0.w1.scale": np.ones((32, 1), ml_dtypes.float8_e8m0fnu)}
        | {"m.weight": np.ones((128, 128), ml_dtypes.float8_e4m3fn), "m.weight_scale_inv": np.ones((1, 1), np.float32)},
        FP8 | {"fmt": "e4m3", "weight_block_size": [128, 128]},
    ),
    "an int for a name": (fp8(), FP8 | {"fmt": 3, "weight_block_size": ["a", None]}),
}  # fmt: skip


@pytest.mark.parametrize("case", AGAINST)
def test_what_is_declared_otherwise_is_told_and_found(tmp_path: Path, case: str) -> None:
    arrays, config, found = AGAINST[case]
    checkpoint = opened(write(tmp_path / "b", arrays, config))
    (broken,) = [one for one in checkpoint.violations if one.rule == RULE]
    assert broken.found.startswith(f"config.json {found}")
    assert broken.names == ("m.weight",)
    assert f"{broken.found} ('m.weight')" in checkpoint.warnings
    (finding,) = findings(tmp_path, "quantization_analysis")
    assert (finding.severity, finding.value, finding.source) == ("high", 1, broken.found)


@pytest.mark.parametrize("case", BORNE_OUT)
def test_what_is_borne_out_or_not_known_is_not(tmp_path: Path, case: str) -> None:
    arrays, config = BORNE_OUT[case]
    write(tmp_path / "b", arrays, config)
    assert findings(tmp_path, "quantization_analysis", "integrity_check") == []


def test_plain_weights_that_are_declared_quantised_are_found(tmp_path: Path) -> None:
    write(tmp_path / "b", plain(), {"quant_method": "hqq"})
    told = "config.json declares hqq, but no tensor is stored as codes"
    for name in ("quantization_analysis", "integrity_check"):
        (finding,) = findings(tmp_path, name)
        assert told in finding.source
    (alone,) = findings(tmp_path, "quantization_analysis", "integrity_check")  # told once
    assert alone.candidate.endswith("b")
    report = compare(str(tmp_path / "a"), str(tmp_path / "b"), analyses=["integrity_check"])
    assert told in report.sweep.warnings


@pytest.mark.parametrize("config", [of_weights(), {"quant_method": "modelopt", "quant_algo": "FP8"}, FP8, GPTQ])
def test_what_must_be_codes_is_missed(tmp_path: Path, config: dict[str, Any]) -> None:
    write(tmp_path / "b", plain(), config)
    (finding,) = findings(tmp_path, "integrity_check")
    assert finding.source.endswith("but no tensor is stored as codes")


def test_a_configuration_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    write(tmp_path / "b", fp8())
    (tmp_path / "b" / "config.json").write_text(json.dumps({"quantization_config": FP8})[:-1])
    assert [one for one in opened(tmp_path / "b").warnings if one.startswith("config.json was not used: invalid JSON")]


def findings(folder: Path, *analyses: str) -> list[Any]:
    """Those of the rule, of folder `b` against plain values."""
    shape = opened(folder / "b").tensors["m.weight"].shape
    write(folder / "a", {"m.weight": np.ones(shape, np.float32)})
    report = compare(str(folder / "a"), str(folder / "b"), analyses=list(analyses))
    records = (*report.result.analyses, *report.sweep.analyses)
    return [one for record in records for one in record.findings if one.rule == RULE]
