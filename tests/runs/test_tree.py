"""The tree of experiments, the archive, and the leaderboard follow from the scripts and the rows."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from runs.__main__ import tree_text
from runs.check import check_script, check_sources
from runs.documents import leaderboard as board
from runs.documents import leaderboard_figure, tree_figure
from runs.documents.figures import LIGHT
from runs.documents.leaderboard import equal_time
from runs.documents.page import Page
from runs.documents.rows import Row, Rows, tree_of_scripts
from runs.new import new_experiment, script_flags
from runs.record import record_path
from runs.results import row_from
from runs.scripts import base_of, comments_of, scripts, tree_lines, tree_of
from tests.runs.test_record_tables import seeded

ROOT = Path(__file__).parents[2]


def write_scripts(root: Path, **bases: str | None) -> None:
    """Scripts by number; a number that ends in _old stands in the archive."""
    (root / "run_file/archive").mkdir(parents=True)
    for number, base in bases.items():
        folder = root / "run_file" / ("archive" if number.endswith("_old") else "")
        lines = [f"# Question:  Does {number} help?", f"# Change:    the change of {number}", "#            goes on"]
        lines += [f"builds_on {base}"] if base else []
        (folder / f"experiment_{number.strip('n')}.sh").write_text("\n".join(lines) + "\n")


def test_each_experiment_stands_below_the_one_it_builds_on(tmp_path):
    write_scripts(tmp_path, n1_0=None, n1_2="1_0", n1_10="1_0", n1_9_old="1.2", n2_0=None)
    assert tree_lines(tree_of(tmp_path), lambda node: node.dotted) == [
        "1.0", "├─ 1.2", "│  └─ 1.9.old", "└─ 1.10", "2.0",
    ]  # fmt: skip
    assert [child["number"] for child in tree_of(tmp_path)[0].as_dict()["children"]] == ["1.2", "1.10"]
    assert comments_of(tmp_path / "run_file/experiment_1_2.sh")["Change"] == "the change of n1_2 goes on"
    (tmp_path / "run_file/experiment_1_0.sh").write_text("builds_on 7_7\n")
    with pytest.raises(ValueError, match="builds on 7_7, and there is no such script"):
        tree_of(tmp_path)


def test_every_script_of_the_project_is_in_its_tree_with_a_change():
    lines = tree_lines(tree_of(ROOT), lambda node: node.change)
    assert len(lines) == len(scripts(ROOT)) and all(line.strip("│├└─ ") for line in lines)
    assert all(base_of(path) for path in scripts(ROOT) if path.stem != "experiment_1_4_0")


def test_a_script_of_the_archive_still_runs_and_keeps_its_name():
    archived = [path for path in scripts(ROOT) if path.parent.name == "archive"]
    assert len(archived) >= 17 and check_script(archived[-1]) is None
    listed = subprocess.run(
        ["bash", "run_file/archive/experiment_1_5_9.sh", "--dim", "64"],
        cwd=ROOT, env=os.environ | {"LIST": "1"}, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert {"--out_dir out/experiment_1_5_9", "--selection cosine", "--keep_ffn"} <= set(
        listed
    ) and "--dim 64" in listed
    for path in ("archive/experiment_1_6_8.sh", "experiment_1_6_10.sh"):  # both build on a script of the archive
        flags = script_flags(ROOT / "run_file" / path)
        assert {"--ngram_decay", "--suffix_tokens"} & set(flags) and "wiki_knowledge.jsonl" in " ".join(flags)
    assert record_path("1_5_9", ROOT / "experiment").parent.name == "archive"
    with pytest.raises(ValueError, match="archive/experiment_1_5_9.sh exists already: choose another number"):
        new_experiment("1.5.9", "1.5.0", [], ROOT)


def test_the_tree_names_the_mean_of_the_best_losses_of_an_experiments_seeds(tmp_path):
    for seed, loss in ((1, 2.2), (2, 2.3)):
        seeded(tmp_path / f"out/experiment_1_4_8_seed{seed}", seed, loss)
    lines = tree_lines(tree_of(ROOT), tree_text(tmp_path / "out"))
    assert [line for line in lines if "[" in line] == [line for line in lines if "─ 1.4.8 [2.2500]: " in line] != []


def row(experiment: str, arm: str, measure: str, value: float, half: float | None, **more):
    fields = {
        "experiment": experiment, "arm": arm, "measure": measure, "value": value, "unit": "nats/token", "n": 100,
        "seeds": [1, 2], "values": [], "split": "dev", "protocol": "pretraining", "commit": "c", "machine": "m",
        "interval": half and [value - half, value + half], "date": "2026-11-28", "command": "", "source": "run",
        "note": "" if half else "one seed",
    }  # fmt: skip
    return row_from(fields | more)


def lines_of(tmp_path: Path, rows: list, benchmarks: list = ()) -> dict[str, list[str]]:
    write_scripts(tmp_path, n1_4_0=None, n1_4_7="1_4_0", n1_4_8="1_4_7", n1_5_0="1_4_8")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/EXPERIMENT_1_4_7.md").touch()
    tree = tree_of_scripts(tmp_path)
    text = board.leaderboard(Page(Rows(rows, benchmarks, [], [], [], tree), "zh"))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {line[0]: line for line in cells[2:]} | {"footnote": text[text.index("<sub>") :]}


def test_the_leaderboard_says_what_the_rows_say_and_what_was_not_measured(tmp_path):
    of_questions = {"unit": "%", "n": 500}
    lines = lines_of(tmp_path, [
        row("1.4.0", "plain", "val_loss", 3.0, 0.01, values=[3.001, 2.999]),
        row("1.4.7", "memory", "val_loss", 2.9, 0.01, values=[2.901, 2.899]),
        row("1.4.8", "memory", "val_loss", 2.95, 0.01, values=[2.951, 2.949]),
        row("1.4.0", "plain", "val_loss", 2.8, 0.01, protocol="pretraining, time of 1.4.7"),
        row("1.4.7", "memory", "object", 90.0, 2.0, **of_questions),
        row("1.4.7", "memory", "object_reworded", 80.5, 2.0, **of_questions),
        row("1.4.7", "shuffled", "object", 25.0, 3.0, **of_questions),
        row("1.4.7", "memory", "val_loss_first_500", 2.8, 0.01),
        row("1.4.7", "shuffled", "val_loss_first_500", 2.85, 0.01),
        row("1.4.7", "memory", "edit_paraphrase", 44.0, 2.0, **of_questions),
        row("1.4.7", "memory", "edit_paraphrase_0", 41.0, 2.0, **of_questions),
        row("1.4.7", "memory", "tokens_per_s", 12345.0, None, unit="tokens/s"),
    ])  # fmt: skip
    assert lines["1.4.7"][2:] == [
        "2.900 (pretraining)", "-0.100 (-3.3%)", "+0.100 (+3.6%), pretraining", "1.4.0: -0.100 (-3.3%), 更低",
        "90.0", "80.5", "44 (编辑前 41)", "12,345 (m, pretraining)", "未测", "2 个种子; 500 题",
        "Loss 更低; 记忆被读取 (打乱后 25.0%, Loss +0.050)",
        "[记录](EXPERIMENT_1_4_7.md)",
    ]  # fmt: skip
    assert lines["1.4.8"][2:6] == ["2.950 (pretraining)", "-0.050 (-1.7%)", "未测", "1.4.7: +0.050 (+1.7%), 更高"]
    assert lines["1.5.0"][2:] == ["未测"] * 9 + ["–", "未测", "无"] and lines["1.4.0"][12] == "基线"


@pytest.mark.parametrize(
    "own, plain, verdict",
    [
        ([2.91, 2.89], [3.01, 2.99], "Loss 更低"),
        ([3.11, 3.09], [3.01, 2.99], "Loss 更高"),
        ([2.95, 2.75, 2.85], [3.02, 3.0, 2.98], "Loss 在波动之内"),
        ([2.0], [3.0], "Loss: 单个种子, 不下结论"),
        ([2.0], [3.01, 2.99], "Loss: 本实验只有单个种子, 不下结论"),
        ([2.01, 1.99], [3.0], "Loss: 普通模型只有单个种子, 不下结论"),
    ],
)
def test_a_loss_is_judged_over_seeds(own, plain, verdict):
    loss, other = (
        row(name, "memory", "val_loss", sum(values) / len(values), 0.3, values=values, seeds=list(range(len(values))))
        for name, values in (("1.4.7", own), ("1.4.0", plain))
    )
    assert board.loss_verdict(loss, other) == verdict


def test_speed_and_memory_of_a_line_come_from_one_device(tmp_path):
    fields = {"benchmark": "step", "batch_size": 48, "n_heads": 32, "date": "2026-11-27"}
    benchmarks = [
        fields | {"model": "1_4_0", "device": "NVIDIA H100 80GB HBM3", "tokens_per_s": 1420870.0, "peak_gib": 4.81},
        fields | {"model": "1_4_7", "device": "NVIDIA A100", "tokens_per_s": 500.0, "peak_gib": 9.0},
    ]
    lines = lines_of(tmp_path, [
        row("1.4.0", "plain", "val_loss", 3.0, 0.01), row("1.4.0", "plain", "tokens_per_s", 5e5, None, unit="tokens/s"),
        row("1.4.7", "memory", "val_loss", 3.0, 0.01),
        row("1.4.7", "memory", "peak_gpu_mib", 2048, None, unit="MiB", machine="NVIDIA H200"),
    ], benchmarks)  # fmt: skip
    assert lines["1.4.0"][9:11] == ["1,421,000", "4.8"] and lines["1.4.7"][9:11] == ["未测", "2.0 (H200)"]
    assert "基准 `step`: 机器 NVIDIA H100 80GB; 2026-11-27。" in lines["footnote"]


def test_what_the_shown_protocol_cannot_tell_is_told_by_the_next_that_can(tmp_path):
    own, old = {"protocol": "own-flags-42M", "seeds": [42], "values": [3.0]}, {"protocol": "wiki-49M", "split": "val"}
    asked = {"unit": "%", "n": 500}
    lines = lines_of(tmp_path, [
        row("1.4.0", "plain", "val_loss", 3.5, 0.01, **own | {"values": [3.5]}),
        row("1.4.7", "memory", "val_loss", 3.0, None, **own),
        row("1.4.7", "memory", "object", 98.0, 1.0, **asked, **own),
        row(board.ALIASES["wiki-49M", "1.4.0"], "plain", "val_loss", 3.3, 0.01, values=[3.31, 3.29], **old),
        row("1.4.7", "memory", "val_loss", 3.1, 0.01, values=[3.11, 3.09], **old),
        row("1.4.7", "memory", "tokens_per_s", 12345.0, None, unit="tokens/s", **old),
        *(row("1.4.7", arm, "object", value, 2.0, protocol="knowledge-10k", **asked)
          for arm, value in (("memory", 90.0), ("shuffled", 25.0))),
    ])  # fmt: skip
    assert lines["1.4.7"][2] == "3.000 (own-flags-42M)" and lines["1.4.7"][6] == "98.0"
    assert lines["1.4.7"][12] == (
        "Loss: 单个种子, 不下结论; Loss 更低 (wiki-49M: -0.200, 2 对 2 个种子); "
        "记忆被读取 (knowledge-10k, 打乱后 25.0%)"
    )
    assert lines["1.4.7"][9] == "12,345 (m, wiki-49M)"


def test_a_bank_that_is_not_read_is_told():
    own, shuffled = (row("1.4.7", arm, "object", value, 2.0) for arm, value in (("memory", 28.0), ("shuffled", 27.0)))
    assert board.bank_verdict(own, shuffled) == "事实未被读取"
    alone = row("1.4.7", "memory", "object", 90.0, None)
    assert board.bank_verdict(alone, shuffled) == "没有区间, 不判断记忆是否被读取"


def test_the_picture_of_the_leaderboard_shows_what_was_run_with_its_own_flags(tmp_path):
    bases = {"n1_4_0": None, "n1_4_7": "1_4_0", "n1_4_8": "1_4_7", "n1_5_0": "1_4_8", "n1_6_0": "1_4_0"}
    write_scripts(tmp_path, **bases, n1_6_12="1_6_0")
    where = {"protocol": "own-flags-42M"}
    rows = [
        row("1.4.0", "plain", "val_loss", 3.5, 0.01, **where),
        row("1.4.7", "memory", "val_loss", 3.6, None, seeds=[42], **where),
        row("1.4.8", "memory", "val_loss", 3.4, 0.02, **where), row("1.5.0", "memory", "val_loss", 3.0, 0.01),
        row("1.4.0", "plain", "val_loss", 3.3, None, protocol="own-flags-42M, time of 1.4.8"),
        row("1.4.8", "shuffled", "object", 25.0, 3.0, unit="%", **where),
        row("1.6.0", "plain", "val_loss", 2.5, None, seeds=[42], **where),
        row("1.6.12", "memory", "val_loss", 2.45, None, seeds=[42], **where),
        row("1.6.12", "memory", "object", 97.0, 2.0, unit="%", **where),
    ]  # fmt: skip
    tree = tree_of_scripts(tmp_path)
    lines = leaderboard_figure.data(Rows(rows, [], [], [], [], tree))
    told = [(line["number"], round(line["gap"], 3), line["half"], line["seeds"]) for line in lines]
    assert told == [
        ("1.6.12", -0.05, None, 1),  # against 1.6.0
        ("1.6.0", -1.0, None, 1),
        ("1.4.8", -0.1, pytest.approx(0.02), 2),
        ("1.4.0", 0, pytest.approx(0.01), 2),
        ("1.4.7", 0.1, None, 1),
    ]
    assert lines[2]["time"] == pytest.approx(0.1) and lines[3]["time"] is None and lines[2]["shuffled"] == 25
    longer = row("1.6.0", "plain", "val_loss", 2.7, None, protocol="own-flags-42M, 2.64 times the steps")
    overfitted = Rows([*rows, longer], [], [], [], [], tree)
    assert leaderboard_figure.data(overfitted)[0]["time"] == pytest.approx(-0.05)  # the best within that time
    assert equal_time(overfitted, "1.6.12", ("memory",)) == "-0.050 (-2.0%), own-flags-42M; 1.6.0 训练更久更差"
    drawn = leaderboard_figure.draw(lines, LIGHT)
    assert "1.4.8, n 2: 3.400" in drawn and "1.5.0" not in drawn and drawn.count(">not shuffled<") == 1
    assert "loss minus that of 1.4.0" in drawn and "(1.6.12: of 1.6.0), nats a token" in drawn
    chinese = leaderboard_figure.draw_chinese(lines, LIGHT)
    assert "Loss 减去 1.4.0 的 Loss" in chinese and "(1.6.12 减去 1.6.0 的), nat/token" in chinese
    assert "nats a token" not in chinese
    assert chinese.count(">未测打乱<") == 1 and "打乱知识库" in chinese and "单个种子" in chinese
    without_plain = leaderboard_figure.data(Rows(rows[1:], [], [], [], [], tree))
    assert [line["number"] for line in without_plain] == ["1.6.12"]


def test_the_picture_of_the_tree_has_every_experiment_and_its_loss(tmp_path):
    write_scripts(tmp_path, n1_4_0=None, n1_4_7="1_4_0", n1_5_9_old="1_4_7")
    rows = [row("1.4.0", "plain", "val_loss", 3.0, 0.01), row("1.4.7", "memory", "val_loss", 3.15, 0.01)]
    rows += [row("1.4.7", arm, "object", value, 2.0) for arm, value in (("memory", 91.0), ("shuffled", 27.0))]
    nodes = tree_figure.data(Rows(rows, [], [], [], [], tree_of_scripts(tmp_path)))
    assert [(node["number"], node["depth"], node["percent"]) for node in nodes] == [
        ("1.4.0", 0, None), ("1.4.7", 1, 5.0), ("1.5.9.old", 2, None),
    ]  # fmt: skip
    drawn = tree_figure.draw(nodes, LIGHT)
    assert (
        "91 (27)" in drawn and "+5.0" in drawn and "not measured" in drawn and "the change of n1_4_7 goes on" in drawn
    )
    assert drawn.count("<rect") == 4  # a box for each, and a bar


def test_losses_of_all_sources_must_have_the_mean_of_the_text():
    def losses(arm: str, text: float) -> list[Row]:
        values = {"val_loss": (text, 400), "val_loss_films": (2.0, 100), "val_loss_novels": (4.0, 300)}
        return [replace(row("1.6.0", arm, name, value, 0.01), n=n) for name, (value, n) in values.items()]

    right, wrong = losses("plain", 3.505), losses("shuffled", 3.1)
    [problem] = check_sources([*right, *wrong])
    assert "shuffled" in problem and "mean loss of 3.5000, its text 3.1000" in problem
    assert not list(check_sources(wrong[:2]))  # a source is missing
