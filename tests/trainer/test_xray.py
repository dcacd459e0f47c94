"""The label X-ray: it shows what is trained, to the token, and refuses what cannot be right."""

from html.parser import HTMLParser

import pytest

from leveret.console import Console
from leveret.data.packing import Sample
from leveret.errors import NothingToTrain
from leveret.tokenizer.train import train_byte_bpe
from leveret.trainer import xray

STOP = "<end>"


@pytest.fixture(scope="module")
def tokenizer():
    return train_byte_bpe(["hello there, how are you"] * 5, vocab_size=280, special_tokens=[STOP, "<|pad|>"])


def make_sample(tokenizer, prompt, answer, *, stop=True, trained=True, key="chat.jsonl:1"):
    ids = tokenizer.encode(prompt)
    reply = [*tokenizer.encode(answer), tokenizer.id_of(STOP)]
    mask = [False] * len(ids) + [trained] * (len(reply) - 1) + [trained and stop]
    return Sample(ids=ids + reply, mask=mask, key=key)


def examine(tokenizer, *samples, stops=(STOP,)):
    return xray.examine({"chat.jsonl": samples}, tokenizer=tokenizer, stops=stops)


def test_the_share_of_trained_tokens_is_that_of_the_replies(tokenizer):
    samples = [make_sample(tokenizer, "how are you", "hello"), make_sample(tokenizer, "are you there", "you")]
    (labels,) = examine(tokenizer, *samples)
    replies = sum(len(tokenizer.encode(text)) + 1 for text in ("hello", "you"))
    assert labels.trained_tokens == replies
    assert labels.tokens == sum(len(sample.ids) for sample in samples)
    assert labels.stopped == 2


def test_a_sample_that_trains_nothing_is_refused_by_name(tokenizer):
    good = make_sample(tokenizer, "a", "b")
    bad = make_sample(tokenizer, "a", "b", trained=False, key="chat.jsonl:7")
    with pytest.raises(NothingToTrain, match=r"chat\.jsonl:7 trains no token"):
        examine(tokenizer, good, bad)


def test_a_source_that_never_trains_its_stop_token_is_refused(tokenizer):
    with pytest.raises(NothingToTrain, match=r"stop token .*'<end>'.* is not trained in any of 2 samples"):
        examine(tokenizer, *[make_sample(tokenizer, "a", "b", stop=False)] * 2)


def test_a_stop_that_is_plain_text_is_found_too(tokenizer):
    ids = tokenizer.encode("how are you hello###")
    sample = Sample(ids=ids, mask=[True] * len(ids), key="a")
    assert examine(tokenizer, sample, stops=["###"])[0].stopped == 1
    with pytest.raises(NothingToTrain):
        examine(tokenizer, sample, stops=["@@@"])


def test_an_empty_source_is_refused(tokenizer):
    with pytest.raises(NothingToTrain, match="there is no sample"):
        examine(tokenizer)


def test_pieces_give_the_text_back_and_never_split_a_character(tokenizer):
    sample = make_sample(tokenizer, "你好 hello", "再见🐇")
    pieces = xray.pieces(sample, tokenizer)
    assert "".join(piece.text for piece in pieces) == "你好 hello再见🐇<end>"
    assert "".join(piece.text for piece in pieces if piece.trained) == "再见🐇<end>"
    assert [piece.text for piece in pieces if piece.special] == ["<end>"]


def test_a_character_cut_by_the_mask_is_shown_as_broken_on_both_sides(tokenizer):
    ids = tokenizer.encode("🐇")
    pieces = xray.pieces(Sample(ids=ids, mask=[False, False, True, True], key="a"), tokenizer)
    assert [piece.trained for piece in pieces] == [False, True]
    assert all("�" in piece.text for piece in pieces)


def test_console_and_page_show_the_samples_in_color(tokenizer, tmp_path, capsys):
    sample = make_sample(tokenizer, "how <b>are</b> you", "hello & 你好")
    labels = examine(tokenizer, sample)
    xray.show(labels, tokenizer=tokenizer, console=Console(), page=tmp_path / "xray.html")
    shown = capsys.readouterr()
    assert "how <b>are</b> you▸hello & 你好<end>◂" in shown.out.replace("\n", "")
    page = (tmp_path / "xray.html").read_text()
    HTMLParser().feed(page)
    assert "how &lt;b&gt;are" in "".join(page.split("<pre>")[1])
    assert "<b><i>&lt;end&gt;</i></b>" in page
    assert "http" not in page and "<script" not in page


def test_what_is_taught_counts_not_what_stands_there(tokenizer):
    ids = [*tokenizer.encode("how"), *tokenizer.encode("are"), tokenizer.id_of("<|pad|>")]
    labels = [*ids[:-1], tokenizer.id_of(STOP)]
    sample = Sample(ids=ids, mask=[False] * (len(ids) - 1) + [True], key="x:1", labels=labels)
    assert xray.trained_ids(sample) == [tokenizer.id_of(STOP)]
    assert examine(tokenizer, sample)[0].stopped == 1
    assert xray.pieces(sample, tokenizer)[-1].text == f"<|pad|>→{STOP}"
    same = Sample(ids=ids, mask=sample.mask, key="x:1", labels=ids)
    with pytest.raises(NothingToTrain, match="would not learn to stop"):
        examine(tokenizer, same)
