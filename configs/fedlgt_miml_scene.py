"""FedLGT on the natural scenes of MIML (desert, mountains, sea, sunset, trees), 8 clients with label-cluster skew."""

from ml_collections import ConfigDict

from configs import base, multilabel


def get_config(variant: str = "fedlgt") -> ConfigDict:
    from configs import fedlgt_voc

    config = fedlgt_voc.get_config()
    config.data.npz.path = "../shared/data/miml_scene/miml_scene_64x64_sub.npz"
    config.text.embeddings = "../shared/data/minilm_text_embeddings/minilm_l6_384.npz"
    config.text.key = "scene5"
    return multilabel.variant(config, variant)
