import json
import pickle
from typing import Any

import numpy as np
import pytest

from hvd_compress import Auto, Compressor, Half, Simulation, TopK, TwoLevel
from hvd_compress.statistics import Report

GIVEN = {"w": [np.full((50, 40), rank + 1, np.float32) for rank in range(2)]}


def test_the_compressor_that_a_simulation_is_given_reports_the_first_worker() -> None:
    given = TopK(0.1)
    simulation = Simulation(given, 2)
    simulation.step(GIVEN)
    assert given.stats()["total"] == simulation.compressors[0].stats()["total"]
    assert given.stats()["total"]["steps"] == 1
    simulation.change([1], 2)
    simulation.step(GIVEN)
    assert given.stats()["total"] == simulation.compressors[0].stats()["total"]
    assert given.stats()["total"]["steps"] == 2
    assert given.runtime.statistics.total.steps == 0  # a driver that is given it begins anew
    busy = simulation.compressors[1]
    Simulation(busy, 2)  # a copy's statistics do not take the place of its own
    assert busy.stats()["total"]["steps"] == 1


def test_as_a_table() -> None:
    given = Half()
    simulation = Simulation(given, 2)
    for _ in range(3):
        simulation.step(GIVEN)
    report = given.stats()
    lines = str(report).splitlines()
    assert lines[0].split() == ["recent", "total"]
    assert len({len(line) for line in lines}) == 1
    rows = {" ".join(line.split()[:-2]): line.split()[-2:] for line in lines[1:]}
    assert rows["steps"] == ["3", "3"]
    assert rows["MB uncompressed"] == ["0.024", "0.024"]
    assert rows["times smaller"] == ["2.0", "2.0"]
    assert rows["sent of what was meant"] == ["-", "-"]
    html = report._repr_html_()
    assert html.count("<tr>") == len(lines)
    assert "<th style='text-align: left'>times smaller</th><td>2.0</td><td>2.0</td>" in html


@pytest.mark.parametrize("compressor", [TopK(), Auto(), TwoLevel("half")], ids=repr)
def test_before_the_first_step_and_with_more_in_it(compressor: Compressor) -> None:
    report: Any = compressor.stats()
    assert isinstance(report, Report)
    assert "ms a step: wait" in str(report)
    plain = pickle.loads(pickle.dumps(report))
    assert type(plain) is dict
    assert plain == report == json.loads(json.dumps(report))
