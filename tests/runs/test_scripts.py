"""The parts of the bash scripts that no training runs through."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT, PARTS = Path(__file__).parents[2], ("train", "dev")


def bash(text: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def test_the_progress_of_runs_is_told_and_a_failure_handed_on(tmp_path):
    for name, line in (("plain", "INFO step 20/250 loss 5.1234 lr 0.002"), ("memory", "INFO started")):
        (tmp_path / f"out/{name}").mkdir(parents=True)
        (tmp_path / f"out/{name}/train.log").write_text(f"2026-11-28 20:00:00 {line}\n")
    follow = f"source {ROOT}/run_file/_progress.sh; sleep 2 & a=$!; (sleep 0.6; exit 3) & follow plain=$a memory=$!"
    done = bash(follow, tmp_path)
    assert done.returncode == 3
    assert "plain: step 20/250 loss 5.1234 | memory: starting" in done.stdout
    (tmp_path / "out/plain.eval.log").write_text("evaluating: object\nevaluating: object, bank shuffled\n  0%|")
    done = bash(f"source {ROOT}/run_file/_progress.sh; sleep 0.1 & follow plain=$!", tmp_path)
    assert done.returncode == 0 and "plain: evaluating: object, bank shuffled" in done.stdout


def test_the_environment_is_built_once_and_a_failure_is_one_sentence(tmp_path):
    (tmp_path / "run_file").mkdir()
    (tmp_path / "run_file/_env.sh").symlink_to(ROOT / "run_file/_env.sh")
    (tmp_path / "requirements.txt").write_text("")
    tools = tmp_path / "tools"
    tools.mkdir()
    # A python3 that makes a .venv whose pip does what a file says.
    (tools / "python3").write_text(
        '#!/bin/sh\necho "$@" >> calls\n'
        '[ "$2" != venv ] || { mkdir -p .venv/bin; cp tools/python3 .venv/bin/python; }\n'
        '[ "$2" != pip ] || exit "$(cat pip_ends_with)"\n'
    )
    (tools / "python3").chmod(0o755)
    (tmp_path / "pip_ends_with").write_text("1")
    path = f"{tools}:{os.environ['PATH']}"
    script = "source run_file/_env.sh; echo $PYTHON"
    failed = bash(script, tmp_path, PATH=path, PYTHON="")
    assert failed.returncode == 1 and "error: pip could not install requirements.txt" in failed.stderr
    (tmp_path / "pip_ends_with").write_text("0")
    for _ in range(2):
        assert bash(script, tmp_path, PATH=path, PYTHON="").stdout.endswith(".venv/bin/python\n")
    calls = (tmp_path / "calls").read_text()
    assert calls.count("-m pip install") == 2
    assert bash(script, tmp_path, PYTHON="mine").stdout == "mine\n"


def test_a_variant_is_refused_at_once_without_the_quick_start(tmp_path):
    shutil.copytree(ROOT / "run_file", tmp_path / "run_file")
    environment = os.environ | {"PYTHON": "false"}  # whatever is started fails
    for missing in (
        "dataset/quickstart/train.jsonl",
        "out/quickstart_plain/eval.json",
        "out/quickstart_memory/eval.json",
    ):
        command = ["bash", "run_file/variant_cpu.sh", "mine"]
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert ended.returncode == 1 and f"there is no {missing}: run bash run_file/quickstart.sh" in ended.stderr
        (tmp_path / missing).parent.mkdir(parents=True)
        (tmp_path / missing).touch()


def test_entries_in_the_prompt_need_two_runs_and_questions(tmp_path):
    shutil.copytree(ROOT / "run_file", tmp_path / "run_file")
    environment = {"PYTHON": "false", "PLAIN": str(tmp_path), "MEMORY": "out/nowhere"}  # whatever is started fails
    ended = bash("bash run_file/incontext.sh", tmp_path, **environment)
    assert ended.returncode == 1 and "error: MEMORY='out/nowhere' is not there: name two trained runs" in ended.stderr


def test_asked_names_every_file_that_is_missing_at_once(tmp_path):
    names = "merged_pretrain", "pretrain_val", *(f"{kind}_train" for kind in ("object_mcq", "relation_mcq"))
    for name in names:
        (tmp_path / f"{name}.jsonl").touch()
    environment = os.environ | {"DATA": str(tmp_path), "PYTHON": "false"}
    ended = subprocess.run(["bash", ROOT / "run_file/asked.sh"], capture_output=True, encoding="utf-8", env=environment)
    missing = "sentence_trex_data.json object_mcq_dev.jsonl relation_mcq_dev.jsonl fact_verification_train.jsonl"
    assert ended.returncode == 1 and len(ended.stderr.splitlines()) == 1
    assert f"{tmp_path} has no {missing} fact_verification_dev.jsonl: name a folder" in ended.stderr


@pytest.mark.parametrize("experiment, makes", [("1_6_35", True), ("1_6_14", False)])
def test_asked_learns_other_words_without_the_wordings_kept_back(experiment, makes, tmp_path):
    """A stand-in for Python writes down what it is called with, and prints a line."""
    shutil.copytree(ROOT / "run_file", tmp_path / "run_file")
    (tmp_path / "dataset").mkdir()
    shutil.copy(ROOT / "dataset/also_words.txt", tmp_path / "dataset")
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/bash\necho "$@" >> calls\n[[ $2 != dataset.also_words ]] || echo "album=song"\n'
        "[[ $2 != dataset.invented ]] || mkdir -p dataset/asked/invented\n"
    )
    python.chmod(0o755)
    names = [f"{kind}_{part}.jsonl" for kind in ("object_mcq", "relation_mcq", "fact_verification") for part in PARTS]
    for name in ("merged_pretrain.jsonl", "pretrain_val.jsonl", "sentence_trex_data.json", *names):
        (tmp_path / name).touch()
    environment = {"PYTHON": str(python), "DATA": ".", "EXPERIMENT": experiment, "KEPT_BACK": "0.15"}
    ended = bash("bash run_file/asked.sh", tmp_path, **environment)
    assert ended.returncode == 0, ended.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert sum("dataset.also_words" in call and "--kept_back 0.15" in call for call in calls) == makes
    (training,) = (call for call in calls if "--out_dir out/asked_1_6" in call)
    assert training.endswith("--bm25_also_words album=song") == makes


def test_an_environment_behind_a_symbolic_link_is_not_built(tmp_path):
    shutil.copytree(ROOT / "run_file", tmp_path / "run_file")
    (tmp_path / "theirs").mkdir()
    (tmp_path / ".venv").symlink_to("theirs")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    command = ["bash", "-c", "source run_file/_env.sh; echo $PYTHON"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (ended.stdout, list((tmp_path / "theirs").iterdir())) == (".venv/bin/python\n", [])


def test_the_middle_size_needs_its_text_and_trains_the_models_that_are_named(tmp_path):
    """A stand-in for Python writes down what it is called with, and leaves the results of an evaluation."""
    shutil.copytree(ROOT / "run_file", tmp_path / "run_file")
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\necho "$@" >> calls\n[ "$2" != --run ] || { mkdir -p $3; touch $3/eval.json; }\n')
    python.chmod(0o755)
    (tmp_path / "dataset/quickstart").mkdir(parents=True)
    names = dict.fromkeys(("TEXT", "VAL", "SENTENCES"), str(tmp_path / "text.zst")) | {"PYTHON": str(python)}

    def middle(models: str) -> tuple[str, list[list[str]]]:
        ended = bash("bash run_file/middle.sh --dim 64", tmp_path, **names, MODELS=models)
        calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
        return ended.stderr, [call.split() for call in calls]

    assert "text.zst: run bash run_file/data.sh wikipedia first" in middle("plain memory")[0]
    (tmp_path / "text.zst").touch()
    error, calls = middle("plane")
    assert "error: MODELS has 'plane'" in error and not calls
    error, calls = middle("memory")
    trained, evaluated = calls[-2:]
    assert not error and [call[0] for call in calls].count("train_pretrain_accelerate.py") == 1
    assert trained[-2:] == ["--dim", "64"] and "model_memory" in trained and "--reserve_entries" in trained
    assert evaluated[evaluated.index("--arms") :][:5] == "--arms bank shuffled bank counterfactual".split()
    (tmp_path / "calls").unlink()
    _, calls = middle("plain memory")
    assert calls[-1] == "eval_model.py --compare out/middle_plain_seed42 out/middle_memory_seed42".split()
    assert [call[0] for call in calls].count("train_pretrain_accelerate.py") == 2


@pytest.mark.slow
def test_the_evaluation_follows_the_folder_that_a_file_of_flags_names(tmp_path):
    """A stand-in for Python that writes down what it is called with, and answers as the real one where asked."""
    (tmp_path / "flags.yaml").write_text("out_dir: out/from the file\n")
    stand_in = tmp_path / "python"
    stand_in.write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/calls\n[ "$1" != -c ] || exec {sys.executable} "$@"\n')
    stand_in.chmod(0o755)
    command = ["bash", "run_file/_launch.sh", "--out_dir", "out/mine", "--config", str(tmp_path / "flags.yaml")]
    ended = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHON": str(stand_in)}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "calls").read_text().splitlines()[-1] == "eval_model.py --run out/from the file"


@pytest.mark.parametrize(
    "flags, evaluates",
    [("", True), ("--num_machines 2 --machine_rank 0", True), ("--num_machines 2 --machine_rank 1", False),
     ("--nnodes 16 --node_rank=10", False)],
)  # fmt: skip
def test_of_several_machines_the_first_one_evaluates(tmp_path, flags, evaluates):
    stand_in = tmp_path / "python"
    stand_in.write_text(f'#!/bin/bash\n[ "$1" = -c ] || echo "$@" >> {tmp_path}/calls\n')
    stand_in.chmod(0o755)
    environment = os.environ | {"PYTHON": str(stand_in), "NUM_PROCESSES": "2", "ACCELERATE_FLAGS": flags}
    environment.pop("EVALUATE", None)
    subprocess.run(["bash", "run_file/_launch.sh", "--out_dir", "out/mine"], cwd=ROOT, env=environment, check=True)
    training, *rest = (tmp_path / "calls").read_text().splitlines()
    assert "--num_processes 2" in training and f"{flags} train_pretrain_accelerate.py" in training
    assert rest == (["eval_model.py --run out/mine"] if evaluates else [])
