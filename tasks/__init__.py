"""Tasks, registered by name; their models and data sets are in the rooms below."""

from tasks.classification import ClassificationTask
from tasks.detection import DetectionTask
from tasks.segmentation import SegmentationTask

TASKS = {
    "classification": ClassificationTask,
    "detection": DetectionTask,
    "segmentation": SegmentationTask,
}

__all__ = ["TASKS", "ClassificationTask", "DetectionTask", "SegmentationTask"]
