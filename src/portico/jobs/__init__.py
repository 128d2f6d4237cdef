"""Batch jobs: people's own scripts on clusters that take them."""

from portico.jobs.service import ENDS, Jobs, JobsPage, JobView, Wanted
from portico.jobs.templates import Template, Templates
from portico.schedulers.index import Column, JobFilter
from portico.schedulers.protocol import Action, Job, JobDetails, JobOptions, JobState, Node, Offer

__all__ = [
    "ENDS", "Action", "Column", "Job", "JobDetails", "JobFilter", "JobOptions", "JobState", "JobView", "Jobs",
    "JobsPage", "Node", "Offer", "Template", "Templates", "Wanted",
]  # fmt: skip
