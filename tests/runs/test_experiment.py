"""The commands about experiments: list, compare, fill, check, new."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from common.cli import run_command
from runs.__main__ import cut, main
from runs.blanks import open_blanks
from runs.check import check_record, check_script
from runs.compare import compare, groups_of, list_runs, verdict
from runs.metrics import metric
from runs.new import new_experiment, next_steps, script_flags
from runs.record import fill_record
from runs.run import Run, open_run, open_runs
from tests.runs.test_record import write_run
from trainer.config import parse_cli

ROOT = Path(__file__).parents[2]


def command(*arguments, root: Path, code: int = 0) -> str:
    """What `python -m experiment` prints; on failure what it says is wrong. In this process, which has its imports."""
    out, told = io.StringIO(), None
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(out):
        patched.setattr(sys, "argv", ["experiment", *map(str, arguments), "--root", str(root)])
        try:
            run_command(main)
        except SystemExit as end:
            told = end.code
    assert (1 if isinstance(told, str) else told or 0) == code, told
    return out.getvalue() if code == 0 else f"{out.getvalue()}{told}"


def run_with(path: Path, last: float, **changes) -> Run:
    """A run whose last validation loss is `last`; changes go into its flags."""
    write_run(path, seed=changes.get("seed"))
    lines = (path / "metrics.jsonl").read_text().replace('"val_loss": 2.6', f'"val_loss": {last}')
    (path / "metrics.jsonl").write_text(lines)
    flags = json.loads((path / "flags.json").read_text())
    flags["optim"] |= changes
    (path / "flags.json").write_text(json.dumps(flags))
    return Run(path)


def test_runs_that_differ_by_their_seed_alone_stand_together(tmp_path):
    runs = [run_with(tmp_path / f"a_seed_{seed}", 2.6, seed=seed) for seed in (1, 2)]
    runs.append(run_with(tmp_path / "b", 2.6, seed=1, learning_rate=0.1))
    groups = groups_of(runs)
    assert {label: len(group) for label, group in groups.items()} == {"a x 2": 2, "b": 1}


def test_compare_tells_flags_results_and_the_winner(tmp_path):
    runs = [run_with(tmp_path / f"a_seed_{s}", loss, seed=s, dtype="x") for s, loss in ((1, 2.60), (2, 2.62))]
    runs += [run_with(tmp_path / f"b_seed_{s}", loss, seed=s, dtype="y") for s, loss in ((1, 2.50), (2, 2.51))]
    differing, results = compare(runs)
    assert {"flag": "dtype", "a x 2": "x", "b x 2": "y"} in differing.rows
    assert not any(row["flag"] == "dim" for row in differing.rows)
    loss = next(row for row in results.rows if row["result"] == "val loss")
    assert loss["a x 2"]["text"] == "2.6100 ± 0.0141" and loss["winner"].startswith("b x 2 by 0.1050 ± ")
    assert loss["winner"].endswith("p 0.027")
    tokens = next(row for row in results.rows if row["result"] == "tokens learnt")
    assert tokens["winner"] == ""


def test_where_more_is_better_the_higher_wins():
    assert verdict({"a": [1.0, 1.1], "b": [2.0, 2.1]}, metric("tokens_per_s")).startswith("b by 1")


def test_the_list_tells_the_state_of_every_run(tmp_path):
    write_run(tmp_path / "one")
    write_run(tmp_path / "two", state="running")
    write_run(tmp_path / "sweep/three", state="failed", losses=[])
    told = json.loads(command("list", "--format", "json", root=tmp_path))[f"runs in {tmp_path}"]
    assert {Path(row["run"]).name: row["state"] for row in told} == {
        "one": "finished", "two": "killed", "three": "failed",
    }  # fmt: skip
    assert list_runs([Run(tmp_path / "one")]).rows[0]["loss"] == 2.4
    assert "| " + str(tmp_path / "one") in command("list", "--format", "markdown", root=tmp_path)
    own_process = [sys.executable, "-m", "experiment", "list", "--root", str(tmp_path)]
    assert "9_9_9" in subprocess.run(own_process, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_compare_and_show_print_and_draw(tmp_path):
    run_with(tmp_path / "a", 2.6, seed=1)
    run_with(tmp_path / "b", 2.5, seed=1, dtype="x")
    told = command("compare", "mine=a", tmp_path / "b", "--axis", "tokens", root=tmp_path)
    assert told.count("one seed each: no winner is named") == 1 and "mine" in told
    assert any(line.split()[-1] == "0.1000" for line in told.splitlines() if line.startswith("  val loss"))
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert "2.5000" in command("show", "b", root=tmp_path)
    assert "compare needs two different runs" in command("compare", "a", "a", root=tmp_path, code=1)
    assert "nowhere has no run.json" in command("show", "nowhere", root=tmp_path, code=1)


def test_a_run_is_named_by_folder_name_or_number(tmp_path):
    write_run(tmp_path / "experiment_1_4_8")
    for name in (tmp_path / "experiment_1_4_8", "experiment_1_4_8", "1.4.8"):
        assert open_run(name, tmp_path).path == tmp_path / "experiment_1_4_8"
    assert len(open_runs([str(tmp_path)])) == 1


def test_fill_tells_how_many_blanks_are_left_for_people(tmp_path):
    write_run(tmp_path / "run")
    told = command("fill", "run", "--experiment_dir", tmp_path / "records", root=tmp_path)
    text = (tmp_path / "records/EXPERIMENT_9_9_9.md").read_text()
    people = sum("[待填写]" in line for line in text.splitlines() if not line.startswith(">"))
    assert people and f"{people} blanks are left for people, {len(open_blanks(text))} for an analysis" in told


def test_the_scripts_and_records_of_the_project_are_sound(tmp_path):
    """All scripts parse; tests/trainer/test_config.py has what else is true of each."""
    assert "problems of scripts, records and documents: none" in command("check", root=tmp_path)


def test_a_stale_number_and_a_damaged_marker_are_found(tmp_path):
    run = write_run(tmp_path / "out/run")
    path = fill_record(run, tmp_path)
    assert check_record(path, [Run(run)]) is None
    lines = (run / "metrics.jsonl").read_text().replace('"val_loss": 2.6', '"val_loss": 2.7')
    (run / "metrics.jsonl").write_text(lines)
    number = next(i for i, line in enumerate(path.read_text().splitlines(), 1) if "验证 Loss | 2.6" in line)
    assert check_record(path, [Run(run)]) == f"line {number} is not what {run} says: python -m experiment fill {run}"
    assert check_record(path, []) is None
    path.write_text(path.read_text().replace("`<!--BEST_LOSS:", "<!--BEST_LOSS:"))
    assert check_record(path, []).startswith("1 of ")


def test_a_script_that_does_not_start_is_found(tmp_path):
    script = tmp_path / "experiment_1_0.sh"
    for part in (ROOT / "run_file").glob("*.sh"):
        (tmp_path / part.name).symlink_to(part)
    for text, problem in (
        ("echo", "it does not start run_file/_launch.sh"),
        ('exec bash _launch.sh --n_layer 4 "$@"', "unknown flag --n_layer: did you mean --n_layers?"),
        ('exec bash _launch.sh --dtype int8 "$@"', "invalid choice"),
        ('exec bash _launch.sh --out_dir out/other "$@"', "its --out_dir belongs to experiment other"),
        ('. _base.sh; flags --n_layer 4; launch "$@"', "unknown flag --n_layer: did you mean --n_layers?"),
        ('. _base.sh; builds_on 7_7; launch "$@"', "it builds on 7_7, but there is no"),
        ('. _base.sh; builds_on 1_0; launch "$@"', "it builds on itself"),
        ('. _base.sh; flags 4; launch "$@"', "'4' stands before the first flag"),
        (". _base.sh; flags --n_layers 4", "it lists no flags"),
        (
            '# Builds on: 1.4.7\n. _base.sh; builds_on 1_4_8; launch "$@"',
            "it builds on 1.4.8, and its comment says 1.4.7",
        ),
    ):
        script.write_text(
            text.replace(" _launch.sh", f" {tmp_path}/_launch.sh").replace(" _base.sh", f" {tmp_path}/_base.sh")
        )
        assert problem in check_script(script)


@pytest.fixture
def project(tmp_path) -> Path:
    """The project, with scripts and records of its own."""
    own = ("run_file", "experiment", "dataset", "out", "stable", "cache")
    for path in (*ROOT.iterdir(), *(ROOT / "dataset").iterdir()):
        if path.name not in own and not path.name.startswith("."):
            link = tmp_path / path.relative_to(ROOT)
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(path)
    for name in ("run_file", "experiment"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_a_new_experiment_has_the_flags_of_its_base_and_the_changes(project):
    script, record = new_experiment(
        "9.9", "1.4.8", ["--fusion_heads", "16", "--keep_ffn", "--memory_layers=2"], project
    )
    old = parse_cli(script_flags(project / "run_file/experiment_1_4_8.sh")).as_dict()
    new = parse_cli(script_flags(script)).as_dict()
    changed = {name for part in old for name in old[part] if old[part][name] != new[part][name]}
    assert changed - {"swanlab_project"} == {"fusion_heads", "keep_ffn", "memory_layers", "out_dir", "base_experiment"}
    assert new["run"]["out_dir"] == "out/experiment_9_9" and new["run"]["base_experiment"] == "1.4.8"
    assert "fusion_heads -> 16, keep_ffn -> on" in script.read_text() and "[QUESTION]" in script.read_text()
    assert next_steps(script, record, project) == [
        "write its question into line 3 of run_file/experiment_9_9.sh, and its purpose into "
        "experiment/EXPERIMENT_9_9.md; then: bash run_file/experiment_9_9.sh",
        "then `python -m experiment documents` puts it into the tree and the leaderboard",
        "to take it back: rm run_file/experiment_9_9.sh experiment/EXPERIMENT_9_9.md",
    ]
    text = record.read_text()
    assert "`experiment_9_9`<!--EXPERIMENT:" in text and "| fusion_heads | `16` |" in text
    assert "[FINAL_LOSS]" in text and "**实验目的**: [待填写]" in text
    assert check_script(script) == "its question is still [QUESTION]: write the question into its comment"
    script.write_text(script.read_text().replace("[QUESTION]", "Do more heads help?"))
    assert check_script(script) is None and check_record(record, []) is None


@pytest.mark.parametrize("changes, wanted", [([], "its question into line 3 and its change into line 5"),
                                             (["--dim", "512"], "its question into line 3")])  # fmt: skip
def test_a_new_experiment_that_changes_nothing_is_warned_of(project, changes, wanted):
    told = next_steps(*new_experiment("9.9", "1.4.0", changes, project), project)
    assert told[0].startswith("warning: it changes nothing of run_file/experiment_1_4_0.sh: add a line such as `flags")
    assert told[1].startswith(f"write {wanted} of run_file/experiment_9_9.sh, and")


def test_a_line_of_the_tree_is_cut_to_the_terminal():
    assert cut("├─ 1.4.7: all", 10) == "├─ 1.4.7:…" and cut("├─ 1.4.7: all", 13) == cut("├─ 1.4.7: all", None)


@pytest.mark.parametrize(
    "number, base, changes, sentence",
    [
        ("1.4.7", "1.4.8", [], "run_file/experiment_1_4_7.sh exists already: choose another number, such as 1.4.9"),
        ("1.4.8_concat", "1.4.8", [], "experiment_1_4_8_concat.sh exists already: choose another number"),
        ("9/9", "1.4.8", [], "is no number of an experiment"),
        ("9.9", "7.7", [], "there is no script run_file/experiment_7_7.sh"),
        ("9.9", "1.4.8", ["--n_layer", "4"], "did you mean --n_layers?"),
        ("9.9", "1.4.8", ["4"], "'4' stands where a flag"),
    ],
)
def test_a_new_experiment_that_cannot_be_leaves_nothing(project, number, base, changes, sentence):
    before = sorted(project.rglob("*9_9*"))
    with pytest.raises((ValueError, FileNotFoundError), match=sentence.replace("?", r"\?")):
        new_experiment(number, base, changes, project)
    assert sorted(project.rglob("*9_9*")) == before


def test_a_flag_is_replaced_wherever_it_stands(tmp_path):
    (tmp_path / "_launch.sh").symlink_to(ROOT / "run_file/_launch.sh")
    base = (ROOT / "run_file/_base.sh").read_text().partition("\nflags --dim")[0]
    (tmp_path / "_base.sh").write_text(base + "\nflags --a 1 2 --b --c=3\n")
    script = tmp_path / "experiment_x.sh"

    def listed(*lines: str) -> list[str]:
        script.write_text("\n".join([f"source {tmp_path}/_base.sh", *lines, 'launch "$@"']))
        return script_flags(script)

    names = ["--out_dir", "out/experiment_x"]
    assert listed() == ["--a", "1", "2", "--b", "--c=3", *names]
    assert listed("flags --a 5") == ["--b", "--c=3", "--a", "5", *names]
    assert listed("flags --b yes", "flags --c -4 'two words'") == [
        "--a", "1", "2", "--b", "yes", "--c", "-4", "two words", *names,
    ]  # fmt: skip
    assert listed("flags --d") == ["--a", "1", "2", "--b", "--c=3", "--d", *names]


def test_the_scripts_resolve_to_the_flags_of_their_records():
    """Those that the record of 1.4.8 states, and those of experiments that build on others in several steps."""
    listed = script_flags(ROOT / "run_file/experiment_1_4_8.sh")
    flags = {name: value for part in parse_cli(listed).as_dict().values() for name, value in part.items()}
    stated = re.findall(r"`([^`\n]*)`<!--flag:(\w+):", (ROOT / "experiment/EXPERIMENT_1_4_8.md").read_text())
    assert len(stated) > 20
    # The run of the record read its data elsewhere, was watched more often, and had no dashboard.
    others = {"data_path", "database_init_path", "memory_monitor_interval", "use_swanlab"}
    assert {name for value, name in stated if str(flags[name]) != value} == others
    deep = parse_cli(script_flags(ROOT / "run_file/experiment_1_5_15.sh"))
    assert (deep.model.fusion, deep.model.selection, deep.model.num_candidates) == ("words", "product_key", 64)
    assert (deep.model.balance_loss_coef, deep.optim.entry_rows, deep.model.knowledge_length) == (0.01, 24, 32)
    assert deep.run.base_experiment == "1.5.14" and deep.run.swanlab_project == "MiniMind-Experiment"


def test_a_flag_on_the_command_line_of_a_script_wins():
    done = subprocess.run(
        ["bash", "run_file/experiment_1_5_2.sh", "--pointer", "--dim", "64"],
        cwd=ROOT, env=os.environ | {"LIST": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    flags = parse_cli(shlex.split(done.stdout))
    assert flags.model.pointer is True and flags.model.dim == 64 and flags.run.out_dir == "out/experiment_1_5_2"


@pytest.mark.slow
def test_the_script_of_a_new_experiment_runs_as_it_is(project):
    """With data where the script looks for it, and a base small enough for a test."""
    stable = project / "dataset/stable"
    stable.mkdir()
    texts = [{"text": f"The village of number {n} has {n * 7} houses and {n % 5} wells."} for n in range(300)]
    (stable / "merged_pretrain.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    (project / "run_file/experiment_0_1.sh").write_text(
        'source "$(dirname "${BASH_SOURCE[0]}")/_base.sh"\n'
        "flags --model_type model_original --dim 32 --n_layers 1 --n_heads 4 --max_seq_len 32 --max_steps 3 \\\n"
        "    --batch_size 2 --accumulation_steps 1 --dtype float32 --val_fraction 0.1 --log_interval 1 \\\n"
        "    --eval_batches 2 --use_swanlab False\n"
        'launch "$@"\n'
    )
    script, record = new_experiment("0.2", "0.1", ["--max_steps", "2"], project)
    environment = os.environ | {"PYTHON": sys.executable, "EVALUATE": "0", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(["bash", str(script)], cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-800:]
    assert Run(project / "out/experiment_0_2").state == "finished"
    text = record.read_text()
    assert (
        "[FINAL_LOSS]" not in text
        and "`run_file/experiment_0_2.sh`<!--SCRIPT:" in text
        and "**实验目的**: [待填写]" in text
    )
