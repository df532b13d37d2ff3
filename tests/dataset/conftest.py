"""A tiny tokenizer and small files that the tests of the data share."""

import json

import pytest

from dataset.tokenizer import train_tokenizer

TEXTS = [f"Document {number} tells of the year {1800 + number}. " * (1 + number % 7) for number in range(40)]


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(iter(TEXTS), vocab_size=300)


@pytest.fixture
def write(tmp_path):
    """write(name, lines): a file of these lines; what is not a string is written as JSON."""

    def write_file(name, lines):
        path = tmp_path / name
        lines = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        path.write_text("".join(line + "\n" for line in lines))
        return path

    return write_file
