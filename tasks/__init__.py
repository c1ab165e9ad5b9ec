"""Tasks, registered by name; their models and data sets are in the rooms below."""

from tasks.classification import ClassificationTask

TASKS = {"classification": ClassificationTask}

__all__ = ["TASKS", "ClassificationTask"]
