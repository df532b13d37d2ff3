"""The tables of facts that are asked in any words, added, and edited."""

from .leaderboard import (
    ASKED_ANYHOW,
    CALIBRATED,
    CROWDED,
    FIXED,
    OTHER_CASE,
    PREFERRED,
    RECALIBRATED,
    TOGETHER,
    UNSHORTENED,
)
from .page import Page
from .rows import MISSING, Row

# The columns of the public tests, and the measures in each.
PUBLIC = {
    "ParaRel: own / other wordings / all agree": ("pararel_own", "pararel_other", "pararel_consistent"),
    "PopQA: of five / exact": ("insert_popqa", "insert_popqa_exact"),
    "zsRE: of five / exact": ("insert_zsre", "insert_zsre_exact"),
    "our object questions: own / other words / free": ("object", "object_reworded", "exact_match"),
    "verification": ("verification",),
    "CounterFact: ES / PS / NS / NS without entry": (
        "counterfact_es_all", "counterfact_ps_made_all", "counterfact_ns_entry_all", "counterfact_ns_no_entry_all",
    ),
}  # fmt: skip


def public_tests(page: Page) -> str:
    """A line for each model, a column for each set; its last line is half of the widest interval of each score."""
    asked, more, text = (("dev", protocol) for protocol in ASKED_ANYHOW)
    case, crowded, newest = (("dev", x) for x in (OTHER_CASE, CROWDED, UNSHORTENED))
    preferred, together, fixed = (("dev", x) for x in (PREFERRED, TOGETHER, FIXED))
    lines = {
        "chance": (text, "1.6.14", "chance"),
        "look-up without a model": (text, "1.6.14", "lookup"),
        "search alone, without a model": (text, "1.6.14", "search_alone"),
        "an untrained pointer, width 32": (asked, "1.6.12, untrained pointer", "memory"),
        "plain (1.6.0)": (text, "1.6.0", "plain"),
        "memory (1.6.12), 3,038 wordings": (more, "1.6.12", "memory"),
        "**memory (1.6.14)**, and text before questions": (text, "1.6.14", "memory"),
        "**memory (1.6.17)**, a better search, calibrated, two seeds": (text, "1.6.17", "memory"),
        "**memory (1.6.22)**, 16 entries; learned other-case and absent facts; three seeds; all edits": (
            case,
            "1.6.22",
            "memory",
        ),
        "**memory (1.6.28)**, the pointer alone reads, one seed; all edits": (case, "1.6.28", "memory"),
        "memory (1.6.29), a block knows what is said; copies less, three seeds; all edits": (case, "1.6.29", "memory"),
        "memory (1.6.33), the state scales the scores, three seeds; all edits": (case, "1.6.33", "memory"),
        "search of 1.6.33 alone, without a model; all edits": (case, "1.6.33", "search_alone"),
        "**memory (1.6.35)**, crowded names, scrambled words, 10 entries, three seeds; all edits, all cases": (
            crowded,
            "1.6.35",
            "memory",
        ),
        "**the same, learned again**, calibrated, `pointer_edited` 3, three seeds; all edits, all cases": (
            preferred,
            "1.6.35",
            "memory",
        ),
        "search of 1.6.35 alone, without a model; all edits, all cases": (crowded, "1.6.35", "search_alone"),
        "**memory (1.6.37)**, as trained, two seeds; all edits: one seed, 300 cases, CPU": (newest, "1.6.37", "memory"),
        "**the same, learned again**, seeds calibrated together; ParaRel one seed, added facts two; all edits": (
            together,
            "1.6.37",
            "memory",
        ),
        "search for facts of 1.6.37 alone, without a model": (together, "1.6.37", "search_alone"),
        "1.6.40: 1.6.37 that learns facts in every fourth row, two seeds, added facts one": (
            newest,
            "1.6.40",
            "memory",
        ),
        "**memory (1.6.41)**: 1.6.37 that learns facts in every second row, three seeds": (newest, "1.6.41", "memory"),
        "**the same, one setting for all seeds**; all edits, all cases": (fixed, "1.6.41", "memory"),
        "plain (1.6.0), trained on the questions of 1.6.35; all cases": (crowded, "1.6.0", "plain"),
        "1.6.22, trained with a shuffled bank, one seed; all edits": (
            case,
            "1.6.22, trained with a shuffled bank",
            "memory",
        ),
        "plain (1.6.0), trained on the questions of 1.6.22": (case, "1.6.0", "plain"),
        "memory (1.6.19), learned product keys, one seed": (text, "1.6.19", "memory"),
        "memory (1.6.38), learned product keys, faster, three seeds": (newest, "1.6.38", "memory"),
    }
    halves = dict.fromkeys(sum(PUBLIC.values(), ()), 0.0)

    def result(where: tuple[str, str], experiment: str, arm: str, measure: str) -> Row | None:
        found = page.result(where, experiment, arm, measure)
        # Without a model our questions were asked with the first banks only, and with the search of 1.6.14.
        if found or arm not in ("lookup", "search_alone", "chance") or experiment != "1.6.14":
            return found
        first = "1.6.12's index alone" if arm == "search_alone" else "1.6.12"
        places = [("dev", f"{asked[1]}{bank}") for bank in ("", ", no invented facts")]
        return next((row for place in places if (row := page.result(place, first, arm, measure))), None)

    def cell(where: tuple[str, str], experiment: str, arm: str, measures: tuple[str, ...]) -> str:
        found = {name: result(where, experiment, arm, name) for name in measures}
        for name, row in found.items():
            if row and row.interval and arm != "chance":
                halves[name] = max(halves[name], (row.interval[1] - row.interval[0]) / 2)
        texts = [f"{row.value:.1f}" if row else MISSING for row in found.values()]
        return MISSING if set(texts) == {MISSING} else " / ".join(texts)

    body = [[label, *(cell(*line, measures) for measures in PUBLIC.values())] for label, line in lines.items()]
    widest = [" / ".join(f"{halves[name]:.1f}" for name in measures) for measures in PUBLIC.values()]
    return page.table(["", *PUBLIC], [*body, ["±, at most", *widest]])


def all_edits(page: Page) -> str:
    """CounterFact with every edit of the dev part made at once."""
    every = f"{ASKED_ANYHOW[2]}, all dev edits"
    lines = {
        "**1.6.18**, calibrated, two seeds": (every, "1.6.18", "memory"),
        "**1.6.22**, 16 entries read, calibrated, three seeds": (OTHER_CASE, "1.6.22", "memory"),
        "**1.6.28**, the pointer alone reads, calibrated, one seed": (OTHER_CASE, "1.6.28", "memory"),
        "1.6.29, a block knows what is said; copies less, three seeds": (OTHER_CASE, "1.6.29", "memory"),
        "1.6.33, the state scales the scores, three seeds; 600 asked": (OTHER_CASE, "1.6.33", "memory"),
        "**1.6.35**, crowded names, scrambled words, 10 entries, three seeds; all asked": (CROWDED, "1.6.35", "memory"),
        "**the same, calibrated**, three seeds, on a CPU; 1,000 asked, all neighbours": (
            CALIBRATED,
            "1.6.35",
            "memory",
        ),
        "search of 1.6.35 and a rule, no model; all asked": (CROWDED, "1.6.35", "search_alone"),
        "**1.6.35**, learned again, calibrated with lacking facts, three seeds; all asked": (
            RECALIBRATED,
            "1.6.35",
            "memory",
        ),
        "**the same, `pointer_edited` 3**": (PREFERRED, "1.6.35", "memory"),
        "**1.6.37**, learned again, seeds calibrated together, three seeds; of two 1,000 asked, on a CPU": (
            TOGETHER,
            "1.6.37",
            "memory",
        ),
        "1.6.40, learned in every fourth row, `pointer_edited` 3, calibrated, two seeds; all asked": (
            PREFERRED,
            "1.6.40",
            "memory",
        ),
        "1.6.41, learned in every second row, so calibrated, three seeds; all asked": (PREFERRED, "1.6.41", "memory"),
        "**the same, one setting for all seeds**": (FIXED, "1.6.41", "memory"),
        "1.6.37, learned beside it, that setting, one seed; all asked": (
            FIXED,
            "1.6.37, learned beside 1.6.41",
            "memory",
        ),
    }
    columns = {
        "ES": "es_all", "PS": "ps_made_all", "NS": "ns_entry_all", "NS, without an entry": "ns_no_entry_all",
        "written freely: ES": "free_es_all", "written freely: PS": "free_ps_made_all",
    }  # fmt: skip
    measures = [f"counterfact_{name}" for name in columns.values()]
    body = [[label, *page.cells(("dev", line[0]), *line[1:], *measures)] for label, line in lines.items()]
    return page.table(["", *columns], body)
