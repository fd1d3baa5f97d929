"""Build the embedded base from the repository's own text (frozen in dvc.yaml; `make embedded` runs it).

    python stages/embedded.py

Reads data/embedded; checks that it shares no text with what is measured; writes models/embedded.
Interrupted, it goes on from its last checkpoint.
"""

import hashlib
import shutil
import tempfile
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import distributed
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from router.agents import load_agents
from router.checkpoints import last_complete, load_state, save_state
from router.embedded.corpus import Corpus, check_apart, load_corpus
from router.embedded.meanings import Form, word_vectors
from router.embedded.pretraining import batch, learning_rate, new_model, new_optimizer, save, train_step
from router.embedded.tokenizer import tokenizer_texts, train_tokenizer
from router.encoding import Encoder
from router.errors import run
from router.examples import read_bank, read_out_of_scope
from router.params import Params, load_params

CORPUS = "data/embedded"
OUTPUT = Path("models/embedded")
PROCESSES = 2
"""That share a step's work, one thread each; another number gives another model."""
CHECKPOINT_EVERY = 100
"""Steps between two checkpoints."""


def measured_texts(params: Params) -> list[str]:
    """Every text that the base is measured on."""
    bank = read_bank("data/bank", load_agents(params.agents))
    out_of_scope = [*read_out_of_scope("data/out_of_scope.yaml"), *read_out_of_scope("data/negatives.yaml")]
    return [example.query for example in [*bank, *out_of_scope]]


def checkpoint_folder(params: Params) -> Path:
    """Checkpoints belong to one text and one set of parameters: another gets another folder."""
    digest = hashlib.sha256(repr((params.embedded, params.seed)).encode())
    for path in [*sorted(Path(CORPUS).glob("*.yaml")), *sorted(Path("router/embedded").glob("*.py")), Path(__file__)]:
        digest.update(path.read_bytes())
    return Path(".checkpoints") / f"embedded-{digest.hexdigest()[:16]}"


def pretrain(
    params: Params,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    vectors: torch.Tensor | None,
    rank: int,
    meeting: str,
) -> None:
    """Train in one of the processes that meet at the file `meeting`; the first one, of rank 0, reports and saves.

    All build the same model and make the same steps, each with the mean of all processes' gradients.

    Args:
        vectors: of every token at the start, (vocabulary, hidden); None where a checkpoint has better ones
    """
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=PROCESSES)
    embedded = params.embedded
    torch.manual_seed(params.seed)
    model = new_model(tokenizer, embedded, vectors)
    form = Form(corpus, Encoder(tokenizer, [], ""))
    optimizer = new_optimizer(model, embedded.lr)
    first = rank == 0
    if first:
        size = sum(weights.numel() for weights in model.parameters())
        print(f"{size / 1e6:.2f} M parameters, {len(tokenizer)} tokens", flush=True)

    folder = checkpoint_folder(params)
    start = load_state(folder, model, optimizer)
    distributed.barrier()  # nobody replaces the checkpoint before all have read it
    model.train()
    steps = range(start, embedded.steps)
    progress = tqdm(steps, initial=start, total=embedded.steps, unit="step", smoothing=0.05, disable=not first)
    average = None
    for step in progress:
        examples = batch(corpus, form, tokenizer, step, embedded.steps, f"{params.seed}/{step}/{rank}")
        loss = train_step(model, form, optimizer, examples, learning_rate(step, embedded.steps, embedded.lr))
        average = loss if average is None else 0.98 * average + 0.02 * loss
        progress.set_postfix(loss=f"{average:.3f}")
        if first and (step + 1) % CHECKPOINT_EVERY == 0:
            save_state(folder, model, optimizer, step + 1)
    distributed.destroy_process_group()
    if first:
        save(model, tokenizer, OUTPUT)
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    params = load_params()
    corpus = load_corpus(CORPUS)
    check_apart(corpus, measured_texts(params), [agent.name for agent in load_agents(params.agents)])
    utterances = sum(len(tool.utterances) for tool in corpus.tools)
    print(f"{len(corpus.tools)} tools, {utterances} utterances, {len({tool.domain for tool in corpus.tools})} domains")
    torch.set_num_threads(1)  # matrices of this size gain little from more
    tokenizer = train_tokenizer(tokenizer_texts(corpus), params.embedded.vocabulary)
    vectors = None
    if last_complete(checkpoint_folder(params)) is None:
        encoder = Encoder(tokenizer, [], "")
        vectors = word_vectors(Form(corpus, encoder), encoder, corpus, params.embedded.hidden, params.seed)
    shared = (params, corpus, tokenizer, vectors)
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        others = [
            get_context("spawn").Process(target=pretrain, args=(*shared, rank, meeting), daemon=True)
            for rank in range(1, PROCESSES)
        ]
        for process in others:
            process.start()
        pretrain(*shared, 0, meeting)
        for process in others:
            process.join()


if __name__ == "__main__":
    run(main)
