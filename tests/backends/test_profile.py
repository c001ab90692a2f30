"""Profiles: a device's kernels are timed by its own program, and the costs that follow choose schedules."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from backends import build
from backends.costs import Costs, dense_costs, sparse_costs
from backends.probes import probes
from backends.profile import SCHEMA, VERSION, Profile, described
from backends.schedules import ConvSpec
from backends.selection import choose_conv
from backends.target import Target, target
from backends.trials import trial
from compiler.errors import SecateurError
from compiler.frontends.onnx import load_onnx
from tests.backends.networks import small_cnn
from tests.backends.schedules_harness import Library
from tests.backends.test_sparse import pruned

PROCESSORS = ("x86-64-v4", "arm64-linux")
TARGETS = (*PROCESSORS, "wasm")


def costs_of(machine: Target) -> Costs:
    return Costs(sparse_costs(machine), dense_costs(machine))


def content(machine: Target, costs: Costs, nanoseconds: float = 0.3, noise: float = 0.0) -> dict:
    """The profile of a device whose kernels take what these costs say."""
    device, draw = dataclasses.replace(machine, costs=costs), np.random.default_rng(0)
    kernels = [
        {
            "name": probe.name,
            "multiply_adds": probe.multiply_adds,
            "least": probe.cycles(device) * nanoseconds * 1e-9 * float(np.exp(noise * draw.standard_normal())),
        }
        for probe in probes(machine)
    ]
    head = {"schema": SCHEMA, "version": VERSION, "processor": "Made-up M1", "target": described(machine)}
    return head | {"kernels": kernels}


def written(folder: Path, profile: dict) -> Path:
    path = folder / "profile.json"
    path.write_text(json.dumps(profile))
    return path


def scaled(costs: Costs, **factors: float) -> Costs:
    """The costs with some of them multiplied."""
    sparse = {n: getattr(costs.sparse, n) * f for n, f in factors.items() if hasattr(costs.sparse, n)}
    dense = {n: getattr(costs.dense, n) * f for n, f in factors.items() if hasattr(costs.dense, n)}
    return Costs(dataclasses.replace(costs.sparse, **sparse), dataclasses.replace(costs.dense, **dense))


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_costs_of_a_device_are_found_from_its_times(name: str, tmp_path: Path) -> None:
    machine = target(name)
    usual = costs_of(machine)
    factors = {
        "near": 1.5,
        "far": 2.0,
        "across": 0.8,
        "entry": 2.0,
        "copy": 0.5,
        "gather": 1.6,
        "byte": 3.0,
        "store": 2.0,
    }
    true = scaled(usual, **factors)
    found = Profile.read(written(tmp_path, content(machine, true, noise=0.02))).costs(machine)
    for kind in ("sparse", "dense"):
        for factor in set(factors) & {f.name for f in dataclasses.fields(getattr(true, kind))}:
            ratio = getattr(getattr(found, kind), factor) / getattr(getattr(true, kind), factor)
            assert 0.75 < ratio < 1.33, (factor, ratio)
    assert found.dense.product == usual.dense.product, "the unit"
    device = dataclasses.replace(machine, costs=found)
    for probe in probes(machine):
        assert probe.cycles(device) == pytest.approx(probe.cycles(dataclasses.replace(machine, costs=true)), rel=0.1)


@pytest.mark.parametrize("name", TARGETS)
def test_the_usual_times_give_the_usual_costs(name: str, tmp_path: Path) -> None:
    machine = target(name)
    found = Profile.read(written(tmp_path, content(machine, costs_of(machine)))).costs(machine)
    for kind in ("sparse", "dense"):
        expected = dataclasses.asdict(getattr(costs_of(machine), kind))
        assert dataclasses.asdict(getattr(found, kind)) == pytest.approx(expected, rel=1e-3)


def test_the_costs_of_an_engine_move_towards_its_times(tmp_path: Path) -> None:
    machine = target("wasm")
    usual = costs_of(machine)
    true = scaled(usual, near=4.0, gather=4.0, far=0.25)
    found = Profile.read(written(tmp_path, content(machine, true))).costs(machine)
    for part, name in ((lambda c: c.sparse, "near"), (lambda c: c.dense, "gather"), (lambda c: c.sparse, "far")):
        before, after, there = (getattr(part(costs), name) for costs in (usual, found, true))
        assert 0.05 < np.log(after / before) / np.log(there / before) < 1.1, name


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_device_that_is_slow_at_sparse_steps_gets_dense_layers(name: str, tmp_path: Path) -> None:
    machine, spec = target(name), ConvSpec(1, 96, 14, 14, 96, (1, 1))
    weights = pruned(0, (96, 96, 1, 1), 0.3)
    steps = ("near", "across", "far", "far_across", "entry", "channel", "least", "list", "store")
    costs = scaled(costs_of(machine), **dict.fromkeys(steps, 8.0))
    device = Profile.read(written(tmp_path, content(machine, costs))).apply(machine)
    assert choose_conv(spec, weights, machine).chosen.format != "dense"
    assert choose_conv(spec, weights, device).chosen.format == "dense"


def test_a_device_of_cheap_blocks_gets_blocks(tmp_path: Path) -> None:
    machine, spec = target("arm64-linux"), ConvSpec(1, 64, 28, 28, 64, (1, 1))
    weights = np.repeat(pruned(0, (32, 64, 1, 1), 0.3), 2, axis=0) * (pruned(1, (64, 64, 1, 1), 0.8) != 0)
    costly = scaled(costs_of(machine), least=3.0, channel=20.0, list=4.0)
    device = Profile.read(written(tmp_path, content(machine, costly))).apply(machine)
    assert choose_conv(spec, weights, machine).chosen.format != "csr"
    assert choose_conv(spec, weights, device).chosen.format == "csr"


def test_a_profile_names_no_code(tmp_path: Path) -> None:
    """Kernels of equal shape have equal symbols with and without costs that were measured."""
    machine = target("arm64-linux")
    device = Profile.read(written(tmp_path, content(machine, scaled(costs_of(machine), near=1.1)))).apply(machine)
    assert repr(device) == repr(machine)
    assert [p.make(device).symbol for p in probes(machine)] == [p.make(machine).symbol for p in probes(machine)]


def test_probes_compute_what_their_weights_say() -> None:
    """What is timed is a real product: with data of ones, each output is how many weights its channel has."""
    machine = Target.native()
    products = [p for p in probes(machine) if isinstance(p.spec, ConvSpec) and p.spec.kernel == (1, 1)]
    kernels = [p.make(machine) for p in products]
    library = Library([kernel.func for kernel in kernels], machine)
    assert len(products) >= 18
    for probe, kernel in zip(products, kernels, strict=True):
        assert isinstance(probe.spec, ConvSpec)
        made = trial(kernel, probe.spec, probe.weights)
        x = np.ones((probe.spec.in_channels, probe.spec.width), np.float32)
        y = library.call(kernel, {"x": x, **made.packed}, (probe.spec.out_channels, probe.spec.width))
        assert (made.sizes["x"], made.sizes["y"]) == (x.nbytes, y.nbytes)
        np.testing.assert_allclose(y, np.broadcast_to(probe.weights.sum((1, 2, 3))[:, None], y.shape), rtol=1e-5)


def edited(change: Callable[[dict], object]) -> Callable[[dict], str]:
    def edit(good: dict) -> str:
        change(good)
        return json.dumps(good)

    return edit


WRONG: dict[str, Callable[[dict], str]] = {
    "no_json": lambda good: json.dumps(good)[:-9],
    "no_profile": lambda good: '{"name": "resnet"}',
    "list": lambda good: "[1, 2]",
    "version": edited(lambda good: good.update(version=2)),
    "no_target": edited(lambda good: good.pop("target")),
    "vector_of_text": edited(lambda good: good["target"].update(vector_bytes="16")),
    "vector_width": edited(lambda good: good["target"].update(vector_bytes=48)),
    "no_kernels": edited(lambda good: good.update(kernels=[])),
    "nameless": edited(lambda good: good["kernels"][3].pop("name")),
    "not_timed": edited(lambda good: good["kernels"].pop(0)),
    "no_time": edited(lambda good: good["kernels"][0].pop("least")),
    "zero": edited(lambda good: good["kernels"][1].update(least=0)),
    "nan": edited(lambda good: good["kernels"][1].update(least=float("nan"))),
    "hour": edited(lambda good: good["kernels"][0].update(least=3600.0)),
    "too_fast": edited(lambda good: good["kernels"][0].update(least=1e-9)),
    "implausible": edited(lambda good: [k.update(least=k["least"] * 2000) for k in good["kernels"][1:5]]),
    "other_kind": edited(lambda good: good.update(target=described(target("x86-64-v4")))),
    "other_width": edited(lambda good: good["target"].update(vector_bytes=32)),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_good_profile_is_refused(name: str, tmp_path: Path, golden: Callable[[str, str], None]) -> None:
    machine = target("arm64-linux")
    path = tmp_path / "profile.json"
    path.write_text(WRONG[name](copy.deepcopy(content(machine, costs_of(machine)))))
    with pytest.raises(SecateurError) as caught:
        build(load_onnx(small_cnn()), tmp_path / "out", target=machine, profile=path)
    assert caught.value.code == "E_PROFILE" and caught.value.exit_code == 2
    golden(str(caught.value).replace(str(tmp_path), "DIR"), f"errors/profile_{name}")
    assert not (tmp_path / "out").exists()
