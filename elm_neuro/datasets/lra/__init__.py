"""Long Range Arena: the published files read as their three loaders read them, and data made here by the published
procedures. Tay et al. 2021, arXiv:2011.04006.
"""

from elm_neuro.datasets.lra._batches import TokenBatch, TokenDataset, token_events
from elm_neuro.datasets.lra._cache import cached, content_key
from elm_neuro.datasets.lra._digits import read_digits
from elm_neuro.datasets.lra._grey import to_grey, to_levels
from elm_neuro.datasets.lra._images import read_image
from elm_neuro.datasets.lra._listops_file import read_listops, write_listops
from elm_neuro.datasets.lra._listops_made import MadeListOps, make_listops
from elm_neuro.datasets.lra._listops_trees import ListOpsSettings
from elm_neuro.datasets.lra._pathfinder_blocks import make_pathfinder
from elm_neuro.datasets.lra._pathfinder_files import read_pathfinder, write_pathfinder
from elm_neuro.datasets.lra._pathfinder_made import Drawing, draw_pathfinder
from elm_neuro.datasets.lra._retrieval import read_retrieval
from elm_neuro.datasets.lra._sequences import TokenSequences
from elm_neuro.datasets.lra._splits import held_out, image_split, pathfinder_split
from elm_neuro.datasets.lra._text import read_text
from elm_neuro.datasets.lra._vocabulary import Convention, Vocabulary

__all__ = [
    "Convention",
    "Drawing",
    "ListOpsSettings",
    "MadeListOps",
    "TokenBatch",
    "TokenDataset",
    "TokenSequences",
    "Vocabulary",
    "cached",
    "content_key",
    "draw_pathfinder",
    "held_out",
    "image_split",
    "make_listops",
    "make_pathfinder",
    "pathfinder_split",
    "read_digits",
    "read_image",
    "read_listops",
    "read_pathfinder",
    "read_retrieval",
    "read_text",
    "to_grey",
    "to_levels",
    "token_events",
    "write_listops",
    "write_pathfinder",
]
