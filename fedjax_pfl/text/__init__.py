"""Universal label embeddings: one frozen vector for each label's name, the same on every client.

FedLGT (Liu, Lin, Yang, Wang, AAAI 2024, arXiv 2312.07165, section "Universal Label Embedding") takes them from a frozen
CLIP text encoder. `label_table(config.text, class_names)` gets them from an .npz file, from the small table of the
package, or from an encoder of Hugging Face run in Flax; `python launch.py --mode=embed` writes such a file.
"""

from fedjax_pfl.text.tables import Table, label_table, nearest_pairs, project, save, states_table

__all__ = ["Table", "label_table", "nearest_pairs", "project", "save", "states_table"]
