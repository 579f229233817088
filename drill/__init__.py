"""The drill: breaks a running service in every known way, and checks invariants from outside.

Nothing of the service is imported here: jobs are submitted over HTTP, and the verdict comes from the raw tables, the
simulator's log, the receiver's log and the readers' logs. Read run.py first, then faults.py.
"""
