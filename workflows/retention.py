"""Retention: removes old jobs once an hour."""

from __future__ import annotations

from temporalio import workflow

from domain.names import RETENTION
from domain.payloads import RetentionOrder, RetentionReport
from workflows import options
from workflows.inputs import Input, lenient

with workflow.unsafe.imports_passed_through():
    from activities.retention import RetentionActivities


@workflow.defn(name=RETENTION)
class Retention:
    """Started by the schedule ``chatjobs-retention``, or by hand. The argument is a RetentionOrder."""

    @workflow.run
    @lenient
    async def run(self, start: Input) -> RetentionReport:
        order = start.as_a(RetentionOrder)
        report: RetentionReport = await workflow.execute_activity_method(
            RetentionActivities.remove_old_jobs,
            order,
            summary=f"jobs that ended more than {order.days:g} days ago",
            **options.retention(),
        )
        workflow.set_current_details(f"removed: {report.removed} jobs")
        return report
