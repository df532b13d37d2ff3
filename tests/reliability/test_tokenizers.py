"""Whatever order of ids a tokenizer has: texts come back from the bank whole, and special ids are the tokenizer's."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, pipeline

from dataset.knowledge import encode_entries, entry_text, load_bank
from dataset.tokenizer import encode_texts, load_tokenizer, with_padding_first
from editing.store import MemoryStore
from tests.editing.conftest import run  # noqa: F401

pytestmark = pytest.mark.fault("another order of special ids")
TEXTS = [f"Village {n} lies by river {n % 9}! It has {n} houses." for n in range(60)]
SPECIALS = {
    "gpt2: one token for all, at the end": ["<|endoftext|>"] * 3,
    "qwen: three tokens at the end": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
}


def make_tokenizer(folder, specials: list[str], model=None, trainer=None):
    """A byte-level BPE whose special tokens (pad, bos, eos) come after all others: id 0 is "!"."""
    backend = Tokenizer(model or models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    options = {"vocab_size": 300, "initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    backend.train_from_iterator(TEXTS, (trainer or trainers.BpeTrainer)(**options))
    backend.add_special_tokens(list(dict.fromkeys(specials)))
    backend.enable_padding(length=64)  # as a file that was used in batches has it
    pad, bos, eos = specials
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=pad, bos_token=bos, eos_token=eos)
    tokenizer.save_pretrained(folder)
    return load_tokenizer(folder)


@pytest.fixture(params=SPECIALS.values(), ids=SPECIALS)
def folder(tmp_path, request):
    tokenizer = make_tokenizer(tmp_path / "tokenizer", request.param)
    assert tokenizer.convert_ids_to_tokens(0) == "!" and tokenizer.pad_token_id >= 256
    return tmp_path / "tokenizer"


def test_exchanged_ids_mean_the_same_texts(folder):
    old = load_tokenizer(folder)
    new = with_padding_first(old)
    assert new.pad_token_id == 0 and new.get_vocab()["!"] == old.pad_token_id and len(new) == len(old)
    exchanged = {0: old.pad_token_id, old.pad_token_id: 0}
    for text in (*TEXTS[:5], "Yahoo! Live!", "!!", f"{old.eos_token} é 東京"):
        (ids,) = encode_texts(old, [text])
        assert encode_texts(new, [text]) == [[exchanged.get(i, i) for i in ids]]
        assert new.decode(encode_texts(new, [text])[0]) == text
    for name in ("bos_token", "eos_token", "pad_token"):
        assert getattr(new, name) == getattr(old, name)
        assert new.convert_tokens_to_ids(getattr(new, name)) == getattr(new, f"{name}_id")
    new.save_pretrained(folder)
    assert load_tokenizer(folder).get_vocab() == new.get_vocab()
    assert with_padding_first(new) is new


def test_a_unigram_vocabulary_is_exchanged_too(tmp_path):
    tokenizer = make_tokenizer(
        tmp_path, ["<pad>", "<s>", "</s>"], models.Unigram(),
        lambda **options: trainers.UnigramTrainer(**options),
    )  # fmt: skip
    first = tokenizer.convert_ids_to_tokens(0)
    assert tokenizer.pad_token_id > 20
    new = with_padding_first(tokenizer)
    assert (new.pad_token_id, new.convert_tokens_to_ids(first)) == (0, tokenizer.pad_token_id)
    (ids,) = encode_texts(new, ["Village 3! river."])
    assert 0 not in ids and new.decode(ids) == "Village 3! river."


def test_a_run_with_ids_in_another_order_keeps_every_character_and_knows_where_to_stop(runs, folder):
    facts = runs.folder / "facts.json"
    facts.write_text(json.dumps([f"Yahoo! Live! {n}" for n in range(49)]))
    flags = [
        "--model_type",
        "model_memory",
        "--retrieval",
        "ngram",
        "--fusion",
        "words",
        "--tokenizer_path",
        str(folder),
    ]
    ended = runs.start(
        "run", *flags, "--knowledge_length", "16", "--database_init_path", str(facts), "--max_steps", "2",
        "--cache_dir", str(runs.folder / "cache"),
    )  # fmt: skip
    assert ended.code == 0, ended.output
    out = runs.folder / "run"
    tokenizer, store, model = load_tokenizer(out), MemoryStore(out), AutoModelForCausalLM.from_pretrained(out)
    assert store.text(3) == "Yahoo! Live! 3" == store.show(3).fact.sentence
    store.edit(3, "Ah! Oh!!")
    assert MemoryStore(out).text(3) == "Ah! Oh!!"
    for config in (AutoConfig.from_pretrained(out), model.generation_config):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            assert getattr(config, name) == getattr(tokenizer, name)
    # It stops at once where the end of the text is the likeliest token.
    with torch.no_grad():
        model.embedding.weight.zero_()
        model.embedding.weight[tokenizer.eos_token_id] = 1
        model.norm.weight.fill_(1)
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: (torch.ones_like(output[0]), *output[1:]))
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=8, do_sample=False).shape[1] == 3


def test_wrappers_learn_the_context_of_the_model(runs):
    assert runs.start("run", "--model_type", "model_original", "--max_steps", "2").code == 0
    out = runs.folder / "run"
    assert load_tokenizer(out).model_max_length == 32 == AutoConfig.from_pretrained(out).max_position_embeddings
    # Also for a run whose tokenizer was saved without it.
    config = json.loads((out / "tokenizer_config.json").read_text())
    (out / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 10**30}))
    assert load_tokenizer(out).model_max_length == 32
    assert pipeline("text-generation", model=str(out), device="cpu").model.config.max_position_embeddings == 32


def test_the_name_of_the_padding_token_in_a_text_is_text(run):  # noqa: F811
    store, tokenizer = MemoryStore(run), load_tokenizer(run)
    token_1L, lengths = encode_entries(tokenizer, ["<|endoftext|>"], 12)
    assert entry_text(tokenizer, token_1L[0]) == "<|endoftext|>" and lengths[0] > 1
    first = store.add("<|im_end|>")
    assert store.text(first) == "<|im_end|>" and store.add("Bern is big.") != first


def test_a_tokenizer_that_gives_text_the_id_of_padding_is_refused(tmp_path):
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<unk>", bos_token="a", eos_token="b", unk_token="<unk>"
    )
    (tmp_path / "k.json").write_text('["a b", "a unknown"]')
    with pytest.raises(ValueError, match="gives the id 0 to a part of 'a unknown'.*another --tokenizer_path"):
        load_bank(tmp_path / "k.json", tokenizer, 2, 4, tmp_path / "cache")
