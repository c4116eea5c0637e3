"""Every command and program of the README runs as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from configs import kd3a_digits
from fedjax_pfl import algorithms, catalogue

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
SECTIONS = {  # heading -> its blocks (kind, code), which may need what those before them left
    text.split("\n")[0]: blocks
    for text in re.split(r"^##+ ", TEXT, flags=re.M)
    if (blocks := re.findall(r"```(\w+)\n(.*?)```", text, re.S))
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder that looks like a clone, so that the commands leave nothing in this one."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("launch.py", "configs", "fedjax_pfl"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=900, env={**os.environ, "PYTHONPATH": str(folder)}
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.readme
@pytest.mark.parametrize("section", SECTIONS)
def test_what_the_readme_shows_runs(section, folder, real_data):
    for kind, code in SECTIONS[section]:
        _run_block(kind, code, folder, real_data)


def _run_block(kind: str, code: str, folder: Path, real_data) -> None:
    if kind == "python":
        _run([sys.executable, "-c", code], folder)
        return
    for line in code.strip().splitlines():
        # .ci/run itself installs, and runs the benchmark and the gate
        if not line.startswith("python launch.py") or "--mode=benchmark" in line:
            continue
        few = []
        if "_dermoscopy.py" in line:  # the real data, but so little of it that this is a test
            path = real_data("dermoscopy_prrfl/dermoscopy_abc_128.zip")
            few = [f"--config.data.dermoscopy.path={path}", "--config.rounds=1", "--config.split.max_examples=150"]
        elif "kd3a_digits.py" in line:
            data, files = str(real_data("mnist/mnist.npz").parents[1]), kd3a_digits.get_config().data.digit5
            names = ("mnist", "mnist_m", "svhn", "usps", "fonts", "backgrounds")
            few = [f"--config.data.digit5.{name}={files[name].replace(kd3a_digits.DATA, data)}" for name in names]
            few += ["--config.rounds=1", "--config.data.digit5.train=64", "--config.data.digit5.test=32"]
        elif "_digit_scenes.py" in line:
            few = ["--config.rounds=1", "--config.client.epochs=1"]
        _run([sys.executable, *line.split()[1:], *few], folder)


def test_the_catalogue_lists_every_method():
    assert set(catalogue.METHODS) == set(algorithms.METHODS)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in TEXT.splitlines() if line.startswith("|")]
    rows = [row for row in rows if len(row) == 8]  # of the catalogue; other tables name families as well
    families = {row[0]: i for i, row in enumerate(rows) if row[0].startswith("**")}
    for name, entry in catalogue.METHODS.items():
        (place, row) = next((i, row) for i, row in enumerate(rows) if row[1:2] == [f"`{name}`"])
        family = max((heading for heading in families.items() if heading[1] < place), key=lambda heading: heading[1])[0]
        assert family == f"**{catalogue.FAMILIES[entry.family]}**"
        assert row[0] == entry.title
        assert entry.paper in row[2]
        assert [row[3], row[4], row[5]] == [entry.travels, entry.keeps, entry.personal]
        files = re.findall(r"`([\w/]+\.py)", row[6] + row[7])
        assert len(files) >= 2
        assert all((ROOT / file).is_file() for file in files)


def test_a_new_method_is_under_40_lines():
    blocks = [block for blocks in SECTIONS.values() for block in blocks]
    (code,) = [code for kind, code in blocks if kind == "python" and "def half_way" in code]
    assert len(code.splitlines()) < 40
