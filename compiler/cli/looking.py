"""`secateur groups` and `secateur inspect`: commands that only look."""

from __future__ import annotations

import inspect
import json as jsonlib
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text
from rich.tree import Tree

from compiler.cli.shared import Json, Model, Quiet, Screen, Shapes, bind, table
from compiler.frontends import load
from compiler.ir import Graph, Node, SecateurError, graph_cost, node_cost
from compiler.report import ZEROS, count, size, zero_rows
from passes import Groups, Pipeline, carried, certify, dependency_groups, sparsity_of
from passes.importance import available_criteria


def groups_command(
    model: Model,
    shape: Shapes = None,
    prove: Annotated[bool, typer.Option("--certify", help="Prove the groups by permuting them at random.")] = False,
    heads: Annotated[bool, typer.Option("--heads", help="Whole attention heads instead of channels within.")] = False,
    fixed: Annotated[bool, typer.Option("--fixed", help="List all that cannot move, and why.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show the dependency groups: what can be pruned together, and what cannot be pruned and why."""
    screen = Screen(json, quiet)
    with screen.context() as context:
        graph = Pipeline("simplify").run(load(model, shapes=bind(shape)), context)
        context.progress("grouping", 0, 1)
        groups = dependency_groups(graph, heads=heads)
        difference = certify(graph, groups) if prove else None
    screen.print(_tree(groups))
    reasons = Counter[str]()
    for item in groups.fixed:
        reasons[item.reason] += item.positions
    if fixed:
        rows = [[f"{f.value.name}[{f.axis}]", str(f.positions), f.reason] for f in groups.fixed]
        screen.print(table("Fixed", "axis", "positions", "because", rows=rows))
    elif reasons:
        rows = [[reason, str(n)] for reason, n in reasons.most_common(8)]
        screen.print(table("Fixed (most common reasons; --fixed lists all)", "because", "positions", rows=rows))
    if difference is not None:
        screen.print(f"certified: permuting every group changes the outputs by {difference:.1e} (relative)")
    screen.finish(_groups_result(groups, difference))


def _tree(groups: Groups) -> Tree:
    tree = Tree(f"{len(groups)} dependency groups, {groups.unit_count} units")
    inside = _bodies(groups.graph)
    for group, unit in zip(groups, carried(groups), strict=True):
        costs = f"; each carries {count(unit.params)} parameters, {count(unit.macs)} MACs"
        moves = f": {group.units} {group.kind}s{group.constraints}{costs}"
        branch = tree.add(Text(group.name, style="bold") + Text(moves))
        for member in group.members[:12]:
            readers = ", ".join(n.op + inside.get(n, "") for n in member.nodes)
            branch.add(Text(f"{member}  ({member.positions} positions; {readers})"))
        if len(group.members) > 12:
            branch.add(f"… and {len(group.members) - 12} more members")
    return tree


def _bodies(graph: Graph, path: str = "") -> dict[Node, str]:
    """How to say in which body a node stands, for those in one: ` in loop.body/if.then_branch`."""
    found: dict[Node, str] = {}
    for node in graph.nodes:
        for key, body in node.attributes.items():
            if isinstance(body, Graph):
                place = f"{path}/{node.name}.{key}" if path else f" in {node.name}.{key}"
                found |= dict.fromkeys(body.nodes, place) | _bodies(body, place)
    return found


def _groups_result(groups: Groups, difference: float | None) -> dict[str, Any]:
    return {
        "groups": [
            {
                "name": g.name,
                "kind": g.kind,
                "units": g.units,
                "blocks": [len(b) for b in g.blocks],
                "step": list(g.step),
                "minimum": g.minimum,
                "params_per_unit": unit.params,
                "macs_per_unit": unit.macs,
                "members": [
                    {
                        "value": m.value.name,
                        "axis": m.axis,
                        "positions": m.positions,
                        "nodes": [n.name for n in m.nodes],
                    }
                    for m in g.members
                ],
            }
            for g, unit in zip(groups, carried(groups), strict=True)
        ],
        "fixed": [
            {"value": f.value.name, "axis": f.axis, "positions": f.positions, "reason": f.reason} for f in groups.fixed
        ],
        "certificate": difference,
    }


_NEEDS = {"": "nothing", "samples": "samples", "labels": "samples with labels"}


def criteria_command(json: Json = False, quiet: Quiet = False) -> None:
    """List the criteria of `prune` and `sparsify`, and what each needs; those of other packages too."""
    screen = Screen(json, quiet)
    found = []
    for name, item in available_criteria().items():
        broken = isinstance(item, SecateurError)
        about = item.message if isinstance(item, SecateurError) else (inspect.getdoc(item) or "").partition("\n")[0]
        needs = "–" if isinstance(item, SecateurError) else _NEEDS.get(item.needs, item.needs)
        weights = not isinstance(item, SecateurError) and item.scores_weights
        found.append({"name": name, "needs": needs, "about": about, "weights": weights, "usable": not broken})
    rows = [[str(row["name"]), str(row["needs"]), "yes" if row["weights"] else "–", str(row["about"])] for row in found]
    screen.print(table("Criteria", "name", "needs", "of weights", "score of a unit", rows=rows, words=True))
    screen.finish({"criteria": found})


def inspect_command(
    path: Annotated[Path, typer.Argument(help="An ONNX file or an artifact directory.", show_default=False)],
    shape: Shapes = None,
    text: Annotated[bool, typer.Option("--text", help="Print the graph in its textual form.")] = False,
    sparsity: Annotated[
        bool, typer.Option("--sparsity", help="Count the zeros of each weight of a model, and find their pattern.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what a model or an artifact is made of, and where its cost lies."""
    screen = Screen(json, quiet)
    if path.is_dir():
        _inspect_artifact(screen, path)
        return
    graph = load(path, shapes=bind(shape))
    if text and not json:
        print(graph, end="")
        return
    cost = graph_cost(graph)
    interface = [["input", v.name, *_type(v)] for v in graph.inputs] + [
        ["output", v.name, *_type(v)] for v in graph.outputs
    ]
    screen.print(table(f"{path}: opset {graph.opset}, {len(graph.nodes)} nodes", "", "name", "type", rows=interface))
    rows = _ops(graph)
    screen.print(
        table(
            "Cost",
            "operator",
            "nodes",
            "MACs",
            "parameters",
            "moved",
            rows=[[r[0], str(r[1]), count(r[2]), count(r[3]), size(r[4])] for r in rows],
        )
    )
    screen.print(f"in all: {count(cost.macs)} multiply-accumulates, {count(cost.params)} parameters")
    zeros = sparsity_of(graph) if sparsity else ()
    if sparsity:
        screen.print(table("Zeros", *ZEROS, rows=zero_rows(zeros)))
    screen.finish(
        {
            "opset": graph.opset,
            "nodes": len(graph.nodes),
            "macs": cost.macs,
            "params": cost.params,
            "inputs": [{"name": v.name, "type": _type(v)[0]} for v in graph.inputs],
            "outputs": [{"name": v.name, "type": _type(v)[0]} for v in graph.outputs],
            "operators": [dict(zip(("op", "nodes", "macs", "params", "bytes_moved"), r, strict=True)) for r in rows],
        }
        | ({"weights": [asdict(w) for w in zeros]} if sparsity else {})
    )


def _type(value) -> list[str]:  # type: ignore[no-untyped-def]
    from compiler.ir import format_type

    return [format_type(value)]


def _ops(graph: Graph) -> list[list[Any]]:
    kinds: dict[str, list[int]] = {}
    for node in graph.nodes:
        cost = node_cost(node)
        entry = kinds.setdefault(node.qualified_op, [0, 0, 0, 0])
        for i, n in enumerate((1, cost.macs, cost.params, cost.bytes_moved)):
            entry[i] += n
    return sorted(([op, *n] for op, n in kinds.items()), key=lambda r: (-r[2], -r[4], r[0]))


def _kernel_row(layer: dict[str, Any]) -> list[str]:
    """What a kernel is, how its weights are stored, and what the choice was estimated to gain."""
    stored = " ".join(part for part in (layer.get("format", ""), layer.get("tile", "")) if part)
    if layer.get("chosen_by") == "measurement":
        stored += ", measured"
    share = f"{layer['nonzeros'] / layer['weights']:.0%}" if layer.get("weights") else ""
    sparse = layer.get("dense_cycles") and layer["format"] != "dense"
    gain = f"{layer['dense_cycles'] / max(1, layer['cycles']):.1f}x" if sparse else ""
    nodes = ", ".join(layer.get("nodes", []))[:60]
    return [str(layer.get("schedule", "")), stored, share, gain, nodes, count(layer.get("macs", 0))]


def _inspect_artifact(screen: Screen, path: Path) -> None:
    try:
        manifest = jsonlib.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SecateurError(
            "E_ARTIFACT",
            "this directory is no artifact",
            where=f"{path}: {getattr(error, 'strerror', None) or error}",
            hint="give the -o of a compile",
        ) from None
    files = [[name, size(f["bytes"]), f["sha256"][:12]] for name, f in sorted(manifest["files"].items())]
    half = ", half precision" if manifest["target"].get("dtype") == "float16" else ""
    screen.print(table(f"{path}: {manifest['target']['name']}{half}", "file", "size", "sha256", rows=files))
    layers = [_kernel_row(layer) for layer in manifest["layers"]]
    heads = ("schedule", "format", "nonzeros", "over dense", "nodes", "MACs")
    screen.print(table(f"{len(layers)} kernels", *heads, rows=layers))
    if any("format" in layer for layer in manifest["layers"]):
        screen.print(
            "format: how the weights are stored; over dense: the dense schedule's estimated time over this one's"
        )
    if "profile" in manifest:
        used = manifest["profile"]
        screen.print(f"chosen by costs measured on {used['processor']} (profile {used['sha256'][:12]})")
    screen.print(f"activation memory: {size(manifest['arena_bytes'])}")
    screen.finish(manifest)
