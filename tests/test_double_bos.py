"""Texts that begin with the tokenizer's BOS, as chat templates do, get no second one."""

from __future__ import annotations

import csv
import json

import pytest
from support.tokenizers import byte_bpe, sentence_piece
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import graphprune as gp

WORDS = ("up", "to", "down", "left", "1", "\n")
ROLES = ("<|user|>", "<|assistant|>")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} {{ eos_token }} "
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def words(front: str = "", back: str = "", unknown: str = "?"):
    """Word by word, ``front`` and ``back`` added by the tokenizer itself."""
    ids = {w: i for i, w in enumerate(["<s>", "</s>", "?", *WORDS])}
    raw = Tokenizer(models.WordLevel(ids, unknown))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.add_special_tokens(["<s>", "</s>", *ROLES, "[g]"])
    named = [(w, raw.token_to_id(w)) for w in ("<s>", "</s>", "[g]")]
    raw.post_processor = processors.TemplateProcessing(
        single=f"{front} $A {back}".strip(), special_tokens=named
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token=unknown, bos_token="<s>", eos_token="</s>"
    )
    made.chat_template = TEMPLATE
    return made


KINDS = {
    "BOS": ("<s>", ""),
    "BOS and EOS": ("<s>", "</s>"),
    "none": ("", ""),
    "two": ("[g] <s>", ""),
}


def read(task):
    batch = next(task.batches(len(task)))
    rows = zip(
        batch.clean["input_ids"], batch.clean["attention_mask"], batch.positions, strict=True
    )
    return [(ids[mask > 0].tolist(), int(at)) for ids, mask, at in rows]


@pytest.fixture(
    params=["from_pairs", "from_jsonl", "from_csv", "from_stream", "from_jsonl, spooled"]
)
def door(request, tmp_path):
    def make(records, tokenizer):
        if request.param == "from_pairs":
            return gp.Task.from_pairs(records, tokenizer)
        if request.param == "from_stream":
            return gp.Task.from_stream(iter(records), tokenizer)
        path = tmp_path / "pairs"
        if request.param == "from_csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(records[0]))
                writer.writeheader()
                writer.writerows(records)
            return gp.Task.from_csv(path, tokenizer)
        path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
        more = {"length": len(records)} if request.param.endswith("spooled") else {}
        return gp.Task.from_jsonl(path, tokenizer, **more)

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_chat_templates_are_read_as_they_stand(kind, door):
    tokenizer = words(*KINDS[kind])

    def chat(word):
        return [{"role": "user", "content": f"{word} to"}]

    text = {
        name: tokenizer.apply_chat_template(chat(w), tokenize=False, add_generation_prompt=True)
        for name, w in (("clean", "up"), ("corrupt", "down"))
    }
    assert text["clean"] == "<s><|user|> up to </s> <|assistant|>"
    own = tokenizer(text["clean"], add_special_tokens=False)["input_ids"]
    bos, eos, g = (tokenizer.convert_tokens_to_ids(t) for t in ("<s>", "</s>", "[g]"))
    user, assistant = (tokenizer.convert_tokens_to_ids(t) for t in ROLES)
    up, to = (tokenizer.convert_tokens_to_ids(t) for t in ("up", "to"))
    assert own == [bos, user, up, to, eos, assistant]
    want = {"BOS and EOS": [*own, eos], "two": [g, *own]}.get(kind, own)
    task = door([{**text, "answer": " left", "distractor": " up"}] * 2, tokenizer)
    at = want.index(assistant)
    assert read(task) == [(want, at)] * 2
    ids = next(task.batches(2)).corrupt["input_ids"][0].tolist()
    assert ids == [tokenizer.convert_tokens_to_ids("down") if i == up else i for i in want]


@pytest.mark.parametrize(
    ("kind", "text", "want", "at"),
    [
        ("BOS", "up to", [0, 3, 4], 2),
        ("BOS", "<s> up to", [0, 3, 4], 2),
        ("BOS", "<s><s> up to", [0, 0, 3, 4], 3),  # as it stands
        ("BOS", "up <s> to", [0, 3, 0, 4], 3),
        ("none", "<s> up to", [0, 3, 4], 2),
        ("BOS and EOS", "<s> up to", [0, 3, 4, 1], 2),
        ("BOS and EOS", "<s> up to </s>", [0, 3, 4, 1], 2),
        ("BOS and EOS", "up to </s>", [0, 3, 4, 1], 2),
        ("BOS and EOS", "</s> up to", [0, 1, 3, 4, 1], 3),
        ("BOS", "up to </s>", [0, 3, 4, 1], 3),
        ("two", "<s> up to", ["[g]", 0, 3, 4], 3),
        ("two", "[g]<s> up to", ["[g]", 0, 3, 4], 3),
        ("two", "[g] up to", ["[g]", 0, "[g]", 3, 4], 4),
    ],
)
def test_special_tokens_that_stand_in_the_text_are_not_added_again(kind, text, want, at):
    tokenizer = words(*KINDS[kind])
    want = [tokenizer.convert_tokens_to_ids(i) if isinstance(i, str) else i for i in want]
    task = gp.Task.from_pairs([{"clean": text, "answer": " left"}], tokenizer, metric="kl")
    assert read(task) == [(want, at)]


def test_an_unknown_word_is_no_bos_though_it_has_its_id():
    tokenizer = words("<s>", unknown="<s>")
    (row,) = read(gp.Task.from_pairs([{"clean": "what to", "answer": " up"}], tokenizer))
    assert row == ([0, 0, 4], 2)
    (row,) = read(gp.Task.from_pairs([{"clean": "<s> to", "answer": " up"}], tokenizer))
    assert row == ([0, 4], 1)


def test_spans_count_the_tokens_of_the_text_with_its_own_bos():
    tokenizer = words("<s>")
    record = {"clean": "<s> up to", "corrupt": "<s> down left to", "answer": " up"}
    task = gp.Task.from_pairs([record | {"spans": {"where": [[1, 2], [1, 3]]}}], tokenizer)
    assert read(task) == [([0, 3, 4], 2)]
    batch = next(task.batches(1))
    assert batch.corrupt["input_ids"].tolist() == [[0, 5, 6, 4]]
    assert batch.alignment[0].tolist() == [[1, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize("tokenizer", [sentence_piece(), byte_bpe(bos=True, eos=True)])
def test_learned_vocabularies_too(tokenizer):
    text = "<s>Mary went to the garden"
    (row, at), (plain, _) = read(
        gp.Task.from_pairs([{"clean": text}, {"clean": text.removeprefix("<s>")}], tokenizer)
    )
    own = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert row[: len(own)] == own
    assert row.count(tokenizer.bos_token_id) == 1 == plain.count(tokenizer.bos_token_id)
    assert at == len(own) - 1
    assert row[len(own) :] == ([tokenizer.eos_token_id] if tokenizer.eos_token else [])


@pytest.mark.parametrize("make", [gp.tasks.ioi, gp.tasks.greater_than, gp.tasks.induction])
def test_generators_add_one(make):
    tokenizer = byte_bpe(bos=True, eos=True)
    for row, at in read(make(tokenizer, n=4)):
        assert row.count(tokenizer.bos_token_id) == 1 == row.count(tokenizer.eos_token_id)
        assert (row[0], at) == (tokenizer.bos_token_id, len(row) - 2)
