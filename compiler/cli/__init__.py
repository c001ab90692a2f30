"""The `secateur` command: one module a family of subcommands, thin over `compiler.driver`."""

from __future__ import annotations

import json
import sys

import typer

from compiler.cli import building, checking, demonstration, looking, machine, web
from compiler.ir import SecateurError
from compiler.version import __version__

app = typer.Typer(
    name="secateur",
    help="Make a trained network smaller and faster, and prove that it is still right.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("compile")(building.compile_command)
app.command("prune")(building.prune_command)
app.command("sparsify")(building.sparsify_command)
app.command("groups")(looking.groups_command)
app.command("criteria")(looking.criteria_command)
app.command("inspect")(looking.inspect_command)
app.command("verify")(checking.verify_command)
app.command("run")(checking.run_command)
app.command("bench")(checking.bench_command)
app.command("demo")(demonstration.demo_command)
app.command("serve")(web.serve_command)
app.command("doctor")(machine.doctor_command)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"secateur {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Print the version."),
) -> None:
    """Options before the command's name."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done and verified, 1 a check failed, 2 an error in what was given."""
    argv = sys.argv[1:] if arguments is None else arguments
    try:
        app(argv)
    except SecateurError as error:
        _print_error(error, as_json="--json" in argv)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()


def _print_error(error: SecateurError, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": error.to_dict()}, indent=2))
    print(f"secateur: error {error}", file=sys.stderr)
    for note in getattr(error, "__notes__", []):
        print(f"  {note}", file=sys.stderr)
