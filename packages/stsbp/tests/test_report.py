"""Reports, drawings and comparisons: what they show, that they are whole HTML, and that they ask for nothing."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stsbp as package
from click.testing import Result
from jinja2 import UndefinedError
from stsbp.cli import compare
from stsbp.datasets import load
from stsbp.errors import ConfigError
from stsbp.report import samples, svg
from stsbp.report.collect import Sample, Survey, choose
from stsbp.report.page import page
from stsbp.report.run_page import Content, render
from stsbp.report.samples import Samples
from stsbp.sweeps.objectives import OBJECTIVES
from stsbp.sweeps.show import TrialRow, html_page
from stsbp.training.build import load_data
from stsbp.training.progress import PlainReporter
from stsbp.training.run_folder import RunFolder
from stsbp_spec.typing import UInt8

_VOID = {"meta", "link", "img"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and notes the text and what could be fetched."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.words: list[str] = []
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "xlink:href")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def check(path: Path) -> Page:
    """A page that is whole and needs no network."""
    content = path.read_text(encoding="utf-8")
    page = Page(content)
    assert not {"script", "iframe", "object"} & set(page.tags)
    assert all(address.startswith("data:") for address in page.fetched)
    assert "url(" not in content
    assert "@import" not in content
    # No coordinate that is not a number; a picture's letters are none.
    assert not re.search(r"(?<![a-z])(nan|inf)(?![a-z])", re.sub(r"base64,[^\"]*", "", content))
    return page


def test_report_of_classes(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], records: Callable[..., Any], tmp_path: Path
) -> None:
    run = tmp_path / "a <b> & c"
    train_tiny(run)
    result = stsbp("report", run)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'a <b> & c.html'}\n"
    page = check(tmp_path / "a <b> & c.html")
    test = [r for r in records(run) if r["kind"] == "evaluation" and r["split"] == "test"][-1]
    wrong = round(30 * (1 - test["accuracy"]))
    assert f"test split, checkpoint last (3 complete epochs, update {test['step']}): {wrong} of 30 samples" in page.text
    tiles = (
        f"{test['accuracy']:.2%} test accuracy, epoch 3 {test['accuracy_spike_count']:.2%} test accuracy by spike count"
    )
    assert tiles in page.text
    for heading in ("Learning", "Confusion matrix", "Samples read wrong", "Samples read right", "Layers", "Settings"):
        assert heading in page.text
    for name in ("init_gain", "linear2", "headroom", "numpy on cpu", "stsbp --backend numpy train --config "):
        assert name in page.text
    # The folder's name is text, not a tag.
    assert "a <b> & c" in page.text
    assert "b" not in page.tags[page.tags.index("body") : page.tags.index("div")]


def test_report_tells_how_far_it_is(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress: list[tuple[str, int, int]] = []

    class RecordingReporter(PlainReporter):
        def loading(self, activity: str, finished: int, total: int) -> None:
            progress.append((activity, finished, total))

        def close(self) -> None:
            progress.append(("closed", 0, 0))

    train_tiny(tmp_path / "run", "--epochs", 1)
    monkeypatch.setattr("stsbp.cli.report.choose_reporter", lambda: RecordingReporter(None))
    assert stsbp("report", "run").exit_code == 0
    assert [row for row in progress if row[0] == "running test"] == [("running test", done, 30) for done in (20, 30)]
    assert progress.index(("closed", 0, 0)) == len(progress) - 1


def test_the_story_of_spike_trains_counts_them() -> None:
    outputs, targets = np.eye(4, 3, dtype=np.uint8), np.ones((4, 3), np.uint8)
    sample = Sample("movement 7", outputs[None], outputs, targets, outputs.astype(np.float32), None, None, None, 0.25)
    texts = "movement 7: F1 25.0% within 1 step", "3 output spikes, 12 target spikes."
    assert samples._story(sample, ["x", "y", "z"]) == texts
    unknown = replace(sample, targets=None, score=None)
    assert samples._story(unknown, ["x", "y", "z"]) == ("movement 7", "3 output spikes.")


def test_report_tells_why_a_sample_was_misread(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    """The distances in the text are those that `stsbp predict` gives for the same sample."""
    train_tiny(tmp_path / "run")
    stsbp("report", tmp_path / "run")
    text = check(tmp_path / "run.html").text
    explanation = re.search(
        r"test sample (\d+): (\d), read as (\d) .*?nearer to the sequence of (\d) \(([\d.]+)\) "
        r"than to that of (\d) \(([\d.]+)\)",
        text,
    )
    assert explanation is not None
    number, label, read, near, near_distance, far, far_distance = explanation.groups()
    assert (near, far) == (read, label)
    test = load("digits", holdout=30).test
    assert str(test.labels[int(number)]) == label
    np.save(tmp_path / "sample.npy", test.inputs(np.array([int(number)]))[0])
    predicted = json.loads(stsbp("predict", tmp_path / "run", tmp_path / "sample.npy", "--json").stdout)
    assert predicted["class"] == read
    assert predicted["distances"][read] == pytest.approx(float(near_distance), rel=1e-3)
    assert predicted["distances"][label] == pytest.approx(float(far_distance), rel=1e-3)


def test_report_of_a_seed_names_its_experiment(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    train_tiny(tmp_path / "short" / "seed-3")
    stsbp("report", tmp_path / "short" / "seed-3", "--no-samples")
    page = check(tmp_path / "short" / "seed-3.html")
    assert "stsbp run short/seed-3" in page.text
    assert "taken before each update; evaluations after the epoch." in page.text


def test_report_colours_answer_and_true_class_alike(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    """In the distances (bars) and in the membrane potentials (paths without a fill) of each sample."""
    train_tiny(tmp_path / "run")
    stsbp("report", tmp_path / "run")
    cards = (tmp_path / "run.html").read_text(encoding="utf-8").split('<div class="card">')[1:]
    assert cards
    for card in cards:
        heading = re.search(r"<h3>test sample \d+: (\d), read (as )?(\d|right)</h3>", card)
        assert heading is not None
        name, _, read = heading.groups()
        read = name if read == "right" else read
        traces = card[card.index('aria-label="membrane potentials"') :]
        for colour, neuron in (("var(--c0)", read), ("var(--target)", name)):
            if (colour, neuron) != ("var(--target)", read):
                assert re.search(rf'>{neuron}</text><rect [^>]*fill="{re.escape(colour)}"', card)
                drawn = traces[traces.index(f'stroke="{colour}"') :]
                assert re.findall(r'text-anchor="end">(\d)</text>', drawn)[0] == neuron


def test_report_of_spike_trains(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    options = ("--net", 12, "--epochs", 2, "--batch-size", 4, "--limit", 12, "--log-every", 1)
    stsbp("train", "patterns", *options, "--out", tmp_path / "run")
    result = stsbp("report", tmp_path / "run", "--out", tmp_path / "page.html", "--checkpoint", "best")
    assert result.exit_code == 0, result.output
    page = check(tmp_path / "page.html")
    for text in ("Worst samples", "Best samples", "F1 of spike times", "Exactness headroom", "within 1 step"):
        assert text in page.text
    assert "Confusion matrix" not in page.text
    # Four patterns: two are the worst, the other two the best.
    assert sorted(re.findall(r"test sample (\d)", page.text)) == ["0", "1", "2", "3"]


def test_report_without_data(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stsbp.errors import DataError
    from stsbp.report import write

    def missing(*_: Any) -> None:
        raise DataError("the data are gone")

    train_tiny(tmp_path / "run")
    monkeypatch.setattr(write, "load_data", missing)
    result = stsbp("report", tmp_path / "run")
    assert result.exit_code == 1
    assert "the data are gone\n(--no-samples" in result.stderr
    assert not (tmp_path / "run.html").exists()
    assert stsbp("report", tmp_path / "run", "--no-samples").exit_code == 0
    page = check(tmp_path / "run.html")
    assert "Samples read wrong" not in page.text
    assert "Learning" in page.text


def hostile(field: str) -> str:
    """Text that is a tag, an attribute, an entity and expressions of a template, where it is not taken as text."""
    return f"""<script>{field}</script><b onclick="x">' {{{{ 7 * 7 }}}} {{% for x in y %}} {{# no #}} &amp; &lt;"""


def test_report_shows_every_text_as_it_is(
    stsbp: Callable[..., Result], tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {"library", "version", "machine", "device", "history", "sample", "note", "checkpoint", "split"}
    expected |= {"data set", "loss", "folder", "energy data", "energy split", "table", "source", "layer"}
    expected |= {f"class {k}" for k in range(10)}

    def hostile_content(content: Content) -> str:
        content.config = content.config.model_copy(
            update={"dataset": hostile("data set"), "loss": hostile("loss"), "data_dir": hostile("folder")}
        )
        content.classes = [hostile(f"class {k}") for k in range(10)]
        content.notes, content.history = [hostile("note")], [{hostile("history"): 1.0}, {hostile("history"): 2.0}]
        content.checkpoint, content.split = hostile("checkpoint"), hostile("split")
        content.wrong = [replace(sample, name=hostile("sample")) for sample in content.wrong]
        content.starts = [
            {
                "versions": {hostile("library"): hostile("version")},
                "platform": hostile("machine"),
                "device_description": hostile("device"),
                "command": ["stsbp", hostile("word")],
            }
        ]
        assert content.energy is not None
        names = {"dataset": "energy data", "split": "energy split", "table": "table", "source": "source"}
        layers = [layer | {"name": hostile("layer")} for layer in content.energy["layers"]]
        content.energy = {**content.energy, **{key: hostile(name) for key, name in names.items()}, "layers": layers}
        # Every class is confused with every other one.
        content.confusion = np.ones((10, 10), dtype=np.int64)
        return render(content)

    monkeypatch.setattr("stsbp.report.write.render", hostile_content)
    assert stsbp("evaluate", tiny_run, "--energy").exit_code == 0
    result = stsbp("report", tiny_run, "--out", "page.html")
    assert result.exit_code == 0, result.output
    text = check(tmp_path / "page.html").text
    assert {field for field in expected if hostile(field) not in text} == set()
    assert shlex.join(["stsbp", hostile("word")]) in text
    # Names of the charts' lines, of their cells, and the descriptions for screen readers.
    for drawn in ("history", "class 1"):
        assert f"<title>{escape(hostile(drawn))}" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert f'aria-label="{escape(hostile("history"))}"' in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_report_of_a_network_shows_its_name_and_command_as_they_are(
    stsbp: Callable[..., Result], tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hostile_content(content: Content) -> str:
        content.folder, content.training_command = Path(hostile("name").replace("/", "")), hostile("command")
        return render(content)

    monkeypatch.setattr("stsbp.report.write.render", hostile_content)
    assert stsbp("report", tiny_run, "--no-samples", "--out", "page.html").exit_code == 0
    text = check(tmp_path / "page.html").text
    assert hostile("command") in text
    # In the title of the window and of the page.
    assert text.count(hostile("name").replace("/", "")) == 2


@pytest.mark.skipif(os.name == "nt", reason="such names of files are not allowed there")
def test_predict_draws_names_as_they_are(stsbp: Callable[..., Result], tiny_run: Path, tmp_path: Path) -> None:
    name = hostile("x").replace("/", "") + ".npy"
    np.save(tmp_path / name, load("digits").test.inputs(np.arange(1))[0])
    assert stsbp("predict", tiny_run, name, "--draw", "page.html").exit_code == 0
    assert name in check(tmp_path / "page.html").text


@pytest.mark.parametrize("objectives", [("accuracy",), ("accuracy", "loss")])
def test_the_page_of_a_sweep_shows_every_text_as_it_is(objectives: tuple[str, ...], tmp_path: Path) -> None:
    chosen = [OBJECTIVES[name]._replace(text=hostile(f"objective {name}")) for name in objectives]
    fields = {"title", "explanation", "command", "value", *(f"objective {name}" for name in objectives)}
    fields |= {"setting"} if len(objectives) == 1 else set()
    rows = [
        TrialRow(
            n,
            "finished",
            {"lr": 0.1, "loss": hostile("value")},
            (0.5, 1.0)[: len(chosen)],
            {},
            None,
            None,
            "",
            None,
            "",
        )
        for n in range(2)
    ]
    if len(objectives) == 1:
        rows = [replace(row, params={**row.params, hostile("setting"): row.number}) for row in rows]
    varied = list(rows[0].params)
    text = html_page(hostile("title"), rows, varied, chosen, hostile("explanation"), {0: hostile("command")})
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    shown = check(tmp_path / "page.html").text
    assert {field for field in fields if hostile(field) not in shown} == set()


def test_descriptions_of_drawings_are_text() -> None:
    drawn = [
        svg.lines("<b>", "<b>", [svg.Series("<b>", [1], [1.0])]),
        svg.image(np.zeros((1, 2, 2), np.uint8), "<b>"),
    ]
    for drawing in drawn:
        assert "<b>" not in drawing
        assert escape("<b>") in drawing


def test_a_page_has_all_its_values_and_ends_with_a_line_end() -> None:
    section = Samples("a title", [], None, labelled=False, of_classes=False)
    assert page("samples.html", title="x", samples=section).endswith("</html>\n")
    with pytest.raises(UndefinedError, match="'title' is undefined"):
        page("samples.html", samples=section)


def test_report_before_the_first_epoch(
    stsbp: Callable[..., Result],
    train_tiny: Callable[..., Result],
    tmp_path: Path,
    forge_records: Callable[[Path, bytes], None],
) -> None:
    """As of a run that has just begun: a checkpoint, and half a line of metrics."""
    train_tiny(tmp_path / "run")
    forge_records(tmp_path / "run", b"")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"kind": "st')
    (tmp_path / "run" / "environment.json").unlink()
    result = stsbp("report", tmp_path / "run")
    assert result.exit_code == 0, result.output
    page = check(tmp_path / "run.html")
    assert "No epoch is complete yet" in page.text
    assert "has no environment.json" in page.text


@pytest.mark.parametrize(
    "line",
    [
        '{"kind": "epoch"}',
        '{"kind": "step"}',
        '{"kind": "evaluation", "split": "test", "epoch": 3, "step": 6}',
        '{"kind": "other"}',
        "[1]",
        "WHOLE-with-NaN",
        "WHOLE-with-text",
        "WHOLE-of-another-layer",
        "WHOLE-with-grids",
        "WHOLE-that-is-too-large",
        "WHOLE-with-null",
        "WHOLE-whose-square-is-too-large",
        "WHOLE-of-more-than-all",
        "WHOLE-of-a-late-epoch",
        "WHOLE-of-a-late-update",
        '{"kind": [1]}',
        "[" * 100000,
        '{"kind": "step", "loss": 1, "rates": {}, "accuracy": 1, "accuracy_spike_count": 1, "grids": "x"}',
    ],
)
def test_damaged_records_are_left_out(
    stsbp: Callable[..., Result],
    train_tiny: Callable[..., Result],
    tmp_path: Path,
    forge_records: Callable[[Path, bytes], None],
    line: str,
) -> None:
    train_tiny(tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    record = next(text for text in metrics.read_text().splitlines() if '"kind": "epoch"' in text)
    loss = json.loads(record)["loss"]
    line = {
        "WHOLE-with-NaN": record.replace(f'"loss": {loss}', '"loss": NaN'),
        "WHOLE-with-text": record.replace(f'"loss": {loss}', '"loss": "low"'),
        "WHOLE-of-another-layer": record.replace("linear1", "conv9"),
        "WHOLE-with-grids": record[:-1] + ', "grids": 5}',
        "WHOLE-that-is-too-large": record.replace(f'"loss": {loss}', f'"loss": {10**400}'),
        "WHOLE-with-null": record[:-1] + ', "f1": null}',
        "WHOLE-whose-square-is-too-large": record.replace(f'"loss": {loss}', '"loss": -1.7e308'),
        "WHOLE-of-more-than-all": record[:-1] + ', "accuracy": 1.5}',
        "WHOLE-of-a-late-epoch": record[:-1] + f', "epoch": {2**53}}}',
        "WHOLE-of-a-late-update": record[:-1] + f', "step": {2**53}}}',
    }.get(line, line)
    assert line not in metrics.read_text()
    compared = stsbp("compare", "run").stdout
    assert stsbp("report", "run", "--no-samples", "--out", "before.html").exit_code == 0
    forge_records(tmp_path / "run", metrics.read_bytes() + line.encode() + b"\n")
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    environment["starts"].append({"versions": [1]})
    (tmp_path / "run" / "environment.json").write_text(json.dumps(environment))
    assert stsbp("report", "run", "--no-samples", "--out", "after.html").exit_code == 0
    assert (tmp_path / "before.html").read_bytes() == (tmp_path / "after.html").read_bytes()
    if "conv9" not in line:
        assert stsbp("compare", "run").stdout == compared


def test_report_shows_what_the_error_grid_zeroed(
    stsbp: Callable[..., Result],
    train_tiny: Callable[..., Result],
    tmp_path: Path,
    forge_records: Callable[[Path, bytes], None],
) -> None:
    surrogate = ("--surrogate", "triangle:width=1e7")
    exploding = ("--init-gain", 1e6, "--threshold", 1e6, *surrogate, "--steps", 6, "--clip-norm", 1)
    for name, options in (("exploding", exploding), ("calm", ())):
        assert train_tiny(tmp_path / name, "--precision", "reproducible", *options).exit_code == 0
        assert stsbp("report", name, "--no-samples").exit_code == 0
        page = check(tmp_path / f"{name}.html")
        assert ("the error grid of reproducible precision zeroed" in page.text) == (name == "exploding")
    # Lines from before there were such shares, and damaged ones.
    metrics = tmp_path / "exploding" / "metrics.jsonl"
    for zeroed in ('"before": 1', '"zeroed": {"linear1": 0.5}', '"zeroed": {"linear1": 2.0, "linear2": 1.0}'):
        text = re.sub(r'"(zeroed|before)": ({[^}]*}|1)', zeroed, metrics.read_text())
        forge_records(tmp_path / "exploding", text.encode())
        assert stsbp("report", "exploding", "--no-samples", "--out", "damaged.html").exit_code == 0
        assert "error grid" not in check(tmp_path / "damaged.html").text


def test_report_lies_beside_the_folder_that_it_is_called_in(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_tiny(tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    assert stsbp("report", ".", "--no-samples").exit_code == 0
    assert (tmp_path / "run.html").exists()


@pytest.mark.skipif(os.name == "nt", reason="names are UTF-16 there")
def test_report_of_a_name_that_is_no_utf8(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    run = tmp_path / os.fsdecode(b"b\xffd")
    try:
        run.mkdir()
    except OSError:
        pytest.skip("the file system has no such names")
    assert train_tiny(run).exit_code == 0
    assert stsbp("report", run, "--no-samples").exit_code == 0
    assert r"b\xffd" in check(tmp_path / os.fsdecode(b"b\xffd.html")).text


def test_drawing_does_not_replace_what_it_reads(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    train_tiny(tmp_path / "run")
    np.save(tmp_path / "0.npy", load("digits").test.inputs(np.arange(1))[0])
    content = (tmp_path / "0.npy").read_bytes()
    assert "would replace the file" in stsbp("predict", "run", "0.npy", "--draw", tmp_path / "0.npy").stderr
    assert (tmp_path / "0.npy").read_bytes() == content


def test_events_of_other_channels_than_two_are_drawn_in_proportion() -> None:
    """A sum over 200 steps of 3 channels does not fit into a byte."""
    from stsbp.report.samples import _input

    x: UInt8 = np.zeros((200, 3, 2, 2), dtype=np.uint8)
    x[:, :, 0, 0] = 1
    x[:100, :, 0, 1] = 1
    sample = Sample("x", x, x[:, 0, 0], None, np.zeros((200, 2), np.float32), None, None, None, None)
    figure = _input(sample)
    assert "ON" not in figure.caption
    picture = svg.image(np.array([[[255, 127], [0, 0]]], dtype=np.uint8), "input spikes, summed over time")
    assert figure.chart == picture


def test_events_of_two_channels_are_drawn_as_off_and_on() -> None:
    from stsbp.report.samples import _input

    x: UInt8 = np.zeros((5, 2, 1, 2), dtype=np.uint8)
    x[:3, 0, 0, 0] = x[:1, 1, 0, 1] = 1
    sample = Sample("x", x, x[:, 0, 0], None, np.zeros((5, 2), np.float32), None, None, None, None)
    figure = _input(sample)
    assert "red: ON, blue: OFF" in figure.caption
    assert figure.chart == svg.image(np.array([[[3, 0]], [[0, 1]]], dtype=np.uint8), "input events, summed over time")


def test_an_input_without_rows_and_columns_is_drawn_as_a_line() -> None:
    from stsbp.report.samples import _input

    x: UInt8 = np.array([0, 200, 255, 3], dtype=np.uint8)
    sample = Sample("x", x, np.zeros((5, 2), np.uint8), None, np.zeros((5, 2), np.float32), None, None, None, None)
    assert "value, number of the input 1: 200</title>" in _input(sample).chart


def test_report_of_a_converted_run_repeats_it_with_its_own_weights(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train_tiny(tmp_path / "run", "--epochs", 1, "--tau-s", 2)
    arguments = ["convert", "run", "--psp-gain", "unit", "--out", "import"]
    monkeypatch.setattr("sys.argv", ["/bin/stsbp", *arguments])
    assert stsbp(*arguments).exit_code == 0
    stsbp("report", "import", "--no-samples")
    command = "stsbp convert run --psp-gain unit --out import"
    instruction = "To repeat the run, replace its folder by a new one here:"
    assert f"{instruction} {command} setting" in check(tmp_path / "import.html").text
    monkeypatch.setattr("sys.argv", ["/bin/stsbp", "train", "--resume", "import"])
    assert stsbp("train", "--resume", "import", "--epochs", 2).exit_code == 0
    stsbp("report", "import", "--no-samples")
    later = "stsbp --backend numpy train --resume import --epochs 2"
    assert f"{instruction} {command}\n{later} setting" in check(tmp_path / "import.html").text
    (tmp_path / "import").rename(tmp_path / "-moved")
    stsbp("report", "./-moved", "--no-samples")
    assert "train --resume ./-moved --epochs 2 setting" in check(tmp_path / "-moved.html").text
    # The first name of a command counts, not that of a folder.
    monkeypatch.setattr("sys.argv", ["/bin/stsbp", "train", "digits", "--out", "convert"])
    train_tiny(tmp_path / "convert", "--epochs", 1)
    stsbp("report", "convert", "--no-samples")
    assert "To repeat the run: stsbp --backend numpy train --config convert" in check(tmp_path / "convert.html").text


def test_equally_near_label_sequences_are_named() -> None:
    from stsbp.report.samples import _tie

    assert _tie(np.array([2.0, 1.0, 1.0])).startswith(" 2 label sequences are equally far")
    assert _tie(np.array([2.0, 1.0, 3.0])) == ""


def test_report_refuses(stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path) -> None:
    assert "there is no run folder" in stsbp("report", tmp_path / "none").stderr
    train_tiny(tmp_path / "run", "--validation", 0)
    assert "no validation split" in stsbp("report", tmp_path / "run", "--split", "validation").stderr


@pytest.mark.parametrize("option", [("--split", "test"), ("--data-dir", "/nowhere")])
def test_report_without_samples_refuses_options_that_choose_them(
    stsbp: Callable[..., Result], refused: Callable[..., None], option: tuple[str, str]
) -> None:
    result = stsbp("report", "run", "--no-samples", *option)
    refused(result, f"{option[0]} chooses samples, but --no-samples leaves them out; leave {option[0]} out")


def test_predict_draws(stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path) -> None:
    train_tiny(tmp_path / "run")
    images = load("digits").test.inputs(np.arange(2))
    for i in range(2):
        np.save(tmp_path / f"{i}.npy", images[i])
    plain = stsbp("predict", tmp_path / "run", tmp_path / "0.npy", tmp_path / "1.npy")
    drawn = stsbp("predict", tmp_path / "run", tmp_path / "0.npy", tmp_path / "1.npy", "--draw", tmp_path / "d.html")
    assert drawn.stdout == plain.stdout
    page = check(tmp_path / "d.html")
    for i in range(2):
        read = plain.stdout.split(f"{i}.npy: ")[1].split(" ")[0]
        assert f"{i}.npy: {read}" in page.text


def test_every_split_has_its_line(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    train_tiny(tmp_path / "run")
    assert stsbp("report", tmp_path / "run", "--no-samples", "--out", tmp_path / "r.html").exit_code == 0
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    for split in ("training", "validation", "test"):
        assert text.count(f"</i>{split}</span>") == 2, split  # of the loss and of the accuracy
        assert f"<title>{split}, epoch 3: " in text


def test_predict_draws_the_threshold_of_the_output_layer(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    train_tiny(tmp_path / "run", "--net", "12{threshold=0.37}", "--threshold", 0.73)
    np.save(tmp_path / "0.npy", load("digits").test.inputs(np.arange(1))[0])
    stsbp("predict", tmp_path / "run", tmp_path / "0.npy", "--draw", tmp_path / "d.html")
    text = (tmp_path / "d.html").read_text(encoding="utf-8")
    assert ">0.73</text>" in text
    assert ">0.37</text>" not in text


def test_compare(stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path) -> None:
    train_tiny(tmp_path / "one")
    train_tiny(tmp_path / "two", "--loss", "hamming", "--epochs", 2)
    facts = [json.loads(line) for line in stsbp("compare", "one", "two", "--json").stdout.splitlines()]
    assert [fact["run"] for fact in facts] == ["one", "two"]
    assert [fact["epochs"] for fact in facts] == [3, 2]
    lines = stsbp("compare", "one", "two").stdout.splitlines()[1:-1]
    rows = {line[: line.index("  ")]: line.split()[-2:] for line in lines}
    assert rows["loss"] == ["van-rossum", "hamming"]
    assert "batch_size" not in rows
    for row, fact in zip(("one", "two"), facts, strict=True):
        place = ("one", "two").index(row)
        assert rows["test accuracy"][place] == f"{fact['test']['accuracy']:.2%}"
        # The star marks training losses of two kinds, which do not compare.
        assert rows["training loss *"][place] == f"{fact['training']['loss']:.4f}"
    assert "there is no run folder three" in stsbp("compare", "one", "three").stderr
    # Runs of the same name are told apart by their paths.
    train_tiny(tmp_path / "other" / "one", "--epochs", 1)
    assert stsbp("compare", "one", "other/one").stdout.splitlines()[0].split() == ["run", "one", "other/one"]


def test_compare_writes_csv_sorted_and_short(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    for name, lr in (("a", "0.01"), ("b", "0.03"), ("c", "0.02")):
        assert train_tiny(tmp_path / name, "--epochs", 1, "--lr", lr).exit_code == 0
    assert stsbp("evaluate", "c", "--energy").exit_code == 0
    full = list(csv.DictReader(io.StringIO(stsbp("compare", "a", "b", "c", "--csv").stdout)))
    rows = package.compare(["a", "b", "c"])
    assert [row["run"] for row in full] == ["a", "b", "c"]
    assert set(full[0]) == {name for row in rows for name in row}
    for cells, row in zip(full, rows, strict=True):
        for name, value in row.items():
            expected = json.dumps(value) if isinstance(value, list) else "" if value is None else str(value)
            assert cells[name] == expected, name
    short = stsbp("compare", "a", "b", "c", "--csv", "--short", "--sort", "lr").stdout
    assert short.splitlines()[0] == (
        "run,dataset,lr,epochs_done,training.accuracy,training.loss,validation.accuracy,validation.loss,test.accuracy,"
        "test.loss,seconds,energy.pj"
    )
    assert [line[0] for line in short.splitlines()[1:]] == ["a", "c", "b"]
    table = stsbp("compare", "a", "b", "c", "--short", "--sort", "lr", "--reverse").stdout
    assert re.match(r"run +b +c +a\n", table)
    names = [line.split("  ")[0] for line in table.splitlines()]
    assert names[:6] == ["run", "dataset", "lr", "epochs done", "training accuracy", "training loss"]
    assert not any("rate" in name or "Hamming" in name or "timing" in name for name in names)
    assert any(name.startswith("energy of") for name in names)
    assert [row["run"] for row in package.compare(["a", "b", "c"], sort="lr", reverse=True, short=True)] == list("bca")
    losses = [row["test.loss"] for row in package.compare(["a", "b", "c"], sort="test.loss")]
    assert losses == sorted(losses)
    # Runs without a value come last, in both directions.
    for reverse in (False, True):
        assert package.compare(["a", "b", "c"], sort="energy.pj", reverse=reverse)[0]["run"] == "c"
    # Settings that do not differ are known, too.
    assert [row["run"] for row in package.compare(["b", "a"], sort="tau_m")] == ["b", "a"]
    unknown = stsbp("compare", "a", "b", "--sort", "test.acuracy")
    assert unknown.exit_code == 1
    assert "there is no such column (did you mean test.accuracy?); known: run, dataset, lr," in unknown.stderr
    assert "--reverse is the order of --sort" in stsbp("compare", "a", "--reverse").stderr
    assert "leave --csv and --short out" in stsbp("compare", "a", "--json", "--csv").stderr
    with pytest.raises(ConfigError, match="sort is the name of a column"):
        package.compare(["a"], sort=1)  # type: ignore[arg-type]


def test_compare_shows_sample_counts_and_marks_what_is_not_comparable(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    train_tiny(tmp_path / "a")
    train_tiny(tmp_path / "b", "--holdout", 40)
    train_tiny(tmp_path / "c", "--split-seed", 1)
    train_tiny(tmp_path / "d", "--lr", 0.02)
    remark = "* not comparable: of other samples, another loss, other label sequences or another synaptic filter"
    lines = stsbp("compare", "a", "b").stdout.splitlines()
    assert [line.split()[-2:] for line in lines if line.startswith("test samples ")] == [["30", "40"]]
    assert [line.split()[-2:] for line in lines if line.startswith("training samples ")] == [["40", "40"]]
    assert any(line.startswith("test accuracy *") for line in lines)
    assert lines[-1] == remark
    # As many samples, but others.
    assert "test accuracy *" in stsbp("compare", "a", "c").stdout
    same = stsbp("compare", "a", "d").stdout
    assert "*" not in same
    assert "test samples" in same


def test_compare_marks_what_was_measured_on_data_that_changed(
    stsbp: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STSBP_CACHE", str(tmp_path / "cache"))
    n = np.arange(24)

    def train(name: str, shift: int, *words: object) -> None:
        np.savez(tmp_path / "data.npz", sample=n, x=(n + shift) % 4, t=n * 0, labels=n % 2, sensor=[4])
        more = ("--net", 3, "--epochs", 1, "--holdout", 8, "--validation", 4, "--window-ms", 20, *words)
        result = stsbp(
            "--backend", "numpy", "train", f"events:{tmp_path / 'data.npz'}", *more, "--out", tmp_path / name
        )
        assert result.exit_code == 0, result.output

    train("a", 0, "--steps", 4)
    train("b", 1, "--steps", 4)
    train("c", 0, "--steps", 4)
    train("d", 0, "--steps", 5)
    changed = stsbp("compare", "a", "b").stdout
    for split in ("training", "validation", "test"):
        assert f"{split} accuracy *" in changed
    assert changed.splitlines()[-1].startswith("* not comparable: of other samples")
    assert "*" not in stsbp("compare", "a", "c").stdout
    # The same samples in more steps are other inputs.
    assert "test accuracy *" not in stsbp("compare", "a", "d").stdout
    # Checkpoints of earlier versions do not describe their data.
    monkeypatch.setattr("stsbp.training.compare._contents", lambda _: {})
    assert "*" not in stsbp("compare", "a", "b").stdout


MATCHED = ("precision within 1 step", "recall within 1 step", "F1 within 1 step")


@pytest.mark.parametrize(
    ("option", "marked"),
    [
        (("--limit", 40), {"training", "validation"}),
        (("--validation", 12), {"training", "validation"}),
        (("--lr", 0.02), set()),
        (("--label-pattern", "01"), {"loss", "van rossum", "hamming", *MATCHED}),
        (("--undesired-pattern", "001"), {"loss", "van rossum", "hamming", *MATCHED}),
        (("--steps", 4), {"loss", "van rossum", "hamming", *MATCHED}),
        (("--tau-s", 2), {"loss", "van rossum"}),
        (("--psp-gain", "unit"), {"loss", "van rossum"}),
        (("--loss", "hamming"), {"loss"}),
    ],
)
def test_compare_marks_what_was_measured_on_other_samples_or_in_another_way(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], option: tuple[Any, ...], marked: set[str]
) -> None:
    train_tiny(Path("a"), "--epochs", 1)
    train_tiny(Path("b"), "--epochs", 1, *option)
    if "training" in marked:
        # The test samples are the same, although they are held out.
        a, b = (load_data(RunFolder(Path(run)).read_config()).test.inputs(np.arange(30)) for run in "ab")
        assert np.array_equal(a, b)
    rows = [line.partition("  ")[0] for line in stsbp("compare", "a", "b").stdout.splitlines()]
    names = ["accuracy", "accuracy spike count", "van rossum", "hamming", "loss", *MATCHED]
    figures = [(split, name) for split in ("training", "validation", "test") for name in names]
    starred = {(split, name) for split, name in figures if f"{split} {name} *" in rows}
    plain = {(split, name) for split, name in figures if f"{split} {name}" in rows}
    # Three figures of training updates, and eight of each evaluation.
    assert len(plain) + len(starred) == 3 + 8 + 8
    assert starred == {figure for figure in plain | starred if {*figure} & marked}


def test_compare_shows_versions_instead_of_digests(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    train_tiny(tmp_path / "a")
    train_tiny(tmp_path / "b", "--init-from", "a")
    # The row of init_from says it all.
    assert "init_sha256" not in stsbp("compare", "a", "b").stdout
    train_tiny(tmp_path / "a", "--epochs", 2, "--overwrite")
    train_tiny(tmp_path / "c", "--init-from", "a")
    text = stsbp("compare", "a", "b", "c").stdout
    (row,) = (line for line in text.splitlines() if line.startswith("init_sha256"))
    assert row.split()[1:] == ["version", "1", "version", "2"]
    assert json.loads((tmp_path / "a" / "last.json").read_text())["sha256"][:8] not in text


def test_compare_numbers_networks_of_nodes() -> None:
    assert compare._numbered("nodes", ["x\n", "", "y\n", "x\n"]) == [
        *("nodes version 1", "", "nodes version 2", "nodes version 1")
    ]


def on_terminal(*arguments: str, columns: int) -> list[str]:
    """What a command prints on a terminal of so many columns."""
    pty = pytest.importorskip("pty", reason="no pseudo-terminals here")
    ours, its = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns)}
    text = b""
    with (
        open(ours, "rb", buffering=0) as reader,
        subprocess.Popen([sys.executable, "-m", "stsbp", *arguments], stdout=its, env=environment) as process,
    ):
        os.close(its)
        # At the end Linux raises EIO, others return nothing.
        with contextlib.suppress(OSError):
            while part := reader.read(65536):
                text += part
    assert process.returncode == 0
    return text.decode().splitlines()


def test_compare_fits_a_terminal_and_gives_a_pipe_everything(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    train_tiny(tmp_path / "a")
    names = ["a", *(f"from-a-with-seed-{number}" for number in range(1, 4))]
    for number, name in enumerate(names[1:], 1):
        train_tiny(tmp_path / name, "--init-from", "a", "--seed", number)
    piped = stsbp("compare", *names).stdout.splitlines()
    assert piped[0].split() == ["run", *names]
    row = next(line for line in piped if line.startswith("init_from "))
    assert row.split()[1:] == 3 * [f"{tmp_path / 'a'}:last"]
    lines = on_terminal("compare", *names, columns=80)
    assert max(map(len, lines)) <= 80
    heads = [line.split()[1:] for line in lines if line.startswith("run ")]
    assert len(heads) > 1
    assert [name for head in heads for name in head] == names
    assert [cell for line in lines if line.startswith("init_from ") for cell in line.split()[1:]] == 3 * ["a:last"]
    # As wide as the table exactly, and a column less.
    few = ("compare", *names[:3])
    width = max(map(len, on_terminal(*few, columns=500)))
    assert sum(line.startswith("run ") for line in on_terminal(*few, columns=width)) == 1
    assert sum(line.startswith("run ") for line in on_terminal(*few, columns=width - 1)) == 2


def test_paths_that_end_alike_are_shown_in_full() -> None:
    assert compare._shortened_paths(["folder:/x/cats", "images", ""]) == ["folder:cats", "images", ""]
    alike = ["folder:/x/cats", "folder:/y/cats"]
    assert compare._shortened_paths(alike) == alike


def test_compare_leaves_out_what_is_no_run(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tiny: tuple[str, ...], tmp_path: Path
) -> None:
    # The commands of README and docs, one after the other: the third one is given all that the first two left.
    train_tiny(tmp_path / "runs" / "digits")
    assert stsbp("report", "runs/digits").exit_code == 0
    done = stsbp("experiment", "digits", *tiny, "--seeds", 1)
    assert done.exit_code == 0, done.output
    compared = stsbp("compare", *sorted(path.relative_to(tmp_path) for path in (tmp_path / "runs").iterdir()))
    assert compared.exit_code == 0, compared.output
    assert compared.stdout.splitlines()[0].split() == ["run", "digits"]
    assert "runs/digits.html is left out: it is no run" in compared.stderr
    assert (
        "runs/digits-seeds is left out: it is an experiment: its runs are runs/digits-seeds/seed-*" in compared.stderr
    )
    assert stsbp("compare", "runs/digits-seeds/seed-0", "runs/digits.html").exit_code == 0
    alone = stsbp("compare", "runs/digits.html")
    assert alone.exit_code == 1
    assert "runs/digits.html" in alone.stderr
    missing = stsbp("compare", "runs/digits", "runs/digit")
    assert missing.exit_code == 1
    assert "there is no run folder runs/digit" in missing.stderr


def test_samples_are_chosen_from_different_mistakes() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2])
    nearest = np.array([1, 1, 0, 1, 2, 0])
    wrong, right = choose(Survey(labels, nearest, (labels == nearest).astype(float)))
    assert wrong == [0, 2, 5]
    assert right == [3, 4]
    worst, best = choose(Survey(labels, None, np.array([0.5, 0.1, 0.9, 1.0, 0.2, 0.3])), 2)
    assert (worst, best) == ([1, 4], [3, 2])
    # Of few samples the better half is not called the worst, and none is shown twice.
    assert choose(Survey(labels[:3], None, np.array([0.5, 0.1, 0.9])), 8) == ([1, 0], [2])
    assert choose(Survey(labels[:4], None, np.array([0.5, 0.1, 0.9, 0.2])), 8) == ([1, 3], [2, 0])
    assert choose(Survey(labels[:1], None, np.array([0.5]))) == ([0], [])


def test_samples_of_many_different_mistakes_are_chosen_in_linear_time() -> None:
    labels = np.arange(30_000)
    began = time.process_time()
    wrong, _ = choose(Survey(labels, labels + 1, np.zeros(len(labels))))
    assert wrong == [0, 1, 2]
    # With a search for every sample, this takes a hundred times as long.
    assert time.process_time() - began < 2


def test_of_many_classes_the_nearest_are_drawn() -> None:
    from stsbp.report.samples import _drawn_classes

    distances = np.arange(40)[::-1].astype(float)
    assert _drawn_classes(distances[:16], [3]) == (list(range(16)), "Distance to each label sequence")
    shown, caption = _drawn_classes(distances, [39, 2])
    assert shown == [2, *range(24, 40)]
    assert "of 40 label sequences" in caption


def test_raster_draws_every_spike() -> None:
    random = np.random.default_rng(0)
    outputs, targets = random.integers(0, 2, (2, 9, 5), dtype=np.uint8)
    paths = re.findall(r'<path d="([^"]*)" stroke="([^"]*)"', svg.raster(outputs, targets, list("abcde")))
    counts = {colour: path.count("M") for path, colour in paths}
    assert counts == {"var(--target)": targets.sum(), "var(--fg)": outputs.sum()}


def test_every_second_row_of_a_raster_has_a_band() -> None:
    spikes = np.zeros((4, 5), np.uint8)
    bands = re.findall(r'<rect class="band" x="[^"]*" y="([^"]*)"', svg.raster(spikes, spikes, list("abcde")))
    heights = np.array(bands, float)
    assert len(heights) == 3
    assert heights[0] == 0
    assert np.allclose(np.diff(heights), heights[1])


@pytest.mark.parametrize(("classes", "angle"), [(3, 0), (10, 45), (24, 45), (25, 90)])
def test_names_over_a_matrix_are_turned_where_cells_are_narrow(classes: int, angle: int) -> None:
    names = ["abc" if angle == 0 else "a long name"] * classes
    turned = re.findall(r"rotate\(-(\d+) ", svg.matrix(np.eye(classes, dtype=np.int64), names))
    assert turned == [str(angle)] * (classes if angle else 0)


def test_a_matrix_of_many_classes_draws_what_was_counted() -> None:
    counts = 3 * np.eye(1000, dtype=np.int64)
    counts[7, 9] = 1
    text = svg.matrix(counts, [f"class {k}" for k in range(1000)])
    assert len(text) < 1e6
    assert text.count("<title>") == 1001
    assert "<title>class 7 read as class 9: 1 (25.0%)</title>" in text


@pytest.mark.parametrize("length", [33, 80, 500])
def test_long_names_leave_room_for_what_they_name(length: int) -> None:
    names = ["a" * length, "b" * 32]
    spikes, potentials = np.ones((4, 2), np.uint8), np.ones((4, 2), np.float32)
    drawn = [
        svg.raster(spikes, spikes, names),
        svg.traces(potentials, spikes, 1.0, names, ["red", "red"]),
        svg.bars(np.ones(2), names, [0], []),
        svg.matrix(np.eye(2, dtype=np.int64), names),
    ]
    for text in drawn:
        widths = [float(width) for width in re.findall(r'width="([^"]*)"', text)]
        assert min(widths) > 0
        assert max(widths) < 500
    for text in drawn[:3]:
        assert ">" + "a" * 31 + ".<" in text
        assert ">" + "b" * 32 + "<" in text


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.0, 7e-9), (-3.0, 12345.0), (0.9731, 0.9734)], ids=["unit", "tiny", "large", "far"]
)
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    ticks = svg._ticks(low, high)
    assert 2 <= len(ticks) <= 7
    assert low - 1e-9 * abs(low) <= ticks[0]
    assert ticks[-1] <= high + 1e-9 * abs(high)
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])
    enclosing = svg._ticks(low, high, enclosing=True)
    assert enclosing[0] <= low + 1e-9 * abs(low)
    assert high - 1e-9 * abs(high) <= enclosing[-1]
    assert len(ticks) <= len(enclosing) <= len(ticks) + 2


def test_steps_between_ticks_are_the_smallest_round_numbers_that_do() -> None:
    steps = {most: np.diff(svg._ticks(0.0, most))[0] for most in (5.0, 5.1, 10.0, 12.5, 25.0, 26.0, 50.0)}
    assert steps == {5.0: 1, 5.1: 2, 10.0: 2, 12.5: 2.5, 25.0: 5, 26.0: 10, 50.0: 10}


@pytest.mark.parametrize("value", [0.0, 0.5, -1e17, -1e100])
@pytest.mark.parametrize("epoch", [1, 10**15])
def test_lines_without_change(value: float, epoch: int) -> None:
    text = svg.lines("flat", "epoch", [svg.Series("loss", [epoch], [value])])
    assert "nan" not in text
    assert "inf" not in text


def test_png_is_read_back(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    import base64
    import io

    pixels: UInt8 = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    data = base64.b64decode(svg.png(pixels).partition(",")[2])
    assert np.array_equal(np.asarray(pillow.open(io.BytesIO(data))), pixels)


def test_browser_has_nothing_to_say(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium is installed")
    train_tiny(tmp_path / "run")
    stsbp("report", tmp_path / "run")
    page = tmp_path / "run.html"
    bad = tmp_path / "bad.html"
    bad.write_text(page.read_text().replace("</main>", "<script>1</script></main>"))
    options = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path}/u",
    )
    ended = [
        subprocess.run(
            [browser, *options, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=60, check=False
        )
        for path in (page, bad)
    ]
    assert "Confusion matrix" in ended[0].stdout
    assert "CONSOLE" not in ended[0].stderr
    # The same look at a page with a script in it sees that the policy stops it.
    assert "Content Security Policy" in ended[1].stderr
