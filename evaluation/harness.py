"""Evaluate a run with lm-evaluation-harness: any of its tasks, and local ones.

python -m evaluation.harness --run out/quickstart_memory --tasks my_task --include_path tasks/

It needs `pip install "lm-eval[hf]"`. After `import model`, the harness's own command line can load a run too: a run
folder is in the format of transformers.
"""

import json
import sys
from pathlib import Path

from tokenizers.processors import TemplateProcessing

from common.cli import CommandParser, choose_device, positive_int, run_command
from dataset.tokenizer import load_tokenizer
from model import load_run

from .results import ResultFile, about_evaluation

FILE = "harness.json"


def open_tasks(names: list[str], include_path: str | None):
    """The harness's manager of tasks, which knows all of these names.

    Raises:
        ValueError: it does not.
    """
    from lm_eval.tasks import TaskManager

    if include_path and not Path(include_path).is_dir():
        raise ValueError(f"there is no folder {include_path}: give another --include_path")
    manager = TaskManager(include_path=include_path)
    for name in names:
        if name not in manager.all_tasks:
            raise ValueError(f"the harness has no task {name!r}: give another of --tasks, or its --include_path")
    return manager


def wrapped(trained, tokenizer, batch_size: int, device):
    """The model as the harness takes it: every text begins with the begin token, once, as in the training.

    The harness leaves that to the tokenizer, except for text that it rolls over, before which it puts the token itself.
    """
    from lm_eval.models.huggingface import HFLM

    bos = tokenizer.bos_token, tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=[bos[0], "$A"], special_tokens=[bos])

    class Wrapped(HFLM):
        def loglikelihood_rolling(self, *args, **options):
            self.add_bos_token = False
            try:
                return super().loglikelihood_rolling(*args, **options)
            finally:
                self.add_bos_token = True

    return Wrapped(
        pretrained=trained, tokenizer=tokenizer, backend="causal", batch_size=batch_size, device=str(device),
        add_bos_token=True, max_length=trained.settings.max_seq_len,
    )  # fmt: skip


def run_harness(run_dir: Path, names: list[str], include_path: str | None, limit: int | None, device, batch_size: int):
    """The harness's results for each task, by name; stored one by one."""
    from lm_eval import simple_evaluate

    manager = open_tasks(names, include_path)
    results = ResultFile(run_dir, about_evaluation(run_dir, device, limit), FILE)
    results.require_writable()
    model = wrapped(load_run(run_dir, device), load_tokenizer(run_dir, "run"), batch_size, device)
    for name in names:
        made = simple_evaluate(model, tasks=[name], task_manager=manager, limit=limit, bootstrap_iters=1000)["results"]
        for task, result in made.items():
            results.add(task, "", result)
        print(json.dumps(made, indent=2, default=str), flush=True)
    results.close()
    return results


def main() -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="run folder")
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
    device = choose_device(args.device)
    results = run_harness(args.run, args.tasks, args.include_path, args.limit, device, args.batch_size)
    if results.larger:
        kept = "; ".join(results.larger)
        print(f"{results.path.name} keeps its results of more examples: {kept}", file=sys.stderr)
    if results.problem:
        raise ValueError(f"the results above are not stored in {args.run} ({results.problem})")


if __name__ == "__main__":
    run_command(main)
