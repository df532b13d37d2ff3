"""How far the pointer trusts the search is chosen by edits and questions in other words, and written into the run."""

import json
import random
import shutil
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dataset.knowledge import Fact
from dataset.wordings import kept_back
from evaluation import calibrate, calibrate_choice, calibrate_questions
from evaluation.calibrate import Outcome, Setting
from evaluation.calibrate_questions import (
    LACKING,
    TIMES,
    Questions,
    held_facts,
    lacking_facts,
    lacking_questions,
    new_objects,
    questions_of,
)
from evaluation.config import EvalConfig
from evaluation.counterfact import ModelAnswers
from evaluation.edits import fingerprint, neighbours_of
from evaluation.gold import Gold, find_gold
from evaluation.likelihood import log_likelihoods
from evaluation.results import ResultFile, about_evaluation
from tests.conftest import tiny_model
from tests.evaluation.conftest import FACTS
from tests.model.variants import BM25

CROWDS = Counter(fact.subject for fact in FACTS)


def gold_of(facts) -> Gold:
    return Gold({fact.uuid: i for i, fact in enumerate(facts)}, {}, lambda: iter(list(enumerate(facts))))


def questions_file(path, facts) -> str:
    """Questions about facts; each has two choices."""
    row = {"question": "It is ___.", "answer": "A"}
    own = ({"uuid": x.uuid, "subject": x.subject, "predicate": x.predicate, "choices": [x.object, "?"]} for x in facts)
    path.write_text("".join(json.dumps(row | one) + "\n" for one in own))
    return str(path)


def lacking_fact(subject: str, object: str) -> Fact:
    return Fact("", subject, "country", object, f"lacking {subject}")


@pytest.fixture
def run(model, tokenizer, tmp_path, monkeypatch):
    """run(*flags): calibrates a run folder, and others, by four of the facts of its bank; the folder."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"pointer_scale": 1.0, "dim": 32}))
    (folder / "flags.json").write_text(
        json.dumps(
            {
                "data": {"val_path": None, "cache_dir": str(tmp_path), "database_init_path": "knowledge.json"}
                | {"object_path": str(tmp_path / "dev.jsonl")},
                "model": {"knowledge_num": 49, "knowledge_length": 5},
                "optim": {"dtype": "float32"},
            }
        )
    )
    monkeypatch.setattr(calibrate, "load_run", lambda *_: model)
    monkeypatch.setattr(calibrate, "load_tokenizer", lambda *_: tokenizer)
    monkeypatch.setattr(calibrate, "find_gold", lambda *_: gold_of(FACTS))
    monkeypatch.setattr(calibrate_questions, "REWORDINGS", ("{subject} is in", "So {subject} is in"))
    path = questions_file(tmp_path / "q.jsonl", FACTS[:4])

    def start(*flags, others=(), anew=True):
        if anew:
            (folder / "calibration.json").unlink(missing_ok=True)
        runs = map(str, (folder, *others))
        monkeypatch.setattr("sys.argv", ["calibrate", "--run", *runs, "--object_path", path, *flags])
        calibrate.main()
        return folder

    return start


def scale_of(folder) -> float:
    config = json.loads((folder / "config.json").read_text())
    assert config["dim"] == 32
    return config["pointer_scale"]


def outcome(
    followed: float, kept: float = 1.0, written: float = 1.0, text_loss: float = 4.0, n: int = 100, lacking: float = 0.0
) -> Outcome:
    """With the shares that are given, of n questions each; the first ones are right."""
    right = (np.arange(n) < round(share * n) for share in (followed, kept, written))
    return Outcome(*(own.astype(float) for own in right), text_loss, lacking)


def test_the_best_scale_is_written_and_taken_back(run, monkeypatch, capsys):
    asked = []

    def measure(setting, *_):
        asked.append(setting.scale)
        return outcome(0.9 - abs(setting.scale - 2) / 5)

    monkeypatch.setattr(calibrate, "measure", measure)
    assert scale_of(run()) == 2.0
    assert tuple(asked) == calibrate.SCALES
    assert "has pointer_scale 2, before pointer_scale 1; ask again" in capsys.readouterr().out
    assert scale_of(run("--scales", "1")) == 1.0


def test_runs_are_chosen_for_together_and_each_is_measured_once(run, monkeypatch, tmp_path, capsys):
    asked = []

    def measure(setting, *_):
        asked.append(setting.scale)
        return outcome(0.9 if setting.scale == 1 else 0.8)

    monkeypatch.setattr(calibrate, "measure", measure)
    folder, other = run("--scales", "1", "2"), tmp_path / "other"
    assert scale_of(folder) == 1.0 and asked == [1.0, 2.0]
    shutil.copytree(folder, other)
    kept = json.loads((other / "calibration.json").read_text())
    for row in kept["outcomes"]:  # of the other run, in which scale 2 is the better one, and by more
        row["followed"] = ("1" * 60 + "0" * 40) if row["setting"]["scale"] == 1 else "1" * 100
    (other / "calibration.json").write_text(json.dumps(kept))
    run("--scales", "1", "2", others=[other], anew=False)
    assert asked == [1.0, 2.0]  # the answers are in the folders
    assert scale_of(folder) == scale_of(other) == 2.0
    assert "2 runs together" in capsys.readouterr().out
    run("--scales", "1", "2", "--limit", "2", anew=False)  # other questions
    assert asked == [1.0, 2.0, 1.0, 2.0]


def test_runs_of_other_experiments_are_refused(run, monkeypatch, tmp_path):
    monkeypatch.setattr(calibrate, "measure", lambda *_: outcome(0.9))
    shutil.copytree(run("--scales", "1"), other := tmp_path / "other")
    flags = json.loads((other / "flags.json").read_text())
    (other / "flags.json").write_text(json.dumps(flags | {"model": flags["model"] | {"pointer_scale": 2.0}}))
    with pytest.raises(ValueError, match="other was trained with pointer_scale 2, .*run with pointer_scale 1: give"):
        run("--scales", "1", others=[other])


def test_answers_that_are_kept_are_those_that_were_given(tmp_path):
    outcomes = {Setting(1.0, 1.5, 2.0, 3.0): outcome(0.31, 0.5, 0.77, 3.25, lacking=0.015), Setting(2.0): outcome(0.5)}
    calibrate_choice.write_measured(tmp_path, {"limit": 3}, outcomes)
    again = calibrate_choice.read_measured(tmp_path, {"limit": 3})
    assert again.keys() == outcomes.keys() and calibrate_choice.read_measured(tmp_path, {"limit": 4}) == {}
    for setting, own in outcomes.items():
        assert all(np.array_equal(a, b) for a, b in zip(own, again[setting], strict=True))


def test_together_all_answers_count_and_costs_are_means():
    both = calibrate_choice.together([outcome(0.2, text_loss=3.0), outcome(0.8, n=300, text_loss=4.0, lacking=0.02)])
    assert len(both.followed) == 400 and both.shares[0] == pytest.approx((20 + 240) / 400)
    assert (both.text_loss, both.lacking) == (3.5, 0.01)


def test_a_scale_that_costs_the_text_too_much_is_not_chosen():
    losses = {1.0: 4.0, 2.0: 4.005, 3.0: 4.02}
    outcomes = {Setting(scale): outcome(scale / 4, text_loss=loss) for scale, loss in losses.items()}
    found = [calibrate.chosen(outcomes, Setting(1.0), cost, 0.01).scale for cost in (0.0, 0.01, 0.05)]
    assert found == [1.0, 2.0, 3.0]
    assert calibrate.chosen(outcomes, Setting(3.0), 0.0, 0.01) == Setting(3.0)  # as trained


def test_of_settings_that_all_cost_lacking_facts_too_much_the_one_that_costs_least_is_chosen():
    costs = {1.0: 0.012, 2.0: 0.01, 3.0: 0.03, 4.0: 0.0}
    losses = {1.0: 4.0, 2.0: 4.0, 3.0: 4.0, 4.0: 5.0}  # the last one costs the text too much
    outcomes = {Setting(x): outcome(x / 4, text_loss=losses[x], lacking=cost) for x, cost in costs.items()}
    bounds = (0.001, 0.01, 0.012, 0.03)
    assert [calibrate.chosen(outcomes, Setting(1.0), 0.01, cost).scale for cost in bounds] == [2.0, 2.0, 2.0, 3.0]
    del outcomes[Setting(2.0)]
    assert calibrate.chosen(outcomes, Setting(1.0), 0.01, 0.01) == Setting(1.0)


def test_a_scale_by_which_edits_change_facts_that_the_bank_lacks_is_not_chosen(run, tmp_path, capsys):
    """By a small scale what a text says of Paris counts for "Milan Paris" too, and Paris is edited."""
    questions_file(tmp_path / "q.jsonl", [*FACTS[:4], lacking_fact("Milan Paris", "Italy")])
    folder = run("--scales", "1")
    flags = json.loads((folder / "flags.json").read_text())
    (folder / "flags.json").write_text(json.dumps(flags | {"model": flags["model"] | {"pointer_scale": 0.1}}))
    capsys.readouterr()
    assert scale_of(run("--scales", "0.1", "1", "--limit", "4")) == 1.0  # though 0.1 is as good, and as trained
    told = capsys.readouterr().out
    assert "2 questions ask about facts that the bank lacks" in told and "every setting" not in told
    lines = [line.split() for line in told.splitlines() if line.split()[:1] in (["0.1"], ["1"])]
    assert [line[4:9] for line in lines] == [["100.0%"] * 4 + ["-50.0"], ["100.0%"] * 4 + ["+0.0"]]
    assert scale_of(run("--scales", "0.1", "1", "--lacking_cost", "0.5")) == 0.1
    run("--scales", "0.1")
    told = capsys.readouterr().out
    assert "more than --lacking_cost 0.01, this one least: 0.5000" in told.splitlines()[-1]


def test_both_numbers_are_chosen_together(run, model, monkeypatch, capsys):
    found = {Setting(1.0): 0.5, Setting(1.0, 3.0): 0.9, Setting(2.0): 0.7, Setting(2.0, 3.0): 0.6}
    monkeypatch.setattr(calibrate, "measure", lambda setting, *_: outcome(found[setting]))
    with pytest.raises(ValueError, match="was trained without --pointer_state_scale"):
        run("--asked", "0", "3")
    monkeypatch.setattr(model, "settings", replace(model.settings, pointer_state_scale=True))
    folder = run("--scales", "1", "2", "--asked", "0", "3")
    assert "has pointer_scale 1, pointer_asked 3, before pointer_scale 1; ask again" in capsys.readouterr().out
    config = json.loads((folder / "config.json").read_text())
    assert (config["pointer_scale"], config["pointer_asked"]) == (1.0, 3.0)
    run("--scales", "1", "--asked", "0")
    assert json.loads((folder / "config.json").read_text())["pointer_asked"] == 0.0
    with pytest.raises(ValueError, match="--asked must be at least 0"):
        run("--asked", "-1")


def test_the_preference_for_edited_entries_is_chosen_where_the_run_has_one(run, monkeypatch, capsys):
    monkeypatch.setattr(calibrate, "measure", lambda setting, *_: outcome(0.5 + setting.edited / 10))
    monkeypatch.setattr(calibrate, "measure_unedited", lambda *_: None)
    with pytest.raises(ValueError, match="was trained without --pointer_edited, so --edited changes nothing"):
        run("--edited", "2", "4")
    with pytest.raises(ValueError, match="--edited must be at least 0, got -1"):
        run("--edited", "-1")
    flags = json.loads((folder := run("--scales", "1")).joinpath("flags.json").read_text())
    flags["model"]["pointer_edited"] = 2.0
    (folder / "flags.json").write_text(json.dumps(flags))
    run("--scales", "1", "--edited", "2", "4")
    assert "has pointer_scale 1, pointer_edited 4, before pointer_scale 1; ask again" in capsys.readouterr().out
    run("--scales", "1")
    assert json.loads((folder / "config.json").read_text())["pointer_edited"] == 3.0  # one nat more is tried, too
    run("--scales", "1", "--edited", "2")
    assert json.loads((folder / "config.json").read_text())["pointer_edited"] == 2.0  # as trained


def test_how_far_unsaid_counts_in_edits_is_tried_where_the_run_knows_edits():
    def tried(trained: Setting, unsaid_tokens: bool, values: list[float] | None) -> list[float]:
        settings = SimpleNamespace(pointer=True, pointer_state_scale=False, unsaid_tokens=unsaid_tokens)
        args = SimpleNamespace(scales=[1.0], asked=None, edited=None, edited_unsaid=values)
        found = calibrate.settings_to_try(args, Path("run"), SimpleNamespace(settings=settings), trained)
        return [setting.edited_unsaid for setting in found]

    assert tried(Setting(1.0, edited=2.0), True, None) == [*calibrate.UNSAID] * 2  # with 2 nats, and with 3
    assert tried(Setting(1.0, edited_unsaid=2.0), True, None) == [0.0, 1.0, 2.0, 3.0]
    assert tried(Setting(1.0, edited_unsaid=2.0), True, [0.0, 2.0]) == [0.0, 2.0]
    assert tried(Setting(1.0), True, None) == [0.0] and tried(Setting(1.0, edited=2.0), False, None) == [0.0, 0.0]
    with pytest.raises(ValueError, match="without --pointer_edited, so --edited_unsaid changes nothing"):
        tried(Setting(1.0), True, [1.0])
    with pytest.raises(ValueError, match="without --unsaid_tokens, so --edited_unsaid changes nothing"):
        tried(Setting(1.0, edited=2.0), False, [1.0])


def test_values_for_edited_entries_change_nothing_before_an_edit(tokenizer):
    flags = BM25 | {"pointer": True, "unsaid_tokens": True, "pointer_edited": 2.0}
    model = tiny_model(vocab_size=6400, knowledge_num=49, **flags)
    answers = ModelAnswers(model, tokenizer, EvalConfig(batch_size=4))
    asked = Questions([], [], [("Paris is in", " France"), ("Oslo is in", " Norway")], [], [])
    found = []
    for model.pointer.edited, model.pointer.edited_unsaid in ((2.0, 0.0), (4.0, 3.0)):
        found.append(calibrate.measure_unedited(answers, asked, EvalConfig()))
        found[-1] = (found[-1].written.tolist(), log_likelihoods(model, tokenizer, asked.written, 4))
    assert found[0] == found[1]


def test_the_best_scale_is_chosen_and_of_equal_ones_the_one_closest_to_the_training():
    one, two, three = Setting(1.0), Setting(2.0), Setting(3.0)
    outcomes = {one: outcome(0.9), two: outcome(0.91), three: outcome(0.91)}
    assert calibrate.chosen(outcomes, one, 0.01, 0.01) == two
    assert calibrate.chosen(outcomes, Setting(4.0), 0.01, 0.01) == three
    assert outcome(0.0).score == 0


def test_edits_are_asked_among_others_and_all_is_taken_back(run, model, tokenizer, capsys):
    before = fingerprint(model)
    config = EvalConfig(gold=gold_of(FACTS), batch_size=4)
    for bias, written in ((0.0, "100.0%"), (-50.0, "0.0%")):  # of the pointer's gate: at last nothing is copied
        torch.nn.init.constant_(model.pointer.gate.bias, bias)
        run("--scales", "1")
        (line,) = (line.split() for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["1"])
        assert line[6] == written and len(line) == 10
    assert line[-2:] == ["-", "-"]  # the bank lacks no fact, and no text was given
    asked = questions_of(list(enumerate(FACTS[:4])), tokenizer, config, CROWDS)
    assert [(len(asked.followed), len(asked.kept), len(asked.written), len(asked.edits))] == [(8, 1, 8, 7)]
    assert (asked.kept[0].prompt, asked.kept[0].options[0]) == ("Milan is in", " Italy")
    assert all(one.options[1] == f" {FACTS[one.case].object}" != one.options[0] for one in asked.followed)
    assert {row for row, _ in asked.edits} == set(range(7))  # Milan, the last one, is a neighbour
    answers = ModelAnswers(model, tokenizer, config)
    with answers.edited(asked.edits):
        assert fingerprint(model) != before
    found = calibrate.measure_all([Setting(1.0), Setting(2.0, 1.0)], answers, asked, EvalConfig())
    pointer = model.pointer
    assert fingerprint(model) == before and (pointer.scale, pointer.asked, pointer.edited) == (2.0, 1.0, 0.0)
    for setting, together in found.items():
        assert [*calibrate.measure_all([setting], answers, asked, EvalConfig())] == [setting]
        alone = calibrate.measure_all([setting], answers, asked, EvalConfig())[setting]
        assert alone.shares == together.shares and alone.lacking == together.lacking


def test_a_new_object_has_another_number_of_tokens_if_one_has(tokenizer):
    objects = ("Peru", "Peru", "Chad", "the Republic of the Congo")
    facts = list(enumerate(Fact(f"{i}", f"{i}", "country", name) for i, name in enumerate(objects)))
    lone = len(facts), Fact("Bern", "Bern", "capital", "Bern")
    gold = gold_of([fact for _, fact in (*facts, lone)])
    found = list(new_objects([*facts, lone], gold, tokenizer, random.Random(0)))
    assert found[:3] == [objects[3]] * 3 and found[3] in objects[:3] and found[4] is None


def test_facts_that_the_bank_lacks_and_those_of_several_objects_are_left_out(tmp_path, capsys):
    facts = [*FACTS, Fact("Lima is in Chile.", "Lima", "country", "Chile", "other")]
    path = questions_file(tmp_path / "q.jsonl", [*FACTS, Fact("Bonn", uuid="lacking")])
    held, gold, *_ = held_facts(path, 99, gold_of(facts))
    assert [fact for _, fact in held] == [fact for fact in FACTS if fact.subject != "Lima"]
    assert list(gold.every()) == held and "7 of 9 facts are asked" in capsys.readouterr().out
    with pytest.raises(ValueError, match="the bank holds no fact"):
        held_facts(path, 99, gold_of([Fact("Bonn", "Bonn", "country", "Bonn", "another")]))
    with pytest.raises(ValueError, match="name no facts"):
        held_facts(path, 99, None)


def test_questions_that_name_no_fact_are_left_out_and_counted(tmp_path, capsys):
    path = questions_file(tmp_path / "q.jsonl", FACTS)
    first, *others = [json.loads(line) for line in Path(path).read_text().splitlines()]
    del first["uuid"]
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in (first, *others)))
    held, _, crowds, _ = held_facts(path, 99, gold_of(FACTS))
    assert [fact for _, fact in held] == FACTS[1:] and crowds == Counter(fact.subject for fact in FACTS)
    assert f"1 of {len(FACTS)} questions are left out: they name no fact by uuid" in capsys.readouterr().out


def test_the_facts_that_the_bank_lacks_are_those_of_the_whole_file_of_which_no_entry_states_an_object(tmp_path):
    bonn, lima = lacking_fact("Bonn", "Germany"), lacking_fact("Lima", "Chile")  # of Lima it states another object
    path = questions_file(tmp_path / "q.jsonl", [*FACTS, bonn, bonn, lima])
    assert held_facts(path, 2, gold_of(FACTS)).lacking == [bonn]
    row = {"uuid": "u", "subject": "Bonn", "choices": ["Germany", "Peru"], "answer": "A"}
    assert lacking_facts([row, row | {"predicate": "country"}], FACTS) == [replace(bonn, uuid="u")]


def test_facts_that_the_bank_lacks_are_asked_like_neighbours_a_few_times_each(tokenizer):
    same, others = ([lacking_fact(f"{land} {i}", land) for i in range(3)] for land in ("France", "Austria"))
    elsewhere = replace(lacking_fact("Bonn", "Bonn"), predicate="capital")
    edited = [(0, FACTS[0], "Peru")]
    asked = lacking_questions(edited, [*others, *same, elsewhere], None, random.Random(0))
    assert [one.options for one in asked] == [(" France", " Peru")] * 3 + [(" Austria", " Peru")] * 3
    assert not {"Bonn", "capital"} & {word for one in asked for word in one.prompt.split()}
    # Each fact is asked with another wrong object each time, and never with its own as the wrong one.
    edited = [(i, FACTS[0], new) for i, new in enumerate(("Peru", "Peru", "Austria", "Chad", "Italy", "Oman"))]
    asked = lacking_questions(edited, [*same, *others], None, random.Random(0))
    assert len(asked) == 6 * TIMES and all(one.options[0] != one.options[1] for one in asked)
    assert Counter(one.case for one in asked) == {0: 6, 2: 3, 3: 6, 4: 3}


def test_edits_share_the_questions_about_facts_that_the_bank_lacks():
    lacking = [lacking_fact(f"{i}", "France") for i in range(3 * LACKING)]
    rome = replace(FACTS[3], predicate="capital")  # nothing is lacking for it
    edited = [(0, rome, "Peru"), (1, FACTS[0], "Peru"), (2, FACTS[1], "Chad")]
    asked = lacking_questions(edited, lacking, None, random.Random(0))
    assert Counter(one.case for one in asked) == {1: LACKING / 2, 2: LACKING / 2}
    assert len({one.prompt for one in asked}) == LACKING  # another fact each


def test_the_neighbours_of_subjects_with_the_most_entries_are_asked():
    edited = Fact("Oslo is in Norway.", "Oslo", "country", "Norway", "oslo")
    others = [Fact(f"T{i} is in Norway.", f"T{i}", "country", "Norway", f"t{i}") for i in range(20)]
    config = EvalConfig(gold=gold_of([edited, *others]))
    crowds = Counter({f"T{i}": i for i in range(20)})
    (own,) = neighbours_of([asdict(edited)], config, random.Random(0), crowds).values()
    assert [fact.subject for _, fact in own] == ["T19", "T18", "T17", "T16", "T15"]
    both = [asdict(edited), asdict(replace(edited, uuid="again"))]
    first, second = neighbours_of(both, config, random.Random(0), crowds).values()
    assert first == own and [fact.subject for _, fact in second] == ["T14", "T13", "T12", "T11", "T10"]
    (drawn,) = neighbours_of([asdict(edited)], config, random.Random(0)).values()
    assert len(drawn) == 5 and {fact.subject for _, fact in drawn} != {fact.subject for _, fact in own}


def test_facts_without_a_neighbour_are_refused(tokenizer):
    config = EvalConfig(gold=gold_of(FACTS))
    with pytest.raises(ValueError, match="has a neighbour"):
        questions_of([(5, FACTS[5])], tokenizer, config, CROWDS)


def test_a_knowledge_file_that_was_moved_is_asked_for(run, monkeypatch):
    monkeypatch.setattr(calibrate, "find_gold", find_gold)
    for given, missing in ((), "knowledge.json"), (("--database_init_path", "moved.json"), "moved.json"):
        with pytest.raises(FileNotFoundError, match=f"{missing}: give another --database_init_path"):
            run(*given)


def test_a_run_without_a_pointer_and_a_scale_of_nothing_are_refused(run, model, monkeypatch):
    with pytest.raises(ValueError, match="--scales must be above 0"):
        run("--scales", "0")
    for name in ("--text_cost", "--lacking_cost"):
        with pytest.raises(ValueError, match=f"{name} must be at least 0, got -1"):
            run(name, "-1")
    monkeypatch.setattr(
        calibrate, "load_run", lambda *_: type("Plain", (), {"settings": type("S", (), {"pointer": False})})()
    )
    with pytest.raises(ValueError, match="has no pointer"):
        run()


def test_facts_are_asked_in_the_wordings_that_training_kept_back(run, tokenizer, tmp_path, capsys):
    wordings = {"country": ["{subject} lies in {object}.", "Of {subject} the state is {object}."]}
    (back,) = kept_back(wordings, 0.5)[1]["country"]
    config = EvalConfig(gold=gold_of(FACTS))
    asked = questions_of(list(enumerate(FACTS[:4])), tokenizer, config, CROWDS, {"country": [back]})
    starts = [back.partition(" {object}")[0].format(subject=fact.subject) for fact in FACTS]
    prompts = [prompt for prompt, _ in asked.written]
    assert prompts == starts[:4] == [one.prompt for one in asked.followed] and asked.kept[0].prompt in starts
    path = tmp_path / "wordings.json"
    path.write_text(json.dumps(wordings))
    run("--scales", "1", "--wordings", str(path), "--kept_back", "0.5")
    assert "4 of them have a predicate with wordings that were kept back" in capsys.readouterr().out
    for flags, told in (
        (["--kept_back", "0.5"], "give both"), (["--wordings", str(path)], "give both"),
        (["--wordings", str(path), "--kept_back", "0"], "no wordings of the facts' predicates"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            run("--scales", "1", *flags)


def test_a_run_with_edits_is_refused(run, monkeypatch):
    monkeypatch.setattr(calibrate.Journal, "edited_rows", lambda self: {3: None})
    with pytest.raises(ValueError, match="1 edited entries: undo them first"):
        run()


def test_questions_that_test_the_run_are_refused(run, tmp_path):
    with pytest.raises(ValueError, match="tests this run"):
        run("--object_path", str(tmp_path / "dev.jsonl"))


@pytest.mark.parametrize(
    "flag, name, values",
    [
        ("pointer_scale", "scale", (1.0, 3.0)),
        ("pointer_edited", "edited", (1.0, 3.0)),
        ("pointer_edited_said", "edited_said", (False, True)),
        ("pointer_edited_unsaid", "edited_unsaid", (0.0, 3.0)),
        ("pointer_asked", "asked", (1.0, 3.0)),
    ],
)
def test_a_model_reads_its_scale_and_results_of_another_one_are_set_aside(tmp_path, flag, name, values):
    for accuracy, value in zip((0.25, 0.75), values, strict=True):
        flags = BM25 | {"pointer": True, "unsaid_tokens": True, "pointer_edited": 2.0, "pointer_state_scale": True}
        flags |= {flag: value}
        assert getattr(tiny_model(**flags).pointer, name) == value
        (tmp_path / "config.json").write_text(json.dumps({flag: value}))
        about = about_evaluation(tmp_path, torch.device("cpu"), None)
        ResultFile(tmp_path, about).add("object", "", {"accuracy": accuracy, "n": 1})
    assert json.loads((tmp_path / "eval.json").read_text())["object"]["accuracy"] == 0.75
    assert json.loads((tmp_path / "eval_stepNone.json").read_text())["object"]["accuracy"] == 0.25
