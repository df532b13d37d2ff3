"""Pretrain `model_original` or `model_memory`: a run from top to bottom.

    accelerate launch train_pretrain_accelerate.py --model_type model_memory --out_dir out/my_run

A run folder holds flags.json, run.json, metrics.jsonl, train.log, checkpoints and the final weights. Started again with
the same command, an interrupted run goes on where it was. The scripts in run_file/ hold the flags of each experiment.
"""

import logging
from contextlib import closing

from transformers.utils import logging as transformers_logging

from common.cli import run_command
from evaluation.while_training import ValidationQuestions
from runs.folder import RunFolder
from runs.metrics import log_text
from trainer.checkpoint import Checkpoints, save_result
from trainer.config import Flags, parse_cli
from trainer.data import Data, load_data, make_loader, require_inputs
from trainer.flops import mfu_per_speed
from trainer.meters import Meter, explained_out_of_memory, memory_readings
from trainer.optim import lr_at
from trainer.peers import Peers
from trainer.start import make_model, start
from trainer.state import TrainState
from trainer.step import TrainStep
from trainer.stop import Stop
from trainer.validate import validate

log = logging.getLogger("run")


def main() -> int:
    transformers_logging.disable_progress_bar()
    flags = parse_cli()
    require_inputs(flags)  # refuses before anything is started or written
    accelerator = start(flags)
    stop = Stop(accelerator.num_processes)
    with Peers(accelerator) as peers, RunFolder.open(flags, accelerator, stop, peers) as run:
        with run.stage("data"):
            data = load_data(flags, accelerator, run)
        with run.stage("model"):
            model = make_model(flags, data.bank, accelerator)
            n_parameters = sum(parameter.numel() for parameter in model.parameters())
            run.set(parameters=n_parameters)
            run.note(f"{n_parameters / 1e6:.2f} M parameters")
        with run.stage("train"), explained_out_of_memory(accelerator.device, flags.optim, flags.model.max_seq_len):
            train(flags, accelerator, model, data, run, stop)
        if accelerator.is_main_process:
            save_result(run.path, model, data.tokenizer)
    return stop.exit_code


def train(flags: Flags, accelerator, model, data: Data, run: RunFolder, stop: Stop) -> None:
    """Each turn is one optimizer step; then, where due: log, validate, save."""
    device, every, optim = accelerator.device, flags.run, flags.optim
    step = TrainStep(model, flags, accelerator, stop)
    loader = make_loader(data, flags, accelerator)
    state = TrainState.fresh(loader, flags, accelerator, data.inputs)
    checkpoints = Checkpoints(run.path, model, step.optimizer, every.keep_checkpoints, accelerator)
    checkpoints.resume(state)
    run.rewind(state)
    questions = ValidationQuestions(flags, model, data.tokenizer, data.bank, accelerator)
    stop.waits_for_step = True

    batches = step.prepared(loader.iterate(state.step * optim.accumulation_steps))
    meter = Meter(state, accelerator, log_text, mfu_per_speed(model, accelerator, optim.dtype))
    with closing(batches), meter:
        while state.step < state.total_steps:
            lr = lr_at(state.step, state.total_steps, optim)
            outcome = step(batches, lr, timed=state.due(every.log_interval, ahead=1))
            state.advance(outcome)
            model.after_step(state.step, outcome, accelerator)  # moving averages of the bank; nothing in the baseline
            meter.add(outcome)

            with meter.paused():
                if state.due(every.log_interval):
                    run.log(state.step, meter.read() | model.metrics(accelerator, every.log_interval))
                    state.refuse_divergence(every.max_skipped_in_row, outcome.first_bad)
                if state.due(every.memory_monitor_interval):
                    run.log(state.step, memory_readings(device))
                if state.due(every.eval_interval):
                    val_loss = validate(model, data.val, flags, accelerator)
                    state.note(val_loss)
                    run.log(state.step, questions.ask() | meter.read_validation(val_loss))
                if state.due(every.save_interval) or (state.is_best and every.keep_best):
                    checkpoints.save(state)
            if stop.asked():
                break
    if stop.asked(late=0):
        checkpoints.save(state, stopping=True)
        log.info("stopped by signal %d at step %d; the same command goes on", stop.received, state.step)


def command() -> None:
    """`main`, and exit: with one sentence that says what is wrong, if something is."""
    run_command(main, FloatingPointError, MemoryError)


if __name__ == "__main__":
    command()
