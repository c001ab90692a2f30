"""Passes: their textual form is their dataclass, the verifier stands between them, errors say where."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import passes.simplify  # noqa: F401  (registers what the tests name)
from compiler.ir import Graph, Node, SecateurError, Value
from passes.pipeline import Context, Pass, Pipeline, available_passes, make_pass, parse_passes, register_pass


@register_pass("test_everything")
@dataclass(frozen=True)
class Everything(Pass):
    """One option of every kind."""

    flag: bool = False
    count: int = 3
    ratio: float = 0.5
    label: str = "x"
    names: tuple[str, ...] = ()
    sizes: tuple[int, ...] = (1, 2)
    limit: int | None = None

    def run(self, graph: Graph, context: Context) -> Graph:
        context.report(self.name, self.count)
        return graph


@register_pass("test_break")
@dataclass(frozen=True)
class Break(Pass):
    """Returns a graph that the verifier refuses, or raises."""

    fail: bool = False

    def run(self, graph: Graph, context: Context) -> Graph:
        if self.fail:
            raise SecateurError("E_TEST", "this pass always fails")
        return Graph(graph.name, graph.inputs, [Value("ghost")], graph.nodes)


def relu() -> Graph:
    x, y = Value("x", np.float32, (2,)), Value("y", np.float32, (2,))
    return Graph("g", [x], [y], [Node("Relu", [x], [y])])


class TestText:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("test_everything", Everything()),
            ("test_everything()", Everything()),
            (" test_everything ( flag = true , ratio = 1e-3 ) ", Everything(flag=True, ratio=1e-3)),
            ("test_everything(names=[head*,stem],sizes=[])", Everything(names=("head*", "stem"), sizes=())),
            ("test_everything(names=one,limit=7)", Everything(names=("one",), limit=7)),
            ("test_everything(limit=none,label=a b)", Everything(limit=None, label="a b")),
        ],
    )
    def test_parsing(self, text: str, expected: Pass) -> None:
        assert parse_passes(text) == (expected,)

    @given(
        st.builds(
            Everything,
            flag=st.booleans(),
            count=st.integers(),
            ratio=st.floats(allow_nan=False),
            names=st.lists(st.text("abc*_.", min_size=1)).map(tuple),
            sizes=st.lists(st.integers()).map(tuple),
            limit=st.none() | st.integers(),
        )
    )
    def test_text_and_pass_are_the_same(self, made: Everything) -> None:
        assert parse_passes(str(made)) == (made,)

    def test_pipeline_text(self) -> None:
        text = "simplify(batchnorm=true),test_everything(count=1),eliminate_dead"
        assert str(Pipeline(text)) == text
        assert Pipeline(str(Pipeline(text))) == Pipeline(text)

    @pytest.mark.parametrize(
        ("text", "code", "message", "hint"),
        [
            ("simplfy", "E_UNKNOWN_PASS", "no pass called 'simplfy'", "did you mean 'simplify'"),
            ("xyzzy", "E_UNKNOWN_PASS", "no pass called", "known passes: "),
            ("test_everything(cuont=1)", "E_UNKNOWN_OPTION", "has no option 'cuont'", "did you mean 'count'"),
            ("test_everything(count=1.5)", "E_OPTION_VALUE", "'1.5' is not a valid int", "give a int"),
            ("test_everything(flag=maybe)", "E_OPTION_VALUE", "'maybe' is not a valid bool", ""),
            ("test_everything(count=[1,2])", "E_OPTION_VALUE", "not a valid int", ""),
            ("test_everything(count)", "E_PASS_SYNTAX", "not of the form option=value", ""),
            ("test_everything(count=1", "E_PASS_SYNTAX", "never closed", ""),
            ("test_everything)", "E_PASS_SYNTAX", "never opened", ""),
            ("test_everything(count=1)x", "E_PASS_SYNTAX", "closing parenthesis", ""),
        ],
    )
    def test_mistakes(self, text: str, code: str, message: str, hint: str) -> None:
        with pytest.raises(SecateurError, match=message) as caught:
            parse_passes(text)
        assert caught.value.code == code
        assert hint in caught.value.hint

    def test_options_of_the_right_type_pass_as_they_are(self) -> None:
        assert make_pass("test_everything", {"count": 5, "sizes": (4,)}) == Everything(count=5, sizes=(4,))

    def test_registry(self) -> None:
        assert {"simplify", "fold_constants", "eliminate_dead", "test_everything"} <= set(available_passes())


class TestRunning:
    def test_reports_and_timings(self) -> None:
        context = Context()
        graph = relu()
        assert Pipeline("test_everything,test_everything(count=9)").run(graph, context) is graph
        assert context.reports == {"test_everything": [3, 9]}
        assert [name for name, seconds in context.timings if seconds >= 0] == ["test_everything"] * 2

    def test_the_verifier_names_the_passes_that_ran(self) -> None:
        with pytest.raises(SecateurError, match="never defined") as caught:
            Pipeline("test_everything,test_break")(relu())
        assert caught.value.where.startswith("after test_everything , test_break")

    def test_the_verifier_runs_first(self) -> None:
        graph = relu()
        graph.nodes.clear()
        with pytest.raises(SecateurError) as caught:
            Everything()(graph)
        assert caught.value.where.startswith("before the first pass")

    def test_errors_say_which_pass(self) -> None:
        with pytest.raises(SecateurError, match="always fails") as caught:
            Pipeline("test_everything,test_break(fail=true)")(relu())
        assert caught.value.__notes__ == ["in pass test_break(fail=true) after test_everything"]

    def test_pipelines_nest(self) -> None:
        context = Context()
        Pipeline([Pipeline("test_everything"), Everything(count=4)]).run(relu(), context)
        assert context.reports == {"test_everything": [3, 4]}

    def test_print_after(self, capsys: pytest.CaptureFixture[str]) -> None:
        Pipeline("test_everything").run(relu(), Context(print_after=("test_everything",)))
        assert capsys.readouterr().err.startswith("// after test_everything\ngraph g")
