"""CLIP's towers, loaded by the tables, against torch, layer by layer; and faults that must show."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from refseg_jax.encoders import clip_text, clip_vision
from refseg_jax.images.colours import CLIP_MEAN, CLIP_STD
from refseg_jax.images.resize import resize_position_embedding
from refseg_jax.layers import norm, transformer
from refseg_jax.models import UniRES, UniRESConfig
from refseg_jax.models.forward import Forward
from refseg_jax.sharding import MeshConfig, abstract_params, make_mesh
from refseg_jax.weights import clip as tables
from refseg_jax.weights.clip_files import load_towers
from refseg_jax.weights.table import Rule, Table
from tests.parity.torch_clip import Sizes, TorchClip, scattered

pytestmark = pytest.mark.parity

#: Of the issue: relative, in f32, of every patch and every word, in every layer.
BAR = 1e-5
PATCH, SIZE, OUTPUT, VOCAB, POSITIONS = 16, 224, 40, 64, 20
VISION, TEXT = Sizes(width=192, layers=4), Sizes(width=128, layers=3)
EOS = 60

States = list[np.ndarray]


def config(**changes: Any) -> UniRESConfig:
    """The model whose towers have the small CLIP's sizes; nothing but the towers is looked at."""
    fields: dict[str, Any] = {
        "image_size": SIZE,
        "patch_size": PATCH,
        "vision_width": VISION.width,
        "vision_layers": VISION.layers,
        "vision_heads": VISION.width // 64,
        "text_width": TEXT.width,
        "text_layers": TEXT.layers,
        "text_heads": TEXT.width // 64,
        "embedding_width": OUTPUT,
        "vocab_size": VOCAB,
        "text_positions": POSITIONS,
        "eos_id": EOS,
        "low_tokens": 0,
        "high_tokens": 0,
    }
    return UniRESConfig(**{**fields, **changes})


def loaded(source: Path, fields: UniRESConfig) -> dict[str, jax.Array]:
    whole: Forward[UniRES] = Forward(lambda rngs: UniRES(fields, rngs=rngs))
    target = abstract_params(whole.shapes, make_mesh(MeshConfig()))
    return load_towers(str(source), target, fields)


def tower(source: Path, fields: UniRESConfig, name: str) -> Any:
    """One of our towers with the weights of a file."""
    params = loaded(source, fields)
    own = {p.removeprefix(f"{name}."): v for p, v in params.items() if p.startswith(f"{name}.")}
    forward: Forward = Forward(lambda rngs: getattr(UniRES(fields, rngs=rngs), name))
    return forward.bind(own)


@contextlib.contextmanager
def recorded(module: Any) -> Iterator[list[jax.Array]]:
    """What goes into the first block of an encoder's module and comes out of all.

    Around the `run_block` that stands there, where a fault may have put another.
    """
    there, states = module.run_block, []

    def record(block: Any, x: jax.Array, **options: Any) -> jax.Array:
        if not states:
            states.append(x)
        states.append(there(block, x, **options))
        return states[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "run_block", record)
        yield states


def seen(source: Path, fields: UniRESConfig, image: np.ndarray) -> States:
    """What every layer of our vision tower gives, then the projected patches."""
    with recorded(clip_vision) as states:
        features = tower(source, fields, "vision")(image)
    return [*map(np.asarray, states), np.asarray(features.patches)]


def read(source: Path, fields: UniRESConfig, ids: np.ndarray) -> States:
    """What every layer of our text tower gives, then the words and the sentences."""
    with recorded(clip_text) as states:
        words, sentence = tower(source, fields, "text")(ids)
    return [*map(np.asarray, states), np.asarray(words), np.asarray(sentence)]


def errors(ours: States, theirs: list[torch.Tensor]) -> list[float]:
    """Of each layer, that of its worst token: `|a - b| / |b|`."""
    assert len(ours) == len(theirs)
    pairs = zip(ours, (t.numpy() for t in theirs), strict=True)
    return [
        float(np.max(np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1))) for a, b in pairs
    ]


def picture(size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)


def pixels(image: np.ndarray) -> torch.Tensor:
    normal = (image / 255.0 - CLIP_MEAN) / CLIP_STD
    return torch.from_numpy(normal.astype(np.float32)).permute(0, 3, 1, 2)


def texts(eos: int, above: int | None) -> np.ndarray:
    """Three texts of different lengths, padded with 0; the second word's id may lie above EOS."""
    place, end = np.arange(12), np.array([[3], [7], [11]])
    ids = np.random.default_rng(0).integers(1, eos, (3, 12))
    if above is not None:
        ids[:, 1] = above
    return np.where(place < end, ids, np.where(place == end, eos, 0)).astype(np.int32)


@pytest.fixture(scope="module")
def theirs() -> CLIPModel:
    """transformers' own, of random weights."""
    torch.manual_seed(0)
    sizes = lambda s: {  # noqa: E731
        "hidden_size": s.width,
        "intermediate_size": 4 * s.width,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.width // 64,
    }
    ids = {"bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": 0}
    model = CLIPModel(
        CLIPConfig(
            vision_config={**sizes(VISION), "image_size": SIZE, "patch_size": PATCH},
            text_config={
                **sizes(TEXT),
                **ids,
                "vocab_size": VOCAB,
                "max_position_embeddings": POSITIONS,
            },
            projection_dim=OUTPUT,
        )
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(scattered(name, parameter, torch.randn_like(parameter)))
    return model


@pytest.fixture(scope="module")
def folder(theirs: CLIPModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hf")
    theirs.save_pretrained(path)
    return path


def seen_by(model: CLIPModel, image: np.ndarray) -> list[torch.Tensor]:
    with torch.inference_mode():
        told: Any = model.vision_model(
            pixels(image), interpolate_pos_encoding=True, output_hidden_states=True
        )
        patches = model.visual_projection(
            model.vision_model.post_layernorm(told.last_hidden_state[:, 1:])
        )
    assert torch.equal(told.hidden_states[-1], told.last_hidden_state)
    return [*told.hidden_states, patches]


def read_by(model: CLIPModel, ids: np.ndarray) -> list[torch.Tensor]:
    with torch.inference_mode():
        told: Any = model.text_model(torch.from_numpy(ids).long(), output_hidden_states=True)
        sentence = model.text_projection(told.pooler_output)
    # The last hidden state is normalised here; before that it is only in `hidden_states`.
    return [*told.hidden_states[: TEXT.layers + 1], told.last_hidden_state, sentence]


@pytest.mark.parametrize("size", [224, 416, 112])
def test_every_layer_of_the_image_tower_is_transformers(theirs: CLIPModel, folder: Path, size: int):
    ours = seen(folder, config(image_size=size), picture(size))
    found = errors(ours, seen_by(theirs, picture(size)))
    assert len(found) == VISION.layers + 2
    assert max(found) <= BAR, found
    print(f"image tower at {size}: " + " ".join(f"{e:.1e}" for e in found))


def test_every_layer_of_the_text_tower_is_transformers(theirs: CLIPModel, folder: Path):
    # Ids above the EOS stand before it: the sentence is at the EOS, not at the largest id.
    ids = texts(EOS, above=EOS + 2)
    found = errors(read(folder, config(), ids), read_by(theirs, ids))
    assert len(found) == TEXT.layers + 3
    assert max(found) <= BAR, found
    print("text tower: " + " ".join(f"{e:.1e}" for e in found))


def saved_state_dict(model: TorchClip, path: Path) -> Path:
    """As OpenCLIP and others keep OpenAI's weights; the sizes are in OpenAI's own file."""
    sizes = {"input_resolution": torch.tensor(SIZE), "context_length": torch.tensor(POSITIONS)}
    torch.save({**model.state_dict(), **sizes}, path / "state.pt")
    return path / "state.pt"


def saved_torchscript(model: TorchClip, path: Path) -> Path:
    """As OpenAI published them: traced, in f16, with the sizes as tensors."""
    model.register_buffer("input_resolution", torch.tensor(SIZE))
    inputs = (pixels(picture(SIZE)), torch.from_numpy(texts(VOCAB - 1, None)).long())
    traced: Any = torch.jit.trace(model, inputs, check_trace=False)
    traced.half().save(str(path / "script.pt"))
    model.half().float()
    return path / "script.pt"


def saved_openclip(model: TorchClip, path: Path) -> Path:
    save_file(model.state_dict(), path / "open_clip_model.safetensors")
    sizes = {"vision_cfg": {"width": VISION.width}, "text_cfg": {"heads": TEXT.width // 64}}
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": sizes}))
    return path


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    ("save", "activation"),
    [
        (saved_state_dict, "quick_gelu"),
        (saved_torchscript, "quick_gelu"),
        (saved_openclip, "gelu"),
    ],
)
def test_every_layer_is_torchs_from_openais_names(
    save: Callable[[TorchClip, Path], Path], activation: str, tmp_path: Path
):
    torch.manual_seed(1)
    model = TorchClip(
        grid=SIZE // PATCH,
        patch=PATCH,
        vision=VISION,
        text=TEXT,
        output=OUTPUT,
        vocab=VOCAB,
        positions=POSITIONS,
        activation=activation,
    ).eval()
    with torch.inference_mode(False):
        source = save(model, tmp_path)
    eos = VOCAB - 1
    image, ids = picture(416), texts(eos, None)
    with torch.no_grad():
        expected = model.visual(pixels(image)), model.read(torch.from_numpy(ids).long())
    fields = config(image_size=416, eos_id=eos, activation=activation)
    assert max(errors(seen(source, fields, image), expected[0])) <= BAR
    assert max(errors(read(source, fields, ids), expected[1])) <= BAR


Patch = pytest.MonkeyPatch


def other_epsilon(patch: Patch) -> None:
    plain = norm._normalise
    patch.setattr(norm, "_normalise", lambda *given: plain(*given[:4], 1e-6, given[5]))


def plain_gelu(patch: Patch) -> None:
    patch.setitem(transformer.ACTIVATIONS, "quick_gelu", transformer.exact_gelu)  # pyright: ignore


def no_causal_mask(patch: Patch) -> None:
    def run(block: Any, x: jax.Array, **options: Any) -> jax.Array:
        return transformer.run_block(block, x, **{**options, "causal": False})

    patch.setattr(clip_text, "run_block", run)


def resized_with(method: str, antialias: bool) -> Callable[[Patch], None]:
    def resize(value: Any, shape: tuple[int, ...]) -> Any:
        old, new = (round((rows - 1) ** 0.5) for rows in (value.shape[0], shape[0]))
        cells = value[1:].reshape(old, old, -1)
        cells = jax.image.resize(
            cells, (new, new, value.shape[1]), method=method, antialias=antialias
        )
        return jax.numpy.concatenate([value[:1], cells.reshape(new * new, -1)])

    def fault(patch: Patch) -> None:
        with_change(patch, "vision.position_embedding", resize)

    return fault


def with_change(patch: Patch, path: str, change: Any) -> None:
    """A table whose rule of one parameter changes its entry in another way."""
    rules = tuple(
        Rule(rule.pattern, ((path, change),)) if rule.writes[0][0] == path else rule
        for rule in tables.HF.rules
    )
    assert rules != tables.HF.rules
    patch.setitem(tables.FORMATS, "hf_clip", Table(rules, tables.HF.unread, tables.HF.unwritten))  # pyright: ignore


def permuted_qkv(patch: Patch) -> None:
    swap = {"query": "key", "key": "value", "value": "query"}
    rules = []
    for rule in tables.HF.rules:
        ((target, change),) = rule.writes
        parts = target.split(".")
        rules.append(Rule(rule.pattern, ((".".join(swap.get(p, p) for p in parts), change),)))
    patch.setitem(  # pyright: ignore
        tables.FORMATS, "hf_clip", Table(tuple(rules), tables.HF.unread, tables.HF.unwritten)
    )


FAULTS: dict[str, tuple[Callable[[Patch], None], int]] = {
    "epsilon 1e-6": (other_epsilon, 224),
    "plain GELU": (plain_gelu, 224),
    "permuted query, key and value": (permuted_qkv, 224),
    "JAX's own cubic": (resized_with("cubic", True), 416),
    "bilinear": (resized_with("linear", False), 416),
    "antialiased": (resized_with("cubic-pytorch", True), 112),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_shows_in_the_image_tower(
    theirs: CLIPModel, folder: Path, monkeypatch: Patch, name: str
):
    fault, size = FAULTS[name]
    fault(monkeypatch)
    ours = seen(folder, config(image_size=size), picture(size))
    found = errors(ours, seen_by(theirs, picture(size)))
    assert max(found) > 2 * BAR, found
    print(f"{name}: {max(found):.1e}")


@pytest.mark.parametrize("fault", [other_epsilon, plain_gelu, permuted_qkv, no_causal_mask])
def test_a_fault_shows_in_the_text_tower(
    theirs: CLIPModel, folder: Path, monkeypatch: Patch, fault: Callable[[Patch], None]
):
    ids = texts(EOS, above=EOS + 2)
    fault(monkeypatch)
    found = errors(read(folder, config(), ids), read_by(theirs, ids))
    assert max(found) > 2 * BAR, found
    print(f"{fault.__name__}: {max(found):.1e}")


def test_a_sentence_read_elsewhere_than_at_eos_shows(
    theirs: CLIPModel, folder: Path, monkeypatch: Patch
):
    """At the largest id, as OpenAI reads it, which is wrong where ids lie above EOS."""
    ids = texts(EOS, above=EOS + 2)
    monkeypatch.setattr(tables, "check", lambda *_, **__: None)
    found = errors(read(folder, config(eos_id=EOS + 2), ids), read_by(theirs, ids))
    assert max(found[:-1]) <= BAR and found[-1] > 2 * BAR, found


@pytest.mark.parametrize(("old", "new"), [(7, 13), (14, 26), (14, 14), (16, 30), (14, 9), (7, 4)])
def test_positions_are_resized_as_torch_does(old: int, new: int):
    table = np.random.default_rng(0).standard_normal((1 + old * old, 5), np.float32)
    cells = torch.from_numpy(table[1:]).reshape(1, old, old, 5).permute(0, 3, 1, 2)
    resized = F.interpolate(cells, size=(new, new), mode="bicubic", align_corners=False)
    expected = resized.permute(0, 2, 3, 1).reshape(new * new, 5).numpy()
    ours = np.asarray(resize_position_embedding(table, new))
    np.testing.assert_array_equal(ours[:1], table[:1])
    np.testing.assert_allclose(ours[1:], expected, rtol=0, atol=1e-5)
