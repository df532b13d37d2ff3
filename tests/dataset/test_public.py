"""Each published form, in a few rows, becomes files that the commands of this project read."""

import json
import zipfile

import pyarrow
import pytest
from pyarrow import parquet

from dataset.convert import convert_set
from dataset.edit_cases import read_cases
from dataset.knowledge import read_knowledge
from dataset.pretrain import read_documents
from dataset.public import CONVERTERS, make, part_of
from dataset.public_questions import read_inserts
from dataset.questions import FIELDS, read_questions
from dataset.sources import SOURCES


def lines(*values):
    return "".join(json.dumps(value) + "\n" for value in values)


def archive(path, files):
    with zipfile.ZipFile(path, "w") as out:
        for name, content in files.items():
            out.writestr(f"repo-main/{name}", content)
    return path


@pytest.fixture
def made(tmp_path):
    """made(name, contents): the rows of each file that a source of these downloaded files becomes."""

    def make_from(name, *paths):
        source = SOURCES[name]
        counts = make(source.convert, list(paths), source.makes, tmp_path / "out", tmp_path)
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(source.makes)
        texts = [(tmp_path / "out" / file).read_text() for file in source.makes]
        rows = [
            json.loads(text) if text.startswith("[") else list(map(json.loads, text.splitlines())) for text in texts
        ]
        assert list(counts.values()) == list(map(len, rows))
        return rows

    return make_from


def put(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def table(tmp_path, name, rows):
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / name)
    return tmp_path / name


def asks(path, kind):
    return read_questions(path, FIELDS[kind], None, kind)


def test_every_source_has_its_converter_and_becomes_what_a_flag_reads():
    assert {source.convert for source in SOURCES.values()} - {None, "trex"} == set(CONVERTERS)
    read = {
        "--data_path",
        "--val_path",
        "--database_init_path",
        "--object_path",
        "--counterfact_path",
        "--pararel_path",
        "--insert_path",
        "--language_sets",
    }
    read |= {"--zsre_path"}
    for source in SOURCES.values():
        assert set(source.flag.split(", ")) <= read and len(source.makes) <= len(source.flag.split(", "))


def test_stories_and_wikitext(made, tmp_path):
    text = "One.\nTwo.\n<|endoftext|>\n\n<|endoftext|>\nThree.\n"
    files = [put(tmp_path, name, text) for name in ("a", "b")]
    assert made("tinystories", *files) == [[{"text": "One.\nTwo."}, {"text": "Three."}]] * 2
    rows = [" = Oslo = \n", " Oslo is . \n", " = = Early = = \n", " Old . \n", "", " = Rome = \n", " Big . \n"]
    files = [table(tmp_path, n, [{"text": row} for row in rows]) for n in ("a.parquet", "b.parquet", "c.parquet")]
    train, val = made_again(made, tmp_path, "wikitext", *files)
    assert [row["text"] for row in val] == ["= Oslo =\nOslo is .\n= = Early = =\nOld .", "= Rome =\nBig ."]
    assert len(train) == 4


def made_again(made, tmp_path, *arguments):
    for path in (tmp_path / "out").glob("*"):
        path.unlink()
    return made(*arguments)


def test_wikipedia_learns_some_articles_and_keeps_sentences_of_others(made, tmp_path):
    titles = [f"Title {n}" for n in range(60)]
    sentence = "{0} is a town in the north of a country, by a river. Short one. {0} has a mayor who lives on a hill."
    rows = [{"id": "1", "title": title, "text": sentence.format(title)} for title in titles]
    text, val, bank = made("wikipedia", table(tmp_path, "w.parquet", rows))
    learnt, kept = {row["source"] for row in text + val}, {row["subject"] for row in bank}
    assert learnt == {title for title in titles if part_of(title) < 67} and kept == set(titles) - learnt
    assert len(bank) == 2 * len(kept) and all(40 <= len(row["sentence"]) <= 160 for row in bank)
    assert next(read_knowledge(tmp_path / "out/wikipedia_knowledge.jsonl")).source == "Wikipedia"
    assert next(read_documents(tmp_path / "out/wikipedia.jsonl")).text.startswith("Title")


def test_trex_becomes_a_knowledge_file(made, tmp_path):
    triple = {"subject": {"surfaceform": "Oslo"}, "object": {"surfaceform": "Norway"}, "sentence_id": 0,
              "predicate": {"uri": "http://www.wikidata.org/prop/direct/P17"}}  # fmt: skip
    document = {"text": "Oslo lies in Norway.", "sentences_boundaries": [[0, 20]], "triples": [triple]}
    (facts,) = made("trex", archive(tmp_path / "t.zip", {"re-nlg_0-10.json": json.dumps([document])}))
    assert facts[0]["target"][0]["sentence"] == "Oslo lies in Norway."


def test_counterfact_gives_entries_and_edits(made, tmp_path):
    def rewrite(n, subject, new="Thai"):
        edit = {"prompt": "{} speaks", "relation_id": "P103", "subject": subject, "target_new": {"str": new},
                "target_true": {"str": "Dutch"}}  # fmt: skip
        return {"case_id": n, "requested_rewrite": edit, "paraphrase_prompts": [f"Yes. {subject} says"],
                "neighborhood_prompts": ["Ben speaks", "Cid speaks"]}  # fmt: skip

    cases = [rewrite(0, "Ana"), rewrite(1, "Ana"), rewrite(2, "Ben"), rewrite(3, "Dan", new="Dutch")]
    (entry, other), (edit, _) = made("counterfact", put(tmp_path, "c.json", json.dumps(cases)))
    assert entry["sentence"] == "Ana speaks Dutch." and entry["predicate"] == "native language"
    assert (edit["question"], edit["new_sentence"], edit["uuid"]) == (
        "Ana speaks ___",
        "Ana speaks Thai.",
        entry["uuid"],
    )
    assert asks(tmp_path / "out/counterfact_edit.jsonl", "edit")
    case, ben = read_cases(tmp_path / "out/counterfact_edit.jsonl", None, "counterfact_path")
    assert case.paraphrases == {"paraphrase": ["Yes. Ana says"]} and case.bank_sentence == entry["sentence"]
    assert [(one.prompt, one.object, one.uuid, one.edited) for one in case.neighbours] == [
        ("Ben speaks", "Dutch", other["uuid"], True), ("Cid speaks", "Dutch", "", False),
    ]  # fmt: skip
    assert [one.edited for one in ben.neighbours] == [False, False]  # no fact is its own neighbour


def test_edits_of_zsre_in_each_published_form(made, tmp_path):
    mend = {"subject": "X", "src": "Who made X?", "rephrase": "X is by whom?", "answers": ["Ann"], "alt": "Bob",
            "loc": "nq question: who sang y", "loc_ans": "Cid"}  # fmt: skip
    easy = {"subject": "X", "prompt": "Who made X?", "rephrase_prompt": "X is by whom?", "target_new": "Bob",
            "ground_truth": ["Ann"], "locality_prompt": "who sang y", "locality_ground_truth": "Cid"}  # fmt: skip
    newer = {name: value for name, value in easy.items() if not name.startswith("locality")} | {
        "locality": {"Relation_Specificity": [{"prompt": "who sang y", "ground_truth": [["Cid"]]}]}
    }
    expected = None
    for form in (mend, easy, newer):
        bank, _, edits, _ = made_again(made, tmp_path, "zsre", put(tmp_path, "z.json", json.dumps([form])))
        (case,) = read_cases(tmp_path / "out/zsre_edit.jsonl", None, "zsre_path")
        assert (case.prompt, case.new_sentence) == ("Who made X?", "Who made X? Bob.") and case.uuid == bank[0]["uuid"]
        assert case.paraphrases == {"paraphrase": ["X is by whom?"]}
        assert [(one.prompt, one.object) for one in case.neighbours] == [("who sang y", "Cid")]
        assert expected in (None, edits)
        expected = edits


def test_questions_of_zsre_popqa_and_pararel(made, tmp_path):
    zsre = [{"subject": s, "src": f"Who made {s}?", "rephrase": f"{s} is by whom?", "answers": [a]}
            | {"loc": "nq question: who", "loc_ans": "me"} for s, a in (("X", "Ann"), ("Y", "Bob"))]  # fmt: skip
    bank, asked, _, _ = made("zsre", put(tmp_path, "z.json", json.dumps(zsre)))
    assert bank[0]["sentence"] == "Who made X? Ann." and asked[0]["question"] == "Question: X is by whom?\nAnswer: ___"
    assert asks(tmp_path / "out/zsre_object.jsonl", "object")[0]["object"] == "Ann"

    (first, _) = read_inserts(tmp_path / "out/zsre_insert.jsonl", None)
    assert (first["questions"], first["sentence"], first["choices"]) == (
        ["Who made X?", "X is by whom?"],
        "Who made X? Ann.",
        None,
    )
    assert first["locality"] == [{"question": "who", "answer": "me"}]

    rows = ["id\tsubj\tprop\tobj\ts_pop\tquestion\tpossible_answers"]
    rows += [f'{n}\tS{n}\tauthor\tO{n}\t{n}\tWho wrote S{n}?\t"[""O{n}"", ""P{n}""]"' for n in range(7)]
    bank, asked, _ = made_again(made, tmp_path, "popqa", put(tmp_path, "p.tsv", "\n".join(rows) + "\n"))
    inserts = read_inserts(tmp_path / "out/popqa_insert.jsonl", None)
    assert [(row["popularity"], row["aliases"]) for row in inserts] == [(n, [f"O{n}", f"P{n}"]) for n in range(7)]
    assert {row["choices"]["ABCDE".index(row["answer"])] == row["object"] for row in inserts} == {True}
    assert (inserts[0]["sentence"], inserts[0]["questions"]) == ("The author of S0 is O0.", ["Who wrote S0?"])
    assert len(bank) == len(asked) == 7 and bank[0]["sentence"] == "The author of S0 is O0."
    assert all(len(set(row["choices"])) == 5 for row in asked)

    patterns = [{"pattern": p} for p in ("[X] is in [Y] .", "[Y] holds [X] .", "[X], which lies in [Y] .")]
    facts = [{"sub_label": s, "obj_label": o, "uuid": "u"} for s, o in (("Oslo", "Norway"), ("Rome", "Italy"))]
    files = {
        "data/pattern_data/graphs_json/P17.jsonl": lines(*patterns),
        "data/trex_lms_vocab/P17.jsonl": lines(*facts),
    }
    bank, asked = made_again(made, tmp_path, "pararel", archive(tmp_path / "r.zip", files))
    assert [row["sentence"] for row in bank] == ["Oslo is in Norway.", "Rome is in Italy."]
    wordings = ["{} is in ___", "{}, which lies in ___"]
    assert [row["question"] for row in asked] == [w.format(s) for s in ("Oslo", "Rome") for w in wordings]
    assert [row["own_wording"] for row in asked] == [True, False] * 2
    assert asked[0]["choices"] == asked[1]["choices"] and asked[0]["uuid"] == bank[0]["uuid"]
    assert {row["choices"]["ABCDE".index(row["answer"])] for row in asked[2:]} == {"Italy"}


def test_a_published_file_is_converted_where_it_lies_and_replaces_nothing(tmp_path):
    rewrite = {"prompt": "{} speaks", "relation_id": "P103", "subject": "Ana", "target_new": {"str": "Thai"},
               "target_true": {"str": "Dutch"}}  # fmt: skip
    path = put(tmp_path, "c.json", json.dumps([{"case_id": 0, "requested_rewrite": rewrite}]))
    told = convert_set("counterfact", path, tmp_path / "out")
    assert "out/counterfact_edit.jsonl (1 rows)" in told and told.endswith(" --counterfact_path")
    assert path.exists() and asks(tmp_path / "out/counterfact_edit.jsonl", "edit")
    with pytest.raises(ValueError, match="would replace it"):
        convert_set("counterfact", path, tmp_path / "out")


def test_no_other_right_answer_is_a_wrong_choice(made, tmp_path):
    rows = ["id\tsubj\tprop\tobj\tquestion\tpossible_answers"]
    for subject, object, also in (("Ana", "French", ""), ("Ana", "German", ', ""Deutsch""'), ("Ben", "Deutsch", "")):
        rows.append(f'1\t{subject}\tlanguage\t{object}\tWhat does {subject} speak?\t"[""{object}""{also}]"')
    _, asked, _ = made("popqa", put(tmp_path, "p.tsv", "\n".join(rows) + "\n"))
    assert [row["subject"] for row in asked] == ["Ben"]  # every object is right for Ana
    zsre = [{"subject": s, "src": f"Who made {s}?", "rephrase": f"{s} is by whom?", "answers": answers}
            for s, answers in (("X", ["Ann", "Bob"]), ("Y", ["Bob"]), ("Z", ["Cid"]))]  # fmt: skip
    _, asked, *_ = made_again(made, tmp_path, "zsre", put(tmp_path, "z.json", json.dumps(zsre)))
    assert sorted(asked[0]["choices"]) == ["Ann", "Cid"]


def test_another_form_is_refused_and_leaves_nothing(made, tmp_path):
    for name, path in (
        ("counterfact", put(tmp_path, "c.json", '[{"x": 1}]')),
        ("pararel", put(tmp_path, "b.zip", "x")),
    ):
        with pytest.raises(ValueError, match="has another form than this program knows"):
            made(name, path)
        assert list((tmp_path / "out").iterdir()) == []
