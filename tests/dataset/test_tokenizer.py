import pytest

from dataset.tokenizer import load_tokenizer


@pytest.mark.parametrize("text", ["Plain words, and 1984.", "  two  spaces\n\ttab", "Žďár 東京 🙂"])
def test_text_comes_back_with_a_space_before_it(text):
    tokenizer = load_tokenizer("dataset/tokenizer")
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == " " + text


def test_a_name_has_the_same_tokens_first_in_a_text_and_inside_one():
    tokenizer = load_tokenizer("dataset/tokenizer")
    first, spaced, inside = (
        tokenizer(text, add_special_tokens=False).input_ids for text in ("Lygia Pape", " Lygia Pape", "for Lygia Pape")
    )
    assert first == spaced == inside[1:]


def test_the_tokenizer_has_the_special_ids_that_the_models_expect():
    tokenizer = load_tokenizer("dataset/tokenizer")
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert len(tokenizer) == 6400
    assert tokenizer("<|im_start|>", add_special_tokens=False).input_ids == [1]
    assert len(tokenizer("in 1984", add_special_tokens=False).input_ids) == 6  # " in", " ", and a token a digit


def test_a_chat_is_framed_by_the_special_tokens():
    tokenizer = load_tokenizer("dataset/tokenizer")
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="tokenizer_path"):
        load_tokenizer(tmp_path)
