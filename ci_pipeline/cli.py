"""The `ci-pipeline` command. Imports happen inside the commands: `--help`, completion and `notify` start at once."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ci_pipeline.cli_oot import oot

if TYPE_CHECKING:
    from ci_pipeline.model import CiRun
    from ci_pipeline.profile import Profile
    from ci_pipeline.services import Services
    from ci_pipeline.whole_runs import ProcessedRun

SHELLS = ("bash", "zsh", "fish")


class OneLineErrors(click.Group):
    """What our own exceptions and the operating system say is one line for a person; any other exception is a bug."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            ours = type(error).__module__.startswith("ci_pipeline.") or isinstance(error, OSError)
            if not ours or ctx.params["verbose"] or isinstance(error, BrokenPipeError):
                raise  # click ends quietly when nobody reads on: `| head`
            text = str(error)
            if isinstance(error, OSError) and error.filename:
                text = f"{error.filename}: {error.strerror}"
            click.echo(f"Error: {text}", err=True)
            ctx.exit(2 if type(error).__name__ == "SettingsError" else 1)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="ci-pipeline")
@click.option("-v", "--verbose", count=True, help="Log what is done; twice: every detail.")
def main(verbose: int) -> None:
    """Turns what CI runs leave behind into one truthful report and a history that can be asked.

    Where things are is said by environment variables: `ci-pipeline check-config --all` names them. Nothing needs to be
    set to try it: `ci-pipeline up` runs everything on this machine.

    \b
    Completion of commands and options:
      bash   eval "$(ci-pipeline completion bash)"         in ~/.bashrc
      zsh    eval "$(ci-pipeline completion zsh)"          in ~/.zshrc
      fish   ci-pipeline completion fish | source          in ~/.config/fish/config.fish
    """
    if verbose:
        import logging

        logging.basicConfig(level=logging.DEBUG if verbose > 1 else logging.INFO, format="%(levelname)s %(message)s")


@main.command()
@click.argument("matrix", default="")
def notify(matrix: str) -> None:
    """Report one test job, as a workflow step.

    Reads the downloaded artifacts in the working directory. MATRIX is the job's matrix of folders, as JSON or as
    Python prints it; leave it out for a job without one.

    Exits with 0 when the report went out, with 1 when Slack refused it, and with 2 when a setting is missing without
    which nothing can be posted.

    \b
    Examples:
      CI_TEST_JOB=run_models_gpu ci-pipeline notify '["models/bert", "models/gpt2"]'
      CI_TEST_JOB=run_pipelines_torch_gpu ci-pipeline notify
    """
    from ci_pipeline.second_process import second_process

    with second_process() as start:
        from ci_pipeline import notify

        status = notify.main(matrix, start)
    sys.exit(status)


@main.command()
@click.argument("run_ids", nargs=-1, type=int, metavar="[RUN_ID]...")
@click.option("--post/--no-post", default=True, help="Whether Slack hears of it. [default: post]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per CI run.")
def ingest(run_ids: tuple[int, ...], post: bool, as_json: bool) -> None:
    """Process CI runs now, without Dagster.

    Those named, or all that are new, or that were begun and not ended. What could not be delivered before goes first.

    \b
    Examples:
      ci-pipeline ingest
      ci-pipeline ingest 19500000001 --no-post
    """
    from ci_pipeline import pipeline, whole_runs

    services = _services()
    for what, place in pipeline.deliver_pending(services) if post else ():
        click.echo(f"Kept before: {place.about(what)}", err=True)
    runs = map(services.source.run, run_ids) if run_ids else whole_runs.new_runs(services)
    _process(list(runs), services, post=post, as_json=as_json)


@main.command()
@click.option("--limit", type=click.IntRange(min=1), help="End after this many CI runs.")
@click.option("--post/--no-post", default=None, help="Whether Slack hears of it. [default: CI_PIPELINE_BACKFILL_POSTS]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per CI run.")
def backfill(limit: int | None, post: bool | None, as_json: bool) -> None:
    """Process all that the source has, oldest first.

    Again is safe: the same rows, the same files.

    \b
    Examples:
      ci-pipeline backfill --limit 30
      CI_PIPELINE_SOURCE=github ci-pipeline backfill
    """
    from ci_pipeline import whole_runs

    services = _services()
    runs = list(islice(whole_runs.all_runs(services), limit))
    _process(runs, services, post=services.settings.backfill_posts if post is None else post, as_json=as_json)


@main.command()
@click.argument("run_id", type=int, required=False)
@click.option("--post", is_flag=True, help="Deliver it too: edits the message that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON instead of the message.")
def report(run_id: int | None, post: bool, as_json: bool) -> None:
    """Show the report of one CI run.

    The one named, or the newest.

    \b
    Examples:
      ci-pipeline report
      ci-pipeline report 19510000001 --json | jq .test_jobs
    """
    from ci_pipeline import whole_runs

    services = _services()
    run = services.source.run(run_id) if run_id else whole_runs.newest_run(services)
    if services.is_processed(run.key) and not post:
        processed = whole_runs.processed_run(run.key, services)
    else:
        with _progress(f"CI run {run.run_id}", quiet=as_json) as advance:
            processed = whole_runs.process_run(run, services, post=post, progress=advance)
    if as_json:
        click.echo(json.dumps(_summary(processed), ensure_ascii=False))
        return
    from ci_pipeline.publish import terminal

    for thread in processed.threads.values():
        terminal.draw(thread, _console())


@main.command("check-config")
@click.option("-a", "--all", "defaults", is_flag=True, help="Name every variable, also those that are not set.")
@click.option("--connect", is_flag=True, help="Also ask each service that is set whether it lets us in.")
@click.option("--json", "as_json", is_flag=True, help="Print it as one JSON object.")
def check_config(defaults: bool, connect: bool, as_json: bool) -> None:
    """Say what is set, what is missing, what follows.

    Secrets are masked. Exits with 1 when something is wrong. With --connect it takes some ten seconds at most, and
    writes and posts nothing.

    \b
    Examples:
      ci-pipeline check-config --all
      ci-pipeline check-config --connect
    """
    from ci_pipeline import check_config

    with _console(stderr=True).status("Asking the services …") if connect else nullcontext():
        found = check_config.check(connect=connect)
    if as_json:
        click.echo(json.dumps(found.as_json(), ensure_ascii=False))
    else:
        check_config.draw(found, _console(), defaults=defaults)
    sys.exit(1 if found.problems else 0)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=3002, show_default=True, type=click.IntRange(0, 65535))
@click.option("--path", type=click.Path(path_type=Path), help="Its folder. [default: <home>/warehouse]")
def warehouse(host: str, port: int, path: Path | None) -> None:
    """Serve the embedded warehouse.

    It is chDB behind ClickHouse's HTTP interface.

    \b
    Example:
      ci-pipeline warehouse & export CI_PIPELINE_WAREHOUSE_URL=http://127.0.0.1:3002
    """
    from ci_pipeline.settings import load_settings
    from ci_pipeline.warehouse import embedded

    embedded.serve(path or load_settings().home / "warehouse", host, port)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=3001, show_default=True, type=click.IntRange(0, 65535))
@click.option("--pages/--no-pages", default=True, help="Whether the pages are served. [default: pages]")
@click.option("--relay/--no-relay", default=True, help="Whether callbacks and webhooks are taken. [default: relay]")
@click.option(
    "--hud-api/--no-hud-api", default=True, help="Whether results of relays elsewhere are taken. [default: hud-api]"
)
def serve(host: str, port: int, pages: bool, relay: bool, hud_api: bool) -> None:
    """Serve the pages, and out-of-tree CI's relay and HUD API.

    Who may report is said by CI_PIPELINE_OOT_ALLOWLIST. Prometheus finds /metrics, load balancers /readyz.

    \b
    Examples:
      CI_PIPELINE_OOT_ALLOWLIST=allowlist.yml ci-pipeline serve
      ci-pipeline serve --no-pages --no-hud-api --host 0.0.0.0 --port 8080
    """
    import uvicorn

    from ci_pipeline.hud.app import create_server
    from ci_pipeline.profile import load_profile
    from ci_pipeline.settings import load_oot_settings

    if not (pages or relay or hud_api):
        raise click.UsageError("--no-pages, --no-relay and --no-hud-api leave nothing to serve")
    settings = load_oot_settings()
    app = create_server(settings, load_profile(settings.profile), pages=pages, relay=relay, hud_api=hud_api)
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise click.ClickException(f"cannot listen on {host}:{port}: {error.strerror}: choose another --port") from None
    shown = f"[{host}]" if ":" in host else host
    click.echo(f"Serving on http://{shown}:{listening.getsockname()[1]} (Ctrl-C stops it)", err=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False))
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listening])
    if not server.started:
        raise SystemExit(1)  # the log says why


def _port(part: str, default: int, of: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    envvar, port = f"{part.upper()}_PORT", click.IntRange(1, 65535)
    return click.option(
        f"--{part}-port",
        default=default,
        envvar=envvar,
        type=port,
        show_default=True,
        show_envvar=True,
        help=f"Port of {of}.",
    )


@main.command()
@click.option("--once", is_flag=True, help="Make the reports of what is in the inbox, then exit.")
@click.option("--sample/--no-sample", default=True, help="Whether the bundled CI runs are put into the inbox.")
@_port("dagster", 3000, "Dagster")
@_port("hud", 3001, "the pages")
@_port("warehouse", 3002, "the warehouse")
def up(once: bool, sample: bool, dagster_port: int, hud_port: int, warehouse_port: int) -> None:
    """Run everything on this machine.

    Warehouse, Dagster and the pages, all on loopback; Ctrl-C stops them. The first start puts three bundled CI runs
    into the inbox, to have something to look at; a later start goes on from there.

    \b
    Examples:
      ci-pipeline up
      ci-pipeline up --once
      CI_PIPELINE_HOME=~/ci ci-pipeline up --dagster-port 4000
    """
    from ci_pipeline import up

    sys.exit(up.main(once=once, sample=sample, ports=up.Ports(dagster_port, hud_port, warehouse_port)))


@main.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print your shell's completion script.

    \b
    Example:
      eval "$(ci-pipeline completion bash)"
    """
    from click.shell_completion import get_completion_class

    complete = get_completion_class(shell)
    assert complete is not None, shell
    click.echo(complete(main, {}, "ci-pipeline", "_CI_PIPELINE_COMPLETE").source())


main.add_command(oot)


def _process(runs: Sequence[CiRun], services: Services, *, post: bool, as_json: bool) -> None:
    """One after the other. A run that cannot be processed does not stop the others; the command then ends with 1."""
    from ci_pipeline import whole_runs
    from ci_pipeline.publish.slack import SlackError
    from ci_pipeline.sources import SourceError

    if not runs:
        click.echo(f"No new CI run in {services.settings.source_uri}", err=True)
    failed = False
    for number, run in enumerate(runs, 1):
        with _progress(f"CI run {run.run_id} ({number} of {len(runs)})", quiet=as_json) as advance:
            try:
                processed = whole_runs.process_run(run, services, post=post, progress=advance)
            except (SourceError, SlackError) as error:
                click.echo(f"Error: CI run {run.run_id}: {error}", err=True)
                failed = True
                continue
        _tell(processed, services.profile, as_json)
    if failed:
        sys.exit(1)


def _services() -> Services:
    from ci_pipeline.profile import load_profile
    from ci_pipeline.services import Services
    from ci_pipeline.settings import load_settings

    settings = load_settings()
    return Services(settings, load_profile(settings.profile))


def _console(stderr: bool = False) -> Any:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


@contextmanager
def _progress(title: str, *, quiet: bool) -> Generator[Callable[[int, int, str], None] | None]:
    """A progress bar on standard error, where a person looks; None where a script reads."""
    console = _console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.fields[title]}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=console, transient=True) as bar:
        task = bar.add_task("", total=None, title=title)
        yield lambda done, total, name: bar.update(task, completed=done, total=total, description=name)


def _summary(processed: ProcessedRun) -> dict[str, Any]:
    """What a script asks of a processed run."""
    from dataclasses import asdict

    run = processed.run
    return {
        "repository": run.repository,
        "run_id": run.run_id,
        "run_attempt": run.run_attempt,
        "workflow": run.workflow_name,
        "head_sha": run.head_sha,
        "html_url": run.html_url,
        "test_jobs": {
            report.test_job: {
                "complete": not report.problems,
                "problems": [asdict(problem) for problem in report.problems],
                "results": report.results,
                "diff": [{**row._asdict(), "since": row.since and row.since.isoformat()} for row in report.diff],
            }
            for report in processed.reports
        },
        "delivered": list(processed.delivered),
    }


def _tell(processed: ProcessedRun, profile: Profile, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(_summary(processed), ensure_ascii=False))
        return
    click.echo(f"{profile.run_title(processed.run)} ({processed.run.key})")
    for line in processed.delivered:
        click.echo(f"  {line}")


if __name__ == "__main__":
    main(prog_name="ci-pipeline")
