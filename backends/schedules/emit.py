"""A small builder of flat, vectorised TIR: what the schedules write their loops with.

It makes the syntax tree directly (no parser, no lowering passes), which is about a hundred times faster than
TVMScript, and leaves nothing to generic passes: indices are flat, vectors are explicit, registers are named.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import tvm
from tvm import tirx
from tvm.ir import PointerType, PrimType
from tvm.ir.expr import Expr

from backends.schedules.codegen import FLAT

#: A scalar index: a Python number or an int32 expression.
Index: TypeAlias = int | Expr

#: Elements in a cache line.
LINE = 16
#: Bytes that a schedule may take from the stack for its scratch: threads of some C libraries have 128 KiB in all.
STACK_BYTES = 16 << 10
#: Equal shares of a parallel loop. A thread takes neighbouring ones, however few or many iterations there are: with
#: as many shares as iterations, nine iterations for sixteen tasks would be eight for one thread and one for another.
_SHARES = 64
#: Iterations that can be counted in shares without overflow.
_MOST_SHARED = 2**31 // _SHARES - 1


class Array:
    """A flat array of one element type behind a pointer."""

    def __init__(self, emitter: Emitter, buffer: tirx.Buffer) -> None:
        self._emitter = emitter
        self.buffer = buffer

    @property
    def dtype(self) -> str:
        """Element type."""
        return str(self.buffer.dtype)

    def load(self, index: Index, lanes: int = 1) -> Expr:
        """`lanes` consecutive elements from `index` on."""
        return tirx.BufferLoad(self.buffer, [_ramp(index, lanes)])

    def splat(self, index: Index, lanes: int) -> Expr:
        """The element at `index` in every lane."""
        return splat(self.load(index), lanes)

    def store(self, index: Index, value: Expr, lanes: int = 1) -> None:
        """Write `lanes` consecutive elements from `index` on."""
        self._emitter.add(tirx.BufferStore(self.buffer, value, [_ramp(index, lanes)]))

    def prefetch(self, index: Index, write: bool = False, near: bool = True) -> None:
        """Ask for the cache line of an element, into the first level or (not near) the second; it need not exist."""
        where = tirx.address_of(self.load(index))
        level = _int(3 if near else 2)
        hint = tirx.call_llvm_intrin("void", "llvm.prefetch", where, _int(int(write)), level, _int(1))
        self._emitter.add(tirx.Evaluate(hint))


class Registers:
    """Vector variables that live in registers: every index must be a Python number."""

    def __init__(self, emitter: Emitter, buffer: tirx.Buffer) -> None:
        self._emitter = emitter
        self._buffer = buffer
        self.count = int(buffer.shape[0])

    def __getitem__(self, index: int) -> Expr:
        return tirx.BufferLoad(self._buffer, [tirx.IntImm("int32", index)])

    def __setitem__(self, index: int, value: Expr) -> None:
        self._emitter.add(tirx.BufferStore(self._buffer, value, [tirx.IntImm("int32", index)]))


class Emitter:
    """One C function in the making: parameters first, then statements in order.

    dtype: of what no type is given for. max_keeps_nan: see `Target`.
    """

    def __init__(
        self, symbol: str, parallel: bool = False, dtype: str = "float32", max_keeps_nan: bool = False
    ) -> None:
        self.symbol = symbol
        self.parallel = parallel
        self.dtype = dtype
        self.max_keeps_nan = max_keeps_nan
        self._params: list[tirx.Var] = []
        self._head: list[tirx.Stmt] = []
        self._blocks: list[list[tirx.Stmt]] = [[]]
        self._names = 0
        self._outer, _open.emitter = _open.emitter, self

    def param(self, role: str, elements: int, dtype: str | None = None) -> Array:
        """Declare the next pointer parameter, of at least `elements` elements."""
        dtype = dtype or self.dtype
        pointer = tirx.Var(role, PointerType(PrimType(dtype), "global"))
        self._params.append(pointer)
        buffer = tirx.decl_buffer((max(1, elements),), dtype, name=f"{role}_", data=pointer, layout=None)
        self._head.append(tirx.DeclBuffer(buffer, data=pointer))
        return Array(self, buffer)

    @property
    def roles(self) -> tuple[str, ...]:
        """Names of the parameters declared so far."""
        return tuple(pointer.name for pointer in self._params)

    def registers(self, count: int, lanes: int, dtype: str | None = None) -> Registers:
        """Declare `count` vector variables."""
        dtype = dtype or self.dtype
        kind = dtype if lanes == 1 else f"{dtype}x{lanes}"
        buffer = tirx.decl_buffer((count,), kind, name=self._name("r"), scope="local", layout=None)
        self.add(tirx.AllocBuffer(buffer))
        return Registers(self, buffer)

    def stack(self, elements: int, dtype: str | None = None) -> Array:
        """Declare a small array on the stack."""
        buffer = tirx.decl_buffer((elements,), dtype or self.dtype, name=self._name("s"), scope="local", layout=None)
        self.add(tirx.AllocBuffer(buffer))
        return Array(self, buffer)

    def add(self, stmt: tirx.Stmt) -> None:
        """Append a statement to the innermost open block."""
        self._blocks[-1].append(stmt)

    def name(self, value: Expr) -> Expr:
        """Compute a value into a register of its own, opaque to TVM's simplifier (which inlines `let` values)."""
        register = self.registers(1, lanes_of(value), dtype_of(value))
        register[0] = value
        return register[0]

    def let(self, value: Index) -> Expr:
        """Name a value, so that it is computed once."""
        if isinstance(value, int | tirx.IntImm | tirx.Var):
            return value
        var = tirx.Var(self._name("v"), value.ty)
        self.add(tirx.Bind(var, value))
        return var

    @contextmanager
    def loop(self, extent: Index, *, parallel: bool = False) -> Iterator[Expr]:
        """A loop from 0; `parallel` takes effect in functions built with parallel=True. Extent 1 makes no loop."""
        if isinstance(extent, int) and extent == 1:
            yield tirx.IntImm("int32", 0)
            return
        if parallel and self.parallel and not (isinstance(extent, int) and extent > _MOST_SHARED):
            with self._for(_SHARES, tirx.ForKind.PARALLEL) as share:
                first = self.let(tirx.truncdiv(share * extent, _SHARES))
                with self._for(self.let(tirx.truncdiv((share + 1) * extent, _SHARES) - first)) as i:
                    yield self.let(first + i)
            return
        with self._for(extent, tirx.ForKind.PARALLEL if parallel and self.parallel else tirx.ForKind.SERIAL) as i:
            yield i

    @contextmanager
    def _for(self, extent: Index, kind: int = tirx.ForKind.SERIAL) -> Iterator[Expr]:
        var = tirx.Var(self._name("i"), "int32")
        self._blocks.append([])
        yield var
        self.add(tirx.For(var, _int(0), _int(extent), kind, _sequence(self._blocks.pop())))

    @contextmanager
    def when(self, condition: Expr | bool) -> Iterator[None]:
        """Statements that run only if `condition`; a Python truth value decides at compile time."""
        self._blocks.append([])
        yield
        body = self._blocks.pop()
        known = condition if isinstance(condition, bool) else _constant(condition)
        if known is None:
            if body:
                self.add(tirx.IfThenElse(condition, _sequence(body), None))
        elif known:
            self._blocks[-1].extend(body)

    def choose(self, condition: Expr | bool, yes: Callable[[], None], no: Callable[[], None]) -> None:
        """If `condition` then what `yes` emits, else what `no` emits."""
        known = condition if isinstance(condition, bool) else _constant(condition)
        if known is not None:
            (yes if known else no)()
            return
        branches = []
        for branch in (yes, no):
            self._blocks.append([])
            branch()
            branches.append(_sequence(self._blocks.pop()))
        self.add(tirx.IfThenElse(condition, branches[0], branches[1]))

    def finish(self) -> tirx.PrimFunc:
        """The function; it returns 0."""
        _open.emitter = self._outer
        body = [*self._head, *self._blocks[0], tirx.Return(_int(0))]
        attrs = {"global_symbol": self.symbol, "tirx.noalias": True, "s_tir": True, FLAT: True}
        func = tirx.PrimFunc(self._params, tirx.SeqStmt(body), ret_type=PrimType("int32"))
        return func.with_attrs(attrs) if hasattr(func, "with_attrs") else _with_attrs(func, attrs)

    def _name(self, prefix: str) -> str:
        self._names += 1
        return f"{prefix}{self._names}"


class _Open(threading.local):
    emitter: Emitter | None = None


_open = _Open()


def shared(value: Expr, use: Callable[[Expr], Expr]) -> Expr:
    """`use(value)` with the value computed once: code generation walks expressions as trees.

    Inside an open Emitter the value goes to a register, elsewhere into a `Let`; deep chains of the latter make
    TVM's simplifier exponentially slow.
    """
    if isinstance(value, tirx.Var | tirx.FloatImm | tirx.IntImm):
        return use(value)
    if _open.emitter is not None:
        return use(_open.emitter.name(value))
    name = tirx.Var("t", value.ty)
    return tirx.Let(name, value, use(name))


def at_least(x: Expr, limit: Expr) -> Expr:
    """max(x, limit) for a limit that is a number; NaN stays NaN."""
    return _extreme("llvm.maximum", x, limit) if _keeps_nan() else tirx.Select(x < limit, limit, x)


def at_most(x: Expr, limit: Expr) -> Expr:
    """min(x, limit) for a limit that is a number; NaN stays NaN."""
    return _extreme("llvm.minimum", x, limit) if _keeps_nan() else tirx.Select(x > limit, limit, x)


def _keeps_nan() -> bool:
    return _open.emitter is not None and _open.emitter.max_keeps_nan


def _extreme(name: str, x: Expr, limit: Expr) -> Expr:
    return tirx.call_llvm_pure_intrin(x.ty, name, x, limit)


def const(value: float, lanes: int = 1, dtype: str = "float32") -> Expr:
    """A floating-point constant, in every lane."""
    return splat(tirx.FloatImm(dtype, value), lanes)


def widened(value: Expr, dtype: str = "float32") -> Expr:
    """A scalar or vector as another floating-point type."""
    lanes = lanes_of(value)
    return value if dtype_of(value) == dtype else value.astype(dtype if lanes == 1 else f"{dtype}x{lanes}")


def splat(value: Expr, lanes: int) -> Expr:
    """A scalar in every lane of a vector."""
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def shuffle(vectors: Sequence[Expr], lanes: Sequence[int]) -> Expr:
    """The chosen lanes of the concatenated vectors."""
    return tirx.Shuffle(list(vectors), [_int(lane) for lane in lanes])


def lanes_of(value: Expr) -> int:
    """Number of lanes of an expression."""
    _, _, lanes = str(value.ty.dtype).partition("x")
    return int(lanes) if lanes else 1


def dtype_of(value: Expr) -> str:
    """Element type of an expression."""
    return str(value.ty.dtype).partition("x")[0]


def _ramp(index: Index, lanes: int) -> Expr:
    return _int(index) if lanes == 1 else tirx.Ramp(_int(index), _int(1), lanes)


def _int(value: Index) -> Expr:
    return tirx.IntImm("int32", value) if isinstance(value, int) else value


def _constant(condition: Expr) -> bool | None:
    return bool(condition.value) if isinstance(condition, tirx.IntImm) else None


def _sequence(stmts: list[tirx.Stmt]) -> tirx.Stmt:
    if not stmts:
        return tirx.Evaluate(_int(0))
    return stmts[0] if len(stmts) == 1 else tirx.SeqStmt(stmts)


def _with_attrs(func: tirx.PrimFunc, attrs: dict[str, object]) -> tirx.PrimFunc:
    for key, value in attrs.items():
        func = func.with_attr(key, value)
    return func


def module(funcs: Sequence[tirx.PrimFunc]) -> tvm.IRModule:
    """An IRModule of functions under their own symbols."""
    return tvm.IRModule({str(func.attrs["global_symbol"]): func for func in funcs})
