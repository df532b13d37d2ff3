"""CounterFact and zsRE: are many edited facts followed, in other words too, and do all other facts stay?

Each case rewrites the entry of one fact; a fact without an entry is added. Asked are the first `SINGLE` cases, each
edited alone, then the first 100, the first 2,000 and all cases, edited at once. Every edit is taken back.
With `asked_cases` all cases are edited, but so many are asked. These are drawn, and come first in the order.
Scores as in CounterFact (Meng et al. 2022, arXiv:2202.05262). Of two objects the one with the higher mean
log-probability of its tokens is the likelier one, as in the code of that paper. `by_sum` in a score is the share where
the whole object counts: the sum over its tokens.

ES: the new object is likelier than the old one, after the prompt of the case;
ES_one_entry: the same without cases whose old object further entries state too, where the file names such entries;
PS_made, PS_paraphrase, ...: the same after prompts in other words, of each kind apart;
NS, NS_no_entry: the object of a neighbouring fact stays likelier than the new one; facts with and without an entry;
free: does greedy generation begin with the new object?

Neighbours that are cases themselves are left out when many edits are made. Few subjects have many neighbours: those of
one subject (else of one prompt), and the prompts of one case, are one draw of the intervals.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean
from typing import NamedTuple

from dataset.edit_cases import MADE, PARAPHRASE, Case, read_cases
from dataset.tokenizer import encode_texts

from .config import EvalConfig, clustered_interval
from .deletion import deletion
from .edit_rules import LookUpAnswers, SearchAnswers
from .edits import Edits, fingerprint, written
from .facts import starts_with_word
from .generation import continuations
from .likelihood import ended, log_likelihoods
from .lookup import mean_share
from .places import asked_first, place_cases
from .search_alone import finder_of

TASK_VERSION = 2
SINGLE, NUMBERS = 200, (100, 2000)  # cases that are edited alone; numbers of edits at once, before all
FREE = ("ES", f"PS_{MADE}", f"PS_{PARAPHRASE}")  # measured by generation too
MORE = 4  # tokens to generate beyond those of the new object


class Asked(NamedTuple):
    """A prompt with two options, of which the first should be the likelier one.

    name: the score that it belongs to.  case: the index of its case.  edited: its fact is a case of its own.
    stated_elsewhere: further entries of the bank state the old object.
    about: the subject of a neighbour, else its prompt; empty for what asks about the case itself.
    """

    name: str
    case: int
    prompt: str
    options: tuple[str, str]
    edited: bool = False
    stated_elsewhere: bool = False
    about: str = ""


def asked_of(cases: list[Case], entries: set[str] | None) -> list[Asked]:
    """All prompts of the cases, in their order.

    Args:
        entries: the facts that have an entry, by uuid; None: those that the file gives a uuid.
    """
    asked = []
    for i, case in enumerate(cases):
        new, old = f" {case.new_object}", f" {case.object}"
        asked.append(Asked("ES", i, case.prompt.rstrip(" "), (new, old), stated_elsewhere=case.stated_elsewhere))
        for kind, prompts in case.paraphrases.items():
            asked += [Asked(f"PS_{kind}", i, prompt.rstrip(" "), (new, old)) for prompt in prompts]
        for one in case.neighbours:
            has_entry = one.uuid and (entries is None or one.uuid in entries)
            name, options = "NS" if has_entry else "NS_no_entry", (f" {one.object}", new)
            about = one.subject or one.prompt
            asked.append(Asked(name, i, one.prompt.rstrip(" "), options, one.edited, about=about))
    return asked


class ModelAnswers:
    """The answers of a model, whose bank can be edited for a while. `scored` and `written` count its prompts."""

    def __init__(self, model, tokenizer, config: EvalConfig):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, config.batch_size
        self.most_tokens = config.batch_size * model.settings.max_seq_len  # as many as a batch of the language task
        self.scored = self.written = 0

    def choose(self, asked: list[Asked]) -> list[float]:
        """1 where the first option is the likelier one by the mean over its tokens, else 0."""
        return self.compared(asked)[0]

    def compared(self, asked: list[Asked]) -> tuple[list[float], list[float]]:
        """1 where the first option is the likelier one, else 0: by the mean over its tokens, and by their sum.

        By the sum an option never is less likely than a longer one that it begins. There both end with the text.
        """
        plain = [[(one.prompt, option) for option in one.options] for one in asked]
        whole = [[(one.prompt, option) for option in ended(list(one.options), self.tokenizer)] for one in asked]
        pairs = list(dict.fromkeys(pair for two in (*plain, *whole) for pair in two))
        self.scored += len(pairs)
        found = log_likelihoods(self.model, self.tokenizer, pairs, self.batch_size, most_tokens=self.most_tokens)
        total = {pair: own for pair, (own, _) in zip(pairs, found, strict=True)}
        mean = {pair: own / max(n, 1) for pair, (own, n) in zip(pairs, found, strict=True)}
        return (
            [float(mean[first] > mean[second]) for first, second in plain],
            [float(total[first] > total[second]) for first, second in whole],
        )

    def write(self, asked: list[Asked]) -> list[float]:
        """1 where greedy generation begins with the first option, as whole words and in the same case; else 0."""
        objects = [one.options[0] for one in asked]
        lengths = [len(ids) + MORE for ids in encode_texts(self.tokenizer, objects)]
        needed: dict[str, int] = {}
        for one, length in zip(asked, lengths, strict=True):
            needed[one.prompt] = max(length, needed.get(one.prompt, 0))
        self.written += len(needed)
        found = continuations(
            self.model, self.tokenizer, list(needed), list(needed.values()), self.batch_size, self.most_tokens
        )
        text = dict(zip(needed, found, strict=True))
        return [float(starts_with_word(text[one.prompt].strip(), one.options[0].strip())) for one in asked]

    @contextmanager
    def edited(self, edits: Edits) -> Iterator[float]:
        """The bank with these edits, written at once; yields the seconds that they took."""
        with written(self.model, self.tokenizer, edits) as seconds:
            yield seconds


class Measured(NamedTuple):
    """For some of the prompts, by index: whether the right option won, by mean and by sum, and whether it was written.

    Without log-probabilities `by_sum` is empty.
    """

    chosen: dict[int, float]
    by_sum: dict[int, float]
    written: dict[int, float]

    def add(self, other: "Measured") -> None:
        for own, more in zip(self, other, strict=True):
            own.update(more)


def answers_to(answers: ModelAnswers | LookUpAnswers, asked: list[Asked], wanted: list[int]) -> Measured:
    free = [i for i in wanted if asked[i].name in FREE] if answers.write else []
    chosen, by_sum = answers.compared([asked[i] for i in wanted])
    return Measured(
        dict(zip(wanted, chosen, strict=True)),
        dict(zip(wanted, by_sum, strict=True)) if by_sum else {},
        dict(zip(free, answers.write([asked[i] for i in free]), strict=True)) if free else {},
    )


def by_name(
    asked: list[Asked], values: dict[int, float], config: EvalConfig, chance: float, by_sum: dict[int, float]
) -> dict[str, dict]:
    """The share of each score, and what it is by the sums, where they are known."""
    groups, result = defaultdict(list), {}
    for i in values:
        groups[asked[i].name].append(i)
    if any(asked[i].stated_elsewhere for i in groups["ES"]):
        groups["ES_one_entry"] = [i for i in groups["ES"] if not asked[i].stated_elsewhere]
    for name in sorted(name for name, own in groups.items() if own):
        own = groups[name]
        draws, shares = [asked[i].about or asked[i].case for i in own], [values[i] for i in own]
        result[name] = mean_share(shares, chance, config) | {"task_version": TASK_VERSION}
        result[name] |= {"ci95": clustered_interval(shares, draws), "n_draws": len(set(draws))}
        result[name] |= {"by_sum": fmean(by_sum[i] for i in own)} if by_sum else {}
    return result


def scores(asked: list[Asked], measured: Measured, before: dict[int, float], config: EvalConfig) -> dict:
    """The shares after edits; those of neighbours also as they were `before`, and how many answers are the same."""
    result = by_name(asked, measured.chosen, config, 0.5, measured.by_sum)
    for name, share in result.items():
        if name.startswith("NS"):
            own = [(value, before[i]) for i, value in measured.chosen.items() if asked[i].name == name]
            share["before"] = sum(was for _, was in own) / len(own)
            share["same"] = sum(value == was for value, was in own) / len(own)
    return result | ({"free": by_name(asked, measured.written, config, 0.0, {})} if measured.written else {})


def numbers_of(answers: ModelAnswers | LookUpAnswers, asked: list[Asked], edits: Edits, config: EvalConfig) -> dict:
    """The scores before all edits ("0"), after single ones ("1"), and after each number of edits at once."""
    own: list[list[int]] = [[] for _ in edits]
    for i, one in enumerate(asked):
        own[one.case].append(i)
    chosen, by_sum = answers.compared(asked)
    before = dict(enumerate(chosen))
    unedited = {i: value for i, value in before.items() if not asked[i].edited}
    result = {"0": by_name(asked, unedited, config, 0.5, dict(enumerate(by_sum)))}
    single, seconds = Measured({}, {}, {}), 0.0
    singles = [case for case, prompts in enumerate(own) if prompts][:SINGLE]
    for case in singles:
        with answers.edited([edits[case]]) as took:
            seconds += took
            single.add(answers_to(answers, asked, own[case]))
    timing = {"edits": 1, "ms_per_edit": 1000 * seconds / len(singles)}
    result["1"] = timing | scores(asked, single, before, config)
    for number in (*(n for n in NUMBERS if n < len(edits)), len(edits)):
        wanted = [i for case in range(number) for i in own[case] if not asked[i].edited]
        with answers.edited(edits[:number]) as took:
            measured = answers_to(answers, asked, wanted)
        timing = {"edits": number, "ms_per_edit": 1000 * took / number}
        result["all" if number == len(edits) else str(number)] = timing | scores(asked, measured, before, config)
    return result


def by_frequency(cases: list[Case], asked: list[Asked], config: EvalConfig) -> dict:
    """The scores of a guess: the option that stands in more entries of the case's predicate, as the bank is."""
    count, values = config.gold.frequency, {}
    for i, one in enumerate(asked):
        if not one.edited:
            first, second = (count[cases[one.case].predicate, option.strip()] for option in one.options)
            values[i] = 0.5 if first == second else float(first > second)
    return {"all": {"edits": len(cases)} | by_name(asked, values, config, 0.5, {})}


def standard(numbers: dict) -> dict:
    """A result whose share is ES after all edits; its parts are the other scores then."""
    last = numbers["all"]
    parts = {name: share for name, share in last.items() if isinstance(share, dict) and name != "free"}
    free = {f"{name}_free": share for name, share in last.get("free", {}).items()}
    return parts["ES"] | {"parts": parts | free, "numbers": numbers}


def unedited(model, tokenizer, config: EvalConfig, cases: list[Case]) -> dict:
    """The scores of a model without a bank: no edit changes it, so it answers after all edits as before them."""
    asked = asked_of([cases[i] for i in asked_first(len(cases), config)][: config.asked_cases], None)
    wanted = [i for i, one in enumerate(asked) if not one.edited]
    answers = ModelAnswers(model, tokenizer, config)
    measured = answers_to(answers, asked, wanted)
    own = by_name(asked, measured.chosen, config, 0.5, measured.by_sum)
    free = {"free": by_name(asked, measured.written, config, 0.0, {})} if measured.written else {}
    return standard({"0": own, "all": {"edits": 0} | own | free})


def edit_benchmark(model, tokenizer, config: EvalConfig, path: str | None, flag: str) -> dict | None:
    """ES, PS and NS after each number of edits; the same without the model; deletion; whether undo is exact.

    None without a file; without a bank only what the model answers unedited.
    """
    if path is None:
        return None
    if not model.settings.reads_bank:
        return unedited(model, tokenizer, config, read_cases(path, config.limit, flag))
    cases, rows, places = place_cases(read_cases(path, config.limit, flag), model, tokenizer, config.gold)
    order, held = asked_first(len(cases), config), places.pop("held")
    cases, rows, held = ([values[i] for i in order] for values in (cases, rows, held))
    asked = asked_of(cases[: config.asked_cases], set(config.gold.rows) if config.gold else None)
    edits = [(row, case.new_sentence) for case, row in zip(cases, rows, strict=True)]
    before, answers = fingerprint(model), ModelAnswers(model, tokenizer, config)
    result = standard(numbers_of(answers, asked, edits, config))
    result["deletion"] = deletion(answers, asked, rows, held, config)
    after = fingerprint(model)
    result |= {
        "places": places, "undo_exact": {name: before[name] == after[name] for name in before},
        "prompts": {"scored": answers.scored, "written": answers.written},
    }  # fmt: skip
    if config.asked_cases is not None and config.asked_cases < len(cases):
        result["asked_cases"] = config.asked_cases
    without = {}
    if config.gold:
        without["lookup"] = standard(numbers_of(LookUpAnswers(config.gold.look_up), asked, edits, config))
        without["frequency"] = standard(by_frequency(cases, asked, config))
    if finder := finder_of(model, tokenizer):
        without["search_alone"] = standard(numbers_of(SearchAnswers(finder), asked, edits, config))
    if without:
        result["without_model"] = without
    return result


def counterfact(model, tokenizer, config: EvalConfig) -> dict | None:
    """CounterFact: see `edit_benchmark`."""
    return edit_benchmark(model, tokenizer, config, config.counterfact_path, "counterfact_path")


def zsre(model, tokenizer, config: EvalConfig) -> dict | None:
    """Edits of zsRE: see `edit_benchmark`."""
    return edit_benchmark(model, tokenizer, config, config.zsre_path, "zsre_path")
