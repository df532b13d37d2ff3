"""The protocol on a made-up run: controls, retrieval, edits and frequency guesses that can be worked out by hand."""

import json

import pytest
import torch

from common.constants import NO_ENTRY
from dataset.overlap import overlapping_pairs
from dataset.questions import PARAPHRASES
from evaluation.config import EvalConfig
from evaluation.controls import controls_of
from evaluation.edits import edits
from evaluation.facts import exact_match, frequency, object_prediction, starts_with_word
from evaluation.gold import Gold
from evaluation.likelihood import log_likelihoods, score_options
from evaluation.report import table
from evaluation.retrieval import candidates_and_reads, retrieval, shares_of_gold
from tests.conftest import tiny_model
from tests.evaluation.conftest import FACTS
from tests.model.variants import SUFFIX

LANDS = ["France", "Italy", "Norway", "Peru", "Chile"]


@pytest.fixture
def settings(tmp_path):
    def write(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    questions, changes = [], []
    for fact in FACTS[:6]:
        shared = {"uuid": fact.uuid, "subject": fact.subject, "predicate": "country", "object": fact.object}
        question = f"{fact.subject} is in ___."
        questions.append(shared | {"question": question, "choices": LANDS, "answer": "ABCDE"[LANDS.index(fact.object)]})
        changes.append(
            shared
            | {"new_object": "Chile", "new_sentence": f"{fact.subject} is in Chile.", "question": question}
            | {"sentence": fact.sentence}
        )
    gold = Gold(
        {fact.uuid: row for row, fact in enumerate(FACTS)},
        {fact.uuid: fact for fact in FACTS},
        lambda: enumerate(FACTS),
    )
    return EvalConfig(
        object_path=write("o.jsonl", questions), edit_path=write("e.jsonl", changes), gold=gold, batch_size=4
    )


def accuracy_in(control, model, tokenizer, settings):
    with controls_of(model, settings)[control](model, tokenizer, settings) as changed:
        return object_prediction(model, tokenizer, changed)


def test_a_model_that_copies_answers_from_the_bank_and_only_from_there(model, tokenizer, settings):
    tokens = model.bank.tokens.clone()
    assert object_prediction(model, tokenizer, settings)["accuracy"] == 1
    assert exact_match(model, tokenizer, settings)["accuracy"] == 1
    assert accuracy_in("bank zeroed", model, tokenizer, settings)["accuracy"] < 0.7
    false = accuracy_in("bank counterfactual", model, tokenizer, settings)
    assert (false["accuracy"], false["planted"]["accuracy"]) == (0, 1)
    assert torch.equal(model.bank.tokens, tokens)
    assert object_prediction(model, tokenizer, settings)["accuracy"] == 1


def test_a_plain_model_has_the_control_of_the_prompt_alone(settings):
    plain = tiny_model(vocab_size=6400, model_type="model_original")
    assert list(controls_of(plain, settings)) == ["gold in prompt"]


@pytest.mark.parametrize("variant", [{"retrieval": "ngram", "fusion": "words", "keep_ffn": True}, {}])
def test_an_oracle_entry_is_read_first_at_every_position(variant, tokenizer):
    model = tiny_model(vocab_size=6400, knowledge_length=8, **variant)
    ids = torch.randint(3, 6400, (2, 6))
    out = model(ids, entry_B=torch.tensor([5, NO_ENTRY]))
    for reading in filter(None, out.readings):
        assert (reading.entry_BTS[0, :, 0] == 5).all()
        assert ((reading.entry_BTS[0] == 5) & (reading.weight_BTS[0] > 1e-4)).sum() == ids.shape[1]
    assert torch.allclose(out.logits[1], model(ids).logits[1], atol=1e-6)


def test_the_gold_entry_helps_where_retrieval_finds_nothing(model, tokenizer, settings):
    pairs = [("Where is that? It is in", " Peru"), ("Where is that? It is in", " Chile")]
    free = log_likelihoods(model, tokenizer, pairs, 2)
    forced = log_likelihoods(model, tokenizer, pairs, 2, entries=[5, 5])
    assert forced[0][0] > free[0][0] + 1
    assert forced[0][0] > forced[1][0] + 1


def test_a_question_without_gold_gets_no_help(model, tokenizer, settings):
    from dataclasses import replace

    row, question = {"uuid": "unknown"}, ("Lima is in", [" Peru.", " Chile."])
    plain = score_options(model, tokenizer, [row], [question], settings)
    for oracle in ("prompt", "entry"):
        helped = score_options(model, tokenizer, [row], [question], replace(settings, oracle=oracle))
        assert helped[0][0][0] == pytest.approx(plain[0][0][0], abs=1e-4)


def test_the_right_sentence_before_a_question_that_begins_with_its_blank(monkeypatch, settings):
    from dataclasses import replace

    from evaluation import likelihood as options

    asked = []
    monkeypatch.setattr(options, "log_likelihoods", lambda *args: asked.extend(args[2]) or [(0.0, 1)] * len(args[2]))
    rows = [{"uuid": "u0"}, {"uuid": "u0"}]
    questions = [("", ["Paris lies there."]), ("It is in", [" France."])]
    options.score_options(None, None, rows, questions, replace(settings, oracle="prompt"))
    assert asked == [("Paris is in France.", " Paris lies there."), ("Paris is in France. It is in", " France.")]


def test_an_option_that_begins_another_is_scored_to_its_end(model, tokenizer, settings):
    eos = tokenizer.eos_token
    shorter, longer = score_options(model, tokenizer, [{}], [("He is an", [" arch", " architect"])], settings)[0]
    ended = log_likelihoods(model, tokenizer, [("He is an", f" arch{eos}"), ("He is an", f" architect{eos}")], 2)
    assert [shorter, longer] == [pytest.approx(score, abs=1e-4) for score in ended]
    alone = log_likelihoods(model, tokenizer, [("He is an", " arch")], 1)[0]
    assert shorter[1] == alone[1] + 1  # one token more, not its letters
    apart = score_options(model, tokenizer, [{}], [("He is an", [" arch", " tree"])], settings)[0]
    assert apart[0] == pytest.approx(alone, abs=1e-4)


def test_a_model_without_memory_cannot_be_made_to_read():
    plain = tiny_model(vocab_size=6400, model_type="model_original")
    with pytest.raises(ValueError, match="without a memory"):
        plain(torch.ones(1, 2, dtype=torch.long), entry_B=torch.tensor([0]))


def test_training_questions_are_worded_as_the_evaluation_asks(settings, tmp_path, monkeypatch):
    from dataset import questions

    relation = tmp_path / "relation.jsonl"
    row = {"subject": "Paris", "object": "France", "choices": ["river", "country"], "answer": "B"}
    relation.write_text(json.dumps(row) + "\n")
    out = tmp_path / "out.jsonl"
    flags = ["--object", settings.object_path, "--relation", str(relation), "--limit", "1", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["questions", *flags])
    questions.main()
    learnt = sorted(json.loads(line)["prompt"] + "|" + json.loads(line)["answer"] for line in out.open())
    assert learnt == ["Paris is in| France.", "Subject: Paris\nObject: France\nRelation:| country"]


def test_retrieval_counts_candidates_and_reads(model, tokenizer, settings):
    result = retrieval(model, tokenizer, settings)
    shares = result["layers"]["pointer"]
    assert shares["candidate_1"]["accuracy"] == 1 and shares["selected"]["accuracy"] == 1
    assert shares["selected_if_wrong"]["n"] == 0 and result["exhaustive"] == 1
    reworded = result["reworded"]["layers"]["pointer"]
    assert result["reworded"]["n"] == len(PARAPHRASES) * result["n"] == reworded["candidate_1"]["n"]
    assert 0 < reworded["candidate_1"]["accuracy"] <= reworded["candidate_4"]["accuracy"] <= 1
    assert "gold entry read in other words, pointer" in table({"run": {"retrieval": result}})
    model.bank.write(torch.tensor([0]), torch.zeros(1, 8, dtype=torch.long))
    assert retrieval(model, tokenizer, settings)["layers"]["pointer"]["candidate_64"]["accuracy"] == pytest.approx(
        5 / 6
    )


def test_no_candidates_are_counted_beyond_those_that_a_search_finds(model, tokenizer, settings):
    gold_B = torch.arange(3)
    for width, kept in ((4, [1, 4]), (64, [1, 4, 16, 64]), (2, [1])):
        found = {"pointer": gold_B[:, None].repeat(1, width)}
        shares = shares_of_gold(model, found, found, gold_B, settings)
        counted = [f"candidate_{n}" for n in kept]
        assert list(shares["pointer"]) == [*counted, "selected"]
        text = table({"run": {"retrieval": {"layers": shares}}})
        among = "/".join(str(n) for n in kept[1:])
        assert (f"gold entry among {among}, pointer" in text) if among else ("among" not in text)
    suffixes = tiny_model(vocab_size=6400, **SUFFIX)  # reads all that it finds, three entries
    shares = shares_of_gold(suffixes, *candidates_and_reads(suffixes, tokenizer, ["a"] * 3, settings), gold_B, settings)
    assert {name for own in shares.values() for name in own} == {"candidate_1", "selected"}


def test_edits_take_and_leave_the_neighbours_alone(model, tokenizer, settings):
    tokens = model.bank.tokens.clone()
    result = edits(model, tokenizer, settings)
    assert result["0"]["ES"] == 0 and result["1"]["ES"] == 1 and result["100"]["ES"] == 1
    assert result["0"]["NS"] == result["1"]["NS"] == 1
    assert result["1"]["n"]["NS"] > 0 and result["undo_exact"] and result["1"]["ms_per_edit"] < 50
    assert torch.equal(model.bank.tokens, tokens)


def test_frequency_guesses_leave_the_asked_fact_out(settings):
    # France is the most frequent land but for its own question it counts once less; Peru then stands nowhere.
    result = frequency(None, None, settings)["object"]
    assert result["n"] == 6 and result["accuracy"] == pytest.approx(3 / 6)


def test_an_object_must_end_where_its_word_ends():
    assert starts_with_word("Niger. It", "Niger") and not starts_with_word("Nigeria", "Niger")


def test_only_whole_pairs_in_one_line_have_met():
    pairs = {("Ann Lee", "Rome"), ("Bo", "Oslo"), ("X-Ray", "Paris"), ("Cy", "Bern")}
    lines = ["In Rome lived Ann Lee.", "Bo left Oslofjord.", "Oslo is far.", "The X-Ray of Paris", "Cyrus was in Bern"]
    assert overlapping_pairs(pairs, lines) == {("Ann Lee", "Rome"), ("X-Ray", "Paris")}
