"""Greedy decoding with the key-value cache: tokens/s, latency of a token and of the prompt.

python -m benchmark.decode
python -m benchmark.decode --batch_sizes 2 --prompt_tokens 20 --new_tokens 8 --dim 64 --knowledge_num 4096

A plain loop of `model(token, cache=...)` and argmax measures the model. `generate` would add the same bookkeeping to
every model. Random weights, fixed random prompts, bf16 autocast on the GPU, nothing compiled, as in the evaluation.
`fixed` is the static cache, whose steps are captured and replayed; `dynamic` is transformers' cache, kernel by kernel.
The models take turns, a prompt each. ratio: median time of a token, plain over this model, equal batch and cache.
The first steps of a prompt, which compile and capture, are reported apart.
"""

from functools import partial
from itertools import product

import torch
from torch import Tensor
from transformers import DynamicCache

from common.cli import run_command
from model import build_model
from model.static_cache import EAGER_CALLS, StaticCache

from .harness import Cases, make_parser, quartiles, script_config, set_up, sizes_of, timed_ms

EXPERIMENTS = ["1_4_0", "1_4_8", "1_5_0"]
FIRST = EAGER_CALLS + 1  # steps until the first that is only replayed


@torch.no_grad()
def decode(model, prompt_BT: Tensor, n_new: int, fixed: bool) -> tuple[float, list[float], Tensor]:
    """Milliseconds of the prompt, those of every later step, and the (B, n_new + 1) tokens that were chosen."""
    device = prompt_BT.device
    cache = StaticCache(prompt_BT.shape[1] + n_new) if fixed else DynamicCache(config=model.config)
    chosen = [prompt_BT]

    def step():
        out = model(chosen[-1], cache=cache, use_cache=True, logits_to_keep=1)
        chosen.append(out.logits.argmax(dim=-1))

    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        prompt_ms = timed_ms(step, device)
        token_ms = [timed_ms(step, device) for _ in range(n_new)]
    return prompt_ms, token_ms, torch.cat(chosen[1:], dim=1)


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
    args = parser.parse_args()
    device = set_up()
    cases = Cases("decode", args, device)

    models = {}
    for name in args.experiments:
        config = script_config(name, knowledge_num=args.knowledge_num, **sizes_of(args))
        torch.manual_seed(0)
        models[name] = cases.attempt({"model": name}, lambda config=config: build_model(config).to(device).eval())
    models = {name: model for name, model in models.items() if model is not None}

    for batch_size in args.batch_sizes:
        generator = torch.Generator().manual_seed(0)
        shape = (args.prompts, batch_size, args.prompt_tokens)
        prompts = torch.randint(3, config.vocab_size, shape, generator=generator).to(device)
        measured = {}
        for turn in range(-1, args.prompts):  # the first turn warms up
            if turn > 0 and cases.time_is_over():
                break
            for (name, model), cache in product(models.items(), args.caches):
                if turn >= 0 and (name, cache) not in measured:
                    continue  # it has failed
                case = {"model": name, "cache": cache, "batch_size": batch_size}
                how = partial(decode, model, prompts[turn], args.new_tokens, cache == "fixed")
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
                prompt_tokens=args.prompt_tokens, steps=len(token_ms),
            )  # fmt: skip
    columns = {"model": "", "cache": "", "batch_size": "", "tokens_per_s": ",.0f", "token_ms": ".2f"}
    print(cases.table(columns | {"prompt_ms": ".2f", "first_steps_ms": ".1f", "ratio_to_plain": ".3f"}))


if __name__ == "__main__":
    run_command(main)
