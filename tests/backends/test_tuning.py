"""Tuning: what is measured decides, is kept, and survives interruption; the result computes the same."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from backends import build, load, native, rehearsal, tuning
from backends.lowering import lower
from backends.schedules import ConvSpec, MatMulSpec
from backends.selector import Selector
from backends.target import Target
from compiler.errors import SecateurError
from compiler.frontends.onnx import load_onnx
from tests.backends.test_pairs import block
from tests.backends.test_sparse import network, pruned

NATIVE = Target.native()


def requests():
    selector = Selector(NATIVE)
    selector.conv(ConvSpec(1, 64, 14, 14, 64, (1, 1)), pruned(0, (64, 64, 1, 1), 0.1))
    selector.matmul(MatMulSpec(1, 32, 64, 64, weight_side="b", b_batched=False), pruned(1, (64, 64), 0.1))
    return selector.requests


def test_every_layer_gets_the_candidate_that_was_fastest(tmp_path):
    asked = requests()
    preferred = tuning.tune(asked, NATIVE, 60, folder=tmp_path)
    assert set(preferred) == set(asked)
    for key, label in preferred.items():
        choice = asked[key].choice
        assert label in {c.label for c in (choice.chosen, *choice.others)}
    records = [json.loads(p.read_text()) for p in tmp_path.glob("*.json")]
    assert len(records) == 2 and all(len(r) >= 2 and min(r.values()) > 0 for r in records)


def test_what_is_known_is_not_measured_again(tmp_path, monkeypatch):
    first = tuning.tune(requests(), NATIVE, 60, folder=tmp_path)
    monkeypatch.setattr(tuning, "_measure", lambda *_: pytest.fail("measured again"))
    assert tuning.tune(requests(), NATIVE, 60, folder=tmp_path) == first


def test_measurements_outvote_the_cost_model(tmp_path):
    tuning.tune(requests(), NATIVE, 60, folder=tmp_path)
    for path in tmp_path.glob("*.json"):
        times = json.loads(path.read_text())
        slowest = max(times, key=lambda label: times[label])
        path.write_text(json.dumps({label: 1e-9 if label == slowest else 1.0 for label in times}))
    asked = requests()
    preferred = tuning.tune(asked, NATIVE, 0, folder=tmp_path)
    selector = Selector(NATIVE, preferred)
    spec, weights = next((r.spec, r.weights) for r in asked.values() if isinstance(r.spec, ConvSpec))
    choice = selector.conv(spec, weights)
    assert choice.chosen.label in preferred.values() and choice.describe()["chosen_by"] == "measurement"


def test_an_interruption_loses_nothing_that_was_measured(tmp_path, monkeypatch):
    original = tuning._take_turns
    seen = []

    def interrupted(calls):
        if seen:
            raise KeyboardInterrupt
        seen.append(calls)
        return original(calls)

    monkeypatch.setattr(tuning, "_take_turns", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tuning.tune(requests(), NATIVE, 60, folder=tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 1
    assert not [p for p in tmp_path.iterdir() if p.suffix != ".json"]


def test_records_that_are_broken_are_measured_again(tmp_path):
    first = tuning.tune(requests(), NATIVE, 60, folder=tmp_path)
    for path in tmp_path.glob("*.json"):
        path.write_text("[1, 2")
    assert set(tuning.tune(requests(), NATIVE, 60, folder=tmp_path)) == set(first)


def test_no_time_means_no_measurement(tmp_path):
    assert tuning.tune(requests(), NATIVE, 0, folder=tmp_path) == {}


def test_other_machines_cannot_be_measured(tmp_path):
    with pytest.raises(SecateurError, match="E_TARGET"):
        tuning.tune(requests(), dataclasses.replace(NATIVE, name="arm64-linux"), 1, folder=tmp_path)


def test_a_tuned_artifact_computes_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "cache_folder", lambda name: str(tmp_path / name))
    model, x = network()
    graph = load_onnx(model)
    plain, tuned = build(graph, tmp_path / "plain"), build(graph, tmp_path / "tuned", tune=60)
    with load(plain.path) as a, load(tuned.path) as b:
        np.testing.assert_allclose(a.run({"x": x})["y"], b.run({"x": x})["y"], rtol=1e-4, atol=1e-4)
    chosen = {layer.get("chosen_by") for layer in tuned.manifest["layers"]}
    assert "measurement" in chosen and "measurement" not in {m.get("chosen_by") for m in plain.manifest["layers"]}


def test_the_program_is_the_cost_models_without_tuning():
    graph = load_onnx(network()[0])
    first, second = lower(graph, NATIVE), lower(graph, NATIVE)
    assert [s.symbol for s in first.steps] == [s.symbol for s in second.steps]


def steps_of(seconds, variants):
    """Seconds of every step of each variant, by the schedule of the step."""
    return [[seconds.get(step.schedule, 1e-3) for step in v.program.steps] for v in variants]


@pytest.mark.parametrize("together", [True, False])
def test_pairs_are_settled_in_the_network(together, tmp_path, monkeypatch):
    graph = load_onnx(block(112, 16, 96, 0.1))
    times = {"sparse_depthwise": 5e-4 if together else 5e-2}
    monkeypatch.setattr(rehearsal, "_measure", lambda variants, *_: steps_of(times, variants))
    preferred = rehearsal.rehearse(graph, NATIVE, {}, 1, tmp_path)
    steps = lower(graph, NATIVE, selector=Selector(NATIVE, preferred)).steps
    assert ("sparse_depthwise" in [s.schedule for s in steps]) == together
    monkeypatch.setattr(rehearsal, "_measure", lambda *_: pytest.fail("measured again"))
    assert rehearsal.rehearse(graph, NATIVE, {}, 1, tmp_path) == preferred


def test_what_is_slower_in_the_network_is_not_taken(tmp_path, monkeypatch):
    """A layer's measurement alone is outvoted, and a gain that may be noise is no gain."""
    graph = load_onnx(network()[0])
    usual = Selector(NATIVE)
    lower(graph, NATIVE, selector=usual)
    key, request = next((k, r) for k, r in usual.requests.items())
    preferred = {key: request.choice.others[0].label}
    for seconds, expected in ((2e-3, None), (0.98e-3, None), (0.5e-3, request.choice.others[0].label)):

        def measured(variants, *_, seconds=seconds):
            first, second, *others = (v.symbols() for v in variants)
            changed = [1e-3 if symbol in first else seconds for symbol in second]
            return [[1e-3] * len(first), changed, *([1.0] * len(symbols) for symbols in others)]

        monkeypatch.setattr(rehearsal, "_measure", measured)
        found = rehearsal.rehearse(graph, NATIVE, preferred, 1, tmp_path / str(seconds))
        assert found[key] == (expected or request.choice.chosen.label)


def test_a_tuned_network_with_pairs_computes_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "cache_folder", lambda name: str(tmp_path / name))
    graph = load_onnx(block(56, 16, 48, 0.1))
    plain, tuned = build(graph, tmp_path / "plain"), build(graph, tmp_path / "tuned", tune=60)
    x = np.random.default_rng(0).standard_normal((1, 16, 56, 56)).astype(np.float32)
    with load(plain.path) as a, load(tuned.path) as b:
        feeds = {a.inputs[0].name: x}
        for name, value in a.run(feeds).items():
            np.testing.assert_allclose(value, b.run(feeds)[name], rtol=1e-4, atol=1e-4)
    assert list((tmp_path / "tuning").glob("network-*.json"))
