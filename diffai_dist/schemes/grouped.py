"""Scales and zero points of groups of inputs, as GPTQ and AWQ lay them beside the codes: [groups, outputs]."""

from __future__ import annotations

import numpy as np

from diffai_dist.checkpoint import Tensor
from diffai_dist.dtypes import DTYPES
from diffai_dist.schemes.loops import floats
from diffai_dist.schemes.scales import in_order
from diffai_dist.schemes.stored import Declared, Undecodable

SCALES = ("F16", "BF16", "F32")


def sizes(tensor: Tensor, *dtypes: str) -> tuple[int, int]:
    """Rows and columns of a part; raises Undecodable where it is no plain matrix of one of these dtypes."""
    shape = tensor.shape
    if tensor.dtype not in dtypes or len(shape) != 2 or 0 in shape:
        part = tensor.name.rpartition(".")[2]
        raise Undecodable(f"its {part} is {tensor.dtype} of shape {list(shape)}", f"a matrix of {' or '.join(dtypes)}")
    in_order(tensor)
    return shape[0], shape[1]


def declared_group(inputs: int, groups: int, declared: Declared) -> int | None:
    """The group size that is declared, if it gives that many groups; -1 is one group of all inputs."""
    size = declared.number("group_size", "q_group_size")
    size = inputs if size == -1 else min(size or 0, inputs)
    return size if size > 0 and -(-inputs // size) == groups else None


def group_size(inputs: int, groups: int, declared: Declared) -> int:
    """How many inputs in a row share a scale: as declared, else the one size that gives so many groups.

    448 inputs in 4 groups may be groups of 112 or, the last one short, of 128: Undecodable if nothing says which.

    >>> group_size(4096, 32, Declared()), group_size(4000, 32, Declared(fields={"group_size": 128}))
    (128, 128)
    """
    if size := declared_group(inputs, groups, declared):
        return size
    short = 1 << (-(-inputs // groups) - 1).bit_length()  # a last group is short where the others are a power of two
    fits = {inputs // groups} if inputs % groups == 0 else set()
    fits |= {short} if groups > 1 and -(-inputs // short) == groups else set()
    if len(fits) == 1:
        return fits.pop()
    found = f"{groups:,} groups of {inputs:,} inputs are declared nowhere"
    raise Undecodable(
        f"{found}: their size is {' or '.join(map(str, sorted(fits)))}" if fits else f"{found}, and of no usual size",
        "a group_size that gives as many groups",
        "Say group_size in the quantization_config of its config.json",
    )


def remarks_on(bits: int, groups: int, inputs: int, declared: Declared) -> tuple[str, ...]:
    """Where the tensors are not as declared, unless single modules are declared apart (`dynamic` of GPTQModel)."""
    if declared.fields.get("dynamic"):
        return ()
    said, size = declared.number("bits", "w_bit"), declared.number("group_size", "q_group_size")
    differ = {
        f"other bits than are stored, {bits}": said is not None and said != bits,
        "another group size than is stored": size is not None and not declared_group(inputs, groups, declared),
    }
    return tuple(f"{declared.file} declares {what}: read as stored" for what, differs in differ.items() if differs)


def scales_of(data: np.ndarray, dtype: str, outputs: int, low: int, high: int) -> np.ndarray:
    """float32 [groups, high - low]: the scales of outputs [low, high)."""
    width = DTYPES[dtype].bits // 8
    columns = np.ascontiguousarray(data.reshape(-1, outputs * width)[:, low * width : high * width])
    scales: np.ndarray = floats(columns.reshape(-1), dtype).reshape(-1, high - low)
    return scales
