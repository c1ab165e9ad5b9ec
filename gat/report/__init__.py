"""Tables, curves, pictures and doubts of a run, made from what lies in its folder and never from memory."""

from gat.report.gallery import GalleryItem, Panel, write_gallery
from gat.report.page import write_report

__all__ = ["GalleryItem", "Panel", "write_gallery", "write_report"]
