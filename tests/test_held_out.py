"""What found a circuit does not judge it: parts of a task, saved circuits, the command line.

Prompts are counted as plain sets of token ids read one by one from batches, never by fingerprint.
"""

from __future__ import annotations

import copy
import json
import logging

import numpy as np
import pytest
import torch
from support.cli import call, out_of, save_model
from support.tokenizers import byte_bpe
from support.toy import Toy

import graphprune as gp
from graphprune import Task, tasks
from graphprune.errors import FormatError, InputError


@pytest.fixture(scope="module")
def tokenizer():
    return byte_bpe()


def prompts(task: Task) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Token ids of each example's clean and corrupted prompt, without padding."""
    found = []
    for number in range(len(task)):
        (batch,) = task.subset([number]).batches(1)
        sides = [
            tuple(side["input_ids"][0][side["attention_mask"][0].bool()].tolist())
            for side in (batch.clean, batch.corrupt)
        ]
        found.append((sides[0], sides[1]))
    return found


def shared(first, second) -> int:
    """Pairs of the second that share a prompt with the first as the issue has it."""
    clean, corrupt = {c for c, _ in first}, {k for _, k in first}
    return sum(c in clean or c in corrupt or k in clean for c, k in second)


GENERATED = [
    ("capitals", 50), ("antonyms", 50), ("successor", 50), ("boolean_expressions", 100),
    ("gender_because", 200), ("gendered_pronoun", 200), ("subject_verb_agreement", 200),
]  # fmt: skip


@pytest.mark.parametrize(("name", "n"), GENERATED)
def test_parts_of_a_generated_task_share_no_prompt(name, n, tokenizer):
    task = tasks.make(name, tokenizer, n=n, seed=0)
    raw = [prompts(part) for part in task.split(0.5, overlap="keep")]
    assert shared(*raw) > 0  # else there is nothing to mend
    first, second = task.split(0.5)
    parts = [prompts(first), prompts(second)]
    assert len(first) == n // 2
    assert shared(*parts) == 0
    assert [c for c, _ in parts[0]] == [c for c, _ in raw[0]]
    dropped = len(raw[1]) - len(second)
    assert second.notes.get("overlap", {}).get("dropped", 0) == dropped
    if name not in ("boolean_expressions", "subject_verb_agreement"):
        assert dropped == 0
        assert [c for c, _ in parts[1]] == [c for c, _ in raw[1]]
    redrawn = [
        sum(new != old for new, old in zip(part, before, strict=True))
        if len(part) == len(before)
        else None
        for part, before in zip(parts, raw, strict=True)
    ]
    for part, count in zip((first, second), redrawn, strict=True):
        if count is not None:
            assert part.notes.get("overlap", {}).get("redrawn", 0) == count


def test_a_corrupted_prompt_that_is_drawn_again_has_its_own_distractor(tokenizer):
    task = tasks.capitals(tokenizer, n=100, seed=3)
    known = {f"{text.format(c)}": f" {city}" for c, city in tasks.lookups.CAPITALS.items()
             for text in tasks.lookups.CAPITAL_WORDINGS.statement}  # fmt: skip
    kept = task.split(0.5, overlap="keep")
    changed = 0
    for part, before in zip(task.split(0.5), kept, strict=True):
        old = dict(prompts(before))
        for number, (clean, corrupt) in enumerate(prompts(part)):
            (batch,) = part.subset([number]).batches(1)
            answer, distractor = int(batch.answer[0, 0]), int(batch.distractor[0, 0])
            for ids, token in ((clean, answer), (corrupt, distractor)):
                assert tokenizer(known[tokenizer.decode(ids)])["input_ids"][0] == token
            assert len(clean) == len(corrupt)
            changed += corrupt != old[clean]
    assert changed > 5


def test_a_split_without_overlap_is_what_it_was(tokenizer):
    task = tasks.ioi(tokenizer, n=40, seed=1)
    first, second = task.split(0.25, seed=5)
    order = np.random.default_rng(5).permutation(40)
    assert first.order == tuple(sorted(order[:10].tolist()))
    assert second.order == tuple(sorted(order[10:].tolist()))
    assert first.examples is second.examples is task.examples
    assert first.notes == second.notes == task.notes


def test_splits_repeat_also_of_a_copy(tokenizer):
    task = tasks.antonyms(tokenizer, n=60, seed=2)
    copied = copy.deepcopy(task)
    parts = [prompts(part) for part in task.split(40, seed=7)]
    assert [prompts(part) for part in task.split(40, seed=7)] == parts
    assert [prompts(part) for part in copied.split(40, seed=7)] == parts
    assert shared(*parts) == 0


def records():
    """Forty different prompts, four of them twice, two exchanged pairs, all of two tokens."""
    words = [f"w{i}" for i in range(90)]
    rows = [{"clean": f"{words[i]} x", "corrupt": f"{words[i + 45]} x"} for i in range(40)]
    rows += rows[:4]
    rows += [{"clean": row["corrupt"], "corrupt": row["clean"]} for row in rows[10:12]]
    return rows


@pytest.fixture(scope="module")
def words():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {"?": 0, "x": 1, **{f"w{i}": i + 2 for i in range(90)}}
    raw = Tokenizer(models.WordLevel(known, "?"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="?", pad_token="?")


@pytest.mark.parametrize("make", [Task.from_pairs, Task.from_stream])
def test_pairs_of_a_file_leave_the_second_part_and_are_counted(make, words, caplog):
    task = make(records(), words, metric="kl")
    found = 0
    for seed in range(6):
        caplog.clear()
        raw = [prompts(part) for part in task.split(0.5, seed=seed, overlap="keep")]
        first, second = task.split(0.5, seed=seed)
        assert prompts(first) == raw[0]
        seen = {p for pair in raw[0] for p in pair}
        clean = {c for c, _ in raw[0]}
        assert prompts(second) == [(c, k) for c, k in raw[1] if c not in seen and k not in clean]
        gone = len(raw[1]) - len(second)
        assert second.notes.get("overlap", {}).get("dropped", 0) == gone
        assert (f"{gone} of {len(raw[1])} held-out pairs" in caplog.text) == bool(gone)
        found += gone
    assert found > 6


def test_a_second_part_with_nothing_new_is_refused(words):
    task = Task.from_pairs([{"clean": "w1 x", "corrupt": "w2 x"}] * 6, words, metric="kl")
    with pytest.raises(InputError, match="every prompt of the second part"):
        task.split(3)
    assert [len(part) for part in task.split(3, overlap="keep")] == [3, 3]
    with pytest.raises(InputError, match="unknown overlap 'drop'; known: mend, keep"):
        task.split(3, overlap="drop")


def test_patterns_get_another_twin_from_their_own_part():
    rows, labels = torch.arange(60.0).reshape(30, 2), torch.arange(30) % 3
    task = tasks.patterns(rows, labels, seed=4)

    def read(part):
        (batch,) = part.batches(len(part))
        sides = batch.clean["inputs"], batch.corrupt["inputs"]
        return [list(map(tuple, side.tolist())) for side in sides], batch.answer[:, 0].tolist()

    (clean, corrupt), _ = read(task.split(20, overlap="keep")[0])
    assert not set(corrupt) <= set(clean)
    of = {tuple(row): label for row, label in zip(rows.tolist(), labels.tolist(), strict=True)}
    for part, size in zip(task.split(20), (20, 10), strict=True):
        (clean, corrupt), answer = read(part)
        assert len(part) == size
        assert set(corrupt) <= set(clean)
        assert all(of[k] != a for k, a in zip(corrupt, answer, strict=True))


def test_nodes_of_one_graph_are_told_by_their_number():
    task = tasks.nodes(torch.eye(12), torch.arange(12) % 2)
    first, second = task.split(7)
    assert (len(first), len(second)) == (7, 5)
    assert first.examples is task.examples
    marks = task.example_fingerprints()
    assert len({m.clean for m in marks}) == 12
    assert set(first.example_fingerprints()) == {marks[i] for i in first.order}


def test_a_study_s_test_prompts_share_none_with_training(tmp_path, tokenizer):
    model = str(save_model(tmp_path / "model"))
    given = {"train": 30, "test": 30, "options": {"model": model}}
    found = 0
    for seed in range(4):
        task = tasks.capitals(tokenizer, n=60, seed=seed)
        found += shared(prompts(task.take(30)), prompts(task.subset(range(30, 60))))
        case = gp.study.make_case("language", "capitals", seed=seed, **given)
        first, second = case.train, case.test
        assert (len(first), len(second)) == (30, 30)
        assert shared(prompts(first), prompts(second)) == 0
    assert found > 4


# -------------------------------------------------------------------- fingerprints


def test_fingerprints_do_not_depend_on_place_or_padding(words):
    rows = [
        {"clean": "w1 x", "corrupt": "w2 x"},
        {"clean": "w3 x w4 w5", "corrupt": "w3 x w4 w6"},
        {"clean": "w2 x", "corrupt": "w1 x"},
    ]
    task = Task.from_pairs(rows, words, metric="kl")
    turned = Task.from_pairs(rows[::-1], words, metric="kl")
    a, b, c = task.example_fingerprints()
    assert turned.example_fingerprints() == (c, b, a)
    assert (a.clean, a.corrupt) == (c.corrupt, c.clean)
    assert len({a.clean, b.clean, c.clean, b.corrupt}) == 4
    left = Task.from_tensors(
        torch.tensor([[0, 0, 3, 1], [5, 1, 6, 7]]), torch.tensor([[9, 9, 4, 1], [5, 1, 6, 8]]),
        attention_mask=torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]), metric="kl",
    )  # fmt: skip
    assert left.example_fingerprints() == (a, b)

    class Foreign:  # someone's own examples, without fingerprints of their own
        def __len__(self):
            return len(task)

        lengths = task.examples.lengths
        batch = task.examples.batch

    other = Task(Foreign(), "kl", order=(2, 0))
    assert other.example_fingerprints() == (c, a)
    assert Task.from_stream(rows, words, metric="kl").example_fingerprints() == (a, b, c)
    assert Task.from_pairs([{"clean": "w1 x"}], words, metric="kl").example_fingerprints() == (
        (a.clean, 0),
    )


def test_no_two_of_many_prompts_have_one_fingerprint():
    ids = torch.arange(30_000).reshape(-1, 3)
    task = Task.from_tensors(ids, ids.flip(0), metric="kl")
    marks = task.example_fingerprints()
    assert len({m.clean for m in marks}) == 10_000
    assert [m.corrupt for m in marks] == [m.clean for m in marks[::-1]]


# -------------------------------------------------------------------- circuits


def test_a_circuit_keeps_what_found_it(tmp_path, words):
    model = Toy()
    task = Task.from_pairs(records()[:8], words, metric="kl")
    half, mask = task.take(4), gp.EdgeMask.full(model.graph)
    circuit = gp.Circuit.from_mask(mask, task=half)
    assert circuit.found_on == frozenset(task.example_fingerprints()[:4])
    told = gp.Circuit.from_mask(mask, task=task, found_on=half)
    assert told.found_on == circuit.found_on
    assert gp.Circuit.load(circuit.save(tmp_path / "c")) == circuit
    about = json.loads((tmp_path / "c" / "circuit.json").read_text())
    assert (about["version"], about["found_on"]) == (2, 4)
    rest = gp.Circuit.from_mask(mask, task=task.subset([3, 5]))
    assert (circuit | rest).found_on == circuit.found_on | rest.found_on
    assert len((circuit & rest).found_on) == 5
    plain = gp.Circuit.from_mask(mask)
    assert plain.found_on is None
    assert (plain | rest).found_on is None
    with pytest.raises(InputError, match="found_on is the task"):
        gp.Circuit.from_mask(mask, found_on=7)


def test_folders_of_version_1_load(tmp_path):
    plain = gp.Circuit.from_mask(gp.EdgeMask.full(Toy().graph))
    place = plain.save(tmp_path / "c") / "circuit.json"
    about = json.loads(place.read_text())
    assert (about["version"], about["found_on"], about["ablation"]) == (2, None, None)
    later = ("found_on", "ablation", "score_noise")
    record = {"name": "EAP", "settings": {"ablation": "mean"}}
    old = {k: v for k, v in about.items() if k not in later}
    old |= {"version": 1, "provenance": {"method": record}}
    place.write_text(json.dumps(old))
    assert gp.Circuit.load(tmp_path / "c").ablation == "mean"
    assert gp.Circuit.load(tmp_path / "c").found_on is None
    place.write_text(json.dumps({**about, "version": 3}))
    with pytest.raises(FormatError, match="version 3 of the format"):
        gp.Circuit.load(tmp_path / "c")
    place.write_text(json.dumps({**old, "found_on": 3}))
    with pytest.raises(FormatError, match="version 1 of the format has no found_on"):
        gp.Circuit.load(tmp_path / "c")


def test_changed_fingerprints_are_found(tmp_path, words):
    from safetensors.torch import load_file, save_file

    task = Task.from_pairs(records()[:8], words, metric="kl")
    circuit = gp.Circuit.from_mask(gp.EdgeMask.full(Toy().graph), task=task)
    file = circuit.save(tmp_path / "c") / "tensors.safetensors"
    tensors = load_file(file)
    tensors["found_on"][0, 0] += 1
    save_file(tensors, file)
    with pytest.raises(FormatError, match="digests differ"):
        gp.Circuit.load(tmp_path / "c")


def test_the_unseen_part_of_the_whole_task_is_the_held_out_part(tokenizer):
    for name in ("capitals", "boolean_expressions", "ioi"):
        task = tasks.make(name, tokenizer, n=60, seed=1)
        train, held_out = task.split(40)
        unseen = task.unseen(train)
        assert prompts(unseen) == prompts(held_out)
        assert unseen.fingerprint == held_out.fingerprint
        again = tasks.make(name, tokenizer, n=60, seed=1).unseen(train.example_fingerprints())
        assert prompts(again) == prompts(held_out)
    with pytest.raises(InputError, match="all 40 examples of task 'ioi' are old"):
        train.unseen(train)


def test_seeds_that_must_share_prompts_say_so(tokenizer, caplog):
    caplog.set_level(logging.INFO, "graphprune")
    one, other = (tasks.capitals(tokenizer, n=50, seed=seed) for seed in (0, 1))
    both = {c for c, _ in prompts(one)} & {c for c, _ in prompts(other)}
    pool = one.notes["pool"]
    assert len(both) > 10
    assert abs(len(both) - 50 * 50 / pool) < 8  # what is said, about
    assert f"about {100 * 50 / pool:.0f} % of its prompts with this one" in caplog.text
    assert len(other.unseen(one)) <= 50 - len(both)
    whole = tasks.capitals(tokenizer, n=pool)
    assert len({c for c, _ in prompts(whole)}) == pool
    with pytest.raises(InputError, match=f"only {pool} distinct"):
        tasks.capitals(tokenizer, n=pool + 1)


# -------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("held") / "tiny")


def test_evaluate_and_test_judge_on_what_discover_held_out(model_dir, tmp_path, capsys):
    out = tmp_path / "c"
    base = ("--model", model_dir, "--task", "capitals", "-n", 24)
    found = ("discover", *base, "--method", "eap", "--size", "0.3", "--out", out, "--json")
    assert call(*found) == 0
    report = out_of(capsys)["report"]
    assert call("evaluate", out, *base, "--json") == 0
    judged = out_of(capsys)
    assert judged["examples"]["given"] == 24
    assert judged["examples"]["judged"] == 6
    assert judged["examples"]["held_out"] is True
    for name in ("kl", "faithfulness", "logit_diff"):
        assert judged[name] == pytest.approx(report[name], rel=1e-5), name
    assert call("evaluate", out, *base, "--json", "--all-examples") == 0
    everything = out_of(capsys)
    assert everything["examples"] == {
        "given": 24, "judged": 24, "old": judged["examples"]["old"], "redrawn": 0,
        "held_out": False,
    }  # fmt: skip
    assert everything["kl"] != pytest.approx(report["kl"], rel=1e-3)
    assert call("evaluate", out, *base, "--quiet") == 0
    assert "judged on 6 new prompts" in " ".join(capsys.readouterr().out.split())
    options = ("--tests", "sufficiency", "--draws", 19)
    assert call("test", out, *base, *options, "--json") == 0
    assert out_of(capsys)["examples"] == judged["examples"]
    assert call("info", "--circuit", out, "--json") == 0
    assert out_of(capsys)["circuit"]["found_on_examples"] == 18


def test_old_prompts_alone_and_unknown_ones_are_called_so(model_dir, tmp_path, capsys):
    out = tmp_path / "c"
    base = ("--model", model_dir, "--task", "ioi", "-n", 4)
    assert call("discover", *base, "--method", "eap", "--size", "0.3", "--out", out) == 0
    capsys.readouterr()
    assert call("evaluate", out, *base, "--quiet") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "on 4 old prompts" in said
    assert "all 4 prompts are old" in said
    assert call("evaluate", out, *base, "--seed", 1, "--quiet") == 0
    assert "none of these 4 prompts found the circuit" in capsys.readouterr().out
    known = gp.Circuit.load(out)
    gp.Circuit(known.graph, known.mask, known.scores).save(tmp_path / "unknown")
    assert call("evaluate", tmp_path / "unknown", *base, "--json") == 0
    assert out_of(capsys)["examples"]["old"] is None


def test_evaluate_in_python_says_how_many_examples_are_old(model_dir):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = gp.wrap(AutoModelForCausalLM.from_pretrained(model_dir).eval())
    task = tasks.ioi(AutoTokenizer.from_pretrained(model_dir), n=6)
    circuit = gp.Circuit.from_mask(gp.EdgeMask.full(model.graph), task=task.take(4))
    assert gp.evaluate(model, task, circuit).notes["examples"].startswith("4 of 6 are old")
    assert "examples" not in gp.evaluate(model, task.unseen(circuit.found_on), circuit).notes
    assert "examples" not in gp.evaluate(model, task, circuit.mask).notes


def test_a_split_that_leaves_pairs_out_says_what_to_do(caplog):
    """Two pairs are each other's; wherever they are parted, the held-out one has to go."""
    advice = "give pairs prompts of their own, or overlap='keep' to leave the parts as drawn"
    task = Task.from_tensors(
        torch.tensor([[1, 9], [2, 9], [3, 9], [5, 9]]),
        torch.tensor([[2, 9], [1, 9], [4, 9], [6, 9]]),
        answer=[7] * 4, metric="kl",
    )  # fmt: skip
    parted = 0
    for seed in range(10):
        caplog.clear()
        _, drawn = task.split(2, seed, overlap="keep")
        _, left = task.split(2, seed)
        assert (len(left) == 1) == (len({0, 1} & set(drawn.example_numbers)) == 1)
        if len(left) == 1:
            parted += 1
            assert "1 of 2 held-out pairs left out" in caplog.text
            assert f"1 left (on one example no measure has an interval): {advice}" in caplog.text
        else:
            assert not caplog.records
    assert parted
    with pytest.raises(InputError, match=f"is a prompt of the first; {advice}"):
        task.take(2).split(1)
