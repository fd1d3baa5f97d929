"""Text to token ids: the prompt around a message, the message itself, the answer. No torch.

A prompt is `prefix + message + turn`: the prefix (system message, declarations, start of the customer's turn) and the
turn (end of the customer's turn, start of the model's) come from the chat template and are trusted; the message is not.
Every part is tokenised for itself, in training as in routing, so that one part can never change another's tokens.
"""

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from router.agents import Agent
from router.errors import InputError
from router.functiongemma import CONTROL_TOKENS, END_OF_TURN, START_RESPONSE, Call, pieces, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Stands for the message while the template is rendered.
PLACEHOLDER = "\ue000message\ue001"
NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")


def without_markup(tokenizer: "PreTrainedTokenizerBase") -> Tokenizer:
    """The tokenizer's own model without its added tokens: text can only become ordinary pieces of text.

    Markers such as `<end_of_turn>` are added tokens, found by string search before the model splits the text. Without
    that search their letters are split like any others. Runs of white space, also added tokens in Gemma, stay.
    """
    state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"].isspace()]
    state["post_processor"] = None  # it would put <bos> in front
    return Tokenizer.from_str(json.dumps(state))


class Encoder:
    """Token ids of prompts and answers for one tokenizer, one set of agents and one system message."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", agents: Sequence[Agent], system: str) -> None:
        self.tokenizer = tokenizer
        self.plain = without_markup(tokenizer)
        vocabulary = tokenizer.get_vocab()
        for token in CONTROL_TOKENS:
            if token not in vocabulary:
                raise InputError(
                    f"the tokenizer of {tokenizer.name_or_path} has no token {token}: not a FunctionGemma model"
                )
        self.control = {token: vocabulary[token] for token in CONTROL_TOKENS}
        self.longest = max(map(len, vocabulary))
        """Characters of the longest token."""
        if not tokenizer.chat_template:
            raise InputError(f"the tokenizer of {tokenizer.name_or_path} has no chat template")
        messages = [{"role": "developer", "content": system}, {"role": "user", "content": PLACEHOLDER}]
        text = render(tokenizer, messages, [agent.tool_schema() for agent in agents], generation_prompt=True)
        head, _, tail = text.rpartition(PLACEHOLDER)
        self.prefix: list[int] = tokenizer(head, add_special_tokens=False)["input_ids"]
        """Everything before the message: the same for every message."""
        self.turn: list[int] = tokenizer(tail, add_special_tokens=False)["input_ids"]
        """Everything between the message and the answer."""

    def text(self, text: str) -> list[int]:
        """Ordinary characters, whatever they spell: never a control token.

        Characters that have no UTF-8 form (lone surrogates) become question marks.
        """
        ids: list[int] = self.plain.encode(text.encode("utf-8", "replace").decode(), add_special_tokens=False).ids
        return ids

    def message(self, query: str, max_tokens: int) -> tuple[list[int], bool]:
        """A customer's message: its ids, at most `max_tokens`, and whether it was cut there."""
        # What is sure to be cut off, with a token's length to spare, is not tokenised: a message may have megabytes.
        ids = self.text(query.strip()[: (max_tokens + 1) * self.longest])  # stripped, as the chat template does
        return ids[:max_tokens], len(ids) > max_tokens

    def piece(self, piece: str) -> list[int]:
        """One piece of a call. Numbers go digit by digit, as Gemma's tokenizer splits them in running text."""
        if piece in self.control:
            return [self.control[piece]]
        parts = piece if NUMBER.fullmatch(piece) else [piece]
        return [index for part in parts for index in self.text(part)]

    def call(self, call: Call) -> list[int]:
        """A call as the answer that is trained, with the token that ends it (`<start_function_response>`)."""
        return [index for piece in [*pieces(call), START_RESPONSE] for index in self.piece(piece)]

    def decline(self, text: str) -> list[int]:
        """A text answer instead of a call, with the token that ends it (`<end_of_turn>`)."""
        return [*self.text(text), self.control[END_OF_TURN]]
