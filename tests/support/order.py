"""The order in which the files of a whole run begin: the longest first, so that none begins when the others end.

A file runs in one process (``--dist loadfile``), and the processes take files in the order of collection. Durations
change little by little, and a wrong place costs a little time and nothing else: ``make test ARGS='--durations=0'``
tells them.
"""

from __future__ import annotations

NAMES = """
batch_crashes seams crashes batches batch_client starter batch_lane batch_lane_crashes mistral_batch page_use
faults_temporal continuation page doctor deploys standalone ways_to_continue faults_machine streams frozen_workers
chat_batch tokens needs drill attempts queue_times health mistral_decoding accept faults_postgres compose lanes
retention webhook_crowd limiter worker llmock openapi delayed_jobs at_once batch_pace pauses storage_reading
redelivery keys http_layer chat_job queue repeated_runs page_feed storage_fence client nginx storage_sealing
upstream_faults odd_streams breaker aimock page_lists replay_editor
"""
LONGEST_FIRST = tuple(f"test_{name}.py" for name in NAMES.split())


def rank(name: str) -> int:
    """The place of a file; those that are not named are short, and come after those that are."""
    return LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST)
