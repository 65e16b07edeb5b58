"""Measurements: one file a question."""

from paceline.engine.threads import wait_briefly

wait_briefly()  # as a node does; torch reads it as it is imported, which is after this
