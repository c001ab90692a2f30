"""The IR: text form, constants that are not read, copies, order, names, and the verifier's rules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.frontends import load
from compiler.ir import (
    ArrayConstant,
    Constant,
    Graph,
    MappedConstant,
    Node,
    SecateurError,
    Value,
    graph_cost,
    infer_shapes,
    verify,
)
from compiler.ir.constant import TakenConstant
from tests.models import light_path
from tests.strategies import networks

Golden = Callable[[str, str], None]


def chain() -> Graph:
    """x -> Relu -> a -> Add with a constant -> y."""
    x = Value("x", np.float32, (2, "n"))
    a, y = Value("a", np.float32, (2, "n")), Value("y", np.float32, (2, "n"))
    w = Value("w", data=np.array([[1.0], [2.0]], np.float32))
    return Graph("chain", [x], [y], [Node("Relu", [x], [a]), Node("Add", [a, w], [y])])


class TestText:
    def test_everything_it_shows(self, golden: Golden) -> None:
        x = Value("x", np.float32, ("n", 3, None, 8))
        u = Value("u")
        shape = Value("shape", data=np.array([0, -1], np.int64))
        r, p, q = Value("r", np.float32, ("n", None)), Value("p"), Value("q")
        nodes = [
            Node("Reshape", [x, shape], [r], {"allowzero": 0}),
            Node(
                "Magic", [r, None, u], [p, q], {"f": 0.5, "s": "text", "l": [1, 2], "t": np.zeros((2, 2))}, domain="d"
            ),
        ]
        golden(str(Graph("everything", [x, u], [p, shape], nodes)), "text_everything")

    def test_a_network(self, golden: Golden) -> None:
        golden(str(load(light_path("zfnet512"))), "text_zfnet512")

    @settings(max_examples=20)
    @given(networks())
    def test_copies_print_alike(self, graph: Graph) -> None:
        assert str(graph.copy()) == str(graph)


class TestConstants:
    class Unread(Constant):
        dtype = np.dtype(np.float32)
        shape = (1000, 1000)

        def numpy(self) -> np.ndarray:
            raise AssertionError("this data must not be read")

    def test_facts_without_reading(self) -> None:
        constant = self.Unread()
        assert (constant.size, constant.nbytes) == (10**6, 4 * 10**6)
        assert constant.take({0: np.array([1, 2])}).shape == (2, 1000)

    def test_graph_work_reads_no_large_data(self) -> None:
        x, y = Value("x", np.float32, (1, 1000)), Value("y", np.float32)
        graph = Graph("g", [x], [y], [Node("MatMul", [x, Value("w", data=self.Unread())], [y])])
        infer_shapes(graph)
        verify(graph.copy())
        assert "w : float32[1000,1000]" in str(graph)
        assert graph_cost(graph).macs == 10**6

    @given(st.data())
    def test_take_is_numpy_take(self, data: st.DataObject) -> None:
        array = np.arange(60).reshape(3, 4, 5)
        axes = data.draw(st.sets(st.integers(0, 2)))
        indices = {a: np.array(data.draw(st.permutations(range(array.shape[a])))[: 1 + a]) for a in axes}
        expected = array
        for axis, index in indices.items():
            expected = np.take(expected, index, axis)
        taken = ArrayConstant(array).take(indices)
        assert taken.shape == expected.shape
        np.testing.assert_array_equal(taken.numpy(), expected)

    def test_mapped_data_is_a_view_of_the_file(self, tmp_path: Path) -> None:
        data = np.arange(12, dtype=np.float32)
        (tmp_path / "w").write_bytes(b"head" + data.tobytes())
        constant = MappedConstant(tmp_path / "w", 4, data.dtype, (3, 4))
        assert isinstance(constant.numpy(), np.memmap)
        np.testing.assert_array_equal(constant.take({0: np.array([2, 0])}).numpy(), data.reshape(3, 4)[[2, 0]])
        assert constant.take({1: np.array([1])}).sources() == {tmp_path / "w"}

    def test_empty_and_scalar_mapped_data(self, tmp_path: Path) -> None:
        (tmp_path / "w").write_bytes(np.float32(3).tobytes())
        assert MappedConstant(tmp_path / "w", 0, np.dtype(np.float32), ()).numpy() == 3
        assert MappedConstant(tmp_path / "w", 4, np.dtype(np.float32), (0, 5)).numpy().shape == (0, 5)

    def test_a_take_of_a_take(self) -> None:
        base = ArrayConstant(np.arange(10)).take({0: np.array([9, 7, 5])})
        assert isinstance(base, TakenConstant)
        assert base.take({0: np.array([2, 0])}).numpy().tolist() == [5, 9]


class TestGraph:
    def test_copy_shares_data_and_nothing_else(self) -> None:
        graph = chain()
        copy = graph.copy()
        assert copy.value("w").data is graph.value("w").data
        assert not {*graph.values()} & {*copy.values()}
        copy.nodes[0].attributes["k"] = [1]
        assert "k" not in graph.nodes[0].attributes

    def test_consumers_and_replacement(self) -> None:
        graph = chain()
        a, x = graph.value("a"), graph.inputs[0]
        assert graph.consumers()[a] == [(graph.nodes[1], 0)]
        graph.replace_value(a, x)
        assert graph.nodes[1].inputs[0] is x

    def test_fresh_names(self) -> None:
        assert [chain().fresh_name(n) for n in ("new", "a")] == ["new", "a_1"]

    def test_lookup(self) -> None:
        with pytest.raises(KeyError):
            chain().value("nothing")
        with pytest.raises(SecateurError, match="not a constant"):
            chain().value("a").numpy()

    def test_sort_is_stable(self) -> None:
        graph = chain()
        graph.nodes.reverse()
        graph.sort()
        assert [n.op for n in graph.nodes] == ["Relu", "Add"]

    def test_cycles_are_refused_and_shown(self) -> None:
        graph = chain()
        graph.nodes[0].inputs[0] = graph.nodes[1].outputs[0]
        with pytest.raises(SecateurError, match="cycle") as caught:
            graph.sort()
        assert caught.value.where == "a -> y"


def _broken(change: Callable[[Graph], object]) -> Graph:
    graph = chain()
    change(graph)
    return graph


RULES: dict[str, tuple[Callable[[Graph], object], str]] = {
    "no_name": (lambda g: setattr(g.value("a"), "name", ""), "has no name"),
    "same_name": (lambda g: setattr(g.value("a"), "name", "x"), "two values are called 'x'"),
    "used_before_defined": (lambda g: g.nodes.reverse(), "before it is defined"),
    "undefined_output": (lambda g: g.outputs.append(Value("ghost")), "'ghost' is never defined"),
    "foreign_operand": (lambda g: g.nodes[0].inputs.__setitem__(0, Value("ghost")), "'ghost' before it is defined"),
    "wrong_producer": (lambda g: setattr(g.value("a"), "producer", None), "more than one definition"),
    "two_producers": (lambda g: g.nodes[1].outputs.__setitem__(0, g.value("a")), "more than one definition"),
    "input_is_constant": (lambda g: setattr(g.inputs[0], "data", ArrayConstant(np.ones(1))), "has a definition"),
    "input_twice": (lambda g: g.inputs.append(g.inputs[0]), "listed twice"),
    "constant_type": (lambda g: setattr(g.value("w"), "shape", (7,)), "is recorded as"),
    "unknown_operator": (lambda g: setattr(g.nodes[0], "op", "Frobnicate"), "does not exist in ONNX opset"),
    "operand_count": (lambda g: g.nodes[1].inputs.append(g.inputs[0]), "has 3 operands"),
    "result_count": (lambda g: g.nodes[0].outputs.append(_result(g.nodes[0])), "has 2 results"),
    "unknown_attribute": (lambda g: g.nodes[0].attributes.update(wings=2), "no attribute 'wings'"),
}


def _result(node: Node) -> Value:
    value = Value("extra")
    value.producer = node
    return value


class TestVerifier:
    def test_a_sound_graph_passes(self) -> None:
        verify(chain())

    @pytest.mark.parametrize("rule", RULES)
    def test_each_rule(self, rule: str) -> None:
        change, message = RULES[rule]
        with pytest.raises(SecateurError, match=message) as caught:
            verify(_broken(change), where="after a pass")
        assert caught.value.code == "E_IR"
        assert caught.value.where.startswith("after a pass")

    def test_rules_reach_into_bodies(self) -> None:
        flag, x, y = Value("c", np.bool_, ()), Value("x", np.float32, (2,)), Value("y")
        inner = Value("r")
        body = Graph("b", [], [inner], [Node("Relu", [Value("elsewhere")], [inner])])
        node = Node("If", [flag], [y], {"then_branch": body, "else_branch": body})
        with pytest.raises(SecateurError, match="'elsewhere' before it is defined"):
            verify(Graph("g", [flag, x], [y], [node]))

    def test_constants_of_two_bodies_have_two_names(self) -> None:
        """In a file they lie side by side in the outermost graph."""
        flag, x, y = Value("c", np.bool_, ()), Value("x", np.float32, (2,)), Value("y")
        bodies = {}
        for key in ("then_branch", "else_branch"):
            result = Value(f"{key}_result")
            add = Node("Add", [x, Value("w", data=np.ones(2, np.float32))], [result])
            bodies[key] = Graph(key, [], [result], [add])
        with pytest.raises(SecateurError, match="two values are called 'w'"):
            verify(Graph("g", [flag, x], [y], [Node("If", [flag], [y], bodies)]))


class TestShapes:
    def test_symbols_travel(self) -> None:
        graph = chain()
        graph.value("y").shape = None
        infer_shapes(graph)
        assert graph.value("y").shape == (2, "n")

    def test_contradictions_are_refused(self) -> None:
        graph = chain()
        graph.nodes[1].inputs[1] = Value("w", data=np.ones((7, 1), np.float32))
        with pytest.raises(SecateurError, match="contradict") as caught:
            infer_shapes(graph)
        assert caught.value.code == "E_SHAPE"

    def test_an_inputs_symbol_wins_over_a_declared_name(self) -> None:
        graph = chain()
        graph.outputs[0].shape = (2, "Add_dim_1")
        infer_shapes(graph)
        assert graph.outputs[0].shape == (2, "n")

    def test_declared_outputs_keep_what_only_they_know(self) -> None:
        x, s, y = Value("x", np.float32, (6,)), Value("s", np.int64, (2,)), Value("y", np.float32, ("rows", 3))
        graph = Graph("g", [x, s], [y], [Node("Reshape", [x, s], [y])])
        infer_shapes(graph)
        assert y.shape == ("rows", 3)
