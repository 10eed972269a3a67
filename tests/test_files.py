"""What is written survives full disks and takes nothing else's place; no file is trusted."""

import contextlib
import os
import sys
from pathlib import Path

import pytest
import torch
from support.exporting import circuits, drawn, system
from transformer_graph import random_scores, transformer_graph

from graphprune import Circuit, EdgeMask
from graphprune.errors import FormatError, InputError
from graphprune.export import export, to_mib_pt

LINUX = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")


def test_a_process_that_works_in_the_folder_stays_there(tmp_path, monkeypatch):
    old, new = circuits()
    old.save(tmp_path / "c")
    monkeypatch.chdir(tmp_path / "c")
    new.save(".", overwrite=True)
    assert Path.cwd() == (tmp_path / "c").resolve()
    assert Circuit.load(".") == new
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        "c", "circuit.json", "tensors.safetensors",
    ]  # fmt: skip


# -------------------------------------------------------------------- full disks


@contextlib.contextmanager
def files_of_at_most(size):
    """As on a full disk: the kernel refuses to let a file grow beyond ``size`` bytes."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@LINUX
def test_a_full_disk_is_told(tmp_path):
    (tmp_path / "kept").write_text("kept")
    model, _ = system("gpt2", torch.float32, {"num_hidden_layers": 1})
    whole = Circuit.from_mask(drawn(model, 0.3), model=model)
    scores = random_scores(transformer_graph(2, 3))
    circuit = Circuit(scores.graph, EdgeMask.full(scores.graph), scores)
    for write in (
        lambda: whole.export_model(tmp_path / "new" / "out", repeats=1),
        lambda: to_mib_pt(scores, tmp_path / "a.pt", d_model=8),
        lambda: export(circuit, tmp_path / "a.html"),
        lambda: export(circuit, tmp_path / "a.csv"),
        lambda: export(circuit, tmp_path / "a.svg"),
    ):
        with files_of_at_most(700), pytest.raises(InputError) as refused:
            write()
        assert "cannot write" in str(refused.value)
        assert "File too large" in str(refused.value)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_a_full_disk_leaves_the_old_circuit(tmp_path, monkeypatch):
    old, new = circuits()
    old.save(tmp_path / "c")
    write = Path.write_bytes

    def full(path, data):
        write(path, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"cannot write to .*c: No space left on device"):
        new.save(tmp_path / "c", overwrite=True)
    with pytest.raises(InputError, match=r"cannot write .*a\.csv: No space left on device"):
        export(new, tmp_path / "a.csv")
    monkeypatch.undo()
    assert Circuit.load(tmp_path / "c") == old
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


# -------------------------------------------------------------------- what is no file


@LINUX
@pytest.mark.parametrize("name", ["a.csv", "a.mib.json", "a.pt", "a.html", "a.svg", "a.dot"])
def test_devices_and_pipes_are_never_replaced(name, tmp_path):
    circuit = circuits()[0]
    settings = {"d_model": 8} if name in ("a.mib.json", "a.pt") else {}
    pipe, link = tmp_path / name, tmp_path / f"link-{name}"
    os.mkfifo(pipe)
    link.symlink_to("/dev/null")
    for place in (pipe, link):
        with pytest.raises(InputError, match="is a device, a pipe or a socket; nothing was"):
            export(circuit, place, **settings)
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([pipe.name, link.name])


@LINUX
def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "b.csv").write_text("old")
    (tmp_path / "a.csv").symlink_to("far/b.csv")
    export(circuits()[0], tmp_path / "a.csv")
    assert (tmp_path / "a.csv").is_symlink()
    assert (tmp_path / "far" / "b.csv").read_text().startswith("edge,source")


# -------------------------------------------------------------------- .pt files of strangers


def damaged_pt(tmp_path, change):
    """A good file whose content was changed, and the graph it belongs to."""
    graph = transformer_graph(1, 2)
    path = to_mib_pt(random_scores(graph), tmp_path / "a.pt", d_model=8)
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    return graph, path


def expand(content):
    content["cfg"]["d_model"] = 1 << 27
    rows = len(content["src_nodes"])
    content["neurons_scores"] = torch.zeros(1, 1).expand(rows, 1 << 27)


def sparse(content):
    content["nodes_scores"] = torch.zeros(len(content["src_nodes"])).to_sparse()


def names(content):
    content["src_nodes"] = torch.zeros(1).expand(1 << 30)


def sizes(content):
    content["cfg"]["n_layers"] = torch.zeros(1).expand(1 << 30)


@pytest.mark.parametrize("change", [expand, sparse, names, sizes])
def test_a_small_pt_file_takes_little_memory(change, tmp_path):
    from graphprune.export import from_mib_pt

    graph, path = damaged_pt(tmp_path, change)
    assert path.stat().st_size < 10_000
    with pytest.raises(FormatError, match=r"expanded, sparse|safely|should be|another model"):
        from_mib_pt(path, graph)


def test_pt_files_that_grow_on_reading_are_refused(tmp_path):
    import zipfile

    from graphprune.export import from_mib_pt

    graph, path = damaged_pt(tmp_path, lambda content: content.update(nodes_scores=torch.zeros(9)))
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data + bytes(10_000_000) * name.endswith("/data/0"))
    with pytest.raises(FormatError, match="its parts would unpack"):
        from_mib_pt(packed, graph)
    called = tmp_path / "called.pt"
    with zipfile.ZipFile(called, "w") as archive:
        for name, data in parts.items():
            # bytearray(2_000_000_000), which weights_only=True calls
            call = b"\x80\x02c__builtin__\nbytearray\nJ\x00\x94\x35\x77\x85R."
            archive.writestr(name, call if name.endswith("data.pkl") else data)
    with pytest.raises(FormatError, match="names __builtin__ bytearray, which is no part"):
        from_mib_pt(called, graph)


def test_transposed_tensors_and_old_pt_files_are_read(tmp_path):
    from graphprune.export import from_mib_pt

    def transpose(content):
        content["edges_scores"] = content["edges_scores"].T.contiguous().T

    graph, path = damaged_pt(tmp_path, transpose)
    scores, _ = from_mib_pt(path, graph)
    assert torch.equal(scores.values, random_scores(graph).values)
    torch.save(
        torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False
    )  # as torch before 1.6
    scores, _ = from_mib_pt(path, graph)
    assert torch.equal(scores.values, random_scores(graph).values)


# -------------------------------------------------------------------- threads


def test_one_model_in_two_threads():
    """Each gets the numbers of a thread alone; modes and gradients are as before."""
    import threading

    model, batch = system("gpt2", torch.float32)
    mask = drawn(model, 0.5)
    model.module.train()

    def work():
        reference = model.reference(batch)
        squared = model.edge_gradients(batch, lambda out: out.square().sum((1, 2)), reference)
        return torch.cat([model.run(batch, mask, reference).detach().flatten(), squared.edge])

    alone, results = work(), []

    def repeat():
        for _ in range(10):
            try:
                results.append(torch.equal(work(), alone))
            except Exception as error:
                results.append(error)

    threads = [threading.Thread(target=repeat) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 30
    assert all(m.training for m in model.module.modules())
    assert all(p.requires_grad for p in model.module.parameters())


# -------------------------------------------------------------------- the same bytes

NAMES = ["a.csv", "a.dot", "a.graphml", "a.gexf", "a.json", "a.cyjs", "a.html", "a.svg", "a.pt"]


@pytest.mark.parametrize("name", [*NAMES, "a.mib.json", "a.attribution.json"])
def test_exports_are_the_same_bytes_each_time(name, tmp_path):
    """Also of a circuit that was loaded, whose texts and numbers are other objects."""
    circuit = circuits()[1]
    again = Circuit.load(circuit.save(tmp_path / "c"))
    options = {"d_model": 8} if name in ("a.mib.json", "a.pt") else {}
    first, second, third = (
        export(made, tmp_path / str(number) / name, **options).read_bytes()
        for number, made in enumerate((circuit, circuit, again))
    )
    assert first == second == third
