"""Calibration data in, checked; and what goes wrong with it, in clear words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.ir import ArrayConstant, Graph, SecateurError
from passes.calibration import Samples, calibration_samples, noise_samples
from passes.calibration.running import observe
from passes.calibration.stepping import Stepper
from tests.networks import network

OPEN = "(float[N,4] x, float[4,3] w) => (float[N,3] y) { y = MatMul(x, w) }"
FIXED = OPEN.replace("N", "8")
TWO = """(float[N,4] x, int64[N,2] x2, float[4,3] w, float[9,3] t) => (float[N,2,3] y) { a = MatMul(x, w)
    u = Constant<value_ints=[1]>() b = Unsqueeze(a, u) e = Gather(t, x2) y = Add(b, e) }"""

X = np.random.default_rng(0).standard_normal((70, 4)).astype(np.float32)


def graph(text: str = OPEN) -> Graph:
    return network(text)


def joined(samples: Samples, name: str = "x") -> np.ndarray:
    return np.concatenate([feeds[name] for feeds in samples])


def test_arrays_paths_and_iterators_give_the_same_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=X, labels=np.arange(70))
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "x.npy", X)
    np.save(tmp_path / "folder" / "labels.npy", np.arange(70))
    sources: list[Any] = [
        {"x": X, "labels": np.arange(70)},
        tmp_path / "data.npz",
        str(tmp_path / "folder"),
        ((X[i : i + 7], np.arange(i, i + 7)) for i in range(0, 70, 7)),
        [{"x": X[:30], "labels": np.arange(30)}, {"x": X[30:], "labels": np.arange(30, 70)}],
    ]
    for source in sources:
        samples = calibration_samples(graph(), source)
        assert len(samples) == 70
        np.testing.assert_array_equal(joined(samples), X)
        assert samples.labels is not None
        np.testing.assert_array_equal(np.concatenate(samples.labels), np.arange(70))
    np.testing.assert_array_equal(joined(calibration_samples(graph(), X)), X)


def test_batches_are_those_that_the_model_takes() -> None:
    assert [len(f["x"]) for f in calibration_samples(graph(), X)] == [32, 32, 6]
    assert [len(f["x"]) for f in calibration_samples(graph(FIXED), X)] == [8] * 8  # the rest fills no batch
    assert len(calibration_samples(graph(), X, limit=40)) == 40
    assert [len(f["x"]) for f in noise_samples(graph(FIXED), 20)] == [8] * 3


def test_integers_are_widened_and_doubles_narrowed() -> None:
    samples = calibration_samples(graph(TWO), {"x": X.astype(np.float64), "x2": np.zeros((70, 2), np.int32)})
    feeds = samples.batches[0]
    assert (feeds["x"].dtype, feeds["x2"].dtype) == (np.float32, np.int64)


@pytest.mark.parametrize(
    ("text", "source", "message"),
    [
        (OPEN, {"z": X}, "there is no data for input 'x'.*the data hold z"),
        (OPEN, {"x": X, "z": X}, "the model has no input 'z'"),
        (OPEN, {"x": X[:, :3]}, "input 'x' is samples x 4, and the data have samples x 3"),
        (OPEN, {"x": X[0]}, "input 'x' is samples x 4, and the data have 1 axes"),
        (OPEN, {"x": X[:0]}, "the data for 'x' hold no samples"),
        (OPEN, {"x": X.astype(complex)}, "is of float32, and the data of complex128"),
        (TWO, {"x": X, "x2": np.zeros((70, 2), np.float32)}, "is of int64, and the data of float32"),
        (OPEN, {"x": np.where(X > 2, np.nan, X)}, "holds NaN or infinity"),
        (OPEN, {"x": X, "labels": np.arange(3)}, "differ in their number of samples: 70 of 'x', 3 of 'labels'"),
        (FIXED, {"x": X[:5]}, "takes 8 samples at a time, and there are 5"),
        (TWO, X, "the model has 2 inputs"),
        (OPEN, 7, "a int is no calibration data"),
        (OPEN, [X, X[:, :2]], "batches do not fit each other"),
        (OPEN, "missing.npz", "cannot be read"),
    ],
)
def test_wrong_data_is_refused(text: str, source: Any, message: str) -> None:
    with pytest.raises(SecateurError, match="(?s)E_CALIBRATION.*" + message):
        calibration_samples(graph(text), source)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 this is no archive")
    with pytest.raises(SecateurError, match="E_CALIBRATION"):
        calibration_samples(graph(), tmp_path / "bad.npz")
    np.savez(tmp_path / "objects.npz", x=np.array([{}, {}], object))
    with pytest.raises(SecateurError, match=r"E_CALIBRATION.*'x' is damaged, or holds no numbers"):
        calibration_samples(graph(), tmp_path / "objects.npz")
    np.save(tmp_path / "one.npy", X)
    (tmp_path / "short.npy").write_bytes((tmp_path / "one.npy").read_bytes()[:-100])
    with pytest.raises(SecateurError, match=r"E_CALIBRATION.*it ends too early"):
        calibration_samples(graph(), tmp_path / "short.npy")
    np.testing.assert_array_equal(joined(calibration_samples(graph(), tmp_path / "one.npy")), X)
    with pytest.raises(SecateurError, match="the model has 2 inputs"):
        calibration_samples(graph(TWO), tmp_path / "one.npy")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_no_more_is_read_than_is_used(tmp_path: Path, save: Any, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows after the limit may be wrong, and the lengths that files state are still compared."""
    spoilt = np.array(X, order=order)  # type: ignore[call-overload]
    spoilt[50:] = np.nan
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "x.npy", spoilt)
    np.save(tmp_path / "folder" / "labels.npy", np.arange(70))
    save(tmp_path / "data.npz", x=spoilt, labels=np.arange(70))
    read: list[int] = []
    usual = np.frombuffer
    monkeypatch.setattr(np, "frombuffer", lambda data, dtype: read.append(len(data)) or usual(data, dtype))
    for source in (tmp_path / "folder", tmp_path / "data.npz"):
        read.clear()
        samples = calibration_samples(graph(), source, limit=50)
        assert len(samples) == 50
        np.testing.assert_array_equal(joined(samples), X[:50])
        assert samples.labels is not None
        np.testing.assert_array_equal(np.concatenate(samples.labels), np.arange(50))
        assert max(read) == (50 if order == "C" else 70) * 4 * 4
    save(tmp_path / "uneven.npz", x=X, labels=np.arange(60))
    with pytest.raises(SecateurError, match="70 of 'x', 60 of 'labels'"):
        calibration_samples(graph(), tmp_path / "uneven.npz", limit=50)


def test_an_iterator_is_taken_from_until_there_is_enough() -> None:
    taken = []

    def batches() -> Any:
        for start in range(0, 70, 7):
            taken.append(start)
            yield X[start : start + 7], np.arange(start, start + 7)

    assert len(calibration_samples(graph(), batches(), limit=20)) == 20
    assert taken == [0, 7, 14]


def test_labels_have_a_name_which_may_be_that_of_an_input() -> None:
    samples = calibration_samples(graph(), {"x": X, "answers": np.arange(70)}, labels="answers")
    assert samples.labels is not None and len(samples.labels[0]) == 32
    autoencoder = calibration_samples(graph(), X, labels="x")
    assert autoencoder.labels is not None
    np.testing.assert_array_equal(autoencoder.labels[0], X[:32])
    pairs = calibration_samples(graph(), [(X, np.arange(70))], labels="answers")
    assert pairs.labels is not None
    with pytest.raises(SecateurError, match=r"E_NO_LABELS.*hold no labels 'z', but x"):
        calibration_samples(graph(), X, labels="z")
    for wrong in (np.array(["a"] * 70), np.full(70, np.nan)):
        with pytest.raises(SecateurError, match="E_LABELS"):
            calibration_samples(graph(), {"x": X, "labels": wrong})


def test_noise_is_smooth_along_space() -> None:
    image = network("(float[N,3,16,16] x, float[4,3,3,3] w) => (float[N,4,14,14] y) { y = Conv(x, w) }")
    x = joined(noise_samples(image, 64, seed=1))
    assert x.shape == (64, 3, 16, 16)
    np.testing.assert_allclose(x.mean((1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(x.std((1, 2, 3)), 1, rtol=1e-4)
    assert np.corrcoef(x[..., :-1].ravel(), x[..., 1:].ravel())[0, 1] > 0.8
    assert not np.array_equal(x, joined(noise_samples(image, 64, seed=2)))
    np.testing.assert_array_equal(x, joined(noise_samples(image, 64, seed=1)))


STEM = """(float[N,3,12,12] x, float[1,3,1,1] m, float[1,3,1,1] d, float[9,3,3,3] w, float[9] b, float[9] s, float[9] o,
    float[9] mean, float[9] var) => (float[N,9,12,12] y) { c = Sub(x, m) e = Div(c, d) a = Conv<pads=[1,1,1,1]>(e, w, b)
    y = BatchNormalization(a, s, o, mean, var) }"""


def test_noise_is_matched_to_the_first_normalization() -> None:
    """The channels' means and scales are found again from the statistics that data of such channels left."""
    stem = graph(STEM)
    shift, scale = np.array([110.0, 140.0, 90.0]).reshape(3, 1, 1), np.array([60.0, 20.0, 45.0]).reshape(3, 1, 1)
    for name, value in (("m", [120, 120, 120]), ("d", [50, 60, 70])):
        stem.value(name).data = ArrayConstant(np.array(value, np.float32).reshape(1, 3, 1, 1))
    data = [{"x": (f["x"] * scale + shift).astype(np.float32)} for f in noise_samples(stem, 512, seed=5)]
    read = stem.nodes[-1].inputs[0]
    assert read is not None
    seen = np.concatenate([found[read] for found in observe(stem, [read], Samples(tuple(data)))])
    stem.value("mean").data = ArrayConstant(seen.mean((0, 2, 3)))
    stem.value("var").data = ArrayConstant(seen.var((0, 2, 3)))
    found = joined(calibration_samples(stem, "none"))
    given = np.concatenate([f["x"] for f in data])
    np.testing.assert_allclose(found.mean((0, 2, 3)), given.mean((0, 2, 3)), atol=3)
    np.testing.assert_allclose(found.std((0, 2, 3)), given.std((0, 2, 3)), rtol=0.2)
    matched = np.concatenate([f[read] for f in observe(stem, [read], calibration_samples(stem, "none"))])
    np.testing.assert_allclose(matched.var((0, 2, 3)), stem.value("var").numpy(), rtol=0.25)
    np.testing.assert_array_equal(joined(calibration_samples(stem, "noise")), joined(noise_samples(stem, 512)))


@pytest.mark.parametrize(
    "change",
    [("Div(c, d)", "Div(d, c)"), ("Sub(x, m)", "Relu(x)"), ("BatchNormalization(a, s, o, mean, var)", "Relu(a)")],
)
def test_noise_stays_where_no_statistics_tell(change: tuple[str, str]) -> None:
    """The input divides, or an activation lies between, or BatchNormalization was folded."""
    stem = graph(STEM.replace(*change))
    np.testing.assert_array_equal(joined(calibration_samples(stem, "none")), joined(noise_samples(stem, 512)))


def test_on_noise_each_normalization_has_the_moments_that_it_was_trained_to_make() -> None:
    """Whatever reaches it: the mean of its result is its bias, the deviation its scale; behind a residual sum too."""
    text = """(float[N,3,12,12] x, float[5,3,3,3] w, float[5] s, float[5] b, float[5] m, float[5] v, float[5,5,1,1] w2)
        => (float[N,5,10,10] y) {
        c = Conv(x, w) n = BatchNormalization(c, s, b, m, v) r = Relu(n) d = Conv(r, w2)
        n2 = BatchNormalization(d, s, b, m, v) y = Add(n, n2) }"""
    model = network(text)
    scale, bias = (model.value(name).numpy().astype(np.float64) for name in "sb")
    noise = noise_samples(model, 64)
    observed = list(observe(model, [model.value("n"), model.value("n2")], noise))
    stepper = Stepper(model, noise)
    for name in ("n", "n2"):
        value = model.value(name)
        assert value.producer is not None
        found = np.concatenate([o[value] for o in observed])
        np.testing.assert_allclose(found.mean((0, 2, 3)), bias, atol=1e-3)
        np.testing.assert_allclose(found.std((0, 2, 3)), np.abs(scale), rtol=1e-2, atol=1e-3)
        np.testing.assert_allclose(np.concatenate(stepper.after(value.producer)), found, rtol=1e-3, atol=1e-3)
    data = next(iter(observe(model, [model.value("n")], replace(noise, noise=False))))[model.value("n")]
    assert abs(data.mean((0, 2, 3)) - bias).max() > 0.05  # data meet the stored statistics
