"""The names of a Wan transformer's parameters: diffusers' (and ours) on one side, Wan's own (and ComfyUI's) on the other.

Tensors are the same on both sides. Wan's are those of `wan/modules/model.py` of github.com/Wan-Video/Wan2.2 (Apache-2.0).
"""

import re
from collections.abc import Iterable

from vrlvr.errors import UserError

_OUTSIDE = {
    "patch_embedding": "patch_embedding",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "proj_out": "head.head",
    "scale_shift_table": "head.modulation",
}
_PARTS = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o", "norm_q": "norm_q", "norm_k": "norm_k"}
_IN_BLOCK = {
    **{f"attn1.{ours}": f"self_attn.{wans}" for ours, wans in _PARTS.items()},
    **{f"attn2.{ours}": f"cross_attn.{wans}" for ours, wans in _PARTS.items()},
    "norm2": "norm3",  # the norm before cross-attention; the other two have no parameters
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "scale_shift_table": "modulation",
}


def original_names(names: Iterable[str]) -> dict[str, str]:
    """Wan's own name of each module or parameter, in the same order.

    Raises UserError if one has none, or two have the same: a file with some keys left out would load, and be wrong.
    """
    found = {name: _original(name) for name in names}
    unmapped = [name for name, original in found.items() if original is None]
    if unmapped:
        raise UserError(
            f"{len(unmapped)} of {len(found)} tensors have no name in Wan's own layout ({', '.join(unmapped[:3])}); export for "
            "diffusers instead"
        )
    originals = {name: original for name, original in found.items() if original is not None}
    assert len(set(originals.values())) == len(originals), "two tensors have one name in Wan's own layout"
    return originals


def _original(name: str) -> str | None:
    match = re.fullmatch(r"(blocks\.\d+\.)?(.+?)(\.weight|\.bias)?", name)
    if match is None:
        return None
    block, module, leaf = match.groups(default="")
    original = (_IN_BLOCK if block else _OUTSIDE).get(module)
    return None if original is None else f"{block}{original}{leaf}"
