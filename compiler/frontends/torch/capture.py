"""torch.export and torch's ONNX exporter: a module and example inputs to an ONNX program with the module's names.

The exporter's own optimiser stays off, for it would fold BatchNorm and transpose weights.
"""

from __future__ import annotations

import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from compiler.ir import MIN_OPSET, SecateurError

TensorKey = tuple[Any, ...]


@dataclass(frozen=True)
class Call:
    """How a module is called: the arguments of one forward, and which of their dimensions are open."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    dynamic_shapes: Any = None


@dataclass(frozen=True)
class Captured:
    """A traced network. program: the ExportedProgram whose node names the ONNX values carry.

    names: for each tensor of the source (see `tensor_key`), the first name that it has there. dimensions: for each
    tensor input in order, the names that its open dimensions were given, by axis.
    """

    onnx: torch.onnx.ONNXProgram
    program: ExportedProgram
    names: dict[TensorKey, str]
    dimensions: tuple[dict[int, str], ...] = ()


CALLS: WeakKeyDictionary[nn.Module, Call] = WeakKeyDictionary()
"""How each module that is still alive was called when it was loaded; writing back verifies with the same call."""


def capture(source: Any, args: Sequence[Any] | None, kwargs: dict[str, Any], dynamic_shapes: Any) -> Captured:
    """Trace `source`. Raises E_TORCH_ARGS without example inputs, E_TORCH_EXPORT when torch cannot trace it."""
    if isinstance(source, ExportedProgram):
        if args is not None or kwargs or dynamic_shapes is not None:
            raise SecateurError(
                "E_TORCH_ARGS",
                "an ExportedProgram carries its own inputs and dynamic shapes",
                hint="give args, kwargs and dynamic_shapes to torch.export.export instead",
            )
        return _to_onnx(source, _names(source.state_dict, source.constants))
    if args is None and not kwargs:
        raise SecateurError(
            "E_TORCH_ARGS",
            "a module is read by running it once, and no example inputs were given",
            where=type(source).__name__,
            hint="load(module, args=(x,)), with the tensors that its forward takes",
        )
    # A lone tensor is what people write for a module of one input.
    call = Call((args,) if isinstance(args, torch.Tensor) else tuple(args or ()), kwargs, dynamic_shapes)
    program = trace(source, call)
    CALLS[source] = call
    tensors = dict(source.named_parameters(remove_duplicate=False))
    tensors |= dict(source.named_buffers(remove_duplicate=False))
    return _to_onnx(program, _names(tensors, program.constants), _named_dimensions(source, call))


def trace(module: nn.Module, call: Call) -> ExportedProgram:
    """The module in evaluation mode as an ExportedProgram; E_TORCH_EXPORT when torch cannot make one."""
    with evaluating(module), quiet(), torch.no_grad():
        try:
            return torch.export.export(
                module, call.args, call.kwargs, dynamic_shapes=_torch_dimensions(module, call), strict=False
            )
        except Exception as error:  # torch raises some twenty types, half of them private
            raise _refused(error, type(module).__name__) from None


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put the module into evaluation mode, and every part of it back into its own mode afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    for part, _ in modes:  # not module.eval(), which classes override, and GraphModules of torch.export refuse
        part.training = False
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def tensor_key(tensor: torch.Tensor) -> TensorKey:
    """Equal for tensors that are the same memory, seen the same way."""
    if tensor.numel() == 0:
        return ("empty", id(tensor))
    return (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)


def _names(*groups: Mapping[str, Any]) -> dict[TensorKey, str]:
    found: dict[TensorKey, str] = {}
    for group in groups:
        for name, tensor in group.items():
            if isinstance(tensor, torch.Tensor):
                found.setdefault(tensor_key(tensor), name)
    return found


def _to_onnx(
    program: ExportedProgram, names: dict[TensorKey, str], dimensions: tuple[dict[int, str], ...] = ()
) -> Captured:
    with quiet(), torch.no_grad():
        try:
            onnx = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False, opset_version=MIN_OPSET)
        except Exception as error:
            raise _refused(error, "translation to ONNX") from None
    assert onnx is not None and onnx.exported_program is not None
    return Captured(onnx, onnx.exported_program, names, dimensions)


def bind(module: nn.Module, call: Call) -> dict[str, Any]:
    """The arguments of the call by the names of forward's parameters, in their order; or E_TORCH_ARGS."""
    try:
        return dict(inspect.signature(module.forward).bind(*call.args, **call.kwargs).arguments)
    except TypeError as error:
        raise SecateurError(
            "E_TORCH_ARGS",
            f"the example inputs do not fit the module's forward: {error}",
            where=type(module).__name__,
            hint="give args and kwargs as forward takes them",
        ) from None


def _torch_dimensions(module: nn.Module, call: Call) -> Any:
    """dynamic_shapes as torch takes them: inputs that a mapping leaves out are static, names are open dimensions."""

    def convert(item: Any) -> Any:
        if isinstance(item, str):
            return Dim.DYNAMIC
        if isinstance(item, Mapping):
            return {key: convert(entry) for key, entry in item.items()}
        return type(item)(convert(entry) for entry in item) if isinstance(item, list | tuple) else item

    given = convert(call.dynamic_shapes)
    return dict.fromkeys(bind(module, call)) | given if isinstance(given, dict) else given


def _named_dimensions(module: nn.Module, call: Call) -> tuple[dict[int, str], ...]:
    """For each tensor of the call, the names of its open dimensions."""
    bound, given = bind(module, call), call.dynamic_shapes
    if not isinstance(given, Mapping):
        given = dict(zip(bound, given or (), strict=False))
    return tuple(_leaf_names(bound, given))


def _leaf_names(item: Any, given: Any) -> Iterator[dict[int, str]]:
    """Walk the arguments and their dynamic shapes side by side."""
    if isinstance(item, torch.Tensor):
        entries = given.items() if isinstance(given, Mapping) else enumerate(given or ())
        # Dims carry their name; hints such as Dim.AUTO have none.
        named = ((axis, d if isinstance(d, str) else getattr(d, "__name__", None)) for axis, d in entries)
        yield {axis: name for axis, name in named if name is not None}
    elif isinstance(item, Mapping):
        for key, entry in item.items():
            yield from _leaf_names(entry, given.get(key) if isinstance(given, Mapping) else None)
    elif isinstance(item, list | tuple):
        inner = given if isinstance(given, list | tuple) else (None,) * len(item)
        for entry, spec in zip(item, inner, strict=False):
            yield from _leaf_names(entry, spec)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what torch prints and logs of its work; what is wrong is in its exceptions."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(disabled)


_HINTS = (
    (("data-dependent", "Could not guard"), "make the branch depend on shapes only, or write it with torch.cond"),
    (
        ("Constraints violated", "pecializ", "not dynamic"),
        "the network fixes an open dimension: leave it out of dynamic_shapes, or give an example of 2 or more",
    ),
    (("No ONNX function found", "Failed to decompose"), "replace the operator by others that ONNX has"),
    (("missing a required", "positional argument", "unexpected keyword"), "give args and kwargs as forward takes them"),
)


def _refused(error: BaseException, where: str) -> SecateurError:
    """One error with the line of torch's report that says what is wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error)
    hint = next((h for keys, h in _HINTS if any(k in text for k in keys)), "")
    hint = hint or "make torch.export.export(module, args, strict=False) work first; it prints the place in forward"
    return SecateurError(
        "E_TORCH_EXPORT", f"torch cannot export the network: {_essence(error)}", where=where, hint=hint
    )


def _essence(error: BaseException) -> str:
    lines = [line.strip(" -\t") for line in str(error).splitlines()]
    lines = [line for line in lines if line and not line.startswith(("File ", "Traceback", "While executing"))]
    marked = [line for line in lines if "No ONNX function found" in line]
    line = next(iter(marked or lines), "")
    line = line.split(" For more information")[0]
    # A heading says nothing without what it announces.
    if line.endswith((":", "!")) and len(lines) > 1 and not marked:
        line = f"{line} {lines[1]}"
    return f"{line[:300]} ({type(error).__name__})" if line else type(error).__name__
