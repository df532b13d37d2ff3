"""The tokenizer: training a byte-level BPE, and opening a tokenizer folder.

python -m dataset.tokenizer --data dataset/a.jsonl dataset/b.tsv --out dataset/tokenizer
"""

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from common.cli import CommandParser, positive_int, run_command
from common.constants import PADDING
from common.files import read_json, read_lines, require_text

from .formats import data_files, is_json_lines, read_records, require_data

PAD, BOS, EOS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SMALLEST = 256 + len((PAD, BOS, EOS))  # a token for each byte, and the special ones
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def read_texts(path: Path, field: str = "text") -> Iterator[str]:
    """The texts of JSON Lines or parquet (`field`), of a TSV (last column), or the lines of any other file.

    Of a folder all files are read.

    Raises:
        FileNotFoundError, ValueError: missing, empty or malformed file, naming file and line.
    """
    for file in data_files(require_data(path, "data")):
        if not is_json_lines(file) and file.suffix != ".parquet":
            yield from (line.rstrip("\r\n").rsplit("\t", 1)[-1] for _, line in read_lines(file))
            continue
        for place, value in read_records(file, [field]):
            if not isinstance(value, dict) or not isinstance(value.get(field), str):
                raise ValueError(f'{place}: no "{field}" field with a string in it')
            yield require_text(value[field], place)


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with MiniMind's special tokens: ids 0 (padding, unknown), 1 (begin), 2 (end)."""
    tokenizer = Tokenizer(models.BPE())
    # A text begins with a space, as in SentencePiece: a name has the same tokens at the start of a text as inside it,
    # so n-grams of an entry's beginning match running text. ByteLevel's own option would put a space before each digit.
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(" "), normalizers.Replace(Regex(r"\A  (?! )"), " ")]
    )
    # Single digits: a year is four tokens in every context, so a model can copy and compare it digit by digit.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD, BOS, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=PAD, bos_token=BOS, eos_token=EOS,
        chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def load_tokenizer(path: str | Path, flag: str = "tokenizer_path") -> PreTrainedTokenizerFast:
    """Open a tokenizer folder; in a run folder, its longest text is the context of the model.

    Args:
        flag: the command-line flag that named the folder.
    Raises:
        FileNotFoundError: there is no tokenizer in the folder.
        ValueError: it is damaged, would run code of its own, or has no begin, end or padding token.
    """
    if not (Path(path) / "tokenizer.json").exists():
        raise FileNotFoundError(f"{path} holds no tokenizer.json: give another --{flag}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as problem:  # the Rust parser raises bare exceptions
        raise ValueError(f"{path} holds no tokenizer that can be opened ({str(problem).splitlines()[0]})") from None
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    if None in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        raise ValueError(f"{path} lacks a bos, eos or pad token: name them in its tokenizer_config.json")
    config = Path(path) / "config.json"
    if config.exists() and (context := read_json(config).get("max_seq_len")):
        tokenizer.model_max_length = context
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """Write a tokenizer folder.

    Raises:
        OSError: it cannot be written: the folder is read-only, or the disk is full.
    """
    try:
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as problem:  # the Rust writer raises bare exceptions
        raise OSError(f"no room to write a tokenizer into {folder}: make room, or name another ({problem})") from None


def vocabulary_size(tokenizer) -> int:
    """One more than the highest id: some tokenizers have unused ids between their tokens."""
    return max(tokenizer.get_vocab().values()) + 1


def with_padding_first(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same tokenizer, with the ids of its padding token and of the token with id 0 exchanged.

    A bank marks padding by id 0 (`PADDING`). In the order of GPT-2 or Qwen, id 0 is a piece of text.

    Raises:
        ValueError: the ids of this kind of tokenizer cannot be exchanged.
    """
    old = tokenizer.pad_token_id
    if old == PADDING:
        return tokenizer
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    exchanged = {old: PADDING, PADDING: old}
    vocab = spec["model"]["vocab"]
    if isinstance(vocab, dict):
        vocab[tokenizer.pad_token] = old  # an added token may be missing here
        spec["model"]["vocab"] = {token: exchanged.get(number, number) for token, number in vocab.items()}
    else:  # pairs of token and score, in the order of their ids
        if old == len(vocab):
            vocab.append([tokenizer.pad_token, 0.0])
        if old < len(vocab):
            vocab[PADDING], vocab[old] = vocab[old], vocab[PADDING]
    if "unk_id" in spec["model"]:
        spec["model"]["unk_id"] = exchanged.get(spec["model"]["unk_id"], spec["model"]["unk_id"])
    for token in spec["added_tokens"]:
        token["id"] = exchanged.get(token["id"], token["id"])
    spec["added_tokens"].sort(key=lambda token: token["id"])
    spec["post_processor"] = None  # it adds tokens around a text, by their old ids; this project adds its own
    new = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(spec)), pad_token=tokenizer.pad_token,
        bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token, unk_token=tokenizer.unk_token,
        chat_template=tokenizer.chat_template, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    if new.get_vocab() != {token: exchanged.get(number, number) for token, number in tokenizer.get_vocab().items()}:
        raise ValueError(
            f"a bank needs the padding token {tokenizer.pad_token} at id 0, and this tokenizer cannot be changed so: "
            "give another --tokenizer_path, such as one of `python -m dataset.tokenizer`"
        )
    return new


def encode_texts(tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens around it; on all cores."""
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def encode_as_text(tokenizer, text: str) -> list[int]:
    """Token ids of a text in which the names of special tokens are ordinary characters."""
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    try:
        return backend.encode(text, add_special_tokens=False).ids
    finally:
        backend.encode_special_tokens = False


def border(alone: list[int], joined: list[int]) -> int:
    """The index of the second text's first token among the tokens of two joined texts.

    A token that spans the border belongs to the second text.

    Args:
        alone: tokens of the first text.  joined: tokens of both texts together.
    """
    shorter = min(len(alone), len(joined))
    return next((i for i in range(shorter) if alone[i] != joined[i]), shorter)


def main() -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--data", nargs="+", type=Path, required=True, help="jsonl, tsv or text files")
    parser.add_argument("--field", default="text", help="field of a jsonl line that holds the text")
    parser.add_argument("--every", nargs="*", type=positive_int, help="for each file, use only every n-th text")
    parser.add_argument("--vocab_size", type=int, default=6400, help="tokens of the vocabulary")
    parser.add_argument("--out", type=Path, default=Path("dataset/tokenizer"), help="folder to write")
    args = parser.parse_args()
    strides = args.every or [1] * len(args.data)
    if len(strides) != len(args.data):
        raise ValueError(f"--every has {len(strides)} numbers for {len(args.data)} files of --data: give one for each")
    if args.vocab_size < SMALLEST:
        raise ValueError(f"--vocab_size must be at least {SMALLEST}, bytes and special tokens, got {args.vocab_size}")
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out {args.out} is a file: give a folder")
    texts = (
        text
        for path, stride in zip(args.data, strides, strict=True)
        for number, text in enumerate(read_texts(path, args.field))
        if number % stride == 0
    )
    tokenizer = train_tokenizer(texts, args.vocab_size)
    save_tokenizer(tokenizer, args.out)
    print(f"{len(tokenizer)} entries written to {args.out}")


if __name__ == "__main__":
    run_command(main)
