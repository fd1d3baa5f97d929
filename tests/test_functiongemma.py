"""The prompt and call syntax: `python -m pytest tests/test_functiongemma.py -q`."""

import json
import subprocess
import sys
from importlib.resources import files
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import Environment
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from router.functiongemma import (
    BOS,
    CONTROL_TOKENS,
    DEFAULT_SYSTEM,
    END_CALL,
    END_OF_TURN,
    EOS,
    ESCAPE,
    MAX_DEPTH,
    PAD,
    START_CALL,
    START_RESPONSE,
    STOP_TOKENS,
    Answer,
    Call,
    Value,
    parse,
    pieces,
    render,
    serialise,
)

TEMPLATE = files("router.embedded").joinpath("chat_template.jinja").read_text(encoding="utf-8")

# The same examples in every run.
steady = settings(deadline=None, derandomize=True, database=None)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, plus the control tokens."""
    characters = ["<unk>", *map(chr, range(32, 127)), "\n"]
    backend = Tokenizer(models.BPE({c: index for index, c in enumerate(characters)}, [], unk_token="<unk>"))
    backend.add_tokens(list(CONTROL_TOKENS))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BOS)  # type: ignore[no-untyped-call]
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def function(name: str, description: str, parameters: dict[str, Any] | None) -> dict[str, Any]:
    declared: dict[str, Any] = {"name": name, "description": description}
    return {"type": "function", "function": declared | ({"parameters": parameters} if parameters else {})}


def assistant(*calls: Call) -> dict[str, Any]:
    tool_calls = [{"type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in calls]
    return {"role": "assistant", "tool_calls": tool_calls}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def text_parameter(description: str, *enum: str) -> dict[str, Any]:
    return {"type": "string", "description": description} | ({"enum": list(enum)} if enum else {})


BILLING = function(
    "billing_agent",
    "Payments, invoices, subscriptions, refunds and pricing.",
    {
        "type": "object",
        "properties": {
            "urgency": text_parameter("How soon it must be handled.", "low", "medium", "high"),
            "request_type": text_parameter("What the customer asks for.", "refund", "invoice", "dispute"),
        },
        "required": ["request_type", "urgency"],
    },
)
BILLING_MESSAGES = [{"role": "developer", "content": f" {DEFAULT_SYSTEM}\n"}, user("I was charged twice this month")]
BILLING_CALL = Call("billing_agent", {"urgency": "high", "request_type": "dispute"})
BILLING_PROMPT = (
    "<bos><start_of_turn>developer\nYou are a model that can do function calling with the following functions"
    "<start_function_declaration>declaration:billing_agent{description:<escape>Payments, invoices, subscriptions, "
    "refunds and pricing.<escape>,parameters:{properties:{request_type:{description:<escape>What the customer asks "
    "for.<escape>,enum:[<escape>refund<escape>,<escape>invoice<escape>,<escape>dispute<escape>],type:<escape>STRING"
    "<escape>},urgency:{description:<escape>How soon it must be handled.<escape>,enum:[<escape>low<escape>,<escape>"
    "medium<escape>,<escape>high<escape>],type:<escape>STRING<escape>}},required:[<escape>request_type<escape>,<escape>"
    "urgency<escape>],type:<escape>OBJECT<escape>}}<end_function_declaration><end_of_turn>\n"
    "<start_of_turn>user\nI was charged twice this month<end_of_turn>\n<start_of_turn>model\n"
)
BILLING_ANSWER = (
    "<start_function_call>call:billing_agent{request_type:<escape>dispute<escape>,urgency:<escape>high<escape>}"
    "<end_function_call>"
)

ALL_KINDS: dict[str, Value] = {
    "s": "t", "e": "", "i": -3, "big": 12345678901234567890, "f": 1.0, "g": 1e-07, "t": True, "u": False, "n": None,
    "l": ["a", 1, None, True, [2]], "el": [], "o": {"z": 1, "y": {"x": "w"}}, "eo": {},
}  # fmt: skip
ALL_KINDS_TEXT = (
    "<start_function_call>call:f{big:12345678901234567890,e:<escape><escape>,el:[],eo:{},f:1.0,g:1e-07,i:-3,"
    "l:[<escape>a<escape>,1,None,true,[2]],n:None,o:{y:{x:<escape>w<escape>},z:1},s:<escape>t<escape>,t:true,u:false}"
    "<end_function_call>"
)

TICKET = function(
    "open_ticket",
    "Opens a ticket.",
    {
        "type": "object",
        "properties": {
            "tags": {
                "type": "array",
                "description": "Labels",
                "items": {"type": "string", "enum": ["bug", "ui"], "default": None},
            },
            "attempts": {"type": "integer", "description": "How many", "enum": [1, 2]},
            "contact": {
                "type": "object",
                "description": "Who",
                "properties": {
                    "phone": {"type": "string"},
                    "callback": {"type": "boolean", "description": "Call back?"},
                },
                "required": ["phone"],
            },
        },
        "required": ["tags"],
    },
)
HANDOVER = function("handover", "To a person.", {"type": "object", "properties": {}})
TICKET_PROMPT = (
    "<bos><start_of_turn>developer\n<start_function_declaration>declaration:open_ticket{description:<escape>Opens a "
    "ticket.<escape>,parameters:{properties:{attempts:{description:<escape>How many<escape>,type:<escape>INTEGER"
    "<escape>},contact:{description:<escape>Who<escape>,properties:{callback:{description:<escape>Call back?<escape>,"
    "type:<escape>BOOLEAN<escape>},phone:{description:<escape><escape>,type:<escape>STRING<escape>}},required:[<escape>"
    "phone<escape>],type:<escape>OBJECT<escape>},tags:{description:<escape>Labels<escape>,items:{enum:[<escape>bug"
    "<escape>,<escape>ui<escape>],type:<escape>STRING<escape>},type:<escape>ARRAY<escape>}},required:[<escape>tags"
    "<escape>],type:<escape>OBJECT<escape>}}<end_function_declaration><start_function_declaration>declaration:handover"
    "{description:<escape>To a person.<escape>,parameters:{type:<escape>OBJECT<escape>}}<end_function_declaration>"
    "<end_of_turn>\n<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n"
)

# Texts out of the characters and words that the syntax itself uses.
SYNTAX = [*'{}[],:<>"\\ \né', "escape>", "call:f", "None", "true", "1e-07"]
texts = (st.text(max_size=20) | st.lists(st.sampled_from(SYNTAX), max_size=8).map("".join)).filter(
    lambda text: not any(token in text for token in CONTROL_TOKENS)
)
key_characters = st.characters(codec="utf-8", exclude_characters=",:{}[]<")
keys = st.sampled_from("aA_") | st.text(key_characters, min_size=1, max_size=6)
numbers = st.integers() | st.integers(min_value=10**20) | st.floats(allow_nan=False, allow_infinity=False)
values: st.SearchStrategy[Value] = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
names = st.text("abcXYZ019_-.", min_size=1, max_size=12)
calls = st.builds(Call, names, st.dictionaries(keys, values, max_size=4))


def exact(call: Call) -> str:
    """Tells 1 from 1.0 and True, which are equal in Python."""
    return json.dumps([call.name, call.arguments], sort_keys=True)


# ---------------------------------------------------------------------------------------------------------------------
# The chat template


def test_a_prompt_is_rendered_exactly(tokenizer: PreTrainedTokenizerFast) -> None:
    assert render(tokenizer, BILLING_MESSAGES, [BILLING], generation_prompt=True) == BILLING_PROMPT


def test_a_training_row_is_the_prompt_and_the_call(tokenizer: PreTrainedTokenizerFast) -> None:
    row = render(tokenizer, [*BILLING_MESSAGES, assistant(BILLING_CALL)], [BILLING], generation_prompt=False)
    assert row == BILLING_PROMPT + BILLING_ANSWER + START_RESPONSE


def test_values_of_all_kinds_and_two_calls_are_rendered_exactly(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [user("hi"), assistant(Call("f", ALL_KINDS), Call("g", {}))]
    assert render(tokenizer, messages, None, generation_prompt=False) == (
        "<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n"
        + ALL_KINDS_TEXT
        + "<start_function_call>call:g{}<end_function_call><start_function_response>"
    )


def test_nested_declarations_without_a_developer_message_are_rendered_exactly(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert render(tokenizer, [user("  hi \n")], [TICKET, HANDOVER], generation_prompt=True) == TICKET_PROMPT


@pytest.mark.parametrize("trim_blocks", [False, True])
@pytest.mark.parametrize("lstrip_blocks", [False, True])
def test_other_white_space_rules_of_jinja_change_nothing(trim_blocks: bool, lstrip_blocks: bool) -> None:
    template = Environment(trim_blocks=trim_blocks, lstrip_blocks=lstrip_blocks).from_string(TEMPLATE)
    text = template.render(messages=[user("hi")], tools=[TICKET, HANDOVER], add_generation_prompt=True, bos_token=BOS)
    assert text == TICKET_PROMPT


def declaration(tokenizer: PreTrainedTokenizerFast, tool: dict[str, Any]) -> str:
    """What is rendered between the name of a tool and the end of its declaration."""
    text = render(tokenizer, [user("hi")], [tool], generation_prompt=False)
    return text.split(f"declaration:{tool['function']['name']}")[1].split("<end_function_declaration>")[0]


@pytest.mark.parametrize(
    ("declared", "rendered"),
    [
        ({}, "{description:<escape><escape>}"),
        ({"description": None}, "{description:<escape>None<escape>}"),
        ({"description": " a ", "return": {"type": "string"}}, "{description:<escape> a <escape>}"),
        ({"parameters": {"required": ["b", "a"]}},
         "{description:<escape><escape>,parameters:{required:[<escape>b<escape>,<escape>a<escape>],}"),
    ],
    ids=["nothing", "null description", "padded description", "parameters without a type stay open"],
)  # fmt: skip
def test_a_tool_is_declared_as_given(tokenizer: PreTrainedTokenizerFast, declared: Any, rendered: str) -> None:
    assert declaration(tokenizer, {"type": "function", "function": {"name": "f", **declared}}) == rendered


@pytest.mark.parametrize(
    ("schema", "rendered"),
    [
        (None, ",type:<escape><escape>"),
        ({"type": ["string", "null"]}, ",type:<escape>['STRING', 'NULL']<escape>"),
        ({"type": "string", "enum": []}, ",type:<escape>STRING<escape>"),
        ({"type": "number", "minimum": 1, "default": 2}, ",type:<escape>NUMBER<escape>"),
        ({"type": "object", "properties": {}}, ",properties:{},type:<escape>OBJECT<escape>"),
        ({"type": "object", "more": {"type": "integer"}, "strict": True}, ",properties:{more:{description:<escape>"
         "<escape>,type:<escape>INTEGER<escape>},strict:{description:<escape><escape>,type:<escape><escape>}},"
         "type:<escape>OBJECT<escape>"),
        ({"type": "array"}, ",type:<escape>ARRAY<escape>"),
        ({"type": "array", "items": {"type": ["string", "null"], "x": {"B": 1, "a": [True]}}}, ",items:{type:[<escape>"
         "STRING<escape>,<escape>NULL<escape>],x:{<escape>a<escape>:[true],<escape>B<escape>:1}},type:<escape>ARRAY"
         "<escape>"),
        ({"type": "array", "items": {"type": "object", "required": ["y"], "properties": {"y": {"type": "boolean"}}}},
         ",items:{properties:{y:{description:<escape><escape>,type:<escape>BOOLEAN<escape>}},required:[<escape>y"
         "<escape>],type:<escape>OBJECT<escape>},type:<escape>ARRAY<escape>"),
    ],
    ids=["null", "list of types", "empty enum", "bounds vanish", "empty object", "object without properties",
         "array without items", "mixed items", "items are objects"],
)  # fmt: skip
def test_a_parameter_is_declared_by_its_type(tokenizer: PreTrainedTokenizerFast, schema: Any, rendered: str) -> None:
    # "type" and "nullable" are dropped: FunctionGemma cannot tell them from words of the schema.
    properties = {"p": schema, "type": text_parameter("lost"), "nullable": text_parameter("lost")}
    text = declaration(tokenizer, function("f", "", {"type": "object", "properties": properties}))
    inside = text.removeprefix("{description:<escape><escape>,parameters:{properties:{p:{description:<escape><escape>")
    assert inside == rendered + "}},type:<escape>OBJECT<escape>}}"


FIRST = {"role": "system", "content": [{"type": "text", "text": " a "}, {"type": "text", "text": "b "}]}
MODEL = "<start_of_turn>model\n"
USER = "<start_of_turn>user\n"
CALLED = "<start_function_call>call:f{}<end_function_call>"
RESPONSE = "<start_function_response>response:f{ok:true}<end_function_response>"


@pytest.mark.parametrize(
    ("messages", "prompt", "rendered"),
    [
        ([FIRST], False, "<start_of_turn>developer\nab<end_of_turn>\n"),
        ([{"role": "developer", "content": None}], False, "<start_of_turn>developer\n<end_of_turn>\n"),
        ([user("x"), {"role": "system", "content": "y"}], False,
         f"{USER}x<end_of_turn>\n<start_of_turn>system\ny<end_of_turn>\n"),
        ([user("x"), {"role": "assistant", "content": " y "}], True,
         f"{USER}x<end_of_turn>\n{MODEL}y<end_of_turn>\n{MODEL}"),
        ([{**assistant(Call("f", {})), "content": "y"}], False, f"{MODEL}y{CALLED}{START_RESPONSE}"),
        ([assistant(Call("f", {})), user("x")], False, f"{MODEL}{CALLED}{USER}x<end_of_turn>\n"),
        ([assistant(Call("f", {})), {"role": "tool", "content": {"name": "f", "response": {"ok": True}}}], True,
         f"{MODEL}{CALLED}{RESPONSE}"),
        ([{"role": "tool", "content": [{"name": "f", "response": {"ok": True}}] * 2}], True, RESPONSE * 2),
        ([{"role": "tool", "name": "f", "content": {"ok": True}}, {"role": "assistant", "content": "done"}], False,
         f"{RESPONSE}done<end_of_turn>\n"),
        ([{"role": "tool", "name": "f", "content": " ok "}, user("x")], True,
         "<start_function_response>response:f{value:<escape> ok <escape>}<end_function_response>"
         f"x<end_of_turn>\n{MODEL}"),
        ([{"role": "tool", "name": "f", "content": ""}], True, ""),
    ],
    ids=["parts are joined", "null content", "later system message", "text answer", "text and call",
         "message after a call", "response", "list of responses",
         "answer after a response", "message after a response", "empty response"],
)  # fmt: skip
def test_turns_are_opened_and_closed_as_the_model_knows_them(
    tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, Any]], prompt: bool, rendered: str
) -> None:
    assert render(tokenizer, messages, None, generation_prompt=prompt) == BOS + rendered


def test_a_response_of_no_tool_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(Exception, match="needs the name of the tool"):
        render(tokenizer, [{"role": "tool", "content": "ok"}], None, generation_prompt=False)


def test_arguments_as_json_text_are_not_turned_into_a_call(tokenizer: PreTrainedTokenizerFast) -> None:
    message = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}]}
    text = render(tokenizer, [message], None, generation_prompt=False)
    assert "call:f{" + " " * 20 + '{"a": 1}}' + END_CALL in text
    assert parse(text.removeprefix(BOS + MODEL)).error


# ---------------------------------------------------------------------------------------------------------------------
# Calls to text


@steady
@given(st.lists(calls, min_size=1, max_size=3))
def test_serialise_writes_what_the_template_renders(tokenizer: PreTrainedTokenizerFast, some: list[Call]) -> None:
    text = render(tokenizer, [user("hi"), assistant(*some)], None, generation_prompt=False)
    assert text.partition(MODEL)[2] == "".join(map(serialise, some)) + START_RESPONSE


def test_control_tokens_values_and_the_text_between_are_pieces() -> None:
    arguments: dict[str, Value] = {"urgent": True, "b": {"x": 1.5}, "A": "x y", "tags": ["p", "", None], "none": []}
    assert pieces(Call("f", arguments)) == [
        START_CALL, "call:f{A:", ESCAPE, "x y", ESCAPE, ",b:{x:", "1.5", "},none:[],tags:[", ESCAPE, "p", ESCAPE,
        ",", ESCAPE, ESCAPE, ",", "None", "],urgent:", "true", "}", END_CALL,
    ]  # fmt: skip
    assert pieces(Call("g", {})) == [START_CALL, "call:g{}", END_CALL]


@steady
@given(calls)
def test_pieces_are_never_empty_and_never_split_a_control_token(call: Call) -> None:
    for piece in pieces(call):
        assert piece
        assert piece in CONTROL_TOKENS or not any(token in piece for token in CONTROL_TOKENS)


@pytest.mark.parametrize("token", CONTROL_TOKENS)
def test_a_string_with_a_control_token_is_refused_by_its_key(token: str) -> None:
    with pytest.raises(ValueError, match=rf"'note\.inner'.*{token}"):
        pieces(Call("f", {"a": "fine", "note": {"inner": [f"x{token}y"]}}))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (Call("", {}), "the name ''"),
        (Call("billing agent", {}), "the name 'billing agent'"),
        (Call("f", {"": 1}), "the key ''"),
        (Call("f", {"a": {"b:c": 1}}), "the key 'a.b:c'"),
        (Call("f", {"<escape>": 1}), "the key '<escape>'"),
        (Call("f", {"a": float("nan")}), "argument 'a': nan"),
        (Call("f", {"a": {"b": float("inf")}}), "argument 'a.b': inf"),
        (Call("f", {"a": (1, 2)}), r"argument 'a': \(1, 2\)"),  # type: ignore[dict-item]
    ],
)
def test_what_could_not_be_read_back_is_not_written(call: Call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        serialise(call)


# ---------------------------------------------------------------------------------------------------------------------
# Text to calls


@steady
@given(calls)
def test_parse_reads_what_serialise_wrote(call: Call) -> None:
    answer = parse(serialise(call))
    assert answer == Answer((call,), "", None)
    assert exact(answer.calls[0]) == exact(call)


def test_values_keep_their_types() -> None:
    (call,) = parse(ALL_KINDS_TEXT).calls
    assert exact(call) == exact(Call("f", ALL_KINDS))
    numbers = parse(f"{START_CALL}call:f{{a:-0.5,b:1e+16,c:2E5,d:0,e:null,f:<escape>42<escape>}}{END_CALL}").calls[0]
    assert exact(numbers) == exact(Call("f", {"a": -0.5, "b": 1e16, "c": 2e5, "d": 0, "e": None, "f": "42"}))


@pytest.mark.parametrize(
    "text",
    ["{", "}}", "a,b:c", "[1]", '"quoted"', "it's", "two\nlines\r\n", "  padded\t", "", "\\n", "None", "日本語 🙂",
     "\0", START_CALL, END_CALL, f"{END_CALL}{START_CALL}call:g{{}}{END_CALL}", *STOP_TOKENS],
)  # fmt: skip
def test_everything_between_escapes_is_text(text: str) -> None:
    answer = parse(f"{START_CALL}call:f{{a:{ESCAPE}{text}{ESCAPE},b:1}}{END_CALL}")
    assert answer == Answer((Call("f", {"a": text, "b": 1}),), "", None)


@steady
@given(st.lists(calls, min_size=2, max_size=4), st.sampled_from(["", *STOP_TOKENS, f"{END_OF_TURN}\n{PAD}{PAD}"]))
def test_several_calls_are_read_in_order(some: list[Call], end: str) -> None:
    assert parse("".join(map(serialise, some)) + end) == Answer(tuple(some), "", None)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("", ""),
        (" No agent fits.\n", "No agent fits."),
        (f"No agent fits.{END_OF_TURN}\n", "No agent fits."),
        (f"No agent fits.{END_OF_TURN}{EOS}{PAD}{PAD}", "No agent fits."),
        ("call:f{} is how one calls f, <escape> or not", "call:f{} is how one calls f, <escape> or not"),
        ("<start_function_", "<start_function_"),
    ],
)
def test_an_answer_without_a_call_is_its_text(answer: str, text: str) -> None:
    assert parse(answer) == Answer((), text, None)


def test_text_around_calls_is_kept() -> None:
    other = Call("g", {})
    answer = f"\nLet me see. {BILLING_ANSWER} And{serialise(other)}{START_RESPONSE} done.{END_OF_TURN}\n"
    assert parse(answer) == Answer((BILLING_CALL, other), "Let me see.  And done.", None)


@pytest.mark.parametrize(
    ("inside", "error"),
    [
        ("", "expected call:, found <end_function_call> at character 21"),
        ("call getWeather{}", "expected call:, found 'call getWeat' at character 21"),
        ("call:{a:1}", "expected a name, found '{a:1}<end_fu' at character 26"),
        ("call:f", "expected {, found <end_function_call> at character 27"),
        ("call:get weather{}", "expected {, found ' weather{}<e' at character 29"),
        ("call:f{a:1", "expected , or }, found <end_function_call> at character 31"),
        ("call:f{a:1}}", "expected <end_function_call>, found '}<end_functi' at character 32"),
        ("call:f{a:<escape>x}", "string without an end at character 30"),
        ("call:f{a:dispute}", "unknown word 'dispute' at character 30"),
        ("call:f{a: 1}", "unknown word ' 1' at character 30"),
        ("call:f{a:True}", "unknown word 'True' at character 30"),
        ("call:f{a:007}", "unknown word '007' at character 30"),
        ("call:f{a:1.}", "unknown word '1.' at character 30"),
        ("call:f{a:1.2.3}", "unknown word '1.2.3' at character 30"),
        ("call:f{a:nan}", "unknown word 'nan' at character 30"),
        ("call:f{a:٣}", "unknown word '٣' at character 30"),
        ("call:f{a:1e999}", "number too large at character 30"),
        (f"call:f{{a:{'9' * 10_000}}}", "number too large at character 30"),
        ("call:f{a:}", "expected a value, found '}<end_functi' at character 30"),
        ("call:f{a}", "expected :, found '}<end_functi' at character 29"),
        ("call:f{:1}", "expected a key, found ':1}<end_func' at character 28"),
        ("call:f{a:1,}", "expected a key, found '}<end_functi' at character 32"),
        ("call:f{a:1,a:2}", "key 'a' twice at character 32"),
        ("call:f{o:{a:1,a:1}}", "key 'a' twice at character 35"),
        ("call:f{a:<escape>x<escape>b:1}", "expected , or }, found 'b:1}<end_fun' at character 47"),
        ("call:f{a:<escape>x<escape><escape>y<escape>}", "expected , or }, found <escape> at character 47"),
        ("call:f{<escape>a<escape>:1}", "expected a key, found <escape> at character 28"),
        ("call:f{a:[1,]}", "expected a value, found ']}<end_funct' at character 33"),
        ("call:f{a:[1}", "expected , or ], found '}<end_functi' at character 32"),
        ("call:f{a:[1:2]}", "expected , or ], found ':2]}<end_fun' at character 32"),
        ("call:f{a:{b:1]}", "expected , or }, found ']}<end_funct' at character 34"),
    ],
)
def test_a_broken_call_is_an_error_that_says_where(inside: str, error: str) -> None:
    assert parse(f"{START_CALL}{inside}{END_CALL}") == Answer((), "", error)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (f"{START_CALL}call:g{{}}", "expected <end_function_call>, found the end at character 29"),
        (f"{START_CALL}call:g{{}}{START_RESPONSE}", "expected <end_function_call>, found <start_function_response> at"),
        (f"{START_CALL}call:g{{}}{BILLING_ANSWER}", "expected <end_function_call>, found <start_function_call> at"),
        (f"call:g{{}}{END_CALL}", "<end_function_call> without <start_function_call> at character 8"),
        (f"{BILLING_ANSWER}{START_CALL}call:g{{", "expected a key, found the end at character"),
    ],
    ids=["no end", "no end before the stop", "no end before the next", "no start", "second call cut"],
)
def test_an_answer_that_breaks_anywhere_has_no_calls(answer: str, error: str) -> None:
    broken = parse(answer)
    assert (broken.calls, broken.text) == ((), "")
    assert broken.error is not None
    assert broken.error.startswith(error)


@steady
@given(calls)
def test_a_call_that_is_cut_off_is_never_guessed(call: Call) -> None:
    text = serialise(call)
    for length in range(len(text)):
        answer = parse(text[:length])
        assert not answer.calls
        assert (answer.error is None) == (length < len(START_CALL))


@steady
@given(st.lists(st.sampled_from([*CONTROL_TOKENS, *SYNTAX, *"af1-.", "call:"]), max_size=25).map("".join))
def test_parse_takes_any_mixture_of_tokens(text: str) -> None:
    for answer in (parse(text), parse(f"{START_CALL}call:f{{a:{text}")):
        assert isinstance(answer, Answer)
        assert answer.error is None or not answer.calls


@steady
@given(calls, st.data())
def test_parse_takes_a_call_with_any_stretch_replaced(call: Call, data: st.DataObject) -> None:
    text = serialise(call)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 12, len(text))))
    answer = parse(text[:start] + data.draw(texts | st.sampled_from(CONTROL_TOKENS)) + text[end:])
    assert answer.error is None or (not answer.calls and " at character " in answer.error)


def test_nesting_has_a_limit_that_writing_and_reading_share() -> None:
    deepest: Value = 1
    for level in range(MAX_DEPTH - 1):
        deepest = {"k": deepest} if level % 2 else [deepest]
    assert parse(serialise(Call("f", {"a": deepest}))).calls == (Call("f", {"a": deepest}),)
    with pytest.raises(ValueError, match="argument 'a' is nested more than"):
        serialise(Call("f", {"a": [deepest]}))


@pytest.mark.parametrize("opening", ["[", "{k:", "[{k:"])
def test_deep_nesting_is_an_error_and_no_crash(opening: str) -> None:
    answer = parse(f"{START_CALL}call:f{{a:{opening * 100_000}")
    assert answer.error is not None
    assert answer.error.startswith(f"nested more than {MAX_DEPTH} deep")


def test_importing_the_syntax_loads_nothing_heavy() -> None:
    script = "import sys, router.functiongemma; print({'torch', 'transformers', 'jinja2', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "set()\n"
