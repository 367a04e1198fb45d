"""Encoders that are known by name: what they are, how their networks are built, and what their input must look like.

The page docs/how-to/encoder.md shows the same table; a test compares the two. No weights are included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

Triple = tuple[float, float, float]

_HUB = ("hf-hub:", "hf_hub:")
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
_OPTIMUS = (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)
_HIBOU = (0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816)
_LUNIT = (0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464)
_SWIGLU: dict[str, Any] = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
_SCALED: dict[str, Any] = {"img_size": 224, "init_values": 1e-5}
_VIRCHOW = {**_SCALED, **_SWIGLU, "mlp_ratio": 5.3375}
_UNI2 = {
    **_SCALED, **_SWIGLU, "patch_size": 14, "depth": 24, "num_heads": 24, "embed_dim": 1536, "mlp_ratio": 2.66667 * 2,
    "no_embed_class": True, "reg_tokens": 8,
}  # fmt: skip
_MANY = (0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class KnownEncoder:
    """One encoder, as its publisher describes it."""

    name: str
    publisher: str
    licence: str
    gated: bool
    """Whether its conditions have to be accepted on the hub first."""
    repository: str
    """On the Hugging Face hub."""
    file: str
    """Of the repository; `learning.encoder_files` reads timm's and transformers' names of entries."""
    parameters: float
    """Million parameters."""
    network: str
    """timm's name of the architecture."""
    arguments: Mapping[str, Any]
    """Of timm's constructor; classes of layers by their names in timm or torch."""
    normalisation: tuple[Triple, Triple]
    """Mean and standard deviation per colour, of values in 0..1."""
    patch: int
    """Side of a token in pixels of the network's input; 0 for a convolutional network."""
    blocks: tuple[int, ...]
    """Whose output the features are, from 0; for a convolutional network the stages."""
    mpp: tuple[float, ...]
    """um per pixel that it was trained at; empty for photographs."""
    unverified: tuple[str, ...] = ()
    """What could not be read from the publisher's own page."""


_NC_ND = "cc-by-nc-nd-4.0"
_APACHE = "apache-2.0"
_BIN, _SAFE = "pytorch_model.bin", "model.safetensors"
_B, _L, _H, _G = (2, 5, 8, 11), (5, 11, 17, 23), (7, 15, 23, 31), (9, 19, 29, 39)
KNOWN: tuple[KnownEncoder, ...] = (
    KnownEncoder(
        "uni", "Mahmood Lab", _NC_ND, True, "MahmoodLab/UNI", _BIN, 303.4,
        "vit_large_patch16_224", {**_SCALED, "patch_size": 16}, _IMAGENET, 16, _L, (0.5,),
    ),
    KnownEncoder(
        "uni2-h", "Mahmood Lab", _NC_ND, True, "MahmoodLab/UNI2-h", _BIN, 681.4,
        "vit_giant_patch14_224", _UNI2, _IMAGENET, 14, _L, (0.5,),
    ),
    KnownEncoder(
        "virchow", "Paige", _APACHE, True, "paige-ai/Virchow", _BIN, 631.2,
        "vit_huge_patch14_224", _VIRCHOW, _IMAGENET, 14, _H, (0.5,),
    ),
    KnownEncoder(
        "virchow2", "Paige", _NC_ND, True, "paige-ai/Virchow2", _BIN, 631.2,
        "vit_huge_patch14_224", {**_VIRCHOW, "reg_tokens": 4}, _IMAGENET, 14, _H, _MANY,
    ),
    KnownEncoder(
        "h-optimus-0", "Bioptimus", _APACHE, True, "bioptimus/H-optimus-0", _BIN, 1134.8,
        "vit_giant_patch14_reg4_dinov2", _SCALED, _OPTIMUS, 14, _G, (0.5,),
    ),
    KnownEncoder(
        "h-optimus-1", "Bioptimus", _NC_ND, True, "bioptimus/H-optimus-1", _BIN, 1134.8,
        "vit_giant_patch14_reg4_dinov2", _SCALED, _OPTIMUS, 14, _G, (0.5,),
    ),
    KnownEncoder(
        "h0-mini", "Bioptimus", _NC_ND, True, "bioptimus/H0-mini", _BIN, 85.7,
        "vit_base_patch14_reg4_dinov2", {**_SCALED, **_SWIGLU, "mlp_ratio": 5.33334}, _OPTIMUS, 14, _B, (0.5,),
        ("constructor", "file"),
    ),
    KnownEncoder(
        "gigapath-flash", "Microsoft", _APACHE, True, "prov-gigapath/prov-gigapath-flash", _BIN, 21.7,
        "vit_small_patch16_224", {**_SCALED, **_SWIGLU, "mlp_ratio": 2048 / 384}, _IMAGENET, 16, _B, (0.5,),
        ("um/px",),
    ),
    KnownEncoder(
        "phikon-v2", "Owkin", "owkin-non-commercial", False, "owkin/phikon-v2", _SAFE, 303.4,
        "vit_large_patch14_dinov2", {**_SCALED, "patch_size": 16}, _IMAGENET, 16, _L, (0.5,),
    ),
    KnownEncoder(
        "midnight-12k", "kaiko.ai", "mit", False, "kaiko-ai/midnight", _SAFE, 1134.8,
        "vit_giant_patch14_dinov2", _SCALED, _HALF, 14, _G, _MANY,
    ),
    KnownEncoder(
        "hibou-b", "HistAI", _APACHE, False, "histai/hibou-b", _SAFE, 85.7,
        "vit_base_patch14_reg4_dinov2", {**_SCALED, **_SWIGLU, "mlp_ratio": 5.33334}, _HIBOU, 14, _B, (0.5,),
        ("um/px",),
    ),
    KnownEncoder(
        "hibou-l", "HistAI", _APACHE, True, "histai/hibou-L", _SAFE, 303.7,
        "vit_large_patch14_reg4_dinov2", {**_SCALED, **_SWIGLU, "mlp_ratio": 5.34375}, _HIBOU, 14, _L, (0.5,),
        ("um/px",),
    ),
    KnownEncoder(
        "lunit-s16", "Lunit", "lunit-non-commercial", False, "1aurent/vit_small_patch16_224.lunit_dino", _SAFE, 21.7,
        "vit_small_patch16_224", {}, _LUNIT, 16, _B, (0.25, 0.5),
    ),
    KnownEncoder(
        "lunit-s8", "Lunit", "lunit-non-commercial", False, "1aurent/vit_small_patch8_224.lunit_dino", _SAFE, 21.7,
        "vit_small_patch8_224", {}, _LUNIT, 8, _B, (0.25, 0.5),
    ),
    KnownEncoder(
        "lunit-resnet50", "Lunit", "lunit-non-commercial", False, "1aurent/resnet50.lunit_bt", _SAFE, 23.5,
        "resnet50", {}, _LUNIT, 0, (0, 1, 2, 3), (0.25, 0.5),
        ("file",),
    ),
    KnownEncoder(
        "dinov2-s", "Meta", _APACHE, False, "timm/vit_small_patch14_dinov2.lvd142m", _SAFE, 22.1,
        "vit_small_patch14_dinov2", {}, _IMAGENET, 14, _B, (),
    ),
    KnownEncoder(
        "dinov2-b", "Meta", _APACHE, False, "timm/vit_base_patch14_dinov2.lvd142m", _SAFE, 86.6,
        "vit_base_patch14_dinov2", {}, _IMAGENET, 14, _B, (),
    ),
    KnownEncoder(
        "dinov3-s", "Meta", "dinov3-license", False, "timm/vit_small_patch16_dinov3_qkvb.lvd1689m", _SAFE, 21.6,
        "vit_small_patch16_dinov3_qkvb", {}, _IMAGENET, 16, _B, (),
        ("gate",),
    ),
    KnownEncoder(
        "dinov3-b", "Meta", "dinov3-license", False, "timm/vit_base_patch16_dinov3_qkvb.lvd1689m", _SAFE, 85.7,
        "vit_base_patch16_dinov3_qkvb", {}, _IMAGENET, 16, _B, (),
        ("gate",),
    ),
)  # fmt: skip


def known(base: str) -> KnownEncoder | None:
    """The encoder of this name, or of this repository as ``hf-hub:OWNER/NAME``; None where it is not in the table.

    Examples
    --------
    >>> from napari_sparseseg.learning.encoder_registry import known
    >>> known("uni2-h").patch, known("hf-hub:MahmoodLab/UNI2-h").name, known("resnet18")
    (14, 'uni2-h', None)
    """
    repository = base.partition(":")[2].lower() if base.startswith(_HUB) else ""
    return next((e for e in KNOWN if base.lower() == e.name or repository == e.repository.lower()), None)
