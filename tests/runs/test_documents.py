"""Documents whose numbers come from rows: what is stale, unmarked, broken or too long is found."""

import json
import re
import shutil
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from runs.documents.figures import DARK, FIGURES, LIGHT
from runs.documents.prose import anchors_of, broken_links, long_lines, unmarked_numbers
from runs.documents.rows import Rows
from runs.documents.write import FIGURE_FOLDER, problems, write
from runs.new import new_experiment

ROOT = Path(__file__).parents[2]
BASH = re.compile(r"```bash\n(.*?)```", re.DOTALL)
KEY = "1.5.0/memory/object/held-out/knowledge-10k"


def make_project(folder: Path) -> Path:
    """A small project: the rows of this one, and a README with one table and one value."""
    (folder / "experiment").mkdir()
    for path in (ROOT / "experiment").glob("*.jsonl"):
        shutil.copy(path, folder / "experiment")
    shutil.copytree(ROOT / "benchmark/results", folder / "benchmark/results")
    text = f"# Title\n\n<!-- begin:held-out -->\n<!-- end:held-out -->\n\nObject: <!--v:{KEY}--><!--/v-->.\n"
    (folder / "README.md").write_text(text)
    return folder


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path)


@pytest.fixture(scope="module")
def written_once(tmp_path_factory) -> Path:
    project = make_project(tmp_path_factory.mktemp("written"))
    assert "README.md: line 4 is not what the rows give: python -m experiment documents" in found_in(project)
    changed = write(project)
    assert project / "README.md" in changed and len(changed) >= 1 + 2 * 4
    return project


@pytest.fixture
def written(written_once, tmp_path) -> Path:
    """The same with its table, value and figures."""
    return shutil.copytree(written_once, tmp_path / "project")


def found_in(project: Path) -> list[str]:
    return [f"{path}: {problem}" for path, problem in problems(project)]


def change_row(project: Path, **changes) -> None:
    """Rewrite the row of KEY."""
    path, lines = project / "experiment/results.jsonl", []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if "/".join(row[name] for name in ("experiment", "arm", "measure", "split", "protocol")) == KEY:
            row |= changes
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")


def test_the_documents_of_this_project_are_what_its_rows_give():
    assert [f"{path}: {problem}" for path, problem in problems(ROOT)] == []


def test_writing_fills_tables_values_and_figures_and_does_nothing_the_second_time(written):
    text = (written / "README.md").read_text()
    assert "| object, of five |" in text and re.search(r"<!--v:[^>]+-->98\.6 %<!--/v-->", text)
    assert found_in(written) == [] and write(written) == []


def test_a_changed_row_makes_table_value_and_figure_stale(written):
    change_row(written, value=50.0, values=[50.0], interval=[49.0, 51.0])
    found = found_in(written)
    assert any(problem.startswith("README.md: line") for problem in found)
    for name in ("answers", "answers_dark"):
        assert f"{FIGURE_FOLDER}/{name}.svg: the figure is stale: python -m experiment documents" in found
    assert not any("speed" in problem for problem in found)
    (written / FIGURE_FOLDER / "memory.svg").unlink()
    assert f"{FIGURE_FOLDER}/memory.svg: the figure is missing: python -m experiment documents" in found_in(written)


def test_a_value_or_table_changed_by_hand_is_found(written):
    readme = written / "README.md"
    text = readme.read_text()
    for old, new in (("98.6 %<!--/v-->", "98.7 %<!--/v-->"), ("| object, of five |", "| our questions |")):
        readme.write_text(text.replace(old, new))
        (found,) = found_in(written)
        assert "is not what the rows give" in found


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("begin:held-out", "begin:held-outs", "a mark is damaged or not closed|no table held-outs"),
        ("<!-- end:held-out -->", "", "1 tables begin and 0 end"),
        ("<!--/v-->", "", "1 values begin and 0 end"),
        ("/object/", "/subject/", "no row has the key 1.5.0/memory/subject/held-out/knowledge-10k"),
    ],
)
def test_a_damaged_mark_is_named_and_nothing_is_written(project, old, new, problem):
    readme = project / "README.md"
    readme.write_text(readme.read_text().replace(old, new))
    assert any(re.search(problem, found) for found in found_in(project))
    with pytest.raises(ValueError, match=problem):
        write(project)


def test_the_newest_row_of_a_key_counts(project):
    change_row(project, date="2020-01-01")
    path = project / "experiment/results.jsonl"
    row = next(json.loads(line) for line in path.read_text().splitlines() if "2020-01-01" in line)
    newer = row | {"value": 12.5, "values": [12.5], "interval": [12, 13], "date": "2030-01-01", "commit": "f" * 7}
    path.write_text(json.dumps(newer) + "\n" + path.read_text())
    assert Rows.load(project).value(KEY) == "12.5 %"


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("The loss is 3.81 here.", 1), ("It answers 98 % or 98.6% of them.", 2), ("It takes 17 ms, 2 x as long.", 2),
        ("1,421,000 tokens/s on 4.8 GiB", 2), ("Experiment 1.5.0 needs Python `3.11` and arXiv 1907.05242v2.", 0),
        ("Two cores, 24 GB, 3-grams, 48 x 512 tokens, all of 1.4.x, 2026-11-28 and 1,000 questions.", 0),
        ("`3.81` and\n```\n98.6 %\n```\n", 0),
        ("<!--v:a/b-->3.81<!--/v--> and [x](1.5.svg)", 0), ("| 3.81 |", 1),
        ("<!-- begin:step -->\n| 3.81 |\n<!-- end:step -->", 0),
    ],
)  # fmt: skip
def test_a_measured_number_needs_a_mark(text, numbers):
    assert len(unmarked_numbers(text)) == numbers


def test_links_to_files_and_headings_that_do_not_exist_are_found(tmp_path):
    (tmp_path / "a.md").write_text("# One `two`, three!\n")
    text = (
        "[good](a.md#one-two-three) [page](https://example.org) ![figure](b.svg) [lost](a.md#four) [here](#none)"
        '<img src="c.svg"> `[no link](d.md)`'
    )
    (tmp_path / "README.md").write_text(text)
    found = broken_links(text, tmp_path / "README.md", tmp_path)
    assert found == [
        "broken link: b.svg", "broken link: a.md has no heading #four", "broken link: README.md has no heading #none",
        "broken link: c.svg",
    ]  # fmt: skip
    assert anchors_of("# A-b c_d\n```\n# no heading\n```\n## 中文 1.5\n") == {"a-b-c_d", "中文-15"}


def test_long_lines_and_long_documents_are_found():
    assert long_lines("x" * 121 + "\n| " + "x" * 200, Path("a.md")) == ["line 1 has 121 characters; at most 120"]
    assert long_lines("\n" * 151, Path("README.md")) == ["151 lines; at most 150"]
    rows = "<!-- begin:leaderboard -->\n" + "| row |\n" * 151 + "<!-- end:leaderboard -->\n"
    assert long_lines(rows, Path("README.md")) == [] and long_lines(rows, Path("other.md")) == []
    assert long_lines("\n" * 151, Path("log.md")) == []
    assert "begins with a mark" in long_lines("a\n<!--v:k-->1<!--/v-->", Path("a.md"))[0]


def test_figures_have_the_same_bytes_each_time_and_other_colors_in_the_dark(written_once):
    """Those of the small project too, whose second writing is in a test above."""
    rows, folder = Rows.load(ROOT), written_once / FIGURE_FOLDER
    for name, (collect, draw) in FIGURES.items():
        if (folder / f"{name}.svg").exists():
            first, dark = ((folder / f"{name}{end}.svg").read_text() for end in ("", "_dark"))
        elif data := collect(rows):
            first, dark = draw(data, LIGHT), draw(data, DARK)
            assert name == "leaderboard_zh" or draw(data, LIGHT) == first, name  # it is drawn as the English one
        assert "<svg" in first and not re.search(r"\d{4}-\d{2}-\d{2}T", first), name
        assert first.partition("<!-- stamp")[0] != dark.partition("<!-- stamp")[0], name


def test_every_test_that_a_promise_names_exists():
    table = [line for line in (ROOT / "docs/reliability.md").read_text().splitlines() if line.startswith("| ")][2:]
    assert len(table) > 15
    for line in table:
        cell = line.rsplit("|", 2)[1]
        for file, names in re.findall(r"`([\w/]+\.py)`(?:: ((?:`\w+`(?:, )?)+))?", cell):
            path = ROOT / file if "/" in file else ROOT / "tests/reliability" / file
            tests = re.findall(r"^def (test_\w+)", path.read_text(), flags=re.MULTILINE)
            for name in re.findall(r"`(\w+)`", names):
                assert any(name in test for test in tests), f"{file} has no test about {name}"


def test_every_command_in_a_document_exists_with_its_flags():
    sources = [*ROOT.glob("*.py"), *ROOT.glob("*/*.py"), *ROOT.glob("*/*/*.py"), *ROOT.glob("run_file/*.sh")]
    code = "\n".join(path.read_text() for path in sources)
    documents = [*ROOT.glob("README*.md"), *ROOT.glob("docs/*.md")]
    lines = [line for path in documents for line in commands_in(path.read_text())]
    assert len(lines) > 40
    of_launcher = launch_command_parser()._option_string_actions
    for line in lines:
        for flags in re.findall(r'ACCELERATE_FLAGS="(.*?)"', line):
            assert all(flag in of_launcher for flag in re.findall(r"--\w+", flags)), line
        line = re.sub(r'ACCELERATE_FLAGS=".*?"', "", line)
        for module in re.findall(r"python -m ([\w.]+)", line):
            path = ROOT / module.replace(".", "/")
            assert module == "pytest" or path.with_suffix(".py").exists() or (path / "__main__.py").exists(), line
        for path in re.findall(r"(?:bash|python) ([\w/]+\.(?:sh|py))", line):
            assert (ROOT / path).exists() or "9_0_0" in path, line
        for flag in set(re.findall(r"--(\w+)", line)) - {"help"}:
            assert re.search(rf'"--{flag}"|^    {flag}: |--{flag}\)', code, flags=re.MULTILINE), (
                f"{line}: no flag --{flag}"
            )


def test_every_documented_new_experiment_can_be_made(tmp_path):
    """With a fusion of the table in place of the one that the reader has added."""
    shutil.copytree(ROOT / "run_file", tmp_path / "run_file")
    (tmp_path / "experiment").mkdir()
    documents = [*ROOT.glob("README*.md"), *ROOT.glob("docs/*.md")]
    blocks = "\n".join(block for path in documents for block in BASH.findall(path.read_text()))
    commands = re.findall(r"experiment new (\S+) --from (\S+) --(.*)", blocks)
    assert len(commands) >= 4
    for number, base, rest in dict.fromkeys(commands):
        assert not (ROOT / f"run_file/experiment_{number.replace('.', '_')}.sh").exists(), number
        flags = rest.split("#")[0].replace("my_fusion", "words").split()
        for path in new_experiment(number, base, flags, tmp_path):
            path.unlink()


def commands_in(text: str) -> list[str]:
    """The commands of the bash blocks, continued lines joined, comments and words after -- left out."""
    blocks = "\n".join(BASH.findall(text))
    lines = (line.split("#")[0].strip() for line in blocks.replace("\\\n", " ").splitlines())
    return [line for line in lines if line]
