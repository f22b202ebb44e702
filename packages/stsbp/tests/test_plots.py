"""Networks as pictures: what is drawn of them, and the files."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from stsbp.errors import FileError
from stsbp.plots import Link, boxes, plot_network
from stsbp_spec.networks.spec import NetworkSpec

NODES = """
[[node]]
name = "near"
weights = "4"
from = "input"
[[node]]
name = "late"
weights = "4b"
from = {node = "input", delay = 2}
[[node]]
name = "fires"
neurons = "neuron=alif"
from = ["near", "late"]
[[node]]
name = "out"
weights = "3"
from = "fires"
[[node]]
name = "output"
neurons = ""
from = "out"
"""


def size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG file."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def test_a_population_is_drawn_with_its_weights_and_branches_beside_each_other() -> None:
    network = NetworkSpec.parse("4C3-[4C3p1-4C3p1|4C1]+-P2-8R{delay=3}", input_shape=(2, 8, 8), outputs=3)
    drawn = boxes(network)
    assert [(name, box.kind, box.depth, box.position) for name, box in drawn.items()] == [
        ("input", "input", 0, 0),
        ("neurons1", "neurons", 1, 0),
        ("neurons2", "neurons", 2, -0.5),
        ("neurons3", "neurons", 3, 0),
        ("neurons4", "neurons", 2, 0.5),
        ("add5.0", "merge", 4, 0),
        ("pool5.1", "other", 5, 0),
        ("neurons5", "neurons", 6, 0),
        ("neurons6", "neurons", 7, 0),
    ]
    assert drawn["neurons2"].text == "conv2\n4C3p1s1 lif\n4x6x6"
    assert drawn["neurons5"].text == "linear5\n8 lif recurrent\n8"
    assert drawn["neurons5"].links == [Link("pool5.1", 3), Link("neurons5")]
    assert drawn["add5.0"].links == [Link("neurons3"), Link("neurons4")]


def test_several_projections_say_what_they_are() -> None:
    drawn = boxes(NetworkSpec.parse(NODES, input_shape=(6,)))
    assert list(drawn) == ["input", "fires", "output"]
    assert drawn["fires"].text == "near\n4 alif\n4"
    assert drawn["fires"].links == [Link("input", 0, "4"), Link("input", 2, "4b")]


def test_a_deeper_and_a_wider_network_have_larger_pictures(tmp_path: Path) -> None:
    sizes = []
    for name, notation in (("a", "8"), ("b", "8-8-8"), ("c", "8-[8|8|8|8]+")):
        network = NetworkSpec.parse(notation, input_shape=(4,), outputs=3)
        plot_network(network, tmp_path / f"{name}.png")
        sizes.append(size(tmp_path / f"{name}.png"))
    assert sizes[0][1] < sizes[1][1]
    assert sizes[1][0] < sizes[2][0]


def test_only_a_plot_is_replaced(tmp_path: Path) -> None:
    network, path = NetworkSpec.parse("8", input_shape=(4,), outputs=3), tmp_path / "network.png"
    plot_network(network, path)
    plot_network(network, path)
    path.write_bytes(b"somebody's own")
    with pytest.raises(FileError, match="is there already and is not a plot of stsbp"):
        plot_network(network, path)
    assert path.read_bytes() == b"somebody's own"


def test_the_command_draws_and_prints(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "network.png"
    result = stsbp("networks", "8C3-[8C3p1]+", "--plot", path)
    assert result.exit_code == 0
    assert "]+" in result.stdout
    assert min(size(path)) > 300
    (tmp_path / "nodes.toml").write_text(NODES)
    table = stsbp("networks", tmp_path / "nodes.toml", "--input-shape", "6", "--outputs", 3).stdout
    assert "late    4b{bits=12} <- input@-2" in table
    for name, message in (("none", "there is no file of a network"), ("wrong", "is not a file of nodes")):
        (tmp_path / "wrong.toml").write_text("[a]")
        result = stsbp("networks", tmp_path / f"{name}.toml")
        assert result.exit_code == 1
        assert message in result.output


def test_without_matplotlib_the_error_says_what_to_install(
    stsbp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = stsbp("networks", "8", "--plot", tmp_path / "network.png")
    assert result.exit_code == 1
    assert 'python -m pip install "stsbp[plots]"' in result.output
