"""From published data sets to the files of this project: one function for each, by its name in `SOURCES`.

A function takes the downloaded files, and yields (which of the files that the source makes, a row of it).
"""

import csv
import hashlib
import json
import random
import re
import shutil
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from common.files import atomic, open_text, parse_json, read_lines

from .convert import read_trex, write_knowledge
from .formats import read_records
from .knowledge import read_values, triple_uuid
from .making import draw, object_question
from .public_edits import Published, case_row, published, texts_of
from .public_language import arc_easy, archive_lines, articles, blimp, hellaswag, lambada, piqa, sciq, wikitext2

Rows = Iterator[tuple[int, dict]]
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[A-Z0-9\"'(])")
SHORTEST, LONGEST = 40, 160  # characters of a sentence for the bank
# Names of Wikidata's properties, for questions that name the relation. Others keep their number.
PROPERTIES = {
    "P17": "country", "P19": "place of birth", "P20": "place of death", "P27": "country of citizenship",
    "P30": "continent", "P31": "instance of", "P36": "capital", "P37": "official language", "P39": "position held",
    "P47": "shares border with", "P101": "field of work", "P103": "native language", "P106": "occupation",
    "P108": "employer", "P127": "owner", "P131": "located in", "P136": "genre", "P138": "named after",
    "P140": "religion", "P159": "headquarters", "P176": "manufacturer", "P178": "developer", "P190": "twin city",
    "P264": "record label", "P276": "location", "P279": "subclass of", "P361": "part of",
    "P364": "original language", "P407": "language", "P413": "position played", "P449": "original network",
    "P463": "member of", "P495": "country of origin", "P527": "has part", "P530": "diplomatic relation",
    "P641": "sport", "P740": "place of formation", "P937": "place of work", "P1001": "jurisdiction",
    "P1303": "instrument", "P1376": "capital of", "P1412": "language spoken",
}  # fmt: skip


def make(convert: str, paths: list[Path], names: tuple[str, ...], out: Path, downloads: Path) -> dict[str, int]:
    """Write what a source becomes into the folder `out`; returns the rows of each file. All files or none.

    Raises:
        ValueError: a downloaded file has another form than expected; file and line are named.
    """
    out.mkdir(parents=True, exist_ok=True)
    if convert == "trex":
        return {names[0]: write_knowledge(out / names[0], trex(paths[0], downloads / "unpacked"))}
    counts = dict.fromkeys(names, 0)
    folder = out / f".{convert}"
    with atomic(folder) as temporary:
        temporary.mkdir()
        files = [open(temporary / name, "w", encoding="utf-8") for name in names]
        try:
            for index, row in CONVERTERS[convert](paths):
                files[index].write(json.dumps(row, ensure_ascii=False) + "\n")
                counts[names[index]] += 1
        except (LookupError, TypeError, AttributeError, zipfile.BadZipFile, csv.Error) as problem:
            raise ValueError(f"{paths[0]} has another form than this program knows ({problem!r})") from None
        finally:
            for file in files:
                file.close()
    for name in names:
        (folder / name).replace(out / name)
    folder.rmdir()
    return counts


def part_of(text: str, parts: int = 100) -> int:
    """A number from 0 to `parts` - 1, the same for the same text on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") % parts


def trex(path: Path, unpacked: Path):
    """The facts of the T-REx archive, unpacked once."""
    if not unpacked.exists():
        with atomic(unpacked) as temporary, zipfile.ZipFile(path) as archive:
            needed, free = sum(info.file_size for info in archive.infolist()), shutil.disk_usage(path.parent).free
            if needed > free:
                raise OSError(f"{path} unpacks to {needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free: make room")
            archive.extractall(temporary)
    return read_trex(unpacked)


def stories(paths: list[Path]) -> Rows:
    """Texts that a line with <|endoftext|> separates."""
    for index, path in enumerate(paths):
        lines: list[str] = []
        for _, line in read_lines(path):
            if line.strip() == "<|endoftext|>":
                yield from ((index, {"text": text}) for text in filter(None, ["".join(lines).strip()]))
                lines = []
            else:
                lines.append(line)
        yield from ((index, {"text": text}) for text in filter(None, ["".join(lines).strip()]))


def wikitext(paths: list[Path]) -> Rows:
    """Articles of the training files, and of the last file, which validates."""
    for index, part in ((0, paths[:-1]), (1, paths[-1:])):
        yield from ((index, {"text": text}) for text in articles(part))


def wikipedia(paths: list[Path]) -> Rows:
    """By the hash of its title an article is learnt (66 %), validates (1 %), or gives the bank its sentences (33 %)."""
    seen: set[int] = set()
    for _, row in read_records(paths[0], ["title", "text"]):
        title, text = row["title"], row.get("text", "").strip()
        part = part_of(title)
        if part < 67:
            yield from ((part >= 66, {"text": text, "source": title}) for _ in range(bool(text)))
            continue
        for sentence in (s.strip() for line in text.split("\n") for s in SENTENCE_END.split(line)):
            if SHORTEST <= len(sentence) <= LONGEST and sentence[-1] in ".!?" and hash(sentence) not in seen:
                seen.add(hash(sentence))
                yield 2, {"sentence": sentence, "subject": title, "source": "Wikipedia"}


def fact(sentence: str, subject: str, predicate: str, object: str, source: str) -> dict:
    uuid = triple_uuid(subject, predicate, object)
    return {
        "sentence": sentence, "subject": subject, "predicate": predicate, "object": object, "uuid": uuid,
        "source": source,
    }  # fmt: skip


def counterfact(paths: list[Path]) -> Rows:
    """Each case: the sentence with the true object for the bank, and the edit to the false one."""
    yield from edited([published(row) for _, row in read_values(paths[0])], "CounterFact", 1)


def edited(cases: list[Published], source: str, index: int) -> Rows:
    """The bank's entry of each case, and its edit as a row of the file `index`; one case for each fact.

    A neighbour whose prompt names the subject of a case, of the same relation and object, is that case's fact.
    """
    made, by_object = {}, defaultdict(list)
    for case in cases:
        if case.new.strip() not in ("", case.object.strip()):
            predicate = PROPERTIES.get(case.relation, case.relation)
            entry = fact(f"{case.prompt} {case.object}.", case.subject, predicate, case.object, source)
            if entry["uuid"] not in made:
                made[entry["uuid"]] = case, entry
                by_object[case.relation, case.object].append((case.subject, entry["uuid"]))
    for case, entry in made.values():
        neighbours = []
        for prompt, object in case.neighbours:
            same = [] if object not in ("", case.object) else by_object[case.relation, case.object]
            named = [(len(subject), uuid) for subject, uuid in same if subject in prompt and subject != case.subject]
            uuid = max(named)[1] if named else None
            neighbours.append({"prompt": prompt, "object": object or case.object, "uuid": uuid, "edited": bool(uuid)})
        yield 0, entry
        yield index, case_row(case, entry, neighbours)


def asked(questions: list[tuple[dict, str, list[str]]], seed: int = 0) -> Rows:
    """The bank's entry of each (entry, question, right answers), and the question with five objects of its predicate.

    A wrong choice is no right answer to any question about this subject and predicate.
    """
    pools, right, rng = defaultdict(list), defaultdict(set), random.Random(seed)
    for entry, _, answers in questions:
        pools[entry["predicate"]].append(entry["object"])
        right[entry["subject"], entry["predicate"]].update([entry["object"], *answers])
    done = set()
    for entry, question, _ in questions:
        if entry["uuid"] not in done:
            done.add(entry["uuid"])
            yield 0, entry
        wrong = draw(pools[entry["predicate"]], 4, right[entry["subject"], entry["predicate"]], rng)
        if wrong:
            yield 1, object_question(entry, question, wrong, rng)


def zsre(paths: list[Path]) -> Rows:
    """The bank states a question with its answer, and is asked in the question's other wording; then the edits."""
    pairs, cases, entries = [], [], []
    for _, row in read_values(paths[0]):
        case = published(row)
        entry = fact(f"{case.prompt} {case.object}.", case.subject, "answer", case.object, "zsRE")
        answers = row["answers"] if "answers" in row else texts_of(row["ground_truth"])
        pairs += [(entry, f"Question: {worded}\nAnswer: ___", answers) for worded in case.worded[:1]]
        cases.append(case._replace(relation="answer"))
        near = [{"question": question, "answer": answer} for question, answer in case.neighbours]
        about = {"questions": [case.prompt, *case.worded], "aliases": answers, "popularity": None, "locality": near}
        entries.append(entry | about)
    yield from asked(pairs)
    yield from ((index, row) for index, row in edited(cases, "zsRE", 2) if index == 2)
    yield from inserted("zsre", 3, entries)


def popqa(paths: list[Path]) -> Rows:
    """The bank states "The PREDICATE of SUBJECT is OBJECT.", and is asked in PopQA's own words; then to insert."""
    pairs, entries = [], []
    with open_text(paths[0]) as file:
        for row in csv.DictReader(file, delimiter="\t"):
            entry = fact(
                f"The {row['prop']} of {row['subj']} is {row['obj']}.", row["subj"], row["prop"], row["obj"], "PopQA"
            )
            answers = parse_json(row["possible_answers"], f"{paths[0]}, {row['question']!r:.80}")
            pairs.append((entry, f"Question: {row['question']}\nAnswer: ___", answers))
            popularity = int(row["s_pop"]) if row.get("s_pop") else None
            entries.append(entry | {"questions": [row["question"]], "aliases": answers, "popularity": popularity})
    yield from asked(pairs)
    yield from inserted("popqa", 2, entries)


def inserted(name: str, index: int, entries: list[dict], seed: int = 0) -> Rows:
    """Facts to insert, as rows of the file `index`; the choices are objects of the predicate, as often as they occur.

    No wrong choice is right for any question about the subject and predicate. A question without four has no choices.
    """
    pools, right, rng = defaultdict(list), defaultdict(set), random.Random(seed)
    for entry in entries:
        pools[entry["predicate"]].append(entry["object"])
        right[entry["subject"], entry["predicate"]].update([entry["object"], *entry["aliases"]])
    for entry in {entry["uuid"]: entry for entry in entries}.values():
        wrong = draw(pools[entry["predicate"]], 4, right[entry["subject"], entry["predicate"]], rng)
        choices = object_question(entry, "", wrong, rng) if len(wrong) == 4 else {"choices": None, "answer": None}
        yield index, {"set": name} | entry | {field: choices[field] for field in ("choices", "answer")}


def pararel(paths: list[Path], seed: int = 0) -> Rows:
    """The bank states a fact in its relation's first wording, and is asked in all that end in the object.

    All questions about a fact have the same choices in the same order.
    """
    patterns, pools, right, rng = defaultdict(list), defaultdict(list), defaultdict(set), random.Random(seed)
    for relation, row in archive_lines(paths[0], "data/pattern_data/graphs_json"):
        pattern = " ".join(row["pattern"].replace(" .", ".").split()).rstrip(".")
        if pattern.endswith("[Y]") and pattern not in patterns[relation]:
            patterns[relation].append(pattern)
    facts = {}
    for relation, row in archive_lines(paths[0], "data/trex_lms_vocab"):
        subject, object, wordings = row["sub_label"], row["obj_label"], patterns.get(relation)
        if wordings:
            sentence = wordings[0].replace("[X]", subject).replace("[Y]", object) + "."
            entry = fact(sentence, subject, PROPERTIES.get(relation, relation), object, "ParaRel")
            facts.setdefault(entry["uuid"], (relation, entry))
            pools[relation].append(object)
            right[subject].add(object)
    if not facts:
        raise LookupError("data/trex_lms_vocab and data/pattern_data/graphs_json have no relation in common")
    for relation, entry in facts.values():
        yield 0, entry
        if wrong := draw(pools[relation], 4, right[entry["subject"]], rng):
            asked = {name: entry[name] for name in ("uuid", "predicate", "subject", "object")} | {"relation": relation}
            asked = object_question(asked, "", wrong, rng)
            for number, pattern in enumerate(patterns[relation]):
                question = pattern.replace("[X]", entry["subject"]).replace("[Y]", "___")
                about = {"pattern_id": f"{relation}-{number}", "pattern": pattern, "question": question}
                yield 1, asked | about | {"own_wording": number == 0}


CONVERTERS: dict[str, Callable[[list[Path]], Rows]] = {
    convert.__name__: convert
    for convert in (
        stories, wikitext, wikipedia, counterfact, zsre, popqa, pararel, blimp, lambada, arc_easy, sciq, hellaswag,
        piqa, wikitext2,
    )
}  # fmt: skip
