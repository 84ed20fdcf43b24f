"""Llama 4's vision tower and images among tokens, against Meta's code. Covers model/vision_llama4.py,
model/towers.py, engine/tower.py, engine/images.py, api/vision.py, api/image_calls.py, convert/vision.py,
convert/models/vision_llama4.py.
"""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from llama4_vision_models import (
    FOLDER,
    PATCH,
    PER_TILE,
    SIZE,
    converted,
    difference,
    expected,
    llama4_vision,
    llm,
    opened,
)

from pyllamacpu import Llama
from pyllamacpu.cli.quantize import quantize
from pyllamacpu.convert.conversion import ConvertOptions
from pyllamacpu.convert.models.vision_llama4 import VisionShape, _interpolated
from pyllamacpu.convert.sources import plan_conversion
from pyllamacpu.engine import tower
from pyllamacpu.engine.batch import Entry
from pyllamacpu.engine.images import ImageCache
from pyllamacpu.engine.leaving import Leaving
from pyllamacpu.engine.tower import TowerFile
from pyllamacpu.errors import (
    Abandoned,
    CheckpointError,
    ImageError,
    ModelError,
    OptionError,
    PyllamacpuError,
    TokenizerError,
)
from pyllamacpu.gguf import GGUFWriter
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.graph.native_plan import NativePlan
from pyllamacpu.images.tiles import Tiles
from pyllamacpu.model.vision_llama4 import placeholders
from pyllamacpu.weights.lazy_tensor import from_array

__all__ = ["llama4_vision", "llm"]
TOLERANCE = 3e-5  # of the spread


def test_a_tower_ends_when_nobody_waits_for_it(llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the slice of its ops that it is in; or at once, when another image has the buffers."""
    monkeypatch.setattr(tower, "_SLICE_OPERATIONS", 1)
    leaving, runs = Leaving(), []
    run = NativePlan.run

    def noted(plan: NativePlan, batch: object, poll: bool) -> None:
        runs.append(plan)
        run(plan, batch, poll)
        if len(runs) == 3:
            leaving.leave()

    monkeypatch.setattr(NativePlan, "run", noted)
    picture = np.random.default_rng(5).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    with leaving.watched(), pytest.raises(Abandoned):
        llm.image_features(picture)
    assert len(runs) == 3
    assert llm.image_features(picture).any() and len(runs) > 10  # others are not concerned

    holding, free = threading.Event(), threading.Event()

    def hold() -> None:
        with llm.vision.tower._turn():
            holding.set()
            free.wait()

    thread, later = threading.Thread(target=hold), Leaving()
    thread.start()
    assert holding.wait(60)
    timer = threading.Timer(0.05, later.leave)
    timer.start()
    try:
        with later.watched(), pytest.raises(Abandoned):
            llm.vision.tower.run("encoder", np.zeros((1, 1), np.float32))
    finally:
        free.set()
        thread.join()
        timer.join()


@pytest.mark.parametrize("layout", ["hf", "meta"])
def test_rows_and_logits_are_those_of_metas_code(layout: str, tmp_path: Path) -> None:
    known = expected()
    with opened(converted(layout, tmp_path)) as llm:
        if layout == "meta":  # params.json names no placeholder, and this vocabulary lacks the released one
            with pytest.raises(ModelError, match="no token for images"):
                llm.logits(known["ids"].tolist(), images=[known["pixels"]])
            llm.vision.ids["patch"] = PATCH
        assert difference(llm.image_features({"pixel_values": known["pixels"]}), known["rows"]) < TOLERANCE
        found = llm.logits(known["ids"].tolist(), images=[known["pixels"]])
        assert difference(found, known["logits"]) < TOLERANCE
        plain = llm.logits(known["ids"].tolist())
        assert difference(plain[20:], known["logits"][20:]) > 0.1  # the image changes what comes after it


def test_tiles_are_images_of_their_own(llm: Llama) -> None:
    known = expected()
    ids, pixels = known["ids"].tolist(), known["pixels"]
    whole = llm.logits(ids, images=[pixels])
    assert np.array_equal(llm.logits(ids, images=[pixels[0], pixels[1:]]), whole)
    assert not np.array_equal(llm.logits(ids, images=[pixels[1], pixels[1:]])[20:], whole[20:])


def test_bits_do_not_depend_on_the_batch(llm: Llama, llama4_vision: Path) -> None:
    """Neither on chunks, nor on threads, nor on what else is read."""
    known = expected()
    whole = llm.logits(known["ids"].tolist(), images=[known["pixels"]])
    with opened(llama4_vision, n_batch=5, n_threads=1) as other:
        assert np.array_equal(other.logits(known["ids"].tolist(), images=[known["pixels"]]), whole)
    ids, held = llm.vision.placed(known["ids"].tolist(), [known["pixels"]])
    engine = llm.engine
    sequences = [engine.sequence() for _ in range(3)]
    entries = [Entry(s, t, "all") for s, t in zip(sequences, ([1, 2, 3], ids, ids[:20]), strict=True)]
    found = engine.step(entries)
    assert np.array_equal(found[3 : 3 + len(ids)], whole)
    assert np.array_equal(found[3 + len(ids) :], whole[:20])
    assert len(held) == 1


def test_images_alone_and_as_lists(llm: Llama) -> None:
    known = expected()
    ids, pixels = known["ids"].tolist(), known["pixels"]
    whole = llm.logits(ids, images=[pixels])
    for same in (pixels, {"pixel_values": pixels.tolist()}, (pixels,)):
        assert np.array_equal(llm.logits(ids, images=same), whole)
    assert np.array_equal(llm.logits(ids, images=None), llm.logits(ids))
    with pytest.raises(ImageError, match="no such file"):
        llm.logits(ids, images=Path("nothing.png"))


def test_a_tower_loads_while_nobody_uses_the_threads(llama4_vision: Path) -> None:
    """Weights are packed by the engine's pool, which has one job at a time."""
    with opened(llama4_vision) as llm:
        with llm.engine.exclusive():
            loading = threading.Thread(target=lambda: llm.vision.tower)
            loading.start()
            loading.join(0.3)
            assert loading.is_alive()
        loading.join()
        assert llm.vision.loaded_bytes


def test_a_model_closed_while_images_are_read(llama4_vision: Path) -> None:
    llm = opened(llama4_vision)
    tiles = np.random.default_rng(1).uniform(-1, 1, (500, 3, SIZE, SIZE)).astype(np.float32)
    ended: list[BaseException] = []

    def read() -> None:
        try:
            llm.image_features(tiles)
        except ModelError as error:
            ended.append(error)

    reading = threading.Thread(target=read)
    reading.start()
    while not llm.vision.loaded_bytes:
        reading.join(0.01)
    llm.close()
    reading.join()
    assert "closed" in str(ended[0])
    with pytest.raises(ModelError, match="closed"):
        llm.image_features(tiles[:1])


def test_an_image_is_embedded_once(llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    tile = np.random.default_rng(1).uniform(-1, 1, (1, 3, SIZE, SIZE)).astype(np.float32)
    first = llm.vision.embed(tile)
    assert len(first.rows) == PER_TILE
    monkeypatch.setattr(type(llm.vision.tower), "encode", lambda *_: pytest.fail("encoded again"))
    assert llm.vision.embed(tile.copy()) is first


def test_ids_of_images() -> None:
    cache = ImageCache(limit_bytes=100)
    a, b = (cache.add(digest, np.full((3, 4), value, np.float32)) for digest, value in ((b"a", 1), (b"b", 2)))
    assert (list(a.ids), list(b.ids)) == ([-1, -2, -3], [-4, -5, -6])
    assert cache.find(-5) == (b"b", 1)
    assert cache.check_ids([5, -6, 0], 9) == [5, -6, 0]
    for wrong in ([-7], [9], ["x"]):
        with pytest.raises(TokenizerError):
            cache.check_ids(wrong, 9)
    with pytest.raises(OptionError, match="3 rows, not 2"):
        cache.first_id(b"a", 2)
    c = cache.add(b"c", np.zeros((3, 4), np.float32))  # a is let go, unless somebody holds it
    assert cache.of_tokens([-1, 7, -9]) == [a, c]
    del a
    with pytest.raises(OptionError, match="no longer in memory"):
        cache.of_tokens([-1])
    assert list(cache.add(b"a", np.ones((3, 4), np.float32)).ids) == [-1, -2, -3]  # for good


def test_placeholders_are_those_of_metas_chat_format(llm: Llama) -> None:
    ids = {"start": 1, "end": 2, "column": 3, "row": 4, "image": 5, "patch": 6}
    config, pixels, patch = llm.vision.opened.config, expected()["pixels"], [6] * PER_TILE
    assert placeholders(config, ids, Tiles(pixels[:1], 1, 1)) == [1, 5, *patch, 2]
    two = placeholders(config, ids, Tiles(pixels, 1, 2, has_global=True))
    assert two == [1, *patch, 3, *patch, 4, 5, *patch, 2]
    high = placeholders(config, ids, Tiles(pixels, 2, 1, has_global=True))
    assert high == [1, *patch, 4, *patch, 4, 5, *patch, 2]


def test_wrong_images_and_prompts(llm: Llama) -> None:
    known = expected()
    with pytest.raises(
        OptionError, match=r"12 placeholders .token 99., and the images take 8: 4 for each tile"
    ):
        llm.logits(known["ids"].tolist(), images=[known["pixels"][:2]])
    with pytest.raises(ImageError, match=r"float32 of shape \(3, 3, 56, 55\); .*\(n, 3, 56, 56\)"):
        llm.image_features(known["pixels"][..., 1:])
    with pytest.raises(ImageError, match="not finite"):
        llm.image_features(np.full((1, 3, SIZE, SIZE), np.nan, np.float32))
    with pytest.raises(ImageError, match="no pixel_values"):
        llm.image_features({"pixels": 1})
    shape = (1, 3, SIZE, SIZE)
    for array in (np.zeros((9, 9, 3)), np.zeros((9, 9), np.uint16)):
        with pytest.raises(ImageError, match=rf"is {array.dtype} of shape .* pictures, uint8 of \(h, w\)"):
            llm.image_features(array)
    with pytest.raises(ImageError, match="an array of complex64"):
        llm.image_features(np.ones(shape, np.complex64))
    with pytest.raises(ImageError, match=r"no pixel_values$"):
        llm.image_features({})
    for wrong in (
        np.full(shape, "a"),
        np.ones(shape, complex),
        {"pixel_values": [[1], [2, 3]]},
        io.BytesIO(),
    ):
        with pytest.raises(ImageError):
            llm.image_features(wrong)
    with pytest.raises(ImageError, match="not finite"):
        llm.image_features(np.full(shape, 1e300))
    with pytest.raises(ModelError, match="that are not finite"):
        llm.image_features(np.full(shape, 1e38, np.float32))
    with pytest.raises(TokenizerError):
        llm.logits([-1, 5])


def test_towers_that_are_missing_or_of_another_model(llama4_vision: Path, tmp_path: Path) -> None:
    alone = tmp_path / "text.gguf"
    alone.write_bytes(llama4_vision.read_bytes())
    tower = llama4_vision.with_name(f"mmproj-{llama4_vision.name}")
    missing = r"vision tower is missing.*mmproj.*convert FOLDER --mmproj"
    with opened(alone) as llm, pytest.raises(OptionError, match=missing):
        llm.image_features(expected()["pixels"])
    beside = tmp_path / "mmproj-damaged.gguf"
    beside.write_bytes(tower.read_bytes()[:100])
    with (
        opened(alone) as llm,
        pytest.raises(OptionError, match=r"no vision tower in its folder fits: .*damaged"),
    ):
        llm.image_features(expected()["pixels"])
    beside.unlink()
    with opened(alone, mmproj=tower) as llm:
        assert llm.image_features(expected()["pixels"]).shape == (12, 64)
    with opened(llama4_vision, mmproj=False) as llm, pytest.raises(OptionError, match="tower is missing"):
        llm.image_features(expected()["pixels"])
    with GGUFFile.open(tower) as file:
        with pytest.raises(ModelError, match="a model of width 64; this one has 96"):
            TowerFile(file).check_fits("llama4", 96)
        with pytest.raises(ModelError, match="llama4 models does not fit a llama model"):
            TowerFile(file).check_fits("llama", 64)
    with pytest.raises(OptionError, match="no such file"):
        opened(alone, mmproj=tmp_path / "nothing.gguf")
    with pytest.raises(ModelError, match="holds no vision tower"):
        opened(alone, mmproj=alone)
    with pytest.raises(ModelError, match="a vision tower without its text model"):
        opened(tower)
    ours = tmp_path / "ours.gguf"  # of the text model's architecture
    plan_conversion(FOLDER / "meta", ConvertOptions(outfile=str(ours), outtype="f16", mmproj=True)).run()
    with pytest.raises(ModelError, match=r"ours\.gguf: is a vision tower without its text model"):
        opened(ours)


def test_the_tower_alone(tmp_path: Path) -> None:
    path = tmp_path / "tower.gguf"
    plan_conversion(FOLDER / "meta", ConvertOptions(outfile=str(path), outtype="q8_0", mmproj=True)).run()
    with GGUFFile.open(path) as file:
        assert file.metadata["general.architecture"] == "clip"
        assert file.metadata["general.type"] == "mmproj"
        assert file.metadata["clip.projector_type"] == "llama4"
        kinds = {name: info.type.name for name, info in file.tensors.items()}
    assert (
        kinds["v.blk.0.ffn_up.bias"]
        == kinds["v.patch_embd.weight"]
        == kinds["v.position_embd.weight"]
        == "F32"
    )
    assert kinds["mm.model.fc.weight"] == "Q8_0"


def test_a_tower_is_quantized_to_eight_bits(tmp_path: Path) -> None:
    """Positions, patches and vectors stay as they are, and rows of 48 elements, which are no blocks."""
    path, small = tmp_path / "tower.gguf", tmp_path / "small.gguf"
    plan_conversion(FOLDER / "hf", ConvertOptions(outfile=str(path), outtype="f32", mmproj=True)).run()
    done = CliRunner().invoke(quantize, [str(path), str(small), "Q8_0"])
    assert done.exit_code == 0, done.output
    with GGUFFile.open(small) as file:
        kinds = {name: info.type.name for name, info in file.tensors.items()}
    assert kinds["v.blk.0.ffn_down.weight"] == kinds["mm.model.mlp.1.weight"] == "Q8_0"
    assert kinds["v.patch_embd.weight"] == kinds["v.position_embd.weight"] == kinds["v.class_embd"] == "F32"
    with opened(converted("hf", tmp_path), mmproj=small) as llm:
        found, known = llm.image_features(expected()["pixels"]), expected()["rows"]
    cosines = (found * known).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(known, axis=1)
    assert cosines.min() > 0.99


def test_text_and_tower_in_one_file(llama4_vision: Path, tmp_path: Path) -> None:
    """As ollama made them."""
    whole = tmp_path / "whole.gguf"
    tower = llama4_vision.with_name(f"mmproj-{llama4_vision.name}")
    with (
        GGUFFile.open(llama4_vision) as text,
        GGUFFile.open(tower) as vision,
        GGUFWriter(whole, "llama4") as writer,
    ):
        writer.copy_metadata(text.metadata, skip=("general.architecture",))
        sizes = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count")
        for name in (*sizes, "image_size", "patch_size"):
            writer.add(f"llama4.vision.{name}", vision.metadata[f"clip.vision.{name}"])
        writer.add("llama4.vision.pixel_shuffle_ratio", 0.5)
        writer.add("llama4.vision.layer_norm_epsilon", 1e-5)
        writer.add("llama4.vision.rope.freq_base", 10000.0)
        for file in (text, vision):
            for name, info in file.tensors.items():
                array = file.data(name).view(np.float32).reshape(info.shape)
                writer.add_array(ollama_name(name) if file is vision else name, array)
    known = expected()
    with opened(whole) as llm:
        assert llm.vision.path == str(whole)
        assert difference(llm.image_features(known["pixels"]), known["rows"]) < TOLERANCE
        found = llm.logits(known["ids"].tolist(), images=[known["pixels"]])
        assert difference(found, known["logits"]) < TOLERANCE


def ollama_name(name: str) -> str:
    for ours, theirs in (
        ("v.class_embd", "v.class_embedding"),
        ("v.patch_embd", "v.patch_embedding"),
        ("v.position_embd.weight", "v.positional_embedding_vlm"),
        ("v.pre_ln", "v.layernorm_pre"),
        ("v.post_ln", "v.layernorm_post"),
        (".ln1.", ".attn_norm."),
        (".ln2.", ".ffn_norm."),
        (".attn_out.", ".attn_output."),
        (".ffn_up.", ".mlp.fc1."),
        (".ffn_down.", ".mlp.fc2."),
        ("mm.model.mlp.1.", "v.vision_adapter.mlp.fc1."),
        ("mm.model.mlp.2.", "v.vision_adapter.mlp.fc2."),
        ("mm.model.fc.", "mm.linear_1."),
    ):
        name = name.replace(ours, theirs)
    return name


def test_damaged_towers(llama4_vision: Path, tmp_path: Path) -> None:
    tower = llama4_vision.with_name(f"mmproj-{llama4_vision.name}")

    def changed(leave_out: str = "", **keys: object) -> Path:
        path = tmp_path / "mmproj-changed.gguf"
        path.unlink(missing_ok=True)
        with GGUFFile.open(tower) as file, GGUFWriter(path, "clip") as writer:
            new = {f"clip.vision.{name}": value for name, value in keys.items()}
            writer.copy_metadata(file.metadata, skip=("general.architecture", *new))
            for name, value in new.items():
                writer.add(name, value)
            for name, info in file.tensors.items():
                if name != leave_out:
                    writer.add_array(name, file.data(name).view(np.float32).reshape(info.shape))
        return path

    for keys, said in (
        ({"image_size": 50}, "whole groups of patches"),
        ({"embedding_length": 50}, "pairs of both dimensions"),
        ({"block_count": 0}, "from 1 to"),
        ({"image_mean": [0.48, 0.46, 0.41]}, "0.5 for each colour"),
        ({"image_std": "none"}, "0.5 for each colour"),
        ({"projector_type": "pixtral"}, "of the kind 'pixtral'"),
        ({"leave_out": "v.blk.1.ln1.bias"}, "is missing"),
        ({"block_count": 2}, "no use for"),
        ({"feed_forward_length": 96}, r"ffn_up.weight has shape \(192, 48\), not \(96, 48\)"),
        ({"projection_dim": 96}, "a model of width 96; this one has 64"),
    ):
        with pytest.raises(ModelError, match=said):
            opened(llama4_vision, mmproj=changed(**keys))  # type: ignore[arg-type]


def test_a_tower_that_does_not_fit_is_told_before_the_model_is_loaded(
    llama4_vision: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may take minutes."""
    monkeypatch.setattr("pyllamacpu.api.loading.open_engine", lambda *_: pytest.fail("it is loaded"))
    empty = tmp_path / "empty.gguf"
    empty.touch()
    for model, mmproj, said in (
        (llama4_vision, empty, "only 0 bytes"),
        (llama4_vision, llama4_vision, "holds no vision tower"),
        (llama4_vision, "", "mmproj '': no such file"),
    ):
        with pytest.raises(PyllamacpuError, match=said):
            opened(model, mmproj=mmproj)


def test_metas_older_positions() -> None:
    """As torch's grid_sample gives them at corners: the mean of four values, of zeros outside."""
    shape = VisionShape("meta", 2, 1, 1, 6, 2, 1, 1e-5, 1e4)
    table = np.arange(20, dtype=np.float32).reshape(10, 2)  # the class token's row first
    found = _interpolated(Path("x"), shape, from_array(table, "positions")).read()
    grid = np.pad(table[1:].reshape(3, 3, 2), ((1, 0), (1, 0), (0, 0)))
    for y in range(3):
        for x in range(3):
            assert np.array_equal(found[3 * y + x], grid[y : y + 2, x : x + 2].sum((0, 1)) / 4)
    assert np.array_equal(found[9], table[0])
    with pytest.raises(CheckpointError, match="does not fit"):
        _interpolated(Path("x"), shape, from_array(table[1:], "positions"))
