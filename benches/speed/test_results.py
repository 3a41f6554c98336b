"""What is kept of a run while it goes on, and when it is ended."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

HERE = Path(__file__).resolve().parent
sys.path[0:0] = [str(HERE.parent), str(HERE.parents[1] / "scripts" / "gpu")]

from ending import Ending  # noqa: E402 # behind the path

from speed import cli, groups, needs, page, words  # noqa: E402 # behind the path
from speed.agents import ROOT  # noqa: E402
from speed.bench import Bench  # noqa: E402
from speed.results import Results, is_partial, name_of, partial_of  # noqa: E402
from speed.rounds import Entry  # noqa: E402
from speed.rows import Row, Series  # noqa: E402


def results_at(path: Path) -> Results:
    return Results(path, lambda seconds: {"date": "today", "seconds": round(seconds)}, Ending())


def row(case: str) -> Row:
    return Row(case, "longshore", 1.0, "GB/s")


def read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def test_names() -> None:
    path = Path("benches/results/2026-01-02-2-cores-full.json")
    assert partial_of(path) == Path("benches/results/2026-01-02-2-cores-full.partial.json")
    assert [is_partial(each) for each in (path, partial_of(path))] == [False, True]
    assert {name_of(path), name_of(partial_of(path))} == {"2026-01-02-2-cores-full"}


def test_results_so_far_are_replaced_and_go_with_the_last(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.json"
    made = results_at(path)
    for cases in (["local/cold"], ["local/cold", "worker/tcp"]):
        made.keep(map(row, cases))
        assert [each["case"] for each in read(partial_of(path))["rows"]] == cases
        assert read(partial_of(path))["unfinished"]
        assert [each.name for each in path.parent.iterdir()] == ["x.partial.json"]
    made.finish([row("attach/host")])
    assert [each.name for each in path.parent.iterdir()] == ["x.json"]
    assert read(path).keys() == {"date", "seconds", "rows"}


def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.json"
    made = results_at(path)
    made.keep([row("local/cold")])

    def fails(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("os.replace", fails)
    made.keep([row("worker/tcp")])
    assert "could not be kept: the disk is full" in capsys.readouterr().err
    assert read(partial_of(path))["rows"][0]["case"] == "local/cold"
    assert [each.name for each in tmp_path.iterdir()] == ["x.partial.json"]
    with pytest.raises(OSError, match="full"):
        made.finish([])
    assert [each.name for each in tmp_path.iterdir()] == ["x.partial.json"]


def test_a_run_that_is_ended_keeps_the_groups_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(_: Bench, __: ExitStack) -> list[Entry]:
        return []

    def run_group(_: Bench, name: str, __: groups.Make) -> list[Series]:
        if name == "third":
            raise SystemExit(143)
        return [Series(f"{name}/case", "longshore", "GB/s", note="note")]

    names = ["first", "second", "third", "fourth"]
    monkeypatch.setattr(groups, "of", lambda _: {name: ([f"{name}/case"], make) for name in names})
    monkeypatch.setattr(needs, "of", lambda _: {name: needs.Need(0, 0) for name in names})
    monkeypatch.setattr(cli, "run_group", run_group)
    bench = Mock(Bench, is_over=False, work=tmp_path)
    bench.options = cli.options_of(cli.arguments([]))
    path = tmp_path / "x.json"
    with pytest.raises(SystemExit):
        cli.run(bench, "command", results_at(path))
    assert not path.exists()
    assert [each["case"] for each in read(partial_of(path))["rows"]] == ["first/case", "second/case"]


def test_the_page_of_an_ended_run_goes_where_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[Path, Path]] = []
    monkeypatch.setattr(page, "write", lambda *paths: written.append(paths))
    partial = tmp_path / "x.partial.json"
    with pytest.raises(SystemExit, match="say with --docs"):
        cli.main(["--page", str(partial)])
    assert cli.main(["--page", str(partial), "--docs", str(tmp_path)]) == 0
    assert cli.main(["--page", str(tmp_path / "x.json")]) == 0
    assert written == [(partial, tmp_path), (tmp_path / "x.json", ROOT / "docs")]


@pytest.mark.parametrize("unfinished", [False, True])
def test_the_page_says_that_a_run_was_ended(unfinished: bool) -> None:
    facts = ("date", "machine", "disk", "model", "command")
    value = {name: name for name in facts} | {"versions": {}, "rounds": 1, "seconds": 60, "rows": []}
    value |= {"unfinished": True} if unfinished else {}
    text = page.page(value, "x.json", {"micro": None, "checkpoint": None}, {})
    assert (words.UNFINISHED in text) == unfinished
