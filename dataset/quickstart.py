"""The quick-start data: text, knowledge file and questions, written from the facts that the project carries.

    python -m dataset.quickstart --out dataset/quickstart

Facts are split by a hash of subject and predicate. `seen` facts stand in the pretraining text and in the bank;
`bank_only` facts in the bank alone, so that whoever answers a question about one has read it there.
"""

import argparse
import hashlib
import json
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from .memory_init import triple_uuid

FACTS = Path(__file__).with_name("facts.tsv")
SEEN_PERCENT = 60
SENTENCES_A_DOCUMENT = 5
WORDINGS_A_FACT = 2  # how many of its kind's wordings the text gives a seen fact
QUESTIONS_A_PART = 400
CHOICES = 5

# For each source and predicate: its name as a relation, then wordings. The first ends with the object: the bank states a
# fact so, and a question asks so. The text uses all of them.
TEMPLATES = {
    ("universities_hipo", "country"): (
        "country of the university",
        "{subject} is a university in {object}.",
        "In {object} there is a university called {subject}.",
        "Students in {object} can enrol at {subject}.",
    ),
    ("geonames_places", "country"): (
        "country of the place",
        "{subject} is a place in {object}.",
        "On a map of {object} one finds {subject}.",
        "The town of {subject} belongs to {object}.",
    ),
    ("geonames_places", "located in"): (
        "region of the place",
        "{subject} lies in the region of {object}.",
        "The region of {object} includes {subject}.",
        "People from {subject} live in the region called {object}.",
    ),
    ("languages_glottolog", "language family"): (
        "language family",
        "{subject} belongs to the language family {object}.",
        "Among the {object} languages is {subject}.",
        "Linguists count {subject} as one of the {object} languages.",
    ),
    ("languages_glottolog", "spoken in"): (
        "country where it is spoken",
        "{subject} is spoken in {object}.",
        "In {object} some people speak {subject}.",
        "The speakers of {subject} live in {object}.",
    ),
    ("airports_airportsdata", "country"): (
        "country of the airport",
        "{subject} is an airport in {object}.",
        "Planes to {object} may land at {subject}.",
        "Among the airports of {object} is {subject}.",
    ),
    ("tate_artists", "birth year"): (
        "birth year",
        "The artist {subject} was born in {object}.",
        "In {object} the artist {subject} was born.",
        "Born in {object}, {subject} became an artist.",
    ),
    ("tate_artists", "death year"): (
        "death year",
        "The artist {subject} died in {object}.",
        "In {object} the artist {subject} died.",
        "The life of the artist {subject} ended in {object}.",
    ),
    ("tate_artists", "place of birth"): (
        "birthplace",
        "The artist {subject} comes from {object}.",
        "From {object} came the artist {subject}.",
        "The birthplace of {subject}, an artist, is {object}.",
    ),
}


@dataclass(frozen=True)
class TableFact:
    subject: str
    predicate: str
    object: str
    source: str

    @property
    def kind(self) -> tuple[str, str]:
        return self.source, self.predicate

    @property
    def relation(self) -> str:
        return TEMPLATES[self.kind][0]

    @property
    def part(self) -> str:
        digest = hashlib.blake2b(f"{self.subject}\x1f{self.predicate}".encode(), digest_size=4).digest()
        return "seen" if int.from_bytes(digest) % 100 < SEEN_PERCENT else "bank_only"

    def sentence(self, wording: int = 0, **replaced: str) -> str:
        values = {"subject": self.subject, "object": self.object} | replaced
        return TEMPLATES[self.kind][1 + wording].format(**values)

    def asked(self) -> dict[str, str]:
        """The fields that every question about this fact has."""
        uuid = triple_uuid(self.subject, self.predicate, self.object)
        return {
            "uuid": uuid, "part": self.part, "subject": self.subject, "predicate": self.relation, "object": self.object
        }  # fmt: skip


def read_facts() -> list[TableFact]:
    return [TableFact(*line.split("\t")) for line in FACTS.read_text(encoding="utf-8").splitlines()]


def documents(facts: list[TableFact], rng: random.Random) -> list[dict[str, str]]:
    """Texts of a few sentences; every fact appears in WORDINGS_A_FACT of its wordings, at different places."""
    sentences = [
        fact.sentence(wording)
        for fact in facts
        for wording in rng.sample(range(len(TEMPLATES[fact.kind]) - 1), WORDINGS_A_FACT)
    ]
    rng.shuffle(sentences)
    return [
        {"text": " ".join(sentences[i : i + SENTENCES_A_DOCUMENT])}
        for i in range(0, len(sentences), SENTENCES_A_DOCUMENT)
    ]


def with_choices(fact: TableFact, right: str, wrong: list[str], rng: random.Random) -> dict:
    """A question's choices in random order, and the letter of the right one."""
    choices = [right, *wrong]
    rng.shuffle(choices)
    return fact.asked() | {"choices": choices, "answer": "ABCDE"[choices.index(right)]}


def draw_other(objects: list[str], right: str, n: int, rng: random.Random) -> list[str]:
    """n different objects other than the right one, as often as they occur."""
    drawn: list[str] = []
    while len(drawn) < n:
        candidate = rng.choice(objects)
        if candidate != right and candidate not in drawn:
            drawn.append(candidate)
    return drawn


def questions(facts: list[TableFact], asked: list[TableFact], rng: random.Random) -> dict[str, list[dict]]:
    """The three question sets about the facts `asked`; wrong answers are objects and relations of other facts."""
    objects, relations = defaultdict(list), sorted({fact.relation for fact in facts})
    for fact in facts:
        objects[fact.kind].append(fact.object)
    sets: dict[str, list[dict]] = {"object": [], "relation": [], "verification": []}
    for fact in asked:
        wrong = draw_other(objects[fact.kind], fact.object, CHOICES - 1, rng)
        choice = with_choices(fact, fact.object, wrong, rng)
        sets["object"].append(choice | {"question": fact.sentence(object="___")})
        others = draw_other(relations, fact.relation, CHOICES - 1, rng)
        sets["relation"].append(with_choices(fact, fact.relation, others, rng))
        true = rng.random() < 0.5
        stated = fact.object if true else wrong[0]
        statement = {"statement": fact.sentence(object=stated), "answer": "yes" if true else "no"}
        sets["verification"].append(fact.asked() | {"object": stated} | statement)
    return sets


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_all(out: Path, seed: int = 0) -> dict[str, int]:
    """Write pretrain.jsonl, val.jsonl, knowledge.json, object.jsonl, relation.jsonl and verification.jsonl.

    val.jsonl is text about bank_only facts. Equal seeds give equal files.

    Returns:
        how many facts, documents and questions there are.
    """
    rng, facts = random.Random(seed), read_facts()
    parts = {part: [fact for fact in facts if fact.part == part] for part in ("seen", "bank_only")}
    asked = [fact for part in parts.values() for fact in rng.sample(part, QUESTIONS_A_PART)]
    train, val = documents(parts["seen"], rng), documents(parts["bank_only"], rng)[:QUESTIONS_A_PART]
    knowledge = [
        {"target": [fact.asked() | {"predicate": fact.predicate, "sentence": fact.sentence(), "source": fact.source}]}
        for fact in rng.sample(facts, len(facts))
    ]
    out.mkdir(parents=True, exist_ok=True)
    write_lines(out / "pretrain.jsonl", train)
    write_lines(out / "val.jsonl", val)
    (out / "knowledge.json").write_text(json.dumps(knowledge, ensure_ascii=False, indent=0), encoding="utf-8")
    for name, rows in questions(facts, asked, rng).items():
        write_lines(out / f"{name}.jsonl", rows)
    return {
        "facts": len(facts), **{part: len(own) for part, own in parts.items()},
        "documents": len(train), "val_documents": len(val), "questions": len(asked),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("dataset/quickstart"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    counts = write_all(args.out, args.seed)
    print(f"{args.out}: " + ", ".join(f"{n} {name}" for name, n in counts.items()))


if __name__ == "__main__":
    main()
