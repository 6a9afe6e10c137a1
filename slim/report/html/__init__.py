"""report.html: a run or a sweep as one file that needs nothing else: text, tables, figures and what draws them."""

from __future__ import annotations

from slim.report.html.jobs import Job, jobs_page
from slim.report.html.run import run_page

__all__ = ["Job", "jobs_page", "run_page"]
