"""The readers of test_fuzz.py under atheris, which looks for bytes that reach new lines of code.

Not part of the tests: atheris has wheels for some Pythons only. It goes on until the first fault
(the bytes are left in a file ``crash-...``, whose name as an argument reads them again), or for the
seconds that ``-max_total_time=`` says; the options are libFuzzer's.

    pip install atheris
    PYTHONPATH=tests python -m attacks.guided "graph: json" -max_total_time=300
"""

import re
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

# Only what reads files: counting the lines of all of torch would slow every input down.
READING = ["graphprune", "csv", "json", "networkx.readwrite", "yaml", "zipfile"]
# What is sealed anew after each change, and by which name: else all changes end at the digest.
SEALED = {"study: record": "graphprune-job", "study: ranking": "graphprune-ranking"}


def main() -> None:
    """Runs one reader, whose name comes first."""
    import atheris

    with atheris.instrument_imports(include=READING):
        from attacks import fuzz_targets, fuzzing  # noqa: F401 - the readers of the first
        from attacks.fuzz_runs import sealed
        from attacks.fuzzing import TARGETS, require_sound

        from graphprune.util.sealed import Seal

    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        raise SystemExit("say which reader: " + "; ".join(TARGETS))
    name, found = sys.argv.pop(1), Counter()
    target, seal = TARGETS[name], SEALED.get(name)
    valid = target.valid()
    if seal:
        blank = Seal(seal).blank.encode()
        valid = re.sub(rb"(sha256\W+)[0-9a-f]{64}", rb"\g<1>" + blank, valid)
    place = Path(tempfile.mkdtemp())
    (place / "seeds").mkdir()
    (place / "seeds" / "valid").write_bytes(valid)
    folder = place / "f"
    warnings.simplefilter("ignore")
    fuzzing.SECONDS = 10.0  # lines are counted, which takes longer than running them

    def one(data: bytes) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        target.write(folder, sealed(data, seal) if seal else data)
        found["read" if require_sound(target.read, folder) else "refused"] += 1
        if sum(found.values()) % 1000 == 0:
            print(name, dict(found), flush=True)

    atheris.Setup([*sys.argv, str(place / "seeds")], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
