"""`synthgen plan`: estimate the time and space of a job."""

import argparse

from synthgen.cli.command import Commands, Result, add_prompt_options, load_prompted_job


def add(commands: Commands) -> None:
    """Add `plan`."""
    sub = commands.add_job(
        "plan", plan_command, "time a few images, and estimate the time and space of the whole job"
    )
    add_prompt_options(sub)
    sub.add_argument(
        "--count",
        action="store_true",
        help="load no weights and time nothing: count the passes of the network, and estimate the "
        "time and price on several kinds of GPU",
    )
    sub.add_argument("--address", help=argparse.SUPPRESS)


def plan_command(args: argparse.Namespace) -> Result:
    """Run the command.

    `--json`: the fields of `synthgen.engine.estimate.Plan`; with `--count` those of `CountedPlan`.
    """
    from dataclasses import asdict

    job, prompt_data = load_prompted_job(args)
    from synthgen.engine.estimate import CountedPlan, Plan, count, plan

    estimate: Plan | CountedPlan = count(job) if args.count else plan(job)
    return 0, {**asdict(estimate), **prompt_data}, estimate.lines()
