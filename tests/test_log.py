"""metrics.jsonl, TensorBoard and the picture of the curves."""

import json
import math
import sys

import pytest

from prefix_jax.errors import InputError
from prefix_jax.storage.log import MetricsLog, plot_curves, read_metrics


def fill(workdir, last=20):
    with MetricsLog(workdir) as log:
        for step in range(1, last + 1):
            log.write(step, "train", {"loss": 3.0 / step})
            if step % 5 == 0:
                log.write(step, "validation", {"loss": 4.0 / step})


def test_what_is_written_is_read(tmp_path):
    with MetricsLog(tmp_path / "new" / "folder") as log:
        log.write(3, "train", {"loss": 0.5, "target_tokens": 7})
        # Readable at once: a killed process loses nothing that `write` has returned.
        assert read_metrics(tmp_path / "new" / "folder") == [
            {"step": 3, "split": "train", "loss": 0.5, "target_tokens": 7}
        ]


def test_nan_and_infinity_are_null_in_strict_json(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write(1, "train", {"a": math.nan, "b": math.inf, "c": -math.inf})
    text = (tmp_path / "metrics.jsonl").read_text()
    line = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert line == {"step": 1, "split": "train", "a": None, "b": None, "c": None}


@pytest.mark.parametrize("step", [-1, 0, 7, 15, 99])
def test_a_resumed_run_writes_no_line_twice(tmp_path, step):
    fill(tmp_path / "straight")
    fill(tmp_path / "cut")
    with MetricsLog(tmp_path / "cut") as log:
        log.truncate_after(step)
        for line in read_metrics(tmp_path / "straight"):
            if line["step"] > step:
                values = {"loss": line["loss"]}
                log.write(line["step"], line["split"], values)
    straight, cut = (tmp_path / name / "metrics.jsonl" for name in ("straight", "cut"))
    assert straight.read_bytes() == cut.read_bytes()


def test_the_half_line_of_a_killed_process_is_dropped(tmp_path):
    fill(tmp_path, last=4)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"step": 5, "spl')
    assert len(read_metrics(tmp_path)) == 4
    with MetricsLog(tmp_path) as log:
        log.write(5, "train", {"loss": 0.6})
    assert path.read_text() == whole + '{"step": 5, "split": "train", "loss": 0.6}\n'


@pytest.mark.parametrize("bad", ["x", "[]", '{"step": "1", "split": "train"}', "\0\0"])
def test_a_line_that_is_not_ours_is_named(tmp_path, bad):
    fill(tmp_path, last=2)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + bad + "\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 3"):
        read_metrics(tmp_path)


def test_no_file_is_no_lines(tmp_path):
    assert read_metrics(tmp_path) == []
    assert plot_curves(tmp_path) is None


def test_missing_tensorboard_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(InputError, match=r"prefix-jax\[tensorboard\]"):
        MetricsLog(tmp_path, tensorboard=True)


def test_tensorboard_hides_the_steps_that_are_run_again(tmp_path):
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")

    def events():
        for path in sorted(
            (tmp_path / "tensorboard").iterdir(), key=lambda p: len(p.name)
        ):
            data = path.read_bytes()
            while data:  # records: length u64, its checksum u32, event, checksum u32
                end = 12 + int.from_bytes(data[:8], "little")
                yield event_pb2.Event.FromString(data[12:end])
                data = data[end + 4 :]

    with MetricsLog(tmp_path, tensorboard=True) as log:
        log.write(1, "train", {"loss": 2.0, "broken": math.nan})
        log.write(2, "train", {"loss": 1.0})
        log.truncate_after(1)
        log.write(2, "train", {"loss": 1.5})
    scalars = [
        (event.step, value.tag, value.simple_value)
        for event in events()
        for value in event.summary.value
    ]
    assert scalars == [
        (1, "train/loss", 2.0),
        (2, "train/loss", 1.0),
        (2, "train/loss", 1.5),
    ]
    starts = [
        e.step for e in events() if e.session_log.status == event_pb2.SessionLog.START
    ]
    assert starts == [2]


def png_size(path):
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(header[16:20]), int.from_bytes(header[20:24])


def test_the_picture_of_a_run(tmp_path):
    fill(tmp_path)
    path = plot_curves(tmp_path)
    assert path == tmp_path / "curves.png"
    width, height = png_size(path)
    assert width > height > 0


def test_several_runs_in_one_picture(tmp_path):
    fill(tmp_path / "a")
    fill(tmp_path / "b", last=10)
    runs = {"prefix": tmp_path / "a", "full": tmp_path / "b", "none": tmp_path / "c"}
    assert plot_curves(runs, tmp_path / "both.png") == tmp_path / "both.png"
    png_size(tmp_path / "both.png")
    with pytest.raises(InputError, match="path"):
        plot_curves(runs)


def test_validation_alone_is_drawn(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write(0, "validation", {"loss": 2.0})
        log.write(0, "train", {"loss": math.nan})
    assert plot_curves(tmp_path) is not None
