"""Jobs and clusters: the table, the form, one job, the history, and how full a cluster is."""

from __future__ import annotations

from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import Form, Query, Request
from fastapi.responses import Response

from portico.accounts import Permission, may
from portico.errors import Invalid, NotFound, PorticoError
from portico.jobs import ENDS, Action, Column, Job, JobDetails, JobFilter, JobOptions, JobState, Offer, Wanted
from portico.jobs.samples import draw_line
from portico.model import Identity
from portico.portal.context import get_context
from portico.portal.pages.routers import Who, router, see
from portico.portal.rendering import render

PAGE: Final = 50
LINES: Final = 100
SORTS: Final = (
    (Column.ID, "Id"),
    (Column.NAME, "Name"),
    (Column.STATE, "State"),
    (Column.PARTITION, "Partition"),
    (Column.CORES, "Cores"),
    (Column.USED, "Used"),
    (Column.SUBMITTED, "Submitted"),
)
NUMBERS: Final = ("nodes", "tasks", "cores", "memory_gb", "hours")
TEXTS: Final = (
    "name", "partition", "account", "qos", "reservation", "array", "dependency", "gres", "constraint", "output",
    "error",
)  # fmt: skip
DOING: Final = {
    Action.CANCEL: "Cancel",
    Action.HOLD: "Hold",
    Action.RELEASE: "Release",
    Action.SUSPEND: "Suspend",
    Action.RESUME: "Resume",
    Action.REQUEUE: "Requeue",
}

Short = Annotated[str, Query(max_length=200)]


@router.get("/jobs")
async def show_jobs(
    request: Request,
    who: Who,
    cluster: Short = "",
    everyone: bool = False,
    state: Short = "",
    partition: Short = "",
    text: Short = "",
    sort: Column = Column.SUBMITTED,
    descending: bool = True,
    offset: Annotated[int, Query(ge=0)] = 0,
) -> Response:
    """Show the table of one's own jobs, or everyone's."""
    context = get_context(request)
    place = context.jobs.get_cluster(cluster)
    states = frozenset({JobState(state)} if state in set(JobState) else ())
    found = await context.jobs.list_jobs(
        who,
        place.name,
        JobFilter(states=states, partition=partition, text=text),
        sort,
        descending=descending,
        offset=offset,
        limit=PAGE,
        everyone=everyone,
    )
    query: dict[str, Any] = {"cluster": place.name, "everyone": "1" if everyone else "", "state": state}
    query |= {"partition": partition, "text": text, "sort": sort.value, "descending": int(descending)}

    def link(**changes: Any) -> str:
        return "/jobs?" + urlencode({name: value for name, value in (query | changes).items() if value != ""})

    return render(
        request,
        "jobs.html",
        who,
        found=found,
        cluster=place,
        clusters=context.jobs.clusters,
        everyone=everyone,
        may_see_all=may(who, Permission.JOB_LIST),
        state=state,
        states=list(JobState),
        partition=partition,
        text=text,
        sort=sort,
        descending=descending,
        sorts=SORTS,
        link=link,
        size=PAGE,
        error=found.trouble,
    )


@router.get("/jobs/new")
async def show_form(
    request: Request, who: Who, cluster: Short = "", like: Short = "", template: Short = ""
) -> Response:
    """Show the form to submit a job: empty, from a template, or like an earlier job."""
    jobs = get_context(request).jobs
    place = jobs.get_cluster(cluster)
    given: dict[str, str] = {}
    error: PorticoError | None = None
    if like:
        try:
            given = _fill_like((await jobs.view(who, place.name, like)).job)
            given["script"] = await jobs.read_script(who, place.name, like)
        except PorticoError as trouble:
            error = trouble
    elif template:
        given["script"] = jobs.templates.get(template).script
    return await _show_form(request, who, place.name, given, error)


def _fill_like(job: Job) -> dict[str, str]:
    return {
        "name": "" if job.name.startswith("portico-") else job.name,
        "partition": job.partition,
        "account": job.account,
        "qos": job.qos,
        "nodes": str(job.nodes or ""),
        "hours": f"{job.limit_s / 3600:g}" if job.limit_s else "",
    }


async def _show_form(
    request: Request, who: Identity, cluster: str, given: dict[str, str], error: PorticoError | None
) -> Response:
    jobs = get_context(request).jobs
    offers: list[Offer] = []
    try:
        offers = await jobs.find_offers(who, cluster)
    except PorticoError as trouble:
        error = error or trouble
    return render(
        request,
        "job_new.html",
        who,
        cluster=jobs.get_cluster(cluster),
        clusters=jobs.clusters,
        offers=offers,
        choices=_find_choices(offers),
        given=given,
        templates=jobs.templates.list(),
        error=error,
    )


def _find_choices(offers: list[Offer]) -> list[tuple[str, str, dict[str, list[str]]]]:
    """Return field, label, and what it offers with the partitions in which each is good."""
    accounts: dict[str, list[str]] = {}
    qos: dict[str, list[str]] = {}
    reservations: dict[str, list[str]] = {}
    for offer in offers:
        for account in offer.accounts:
            accounts.setdefault(account, []).append(offer.partition)
        for one in offer.qos:
            qos.setdefault(one.name, []).append(offer.partition)
        for reservation in offer.reservations:
            reservations.setdefault(reservation, []).append(offer.partition)
    return [("account", "Account", accounts), ("qos", "QOS", qos), ("reservation", "Reservation", reservations)]


@router.post("/jobs")
async def submit_job(request: Request, who: Who) -> Response:
    """Submit a job."""
    form = {name: value for name, value in (await request.form()).items() if isinstance(value, str)}
    cluster = form.get("cluster", "")
    jobs = get_context(request).jobs
    try:
        job_id = await jobs.submit(who, cluster, _read_form(form))
    except NotFound as error:
        if not form.get("path"):
            raise
        return await _show_form(request, who, cluster, form, error)
    except PorticoError as error:
        return await _show_form(request, who, cluster, form, error)
    return see(f"/jobs/{jobs.get_cluster(cluster).name}/{job_id}" if job_id else f"/jobs?cluster={cluster}")


def _read_form(form: dict[str, str]) -> Wanted:
    numbers = {name: _parse_number(form, name) for name in NUMBERS}
    texts: dict[str, Any] = {name: form.get(name, "").strip() for name in TEXTS}
    options = JobOptions(**texts, nodes=int(numbers["nodes"]), tasks=int(numbers["tasks"]), held="held" in form)
    path = form.get("path", "").strip()
    script = "" if path else form.get("script", "")
    own = {name: numbers[name] for name in ("cores", "memory_gb", "hours")}
    return Wanted(script, path, **own, options=options, notify="notify" in form)


def _parse_number(form: dict[str, str], name: str) -> float:
    text = form.get(name, "").strip().replace(",", ".")
    try:
        number = float(text) if text else 0.0
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e9:
        raise Invalid(f"{name.replace('_', ' ').capitalize()}: this is not a number.", field=name)
    return number


@router.get("/jobs/history")
async def show_history(
    request: Request, who: Who, cluster: Short = "", days: Annotated[float, Query(gt=0, le=90)] = 7
) -> Response:
    """Show one's own jobs that ended, from the accounting."""
    jobs = get_context(request).jobs
    place = jobs.get_cluster(cluster)
    found: list[Job] = []
    error: PorticoError | None = None
    try:
        found = await jobs.list_history(who, place.name, days)
    except PorticoError as trouble:
        error = trouble
    return render(
        request,
        "job_history.html",
        who,
        jobs=found[:1000],
        total=len(found),
        days=days,
        cluster=place,
        clusters=jobs.clusters,
        core_hours=sum(job.core_hours for job in found),
        error=error,
    )


@router.get("/jobs/{cluster}/{job_id}")
async def show_job(request: Request, who: Who, cluster: str, job_id: str) -> Response:
    """Show a job: its state, what it uses of what it asked for, and the end of what it wrote."""
    jobs = get_context(request).jobs
    view = await jobs.view(who, cluster, job_id)
    outputs: dict[str, str] = {}
    if view.details and view.job.state is not JobState.QUEUED:
        outputs["Output"] = await _tail(request, who, view.details, error=False)
        if view.details.error and view.details.error != view.details.output:
            outputs["Errors"] = await _tail(request, who, view.details, error=True)
    return render(
        request,
        "job.html",
        who,
        job=view.job,
        details=view.details,
        actions=[(action, DOING[action]) for action in view.actions],
        can_change_limit=view.can_change_limit,
        cluster=jobs.get_cluster(cluster),
        outputs=outputs,
        ends=ENDS,
    )


async def _tail(request: Request, who: Identity, details: JobDetails, *, error: bool) -> str:
    try:
        return await get_context(request).jobs.tail_described(who, details, error=error, lines=LINES)
    except PorticoError as trouble:
        return f"({' '.join(part for part in (trouble.message, trouble.why) if part)})"


@router.post("/jobs/{cluster}/{job_id}/limit")
async def change_limit(
    request: Request, who: Who, cluster: str, job_id: str, hours: Annotated[float, Form()]
) -> Response:
    """Change a job's time limit."""
    await get_context(request).jobs.change_limit(who, cluster, job_id, hours)
    return see(f"/jobs/{cluster}/{job_id}")


@router.post("/jobs/{cluster}/{job_id}/do/{action}")
async def act_on_job(request: Request, who: Who, cluster: str, job_id: str, action: Action) -> Response:
    """Cancel, hold, release, suspend, resume or requeue a job."""
    await get_context(request).jobs.act(who, cluster, job_id, action)
    return see(f"/jobs/{cluster}/{job_id}")


@router.get("/clusters/{cluster}")
async def show_cluster(request: Request, who: Who, cluster: str) -> Response:
    """Show how full a cluster is: its nodes, its queue, and the last day."""
    jobs = get_context(request).jobs
    samples = jobs.list_samples(cluster)
    most_cores = max((one.cores for one in samples), default=0)
    most_queued = max((one.queued for one in samples), default=0)
    return render(
        request,
        "cluster.html",
        who,
        cluster=jobs.get_cluster(cluster),
        clusters=jobs.clusters,
        nodes=await jobs.list_nodes(cluster),
        queue=await jobs.count_queue(cluster),
        samples=samples,
        held=draw_line([(one.at, one.cores_held) for one in samples], most_cores),
        queued=draw_line([(one.at, float(one.queued)) for one in samples], float(most_queued)),
        most_cores=most_cores,
        most_queued=most_queued,
    )
