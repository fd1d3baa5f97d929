"""The embedded base's tokenizer: BPE of Gemma's kind, with FunctionGemma's control tokens."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from router.embedded.corpus import Corpus
from router.examples import DECLINE
from router.functiongemma import (
    BOS,
    CONTROL_TOKENS,
    DEFAULT_SYSTEM,
    END_OF_TURN,
    EOS,
    PAD,
    START_OF_TURN,
    START_RESPONSE,
)

UNKNOWN = "<unk>"
# Flagged as special by FunctionGemma's tokenizer, so that decoding may skip them; the other markers are not.
SPECIAL = {PAD, EOS, BOS, UNKNOWN, START_OF_TURN, END_OF_TURN, START_RESPONSE}
BLANK = "▁"
FORMAT = (
    "developer\nuser\nmodel\nlow\nmedium\nhigh\ndeclaration:call{description:,parameters:{properties:{type:{description:,enum:[STRING],"
    "type:},items:{type:INTEGER},properties:BOOLEAN,nested:{type:NUMBER,ARRAY}},required:[,],type:OBJECT}}"
)
"""The fixed words of prompts, which stand in every one, most without a blank in front: each should be one token."""


def tokenizer_texts(corpus: Corpus) -> list[str]:
    """What the tokenizer learns its word parts from: every utterance, also in lower case, and every declaration."""
    texts = []
    for tool in corpus.tools:
        texts += [tool.agent.name, tool.agent.description]
        for name, parameter in tool.agent.parameters.items():
            texts += [name, parameter.description, *parameter.enum]
        for utterance in tool.utterances:
            # Topics stand in declarations and calls without a blank before them: as often as in the messages' text.
            texts += [utterance.text, utterance.text.lower(), *utterance.filed, *utterance.topics]
    for desk in corpus.desks.values():
        texts += [*desk.names, *desk.descriptions]
    return texts


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer of `vocabulary` tokens: control tokens, 256 bytes for characters never seen, and word parts.

    Letters, digits and punctuation never share a token, so that numbers and identifiers fall into readable parts.
    The splits are needed in training only: no merge crosses them, so encoding is the same without, as in Gemma's file.
    """
    first = [PAD, EOS, BOS, UNKNOWN]
    control = first + [token for token in CONTROL_TOKENS if token not in first]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", BLANK)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # A blank may stand in front of letters, as in Gemma; `_`, digits and blanks before others stand alone.
            pre_tokenizers.Split(Regex(rf"{BLANK}?\p{{L}}+|{BLANK}|_|\p{{N}}|[^_{BLANK}\p{{L}}\p{{N}}]+"), "isolated"),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[*control, *bytes_],
        initial_alphabet=[chr(code) for code in range(33, 127)] + ["\n", BLANK],
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *[f"{FORMAT} {DEFAULT_SYSTEM} {DECLINE}"] * 1000], trainer)
    tokenizer.pre_tokenizer = None
    tokenizer.decoder = decoders.Sequence([decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=_only_control(tokenizer, control),
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")
    return fast


def _only_control(tokenizer: Tokenizer, control: list[str]) -> Tokenizer:
    """The trainer registers the bytes as added tokens too; only the control tokens may be found in text."""
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = []
    plain = Tokenizer.from_str(json.dumps(state))
    plain.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in control if token in SPECIAL]
    )
    plain.add_tokens([AddedToken(token, normalized=False, special=False) for token in control if token not in SPECIAL])
    return plain
