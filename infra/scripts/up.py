"""`infra/scripts/up ENVIRONMENT`: an AWS account -> a cluster that has run a job. Repeat it after any failure, and to
bring an environment up to date: what is there already is left as it is.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import boto3
import yaml
from botocore.exceptions import BotoCoreError, ClientError

from cloze.infra.launch.prices import load_prices
from cloze.infra.scripts import cluster, image, preflight, tools
from cloze.infra.scripts.environment import Environment, read_environment
from cloze.infra.scripts.prices import HOURS_A_MONTH, estimated_cluster, idle_costs, needed_quotas
from cloze.infra.scripts.terraform import Root, roots
from cloze.pipeline.core.errors import UserError

_TOOLS = ("terraform", "aws", "helm", "kubectl", "git", "cloze")
_BERT_BASE = ("configs/bert-base.yaml", "--until", "pretrain", "--size", "enwiki=24GB", "--size", "books=4.6GB")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error that the user can fix."""
    parser = argparse.ArgumentParser(prog="infra/scripts/up", description=__doc__)
    parser.add_argument("environment", metavar="ENVIRONMENT", help="a folder of infra/terraform/environments: dev")
    parser.add_argument("--yes", action="store_true", help="create it without asking, once the price is shown")
    options = parser.parse_args(arguments)
    try:
        _up(options.environment, Path.cwd(), asked=not options.yes)
    except (UserError, BotoCoreError, ClientError) as error:
        print(f"up: {error}", file=sys.stderr)
        return 2
    return 0


def _up(name: str, clone: Path, *, asked: bool) -> None:
    preflight.check_tools(_TOOLS)
    environment = read_environment(name, clone)
    builder, commit = preflight.builder(), preflight.commit(clone)
    session = boto3.Session(region_name=environment.region)
    preflight.check_account(session, environment)
    tag = image.tag_of(commit)
    state, data, platform = roots(environment, tag)
    # Whoever has the state of the bucket's own root completes a bucket that was only half made.
    if state.has_local_state or not preflight.bucket_exists(session, environment.state_bucket):
        _apply(state)
    _apply(data)
    platform.init()
    plan = platform.plan()
    preflight.check_quotas(session, needed_quotas(plan))
    _show_price(environment, plan)
    if asked and input(f"create {environment.cluster}? [y/N] ").strip().lower() != "y":
        raise UserError(f"{name}: was not created; repeat this command when you want it")
    platform.apply()
    outputs = platform.outputs()
    cluster.connect(environment)
    digest = image.pushed(session, clone, outputs["image_repository"], commit, builder)
    environment.cluster_file.write_text(outputs["cluster_file"])
    cluster.install_charts(environment, outputs)
    cluster.apply_manifests(environment, outputs["image_repository"], digest, outputs["cluster_file"])
    cluster.smoke_job(environment)
    print(f"""{environment.cluster} is up, and has run a job.
submit a run:     cloze submit RUN --cluster {environment.cluster_file.relative_to(clone)}
see the pages:    kubectl --context={environment.cluster} --namespace=cloze port-forward pod/dagster-0 3000
end everything:   infra/scripts/down {name}""")


def _apply(root: Root) -> None:
    root.init()
    root.plan()
    root.apply()


def _show_price(environment: Environment, plan: dict[str, object]) -> None:
    """The price of an idle hour from the plan, and `cloze plan` of BERT-base on the planned machines."""
    prices = load_prices(str(environment.clone / "configs/prices.yaml"))
    assert prices
    costs = idle_costs(plan, prices)
    for cost in costs:
        print(f"{'no price' if cost.dollars is None else f'{cost.dollars:8.4f}'}  {cost.name}")
    hour = sum(cost.dollars or 0 for cost in costs)
    print(f"{hour:8.4f}  dollars an hour while no job runs ({hour * HOURS_A_MONTH:,.0f} a month); logs, storage and "
          f"traffic are not counted; {prices.machines_date}, configs/prices.yaml")  # fmt: skip
    planned = environment.build / "planned-cluster.yaml"
    planned.write_text(yaml.safe_dump(estimated_cluster(plan), sort_keys=False))
    root = f"root=s3://{environment.bucket}/runs"
    tools.run("cloze", "plan", *_BERT_BASE, "--cluster", str(planned), root)


if __name__ == "__main__":
    sys.exit(main())
