"""The report of a run, written into its folder."""

from dataclasses import replace

from backflip.core.disk import disk_error
from backflip.core.errors import BackflipError, DataError
from backflip.core.records import Judged, Prompt, Sample
from backflip.cycle.folder import PLAN, RunPath, find_run, has_begun, run_store
from backflip.cycle.plan import read_plan
from backflip.cycle.raters import raters_of
from backflip.policies.plan import STEERING
from backflip.report.alarm import told_alarms
from backflip.report.behind import answers_behind
from backflip.report.data import ReportData
from backflip.report.gather import gather
from backflip.report.page import write_report
from backflip.tasks import TASKS

PAGE = "report.html"


def report_run(run: RunPath) -> ReportData:
    """Write `report.html` into a run's folder and return its figures. A run under way is reported as far as it is.

    >>> import backflip
    >>> data = backflip.report_run("runs/mine")
    >>> data.rounds_done, data.headline.split
    (2, 'final')

    Raises: BackflipError when the run has not begun, or the disk is full; ConfigError for a folder without a run.
    """
    root = find_run(run)
    plan = read_plan(root / PLAN)
    if not has_begun(root, plan):
        raise BackflipError(
            f"{root} has not begun, so there is nothing to report.\nStart it with: backflip run --dir {root}"
        )
    utility = TASKS[plan.task.name].utility(plan.task.weights or None) if plan.task.name in TASKS else None

    def judge(prompt: Prompt, sample: Sample) -> Judged | None:
        return utility.judge(prompt, sample.text, sample.ended) if utility else None

    with run_store(root, plan) as store:
        rounds = store.rounds()
        try:
            learned = raters_of(root, plan, store).raters
        except DataError:  # no votes yet that say anything
            learned = ()
        target = plan.ppo.kl_target if plan.optimise.by in STEERING else None
        data = gather(store, judge=judge, kl_target=target, learned=learned)
        prompts = {p.id: p for p in store.prompts()}
        behind = answers_behind(
            root, [(s.round, s.tick) for s in data.steps], store.samples(purpose="monitor"), prompts
        )
    data = replace(data, alarms=told_alarms(root, rounds), behind=behind)
    try:
        write_report(root / PAGE, data)
    except OSError as e:
        raise disk_error(root / PAGE, e) from e
    return data
