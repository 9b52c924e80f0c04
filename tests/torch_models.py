"""Small networks of real architectures, from torch and transformers, with seeded weights and sizes that stay open.

Each `Net` says how it is made, what its inputs are at some sizes, and which dimensions are symbols. `exported` writes it as
an ONNX model by either of torch's exporters. Needs torch, transformers and onnxscript (the extra `models`).
"""
from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
import onnxscript
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

Sizes = Mapping[str, int]
OPSET = 18


@dataclass(frozen=True)
class Net:
    """A network: `build()` makes the module, `inputs(sizes)` its positional inputs by name; `axes` names the symbols of each
    input's dimensions, `ranges` their ranges, as `compile(shapes=…)` takes them. `runs` are five sizes to try; the first is
    what is traced. `exporters` are those of torch that can write it."""
    build: Callable[[], nn.Module]
    inputs: Callable[[Sizes], dict[str, Tensor]]
    axes: dict[str, dict[int, str]]
    ranges: dict[str, str]
    runs: list[dict[str, int]]
    exporters: tuple[str, ...] = ("dynamo", "torchscript")


NETS: dict[str, Net] = {}


def exported(name: str, exporter: str) -> onnx.ModelProto:
    """The network as an ONNX model with symbolic dimensions. Deterministic."""
    net = NETS[name]
    torch.manual_seed(0)
    module = Positional(net.build().eval())
    feeds = net.inputs(net.runs[0])
    file = io.BytesIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            dims = {s: torch.export.Dim.DYNAMIC for s in net.ranges}
            shapes = tuple([{d: dims[s] for d, s in net.axes.get(n, {}).items()} for n in feeds])
            program = torch.onnx.export(module, tuple(feeds.values()), dynamo=True, dynamic_shapes=(shapes,),
                                        input_names=list(feeds), opset_version=OPSET, verbose=False,
                                        custom_translation_table={torch.ops.tilewright_tests.nms.default: _nms_in_onnx})
            assert program is not None
            made = program.model_proto
        else:
            torch.onnx.export(module, tuple(feeds.values()), file, dynamo=False, input_names=list(feeds),
                              dynamic_axes=net.axes, opset_version=OPSET)
            made = onnx.load_from_string(file.getvalue())
    for i in made.graph.input:  # the exporters invent names for some
        for d, s in net.axes.get(i.name, {}).items():
            i.type.tensor_type.shape.dim[d].dim_param = s
    return made


def _uniform(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(math.prod(shape))) * 2 - 1


def _tokens(*shape: int, vocabulary: int = 100) -> Tensor:
    return torch.randint(3, vocabulary, shape, generator=torch.Generator().manual_seed(math.prod(shape)))


def _mask(batch: int, length: int) -> Tensor:
    """Ones; of the last row the second half is padding."""
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[-1, (length + 1) // 2:] = 0
    return mask


class Positional(nn.Module):
    """A module of any number of tensors."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *values: Tensor) -> Any:
        return self.module(*values)


class Only(nn.Module):
    """A transformers model as a function of its tensors: positional arguments in, chosen results out."""

    def __init__(self, model: nn.Module, arguments: str, results: str, **fixed: Any) -> None:
        super().__init__()
        self.model, self.arguments, self.results, self.fixed = model, arguments.split(), results.split(), fixed

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        out = self.model(**dict(zip(self.arguments, values, strict=True)), **self.fixed)
        return tuple([out[r] for r in self.results])


# ---- text ------------------------------------------------------------------------------------------------------------
def _text(s: Sizes) -> dict[str, Tensor]:
    return {"input_ids": _tokens(s["batch"], s["tokens"]), "attention_mask": _mask(s["batch"], s["tokens"])}


TEXT_AXES = {"input_ids": {0: "batch", 1: "tokens"}, "attention_mask": {0: "batch", 1: "tokens"}}
TEXT_RANGES = {"batch": "1..8~1", "tokens": "1..64~32"}
TEXT_RUNS = [dict(batch=2, tokens=12), dict(batch=1, tokens=1), dict(batch=1, tokens=32), dict(batch=3, tokens=45),
             dict(batch=8, tokens=64)]


def _token_classifier() -> nn.Module:
    config = transformers.DistilBertConfig(vocab_size=100, dim=64, n_layers=2, n_heads=4, hidden_dim=128, num_labels=5,
                                           max_position_embeddings=64)
    return Only(transformers.DistilBertForTokenClassification(config), "input_ids attention_mask", "logits")


NETS["token_classifier"] = Net(_token_classifier, _text, TEXT_AXES, TEXT_RANGES, TEXT_RUNS)


def _deberta() -> nn.Module:
    config = transformers.DebertaV2Config(vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                                          intermediate_size=128, max_position_embeddings=64, relative_attention=True,
                                          position_buckets=16, pos_att_type=["p2c", "c2p"], norm_rel_ebd="layer_norm",
                                          share_att_key=True, position_biased_input=False)
    return Only(transformers.DebertaV2Model(config), "input_ids attention_mask", "last_hidden_state")


NETS["deberta"] = Net(_deberta, _text, TEXT_AXES, TEXT_RANGES, TEXT_RUNS)


def _t5() -> nn.Module:
    config = transformers.T5Config(vocab_size=100, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
                                   decoder_start_token_id=0, feed_forward_proj="gated-gelu")
    return Only(transformers.T5ForConditionalGeneration(config), "input_ids attention_mask decoder_input_ids", "logits",
                use_cache=False)


NETS["encoder_decoder"] = Net(
    _t5, lambda s: {**_text(s), "decoder_input_ids": _tokens(s["batch"], s["target"])},
    {**TEXT_AXES, "decoder_input_ids": {0: "batch", 1: "target"}}, {**TEXT_RANGES, "target": "1..64~16"},
    [dict(batch=2, tokens=12, target=5), dict(batch=1, tokens=1, target=1), dict(batch=1, tokens=32, target=16),
     dict(batch=3, tokens=45, target=17), dict(batch=8, tokens=64, target=64)])


class Decoder(nn.Module):
    """A causal language model that takes and returns the keys and values of earlier tokens, each
    [batch, heads, past, width]."""

    def __init__(self, layers: int, heads: int, model: nn.Module) -> None:
        super().__init__()
        self.layers, self.heads, self.model = layers, heads, model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        cache = transformers.DynamicCache()
        for k in range(self.layers):
            cache.update(past[2 * k], past[2 * k + 1], k)
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True)
        made = out.past_key_values.layers
        return (out.logits, *[t for layer in made for t in (layer.keys, layer.values)])


def _llama() -> nn.Module:
    config = transformers.LlamaConfig(vocab_size=100, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                                      num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256)
    return Decoder(2, 2, transformers.LlamaForCausalLM(config))


def _decoder_inputs(s: Sizes) -> dict[str, Tensor]:
    kept = {f"past_{k}": _uniform(s["batch"], 2, s["past"], 16) for k in range(4)}
    return {"input_ids": _tokens(s["batch"], s["tokens"]),
            "attention_mask": torch.ones(s["batch"], s["past"] + s["tokens"], dtype=torch.int64), **kept}


NETS["decoder"] = Net(
    _llama, _decoder_inputs,
    {"input_ids": {0: "batch", 1: "tokens"}, "attention_mask": {0: "batch", 1: "all"},
     **{f"past_{k}": {0: "batch", 2: "past"} for k in range(4)}},
    {"batch": "1..8~1", "tokens": "1..64~1", "past": "1..128~32", "all": "1..192~33"},
    [dict(batch=2, tokens=3, past=7), dict(batch=1, tokens=1, past=32), dict(batch=1, tokens=9, past=1),
     dict(batch=4, tokens=1, past=100), dict(batch=8, tokens=33, past=65)])


# ---- speech ----------------------------------------------------------------------------------------------------------
def _wav2vec2() -> nn.Module:
    config = transformers.Wav2Vec2Config(vocab_size=32, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                                         intermediate_size=128, conv_dim=(32, 32, 32, 32), conv_stride=(5, 2, 2, 2),
                                         conv_kernel=(10, 3, 3, 2), num_conv_pos_embeddings=16,
                                         num_conv_pos_embedding_groups=4)
    return Only(transformers.Wav2Vec2ForCTC(config), "input_values", "logits")


NETS["wav2vec2"] = Net(_wav2vec2, lambda s: {"samples": _uniform(s["batch"], s["time"])},
                       {"samples": {0: "batch", 1: "time"}}, {"batch": "1..8~1", "time": "400..16000~4000"},
                       [dict(batch=2, time=1000), dict(batch=1, time=400), dict(batch=1, time=4000),
                        dict(batch=3, time=2345), dict(batch=4, time=8001)])


def _whisper() -> nn.Module:
    config = transformers.WhisperConfig(vocab_size=100, d_model=64, encoder_layers=2, decoder_layers=2,
                                        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=128,
                                        decoder_ffn_dim=128, num_mel_bins=20, max_source_positions=50,
                                        max_target_positions=64, pad_token_id=0, decoder_start_token_id=1, eos_token_id=2,
                                        bos_token_id=1)
    return Only(transformers.WhisperForConditionalGeneration(config), "input_features decoder_input_ids", "logits",
                use_cache=False)


NETS["whisper"] = Net(
    _whisper, lambda s: {"features": _uniform(s["batch"], 20, 100), "decoder_input_ids": _tokens(s["batch"], s["target"])},
    {"features": {0: "batch"}, "decoder_input_ids": {0: "batch", 1: "target"}},
    {"batch": "1..8~1", "target": "1..64~8"},
    [dict(batch=2, target=5), dict(batch=1, target=1), dict(batch=1, target=8), dict(batch=3, target=17),
     dict(batch=5, target=64)], ("dynamo",))


class RecurrentSpeech(nn.Module):
    """Convolutions over time and frequency, two bidirectional LSTMs, a GRU, scores of 30 symbols per frame."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Conv2d(1, 8, (11, 5), (2, 2), (5, 2)), nn.BatchNorm2d(8), nn.Hardtanh(0, 20),
                                   nn.Conv2d(8, 8, (5, 5), (1, 2), (2, 2)), nn.BatchNorm2d(8), nn.Hardtanh(0, 20))
        self.lstm = nn.LSTM(80, 24, 2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(48, 24, batch_first=True)
        self.out = nn.Linear(24, 30)

    def forward(self, features: Tensor) -> Tensor:
        x = self.front(features[:, None]).permute(0, 2, 1, 3).flatten(2)
        return F.log_softmax(self.out(self.gru(self.lstm(x)[0])[0]), -1)


NETS["recurrent_speech"] = Net(
    RecurrentSpeech, lambda s: {"features": _uniform(s["batch"], s["time"], 40)}, {"features": {0: "batch", 1: "time"}},
    {"batch": "1..8~1", "time": "1..400~100"},
    [dict(batch=2, time=30), dict(batch=1, time=1), dict(batch=1, time=100), dict(batch=3, time=77),
     dict(batch=8, time=201)], ("torchscript",))


class RelativeAttention(nn.Module):
    """Self-attention with Transformer-XL's relative positions: rows of scores by distance, shifted by a reshape."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.positions = nn.Linear(width, width, bias=False)
        self.content_bias = nn.Parameter(torch.randn(heads, width // heads))
        self.position_bias = nn.Parameter(torch.randn(heads, width // heads))

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = (y.view(n, t, self.heads, -1) for y in self.qkv(x).chunk(3, -1))
        speeds = torch.exp(torch.arange(0, width, 2) * (-math.log(1e4) / width))
        angles = torch.arange(t - 1, -t, -1).float()[:, None] * speeds
        p = self.positions(torch.stack([angles.sin(), angles.cos()], -1).flatten(1)).view(2 * t - 1, self.heads, -1)
        by_content = torch.einsum("nihd,njhd->nhij", q + self.content_bias, k)
        by_distance = torch.einsum("nihd,jhd->nhij", q + self.position_bias, p)
        shifted = F.pad(by_distance, (1, 0)).view(n, self.heads, 2 * t, t)[:, :, 1:].reshape(n, self.heads, t, 2 * t - 1)
        scores = (by_content + shifted[..., :t]) / math.sqrt(width // self.heads)
        weights = scores.masked_fill(padding[:, None, None, :], -1e9).softmax(-1)
        return self.out(torch.einsum("nhij,njhd->nihd", weights, v).reshape(n, t, width))


class ConformerBlock(nn.Module):
    """Half a feed-forward layer, attention, a gated depthwise convolution, the other half."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(),
                                                 nn.Linear(2 * width, width)) for _ in range(2))
        self.before, self.attend = nn.LayerNorm(width), RelativeAttention(width, 4)
        self.norm, self.gates = nn.LayerNorm(width), nn.Conv1d(width, 2 * width, 1)
        self.depth = nn.Sequential(nn.Conv1d(width, width, 7, padding=3, groups=width), nn.BatchNorm1d(width), nn.SiLU(),
                                   nn.Conv1d(width, width, 1))
        self.last = nn.LayerNorm(width)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        x = x + self.first(x) / 2
        x = x + self.attend(self.before(x), padding)
        y = F.glu(self.gates(self.norm(x).transpose(1, 2)), 1).masked_fill(padding[:, None], 0)
        x = x + self.depth(y).transpose(1, 2)
        return self.last(x + self.second(x) / 2)


class Conformer(nn.Module):
    """A speech encoder: of recordings of several lengths, scores of 30 symbols per frame and how many frames there are."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Conv2d(1, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 16, 3, 2), nn.ReLU())
        self.into, self.out = nn.Linear(144, 48), nn.Linear(48, 30)
        self.blocks = nn.ModuleList([ConformerBlock(48) for _ in range(2)])

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = self.into(self.front(features[:, None]).transpose(1, 2).flatten(2))
        lengths = ((lengths - 1) // 2 - 1) // 2
        padding = torch.arange(x.shape[1])[None] >= lengths[:, None]
        for block in self.blocks:
            x = block(x, padding)
        return self.out(x).log_softmax(-1), lengths


NETS["conformer"] = Net(
    Conformer, lambda s: {"features": _uniform(s["batch"], s["time"], 40),
                          "lengths": torch.linspace(s["time"] // 2 + 4, s["time"], s["batch"]).long()},
    {"features": {0: "batch", 1: "time"}, "lengths": {0: "batch"}}, {"batch": "1..8~1", "time": "16..800~200"},
    [dict(batch=2, time=57), dict(batch=1, time=16), dict(batch=1, time=200), dict(batch=3, time=101),
     dict(batch=4, time=402)])


# ---- graphs ----------------------------------------------------------------------------------------------------------
class MessagePassing(nn.Module):
    """Two rounds of graph attention with a GRU: messages along edges that are data, a softmax over each node's edges by
    scattered maxima and sums, then means and maxima over the nodes of each graph."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.update, self.out = nn.Linear(7, 32), nn.GRUCell(32, 32), nn.Linear(64, 4)
        self.message = nn.ModuleList([nn.Linear(67, 32) for _ in range(2)])
        self.score = nn.ModuleList([nn.Linear(32, 1) for _ in range(2)])

    def forward(self, nodes: Tensor, edges: Tensor, features: Tensor, graph: Tensor, graphs: Tensor) -> Tensor:
        x = F.relu(self.into(nodes))
        (source, target), n, g = edges.unbind(0), x.shape[0], graphs.shape[0]
        for message, score in zip(self.message, self.score, strict=True):
            m = F.leaky_relu(message(torch.cat([x[source], x[target], features], -1)))
            s = score(m)
            most = torch.full((n, 1), -1e9).scatter_reduce(0, target[:, None], s, "amax")
            weight = (s - most[target]).exp()
            total = torch.zeros(n, 1).index_add(0, target, weight)
            x = self.update(torch.zeros(n, 32).index_add(0, target, m * weight / total[target]), x)
        count = torch.zeros(g, 1).index_add(0, graph, torch.ones(n, 1))
        mean = torch.zeros(g, 32).index_add(0, graph, x) / count.clamp(min=1)
        most = torch.full((g, 32), -1e9).scatter_reduce(0, graph[:, None].expand(-1, 32), x, "amax")
        return self.out(torch.cat([mean, most], -1))


def _graphs(s: Sizes) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(s["nodes"])
    return {"nodes": _uniform(s["nodes"], 7), "edges": torch.randint(0, s["nodes"], (2, s["edges"]), generator=random),
            "features": _uniform(s["edges"], 3), "graph": torch.arange(s["nodes"]) * s["graphs"] // s["nodes"],
            "graphs": _uniform(s["graphs"])}


NETS["message_passing"] = Net(
    MessagePassing, _graphs,
    {"nodes": {0: "nodes"}, "edges": {1: "edges"}, "features": {0: "edges"}, "graph": {0: "nodes"}, "graphs": {0: "graphs"}},
    {"nodes": "1..1000~100", "edges": "1..5000~400", "graphs": "1..64~4"},
    [dict(nodes=11, edges=30, graphs=3), dict(nodes=1, edges=1, graphs=1), dict(nodes=100, edges=400, graphs=4),
     dict(nodes=57, edges=7, graphs=8), dict(nodes=333, edges=2000, graphs=17)], ("dynamo",))


# ---- images ----------------------------------------------------------------------------------------------------------
IMAGE_AXES = {"image": {0: "batch", 2: "height", 3: "width"}}
IMAGE_RANGES = {"batch": "1..8~1", "height": "16..256~64", "width": "16..256~64"}
IMAGE_RUNS = [dict(batch=2, height=48, width=32), dict(batch=1, height=64, width=64), dict(batch=1, height=16, width=16),
              dict(batch=3, height=37, width=59), dict(batch=1, height=100, width=131)]


def _image(s: Sizes) -> dict[str, Tensor]:
    return {"image": _uniform(s["batch"], 3, s["height"], s["width"])}


class Residual(nn.Module):
    """An inverted residual with squeeze and excitation, as in MobileNetV3."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.expand = nn.Sequential(nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.Hardswish())
        self.depth = nn.Sequential(nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide),
                                   nn.Hardswish())
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, wide // 4, 1), nn.ReLU(),
                                     nn.Conv2d(wide // 4, wide, 1), nn.Hardsigmoid())
        self.project = nn.Sequential(nn.Conv2d(wide, out, 1, bias=False), nn.BatchNorm2d(out))
        self.same = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(self.expand(x))
        y = self.project(y * self.squeeze(y))
        return x + y if self.same else y


class Segmentation(nn.Module):
    """LR-ASPP over inverted residuals: a score of 6 classes for every pixel of an image of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.low = nn.Sequential(Residual(16, 16, 1), Residual(16, 24, 2))
        self.high = nn.Sequential(Residual(24, 32, 2), Residual(32, 32, 1))
        self.branch = nn.Sequential(nn.Conv2d(32, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.scale = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(32, 32, 1, bias=False), nn.Sigmoid())
        self.low_classes, self.high_classes = nn.Conv2d(24, 6, 1), nn.Conv2d(32, 6, 1)

    def forward(self, image: Tensor) -> Tensor:
        low = self.low(self.stem(image))
        high = self.high(low)
        x = F.interpolate(self.branch(high) * self.scale(high), size=low.shape[-2:], mode="bilinear", align_corners=False)
        y = self.low_classes(low) + self.high_classes(x)
        return F.interpolate(y, size=image.shape[-2:], mode="bilinear", align_corners=False)


NETS["segmentation"] = Net(Segmentation, _image, IMAGE_AXES, IMAGE_RANGES, IMAGE_RUNS)


def _segformer() -> nn.Module:
    config = transformers.SegformerConfig(hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1],
                                          num_attention_heads=[1, 2, 3, 4], sr_ratios=[4, 2, 1, 1],
                                          decoder_hidden_size=32, num_labels=5)
    return Only(transformers.SegformerForSemanticSegmentation(config), "pixel_values", "logits")


NETS["segformer"] = Net(_segformer, _image, IMAGE_AXES, {**IMAGE_RANGES, "height": "32..256~64", "width": "32..256~64"},
                        [dict(batch=2, height=64, width=96), dict(batch=1, height=64, width=64),
                         dict(batch=1, height=32, width=32), dict(batch=3, height=37, width=59),
                         dict(batch=1, height=100, width=131)])


def _vit() -> nn.Module:
    config = transformers.ViTConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
                                    image_size=32, patch_size=8, num_labels=7)
    return Only(transformers.ViTForImageClassification(config), "pixel_values", "logits")


NETS["vision_transformer"] = Net(
    _vit, lambda s: {"image": _uniform(s["batch"], 3, 32, 32)}, {"image": {0: "batch"}}, {"batch": "1..64~1"},
    [dict(batch=n) for n in (2, 1, 3, 16, 33)])


def _swin2sr() -> nn.Module:
    config = transformers.Swin2SRConfig(image_size=16, embed_dim=24, depths=[2], num_heads=[2], window_size=4, upscale=2,
                                        upsampler="pixelshuffle")
    return Only(transformers.Swin2SRForImageSuperResolution(config), "pixel_values", "reconstruction")


NETS["swin2sr"] = Net(
    _swin2sr, lambda s: {"image": _uniform(s["batch"], 3, 16, 16)}, {"image": {0: "batch"}}, {"batch": "1..64~1"},
    [dict(batch=n) for n in (2, 1, 3, 8, 17)])


class SuperResolution(nn.Module):
    """ESPCN: a PixelShuffle of three times the resolution, beside a bicubic enlargement that it corrects."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 32, 5, padding=2), nn.PReLU(32), nn.Conv2d(32, 32, 3, padding=1),
                                  nn.PReLU(32), nn.Conv2d(32, 16, 3, padding=1), nn.Tanh(), nn.Conv2d(16, 27, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        return F.pixel_shuffle(self.body(image), 3) + F.interpolate(image, scale_factor=3.0, mode="bicubic")


NETS["super_resolution"] = Net(SuperResolution, _image, IMAGE_AXES, IMAGE_RANGES, IMAGE_RUNS)


class TimedBlock(nn.Module):
    """GroupNorm, SiLU and convolutions, with the step's embedding added between them."""

    def __init__(self, channels: int, out: int, time: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, channels), nn.Conv2d(channels, out, 3, padding=1)
        self.time = nn.Linear(time, out)
        self.norm2, self.conv2 = nn.GroupNorm(4, out), nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(time))[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(y)))


class Attention(nn.Module):
    """Attention of four heads from rows to other rows."""

    def __init__(self, width: int, other: int) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(other, width), nn.Linear(other, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        q, k, v = (f(y).unflatten(-1, (4, -1)).transpose(1, 2) for f, y in ((self.q, x), (self.k, other), (self.v, other)))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class SpatialAttention(nn.Module):
    """Attention among all pixels, and from them to a text's states."""

    def __init__(self, channels: int, context: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.own, self.cross = Attention(channels, channels), Attention(channels, context)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        y = self.norm(x).flatten(2).transpose(1, 2)
        y = y + self.own(y, y)
        y = y + self.cross(y, context)
        return x + y.transpose(1, 2).unflatten(-1, x.shape[-2:])


class Diffusion(nn.Module):
    """A denoiser: a U-Net of two levels with a step and a text as conditions, for images of any even size."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Conv2d(4, 16, 3, padding=1)
        self.time = nn.Sequential(nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 64))
        self.down1, self.shrink = TimedBlock(16, 16, 64), nn.Conv2d(16, 16, 3, 2, 1)
        self.down2, self.attend2 = TimedBlock(16, 32, 64), SpatialAttention(32, 24)
        self.middle = TimedBlock(32, 32, 64)
        self.up2, self.attend3, self.up1 = TimedBlock(64, 32, 64), SpatialAttention(32, 24), TimedBlock(48, 16, 64)
        self.grow = nn.Conv2d(32, 32, 3, padding=1)
        self.out = nn.Sequential(nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 4, 3, padding=1))

    def forward(self, image: Tensor, step: Tensor, context: Tensor) -> Tensor:
        angles = step[:, None].float() * torch.exp(torch.arange(16) * (-math.log(10000) / 16))
        time = self.time(torch.cat([angles.cos(), angles.sin()], -1))
        a = self.down1(self.into(image), time)
        b = self.attend2(self.down2(self.shrink(a), time), context)
        c = self.attend3(self.up2(torch.cat([self.middle(b, time), b], 1), time), context)
        c = self.grow(F.interpolate(c, scale_factor=2.0, mode="nearest"))
        return self.out(self.up1(torch.cat([c, a], 1), time))


NETS["diffusion"] = Net(
    Diffusion, lambda s: {"image": _uniform(s["batch"], 4, 2 * s["rows"], 2 * s["columns"]),
                          "step": _tokens(s["batch"], vocabulary=1000), "context": _uniform(s["batch"], s["text"], 24)},
    {"image": {0: "batch", 2: "height", 3: "width"}, "step": {0: "batch"}, "context": {0: "batch", 1: "text"}},
    {"batch": "1..4~1", "height": "2..64%2~32", "width": "2..64%2~32", "text": "1..77~16"},
    [dict(batch=2, rows=6, columns=8, text=5), dict(batch=1, rows=16, columns=16, text=16),
     dict(batch=1, rows=1, columns=1, text=1), dict(batch=3, rows=5, columns=11, text=77),
     dict(batch=4, rows=17, columns=16, text=9)])


class Generator(nn.Module):
    """An image from an image, as in pix2pix: strided convolutions, transposed ones back up beside their like, instance and
    batch norms, reflected borders."""

    def __init__(self) -> None:
        super().__init__()
        def down(channels: int, out: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(channels, out, 4, 2, 1, bias=False), nn.InstanceNorm2d(out, affine=True),
                                 nn.LeakyReLU(0.2))
        def up(channels: int, out: int) -> nn.Module:
            return nn.Sequential(nn.ConvTranspose2d(channels, out, 4, 2, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())
        self.down1, self.down2, self.down3 = down(3, 12), down(12, 24), down(24, 40)
        self.up3, self.up2 = up(40, 24), up(48, 12)
        self.up1 = nn.ConvTranspose2d(24, 3, 3, 2, 1, output_padding=1)
        self.last = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(3, 3, 7), nn.Tanh())

    def forward(self, image: Tensor) -> Tensor:
        a = self.down1(image)
        b = self.down2(a)
        c = self.up3(self.down3(b))
        return self.last(self.up1(torch.cat([self.up2(torch.cat([c, b], 1)), a], 1)))


EIGHTHS = "8..256%8~64"
NETS["generator"] = Net(
    Generator, lambda s: {"image": _uniform(s["batch"], 3, 8 * s["rows"], 8 * s["columns"])}, IMAGE_AXES,
    {"batch": "1..8~1", "height": EIGHTHS, "width": EIGHTHS},
    [dict(batch=2, rows=4, columns=6), dict(batch=1, rows=8, columns=8), dict(batch=1, rows=2, columns=2),
     dict(batch=3, rows=5, columns=9), dict(batch=1, rows=13, columns=17)])


class ShiftedWindows(nn.Module):
    """Swin's attention in windows of 4×4, then in shifted ones with a mask made for the image's size; four places merged."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.merge = nn.Conv2d(3, 24, 2, 2), nn.Linear(96, 48, bias=False)
        self.norm, self.qkv, self.out = nn.LayerNorm(24), nn.Linear(24, 72), nn.Linear(24, 24)
        self.mlp = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))
        self.bias = nn.Parameter(torch.randn(3, 16, 16))

    def block(self, x: Tensor, shift: int) -> Tensor:
        n, h, w, width = x.shape
        y = torch.roll(self.norm(x), (-shift, -shift), (1, 2)) if shift else self.norm(x)
        y = y.view(n, h // 4, 4, w // 4, 4, width).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, width)
        q, k, v = self.qkv(y).view(-1, 16, 3, 3, width // 3).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) * (width // 3) ** -0.5 + self.bias
        if shift:
            bands = [sum((torch.arange(size) >= size - k).long() for k in (4, shift)) for size in (h, w)]
            region = (bands[0][:, None] * 3 + bands[1]).view(h // 4, 4, w // 4, 4).permute(0, 2, 1, 3).reshape(-1, 16)
            mask = torch.where(region[:, None] != region[:, :, None], -100.0, 0.0)
            scores = (scores.view(n, -1, 3, 16, 16) + mask[None, :, None]).view(-1, 3, 16, 16)
        y = self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 16, width))
        y = y.view(n, h // 4, w // 4, 4, 4, width).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, width)
        x = x + (torch.roll(y, (shift, shift), (1, 2)) if shift else y)
        return x + self.mlp(x)

    def forward(self, image: Tensor) -> Tensor:
        x = self.block(self.block(self.embed(image).permute(0, 2, 3, 1), 0), 2)
        return self.merge(torch.cat([x[:, ::2, ::2], x[:, 1::2, ::2], x[:, ::2, 1::2], x[:, 1::2, 1::2]], -1))


NETS["shifted_windows"] = Net(
    ShiftedWindows, NETS["generator"].inputs, IMAGE_AXES, {"batch": "1..8~1", "height": EIGHTHS, "width": EIGHTHS},
    [dict(batch=2, rows=4, columns=3), dict(batch=1, rows=8, columns=8), dict(batch=1, rows=1, columns=1),
     dict(batch=3, rows=5, columns=2), dict(batch=1, rows=7, columns=9)])


# ---- detection -------------------------------------------------------------------------------------------------------
@torch.library.custom_op("tilewright_tests::nms", mutates_args=())
def nms(boxes: Tensor, scores: Tensor, most: int, overlap: float, least: float) -> Tensor:
    """Greedy non-maximum suppression: boxes [batch, n, 4] as two corners, scores [batch, classes, n]; rows of (batch, class,
    box) by falling score within a class, at most `most` of each class, as ONNX's NonMaxSuppression says."""
    found = []
    for b in range(scores.shape[0]):
        for c in range(scores.shape[1]):
            left = [k for k in scores[b, c].argsort(descending=True, stable=True).tolist() if scores[b, c, k] > least]
            kept: list[int] = []
            while left and len(kept) < most:
                kept.append(left.pop(0))
                left = [k for k in left if _overlap(boxes[b, kept[-1]], boxes[b, k]) <= overlap]
            found += [[b, c, k] for k in kept]
    return torch.tensor(found, dtype=torch.int64).reshape(-1, 3)


def _overlap(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two boxes."""
    def area(corners: Tensor) -> float:
        return float((corners[2:] - corners[:2]).clamp(min=0).prod())
    shared = area(torch.cat([torch.maximum(a[:2], b[:2]), torch.minimum(a[2:], b[2:])]))
    return shared / (area(a) + area(b) - shared)


@nms.register_fake
def _(boxes: Tensor, scores: Tensor, most: int, overlap: float, least: float) -> Tensor:
    return torch.empty(torch.library.get_ctx().new_dynamic_size(), 3, dtype=torch.int64)


_onnx = onnxscript.opset18


def _nms_in_onnx(boxes: Any, scores: Any, most: int, overlap: float, least: float) -> Any:
    """The same for the newer exporter."""
    return _onnx.NonMaxSuppression(boxes, scores, _onnx.Constant(value_ints=[most]), _onnx.Constant(value_floats=[overlap]),
                                   _onnx.Constant(value_floats=[least]))


class NmsInTorchScript(torch.autograd.Function):
    """The same for torch's older exporter."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, most: int, overlap: float, least: float) -> Tensor:
        return nms(boxes, scores, most, overlap, least)

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, most: int, overlap: float, least: float) -> Any:
        numbers = [g.op("Constant", value_t=torch.tensor([n])) for n in (most, overlap, least)]
        return g.op("NonMaxSuppression", boxes, scores, *numbers)


class Detector(nn.Module):
    """An anchor-free detector in the manner of FCOS: two levels, per place a box and scores of 3 classes; the boxes that
    suppression keeps, their scores and classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.one = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(32, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.side = nn.Conv2d(32, 32, 1)
        self.classes, self.boxes = nn.Conv2d(32, 3, 3, padding=1), nn.Conv2d(32, 4, 3, padding=1)

    def level(self, x: Tensor, stride: int) -> tuple[Tensor, Tensor]:
        h, w = x.shape[-2:]
        ys, xs = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        middle = (torch.stack([xs, ys], -1).reshape(1, -1, 2) + 0.5) * stride
        reach = self.boxes(x).flatten(2).transpose(1, 2).exp() * stride
        return torch.cat([middle - reach[..., :2], middle + reach[..., 2:]], -1), self.classes(x).flatten(2).sigmoid()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        one = self.one(self.stem(image))
        two = self.two(one)
        one = one + F.interpolate(self.side(two), size=one.shape[-2:], mode="nearest")
        levels = [self.level(one, 8), self.level(two, 16)]
        boxes, scores = (torch.cat(parts, dim) for parts, dim in zip(zip(*levels, strict=True), (1, 2), strict=True))
        suppress = NmsInTorchScript.apply if torch.jit.is_tracing() else nms
        kept = suppress(boxes, scores, 10, 0.5, 0.3)
        batch, label, place = kept.unbind(1)
        return boxes[batch, place], scores[batch, label, place], label


NETS["detector"] = Net(Detector, _image, IMAGE_AXES, IMAGE_RANGES, IMAGE_RUNS)


def _yolos() -> nn.Module:
    config = transformers.YolosConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96,
                                      image_size=[64, 64], patch_size=8, num_detection_tokens=10, num_labels=5)
    return Only(transformers.YolosForObjectDetection(config), "pixel_values", "logits pred_boxes")


NETS["yolos"] = Net(_yolos, _image, IMAGE_AXES, IMAGE_RANGES, IMAGE_RUNS)
