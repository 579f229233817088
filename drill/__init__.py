"""The drill: break a running service in every way we know, and let an auditor who knows nothing of it judge.

Nothing of the service is imported here: jobs go in by HTTP, and the verdict comes from the raw tables, the simulator's
log, the receiver's log and the readers' logs. Read run.py first, then faults.py.
"""
