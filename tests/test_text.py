"""Label embeddings: prompts, encoders against transformers' PyTorch models, tables, the cache, and --mode=embed."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from configs import base
from fedjax_pfl import commands, text
from fedjax_pfl.data.files import cache_folder
from fedjax_pfl.errors import UserError
from fedjax_pfl.text import encoders
from fedjax_pfl.text.prompts import prompts
from fedjax_pfl.text.tables import PACKAGE

ROOT = Path(__file__).parents[1]
MERGES = ["t h", "th e</w>", "c o", "co n", "p h", "ph o", "t o</w>", "pho to</w>"]
NAMES = ("cat", "dog", "printed_page")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def section(**options):
    config = base.get_config().text
    config.update(options)
    return config


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def byte_alphabet() -> list[str]:
    """CLIP's letters for the 256 bytes: printable ones stand for themselves, the others count up from 256."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(256 - len(plain))]


def write_clip_tokenizer(folder: Path, merges: list[str]) -> int:
    """vocab.json and merges.txt; returns the number of tokens. The last one ends a text."""
    letters = byte_alphabet()
    words = [*letters, *(c + "</w>" for c in letters), *("".join(m.split()) for m in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    return len(words)


def clip_config(tokens: int):
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=tokens,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=24,
        bos_token_id=tokens - 2,
        eos_token_id=tokens - 1,
        pad_token_id=tokens - 1,
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """A folder with a tiny CLIP text encoder, random Flax weights."""
    folder = tmp_path_factory.mktemp("clip")
    tokens = write_clip_tokenizer(folder, MERGES)
    with encoders._quiet():
        from transformers import FlaxCLIPTextModelWithProjection

        FlaxCLIPTextModelWithProjection(clip_config(tokens)).save_pretrained(folder)
    assert (folder / "flax_model.msgpack").exists()
    return folder


# Encoders ------------------------------------------------------------------------------------------------------------

TEXTS = ["The photo contains cat.", "the photo", "The photo contains a,b,printed_page.", "negative"]


def randomise(model, torch):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    return model.eval()


@pytest.mark.parity
@pytest.mark.parametrize("stored", ["safetensors", "bin", "flax", "whole"])
def test_clip_equals_the_pytorch_model(tmp_path, stored):
    torch = pytest.importorskip("torch")
    with encoders._quiet():
        import transformers
    tokens = write_clip_tokenizer(tmp_path, MERGES)
    config = clip_config(tokens)
    if stored == "whole":  # text and vision together, as the hub has it
        vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8)
        both = transformers.CLIPConfig(
            text_config=config.to_dict(), vision_config={**vision, "patch_size": 4}, projection_dim=24
        )
        model = randomise(transformers.CLIPModel(both), torch)
    else:
        model = randomise(transformers.CLIPTextModelWithProjection(config), torch)
    model.save_pretrained(tmp_path, safe_serialization=stored != "bin")
    if stored == "flax":
        with encoders._quiet():
            flax_model = transformers.FlaxCLIPTextModelWithProjection.from_pretrained(tmp_path, from_pt=True)
            flax_model.save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").unlink()
    assert {"bin": "pytorch_model.bin", "flax": "flax_model.msgpack"}.get(stored, "model.safetensors") in os.listdir(
        tmp_path
    )

    tokenizer = transformers.CLIPTokenizerFast.from_pretrained(tmp_path)
    with torch.no_grad():
        inputs = tokenizer(TEXTS, padding="max_length", max_length=77, return_tensors="pt")
        expected = model.get_text_features(**inputs) if stored == "whole" else model(**inputs).text_embeds
    found = encoders.load(str(tmp_path), "clip")(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 0.1


@pytest.mark.parity
@pytest.mark.parametrize("prefix", ["", "bert."])
def test_bert_with_mean_pooling_equals_the_pytorch_model(tmp_path, prefix):
    torch = pytest.importorskip("torch")
    with encoders._quiet():
        import transformers
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "photo", "contains", "cat", "##s", ".", "negative"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=40,
    )
    model = randomise(transformers.BertForMaskedLM(config) if prefix else transformers.BertModel(config), torch)
    model.save_pretrained(tmp_path)
    tokenizer = transformers.BertTokenizerFast.from_pretrained(tmp_path)
    texts = ["The photo contains cats.", "negative"]
    expected = []
    for line in texts:  # one by one: no padding that could leak
        inputs = tokenizer([line], return_tensors="pt")
        with torch.no_grad():
            bert = model.bert if prefix else model
            expected.append(bert(**inputs).last_hidden_state[0].mean(0).numpy())
    np.testing.assert_allclose(encoders.load(str(tmp_path), "bert")(texts), expected, atol=1e-4)

    table = text.label_table(section(encoder=str(tmp_path), kind="bert", prompt="The photo contains {name}."), ["cats"])
    np.testing.assert_allclose(table.embeddings, unit(np.array(expected[:1])), atol=1e-5)
    assert table.states is not None
    np.testing.assert_allclose(table.states[0], unit(expected[1]), atol=1e-5)


def test_features_do_not_depend_on_the_other_texts_of_a_batch(clip):
    encode = encoders.load(str(clip), "clip")
    many = encode([*TEXTS, *(f"the photo {i}" for i in range(40)), "a " * 60])
    assert many.shape == (45, 24)
    for row, line in enumerate(TEXTS):
        np.testing.assert_allclose(many[row], encode([line])[0], atol=1e-5)


@pytest.mark.real_data
def test_the_tokenizer_gives_the_reference_tokens(tmp_path, real_data):
    file = gzip.decompress(real_data("clip_tokenizer/bpe_simple_vocab_16e6.txt.gz").read_bytes())
    tokens = write_clip_tokenizer(tmp_path, file.decode().split("\n")[1 : 1 + 48894])
    assert tokens == 49408
    clip_config(tokens).save_pretrained(tmp_path)
    with encoders._quiet():
        import transformers

        _, tokenizer = encoders._build(transformers, tmp_path, "clip")
    reference = json.loads(real_data("clip_tokenizer/token_reference.json").read_text())
    assert len(reference) == 112
    for entry in reference:
        assert tokenizer(entry["text"])["input_ids"] == entry["ids"], entry["text"]


def copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def _no_weights(folder):
    (folder / "flax_model.msgpack").unlink()


def _torn_weights(folder):
    path = folder / "flax_model.msgpack"
    path.write_bytes(path.read_bytes()[:5000])


def _no_projection(folder):
    from flax import serialization

    path = folder / "flax_model.msgpack"
    params = serialization.msgpack_restore(path.read_bytes())
    del params["text_projection"]
    path.write_bytes(serialization.msgpack_serialize(params))


def _set(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _safetensors_torn(folder):
    _no_weights(folder)
    (folder / "model.safetensors").write_bytes(b"nothing")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_weights, "has no weights; expected one of flax_model.msgpack, model.safetensors, pytorch_model.bin"),
        (_torn_weights, "flax_model.msgpack is damaged"),
        (_safetensors_torn, "model.safetensors: damaged or not a weights file"),
        (_no_projection, "flax_model.msgpack has no weight 'text_projection/kernel'"),
        (lambda f: _set(f, hidden_size=64), "has shape "),
        (lambda f: _set(f, model_type="gpt2"), "config.json says model_type 'gpt2'"),
        (lambda f: _set(f, eos_token_id=7), "has eos_token_id 7, but the tokenizer's is"),
        (lambda f: (f / "config.json").unlink(), "is not a folder of an encoder (no config.json)"),
        (lambda f: (f / "config.json").write_text("{"), "is not a whole folder of a clip encoder"),
        (lambda f: (f / "merges.txt").unlink(), "is not a whole folder of a clip encoder"),
        (lambda f: (f / "vocab.json").write_text("[]"), "is not a whole folder of a clip encoder"),
    ],
)
def test_a_damaged_encoder_is_one_line(clip, tmp_path, damage, message):
    folder = copy(clip, tmp_path / "encoder")
    damage(folder)
    with pytest.raises(UserError) as caught:
        text.label_table(section(encoder=str(folder)), NAMES)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("config.text.")


def test_a_text_that_is_too_long_is_an_error(clip):
    with pytest.raises(UserError, match=r"config\.text\.prompt: 'The photo contains x.*\.\.\.' has 94 tokens.* 77$"):
        text.label_table(section(encoder=str(clip)), ["cat", "x" * 83])


def test_a_tokenizer_of_another_model_is_an_error(clip, tmp_path):
    folder = copy(clip, tmp_path / "encoder")
    tokens = write_clip_tokenizer(folder, [*MERGES, "n e"])
    _set(folder, eos_token_id=tokens - 1)
    with pytest.raises(UserError, match="they don't belong together"):
        text.label_table(section(encoder=str(folder)), NAMES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(kind="clap"), "config.text.kind: unknown name 'clap' (did you mean 'clip'?)"),
        (dict(encoder="/nowhere/clip"), "config.text.encoder: no such folder: '/nowhere/clip'"),
        (dict(encoder=""), "config.text.encoder: no such folder: ''"),
        (dict(prompt="The photo"), "config.text.prompt: found 'The photo', expected a text with {name} in it"),
        (dict(construction="concatt"), "config.text.construction: unknown name 'concatt' (did you mean 'concat'?)"),
        (dict(construction="avg"), "config.text.subclasses: not set"),
    ],
    ids=str,
)
def test_a_wrong_option_is_one_line(clip, options, message):
    with pytest.raises(UserError) as caught:
        text.label_table(section(**{"encoder": str(clip), **options}), NAMES)
    assert str(caught.value).startswith(message)


def test_without_a_network_one_line_says_what_to_do(tmp_path):
    code = (
        "from configs import base; from fedjax_pfl import errors, text\n"
        "section = base.get_config().text; section.encoder = 'nobody-here/no-such-model'\n"
        "try: text.label_table(section, ['cat'])\n"
        "except errors.UserError as error: print(error)\n"
    )
    for more in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        began = time.monotonic()
        env = {**os.environ, "HF_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), **more}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=env, timeout=60
        )
        assert time.monotonic() - began < 30
        assert done.stdout == (
            "config.text.encoder: can't get 'nobody-here/no-such-model' (no connection to the hub); give "
            "--config.text.embeddings=FILE.npz or a local folder as --config.text.encoder=FOLDER, or run --mode=embed "
            "where there is a network\n"
        ), done.stderr


def test_a_model_of_the_hub_is_downloaded_once(clip, tmp_path, monkeypatch):
    import huggingface_hub

    calls = []

    def download(name, allow_patterns, local_files_only):
        calls.append(local_files_only)
        if local_files_only and len(calls) == 1:
            raise OSError("nothing here yet")
        return str(clip)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda self, name, timeout: None)
    first = encoders.load("some/model", "clip")(NAMES)
    assert calls == [True, False]
    np.testing.assert_array_equal(encoders.load("some/model", "clip")(NAMES), first)
    assert calls == [True, False, True]


# Prompts -------------------------------------------------------------------------------------------------------------


def test_plain_prompts():
    assert prompts(section(), NAMES) == [
        ["The photo contains cat."],
        ["The photo contains dog."],
        ["The photo contains printed_page."],
    ]
    options = section(prompt="{name}: a {name}", capitalise=True, spaces=True)
    assert prompts(options, ["printed_page", "tvMonitor"]) == [
        ["Printed page: a Printed page"],
        ["TvMonitor: a TvMonitor"],
    ]


@pytest.fixture(scope="module")
def flair(tmp_path_factory):
    """A made-up relationship: 30 finer labels of `animal` (counts with ties), 3 of `plant`; and the metadata."""
    folder = tmp_path_factory.mktemp("flair")
    rng = np.random.default_rng(1)
    animals = [f"beast_{i:02d}" for i in range(30)]
    count = {name: int(rng.integers(0, 6)) for name in animals} | {"rose": 4, "ivy": 9, "moss": 0}
    lines = [f"{name} -> animal" for name in rng.permutation(animals)] + [
        f"{n} -> plant" for n in ("moss", "rose", "ivy")
    ]
    (folder / "label_relationship.txt").write_text("\n".join(lines) + "\n\n")
    records = [{"fine_grained_labels": [name], "labels": []} for name, n in count.items() for _ in range(n)]
    (folder / "labels_and_metadata.json").write_text(json.dumps(records))
    order = sorted(sorted(animals, reverse=True), key=lambda name: -count[name])  # stable: names descending within ties
    plants = ["ivy", "rose", "moss"]
    (folder / "label_map_for_text.json").write_text(json.dumps({"animal": order, "plant": plants}))
    return folder, order, plants


def hdf5(folder: Path) -> Path:
    h5py = pytest.importorskip("h5py")
    records = json.loads((folder / "labels_and_metadata.json").read_text())
    counter = Counter(name for record in records for name in record["fine_grained_labels"])
    with h5py.File(folder / "flair.hdf5", "w") as file:
        file["/metadata/fine_grained_label_counter"] = json.dumps(counter)
    return folder / "flair.hdf5"


@pytest.mark.parametrize("source", ["txt and json", "txt and hdf5", "map"])
def test_concat_takes_the_20_commonest_finer_labels(flair, source):
    folder, order, plants = flair
    options = section(construction="concat", subclasses=str(folder / "label_relationship.txt"))
    if source == "map":
        options.subclasses = str(folder / "label_map_for_text.json")
    else:
        options.counts = str(folder / "labels_and_metadata.json" if source == "txt and json" else hdf5(folder))
    assert prompts(options, ["plant", "animal"]) == [
        [f"The photo contains {','.join(plants)}."],
        [f"The photo contains {','.join(order[:20])}."],
    ]


def test_avg_is_the_mean_of_features_that_are_not_normalised(flair, clip):
    folder, order, plants = flair
    options = section(construction="avg", subclasses=str(folder / "label_relationship.txt"), encoder=str(clip))
    table = text.label_table(options, ["plant", "animal"])
    encode = encoders.load(str(clip), "clip")
    for row, finer in enumerate((plants, order)):
        expected = sum(encode([f"The photo contains {name}"])[0] for name in finer) / len(finer)
        np.testing.assert_allclose(table.embeddings[row], expected, atol=1e-5)
    assert (np.abs(np.linalg.norm(table.embeddings, axis=1) - 1) > 0.01).all()


def test_concat_is_normalised(clip, tmp_path):
    (tmp_path / "map.json").write_text(json.dumps({"plant": ["ivy", "rose"]}))
    options = section(construction="concat", subclasses=str(tmp_path / "map.json"), encoder=str(clip))
    expected = unit(encoders.load(str(clip), "clip")(["The photo contains ivy,rose."]))
    np.testing.assert_allclose(text.label_table(options, ["plant"]).embeddings, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("file", "content", "counts", "message"),
    [
        ("r.txt", "rose -> plant\nivy plant\n", "[]", "r.txt, line 2: 'ivy plant', expected 'fine -> coarse'"),
        ("r.txt", "rose -> plants\n", "[]", "has no finer labels of 'plant' (did you mean 'plants'?)"),
        ("r.txt", "rose -> plant\n", None, "config.text.counts: not set; which of the labels in"),
        ("r.txt", "rose -> plant\n", "{", "c.json: not valid JSON"),
        ("r.txt", "rose -> plant\n", '[{"labels": []}]', "is not a list of records with 'fine_grained_labels'"),
        ("m.json", '["rose"]', None, "m.json is not an object of class -> list of finer labels"),
        ("m.json", '{"plant": [1]}', None, "m.json is not an object of class -> list of finer labels"),
        ("m.json", "{", None, "m.json: not valid JSON"),
    ],
)
def test_a_damaged_file_of_finer_labels_is_one_line(tmp_path, file, content, counts, message):
    (tmp_path / file).write_text(content)
    if counts is not None:
        (tmp_path / "c.json").write_text(counts)
    options = section(construction="concat", subclasses=str(tmp_path / file))
    options.counts = "" if counts is None else str(tmp_path / "c.json")
    with pytest.raises(UserError) as caught:
        prompts(options, ["plant"])
    assert message in str(caught.value)
    assert str(caught.value).startswith("config.text.")


def test_a_damaged_hdf5_file_of_counts_is_one_line(tmp_path):
    pytest.importorskip("h5py")
    (tmp_path / "r.txt").write_text("rose -> plant\n")
    (tmp_path / "c.hdf5").write_bytes(b"nothing")
    options = section(construction="concat", subclasses=str(tmp_path / "r.txt"), counts=str(tmp_path / "c.hdf5"))
    with pytest.raises(UserError, match=r"c\.hdf5 has no metadata/fine_grained_label_counter"):
        prompts(options, ["plant"])


# Tables --------------------------------------------------------------------------------------------------------------


def npz(path: Path, **arrays) -> str:
    np.savez(path, **{key: np.array(value) for key, value in arrays.items()})
    return str(path)


def rows(n: int, d: int = 4) -> np.ndarray:
    return np.random.default_rng(n).normal(size=(n, d)) * 5


def test_names_match_whatever_their_case_and_separators(tmp_path):
    values = rows(4)
    path = npz(tmp_path / "t.npz", names=["dining table", "TV_monitor", "cat", "Dog"], embeddings=values)
    table = text.label_table(section(embeddings=path), ["tvmonitor", "Diningtable", "dog", "CAT"])
    assert table.names == ("tvmonitor", "Diningtable", "dog", "CAT")
    assert table.embeddings.dtype == np.float32
    np.testing.assert_allclose(table.embeddings, unit(values[[1, 0, 3, 2]]), atol=1e-6)
    assert table.states is None
    assert table.source == "t.npz (embeddings)"


def test_the_very_name_comes_before_one_that_looks_alike(tmp_path):
    values = rows(3)
    path = npz(tmp_path / "t.npz", names=["air port", "airport", "x"], embeddings=values)
    found = text.label_table(section(embeddings=path), ["airport", "air port"]).embeddings
    np.testing.assert_allclose(found, unit(values[[1, 0]]), atol=1e-6)
    with pytest.raises(UserError, match=r"'Airport' is ambiguous: rows 0, 1 differ"):
        text.label_table(section(embeddings=path), ["Airport"])


BAD = np.ones((2, 3))
BAD[1, 2] = np.nan
PAIR = ["cat", "dog"]


@pytest.mark.parametrize(
    ("arrays", "classes", "message"),
    [
        (
            dict(names=["cats", "cow"], embeddings=rows(2)),
            ["cat", "dog"],
            "no embedding for 'cat' nor for 1 more of the 2",
        ),
        (dict(names=["cats", "cow"], embeddings=rows(2)), ["cat"], "no embedding for 'cat' (did you mean 'cats'?)"),
        (dict(names=[f"n{i}" for i in range(30)], embeddings=rows(30)), ["zebra"], "(none of its 30 names is near)"),
        (dict(names=["cat", "cat"], embeddings=rows(2)), ["cat"], "'cat' is ambiguous: rows 0, 1 differ"),
        (dict(names=PAIR, embeddings=rows(2)), ["cat", "Cat"], "'cat' and 'Cat' would be the same row, 'cat'"),
        (dict(names=PAIR, embeddings=BAD), PAIR, "key 'embeddings': NaN or infinite values in row 1"),
        (dict(names=PAIR, embeddings=np.full((2, 3), np.inf)), PAIR, "NaN or infinite values in row 0"),
        (dict(names=PAIR, embeddings=np.diag([1.0, 0.0])), PAIR, "the embedding of 'dog' is all zeros"),
        (dict(names=PAIR, embeddings=rows(3)), PAIR, "3 rows, but 2 names"),
        (dict(names=PAIR, embeddings=np.ones(2)), PAIR, "shape (2,), expected [labels, width]"),
        (dict(names=PAIR, embeddings=np.ones((2, 0))), PAIR, "shape (2, 0), expected [labels, width]"),
        (dict(names=PAIR, embeddings=np.ones((2, 3), int)), PAIR, "values of type int64, expected floats"),
        (dict(embeddings=rows(2)), PAIR, "has no table; expected 'names' and 'embeddings'"),
        (dict(a=rows(2), a_names=PAIR, b=rows(2), b_names=PAIR), PAIR, "config.text.key: not set, but "),
        (dict(names=PAIR, embeddings=rows(2), states=rows(2)), PAIR, "key 'states': 2 rows, but 0 names"),
        (
            dict(names=PAIR, embeddings=rows(2), states=rows(2), states_names=["negativ", "positive"]),
            PAIR,
            "key 'states': no embedding for 'negative' (did you mean 'negativ'?)",
        ),
        (
            dict(names=PAIR, embeddings=rows(2), states=np.diag([1.0, 0]), states_names=["negative", "positive"]),
            PAIR,
            "key 'states': a state's embedding is all zeros",
        ),
    ],
)
def test_a_wrong_table_is_one_line(tmp_path, arrays, classes, message):
    path = npz(tmp_path / "t.npz", **arrays)
    with pytest.raises(UserError) as caught:
        text.label_table(section(embeddings=path), classes)
    assert message in str(caught.value)
    assert "t.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_key_and_a_missing_file_name_the_nearest(tmp_path):
    path = npz(tmp_path / "t.npz", voc20=rows(2), voc20_names=PAIR, coco=rows(2), coco_names=PAIR)
    with pytest.raises(UserError, match=r"config\.text\.key: .*t\.npz has no table 'voc12' \(did you mean 'voc20'\?\)"):
        text.label_table(section(embeddings=path, key="voc12"), PAIR)
    with pytest.raises(
        UserError, match=r"config\.text\.embeddings: no such file: .*tt\.npz \(did you mean 't\.npz'\?\)"
    ):
        text.label_table(section(embeddings=str(tmp_path / "tt.npz")), PAIR)


def test_the_key_chooses_the_table_and_shared_names_are_found(tmp_path):
    one, many = rows(2), rows(2, 7)
    path = npz(tmp_path / "t.npz", voc_single=one, voc_multi=many, voc_names=PAIR, other=rows(1), other_names=["cow"])
    for key, values in (("voc_single", one), ("voc_multi", many)):
        np.testing.assert_allclose(
            text.label_table(section(embeddings=path, key=key), PAIR).embeddings, unit(values), atol=1e-6
        )


def test_states_come_from_the_same_source_the_package_or_a_file(tmp_path):
    own, other = rows(2), rows(2, 6)
    path = npz(
        tmp_path / "t.npz", names=PAIR, embeddings=rows(2), states=own, states_names=["positive", "negative"]
    )  # the other way round
    np.testing.assert_allclose(text.states_table(section(embeddings=path)), unit(own[::-1]), atol=1e-6)
    file = npz(tmp_path / "s.npz", states=other, states_names=["negative", "positive"])
    np.testing.assert_allclose(text.states_table(section(embeddings=path, states=file)), unit(other), atol=1e-6)
    table = text.label_table(section(embeddings=path, states="package"), PAIR)
    assert table.states is not None
    assert table.states.shape == (2, 384)
    assert table.source == "t.npz (embeddings); states: package.npz"


def test_a_source_without_states_says_where_there_are_some(tmp_path):
    path = npz(tmp_path / "t.npz", names=PAIR, embeddings=rows(2))
    with pytest.raises(UserError, match=r"t\.npz has no states; give .* or --config\.text\.states=package"):
        text.states_table(section(embeddings=path))
    with pytest.raises(UserError, match=r"config\.text\.states: .*t\.npz has no key 'states'"):
        text.states_table(section(embeddings=path, states=path))


def test_the_package_has_digits_and_states():
    table = text.label_table(section(embeddings="package"), "0123456789")
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    same = text.label_table(section(embeddings="package"), words)
    np.testing.assert_array_equal(table.embeddings, same.embeddings)
    assert len(np.unique(table.embeddings, axis=0)) == 10
    assert table.states is not None
    np.testing.assert_allclose(np.linalg.norm(table.states, axis=1), 1, atol=1e-6)
    with np.load(PACKAGE) as file:
        assert "all-MiniLM-L6-v2" in str(file["source"])
        assert str(file["licence"]).startswith("Apache-2.0")


@pytest.mark.real_data
def test_the_package_is_the_real_table(real_data):
    with np.load(real_data("minilm_text_embeddings/minilm_l6_384.npz")) as file:
        table = text.label_table(section(embeddings="package"), file["digits_names"].tolist())
        np.testing.assert_allclose(table.embeddings, file["digits"], atol=1e-6)
        negative, positive = (file["states_names"].tolist().index(word) for word in ("negative", "positive"))
        np.testing.assert_allclose(table.states, file["states"][[negative, positive]], atol=1e-6)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "key", "names", "width"),
    [
        ("clip_text_embeddings/clip_vitb16_voc_coco.npz", "voc12_single", "voc12_names", 512),
        ("clip_text_embeddings/clip_vitb16_voc_coco.npz", "coco171_multi", "coco171_names", 512),
        ("clip_text_embeddings/clip_vitb32_a_cname.npz", "coco", "coco_names", 512),
        ("clip_text_embeddings/clip_vitb32_a_cname.npz", "lvis", "lvis_names", 512),
        ("minilm_text_embeddings/minilm_l6_384.npz", "voc20", "voc20_names", 384),
        ("minilm_text_embeddings/minilm_l6_384.npz", "flair_fine", "flair_fine_names", 384),
    ],
)
def test_real_tables_give_the_right_rows_in_any_order(real_data, name, key, names, width):
    path = real_data(name)
    with np.load(path) as file:
        values, words = file[key].astype(np.float64), file[names].tolist()
    order = np.random.default_rng(0).permutation(len(words))
    asked = [words[i].replace(" ", "_").upper() for i in order]
    table = text.label_table(section(embeddings=str(path), key=key), asked)
    assert table.embeddings.shape == (len(words), width)
    np.testing.assert_allclose(table.embeddings, unit(values[order]), atol=1e-6)
    assert (table.states is not None) == ("minilm" in name)


@pytest.mark.real_data
def test_real_voc_classes_have_real_clip_embeddings(real_data):
    with np.load(real_data("voc2012_sub/voc2012_sub_64x64.npz")) as file:
        names = file["class_names"].tolist()
    path = str(real_data("clip_text_embeddings/clip_vitb16_voc_coco.npz"))
    table = text.label_table(section(embeddings=path, key="voc12_single"), names)
    cosines = table.embeddings @ table.embeddings.T - 2 * np.eye(20)
    near = {name: names[int(np.argmax(row))] for name, row in zip(names, cosines, strict=True)}
    assert [near[name] for name in ("cat", "bus", "bicycle", "chair")] == ["dog", "train", "motorbike", "sofa"]
    mixed = str(real_data("clip_text_embeddings/clip_vitb32_a_cname.npz"))
    table = text.label_table(section(embeddings=mixed, key="oid"), ["bench"])  # twice in the file, with one embedding
    assert table.embeddings.shape == (1, 512)


def test_project_keeps_lengths_and_angles_where_it_widens():
    values = rows(6, 5)
    wide = text.project(values, 9, seed=3)
    assert wide.shape == (6, 9)
    np.testing.assert_allclose(wide @ wide.T, values @ values.T, atol=1e-12)
    np.testing.assert_array_equal(wide, text.project(values, 9, seed=3))
    assert np.abs(wide - text.project(values, 9, seed=4)).max() > 0.1
    assert text.project(values, 5) is values

    narrow = text.project(values, 3)
    columns = text.project(np.eye(5), 3)
    np.testing.assert_allclose(columns.T @ columns, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(narrow, values @ columns, atol=1e-12)
    np.testing.assert_allclose(text.project(values[2], 3), narrow[2], atol=1e-12)  # labels and states alike
    assert text.project(values.astype(np.float32), 3).dtype == np.float32


# The cache -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """The texts that an encoder was asked for."""
    asked, real = [], encoders.load

    def load(name, kind):
        encode = real(name, kind)
        return lambda texts: (asked.append(tuple(texts)), encode(texts))[1]

    monkeypatch.setattr(encoders, "load", load)
    return asked


def test_the_encoder_runs_once(clip, calls):
    first = text.label_table(section(encoder=str(clip)), NAMES)
    assert calls == [tuple(f"The photo contains {name}." for name in NAMES), ("negative", "positive")]
    second = text.label_table(section(encoder=str(clip)), NAMES)
    np.testing.assert_array_equal(text.states_table(section(encoder=str(clip))), first.states)
    assert len(calls) == 2
    np.testing.assert_array_equal(first.embeddings, second.embeddings)
    np.testing.assert_array_equal(first.states, second.states)
    np.testing.assert_allclose(np.linalg.norm(first.embeddings, axis=1), 1, atol=1e-6)


def test_another_prompt_other_labels_or_another_encoder_is_computed_anew(clip, calls, tmp_path):
    options = section(encoder=str(clip))
    text.label_table(options, NAMES)
    text.label_table(section(encoder=str(clip), prompt="a {name}"), NAMES)
    assert calls[-1] == tuple(f"a {name}" for name in NAMES)
    text.label_table(options, NAMES[::-1])
    assert calls[-1][0] == "The photo contains printed_page."
    assert len(calls) == 4
    other = copy(clip, tmp_path / "other")
    text.label_table(section(encoder=str(other)), NAMES)
    assert len(calls) == 6
    (other / "flax_model.msgpack").touch()
    text.label_table(section(encoder=str(other)), NAMES)
    assert len(calls) == 8


def test_a_damaged_cache_is_computed_anew_with_a_word(clip, calls, capsys):
    first = text.label_table(section(encoder=str(clip)), NAMES)
    folder = cache_folder().parent / "text"
    files = sorted(folder.iterdir())
    assert len(files) == 2
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    again = text.label_table(section(encoder=str(clip)), NAMES)
    np.testing.assert_array_equal(first.embeddings, again.embeddings)
    assert len(calls) == 4
    assert capsys.readouterr().err.count("is damaged; computing its label embeddings anew") == 2
    text.label_table(section(encoder=str(clip)), NAMES)
    assert len(calls) == 4


def test_a_cache_that_cannot_be_written_is_only_slow(clip, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert text.label_table(section(encoder=str(clip)), NAMES).embeddings.shape == (3, 24)


# --mode=embed --------------------------------------------------------------------------------------------------------


def test_mode_embed_writes_a_file_that_loads_again(clip, tmp_path, capsys):
    config = base.get_config()
    config.text.encoder = str(clip)
    assert commands.embed(config, str(tmp_path / "run")) == 0
    out = capsys.readouterr().out
    path = tmp_path / "run" / "label_embeddings.npz"
    assert out.startswith("10 labels of width 24 and 2 states from ")
    assert str(path) in out
    assert out.count(" - ") == 3
    assert out.count("\n") == 1
    with np.load(path) as file:
        assert file["names"].tolist() == list("0123456789")
        assert str(file["prompt"]) == "The photo contains {name}."
        assert str(file["encoder"]) == str(clip)
    table = text.label_table(config.text, "0123456789")
    again = text.label_table(section(embeddings=str(path)), "0123456789")
    np.testing.assert_allclose(again.embeddings, table.embeddings, atol=1e-6)
    np.testing.assert_allclose(again.states, table.states, atol=1e-6)
    assert os.listdir(path.parent) == ["label_embeddings.npz"]


def test_a_saved_table_that_is_not_normalised_stays_so(flair, clip, tmp_path):
    options = section(construction="avg", subclasses=str(flair[0] / "label_map_for_text.json"), encoder=str(clip))
    table = text.label_table(options, ["plant", "animal"])
    text.save(tmp_path / "t.npz", table, options)
    again = text.label_table(section(embeddings=str(tmp_path / "t.npz")), ["animal", "plant"])
    np.testing.assert_array_equal(again.embeddings, table.embeddings[::-1])


def test_nearest_pairs_are_the_nearest():
    values = unit(np.array([[1, 0, 0], [0, 1, 0], [0.1, 1, 0], [1, 0, 0.5]])).astype(np.float32)
    found = text.nearest_pairs(text.Table(("a", "b", "c", "d"), values, None, ""), 2)
    assert found == f"b - c {values[1] @ values[2]:.2f}, a - d {values[0] @ values[3]:.2f}"
    two = text.nearest_pairs(text.Table(("a", "b"), values[:2], None, ""))
    assert two == "a - b 0.00"


def test_mode_embed_from_the_command_line(tmp_path):
    flags = [
        "--config=configs/fedbn_digits.py",
        "--mode=embed",
        f"--workdir={tmp_path}",
        "--config.text.embeddings=package",
    ]
    done = subprocess.run([sys.executable, "launch.py", *flags], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("10 labels of width 384 and 2 states from package.npz (embeddings), in ")
    assert text.label_table(section(embeddings=f"{tmp_path}/label_embeddings.npz"), "0123456789").states is not None
