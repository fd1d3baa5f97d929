"""ONNX Runtime in place of PyTorch, on the CPU: one pass of the decoder as a file, and what runs it.

Needs the extra `export`. The file holds the layers only. Embedding and head stay in the checkpoint, and the keys and
values of the prefix are inputs, so that one file serves any agents.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.export import Dim
from transformers import AttentionInterface

from router.decoding import Pair, TorchStep, seen_by_rows
from router.errors import InputError

try:
    import onnxruntime
    from onnxruntime.quantization import quantize_dynamic
    from onnxscript.rewriter.ort_fusions.rms_normalization import fuse_rms_normalization
except ImportError as error:
    raise InputError(f"the package {error.name} is not installed; run `pip install .[export]`") from None

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "grouped"


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """`shared_prefix_attention` in plain products, which suit ONNX Runtime better than PyTorch's fused one."""
    keys, values = seen_by_rows(module, key, value, kwargs["prefix"], kwargs["own"], kwargs["new"])
    # The query heads of one key head become further rows of one product: keys and values are copied for none of them.
    grouped = (query * scaling).reshape(*key.shape[:2], -1, key.shape[3])
    scores = (grouped @ keys.transpose(2, 3)).reshape(*query.shape[:3], -1) + attention_mask
    weights = scores.softmax(dim=-1).reshape(*grouped.shape[:3], -1)
    return (weights @ values).reshape(query.shape).transpose(1, 2), None


AttentionInterface.register(ATTENTION, grouped_attention)


def export(model: "PreTrainedModel", file: str | Path) -> None:
    """Write one pass of the decoder through the model's layers as an ONNX file, with weights in float32."""
    config = model.config
    B, T, S, P = 2, 3, 5, {"full_attention": 11, "sliding_attention": 7}  # an example; all of these are free
    keys = (config.num_key_value_heads, config.head_dim)
    example = {
        "embeddings": torch.zeros(B, T, config.hidden_size),
        "positions": torch.zeros(B, T, dtype=torch.long),
        "masks": {kind: torch.zeros(B, 1, T, length + S + T) for kind, length in P.items()},
        "prefix": [
            (torch.zeros(keys[0], P[kind], keys[1]), torch.zeros(keys[0], P[kind], keys[1]))
            for kind in config.layer_types
        ],
        "own": torch.zeros(config.num_hidden_layers, 2, B, keys[0], S, keys[1]),
    }
    free = Dim.DYNAMIC
    shapes = {
        "embeddings": {0: free, 1: free},
        "positions": {0: free, 1: free},
        "masks": {kind: {0: free, 2: free, 3: free} for kind in P},
        "prefix": [({1: free}, {1: free}) for _ in config.layer_types],
        "own": {2: free, 4: free},
    }
    names = [f"{part}_{layer}" for layer in range(config.num_hidden_layers) for part in ("keys", "values")]
    step = TorchStep(model).eval()
    before = config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    try:
        program = torch.onnx.export(
            step,
            kwargs=example,
            dynamic_shapes=shapes,
            input_names=["embeddings", "positions", *P, *names, "own"],
            output_names=["hidden", "own_after"],
            verbose=False,
        )
    finally:
        model.set_attn_implementation(before)
    assert program is not None
    fuse_rms_normalization(program.model)
    program.optimize()
    program.save(file)


def quantize(file: str | Path, target: str | Path) -> None:
    """Write what `export` wrote with weights in 8 bits; what they meet is rounded to 8 bits as it comes."""
    quantize_dynamic(file, target)


class OnnxStep:
    """`Step` in ONNX Runtime, with as many threads as PyTorch has when it is made."""

    def __init__(self, file: str | Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Idle threads sleep: spinning, they would take the cores from PyTorch's, which compute between two passes.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common class of their own
            raise InputError(f"{file}: no usable ONNX file ({' '.join(str(error).split())[:200]})") from None

    def __call__(
        self,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        masks: dict[str, torch.Tensor],
        prefix: Sequence[Pair],
        own: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = {"embeddings": embeddings, "positions": positions, **masks, "own": own}
        for layer, (keys, values) in enumerate(prefix):
            inputs |= {f"keys_{layer}": keys, f"values_{layer}": values}
        hidden, own_after = self.session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        return torch.from_numpy(hidden), torch.from_numpy(own_after)
