"""Generation: samples from held-out beginnings, and their coherence, fluency and diversity.

coherence: pointwise mutual information of continuation and prompt, in nats per token.
fluency:   perplexity of the continuation under the model itself, and the share of repeated 4-grams.
diversity: distinct bigrams over all bigrams of the samples (distinct-2).
"""

import math

import torch

from dataset.tokenizer import encode_texts

from .config import EvalConfig
from .language import validation_rows
from .likelihood import batches_by_length, left_padded_batches, log_likelihoods

TASK_VERSION = 1
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 8, 8, 48
TEMPERATURE, TOP_P = 0.8, 0.9


def repetition_rate(tokens: list[int], n: int = 4) -> float:
    """Share of n-grams that repeat an earlier one."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(samples: list[list[int]], n: int = 2) -> float:
    """Distinct n-grams over all n-grams."""
    grams = [tuple(tokens[i : i + n]) for tokens in samples for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def prompts_from_text(model, tokenizer, config: EvalConfig) -> list[str]:
    """The first tokens of held-out documents, evenly spaced over the file."""
    rows = validation_rows(model, tokenizer, config)
    step = max(1, (rows.last - rows.first) // PROMPTS)
    starts = rows.cache.offset_D[rows.first : rows.last][::step][:PROMPTS]
    return [tokenizer.decode(rows.cache.token_N[s + 1 : s + 1 + PROMPT_TOKENS].tolist()) for s in starts]


@torch.no_grad()
def continue_prompt(model, tokenizer, prompt: str, sample: bool, new_tokens: int = NEW_TOKENS) -> list[int]:
    """Token ids that the model adds to a prompt, greedily or by nucleus sampling."""
    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    input_ids = torch.tensor([[tokenizer.bos_token_id, *ids]], device=model.device)
    new_tokens = min(new_tokens, model.settings.max_seq_len - input_ids.shape[1])
    options = {"do_sample": True, "temperature": TEMPERATURE, "top_p": TOP_P} if sample else {"do_sample": False}
    out = model.generate(
        input_ids, attention_mask=torch.ones_like(input_ids), max_new_tokens=new_tokens,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, **options,
        **model.fixed_cache(input_ids.shape[1] + new_tokens),
    )  # fmt: skip
    return out[0, input_ids.shape[1] :].tolist()


@torch.no_grad()
def continuations(
    model, tokenizer, prompts: list[str], new_tokens: list[int], batch_size: int, most_tokens: int = 0
) -> list[str]:
    """What the model writes after each prompt, greedily.

    Args:
        new_tokens: how many tokens each prompt needs at least; it may get more.  most_tokens: as in
            `batches_by_length`.
    """
    found, lengths = [""] * len(prompts), [1 + len(ids) for ids in encode_texts(tokenizer, prompts)]
    for chosen in batches_by_length(lengths, batch_size, most_tokens):
        own, more = [prompts[i] for i in chosen], max(new_tokens[i] for i in chosen)
        ((_, input_XT, mask_XT),) = left_padded_batches(model, tokenizer, own, len(own), more)
        out_XT = model.generate(
            input_XT, attention_mask=mask_XT, max_new_tokens=more, do_sample=False,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        texts = tokenizer.batch_decode(out_XT[:, input_XT.shape[1] :], skip_special_tokens=True)
        for i, text in zip(chosen, texts, strict=True):
            found[i] = text
    return found


def generation(model, tokenizer, config: EvalConfig) -> dict | None:
    """Greedy and sampled continuations of eight held-out beginnings, with coherence, fluency and diversity."""
    if config.val_path is None:
        return None
    torch.manual_seed(config.seed)
    prompts = prompts_from_text(model, tokenizer, config)
    samples, tokens, pairs = [], [], []
    for prompt in prompts:
        greedy = continue_prompt(model, tokenizer, prompt, False)
        ids = continue_prompt(model, tokenizer, prompt, True)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        samples.append(
            {
                "prompt": prompt,
                "greedy": tokenizer.decode(greedy, skip_special_tokens=True),
                "first_10_tokens": tokenizer.decode(greedy[:10], skip_special_tokens=True),
                "sampled": text,
            }
        )
        tokens.append(ids)
        pairs.append((prompt, text))
    given = log_likelihoods(model, tokenizer, pairs, config.batch_size)
    alone = log_likelihoods(model, tokenizer, [("", text) for _, text in pairs], config.batch_size)
    n_given, n_alone = sum(n for _, n in given) or 1, sum(n for _, n in alone) or 1
    mean_given, mean_alone = sum(s for s, _ in given) / n_given, sum(s for s, _ in alone) / n_alone
    return {
        "samples": samples, "coherence_pmi": mean_given - mean_alone, "fluency_ppl": math.exp(min(-mean_given, 50.0)),
        "repetition": sum(map(repetition_rate, tokens)) / len(tokens), "distinct2": distinct(tokens),
        "n": len(samples), "seed": config.seed, "task_version": TASK_VERSION,
    }  # fmt: skip
