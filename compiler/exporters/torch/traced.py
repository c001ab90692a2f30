"""The way back for modules whose forward spells sizes out: torch.export's trace, its numbers rewritten.

The trace and the graph come from one torch.export, so a value of the graph and the operation that makes it have the
same name. Numbers are read off the pruned graph by that name; what a pass has removed there (a reshape to the same
shape, two reshapes in a row) follows from its operand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from compiler.exporters.torch.edits import Edits, write_tensors
from compiler.exporters.torch.tensors import Tensors, Trace, reshaped_back
from compiler.exporters.torch.verifying import Reference
from compiler.frontends.torch.capture import evaluating
from compiler.ir import CheckFailed, Graph, Node, Value

aten = torch.ops.aten
Shape = tuple[int, ...]


def write_traced(
    graph: Graph, trace: Trace, tensors: Tensors, values: dict[str, np.ndarray], reference: Reference
) -> nn.Module:
    """A traced module that computes what `graph` does; E_TORCH_WRITE_BACK when it cannot be made exact.

    Its parameters keep their names, and BatchNorm follows train() and eval(); dropout was traced in evaluation
    mode and is gone.
    """
    module, call = trace.module, trace.call
    source = trace.captured.program.module(check_guards=False)
    _trainable_norms(source)
    traced = fx.GraphModule(source, source.graph, type(module).__name__)
    inputs = torch.utils._pytree.tree_leaves((call.args, call.kwargs))
    with evaluating(traced), torch.no_grad():
        before = _Shapes(traced)
        before.run(*inputs, enable_io_processing=False)  # the placeholders are the flat inputs
        write_tensors(Edits(), traced, tensors, values)
        rewriting = _Rewriting(traced, graph, before.shapes)
        try:
            rewriting.run(*inputs, enable_io_processing=False)
        except Exception as error:  # an operation refuses its operands: a number that no rule corrects
            raise _failed(module, rewriting.place, str(error)) from None
    traced.graph.lint()
    traced.recompile()
    if (problem := reference.problem(traced)) is not None:
        raise _failed(module, rewriting.place, problem)
    return traced.train(module.training)


def _failed(module: nn.Module, place: str, problem: str) -> CheckFailed:
    line = next((text.strip() for text in problem.splitlines() if text.strip()), "it fails")
    return CheckFailed(
        "E_TORCH_WRITE_BACK",
        f"neither the module nor its trace computes what the graph does: {line[:240]}",
        where=f"{type(module).__name__}, {place}" if place else type(module).__name__,
        hint="write the sizes there in terms of x.shape, or export the graph to ONNX: export(graph, 'pruned.onnx')",
    )


def _trainable_norms(module: fx.GraphModule) -> None:
    """Make the frozen BatchNorms of a trace ordinary ones, which ask the module whether it trains."""
    frozen = aten._native_batch_norm_legit_no_training.default
    for node in list(module.graph.nodes):
        if node.target is not frozen or any(n.args[1] != 0 for n in node.users if n.users):
            continue
        x, weight, bias, mean, variance, momentum, epsilon = node.args
        with module.graph.inserting_before(node):
            training = module.graph.create_node("get_attr", "training")
            arguments = (x, weight, bias, mean, variance, training, momentum, epsilon, True)
            norm = module.graph.call_function(aten.batch_norm.default, arguments)
        norm.meta = dict(node.meta)
        for user in list(node.users):
            user.replace_all_uses_with(norm)
            module.graph.erase_node(user)
        module.graph.erase_node(node)
    module.recompile()


def _shape(value: Any) -> Shape | None:
    return tuple(int(d) for d in value.shape) if isinstance(value, torch.Tensor) else None


class _Shapes(fx.Interpreter):
    """Runs a trace and notes the shape of every tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, Shape] = {}

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if (shape := _shape(result)) is not None:
            self.shapes[node.name] = shape
        return result


class _Rewriting(_Shapes):
    """Runs a trace whose tensors were replaced, and corrects each operation's numbers before it runs."""

    def __init__(self, module: fx.GraphModule, graph: Graph, old: dict[str, Shape]) -> None:
        super().__init__(module)
        self.old = old
        self.made: dict[str, Value] = {v.name: v for n in graph.all_nodes() for v in n.outputs}
        self.known: dict[str, Value] = {v.name: v for v in graph.all_constants()} | self.made
        self.place = ""

    def run_node(self, node: fx.Node) -> Any:
        rule = RULES.get(node.target) if callable(node.target) else None
        if rule is not None:
            rule(self, node)
        self.place = _describe(node)
        result = super().run_node(node)
        self.place = ""
        return result

    def maker(self, node: fx.Node, *ops: str) -> Node | None:
        """The operator of the pruned graph that makes what `node` makes, if it is one of `ops`."""
        value = self.made.get(node.name)
        producer = None if value is None else value.producer
        return producer if producer is not None and producer.op in ops else None

    def wanted(self, node: fx.Node) -> tuple[int | None, ...] | None:
        """The shape that the pruned graph gives to the result, None where it is open."""
        value = self.known.get(node.name)
        if value is None or value.shape is None:
            return None
        return tuple(d if isinstance(d, int) else None for d in value.shape)

    def operand(self, node: fx.Node, index: int = 0) -> tuple[Shape, Shape] | None:
        """The shape of an operand before and now."""
        source = node.args[index]
        if not isinstance(source, fx.Node) or source.name not in self.shapes:
            return None
        return self.old[source.name], self.shapes[source.name]


_LINE = 200
"""Characters of a traced line that a message shows: a branch lists every weight that it reads."""


def _describe(node: fx.Node) -> str:
    trace = str(node.meta.get("stack_trace", "")).strip().splitlines()
    line = next((text.strip() for text in reversed(trace) if text.strip().startswith("File ")), "")
    code = trace[-1].strip() if trace else ""
    return f"{node.target} ({(code or line)[:_LINE]})" if code or line else f"{node.target}"


Rule = Callable[[_Rewriting, fx.Node], None]

RULES: dict[Any, Rule] = {}


def _rule(*targets: Any) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(targets, rule))
        return rule

    return register


def _integers(value: Value | None) -> list[int] | None:
    return [int(i) for i in value.numpy().ravel()] if value is not None and value.is_constant else None


@_rule(aten.view.default, aten.reshape.default, aten._unsafe_view.default)
def _view(run: _Rewriting, node: fx.Node) -> None:
    sizes: list[Any] = list(node.args[1])  # type: ignore[arg-type]
    node.target = aten.reshape.default  # strides may differ at other widths, and a view refuses some
    maker = run.maker(node, "Reshape")
    target = _integers(maker.inputs[1]) if maker is not None else None
    if target is not None and len(target) == len(sizes):
        sizes = [size if t == 0 else t for size, t in zip(sizes, target, strict=True)]
    else:
        wanted = run.wanted(node)
        if (wanted is None or len(wanted) != len(sizes)) and (shapes := run.operand(node)) is not None:
            wanted = reshaped_back(run.old[node.name], *shapes)
        if wanted is not None and len(wanted) == len(sizes):
            sizes = [_number(size, w) for size, w in zip(sizes, wanted, strict=True)]
    node.update_arg(1, sizes)


def _number(size: Any, wanted: int | None) -> Any:
    """A size of the trace: numbers become what is wanted; what the trace computes, or leaves open, stays."""
    return wanted if isinstance(size, int) and size > 0 and wanted is not None else size


@_rule(aten.expand.default)
def _expand(run: _Rewriting, node: fx.Node) -> None:
    sizes: list[Any] = list(node.args[1])  # type: ignore[arg-type]
    wanted, shapes = run.wanted(node), run.operand(node)
    if wanted is None and shapes is not None:
        old, new = shapes
        lead = len(sizes) - len(old)
        follow = [None] * lead + [n if o != 1 else None for o, n in zip(old, new, strict=True)]
        wanted = tuple(follow)
    if wanted is not None and len(wanted) == len(sizes):
        node.update_arg(1, [_number(size, w) for size, w in zip(sizes, wanted, strict=True)])


@_rule(aten.zeros.default, aten.ones.default, aten.full.default, aten.empty.memory_format)
def _filled(run: _Rewriting, node: fx.Node) -> None:
    _sizes(run, node, 0)


@_rule(aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.new_empty.default)
def _new_filled(run: _Rewriting, node: fx.Node) -> None:
    _sizes(run, node, 1)


def _sizes(run: _Rewriting, node: fx.Node, index: int) -> None:
    wanted = run.wanted(node)
    sizes: list[Any] = list(node.args[index])  # type: ignore[arg-type]
    if wanted is not None and len(wanted) == len(sizes):
        node.update_arg(index, [_number(size, w) for size, w in zip(sizes, wanted, strict=True)])


@_rule(aten.split.Tensor, aten.split_with_sizes.default)
def _split(run: _Rewriting, node: fx.Node) -> None:
    axis = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    maker = next((m for u in node.users if (m := run.maker(u, "Split")) is not None), None)
    if maker is None:
        first = run.made.get(f"{node.name}_split_0")
        maker = first.producer if first is not None else None
    if not isinstance(axis, int):
        return
    if maker is not None:
        widths = [v.shape[axis] if v.shape is not None else None for v in maker.outputs]
    else:
        widths = _in_proportion(run, node, axis)
    if widths and all(isinstance(w, int) for w in widths):
        node.target = aten.split_with_sizes.default
        node.args, node.kwargs = (node.args[0], widths, axis), {}


def _in_proportion(run: _Rewriting, node: fx.Node, axis: int) -> list[Any]:
    """The sizes of a split of a weight, which the graph has folded: the parts of a packed projection shrink alike."""
    shapes, sizes = run.operand(node), node.args[1]
    if shapes is None or not isinstance(sizes, list | tuple):
        return []
    (before, now), known = (shape[axis] for shape in shapes), [s for s in sizes if isinstance(s, int)]
    return [s * now // before for s in known] if not any(s * now % before for s in known) else []


@_rule(aten.slice.Tensor)
def _slice(run: _Rewriting, node: fx.Node) -> None:
    axis = node.args[1] if len(node.args) > 1 else 0
    shapes, maker = run.operand(node), run.maker(node, "Slice")
    if shapes is None or not isinstance(axis, int):
        return
    old, new = shapes
    if maker is not None:
        operands = [_integers(v) for v in maker.inputs[1:]]
        starts, ends = operands[:2]
        if starts is not None and ends is not None and len(starts) == 1:
            step = node.args[4] if len(node.args) > 4 else 1
            node.args = (node.args[0], axis, starts[0], ends[0], step)
    elif run.old.get(node.name) == old and new != old:
        node.args = (node.args[0], axis, 0, 2**63 - 1)


@_rule(aten.select.int)
def _select(run: _Rewriting, node: fx.Node) -> None:
    maker = run.maker(node, "Gather")
    index = _integers(maker.inputs[1]) if maker is not None else None
    if index is not None and len(index) == 1:
        node.update_arg(2, index[0])


@_rule(aten.pad.default, aten.constant_pad_nd.default)
def _pad(run: _Rewriting, node: fx.Node) -> None:
    maker, shapes = run.maker(node, "Pad"), run.operand(node)
    amounts = _integers(maker.input(1)) if maker is not None else None
    if amounts is None or shapes is None or maker is None:
        return
    rank = len(shapes[1])
    axes = _integers(maker.input(3)) or list(range(rank))
    pairs = {axis % rank: (amounts[i], amounts[i + len(axes)]) for i, axis in enumerate(axes)}
    given = len(node.args[1]) // 2  # type: ignore[arg-type]
    # torch counts axes from the last one.
    node.update_arg(1, [n for axis in range(rank - 1, rank - 1 - given, -1) for n in pairs.get(axis, (0, 0))])


@_rule(aten.layer_norm.default, aten.native_layer_norm.default, aten.rms_norm.default)
def _layer_norm(run: _Rewriting, node: fx.Node) -> None:
    if (shapes := run.operand(node)) is not None:
        node.update_arg(1, list(shapes[1][-len(node.args[1]) :]))  # type: ignore[arg-type]


@_rule(aten.group_norm.default)
def _group_norm(run: _Rewriting, node: fx.Node) -> None:
    if (maker := run.maker(node, "GroupNormalization")) is not None:
        node.update_arg(1, int(maker.attribute("num_groups")))


@_rule(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv_transpose2d.input)
def _grouped(run: _Rewriting, node: fx.Node) -> None:
    _groups(run, node, 6)


@_rule(aten.convolution.default)
def _convolution(run: _Rewriting, node: fx.Node) -> None:
    _groups(run, node, 8)


def _groups(run: _Rewriting, node: fx.Node, index: int) -> None:
    maker = run.maker(node, "Conv", "ConvTranspose")
    if maker is None and (value := run.made.get(node.name)) is not None:
        maker = value.producer
    if maker is not None and len(node.args) > index:
        node.update_arg(index, int(maker.attribute("group", 1)))


@_rule(aten.scaled_dot_product_attention.default)
def _attention(run: _Rewriting, node: fx.Node) -> None:
    shapes = run.operand(node)
    # Without a scale torch takes it from the head's width now; the network was trained with the old one.
    if shapes is not None and node.kwargs.get("scale") is None and shapes[0][-1] != shapes[1][-1]:
        node.update_kwarg("scale", shapes[0][-1] ** -0.5)


@_rule(aten.lstm.input, aten.gru.input)
def _recurrent(run: _Rewriting, node: fx.Node) -> None:
    """Initial states of zeros are no operands in the graph; their width follows from the weights."""
    states: Any = node.args[1]
    weights: Any = node.args[2]
    hidden = run.shapes[weights[1].name][-1]
    for state in states if isinstance(states, list | tuple) else [states]:
        if state.target is aten.zeros.default:
            sizes = [*state.args[0][:-1], hidden]
            state.update_arg(0, sizes)
            run.env[state] = torch.zeros([run.env[s] if isinstance(s, fx.Node) else s for s in sizes], **state.kwargs)
