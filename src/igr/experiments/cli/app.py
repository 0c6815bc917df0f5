"""The commands, by name, and how any of them ends. Nothing here imports torch: a command does, when it is run."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

import igr
from igr.experiments.cli import console
from igr.experiments.cli.console import fail, say
from igr.experiments.errors import UserError
from igr.experiments.runs.stopping import Interrupted

COMMANDS = {
    "demo": "Train discrete VAEs with IGR and with Gumbel-Softmax on scanned digits and compare them.",
    "vae": "Train discrete VAEs, all temperatures and seeds of a family side by side, and evaluate them.",
    "evaluate": "Evaluate trained runs as discrete models on the test set.",
    "reproduce": "Run the paper's tables and figures and print ours beside the paper's.",
    "sweep": "Run every combination of settings, temperatures and seeds side by side, and evaluate all of them.",
    "status": "Say what is done in a folder of records, what is going on, and how long it still takes.",
    "report": "Build one self-contained HTML page of all tables and figures there are records of.",
    "collect": "Copy what is small of full-scale records, weights not among it, into a folder of results.",
}
"""What each does. The file of that name has a function of that name, and `EXAMPLES`."""

# What typer raises for a wrong command line; newer versions bring their own copy of click, so it is found by way of
# a class that both export.
_ClickException: Any = typer.BadParameter.__mro__[2]

# What is wrong with a path or a disk, not with the program.
_ERRNOS = ("ENOSPC", "EDQUOT", "EACCES", "EROFS", "EIO", "ENAMETOOLONG", "ENOTDIR", "ELOOP")


class _Command(TyperCommand):
    """A command whose help shows a flag as a flag."""

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if option is not None:
            option.metavar = ""
        return option


class _Lazy(TyperCommand):
    """Stands for a command until it is run."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        from igr.experiments.training.compute import flushed_denormals, keep_memory

        keep_memory()
        context = _load(str(self.name)).make_context(info_name, args, parent, **extra)
        context.with_resource(flushed_denormals())  # here too, so that all threads are started so
        return context


def _load(name: str) -> Any:
    module = importlib.import_module(f"igr.experiments.cli.{name}")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    examples = "\n\n".join(["Examples:", *module.EXAMPLES])
    app.command(name, cls=_Command, help=COMMANDS[name], epilog=examples)(getattr(module, name))
    return typer.main.get_command(app)


def _group() -> Any:
    app = typer.Typer(
        name="igr",
        help="Discrete variational autoencoders trained with invertible Gaussian reparameterization.",
        epilog="\n\n".join(
            ["Examples:", "igr demo", "igr vae --dataset mnist --family gs --out runs/mnist"]
        ),
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback(invoke_without_command=True)
    def root(
        context: typer.Context,
        version: Annotated[
            bool, typer.Option("--version", metavar="", help="Print the version and exit.")
        ] = False,
    ) -> None:
        if version:
            say(f"igr {igr.__version__}")
            raise typer.Exit
        if context.invoked_subcommand is None:
            say(context.get_help())

    group: Any = typer.main.get_command(app)
    for name, text in COMMANDS.items():
        group.add_command(_Lazy(name, help=text), name)
    return group


def run(arguments: Sequence[str]) -> None:
    """Run the command line."""
    console.prepare()
    try:
        code = _group().main(list(arguments), prog_name="igr", standalone_mode=False)
        if code == 130:  # what newer versions of typer make of Ctrl-C
            raise KeyboardInterrupt
        sys.stdout.flush()
    except Interrupted as stopped:
        fail(f"stopped after epoch {stopped}; the same command goes on from there", 130)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except _ClickException as error:
        fail(error.format_message())
    except UserError as error:
        fail(str(error))
    except BrokenPipeError:
        # Whoever read our output has gone; say nothing more, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno not in [getattr(errno, name, None) for name in _ERRNOS]:
            raise
        fail(f"{error.strerror}: {error.filename or 'standard output'}")
