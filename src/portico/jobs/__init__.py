"""Batch jobs: people's own scripts on clusters that take them."""

from portico.jobs.service import Jobs, JobsPage, JobView, Wanted, list_examples
from portico.schedulers.index import Column, JobFilter
from portico.schedulers.protocol import Action, Job, JobDetails, JobOptions, JobState, Node, Offer

__all__ = [
    "Action", "Column", "Job", "JobDetails", "JobFilter", "JobOptions", "JobState", "JobView", "Jobs", "JobsPage",
    "Node", "Offer", "Wanted", "list_examples",
]  # fmt: skip
