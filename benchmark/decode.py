"""Greedy decoding with the key-value cache: tokens/s, latency of a token and of the prompt.

python -m benchmark.decode
python -m benchmark.decode --experiments 1_6_0 1_6_20 --data_path TEXT.jsonl --database_init_path KNOWLEDGE.jsonl
python -m benchmark.decode --batch_sizes 2 --prompt_tokens 20 --new_tokens 8 --dim 64 --knowledge_num 4096

A plain loop of `model(token, cache=...)` and argmax measures the model. `generate` would add the same bookkeeping to
every model. Random weights, bf16 autocast on the GPU, nothing compiled, as in the evaluation. Prompts are random, or
the beginnings of rows of --data_path: then each next token is that of the text, as the chosen ones of random weights
would be none, and how long a search takes depends on the text. The first experiment is plain: give the one whose recipe
the others share.
`fixed` is the static cache, whose steps are captured and replayed; `dynamic` is transformers' cache, kernel by kernel.
The models take turns, a prompt each. ratio: median time of a token, plain over this model, equal batch and cache.
The first steps of a prompt, which compile and capture, are reported apart.
"""

from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from common.cli import run_command
from model import build_model
from model.config import ModelConfig
from model.static_cache import EAGER_CALLS, StaticCache

from .harness import Cases, make_parser, quartiles, script_config, set_up, sizes_of, timed_ms
from .subject import Text, add_text_flags, banks_of, read_text

EXPERIMENTS = ["1_4_0", "1_4_8", "1_5_0"]
FIRST = EAGER_CALLS + 1  # steps until the first that is only replayed


@torch.no_grad()
def decode(
    model, prompt_BT: Tensor, n_new: int, fixed: bool, text_BT: Tensor | None = None
) -> tuple[float, list[float], Tensor]:
    """Milliseconds of the prompt, those of every later step, and the (B, n_new + 1) tokens that were chosen.

    Args:
        text_BT: what the model reads after the prompt; None: what it has chosen.
    """
    device = prompt_BT.device
    cache = StaticCache(prompt_BT.shape[1] + n_new) if fixed else DynamicCache(config=model.config)
    read, chosen = [prompt_BT], []

    def step():
        chosen.append(model(read[-1], cache=cache, use_cache=True, logits_to_keep=1).logits.argmax(dim=-1))
        n = len(chosen)
        read.append(chosen[-1] if text_BT is None else text_BT[:, n - 1 : n])

    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        prompt_ms = timed_ms(step, device)
        token_ms = [timed_ms(step, device) for _ in range(n_new)]
    return prompt_ms, token_ms, torch.cat(chosen, dim=1)


def ready(config: ModelConfig, bank_of: Callable, text: Text | None, device):
    """A model with random weights and, if it reads one, its bank."""
    torch.manual_seed(0)
    model = build_model(config, bank_of(config) if config.reads_bank else None)
    if text and config.reads_bank:
        model.bank.spell(text.tokenizer)
    return model.to(device).eval()


def texts(text: Text | None, shape: tuple[int, int, int], vocab_size: int) -> Tensor:
    """(prompts, batch, tokens) int64: the beginnings of rows of the text, or random tokens.

    Raises:
        ValueError: the text has too few rows, or they are too short.
    """
    if text is None:
        return torch.randint(3, vocab_size, shape, generator=torch.Generator().manual_seed(0))
    n_rows = shape[0] * shape[1]
    if n_rows > len(text.rows):
        raise ValueError(f"--data_path has {len(text.rows)} rows, and {n_rows} are needed: lower --prompts")
    row_XT = text.rows.fetch(np.arange(n_rows))["input_ids"]
    if row_XT.shape[1] < shape[2]:
        raise ValueError(f"--seq_len {row_XT.shape[1]} is shorter than prompt and new tokens, {shape[2]}")
    return row_XT[:, : shape[2]].reshape(shape).long()


def main() -> None:
    parser = make_parser(__doc__, compiles=False)
    parser.add_argument("--experiments", nargs="+", default=EXPERIMENTS, help="the first is plain")
    parser.add_argument("--caches", nargs="+", default=["fixed", "dynamic"], choices=["fixed", "dynamic"])
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 32])
    parser.add_argument(
        "--prompt_tokens", type=int, default=100, help="a multiple of 128 compiles attention, as training"
    )
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=4, help="timed prompts of each model and batch size")
    parser.add_argument("--knowledge_num", type=int)
    add_text_flags(parser)
    args = parser.parse_args()
    device = set_up()
    cases = Cases("decode", args, device)

    sizes = sizes_of(args) | {"knowledge_num": args.knowledge_num}
    configs = {name: script_config(name, **sizes) for name in args.experiments}
    text = read_text(args, list(configs.values()))
    bank_of = banks_of(args, text)
    models = {}
    for name, config in configs.items():
        models[name] = cases.attempt({"model": name}, lambda config=config: ready(config, bank_of, text, device))
    models = {name: model for name, model in models.items() if model is not None}

    for batch_size in args.batch_sizes:
        shape = (args.prompts, batch_size, args.prompt_tokens + args.new_tokens)
        rows = texts(text, shape, config.vocab_size).to(device)
        prompts, later = rows[..., : args.prompt_tokens], rows[..., args.prompt_tokens :]
        measured = {}
        for turn in range(-1, args.prompts):  # the first turn warms up
            if turn > 0 and cases.time_is_over():
                break
            for (name, model), cache in product(models.items(), args.caches):
                if turn >= 0 and (name, cache) not in measured:
                    continue  # it has failed
                case = {"model": name, "cache": cache, "batch_size": batch_size}
                forced = later[turn] if text else None
                how = partial(decode, model, prompts[turn], args.new_tokens, cache == "fixed", forced)
                result = cases.attempt(case, how)
                if result is None:
                    measured.pop((name, cache), None)
                elif turn < 0:
                    measured[name, cache] = ([], [], [])
                else:
                    prompt_ms, token_ms, _ = result
                    parts = [prompt_ms], token_ms[FIRST:], [sum(token_ms[:FIRST])]
                    for times, new in zip(measured[name, cache], parts, strict=True):
                        times.extend(new)
        for (name, cache), (prompt_ms, token_ms, first_ms) in measured.items():
            low, middle, high = quartiles(token_ms)
            plain = measured.get((args.experiments[0], cache))
            cases.add(
                {"model": name, "cache": cache, "batch_size": batch_size}, token_ms=middle,
                token_ms_quartiles=[low, high], tokens_per_s=1000 * batch_size / middle,
                prompt_ms=quartiles(prompt_ms)[1], first_steps_ms=quartiles(first_ms)[1],
                ratio_to_plain=quartiles(plain[1])[1] / middle if plain else None,
                prompt_tokens=args.prompt_tokens, steps=len(token_ms), text="real" if text else "random",
            )  # fmt: skip
    columns = {"model": "", "cache": "", "batch_size": "", "tokens_per_s": ",.0f", "token_ms": ".2f"}
    print(cases.table(columns | {"prompt_ms": ".2f", "first_steps_ms": ".1f", "ratio_to_plain": ".3f"}))


if __name__ == "__main__":
    run_command(main)
