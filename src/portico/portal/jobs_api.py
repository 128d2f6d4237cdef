"""REST API of batch jobs and the clusters that run them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from portico.jobs import Action, Column, Job, JobDetails, JobFilter, JobOptions, JobState, Wanted
from portico.model import Identity
from portico.portal.context import get_context, identify

Who = Annotated[Identity, Depends(identify)]
Short = Annotated[str, Field(max_length=200)]

router = APIRouter(prefix="/api/v1", dependencies=[Depends(identify)])


class JobSubmission(BaseModel):
    """A job to submit: ``script``, or ``path`` of one's own file. What is left out the script or the site decides."""

    model_config = ConfigDict(extra="forbid")

    script: str = Field("", max_length=4 << 20)
    path: str = Field("", max_length=4096)
    name: Short = ""
    partition: Short = ""
    account: Short = ""
    qos: Short = ""
    nodes: int = Field(0, ge=0, le=100_000)
    tasks: int = Field(0, ge=0, le=10_000_000)
    cores: float = Field(0, ge=0)
    memory_gb: float = Field(0, ge=0)
    hours: float = Field(0, ge=0)
    gres: Short = ""
    constraint: Short = ""
    reservation: Short = ""
    array: Short = ""
    dependency: Short = ""
    folder: str = Field("", max_length=1024)
    output: str = Field("", max_length=1024)
    error: str = Field("", max_length=1024)
    begin_after_s: float = Field(0, ge=0)
    exclusive: bool = False
    requeue: bool = False
    held: bool = False
    notify: bool = False

    def read(self) -> Wanted:
        """Return it as the jobs' service takes it."""
        values = self.model_dump()
        own = {name: values.pop(name) for name in ("script", "path", "cores", "memory_gb", "hours", "notify")}
        return Wanted(**own, options=JobOptions(**values))


class LimitChange(BaseModel):
    """A change of a job's time limit."""

    model_config = ConfigDict(extra="forbid")

    hours: float


def render_job(job: Job) -> dict[str, Any]:
    """Return a job as the API tells it; times in ISO 8601, UTC."""
    return {
        **asdict(job),
        "core_hours": round(job.core_hours, 3),
        "core_hours_at_limit": None if job.core_hours_at_limit is None else round(job.core_hours_at_limit, 3),
    }


def _render_details(details: JobDetails | None) -> dict[str, Any] | None:
    return asdict(details) if details else None


@router.get("/clusters")
async def list_clusters(request: Request, who: Who) -> list[dict[str, Any]]:
    """List the clusters that sessions and jobs can run on."""
    context = get_context(request)
    takes_jobs = {one.name for one in context.jobs.clusters}
    return [
        {"name": one.name, "title": one.title, "kind": one.kind, "jobs": one.name in takes_jobs}
        for one in context.sessions.clusters
    ]


@router.get("/job-templates")
async def list_templates(request: Request, who: Who) -> list[dict[str, str]]:
    """List scripts to begin a job with."""
    return [asdict(one) for one in get_context(request).jobs.templates.list()]


@router.get("/clusters/{cluster}/offers")
async def list_offers(request: Request, who: Who, cluster: str) -> list[dict[str, Any]]:
    """Say what one may ask for, partition by partition."""
    return [asdict(offer) for offer in await get_context(request).jobs.find_offers(who, cluster)]


@router.get("/clusters/{cluster}/nodes")
async def list_nodes(request: Request, who: Who, cluster: str) -> list[dict[str, Any]]:
    """List the nodes, with what they have and what is held."""
    return [asdict(node) for node in await get_context(request).jobs.list_nodes(cluster)]


@router.get("/clusters/{cluster}/jobs")
async def list_jobs(
    request: Request,
    who: Who,
    cluster: str,
    everyone: bool = False,
    state: JobState | None = None,
    partition: Annotated[str, Query(max_length=200)] = "",
    user: Annotated[str, Query(max_length=64)] = "",
    text: Annotated[str, Query(max_length=200)] = "",
    sort: Column = Column.SUBMITTED,
    descending: bool = True,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> dict[str, Any]:
    """List one's own jobs, or everyone's, as the scheduler told them last."""
    wanted = JobFilter(user or None, frozenset({state} if state else ()), partition, text=text)
    found = await get_context(request).jobs.list_jobs(
        who, cluster, wanted, sort, descending=descending, offset=offset, limit=limit, everyone=everyone
    )
    return {
        "jobs": [render_job(job) for job in found.page.jobs],
        "total": found.page.total,
        "offset": found.page.offset,
        "as_of": found.as_of,
        "trouble": found.trouble.to_wire() if found.trouble else None,
    }


@router.post("/clusters/{cluster}/jobs", status_code=201)
async def submit_job(request: Request, who: Who, cluster: str, body: JobSubmission) -> dict[str, str]:
    """Submit a job; ``id`` is empty while the scheduler does not answer: the job is kept, and given to it later."""
    return {"cluster": cluster, "id": await get_context(request).jobs.submit(who, cluster, body.read())}


@router.get("/clusters/{cluster}/history")
async def list_history(
    request: Request, who: Who, cluster: str, days: Annotated[float, Query(gt=0, le=90)] = 7
) -> list[dict[str, Any]]:
    """List one's own jobs that ended, from the accounting, the newest first."""
    return [render_job(job) for job in await get_context(request).jobs.list_history(who, cluster, days)]


@router.get("/clusters/{cluster}/jobs/{job_id}")
async def read_job(request: Request, who: Who, cluster: str, job_id: str) -> dict[str, Any]:
    """Describe a job: what it asked for, what it uses, and what can be done to it."""
    view = await get_context(request).jobs.view(who, cluster, job_id)
    return {**render_job(view.job), "details": _render_details(view.details), "actions": list(view.actions)}


@router.get("/clusters/{cluster}/jobs/{job_id}/script")
async def read_script(request: Request, who: Who, cluster: str, job_id: str) -> dict[str, str]:
    """Return a job's script, while the scheduler keeps it."""
    return {"text": await get_context(request).jobs.read_script(who, cluster, job_id)}


@router.get("/clusters/{cluster}/jobs/{job_id}/output")
async def read_output(
    request: Request,
    who: Who,
    cluster: str,
    job_id: str,
    error: bool = False,
    lines: Annotated[int, Query(ge=1, le=2000)] = 200,
) -> dict[str, str]:
    """Return the last lines of what a job has written."""
    return {"text": await get_context(request).jobs.tail(who, cluster, job_id, error=error, lines=lines)}


@router.post("/clusters/{cluster}/jobs/{job_id}/{action}", status_code=204)
async def act_on_job(request: Request, who: Who, cluster: str, job_id: str, action: Action) -> None:
    """Cancel, hold, release, suspend, resume or requeue a job."""
    await get_context(request).jobs.act(who, cluster, job_id, action)


@router.patch("/clusters/{cluster}/jobs/{job_id}", status_code=204)
async def change_limit(request: Request, who: Who, cluster: str, job_id: str, body: LimitChange) -> None:
    """Change a job's time limit."""
    await get_context(request).jobs.change_limit(who, cluster, job_id, body.hours)
