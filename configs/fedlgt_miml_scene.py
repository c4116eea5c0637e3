"""FedLGT on MIML's natural scenes (desert, mountains, sea, sunset, trees), 8 clients that each see a few label groups.

Setting: that of configs/fedlgt_voc.py; label embeddings of MiniLM, since the CLIP tables at hand lack these names. The words
after the file's name are those of configs/multilabel.py.
Command: python launch.py --config=configs/fedlgt_miml_scene.py
Measured: not yet run to its end (tests run a round of it).
"""

from ml_collections import ConfigDict

from configs import fedlgt_voc, multilabel

VARIANTS = multilabel.VARIANTS


def get_config(variant: str = "fedlgt") -> ConfigDict:
    config = fedlgt_voc.get_config()
    config.data.npz.path = "../shared/data/miml_scene/miml_scene_64x64_sub.npz"
    config.data.npz.split = "split"
    config.split.label_cluster.groups = 3
    config.text.embeddings = "../shared/data/minilm_text_embeddings/minilm_l6_384.npz"
    config.text.key = "scene5"
    config.text.states = ""
    return multilabel.variant(config, variant)
