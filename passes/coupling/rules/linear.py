"""Matrix products: the contracted axes meet, the free axes pass, the batch axes broadcast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.ir import Dim, Node, Value
from passes.coupling.kinds import EXPERT, HEAD, HEAD_DIM, PRODUCT
from passes.coupling.partition import Points
from passes.coupling.rules.elementwise import broadcast
from passes.coupling.solver import Coupling, Labels, Layout, coupling_rule


@dataclass(frozen=True)
class Operand:
    """A tensor that is read with its axes in another order, as a transposed matrix or stack of matrices."""

    value: Value
    order: Sequence[int]

    @classmethod
    def of(cls, value: Value) -> Operand:
        """The tensor as it is."""
        return cls(value, range(value.rank or 0))

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.order)

    def extent(self, axis: int) -> Dim:
        """The extent of an axis, counted as it is read."""
        return None if self.value.shape is None else self.value.shape[self.order[axis]]

    def read(self, layout: Layout) -> Layout:
        """A layout of the tensor in the order in which it is read."""
        return [None if (t := layout[a]) is None else t.transpose(self.order) for a in self.order]


@coupling_rule("Gemm")
def gemm(c: Coupling, node: Node) -> None:
    """Y[M, N] = A'[M, K] B'[K, N] + C, C broadcast to [M, N]."""
    a, b = node.inputs[0], node.inputs[1]
    assert a is not None and b is not None
    general_product(c, node, a, b, node.input(2))


def general_product(c: Coupling, node: Node, a: Value, b: Value, bias: Value | None) -> Points | None:
    """The couplings of a matrix product whose operands may be transposed; returns the labels of its columns."""
    y = node.outputs[0]
    rows, inner_a = (1, 0) if node.attribute("transA", 0) else (0, 1)
    inner_b, columns = (1, 0) if node.attribute("transB", 0) else (0, 1)
    c.plain(a, inner_a)
    c.set_plain(b, inner_b, c.plain(a, inner_a), node)
    m, n = c.plain(a, rows), c.plain(b, columns)
    c.set(y, [None if m is None else m.reshape(-1, 1), None if n is None else n.reshape(1, -1)])
    if bias is not None and bias.rank:
        c.set(y, broadcast(c, node, [y, bias], 2))
    return n


@coupling_rule("MatMul", "MatMulInteger")
def matmul(c: Coupling, node: Node) -> None:
    """[..., M, K] x [..., K, N]; either side may be a vector. Labels conditional on batch axes stay so."""
    a, b = node.inputs[0], node.inputs[1]
    assert a is not None and b is not None
    product(c, node, a, b)
    for side, value, axis in ((a, node.input(2), -2), (b, node.input(3), -1)):
        if value is not None:
            per_line(c, node, side, value, axis)


def per_line(c: Coupling, node: Node, side: Value, value: Value, axis: int) -> None:
    """A scale or zero point of a matrix operand: one in all, or one a row (axis -2) or a column (axis -1)."""
    rank = side.rank or 0
    if not value.rank or rank < 2:
        return
    if value.rank == 1:
        c.set_plain(value, 0, c.plain(side, rank + axis) if value.shape != (1,) else None, node)
        return
    if value.rank != rank:
        c.pin_value(value, node, "its axes are not those of the matrix")
        c.pin_value(side, node, "its scale has other axes")
        return
    for own in range(rank):
        passes = own - rank in (axis, *range(-rank, -2))
        c.define(value, own, c.axis(side, own) if passes else None, node)


def product(c: Coupling, node: Node, left: Value | Operand, right: Value | Operand) -> None:
    """The couplings of a matrix product of two operands, which the node's first result holds."""
    a, b = (side if isinstance(side, Operand) else Operand.of(side) for side in (left, right))
    y = node.outputs[0]
    rank = max(a.rank, b.rank, 2)
    if a.rank == 0 or b.rank == 0:
        c.refuse(node, "MatMul of a scalar")
        return
    for stack in (a, b):  # a stack of matrices (experts, heads) need not move alike in all of them
        *batch, rows, columns = stack.order if stack.rank > 2 else (0, 0)
        for axis in (rows, columns) if batch else ():
            c.loosen(stack.value, axis, batch)
    layout_a = _as_matrix(c, a, rank, vector_axis=rank - 1, contracted=a.rank - 1)
    layout_b = _as_matrix(c, b, rank, vector_axis=rank - 2, contracted=max(0, b.rank - 2))
    # The contracted labels may depend on neither free axis.
    inner_a = _independent(c, layout_a[rank - 1], rank - 2)
    inner_b = _independent(c, layout_b[rank - 2], rank - 1)
    if inner_b is not None:
        inner_b = inner_b.swapaxes(rank - 1, rank - 2)
    if inner_a is not None or inner_b is not None:
        c.tie(inner_a, inner_b, node)
    constants = a.value.is_constant, b.value.is_constant
    constant_queries = constants == (True, False) and inner_b is not None and _conditional(inner_b, rank - 1)
    if constant_queries or not any(constants):  # attention: what is contracted or batched belongs to heads
        for labels, axis in ((inner_a, rank - 1), (layout_b[rank - 1], rank - 1)):
            c.mark(labels, axis, HEAD_DIM if rank > 3 or _conditional(labels, axis) else PRODUCT)
        for axis in range(rank - 2):
            c.mark(layout_a[axis], axis, HEAD)
    else:
        for axis in range(rank - 2):
            c.mark((layout_a if constants[0] else layout_b)[axis], axis, EXPERT)
    out: Layout = []
    for axis in range(rank - 2):
        out.append(_batch(c, node, a, b, layout_a, layout_b, axis, rank))
    if a.rank > 1:
        out.append(layout_a[rank - 2])
    if b.rank > 1:
        out.append(layout_b[rank - 1])
    out = [None if t is None else _squeeze(t, a.rank, b.rank, rank) for t in out]
    c.set(y, out)


@coupling_rule("Einsum")
def einsum(c: Coupling, node: Node) -> None:
    """Each letter is an axis: operands that have it meet there, and letters that the result lacks are summed over."""
    operands = [v for v in node.inputs if v is not None]
    terms = einsum_terms(node)
    if terms is None:
        c.refuse(node, "Einsum that takes a diagonal")
        return
    *reads, result = terms
    letters = list(dict.fromkeys(letter for term in reads for letter in term))
    known: dict[str, Labels | None] = {}
    for value, term in zip(operands, reads, strict=True):
        for axis, letter in enumerate(term):
            if letter not in result:
                c.decondition(value, axis)
    for value, term in zip(operands, reads, strict=True):
        order = [term.index(letter) for letter in letters if letter in term]
        for letter, labels in zip(term, c.layout(value), strict=True):
            if value.shape is not None and value.shape[term.index(letter)] == 1:
                continue
            if labels is not None:
                extents = iter(labels.transpose(order).shape)
                labels = labels.transpose(order).reshape([next(extents) if a in term else 1 for a in letters])
            known[letter] = c.tie(known[letter], labels, node) if letter in known else labels
    if len(reads) == 2:
        _mark_letters(c, letters, known, reads, result, weighted=any(v.is_constant for v in operands))
    order = [letters.index(letter) for letter in result]
    gone = tuple(range(len(result), len(letters)))
    order += [i for i, letter in enumerate(letters) if letter not in result]
    layout = [known.get(letter) for letter in result]
    c.set(node.outputs[0], [None if t is None else t.transpose(order).squeeze(gone) for t in layout])


def _mark_letters(
    c: Coupling,
    letters: list[str],
    known: dict[str, Labels | None],
    reads: list[list[str]],
    result: list[str],
    weighted: bool,
) -> None:
    """What moves along each axis of a product of two operands, as in MatMul."""
    shared = [letter for letter in letters if letter in reads[0] and letter in reads[1]]
    batch = [letter for letter in shared if letter in result]
    for axis, letter in enumerate(letters):
        labels = known.get(letter)
        if not weighted:
            dim = HEAD_DIM if len(batch) > 1 or _conditional(labels, axis) else PRODUCT
            c.mark(labels, axis, HEAD if letter in batch else dim)
        elif letter in batch and len(shared) > len(batch):
            c.mark(labels, axis, EXPERT)


def _conditional(labels: Labels | None, axis: int) -> bool:
    return labels is not None and labels.size != labels.shape[axis]


def einsum_terms(node: Node) -> list[list[str]] | None:
    """The axes' letters of every operand and of the result; None when an operand repeats one.

    The axes of an ellipsis are called "-1", "-2" … from the right, since they broadcast.
    """
    equation = str(node.attribute("equation")).replace(" ", "")
    left, arrow, right = equation.partition("->")
    named = [term.replace("...", "") for term in left.split(",")]
    if not arrow:
        joined = "".join(named)
        right = "..." * ("..." in left) + "".join(sorted(a for a in set(joined) if joined.count(a) == 1))
    terms, widest = [], 0
    for value, term, plain in zip(node.inputs, left.split(","), named, strict=True):
        extra = ((value.rank if value is not None else None) or 0) - len(plain)
        widest = max(widest, extra)
        terms.append(_letters(term, extra))
    terms.append(_letters(right, widest))
    return None if any(len(set(term)) != len(term) for term in terms) else terms


def _letters(term: str, extra: int) -> list[str]:
    head, dots, tail = term.partition("...")
    return [*head, *([str(-k) for k in range(extra, 0, -1)] if dots else []), *tail]


def _as_matrix(c: Coupling, operand: Operand, rank: int, vector_axis: int, contracted: int) -> Layout:
    """The operand's layout at `rank` axes, with every axis independent of the contracted one."""
    layout = operand.read(c.decondition(operand.value, operand.order[contracted]))
    if operand.rank == 1:
        only = layout[0]
        full: Layout = [None] * rank
        if only is not None:
            full[vector_axis] = only.reshape([-1 if a == vector_axis else 1 for a in range(rank)])
        return full
    missing = rank - len(layout)
    return [None] * missing + [None if t is None else t.reshape((1,) * missing + t.shape) for t in layout]


def _independent(c: Coupling, labels: Labels | None, axis: int) -> Labels | None:
    if labels is None or labels.shape[axis] == 1:
        return labels
    first = labels.take([0], axis=axis)
    c.partition.union(first, labels)
    return first


def _batch(
    c: Coupling, node: Node, a: Operand, b: Operand, layout_a: Layout, layout_b: Layout, axis: int, rank: int
) -> Labels | None:
    """Labels of one batch axis of the result: those of the operands that have it."""
    present = []
    for operand, layout in ((a, layout_a), (b, layout_b)):
        own = axis - rank + operand.rank
        if own >= 0 and operand.extent(own) != 1 and operand.rank > 1:
            present.append(layout[axis])
    if len(present) == 2:
        return c.tie(present[0], present[1], node)
    return present[0] if present else None


def _squeeze(labels: Labels, rank_a: int, rank_b: int, rank: int) -> Labels:
    """Drop the matrix axes that a vector operand does not have."""
    drop = [axis for axis, gone in ((rank - 2, rank_a == 1), (rank - 1, rank_b == 1)) if gone]
    return labels.squeeze(tuple(drop)) if drop else labels
