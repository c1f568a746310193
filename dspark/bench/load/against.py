"""The simulator held against a measurement: the same systems under the same loads, from the costs and the acceptance measured there."""

from dataclasses import replace
from pathlib import Path

from dspark.bench.load.plan import PLAIN_AGAIN
from dspark.bench.load.results import LoadPoint, LoadReport
from dspark.bench.simulate import Agreement, SimulateOptions, SimulationReport, acceptance_named, compare, setup_named, simulate_with
from dspark.bench.simulator.acceptance import DraftSource
from dspark.bench.simulator.costs import Setup
from dspark.bench.simulator.tally import OperatingPoint
from dspark.errors import ConfigError


def simulate_against(
    report: LoadReport, folder: Path, options: SimulateOptions, setup: str | None = None, acceptance: str | None = None
) -> tuple[SimulationReport, Agreement]:
    """`folder` is the measurement's. `setup` and `acceptance` replace what was measured; policies, loads and lengths of `options` are the
    measurement's. Measured rates are set right for how fast the machine was just then (`LoadPoint.slowness`), because the costs are.
    Raises ConfigError where something is missing.
    """
    if setup is None and report.costs is None:
        raise ConfigError("the measurement holds no costs, as over HTTP; name a set-up", "setup")
    if acceptance is None and report.trace is None:
        raise ConfigError("the measurement was made without a trace of drafts; name an acceptance", "acceptance")
    chosen = report.costs.setup(report.label) if setup is None and report.costs is not None else setup_named(str(setup))
    named = acceptance if acceptance is not None else str(folder / str(report.trace))
    source = acceptance_named(named, None if acceptance is None else report.plan.temperature)
    common = replace(options, setup=setup or "measured", acceptance=acceptance or str(report.trace), poisson=False)
    policies = tuple(policy for policy in report.policies if policy != PLAIN_AGAIN)
    points = [_simulated(point, report, chosen, source, common) for point in report.points if point.policy in policies]
    measured = {(point.policy, point.load): point.tokens_per_second * point.slowness for point in report.points}
    prompt_tokens, output_tokens = round(report.prompt_tokens), report.plan.max_tokens
    own = replace(common, policies=policies, loads=report.loads, prompt_tokens=prompt_tokens, output_tokens=output_tokens)
    return SimulationReport(own, chosen.label, tuple(points)), compare(points, measured)


def _simulated(point: LoadPoint, report: LoadReport, setup: Setup, source: DraftSource, options: SimulateOptions) -> OperatingPoint:
    """One point, with as many rows of prompts for each token as fell into its windows, and with contexts as long as there, in the mean:
    windows may have seen the first part of every answer only."""
    output_tokens = report.plan.max_tokens
    prompt_tokens = round(point.prompt_rows_per_token * output_tokens)
    others = report.prompt_tokens if point.context_tokens is None else point.context_tokens - output_tokens / 2
    own = replace(
        options,
        policies=(point.policy,),
        loads=(point.load,),
        prompt_tokens=prompt_tokens,
        cached_tokens=max(0, round(others) - prompt_tokens),
        output_tokens=output_tokens,
    )
    return simulate_with(setup, source, own).points[0]
