"""The editing benchmark on a made-up run: what is found, edited, asked, counted and taken back."""

import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from fnmatch import fnmatch

import pytest
import torch

from common.constants import NO_ENTRY, PADDING
from dataset.edit_cases import read_cases
from evaluation import TASKS
from evaluation.config import EvalConfig
from evaluation.counterfact import Asked, ModelAnswers, asked_of, by_name
from evaluation.edit_rules import LookUpAnswers
from evaluation.edits import fingerprint, write_edits
from evaluation.generation import continuations, continue_prompt
from evaluation.gold import Gold
from evaluation.likelihood import log_likelihoods
from evaluation.lookup import LookUp, WordIndex
from evaluation.places import asked_first, free_rows, place_cases, rows_of_texts
from evaluation.report import table
from runs.metrics import METRICS
from tests.conftest import tiny_model
from tests.evaluation.conftest import FACTS

counterfact = TASKS["counterfact"]


def case_of(fact, new="Chile", **more):
    neighbours = [
        {"prompt": f"{other.subject} is in", "uuid": other.uuid, "edited": other in FACTS[:4]}
        for other in FACTS
        if other.object == fact.object and other != fact
    ]
    return {
        "case_id": 1, "uuid": fact.uuid, "subject": fact.subject, "object": fact.object, "new_object": new,
        "predicate": "country",
        "prompt": f"{fact.subject} is in", "paraphrase_prompt": f"They say that {fact.subject} is in",
        "paraphrase_kind": "restated",
        "made_paraphrases": [f"It is. {fact.subject} is in", f"So. {fact.subject} is in"],
        "bank_sentence": fact.sentence, "new_sentence": f"{fact.subject} is in {new}.",
        "neighbours": [*neighbours, {"prompt": "Metz is in", "uuid": None, "edited": False}],
    } | more  # fmt: skip


LACKING = case_of(FACTS[0]) | {
    "uuid": None, "bank_sentence": None, "subject": "Quito", "object": "Peru", "prompt": "Quito is in",
    "new_sentence": "Quito is in Chile.", "paraphrase_prompt": "So Quito is in", "neighbours": [],
    "made_paraphrases": ["Yes. Quito is in"],
}  # fmt: skip


@pytest.fixture
def cases_file(tmp_path):
    def write(rows):
        path = tmp_path / "cases.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.fixture
def gold():
    return Gold({fact.uuid: i for i, fact in enumerate(FACTS)}, {f.uuid: f for f in FACTS}, lambda: enumerate(FACTS))


@pytest.fixture
def config(cases_file, gold):
    path = cases_file([*map(case_of, FACTS[:4]), LACKING])
    return EvalConfig(counterfact_path=path, gold=gold, batch_size=4)


def test_edits_take_effect_and_are_taken_back(model, tokenizer, config):
    result = counterfact(model, tokenizer, config)
    numbers = result["numbers"]
    assert list(numbers) == ["0", "1", "all"] and numbers["all"]["edits"] == 5
    assert numbers["0"]["ES"]["accuracy"] < 0.5 and numbers["1"]["ES"]["accuracy"] == 1
    assert result["accuracy"] == 1 and result["n"] == 5 and result["parts"]["PS_made"]["n"] == 9
    assert numbers["all"]["free"]["ES"]["accuracy"] == 1 == result["parts"]["ES_free"]["accuracy"]
    assert "PS_restated" in numbers["all"] and "PS_restated" not in numbers["all"]["free"]
    assert result["undo_exact"] == {"bank": True, "index": True}
    assert (result["places"]["by_uuid"], result["places"]["added"]) == (4, 1)
    stay = numbers["all"]["NS"]
    assert stay["accuracy"] == stay["before"] == stay["same"] == 1
    # Each of the three French cases has two neighbours that are cases; Rome has Milan, which is none.
    assert (numbers["1"]["NS"]["n"], stay["n"], numbers["all"]["NS_no_entry"]["n"]) == (7, 1, 4)


@pytest.mark.parametrize("rule", ["lookup", "search_alone"])
def test_the_look_up_and_the_search_alone_give_the_same_scores(model, tokenizer, config, rule):
    numbers = counterfact(model, tokenizer, config)["without_model"][rule]["numbers"]
    assert numbers["0"]["ES"]["accuracy"] == 0.1  # of the fact that no entry states, it guesses
    assert [numbers[n]["ES"]["accuracy"] for n in ("1", "all")] == [1, 1]
    assert numbers["all"]["NS"]["accuracy"] == numbers["all"]["PS_made"]["accuracy"] == 1
    assert "free" not in numbers["all"]


def test_the_look_up_does_not_answer_with_a_name_of_the_subject():
    texts = ["Paris Match is made in Rome.", "Oslo is near Bern."]
    answers = LookUpAnswers(LookUp(WordIndex(texts), texts))

    def value(prompt, *options):
        return answers.choose([Asked("ES", 0, prompt, options)])[0]

    assert value("Paris Match is made in", " Rome", " Paris") == 1
    assert value("Paris Match is made in", " Paris", " Rome") == 0
    assert value("It is near", " Oslo", " Bern") == 0.5 == value("Paris Match", " Lima", " Peru")
    assert value("Paris Match", " Paris", " Lima") == 1


def test_the_table_shows_the_scores_of_the_model_and_of_the_look_up(model, tokenizer, config):
    shown = table({"run": {"counterfact": counterfact(model, tokenizer, config)}})
    row = next(line for line in shown.splitlines() if line.startswith("counterfact, edits: 5, ES/PS/NS"))
    # No entry states Chile: by frequency no edit is followed, and all neighbours stay.
    everything = "100.0%/100.0%/100.0%"
    assert row.split()[-4:] == [everything, "0.0%/0.0%/100.0%", everything, everything]
    assert "NS without entry" in shown and "(before" in shown and "written freely" in shown


def test_all_cases_are_edited_where_some_are_asked(model, tokenizer, config, monkeypatch):
    written, write = [], model.bank.write
    monkeypatch.setattr(sys.modules["evaluation.counterfact"], "NUMBERS", (3,))
    monkeypatch.setattr(ModelAnswers, "write", lambda self, asked: [1.0] * len(asked))
    monkeypatch.setattr(
        model.bank, "write", lambda row_X, token_XL: written.append(row_X.tolist()) or write(row_X, token_XL)
    )
    result = counterfact(model, tokenizer, replace(config, asked_cases=2))
    numbers, drawn = result["numbers"], asked_first(5, replace(config, asked_cases=2))
    assert (result["asked_cases"], result["n"]) == (2, 2)
    assert [numbers[n]["edits"] for n in ("1", "3", "all")] == [1, 3, 5]
    assert [numbers[n]["ES"]["n"] for n in ("0", "1", "3", "all")] == [2] * 4
    assert numbers["all"]["PS_made"]["n"] == 4 - (4 in drawn[:2])
    edited = [rows for rows in written[::2] if len(rows) > 1]  # every second call takes back
    rows = [(0, 1, 2, 3, 6)[case] for case in drawn]  # 6: the last row that no case and no neighbour needs
    assert edited[:2] == [rows[:3], rows]
    assert result["deletion"]["entries"] == sum(case < 4 for case in drawn[:2])
    rules = [rule["numbers"]["all"] for rule in result["without_model"].values()]
    assert [(rule["edits"], rule["ES"]["n"]) for rule in rules] == [(5, 2)] * 3


def test_the_cases_that_are_asked_are_drawn_by_the_seed():
    orders = [asked_first(1000, EvalConfig(asked_cases=30, seed=seed)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] and set(orders[0][:30]) != set(orders[2][:30])
    assert all(sorted(order) == list(range(1000)) and max(order[:30]) > 500 for order in orders)
    assert all(order[30:] == sorted(order[30:]) for order in orders)
    assert asked_first(4, EvalConfig()) == asked_first(4, EvalConfig(asked_cases=9)) == [0, 1, 2, 3]


def test_one_call_writes_all_edits(model, tokenizer, config, monkeypatch):
    written, write = [], model.bank.write
    monkeypatch.setattr(
        model.bank, "write", lambda row_X, token_XL: written.append(len(row_X)) or write(row_X, token_XL)
    )
    counterfact(model, tokenizer, config)
    all_numbers = [1, 1] * 5 + [5, 5]  # each alone, all; and back
    assert written == all_numbers + [4, 4] + all_numbers  # then the emptied entries, then those of the search alone


def test_an_emptied_entry_is_as_if_it_had_never_been_there(model, tokenizer, config, monkeypatch):
    found = counterfact(model, tokenizer, config)["deletion"]
    assert found["entries"] == 4 and found["chosen"]["same"] == found["written"]["same"] == 1
    assert found["written"]["before"]["accuracy"] == 1 and found["written"]["deleted"]["accuracy"] == 0
    assert found["other_facts"]["n"] == 1
    # An entry that was not emptied would be told from one that was never there.
    monkeypatch.setattr(ModelAnswers, "edited", lambda self, edits: nullcontext(0.0))
    found = counterfact(model, tokenizer, config)["deletion"]
    assert found["written"]["same"] == 0


def test_a_fingerprint_tells_any_other_bank_or_index(model, tokenizer):
    first = fingerprint(model)
    row_X, old_XL = write_edits(model, tokenizer, [(2, "Nice is in Chile.")])
    changed = fingerprint(model)
    assert changed["bank"] != first["bank"] and changed["index"] != first["index"]
    model.bank.write(row_X, old_XL)
    assert fingerprint(model) == first
    model.bank.ngrams().stale_N[3] = True
    assert fingerprint(model) == first | {"index": fingerprint(model)["index"]} != first


def test_a_fact_is_found_by_its_uuid_else_by_its_sentence(model, tokenizer, gold, cases_file):
    other_uuid = case_of(FACTS[1], uuid="elsewhere")
    rows = [case_of(FACTS[0]), other_uuid, case_of(FACTS[0], new_sentence="Again."), LACKING, case_of(FACTS[2])]
    model.bank.tokens[5] = PADDING
    cases = read_cases(cases_file(rows), None, "counterfact_path")
    kept, placed, about = place_cases(cases, model, tokenizer, gold)
    assert placed == [0, 1, 5, 2] and [case.new_object for case in kept] == ["Chile"] * 4
    names = ("by_uuid", "by_sentence", "added", "overwritten", "left_out", "cut")
    assert [about[name] for name in names] == [3, 1, 1, 0, 1, 0] and about["held"] == [True, True, False, True]
    assert place_cases(cases, model, tokenizer, None)[1] == [0, 1, 5, 2]
    assert rows_of_texts(model, tokenizer, ["Rome is in", FACTS[3].sentence, ""]) == [NO_ENTRY, 3, 5]


def test_a_new_entry_goes_to_an_empty_row_else_to_the_last_unfrozen_one_that_nobody_needs(model):
    model.bank.frozen[:] = torch.tensor([False, False, False, True, True, False, False, True])
    assert free_rows(model.bank, {6}, 4) == ([5, 2, 1, 0], 0)
    model.bank.tokens[1] = PADDING
    assert free_rows(model.bank, {6}, 6) == ([1, 5, 2, 0, 7, 4], 1)
    with pytest.raises(ValueError, match="has no place for the 8 facts"):
        free_rows(model.bank, {6}, 8)


def test_neighbours_with_an_entry_are_those_of_the_bank(cases_file, gold):
    cases = read_cases(cases_file([case_of(FACTS[0])]), None, "counterfact_path")
    names = [[one.name for one in asked_of(cases, entries)][4:] for entries in (None, {FACTS[1].uuid})]
    assert names == [["NS", "NS", "NS_no_entry"], ["NS", "NS_no_entry", "NS_no_entry"]]


def test_an_option_that_begins_another_ends_with_its_text(model, tokenizer, config, monkeypatch):
    asked = []
    eos = tokenizer.eos_token
    scores = {" Norway": (-2.0, 1), " Norway House": (-3.0, 2), " Peru": (-1.0, 1)}
    scores |= {f" Norway{eos}": (-4.0, 2), f" Norway House{eos}": (-9.0, 3)}
    monkeypatch.setattr(
        sys.modules["evaluation.counterfact"], "log_likelihoods",
        lambda model, tokenizer, pairs, *_, **__: asked.extend(pairs) or [scores[option] for _, option in pairs],
    )  # fmt: skip
    options = (" Norway", " Norway House"), (" Norway", " Peru")
    answers = ModelAnswers(model, tokenizer, config)
    # By the mean Norway House (-1.5) is above Norway (-2), without an end; by the sum, with the end, it is below.
    assert answers.compared([Asked("ES", 0, "It is in", own) for own in options]) == ([0, 0], [1, 0])
    assert {option for _, option in asked} == set(scores) and len(asked) == answers.scored == 5


def test_an_object_counts_by_the_mean_of_its_tokens_and_by_their_sum_beside_it(model, tokenizer, config, monkeypatch):
    def found(model, tokenizer, pairs, *_, **__):  # the new object is of four tokens, each of them likelier
        return [(-4.0, 4) if "Chile" in option else (-3.0, 1) for _, option in pairs]

    monkeypatch.setattr(sys.modules["evaluation.counterfact"], "log_likelihoods", found)
    result = counterfact(model, tokenizer, config)
    last = result["numbers"]["all"]
    assert (last["ES"]["accuracy"], last["ES"]["by_sum"], last["ES"]["task_version"]) == (1, 0, 2)
    assert (last["NS"]["accuracy"], last["NS"]["by_sum"], result["parts"]["PS_made"]["by_sum"]) == (0, 1, 0)
    assert result["numbers"]["0"]["ES"]["by_sum"] == result["numbers"]["1"]["ES"]["by_sum"] == 0 == result["by_sum"]
    assert result["deletion"]["chosen"]["before"]["accuracy"] == 0
    assert "by_sum" not in result["without_model"]["lookup"] and "by_sum" not in last["free"]["ES"]


def test_cases_whose_old_object_other_entries_state_are_left_out_in_a_part(model, tokenizer, config, cases_file):
    assert "ES_one_entry" not in counterfact(model, tokenizer, config)["parts"]
    rows = [case_of(fact, other_rows=more) for fact, more in zip(FACTS[:3], (1, 0, None), strict=True)]
    result = counterfact(model, tokenizer, replace(config, counterfact_path=cases_file(rows)))
    numbers, look_up = result["numbers"], result["without_model"]["lookup"]["numbers"]
    for found in (numbers["0"], numbers["1"], numbers["all"], numbers["all"]["free"], look_up["all"]):
        assert (found["ES"]["n"], found["ES_one_entry"]["n"]) == (3, 2)


def test_batched_answers_are_those_one_by_one(model, tokenizer, config):
    answers = ModelAnswers(model, tokenizer, config)
    prompts = [f"{'So. ' * n}{fact.subject} is in" for n, fact in enumerate(FACTS)]
    asked = [Asked("ES", 0, prompt, (" Norway", " Norway House")) for prompt in prompts]
    eos = tokenizer.eos_token
    pairs = [(prompt, option + eos) for prompt in prompts for option in asked[0].options]
    plain = [(prompt, option) for prompt in prompts for option in asked[0].options]
    means, sums = answers.compared(asked)
    assert answers.scored == 2 * len(pairs)
    alone = [log_likelihoods(model, tokenizer, [pair], 1)[0] for pair in (*plain, *pairs)]
    mean_of, sum_of = [own / n for own, n in alone[: len(plain)]], [own for own, _ in alone[len(plain) :]]
    assert means == answers.choose(asked) == [float(a > b) for a, b in zip(mean_of[::2], mean_of[1::2], strict=True)]
    assert sums == [float(a > b) for a, b in zip(sum_of[::2], sum_of[1::2], strict=True)]
    texts = continuations(model, tokenizer, prompts, [4] * len(prompts), 3)
    own = [tokenizer.decode(continue_prompt(model, tokenizer, p, False, 4), skip_special_tokens=True) for p in prompts]
    assert texts == own
    assert sum(answers.write(asked)) == 2 and answers.written == len(prompts)  # Oslo and Bergen


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": " "}, "'prompt' is empty"), ({"new_object": None}, "'new_object' must be a text"),
        ({"made_paraphrases": ["x", 3]}, "'made_paraphrases' must hold texts"),
        ({"neighbours": [{"uuid": "x"}]}, "'neighbours' must hold texts"),
        ({"paraphrase_prompt": [""]}, "'paraphrase_prompt' must hold texts"),
        ({"new_object": "France "}, "line 2: 'new_object' is the 'object' 'France', so nothing would change: give"),
    ],
)  # fmt: skip
def test_a_malformed_case_is_named(cases_file, change, words):
    path = cases_file([case_of(FACTS[0]), case_of(FACTS[1]) | change])
    with pytest.raises(ValueError, match=words) as refused:
        read_cases(path, None, "counterfact_path")
    assert "2" in str(refused.value)


def test_without_a_bank_there_is_nothing_to_edit(model, tokenizer, config):
    plain = tiny_model(vocab_size=6400, model_type="model_original")
    result, edited = (counterfact(one, tokenizer, config)["numbers"] for one in (plain, model))
    assert set(result) == {"0", "all"} and result["all"]["edits"] == 0
    assert "free" in result["all"] and result["all"] == {"edits": 0} | result["0"] | {"free": result["all"]["free"]}
    for name, share in edited["0"].items():  # the same prompts
        assert result["0"][name]["n"] == share["n"]
    assert counterfact(plain, tokenizer, EvalConfig()) is None
    assert counterfact(model, tokenizer, EvalConfig()) is None


def test_every_score_is_a_measure_that_one_pattern_names(model, tokenizer, config):
    result, found = {"counterfact": counterfact(model, tokenizer, config)}, {}
    patterns = [metric for metric in METRICS if metric.name.startswith("counterfact")]
    for metric in patterns:
        found |= {metric.name.replace("*", star): value for star, _, value in metric.scores(result)}
    assert found["counterfact_es_all"] == found["counterfact_free_es_all"] == 1 == found["counterfact_deleted"]
    assert {"counterfact_ns_entry_0", "counterfact_ns_no_entry_1"} <= set(found)
    assert all(sum(fnmatch(name, metric.name) for metric in patterns) == 1 for name in found)


def test_neighbours_of_one_subject_are_one_draw_of_the_interval():
    options = (" Norway", " Peru")
    names = ["Oslo"] * 30 + ["Rome"] * 30
    many = [Asked("NS", i, f"{name} is in", options, about=name) for i, name in enumerate(names)]
    right = {i: float(one.about == "Oslo") for i, one in enumerate(many)}
    apart = [one._replace(about=f"{one.about} {i}") for i, one in enumerate(many)]
    found, others = (by_name(asked, right, EvalConfig(), 0.5, {})["NS"] for asked in (many, apart))
    assert found["accuracy"] == others["accuracy"] == 0.5 and (found["n_draws"], others["n_draws"]) == (2, 60)
    widths = [share["ci95"][1] - share["ci95"][0] for share in (found, others)]
    assert widths[0] > 3 * widths[1]


def test_a_case_file_may_name_the_subjects_of_its_neighbours(tmp_path):
    row = {"subject": "Oslo", "object": "Norway", "new_object": "Peru", "prompt": "Oslo is in", "new_sentence": "Oslo."}
    row["neighbours"] = [{"prompt": "Bergen lies in", "subject": "Bergen", "uuid": "b"}, {"prompt": "Of Rome it is"}]
    (tmp_path / "cases.jsonl").write_text(json.dumps(row))
    asked = asked_of(read_cases(tmp_path / "cases.jsonl", None, "counterfact_path"), None)
    assert [(one.name, one.about) for one in asked[1:]] == [("NS", "Bergen"), ("NS_no_entry", "Of Rome it is")]
