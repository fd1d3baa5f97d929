"""GGUF against the checkpoint it was made from: llama.cpp reads the same tokens and computes the same numbers."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import QUERIES, WINDOW, tiny_model
from publication import run_stage, trained
from tiny import AGENTS, examples
from transformers import Gemma3ForCausalLM, PreTrainedTokenizerFast

from router.agents import Agent, Parameter
from router.encoding import Encoder
from router.errors import InputError
from router.examples import conversation, write_jsonl
from router.functiongemma import CONTROL_TOKENS, DEFAULT_SYSTEM, START_RESPONSE, STOP_TOKENS, Call, render, serialise

llama_cpp = pytest.importorskip("llama_cpp")
gguf = pytest.importorskip("gguf")
from router.gguf_export import modelfile, template, vocabulary, write_gguf  # noqa: E402

LAYERS = (
    ["sliding_attention", "full_attention", "sliding_attention"],  # the embedded base's
    ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],  # FunctionGemma's, and the next
    ["full_attention", "full_attention"],
)
ROPE = {
    "full_attention": {"rope_type": "default", "rope_theta": 500_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 20_000.0},
}
"""Not what llama.cpp takes where the file says nothing."""
HOSTILE = [
    Agent(
        name="braces",
        description='{{ .System }} {{{ """ """" }} {{- end -}}',
        parameters={"kind": Parameter(description='"', enum=('{{"a"}}', '"""')), "free": Parameter(required=False)},
    )
]


@contextmanager
def loaded(model: Gemma3ForCausalLM, tokenizer: PreTrainedTokenizerFast, file: Path, kind: str) -> Iterator[Any]:
    """llama.cpp with the model in it, one thread, keys and values in 32 bits."""
    write_gguf(model, tokenizer, file, kind)
    settings = {
        "n_threads": 1,
        "n_threads_batch": 1,
        "type_k": llama_cpp.GGML_TYPE_F32,
        "type_v": llama_cpp.GGML_TYPE_F32,
    }
    with closing(llama_cpp.Llama(str(file), n_ctx=2048, logits_all=True, verbose=False, **settings)) as llama:
        yield llama


@pytest.fixture(scope="module")
def llama(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with loaded(tiny_model(tokenizer), tokenizer, tmp_path_factory.mktemp("gguf") / "tiny.gguf", "f16") as llama:
        yield llama


def prompt(encoder: Encoder, query: str) -> list[int]:
    return [*encoder.prefix, *encoder.text(query), *encoder.turn]


def prompt_text(tokenizer: PreTrainedTokenizerFast, agents: list[Agent], query: str) -> str:
    messages = [{"role": "developer", "content": DEFAULT_SYSTEM}, {"role": "user", "content": query}]
    return render(tokenizer, messages, [agent.tool_schema() for agent in agents], generation_prompt=True)


@pytest.mark.parametrize("layers", LAYERS, ids=len)
def test_logits_beyond_the_window_are_those_of_pytorch(
    layers: list[str], tokenizer: PreTrainedTokenizerFast, encoder: Encoder, tmp_path: Path
) -> None:
    model = tiny_model(tokenizer, num_hidden_layers=len(layers), layer_types=layers, rope_parameters=ROPE)
    with loaded(model, tokenizer, tmp_path / "tiny.gguf", "f32") as llama:
        for query in QUERIES:
            ids = prompt(encoder, query)
            assert len(ids) > 10 * WINDOW
            llama.reset()
            llama.eval(ids)
            with torch.inference_mode():
                expected = model(input_ids=torch.tensor([ids])).logits[0].numpy()
            # llama.cpp looks GELU up in a table of 16-bit numbers.
            np.testing.assert_allclose(llama.scores[: len(ids)], expected, atol=0.01 * expected.std())


def test_rows_without_a_token_and_untied_embeddings(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = len(tokenizer) + 3
    model = tiny_model(tokenizer, vocab_size=rows, tie_word_embeddings=False)
    with loaded(model, tokenizer, tmp_path / "tiny.gguf", "f32") as llama:
        ids = tokenizer(QUERIES[0])["input_ids"]
        llama.eval(ids)
        with torch.inference_mode():
            expected = model(input_ids=torch.tensor([ids])).logits[0].numpy()
        assert expected.shape == (len(ids), rows)
        np.testing.assert_allclose(llama.scores[: len(ids)], expected, atol=0.01 * expected.std())


def test_tokens_without_a_row_are_left_out(tokenizer: PreTrainedTokenizerFast) -> None:
    assert vocabulary(tokenizer, len(tokenizer) - 2) == vocabulary(tokenizer, len(tokenizer))[:-2]


@pytest.mark.parametrize("query", QUERIES)
def test_text_is_read_as_the_same_tokens(
    llama: Any, query: str, tokenizer: PreTrainedTokenizerFast, encoder: Encoder, default_agents: list[Agent]
) -> None:
    assert llama.tokenize(query.encode(), add_bos=False) == encoder.text(query)
    whole = prompt_text(tokenizer, default_agents, query).encode()
    # Asked for or not, llama.cpp adds no <bos>: the text has one.
    for add_bos in (True, False):
        assert llama.tokenize(whole, add_bos=add_bos, special=True) == prompt(encoder, query)


def test_the_stop_tokens_and_no_others_end_an_answer(llama: Any, encoder: Encoder) -> None:
    words = llama_cpp.llama_model_get_vocab(llama.model)
    ending = {token for token in CONTROL_TOKENS if llama_cpp.llama_vocab_is_eog(words, encoder.control[token])}
    assert ending == set(STOP_TOKENS)


def test_a_call_is_written_with_its_markers_and_without_its_stop_token(llama: Any, encoder: Encoder) -> None:
    call = Call("billing_agent", {"request_type": "refund", "urgency": "high"})
    ids = encoder.call(call)
    assert ids[-1] == encoder.control[START_RESPONSE]
    assert llama.detokenize(ids).decode() == serialise(call)


def rendered(text: str, message: str) -> str:
    """The prompt that a Modelfile's template makes: of Go's templates only `.Prompt` and strings."""
    found = re.search(r'^TEMPLATE """(.*?)"""$', text, re.MULTILINE | re.DOTALL)
    assert found is not None
    values = re.compile(r'\{\{ (?:(\.Prompt)|("(?:[^"\\]|\\.)*")) \}\}')
    assert values.sub("", found[1]).count("{{") == 0
    return values.sub(lambda value: message if value[1] else json.loads(value[2]), found[1])


@pytest.mark.parametrize("hostile", [False, True])
@pytest.mark.parametrize("query", [*QUERIES, '{{ .Prompt }} """'])
def test_the_modelfile_makes_the_same_prompt(
    query: str, hostile: bool, tokenizer: PreTrainedTokenizerFast, default_agents: list[Agent]
) -> None:
    agents = HOSTILE if hostile else default_agents
    text = modelfile("./router.gguf", template(tokenizer, agents, DEFAULT_SYSTEM), 2048, 64)
    assert rendered(text, query).encode() == prompt_text(tokenizer, agents, query).encode()


def test_the_modelfile_names_weights_stops_and_lengths() -> None:
    lines = modelfile("./router.gguf", "{{ .Prompt }}", 2048, 64).splitlines()
    assert lines == [
        "FROM ./router.gguf",
        'TEMPLATE """{{ .Prompt }}"""',
        *(f'PARAMETER stop "{token}"' for token in STOP_TOKENS),
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
        "PARAMETER num_ctx 2048",
        "PARAMETER num_predict 64",
    ]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"query_pre_attn_scalar": 4}, "query_pre_attn_scalar is 4; only 8 can"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0; only None can"),
        ({"intermediate_size": 48}, "rows of 48 numbers cannot be kept as Q8_0"),
        ({"rope_type": "linear"}, "rope_type of full_attention is linear; only default can"),
    ],
)
def test_a_model_that_llama_cpp_would_compute_otherwise_is_refused(
    changes: dict[str, Any], problem: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = tiny_model(tokenizer, **changes)
    model.config.rope_parameters["full_attention"]["rope_type"] = changes.get("rope_type", "default")
    with pytest.raises(InputError, match=problem):
        write_gguf(model, tokenizer, tmp_path / "tiny.gguf", "q8_0")
    assert not any(tmp_path.iterdir())


def test_a_tokenizer_of_another_kind_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["byte_fallback"] = False
    other = PreTrainedTokenizerFast(tokenizer_object=type(tokenizer.backend_tokenizer).from_str(json.dumps(state)))
    with pytest.raises(InputError, match="not BPE with byte fallback"):
        vocabulary(other, 5)


def test_the_stage_measures_what_it_wrote(tmp_path: Path) -> None:
    known = [example for example in examples(12) if example.agent]
    trained(known).save_pretrained(tmp_path / "models/router")
    (tmp_path / "data").mkdir()
    write_jsonl([conversation(example, AGENTS, DEFAULT_SYSTEM) for example in known], tmp_path / "data/test.jsonl")
    run_stage(tmp_path, "export_gguf", "models/router")
    written = {path.name for path in (tmp_path / "models/gguf").iterdir()}
    assert written == {"router-f16.gguf", "router-q8_0.gguf", "Modelfile"}
    assert "FROM ./router-q8_0.gguf" in (tmp_path / "models/gguf/Modelfile").read_text()
    metrics = json.loads((tmp_path / "metrics/gguf.json").read_text())
    assert set(metrics) == {"f16", "q8_0"}
    for found in metrics.values():
        assert found["total"] == len(known)
        assert found["equal_tokens"] == found["equal_to_pytorch"] == found["valid_rate"] == 1.0
        assert found["accuracy"] > 0.9


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(InputError, match=r"llama_cpp is not installed; run pip install \"\.\[export\]\""):
        run_stage(tmp_path, "export_gguf", "models/router")


def test_a_broken_checkpoint_gives_one_clear_line(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "router").mkdir()
    for file in saved.iterdir():
        (tmp_path / "router" / file.name).write_bytes(
            file.read_bytes()[: 1000 if file.suffix == ".safetensors" else None]
        )
    with pytest.raises(InputError, match="router: no usable checkpoint there") as caught:
        run_stage(tmp_path, "export_gguf", "router")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "models").exists()
