"""`--knowledge_num auto`: as many entries as the knowledge file has sentences, and the places in reserve."""

from dataclasses import replace
from math import isqrt

from dataset.knowledge import count_sentences

from .config import Flags

AUTO = ("--knowledge_num", "auto")


def without_auto(argv: list[str]) -> tuple[list[str], bool]:
    """A command line without `--knowledge_num auto`, and whether it was there last of all `--knowledge_num`."""
    rest, auto, index = [], False, 0
    while index < len(argv):
        word = argv[index]
        name, given, value = word.partition("=")
        if name.replace("-", "_") != AUTO[0].replace("-", "_") or not (given or index + 1 < len(argv)):
            rest.append(word)
            index += 1
            continue
        value, length = (value, 1) if given else (argv[index + 1], 2)
        auto = value == AUTO[1]
        rest += [] if auto else argv[index : index + length]
        index += length
    return rest, auto


def sized(flags: Flags) -> Flags:
    """The flags with a bank that holds every sentence of the file, and at least `--reserve_entries` empty places.

    Product keys need a square: the places up to the next one are in reserve too. A model without a bank is left alone.

    Raises:
        FileNotFoundError, ValueError: the knowledge file is missing or malformed.
    """
    if not flags.model.reads_bank or not flags.data.database_init_path:
        return flags
    sentences = count_sentences(flags.data.database_init_path, flags.data.cache_dir)
    number = sentences + flags.data.reserve_entries
    if flags.model.retrieval_class.has_grid:
        number = (isqrt(number - 1) + 1) ** 2
    data = replace(flags.data, reserve_entries=number - sentences)
    return replace(flags, model=replace(flags.model, knowledge_num=number), data=data)
