"""Evaluate a run with lm-evaluation-harness: any of its tasks, and local ones.

python -m evaluation.harness --run out/quickstart_memory --tasks my_task --include_path tasks/

It needs `pip install "lm-eval[hf]"`. After `import model`, the harness's own command line can load a run too: a run
folder is in the format of transformers.
"""

import argparse
import json
from pathlib import Path

from common.cli import choose_device, positive_int, run_command
from dataset.tokenizer import load_tokenizer
from model import load_run
from runs.run import write_json


def run_harness(
    run_dir: str, tasks: list[str], include_path: str | None, limit: int | None, device: str, batch_size: int
) -> dict:
    """The harness's results for each task."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    trained = load_run(run_dir, device)
    model = HFLM(
        pretrained=trained, tokenizer=load_tokenizer(run_dir), backend="causal", batch_size=batch_size, device=device,
        add_bos_token=True, max_length=trained.settings.max_seq_len,
    )  # fmt: skip
    manager = TaskManager(include_path=include_path)
    return simple_evaluate(model, tasks=tasks, task_manager=manager, limit=limit, bootstrap_iters=1000)["results"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="run folder")
    parser.add_argument("--tasks", nargs="+", required=True, help="names of tasks of the harness")
    parser.add_argument("--include_path", help="folder of local tasks (YAML)")
    parser.add_argument("--limit", type=positive_int, help="examples of each task, at most")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--batch_size", type=positive_int, default=16, help="sequences of a batch")
    args = parser.parse_args()
    try:
        import lm_eval  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError('lm-evaluation-harness is missing: .venv/bin/python -m pip install "lm-eval[hf]"') from None
    device = str(choose_device(args.device))
    results = run_harness(args.run, args.tasks, args.include_path, args.limit, device, args.batch_size)
    write_json(Path(args.run) / "harness.json", results)
    print(json.dumps(results, indent=2, default=str))


if __name__ == "__main__":
    run_command(main)
