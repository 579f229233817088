"""Time constants as one value: a test passes other values and patches nothing.

A composition root makes one ``Timings`` and passes it to what it builds. What operators choose is in settings.py; times
that no test replaces stay beside the code that they belong to.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """In seconds. Times that begin with ``webhook_`` are those of one POST to a receiver."""

    # ------------------------------------------------------------------------------------------------- activities

    heartbeat_seconds: float = 1.0
    """Between heartbeats, whatever else happens. Cancellation reaches an activity only with a heartbeat's response
    (sdk-python README, "Heartbeating and Cancellation")."""
    heartbeat_throttle_seconds: float = 1.0
    """The SDK's limit of heartbeats. Its default, 0.8 of the timeout, would delay cancellations."""
    claim_patience_seconds: float = 600.0
    """How long errors of this service in claiming a job are tried again."""
    recording_pauses_seconds: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0, *(15.0,) * 40)
    """Between tries to write how an attempt ended, while the database is away."""
    failure_pause_seconds: float | None = None
    """Between the failure of a call and the next attempt; None: as the job's ``retry.backoff`` says."""
    longest_failure_pause_seconds: float = 30.0
    """The pause up to which an exponential ``retry.backoff`` grows."""
    batch_paused_seconds: float = 60.0
    """A batch that is paused for longer gives its activities back: each of them heartbeats."""
    delivery_start_seconds: float = 60.0
    """For a delivery's try to begin: a dead receiver, or no free webhook worker, must not hold up the end of a job."""

    # --------------------------------------------------------------------------------------------------- sweeper

    sweep_seconds: float = 1.0
    """Between two sweeps."""
    expiry_seconds: float = 0.5
    """Between two looks for jobs whose time in the queue is over."""
    due_seconds: float = 0.25
    """Between two looks for delayed jobs whose ``startAt`` has come: one query, however many wait."""
    unstarted_after_seconds: float = 2.0
    """After this the sweeper starts a job: the process that accepted it normally does so within milliseconds."""
    silent_after_seconds: float = 30.0
    """After this the sweeper checks whether a job that has not moved still has a run."""
    overdue_after_seconds: float = 60.0
    """After this the sweeper starts a run for a delivery: a try takes 15 s at most, so its own run is gone."""

    unkept_seconds: float = 600.0
    """After this the sweeper deletes the content of a response that has ended, is not to be kept, and was not read."""

    schedule_look_seconds: float = 60.0
    """After this the sweeper compares a schedule with Temporal's again: one that Temporal lost is made again, and the
    times of its next runs are read."""

    # -------------------------------------------------------------------------------------------------- database

    database_busy_seconds: float = 5.0
    """How long a statement waits for another's lock, and a caller for its turn to write."""
    database_connect_seconds: float = 5.0
    """For Postgres to take a connection."""
    database_pool_seconds: float = 10.0
    """How long a caller waits for a free connection."""
    search_seconds: float = 3.0
    """After this a search ends that finds many jobs by its words, and few of them by the other filters."""
    writer_retry_pauses_seconds: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5, 1.0)
    """Between the transcript writer's tries while the database is away; the last repeats."""
    reader_retry_seconds: float = 0.5
    """Between the transcript reader's tries while the database is away."""

    # ----------------------------------------------------------------------------------------------- rate limits

    first_throttle_pause_seconds: float = 1.0
    """A lane's pause after the model's first 429 in a row that names none; each further one doubles it."""
    longest_throttle_pause_seconds: float = 60.0
    """The pause up to which it grows."""
    first_outage_wait_seconds: float = 1.0
    """How long an open circuit breaker waits before a job probes the model; each failed probe doubles it."""
    longest_outage_wait_seconds: float = 60.0
    """The wait up to which it grows."""
    worker_lease_seconds: float = 10.0
    """After this the calls of a worker that does not renew its lease no longer count as running in their lanes."""
    lease_renewal_seconds: float = 2.0
    """Between two renewals of a worker's lease."""
    lost_waiter_seconds: float = 15.0
    """A waiting job that is so late with its request no longer counts in the queue: it ended, or no worker is free."""
    queue_look_seconds: float = 1.0
    """Between two queries for the places of all jobs whose place is watched."""

    # ----------------------------------------------------------------------------------------------------- model

    model_late_seconds: float = 10.0
    """How long something may come after the end of an answer without ``[DONE]``, since the last thing that came: usage,
    or more of the answer after all. Servers that leave out ``[DONE]`` close the response, so that hardly any job
    waits."""
    model_sign_of_life_seconds: float = 0.5
    """How often the reader of an answer is notified that its end is being waited for; shorter than any limit on
    silence."""
    model_error_seconds: float = 5.0
    """For the body of an error response: a server that sends none must not hold up the retry."""

    batch_call_seconds: float = 60.0
    """For one call about a batch job or a file, except for transfers."""
    batch_transfer_seconds: float = 3600.0
    """For the upload or the download of one file."""
    batch_silence_seconds: float = 60.0
    """Without a byte in either direction, after which a transfer is given up."""

    batch_first_look_seconds: float = 5.0
    """Until the first look at a batch job; each further pause is half as long again."""
    batch_longest_look_seconds: float = 300.0
    """The pause up to which it grows."""
    batch_late_files_seconds: float = 300.0
    """How long the files of a batch job that has ended may be missing, before its requests go on as live calls."""
    batch_patience_seconds: float = 7200.0
    """How long calls about a batch job may fail, before its requests go on as live calls."""
    batch_withdrawal_seconds: float = 60.0
    """For a batch job that is withdrawn before the deadline to end."""
    batch_margin_seconds: float = 60.0
    """Added to the time that live calls need for what a batch job leaves, before the deadline."""

    # -------------------------------------------------------------------------------------------------- webhooks

    webhook_total_seconds: float = 15.0
    """From the name look-up to the end of the answer (the specification advises 15 to 30 s)."""
    webhook_resolve_seconds: float = 3.0
    """For the look-up of the host's name."""
    webhook_connect_seconds: float = 3.0
    """Of all addresses of a host together."""
    webhook_tls_seconds: float = 5.0
    """For the TLS handshake: a port that accepts and says nothing does not get the whole time."""
    webhook_headers_seconds: float = 10.0
    """From the request to the end of the answer's headers. Look-up, connection and TLS have their own times."""

    # --------------------------------------------------------------------------------------------------- streams

    stream_keep_alive_seconds: float = 15.0
    """After so much silence a stream sends a comment, which keeps proxies from giving up."""
    stream_stuck_seconds: float = 30.0
    """A reader that takes nothing for so long is cut off; it may come back and go on where it was."""
