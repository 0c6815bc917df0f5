"""The command ``igr``."""

# ruff: noqa: E402
from __future__ import annotations

from igr.experiments._extra import exit_if_missing

exit_if_missing()

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

import igr
from igr.experiments.cli import console
from igr.experiments.cli.collect import collect
from igr.experiments.cli.console import fail, say
from igr.experiments.cli.demo import demo
from igr.experiments.cli.evaluate import evaluate
from igr.experiments.cli.report import report
from igr.experiments.cli.reproduce import reproduce
from igr.experiments.cli.sweep import sweep
from igr.experiments.cli.vae import vae
from igr.experiments.errors import UserError
from igr.experiments.runs.stopping import Interrupted
from igr.experiments.training.compute import flushed_denormals, keep_memory

app = typer.Typer(
    name="igr",
    help="Discrete variational autoencoders trained with invertible Gaussian reparameterization.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

# What typer raises for a wrong command line; newer versions bring their own copy of click, so it is found by way of
# a class that both export.
_ClickException: Any = typer.BadParameter.__mro__[2]


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        say(console.out, f"igr {igr.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        say(console.out, context.get_help())


for _command in (demo, vae, evaluate, reproduce, sweep, report, collect):
    app.command()(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; what the user can mend is one line on standard error and exit code 2."""
    keep_memory()
    try:
        with flushed_denormals():  # here too, so that all threads are started so
            code = app(
                list(sys.argv[1:] if arguments is None else arguments),
                prog_name="igr",
                standalone_mode=False,
            )
        if code == 130:  # what newer versions of typer make of Ctrl-C
            raise KeyboardInterrupt
        sys.stdout.flush()
    except Interrupted as stopped:
        fail(f"stopped after epoch {stopped}; go on with the same command and --resume", 130)
    except (KeyboardInterrupt, typer.Abort):
        fail("stopped; go on with the same command and --resume", 130)
    except _ClickException as error:
        fail(error.format_message())
    except UserError as error:
        fail(str(error))
    except BrokenPipeError:
        # Whoever read our output has gone; say nothing more, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO):
            raise
        fail(f"{error.strerror}: {error.filename or 'standard output'}")
