"""Other words for those of the bank's statements, learned from the wordings of training questions.

    python -m dataset.also_words --knowledge FILE --wordings dataset/wordings.json > also.txt
    bash run_file/experiment_1_6_14.sh --bm25_also_words $(< also.txt)

A line is "word=other,other". The word stands in the bank's statements of some predicates ("occupation"). The others
stand in a share of these predicates' wordings, and in far fewer wordings of all predicates ("profession", "job").
Words are alike if their first letters are, as in the search by words.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from common.cli import CommandParser, run_command
from model.memory.also_words import MOST
from model.memory.spelling import first_bytes

from .knowledge import Fact, read_knowledge
from .wordings import FUNCTION_WORDS, kept_back, read_wordings

SAMPLED = 3000  # statements of a predicate that are read
FIXED = 0.4  # share of a predicate's statements that have a word which is not of the fact
SHARE, LIFT = 0.08, 4  # of the predicates' wordings that have an other word; times its share of all wordings
ASKING = set("question answer subject object relation true".split())  # --bm25_stop_words


def stem(word: str) -> str:
    return first_bytes(word).decode(errors="ignore")


def words_of(text: str) -> set[str]:
    return {word.casefold() for word in re.findall(r"\w+", text)}


def most_frequent(count: Counter) -> str:
    return min(count, key=lambda word: (-count[word], word))


def statement_words(facts: Iterable[Fact], predicates: Iterable[str]) -> tuple[dict[str, set[str]], Counter]:
    """The words that most statements of a predicate have beside subject and object; how many facts have it."""
    seen, has = Counter(dict.fromkeys(predicates, 0)), defaultdict(Counter)
    for fact in facts:
        if fact.predicate in seen:
            seen[fact.predicate] += 1
            if seen[fact.predicate] <= SAMPLED:
                has[fact.predicate].update(words_of(fact.sentence) - words_of(fact.subject) - words_of(fact.object))
    fixed = {
        predicate: {word for word, n in count.items() if n >= FIXED * min(seen[predicate], SAMPLED)}
        for predicate, count in has.items()
    }
    return fixed, seen


def learned(facts: Iterable[Fact], wordings: dict[str, list[str]]) -> dict[str, list[str]]:
    """The others of each word of the statements, those that tell most first.

    Raises:
        ValueError: no fact has a predicate with wordings.
    """
    fixed, n_facts = statement_words(facts, wordings)
    if not fixed:
        raise ValueError(
            "--knowledge has no fact with a predicate of --wordings: name the file that these were made for"
        )
    forms, shares = defaultdict(Counter), {}
    for predicate in fixed:
        texts, share = wordings[predicate], Counter()
        for text in texts:
            words = words_of(re.sub(r"\{\w+\}", " ", text)) - FUNCTION_WORDS - ASKING
            share.update({stem(word): 1 / len(texts) for word in words})
            for word in words:
                forms[stem(word)][word] += 1
        shares[predicate] = share
    everywhere = Counter()
    for share in shares.values():
        everywhere.update({word: value / len(shares) for word, value in share.items()})
    others, by_stem = {}, defaultdict(Counter)
    for predicate, words in fixed.items():
        for word in words - FUNCTION_WORDS:
            by_stem[stem(word)][word] += n_facts[predicate]
    for first, count in sorted(by_stem.items()):
        own = [predicate for predicate, words in fixed.items() if words & count.keys()]
        total, mixed = sum(n_facts[predicate] for predicate in own), Counter()
        for predicate in own:
            mixed.update({other: value * n_facts[predicate] / total for other, value in shares[predicate].items()})
        telling = [
            (-value * math.log(value / everywhere[other]), other) for other, value in mixed.items()
            if value >= SHARE and value >= LIFT * everywhere[other] and other != first and len(other) > 1
        ]  # fmt: skip
        if telling and len(first) > 1:
            others[most_frequent(count)] = [most_frequent(forms[other]) for _, other in sorted(telling)[:MOST]]
    return others


def main() -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--knowledge", type=Path, required=True, help="knowledge file")
    parser.add_argument("--wordings", type=Path, required=True, help="wordings of each predicate, to train on")
    parser.add_argument("--kept_back", type=float, default=0.0, help="as for the questions of the training")
    args = parser.parse_args()
    wordings, _ = kept_back(read_wordings(args.wordings), args.kept_back)
    for word, others in learned(read_knowledge(args.knowledge), wordings).items():
        print(f"{word}={','.join(others)}")


if __name__ == "__main__":
    run_command(main)
