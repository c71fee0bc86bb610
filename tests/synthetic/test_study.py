import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from longshort.errors import UserError
from longshort.synthetic import study
from longshort.synthetic.config import StudyConfig
from longshort.synthetic.measure import measure, target_scale
from longshort.synthetic.model import Size, Transformers
from longshort.synthetic.tasks import TASKS, draw_bits
from longshort.synthetic.training import train
from tests.errors import user_error

TINY = StudyConfig(
    tasks=("mean", "length-log"),
    encodings=("none", "rope"),
    seeds=2,
    train_length=4,
    max_length=8,
    steps=5,
    warmup=2,
    batch_size=4,
    sequences=8,
    pairs=4,
    size=Size(8, 1, 2),
)


def numbers(results):
    return [{key: value for key, value in result.items() if key != "seconds"} for result in results]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return numbers(study.run_study(TINY, tmp_path_factory.mktemp("study"), workers=1))


def test_rerun_gives_the_same_numbers(uninterrupted, tmp_path):
    assert numbers(study.run_study(TINY, tmp_path, workers=1)) == uninterrupted


def test_stopped_in_the_middle_resumes_to_the_same_numbers(uninterrupted, tmp_path, monkeypatch):
    calls = 0

    def stops(models, *rest):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return measure(models, *rest)

    monkeypatch.setattr(study, "measure", stops)
    with pytest.raises(KeyboardInterrupt):
        study.run_study(TINY, tmp_path, workers=1)
    assert len(list((tmp_path / "settings").iterdir())) == 2
    assert numbers(study.run_study(TINY, tmp_path, workers=1)) == uninterrupted
    assert calls == 5  # two finished, one begun, and the two that were missing


def test_killed_with_workers_resumes_and_leaves_no_process(tmp_path):
    code = (
        "from longshort.synthetic.study import run_study; from tests.synthetic.test_study import TINY\n"
        "from dataclasses import replace; from pathlib import Path; import sys\n"
        "if __name__ == '__main__': run_study(replace(TINY, steps=400), Path(sys.argv[1]), workers=2)\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(tmp_path / "killed")]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    finished = tmp_path / "killed" / "settings"
    deadline = time.monotonic() + 180
    while not list(finished.glob("*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)  # until another process has finished a setting
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while _group_lives(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)  # its workers notice on their own
    assert not _group_lives(process.pid)
    assert list(finished.glob("*.json"))
    config = replace(TINY, steps=400)
    resumed = study.run_study(config, tmp_path / "killed", workers=1)
    assert numbers(resumed) == numbers(study.run_study(config, tmp_path / "whole", workers=1))


def _group_lives(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_models_numbers_depend_on_its_seed_alone(uninterrupted, tmp_path):
    alone = study.run_study(replace(TINY, seeds=1, seed=1, tasks=("mean",)), tmp_path, workers=1)
    for one, both in zip(alone, uninterrupted, strict=False):
        for key in ("error", "output_error", "misalignment", "target_misalignment"):
            filled = [torch.tensor([v if v is not None else -1.0 for v in row]) for row in (one[key][0], both[key][1])]
            torch.testing.assert_close(filled[0], filled[1], rtol=1e-3, atol=1e-6)


def test_folder_of_another_study_is_refused(uninterrupted, tmp_path):
    study.run_study(TINY, tmp_path, workers=1)
    with user_error("conflict", "steps"):
        study.run_study(replace(TINY, steps=6), tmp_path, workers=1)
    file = next((tmp_path / "settings").iterdir())
    file.write_text("{")
    with user_error("data", file.name):
        study.run_study(TINY, tmp_path, workers=1)


def test_finished_settings_are_json_without_nan(uninterrupted, tmp_path):
    study.run_study(replace(TINY, tasks=("mean",)), tmp_path, workers=1)
    for file in (tmp_path / "settings").iterdir():
        json.loads(file.read_text("utf-8"), parse_constant=pytest.fail)


def test_unknown_device(tmp_path):
    with pytest.raises(UserError, match="'nonsense'"):  # a kind of its own: see devices
        study.run_study(TINY, tmp_path, device="nonsense")


def test_training_lowers_the_loss():
    config = replace(TINY, steps=150, batch_size=16, size=Size(16, 1, 2))
    models, loss = train(config, TASKS["mean"], "none", "cpu")
    assert (loss < 0.05).all()  # a constant ½ has 0.13 on lengths 1 to 4
    measured = measure(models, config, TASKS["mean"], "cpu")
    assert (measured["error"][:, :4] < 0.1).all()


def test_lengths_beyond_fifty_are_every_twenty_fifth():
    assert replace(TINY, max_length=50).lengths == list(range(1, 51))
    assert replace(TINY, max_length=110).lengths == [*range(1, 51), 75, 100, 110]
    # Misalignment at the training length is asked for, so it is measured wherever that lies.
    assert replace(TINY, train_length=60, max_length=110).lengths == [*range(1, 51), 60, 75, 100, 110]


class Perfect(torch.nn.Module):
    """Outputs the targets themselves."""

    def __init__(self, task):
        super().__init__()
        self.task = task

    def forward(self, bits):
        return self.task.targets(bits)


@pytest.mark.parametrize("name", TASKS)
def test_a_perfect_model_has_no_error_and_the_targets_misalignment(name):
    task = TASKS[name]
    measured = measure(Perfect(task), replace(TINY, max_length=20), task, "cpu")
    assert measured["error"].max() < 1e-9
    assert measured["output_error"].max() == 0
    torch.testing.assert_close(measured["misalignment"], measured["target_misalignment"], equal_nan=True)
    assert measured["misalignment"][:, 0].isnan().all()


def test_misalignment_of_a_perfect_length_model_is_the_mean_drop():
    config = replace(TINY, sequences=4000, pairs=4000, max_length=20)
    measured = measure(Perfect(TASKS["length"]), config, TASKS["length"], "cpu")
    expected = [(1 + length // 2) / 2 for length in range(2, 21)]  # e is uniform on 1 … ⌊l/2⌋
    assert measured["misalignment"][0, 1:].tolist() == pytest.approx(expected, rel=0.05)


class Constant(torch.nn.Module):
    """Outputs one number, whatever it reads."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, bits):
        return torch.full_like(bits, self.output)


@pytest.mark.parametrize(
    ("name", "output", "length"),
    [("length", 3.0, 3.0), ("length-sqrt", 2.0, 4.0), ("length-log", 1.0, math.e), ("length-invsqrt", 0.5, 4.0)],
)
def test_errors_are_of_lengths_and_of_outputs(name, output, length):
    task = TASKS[name]
    measured = measure(Constant(output), TINY, task, "cpu")
    lengths = torch.arange(1.0, 9.0, dtype=torch.float64)
    torch.testing.assert_close(measured["error"][0], (length - lengths) ** 2, rtol=1e-5, atol=1e-9)
    outputs = {"length-sqrt": lengths.sqrt(), "length-log": lengths.log(), "length-invsqrt": lengths**-0.5}
    expected = (output - outputs.get(name, lengths)) ** 2
    torch.testing.assert_close(measured["output_error"][0], expected, rtol=1e-4, atol=1e-9)
    assert measured["misalignment"][:, 1:].max() == 0
    assert measured["undefined"].max() == 0


@pytest.mark.parametrize(("name", "share"), [("length-sqrt", 1), ("length-invsqrt", 1), ("length-log", 0), ("mean", 0)])
def test_outputs_without_an_inverse_are_counted(name, share):
    assert (measure(Constant(-1.0), TINY, TASKS[name], "cpu")["undefined"] == share).all()


def test_the_scale_is_the_standard_deviation_of_training_targets():
    """Lengths are uniform on 1 to 4; a mean of l bits has the variance 0.25 / l."""
    assert target_scale(TINY, TASKS["length"]) == pytest.approx(math.sqrt((4**2 - 1) / 12), rel=1e-4)
    variance = sum(0.25 / length for length in range(1, 5)) / 4
    assert target_scale(TINY, TASKS["mean"]) == pytest.approx(math.sqrt(variance), rel=0.02)


def test_training_follows_its_schedule_on_data_of_its_own(monkeypatch):
    """Rates are recorded and set to 0, so that losses are those of the first weights on the bits of each step."""
    rates, own = [], torch.optim.Adam.step

    def step(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        self.param_groups[0]["lr"] = 0.0
        return own(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    config = replace(TINY, steps=30, warmup=5)
    models, loss = train(config, TASKS["length"], "rope", "cpu")
    expected = [3e-3 * min(1, (k + 1) / 5) * (1 + math.cos(math.pi * k / 30)) / 2 for k in range(30)]
    assert rates == pytest.approx(expected)
    for index, seed in enumerate(config.model_seeds):
        alone = Transformers("rope", [seed], config.max_length, config.size)
        assert torch.equal(alone.head[0], models.head[index])
        generator = torch.Generator().manual_seed(2_000_000 + seed)
        losses = []
        for _ in range(30):
            bits = draw_bits(generator, 4, 4)
            losses.append((alone(bits[None])[0] - torch.arange(1.0, 5.0)).square().mean().item())
        assert loss[index].item() == pytest.approx(sum(losses[-3:]) / 3, rel=1e-4)
