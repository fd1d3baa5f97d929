"""A router as GGUF, the file format of llama.cpp and Ollama, and the Modelfile beside it. Needs no llama.cpp.

What llama.cpp calls `gemma3` computes what Transformers calls `gemma3_text`. The file names the weights otherwise,
keeps the factors of norms whole (Transformers keeps them less one), and brings the tokenizer along.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gguf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from router.agents import Agent
from router.encoding import PLACEHOLDER
from router.errors import InputError
from router.functiongemma import BOS, END_OF_TURN, EOS, PAD, START_RESPONSE, STOP_TOKENS, render

FORMATS = {
    "f32": (gguf.LlamaFileType.ALL_F32, gguf.GGMLQuantizationType.F32),
    "f16": (gguf.LlamaFileType.MOSTLY_F16, gguf.GGMLQuantizationType.F16),
    "q8_0": (gguf.LlamaFileType.MOSTLY_Q8_0, gguf.GGMLQuantizationType.Q8_0),
}
"""How matrices are kept: in 32 bits a number, in 16, or in 8 with a scale for every 32 numbers of a row."""
BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def write_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str | Path, kind: str) -> None:
    """Write model, tokenizer and chat template into one file; `kind` is one of FORMATS.

    Raises:
        InputError: llama.cpp computes something else than this model does, or cannot read its tokenizer.
    """
    _check(model)
    file_type, matrices = FORMATS[kind]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.GEMMA3])
    writer.add_file_type(file_type)
    _add_shape(writer, model.config)
    _add_tokenizer(writer, tokenizer, model.config.vocab_size)
    _add_weights(writer, model, matrices)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=True)
    writer.close()


def _check(model: PreTrainedModel) -> None:
    """What has no place in the file must be as llama.cpp takes it to be."""
    config = model.config
    taken = {
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": config.head_dim,
        "use_bidirectional_attention": False,
    }
    found = {key: getattr(config, key) for key in taken}
    for layers, rope in config.rope_parameters.items():
        found[f"rope_type of {layers}"], taken[f"rope_type of {layers}"] = rope["rope_type"], "default"
    for key, value in taken.items():
        if found[key] != value:
            raise InputError(f"{model.name_or_path}/config.json: {key} is {found[key]}; only {value} can be exported")


def _add_shape(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["full_attention"]["rope_theta"])
    sliding = [layer == "sliding_attention" for layer in config.layer_types]
    if any(sliding):  # llama.cpp aborts on a window that no layer uses
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern(sliding)  # without it, every sixth layer is taken to be a full one
        writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])


class Token(NamedTuple):
    """An entry of the vocabulary."""

    text: str
    type: gguf.TokenType
    score: float
    """llama.cpp joins those two neighbours first whose whole has the highest score: here, the earliest merge."""


def vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int) -> list[Token]:
    """The tokens of the embedding's rows. A tokenizer may have more: Gemma's has two for images that have no row.

    llama.cpp's tokenizer knows no list of merges: it joins whatever gives a token. Where a token can be joined in two
    ways that may differ from BPE; no message of the test split does.

    Raises:
        InputError: the tokenizer is not of Gemma's kind.
    """
    state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    bpe = state["model"]
    if bpe["type"] != "BPE" or not bpe["byte_fallback"]:
        raise InputError(f"the tokenizer of {tokenizer.name_or_path} is not BPE with byte fallback, as Gemma's is")
    merged: dict[str, int] = {}
    for rank, (left, right) in enumerate(bpe["merges"]):
        merged.setdefault(left + right, rank)
    texts = {index: text for text, index in bpe["vocab"].items()}
    added = {token["id"]: token for token in state["added_tokens"]}

    def token(index: int) -> Token:
        text = added[index]["content"] if index in added else texts.get(index)
        if text is None:
            return Token(f"<row {index}>", gguf.TokenType.UNUSED, 0.0)
        score = -float(merged.get(text, len(merged)))
        if text == bpe["unk_token"]:
            return Token(text, gguf.TokenType.UNKNOWN, score)
        if index not in added:
            return Token(text, gguf.TokenType.BYTE if BYTE.fullmatch(text) else gguf.TokenType.NORMAL, score)
        if added[index]["special"]:
            return Token(text, gguf.TokenType.CONTROL, score)
        # Found in text as it stands, and written as it stands: with blanks, not with what stands for them.
        return Token(text.replace("▁", " "), gguf.TokenType.USER_DEFINED, score)

    return [token(index) for index in range(rows)]


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    tokens = vocabulary(tokenizer, rows)
    writer.add_tokenizer_model("llama")  # SentencePiece, as llama.cpp knows it
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token.text for token in tokens])
    writer.add_token_types([token.type for token in tokens])
    writer.add_token_scores([token.score for token in tokens])
    writer.add_add_space_prefix(False)
    writer.add_add_bos_token(False)  # the chat template and the Modelfile write it; a second one would be added
    ids = tokenizer.get_vocab()
    writer.add_bos_token_id(ids[BOS])
    writer.add_pad_token_id(ids[PAD])
    # Each of the stop tokens has a name under which llama.cpp ends an answer there: end of text, of turn, of message.
    writer.add_eos_token_id(ids[EOS])
    writer.add_eot_token_id(ids[END_OF_TURN])
    writer.add_eom_token_id(ids[START_RESPONSE])
    writer.add_chat_template(tokenizer.chat_template)


def _add_weights(writer: gguf.GGUFWriter, model: PreTrainedModel, matrices: gguf.GGMLQuantizationType) -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, model.config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        weights = tensor.float().cpu().numpy()
        kind = matrices if weights.ndim == 2 else gguf.GGMLQuantizationType.F32
        if name.endswith("norm.weight"):
            weights = weights + 1
        try:
            data = gguf.quants.quantize(weights, kind)
        except gguf.quants.QuantError:
            raise InputError(f"{name}: rows of {weights.shape[-1]} numbers cannot be kept as {kind.name}") from None
        writer.add_tensor(names[name.removesuffix(".weight")] + ".weight", data, raw_dtype=kind)


def template(tokenizer: PreTrainedTokenizerBase, agents: Sequence[Agent], system: str) -> str:
    """The prompt as a Go template in which `{{ .Prompt }}` stands for the message; the agents stand there literally."""
    messages = [{"role": "developer", "content": system}, {"role": "user", "content": PLACEHOLDER}]
    text = render(tokenizer, messages, [agent.tool_schema() for agent in agents], generation_prompt=True)
    # What would open a Go action, or close the template in the Modelfile, becomes a Go string.
    text = re.sub(r'\{\{|"""', lambda found: f"{{{{ {json.dumps(found[0])} }}}}", text)
    return text.replace(PLACEHOLDER, "{{ .Prompt }}")


def modelfile(weights: str, template: str, context: int, max_new_tokens: int) -> str:
    """What `ollama create` reads: `weights` is the GGUF file's path from there, `context` a number of tokens."""
    stops = "".join(f'PARAMETER stop "{token}"\n' for token in STOP_TOKENS)
    return (
        f'FROM {weights}\nTEMPLATE """{template}"""\n{stops}PARAMETER temperature 0\nPARAMETER repeat_penalty 1\n'
        f"PARAMETER num_ctx {context}\nPARAMETER num_predict {max_new_tokens}\n"
    )
