"""Pretrain `model_original` or `model_memory`: a run from top to bottom.

    accelerate launch train_pretrain_accelerate.py --model_type model_memory --out_dir out/my_run

A run folder holds flags.json, run.json, metrics.jsonl, train.log, checkpoints and the final weights. Started again with
the same command, an interrupted run goes on where it was. The scripts in run_file/ hold the flags of each experiment.
"""

import os
import shutil
import signal
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from common.constants import IGNORED
from common.files import require_file
from dataset.cache import cached_order
from dataset.knowledge import BANK_ORDER, load_bank
from dataset.pretrain import BatchLoader, PretrainDataset, open_entries, open_pretrain_data
from dataset.tokenizer import load_tokenizer
from model import build_model
from model.losses import count_targets
from runs.record import fill_record
from runs.runinfo import RunInfo, make_log, write_json
from runs.tracking import Tracker
from trainer.checkpoint import (
    BANKS,
    checkpoint_dirs,
    load_weights,
    require_whole_weights,
    resume,
    save_checkpoint,
    save_result,
)
from trainer.config import Flags, parse_cli
from trainer.meters import (
    StepGuard,
    StopSignal,
    StopVotes,
    Stopwatch,
    explained_out_of_memory,
    first_bad_gradient,
    memory_readings,
)
from trainer.optim import lr_at, make_optimizer, set_lr
from trainer.step import MicroStep, graphable

MIXED_PRECISION = {"bfloat16": "bf16", "float16": "fp16", "float32": "no"}


def require_inputs(flags: Flags) -> None:
    """Refuse a path that leads nowhere before anything is started or written."""
    data = flags.data
    require_file(data.data_path, "data_path")
    if data.val_path:
        require_file(data.val_path, "val_path")
    if flags.model.reads_bank:
        if not data.database_init_path:
            raise ValueError("model_memory needs --database_init_path, the knowledge file that fills its bank")
        require_file(data.database_init_path, "database_init_path")
    if data.init_path:
        require_file(Path(data.init_path) / "model.safetensors", "init_path")
    require_file(Path(data.tokenizer_path) / "tokenizer.json", "tokenizer_path")


def load_data(flags: Flags, accelerator: Accelerator, info: RunInfo):
    """The tokenizer, the training and validation rows, and the bank's tokens (None for the baseline)."""
    data, model = flags.data, flags.model
    tokenizer = load_tokenizer(data.tokenizer_path)
    if len(tokenizer) > model.vocab_size:
        raise ValueError(
            f"the tokenizer {data.tokenizer_path} has {len(tokenizer)} entries: pass --vocab_size {len(tokenizer)} "
            f"or more, got {model.vocab_size}"
        )
    bank = None
    # The main process builds the caches, the others then find them.
    with accelerator.main_process_first():
        if model.reads_bank:
            bank = load_bank(
                data.database_init_path, tokenizer, model.knowledge_num, model.knowledge_length, data.cache_dir
            )
            info.report("knowledge", bank.report)
        val_path = data.val_path or data.data_path
        held_out = 0.0 if data.val_path else data.val_fraction
        options = {"mode": data.data_mode, "cache_dir": data.cache_dir}
        train = open_pretrain_data(
            data.data_path, tokenizer, model.max_seq_len, part="train", val_fraction=held_out, **options
        )
        val = open_pretrain_data(
            val_path, tokenizer, model.max_seq_len, part="train" if data.val_path else "val",
            val_fraction=held_out, **options,
        )  # fmt: skip
        info.report("train", train.report)
        info.report("val", val.report)
    return tokenizer, train, val, bank


def make_model(flags: Flags, bank, accelerator: Accelerator) -> torch.nn.Module:
    set_seed(flags.run.seed)
    tokens = None if bank is None else torch.tensor(bank.tokens)
    model = build_model(flags.model, tokens, seed=flags.run.seed).to(accelerator.device)
    order_N = None
    if bank is not None and flags.data.cluster_cache_path:
        with accelerator.main_process_first():
            cached = partial(cached_order, flags.data.cluster_cache_path)
            order_N = model.order_by_content(flags.data.cluster_words, cached).numpy()
        if accelerator.is_main_process:
            np.save(Path(flags.run.out_dir) / BANK_ORDER, order_N)
    if flags.data.init_path:  # after the ordering, which starts the sub-keys anew
        if bank is not None and flags.model.retrieval == "product_key":
            check_order(order_N, flags.data.init_path)
        load_weights(model, flags.data.init_path)
    return model


def check_order(order_N: np.ndarray | None, init_path: str) -> None:
    """Refuse sub-keys that were trained over a bank in another order than this run's."""
    trained = Path(init_path) / BANK_ORDER
    trained_N = np.load(trained) if trained.exists() else None
    if (order_N is None) != (trained_N is None) or not (order_N is None or np.array_equal(order_N, trained_N)):
        raise ValueError(
            f"--init_path {init_path} was trained with its bank in another order, and its sub-keys fit that one alone: "
            "give the --cluster_cache_path file and the --cluster_words of that run, or none if it had none"
        )


@torch.no_grad()
def validate(model, val: PretrainDataset, flags: Flags, accelerator: Accelerator) -> float:
    """Mean loss in nats a token over the validation rows, shared out among the processes."""
    model.eval()
    batch_size, n_more = flags.optim.batch_size, flags.optim.entry_rows
    rank, world = accelerator.process_index, accelerator.num_processes
    chunks = np.array_split(np.arange(len(val)), -(-len(val) // batch_size))[: flags.run.eval_batches]
    total = torch.zeros(2, device=accelerator.device, dtype=torch.float64)
    for chunk in chunks[rank::world]:
        # Rows are repeated up to those of training, without labels: every batch has the shape that was compiled.
        batch = val.fetch(np.resize(chunk, batch_size + n_more))
        batch["labels"][len(chunk) :] = IGNORED
        batch = {name: value.to(accelerator.device) for name, value in batch.items()}
        n_targets = count_targets(batch["labels"])
        loss = model(**batch, return_logits=False).lm_loss
        total += torch.stack([loss.double() * n_targets, n_targets.double()])
    model.train()
    total = accelerator.reduce(total)
    return float(total[0] / total[1])


def train(
    flags: Flags, accelerator: Accelerator, model, rows, entries, val, tracker: Tracker, stop: StopSignal, log
) -> None:
    """The loop: accumulate, backward, clip, step, log, evaluate, save."""
    optim, run, device = flags.optim, flags.run, accelerator.device
    optimizer = make_optimizer(model, optim, device)
    loader = BatchLoader(
        rows, optim.batch_size, run.seed, accelerator.process_index, accelerator.num_processes, device.type == "cuda",
        beside=entries and (entries, optim.entry_rows),
    )  # fmt: skip
    steps_per_epoch = len(loader) // optim.accumulation_steps
    if steps_per_epoch == 0:
        raise ValueError(
            f"{flags.data.data_path} gives {len(loader)} micro-batches, fewer than one optimizer step of "
            f"--accumulation_steps {optim.accumulation_steps}: lower it, or --batch_size {optim.batch_size}"
        )
    if entries and len(entries) < optim.entry_rows * accelerator.num_processes:
        raise ValueError(
            f"the bank fills {len(entries)} rows, fewer than --entry_rows {optim.entry_rows} of "
            f"{accelerator.num_processes} processes: lower it"
        )
    total_steps = min(optim.max_steps or sys.maxsize, optim.epochs * steps_per_epoch)
    tokens_per_step = optim.batch_size * flags.model.max_seq_len * optim.accumulation_steps * accelerator.num_processes

    # What decides which rows a step learns from: a checkpoint of another split would go on elsewhere in the data.
    split = {
        "--num_processes": accelerator.num_processes, "--batch_size": optim.batch_size, "--seed": run.seed,
        "--accumulation_steps": optim.accumulation_steps, "rows of training data": len(rows),
    } | ({"--entry_rows": optim.entry_rows} if entries else {})  # fmt: skip
    state = {"step": 0, "loss_sum": 0.0, "loss_steps": 0, "best_val_loss": None, "best_step": None}
    state |= {"skipped": 0, "skipped_in_row": 0, "skipped_at_log": 0, "split": split}
    state |= resume(run.out_dir, split, model, optimizer, accelerator)
    tracker.rewind(state["step"])
    scores = Path(run.out_dir) / "eval.json"
    if accelerator.is_main_process and state["step"] < total_steps and scores.exists():
        scores.replace(scores.with_name(f"eval_step{state['step']}.json"))
        log.warning("an evaluation from before it went on at step %d was put aside: evaluate again", state["step"])
    bare, several = model, accelerator.num_processes > 1
    model, optimizer = accelerator.prepare(model, optimizer)
    compiled = device.type == "cuda" if run.use_compile is None else run.use_compile
    if compiled:
        bare.compile_parts()
    model.train()

    def forward(batch):
        return model(**batch, return_logits=False)

    obstacle = graphable(flags.model, device, accelerator.num_processes, optim.dtype, compiled)
    if run.use_cuda_graph and obstacle:
        raise ValueError(f"--use_cuda_graph is not possible: {obstacle}")
    graphed = run.use_cuda_graph is not False and obstacle is None
    micro_step = MicroStep(forward, accelerator.backward, bare.refresh, graphed)

    def save(stopping: bool = False):
        if guard.in_row and not stopping:
            log.warning("no checkpoint at step %d, which was skipped: the newest is from before it", state["step"])
            return
        state.update(guard.state(), loss_sum=float(loss_sum))
        save_checkpoint(run.out_dir, state, bare, optimizer.optimizer, run.keep_checkpoints, accelerator)

    guard, watch, votes, stops = StepGuard(device, state), Stopwatch(device), StopVotes(), False
    stop.waits_for_step = True
    batches = loader.iterate(state["step"] * optim.accumulation_steps)
    loss_sum, tokens_at_log, clock = torch.tensor(state["loss_sum"], device=device), 0, time.perf_counter()
    progress = tqdm(total=total_steps, initial=state["step"], disable=not accelerator.is_main_process, unit="step")
    while state["step"] < total_steps and not stops:
        step = state["step"]
        lr = lr_at(step, total_steps, optim)
        set_lr(optimizer, lr)
        logs_now = (step + 1) % run.log_interval == 0 or step + 1 == total_steps
        watch.begin_step(measure=logs_now)

        with watch("data"):
            window = [next(batches) for _ in range(optim.accumulation_steps)]
            targets = [count_targets(batch["labels"]) for batch in window]
            # Every token weighs the same, in whichever micro-batch or process it stands; all processes stop together.
            counts = torch.stack([*targets, torch.stack(targets).sum(), torch.tensor(stop.received is not None)])
            counts = counts.to(device, non_blocking=True)
            all_targets, stops_asked = accelerator.reduce(counts[-2:])
            if several:
                votes.cast(stops_asked)
            weights = counts[:-2] * accelerator.num_processes / all_targets
        step_loss = torch.zeros((), device=device)
        for micro_batch, weight in zip(window, weights, strict=True):
            with nullcontext() if micro_batch is window[-1] else accelerator.no_sync(model):
                out = micro_step(micro_batch, weight, 1 / optim.accumulation_steps, watch)
            step_loss += out.lm_loss.detach() * weight
        with watch("optimizer"):
            # Clipping by a norm that is not a number spreads it to every gradient.
            asks = logs_now and (run.max_skipped_in_row == 1 or bool(guard.in_row))
            first_bad = first_bad_gradient(bare) if asks else None
            grad_norm = accelerator.clip_grad_norm_(model.parameters(), optim.grad_clip or float("inf"))
            skipped = guard.step(optimizer, accelerator.reduce(step_loss), grad_norm)
            loss_sum += step_loss.masked_fill(skipped, 0.0)
            fails = logs_now and bool(guard.in_row >= run.max_skipped_in_row)
            optimizer.zero_grad(set_to_none=not graphed)
        bare.after_step(step + 1, SimpleNamespace(readings=out.readings, skipped=skipped), accelerator)

        state["step"] = step = step + 1
        state["loss_steps"] += 1
        tokens_at_log += tokens_per_step
        progress.update()
        if logs_now:
            n_skipped = int(guard.skipped) - state["skipped_at_log"]
            n_taken = state["loss_steps"] - n_skipped
            loss = float(accelerator.reduce(loss_sum, "mean")) / n_taken if n_taken else float("nan")
            speed = tokens_at_log / (time.perf_counter() - clock)
            metrics = {
                "epoch": step / steps_per_epoch, "loss": loss, "ppl": float(np.exp(min(loss, 50.0))), "lr": lr,
                "tokens": step * tokens_per_step, "tokens_per_s": speed, "grad_norm": float(grad_norm),
                "skipped_steps": state["skipped_at_log"] + n_skipped,
                **{f"aux/{name}": value.item() for name, value in out.aux_losses.items()}, **watch.shares(),
            }  # fmt: skip
            metrics |= bare.metrics(accelerator)
            tracker.log(metrics, step)
            progress.set_postfix(loss=f"{loss:.4f}", tok_s=f"{speed:,.0f}")
            log.info("step %d/%d loss %.4f lr %.3g %.0f tokens/s", step, total_steps, loss, lr, speed)
            if n_skipped:
                log.warning("%d of these %d steps were skipped: loss not finite", n_skipped, state["loss_steps"])
            if fails:
                raise FloatingPointError(
                    f"{int(guard.in_row)} steps in a row, to step {step}, had a loss or gradient that is not finite "
                    f"(first in {first_bad}); all of them were skipped, so the newest checkpoint is good: try a lower "
                    "--learning_rate or --grad_clip, or --dtype float32"
                )
            loss_sum.zero_()
            state |= {"loss_steps": 0, "skipped_at_log": state["skipped_at_log"] + n_skipped}
            tokens_at_log, clock = 0, time.perf_counter()

        pause, is_best = time.perf_counter(), False
        if step % run.memory_monitor_interval == 0 or step == total_steps:
            tracker.log(memory_readings(device), step)
        if step % run.eval_interval == 0 or step == total_steps:
            val_loss = validate(model, val, flags, accelerator)
            is_best = np.isfinite(val_loss) and (state["best_step"] is None or val_loss < state["best_val_loss"])
            if is_best:
                state |= {"best_val_loss": val_loss, "best_step": step}
            measured = {"epoch": step / steps_per_epoch, "val_loss": val_loss, "val_ppl": float(np.exp(val_loss))}
            tracker.log(measured | {"eval_s": time.perf_counter() - pause}, step)
            log.info("step %d validation loss %.4f", step, val_loss)
        if step % run.save_interval == 0 or step == total_steps or (is_best and run.keep_best):
            save()
        stops = votes.read() if several else stop.received is not None
        clock += time.perf_counter() - pause  # the tokens/s are those of training
    progress.close()
    batches.close()
    if stops or votes.read(late=0):
        stop.received = stop.received or signal.SIGTERM  # which only another process may have got
        save(stopping=True)
        log.info("stopped by signal %d at step %d; the same command goes on", stop.received, state["step"])


def main() -> int:
    transformers_logging.disable_progress_bar()
    flags = parse_cli()
    require_inputs(flags)
    require_whole_weights()
    accelerator = Accelerator(
        mixed_precision=MIXED_PRECISION[flags.optim.dtype],
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    torch.set_float32_matmul_precision("high")
    run, is_main, stop = flags.run, accelerator.is_main_process, StopSignal()
    if run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself only with this
        torch.use_deterministic_algorithms(True)
    out_dir = Path(run.out_dir)
    if is_main:
        out_dir.mkdir(parents=True, exist_ok=True)
    info = RunInfo(
        out_dir, is_main, resumes=run.resume and bool(checkpoint_dirs(out_dir)),
        name=run.name, experiment=run.experiment_id, base=run.base_experiment, baseline=run.baseline,
        target_loss=run.target_loss, seed=run.seed, processes=accelerator.num_processes,
    )  # fmt: skip
    if is_main:
        if not run.resume:
            for folder in filter(Path.exists, (*checkpoint_dirs(out_dir), out_dir / BANKS)):
                shutil.rmtree(folder)
            for name in ("eval.json", "memory_journal.jsonl", BANK_ORDER, "train.log", "model.safetensors"):
                (out_dir / name).unlink(missing_ok=True)
        write_json(out_dir / "flags.json", flags.as_dict())
    accelerator.wait_for_everyone()

    log = make_log(out_dir, writes=is_main)
    tracker = None
    try:
        with info.stage("env") as stage:
            tracker = Tracker(
                out_dir, is_main, run.use_swanlab, run.swanlab_project, run.name, flags.as_dict(), run.swanlab_mode,
                info.facts.get("swanlab"),
            )  # fmt: skip
            info.set(**tracker.facts)
            stage["notes"] = f"{accelerator.num_processes} x {accelerator.device.type}, {flags.optim.dtype}"
        with info.stage("data") as stage:
            tokenizer, rows, val, bank = load_data(flags, accelerator, info)
            entries = None
            if flags.optim.entry_rows:
                entries = open_entries(bank.tokens, tokenizer, flags.model.max_seq_len)
            stage["notes"] = f"{len(rows)} rows to train, {len(val)} to validate"
        with info.stage("model") as stage:
            model = make_model(flags, bank, accelerator)
            n_parameters = sum(parameter.numel() for parameter in model.parameters())
            info.set(parameters=n_parameters)
            stage["notes"] = f"{n_parameters / 1e6:.2f} M parameters"
        with (
            info.stage("train"),
            explained_out_of_memory(accelerator.device, flags.optim, flags.model.max_seq_len),
        ):
            train(flags, accelerator, model, rows, entries, val, tracker, stop, log)
        if is_main:
            save_result(out_dir, model, tokenizer)
        info.finish("finished" if stop.received is None else "stopped")
    except SystemExit:  # a signal that came before the first step
        info.finish("stopped")
        raise
    except BaseException:
        info.fail()
        raise
    finally:
        if tracker:
            tracker.finish(info.facts["error"])
        if is_main:
            try:
                log.info("record: %s", fill_record(out_dir, run.experiment_dir))
            # The run's own outcome, and its error, must not be hidden by it.
            except (ValueError, OSError, ImportError) as problem:
                log.error("the record was not filled: %s", problem)
                print(f"the record was not filled: {problem}", file=sys.stderr)
    return 0 if stop.received is None else stop.exit_code


def run() -> int | str:
    """`main`, or the one sentence that says what is wrong."""
    try:
        return main()
    except (ValueError, OSError, FloatingPointError, MemoryError) as problem:
        return f"error: {problem}"


if __name__ == "__main__":
    sys.exit(run())
