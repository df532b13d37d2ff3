"""A command line that is wrong ends with one sentence; the scripts of all experiments parse."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from runs.new import script_flags
from runs.scripts import scripts
from tests.conftest import tiny_model
from trainer.config import OptimConfig, RunConfig, parse_cli
from trainer.optim import lr_at, parameter_groups

SCRIPTS = scripts(Path())


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ("--n_layer 4", "unknown flag --n_layer: did you mean --n_layers?"),
        ("--knowledge_num 1000", "--knowledge_num 1000 is not a square"),
        ("--dim 100 --n_heads 32", "--dim 100 is not a multiple of --n_heads 32"),
        ("--n_heads 8 --n_kv_heads 3", "--n_kv_heads 3 does not divide --n_heads 8"),
        ("--num_selected 17", r"--num_selected 17 must lie in \[1, --num_candidates 16\]"),
        ("--num_selected 1", "--num_selected 1 cannot be trained with --selection product_key"),
        ("--retrieval ngram --query_norm", "--query_norm needs --retrieval product_key"),
        ("--retrieval ngram --retrieval_loss_coef 0.1", "--retrieval_loss_coef needs --retrieval product_key"),
        ("--retrieval_loss_coef 0.1 --ngram_lengths 9", r"--ngram_lengths \[9\] must lie in"),
        ("--retrieval_loss_coef 0.1 --ema_interval 5", "--retrieval_loss_coef needs --ema_interval 0"),
        ("--entry_rows 4", "--entry_rows needs --retrieval_loss_coef"),
        ("--entry_rows 4 --retrieval_loss_coef 1 --data_mode padded", "--entry_rows needs --data_mode packed"),
        ("--entry_rows -1", "--entry_rows must not be negative, got -1"),
        ("--teacher_forcing 0.5", "--teacher_forcing needs --retrieval_loss_coef"),
        ("--teacher_forcing 2 --retrieval_loss_coef 1", r"--teacher_forcing must lie in \[0, 1\], got 2"),
        ("--model_type model_original --retrieval_loss_coef 0.3", "they need --model_type model_memory"),
        ("--cluster_cache_path order.npz --cluster_words 99", "--cluster_words 99 exceeds --knowledge_length 8"),
        (
            "--cluster_cache_path order.npz --retrieval ngram --fusion words --keep_ffn",
            "grid of product keys: it needs",
        ),
        ("--cluster_words 8", "--cluster_words needs --cluster_cache_path"),
        ("--cluster_cache_path order.npz --cluster_words 0", "--cluster_words must be at least 1, got 0"),
        ("--memory_layers 8", r"--memory_layers 8 must lie in \[0, 7\]"),
        ("--batch_size 0", "--batch_size must be at least 1, got 0"),
        ("--freeze_ratio 1.5", r"--freeze_ratio must lie in \[0, 1\], got 1.5"),
    ],
)
def test_a_wrong_flag_is_refused_in_one_sentence(flags, sentence):
    with pytest.raises(ValueError, match=sentence) as refusal:
        parse_cli(flags.split())
    assert "\n" not in str(refusal.value)


def test_a_value_outside_the_choices_ends_without_a_usage_page():
    with pytest.raises(ValueError, match="argument --fusion: invalid choice: 'mlp'"):
        parse_cli(["--fusion", "mlp"])


def test_flags_negate_in_each_of_the_three_ways():
    assert parse_cli(["--use_moe"]).model.use_moe
    assert not parse_cli(["--use_flash_attn", "False"]).model.use_flash_attn
    assert not parse_cli(["--no_use_flash_attn"]).model.use_flash_attn


def printed(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as end:
        parse_cli(list(argv))
    assert end.value.code == 0
    return capsys.readouterr().out


def test_help_about_a_word_shows_the_flags_that_have_it(capsys):
    text = printed(capsys, "--dim", "64", "--help", "fusion")
    assert "--fusion_heads N" in text and "--fusion cross_attention:" in text and "--learning_rate" not in text
    assert printed(capsys, "--help", "--retrieval").count("--retrieval {product_key,ngram,bm25,suffix,word_keys}") == 1
    with pytest.raises(ValueError, match="no flag is about nonsense"):
        parse_cli(["--help", "nonsense"])


def test_help_shows_one_spelling_of_each_flag_and_all_are_taken(capsys):
    text = printed(capsys, "-h")
    assert (
        not re.search(r"--\w+-\w", text) and "--config FILE" in text and "  --no_" not in text.replace("--no_FLAG", "")
    )
    assert parse_cli(["--n-layers", "3", "--no-use-flash-attn"]).model.n_layers == 3


def test_flags_come_from_a_file_and_those_after_it_win(tmp_path):
    yaml = tmp_path / "flags.yaml"
    yaml.write_text(
        "dim: 64\nn_heads: 4\nlearning-rate: 1e-3\nuse_flash_attn: false\nmemory_layers: [1, 2]\nout_dir: out/a b\n"
        "database_init_path: null\nmodel_type: model_original\n"
    )
    flags = parse_cli(["--config", str(yaml), "--dim", "32"])
    assert (flags.model.dim, flags.model.n_heads, flags.optim.learning_rate) == (32, 4, 1e-3)
    assert not flags.model.use_flash_attn and flags.model.memory_layers == [1, 2] and flags.run.out_dir == "out/a b"
    assert flags.data.database_init_path is None
    before = ["--dim", "32", "--database-init-path", "facts.json", "--seed", "7", f"--config={yaml}"]
    flags = parse_cli(before)  # the last one wins, a null too
    assert (flags.model.dim, flags.data.database_init_path, flags.run.seed) == (64, None, 7)


def test_the_flags_json_of_a_run_repeats_it(tmp_path):
    flags = parse_cli([*script_flags(Path("run_file/archive/experiment_1_6_3.sh")), "--val_path", "text.jsonl"])
    (tmp_path / "flags.json").write_text(json.dumps(flags.as_dict()))
    again = parse_cli(["--config", str(tmp_path / "flags.json")])
    kept = {"out_dir": flags.run.out_dir, "experiment": flags.run.experiment}
    kept |= {"base_experiment": flags.run.base_experiment}
    assert replace(again, run=replace(again.run, **kept)) == flags


def test_the_flags_json_of_a_run_leaves_its_folder_and_record_behind(tmp_path):
    own = "--out_dir theirs --experiment 9_9_9 --experiment_dir their --base_experiment 9.9.8 --baseline b --no_resume"
    flags = parse_cli([*own.split(), "--dim", "64"])
    for name in ("flags.json", "flags.yaml"):
        (tmp_path / name).write_text(json.dumps(flags.as_dict()))
    again = parse_cli(["--config", str(tmp_path / "flags.json")])
    assert again.run == RunConfig() and again.model.dim == 64
    again = parse_cli(["--out_dir", "mine", "--config", str(tmp_path / "flags.json")])
    assert again.run.out_dir == "mine" and again.run.resume
    assert parse_cli(["--config", str(tmp_path / "flags.yaml")]) == flags


def test_a_value_of_a_file_is_the_text_that_stands_there(tmp_path):
    (tmp_path / "flags.yaml").write_text('experiment: 1_4_8\nseed: 010\ncache_dir: "null"\nval_path: ~\n')
    flags = parse_cli(["--val_path", "text.jsonl", "--config", str(tmp_path / "flags.yaml")])
    assert (flags.run.experiment, flags.run.seed) == ("1_4_8", 10)
    assert (flags.data.cache_dir, flags.data.val_path) == ("null", None)


@pytest.mark.parametrize("argv", [["--config"], ["--config="], ["--config", "--dim", "64"]])
def test_config_without_a_file_is_refused(argv):
    with pytest.raises(ValueError, match="--config needs a value: give a YAML file"):
        parse_cli(argv)


@pytest.mark.parametrize(
    "content, sentence",
    [
        ("n_layer: 4", r"--config .*flags.yaml has unknown flag --n_layer: did you mean --n_layers\?"),
        ("[1, 2]", "holds no flags: write one a line, such as dim: 256"),
        ("dim: [", "is not valid YAML"),
        ("batch_size: 0", "--batch_size must be at least 1, got 0"),
        ("", "is empty: give another --config"),
        ("ngram_lengths: []", "--config .*flags.yaml has --ngram_lengths without a value: give one, or leave"),
        ("dim:\nseed: 1", "has --dim without a value"),
        ("seed: ~", "has --seed null, which it cannot be: give a value"),
        ("dim: 64\ndim: 32", "has --dim twice: leave one out"),
        ("model:\n  n-heads: 4\n--n_heads: 8", "has --n_heads twice"),
    ],
)
def test_a_file_that_holds_no_flags_is_refused(tmp_path, content, sentence):
    (tmp_path / "flags.yaml").write_text(content)
    with pytest.raises(ValueError, match=sentence):
        parse_cli(["--config", str(tmp_path / "flags.yaml")])
    with pytest.raises(FileNotFoundError, match="there is no file"):
        parse_cli(["--config", str(tmp_path / "other.yaml")])


def test_every_experiment_asks_a_question_and_the_last_flag_wins():
    """tests/runs/test_experiment.py checks that each script parses, and belongs to the experiment of its name."""
    assert [script for script in SCRIPTS if not re.search(r"^# Question: ", script.read_text(), re.MULTILINE)] == []
    flags = parse_cli([*script_flags(Path("run_file/experiment_1_6_24.sh")), "--batch_size", "7"])
    assert flags.optim.batch_size == 7 and flags.run.experiment_id == "1_6_24"


def test_there_is_a_script_for_every_experiment_of_the_design():
    names = {script.stem.removeprefix("experiment_") for script in SCRIPTS}
    variants = {"concat", "heads4", "heads16", "dropout_uniform", "dropout_none"}
    assert names >= {"1_4_0", "1_4_7", "1_4_8", "1_4_10"} | {f"1_4_8_{variant}" for variant in variants}


def test_the_learning_rate_rises_peaks_and_falls_to_its_end():
    config = OptimConfig(learning_rate=1.0, warmup_ratio=0.1, min_lr_ratio=0.1)
    rates = [lr_at(step, 100, config) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert max(rates) == 1.0 and rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


@pytest.mark.parametrize("schedule, middle", [("linear", None), ("wsd", 0.5), ("wsd_sqrt", 1 - 0.5**0.5)])
def test_other_schedules_fall_to_zero_and_wsd_only_at_the_end(schedule, middle):
    config = OptimConfig(learning_rate=2.0, warmup_ratio=0.1, min_lr_ratio=0.0, lr_schedule=schedule, decay_ratio=0.4)
    rates = [lr_at(step, 100, config) for step in range(101)]
    assert rates[9] == 2.0 and rates[100] == 0
    assert all(a >= b for a, b in zip(rates[9:], rates[10:], strict=False))
    if schedule == "linear":
        assert rates[10 + 45] == pytest.approx(1.0)
    else:
        assert set(rates[10:61]) == {2.0} and rates[61] < 2.0
        assert rates[80] == pytest.approx(2.0 * middle)


def test_a_cool_down_of_all_steps_is_the_line_and_one_of_none_stays_up():
    line, whole, none = (
        OptimConfig(lr_schedule=name, decay_ratio=ratio) for name, ratio in (("linear", 0), ("wsd", 1), ("wsd", 0))
    )
    assert [lr_at(step, 50, line) for step in range(50)] == [lr_at(step, 50, whole) for step in range(50)]
    assert lr_at(49, 50, none) == none.learning_rate


def test_every_parameter_is_in_one_group_and_norms_do_not_decay():
    model = tiny_model()
    groups = parameter_groups(model, OptimConfig(memory_lr_scale=3.0))
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    by_name = {group["name"]: group for group in groups}
    assert by_name["norms"]["weight_decay"] == 0 and by_name["memory"]["lr_scale"] == 3.0
