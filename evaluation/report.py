"""Tables of results for the screen: one column for each run and control, one row for each measure."""

import os
from collections.abc import Container
from pathlib import Path

from common.files import read_json

from .insertion import QUARTER
from .language_sets import cells_of
from .overlap import grid_of

MAIN_CONTROLS = ("bank shuffled", "bank counterfactual", "entries in prompt")
WITHOUT_MODEL = ("chance", "look-up", "search alone", "n")  # columns
RULES = (("look-up", "lookup"), ("search alone", "search_alone"))  # column, result: entries answer by a rule
SHARES = {"reworded": "object, reworded", "exact_match": "object, written freely"}  # tasks of one number
QUESTION_TASKS = ("object", "relation", "verification")
PUBLIC_TASKS = ("pararel", "insertion")  # with the results of no model, on the same questions, in them
READS = "entry read"
EDIT_TASKS = ("counterfact", "zsre")


def percent(share: float | None, digits: int = 1) -> str:
    """A share for people; "-" where there was nothing to count."""
    return "-" if share is None else f"{share:.{digits}%}"


def with_interval(share: dict) -> str:
    """A share with half of its 95 % interval."""
    low, high = share["ci95"]
    return f"{percent(share['accuracy'])} ±{percent((high - low) / 2)}"


def shares_of(task: str, result: dict) -> dict[str, dict]:
    """The shares that a table shows of a task on a public set, by the name of the measure."""
    parts, before = result.get("parts", {}), result.get("before", {})
    whole = [name for name in (parts or before) if QUARTER not in name]
    shares = {f"{task}, {name}": part for name, part in parts.items()}
    shares |= {f"{task}, {name}, before": before["parts"][name] for name in whole if name in before.get("parts", {})}
    for name, label in (("consistent", "all wordings agree"), ("all_right", "all wordings right")):
        shares |= {f"{task}, {label}": result[name]} if name in result else {}
    for end, written in (("", result.get("written", {})), (", before", before.get("written", {}))):
        shares |= {f"{task}, {name}, exact match{end}": written[name] for name in whole if name in written}
    shares |= {f"{task}, unrelated answers stay": result["locality"]} if "locality" in result else {}
    for name in whole:
        for reader, own in (result.get("read") or {}).get(name, {}).items():
            shares[f"{task}, {name}: {READS}, {reader}"] = own["selected"]
        if name in result.get("found", {}):  # of the look-up
            shares[f"{task}, {name}: {READS}"] = result["found"][name]
    return shares


def absent_cells(result: dict) -> dict[str, str]:
    """The cells of the task `absent`."""
    cells = {}
    for name, own in result["knowing"].items():
        low, high = own["ci95"]
        cells[f"absent, AUROC of {name}"] = f"{own['auroc']:.3f} ±{(high - low) / 2:.3f}"
    for name in ("emptied", "held"):
        cells[f"absent, right, {name}"] = with_interval(result[name])
        cells[f"absent, answer as before, {name}"] = with_interval(result[name]["same"])
    return cells


def measures_of(results: dict) -> dict[str, str]:
    """The cells of a column, by the name of the measure."""
    cells = {}
    if "language" in results:
        cells["val loss"] = f"{results['language']['loss']:.4f}"
        cells["ppl"] = f"{results['language']['perplexity']:.2f}"
        cells["bits/byte"] = f"{results['language']['bits_per_byte']:.4f}"
        for source, part in results["language"].get("sources", {}).items():
            cells[f"loss, {source}"] = f"{part['loss']:.4f}"
    for task in QUESTION_TASKS:
        if task in results:
            result = results[task]
            for name, part in ({"": result} | result.get("parts", {})).items():
                cells[f"{task} {name}".strip()] = with_interval(part)
    for task, name in SHARES.items():
        if task in results:
            cells[name] = percent(results[task]["accuracy"])
    if "object" in results:
        cells["object planted"] = percent(results["object"]["planted"]["accuracy"])
    cells |= absent_cells(results["absent"]) if "absent" in results else {}
    for task in PUBLIC_TASKS:
        if task in results:
            cells |= {name: with_interval(share) for name, share in shares_of(task, results[task]).items()}
    return cells | memory_cells(results) | costs_of(results)


def memory_cells(results: dict) -> dict[str, str]:
    """The cells of a column that only a memory has: entries found and read, and edits."""
    cells = {}
    asked = results.get("retrieval", {})
    for layer, shares in asked.get("reworded", {}).get("layers", {}).items():
        cells[f"gold entry read in other words, {layer}"] = percent(shares["selected"]["accuracy"])
    for layer, shares in asked.get("layers", {}).items():
        cells[f"gold entry read, {layer}"] = percent(shares["selected"]["accuracy"])
        among = {n: shares[f"candidate_{n}"]["accuracy"] for n in (4, 16, 64) if f"candidate_{n}" in shares}
        if among:  # the others are more than the search finds
            cells[f"gold entry among {'/'.join(map(str, among))}, {layer}"] = "/".join(map(percent, among.values()))
    for number in ("1", "100", "10000"):
        if number in results.get("edits", {}):
            shares = [results["edits"][number][name] for name in ("ES", "PS", "NS")]
            cells[f"ES/PS/NS, edits: {results['edits'][number]['edits']}"] = "/".join(
                percent(share, 0) for share in shares
            )
    for task in EDIT_TASKS:
        cells |= edit_cells(task, results[task]) if task in results else {}
    return cells


def edit_cells(task: str, result: dict) -> dict[str, str]:
    """The scores of an editing benchmark after each number of edits, of the model or of the look-up."""
    cells = {}

    def shares(found: dict, *names: str) -> str:
        return "/".join(percent(found.get(name, {}).get("accuracy")) for name in names)

    for found in result["numbers"].values():
        edits = f"{task}, edits: {found.get('edits', 0)}"
        worded = "PS_made" if "PS_made" in found else "PS_paraphrase"
        cells[f"{edits}, ES/PS/NS"] = shares(found, "ES", worded, "NS")
        if worded == "PS_made" and "PS_paraphrase" in found:
            cells[f"{edits}, PS as published"] = shares(found, "PS_paraphrase")
        if without := found.get("NS_no_entry"):
            was = f" (before {percent(without['before'])})" if "before" in without else ""
            cells[f"{edits}, NS without entry"] = percent(without["accuracy"]) + was
        if "free" in found:
            cells[f"{edits}, ES/PS written freely"] = shares(found["free"], "ES", worded)
    if deleted := result.get("deletion"):
        chosen = shares(deleted["chosen"], "before", "deleted", "never_held")
        cells[f"{task}, old object, entry there/emptied/never there"] = chosen
    return cells


def costs_of(results: dict) -> dict[str, str]:
    """The cells of the task `cost`: tokens of a question, and milliseconds in batches and alone."""
    if "cost" not in results:
        return {}
    cells = {"tokens of a prompt": f"{results['cost']['prompt_tokens']:.1f}"}
    for part in (results["cost"]["batched"], results["cost"]["alone"]):
        for key, what in (("first_token_ms", "first token"), ("answer_ms", "answer")):
            cells[f"ms a question, {what}, batch {part['batch_size']}"] = f"{part[key]:.3g}"
    return cells


def answered_by_rules(rows: dict[str, dict]) -> list[str]:
    """The measures of the columns without a model: they stand in the table also where no model was asked."""
    found = [results.get(task, {}) for results in rows.values() for task in ("frequency", *dict(RULES).values())]
    return [measure for own in found for measure, value in own.items() if isinstance(value, dict)]


def chance_levels(rows: dict[str, dict], measures: list[str]) -> dict[str, dict[str, str]]:
    """The columns without a model, where a result has them: chance, chance by frequency, look-up, search alone."""
    chance = {}
    for task in QUESTION_TASKS:
        known = [results[task]["chance"] for results in rows.values() if task in results]
        chance |= {measure: percent(known[0]) for measure in measures if known and measure.split()[0] == task}
    columns = {"chance": chance}
    for title, task in (("chance, by frequency", "frequency"), *RULES):
        guesses = next((results[task] for results in rows.values() if task in results), {})
        columns[title] = {m: percent(guesses[m]["accuracy"]) for m in measures if m in guesses}
    for title, key in (("chance", "guess"), ("chance, by frequency", "frequency"), *RULES):
        for task in PUBLIC_TASKS:
            known = [results[task].get("without_model", {}) for results in rows.values() if task in results]
            shares = next((shares_of(task, own[key]) for own in known if key in own), {})
            for m in measures:
                name = m.rpartition(", ")[0] if f": {READS}, " in m else m  # the look-up is one reader
                columns[title] |= {m: percent(shares[name]["accuracy"])} if name in shares else {}
        for task in EDIT_TASKS:
            known = [results[task].get("without_model", {}) for results in rows.values() if task in results]
            columns[title] |= next((edit_cells(task, own[key]) for own in known if key in own), {})
    return {title: column for title, column in columns.items() if column}


def table(rows: dict[str, dict]) -> str:
    """An aligned table of named results; below it, where there are any, that of the language sets."""
    cells = {name: measures_of(results) for name, results in rows.items()}
    measures = list(dict.fromkeys([measure for own in cells.values() for measure in own] + answered_by_rules(rows)))
    cells |= chance_levels(rows, measures)
    return "\n\n".join(
        filter(None, [measures and aligned(cells, measures), table_of_sets(rows), *tables_of_overlap(rows)])
    )


def tables_of_overlap(rows: dict[str, dict]) -> list[str]:
    """For each run with a memory, its loss by the run of tokens that a position shares with what it reads."""
    return [
        f"{name}: loss by the tokens that a position shares with what it reads, ± 95 % over documents\n"
        + grid_text(grid_of(results["overlap"]))
        for name, results in rows.items()
        if "overlap" in results
    ]


def table_of_sets(rows: dict[str, dict]) -> str:
    """The language sets, with the standard error of each number; empty where nothing was measured."""
    sets = {name: cells_of(results["language_sets"]) for name, results in rows.items() if "language_sets" in results}
    lines = {measure: line for own in sets.values() for measure, line in own.items()}
    cells = {name: {measure: line[0] for measure, line in own.items()} for name, own in sets.items()}
    for place, title in ((1, "chance"), (2, "n")):
        cells[title] = {measure: line[place] for measure, line in lines.items()}
    return f"language sets, ± one standard error\n{aligned(cells, list(lines))}" if sets else ""


def aligned(cells: dict[str, dict[str, str]], measures: list[str]) -> str:
    """A table with a line for each measure; `cells` has the columns by name, each by measure."""
    head = column_titles(list(cells))
    return grid_text([*head, *([measure, *(own.get(measure, "-") for own in cells.values())] for measure in measures)])


def grid_text(grid: list[list[str]]) -> str:
    """The lines of a table, the first column on the left and the others on the right."""
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in grid
    )


def column_titles(names: list[str]) -> list[list[str]]:
    """The lines above the columns: the run without the prefix that all runs share, below it the control."""
    runs = {name.split(", ")[0] for name in names} - set(WITHOUT_MODEL)
    common = os.path.commonprefix(list(runs)) if len(runs) > 1 else ""
    shared = max(common.rfind(end) for end in "_-/") + 1  # whole words only
    titles = [
        [run if run in WITHOUT_MODEL else run[shared:], *(control.rsplit(" ", 1) if control else ())]
        for run, _, control in (name.partition(", ") for name in names)
    ]
    height = max(map(len, titles))
    columns = [[""] * height, *(title + [""] * (height - len(title)) for title in titles)]
    return [list(line) for line in zip(*columns, strict=True)]


def with_controls(name: str, results: dict, chosen: Container[str] | None = None) -> dict[str, dict]:
    """The results of a run and of its controls (None: all), each under the title of its column."""
    controls = results.get("arms", {}).items()
    return {name: results} | {f"{name}, {c}": values for c, values in controls if chosen is None or c in chosen}


def compare(run_dirs: list[str], every_control: bool = False) -> str:
    """One table of runs that have an eval.json, with the controls that tell whether the bank is used, or all of them.

    Raises:
        FileNotFoundError: a run has no eval.json.
    """
    rows, left_out = {}, {}
    for run_dir in map(Path, run_dirs):
        path = run_dir / "eval.json"
        if not path.exists():
            raise FileNotFoundError(f"{run_dir} has no eval.json: run eval_model.py --run {run_dir} first")
        results = read_json(path)
        rows |= with_controls(run_dir.name, results, None if every_control else MAIN_CONTROLS)
        left_out |= dict.fromkeys(name for name in results.get("arms", {}) if name not in MAIN_CONTROLS)
    more = f"\n--all_arms shows also: {', '.join(left_out)}" if left_out and not every_control else ""
    return table(rows) + more
