"""Any number of devices and of processes gives one device's scores: every pair is scored, and only once."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.t5_engine.conftest import FAST_COMPILATION
from tests.t5_engine.reference import NumpyT5
from tests.t5_engine.scorer_program import CONFIG, parameters
from tests.t5_engine.test_partitioning import answer, free_port
from tests.t5_engine.test_scorer import make_pairs

ROOT = pathlib.Path(__file__).resolve().parents[2]


def start(request, devices):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{FAST_COMPILATION} --xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.t5_engine.scorer_program", json.dumps(request)],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def expected():
    model = NumpyT5(parameters(), CONFIG.num_heads)
    return np.array([model.score(*pair) for pair in make_pairs()])


def test_scores_do_not_depend_on_the_number_of_devices(expected):
    """Also where the number divides nothing, and where two devices share the weights."""
    told = answer(start({"meshes": [[1, 1], [3, 1], [8, 1], [4, 2]]}, 8))
    assert told["devices"] == 8
    for scores in told["scores"]:
        np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_scores_do_not_depend_on_the_number_of_processes(expected):
    """Every process gets all scores."""
    port = free_port()
    started = [
        start({"meshes": [[4, 1], [4, 2]], "processes": [port, 2, index]}, 2) for index in range(2)
    ]
    for told in [answer(process) for process in started]:
        assert told["devices"] == 4
        for scores in told["scores"]:
            np.testing.assert_allclose(scores, expected, atol=1e-4)
