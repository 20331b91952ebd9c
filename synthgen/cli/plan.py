"""`synthgen plan`: tell what a job will take."""

import argparse

from synthgen.cli.command import Commands, Result, load, spoken


def add(commands: Commands) -> None:
    """Add `plan`."""
    sub = spoken(
        commands.add_job(
            "plan", plan_command, "time a few images and tell what the whole job will take"
        )
    )
    sub.add_argument("--address", help=argparse.SUPPRESS)


def plan_command(args: argparse.Namespace) -> Result:
    """`--json`: the fields of `synthgen.engine.estimate.Plan`."""
    from dataclasses import asdict

    job, spoken = load(args)
    from synthgen.engine.estimate import plan

    estimate = plan(job)
    return 0, {**asdict(estimate), **spoken}, estimate.lines()
